//! Brings a mirror up to date, or makes it anew.

use git2::Repository;
use ocore_core::{
    port::{Error, Result},
    release::Commit,
    request::Revision,
};

use crate::{
    download::Download,
    failure::Fault,
    mirror::{Lock, Mirror, Open},
    resolve as revision,
    stop::Stop,
};

/// What a fetch brought.
pub(crate) struct Fetched {
    pub(crate) commit: Commit,
    /// Whether the mirror was made anew for it.
    pub(crate) anew: bool,
}

/// The commit, if the mirror has it: a whole id that is here needs no network.
pub(crate) fn find_here(mirror: &Mirror, wanted: &Revision) -> Option<Commit> {
    if mirror.is_marked() {
        return None;
    }
    present_already(&mirror.open().ok()??.repository, wanted)
}

fn present_already(repository: &Repository, wanted: &Revision) -> Option<Commit> {
    match wanted {
        Revision::Commit(sha) if revision::is_full(sha) => revision::present(repository, sha),
        _ => None,
    }
}

/// Brings the mirror up to date and resolves the revision in it. A mirror that is damaged is made anew, once.
///
/// It may hold commits that no branch leads to any more, and that a rollback needs: so the new one is made beside
/// it, and takes its place only when it is complete.
pub(crate) fn update(
    mirror: &Mirror,
    lock: &Lock,
    download: &Download,
    wanted: &Revision,
    stop: &Stop,
) -> Result<Fetched> {
    mirror.sweep_beside(lock);
    // Somebody else may have brought it while this call waited for the lock.
    if let Some(commit) = find_here(mirror, wanted) {
        return Ok(Fetched { commit, anew: false });
    }
    let reason = if mirror.is_marked() {
        "it was found damaged".to_owned()
    } else if mirror.packs() > download.limits.packs_max {
        "it has too many packs".to_owned()
    } else {
        match attempt(mirror, lock, download, wanted, stop) {
            Ok(commit) => return Ok(Fetched { commit, anew: false }),
            Err(Fault::Other(error)) => return Err(error),
            Err(fault) => fault.of_a_mirror().to_string(),
        }
    };
    stop.check()?;
    download.context.log(format!("the mirror is made anew: {reason}"));
    let other = mirror.beside(lock);
    if let Err(fault) = fetch(&other, lock, download, stop) {
        mirror.sweep_beside(lock);
        stop.check()?;
        // What is damaged need not be what is wanted: a rollback does not wait for the host.
        let here = mirror.open().ok().flatten().and_then(|open| present_already(&open.repository, wanted));
        return here.map(|commit| Fetched { commit, anew: false }).ok_or_else(|| fault.of_the_repository());
    }
    mirror.replace(&other, lock)?;
    let commit = find(mirror, download, wanted, stop).map_err(Fault::of_the_repository)?;
    Ok(Fetched { commit, anew: true })
}

fn attempt(
    mirror: &Mirror,
    lock: &Lock,
    download: &Download,
    wanted: &Revision,
    stop: &Stop,
) -> Result<Commit, Fault> {
    fetch(mirror, lock, download, stop)?;
    find(mirror, download, wanted, stop)
}

fn fetch(mirror: &Mirror, lock: &Lock, download: &Download, stop: &Stop) -> Result<(), Fault> {
    download.run(&mirror.open_or_make(lock)?, stop)
}

fn find(mirror: &Mirror, download: &Download, wanted: &Revision, stop: &Stop) -> Result<Commit, Fault> {
    let Open { repository, .. } =
        mirror.open()?.ok_or_else(|| Error::transient("open the mirror: it is gone again"))?;
    if matches!(repository.references().map(|mut all| all.next().is_none()), Ok(true)) {
        let text = format!("fetch {}: the repository is empty; push a commit first", download.location);
        return Err(Error::permanent(text).into());
    }
    revision::find(&repository, wanted, &download.location, stop)
}
