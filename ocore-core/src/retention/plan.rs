use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};

use super::{Reason, Removal, Retention, Verdict};
use crate::{
    deployment::between,
    id::DeploymentId,
    name::InstanceName,
    port::{EnvironmentRecord, SnapshotRecord, SnapshotState},
};

/// What must not be removed, whatever the rules say.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Protected {
    /// The deployment that is live: its snapshot is the way back from it.
    pub live: Option<DeploymentId>,
    /// The deployments that may yet restore their own snapshots: one that is under way, one that waits for a person.
    pub needed: BTreeSet<DeploymentId>,
    /// The environment's instances: a deployment that took snapshots of only some of them is no way back for all.
    pub instances: BTreeSet<InstanceName>,
    /// Whether nothing at all may be removed now: a rollback or a recovery waits or is under way, and may need any of
    /// them; or the environment needs a person, or has needed one and nothing has become Running since.
    pub held: bool,
}

impl Protected {
    /// What an environment's record says. It does not say whether a rollback is in the queue: the store does, when
    /// snapshots are [retired](crate::port::SnapshotStore::retire_snapshots).
    #[must_use]
    pub fn by(record: &EnvironmentRecord) -> Self {
        Self {
            live: record.live.as_ref().map(|live| live.deployment),
            needed: record.active.into_iter().chain(record.attention).collect(),
            instances: record.environment.instances().iter().map(|it| it.name.clone()).collect(),
            held: record.attention.is_some() || !record.acknowledged.is_empty(),
        }
    }
}

/// Decides about each of an environment's snapshots, by its reference and in the given order, which is that of
/// [`snapshots`](crate::port::SnapshotStore::snapshots): oldest deployment first. Nothing is removed by it.
///
/// *Guarantees*
/// * What is [`Protected`], pinned or the newest is kept, unless its removal has begun.
/// * A deployment's snapshots are kept or removed together, unless the removal of some has begun.
/// * Once the removals are made, the same plan at the same time removes nothing more, but what was postponed. (Unless
///   the clock was set back between two snapshots: what is dated too early counts as no older than those before it, as
///   long as these are there.)
/// * A rule that wants more keeps none less, as long as there is no limit of bytes. A larger limit keeps none less.
#[must_use]
pub fn plan(
    snapshots: &[SnapshotRecord],
    policy: &Retention,
    protected: &Protected,
    now: DateTime<Utc>,
) -> Vec<(String, Verdict)> {
    let mut groups = group(snapshots, now);
    protect(&mut groups, protected, now);
    want(&mut groups, policy, now);
    fit(&mut groups, policy);
    postpone(&mut groups, policy);
    if protected.held {
        groups.iter_mut().for_each(|it| it.reasons.insert(0, Reason::Held));
    }
    let groups: BTreeMap<_, _> = groups.into_iter().map(|it| (it.deployment, it)).collect();
    let verdict = |it: &SnapshotRecord| (it.snapshot.reference.clone(), groups[&it.deployment].verdict(it));
    snapshots.iter().map(verdict).collect()
}

/// The snapshots of one deployment.
struct Group<'a> {
    deployment: DeploymentId,
    records: Vec<&'a SnapshotRecord>,
    /// When the last of them was taken. None of those before it counts as younger, unless that was in the future.
    taken_at: DateTime<Utc>,
    /// Whether the removal of one has begun: together they can be restored no more, and are no rule's.
    going: bool,
    reasons: Vec<Reason>,
    removal: Removal,
}

impl Group<'_> {
    fn is_future(&self, now: DateTime<Utc>) -> bool {
        self.taken_at > now
    }

    fn size_bytes(&self) -> u64 {
        self.records.iter().fold(0, |sum, it| sum.saturating_add(it.snapshot.size_bytes))
    }

    fn is_of_all(&self, instances: &BTreeSet<InstanceName>) -> bool {
        instances.iter().all(|name| self.records.iter().any(|it| it.instance == *name))
    }

    fn verdict(&self, record: &SnapshotRecord) -> Verdict {
        let held = self.reasons.first() == Some(&Reason::Held);
        if self.reasons.is_empty() || (record.state == SnapshotState::Retired && !held) {
            Verdict::Remove { why: self.removal }
        } else {
            Verdict::Keep { reasons: self.reasons.clone() }
        }
    }
}

fn group(snapshots: &[SnapshotRecord], now: DateTime<Utc>) -> Vec<Group<'_>> {
    let (mut groups, mut places) = (Vec::<Group<'_>>::new(), BTreeMap::new());
    for record in snapshots {
        let place = *places.entry(record.deployment).or_insert_with(|| {
            groups.push(Group {
                deployment: record.deployment,
                records: Vec::new(),
                taken_at: DateTime::<Utc>::MIN_UTC,
                going: false,
                reasons: Vec::new(),
                removal: Removal::Unwanted,
            });
            groups.len() - 1
        });
        let group = &mut groups[place];
        group.records.push(record);
        group.taken_at = group.taken_at.max(record.snapshot.taken_at);
        if record.state == SnapshotState::Retired {
            (group.going, group.removal) = (true, Removal::Begun);
        }
    }
    // No snapshot is older than one that was taken before it: its clock may have been set back.
    let mut latest = DateTime::<Utc>::MIN_UTC;
    for group in groups.iter_mut().filter(|it| !it.is_future(now)) {
        latest = latest.max(group.taken_at);
        group.taken_at = latest;
    }
    groups
}

fn protect(groups: &mut [Group<'_>], protected: &Protected, now: DateTime<Utc>) {
    for group in groups.iter_mut() {
        if protected.live == Some(group.deployment) {
            group.reasons.push(Reason::Live);
        }
        if protected.needed.contains(&group.deployment) {
            group.reasons.push(Reason::Needed);
        }
        let pin = group.records.iter().find_map(|it| it.pin.as_ref().filter(|pin| pin.holds(now)));
        group.reasons.extend(pin.cloned().map(Reason::Pinned));
    }
    let usable = || (0..groups.len()).rev().filter(|place| !groups[*place].going);
    let newest = usable().next();
    let of_all = usable().find(|place| groups[*place].is_of_all(&protected.instances));
    for place in [newest, of_all.filter(|_| of_all != newest)].into_iter().flatten() {
        groups[place].reasons.push(Reason::Newest);
    }
}

fn want(groups: &mut [Group<'_>], policy: &Retention, now: DateTime<Utc>) {
    let Retention { snapshots_last: last, snapshots_age: age_max, snapshots_min: min, .. } = *policy;
    for (place, group) in groups.iter_mut().rev().filter(|it| !it.going).enumerate() {
        // The newest stays anyway.
        if (1..min).contains(&place) {
            group.reasons.push(Reason::Floor { min });
        }
        if group.is_future(now) {
            group.reasons.push(Reason::Future { taken_at: group.taken_at });
        }
        if place < last {
            group.reasons.push(Reason::Last { last });
        }
        if !group.is_future(now) && between(group.taken_at, now) < age_max {
            group.reasons.push(Reason::Young { age_max });
        }
    }
    for (period, mut left) in policy.snapshots_calendar.wanted() {
        let mut last = None;
        let dated = groups.iter_mut().rev().filter(|it| !it.going && !it.is_future(now));
        let mut dated = dated.peekable();
        while let Some(group) = dated.next() {
            let number = Some(policy.snapshots_calendar.number(period, group.taken_at));
            if left == 0 {
                break;
            }
            if number != last {
                group.reasons.push(Reason::NewestOf(period));
                (last, left) = (number, left - 1);
            } else if dated.peek().is_none() {
                group.reasons.push(Reason::OldestOf(period));
            }
        }
    }
}

/// Gives up the oldest until the rest is small enough.
fn fit(groups: &mut [Group<'_>], policy: &Retention) {
    let Some(bytes_max) = policy.snapshots_bytes_max else { return };
    let kept = groups.iter().filter(|it| !it.reasons.is_empty());
    let mut bytes = kept.fold(0_u64, |sum, it| sum.saturating_add(it.size_bytes()));
    for group in groups {
        let size = group.size_bytes();
        let may_go = !group.reasons.is_empty() && !group.reasons.iter().any(Reason::outweighs_size);
        if bytes > bytes_max && may_go && size > 0 {
            group.reasons.clear();
            group.removal = Removal::TooLarge { bytes_max };
            bytes = bytes.saturating_sub(size);
        }
    }
}

/// Leaves the youngest to the next clean-up if too many are to go. What has begun is ended first.
fn postpone(groups: &mut [Group<'_>], policy: &Retention) {
    let removals_max = policy.snapshots_removals_max;
    let begun = groups.iter().filter(|it| it.going && it.reasons.is_empty()).count();
    let fresh = groups.iter_mut().filter(|it| !it.going && it.reasons.is_empty());
    for group in fresh.skip(removals_max.saturating_sub(begun)) {
        group.reasons.push(Reason::Postponed { removals_max });
    }
}
