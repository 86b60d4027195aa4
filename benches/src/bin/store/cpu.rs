//! Processor time: on a machine that does other work too, it says more than time by the wall.

use std::{fs, time::Duration};

use ocore_test_postgres::Cluster;

/// What the kernel counts processor time in, on Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// What the server's present processes and this one have used.
///
/// # Panics
/// If the kernel does not tell.
pub(crate) fn used(cluster: &Cluster) -> Duration {
    let pid = fs::read_to_string(cluster.data().join("postmaster.pid")).expect("the server runs");
    let pid = pid.lines().next().expect("its first line is the process's id");
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let children = children.expect("the kernel lists children");
    // A process may end between the two.
    let ticks: f64 = children.split_whitespace().chain(["self"]).filter_map(ticks).sum();
    Duration::from_secs_f64(ticks / TICKS_PER_SECOND)
}

fn ticks(process: &str) -> Option<f64> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // After the name, which ends with the last parenthesis: utime and stime are the 12th and 13th fields.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let (user, system): (f64, f64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some(user + system)
}
