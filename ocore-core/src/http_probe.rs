//! The health probe that asks an instance over HTTP.

mod answer;
mod policy;
mod words;

use std::{net::Ipv6Addr, time::Duration};

use async_trait::async_trait;
use reqwest::{
    Client, Response, Url,
    header::{HOST, HeaderValue, LOCATION},
    redirect,
};
use tokio::time::Instant;

pub use self::policy::{ExpectedHeader, HttpPolicy, Redirects, Scheme};
use crate::{
    environment::Instance,
    port::{Check, Classify, Context, Error, HealthProbe, Result},
    release::Started,
};

/// What is kept of an answer's body, in bytes.
pub const BODY_KEPT_MAX: usize = 4 * 1024;

/// What is searched of an answer's body, in bytes.
pub const BODY_SEARCHED_MAX: usize = 64 * 1024;

/// Asks `http://host:port/path`, as the environment's [`HealthPolicy`](crate::health::HealthPolicy) says, and judges
/// the answer by an [`HttpPolicy`].
///
/// Every check has a connection of its own, so that none is answered by a process that should be gone. No proxy is
/// used, whatever the process's environment says. The whole check, redirects included, takes no longer than
/// `policy.health.check_timeout`.
///
/// Its calls need a tokio runtime.
///
/// ```
/// use ocore_core::http_probe::{HttpPolicy, HttpProbe, Redirects};
/// let probe = HttpProbe::new(HttpPolicy::default().redirects(Redirects::Accept).body_contains("ok"));
/// ```
#[derive(Debug)]
pub struct HttpProbe {
    policy: HttpPolicy,
    client: std::result::Result<Client, String>,
}

impl HttpProbe {
    /// A probe that judges answers by this policy.
    #[must_use]
    pub fn new(policy: HttpPolicy) -> Self {
        let client = Client::builder()
            .no_proxy()
            .redirect(redirect::Policy::none())
            .pool_max_idle_per_host(0)
            .user_agent(concat!("ocore/", env!("CARGO_PKG_VERSION")))
            .build();
        Self { policy, client: client.map_err(|error| words::chain(&error)) }
    }

    fn client(&self) -> Result<&Client> {
        if self.policy.scheme == Scheme::Https && !cfg!(feature = "tls") {
            return Err(Error::permanent(
                "the health check asks for https, but ocore-core was built without its `tls` feature: enable it, \
                 or check over http",
            ));
        }
        self.client.as_ref().map_err(|error| Error::permanent(format!("set up the HTTP client: {error}")))
    }

    /// Asks the instance, following redirects where the policy says so.
    async fn ask(&self, context: &Context, question: Question) -> Result<Check> {
        let (mut url, client) = (question.url.clone(), self.client()?);
        let mut hops = 0;
        loop {
            let request = client.get(url.clone()).header("Accept", "*/*").timeout(question.remaining());
            let request = match &question.host {
                Some(host) => request.header(HOST, host),
                None => request,
            };
            let response = match request.send().await {
                Ok(response) => response,
                Err(error) => return Ok(answer::failed(words::no_answer(&error, &question), None)),
            };
            match (self.policy.redirects, self.next_hop(&response, &url, &question)) {
                (Redirects::Follow { max }, Some(hop)) if hops < max => {
                    url = match hop {
                        Ok(next) => next,
                        Err(reason) => return Ok(answer::failed(reason, None)),
                    };
                    hops += 1;
                }
                (Redirects::Follow { max }, Some(_)) => {
                    return Ok(answer::failed(format!("redirects more than {max} times"), None));
                }
                _ => return Ok(answer::judge(response, &self.policy, context.deployment(), &question).await),
            }
        }
    }

    /// Where a redirect leads, if the answer is one: another path of the same instance, or else a reason to fail.
    fn next_hop(
        &self,
        response: &Response,
        from: &Url,
        question: &Question,
    ) -> Option<std::result::Result<Url, String>> {
        if !response.status().is_redirection() || self.policy.allows(response.status().as_u16()) {
            return None;
        }
        let location = response.headers().get(LOCATION)?.to_str().ok()?;
        let elsewhere = || format!("redirects to {}, which is not this instance", words::quoted(location));
        let Ok(mut next) = from.join(location) else { return Some(Err(elsewhere())) };
        let same_address =
            next.host() == from.host() && next.port_or_known_default() == from.port_or_known_default();
        if !same_address && !question.is_called(&next) {
            return Some(Err(elsewhere()));
        }
        // An application that knows its public name redirects to it: that name is asked at the instance itself.
        let (path, query) = (next.path().to_owned(), next.query().map(str::to_owned));
        next = from.clone();
        next.set_path(&path);
        next.set_query(query.as_deref());
        Some(Ok(next))
    }
}

impl Default for HttpProbe {
    fn default() -> Self {
        Self::new(HttpPolicy::default())
    }
}

#[async_trait]
impl HealthProbe for HttpProbe {
    async fn check(&self, context: &Context, instance: &Instance, _started: &Started) -> Result<Check> {
        let question = Question::new(&self.policy, context, instance)?;
        tokio::select! {
            biased;
            () = context.cancelled() => Err(Error::cancelled()),
            check = self.ask(context, question) => check,
        }
    }
}

/// What is asked, of whom, and until when.
struct Question {
    url: Url,
    host: Option<HeaderValue>,
    address: String,
    timeout: Duration,
    deadline: Instant,
}

impl Question {
    fn new(policy: &HttpPolicy, context: &Context, instance: &Instance) -> Result<Self> {
        let health = &context.environment().policy().health;
        let Some(port) = instance.port else {
            return Err(Error::permanent(format!(
                "instance {} has no port to ask: give it one in the environment's settings",
                instance.name
            )));
        };
        let host = match instance.host.parse::<Ipv6Addr>() {
            Ok(address) => format!("[{address}]"),
            Err(_) => instance.host.clone(),
        };
        let address = format!("{host}:{port}");
        let url = format!("{}://{address}{}", policy.scheme.as_str(), health.path);
        let url = Url::parse(&url).permanent(format!("make a URL of {}", words::quoted(&url)))?;
        let header =
            |host: &String| HeaderValue::from_str(host).permanent("send policy.health.host as a header");
        let timeout = health.check_timeout;
        let host = health.host.as_ref().map(header).transpose()?;
        Ok(Self { url, host, address, timeout, deadline: Instant::now() + timeout })
    }

    fn remaining(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// Whether the URL's host is the name under which the instance is asked.
    fn is_called(&self, url: &Url) -> bool {
        let name = self.host.as_ref().and_then(|host| host.to_str().ok()).unwrap_or_default();
        let name = name.rsplit_once(':').map_or(name, |(name, _)| name);
        !name.is_empty() && url.host_str().is_some_and(|host| host.eq_ignore_ascii_case(name))
    }
}
