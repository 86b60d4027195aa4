//! Every law is seen to fail, against a snapshotter that breaks exactly it.

use std::{sync::Mutex, time::Duration};

use chrono::DateTime;
use tokio::time::sleep;

use super::*;
use crate::{
    environment::{EnvironmentSpec, Instance, InstanceSpec},
    id::Fence,
    port::{Error, Leftovers},
    testing::laws::run,
};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Bug {
    None,
    AddsInsteadOfReplacing,
    RestoresOnce,
    WritesWhileTaking,
    OverwritesTheFirst,
    KeepsDataWhereNoneWas,
    SaysNothingHasASize,
    RestoresWhatIsCorrupt,
    EmptiesBeforeLooking,
    CannotRemoveTwice,
    RemovesAll,
    NoticesNothing,
    TakesWhenCancelled,
    RestoresWhenCancelled,
    LeavesHalf,
    RestoresByHalves,
    ForgetsFences,
    SweepsNothing,
    SweepsWhatIsRecorded,
    SweepsWhatIsOpen,
}

#[derive(Default)]
struct State {
    data: Option<Contents>,
    snapshots: BTreeMap<String, Option<Contents>>,
    corrupt: BTreeSet<String>,
    restored: BTreeSet<String>,
    fence: Fence,
}

struct Fake {
    bug: Bug,
    state: Mutex<State>,
}

fn fake(bug: Bug) -> Fake {
    Fake { bug, state: Mutex::default() }
}

impl Fake {
    fn is_stopped(&self, context: &Context, bug: Bug) -> Result<()> {
        if context.is_cancelled() && self.bug != bug { Err(Error::cancelled()) } else { Ok(()) }
    }
}

#[async_trait]
impl Snapshotter for Fake {
    async fn take(&self, context: &Context, instance: &Instance) -> Result<Snapshot> {
        self.is_stopped(context, Bug::TakesWhenCancelled)?;
        let stem = format!("{}-{}-{}", context.deployment(), instance.name, context.fence());
        if self.bug == Bug::LeavesHalf {
            self.state.lock().unwrap().snapshots.insert(format!("{stem}.half"), None);
        }
        sleep(Duration::from_millis(5)).await;
        let mut state = self.state.lock().unwrap();
        if self.bug == Bug::LeavesHalf && context.fence().get() > 1 {
            state.snapshots.remove(&format!("{stem}.half"));
        }
        let taken = (0..).map(|number| format!("{stem}.{number}"));
        let overwrites = self.bug == Bug::OverwritesTheFirst;
        let mut free = taken.filter(|name| overwrites || !state.snapshots.contains_key(name));
        let name = free.next().unwrap();
        if self.bug == Bug::WritesWhileTaking {
            state.data.get_or_insert_default().insert("written".into(), "x".into());
        }
        let data = state.data.clone();
        let size = if data.is_some() || self.bug == Bug::SaysNothingHasASize { 1 } else { 0 };
        state.snapshots.insert(name.clone(), data);
        Ok(Snapshot::new(name, DateTime::UNIX_EPOCH, size))
    }

    async fn restore(&self, context: &Context, _instance: &Instance, snapshot: &Snapshot) -> Result<()> {
        self.is_stopped(context, Bug::RestoresWhenCancelled)?;
        {
            let mut state = self.state.lock().unwrap();
            if state.fence > context.fence() && self.bug != Bug::ForgetsFences {
                return Err(Error::fenced());
            }
            state.fence = context.fence();
            if matches!(self.bug, Bug::RestoresByHalves | Bug::EmptiesBeforeLooking) {
                state.data = Some(Contents::new());
            }
        }
        sleep(Duration::from_millis(5)).await;
        let mut state = self.state.lock().unwrap();
        let is_corrupt =
            state.corrupt.contains(&snapshot.reference) && self.bug != Bug::RestoresWhatIsCorrupt;
        let data = state.snapshots.get(&snapshot.reference).filter(|_| !is_corrupt).cloned();
        let data = data.ok_or_else(|| Error::permanent("the snapshot is corrupt or not there"))?;
        if self.bug == Bug::RestoresOnce && !state.restored.insert(snapshot.reference.clone()) {
            return Ok(());
        }
        match (self.bug, data) {
            (Bug::AddsInsteadOfReplacing, Some(data)) => state.data.get_or_insert_default().extend(data),
            (Bug::KeepsDataWhereNoneWas, None) => {}
            (_, data) => state.data = data,
        }
        Ok(())
    }

    async fn changed_since(&self, _: &Context, _: &Instance, snapshot: &Snapshot) -> Result<bool> {
        let state = self.state.lock().unwrap();
        let same = state.snapshots.get(&snapshot.reference) == Some(&state.data);
        Ok(!same && self.bug != Bug::NoticesNothing)
    }

    async fn remove(&self, _context: &Context, snapshot: &Snapshot) -> Result<()> {
        let mut state = self.state.lock().unwrap();
        let half = snapshot.reference.ends_with(".half");
        let was_there = !half && state.snapshots.remove(&snapshot.reference).is_some();
        if self.bug == Bug::RemovesAll {
            state.snapshots.clear();
        }
        if !was_there && self.bug == Bug::CannotRemoveTwice {
            return Err(Error::permanent("it is not there"));
        }
        Ok(())
    }

    async fn sweep(&self, _context: &Context, leftovers: &Leftovers) -> Result<()> {
        let made_for = |name: &str| name.get(..36).and_then(|id| id.parse().ok());
        self.state.lock().unwrap().snapshots.retain(|name, _| match self.bug {
            Bug::SweepsNothing => true,
            Bug::SweepsWhatIsRecorded => !made_for(name).is_some_and(|id| leftovers.ended.contains(&id)),
            Bug::SweepsWhatIsOpen => leftovers.recorded.contains(name),
            _ => !made_for(name).is_some_and(|id| leftovers.include(id, name)),
        });
        Ok(())
    }
}

#[async_trait]
impl SnapshotterFixture for Fake {
    fn snapshotter(&self) -> &dyn Snapshotter {
        self
    }
    fn environment(&self) -> Arc<Environment> {
        let spec = EnvironmentSpec::new("laws", "https://git.example.org/laws.git");
        Arc::new(spec.instance(InstanceSpec::new("web")).try_into().unwrap())
    }
    async fn write(&self, data: Option<&Contents>) {
        self.state.lock().unwrap().data = data.cloned();
    }
    async fn read(&self) -> Option<Contents> {
        self.state.lock().unwrap().data.clone()
    }
    async fn corrupt(&self, snapshot: &Snapshot) -> bool {
        self.state.lock().unwrap().corrupt.insert(snapshot.reference.clone())
    }
    async fn made(&self) -> BTreeSet<String> {
        self.state.lock().unwrap().snapshots.keys().cloned().collect()
    }
    fn refuses_older_fences(&self) -> bool {
        true
    }
}

mod a_good_snapshotter {
    use super::{Bug, fake};
    snapshotter_laws!(fake(Bug::None));
}

macro_rules! seen_to_fail {
    ($($bug:ident: $law:ident,)*) => {
        mod seen_to_fail {
            $(
                #[expect(non_snake_case, reason = "named after the bug")]
                mod $bug {
                    #[test]
                    #[should_panic]
                    fn $law() {
                        super::super::run(super::super::super::$law(super::super::fake(super::super::Bug::$bug)));
                    }
                }
            )*
        }
    };
}

seen_to_fail! {
    AddsInsteadOfReplacing: a_restore_puts_back_exactly_what_was_there,
    RestoresOnce: a_restore_can_be_made_again,
    WritesWhileTaking: taking_changes_nothing,
    OverwritesTheFirst: taking_again_gives_another_snapshot,
    KeepsDataWhereNoneWas: restoring_a_snapshot_of_nothing_removes_the_data,
    SaysNothingHasASize: a_snapshot_of_nothing_occupies_nothing,
    RestoresWhatIsCorrupt: a_corrupt_snapshot_is_refused_and_the_data_untouched,
    EmptiesBeforeLooking: a_snapshot_that_is_not_there_is_refused_and_the_data_untouched,
    CannotRemoveTwice: removing_twice_succeeds,
    RemovesAll: removing_one_snapshot_spares_the_others,
    NoticesNothing: a_write_is_noticed,
    TakesWhenCancelled: a_cancelled_take_leaves_nothing,
    RestoresWhenCancelled: a_cancelled_restore_changes_nothing,
    LeavesHalf: a_dropped_take_leaves_nothing_unfinished,
    RestoresByHalves: a_dropped_restore_leaves_old_or_new_data,
    ForgetsFences: an_older_fence_restores_nothing,
    SweepsNothing: a_sweep_removes_what_no_record_names_and_nothing_else,
    SweepsWhatIsRecorded: a_sweep_removes_what_no_record_names_and_nothing_else,
    SweepsWhatIsOpen: a_sweep_removes_what_no_record_names_and_nothing_else,
}
