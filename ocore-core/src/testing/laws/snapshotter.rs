//! The laws of [`Snapshotter`].

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use async_trait::async_trait;

use super::{
    caller::{Caller, drop_early, eventually, leftovers},
    declare_laws,
};
use crate::{
    environment::Environment,
    port::{Context, ErrorKind, Result, Snapshotter},
    release::Snapshot,
};

declare_laws! {
    $
    /// Expands to one test per law of the snapshotter. Takes an expression that makes a
    /// [`SnapshotterFixture`](crate::testing::laws::snapshotter::SnapshotterFixture) whose instance has no data yet;
    /// it may `await`.
    snapshotter_laws, snapshotter, [
        a_restore_puts_back_exactly_what_was_there,
        a_restore_can_be_made_again,
        taking_changes_nothing,
        taking_again_gives_another_snapshot,
        restoring_a_snapshot_of_nothing_removes_the_data,
        a_snapshot_of_nothing_occupies_nothing,
        a_corrupt_snapshot_is_refused_and_the_data_untouched,
        a_snapshot_that_is_not_there_is_refused_and_the_data_untouched,
        removing_twice_succeeds,
        removing_one_snapshot_spares_the_others,
        a_write_is_noticed,
        a_cancelled_take_leaves_nothing,
        a_cancelled_restore_changes_nothing,
        a_dropped_take_leaves_nothing_unfinished,
        a_dropped_restore_leaves_old_or_new_data,
        an_older_fence_restores_nothing,
        a_sweep_removes_what_no_record_names_and_nothing_else,
    ]
}

/// An instance's data: names with values.
pub type Contents = BTreeMap<String, String>;

/// A snapshotter, and an instance with data.
#[async_trait]
pub trait SnapshotterFixture: Send + Sync {
    /// The snapshotter.
    fn snapshotter(&self) -> &dyn Snapshotter;
    /// An environment whose first instance has the data.
    fn environment(&self) -> Arc<Environment>;
    /// Makes the data be exactly this, in place, as an application would; `None`: there is no data.
    async fn write(&self, data: Option<&Contents>);
    /// All of the data, or `None` if there is none.
    async fn read(&self) -> Option<Contents>;
    /// Damages a snapshot in a way that a restore must notice; `false` where that cannot be done.
    async fn corrupt(&self, snapshot: &Snapshot) -> bool;
    /// The names of everything that the snapshotter has made and that is still there, unfinished things included,
    /// wherever it is kept, but for the data itself.
    async fn made(&self) -> BTreeSet<String>;
    /// Whether calls with an older fence are refused.
    fn refuses_older_fences(&self) -> bool;
}

fn contents(pairs: &[(&str, &str)]) -> Contents {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn old() -> Contents {
    contents(&[("kept", "same"), ("changed", "old"), ("removed", "was here"), ("empty", "")])
}

fn new() -> Contents {
    contents(&[("kept", "same"), ("changed", "new, and longer"), ("added", "is here"), ("empty", "")])
}

/// A fixture with a caller.
struct Case<F> {
    fixture: F,
    caller: Caller,
}

impl<F: SnapshotterFixture> Case<F> {
    /// With the old data in place.
    async fn new(fixture: F) -> Self {
        let caller = Caller::new(fixture.environment());
        fixture.write(Some(&old())).await;
        Self { fixture, caller }
    }

    async fn take(&self, fence: u64) -> Snapshot {
        let context = self.caller.call(1, fence);
        let taken = self.fixture.snapshotter().take(&context, self.caller.instance()).await;
        taken.expect("a snapshot can be taken")
    }

    async fn try_restore(&self, context: Context, snapshot: &Snapshot) -> Result<()> {
        self.fixture.snapshotter().restore(&context, self.caller.instance(), snapshot).await
    }

    async fn restore(&self, fence: u64, snapshot: &Snapshot) {
        let restored = self.try_restore(self.caller.call(1, fence), snapshot).await;
        restored.expect("a snapshot can be restored");
    }

    async fn expect(&self, data: Option<Contents>, why: &str) {
        assert_eq!(self.fixture.read().await, data, "{why}");
    }
}

/// Everything is as it was: what was changed, added and removed since.
pub async fn a_restore_puts_back_exactly_what_was_there(fixture: impl SnapshotterFixture) {
    let case = Case::new(fixture).await;
    let snapshot = case.take(1).await;
    case.fixture.write(Some(&new())).await;
    case.restore(2, &snapshot).await;
    case.expect(Some(old()), "the data is not what it was when the snapshot was taken").await;
}

/// *Called again*: the same result, also after something was written in between, or all of it removed.
pub async fn a_restore_can_be_made_again(fixture: impl SnapshotterFixture) {
    let case = Case::new(fixture).await;
    let snapshot = case.take(1).await;
    for written in [Some(new()), None, Some(old())] {
        case.fixture.write(written.as_ref()).await;
        for _ in 0..2 {
            case.restore(1, &snapshot).await;
            case.expect(Some(old()), "another restore gives other data").await;
        }
    }
    case.restore(3, &snapshot).await;
    case.expect(Some(old()), "a restore with a newer fence gives other data").await;
}

/// *Must not* disturb the application.
pub async fn taking_changes_nothing(fixture: impl SnapshotterFixture) {
    let case = Case::new(fixture).await;
    case.take(1).await;
    case.expect(Some(old()), "taking a snapshot has changed the data").await;
}

/// *Called again*: another snapshot, under another name; the first stays what it is.
pub async fn taking_again_gives_another_snapshot(fixture: impl SnapshotterFixture) {
    let case = Case::new(fixture).await;
    let first = case.take(1).await;
    case.fixture.write(Some(&new())).await;
    let (second, third) = (case.take(1).await, case.take(2).await);
    let names = BTreeSet::from([&first.reference, &second.reference, &third.reference]);
    assert_eq!(names.len(), 3, "two snapshots have one name: {names:?}");
    for (snapshot, data) in [(first, old()), (second, new()), (third, new())] {
        case.restore(3, &snapshot).await;
        case.expect(Some(data), "a later snapshot has changed an earlier one").await;
    }
}

/// The first deployment of an instance: undone, there is nothing again.
pub async fn restoring_a_snapshot_of_nothing_removes_the_data(fixture: impl SnapshotterFixture) {
    let case = Case::new(fixture).await;
    case.fixture.write(None).await;
    let snapshot = case.take(1).await;
    case.fixture.write(Some(&new())).await;
    for _ in 0..2 {
        case.restore(1, &snapshot).await;
        case.expect(None, "data stays where there was none").await;
    }
}

/// Zero bytes say that there was no data; a snapshot of data has more.
pub async fn a_snapshot_of_nothing_occupies_nothing(fixture: impl SnapshotterFixture) {
    let case = Case::new(fixture).await;
    assert!(case.take(1).await.size_bytes > 0, "a snapshot of data occupies something");
    case.fixture.write(None).await;
    assert_eq!(case.take(2).await.size_bytes, 0, "a snapshot of nothing occupies nothing");
}

async fn expect_refusal<F: SnapshotterFixture>(case: &Case<F>, snapshot: &Snapshot) {
    case.fixture.write(Some(&new())).await;
    let error = case.try_restore(case.caller.call(1, 2), snapshot).await;
    let error = error.expect_err("the restore is refused");
    assert_eq!(error.kind(), ErrorKind::Permanent, "{error}");
    case.expect(Some(new()), "a restore that was refused has changed the data").await;
}

/// *Errors*: a wrong checksum.
pub async fn a_corrupt_snapshot_is_refused_and_the_data_untouched(fixture: impl SnapshotterFixture) {
    let case = Case::new(fixture).await;
    let snapshot = case.take(1).await;
    if case.fixture.corrupt(&snapshot).await {
        expect_refusal(&case, &snapshot).await;
    }
}

/// *Errors*: a snapshot that is not there.
pub async fn a_snapshot_that_is_not_there_is_refused_and_the_data_untouched(
    fixture: impl SnapshotterFixture,
) {
    let case = Case::new(fixture).await;
    let snapshot = case.take(1).await;
    let removed = case.fixture.snapshotter().remove(&case.caller.call(1, 1), &snapshot).await;
    removed.expect("a snapshot can be removed");
    expect_refusal(&case, &snapshot).await;
}

/// *Called again*: succeeds if it is gone.
pub async fn removing_twice_succeeds(fixture: impl SnapshotterFixture) {
    let case = Case::new(fixture).await;
    let before = case.fixture.made().await;
    let snapshot = case.take(1).await;
    for _ in 0..2 {
        let removed = case.fixture.snapshotter().remove(&case.caller.call(2, 2), &snapshot).await;
        removed.expect("a snapshot can be removed twice");
    }
    assert_eq!(case.fixture.made().await, before, "something stays of a snapshot that was removed");
    case.expect(Some(old()), "removing a snapshot has changed the data").await;
}

/// Retention removes one and keeps another.
pub async fn removing_one_snapshot_spares_the_others(fixture: impl SnapshotterFixture) {
    let case = Case::new(fixture).await;
    let (one, other) = (case.take(1).await, case.take(2).await);
    let removed = case.fixture.snapshotter().remove(&case.caller.call(1, 2), &one).await;
    removed.expect("a snapshot can be removed");
    case.fixture.write(Some(&new())).await;
    case.restore(2, &other).await;
    case.expect(Some(old()), "another snapshot has changed").await;
}

/// What was written since would be lost by a rollback: never said to be nothing.
pub async fn a_write_is_noticed(fixture: impl SnapshotterFixture) {
    let case = Case::new(fixture).await;
    let mut same_length = old();
    same_length.insert("changed".to_owned(), "OLD".to_owned());
    for written in [Some(same_length), Some(new()), None] {
        case.fixture.write(Some(&old())).await;
        let snapshot = case.take(1).await;
        case.fixture.write(written.as_ref()).await;
        let context = case.caller.call(1, 1);
        let changed = case.fixture.snapshotter().changed_since(&context, case.caller.instance(), &snapshot);
        assert!(changed.await.expect("it can be told"), "nothing was noticed of {written:?}");
    }
}

/// A cancelled call stops, says so, and leaves nothing.
pub async fn a_cancelled_take_leaves_nothing(fixture: impl SnapshotterFixture) {
    let case = Case::new(fixture).await;
    let before = case.fixture.made().await;
    let taken = case.fixture.snapshotter().take(&case.caller.cancelled(1, 1), case.caller.instance()).await;
    let error = taken.expect_err("a cancelled call takes no snapshot");
    assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
    assert_eq!(case.fixture.made().await, before, "something stays of a cancelled call");
}

/// A cancelled call stops, says so, and has changed nothing.
pub async fn a_cancelled_restore_changes_nothing(fixture: impl SnapshotterFixture) {
    let case = Case::new(fixture).await;
    let snapshot = case.take(1).await;
    case.fixture.write(Some(&new())).await;
    let before = case.fixture.made().await;
    let error = case.try_restore(case.caller.cancelled(1, 1), &snapshot).await;
    let error = error.expect_err("a cancelled call restores nothing");
    assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
    case.expect(Some(new()), "a cancelled restore has changed the data").await;
    assert_eq!(case.fixture.made().await, before, "something stays of a cancelled call");
}

/// How often a call is given up and made again with the same fence: its thread may still be at work then.
const DROPS: usize = 3;

/// A call whose future is dropped stops; the next call removes what it could not remove itself.
pub async fn a_dropped_take_leaves_nothing_unfinished(fixture: impl SnapshotterFixture) {
    let case = Case::new(fixture).await;
    let before = case.fixture.made().await;
    for _ in 0..DROPS {
        drop_early(case.fixture.snapshotter().take(&case.caller.call(1, 1), case.caller.instance())).await;
    }
    let snapshot = case.take(1).await;
    case.fixture.write(Some(&new())).await;
    case.restore(1, &snapshot).await;
    case.expect(Some(old()), "the snapshot after a dropped one holds other data").await;
    let removed = case.fixture.snapshotter().remove(&case.caller.call(1, 2), &snapshot).await;
    removed.expect("a snapshot can be removed");
    let settled = || async {
        // A snapshot that was finished before the drop is a snapshot like another.
        let made = case.fixture.made().await;
        for name in made.difference(&before) {
            let finished = Snapshot::new(name, snapshot.taken_at, 1);
            let remove = case.fixture.snapshotter().remove(&case.caller.call(1, 2), &finished).await;
            drop(remove);
        }
        case.fixture.made().await == before
    };
    eventually("nothing of the dropped call stays", settled).await;
}

/// Dropped at some moment: the old data or the new; and the next call has its way.
pub async fn a_dropped_restore_leaves_old_or_new_data(fixture: impl SnapshotterFixture) {
    let case = Case::new(fixture).await;
    let snapshot = case.take(1).await;
    let before = case.fixture.made().await;
    case.fixture.write(Some(&new())).await;
    for _ in 0..DROPS {
        drop_early(case.try_restore(case.caller.call(1, 2), &snapshot)).await;
        let data = case.fixture.read().await;
        assert!([Some(old()), Some(new())].contains(&data), "a mixture after a dropped restore: {data:?}");
    }
    case.restore(2, &snapshot).await;
    case.expect(Some(old()), "the restore after a dropped one gives other data").await;
    eventually("nothing of the dropped call stays", || async { case.fixture.made().await == before }).await;
}

/// A worker that has lost its lane may still be at work.
pub async fn an_older_fence_restores_nothing(fixture: impl SnapshotterFixture) {
    let case = Case::new(fixture).await;
    if !case.fixture.refuses_older_fences() {
        return;
    }
    let snapshot = case.take(4).await;
    case.restore(6, &snapshot).await;
    case.fixture.write(Some(&new())).await;
    let error = case.try_restore(case.caller.call(1, 5), &snapshot).await;
    let error = error.expect_err("an older fence is refused");
    assert_eq!(error.kind(), ErrorKind::Permanent, "{error}");
    case.expect(Some(new()), "a call with an older fence has changed the data").await;
}

/// What a worker took that was killed before it could record it is removed when its deployment is over.
pub async fn a_sweep_removes_what_no_record_names_and_nothing_else(fixture: impl SnapshotterFixture) {
    let case = Case::new(fixture).await;
    let case = &case;
    let take = |deployment, fence| {
        let context = case.caller.call(deployment, fence);
        async move { case.fixture.snapshotter().take(&context, case.caller.instance()).await }
    };
    let (recorded, other) = (take(1, 1).await, take(2, 2).await);
    let (recorded, other) =
        (recorded.expect("a snapshot can be taken"), other.expect("another can be taken"));
    let kept = case.fixture.made().await;
    drop_early(take(1, 3)).await;
    take(1, 4).await.expect("a snapshot can be taken again");
    let leftovers = leftovers(&[1, 3], [&recorded.reference]);
    let swept = || async {
        let swept = case.fixture.snapshotter().sweep(&case.caller.call(1, 4), &leftovers).await;
        swept.expect("leftovers can be removed");
        case.fixture.made().await == kept
    };
    eventually("what is left is removed, and nothing else", swept).await;
    assert!(swept().await, "another sweep removes something else");
    case.expect(Some(old()), "a sweep has changed the data").await;
    for snapshot in [recorded, other] {
        case.fixture.write(Some(&new())).await;
        case.restore(5, &snapshot).await;
        case.expect(Some(old()), "a sweep has damaged a snapshot that is kept").await;
    }
}

#[cfg(test)]
mod tests;
