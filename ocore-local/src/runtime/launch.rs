//! What is started: program, arguments, environment.

use std::{
    collections::BTreeMap,
    env,
    fs::{self, File},
    io,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use ocore_core::{
    environment::Instance,
    port::{Classify, Context, Error, Result},
    release::Release,
    secret::Secret,
};
use rustix::{fs::Access, io::Errno};

use super::{
    occupants::{MARK, Place},
    record::Name,
};
use crate::{
    builder::{self, TREE},
    durable::At,
    procfile::{self, Unexpanded},
    tree::manifest,
};

/// A command that is ready to be started.
pub(super) struct Launch {
    program: PathBuf,
    arguments: Vec<String>,
    variables: BTreeMap<String, String>,
    secrets: BTreeMap<String, Secret>,
    directory: PathBuf,
    /// Tells whether something else would be started: the release, the command, its variables. Not the secrets: a
    /// short one could be guessed from it.
    pub(super) digest: String,
}

impl Launch {
    pub(super) fn new(
        root: &Path,
        context: &Context,
        instance: &Instance,
        release: &Release,
        name: Name,
        secrets: &BTreeMap<String, Secret>,
    ) -> Result<Self> {
        let release_directory = release_directory(root, release)?;
        let kind = name.kind.as_str();
        let line = release.image.settings.get(kind).ok_or_else(|| {
            Error::permanent(format!("the release says no command for `{kind}`: was another builder used?"))
        })?;
        let Resolved { program, words, variables } =
            Resolved::new(context, instance, &release_directory, kind, line, secrets)?;
        let text = format!("{}\0{words:?}\0{variables:?}", release.image.reference);
        let digest = blake3::hash(text.as_bytes()).to_hex().to_string();
        Ok(Self {
            program,
            arguments: words.into_iter().skip(1).collect(),
            variables,
            secrets: secrets.clone(),
            directory: release_directory,
            digest,
        })
    }

    /// The command: in a process group of its own, with nothing of the worker's environment.
    pub(super) fn command(&self, place: &Place, name: Name) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(&self.arguments)
            .env_clear()
            .envs(&self.variables)
            .envs(self.secrets.iter().map(|(name, secret)| (name, secret.expose())))
            .env("OCORE_DEPLOYMENT", name.deployment.to_string())
            .env(MARK, place.mark(name))
            .current_dir(&self.directory)
            .stdin(Stdio::null())
            .process_group(0);
        command
    }

    pub(super) fn started<T>(&self, started: io::Result<T>) -> Result<T> {
        classify(&self.program, started)
    }
}

/// A line of the `Procfile`, as it is started in an instance.
pub(super) struct Resolved {
    program: PathBuf,
    words: Vec<String>,
    variables: BTreeMap<String, String>,
}

impl Resolved {
    /// Puts the values in and finds the program; `tree` is the release's, or the checkout that it is made of.
    pub(super) fn new(
        context: &Context,
        instance: &Instance,
        tree: &Path,
        kind: &str,
        line: &str,
        secrets: &BTreeMap<String, Secret>,
    ) -> Result<Self> {
        let variables = variables(context, instance, tree)?;
        let command = procfile::Command::parse(line).permanent(format!("read the command for `{kind}`"))?;
        let words = command
            .expand(|name| value(name, instance, &variables, secrets))
            .permanent(format!("read the command for `{kind}`: {line}"))?;
        let first = words.first().ok_or_else(|| Error::permanent("an empty command"))?;
        let program = find(first, tree, &variables)?;
        Ok(Self { program, words, variables })
    }
}

/// What it means that a program could not be started: what a person must change is permanent. Too many processes, too
/// many open files, too little memory may pass.
pub(super) fn classify<T>(program: &Path, started: io::Result<T>) -> Result<T> {
    let doing = format!("start {}", program.display());
    let error = match started {
        Ok(child) => return Ok(child),
        Err(error) => error,
    };
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::NOENT | Errno::ACCESS | Errno::PERM) => Err(error)
            .permanent(format!("{doing}: is it executable, and is the interpreter in its first line there?")),
        Some(Errno::NOEXEC) => {
            Err(error).permanent(format!("{doing}: it is neither a program of this machine nor a script"))
        }
        Some(Errno::TOOBIG) => Err(error).permanent(format!("{doing}: its variables are too long")),
        _ => Err(error).transient(doing),
    }
}

fn release_directory(root: &Path, release: &Release) -> Result<PathBuf> {
    let reference = &release.image.reference;
    let directory = builder::directory(root, &release.image)
        .ok_or_else(|| Error::permanent(format!("{reference:?} is no release of the local builder")))?;
    if !directory.join(manifest::FILE_NAME).exists() {
        return Err(Error::permanent(format!(
            "the release {} is not there: deploy it again",
            directory.display()
        )));
    }
    Ok(directory.join(TREE))
}

fn variables(context: &Context, instance: &Instance, release: &Path) -> Result<BTreeMap<String, String>> {
    let text = |path: &Path| {
        let text = path.to_str().map(str::to_owned);
        text.ok_or_else(|| {
            Error::permanent(format!("{} is not text in UTF-8: choose another path", path.display()))
        })
    };
    let path = env::var("PATH").unwrap_or_else(|_| "/usr/local/bin:/usr/bin:/bin".to_owned());
    let mut variables =
        BTreeMap::from([("PATH".to_owned(), path), ("LANG".to_owned(), "C.UTF-8".to_owned())]);
    variables.insert("HOME".to_owned(), "/".to_owned());
    if let Some(directory) = &instance.data_directory {
        variables.insert("HOME".to_owned(), text(directory)?);
        variables.insert("DATA_DIR".to_owned(), text(directory)?);
    }
    variables.extend(instance.variables.clone());
    if let Some(port) = instance.port {
        variables.insert("PORT".to_owned(), port.to_string());
    }
    if let Some(directory) = &instance.data_directory {
        variables.insert("DATA_DIR".to_owned(), text(directory)?);
    }
    variables.insert("RELEASE_DIR".to_owned(), text(release)?);
    variables.insert("OCORE_ENVIRONMENT".to_owned(), context.environment().name().to_string());
    variables.insert("OCORE_INSTANCE".to_owned(), instance.name.to_string());
    Ok(variables)
}

/// A value for the command line.
fn value(
    name: &str,
    instance: &Instance,
    variables: &BTreeMap<String, String>,
    secrets: &BTreeMap<String, Secret>,
) -> Result<String, Unexpanded> {
    match name {
        _ if secrets.contains_key(name) => Err(Unexpanded::Secret(name.to_owned())),
        "PORT" if instance.port.is_none() => Err(Unexpanded::NoPort),
        "DATA_DIR" if instance.data_directory.is_none() => Err(Unexpanded::NoDataDirectory),
        _ => variables.get(name).cloned().ok_or_else(|| Unexpanded::Unset(name.to_owned())),
    }
}

/// The program's file: a name with a slash is one of the release, any other is looked for in `PATH`.
fn find(program: &str, release: &Path, variables: &BTreeMap<String, String>) -> Result<PathBuf> {
    if program.contains('/') {
        let file = release.join(program);
        return match fs::metadata(&file) {
            Ok(metadata) if metadata.is_file() && is_executable(&file) => Ok(file),
            Ok(_) => {
                Err(Error::permanent(format!("{program} is no executable file: `chmod +x` and commit it")))
            }
            Err(_) => Err(Error::permanent(format!("the release has no program {program}"))),
        };
    }
    let path = variables.get("PATH").map_or("", String::as_str);
    let mut candidates = env::split_paths(path).filter(|directory| directory.is_absolute());
    candidates.find_map(|directory| Some(directory.join(program)).filter(|file| file.is_file() && is_executable(file)))
        .ok_or_else(|| {
            Error::permanent(format!(
                "there is no program {program:?} in {path}: install it, or write ./{program} if the repository brings it"
            ))
        })
}

fn is_executable(file: &Path) -> bool {
    rustix::fs::access(file, Access::EXEC_OK).is_ok()
}

/// Makes the data directory if it is not there, and refuses one that the application could not write into.
pub(super) fn prepare_data(instance: &Instance) -> Result<()> {
    let Some(directory) = &instance.data_directory else { return Ok(()) };
    match fs::create_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        other => other.at("make the data directory", directory)?,
    }
    if !fs::symlink_metadata(directory).at("read", directory)?.is_dir() {
        return Err(Error::permanent(format!(
            "the data directory {} is not a directory",
            directory.display()
        )));
    }
    // Opened too: where permission is not the only thing that can be in the way.
    drop(File::open(directory).at("open the data directory", directory)?);
    let access = rustix::fs::access(directory, Access::WRITE_OK | Access::EXEC_OK);
    access.map_err(io::Error::from).at("write into the data directory", directory)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ocore_core::port::ErrorKind;

    #[test]
    fn only_what_a_person_must_change_is_permanent() {
        let check = |error: Errno, kind: ErrorKind| {
            let failed = classify(Path::new("/bin/x"), Err::<(), _>(io::Error::from(error))).unwrap_err();
            assert_eq!(failed.kind(), kind, "{error}: {failed}");
        };
        for error in [Errno::NOENT, Errno::ACCESS, Errno::NOEXEC, Errno::TOOBIG] {
            check(error, ErrorKind::Permanent);
        }
        for error in [Errno::MFILE, Errno::NFILE, Errno::AGAIN, Errno::NOMEM, Errno::TXTBSY, Errno::IO] {
            check(error, ErrorKind::Transient);
        }
    }
}
