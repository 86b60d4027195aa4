//! Private PostgreSQL clusters for tests and benches: made when they are needed, gone with the process that made them.
//!
//! ```no_run
//! let cluster = ocore_test_postgres::Cluster::start(&[("max_connections", "20")]);
//! println!("{}", cluster.url("postgres"));
//! ```

mod pooler;
mod programs;

use std::{
    fs,
    io::{self, Read as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
    thread,
    time::{Duration, Instant},
};

use self::programs::{as_server, hand_over, spawn};
pub use self::{
    pooler::Pooler,
    programs::{Missing, find, find_pooler},
};

/// The superuser's name.
pub const SUPERUSER: &str = "postgres";

/// The variable that names a cluster that all tests share: the URL of its superuser, without a database.
pub const SHARED: &str = "OCORE_TEST_POSTGRES";

/// How long a server may take to start or to stop.
const PATIENCE: Duration = Duration::from_secs(60);

/// A cluster of its own: loopback only, every connection with a password. Dropped, or when the process ends in whatever
/// way, it is stopped; dropped, its files are removed too.
#[derive(Debug)]
pub struct Cluster {
    directory: tempfile::TempDir,
    port: u16,
    password: String,
    server: Mutex<Option<Child>>,
}

/// How a server is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "there are these three in PostgreSQL")]
pub enum Stop {
    /// Connections are ended, everything is written.
    Fast,
    /// As a crash of the machine would: the next start recovers.
    Immediate,
    /// The main process alone is killed; its children notice that by themselves.
    Kill,
}

impl Cluster {
    /// Makes a cluster and starts its server, with these settings beside the usual ones. It does not sync to disk, unless
    /// a setting says `fsync`.
    ///
    /// # Panics
    /// If PostgreSQL is not installed, or does not start: says why.
    #[must_use]
    pub fn start(settings: &[(&str, &str)]) -> Self {
        let directory =
            tempfile::Builder::new().prefix("ocore-postgres-").tempdir().expect("make a directory");
        Self::start_in(directory, settings)
    }

    /// The same in a directory that is there, such as one on a small disk.
    ///
    /// # Panics
    /// As [`start`](Self::start).
    #[must_use]
    pub fn start_in(directory: tempfile::TempDir, settings: &[(&str, &str)]) -> Self {
        let password = format!("pw-{}-{}", std::process::id(), free_port());
        hand_over(directory.path());
        let cluster = Self { directory, port: free_port(), password, server: Mutex::new(None) };
        cluster.make(settings);
        cluster.resume();
        cluster
    }

    fn make(&self, settings: &[(&str, &str)]) {
        let secret = self.directory.path().join("password");
        fs::write(&secret, &self.password).expect("write the password");
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o644)).expect("let the server read it");
        let mut initdb = as_server(&find("initdb").unwrap_or_else(|missing| panic!("{missing}")));
        initdb.args(["--no-sync", "--encoding=UTF8", "--locale=C.UTF-8", "--auth=scram-sha-256"]);
        initdb.arg(format!("--username={SUPERUSER}")).arg("--pwfile").arg(&secret).arg("-D").arg(self.data());
        let made = initdb.stdin(Stdio::null()).output().expect("run initdb");
        assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        let mut lines = format!(
            "listen_addresses = '127.0.0.1'\nport = {}\nunix_socket_directories = ''\nfsync = off\n",
            self.port
        );
        for (name, value) in settings {
            lines += &format!("{name} = '{value}'\n");
        }
        let path = self.data().join("postgresql.auto.conf");
        fs::write(&path, lines).expect("write the settings");
    }

    /// A copy of this server that follows it, and without which it commits nothing from now on: what was committed is there
    /// too. The copy serves after [`promote`](Self::promote).
    ///
    /// # Panics
    /// If the copy cannot be made, or does not follow.
    #[must_use]
    pub fn standby(&self) -> Self {
        let directory =
            tempfile::Builder::new().prefix("ocore-standby-").tempdir().expect("make a directory");
        hand_over(directory.path());
        let (port, password) = (free_port(), self.password.clone());
        let standby = Self { directory, port, password, server: Mutex::new(None) };
        let mut copy = as_server(&find("pg_basebackup").unwrap_or_else(|missing| panic!("{missing}")));
        copy.env("PGPASSWORD", &self.password).args([
            "--write-recovery-conf",
            "--checkpoint=fast",
            "--no-sync",
        ]);
        copy.args(["--host=127.0.0.1", &format!("--port={}", self.port), &format!("--username={SUPERUSER}")]);
        let copied =
            copy.arg("-D").arg(standby.data()).stdin(Stdio::null()).output().expect("run pg_basebackup");
        assert!(copied.status.success(), "pg_basebackup: {}", String::from_utf8_lossy(&copied.stderr));
        standby.set("port", &port.to_string());
        standby.set("synchronous_standby_names", "");
        standby.resume();
        self.set("synchronous_standby_names", "*");
        self.signal("HUP");
        standby
    }

    /// Ends the following, and serves from now on.
    ///
    /// # Panics
    /// If the server does not run, or does not stop following.
    pub fn promote(&self) {
        let signal = self.data().join("standby.signal");
        fs::write(self.data().join("promote"), "").expect("write the request");
        self.signal("USR1");
        let began = Instant::now();
        while signal.exists() {
            assert!(began.elapsed() < PATIENCE, "the standby is not promoted: {}", self.log());
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Writes a setting, which holds from the next start or reload on.
    fn set(&self, name: &str, value: &str) {
        let path = self.data().join("postgresql.auto.conf");
        let mut lines = fs::read_to_string(&path).expect("read the settings");
        lines += &format!("{name} = '{value}'\n");
        fs::write(&path, lines).expect("write the settings");
    }

    fn signal(&self, signal: &str) {
        let server = self.lock();
        let process = server.as_ref().expect("the server runs").id().to_string();
        let sent = Command::new("kill").arg(format!("-{signal}")).arg(process).status();
        assert!(sent.expect("run kill").success(), "the server is gone: {}", self.log());
    }

    /// Where the server keeps its files.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// The loopback port that it listens on.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// The superuser's password.
    #[must_use]
    pub fn password(&self) -> &str {
        &self.password
    }

    /// The URL of the superuser in a database.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        format!("postgres://{SUPERUSER}:{}@127.0.0.1:{}/{database}", self.password, self.port)
    }

    /// What the server has written to its log.
    ///
    /// # Panics
    /// If it cannot be read.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).expect("read the server's log")
    }

    fn log_path(&self) -> PathBuf {
        self.directory.path().join("log")
    }

    /// Stops the server, if it runs, and waits until it has ended.
    ///
    /// # Panics
    /// If it does not end.
    pub fn stop(&self, how: Stop) {
        let Some(mut server) = self.lock().take() else { return };
        let signal = match how {
            Stop::Fast => "INT",
            Stop::Immediate => "QUIT",
            Stop::Kill => "KILL",
        };
        let sent = Command::new("kill").arg(format!("-{signal}")).arg(server.id().to_string()).status();
        assert!(sent.expect("run kill").success() || server.try_wait().is_ok_and(|it| it.is_some()));
        let began = Instant::now();
        while server.try_wait().expect("look after the server").is_none() {
            assert!(began.elapsed() < PATIENCE, "the server does not end: {}", self.log());
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Starts the server again, and waits until it answers.
    ///
    /// # Panics
    /// If it does not start.
    pub fn resume(&self) {
        let began = Instant::now();
        // What a killed server has left may hold its memory for a moment.
        while !self.try_resume() {
            assert!(began.elapsed() < PATIENCE, "the server does not start: {}", self.log());
            thread::sleep(Duration::from_millis(200));
        }
    }

    /// Whether the server has started and answers.
    fn try_resume(&self) -> bool {
        let (mut server, began) = (self.spawn(), Instant::now());
        while server.try_wait().expect("look after the server").is_none() {
            if self.answers() {
                *self.lock() = Some(server);
                return true;
            }
            assert!(began.elapsed() < PATIENCE, "the server does not answer: {}", self.log());
            thread::sleep(Duration::from_millis(10));
        }
        false
    }

    /// Stops the server and starts it again.
    pub fn restart(&self, how: Stop) {
        self.stop(how);
        self.resume();
    }

    fn spawn(&self) -> Child {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log_path());
        let log = log.expect("open the server's log");
        let mut postgres = as_server(&find("postgres").unwrap_or_else(|missing| panic!("{missing}")));
        postgres.arg("-D").arg(self.data()).stdin(Stdio::null()).stderr(log).stdout(Stdio::null());
        spawn(postgres)
    }

    /// Whether it takes connections: it says so in its first answer, whoever asks.
    fn answers(&self) -> bool {
        let ask = || -> io::Result<bool> {
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))?;
            stream.set_read_timeout(Some(Duration::from_secs(2)))?;
            // A startup message of protocol 3.0 for the superuser; the answer to it is `R` when it is ready, else `E`.
            let body = [b"\0\x03\0\0user\0", SUPERUSER.as_bytes(), b"\0\0"].concat();
            let length = u32::try_from(body.len() + 4).expect("a short message").to_be_bytes();
            io::Write::write_all(&mut stream, &[&length[..], &body].concat())?;
            let mut kind = [0];
            stream.read_exact(&mut kind)?;
            Ok(kind == *b"R")
        };
        ask().unwrap_or(false)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Child>> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop(Stop::Immediate);
    }
}

/// The superuser's URL in a database of the cluster that all tests share: the one that [`SHARED`] names, or else one that
/// this process starts for itself.
#[must_use]
pub fn shared_url(database: &str) -> String {
    static OWN: OnceLock<Cluster> = OnceLock::new();
    match std::env::var(SHARED) {
        Ok(url) => format!("{}/{database}", url.trim_end_matches('/')),
        Err(_) => OWN.get_or_init(|| Cluster::start(SHARED_SETTINGS)).url(database),
    }
}

/// The settings of the cluster that all tests share.
pub const SHARED_SETTINGS: &[(&str, &str)] =
    &[("max_connections", "400"), ("max_prepared_transactions", "20")];

fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("there is a free port");
    listener.local_addr().expect("it has an address").port()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_is_stopped_started_again_and_leaves_nothing() {
        let cluster = Cluster::start(&[]);
        let directory = cluster.directory.path().to_owned();
        for how in [Stop::Fast, Stop::Immediate, Stop::Kill] {
            assert!(cluster.answers());
            cluster.stop(how);
            assert!(!cluster.answers(), "{how:?}");
            cluster.resume();
        }
        drop(cluster);
        assert!(!directory.exists());
    }
}
