//! A git host on loopback that speaks ssh: `git upload-pack` behind a small server, which ends with the test.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use ocore_core::secret::Secret;
use ocore_git::{Credentials, HostKey};
use russh::{
    Channel, ChannelId,
    keys::{
        PrivateKey,
        ssh_key::{Cipher, Kdf, LineEnding, private::Ed25519Keypair},
    },
    server::{Auth, ChannelOpenHandle, Config, Handler, Msg, Session, VerifiedPublicKey, run_stream},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    process::Command,
    runtime::Runtime,
    sync::Notify,
};

/// How the host answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manner {
    /// As git does.
    Serve,
    /// Accepts a connection and says nothing.
    SilentBeforeBanner,
    /// Says who it is and nothing more.
    SilentInKeyExchange,
    /// Says nothing when it is asked how to prove who one is.
    SilentInAuthentication,
    /// Knows no key.
    RefuseKey,
    /// Ends the connection when it is asked how to prove who one is.
    CloseInAuthentication,
    /// Refuses the command with this text.
    Stderr(&'static str),
    /// Sends so many bytes, then nothing.
    StallAfter(usize),
}

pub(crate) struct Seen {
    root: PathBuf,
    manner: Mutex<Manner>,
    client_key: PrivateKey,
    pub(crate) sent_bytes: AtomicU64,
    /// Keys whose owner has proved to have them.
    pub(crate) keys: AtomicU64,
    /// Questions how to prove who one is.
    pub(crate) questions: AtomicU64,
    pub(crate) commands: Mutex<Vec<String>>,
    pub(crate) users: Mutex<Vec<String>>,
    /// Told at every connection, and at every stage at which the host falls silent.
    pub(crate) silent: Notify,
}

pub(crate) struct SshHost {
    pub(crate) address: SocketAddr,
    pub(crate) seen: Arc<Seen>,
    host_key: PrivateKey,
    runtime: Option<Runtime>,
}

pub(crate) fn new_key() -> PrivateKey {
    let (first, second) = (uuid::Uuid::new_v4(), uuid::Uuid::new_v4());
    let seed: Vec<u8> = [first.into_bytes(), second.into_bytes()].concat();
    PrivateKey::from(Ed25519Keypair::from_seed(&seed.try_into().unwrap()))
}

pub(crate) fn text_of(key: &PrivateKey) -> String {
    key.to_openssh(LineEnding::LF).unwrap().to_string()
}

pub(crate) fn encrypted(key: &PrivateKey, passphrase: &str) -> String {
    let kdf = Kdf::Bcrypt { salt: b"0123456789abcdef".to_vec(), rounds: 4 };
    text_of(&key.encrypt_with(Cipher::Aes256Ctr, kdf, 7, passphrase).unwrap())
}

impl SshHost {
    /// A host of the repositories below `root`, which knows one key.
    pub(crate) fn start(root: &Path) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (host_key, client_key) = (new_key(), new_key());
        let seen = Arc::new(Seen {
            root: root.to_owned(),
            manner: Mutex::new(Manner::Serve),
            client_key,
            sent_bytes: AtomicU64::new(0),
            keys: AtomicU64::new(0),
            questions: AtomicU64::new(0),
            commands: Mutex::default(),
            users: Mutex::default(),
            silent: Notify::new(),
        });
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let config = Config {
            keys: vec![host_key.clone()],
            auth_rejection_time: std::time::Duration::ZERO,
            nodelay: true,
            ..Config::default()
        };
        let (config, shared) = (Arc::new(config), Arc::clone(&seen));
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer(stream, Arc::clone(&config), Arc::clone(&shared)));
            }
        });
        Self { address, seen, host_key, runtime: Some(runtime) }
    }

    pub(crate) fn set(&self, manner: Manner) {
        *self.seen.manner.lock().unwrap() = manner;
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("ssh://git@127.0.0.1:{}/{path}", self.address.port())
    }

    /// The host's own key, as `ssh-keyscan` prints it.
    pub(crate) fn host_key(&self) -> HostKey {
        HostKey::parse(&format!("127.0.0.1 {}", self.host_key.public_key().to_openssh().unwrap())).unwrap()
    }

    pub(crate) fn client_key(&self) -> &PrivateKey {
        &self.seen.client_key
    }

    /// What opens the host's door.
    pub(crate) fn credentials(&self) -> Credentials {
        Credentials::ssh_key("git", Secret::new(text_of(self.client_key())), None, [self.host_key()])
    }
}

impl Drop for SshHost {
    fn drop(&mut self) {
        self.runtime.take().unwrap().shutdown_background();
    }
}

async fn answer(mut stream: TcpStream, config: Arc<Config>, seen: Arc<Seen>) {
    let manner = *seen.manner.lock().unwrap();
    if matches!(manner, Manner::SilentBeforeBanner | Manner::SilentInKeyExchange) {
        if manner == Manner::SilentInKeyExchange {
            stream.write_all(b"SSH-2.0-silent\r\n").await.unwrap();
        }
        seen.silent.notify_one();
        while matches!(stream.read(&mut [0; 1024]).await, Ok(count) if count > 0) {}
        return;
    }
    if let Ok(session) = run_stream(config, stream, Connection { seen, channel: None }).await {
        drop(session.await);
    }
}

struct Connection {
    seen: Arc<Seen>,
    channel: Option<Channel<Msg>>,
}

impl Connection {
    fn manner(&self) -> Manner {
        *self.seen.manner.lock().unwrap()
    }
}

impl Handler for Connection {
    type Error = russh::Error;

    async fn auth_none(&mut self, user: &str) -> Result<Auth, russh::Error> {
        self.seen.questions.fetch_add(1, Ordering::Relaxed);
        self.seen.users.lock().unwrap().push(user.to_owned());
        match self.manner() {
            Manner::CloseInAuthentication => Err(russh::Error::Disconnect),
            Manner::SilentInAuthentication => {
                self.seen.silent.notify_one();
                std::future::pending().await
            }
            _ => Ok(Auth::reject()),
        }
    }

    async fn auth_publickey(&mut self, _: &str, key: VerifiedPublicKey<'_>) -> Result<Auth, russh::Error> {
        self.seen.keys.fetch_add(1, Ordering::Relaxed);
        let known = self.seen.client_key.public_key().key_data() == key.public_key.key_data();
        let welcome = known && self.manner() != Manner::RefuseKey;
        Ok(if welcome { Auth::Accept } else { Auth::reject() })
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), russh::Error> {
        self.channel = Some(channel);
        reply.accept().await;
        Ok(())
    }

    async fn exec_request(
        &mut self,
        id: ChannelId,
        data: &[u8],
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        let command = String::from_utf8_lossy(data).into_owned();
        self.seen.commands.lock().unwrap().push(command.clone());
        session.channel_success(id)?;
        if let Some(channel) = self.channel.take() {
            tokio::spawn(run(channel, command, self.manner(), Arc::clone(&self.seen)));
        }
        Ok(())
    }
}

/// The repository in `git-upload-pack '…'`.
fn repository(command: &str, root: &Path) -> Option<PathBuf> {
    let path = command.strip_prefix("git-upload-pack '")?.strip_suffix('\'')?;
    Some(root.join(path.trim_start_matches("~/").trim_start_matches('/')))
}

async fn run(mut channel: Channel<Msg>, command: String, manner: Manner, seen: Arc<Seen>) {
    let path = repository(&command, &seen.root).filter(|path| path.exists());
    let refusal = match (manner, &path) {
        (Manner::Stderr(text), _) => Some(text),
        (_, None) => Some("fatal: does not appear to be a git repository\n"),
        _ => None,
    };
    if let Some(text) = refusal {
        channel.extended_data(1, text.as_bytes()).await.unwrap();
        return end(&channel, 128).await;
    }
    let mut child = Command::new("git")
        .arg("upload-pack")
        .arg(path.unwrap())
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("GIT_CONFIG_COUNT", "1")
        .env("GIT_CONFIG_KEY_0", "safe.directory")
        .env("GIT_CONFIG_VALUE_0", "*")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let (mut input, mut output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut to_client = channel.make_writer();
    let down = async {
        let (mut buffer, mut sent) = (vec![0; 16 * 1024], 0);
        loop {
            let count = output.read(&mut buffer).await.unwrap_or(0);
            if count == 0 || to_client.write_all(&buffer[..count]).await.is_err() {
                return;
            }
            sent += count;
            seen.sent_bytes.fetch_add(count as u64, Ordering::Relaxed);
            if matches!(manner, Manner::StallAfter(limit) if sent >= limit) {
                seen.silent.notify_one();
                std::future::pending::<()>().await;
            }
        }
    };
    let up = async {
        let mut from_client = channel.make_reader();
        drop(tokio::io::copy(&mut from_client, &mut input).await);
        // The client has gone.
    };
    tokio::select! {
        () = down => {}
        () = up => {}
    }
    end(&channel, 0).await;
}

async fn end(channel: &Channel<Msg>, status: u32) {
    drop(channel.exit_status(status).await);
    drop(channel.eof().await);
    drop(channel.close().await);
}
