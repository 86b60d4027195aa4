use std::time::Duration;

use async_trait::async_trait;

use super::{
    World,
    world::{Data, Inner, Stored, fake},
};
use crate::{
    environment::Instance,
    port::{Context, Error, Leftovers, Result, Snapshotter},
    release::Snapshot,
};

fake! {
    /// Keeps copies of the world's data.
    FakeSnapshotter
}

#[async_trait]
impl Snapshotter for FakeSnapshotter {
    async fn take(&self, context: &Context, instance: &Instance) -> Result<Snapshot> {
        let taken_at = self.world.executor().utc();
        let (reference, size_bytes) = begin(&mut self.world.lock(), context, instance);
        if let Err(error) = self.world.work(context, Duration::ZERO).await {
            self.world.lock().snapshots.remove(&reference);
            return Err(error);
        }
        match self.world.lock().snapshots.get_mut(&reference) {
            Some(stored) => stored.finished = true,
            None => return Err(Error::transient("another call has removed the unfinished snapshot")),
        }
        Ok(Snapshot::new(reference, taken_at, size_bytes))
    }

    async fn restore(&self, context: &Context, instance: &Instance, snapshot: &Snapshot) -> Result<()> {
        check(&mut self.world.lock(), context, instance, snapshot)?;
        self.world.work(context, Duration::ZERO).await?;
        let mut inner = self.world.lock();
        let data = check(&mut inner, context, instance, snapshot)?;
        if inner.place(context, &instance.name).up().next().is_some() {
            inner.blame(context, "data was restored under a running application");
        }
        let place = inner.place(context, &instance.name);
        place.update = None;
        place.data = data;
        Ok(())
    }

    async fn changed_since(
        &self,
        context: &Context,
        instance: &Instance,
        snapshot: &Snapshot,
    ) -> Result<bool> {
        let mut inner = self.world.lock();
        let now = inner.place(context, &instance.name).data.clone();
        Ok(inner.snapshots.get(&snapshot.reference).is_none_or(|stored| stored.data != now))
    }

    async fn remove(&self, _context: &Context, snapshot: &Snapshot) -> Result<()> {
        self.world.lock().snapshots.remove(&snapshot.reference);
        Ok(())
    }

    async fn sweep(&self, _context: &Context, leftovers: &Leftovers) -> Result<()> {
        let is_left = |reference: &str, stored: &Stored| leftovers.include(stored.deployment, reference);
        self.world.lock().snapshots.retain(|reference, stored| !is_left(reference, stored));
        Ok(())
    }
}

/// Copies the data under a new name, and removes what this deployment left unfinished under an older fence.
fn begin(inner: &mut Inner, context: &Context, instance: &Instance) -> (String, u64) {
    let key = (context.environment().name().clone(), instance.name.clone());
    let deployment = context.deployment();
    inner
        .snapshots
        .retain(|_, stored| stored.finished || stored.key != key || stored.deployment != deployment);
    let data = inner.place(context, &instance.name).data.clone();
    let number = inner.next();
    let reference = format!("{}/{deployment}/{}/{}-{number}", key.0, instance.name, context.fence());
    let size_bytes = data.as_ref().map_or(0, |data| 1 + data.writes.len() as u64);
    let stored = Stored { key, deployment, data, finished: false, corrupt: false };
    inner.snapshots.insert(reference.clone(), stored);
    (reference, size_bytes)
}

/// The data to restore, if this call may.
fn check(
    inner: &mut Inner,
    context: &Context,
    instance: &Instance,
    snapshot: &Snapshot,
) -> Result<Option<Data>> {
    inner.place(context, &instance.name).admit(context)?;
    let missing = || Error::permanent(format!("there is no snapshot {}", snapshot.reference));
    let stored = inner.snapshots.get(&snapshot.reference).filter(|stored| stored.finished);
    let stored = stored.ok_or_else(missing)?;
    if stored.corrupt {
        return Err(Error::permanent(format!("the checksum of snapshot {} is wrong", snapshot.reference)));
    }
    Ok(stored.data.clone())
}
