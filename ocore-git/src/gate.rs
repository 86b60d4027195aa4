//! The only way from libgit2 to the network.
//!
//! libgit2 connects by itself, follows no cancellation while it waits for a packet, looks names up again after they
//! were checked, follows redirects on the same host whatever it is told, and dies of some. So it is given a port of
//! this machine instead, that leads to one host only, and speaks http to it. Behind the port the connection is
//! ours: it goes to the addresses that were checked, with TLS and credentials of our own, it has time and size
//! limits, no redirect passes, and closing it stops whatever libgit2 is waiting for.

mod body;
mod pack;
mod reply;
mod request;
#[cfg(test)]
mod tests;

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
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

use self::{
    body::{Body, chunk},
    pack::{PackWatch, Refusal},
    reply::Reply,
    request::Request,
};
use crate::{
    credentials::{Credentials, Kind},
    location::Remote,
    policy::{Limits, Protocol},
    stop::Stop,
    tls,
};

/// The most connections that are open at a time; one fetch needs two or three.
const CONNECTIONS_MAX: usize = 64;
/// The wait after a connection that could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// What is read at a time.
const BUFFER_BYTES: usize = 64 * 1024;
/// How much is looked at before other tasks get their turn: it may unpack to a thousand times as much.
const LOOK_BYTES: usize = 4 * 1024;
/// What the host may send for each branch or tag that it lists.
const BYTES_PER_REFERENCE: u64 = 300;

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
    way: Arc<Way>,
    task: AbortHandle,
}

/// How libgit2 gets through the gate, and what the gate knows of its end.
#[derive(Debug, Clone)]
pub(crate) struct Entrance(Arc<Way>);

#[derive(Debug)]
struct Way {
    passage: Passage,
    stop: Stop,
    port: u16,
    /// Other processes of this machine can reach the port too, and must not use the credentials behind it.
    key: String,
    received_bytes: AtomicU64,
    listed: AtomicBool,
    verdict: Mutex<Option<Error>>,
}

/// Why the copying between libgit2 and the host ended.
enum End {
    /// libgit2 has gone, for reasons of its own.
    Near,
    Far(Error),
}

impl Gate {
    pub(crate) async fn open(passage: Passage, stop: Stop) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
        let listener = listener.transient("open a port of this machine for the connection")?;
        let port = listener.local_addr().transient("find the port's number")?.port();
        let way = Arc::new(Way {
            passage,
            stop,
            port,
            key: uuid::Uuid::new_v4().simple().to_string(),
            received_bytes: AtomicU64::new(0),
            listed: AtomicBool::new(false),
            verdict: Mutex::new(None),
        });
        let task = tokio::spawn(Arc::clone(&way).serve(listener)).abort_handle();
        Ok(Self { way, task })
    }

    pub(crate) fn entrance(&self) -> Entrance {
        Entrance(Arc::clone(&self.way))
    }
}

impl Entrance {
    /// The URL for libgit2.
    pub(crate) fn url(&self) -> String {
        let Way { passage: Passage { remote, credentials, .. }, port, key, .. } = &*self.0;
        if remote.protocol != Protocol::Ssh {
            // The gate speaks http to this machine, and knows the path.
            return format!("http://127.0.0.1:{port}/{key}");
        }
        let given = credentials.as_ref().and_then(Credentials::ssh_user);
        remote.ssh_url(remote.user.as_deref().or(given).unwrap_or("git"), *port)
    }

    /// The host has told its branches and tags: from now on it may send what they lead to.
    pub(crate) fn listed(&self) {
        self.0.listed.store(true, Ordering::Relaxed);
    }

    /// Why the connection failed, if it was the gate that knows.
    pub(crate) fn verdict(&self) -> Option<Error> {
        self.0.verdict.lock().unwrap_or_else(PoisonError::into_inner).take()
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
        let (mut listener, mut connections) = (Some(listener), JoinSet::new());
        loop {
            tokio::select! {
                _ = self.stop.stopped() => return,
                Some(_) = connections.join_next() => {}
                accepted = accept(listener.as_ref()), if connections.len() < CONNECTIONS_MAX => {
                    let Ok((mut near, _)) = accepted else {
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                        continue;
                    };
                    if self.passage.remote.protocol == Protocol::Ssh {
                        // libgit2 connects once, and no key could tell it from others.
                        listener = None;
                    }
                    let way = Arc::clone(&self);
                    connections.spawn(async move {
                        // `near` is closed last: libgit2 must not fail before the reason is known.
                        if let Err(End::Far(error)) = way.pass(&mut near).await {
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

    async fn pass(&self, near: &mut TcpStream) -> Result<(), End> {
        let Passage { remote, limits, .. } = &self.passage;
        if remote.protocol == Protocol::Ssh {
            let far = self.connect().await?;
            return self.pump(near, far, None).await;
        }
        let request = tokio::time::timeout(limits.connect_time_max, Request::read(near, &self.key, remote));
        let Ok(Some(request)) = request.await else { return Err(End::Near) };
        let authorization = self.passage.authorization();
        let head =
            Zeroizing::new(request.for_the_host(remote, authorization.as_ref().map(|line| line.as_str())));
        let mut far = self.connect().await?;
        if remote.protocol == Protocol::Http {
            far.write_all(&head).await.transient(self.talk())?;
            return self.pump(near, far, Some(&request)).await;
        }
        let encrypting = tokio::time::timeout(limits.connect_time_max, tls::connect(&self.passage, far));
        let mut far = encrypting.await.unwrap_or_else(|_| {
            Err(Error::transient(format!("{}: the host does not answer to TLS", self.talk())))
        })?;
        far.write_all(&head).await.transient(self.talk())?;
        self.pump(near, far, Some(&request)).await
    }

    fn talk(&self) -> String {
        format!("talk to {}", self.passage.remote.host)
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

    async fn pump(
        &self,
        near: &mut TcpStream,
        far: impl AsyncRead + AsyncWrite,
        request: Option<&Request>,
    ) -> Result<(), End> {
        let pulse = Pulse::new();
        let (near_read, near_write) = tokio::io::split(near);
        let (far_read, far_write) = tokio::io::split(far);
        let up = self.up(near_read, far_write, &pulse);
        let down = async {
            match request {
                Some(request) => self.down_http(far_read, near_write, request, &pulse).await,
                None => self.down(far_read, near_write, &pulse).await,
            }
        };
        tokio::select! {
            copied = async { tokio::try_join!(up, down) } => copied.map(|_| ()),
            () = pulse.lost(self.passage.limits.idle_time_max) => {
                let seconds = self.passage.limits.idle_time_max.as_secs();
                let host = &self.passage.remote.host;
                let text = format!("receive from {host}: the host does not answer for {seconds} s");
                Err(Error::transient(text).into())
            }
        }
    }

    async fn up(
        &self,
        mut near: ReadHalf<impl AsyncRead>,
        mut far: WriteHalf<impl AsyncWrite>,
        pulse: &Pulse,
    ) -> Result<(), End> {
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let count = near.read(&mut buffer).await.map_err(|_| End::Near)?;
            if count == 0 {
                return Err(End::Near);
            }
            pulse.beat();
            if far.write_all(&buffer[..count]).await.is_err() {
                // The host listens no more: what it has answered counts.
                return Ok(());
            }
        }
    }

    async fn down(
        &self,
        mut far: ReadHalf<impl AsyncRead>,
        mut near: WriteHalf<impl AsyncWrite>,
        pulse: &Pulse,
    ) -> Result<(), End> {
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let count = far.read(&mut buffer).await.transient(self.talk())?;
            if count == 0 {
                return near.shutdown().await.map_err(|_| End::Near);
            }
            pulse.beat();
            self.count(count)?;
            near.write_all(&buffer[..count]).await.map_err(|_| End::Near)?;
        }
    }

    async fn down_http(
        &self,
        mut far: ReadHalf<impl AsyncRead>,
        mut near: WriteHalf<impl AsyncWrite>,
        request: &Request,
        pulse: &Pulse,
    ) -> Result<(), End> {
        let (head, mut body, mut bytes) = self.read_reply(&mut far, pulse).await?;
        near.write_all(&head).await.map_err(|_| End::Near)?;
        let mut watch = request.for_pack.then(|| PackWatch::new(self.passage.limits.object_bytes_max));
        loop {
            let content = body.take(&bytes).ok_or_else(|| self.no_http())?;
            if let Some(watch) = &mut watch {
                for piece in content.chunks(LOOK_BYTES) {
                    watch.look(piece).map_err(|refusal| self.no_pack(&refusal))?;
                    tokio::task::yield_now().await;
                }
            }
            if !content.is_empty() {
                near.write_all(&chunk(&content)).await.map_err(|_| End::Near)?;
            }
            if body.is_complete() {
                break;
            }
            bytes.clear();
            bytes.reserve(BUFFER_BYTES);
            let count = far.read_buf(&mut bytes).await.transient(self.talk())?;
            if count == 0 && body.may_end() {
                break;
            }
            if count == 0 {
                let text = format!("{}: it ends the connection in the middle of an answer", self.talk());
                return Err(Error::transient(text).into());
            }
            pulse.beat();
            self.count(count)?;
        }
        near.write_all(&chunk(&[])).await.map_err(|_| End::Near)?;
        near.shutdown().await.map_err(|_| End::Near)
    }

    fn no_http(&self) -> Error {
        let remote = &self.passage.remote;
        Error::permanent(format!("fetch {remote}: the host does not speak HTTP as git needs it"))
    }

    fn no_pack(&self, refusal: &Refusal) -> Error {
        let Passage { remote, limits: Limits { object_bytes_max, .. }, .. } = &self.passage;
        Error::permanent(match refusal {
            Refusal::Malformed(reason) => format!("fetch {remote}: the host sends what is no pack: {reason}"),
            Refusal::TooLarge(bytes) => format!(
                "fetch {remote}: an object of {bytes} bytes is more than the limit object_bytes_max, \
                 {object_bytes_max}; raise it in the policy"
            ),
        })
    }

    /// Reads the beginning of an answer, and ends what libgit2 is not to see. Gives the head that it is to see
    /// instead, the body, and what was read of it.
    async fn read_reply(
        &self,
        far: &mut ReadHalf<impl AsyncRead>,
        pulse: &Pulse,
    ) -> Result<(Vec<u8>, Body, Vec<u8>)> {
        let mut read = Vec::with_capacity(BUFFER_BYTES);
        loop {
            let count = far.read_buf(&mut read).await.transient(self.talk())?;
            pulse.beat();
            self.count(count)?;
            match Reply::parse(&read) {
                Reply::Incomplete if count == 0 => {
                    return Err(Error::transient(format!(
                        "{}: it ends the connection without an answer",
                        self.talk()
                    )));
                }
                Reply::Incomplete => {}
                Reply::Unknown => return Err(self.no_http()),
                Reply::Refused(status) => return Err(self.refusal(status)),
                Reply::Passed { head, length, body_at } => {
                    return Ok((head, Body::new(length), read.split_off(body_at)));
                }
            }
        }
    }

    /// What a status other than success means.
    fn refusal(&self, status: u16) -> Error {
        let Passage { remote, credentials, .. } = &self.passage;
        let reason = match status {
            300..=399 => "the host redirects, which is not followed; give the URL it leads to",
            401 if self.passage.authorization().is_some() => {
                "not authorised: the host does not accept the environment's credentials"
            }
            401 if credentials.is_none() => {
                "not authorised: the host asks for credentials, and none are given for this repository"
            }
            401 if remote.protocol == Protocol::Http => {
                "not authorised: the host asks for credentials, and they are never sent over http; use https or ssh"
            }
            401 => "not authorised: an ssh key is given, and the host asks for a token",
            403 => "not authorised",
            404 | 410 => "no such repository, or no right to see it with these credentials",
            408 | 429 | 500.. => {
                return Error::transient(format!(
                    "fetch {remote}: the host cannot answer now: status {status}"
                ));
            }
            _ => return Error::permanent(format!("fetch {remote}: the host refuses with status {status}")),
        };
        Error::permanent(format!("fetch {remote}: {reason}"))
    }

    fn count(&self, bytes: usize) -> Result<()> {
        let received = self.received_bytes.fetch_add(bytes as u64, Ordering::Relaxed) + bytes as u64;
        let Limits { received_bytes_max, references_max, .. } = self.passage.limits;
        let host = &self.passage.remote.host;
        if received > received_bytes_max {
            return Err(Error::permanent(format!(
                "receive from {host}: more than the limit received_bytes_max, {received_bytes_max} bytes; raise it in \
                 the policy"
            )));
        }
        let list_bytes_max = (1 << 20) + BYTES_PER_REFERENCE * references_max as u64;
        if received > list_bytes_max && !self.listed.load(Ordering::Relaxed) {
            return Err(Error::permanent(format!(
                "receive from {host}: its list of branches and tags is longer than {list_bytes_max} bytes, which fits \
                 the limit references_max, {references_max}; raise it in the policy"
            )));
        }
        Ok(())
    }
}

async fn accept(listener: Option<&TcpListener>) -> std::io::Result<(TcpStream, SocketAddr)> {
    match listener {
        Some(listener) => listener.accept().await,
        None => std::future::pending().await,
    }
}

impl From<Error> for End {
    fn from(error: Error) -> Self {
        Self::Far(error)
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
