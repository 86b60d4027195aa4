//! The Source itself.

use std::{
    collections::{BTreeMap, VecDeque},
    fs::{self, DirBuilder},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use ocore_core::{
    id::DeploymentId,
    name::EnvironmentName,
    port::{Checkout, Classify, Context, Error, Result, Source},
    release::Commit,
    request::Revision,
};

use crate::{
    address::resolve,
    credentials::{Credentials, HostKey, Kind},
    download::Download,
    failure::{Fault, of_file},
    gate::{Gate, Passage},
    leftovers::{remove_directory, sweep_checkouts, sweep_mirrors},
    location::{Location, Remote},
    mirror::Mirror,
    policy::{Addresses, Protocol, SourcePolicy, Submodules},
    stop::Stop,
    tree::{Submodule, Writer, put_in_place},
    update::{Fetched, find_here, update},
};

/// The oldest libgit2 that is used: older ones have holes that a hostile repository can use.
const LIBGIT2_MIN: (u32, u32, u32) = (1, 7, 2);

/// Brings repositories here with libgit2: a mirror for each, fetched incrementally, and checkouts of one commit.
///
/// Below its root directory are `mirrors/` and `checkouts/`. Any number of Sources, in any number of processes, may
/// share one root. The methods need a tokio runtime with time and I/O enabled.
///
/// *Guarantees*: nothing that a repository brings is run (no hooks, filters, attributes, LFS); what is written is
/// exactly the commit's files. Only commits that a branch or tag leads to are found: with some hosts a bare id could
/// name a commit of somebody else's fork.
///
/// ```
/// use ocore_core::secret::Secret;
/// use ocore_git::{Credentials, GitSource, SourcePolicy};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let root = tempfile::tempdir()?;
/// # let token = Secret::new("from the platform's own vault");
/// let source = GitSource::new(root.path())?
///     .policy(SourcePolicy::default())
///     .credentials(&"production".parse()?, Credentials::token("x-access-token", token));
/// # let _ = source;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct GitSource {
    root: PathBuf,
    policy: SourcePolicy,
    credentials: Arc<Mutex<BTreeMap<EnvironmentName, Given>>>,
}

/// What an environment was given.
#[derive(Debug, Clone, Default)]
struct Given {
    own: Option<Credentials>,
    submodules: Vec<(Remote, Credentials)>,
}

impl GitSource {
    /// A Source that keeps its mirrors and checkouts below `root`, which is made if it is not there. What processes
    /// that were killed have left there unfinished is removed.
    ///
    /// # Errors
    /// The directory cannot be made, or the libgit2 that is linked is too old to be safe.
    pub fn new(root: impl AsRef<Path>) -> Result<Self> {
        let version = git2::Version::get().libgit2_version();
        if version < LIBGIT2_MIN {
            return Err(Error::permanent(format!(
                "use libgit2 {version:?}: it is older than {LIBGIT2_MIN:?}"
            )));
        }
        let root = std::path::absolute(root).permanent("find the Source's root directory")?;
        for directory in ["mirrors", "checkouts"] {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(root.join(directory));
            made.map_err(|error| of_file(error, format!("make {} below the Source's root", directory)))?;
        }
        sweep_mirrors(&root.join("mirrors"));
        sweep_checkouts(&root.join("checkouts"));
        Ok(Self { root, policy: SourcePolicy::default(), credentials: Arc::default() })
    }

    /// The same Source with this policy.
    #[must_use]
    pub fn policy(mut self, policy: SourcePolicy) -> Self {
        self.policy = policy;
        self
    }

    /// The same Source; the environment's own repository is fetched with these credentials. They are shown to
    /// this repository's host only, over https or ssh only, and not for submodules.
    #[must_use]
    pub fn credentials(self, environment: &EnvironmentName, credentials: Credentials) -> Self {
        self.set_credentials(environment, Some(credentials));
        self
    }

    /// Gives an environment other credentials, or takes them away. Fetches that have begun go on with the old ones.
    pub fn set_credentials(&self, environment: &EnvironmentName, credentials: Option<Credentials>) {
        self.given().entry(environment.clone()).or_default().own = credentials;
    }

    /// The same Source; submodules of the environment whose repositories are below `prefix`
    /// (`https://git.example.org/acme`) are fetched with these credentials. Say it for the environment's own host
    /// too: otherwise whoever can change the repository could read with its token what else the token opens.
    ///
    /// # Errors
    /// The prefix is no URL that the policy allows.
    pub fn submodule_credentials(
        self,
        environment: &EnvironmentName,
        prefix: &str,
        credentials: Credentials,
    ) -> Result<Self> {
        let Location::Remote(prefix) = Location::parse(prefix, &self.policy)? else {
            return Err(Error::permanent("give credentials for submodules: the prefix is no URL of a host"));
        };
        self.given().entry(environment.clone()).or_default().submodules.push((prefix, credentials));
        Ok(self)
    }

    fn given(&self) -> std::sync::MutexGuard<'_, BTreeMap<EnvironmentName, Given>> {
        self.credentials.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The repository of the context's environment.
    fn own_repository(&self, context: &Context) -> Result<Target> {
        let environment = context.environment();
        let location = Location::parse(environment.repository(), &self.policy)?;
        let own = self.given().get(environment.name()).and_then(|given| given.own.clone());
        // The directory of this machine needs none.
        let own = own.filter(|_| matches!(location, Location::Remote(_)));
        Ok(self.target(context, location, own, self.policy.addresses))
    }

    /// The repository of a submodule of `parent`.
    fn submodule_repository(&self, context: &Context, parent: &Target, url: &str) -> Result<Target> {
        let location = Location::parse_submodule(url, &parent.location, &self.policy)?;
        let Location::Remote(remote) = &location else {
            return Err(Error::permanent("fetch a submodule: it is a local path"));
        };
        let given = self.given().get(context.environment().name()).cloned().unwrap_or_default();
        let fitting = given.submodules.into_iter().find(|(prefix, _)| prefix.covers(remote));
        // Whoever writes the repository writes this URL: it leads into no private network but the parent's own.
        let same_host = matches!(&parent.location, Location::Remote(parent) if parent.host == remote.host);
        let addresses = if same_host { parent.addresses } else { Addresses::Public };
        Ok(self.target(context, location, fitting.map(|(_, credentials)| credentials), addresses))
    }

    fn target(
        &self,
        context: &Context,
        location: Location,
        credentials: Option<Credentials>,
        addresses: Addresses,
    ) -> Target {
        for secret in credentials.iter().flat_map(Credentials::secrets) {
            context.hide(secret);
        }
        let scope = credentials.as_ref().map(|_| context.environment().name().as_str());
        let mirror = Mirror::of(&self.root, &location, scope);
        Target { location, mirror, credentials, addresses }
    }

    /// Fetches the target and resolves the revision in it.
    async fn fetch_target(
        &self,
        context: &Context,
        target: &Target,
        wanted: Revision,
        stop: &Stop,
    ) -> Result<Fetched> {
        let lock = target.mirror.lock(stop).await?;
        let gate = self.open_gate(target, stop).await?;
        let download = Download {
            location: target.location.clone(),
            entrance: gate.as_ref().map(Gate::entrance),
            credentials: target.credentials.clone(),
            limits: self.policy.limits.clone(),
            local_paths: self.policy.local_paths.clone(),
            context: context.clone(),
        };
        let mirror = target.mirror.clone();
        stop.run(move |stop| update(&mirror, &lock, &download, &wanted, stop)).await
    }

    async fn open_gate(&self, target: &Target, stop: &Stop) -> Result<Option<Gate>> {
        let Location::Remote(remote) = &target.location else { return Ok(None) };
        if remote.protocol == Protocol::Ssh && target.credentials.as_ref().is_none_or(lacks_ssh) {
            return Err(Error::permanent(format!(
                "fetch {}: not authorised: ssh needs a private key and the host's own keys; give them to the Source",
                target.location
            )));
        }
        let addresses = tokio::select! {
            addresses = resolve(&remote.host, remote.port, target.addresses, &self.policy) => addresses?,
            error = stop.stopped() => return Err(error),
        };
        let passage = Passage {
            remote: remote.clone(),
            addresses,
            credentials: target.credentials.clone(),
            certificates: self.policy.certificates.get(&remote.host).cloned(),
            limits: self.policy.limits.clone(),
        };
        Gate::open(passage, stop.clone()).await.map(Some)
    }

    /// Writes one repository's tree; a commit that is not here is fetched, a damaged mirror is made anew.
    async fn write(
        &self,
        context: &Context,
        target: &Target,
        writer: Writer,
        part: &Submodule,
        stop: &Stop,
    ) -> Result<(Writer, Vec<Submodule>)> {
        let wanted = Revision::Commit(part.sha.clone());
        let (mirror, its_wanted) = (target.mirror.clone(), wanted.clone());
        let anew = match stop.run(move |_| Ok(find_here(&mirror, &its_wanted))).await? {
            Some(_) => false,
            None => self.fetch_target(context, target, wanted, stop).await?.anew,
        };
        let (mirror, sha, path) = (target.mirror.clone(), part.sha.clone(), part.path.clone());
        let mut writer = writer;
        stop.run(move |stop| {
            let gone = || Error::transient("open the mirror: it was removed at this moment");
            let open = mirror.open().map_err(Fault::of_a_mirror)?.ok_or_else(gone)?;
            match writer.write(&open.repository, &sha, &path, stop) {
                Ok(submodules) => Ok((writer, submodules)),
                Err(fault) if anew => Err(fault.of_the_repository()),
                Err(fault) => {
                    if fault.is_damage() {
                        open.mark();
                    }
                    Err(fault.of_a_mirror())
                }
            }
        })
        .await
    }

    /// Writes the commit and its submodules into a directory beside its final place.
    async fn write_all(&self, context: &Context, commit: &Commit, staging: &Path, stop: &Stop) -> Result<()> {
        let target = self.own_repository(context)?;
        let mut writer = Writer::new(staging.to_owned(), self.policy.clone(), context.clone())?;
        let root = Submodule { path: PathBuf::new(), url: String::new(), sha: commit.sha.clone() };
        let mut waiting = VecDeque::from([(root, target, 0)]);
        let mut count = 0;
        while let Some((part, target, depth)) = waiting.pop_front() {
            if depth > 0 {
                context.log(format!("submodule {} from {}", part.path.display(), target.location));
            }
            let found;
            (writer, found) = self.write(context, &target, writer, &part, stop).await?;
            count += found.len();
            self.check_submodules(depth + 1, count, found.is_empty())?;
            for submodule in found {
                let inner = self.submodule_repository(context, &target, &submodule.url)?;
                waiting.push_back((submodule, inner, depth + 1));
            }
        }
        stop.run(move |stop| writer.finish(stop)).await
    }

    fn check_submodules(&self, depth: u32, count: usize, none: bool) -> Result<()> {
        let Submodules::Fetched { depth_max, count_max } = self.policy.submodules else { return Ok(()) };
        if none || (depth <= depth_max && count <= count_max as usize) {
            return Ok(());
        }
        Err(Error::permanent(format!(
            "check out the submodules: {count} so far, {depth} deep, is more than the limits count_max, {count_max}, \
             and depth_max, {depth_max}; raise them in the policy"
        )))
    }

    /// Removes what earlier calls of the deployment left, finished or not.
    fn remove_leftovers(&self, context: &Context) -> Result<()> {
        let directory = self.root.join("checkouts");
        let entries = fs::read_dir(&directory).map_err(|error| of_file(error, "list the checkouts"))?;
        let own: Vec<_> = entries
            .flatten()
            .filter_map(|entry| {
                Some((entry.path(), fence_of(entry.file_name().to_str()?, context.deployment())?))
            })
            .collect();
        if own.iter().any(|(_, fence)| *fence > context.fence().get()) {
            return Err(Error::fenced());
        }
        // Something may still be writing into one for a moment; the next call, or discard, removes it then.
        own.iter().for_each(|(path, _)| drop(remove_directory(path)));
        Ok(())
    }
}

/// A repository to fetch from.
struct Target {
    location: Location,
    mirror: Mirror,
    credentials: Option<Credentials>,
    /// Those that its host may have.
    addresses: Addresses,
}

fn lacks_ssh(credentials: &Credentials) -> bool {
    match &credentials.0 {
        Kind::Token { .. } => true,
        Kind::SshKey { host_keys, .. } => host_keys.iter().all(|HostKey(key)| key.is_empty()),
    }
}

/// The fence in a checkout's name, if it is one of the deployment's, finished or not.
fn fence_of(name: &str, deployment: DeploymentId) -> Option<u64> {
    let rest = name.trim_start_matches('.').strip_prefix(&deployment.to_string())?.strip_prefix('-')?;
    rest.split('.').next()?.parse().ok()
}

#[async_trait]
impl Source for GitSource {
    async fn fetch(&self, context: &Context, revision: &Revision) -> Result<Commit> {
        revision.check().permanent("fetch")?;
        let (stop, _guard) = Stop::new(context, self.policy.limits.time_max);
        stop.check()?;
        let target = self.own_repository(context)?;
        let (mirror, wanted) = (target.mirror.clone(), revision.clone());
        let here = stop.run(move |_| Ok(find_here(&mirror, &wanted))).await?;
        let commit = match here {
            Some(commit) => commit,
            None => self.fetch_target(context, &target, revision.clone(), &stop).await?.commit,
        };
        context.log(format!("{revision} of {} is {} {:?}", target.location, commit.short(), commit.summary));
        Ok(commit)
    }

    async fn checkout(&self, context: &Context, commit: &Commit) -> Result<Checkout> {
        let (stop, _guard) = Stop::new(context, self.policy.limits.time_max);
        stop.check()?;
        let name = format!("{}-{}", context.deployment(), context.fence());
        let directory = self.root.join("checkouts");
        let staging = directory.join(format!(".{name}.{}", uuid::Uuid::new_v4().simple()));
        let (own, its_context) = (self.clone(), context.clone());
        stop.run(move |_| own.remove_leftovers(&its_context)).await?;
        let unfinished = RemovedOnDrop(staging.clone());
        let mut written = self.write_all(context, commit, &staging, &stop).await;
        let path = directory.join(name);
        if written.is_ok() {
            let place = path.clone();
            written = stop.run(move |_| put_in_place(&staging, &place)).await;
        }
        if let Err(error) = written {
            // Nothing is left when the call has answered.
            let removal = tokio::task::spawn_blocking(move || remove_directory(&unfinished.0)).await;
            drop(removal.transient("remove the checkout")?);
            return Err(error);
        }
        Ok(Checkout::new(path, commit.clone()))
    }

    async fn discard(&self, _context: &Context, checkout: Checkout) -> Result<()> {
        let name = checkout.path.file_name().and_then(|name| name.to_str()).unwrap_or(".");
        if checkout.path.parent() != Some(&self.root.join("checkouts")) || name.starts_with('.') {
            let path = checkout.path.display();
            return Err(Error::permanent(format!("discard {path}: it is no checkout of this Source")));
        }
        // Not stopped by a cancel: what is to be removed is to be removed then too.
        let removed = tokio::task::spawn_blocking(move || remove_directory(&checkout.path)).await;
        let removed = removed.transient("discard the checkout")?;
        removed.map_err(|error| of_file(error, "discard the checkout"))
    }
}

/// A directory that is removed when the call that fills it ends, however it ends.
struct RemovedOnDrop(PathBuf);

impl Drop for RemovedOnDrop {
    fn drop(&mut self) {
        let path = std::mem::take(&mut self.0);
        if !path.exists() {
            return;
        }
        // The removal is of files only, and nobody waits for it: a call's future must not when it is dropped.
        drop(std::thread::spawn(move || remove_directory(&path)));
    }
}
