//! What a Source may do: protocols, addresses, sizes, times.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use ocore_core::port::Result;

use crate::credentials::parse_certificates;

/// How a repository is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Protocol {
    /// `https://`: encrypted, with the host's certificate checked.
    Https,
    /// `ssh://` or `user@host:path`: encrypted, with a host key that was given beforehand.
    Ssh,
    /// `http://`: neither encrypted nor authenticated. Credentials are never sent over it.
    Http,
}

impl Protocol {
    /// The protocol's name in a URL.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Https => "https",
            Self::Ssh => "ssh",
            Self::Http => "http",
        }
    }

    pub(crate) const fn port(self) -> u16 {
        match self {
            Self::Https => 443,
            Self::Ssh => 22,
            Self::Http => 80,
        }
    }
}

/// Whether an environment's repository may be a directory of this machine. A submodule's never may.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum LocalPaths {
    /// No.
    Refused,
    /// Any directory that the process can read.
    Anywhere,
    /// Directories that are, symbolic links resolved, one of these or below one of them; so must their parts be, and
    /// they must not borrow objects of another repository.
    Below(Vec<PathBuf>),
}

impl LocalPaths {
    /// Whether a path that is there may be read, symbolic links resolved.
    pub(crate) fn allows(&self, path: &Path) -> bool {
        let roots = match self {
            Self::Refused => return false,
            Self::Anywhere => return true,
            Self::Below(roots) => roots,
        };
        let Ok(real) = path.canonicalize() else { return false };
        roots.iter().any(|root| root.canonicalize().is_ok_and(|root| real.starts_with(root)))
    }
}

/// Which addresses a repository's host may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Addresses {
    /// All but those that no repository lives at: link-local ones, where clouds keep their machines' credentials,
    /// multicast ones, and the unspecified one. For hosts whose environments are written by people they trust.
    ///
    /// A submodule's URL is written by whoever writes the repository: where it names another host than the
    /// repository's own, the host must be [`Public`](Self::Public) or [allowed](SourcePolicy::allow_address).
    NotLinkLocal,
    /// Those of the public internet: not loopback, not private networks either. For hosts whose users write the
    /// repository's URL.
    Public,
}

/// What happens to a submodule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Submodules {
    /// It is fetched, by the same rules as the repository itself, but never from a local path.
    Fetched {
        /// How deep submodules may lie in submodules.
        depth_max: u32,
        /// How many there may be in one checkout.
        count_max: u32,
    },
    /// Its directory is made and stays empty, as `git clone` does it.
    Empty,
    /// A commit with a submodule is not checked out.
    Refused,
}

/// What happens to names of one directory that differ in case only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum CaseCollisions {
    /// The commit is not checked out: on some file systems one file would take the other's place.
    Refused,
    /// They are written, where the file system can tell them apart.
    Allowed,
}

/// How much, how long, how deep. Each error that a limit causes names its field.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Bytes received in one fetch; 4 GiB unless said otherwise.
    pub received_bytes_max: u64,
    /// Objects received in one fetch; 20 million unless said otherwise.
    pub objects_max: u64,
    /// Bytes of one object of the history, unpacked; 512 MiB unless said otherwise. It is held in memory when it
    /// arrives. Over ssh it is not known: only a host whose key was given can send it.
    pub object_bytes_max: u64,
    /// Branches and tags of a repository; 100,000 unless said otherwise.
    pub references_max: usize,
    /// Bytes written by one checkout, submodules included; 8 GiB unless said otherwise.
    pub checkout_bytes_max: u64,
    /// Files, links and directories written by one checkout; one million unless said otherwise.
    pub files_max: u64,
    /// Bytes of one file; 512 MiB unless said otherwise. A file is held in memory while it is written.
    pub file_bytes_max: u64,
    /// Bytes of a path in a checkout; 1,024 unless said otherwise.
    pub path_length_max: usize,
    /// Parts of a path in a checkout; 64 unless said otherwise.
    pub path_depth_max: usize,
    /// Packs in a mirror before it is made anew; 200 unless said otherwise.
    pub packs_max: usize,
    /// One fetch or one checkout as a whole; 30 minutes unless said otherwise. The environment's
    /// `policy.deadlines.fetch` should be longer: past it the call is stopped whatever stands here.
    pub time_max: Duration,
    /// Making a connection, and saying what it is for; 20 seconds unless said otherwise.
    pub connect_time_max: Duration,
    /// A connection on which nothing arrives; 2 minutes unless said otherwise.
    pub idle_time_max: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            received_bytes_max: 4 << 30,
            objects_max: 20_000_000,
            object_bytes_max: 512 << 20,
            references_max: 100_000,
            checkout_bytes_max: 8 << 30,
            files_max: 1_000_000,
            file_bytes_max: 512 << 20,
            path_length_max: 1024,
            path_depth_max: 64,
            packs_max: 200,
            time_max: Duration::from_secs(30 * 60),
            connect_time_max: Duration::from_secs(20),
            idle_time_max: Duration::from_secs(120),
        }
    }
}

/// What a [`GitSource`](crate::GitSource) may do. The default is what we would run ourselves: https and ssh,
/// no local paths, no link-local addresses, submodules fetched by the same rules.
///
/// ```
/// use ocore_git::{Addresses, SourcePolicy};
/// let policy = SourcePolicy::default()
///     .addresses(Addresses::Public)
///     .allow_local_paths_below("/srv/repositories")
///     .limits(|limits| limits.files_max = 50_000);
/// # let _ = policy;
/// ```
#[derive(Debug, Clone)]
pub struct SourcePolicy {
    pub(crate) protocols: BTreeSet<Protocol>,
    pub(crate) local_paths: LocalPaths,
    pub(crate) addresses: Addresses,
    pub(crate) allowed_addresses: BTreeSet<IpAddr>,
    pub(crate) host_addresses: BTreeMap<String, IpAddr>,
    pub(crate) certificates: BTreeMap<String, Vec<Vec<u8>>>,
    pub(crate) submodules: Submodules,
    pub(crate) case_collisions: CaseCollisions,
    pub(crate) limits: Limits,
}

impl Default for SourcePolicy {
    fn default() -> Self {
        Self {
            protocols: BTreeSet::from([Protocol::Https, Protocol::Ssh]),
            local_paths: LocalPaths::Refused,
            addresses: Addresses::NotLinkLocal,
            allowed_addresses: BTreeSet::new(),
            host_addresses: BTreeMap::new(),
            certificates: BTreeMap::new(),
            submodules: Submodules::Fetched { depth_max: 4, count_max: 100 },
            case_collisions: CaseCollisions::Refused,
            limits: Limits::default(),
        }
    }
}

impl SourcePolicy {
    /// Exactly these protocols.
    #[must_use]
    pub fn protocols(mut self, protocols: impl IntoIterator<Item = Protocol>) -> Self {
        self.protocols = protocols.into_iter().collect();
        self
    }

    /// A repository may be any directory of this machine. For tests, and for a person's own machine.
    #[must_use]
    pub fn allow_local_paths(mut self) -> Self {
        self.local_paths = LocalPaths::Anywhere;
        self
    }

    /// A repository may be this directory or one below it. May be called several times.
    #[must_use]
    pub fn allow_local_paths_below(mut self, root: impl Into<PathBuf>) -> Self {
        let root = root.into();
        match &mut self.local_paths {
            LocalPaths::Below(roots) => roots.push(root),
            LocalPaths::Refused | LocalPaths::Anywhere => self.local_paths = LocalPaths::Below(vec![root]),
        }
        self
    }

    /// Which addresses a host may have.
    ///
    /// They are looked up once for each fetch, checked, and exactly the checked ones are connected to: a name
    /// that resolves to something else a moment later gains nothing.
    #[must_use]
    pub const fn addresses(mut self, addresses: Addresses) -> Self {
        self.addresses = addresses;
        self
    }

    /// This address is allowed whatever [`addresses`](Self::addresses) says: a git host in the private network.
    #[must_use]
    pub fn allow_address(mut self, address: IpAddr) -> Self {
        self.allowed_addresses.insert(address);
        self
    }

    /// The host is at this address; it is not looked up. The certificate is still checked against its name.
    #[must_use]
    pub fn host_address(mut self, host: &str, address: IpAddr) -> Self {
        self.host_addresses.insert(host.to_ascii_lowercase(), address);
        self
    }

    /// Accepts exactly these certificates from the host (PEM), instead of what the system trusts: for a host
    /// with a certificate of its own making. May be called several times.
    ///
    /// # Errors
    /// The text holds no certificate.
    pub fn trust_certificate(mut self, host: &str, pem: &str) -> Result<Self> {
        let trusted = self.certificates.entry(host.to_ascii_lowercase()).or_default();
        trusted.extend(parse_certificates(pem)?);
        Ok(self)
    }

    /// What happens to submodules.
    #[must_use]
    pub const fn submodules(mut self, submodules: Submodules) -> Self {
        self.submodules = submodules;
        self
    }

    /// What happens to names that differ in case only.
    #[must_use]
    pub const fn case_collisions(mut self, case_collisions: CaseCollisions) -> Self {
        self.case_collisions = case_collisions;
        self
    }

    /// The same policy with its limits changed by `change`.
    #[must_use]
    pub fn limits(mut self, change: impl FnOnce(&mut Limits)) -> Self {
        change(&mut self.limits);
        self
    }
}

#[cfg(test)]
mod tests {
    use ocore_core::environment::Deadlines;

    use super::*;

    #[test]
    fn the_sources_own_limit_ends_a_call_before_the_engine_does() {
        assert!(Limits::default().time_max < Deadlines::default().fetch);
    }
}
