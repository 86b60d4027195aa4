use std::path::PathBuf;

use async_trait::async_trait;

use super::{Behaviour, World, world::fake};
use crate::{
    port::{Checkout, Context, Error, Result, Source},
    release::Commit,
    request::Revision,
};

fake! {
    /// A repository in memory. Its checkouts have a path but no files.
    FakeSource
}

impl FakeSource {
    /// A repository of its own, whose branch `main` has one good commit per message.
    #[must_use]
    pub fn with_commits<'a>(messages: impl IntoIterator<Item = &'a str>) -> Self {
        let world = World::new();
        for message in messages {
            world.push("main", message, Behaviour::good());
        }
        Self::of(world)
    }

    /// The world whose repository it is.
    #[must_use]
    pub const fn world(&self) -> &World {
        &self.world
    }

    fn resolve(&self, revision: &Revision) -> Result<Commit> {
        let inner = self.world.lock();
        let missing = || Error::permanent(format!("there is no {revision} in the repository"));
        let sha = match revision {
            Revision::Branch(name) => inner.branches.get(name).ok_or_else(missing)?,
            Revision::Tag(name) => inner.tags.get(name).ok_or_else(missing)?,
            Revision::Commit(sha) => sha,
        };
        let mut found = inner.commits.range(sha.clone()..).take_while(|(full, _)| full.starts_with(sha));
        match (found.next(), found.next()) {
            (Some((_, (commit, _))), None) => Ok(commit.clone()),
            (None, _) => Err(missing()),
            (Some(_), Some(_)) => Err(Error::permanent(format!("{revision} fits more than one commit"))),
        }
    }
}

#[async_trait]
impl Source for FakeSource {
    async fn fetch(&self, context: &Context, revision: &Revision) -> Result<Commit> {
        let secret = self.world.lock().secret.clone();
        if let Some(secret) = secret {
            context.hide(&secret);
            context.log(format!("fetching with {}", secret.expose()));
        }
        self.world.work(context, std::time::Duration::ZERO).await?;
        self.resolve(revision)
    }

    async fn checkout(&self, context: &Context, commit: &Commit) -> Result<Checkout> {
        let path = PathBuf::from(format!("/fake/checkouts/{}-{}", context.deployment(), context.fence()));
        self.resolve(&Revision::Commit(commit.sha.clone()))?;
        self.world.lock().checkouts.insert(path.clone());
        if let Err(error) = self.world.work(context, std::time::Duration::ZERO).await {
            self.world.lock().checkouts.remove(&path);
            return Err(error);
        }
        Ok(Checkout::new(path, commit.clone()))
    }

    async fn discard(&self, _context: &Context, checkout: Checkout) -> Result<()> {
        self.world.lock().checkouts.remove(&checkout.path);
        Ok(())
    }
}
