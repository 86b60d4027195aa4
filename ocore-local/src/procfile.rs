//! The `Procfile`: which commands a release has.

mod command;

use std::collections::BTreeMap;

pub(crate) use self::command::{Command, Unexpanded};

/// The longest `Procfile`, in bytes.
pub(crate) const LENGTH_MAX: usize = 64 * 1024;

/// The process type that serves.
pub(crate) const WEB: &str = "web";
/// The process type of the Update step.
pub(crate) const RELEASE: &str = "release";

/// A parsed `Procfile`: lines `NAME: COMMAND`; empty lines and lines that begin with `#` do not count.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Procfile {
    /// The command line that serves.
    pub(crate) web: String,
    /// The command line that migrates the data.
    pub(crate) release: Option<String>,
    /// Other process types and their lines: they are not run.
    pub(crate) others: Vec<(usize, String)>,
}

/// What is wrong with a `Procfile`.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidProcfile {
    #[error("Procfile: not text in UTF-8: line {line} has a byte that does not belong there")]
    NotText { line: usize },
    #[error("Procfile: longer than {LENGTH_MAX} bytes")]
    TooLong,
    #[error("Procfile line {line}: expected `NAME: COMMAND`, for example `web: bin/server --port $PORT`")]
    NoColon { line: usize },
    #[error("Procfile line {line}: {name:?} is no name of a process type: use letters, digits, - and _")]
    Name { line: usize, name: String },
    #[error("Procfile line {line}: `{name}` was given already on line {first}")]
    Twice { line: usize, first: usize, name: String },
    #[error("Procfile line {line}: `{name}` has no command")]
    Empty { line: usize, name: String },
    #[error("Procfile line {line}: {reason}")]
    Command { line: usize, reason: command::InvalidCommand },
    #[error("Procfile: no `web:` in {lines} lines: add one, for example `web: bin/server --port $PORT`")]
    NoWeb { lines: usize },
}

impl Procfile {
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, InvalidProcfile> {
        if bytes.len() > LENGTH_MAX {
            return Err(InvalidProcfile::TooLong);
        }
        let text = std::str::from_utf8(bytes).map_err(|error| {
            let before = &bytes[..error.valid_up_to()];
            InvalidProcfile::NotText { line: 1 + before.iter().filter(|byte| **byte == b'\n').count() }
        })?;
        let mut commands: BTreeMap<&str, (usize, &str)> = BTreeMap::new();
        let mut lines = 0;
        for (index, text) in text.lines().enumerate() {
            lines = index + 1;
            if let Some((name, command)) = parse_line(lines, text)?
                && let Some((first, _)) = commands.insert(name, (lines, command))
            {
                return Err(InvalidProcfile::Twice { line: lines, first, name: name.to_owned() });
            }
        }
        let mut take = |name| {
            let Some((line, text)) = commands.remove(name) else { return Ok(None) };
            match Command::parse(text) {
                Ok(_) => Ok(Some(text.to_owned())),
                Err(reason) => Err(InvalidProcfile::Command { line, reason }),
            }
        };
        let web = take(WEB)?;
        let release = take(RELEASE)?;
        let mut others: Vec<_> =
            commands.into_iter().map(|(name, (line, _))| (line, name.to_owned())).collect();
        others.sort_unstable();
        Ok(Self { web: web.ok_or(InvalidProcfile::NoWeb { lines })?, release, others })
    }
}

fn parse_line(line: usize, text: &str) -> Result<Option<(&str, &str)>, InvalidProcfile> {
    let text = text.trim();
    if text.is_empty() || text.starts_with('#') {
        return Ok(None);
    }
    let (name, command) = text.split_once(':').ok_or(InvalidProcfile::NoColon { line })?;
    let (name, command) = (name.trim(), command.trim());
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    if name.is_empty() || !name.bytes().all(is_name) {
        return Err(InvalidProcfile::Name { line, name: name.chars().take(40).collect() });
    }
    if command.is_empty() {
        return Err(InvalidProcfile::Empty { line, name: name.to_owned() });
    }
    Ok(Some((name, command)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_procfile_says_what_to_run() {
        let text =
            "# commands\r\n\r\nrelease: bin/migrate \"$DATA_DIR\"\r\n web :  bin/server  \r\nworker: x\n";
        let expected = Procfile {
            web: "bin/server".into(),
            release: Some("bin/migrate \"$DATA_DIR\"".into()),
            others: vec![(5, "worker".into())],
        };
        assert_eq!(Procfile::parse(text.as_bytes()), Ok(expected));
    }

    #[track_caller]
    fn check_error(text: &[u8], expected: &str) {
        let error = Procfile::parse(text).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
    }

    #[test]
    fn an_error_names_the_line() {
        check_error(b"", "Procfile: no `web:` in 0 lines");
        check_error(b"release: x\n# web: x\n", "Procfile: no `web:` in 2 lines");
        check_error(b"web: a\nbin/server\n", "Procfile line 2: expected `NAME: COMMAND`");
        check_error(b"web: a\nweb: b\n", "Procfile line 2: `web` was given already on line 1");
        check_error(b"web:\n", "Procfile line 1: `web` has no command");
        check_error(b"we b: x\n", "Procfile line 1: \"we b\" is no name");
        check_error(b": x\n", "Procfile line 1: \"\" is no name");
        check_error(b"web: a\nx: \xff\n", "Procfile: not text in UTF-8: line 2");
        check_error(b"\n\nweb: a | b\n", "Procfile line 3: `|` is not supported");
        check_error(b"web: a\nrelease: b && c\n", "Procfile line 2: `&` is not supported");
        check_error(&vec![b'#'; LENGTH_MAX + 1], "Procfile: longer than");
    }
}
