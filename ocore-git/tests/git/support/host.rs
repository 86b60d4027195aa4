//! A git host on loopback: `git http-backend` behind a small server, plain or with TLS.

use std::{
    collections::HashMap,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
};

use openssl::{
    asn1::Asn1Time,
    bn::BigNum,
    hash::MessageDigest,
    nid::Nid,
    pkey::PKey,
    rsa::Rsa,
    ssl::{SslAcceptor, SslMethod},
    x509::{X509, X509NameBuilder},
};

/// How the host answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manner {
    /// As git does.
    Serve,
    /// Only with the right user and token.
    Protected,
    /// Sends so many bytes of the pack, then nothing.
    StallAfter(usize),
    /// A web page.
    WebPage,
    /// Leads elsewhere.
    Redirect,
    /// A status.
    Status(u16),
    /// Exactly these bytes.
    Raw(&'static str),
    /// As git does, and offers to keep the connection, and answers again unasked.
    AnswerTwice,
}

#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) requests: Mutex<Vec<String>>,
    pub(crate) authorizations: Mutex<Vec<String>>,
    pub(crate) sent_bytes: AtomicU64,
    pub(crate) manner: Mutex<Manner>,
    stopped: AtomicBool,
}

pub(crate) struct Host {
    pub(crate) address: SocketAddr,
    pub(crate) seen: Arc<Seen>,
    pub(crate) certificate: Option<String>,
}

pub(crate) const USER: &str = "deploy";
pub(crate) const TOKEN: &str = "canary-token-7f3a91";
/// `deploy:canary-token-7f3a91` in Base64.
const BASIC: &str = "Basic ZGVwbG95OmNhbmFyeS10b2tlbi03ZjNhOTE=";

/// Of such an answer libgit2 1.9.7 dies.
pub(crate) const REDIRECT_WITHOUT_QUERY: &str = "HTTP/1.1 302 Found\r\nLocation: /x/info/refs\r\n\r\n";

impl Host {
    pub(crate) fn plain(root: &Path) -> Self {
        Self::start(root, None, None)
    }

    pub(crate) fn tls(root: &Path) -> Self {
        let (certificate, acceptor) = make_certificate();
        Self::start(root, Some(Arc::new(acceptor)), Some(certificate))
    }

    fn start(root: &Path, acceptor: Option<Arc<SslAcceptor>>, certificate: Option<String>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Seen {
            requests: Mutex::default(),
            authorizations: Mutex::default(),
            sent_bytes: AtomicU64::new(0),
            manner: Mutex::new(Manner::Serve),
            stopped: AtomicBool::new(false),
        });
        let (root, shared) = (root.to_owned(), Arc::clone(&seen));
        thread::spawn(move || {
            for stream in listener.incoming() {
                if shared.stopped.load(Ordering::Relaxed) {
                    return;
                }
                let (Ok(stream), shared, root, acceptor) =
                    (stream, shared.clone(), root.clone(), acceptor.clone())
                else {
                    return;
                };
                thread::spawn(move || match acceptor {
                    None => drop(answer(stream, &root, &shared)),
                    Some(acceptor) => {
                        if let Ok(stream) = acceptor.accept(stream) {
                            drop(answer(stream, &root, &shared));
                        }
                    }
                });
            }
        });
        Self { address, seen, certificate }
    }

    pub(crate) fn set(&self, manner: Manner) {
        *self.seen.manner.lock().unwrap() = manner;
    }

    pub(crate) fn url(&self, host: &str, path: &str) -> String {
        let scheme = if self.certificate.is_some() { "https" } else { "http" };
        format!("{scheme}://{host}:{}/{path}", self.address.port())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.seen.stopped.store(true, Ordering::Relaxed);
        drop(TcpStream::connect(self.address));
    }
}

/// Answers one request; the connection ends with it.
fn answer(stream: impl Read + Write, root: &Path, seen: &Seen) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    if stream.read_line(&mut line)? == 0 {
        return Ok(());
    }
    let mut headers = HashMap::new();
    loop {
        let mut header = String::new();
        if stream.read_line(&mut header)? == 0 || header.trim().is_empty() {
            break;
        }
        if let Some((name, value)) = header.split_once(':') {
            headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
    }
    let mut words = line.split_whitespace();
    let (method, target) = (words.next().unwrap_or(""), words.next().unwrap_or("/"));
    // The form with the host's name is for proxies, and every server must understand it.
    let target = match target.split_once("://") {
        Some((_, rest)) => &rest[rest.find('/').unwrap_or(0)..],
        None => target,
    };
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    seen.requests.lock().unwrap().push(format!("{method} {target}"));
    let authorization = headers.get("authorization").cloned();
    seen.authorizations.lock().unwrap().extend(authorization.clone());
    let manner = *seen.manner.lock().unwrap();
    let stream_out = stream.get_mut();
    let short = |status: &str, more: &str, body: &str| {
        format!(
            "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n{more}\r\n{body}",
            body.len()
        )
    };
    let reply = match manner {
        Manner::Protected if authorization.as_deref() != Some(BASIC) => {
            Some(short("401 Unauthorized", "WWW-Authenticate: Basic realm=\"git\"\r\n", ""))
        }
        Manner::WebPage => Some(short("200 OK", "Content-Type: text/html\r\n", "<html>hello</html>")),
        Manner::Redirect => {
            Some(short("302 Found", "Location: http://127.0.0.1:1/elsewhere/info/refs\r\n", ""))
        }
        Manner::Raw(text) => Some(text.to_owned()),
        Manner::Status(status) => Some(short(&format!("{status} Status"), "", "")),
        _ => None,
    };
    if let Some(reply) = reply {
        return stream_out.write_all(reply.as_bytes());
    }
    let mut body = Vec::new();
    if headers.get("transfer-encoding").is_some_and(|value| value == "chunked") {
        loop {
            let mut size = String::new();
            stream.read_line(&mut size)?;
            let size = usize::from_str_radix(size.trim(), 16).unwrap_or(0);
            let mut chunk = vec![0; size + 2];
            stream.read_exact(&mut chunk)?;
            if size == 0 {
                break;
            }
            body.extend_from_slice(&chunk[..size]);
        }
    } else if let Some(length) = headers.get("content-length").and_then(|length| length.parse().ok()) {
        body = vec![0; length];
        stream.read_exact(&mut body)?;
    }
    let limit = match manner {
        Manner::StallAfter(bytes) if method == "POST" => Some(bytes),
        _ => None,
    };
    let twice = manner == Manner::AnswerTwice;
    run_backend(stream.get_mut(), root, method, path, query, &headers, &body, limit, twice, seen)?;
    if twice {
        stream.get_mut().write_all(REDIRECT_WITHOUT_QUERY.as_bytes())?;
        stream.read_to_end(&mut Vec::new())?;
    }
    Ok(())
}

#[expect(clippy::too_many_arguments, reason = "it is CGI")]
fn run_backend(
    out: &mut impl Write,
    root: &Path,
    method: &str,
    path: &str,
    query: &str,
    headers: &HashMap<String, String>,
    body: &[u8],
    limit: Option<usize>,
    keep: bool,
    seen: &Seen,
) -> std::io::Result<()> {
    let text = |name: &str| headers.get(name).cloned().unwrap_or_default();
    let mut child = Command::new("git")
        .arg("http-backend")
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("GIT_PROJECT_ROOT", root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("GIT_CONFIG_COUNT", "1")
        .env("GIT_CONFIG_KEY_0", "safe.directory")
        .env("GIT_CONFIG_VALUE_0", "*")
        .env("REQUEST_METHOD", method)
        .env("PATH_INFO", path)
        .env("QUERY_STRING", query)
        .env("CONTENT_TYPE", text("content-type"))
        .env("HTTP_CONTENT_ENCODING", text("content-encoding"))
        .env("GIT_PROTOCOL", text("git-protocol"))
        .env("CONTENT_LENGTH", body.len().to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    child.stdin.take().unwrap().write_all(body)?;
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let (mut status, mut head) = ("200 OK".to_owned(), String::new());
    loop {
        let mut line = String::new();
        output.read_line(&mut line)?;
        match line.trim().split_once(": ") {
            None => break,
            Some(("Status", value)) => status = value.to_owned(),
            Some(_) => head.push_str(line.trim_end()),
        }
        head.push_str("\r\n");
    }
    let head = format!(
        "HTTP/1.1 {status}\r\nConnection: {}\r\nTransfer-Encoding: chunked\r\n{}\r\n\r\n",
        if keep { "keep-alive" } else { "close" },
        head.trim()
    );
    out.write_all(head.as_bytes())?;
    let (mut buffer, mut sent) = (vec![0; 16 * 1024], 0);
    loop {
        let count = output.read(&mut buffer)?;
        let chunk = [format!("{count:x}\r\n").as_bytes(), &buffer[..count], b"\r\n"].concat();
        out.write_all(&chunk)?;
        out.flush()?;
        if count == 0 {
            break;
        }
        sent += count;
        seen.sent_bytes.fetch_add(count as u64, Ordering::Relaxed);
        if limit.is_some_and(|limit| sent >= limit) {
            // Silent until the test is over; the client has to find out by itself.
            while !seen.stopped.load(Ordering::Relaxed) {
                thread::sleep(std::time::Duration::from_millis(20));
            }
            break;
        }
    }
    drop(output);
    child.kill().ok();
    child.wait().map(drop)
}

fn make_certificate() -> (String, SslAcceptor) {
    let key = PKey::from_rsa(Rsa::generate(2048).unwrap()).unwrap();
    let mut name = X509NameBuilder::new().unwrap();
    name.append_entry_by_nid(Nid::COMMONNAME, "git.test").unwrap();
    let name = name.build();
    let mut builder = X509::builder().unwrap();
    builder.set_version(2).unwrap();
    builder.set_serial_number(&BigNum::from_u32(1).unwrap().to_asn1_integer().unwrap()).unwrap();
    builder.set_subject_name(&name).unwrap();
    builder.set_issuer_name(&name).unwrap();
    builder.set_pubkey(&key).unwrap();
    builder.set_not_before(&Asn1Time::days_from_now(0).unwrap()).unwrap();
    builder.set_not_after(&Asn1Time::days_from_now(2).unwrap()).unwrap();
    builder.sign(&key, MessageDigest::sha256()).unwrap();
    let certificate = builder.build();
    let mut acceptor = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls()).unwrap();
    acceptor.set_private_key(&key).unwrap();
    acceptor.set_certificate(&certificate).unwrap();
    (String::from_utf8(certificate.to_pem().unwrap()).unwrap(), acceptor.build())
}

/// A directory for the repositories of a host.
pub(crate) fn project(directory: &Path, name: &str) -> PathBuf {
    let path = directory.join(name);
    super::make_repository(&path);
    path
}
