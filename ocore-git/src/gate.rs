//! The only way from libgit2 to the network.
//!
//! libgit2 connects by itself, follows no cancellation while it waits for a packet, and looks names up again after
//! they were checked. So it is given a port of this machine instead, that leads to one host only. Behind it the
//! connection is ours: it goes to the addresses that were checked, it has time and size limits, and closing it
//! stops whatever libgit2 is waiting for.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use ocore_core::port::{Classify, Error, Result};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf},
    net::{TcpListener, TcpStream},
    task::{AbortHandle, JoinSet},
};

use crate::{
    location::Remote,
    policy::{Limits, Protocol},
    stop::Stop,
};

/// The most that is read of the request to a proxy.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// The most connections that one fetch uses at a time.
const CONNECTIONS_MAX: usize = 16;

/// A port of this machine that leads to one host. Dropping it closes every connection.
#[derive(Debug)]
pub(crate) struct Gate {
    port: u16,
    way: Arc<Way>,
    task: AbortHandle,
}

#[derive(Debug)]
struct Way {
    remote: Remote,
    addresses: Vec<SocketAddr>,
    limits: Limits,
    stop: Stop,
    received_bytes: AtomicU64,
    verdict: Mutex<Option<Error>>,
}

impl Gate {
    pub(crate) async fn open(
        remote: Remote,
        addresses: Vec<SocketAddr>,
        limits: Limits,
        stop: Stop,
    ) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
        let listener = listener.transient("open a port of this machine for the connection")?;
        let port = listener.local_addr().transient("find the port's number")?.port();
        let (received_bytes, verdict) = (AtomicU64::new(0), Mutex::new(None));
        let way = Arc::new(Way { remote, addresses, limits, stop, received_bytes, verdict });
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
                    let Ok((near, _)) = accepted else { return };
                    let way = Arc::clone(&self);
                    connections.spawn(async move {
                        if let Err(error) = way.pass(near).await {
                            // The first reason is the one that counts.
                            way.verdict.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                        }
                    });
                }
            }
        }
    }

    async fn pass(&self, mut near: TcpStream) -> Result<()> {
        let head = match self.remote.protocol {
            Protocol::Ssh => Vec::new(),
            Protocol::Https | Protocol::Http => self.read_head(&mut near).await?,
        };
        let mut far = self.connect().await?;
        let written = match self.remote.protocol {
            Protocol::Https => near.write_all(b"HTTP/1.1 200 Connected\r\n\r\n").await,
            Protocol::Http | Protocol::Ssh => far.write_all(&head).await,
        };
        written.transient(format!("talk to {}", self.remote.host))?;
        self.pump(near, far).await
    }

    /// Reads the head of the request to the proxy that libgit2 takes the gate for, and checks where it wants to go.
    async fn read_head(&self, near: &mut TcpStream) -> Result<Vec<u8>> {
        let mut head = Vec::new();
        while !head.windows(4).any(|window| window == b"\r\n\r\n") {
            let count = near.read_buf(&mut head).await.transient("read libgit2's request")?;
            if count == 0 || head.len() > HEAD_BYTES_MAX {
                return Err(Error::transient("read libgit2's request: it is not complete"));
            }
        }
        let line =
            String::from_utf8_lossy(head.split(|b| *b == b'\r').next().unwrap_or_default()).into_owned();
        let target = line.split(' ').nth(1).unwrap_or_default().to_ascii_lowercase();
        let Remote { host, port, .. } = &self.remote;
        let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
        let expected = match self.remote.protocol {
            Protocol::Https => line.starts_with("CONNECT ") && target == format!("{host}:{port}"),
            _ => [format!("http://{host}:{port}/"), format!("http://{host}/")]
                .iter()
                .any(|origin| target.starts_with(origin)),
        };
        if expected {
            return Ok(head);
        }
        Err(Error::permanent(format!(
            "connect to {host}: the connection was led to another host, which is refused"
        )))
    }

    async fn connect(&self) -> Result<TcpStream> {
        let host = &self.remote.host;
        let mut last = Error::transient(format!("connect to {host}: it has no address"));
        for address in &self.addresses {
            let connecting = tokio::time::timeout(self.limits.connect_time_max, TcpStream::connect(address));
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
                    let seconds = self.limits.connect_time_max.as_secs();
                    let text = format!("connect to {host}: the host does not answer within {seconds} s");
                    last = Error::transient(text);
                }
            }
        }
        Err(last)
    }

    async fn pump(&self, near: TcpStream, far: TcpStream) -> Result<()> {
        let pulse = Pulse::new();
        let (near_read, near_write) = tokio::io::split(near);
        let (far_read, far_write) = tokio::io::split(far);
        let up = self.copy(near_read, far_write, &pulse, false);
        let down = self.copy(far_read, near_write, &pulse, true);
        tokio::select! {
            copied = async { tokio::try_join!(up, down) } => copied.map(|_| ()),
            () = pulse.lost(self.limits.idle_time_max) => {
                let seconds = self.limits.idle_time_max.as_secs();
                let host = &self.remote.host;
                Err(Error::transient(format!("receive from {host}: the host does not answer for {seconds} s")))
            }
        }
    }

    async fn copy(
        &self,
        mut from: ReadHalf<TcpStream>,
        mut to: WriteHalf<TcpStream>,
        pulse: &Pulse,
        counted: bool,
    ) -> Result<()> {
        let doing = || format!("talk to {}", self.remote.host);
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let count = from.read(&mut buffer).await.transient(doing())?;
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

    fn count(&self, bytes: usize) -> Result<()> {
        let received = self.received_bytes.fetch_add(bytes as u64, Ordering::Relaxed) + bytes as u64;
        let limit = self.limits.received_bytes_max;
        if received <= limit {
            return Ok(());
        }
        Err(Error::permanent(format!(
            "receive from {}: more than the limit received_bytes_max, {limit} bytes; raise it in the policy",
            self.remote.host
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
