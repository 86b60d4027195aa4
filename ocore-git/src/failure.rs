//! What an error of libgit2 means.

use std::{fmt, io, path::Path};

use git2::{ErrorClass, ErrorCode, Repository, RepositoryOpenFlags};
use ocore_core::port::{Classify, Error, ErrorKind, Result};

use crate::{location::Location, policy::LocalPaths};

/// An error, and whether the mirror itself may be what is wrong.
#[derive(Debug)]
pub(crate) enum Fault {
    /// What the mirror holds is wrong: making it anew may help.
    Damage { error: git2::Error, doing: String },
    /// Another mirror would not change it.
    Other(Error),
}

impl Fault {
    /// An error of libgit2 in the mirror. Trouble of the machine, such as too many open files, is no damage.
    pub(crate) fn of_mirror(error: git2::Error, doing: impl fmt::Display) -> Self {
        let doing = doing.to_string();
        let of_machine =
            matches!(error.class(), ErrorClass::Os | ErrorClass::Filesystem | ErrorClass::NoMemory);
        if is_disk_full(error.message()) {
            return Self::Other(full_disk(error, &doing));
        }
        if of_machine && error.code() != ErrorCode::NotFound {
            return Self::Other(transient(error, doing));
        }
        Self::Damage { error, doing }
    }

    pub(crate) const fn is_damage(&self) -> bool {
        matches!(self, Self::Damage { .. })
    }

    /// The error, where the mirror can be made anew.
    pub(crate) fn of_a_mirror(self) -> Error {
        match self {
            Self::Damage { error, doing } => transient(error, format!("{doing}: the mirror is damaged")),
            Self::Other(error) => error,
        }
    }

    /// The error, where the mirror was made anew just now.
    pub(crate) fn of_the_repository(self) -> Error {
        match self {
            Self::Damage { error, doing } => permanent(
                error,
                format!("{doing}: the repository itself is broken, for a new clone is no better"),
            ),
            Self::Other(error) => error,
        }
    }
}

impl From<Error> for Fault {
    /// An error that is classified already, and that another mirror would not change.
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}

fn transient(error: git2::Error, doing: impl Into<String>) -> Error {
    classified(error, ErrorKind::Transient, doing)
}

fn permanent(error: git2::Error, doing: impl Into<String>) -> Error {
    classified(error, ErrorKind::Permanent, doing)
}

fn classified(
    error: impl std::error::Error + Send + Sync + 'static,
    kind: ErrorKind,
    doing: impl Into<String>,
) -> Error {
    let (result, doing) = (Err::<std::convert::Infallible, _>(error), doing.into());
    let result: Result<_> =
        if kind == ErrorKind::Transient { result.transient(doing) } else { result.permanent(doing) };
    match result {
        Err(error) => error,
        Ok(never) => match never {},
    }
}

/// Why a directory of this machine is no repository to fetch from, if it is none.
pub(crate) fn check_local(path: &Path, policy: &LocalPaths) -> Result<()> {
    let doing = |reason: &str| format!("fetch {}: {reason}", path.display());
    if !path.is_dir() {
        return Err(Error::permanent(doing("no such directory")));
    }
    let opened = Repository::open_ext(path, RepositoryOpenFlags::NO_SEARCH, &[] as &[&Path]);
    let repository = opened.map_err(|error| match error.code() {
        ErrorCode::Owner => permanent(error, doing("the directory belongs to another user")),
        ErrorCode::NotFound => permanent(error, doing("the directory is not a git repository")),
        _ => permanent(error, doing("the repository cannot be opened")),
    })?;
    // A repository may keep its parts elsewhere, and borrow another's objects.
    let objects = repository.commondir().join("objects");
    let parts = [repository.path(), repository.commondir(), &objects, &objects.join("pack")];
    if parts.into_iter().any(|part| part.exists() && !policy.allows(part)) {
        return Err(Error::permanent(doing("a part of it is not below a directory that the policy allows")));
    }
    if matches!(policy, LocalPaths::Below(_)) && objects.join("info/alternates").exists() {
        return Err(Error::permanent(doing(
            "it borrows objects of another repository, which the policy does not allow",
        )));
    }
    Ok(())
}

/// Classifies an error of a fetch. `asked` is whether credentials were shown to the host.
pub(crate) fn of_fetch(error: git2::Error, location: &Location, asked: bool) -> Fault {
    let (error, doing) = (on_one_line(error), format!("fetch {location}"));
    if is_disk_full(error.message()) {
        return full_disk(error, &doing).into();
    }
    if error.code() == ErrorCode::Certificate {
        return permanent(error, format!("{doing}: the host's certificate is not valid")).into();
    }
    if error.code() == ErrorCode::Auth && asked {
        return permanent(error, format!("{doing}: not authorised")).into();
    }
    match error.class() {
        ErrorClass::Http if error.message().contains("content-type") => {
            permanent(error, format!("{doing}: not a git repository")).into()
        }
        ErrorClass::Http => transient(error, doing).into(),
        ErrorClass::Net | ErrorClass::Ssl | ErrorClass::Ssh => of_connection(error, &doing).into(),
        ErrorClass::Odb
        | ErrorClass::Object
        | ErrorClass::Tree
        | ErrorClass::Tag
        | ErrorClass::Zlib
        | ErrorClass::Indexer
        | ErrorClass::Reference => Fault::of_mirror(error, doing),
        _ => transient(error, doing).into(),
    }
}

/// The error without what a host may put into it: line ends, other control characters, and more than anybody reads.
fn on_one_line(error: git2::Error) -> git2::Error {
    let words = error.message().split(|c: char| c.is_control() || c.is_whitespace());
    let line = words.filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ");
    git2::Error::new(error.code(), error.class(), line.chars().take(500).collect::<String>())
}

/// Whether the error may be of the connection to the gate, and not of this side.
pub(crate) fn is_of_connection(error: &git2::Error) -> bool {
    match error.class() {
        ErrorClass::None | ErrorClass::Net | ErrorClass::Ssl | ErrorClass::Ssh | ErrorClass::Http => true,
        ErrorClass::Os => error.message().contains("failed to connect"),
        _ => false,
    }
}

fn of_connection(error: git2::Error, doing: &str) -> Error {
    let message = error.message().to_ascii_lowercase();
    let says = |words: &[&str]| words.iter().any(|word| message.contains(word));
    if says(&["extract public key", "private key", "passphrase", "unable to open key"]) {
        return permanent(error, format!("{doing}: the private key cannot be used"));
    }
    let missing = [
        "not found",
        "could not be found",
        "does not exist",
        "cannot find repository",
        "no such repository",
        "not appear to be a git repository",
    ];
    if says(&missing) {
        return permanent(error, format!("{doing}: no such repository, or no right to see it"));
    }
    if says(&["access denied", "permission denied", "denied to", "authentication failed"]) {
        return permanent(error, format!("{doing}: not authorised"));
    }
    transient(error, format!("{doing}: the connection failed"))
}

fn is_disk_full(message: &str) -> bool {
    message.contains("No space left on device") || message.contains("Disk quota exceeded")
}

fn full_disk(error: impl std::error::Error + Send + Sync + 'static, doing: &str) -> Error {
    let text = format!("{doing}: the disk is full; free space below the Source's root directory");
    classified(error, ErrorKind::Transient, text)
}

/// Classifies an error of a file operation.
pub(crate) fn of_file(error: io::Error, doing: impl fmt::Display) -> Error {
    let doing = doing.to_string();
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => full_disk(error, &doing),
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            let text = format!("{doing}: the Source's root directory cannot be written");
            classified(error, ErrorKind::Permanent, text)
        }
        _ => classified(error, ErrorKind::Transient, doing),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(class: ErrorClass, code: ErrorCode, message: &str, kind: ErrorKind, expected: &str) {
        let location = Location::Local("/srv/nowhere".into());
        let fault = of_fetch(git2::Error::new(code, class, message), &location, true);
        let error = fault.of_a_mirror();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(expected), "{error}");
    }

    #[test]
    fn each_answer_has_its_own_words() {
        use ErrorKind::{Permanent, Transient};
        let generic = ErrorCode::GenericError;
        check(
            ErrorClass::Http,
            generic,
            "invalid content-type: 'text/html'",
            Permanent,
            "not a git repository",
        );
        check(ErrorClass::Net, generic, "early EOF", Transient, "the connection failed");
        check(ErrorClass::Ssh, generic, "ERROR: Repository not found.", Permanent, "no such repository");
        check(ErrorClass::Ssh, ErrorCode::Auth, "failed", Permanent, "not authorised");
        check(ErrorClass::Ssl, ErrorCode::Certificate, "invalid", Permanent, "certificate is not valid");
        let full = "failed to write: No space left on device";
        check(ErrorClass::Os, generic, full, Transient, "the disk is full; free space");
    }

    #[test]
    fn only_what_the_mirror_holds_is_damage() {
        let damage = |class, code, message: &str| {
            let error = || git2::Error::new(code, class, message);
            let location = Location::Local("/srv/nowhere".into());
            let found = Fault::of_mirror(error(), "read").is_damage();
            assert_eq!(of_fetch(error(), &location, false).is_damage(), found, "{message}");
            found
        };
        let (generic, missing) = (ErrorCode::GenericError, ErrorCode::NotFound);
        assert!(damage(ErrorClass::Odb, missing, "object not found"));
        assert!(damage(ErrorClass::Zlib, generic, "error inflating zlib stream"));
        assert!(damage(ErrorClass::Reference, generic, "corrupted loose reference file"));
        assert!(damage(ErrorClass::Indexer, generic, "packfile is invalid"));
        assert!(!damage(ErrorClass::Os, generic, "failed to open: Too many open files"));
        assert!(!damage(ErrorClass::Os, generic, "failed to connect to 127.0.0.1: Connection refused"));
        assert!(!damage(ErrorClass::Filesystem, generic, "failed to create directory: Permission denied"));
        assert!(!damage(ErrorClass::Odb, generic, "failed to write: No space left on device"));
    }

    #[test]
    fn a_hosts_words_stay_on_one_line() {
        let text = format!("remote:\r\n\x1b[31mno\n\n  such\u{85}thing {}", "x".repeat(9000));
        let error = on_one_line(git2::Error::new(ErrorCode::GenericError, ErrorClass::Ssh, text));
        assert!(error.message().starts_with("remote: [31mno such thing xxx"), "{error}");
        assert_eq!(error.message().len(), 500);
    }

    #[test]
    fn a_full_disk_is_named_and_passes() {
        let error = of_file(io::Error::from(io::ErrorKind::StorageFull), "write a file");
        assert_eq!(error.kind(), ErrorKind::Transient);
        assert!(error.to_string().contains("the disk is full"), "{error}");
    }
}
