//! Every call of a store, each where it changes something, and all that can be seen of what it has changed.

use std::time::Duration;

use ocore_core::{
    event::NewEvent,
    id::{DeploymentId, EventSeq, WorkerId},
    name::{EnvironmentName, InstanceName, PoolName},
    port::{
        Claim, Claimed, Commit, EnvironmentStore as _, Filter, Finish, HistoryStore as _, LogLimit,
        LogStore as _, QueueStore as _, SnapshotPin, SnapshotRecord, SnapshotStore as _, StoreResult, Worker,
    },
    release::Snapshot,
    request::Trigger,
    testing::laws::store::lab,
};
use ocore_postgres::store::PostgresStore;
use sqlx::PgConnection;

use crate::place::Place;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    Save,
    Pause,
    Acknowledge,
    Enqueue,
    Heartbeat,
    Claim,
    Continue,
    Release,
    Finish,
    Succeed,
    Cancel,
    CancelQueued,
    Retire,
    Append,
    RetireSnapshots,
    ForgetSnapshots,
    Pin,
    Read,
}

pub(crate) const CALLS: [Call; 18] = [
    Call::Save,
    Call::Pause,
    Call::Acknowledge,
    Call::Enqueue,
    Call::Heartbeat,
    Call::Claim,
    Call::Continue,
    Call::Release,
    Call::Finish,
    Call::Succeed,
    Call::Cancel,
    Call::CancelQueued,
    Call::Retire,
    Call::Append,
    Call::RetireSnapshots,
    Call::ForgetSnapshots,
    Call::Pin,
    Call::Read,
];

/// What a store is looked at with, by connections that nobody disturbs.
pub(crate) struct Eyes {
    place: Place,
    store: PostgresStore,
    db: PgConnection,
}

impl Eyes {
    pub(crate) async fn open(place: &Place) -> Self {
        let place = Place { url: place.url.clone(), schema: place.schema.clone() };
        let (store, db) = (place.open().await, place.connect().await);
        Self { place, store, db }
    }

    pub(crate) const fn store(&self) -> &PostgresStore {
        &self.store
    }

    pub(crate) async fn count(&mut self, query: &str) -> i64 {
        self.place.count_on(&mut self.db, query).await
    }
}

/// A lane in a pool of its own, with deployments and a worker of its own: brought to where a call changes something.
#[derive(Clone)]
pub(crate) struct Scene {
    call: Call,
    number: u64,
    pub(crate) lane: EnvironmentName,
    worker: Worker,
    claim: Option<Box<Claim>>,
}

/// How many ids each scene has.
const IDS: u64 = 8;

impl Scene {
    /// # Panics
    /// If the store does not answer as it should.
    pub(crate) async fn begin(store: &PostgresStore, call: Call, number: u64) -> Self {
        let lane = lab::name(&format!("lane-{number}"));
        let pool = PoolName::new(format!("pool-{number}")).expect("the name is allowed");
        let id = WorkerId::from_u128(u128::from(number) << 64 | 0xabcd);
        let worker = Worker::new(id, vec![pool], Duration::from_secs(1000));
        let mut scene = Self { call, number, lane, worker, claim: None };
        if call != Call::Save {
            scene.save(store).await.expect("the environment can be saved");
        }
        if !matches!(call, Call::Save | Call::Enqueue | Call::Heartbeat) {
            for id in 0..2 {
                scene.enqueue(store, id).await.expect("it can be enqueued");
            }
        }
        if !matches!(call, Call::Save | Call::Enqueue | Call::Heartbeat) {
            store.heartbeat(&scene.worker).await.expect("the worker is new");
        }
        let claimed =
            !matches!(call, Call::Save | Call::Pause | Call::Enqueue | Call::Heartbeat | Call::Claim);
        if claimed {
            match store.claim(&scene.worker, &[]).await.expect("the store answers") {
                Claimed::Work(claim) => scene.claim = Some(claim),
                other => panic!("a deployment waits: {other:?}"),
            }
        }
        if matches!(call, Call::RetireSnapshots | Call::ForgetSnapshots | Call::Pin) {
            scene.commit_snapshots(store).await;
        }
        if matches!(call, Call::RetireSnapshots | Call::ForgetSnapshots) {
            // While a deployment is under way, its snapshots stay.
            let commit = lab::fail(&scene.worker, scene.claimed(), Finish::default());
            store.commit(&commit).await.expect("the lane is held");
        }
        if call == Call::ForgetSnapshots {
            store
                .retire_snapshots(&scene.lane, &scene.references(), lab::at(9))
                .await
                .expect("they are there");
        }
        if call == Call::Acknowledge {
            let mut finish = Finish::default();
            finish.attention = Some(true);
            let commit = lab::fail(&scene.worker, scene.claimed(), finish);
            store.commit(&commit).await.expect("the lane is held");
        }
        scene
    }

    fn id(&self, number: u64) -> DeploymentId {
        lab::id(self.number * IDS + number + 1)
    }

    fn claimed(&self) -> &Claim {
        self.claim.as_ref().expect("the lane was claimed")
    }

    fn references(&self) -> [String; 1] {
        [format!("snapshot-{}", self.number)]
    }

    async fn save(&self, store: &PostgresStore) -> StoreResult<String> {
        let environment =
            lab::environment(self.lane.as_str(), |spec| spec.pool(self.worker.pools[0].to_string()));
        store.save_environment(&environment).await.map(|_| String::new())
    }

    async fn enqueue(&self, store: &PostgresStore, id: u64) -> StoreResult<String> {
        let mut new = lab::new_deployment(1, &self.lane, Trigger::Manual);
        new.id = self.id(id);
        store.enqueue(new, lab::at(0)).await.map(|_| String::new())
    }

    fn with_events(&self, mut commit: Commit) -> Commit {
        commit.events = self.events();
        commit
    }

    fn events(&self) -> Vec<NewEvent> {
        ["one line", "and another"].map(lab::line).to_vec()
    }

    async fn commit_snapshots(&mut self, store: &PostgresStore) {
        let mut commit = lab::go_on(&self.worker, self.claimed());
        let snapshot = Snapshot::new(self.references()[0].clone(), lab::at(1), 7);
        let instance = InstanceName::new("web").expect("the name is allowed");
        commit.snapshots.push(SnapshotRecord::new(self.lane.clone(), self.id(0), instance, snapshot, None));
        store.commit(&commit).await.expect("the lane is held");
        let claim = self.claim.as_mut().expect("the lane was claimed");
        claim.deployment = commit.deployment;
    }

    /// Makes the call; its answer in words, for calls that answer the same when they are made again.
    ///
    /// # Errors
    /// The store's.
    pub(crate) async fn make(&self, store: &PostgresStore) -> StoreResult<String> {
        let answer = |text: String| self.alike(&text);
        match self.call {
            Call::Save => self.save(store).await,
            Call::Pause => {
                store.set_paused(&self.lane, Some("ada".to_owned())).await.map(|it| it.to_string())
            }
            Call::Acknowledge => {
                let acknowledged = store.acknowledge(&self.lane, self.id(0), "ada", lab::at(5)).await;
                acknowledged.map(|_| String::new())
            }
            Call::Enqueue => self.enqueue(store, 0).await,
            Call::Heartbeat => store.heartbeat(&self.worker).await.map(|it| format!("{it:?}")),
            Call::Claim => match store.claim(&self.worker, &[]).await? {
                Claimed::Work(claim) => Ok(answer(format!("{:?}", claim.deployment.request))),
                other => panic!("a deployment waits: {other:?}"),
            },
            Call::Continue => self.commit(store, lab::go_on(&self.worker, self.claimed())).await,
            Call::Release => {
                self.commit(store, lab::release(&self.worker, self.claimed(), Duration::from_secs(3))).await
            }
            Call::Finish => {
                let mut finish = Finish::default();
                finish.claim_next = true;
                self.commit(store, lab::fail(&self.worker, self.claimed(), finish)).await
            }
            Call::Succeed => {
                let live = lab::live(&self.claimed().environment, self.id(0));
                self.commit(store, lab::succeed(&self.worker, self.claimed(), &live)).await
            }
            Call::Cancel => {
                store.request_cancel(self.id(0), "ada", lab::at(4)).await.map(|it| format!("{it:?}"))
            }
            Call::CancelQueued => {
                store.request_cancel(self.id(1), "ada", lab::at(4)).await.map(|_| String::new())
            }
            Call::Retire => store.retire(self.worker.id).await.map(|()| String::new()),
            Call::Append => {
                let fence = self.claimed().fence;
                let appended =
                    store.append(&self.lane, self.id(0), fence, self.events(), LogLimit::DEFAULT).await;
                appended.map(|it| it.to_string())
            }
            Call::RetireSnapshots => store
                .retire_snapshots(&self.lane, &self.references(), lab::at(9))
                .await
                .map(|_| String::new()),
            Call::ForgetSnapshots => {
                store.forget_snapshots(&self.lane, &self.references()).await.map(|()| String::new())
            }
            Call::Pin => {
                let pin = SnapshotPin::new("ada", "to look at", lab::at(6));
                store.pin_snapshots(&self.lane, self.id(0), &pin).await.map(|it| it.to_string())
            }
            Call::Read => self.visible(store).await.map(answer),
        }
    }

    async fn commit(&self, store: &PostgresStore, commit: Commit) -> StoreResult<String> {
        let committed = store.commit(&self.with_events(commit)).await?;
        Ok(self.alike(&format!("{committed:?}")))
    }

    /// Whether a call that is made again adds to what it did before.
    pub(crate) fn adds(&self) -> bool {
        self.call == Call::Append
    }

    /// All that can be seen of the lane, without what differs from scene to scene.
    ///
    /// # Panics
    /// If the store cannot be read.
    pub(crate) async fn seen(&self, eyes: &mut Eyes) -> String {
        let visible = self.visible(&eyes.store).await.expect("the store can be read");
        let worker = format!("{:032x}", self.worker.id.as_u128());
        let known = format!(
            "SELECT coalesce(sum(1 + over::integer), 0) FROM ocore.workers WHERE id = '{worker}'::uuid"
        );
        self.alike(&format!("{visible}\nworker: {}", eyes.count(&known).await))
    }

    async fn visible(&self, store: &PostgresStore) -> StoreResult<String> {
        let mut filter = Filter::default();
        filter.environment = Some(self.lane.clone());
        let mut text = format!(
            "{:#?}\n{:#?}\n{:#?}\n{:#?}",
            store.environment(&self.lane).await?,
            store.lane(&self.lane).await?,
            store.history(&filter, None, 10).await?,
            store.snapshots(&self.lane).await?,
        );
        for id in 0..2 {
            let events = store.events(self.id(id), EventSeq::new(0), 100).await?;
            text += &format!("\n{events:#?}\n{:#?}", store.deployment(self.id(id)).await?);
        }
        Ok(text)
    }

    /// The same text for every scene. Fences follow the clock.
    fn alike(&self, text: &str) -> String {
        let mut text = text.replace(self.lane.as_str(), "lane");
        for (own, name) in
            [(self.references()[0].as_str(), "snapshot"), (self.worker.pools[0].as_str(), "pool")]
        {
            text = text.replace(own, name);
        }
        for id in 0..IDS {
            text = text.replace(&self.id(id).to_string(), &format!("id-{id}"));
        }
        let mut parts = text.split("Fence(");
        let begin = parts.next().unwrap_or_default().to_owned();
        parts.fold(begin, |begin, part| begin + "Fence(…" + part.trim_start_matches(|c: char| c != ')'))
    }
}

/// The first lines that differ.
pub(crate) fn difference(left: &str, right: &str) -> Option<String> {
    let lines = left.lines().chain(std::iter::repeat("")).zip(right.lines().chain(std::iter::repeat("")));
    let most = left.lines().count().max(right.lines().count());
    let mut differing = lines.take(most).enumerate().filter(|(_, (left, right))| left != right);
    differing.next().map(|(line, (left, right))| format!("line {line}: {left:?} instead of {right:?}"))
}
