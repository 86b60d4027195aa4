//! The laws hold for a small source in memory, and each is broken by a flaw of it.

use std::{
    collections::BTreeSet,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::Mutex,
};

use futures::future::BoxFuture;

use super::*;
use crate::{
    environment::{EnvironmentSpec, InstanceSpec},
    port::{Error, Result},
};

/// What a source may do wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flaw {
    None,
    IgnoresTheBranch,
    RemembersTheFirstHead,
    TagIsABranch,
    WholeIdsOnly,
    WholeMessage,
    MissingIsTransient,
    LeavesMetadata,
    ChecksOutTheBranch,
    NeverFetchesInCheckout,
    SecondCheckoutFails,
    OneDirectoryForAll,
    DiscardOnlyOnce,
    CancelIsAnError,
    DropKeepsALock,
}

type Files = BTreeMap<String, String>;

#[derive(Default)]
struct World {
    commits: BTreeMap<String, (Commit, Files)>,
    branches: BTreeMap<String, String>,
    tags: BTreeMap<String, String>,
    seen: BTreeMap<String, String>,
    fetched: BTreeSet<String>,
    checkouts: BTreeMap<PathBuf, Files>,
    locked: bool,
}

struct Fake {
    flaw: Flaw,
    world: Mutex<World>,
}

impl Fake {
    fn new(flaw: Flaw) -> Self {
        Self { flaw, world: Mutex::default() }
    }

    fn check(&self, context: &Context) -> Result<()> {
        match (context.is_cancelled(), self.flaw) {
            (true, Flaw::CancelIsAnError) => Err(Error::transient("cancelled")),
            (true, _) => Err(Error::cancelled()),
            (false, _) => Ok(()),
        }
    }

    fn missing(&self, revision: &Revision) -> Error {
        let text = format!("no such {revision}");
        if self.flaw == Flaw::MissingIsTransient { Error::transient(text) } else { Error::permanent(text) }
    }

    fn resolve(&self, revision: &Revision) -> Option<String> {
        let mut world = self.world.lock().unwrap();
        match revision {
            Revision::Branch(_) if self.flaw == Flaw::IgnoresTheBranch => {
                world.branches.values().next().cloned()
            }
            Revision::Branch(name) if self.flaw == Flaw::RemembersTheFirstHead => {
                let head = world.branches.get(name).cloned()?;
                Some(world.seen.entry(name.clone()).or_insert(head).clone())
            }
            Revision::Branch(name) => world.branches.get(name).cloned(),
            Revision::Tag(name) if self.flaw == Flaw::TagIsABranch => world.branches.get(name).cloned(),
            Revision::Tag(name) => world.tags.get(name).cloned(),
            Revision::Commit(sha) if self.flaw == Flaw::WholeIdsOnly && sha.len() < 40 => None,
            Revision::Commit(sha) => {
                let sha = sha.to_lowercase();
                world.commits.keys().find(|id| id.starts_with(&sha)).cloned()
            }
        }
    }
}

#[async_trait]
impl Source for Fake {
    async fn fetch(&self, context: &Context, revision: &Revision) -> Result<Commit> {
        self.check(context)?;
        if self.flaw == Flaw::DropKeepsALock {
            if std::mem::replace(&mut self.world.lock().unwrap().locked, true) {
                return Err(Error::transient("locked"));
            }
            tokio::task::yield_now().await;
            self.world.lock().unwrap().locked = false;
        }
        let sha = self.resolve(revision).ok_or_else(|| self.missing(revision))?;
        let mut world = self.world.lock().unwrap();
        world.fetched.insert(sha.clone());
        Ok(world.commits[&sha].0.clone())
    }

    async fn checkout(&self, context: &Context, commit: &Commit) -> Result<Checkout> {
        self.check(context)?;
        let mut world = self.world.lock().unwrap();
        let sha = match self.flaw {
            Flaw::ChecksOutTheBranch => world.branches["main"].clone(),
            _ => commit.sha.clone(),
        };
        if self.flaw == Flaw::NeverFetchesInCheckout && !world.fetched.contains(&sha) {
            return Err(Error::permanent("not here"));
        }
        let missing = || self.missing(&Revision::Commit(sha.clone()));
        let (_, mut files) = world.commits.get(&sha).cloned().ok_or_else(missing)?;
        if self.flaw == Flaw::LeavesMetadata {
            files.insert(".git/HEAD".to_owned(), sha);
        }
        let name = match self.flaw {
            Flaw::OneDirectoryForAll => "checkout".to_owned(),
            _ => context.deployment().to_string(),
        };
        let path = PathBuf::from(name);
        if world.checkouts.insert(path.clone(), files).is_some() && self.flaw == Flaw::SecondCheckoutFails {
            return Err(Error::permanent("there is one already"));
        }
        Ok(Checkout::new(path, commit.clone()))
    }

    async fn discard(&self, _: &Context, checkout: Checkout) -> Result<()> {
        let removed = self.world.lock().unwrap().checkouts.remove(&checkout.path);
        match removed {
            None if self.flaw == Flaw::DiscardOnlyOnce => Err(Error::permanent("it is gone")),
            _ => Ok(()),
        }
    }
}

#[async_trait]
impl SourceFixture for Fake {
    fn source(&self) -> &dyn Source {
        self
    }

    fn environment(&self) -> Arc<Environment> {
        let spec =
            EnvironmentSpec::new("shop", "https://git.example.org/shop").instance(InstanceSpec::new("web"));
        Arc::new(Environment::try_from(spec).unwrap())
    }

    async fn commit(&self, branch: &str, message: &str, files: &[(&str, &str)]) -> String {
        let mut world = self.world.lock().unwrap();
        let sha =
            format!("{:040x}", (world.commits.len() as u128 + 1) * 0x1234_5678_9abc_def0_1234_5678_9abc);
        let sha: String = sha.chars().rev().collect();
        let mut commit = Commit::new(&sha, message, "Ada", committed_at());
        if self.flaw == Flaw::WholeMessage {
            commit.summary = message.to_owned();
        }
        world.commits.insert(sha.clone(), (commit, owned(files)));
        world.branches.insert(branch.to_owned(), sha.clone());
        sha
    }

    async fn force(&self, branch: &str, sha: &str) {
        self.world.lock().unwrap().branches.insert(branch.to_owned(), sha.to_owned());
    }

    async fn tag(&self, name: &str, sha: &str) {
        self.world.lock().unwrap().tags.insert(name.to_owned(), sha.to_owned());
    }

    async fn files(&self, checkout: &Checkout) -> Option<Files> {
        self.world.lock().unwrap().checkouts.get(&checkout.path).cloned()
    }
}

mod hold_for_a_source_without_a_flaw {
    use super::{Fake, Flaw};

    source_laws!(Fake::new(Flaw::None));
}

type Law = fn(Fake) -> BoxFuture<'static, ()>;

/// Each law beside the flaw that breaks it.
const BROKEN: [(&str, Law, Flaw); 14] = [
    ("branch", |f| Box::pin(a_branch_resolves_to_its_head(f)), Flaw::IgnoresTheBranch),
    ("moved", |f| Box::pin(a_branch_that_moved_is_seen_by_the_next_fetch(f)), Flaw::RemembersTheFirstHead),
    ("tag", |f| Box::pin(a_tag_resolves_to_its_commit(f)), Flaw::TagIsABranch),
    ("id", |f| Box::pin(a_commit_is_found_by_its_whole_and_its_short_id(f)), Flaw::WholeIdsOnly),
    ("message", |f| Box::pin(a_commit_carries_its_message_author_and_time(f)), Flaw::WholeMessage),
    ("missing", |f| Box::pin(what_is_not_there_is_permanent(f)), Flaw::MissingIsTransient),
    ("files", |f| Box::pin(a_checkout_has_exactly_the_commits_files(f)), Flaw::LeavesMetadata),
    ("commit", |f| Box::pin(a_checkout_is_of_the_commit_not_of_the_branch(f)), Flaw::ChecksOutTheBranch),
    ("fetches", |f| Box::pin(a_checkout_fetches_a_commit_that_is_not_here(f)), Flaw::NeverFetchesInCheckout),
    ("second", |f| Box::pin(a_second_checkout_has_the_same_files(f)), Flaw::SecondCheckoutFails),
    ("apart", |f| Box::pin(checkouts_of_two_deployments_are_apart(f)), Flaw::OneDirectoryForAll),
    ("gone", |f| Box::pin(a_discarded_checkout_is_gone(f)), Flaw::DiscardOnlyOnce),
    ("cancelled", |f| Box::pin(a_cancelled_call_answers_that_it_was_cancelled(f)), Flaw::CancelIsAnError),
    ("dropped", |f| Box::pin(a_dropped_call_does_no_harm(f)), Flaw::DropKeepsALock),
];

#[test]
fn each_law_is_broken_by_a_flaw() {
    for (name, law, flaw) in BROKEN {
        let run = || crate::testing::laws::run(law(Fake::new(flaw)));
        assert!(catch_unwind(AssertUnwindSafe(run)).is_err(), "the law {name} does not see {flaw:?}");
    }
}
