//! Where a repository is: an own, strict parser of URLs.

use std::{
    fmt,
    path::{Component, Path, PathBuf},
};

use ocore_core::port::{Classify, Error, Result};

use crate::policy::{LocalPaths, Protocol, SourcePolicy};

/// Where a repository is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Location {
    Remote(Remote),
    Local(PathBuf),
}

/// A repository on a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Remote {
    pub(crate) protocol: Protocol,
    pub(crate) user: Option<String>,
    /// In lower case; an IPv6 address without brackets.
    pub(crate) host: String,
    pub(crate) port: u16,
    /// As the host gets it: absolute, except where `user@host:path` named it relative to a home directory.
    pub(crate) path: String,
}

fn refused(reason: impl fmt::Display) -> Error {
    Error::permanent(format!("read the repository's URL: {reason}"))
}

impl Location {
    /// Reads an environment's repository by the policy.
    pub(crate) fn parse(text: &str, policy: &SourcePolicy) -> Result<Self> {
        let location = Self::read(text)?;
        location.check(policy)?;
        Ok(location)
    }

    /// Reads a submodule's URL by the policy: never a local path.
    pub(crate) fn parse_submodule(text: &str, parent: &Self, policy: &SourcePolicy) -> Result<Self> {
        let relative = text.starts_with("./") || text.starts_with("../");
        let location = match (relative, parent) {
            (true, Self::Remote(parent)) => Self::Remote(parent.join(text)?),
            (true, Self::Local(_)) => Self::Local(PathBuf::from(text)),
            (false, _) => Self::read(text)?,
        };
        if let Self::Local(_) = location {
            return Err(refused("a submodule must not be a local path, whatever the repository itself is"));
        }
        location.check(policy)?;
        Ok(location)
    }

    fn read(text: &str) -> Result<Self> {
        if text.is_empty() || text.len() > 2000 {
            return Err(refused("it is empty or longer than 2000 bytes"));
        }
        // A directory's name may have a space; nothing in a URL does.
        let allowed = |c: char| c == ' ' && text.starts_with('/');
        if text.chars().any(|c| c.is_control() || c.is_whitespace() && !allowed(c)) {
            return Err(refused("it has a space or a control character"));
        }
        if text.starts_with('-') {
            return Err(refused("it begins with a hyphen, as if it were an option"));
        }
        if let Some((scheme, rest)) = text.split_once("://") {
            return Self::read_url(&scheme.to_ascii_lowercase(), rest);
        }
        if text.starts_with('/') {
            return Ok(Self::Local(PathBuf::from(text)));
        }
        let helper = |name: &str| !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric());
        if let Some((name, _)) = text.split_once("::").filter(|(name, _)| helper(name)) {
            return Err(refused(format!("{name}:: would run a program, which is never allowed")));
        }
        match text.split_once(':') {
            Some((authority, path)) if !authority.contains('/') => {
                let (user, host, port) = read_authority(authority, None)?;
                if port.is_some() || path.is_empty() {
                    return Err(refused("after host: comes a path; give a port as ssh://host:port/path"));
                }
                check_path(path)?;
                let port = Protocol::Ssh.port();
                Ok(Self::Remote(Remote { protocol: Protocol::Ssh, user, host, port, path: path.to_owned() }))
            }
            _ => Err(refused("it is no URL; give https://host/path, ssh://host/path, or an absolute path")),
        }
    }

    fn read_url(scheme: &str, rest: &str) -> Result<Self> {
        let protocol = match scheme {
            "https" => Protocol::Https,
            "ssh" => Protocol::Ssh,
            "http" => Protocol::Http,
            "file" => return read_file_url(rest),
            _ => {
                let scheme: String = scheme.chars().take(20).collect();
                return Err(refused(format!("the protocol {scheme:?} is never allowed; use https or ssh")));
            }
        };
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (user, host, port) = read_authority(authority, Some(protocol))?;
        if user.is_some() && protocol != Protocol::Ssh {
            // Not repeated: it is a token as often as a name, and URLs are shown.
            return Err(refused(format!(
                "it has something before the @, which is not used for {scheme}; give credentials to the Source instead"
            )));
        }
        if path.trim_matches('/').is_empty() {
            return Err(refused("it has no path after the host"));
        }
        check_path(path)?;
        let (port, path) = (port.unwrap_or(protocol.port()), format!("/{path}"));
        Ok(Self::Remote(Remote { protocol, user, host, port, path }))
    }

    fn check(&self, policy: &SourcePolicy) -> Result<()> {
        match self {
            Self::Remote(remote) if policy.protocols.contains(&remote.protocol) => Ok(()),
            Self::Remote(remote) => {
                let name = remote.protocol.as_str();
                Err(refused(format!("the protocol {name} is not allowed by the policy of this Source")))
            }
            Self::Local(path) => check_local(path, &policy.local_paths),
        }
    }

    /// One text for each repository, however its URL is written.
    pub(crate) fn normalised(&self) -> String {
        match self {
            Self::Local(path) => format!("file://{}", path.components().collect::<PathBuf>().display()),
            Self::Remote(remote) => {
                let user = remote.user.as_deref().unwrap_or("");
                let Remote { host, port, .. } = remote;
                let path = remote.path.trim_end_matches('/');
                format!("{}://{user}@{host}:{port}:{path}", remote.protocol.as_str())
            }
        }
    }
}

impl fmt::Display for Location {
    /// As people write it. It never holds a password: such a URL is refused.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local(path) => write!(f, "{}", path.display()),
            Self::Remote(remote) => remote.fmt(f),
        }
    }
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let user = self.user.as_ref().map_or(String::new(), |user| format!("{user}@"));
        if !self.path.starts_with('/') {
            return write!(f, "{user}{}:{}", self.host, self.path);
        }
        write!(f, "{}://{user}{}{}", self.protocol.as_str(), self.authority(), self.path)
    }
}

impl Remote {
    /// Host and, where it is not the usual one, port.
    pub(crate) fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        if self.port == self.protocol.port() { host } else { format!("{host}:{}", self.port) }
    }

    /// The URL for libgit2, for ssh, through a port of this machine that leads to the host.
    pub(crate) fn ssh_url(&self, user: &str, port: u16) -> String {
        format!("[{user}@127.0.0.1:{port}]:{}", self.path)
    }

    /// A submodule's URL that is relative to this repository's.
    fn join(&self, relative: &str) -> Result<Self> {
        check_characters(relative)?;
        let absolute = self.path.starts_with('/');
        let mut parts: Vec<&str> = self.path.split('/').filter(|part| !part.is_empty()).collect();
        for part in relative.split('/') {
            match part {
                "" | "." => {}
                ".." => drop(parts.pop().ok_or_else(|| refused("it leaves the host's root"))?),
                name => parts.push(name),
            }
        }
        if parts.is_empty() {
            return Err(refused("it has no path after the host"));
        }
        let path = format!("{}{}", if absolute { "/" } else { "" }, parts.join("/"));
        Ok(Self { path, ..self.clone() })
    }

    /// Whether `other` is on the same host, port and protocol, and its path is this one's or below it.
    pub(crate) fn covers(&self, other: &Self) -> bool {
        let parts = |remote: &Self| -> Vec<String> {
            remote.path.split('/').filter(|part| !part.is_empty()).map(str::to_owned).collect()
        };
        (self.protocol, &self.host, self.port) == (other.protocol, &other.host, other.port)
            && parts(other).starts_with(&parts(self))
    }
}

fn read_file_url(rest: &str) -> Result<Location> {
    if !rest.starts_with('/') || rest.contains('%') {
        return Err(refused("a file:// URL names a host or has an escape; give the absolute path itself"));
    }
    Ok(Location::Local(PathBuf::from(rest)))
}

fn read_authority(
    authority: &str,
    protocol: Option<Protocol>,
) -> Result<(Option<String>, String, Option<u16>)> {
    let (user, host) = match authority.rsplit_once('@') {
        Some((user, host)) => (Some(user), host),
        None => (None, authority),
    };
    let plain = |text: &str| {
        !text.is_empty()
            && !text.starts_with('-')
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._+-".contains(&b))
    };
    if let Some(user) = user {
        if user.contains(':') {
            return Err(refused("it holds a password; give credentials to the Source instead"));
        }
        if !plain(user) {
            return Err(refused("the user's name before the @ has a character that is not allowed"));
        }
    }
    let (host, port) = match (host.strip_prefix('['), protocol) {
        (Some(rest), Some(_)) => {
            let (address, port) = rest.split_once(']').ok_or_else(|| refused("a [ has no ]"))?;
            address
                .parse::<std::net::Ipv6Addr>()
                .permanent("read the repository's URL: the address in []")?;
            if !port.is_empty() && !port.starts_with(':') {
                return Err(refused("something other than a port follows the ]"));
            }
            (address, port.strip_prefix(':'))
        }
        _ => {
            let (name, port) = host.split_once(':').map_or((host, None), |(name, port)| (name, Some(port)));
            if !plain(name) || name.len() > 253 {
                return Err(refused("the host's name is empty or has a character that is not allowed"));
            }
            (name, port)
        }
    };
    let port = port.map(str::parse::<u16>).transpose().permanent("read the repository's URL: the port")?;
    if port == Some(0) {
        return Err(refused("the port is 0"));
    }
    Ok((user.map(str::to_owned), host.to_ascii_lowercase(), port))
}

fn check_characters(path: &str) -> Result<()> {
    if path.starts_with('-') || path.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err(refused("the path begins with a hyphen or has a space or control character"));
    }
    if path.contains(['?', '#', '\\', '\'', '"', '`', '$', ';', '|', '&', '<', '>']) {
        return Err(refused("the path has a character that no repository's URL needs"));
    }
    // Written so, they would be other paths for this crate's checks than for the host.
    let lower = path.to_ascii_lowercase();
    if ["%00", "%25", "%2e", "%2f", "%5c"].iter().any(|escape| lower.contains(escape)) {
        return Err(refused(
            "the path has a dot, a slash, a backslash, a percent sign or a zero byte as an escape",
        ));
    }
    Ok(())
}

fn check_path(path: &str) -> Result<()> {
    check_characters(path)?;
    if path.split('/').any(|part| part == "..") {
        return Err(refused("the path has a part .."));
    }
    Ok(())
}

fn check_local(path: &Path, policy: &LocalPaths) -> Result<()> {
    if path.components().any(|part| part == Component::ParentDir) {
        return Err(refused("the path has a part .."));
    }
    if *policy == LocalPaths::Refused {
        return Err(refused("local paths are not allowed by the policy of this Source; use https or ssh"));
    }
    // A path that is not there leads nowhere: where any is allowed, the fetch says so.
    if *policy != LocalPaths::Anywhere && !path.exists() {
        return Err(refused("no such directory"));
    }
    if policy.allows(path) {
        return Ok(());
    }
    Err(refused("the path is not below a directory that the policy of this Source allows"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &str) {
        let policy = SourcePolicy::default();
        let shown = match Location::parse(text, &policy) {
            Ok(location) => location.normalised(),
            Err(error) => error.to_string(),
        };
        assert!(shown.contains(expected), "{text:?} gives {shown:?}, not {expected:?}");
    }

    #[test]
    fn urls_have_one_normal_form() {
        check("https://Git.Example.org/a/b.git/", "https://@git.example.org:443:/a/b.git");
        check("https://git.example.org:443/a/b.git", "https://@git.example.org:443:/a/b.git");
        check("ssh://git@example.org:2222/~/x", "ssh://git@example.org:2222:/~/x");
        check("git@example.org:a/b.git", "ssh://git@example.org:22:a/b.git");
        check("https://[2001:db8::1]:8443/x", "https://@2001:db8::1:8443:/x");
    }

    #[test]
    fn a_path_below_a_home_directory_reaches_the_host_as_it_was_written() {
        let check = |text: &str, expected: &str| match Location::parse(text, &SourcePolicy::default()) {
            Ok(Location::Remote(remote)) => assert_eq!(remote.ssh_url("git", 7), expected, "{text}"),
            other => panic!("{other:?}"),
        };
        check("git@example.org:a/b.git", "[git@127.0.0.1:7]:a/b.git");
        check("git@example.org:/srv/b.git", "[git@127.0.0.1:7]:/srv/b.git");
        check("ssh://git@example.org/~ada/b.git", "[git@127.0.0.1:7]:/~ada/b.git");
        check("ssh://example.org:2222/b.git", "[git@127.0.0.1:7]:/b.git");
    }

    #[test]
    fn what_could_do_harm_is_refused_and_says_why() {
        check("", "empty");
        check("--upload-pack=touch", "hyphen");
        check("-x@host:path", "hyphen");
        check("ext::sh -c id", "space");
        check("ext::sh", "would run a program");
        check("fd::17", "would run a program");
        check("git://example.org/x", "\"git\" is never allowed");
        check("http://example.org/x", "http is not allowed");
        check("file:///etc", "local paths are not allowed");
        check("/srv/x", "local paths are not allowed");
        check("x/y", "it is no URL");
        check("https://u:secret@example.org/x", "holds a password");
        check("https://example.org@evil.org/x", "before the @");
        check("https://ghp_token@example.org/x", "give credentials to the Source");
        check("https://example.org/a/%2e%2e/b", "as an escape");
        check("https://example.org/a/%2E./b", "as an escape");
        check("https://example.org/a%2Fb", "as an escape");
        check("https://example.org/a%5cb", "as an escape");
        check("https://example.org/a%252e%252e/b", "as an escape");
        check("https://example.org/a%00", "as an escape");
        check("https://exam\nple.org/x", "control");
        check("https://-oProxyCommand=x/y", "not allowed");
        check("ssh://-oProxyCommand=x/y", "not allowed");
        check("https://example.org/a/../b", "..");
        check("https://example.org", "no path");
        check("https://example.org:0/x", "port is 0");
        check("https://example.org:99999/x", "the port");
        check("https://ex%2fample.org/x", "host's name");
        check("https://exämple.org/x", "host's name");
        check("git@example.org:-x", "hyphen");
        check("git@example.org:a;b", "character");
        check("https://example.org/x?y", "character");
    }

    #[test]
    fn a_secret_in_a_url_is_not_repeated() {
        for url in
            ["https://u:s3cr3t@example.org/x", "https://s3cr3t@example.org/x", "http://s3cr3t@example.org/x"]
        {
            let error = Location::parse(url, &SourcePolicy::default()).unwrap_err();
            assert!(!error.to_string().contains("s3cr3t"), "{error}");
        }
    }

    #[test]
    fn a_submodule_is_never_local() {
        let policy = SourcePolicy::default().allow_local_paths();
        let local = Location::parse("/srv/x", &policy).unwrap();
        let remote = Location::parse("https://example.org/a/b.git", &policy).unwrap();
        for url in ["/etc", "file:///etc", "FILE:///etc", "../other", "./x"] {
            assert!(Location::parse_submodule(url, &local, &policy).is_err(), "{url}");
        }
        for (url, expected) in [("../c.git", "/a/c.git"), ("./c", "/a/b.git/c"), ("../../x/y", "/x/y")] {
            let joined = Location::parse_submodule(url, &remote, &policy).unwrap();
            assert_eq!(joined.normalised(), format!("https://@example.org:443:{expected}"));
        }
        for url in ["../../../x", "../..", "../%2e%2e/x", "ext::sh", "../a;b", "http://example.org/x"] {
            assert!(Location::parse_submodule(url, &remote, &policy).is_err(), "{url}");
        }
    }

    #[test]
    fn a_prefix_covers_whole_parts_of_the_path_on_one_host() {
        let remote = |text| match Location::read(text) {
            Ok(Location::Remote(remote)) => remote,
            other => panic!("{other:?}"),
        };
        let prefix = remote("https://example.org/acme");
        assert!(prefix.covers(&remote("https://example.org/acme/x.git")));
        for other in
            ["https://example.org/acme2/x", "https://evil.org/acme/x", "https://example.org:8443/acme/x"]
        {
            assert!(!prefix.covers(&remote(other)), "{other}");
        }
    }
}
