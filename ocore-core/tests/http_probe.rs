//! The HTTP probe against a raw server on loopback that can do everything wrong.
#![expect(clippy::unwrap_used, reason = "a test's own means fail loudly")]

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use ocore_core::{
    environment::{Environment, EnvironmentSpec, InstanceSpec},
    event::{Progress, Stream},
    http_probe::{BODY_KEPT_MAX, HttpPolicy, HttpProbe, Redirects},
    id::{DeploymentId, Fence},
    name::InstanceName,
    port::{Check, Context, Error, ErrorKind, HealthProbe, Sink},
    release::Started,
    secret::Secret,
    testing::laws::probe::{Condition, ProbeFixture},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

const DEPLOYMENT: DeploymentId = DeploymentId::from_u128(0x5eed);

/// What the server does with a request.
#[derive(Debug, Clone)]
enum Behaviour {
    /// Sends this, then keeps the connection open.
    Send(Vec<u8>),
    /// Sends this, then closes.
    SendAndClose(Vec<u8>),
    /// Sends this, then `x` without end, as fast as it is read.
    Endless(Vec<u8>),
    /// Sends this, one byte every 50 ms.
    Drip(Vec<u8>),
    /// Answers by the path.
    Paths(Vec<(&'static str, Vec<u8>)>),
}

fn answer(status: &str, headers: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n{headers}\r\n{body}", body.len()).into_bytes()
}

/// A server on loopback. It ends when it is dropped.
struct Server {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<String>>>,
    connections: Arc<Mutex<usize>>,
    task: JoinHandle<()>,
}

impl Server {
    async fn new(behaviour: Behaviour) -> Self {
        Self::at("127.0.0.1:0".parse().unwrap(), behaviour).await
    }

    async fn at(address: SocketAddr, behaviour: Behaviour) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (requests, connections) = (Arc::<Mutex<Vec<String>>>::default(), Arc::<Mutex<usize>>::default());
        let (seen, count) = (requests.clone(), connections.clone());
        let task = tokio::spawn(async move {
            let mut serving = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                *count.lock().unwrap() += 1;
                serving.spawn(serve(stream, behaviour.clone(), seen.clone()));
            }
        });
        Self { address, requests, connections, task }
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(mut stream: TcpStream, behaviour: Behaviour, seen: Arc<Mutex<Vec<String>>>) {
    while let Some(request) = read_head(&mut stream).await {
        let path = request.split(' ').nth(1).unwrap_or("").to_owned();
        seen.lock().unwrap().push(request);
        let result = match &behaviour {
            Behaviour::Send(bytes) => stream.write_all(bytes).await,
            Behaviour::SendAndClose(bytes) => {
                let _ = stream.write_all(bytes).await;
                return;
            }
            Behaviour::Endless(head) => {
                let mut sent = stream.write_all(head).await;
                while sent.is_ok() {
                    sent = stream.write_all(&[b'x'; 4096]).await;
                }
                sent
            }
            Behaviour::Drip(bytes) => {
                for byte in bytes {
                    if stream.write_all(&[*byte]).await.is_err() {
                        return;
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Ok(())
            }
            Behaviour::Paths(paths) => {
                let found = paths.iter().find(|(known, _)| *known == path);
                let bytes = found.map_or_else(|| answer("404 Not Found", "", ""), |(_, bytes)| bytes.clone());
                stream.write_all(&bytes).await
            }
        };
        if result.is_err() {
            return;
        }
    }
}

async fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    Some(String::from_utf8(head).unwrap())
}

struct Quiet;

impl Sink for Quiet {
    fn log(&self, _instance: Option<&InstanceName>, _stream: Stream, _line: &str) {}
    fn progress(&self, _instance: Option<&InstanceName>, _progress: Progress) {}
    fn hide(&self, _secret: &Secret) {}
}

/// Checks an instance at this address once.
async fn check_at(
    probe: &HttpProbe,
    host: &str,
    port: Option<u16>,
    change: impl FnOnce(&mut ocore_core::health::HealthPolicy),
) -> Result<Check, Error> {
    let mut instance = InstanceSpec::new("web");
    (instance.host, instance.port) = (host.to_owned(), port);
    let spec = EnvironmentSpec::new("shop", "https://git.example.org/shop.git").instance(instance);
    let mut health = ocore_core::health::HealthPolicy::default();
    change(&mut health);
    // As it was stored: by rules that may have been less strict.
    let mut stored = serde_json::to_value(Environment::try_from(spec).unwrap()).unwrap();
    stored["policy"]["health"] = serde_json::to_value(health).unwrap();
    let environment: Arc<Environment> = Arc::new(serde_json::from_value(stored).unwrap());
    let instance = environment.instances()[0].clone();
    let cancellation = CancellationToken::new();
    let context = Context::new(DEPLOYMENT, environment, Fence::new(1), cancellation, Arc::new(Quiet));
    probe.check(&context, &instance, &Started::new("web-1")).await
}

async fn check(policy: HttpPolicy, server: &Server) -> Check {
    let (host, port) = (server.address.ip().to_string(), server.address.port());
    let quick = |health: &mut ocore_core::health::HealthPolicy| {
        health.path = "/health?full=1".to_owned();
        health.host = Some("shop.example.org".to_owned());
        health.check_timeout = Duration::from_secs(2);
    };
    check_at(&HttpProbe::new(policy), &host, Some(port), quick).await.unwrap()
}

async fn check_answer(policy: HttpPolicy, bytes: Vec<u8>) -> Check {
    check(policy, &Server::new(Behaviour::Send(bytes)).await).await
}

#[track_caller]
fn assert_failed(check: Check, expected: &str) -> Option<String> {
    match check {
        Check::Failed { reason, body } => {
            assert!(reason.contains(expected), "{reason:?} does not say {expected:?}");
            assert!(!reason.contains('\n'), "{reason:?}");
            body
        }
        passed => panic!("{passed:?}, although {expected}"),
    }
}

#[tokio::test]
async fn it_asks_for_the_path_of_the_policy_with_its_host_header() {
    let server = Server::new(Behaviour::Send(answer("200 OK", "", "fine"))).await;
    assert_eq!(check(HttpPolicy::default(), &server).await, Check::Passed);
    let requests = server.requests();
    assert!(requests[0].starts_with("GET /health?full=1 HTTP/1.1\r\n"), "{requests:?}");
    let head = requests[0].to_lowercase();
    assert_eq!(head.matches("host:").count(), 1, "{head}");
    assert!(head.contains("\r\nhost: shop.example.org\r\n"), "{head}");
}

#[tokio::test]
async fn a_wrong_status_keeps_the_head_of_the_body() {
    let body = format!("{}ä{}", "x".repeat(BODY_KEPT_MAX - 1), "y".repeat(BODY_KEPT_MAX));
    let failed = check_answer(HttpPolicy::default(), answer("500 Internal Server Error", "", &body)).await;
    let kept = assert_failed(failed, "answered 500 Internal Server Error").unwrap();
    assert_eq!(kept, "x".repeat(BODY_KEPT_MAX - 1), "cut before the character that does not fit");
    let policy = HttpPolicy::default().statuses([200..=299, 401..=401]);
    assert_eq!(check_answer(policy.clone(), answer("401 Unauthorized", "", "")).await, Check::Passed);
    assert_failed(check_answer(policy, answer("402 Payment Required", "", "")).await, "answered 402");
    let mut binary = answer("503 Service Unavailable", "", "....");
    let end = binary.len();
    binary[end - 4..].copy_from_slice(&[0xff, b'o', b'k', 0xfe]);
    let kept = assert_failed(check_answer(HttpPolicy::default(), binary).await, "503");
    assert_eq!(kept.as_deref(), Some("\u{fffd}ok\u{fffd}"));
}

#[tokio::test]
async fn a_body_must_contain_the_text() {
    let policy = || HttpPolicy::default().body_contains("status: ok");
    assert_eq!(check_answer(policy(), answer("200 OK", "", "x status: ok y")).await, Check::Passed);
    let failed = check_answer(policy(), answer("200 OK", "", "status: bad")).await;
    let kept = assert_failed(failed, "answered 200 OK, but its body does not contain \"status: ok\"");
    assert_eq!(kept.as_deref(), Some("status: bad"));
    let far = format!("{}status: ok", "x".repeat(64 * 1024));
    assert_failed(check_answer(policy(), answer("200 OK", "", &far)).await, "the first 64 KiB");
    let near = format!("{}status: ok", "x".repeat(64 * 1024 - 10));
    assert_eq!(check_answer(policy(), answer("200 OK", "", &near)).await, Check::Passed);
}

#[tokio::test]
async fn an_answer_of_another_release_does_not_pass() {
    let policy = || HttpPolicy::default().deployment_header("X-Deployment");
    let mine = format!("x-deployment: {DEPLOYMENT}\r\n");
    assert_eq!(check_answer(policy(), answer("200 OK", &mine, "")).await, Check::Passed);
    let other = check_answer(policy(), answer("200 OK", "x-deployment: older\r\n", "")).await;
    assert_failed(other, "its header X-Deployment is \"older\"");
    assert_failed(check_answer(policy(), answer("200 OK", "", "")).await, "without the header X-Deployment");
    let fixed = HttpPolicy::default().header("server", "shop/2");
    assert_eq!(check_answer(fixed, answer("200 OK", "Server: shop/2\r\n", "")).await, Check::Passed);
}

#[tokio::test]
async fn redirects_are_what_the_policy_says() {
    let redirect = || answer("302 Found", "Location: /web/login\r\n", "");
    let failed = check_answer(HttpPolicy::default(), redirect()).await;
    assert_failed(failed, "answered 302 Found to \"/web/login\"");
    let accepting = HttpPolicy::default().redirects(Redirects::Accept);
    assert_eq!(check_answer(accepting, redirect()).await, Check::Passed);
    let listed = HttpPolicy::default().statuses([302..=302]).redirects(Redirects::Follow { max: 1 });
    assert_eq!(check_answer(listed, redirect()).await, Check::Passed);
    let follow = |max| HttpPolicy::default().redirects(Redirects::Follow { max });
    assert_failed(check_answer(follow(3), redirect()).await, "redirects more than 3 times");

    let to = |location: &str| answer("301 Moved Permanently", &format!("Location: {location}\r\n"), "");
    let paths = |location: &str| {
        Behaviour::Paths(vec![("/health?full=1", to(location)), ("/web?x=1", answer("200 OK", "", ""))])
    };
    let server = Server::new(paths("/web?x=1")).await;
    assert_eq!(check(follow(1), &server).await, Check::Passed);
    assert_failed(check(follow(0), &server).await, "redirects more than 0 times");
    let public = Server::new(paths("https://shop.example.org/web?x=1")).await;
    assert_eq!(check(follow(1), &public).await, Check::Passed, "its public name is the instance itself");
    let other = Server::new(Behaviour::Send(answer("200 OK", "", ""))).await;
    let leaving = Server::new(paths(&format!("http://{}/", other.address))).await;
    assert_failed(check(follow(1), &leaving).await, "which is not this instance");
    assert_eq!(other.requests(), Vec::<String>::new(), "another address is never asked");
}

#[tokio::test]
async fn an_endless_body_is_not_read_to_its_end() {
    let asked = Instant::now();
    let endless = |status: &str| {
        Behaviour::Endless(format!("HTTP/1.1 {status}\r\nContent-Length: 1000000000000\r\n\r\n").into_bytes())
    };
    let server = Server::new(endless("200 OK")).await;
    assert_eq!(check(HttpPolicy::default(), &server).await, Check::Passed);
    assert_failed(check(HttpPolicy::default().body_contains("y"), &server).await, "the first 64 KiB");
    let server = Server::new(endless("500 Internal Server Error")).await;
    let kept = assert_failed(check(HttpPolicy::default(), &server).await, "answered 500");
    assert_eq!(kept.map(|kept| kept.len()), Some(BODY_KEPT_MAX));
    let mut headers = b"HTTP/1.1 200 OK\r\nX-Long: ".to_vec();
    headers.extend([b'x'; 4096]);
    let server = Server::new(Behaviour::Endless(headers)).await;
    assert!(matches!(check(HttpPolicy::default(), &server).await, Check::Failed { .. }));
    assert!(asked.elapsed() < Duration::from_secs(20), "{:?}", asked.elapsed());
}

#[tokio::test]
async fn a_slow_body_is_waited_for_no_longer_than_the_timeout() {
    let slow = Behaviour::Drip(answer("500 Internal Server Error", "", &"slow".repeat(1000)));
    let server = Server::new(slow).await;
    let (host, port) = (server.address.ip().to_string(), server.address.port());
    let asked = Instant::now();
    let timeout = Duration::from_secs(6);
    let probe = HttpProbe::default();
    let failed = check_at(&probe, &host, Some(port), |health| health.check_timeout = timeout).await;
    let kept = assert_failed(failed.unwrap(), "answered 500").unwrap();
    assert!(kept.starts_with("slow"), "what came in time is kept: {kept:?}");
    assert!(asked.elapsed() < timeout + Duration::from_secs(3), "{:?}", asked.elapsed());
}

#[tokio::test]
async fn what_is_no_answer_is_said_in_plain_words() {
    let server = |behaviour| async { Server::new(behaviour).await };
    let policy = HttpPolicy::default;
    let garbage = server(Behaviour::Send(b"SSH-2.0-OpenSSH_9.9\r\n\r\n".to_vec())).await;
    assert_failed(check(policy(), &garbage).await, "not in HTTP");
    let closing = server(Behaviour::SendAndClose(Vec::new())).await;
    assert_failed(check(policy(), &closing).await, "before it answered");
    let half = server(Behaviour::SendAndClose(b"HTTP/1.1 200 O".to_vec())).await;
    assert_failed(check(policy(), &half).await, "before it answered");
    let silent = server(Behaviour::Send(Vec::new())).await;
    assert_failed(check(policy(), &silent).await, "did not answer within 2s");
    let broken = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort".to_vec();
    let broken = server(Behaviour::SendAndClose(broken)).await;
    assert_failed(check(policy().body_contains("long"), &broken).await, "broke off");
    let nobody = server(Behaviour::Send(Vec::new())).await;
    nobody.task.abort();
    while !nobody.task.is_finished() {
        tokio::task::yield_now().await;
    }
    let expected = format!("nothing listens on {} (connection refused)", nobody.address);
    assert_failed(check(policy(), &nobody).await, &expected);
}

#[tokio::test]
async fn every_check_has_a_connection_of_its_own() {
    let server = Server::new(Behaviour::Send(answer("200 OK", "", "fine"))).await;
    let probe = HttpProbe::default();
    let (host, port) = (server.address.ip().to_string(), server.address.port());
    for _ in 0..3 {
        assert_eq!(check_at(&probe, &host, Some(port), |_| {}).await.unwrap(), Check::Passed);
    }
    assert_eq!(*server.connections.lock().unwrap(), 3);
}

#[tokio::test]
async fn an_instance_on_ipv6_is_asked() {
    let Ok(_) = TcpListener::bind("[::1]:0").await else {
        eprintln!("this machine has no IPv6 loopback; the form of the address is checked all the same");
        let failed = check_at(&HttpProbe::default(), "::1", Some(1), |_| {}).await.unwrap();
        assert_failed(failed, "[::1]:1");
        return;
    };
    let server = Server::at("[::1]:0".parse().unwrap(), Behaviour::Send(answer("200 OK", "", ""))).await;
    let found = check_at(&HttpProbe::default(), "::1", Some(server.address.port()), |_| {}).await.unwrap();
    assert_eq!(found, Check::Passed);
    assert!(server.requests()[0].to_lowercase().contains("host: [::1]:"));
}

#[tokio::test]
async fn what_can_never_be_asked_is_a_permanent_error() {
    let error = check_at(&HttpProbe::default(), "127.0.0.1", None, |_| {}).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Permanent);
    assert!(error.to_string().contains("instance web has no port"), "{error}");
    let error = check_at(&HttpProbe::default(), "not/a/host", Some(1), |_| {}).await;
    assert!(!matches!(error, Ok(Check::Passed)), "{error:?}");
    let bad_host = |health: &mut ocore_core::health::HealthPolicy| health.host = Some("a\nb".to_owned());
    let error = check_at(&HttpProbe::default(), "127.0.0.1", Some(1), bad_host).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Permanent);
}

#[tokio::test]
async fn https_needs_tls() {
    let server = Server::new(Behaviour::Send(answer("200 OK", "", ""))).await;
    let probe = HttpProbe::new(HttpPolicy::default().https());
    let found = check_at(&probe, "127.0.0.1", Some(server.address.port()), |health| {
        health.check_timeout = Duration::from_secs(2);
    });
    match found.await {
        Err(error) if cfg!(not(feature = "tls")) => {
            assert_eq!(error.kind(), ErrorKind::Permanent);
            assert!(error.to_string().contains("`tls` feature"), "{error}");
        }
        Ok(check) if cfg!(feature = "tls") => drop(assert_failed(check, "127.0.0.1:")),
        found => panic!("{found:?}"),
    }
}

/// A server whose health the laws command.
struct HttpFixture {
    probe: HttpProbe,
    address: SocketAddr,
    server: tokio::sync::Mutex<Option<Server>>,
}

impl HttpFixture {
    async fn new() -> Self {
        let server = Server::new(Behaviour::Send(Vec::new())).await;
        Self { probe: HttpProbe::default(), address: server.address, server: Some(server).into() }
    }
}

#[async_trait]
impl ProbeFixture for HttpFixture {
    fn probe(&self) -> &dyn HealthProbe {
        &self.probe
    }
    fn configure(&self, instance: InstanceSpec) -> InstanceSpec {
        instance.port(self.address.port())
    }
    fn started(&self) -> Started {
        Started::new("web-1")
    }
    async fn set_condition(&self, condition: Condition) {
        let mut server = self.server.lock().await;
        if let Some(mut server) = server.take() {
            server.task.abort();
            let _ = (&mut server.task).await;
        }
        let behaviour = match condition {
            Condition::Well => Behaviour::Send(answer("200 OK", "", "fine")),
            Condition::Unwell { words } => Behaviour::Send(answer("503 Service Unavailable", "", &words)),
            Condition::Silent => Behaviour::Send(Vec::new()),
            _ => return,
        };
        *server = Some(Server::at(self.address, behaviour).await);
    }
}

ocore_core::probe_laws!(HttpFixture::new().await);
