//! One fetch with libgit2, on a thread.

use std::{
    cell::{Cell, RefCell},
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use git2::{
    AutotagOption, CertificateCheckStatus, Cred, CredentialType, Direction, FetchOptions, FetchPrune,
    RemoteCallbacks, RemoteRedirect, RemoteUpdateFlags, Repository, cert::Cert,
};
use ocore_core::{
    event::{Progress, Unit},
    port::{Context, Error, ErrorKind, Result},
};

use crate::{
    credentials::{Credentials, Kind},
    failure::{Fault, check_local, is_of_connection, of_fetch},
    gate::Entrance,
    location::Location,
    policy::{Limits, LocalPaths},
    stop::Stop,
};

const REFSPECS: [&str; 2] = ["+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*"];
/// The shortest time between two reports of progress.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

/// What one fetch needs to know.
pub(crate) struct Download {
    pub(crate) location: Location,
    /// The way to a location on a host.
    pub(crate) entrance: Option<Entrance>,
    pub(crate) credentials: Option<Credentials>,
    pub(crate) limits: Limits,
    pub(crate) local_paths: LocalPaths,
    pub(crate) context: Context,
}

impl Download {
    /// Fetches all branches and tags into the mirror, and removes those that are gone.
    pub(crate) fn run(&self, repository: &Repository, stop: &Stop) -> Result<(), Fault> {
        if let Location::Local(path) = &self.location {
            check_local(path, &self.local_paths)?;
        }
        let calls = Calls { download: self, stop, asked: Cell::new(false), reason: RefCell::new(None) };
        let result = self.fetch(repository, &calls);
        stop.check()?;
        let asked = calls.asked.get();
        match (result, calls.reason.into_inner()) {
            (Ok(()), _) => Ok(()),
            (Err(_), Some(reason)) => Err(reason.into()),
            (Err(error), None) => {
                // The gate knows better than libgit2 why a connection ended.
                let of_connection = is_of_connection(&error);
                let fault = of_fetch(error, &self.location, asked);
                let verdict = self.entrance.as_ref().filter(|_| of_connection).and_then(Entrance::verdict);
                Err(match (fault, verdict) {
                    (Fault::Other(error), Some(verdict)) if error.kind() == ErrorKind::Transient => {
                        verdict.into()
                    }
                    (fault, _) => fault,
                })
            }
        }
    }

    fn fetch(&self, repository: &Repository, calls: &Calls<'_>) -> Result<(), git2::Error> {
        let mut remote = repository.remote_anonymous(&self.url())?;
        let mut connection = remote.connect_auth(Direction::Fetch, Some(calls.callbacks()), None)?;
        calls.check_references(connection.list()?.len())?;
        self.entrance.iter().for_each(Entrance::listed);
        let mut options = FetchOptions::new();
        options.prune(FetchPrune::Off).download_tags(AutotagOption::None).update_fetchhead(false);
        options.follow_redirects(RemoteRedirect::None).remote_callbacks(calls.callbacks());
        let remote = connection.remote();
        remote.download(&REFSPECS, Some(&mut options))?;
        calls.noted(calls.stop.check())?;
        // First what is gone: a branch `a` must make room for a branch `a/b`.
        remote.prune(None)?;
        calls.noted(calls.stop.check())?;
        remote.update_tips(None, RemoteUpdateFlags::empty(), AutotagOption::None, None)?;
        remote.disconnect()
    }

    fn url(&self) -> String {
        self.entrance.as_ref().map_or_else(|| self.location.to_string(), Entrance::url)
    }
}

/// What libgit2 calls back while it fetches, and why it was told to stop.
struct Calls<'a> {
    download: &'a Download,
    stop: &'a Stop,
    asked: Cell<bool>,
    reason: RefCell<Option<Error>>,
}

impl Calls<'_> {
    fn callbacks(&self) -> RemoteCallbacks<'_> {
        let mut callbacks = RemoteCallbacks::new();
        callbacks.sideband_progress(|_| self.stop.check().is_ok());
        callbacks.pack_progress(|_, _, _| {});
        callbacks.credentials(|_, user, allowed| self.noted(self.credential(user, allowed)));
        callbacks.certificate_check(|certificate, _| self.noted(self.certificate(certificate)));
        let mut reported = Instant::now();
        callbacks.transfer_progress(move |progress| {
            let limits = &self.download.limits;
            let (total, bytes) = (progress.total_objects() as u64, progress.received_bytes() as u64);
            let within = self
                .stop
                .check()
                .and_then(|()| self.limit("objects_max", total, limits.objects_max))
                .and_then(|()| self.limit("received_bytes_max", bytes, limits.received_bytes_max));
            let done = progress.received_objects() as u64;
            let deltas = (progress.indexed_deltas() as u64, progress.total_deltas() as u64);
            let at_an_end = done == total && (deltas.0 == 0 || deltas.0 == deltas.1);
            if reported.elapsed() >= PROGRESS_INTERVAL || at_an_end {
                reported = Instant::now();
                self.report(done, total, bytes);
                self.report_deltas(deltas);
            }
            self.noted(within).is_ok()
        });
        callbacks
    }

    fn report(&self, done: u64, total: u64, bytes: u64) {
        let context = &self.download.context;
        context.progress(Progress::new("receiving objects", done, Some(total), Unit::Items));
        context.progress(Progress::new("receiving", bytes, None, Unit::Bytes));
    }

    /// What was received as a difference is put together when everything is there; it may take as long again.
    fn report_deltas(&self, (done, total): (u64, u64)) {
        if done > 0 {
            self.download.context.progress(Progress::new("resolving deltas", done, Some(total), Unit::Items));
        }
    }

    /// Keeps the reason, for libgit2 keeps at most its text.
    fn noted<T>(&self, result: Result<T>) -> Result<T, git2::Error> {
        result.map_err(|error| {
            let text = git2::Error::from_str(&error.to_string());
            self.reason.borrow_mut().get_or_insert(error);
            text
        })
    }

    fn limit(&self, name: &str, found: u64, limit: u64) -> Result<()> {
        if found <= limit {
            return Ok(());
        }
        let location = &self.download.location;
        Err(Error::permanent(format!(
            "fetch {location}: {found} is more than the limit {name}, {limit}; raise it in the policy"
        )))
    }

    fn check_references(&self, found: usize) -> Result<(), git2::Error> {
        let limit = self.download.limits.references_max;
        self.noted(self.limit("references_max", found as u64, limit as u64))
    }

    fn refused(&self, reason: &str) -> Error {
        Error::permanent(format!("fetch {}: not authorised: {reason}", self.download.location))
    }

    fn credential(&self, user: Option<&str>, allowed: CredentialType) -> Result<Cred> {
        self.stop.check()?;
        if self.asked.replace(true) {
            return Err(self.refused("the host does not accept the environment's credentials"));
        }
        // For http and https the gate has the credentials, and ends an answer that asks for others.
        let Some(Kind::SshKey { user: own, private_key, passphrase, .. }) =
            self.download.credentials.as_ref().map(|credentials| &credentials.0)
        else {
            return Err(self.refused("the host asks for credentials that are not given for this repository"));
        };
        if !allowed.intersects(CredentialType::SSH_MEMORY | CredentialType::SSH_KEY) {
            return Err(self.refused("an ssh key is given, and the host does not accept keys"));
        }
        let passphrase = passphrase.as_ref().map(|passphrase| passphrase.expose());
        let made = Cred::ssh_key_from_memory(user.unwrap_or(own), None, private_key.expose(), passphrase);
        // The cause is not shown: it is about the secret.
        made.map_err(|_| self.refused("the credentials have a character that they must not have"))
    }

    fn certificate(&self, certificate: &Cert<'_>) -> Result<CertificateCheckStatus> {
        self.stop.check()?;
        let refused = |what: String| {
            let location = &self.download.location;
            Error::permanent(format!("fetch {location}: the host is not the one that is trusted: {what}"))
        };
        let Some(key) = certificate.as_hostkey() else {
            return Err(refused("it shows no ssh key".to_owned()));
        };
        let known = self.download.credentials.as_ref().map_or(&[][..], Credentials::host_keys);
        if key.hostkey().is_some_and(|key| known.iter().any(|known| known.0 == key)) {
            return Ok(CertificateCheckStatus::CertificateOk);
        }
        let kind = key.hostkey_type().map_or("unknown", |kind| kind.name());
        let print = key.hash_sha256().map_or_else(String::new, |hash| STANDARD_NO_PAD.encode(hash));
        Err(refused(format!(
            "its {kind} key SHA256:{print} is none of those given with the ssh key; if it is right, add it"
        )))
    }
}
