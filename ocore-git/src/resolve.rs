//! From a branch, a tag or an id to exactly one commit.

use chrono::{DateTime, Utc};
use git2::{ErrorCode, ObjectType, Oid, Repository};
use ocore_core::{
    port::{Error, Result},
    release::Commit,
    request::Revision,
};

use crate::{failure::Fault, location::Location, stop::Stop};

/// The commit that the revision names in the mirror.
pub(crate) fn find(
    repository: &Repository,
    revision: &Revision,
    location: &Location,
    stop: &Stop,
) -> Result<Commit, Fault> {
    let missing = |hint: &str| -> Fault {
        Error::permanent(format!("find {revision} in {location}: no such {}{hint}", kind(revision))).into()
    };
    let id = match revision {
        Revision::Commit(sha) => match find_commit(repository, sha, stop)? {
            Some(id) => id,
            None => {
                check_heads(repository, stop)?;
                return Err(missing("; no branch or tag leads to it, or it was replaced by a forced push"));
            }
        },
        Revision::Branch(name) => find_reference(repository, "heads", name)?.ok_or_else(|| missing(""))?,
        Revision::Tag(name) => find_reference(repository, "tags", name)?.ok_or_else(|| missing(""))?,
        _ => {
            return Err(
                Error::permanent(format!("find {revision}: this kind of revision is not known")).into()
            );
        }
    };
    describe(repository, id)
}

/// Whether this text is a whole id.
pub(crate) fn is_full(sha: &str) -> bool {
    matches!(sha.len(), 40 | 64)
}

/// The commit with this full id, if the mirror has it and its tree.
pub(crate) fn present(repository: &Repository, sha: &str) -> Option<Commit> {
    let id = Oid::from_str(sha).ok()?;
    let tree = repository.find_commit(id).ok()?.tree_id();
    repository.odb().ok()?.exists(tree).then(|| describe(repository, id).ok())?
}

const fn kind(revision: &Revision) -> &'static str {
    match revision {
        Revision::Branch(_) => "branch",
        Revision::Tag(_) => "tag",
        _ => "commit",
    }
}

fn find_reference(repository: &Repository, space: &str, name: &str) -> Result<Option<Oid>, Fault> {
    let reference = match repository.find_reference(&format!("refs/{space}/{name}")) {
        Ok(reference) => reference,
        Err(error) if matches!(error.code(), ErrorCode::NotFound | ErrorCode::InvalidSpec) => {
            return Ok(None);
        }
        Err(error) => return Err(Fault::of_mirror(error, "read a reference")),
    };
    let object =
        reference.peel(ObjectType::Any).map_err(|error| Fault::of_mirror(error, "read a reference"))?;
    match object.peel_to_commit() {
        Ok(commit) => Ok(Some(commit.id())),
        Err(error) if matches!(error.code(), ErrorCode::Peel | ErrorCode::InvalidSpec) => {
            Err(Error::permanent(format!("find {name}: it leads to a file or directory, not to a commit"))
                .into())
        }
        Err(error) => Err(Fault::of_mirror(error, "read a tag")),
    }
}

fn find_commit(repository: &Repository, sha: &str, stop: &Stop) -> Result<Option<Oid>, Fault> {
    let damage = |error| Fault::of_mirror(error, "look for an object");
    if sha.len() > 40 {
        let text = format!(
            "find commit {sha}: repositories with SHA-256 ids are not supported; an id has 40 digits"
        );
        return Err(Error::permanent(text).into());
    }
    let Ok(prefix) = Oid::from_str(sha) else { return Ok(None) };
    let objects = repository.odb().map_err(damage)?;
    match objects.exists_prefix(prefix, sha.len()) {
        Ok(id) => is_commit(repository, id).map(|is_commit| is_commit.then_some(id)),
        Err(error) if error.code() == ErrorCode::NotFound => Ok(None),
        Err(error) if error.code() == ErrorCode::Ambiguous => only_commit(repository, sha, stop),
        Err(error) => Err(damage(error)),
    }
}

/// What the branches and tags lead to is here; otherwise the mirror is damaged, and says nothing about a commit.
fn check_heads(repository: &Repository, stop: &Stop) -> Result<(), Fault> {
    let damage = |error| Fault::of_mirror(error, "look for what the branches lead to");
    let objects = repository.odb().map_err(damage)?;
    for reference in repository.references().map_err(damage)? {
        stop.check()?;
        if let Some(id) = reference.map_err(damage)?.target() {
            objects.read_header(id).map_err(damage)?;
        }
    }
    Ok(())
}

fn is_commit(repository: &Repository, id: Oid) -> Result<bool, Fault> {
    let damage = |error| Fault::of_mirror(error, "look for an object");
    let (_, kind) = repository.odb().and_then(|objects| objects.read_header(id)).map_err(damage)?;
    Ok(kind == ObjectType::Commit)
}

/// Of several objects whose ids begin so, the only commit.
fn only_commit(repository: &Repository, sha: &str, stop: &Stop) -> Result<Option<Oid>, Fault> {
    let damage = |error| Fault::of_mirror(error, "look through the objects");
    let mut found = Vec::new();
    let sha_lower = sha.to_ascii_lowercase();
    let objects = repository.odb().map_err(damage)?;
    let walked = objects.foreach(|id| {
        if id.to_string().starts_with(&sha_lower) && !found.contains(id) {
            found.push(*id);
        }
        stop.check().is_ok()
    });
    stop.check()?;
    walked.map_err(damage)?;
    let mut commits = Vec::new();
    for id in found {
        if is_commit(repository, id)? {
            commits.push(id);
        }
    }
    match commits.as_slice() {
        [] => Ok(None),
        [id] => Ok(Some(*id)),
        several => {
            let list: Vec<_> = several.iter().take(4).map(ToString::to_string).collect();
            let text =
                format!("find commit {sha}: it fits several commits: {}; give more digits", list.join(", "));
            Err(Error::permanent(text).into())
        }
    }
}

fn describe(repository: &Repository, id: Oid) -> Result<Commit, Fault> {
    let commit = repository.find_commit(id).map_err(|error| Fault::of_mirror(error, "read the commit"))?;
    let time = DateTime::<Utc>::from_timestamp(commit.time().seconds(), 0).unwrap_or_default();
    let encoding = commit.message_encoding().ok().flatten().unwrap_or_default().to_ascii_lowercase();
    let message = decoded(commit.message_bytes(), &encoding);
    let author = decoded(commit.author().name_bytes(), &encoding);
    Ok(Commit::new(&id.to_string(), &message, &author, time))
}

/// The text of a commit that is not in UTF-8: in Latin-1 if it says so, otherwise as much of it as can be read.
fn decoded(text: &[u8], encoding: &str) -> String {
    let latin = matches!(
        encoding,
        "iso-8859-1" | "iso8859-1" | "iso-8859-15" | "latin1" | "latin-1" | "windows-1252"
    );
    match std::str::from_utf8(text) {
        Err(_) if latin => text.iter().copied().map(char::from).collect(),
        _ => String::from_utf8_lossy(text).into_owned(),
    }
}
