//! What PostgreSQL's errors mean, in words.

use std::borrow::Cow;

use ocore_core::port::{StoreError, StoreErrorKind};
use sqlx::Error;

/// Whether the call may have been written although it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Doubt {
    /// It was not sent, or is certainly rolled back.
    None,
    /// It was sent, and commits by itself or was asked to.
    Sent,
}

/// SQLSTATEs that people can do something about. Source: PostgreSQL's documentation, appendix A.
fn advice(code: &str) -> Option<&'static str> {
    Some(match code {
        "28P01" | "28000" => {
            "the server refuses the user or the password; correct them in the store's settings"
        }
        "3D000" => "there is no such database; create it, or correct the name in the store's settings",
        "42501" => {
            "the store's role lacks a right; grant it the schema, or let `migrate` be run by its owner"
        }
        "42P01" | "42883" | "3F000" | "42703" | "42704" => {
            "the schema is not there or not up to date; run `PostgresStore::migrate`, or the host's own tool"
        }
        "53300" => {
            "the server has no connection left; raise its max_connections, or lower those of its clients"
        }
        "53100" => "the server's disk is full; free some space there",
        "53200" => "the server is out of memory",
        "57P01" | "57P02" | "57P03" => "the server stops or starts; it is tried again",
        "25006" => "the server is a replica or read-only; connect to the primary",
        "55000" | "57014" => "the server has cancelled the statement",
        _ => return None,
    })
}

fn code(error: &Error) -> Option<String> {
    error.as_database_error().and_then(|error| error.code()).map(Cow::into_owned)
}

/// Whether the transaction was rolled back for others' sake: made again, it may work.
pub(super) fn is_conflict(error: &Error) -> bool {
    matches!(code(error).as_deref(), Some("40001" | "40P01"))
}

/// Whether the connection is to be trusted after this error: the server has answered, and goes on.
pub(super) fn leaves_connection(error: &Error) -> bool {
    match error {
        Error::Database(error) => {
            !error.code().is_some_and(|code| code.starts_with("57P") || code.starts_with("08"))
        }
        Error::RowNotFound | Error::ColumnNotFound(_) | Error::ColumnDecode { .. } | Error::Decode(_) => true,
        _ => false,
    }
}

/// Whether a commit that ended in this way may have been written all the same: the server was stopped, the connection was
/// lost (a pooler says so in a message, too), or it is not known.
fn leaves_doubt(code: &str) -> bool {
    code.starts_with("08") || matches!(code, "40003" | "57P01" | "57P02")
}

pub(super) fn describe(doing: impl Into<Cow<'static, str>>, error: Error, doubt: Doubt) -> StoreError {
    let doing = doing.into();
    let code = code(&error);
    let kind = match (&error, code.as_deref()) {
        (Error::Decode(_) | Error::ColumnDecode { .. } | Error::ColumnNotFound(_), _) => {
            StoreErrorKind::Broken
        }
        (_, Some(code)) if doubt == Doubt::Sent && leaves_doubt(code) => StoreErrorKind::Unknown,
        // Rolled back: for want of a resource, by a conflict, by a cancel, on a server that only reads.
        (_, Some(code))
            if ["08", "28", "3D", "40", "53", "55", "57", "25"].iter().any(|it| code.starts_with(it)) =>
        {
            StoreErrorKind::NotSent
        }
        (_, Some(_)) => StoreErrorKind::Broken,
        (Error::PoolTimedOut | Error::PoolClosed, None) => StoreErrorKind::NotSent,
        (_, None) if doubt == Doubt::Sent => StoreErrorKind::Unknown,
        (_, None) => StoreErrorKind::NotSent,
    };
    let what = match code.as_deref().and_then(advice) {
        Some(advice) => format!("{doing}: {advice}").into(),
        None if matches!(error, Error::PoolTimedOut) => {
            format!("{doing}: no connection became free in time: the server does not answer, or the store's are all in use")
                .into()
        }
        None => doing,
    };
    StoreError::new(kind, what).because(error)
}

/// A stored value that cannot be read.
pub(super) fn unreadable(what: &'static str, cause: impl std::fmt::Display) -> Error {
    Error::Decode(format!("{what} cannot be read: {cause}").into())
}

#[cfg(test)]
mod tests {
    use super::leaves_doubt;

    #[test]
    fn what_a_pooler_says_of_a_lost_server_leaves_doubt_and_a_conflict_does_not() {
        for code in ["08006", "08P01", "40003", "57P01"] {
            assert!(leaves_doubt(code), "{code}");
        }
        for code in ["40001", "40P01", "53300", "57014", "57P03", "25006"] {
            assert!(!leaves_doubt(code), "{code}");
        }
    }
}
