//! A proxy before a server, which cuts connections after a given number of bytes.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    task::{JoinHandle, JoinSet},
};
use tokio_util::sync::CancellationToken;

/// Where bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    ToServer,
    ToClient,
}

pub(crate) const WAYS: [Way; 2] = [Way::ToServer, Way::ToClient];

const FAR: u64 = u64::MAX / 2;

#[derive(Debug)]
struct Wire {
    /// How many bytes may still pass, of all connections together.
    left: [AtomicU64; 2],
    server: SocketAddr,
    /// Ends the present connections.
    cut: Mutex<CancellationToken>,
}

#[derive(Debug)]
pub(crate) struct Proxy {
    port: u16,
    wire: Arc<Wire>,
    listening: JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

impl Proxy {
    pub(crate) async fn start(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("there is a free port");
        let port = listener.local_addr().expect("it has an address").port();
        let wire = Wire { left: [AtomicU64::new(FAR), AtomicU64::new(FAR)], server, cut: Mutex::default() };
        let wire = Arc::new(wire);
        let listening = tokio::spawn(listen(listener, wire.clone()));
        Self { port, wire, listening }
    }

    /// The URL of a server with the proxy's address in place of its own.
    pub(crate) fn url(&self, server: &str) -> String {
        let (before, after) = server.split_once('@').expect("it is a server's URL");
        let (_, database) = after.split_once('/').expect("it is a server's URL");
        format!("{before}@127.0.0.1:{}/{database}", self.port)
    }

    /// How many bytes have passed since the wire was mended last.
    pub(crate) fn passed(&self, way: Way) -> u64 {
        FAR - self.wire.left[way as usize].load(Ordering::SeqCst)
    }

    /// After so many more bytes in this direction every connection is cut, until the wire is mended.
    pub(crate) fn cut_after(&self, way: Way, bytes: u64) {
        self.wire.left[way as usize].store(bytes, Ordering::SeqCst);
    }

    pub(crate) fn mend(&self) {
        for left in &self.wire.left {
            left.store(FAR, Ordering::SeqCst);
        }
        *lock(&self.wire.cut) = CancellationToken::new();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

async fn listen(listener: TcpListener, wire: Arc<Wire>) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        connections.spawn(connect(client, wire.clone()));
    }
}

async fn connect(client: TcpStream, wire: Arc<Wire>) {
    let (server, cut) = (wire.server, lock(&wire.cut).clone());
    if cut.is_cancelled() {
        return;
    }
    let Ok(server) = TcpStream::connect(server).await else { return };
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    tokio::select! {
        () = cut.cancelled() => {}
        () = pump(from_client, to_server, &wire, Way::ToServer) => {}
        () = pump(from_server, to_client, &wire, Way::ToClient) => {}
    }
}

async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, wire: &Wire, way: Way) {
    let mut buffer = [0; 8192];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        let (wanted, left) = (count as u64, &wire.left[way as usize]);
        let before =
            left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| Some(left.saturating_sub(wanted)));
        let allowed = before.expect("it is always updated").min(wanted);
        let bytes = &buffer[..usize::try_from(allowed).expect("it is in the buffer")];
        if to.write_all(bytes).await.is_err() {
            return;
        }
        if allowed < wanted {
            lock(&wire.cut).cancel();
            return;
        }
    }
}
