//! A directory of releases or snapshots: each is named after its deployment, made beside, and renamed into place.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

use ocore_core::{
    id::{DeploymentId, Fence},
    port::{Leftovers, Result},
};

use crate::{
    blocking::Cancel,
    durable::{self, At},
    process::Process,
};

/// A directory of things that are there complete or not at all. They are named `DEPLOYMENT-…`; what is being made or
/// removed is named after that and the call that does it, `DEPLOYMENT-….CALL.partial`.
#[derive(Debug, Clone)]
pub(crate) struct Shelf(PathBuf);

const PARTIAL: &str = ".partial";

impl Shelf {
    pub(crate) const fn new(directory: PathBuf) -> Self {
        Self(directory)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Where something of this name is.
    pub(crate) fn place(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// A place beside that only this call uses.
    pub(crate) fn beside(&self, name: &str, call: &str) -> PathBuf {
        let mut beside = OsString::from(name);
        beside.push(format!(".{call}{PARTIAL}"));
        self.0.join(beside)
    }

    /// Removes something, so that it never looks whole while that lasts. Succeeds if it is gone.
    pub(crate) fn remove(&self, name: &str) -> Result<()> {
        let (path, renamed) = (self.place(name), self.beside(name, &durable::unique()));
        durable::remove_renamed(&path, &renamed).at("remove", &path)
    }

    /// Removes what earlier calls for names that begin with `stem`, and processes that are gone, left unfinished.
    pub(crate) fn remove_unfinished(&self, stem: &str, fence: Fence, call: &str) -> Result<()> {
        for name in self.names()? {
            let Some(left) = name.strip_suffix(PARTIAL) else { continue };
            let earlier = |left| is_of_earlier_call(left, fence, call);
            if left.strip_prefix(stem).is_some_and(earlier) || is_of_dead_process(left) {
                self.remove_partial(&name)?;
            }
        }
        Ok(())
    }

    /// Removes what is left of deployments that are over, finished or not.
    pub(crate) fn sweep(&self, leftovers: &Leftovers, cancel: &Cancel) -> Result<()> {
        // Until nothing is found: what was unfinished may have been renamed into place between two looks.
        loop {
            let is_left =
                |name: &String| made_for(name).is_some_and(|deployment| leftovers.include(deployment, name));
            let found: Vec<_> = self.names()?.into_iter().filter(is_left).collect();
            if found.is_empty() {
                return Ok(());
            }
            for name in found {
                cancel.check()?;
                if name.ends_with(PARTIAL) { self.remove_partial(&name)? } else { self.remove(&name)? }
            }
        }
    }

    /// Renamed within its name's own prefix: so it is found again if this is interrupted.
    fn remove_partial(&self, name: &str) -> Result<()> {
        let whole = name.split('.').next().unwrap_or(name);
        let (path, renamed) = (self.place(name), self.beside(whole, &durable::unique()));
        durable::remove_renamed(&path, &renamed).at("remove", &path)
    }

    fn names(&self) -> Result<Vec<String>> {
        if !self.0.exists() {
            return Ok(Vec::new());
        }
        let entries = fs::read_dir(&self.0).at("list", &self.0)?;
        let mut names = Vec::new();
        for entry in entries {
            // Other names are not of our making.
            names.extend(entry.at("list", &self.0)?.file_name().into_string());
        }
        Ok(names)
    }
}

/// The deployment that something was made for, by its name.
fn made_for(name: &str) -> Option<DeploymentId> {
    let (deployment, rest) = name.split_at_checked(36)?;
    rest.strip_prefix('-')?;
    deployment.parse().ok()
}

/// Whether something that a call left behind, named `FENCE.….CALL`, was made by a call before this one: by one with a
/// lower fence, or with this fence, which only one worker has, and begun earlier. A call that was dropped and works on
/// so never removes what the next one makes.
fn is_of_earlier_call(left: &str, fence: Fence, call: &str) -> bool {
    let Some((left_fence, left_call)) = left.split('.').next().zip(left.rsplit('.').next()) else {
        return false;
    };
    let number = |call: &str| {
        call.rsplit_once('-')
            .and_then(|(process, number)| Some((process.to_owned(), number.parse::<u64>().ok()?)))
    };
    match left_fence.parse::<u64>().map(Fence::new) {
        Ok(left_fence) if left_fence == fence => match (number(left_call), number(call)) {
            (Some((theirs, left)), Some((ours, own))) if theirs == ours => left < own,
            _ => true,
        },
        Ok(left_fence) => left_fence < fence,
        Err(_) => false,
    }
}

/// Whether something that a call left behind, named `….CALL`, was made by a process that is gone: nobody goes on with it.
fn is_of_dead_process(left: &str) -> bool {
    let call = left.rsplit_once('.').and_then(|(_, call)| call.split_once('-'));
    let process = call.and_then(|(process, number)| number.parse::<u64>().ok().and(process.parse().ok()));
    process.is_some_and(|pid: i32| Process::read(pid).is_none_or(|process| process.ended))
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, process};

    use super::*;

    #[test]
    fn a_sweep_removes_what_is_left_of_those_that_are_over_only() {
        let root = tempfile::tempdir().unwrap();
        let shelf = Shelf::new(root.path().join("releases"));
        let [over, open] = [1, 2].map(DeploymentId::from_u128);
        let leftovers = Leftovers::new(BTreeSet::from([over]), BTreeSet::from([format!("{over}-2")]));
        shelf.sweep(&leftovers, &Cancel::never()).unwrap();
        let names = [
            format!("{over}-1"),
            format!("{over}-2"),
            format!("{over}-2.{}.partial", durable::unique()),
            format!("{open}-3"),
            format!("{open}-3.{}.partial", durable::unique()),
            "notes".to_owned(),
        ];
        for name in &names {
            fs::create_dir_all(shelf.place(name).join("tree")).unwrap();
        }
        shelf.sweep(&leftovers, &Cancel::never()).unwrap();
        let left: BTreeSet<_> = shelf.names().unwrap().into_iter().collect();
        assert_eq!(left, [1, 3, 4, 5].map(|kept: usize| names[kept].clone()).into());
    }

    #[test]
    fn a_call_that_was_dropped_leaves_the_next_one_alone() {
        let check = |left: &str, expected| {
            assert_eq!(is_of_earlier_call(left, Fence::new(7), "100-5"), expected, "{left}");
        };
        check("6.100-9", true);
        check("8.100-1", false);
        check("7.100-4", true);
        check("7.1.100-4", true);
        check("7.100-5", false);
        check("7.100-6", false);
        check("7.99-6", true);
        check("notes", false);
    }

    #[test]
    fn what_a_dead_process_left_is_known_by_its_number() {
        let mut child = process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        assert!(is_of_dead_process(&format!("id-7.{}-0", child.id())));
        assert!(!is_of_dead_process(&format!("id-7.{}", durable::unique())));
        assert!(!is_of_dead_process("notes"));
    }
}
