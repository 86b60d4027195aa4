//! Whether a port is free, and who has it.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
};

use ocore_core::{
    environment::Instance,
    port::{Classify, Error, Result},
};

use super::record::Name;
use crate::process::Process;

/// Refuses a port that another program listens on, and names it where it can be seen. `own` are the processes that may
/// have it; `refusal` says whether it may pass.
pub(super) fn refuse_taken(
    instance: &Instance,
    own: &[(Name, Process)],
    refusal: fn(String) -> Error,
) -> Result<()> {
    let Some(port) = instance.port else { return Ok(()) };
    let host = instance.host.parse().unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    let error = match try_bind(host, port) {
        Ok(()) => return Ok(()),
        Err(error) => error,
    };
    if error.kind() == io::ErrorKind::PermissionDenied {
        return Err(error).permanent(format!(
            "port {port} is reserved: choose one above 1023, or give the worker the right to it"
        ));
    }
    let Some(socket) = listening_socket(port) else {
        // Nobody listens: a connection of some program has the port for the moment.
        return Err(error).transient(format!("port {port} is in use"));
    };
    let holder = holder(&socket);
    // Whose files may not be looked at may be one of our own.
    let unknown = holder.is_none() && !own.is_empty();
    if unknown || own.iter().any(|(_, process)| holds(process, &socket)) {
        return Ok(());
    }
    let holder = holder.map_or_else(
        || "another program".to_owned(),
        |process| format!("process {} ({})", process.pid, process.name),
    );
    Err(refusal(format!("port {port} is in use by {holder}: stop it, or give the instance another port")))
}

fn try_bind(host: IpAddr, port: u16) -> io::Result<()> {
    match TcpListener::bind(SocketAddr::new(host, port)) {
        // The address is reached through something else; what listens here has some address of this machine.
        Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {
            TcpListener::bind(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port)).map(drop)
        }
        other => other.map(drop),
    }
}

/// The inode of a socket that listens on the port.
fn listening_socket(port: u16) -> Option<String> {
    const LISTENING: &str = "0A";
    let ending = format!(":{port:04X}");
    ["/proc/net/tcp", "/proc/net/tcp6"].iter().find_map(|path| {
        let table = fs::read_to_string(path).ok()?;
        table.lines().skip(1).find_map(|line| {
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            let listens = fields.get(1)?.ends_with(&ending) && *fields.get(3)? == LISTENING;
            listens.then(|| fields.get(9).map(|inode| (*inode).to_owned()))?
        })
    })
}

fn holder(socket: &str) -> Option<Process> {
    Process::all().ok()?.into_iter().find(|process| holds(process, socket))
}

fn holds(process: &Process, socket: &str) -> bool {
    let link = format!("socket:[{socket}]");
    let descriptors = fs::read_dir(format!("/proc/{}/fd", process.pid));
    descriptors.into_iter().flatten().any(|descriptor| {
        let target = descriptor.and_then(|descriptor| fs::read_link(descriptor.path()));
        target.is_ok_and(|target| target.as_os_str() == link.as_str())
    })
}
