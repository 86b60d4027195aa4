//! Tokens, keys, and the keys and certificates of hosts.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use ocore_core::{
    port::{Classify, Error, Result},
    secret::Secret,
};

/// What an environment shows to its repository's host.
///
/// A token goes into the encrypted request itself; a key is handed to libgit2 in memory when the host asks for it.
/// They are never in a URL, in an argument list, in a file or in a log. An ssh agent is never asked.
#[derive(Clone)]
pub struct Credentials(pub(crate) Kind);

#[derive(Clone)]
pub(crate) enum Kind {
    Token { user: String, token: Secret },
    SshKey { user: String, private_key: Secret, passphrase: Option<Secret>, host_keys: Vec<HostKey> },
}

impl Credentials {
    /// A user's name and a token or password, for https. Hosts that look at the token only take any name:
    /// `x-access-token`, `oauth2`.
    #[must_use]
    pub fn token(user: impl Into<String>, token: Secret) -> Self {
        Self(Kind::Token { user: user.into(), token })
    }

    /// A private key, for ssh, and the host's own public keys: all that it has, as `ssh-keyscan` prints them, for
    /// the one that is used is negotiated. A host that shows another key is refused. `user` is used where the URL
    /// names none.
    #[must_use]
    pub fn ssh_key(
        user: impl Into<String>,
        private_key: Secret,
        passphrase: Option<Secret>,
        host_keys: impl IntoIterator<Item = HostKey>,
    ) -> Self {
        let host_keys = host_keys.into_iter().collect();
        Self(Kind::SshKey { user: user.into(), private_key, passphrase, host_keys })
    }

    /// Every value that must not be seen.
    pub(crate) fn secrets(&self) -> impl Iterator<Item = &Secret> {
        let (first, second) = match &self.0 {
            Kind::Token { token, .. } => (token, None),
            Kind::SshKey { private_key, passphrase, .. } => (private_key, passphrase.as_ref()),
        };
        std::iter::once(first).chain(second)
    }

    pub(crate) fn host_keys(&self) -> &[HostKey] {
        match &self.0 {
            Kind::Token { .. } => &[],
            Kind::SshKey { host_keys, .. } => host_keys,
        }
    }

    /// The user's name for ssh.
    pub(crate) fn ssh_user(&self) -> Option<&str> {
        match &self.0 {
            Kind::Token { .. } => None,
            Kind::SshKey { user, .. } => Some(user),
        }
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Kind::Token { .. } => "Token(…)",
            Kind::SshKey { .. } => "SshKey(…)",
        })
    }
}

/// The public key of an ssh host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostKey(pub(crate) Vec<u8>);

impl HostKey {
    /// Reads a line as `known_hosts` files have it, with or without the host in front:
    /// `ssh-ed25519 AAAA…` or `git.example.org ssh-ed25519 AAAA…`.
    ///
    /// # Errors
    /// The line holds no public key, or begins with a marker: a key that is revoked or that only signs others is no
    /// host's own.
    pub fn parse(line: &str) -> Result<Self> {
        let wrong = |reason: &str| Error::permanent(format!("read an ssh host key: {reason}"));
        let words: Vec<_> = line.split_whitespace().collect();
        if words.first().is_some_and(|first| first.starts_with('@')) {
            return Err(wrong("the line begins with a marker such as @revoked or @cert-authority"));
        }
        let is_kind = |word: &str| ["ssh-", "ecdsa-sha2-", "sk-"].iter().any(|start| word.starts_with(start));
        let pair = words.windows(2).take(2).find(|pair| is_kind(pair[0]));
        let [kind, key] = pair.unwrap_or_default() else {
            return Err(wrong("the line has no type and key such as ssh-ed25519 AAAA…"));
        };
        let key = STANDARD.decode(key).permanent("read an ssh host key: it is not valid Base64")?;
        let length = u32::try_from(kind.len()).unwrap_or(u32::MAX).to_be_bytes();
        if !key.starts_with(&[&length, kind.as_bytes()].concat()) {
            return Err(wrong("the key is not of the type that stands before it"));
        }
        Ok(Self(key))
    }
}

/// The certificates of a PEM text in DER.
pub(crate) fn parse_certificates(pem: &str) -> Result<Vec<Vec<u8>>> {
    const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
    const END: &str = "-----END CERTIFICATE-----";
    let mut certificates = Vec::new();
    for block in pem.split(BEGIN).skip(1) {
        let base64: String = block.split(END).next().unwrap_or("").split_whitespace().collect();
        certificates.push(STANDARD.decode(base64).permanent("read a certificate: it is not valid Base64")?);
    }
    if certificates.is_empty() {
        return Err(Error::permanent("read a certificate: the text has no BEGIN CERTIFICATE line"));
    }
    Ok(certificates)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_keys_are_read_with_and_without_a_host() {
        let key = "AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl";
        let plain = HostKey::parse(&format!("ssh-ed25519 {key}")).unwrap();
        assert_eq!(HostKey::parse(&format!("github.com,1.2.3.4 ssh-ed25519 {key} comment")).unwrap(), plain);
        assert_eq!(plain.0.len(), 51);
        for wrong in [
            "",
            "github.com",
            "ssh-ed25519",
            "ssh-ed25519 %%%",
            &format!("@revoked github.com ssh-ed25519 {key}"),
            &format!("@cert-authority *.example.org ssh-ed25519 {key}"),
            &format!("ssh-rsa {key}"),
            &format!("a b ssh-ed25519 {key}"),
            "ssh-ed25519 AAAA",
        ] {
            assert!(HostKey::parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn debug_shows_no_secret() {
        let secret = || Secret::new("hunter2hunter2");
        let key = Credentials::ssh_key("git", secret(), Some(secret()), []);
        let shown = format!("{:?} {key:?}", Credentials::token("user", secret()));
        assert_eq!(shown, "Token(…) SshKey(…)");
    }
}
