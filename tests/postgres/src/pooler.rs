//! PgBouncer in transaction mode, in front of a server.

use std::{
    fmt::Write as _,
    fs,
    net::{Ipv4Addr, TcpStream},
    os::unix::fs::PermissionsExt as _,
    process::{Child, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::{
    free_port,
    programs::{as_server, find_pooler, hand_over, spawn},
};

/// How long it may take to start.
const PATIENCE: Duration = Duration::from_secs(20);

/// A PgBouncer of its own, on loopback, that hands every transaction to whichever of its few connections is free. Dropped,
/// or when the process ends, it is gone.
#[derive(Debug)]
pub struct Pooler {
    directory: tempfile::TempDir,
    port: u16,
    user: String,
    process: Child,
}

impl Pooler {
    /// In front of the server with this URL, to which it has at most so many connections for each database.
    ///
    /// # Panics
    /// If PgBouncer is not installed, or does not start: says why.
    #[must_use]
    pub fn start(server: &str, connections: u32) -> Self {
        let (user, password, address) = parts(server);
        let directory = tempfile::Builder::new().prefix("ocore-pooler-").tempdir().expect("make a directory");
        hand_over(directory.path());
        let (host, server_port) = address.split_once(':').expect("an address with a port");
        let port = free_port();
        let (users, log) = (directory.path().join("users"), directory.path().join("log"));
        let settings = format!(
            "[databases]\n* = host={host} port={server_port}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
             listen_port = {port}\nunix_socket_dir =\nauth_type = scram-sha-256\nauth_file = {}\nlogfile = {}\n\
             pool_mode = transaction\ndefault_pool_size = {connections}\nmax_client_conn = 500\n\
             ignore_startup_parameters = extra_float_digits\n",
            users.display(),
            log.display(),
        );
        let path = directory.path().join("pgbouncer.ini");
        fs::write(&path, settings).expect("write the settings");
        fs::write(&users, format!("\"{user}\" \"{password}\"\n")).expect("write the users");
        for file in [&path, &users] {
            fs::set_permissions(file, fs::Permissions::from_mode(0o600)).expect("keep it from others");
            hand_over(file);
        }
        let mut command = as_server(&find_pooler().unwrap_or_else(|missing| panic!("{missing}")));
        command.arg("--quiet").arg(&path).stdin(Stdio::null()).stdout(Stdio::null());
        let mut pooler =
            Self { directory, port, user: format!("{user}:{password}"), process: spawn(command) };
        pooler.wait();
        pooler
    }

    fn wait(&mut self) {
        let began = Instant::now();
        while TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_err() {
            let ended = self.process.try_wait().expect("look after pgbouncer");
            assert!(
                ended.is_none() && began.elapsed() < PATIENCE,
                "pgbouncer does not start: {}",
                self.log()
            );
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn log(&self) -> String {
        let mut log = fs::read_to_string(self.directory.path().join("log")).unwrap_or_default();
        write!(log, " (process {})", self.process.id()).expect("a text can be written to");
        log
    }

    /// The URL of the superuser in a database, through the pooler.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        format!("postgres://{}@127.0.0.1:{}/{database}", self.user, self.port)
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        // It ends at once, whoever is connected; how is nobody's business any more.
        if self.process.kill().is_ok() {
            drop(self.process.wait());
        }
    }
}

/// User, password and address of `postgres://user:password@address/database`.
fn parts(url: &str) -> (&str, &str, &str) {
    let parts = url.strip_prefix("postgres://").and_then(|rest| {
        let (user, rest) = rest.split_once('@')?;
        let (name, password) = user.split_once(':')?;
        Some((name, password, rest.split('/').next()?))
    });
    parts.expect("a URL with a user, a password and an address")
}
