//! `pg_dump` and `pg_restore`: where they are, and whether they fit the server.

use std::{
    collections::BTreeSet,
    env, fs, iter,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use ocore_core::port::{Error, Result};

/// The two programs, of one release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tools {
    directory: PathBuf,
    /// As the programs say it: `15.18`.
    pub(super) dump_version: String,
    pub(super) restore_version: String,
    major: u32,
}

impl Tools {
    /// Those that fit a server best: of its own major version, or else of another one whose dumps can be restored there.
    pub(super) fn find(configured: Option<&Path>, server_version: u32) -> Result<Self> {
        let server = server_version / 10_000;
        let mut found = Vec::new();
        let mut look = |directory: PathBuf| {
            let tools = Self::look(&directory)?;
            found.push(tools.clone());
            (tools.major == server && tools.fit(server)).then_some(tools)
        };
        // The rest is looked at only where none is of the server's own version: a program on the path can be a slow script.
        let own = match configured {
            Some(directory) => look(directory.to_owned()),
            None => places(server).find_map(look),
        };
        let fitting = || found.iter().filter(|tools| tools.fit(server));
        let nearest = || fitting().min_by_key(|tools| tools.major.abs_diff(server)).cloned();
        if let Some(tools) = own.or_else(nearest) {
            return Ok(tools);
        }
        let found: BTreeSet<_> = found
            .iter()
            .map(|it| {
                format!(
                    "pg_dump {} and pg_restore {} in {}",
                    it.dump_version,
                    it.restore_version,
                    it.directory.display()
                )
            })
            .collect();
        let found =
            if found.is_empty() { "there is none".to_owned() } else { Vec::from_iter(found).join(", ") };
        Err(Error::permanent(format!(
            "no pg_dump and pg_restore fit the server of version {server}: {found}; install postgresql-client-{server}, \
             or say where they are"
        )))
    }

    fn look(directory: &Path) -> Option<Self> {
        let dump_version = version(&directory.join("pg_dump"))?;
        let restore_version = version(&directory.join("pg_restore"))?;
        let major = major(&dump_version)?;
        Some(Self { directory: directory.to_owned(), dump_version, restore_version, major })
    }

    /// An older `pg_dump` refuses the server; the archive of a newer one is unreadable for an older `pg_restore`; and from
    /// 17 on `pg_restore` uses a setting that servers before 17 do not know.
    fn fit(&self, server: u32) -> bool {
        let together = major(&self.restore_version).is_some_and(|restore| restore >= self.major);
        let restore = major(&self.restore_version).unwrap_or(0);
        self.major >= server && together && (restore < 17 || server >= 17)
    }

    pub(super) fn dump(&self) -> Command {
        Command::new(self.directory.join("pg_dump"))
    }

    pub(super) fn restore(&self) -> Command {
        Command::new(self.directory.join("pg_restore"))
    }
}

/// Debian's and Red Hat's place of the server's version, where `pg_config` says, and the path; looked up one after another.
fn places(server: u32) -> impl Iterator<Item = PathBuf> {
    let layouts = [format!("/usr/lib/postgresql/{server}/bin"), format!("/usr/pgsql-{server}/bin")];
    let layouts = layouts.into_iter().map(PathBuf::from);
    layouts.chain(iter::once_with(configured).flatten()).chain(iter::once_with(others).flatten())
}

fn configured() -> Option<PathBuf> {
    let output = Command::new("pg_config").arg("--bindir").stdin(Stdio::null()).output().ok()?;
    Some(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
}

/// The path, and Debian's places of other versions.
fn others() -> Vec<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut others: Vec<_> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path().join("bin")))
        .collect();
    others.sort();
    env::split_paths(&path).chain(others).collect()
}

/// `pg_dump (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)` says 15.18.
fn version(program: &Path) -> Option<String> {
    let output = Command::new(program).arg("--version").stdin(Stdio::null()).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let version = text.split_once("(PostgreSQL) ")?.1.split_whitespace().next()?;
    output.status.success().then(|| version.to_owned())
}

fn major(version: &str) -> Option<u32> {
    let digits: String = version.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn pretend(directory: &Path, dump: &str, restore: &str) {
        for (program, version) in [("pg_dump", dump), ("pg_restore", restore)] {
            let path = directory.join(program);
            fs::write(&path, format!("#!/bin/sh\necho '{program} (PostgreSQL) {version}'\n")).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
    }

    #[test]
    fn tools_whose_dumps_could_not_be_restored_are_refused() {
        let check = |dump: &str, restore: &str, server: u32, fits: bool| {
            let directory = tempfile::tempdir().unwrap();
            pretend(directory.path(), dump, restore);
            let found = Tools::find(Some(directory.path()), server * 10_000 + 3);
            assert_eq!(found.is_ok(), fits, "{dump} {restore} {server}: {found:?}");
            if let Err(error) = found {
                let text = error.to_string();
                assert!(
                    text.contains(&format!("postgresql-client-{server}")) && text.contains(dump),
                    "{text}"
                );
            }
        };
        check("15.18", "15.18", 15, true);
        check("15.18 (Debian 15.18-0+deb12u1)", "15.18", 15, true);
        check("14.2", "14.2", 15, false);
        check("16.1", "16.1", 15, true);
        check("17.0", "17.0", 15, false);
        check("18.1", "18.1", 17, true);
        check("18.1", "15.18", 15, false);
        check("15.18", "18.1", 15, false);
        check("19beta1", "19beta1", 18, true);
    }

    #[test]
    fn missing_tools_are_an_error_that_says_what_to_install() {
        let directory = tempfile::tempdir().unwrap();
        let error = Tools::find(Some(directory.path()), 150_018).unwrap_err().to_string();
        assert!(error.contains("there is none; install postgresql-client-15"), "{error}");
    }
}
