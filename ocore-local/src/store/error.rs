//! What SQLite's errors mean, in words.

use std::borrow::Cow;

use ocore_core::port::{StoreError, StoreErrorKind};

/// Whether the call may have been written although it failed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Doubt {
    None,
    Committing,
}

/// SQLite's primary result codes that people can do something about.
const fn advice(code: i32) -> Option<&'static str> {
    Some(match code {
        5 | 6 => "another process holds the file for too long; see which one, and end it if it hangs",
        8 => "the file or its directory cannot be written; give this user the right to write there",
        10 => "the disk failed to read or write; see whether it is full, and look into the system's log",
        11 => {
            "the file is damaged; restore it from a backup, or move it away to begin anew; in both cases move away \
             what is beside it under its name with -wal and -shm"
        }
        13 => "the disk is full; free some space, then try again",
        14 => {
            "the file cannot be opened; its directory must exist, and this user must be able to write there"
        }
        26 => "the file is not a database; choose another path, or move the file away",
        _ => return None,
    })
}

/// The primary result code.
fn code(error: &sqlx::Error) -> Option<i32> {
    let code: i32 = error.as_database_error()?.code()?.parse().ok()?;
    Some(code & 0xff)
}

pub(super) fn describe(doing: impl Into<Cow<'static, str>>, error: sqlx::Error, doubt: Doubt) -> StoreError {
    let doing = doing.into();
    let code = code(&error);
    let unreadable = matches!(
        error,
        sqlx::Error::Decode(_) | sqlx::Error::ColumnDecode { .. } | sqlx::Error::ColumnNotFound(_)
    );
    let kind = match code {
        _ if doubt == Doubt::Committing => StoreErrorKind::Unknown,
        _ if unreadable => StoreErrorKind::Broken,
        Some(11 | 19 | 26) => StoreErrorKind::Broken,
        _ => StoreErrorKind::NotSent,
    };
    let what = match code.and_then(advice) {
        Some(advice) => format!("{doing}: {advice}").into(),
        None => doing,
    };
    StoreError::new(kind, what).because(error)
}

/// A stored value that cannot be read.
pub(super) fn unreadable(what: &'static str, cause: impl std::fmt::Display) -> sqlx::Error {
    sqlx::Error::Decode(format!("{what} cannot be read: {cause}").into())
}
