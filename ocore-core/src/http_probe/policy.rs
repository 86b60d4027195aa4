use std::ops::RangeInclusive;

/// Which answers mean that an instance is well.
///
/// By default: plain HTTP, a status from 200 to 299, no redirect, whatever body.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct HttpPolicy {
    /// How to ask.
    pub scheme: Scheme,
    /// The statuses that pass.
    pub statuses: Vec<RangeInclusive<u16>>,
    /// What a redirect means.
    pub redirects: Redirects,
    /// A text that the first 64 KiB of the body must contain.
    pub body_contains: Option<String>,
    /// A header that the answer must have: proof that this release answers and no other.
    pub header: Option<ExpectedHeader>,
}

impl Default for HttpPolicy {
    fn default() -> Self {
        Self {
            scheme: Scheme::Http,
            statuses: vec![200..=299],
            redirects: Redirects::Refuse,
            body_contains: None,
            header: None,
        }
    }
}

impl HttpPolicy {
    /// The same policy over https. Needs the `tls` feature; the certificate must be valid for the instance's host.
    #[must_use]
    pub const fn https(mut self) -> Self {
        self.scheme = Scheme::Https;
        self
    }

    /// The same policy with other statuses that pass.
    #[must_use]
    pub fn statuses(mut self, statuses: impl IntoIterator<Item = RangeInclusive<u16>>) -> Self {
        self.statuses = statuses.into_iter().collect();
        self
    }

    /// The same policy with another rule for redirects.
    #[must_use]
    pub const fn redirects(mut self, redirects: Redirects) -> Self {
        self.redirects = redirects;
        self
    }

    /// The same policy, for answers whose body contains this text.
    #[must_use]
    pub fn body_contains(mut self, text: impl Into<String>) -> Self {
        self.body_contains = Some(text.into());
        self
    }

    /// The same policy, for answers whose header `name` is `value`.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.header = Some(ExpectedHeader { name: name.into(), value: Some(value.into()) });
        self
    }

    /// The same policy, for answers whose header `name` is the id of the deployment that is checked: an older
    /// release that still answers on the port does not pass.
    #[must_use]
    pub fn deployment_header(mut self, name: impl Into<String>) -> Self {
        self.header = Some(ExpectedHeader { name: name.into(), value: None });
        self
    }

    pub(super) fn allows(&self, status: u16) -> bool {
        let accepted = self.redirects == Redirects::Accept && (300..=399).contains(&status);
        accepted || self.statuses.iter().any(|range| range.contains(&status))
    }
}

/// How an instance is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Scheme {
    /// Plain HTTP.
    Http,
    /// HTTP over TLS.
    Https,
}

impl Scheme {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

/// What a redirect means, unless its status is among those that pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Redirects {
    /// It fails the check.
    Refuse,
    /// It is followed, at most `max` times in one check, and never to another address: where it leads to the name
    /// in `policy.health.host`, the instance itself is asked.
    Follow {
        /// How often.
        max: u32,
    },
    /// It passes: whoever redirects is well.
    Accept,
}

/// A header that an answer must have.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExpectedHeader {
    /// Its name, in any case.
    pub name: String,
    /// Its value; `None` for the id of the deployment that is checked.
    pub value: Option<String>,
}
