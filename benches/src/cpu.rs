//! Processor time: on a machine that does other work too, it says more than time by the wall.

use std::{fs, time::Duration};

use ocore_test_postgres::Cluster;

/// What the kernel counts processor time in, on Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// What the server's processes and this one have used, those that have ended included: of this one, the programs that it has
/// waited for.
///
/// # Panics
/// If the kernel does not tell.
#[must_use]
pub fn used(cluster: &Cluster) -> Duration {
    let pid = fs::read_to_string(cluster.data().join("postmaster.pid")).expect("the server runs");
    let pid = pid.lines().next().expect("its first line is the process's id");
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let children = children.expect("the kernel lists children");
    // A process may end between the two: then its parent has its time.
    let living: f64 = children.split_whitespace().filter_map(|process| ticks(process, 2)).sum();
    let parents: f64 = [pid, "self"].iter().filter_map(|process| ticks(process, 4)).sum();
    Duration::from_secs_f64((living + parents) / TICKS_PER_SECOND)
}

/// The first so many of: a process's own time, in the system, that of children that have ended, in the system.
fn ticks(process: &str, fields: usize) -> Option<f64> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // After the name, which ends with the last parenthesis, utime is the 12th field.
    let times = stat.rsplit_once(')')?.1.split_whitespace().skip(11).take(fields);
    Some(times.filter_map(|field| field.parse::<f64>().ok()).sum())
}
