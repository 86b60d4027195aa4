//! Repositories in temporary directories, contexts, and git hosts on loopback.

pub(crate) mod host;
pub(crate) mod ssh;

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use git2::{ObjectType, Oid, Repository, RepositoryInitOptions, Signature, Time};
use ocore_core::{
    environment::{Environment, EnvironmentSpec, InstanceSpec},
    event::{Progress, Stream},
    id::{DeploymentId, Fence},
    name::InstanceName,
    port::{Checkout, Context, Sink, Source},
    release::Commit,
    request::Revision,
    secret::Secret,
    testing::laws::source::{SourceFixture, committed_at},
};
use ocore_git::{GitSource, SourcePolicy};
use tokio_util::sync::CancellationToken;

/// A repository, and a Source that may read local paths.
pub(crate) struct Bench {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) repository: PathBuf,
    pub(crate) root: PathBuf,
    pub(crate) source: GitSource,
    pub(crate) url: String,
    pub(crate) sink: Arc<Recorder>,
}

impl Bench {
    pub(crate) fn new() -> Self {
        Self::with_policy(SourcePolicy::default().allow_local_paths())
    }

    pub(crate) fn with_policy(policy: SourcePolicy) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (repository, root) = (directory.path().join("origin.git"), directory.path().join("root"));
        make_repository(&repository);
        let source = GitSource::new(&root).unwrap().policy(policy);
        let url = repository.to_str().unwrap().to_owned();
        Self { directory, repository, root, source, url, sink: Arc::default() }
    }

    pub(crate) fn open(&self) -> Repository {
        Repository::open_bare(&self.repository).unwrap()
    }

    pub(crate) fn environment(&self) -> Arc<Environment> {
        let spec = EnvironmentSpec::new("shop", &self.url).instance(InstanceSpec::new("web"));
        Arc::new(Environment::try_from(spec).unwrap())
    }

    pub(crate) fn context(&self) -> Context {
        self.context_of(1, 1, CancellationToken::new())
    }

    pub(crate) fn context_of(&self, deployment: u128, fence: u64, token: CancellationToken) -> Context {
        let deployment = DeploymentId::from_u128(deployment);
        Context::new(deployment, self.environment(), Fence::new(fence), token, Arc::clone(&self.sink) as _)
    }

    pub(crate) async fn fetch(&self, branch: &str) -> ocore_core::port::Result<Commit> {
        self.source.fetch(&self.context(), &Revision::Branch(branch.to_owned())).await
    }

    /// Fetches main and checks it out.
    pub(crate) async fn checkout(&self) -> ocore_core::port::Result<Checkout> {
        let commit = self.fetch("main").await?;
        self.source.checkout(&self.context(), &commit).await
    }

    /// What is left below `checkouts`, finished or not.
    pub(crate) fn checkouts(&self) -> Vec<String> {
        names(&self.root.join("checkouts"))
    }

    pub(crate) fn times_made_anew(&self) -> usize {
        let lines = self.sink.lines.lock().unwrap();
        lines.iter().filter(|line| line.contains("the mirror is made anew")).count()
    }

    pub(crate) fn mirrors(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.root.join("mirrors")).unwrap();
        entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()).collect()
    }
}

pub(crate) fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

pub(crate) fn make_repository(path: &Path) {
    let mut options = RepositoryInitOptions::new();
    options.bare(true).external_template(false).mkpath(true).initial_head("main");
    Repository::init_opts(path, &options).unwrap();
}

/// Called at each report of progress.
pub(crate) type OnProgress = Box<dyn Fn(&Progress) + Send + Sync>;

/// What was reported.
#[derive(Default)]
pub(crate) struct Recorder {
    pub(crate) lines: Mutex<Vec<String>>,
    pub(crate) progress: Mutex<Vec<Progress>>,
    pub(crate) hidden: Mutex<Vec<String>>,
    pub(crate) on_progress: Mutex<Option<OnProgress>>,
}

impl Sink for Recorder {
    fn log(&self, _: Option<&InstanceName>, _: Stream, line: &str) {
        self.lines.lock().unwrap().push(line.to_owned());
    }
    fn progress(&self, _: Option<&InstanceName>, progress: Progress) {
        if let Some(call) = &*self.on_progress.lock().unwrap() {
            call(&progress);
        }
        self.progress.lock().unwrap().push(progress);
    }
    fn hide(&self, secret: &Secret) {
        self.hidden.lock().unwrap().push(secret.expose().to_owned());
    }
}

/// One entry of a tree, as raw as git allows.
pub(crate) enum Entry<'a> {
    File(&'a [u8]),
    Program(&'a [u8]),
    Link(&'a [u8]),
    Submodule(Oid),
    Tree(Vec<(&'a [u8], Self)>),
    Raw(u32, Oid),
}

/// Writes a tree object with exactly these entries, in this order, whatever their names are.
pub(crate) fn write_tree(repository: &Repository, entries: &[(&[u8], Entry<'_>)]) -> Oid {
    let objects = repository.odb().unwrap();
    let mut content = Vec::new();
    for (name, entry) in entries {
        let blob = |data: &[u8]| objects.write(ObjectType::Blob, data).unwrap();
        let (mode, id) = match entry {
            Entry::File(data) => (0o100644, blob(data)),
            Entry::Program(data) => (0o100755, blob(data)),
            Entry::Link(target) => (0o120000, blob(target)),
            Entry::Submodule(id) => (0o160000, *id),
            Entry::Tree(inner) => (0o40000, write_tree(repository, inner)),
            Entry::Raw(mode, id) => (*mode, *id),
        };
        content.extend(format!("{mode:o} ").bytes().chain(name.iter().copied()).chain([0]));
        content.extend(id.as_bytes());
    }
    objects.write(ObjectType::Tree, &content).unwrap()
}

/// Adds a commit with this tree to a branch.
pub(crate) fn commit_tree(repository: &Repository, branch: &str, message: &str, tree: Oid) -> Oid {
    let reference = format!("refs/heads/{branch}");
    let parent = repository.refname_to_id(&reference).ok();
    let who = format!("Ada <ada@example.org> {} +0000", committed_at().timestamp());
    let parent = parent.map(|parent| format!("parent {parent}\n")).unwrap_or_default();
    let text = format!("tree {tree}\n{parent}author {who}\ncommitter {who}\n\n{message}");
    let id = repository.odb().unwrap().write(ObjectType::Commit, text.as_bytes()).unwrap();
    repository.reference(&reference, id, true, "").unwrap();
    id
}

/// Adds a commit with exactly these entries to main.
pub(crate) fn commit(repository: &Repository, entries: &[(&[u8], Entry<'_>)]) -> Oid {
    let tree = write_tree(repository, entries);
    commit_tree(repository, "main", "a commit", tree)
}

/// Everything in a directory, by path: a file's content, or what else it is.
pub(crate) fn read_directory(root: &Path) -> Option<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(&directory).ok()? {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            let metadata = fs::symlink_metadata(&path).unwrap();
            if metadata.is_dir() {
                waiting.push(path);
            } else if metadata.is_symlink() {
                found.insert(name, format!("-> {}", fs::read_link(&path).unwrap().display()));
            } else {
                let executable = if metadata.permissions().mode() & 0o100 != 0 { "+x " } else { "" };
                found.insert(
                    name,
                    format!("{executable}{}", String::from_utf8_lossy(&fs::read(&path).unwrap())),
                );
            }
        }
    }
    Some(found)
}

#[async_trait]
impl SourceFixture for Bench {
    fn source(&self) -> &dyn Source {
        &self.source
    }

    fn environment(&self) -> Arc<Environment> {
        Self::environment(self)
    }

    async fn commit(&self, branch: &str, message: &str, files: &[(&str, &str)]) -> String {
        let repository = self.open();
        let mut builder = git2::build::TreeUpdateBuilder::new();
        for (path, text) in files {
            builder.upsert(*path, repository.blob(text.as_bytes()).unwrap(), git2::FileMode::Blob);
        }
        let empty = repository.find_tree(repository.treebuilder(None).unwrap().write().unwrap()).unwrap();
        let tree = builder.create_updated(&repository, &empty).unwrap();
        commit_tree(&repository, branch, message, tree).to_string()
    }

    async fn force(&self, branch: &str, sha: &str) {
        let (repository, id) = (self.open(), Oid::from_str(sha).unwrap());
        repository.reference(&format!("refs/heads/{branch}"), id, true, "").unwrap();
    }

    async fn tag(&self, name: &str, sha: &str) {
        let repository = self.open();
        let commit = repository.find_object(Oid::from_str(sha).unwrap(), None).unwrap();
        let tagger = Signature::new("Ada", "ada@example.org", &Time::new(1_700_000_000, 0)).unwrap();
        repository.tag(name, &commit, &tagger, "a release", false).unwrap();
    }

    async fn files(&self, checkout: &Checkout) -> Option<BTreeMap<String, String>> {
        read_directory(&checkout.path)
    }
}

/// A bench whose repository is behind a host, which answers while it lives.
pub(crate) struct Behind<H>(pub(crate) Bench, pub(crate) H);

#[async_trait]
impl<H: Send + Sync + 'static> SourceFixture for Behind<H> {
    fn source(&self) -> &dyn Source {
        self.0.source()
    }

    fn environment(&self) -> Arc<Environment> {
        self.0.environment()
    }

    async fn commit(&self, branch: &str, message: &str, files: &[(&str, &str)]) -> String {
        self.0.commit(branch, message, files).await
    }

    async fn force(&self, branch: &str, sha: &str) {
        self.0.force(branch, sha).await;
    }

    async fn tag(&self, name: &str, sha: &str) {
        self.0.tag(name, sha).await;
    }

    async fn files(&self, checkout: &Checkout) -> Option<BTreeMap<String, String>> {
        self.0.files(checkout).await
    }
}

/// So many bytes that cannot be compressed.
pub(crate) fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    };
    (0..bytes).map(|_| next()).collect()
}

/// Every file below a directory.
pub(crate) fn files_below(root: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] }).collect()
}

/// Whether nobody holds a lock of a mirror, and nothing unfinished is left: the threads have ended.
pub(crate) async fn at_rest(bench: &Bench) {
    let deadline = Instant::now() + Duration::from_secs(1);
    loop {
        let mirrors = bench.root.join("mirrors");
        let mut locks = names(&mirrors).into_iter().filter(|name| name.ends_with(".lock"));
        let free = |name: String| {
            let file = fs::File::open(mirrors.join(name)).unwrap();
            rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_ok()
        };
        let unfinished = bench.checkouts().iter().any(|name| name.starts_with('.'));
        if locks.all(free) && !unfinished {
            return;
        }
        assert!(Instant::now() < deadline, "a thread goes on for a second");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
