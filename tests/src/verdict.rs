//! What must hold when everything has come to rest.

use std::collections::BTreeSet;

use futures::FutureExt as _;
use ocore_core::{
    deployment::Deployment,
    id::EventSeq,
    machine::{Outcome, State},
    port::{
        EnvironmentStore as _, Filter, HistoryStore as _, LogStore as _, SnapshotState, SnapshotStore as _,
    },
    release::Window,
    testing::memory::MemoryStore,
};

use crate::journal::{Accepted, Journal, Journals, Moments, Track, Write};

/// A value that the fake source prints, and that must be found nowhere.
pub(crate) const CANARY: &str = "canary-6f1d0c3a9b";

/// Checks everything that can be checked at rest; the violations are in the journal.
pub(crate) fn check(journal: &Journal, store: &MemoryStore, thorough: bool) {
    let mut accepted = journal.lock();
    journal.check_world(&mut accepted, "at rest");
    for rule in journal.world().broken_rules() {
        accepted.blame(format!("the world: {rule}"));
    }
    let records =
        now(store.history(&Filter::environment(journal.environment().clone()), None, 1000)).deployments;
    for record in &records {
        if record.outcome().is_none() {
            accepted.blame(format!(
                "I1: {} is not over: {}",
                record.id,
                record.state.step().map_or("", |s| s.as_str())
            ));
        }
    }
    check_live(journal, store, &mut accepted);
    check_writes(journal, &mut accepted);
    check_snapshots(journal, store, &mut accepted);
    if thorough {
        check_secrets(journal, store, &records, &mut accepted);
    }
}

fn check_live(journal: &Journal, store: &MemoryStore, accepted: &mut Accepted) {
    let Some(record) = now(store.environment(journal.environment())) else { return };
    if record.live.as_deref() != accepted.live.as_ref() {
        accepted.blame(format!("I5: {:?} is recorded as live, not {:?}", record.live, accepted.live));
    }
    if record.active.is_some() || record.queued > 0 || record.attention.is_some() {
        accepted.blame(format!("L1: the environment is not quiet: {record:?}"));
    }
}

/// No acknowledged write is lost, but those that an undo or a rollback is known to lose.
fn check_writes(journal: &Journal, accepted: &mut Accepted) {
    let mut lost = Vec::new();
    for instance in journal.instances() {
        let writes = accepted.writes.iter().filter(|write| write.instance == *instance);
        journal.world().with_data(journal.environment(), instance, |data| {
            let held = data.map_or(&[][..], |data| &data.writes);
            let missing = writes.filter(|write| held.binary_search(&write.number).is_err());
            lost.extend(missing.filter(|write| !is_excused(accepted, write)).cloned());
        });
    }
    for write in lost.iter().take(3) {
        accepted.blame(format!("I6: an acknowledged write is lost: {write:?}"));
    }
}

/// Only a write that is newer than the snapshot that was put back may be gone.
fn is_excused(accepted: &Accepted, write: &Write) -> bool {
    let newer = |moments: &Moments| moments.get(&write.instance).is_some_and(|taken| write.number > *taken);
    // Known to be lost: what the release wrote that was undone, and what came between the snapshot and the stop.
    let known = |track: &Track| {
        let window = matches!(track.record.windows.get(&write.instance), Some(Window::Open(_)));
        track.record.id == write.by || window
    };
    accepted.tracks.values().any(|track| {
        let restored = track.restores.iter().any(|(at, moments)| *at >= write.at && newer(moments));
        // A recovery undoes what the stranded deployment did, which may have been a recovery as well.
        let undone = restored && accepted.recovered_by(track).any(known);
        let rolled_back = matches!(track.record.outcome(), Some(Outcome::Running(_)))
            && track.finished_at.is_some_and(|ended| write.at <= ended)
            && newer(&track.loads);
        undone || rolled_back
    })
}

/// Every snapshot that is offered is there, and every one that is pinned is offered.
fn check_snapshots(journal: &Journal, store: &MemoryStore, accepted: &mut Accepted) {
    let mut pinned = accepted.pinned.clone();
    for record in now(store.snapshots(journal.environment())) {
        let kept = record.state == SnapshotState::Kept;
        if kept {
            pinned.remove(&record.snapshot.reference);
        }
        if kept && journal.world().with_snapshot(&record.snapshot.reference, |_| ()).is_none() {
            accepted.blame(format!("I12: the snapshot {} is gone", record.snapshot.reference));
        }
    }
    for reference in pinned {
        accepted.blame(format!("I12: the snapshot {reference} is gone, which is pinned"));
    }
}

/// What is left over is bounded: by what retention keeps, and by one thing for each time that something was broken
/// off (I18).
pub(crate) fn check_leftovers(journals: &Journals, store: &MemoryStore, broken_off: u64) {
    let broken_off = usize::try_from(broken_off).unwrap_or(usize::MAX);
    let mut most = [broken_off; 3];
    for journal in journals.all() {
        let Some(record) = now(store.environment(journal.environment())) else { return };
        let kept = now(store.snapshots(journal.environment()));
        let kept = kept.iter().filter(|record| record.state == SnapshotState::Kept).count();
        let instances = journal.instances().len();
        most[1] += record.environment.policy().retention.images_last + 1;
        most[2] += kept + broken_off * instances;
    }
    let there = journals.first().world().counts();
    let mut accepted = journals.first().lock();
    for ((what, there), most) in ["checkouts", "images", "snapshots"].iter().zip(there).zip(most) {
        if there > most {
            accepted.blame(format!("I18: {there} {what} are left, and not at most {most}"));
        }
    }
}

/// Nothing is there that no record names: what killed workers have left is removed (I18).
pub(crate) fn orphans(journals: &Journals, store: &MemoryStore) -> BTreeSet<String> {
    let mut there = journals.first().world().made();
    for journal in journals.all() {
        let filter = Filter::environment(journal.environment().clone());
        for deployment in now(store.history(&filter, None, 1000)).deployments {
            there.retain(|it| deployment.image.as_ref().is_none_or(|image| image.reference != *it));
        }
        for record in now(store.snapshots(journal.environment())) {
            there.remove(&record.snapshot.reference);
        }
    }
    there
}

/// No secret is stored anywhere.
fn check_secrets(journal: &Journal, store: &MemoryStore, records: &[Deployment], accepted: &mut Accepted) {
    let record = now(store.environment(journal.environment()));
    let snapshots = now(store.snapshots(journal.environment()));
    if format!("{record:?} {snapshots:?}").contains(CANARY) {
        accepted
            .blame(format!("I17: a secret is in the record of {}, or of a snapshot", journal.environment()));
    }
    for record in records {
        let events = now(store.events(record.id, EventSeq::default(), 10_000));
        let json = serde_json::to_string(&(record, &events)).unwrap_or_default();
        if json.contains(CANARY) {
            accepted.blame(format!("I17: a secret is in the record or the log of {}", record.id));
        }
        let lines = events.len();
        if lines > 2000 {
            accepted.blame(format!("I18: {} has {lines} events", record.id));
        }
        if matches!(record.state, State::Finished(_)) && record.finished_at.is_none() {
            accepted.blame(format!("{} is over, but nobody knows since when", record.id));
        }
    }
}

/// The in-memory store answers at once.
pub(crate) fn now<T>(answer: impl Future<Output = ocore_core::port::StoreResult<T>>) -> T {
    let answer = answer.now_or_never().expect("the store in memory never waits");
    answer.expect("the store in memory never fails")
}
