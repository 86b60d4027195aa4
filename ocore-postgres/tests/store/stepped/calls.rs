//! The calls that are stepped, and the scenes in which they meet.

use std::time::Duration;

use ocore_core::{
    id::{DeploymentId, WorkerId},
    name::{EnvironmentName, InstanceName, PoolName},
    port::{
        Claim, Claimed, Commit, Committed, EnvironmentStore as _, Finish, LogLimit, LogStore as _, Next,
        QueueStore as _, SnapshotPin, SnapshotRecord, SnapshotStore as _, StoreError, StoreResult, Worker,
    },
    release::Snapshot,
    request::{NewDeployment, Trigger},
    testing::laws::store::lab,
};
use ocore_postgres::store::PostgresStore;

/// How the lane is when the calls begin. Three deployments were asked for; the first by hand, the others by a push.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scene {
    /// All wait.
    Free,
    /// The first is under way.
    Held,
    /// The first is under way; the lease of its worker has run out.
    Expired,
    /// The first is under way, and waits for a worker.
    Released,
    /// The first has stranded.
    Stranded,
    /// The first has ended, and has left a snapshot.
    Ended,
}

/// A call. The holder is the worker of the first deployment, if anybody works on it; numbers are those of other workers, and
/// of deployments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Call {
    Claim(u64),
    Beat,
    Continue,
    FreshFence,
    Release,
    Finish,
    Strand,
    Succeed,
    Append,
    Retire,
    Cancel(u64),
    Enqueue(u64),
    Push(u64),
    Keyed(u64),
    Rollback(u64),
    Recover(u64),
    Acknowledge,
    Pause,
    Move,
    RetireSnapshots,
    ForgetSnapshots,
    Pin,
}

/// What calls are made with: a lane in a scene.
#[derive(Clone)]
pub(crate) struct Lane {
    holder: Worker,
    claim: Option<Box<Claim>>,
}

const LEASE: Duration = Duration::from_secs(5);

/// After so long the holder's lease has run out, and that of no other worker.
pub(crate) const LEASE_OVER: Duration = Duration::from_secs(6);

fn name() -> EnvironmentName {
    lab::name("a")
}

fn worker(number: u64, lease: Duration) -> Worker {
    Worker::new(WorkerId::from_u128(u128::from(number)), vec![PoolName::default()], lease)
}

fn other(number: u64) -> Worker {
    worker(number, LEASE * 100)
}

fn requested(number: u64, trigger: Trigger) -> NewDeployment {
    lab::new_deployment(number, &name(), trigger)
}

fn first() -> DeploymentId {
    lab::id(1)
}

fn references() -> [String; 1] {
    ["snapshot".to_owned()]
}

impl Lane {
    /// Brings an empty store to where a scene begins, but for the time that has to pass.
    pub(crate) async fn prepare(store: &PostgresStore, scene: Scene) -> StoreResult<Self> {
        let environment = lab::environment("a", |spec| spec.policy(|policy| policy.supersede = true));
        store.save_environment(&environment).await?;
        let holder = worker(1, LEASE);
        store.heartbeat(&holder).await?;
        for number in [2, 3] {
            store.heartbeat(&other(number)).await?;
        }
        for (number, trigger) in
            [(1, Trigger::Manual), (2, Trigger::Retry { of: first() }), (3, Trigger::Push)]
        {
            store.enqueue(requested(number, trigger), lab::at(0)).await?;
        }
        let mut lane = Self { holder, claim: None };
        if scene != Scene::Free {
            lane.begin(store).await?;
        }
        let end = match scene {
            Scene::Released => Some(Call::Release),
            Scene::Stranded => Some(Call::Strand),
            Scene::Ended => Some(Call::Succeed),
            Scene::Free | Scene::Held | Scene::Expired => None,
        };
        if let Some(end) = end {
            lane.make(end, store).await?;
        }
        Ok(lane)
    }

    /// The holder claims the first deployment, and takes a snapshot.
    async fn begin(&mut self, store: &PostgresStore) -> StoreResult<()> {
        let Claimed::Work(mut claim) = store.claim(&self.holder, &[]).await? else {
            panic!("the first deployment waits")
        };
        let mut commit = lab::go_on(&self.holder, &claim);
        let snapshot = Snapshot::new(references()[0].clone(), lab::at(1), 7);
        let instance = InstanceName::new("web").expect("the name is allowed");
        commit.snapshots.push(SnapshotRecord::new(name(), first(), instance, snapshot, None));
        store.commit(&commit).await?;
        claim.deployment = commit.deployment;
        self.claim = Some(claim);
        Ok(())
    }

    /// Makes the call; its answer in words.
    pub(crate) async fn answer(&self, call: Call, store: &PostgresStore) -> String {
        self.make(call, store).await.unwrap_or_else(|error| in_words(&error))
    }

    async fn make(&self, call: Call, store: &PostgresStore) -> StoreResult<String> {
        Ok(match call {
            Call::Claim(number) => match store.claim(&other(number), &[]).await? {
                // How long to wait is a hint.
                Claimed::Idle { .. } => NOTHING.to_owned(),
                claimed => format!("{claimed:?}"),
            },
            Call::Beat => format!("{:?}", store.heartbeat(&self.holder).await?),
            Call::Continue
            | Call::FreshFence
            | Call::Release
            | Call::Finish
            | Call::Strand
            | Call::Succeed => committed(&store.commit(&self.commit(call)).await?),
            Call::Append => {
                let (fence, lines) = (self.claimed().fence, vec![lab::line("appended")]);
                store.append(&name(), first(), fence, lines, LogLimit::DEFAULT).await?.to_string()
            }
            Call::Retire => format!("{:?}", store.retire(self.holder.id).await?),
            Call::Cancel(number) => {
                format!("{:?}", store.request_cancel(lab::id(number), "ada", lab::at(4)).await?)
            }
            Call::Enqueue(number) => enqueue(store, requested(number, Trigger::Manual)).await?,
            Call::Push(number) => enqueue(store, requested(number, Trigger::Push)).await?,
            Call::Keyed(number) => {
                let mut new = requested(number, Trigger::Manual);
                new.request.key = Some("delivery".to_owned());
                enqueue(store, new).await?
            }
            Call::Rollback(number) => {
                enqueue(store, requested(number, Trigger::Rollback { to: first() })).await?
            }
            Call::Recover(number) => {
                enqueue(store, requested(number, Trigger::Recovery { of: first() })).await?
            }
            Call::Acknowledge => {
                format!("{:?}", store.acknowledge(&name(), first(), "eve", lab::at(5)).await?)
            }
            Call::Pause => store.set_paused(&name(), Some("ada".to_owned())).await?.to_string(),
            Call::Move => {
                let environment = lab::environment("a", |spec| spec.pool("far"));
                format!("{:?}", store.save_environment(&environment).await?)
            }
            Call::RetireSnapshots => {
                format!("{:?}", store.retire_snapshots(&name(), &references(), lab::at(9)).await?)
            }
            Call::ForgetSnapshots => format!("{:?}", store.forget_snapshots(&name(), &references()).await?),
            Call::Pin => {
                let pin = SnapshotPin::new("ada", "to look at", lab::at(6));
                store.pin_snapshots(&name(), first(), &pin).await?.to_string()
            }
        })
    }

    fn claimed(&self) -> &Claim {
        self.claim.as_ref().expect("somebody works on the first deployment")
    }

    fn commit(&self, call: Call) -> Commit {
        let (holder, claim) = (&self.holder, self.claimed());
        let mut finish = Finish::default();
        finish.claim_next = true;
        let mut commit = match call {
            Call::Release => lab::release(holder, claim, Duration::ZERO),
            Call::Finish => lab::fail(holder, claim, finish),
            Call::Strand => {
                finish.attention = Some(true);
                lab::fail(holder, claim, finish)
            }
            Call::Succeed => lab::succeed(holder, claim, &lab::live(&claim.environment, first())),
            _ => lab::go_on(holder, claim),
        };
        if let Next::Continue { fresh_fence } = &mut commit.next {
            *fresh_fence = call == Call::FreshFence;
        }
        commit.events = vec![lab::line("committed")];
        commit
    }
}

/// What a claim answers that has found nothing: also one that went past a lane which somebody had locked.
pub(crate) const NOTHING: &str = "nothing to claim";

async fn enqueue(store: &PostgresStore, new: NewDeployment) -> StoreResult<String> {
    Ok(format!("{:?}", store.enqueue(new, lab::at(3)).await?))
}

fn committed(committed: &Committed) -> String {
    format!("{committed:?}")
}

fn in_words(error: &StoreError) -> String {
    let mut text = format!("an error: {error}");
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text += &format!(": {cause}");
        source = cause.source();
    }
    text
}
