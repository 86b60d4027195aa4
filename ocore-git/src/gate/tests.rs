//! The gate between a host and strangers of the test's own.

use super::*;
use crate::{location::Location, policy::SourcePolicy};

/// A gate to a host of the test's own.
async fn gate(connect_time_max: Duration) -> (Gate, TcpListener) {
    gate_of("http", connect_time_max).await
}

async fn gate_of(protocol: &str, connect_time_max: Duration) -> (Gate, TcpListener) {
    let host = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = host.local_addr().unwrap();
    let policy = SourcePolicy::default()
        .protocols([Protocol::Http, Protocol::Ssh])
        .limits(|limits| limits.connect_time_max = connect_time_max);
    let Ok(Location::Remote(remote)) = Location::parse(&format!("{protocol}://{address}/a.git"), &policy)
    else {
        panic!("it is a URL");
    };
    let (addresses, limits) = (vec![address], policy.limits);
    let passage = Passage { remote, addresses, credentials: None, certificates: None, limits };
    let stop = Stop::for_test(Duration::from_secs(60));
    (Gate::open(passage, stop).await.unwrap(), host)
}

#[tokio::test]
async fn nobody_but_libgit2_passes() {
    let (gate, host) = gate(Duration::from_secs(20)).await;
    let way = Arc::clone(&gate.way);
    for line in [
        "GET /a.git/info/refs?service=git-upload-pack HTTP/1.1",
        "GET / HTTP/1.1",
        "GET /secret/file HTTP/1.1",
        "CONNECT 127.0.0.1:22 HTTP/1.1",
    ] {
        let mut stranger = TcpStream::connect((Ipv4Addr::LOCALHOST, way.port)).await.unwrap();
        stranger.write_all(format!("{line}\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        // Closed, or reset for what was not read.
        drop(stranger.read_to_end(&mut answer).await);
        assert_eq!(answer, b"", "{line}");
    }
    assert!(gate.entrance().verdict().is_none(), "a stranger decides nothing");
    let mut own = TcpStream::connect((Ipv4Addr::LOCALHOST, way.port)).await.unwrap();
    let line = format!("GET /{}/info/refs?service=git-upload-pack HTTP/1.1\r\n\r\n", way.key);
    own.write_all(line.as_bytes()).await.unwrap();
    // The first connection that the host sees is this one.
    let (mut far, _) = host.accept().await.unwrap();
    let mut seen = vec![0; 200];
    let count = far.read(&mut seen).await.unwrap();
    let seen = String::from_utf8_lossy(&seen[..count]).into_owned();
    assert!(seen.starts_with("GET /a.git/info/refs?service=git-upload-pack HTTP/1.1\r\nHost: "), "{seen}");
    assert!(!seen.contains(&way.key));
}

#[tokio::test]
async fn what_ends_on_this_side_is_no_verdict_about_the_host() {
    let (gate, host) = gate(Duration::from_secs(20)).await;
    let mut own = TcpStream::connect((Ipv4Addr::LOCALHOST, gate.way.port)).await.unwrap();
    let line = format!("GET /{}/info/refs?service=git-upload-pack HTTP/1.1\r\n\r\n", gate.way.key);
    own.write_all(line.as_bytes()).await.unwrap();
    let (mut far, _) = host.accept().await.unwrap();
    far.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
    own.read_exact(&mut [0; 15]).await.unwrap();
    // As libgit2 does when it cannot write its file.
    drop(own);
    let endless = async { while far.write_all(&[b'x'; 4096]).await.is_ok() {} };
    tokio::time::timeout(Duration::from_secs(20), endless).await.unwrap();
    assert!(gate.entrance().verdict().is_none());
}

#[tokio::test]
async fn a_host_that_ends_in_the_middle_is_told() {
    for (answer, expected) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf", "in the middle of an answer"),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n", "in the middle of an answer"),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnot a size\r\n", "does not speak HTTP"),
        ("", "without an answer"),
    ] {
        let (gate, host) = gate(Duration::from_secs(20)).await;
        let mut own = TcpStream::connect((Ipv4Addr::LOCALHOST, gate.way.port)).await.unwrap();
        let line = format!("GET /{}/info/refs?service=git-upload-pack HTTP/1.1\r\n\r\n", gate.way.key);
        own.write_all(line.as_bytes()).await.unwrap();
        let (mut far, _) = host.accept().await.unwrap();
        assert!(far.read(&mut [0; 1000]).await.unwrap() > 0);
        far.write_all(answer.as_bytes()).await.unwrap();
        drop(far);
        own.read_to_end(&mut Vec::new()).await.unwrap();
        let verdict = gate.entrance().verdict().unwrap().to_string();
        assert!(verdict.contains(expected), "{answer:?}: {verdict}");
    }
}

#[tokio::test]
async fn a_connection_that_asks_nothing_is_closed() {
    let (gate, _host) = gate(Duration::from_millis(100)).await;
    let mut silent = TcpStream::connect((Ipv4Addr::LOCALHOST, gate.way.port)).await.unwrap();
    let closed = tokio::time::timeout(Duration::from_secs(10), silent.read(&mut [0; 8])).await;
    assert_eq!(closed.unwrap().unwrap(), 0);
    assert!(gate.entrance().verdict().is_none());
}

#[tokio::test]
async fn over_ssh_only_one_connection_passes() {
    let (gate, host) = gate_of("ssh", Duration::from_secs(20)).await;
    let mut own = TcpStream::connect((Ipv4Addr::LOCALHOST, gate.way.port)).await.unwrap();
    own.write_all(b"SSH-2.0-libssh2\r\n").await.unwrap();
    let (mut far, _) = host.accept().await.unwrap();
    far.read_exact(&mut [0; 17]).await.unwrap();
    let stranger = TcpStream::connect((Ipv4Addr::LOCALHOST, gate.way.port)).await;
    assert_eq!(stranger.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
}
