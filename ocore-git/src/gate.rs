//! The only way from libgit2 to the network.
//!
//! libgit2 connects by itself, follows no cancellation while it waits for a packet, looks names up again after they
//! were checked, follows redirects on the same host whatever it is told, and dies of some. So it is given a port of
//! this machine instead, that leads to one host only, and speaks http to it. Behind the port the connection is
//! ours: it goes to the addresses that were checked, with TLS and credentials of our own, it has time and size
//! limits, no redirect passes, and closing it stops whatever libgit2 is waiting for.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use ocore_core::port::{Classify, Error, ErrorKind, Result};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf},
    net::{TcpListener, TcpStream},
    task::{AbortHandle, JoinSet},
};

use zeroize::Zeroizing;

use crate::{
    credentials::{Credentials, Kind},
    location::Remote,
    policy::{Limits, Protocol},
    stop::Stop,
    tls,
};

/// The most that is read of the request to a proxy.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// The most connections that one fetch uses at a time.
const CONNECTIONS_MAX: usize = 16;

/// Where a gate leads, and by what rules.
#[derive(Debug)]
pub(crate) struct Passage {
    pub(crate) remote: Remote,
    /// Those that were checked.
    pub(crate) addresses: Vec<SocketAddr>,
    pub(crate) credentials: Option<Credentials>,
    /// The certificates to accept from the host, instead of what the system trusts.
    pub(crate) certificates: Option<Vec<Vec<u8>>>,
    pub(crate) limits: Limits,
}

/// A port of this machine that leads to one host. Dropping it closes every connection.
#[derive(Debug)]
pub(crate) struct Gate {
    port: u16,
    way: Arc<Way>,
    task: AbortHandle,
}

#[derive(Debug)]
struct Way {
    passage: Passage,
    stop: Stop,
    received_bytes: AtomicU64,
    verdict: Mutex<Option<Error>>,
}

impl Gate {
    pub(crate) async fn open(passage: Passage, stop: Stop) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
        let listener = listener.transient("open a port of this machine for the connection")?;
        let port = listener.local_addr().transient("find the port's number")?.port();
        let (received_bytes, verdict) = (AtomicU64::new(0), Mutex::new(None));
        let way = Arc::new(Way { passage, stop, received_bytes, verdict });
        let task = tokio::spawn(Arc::clone(&way).serve(listener)).abort_handle();
        Ok(Self { port, way, task })
    }

    pub(crate) const fn port(&self) -> u16 {
        self.port
    }

    /// Why the connection failed, if it was the gate that knows.
    pub(crate) fn verdict(&self) -> Option<Error> {
        self.way.verdict.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Passage {
    /// The line with the token, for a host that is reached by https only.
    fn authorization(&self) -> Option<Zeroizing<String>> {
        let Some(Kind::Token { user, token }) = self.credentials.as_ref().map(|credentials| &credentials.0)
        else {
            return None;
        };
        if self.remote.protocol != Protocol::Https {
            return None;
        }
        let pair = Zeroizing::new(format!("{user}:{}", token.expose()));
        Some(Zeroizing::new(format!("Authorization: Basic {}\r\n", *Zeroizing::new(STANDARD.encode(&*pair)))))
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Way {
    async fn serve(self: Arc<Self>, listener: TcpListener) {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                _ = self.stop.stopped() => return,
                Some(_) = connections.join_next() => {}
                accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => {
                    let Ok((mut near, _)) = accepted else { return };
                    let way = Arc::clone(&self);
                    connections.spawn(async move {
                        // `near` is closed last: libgit2 must not fail before the reason is known.
                        if let Err(error) = way.pass(&mut near).await {
                            way.judge(error);
                        }
                    });
                }
            }
        }
    }

    /// The first refusal counts; before there is one, the last trouble: a host may end a connection that it kept
    /// open, and libgit2 then makes another.
    fn judge(&self, error: Error) {
        let mut verdict = self.verdict.lock().unwrap_or_else(PoisonError::into_inner);
        if verdict.as_ref().is_none_or(|known| known.kind() == ErrorKind::Transient) {
            *verdict = Some(error);
        }
    }

    async fn pass(&self, near: &mut TcpStream) -> Result<()> {
        let protocol = self.passage.remote.protocol;
        if protocol == Protocol::Ssh {
            let far = self.connect().await?;
            return self.pump(near, far).await;
        }
        let head = self.for_the_host(&self.read_head(near).await?);
        let mut far = self.connect().await?;
        if protocol == Protocol::Http {
            far.write_all(&head).await.transient(self.talk())?;
            return self.pump(near, far).await;
        }
        let encrypting = tls::connect(&self.passage, far);
        let encrypting = tokio::time::timeout(self.passage.limits.connect_time_max, encrypting);
        let mut far = encrypting.await.unwrap_or_else(|_| {
            Err(Error::transient(format!("{}: the host does not answer to TLS", self.talk())))
        })?;
        far.write_all(&head).await.transient(self.talk())?;
        self.pump(near, far).await
    }

    fn talk(&self) -> String {
        format!("talk to {}", self.passage.remote.host)
    }

    async fn read_head(&self, near: &mut TcpStream) -> Result<Vec<u8>> {
        let mut head = Vec::new();
        while !head.windows(4).any(|window| window == b"\r\n\r\n") {
            let count = near.read_buf(&mut head).await.transient("read libgit2's request")?;
            if count == 0 || head.len() > HEAD_BYTES_MAX {
                return Err(Error::transient("read libgit2's request: it is not complete"));
            }
        }
        Ok(head)
    }

    /// libgit2 takes the gate for the host: puts the host's own name and the credentials into the request, and
    /// asks for one answer only, so that no second request passes without them.
    fn for_the_host(&self, head: &[u8]) -> Zeroizing<Vec<u8>> {
        let mut changed = Zeroizing::new(Vec::with_capacity(head.len() + 2048));
        let end = head.windows(4).position(|window| window == b"\r\n\r\n").map_or(head.len(), |at| at + 2);
        for line in head[..end].split_inclusive(|b| *b == b'\n') {
            let name = String::from_utf8_lossy(line).to_ascii_lowercase();
            match name.split(':').next() {
                Some("host") => {
                    let host = self.passage.remote.authority();
                    changed.extend_from_slice(format!("Host: {host}\r\nConnection: close\r\n").as_bytes());
                    if let Some(authorization) = self.passage.authorization() {
                        changed.extend_from_slice(authorization.as_bytes());
                    }
                }
                Some("connection" | "authorization") => {}
                _ => changed.extend_from_slice(line),
            }
        }
        changed.extend_from_slice(&head[end..]);
        changed
    }

    async fn connect(&self) -> Result<TcpStream> {
        let host = &self.passage.remote.host;
        let mut last = Error::transient(format!("connect to {host}: it has no address"));
        for address in &self.passage.addresses {
            let connecting =
                tokio::time::timeout(self.passage.limits.connect_time_max, TcpStream::connect(address));
            match connecting.await {
                Ok(Ok(far)) => {
                    far.set_nodelay(true).transient("set up the connection")?;
                    return Ok(far);
                }
                Ok(Err(error)) => {
                    let answer = Err::<TcpStream, _>(error);
                    last = match answer.transient(format!("connect to {host}: the host does not answer")) {
                        Ok(far) => return Ok(far),
                        Err(error) => error,
                    };
                }
                Err(_) => {
                    let seconds = self.passage.limits.connect_time_max.as_secs();
                    let text = format!("connect to {host}: the host does not answer within {seconds} s");
                    last = Error::transient(text);
                }
            }
        }
        Err(last)
    }

    async fn pump(&self, near: &mut TcpStream, far: impl AsyncRead + AsyncWrite) -> Result<()> {
        let pulse = Pulse::new();
        let (near_read, near_write) = tokio::io::split(near);
        let (far_read, far_write) = tokio::io::split(far);
        let up = self.copy(near_read, far_write, &pulse, false);
        let down = self.copy(far_read, near_write, &pulse, true);
        tokio::select! {
            copied = async { tokio::try_join!(up, down) } => copied.map(|_| ()),
            () = pulse.lost(self.passage.limits.idle_time_max) => {
                let seconds = self.passage.limits.idle_time_max.as_secs();
                let host = &self.passage.remote.host;
                Err(Error::transient(format!("receive from {host}: the host does not answer for {seconds} s")))
            }
        }
    }

    async fn copy(
        &self,
        mut from: ReadHalf<impl AsyncRead>,
        mut to: WriteHalf<impl AsyncWrite>,
        pulse: &Pulse,
        counted: bool,
    ) -> Result<()> {
        let doing = || format!("talk to {}", self.passage.remote.host);
        let mut buffer = vec![0; 64 * 1024];
        let mut checked = !counted || self.passage.remote.protocol == Protocol::Ssh;
        loop {
            let count = if checked {
                from.read(&mut buffer).await.transient(doing())?
            } else {
                checked = true;
                self.read_status(&mut from, &mut buffer).await?
            };
            if count == 0 {
                return to.shutdown().await.transient(doing());
            }
            pulse.beat();
            if counted {
                self.count(count)?;
            }
            to.write_all(&buffer[..count]).await.transient(doing())?;
        }
    }

    /// Reads the beginning of an answer, and ends what libgit2 is not to see.
    async fn read_status(&self, from: &mut ReadHalf<impl AsyncRead>, buffer: &mut [u8]) -> Result<usize> {
        const STATUS: std::ops::Range<usize> = 9..12;
        let mut count = 0;
        while count < STATUS.end {
            match from.read(&mut buffer[count..]).await.transient(self.talk())? {
                0 => return Ok(count),
                more => count += more,
            }
        }
        let refused =
            |reason: &str| Err(Error::permanent(format!("fetch {}: {reason}", self.passage.remote)));
        match (&buffer[STATUS], &self.passage.credentials, self.passage.authorization()) {
            ([b'3', ..], ..) => {
                refused("the host redirects, which is not followed; give the URL it leads to")
            }
            (b"401", _, Some(_)) => {
                refused("not authorised: the host does not accept the environment's credentials")
            }
            (b"401", None, None) => refused(
                "not authorised: the host asks for credentials, and none are given for this repository",
            ),
            (b"401", Some(_), None) if self.passage.remote.protocol == Protocol::Http => refused(
                "not authorised: the host asks for credentials, and they are never sent over http; use https or ssh",
            ),
            (b"401", Some(_), None) => {
                refused("not authorised: an ssh key is given, and the host asks for a token")
            }
            _ => Ok(count),
        }
    }

    fn count(&self, bytes: usize) -> Result<()> {
        let received = self.received_bytes.fetch_add(bytes as u64, Ordering::Relaxed) + bytes as u64;
        let limit = self.passage.limits.received_bytes_max;
        if received <= limit {
            return Ok(());
        }
        Err(Error::permanent(format!(
            "receive from {}: more than the limit received_bytes_max, {limit} bytes; raise it in the policy",
            self.passage.remote.host
        )))
    }
}

/// When something was last received or sent.
struct Pulse {
    start: Instant,
    millis: AtomicU64,
}

impl Pulse {
    fn new() -> Self {
        Self { start: Instant::now(), millis: AtomicU64::new(0) }
    }

    fn beat(&self) {
        let millis = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.millis.store(millis, Ordering::Relaxed);
    }

    /// Completes when nothing has happened for so long.
    async fn lost(&self, silence_max: Duration) {
        loop {
            let last = Duration::from_millis(self.millis.load(Ordering::Relaxed));
            let silence = self.start.elapsed().saturating_sub(last);
            let Some(rest) = silence_max.checked_sub(silence).filter(|rest| !rest.is_zero()) else { return };
            tokio::time::sleep(rest).await;
        }
    }
}
