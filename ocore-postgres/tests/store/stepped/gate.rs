//! A session's way to the server: statements wait before it until they may go on, and what the server says of its own
//! places to wait is heard.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{Semaphore, mpsc::UnboundedSender},
    task::JoinHandle,
};

use super::{
    orders::{Kind, Tables},
    seams::Seam,
};

/// What is heard of a session.
#[derive(Debug)]
pub(crate) enum Told {
    /// It waits at a seam.
    At(Seam),
    /// Its call has ended, with this answer.
    Done(String),
}

pub(crate) type Teller = UnboundedSender<(usize, Told)>;

struct Post {
    session: usize,
    teller: Teller,
    server: SocketAddr,
    is_closed: AtomicBool,
    passes: Semaphore,
}

pub(crate) struct Gate {
    port: u16,
    post: Arc<Post>,
    listening: JoinHandle<()>,
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

impl Gate {
    /// An open gate for this session.
    pub(crate) async fn build(session: usize, teller: Teller, server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("there is a free port");
        let port = listener.local_addr().expect("it has an address").port();
        let (is_closed, passes) = (AtomicBool::new(false), Semaphore::new(0));
        let post = Arc::new(Post { session, teller, server, is_closed, passes });
        let listening = tokio::spawn(listen(listener, post.clone()));
        Self { port, post, listening }
    }

    pub(crate) const fn port(&self) -> u16 {
        self.port
    }

    /// From now on statements wait, or no longer.
    pub(crate) fn close(&self, is_closed: bool) {
        self.post.is_closed.store(is_closed, Ordering::SeqCst);
    }

    /// Lets the statement that waits go on.
    pub(crate) fn pass(&self) {
        self.post.passes.add_permits(1);
    }
}

async fn listen(listener: TcpListener, post: Arc<Post>) {
    while let Ok((client, _)) = listener.accept().await {
        let post = post.clone();
        tokio::spawn(async move {
            // Whoever closes a connection ends both directions.
            drop(connect(client, &post).await);
        });
    }
}

async fn connect(client: TcpStream, post: &Post) -> io::Result<()> {
    let server = TcpStream::connect(post.server).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    let to_client = Arc::new(tokio::sync::Mutex::new(to_client));
    tokio::select! {
        ended = to_server_side(from_client, to_server, &to_client, post) => ended,
        ended = to_client_side(from_server, &to_client, post) => ended,
    }
}

/// The code of a request for TLS. Source: PostgreSQL's documentation, message formats.
const TLS: [u8; 4] = 80_877_103_u32.to_be_bytes();

async fn to_server_side(
    from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    client: &tokio::sync::Mutex<OwnedWriteHalf>,
    post: &Post,
) -> io::Result<()> {
    let mut from = BufReader::new(from);
    let mut first = body(&mut from).await?;
    if first[4..] == TLS {
        client.lock().await.write_all(b"N").await?;
        first = body(&mut from).await?;
    }
    to.write_all(&first).await?;
    let mut text = String::new();
    loop {
        let kind = from.read_u8().await?;
        let body = body(&mut from).await?;
        // A statement looks at the data as they are when it is bound, or sent as a simple query.
        match kind {
            b'P' => text = texts(&body[4..]).nth(1).unwrap_or_default(),
            b'Q' => text = texts(&body[4..]).next().unwrap_or_default(),
            _ => {}
        }
        if matches!(kind, b'B' | b'Q')
            && post.is_closed.load(Ordering::SeqCst)
            && let Some(kind) = kind_of(&text)
        {
            let seam = Seam { number: None, kind, place: first_words(&text) };
            drop(post.teller.send((post.session, Told::At(seam))));
            post.passes.acquire().await.map_err(io::Error::other)?.forget();
        }
        to.write_all(&[&[kind], &body[..]].concat()).await?;
    }
}

async fn to_client_side(
    from: OwnedReadHalf,
    client: &tokio::sync::Mutex<OwnedWriteHalf>,
    post: &Post,
) -> io::Result<()> {
    let mut from = BufReader::new(from);
    loop {
        let kind = from.read_u8().await?;
        let body = body(&mut from).await?;
        if kind == b'N'
            && let Some(seam) = texts(&body[4..]).find_map(|field| Seam::read(field.strip_prefix('M')?))
        {
            drop(post.teller.send((post.session, Told::At(seam))));
            continue;
        }
        client.lock().await.write_all(&[&[kind], &body[..]].concat()).await?;
    }
}

/// A message without its kind: the length, which counts itself, and the rest.
async fn body(from: &mut BufReader<OwnedReadHalf>) -> io::Result<Vec<u8>> {
    let length = from.read_u32().await?;
    let mut body = length.to_be_bytes().to_vec();
    body.resize(length as usize, 0);
    from.read_exact(&mut body[4..]).await?;
    Ok(body)
}

/// The texts of a message, each ended by a zero.
fn texts(body: &[u8]) -> impl Iterator<Item = String> {
    body.split(|byte| *byte == 0).map(|text| String::from_utf8_lossy(text).into_owned())
}

/// Functions with seams of their own.
const CALLED: [&str; 6] = [".accept(", ".append(", ".claim(", ".commit(", ".enter(", ".heartbeat("];

/// What a client's statement does. `None` for those that wait in the schema's functions, or do nothing to others.
fn kind_of(text: &str) -> Option<Kind> {
    let text = text.trim_start();
    let is = |word: &str| text.starts_with(word);
    if is("COMMIT") || is("ROLLBACK") {
        Some(Kind::Ends)
    } else if is("INSERT") || text.contains("pg_advisory_xact_lock") {
        Some(Kind::LooksAndLocks(Tables::MAX))
    } else if is("UPDATE") || is("DELETE") || is("WITH") {
        // It locks rows when it has found some: a seam of the server's.
        Some(Kind::Looks)
    } else {
        let is_call = CALLED.iter().any(|function| text.contains(function));
        (is("SELECT") && !is_call).then_some(Kind::Looks)
    }
}

fn first_words(text: &str) -> String {
    text.split_whitespace().take(7).collect::<Vec<_>>().join(" ")
}
