//! A lane's row: who holds it, what comes next, and its place in the line.

use ocore_core::{
    id::{DeploymentId, Fence, WorkerId},
    name::EnvironmentName,
    port::LaneQueue,
};
use sqlx::SqliteConnection;

use super::row::{bytes, count, deployment_id, deployment_ids, uncount, worker_bytes, worker_id};

pub(super) struct Lane {
    pub(super) name: EnvironmentName,
    pub(super) paused: bool,
    pub(super) attention: Option<DeploymentId>,
    pub(super) acknowledged: Vec<DeploymentId>,
    pub(super) active: Option<DeploymentId>,
    pub(super) holder: Option<WorkerId>,
    pub(super) due: i64,
    pub(super) lost_if_forgotten: bool,
    pub(super) fence: Fence,
    pub(super) seq: u64,
    ticket: Option<i64>,
    place: Place,
}

/// Where a claim looks for the lane.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    Nowhere,
    Waiting,
    Free,
}

type Columns =
    (bool, Option<Vec<u8>>, Option<Vec<u8>>, Option<Vec<u8>>, i64, bool, i64, i64, Option<i64>, Vec<u8>);

impl Lane {
    pub(super) async fn find(
        db: &mut SqliteConnection,
        name: &EnvironmentName,
    ) -> sqlx::Result<Option<Self>> {
        let row = sqlx::query_as::<_, Columns>(
            "SELECT paused, attention, active, holder, due, lost_if_forgotten, fence, seq, ticket,
                    acknowledged
             FROM lanes WHERE name = ?1",
        );
        let Some(row) = row.bind(name.as_str()).fetch_optional(db).await? else { return Ok(None) };
        let (paused, attention, active, holder, due, lost_if_forgotten, fence, seq, ticket, acknowledged) =
            row;
        let id = |bytes: Option<Vec<u8>>| bytes.as_deref().map(deployment_id).transpose();
        let (attention, active) = (id(attention)?, id(active)?);
        let holder = holder.as_deref().map(worker_id).transpose()?;
        let place = match ticket {
            None => Place::Nowhere,
            Some(_) if active.is_some() => Place::Waiting,
            Some(_) => Place::Free,
        };
        let (name, fence, seq) = (name.clone(), Fence::new(uncount(fence)), uncount(seq));
        Ok(Some(Self {
            name,
            paused,
            attention,
            acknowledged: deployment_ids(&acknowledged)?,
            active,
            holder,
            due,
            lost_if_forgotten,
            fence,
            seq,
            ticket,
            place,
        }))
    }

    /// The lane of a stored deployment.
    pub(super) async fn of(db: &mut SqliteConnection, name: &EnvironmentName) -> sqlx::Result<Self> {
        Self::find(db, name).await?.ok_or(sqlx::Error::RowNotFound)
    }

    /// Writes the lane back, with its place in the line.
    pub(super) async fn save(&self, db: &mut SqliteConnection) -> sqlx::Result<()> {
        let next = self.runnable(db).await?;
        let place = match (self.active, self.holder) {
            (Some(_), Some(_)) => Place::Nowhere,
            (Some(_), None) => Place::Waiting,
            (None, _) if next.is_some() => Place::Free,
            (None, _) => Place::Nowhere,
        };
        let ticket = match place {
            Place::Nowhere => None,
            place if place == self.place => self.ticket,
            _ => Some(last_ticket(db).await? + 1),
        };
        let update = sqlx::query(
            "UPDATE lanes SET paused = ?2, attention = ?3, active = ?4, holder = ?5, due = ?6,
                    lost_if_forgotten = ?7, fence = ?8, seq = ?9, next = ?10, ticket = ?11,
                    acknowledged = ?12
             WHERE name = ?1",
        );
        let update = update
            .bind(self.name.as_str())
            .bind(self.paused)
            .bind(self.attention.map(bytes))
            .bind(self.active.map(bytes))
            .bind(self.holder.map(worker_bytes))
            .bind(self.due)
            .bind(self.lost_if_forgotten)
            .bind(count(self.fence.get()))
            .bind(count(self.seq))
            .bind(next.map(bytes))
            .bind(ticket)
            .bind(self.acknowledged.iter().copied().flat_map(bytes).collect::<Vec<u8>>());
        update.execute(db).await.map(drop)
    }

    /// The deployment to be started next: the queue's rule, asked about those that it could choose.
    pub(super) async fn runnable(&self, db: &mut SqliteConnection) -> sqlx::Result<Option<DeploymentId>> {
        if self.active.is_some() {
            return Ok(None);
        }
        let first = sqlx::query_as::<_, (Vec<u8>, Option<Vec<u8>>)>(
            "SELECT id, recovers FROM deployments WHERE environment = ?1 AND phase = 'waiting'
             ORDER BY seq LIMIT 1",
        );
        let first = first.bind(self.name.as_str()).fetch_optional(&mut *db).await?;
        let mut candidates = Vec::from_iter(first);
        if let Some(stranded) = self.attention {
            candidates.extend(recovery(db, &self.name, stranded).await?);
        }
        let mut queue = self.queue();
        for (id, recovers) in candidates {
            queue.waiting.push((deployment_id(&id)?, recovers.as_deref().map(deployment_id).transpose()?));
        }
        Ok(queue.runnable())
    }

    /// The lane as the queue's rules see it, without those that wait.
    pub(super) fn queue(&self) -> LaneQueue {
        let mut queue = LaneQueue::default();
        queue.paused = self.paused;
        queue.attention = self.attention;
        queue.active = self.active;
        queue
    }

    /// Whether this worker, with this fence, works on this deployment.
    pub(super) fn is_worked_on(&self, deployment: DeploymentId, worker: WorkerId, fence: Fence) -> bool {
        self.active == Some(deployment) && self.holder == Some(worker) && self.fence == fence
    }

    /// Whether the lane needs a person for this deployment, and its recovery neither waits nor is under way.
    pub(super) async fn waits_for(
        &self,
        db: &mut SqliteConnection,
        stranded: DeploymentId,
    ) -> sqlx::Result<bool> {
        Ok(self.attention == Some(stranded)
            && self.active.is_none()
            && recovery(db, &self.name, stranded).await?.is_none())
    }
}

/// The waiting recovery of a stranded deployment.
async fn recovery(
    db: &mut SqliteConnection,
    name: &EnvironmentName,
    stranded: DeploymentId,
) -> sqlx::Result<Option<(Vec<u8>, Option<Vec<u8>>)>> {
    let recovery = sqlx::query_as(
        "SELECT id, recovers FROM deployments
         WHERE environment = ?1 AND phase = 'waiting' AND answers = ?2 AND recovers = ?2",
    );
    recovery.bind(name.as_str()).bind(bytes(stranded)).fetch_optional(db).await
}

async fn last_ticket(db: &mut SqliteConnection) -> sqlx::Result<i64> {
    let last = sqlx::query_scalar("SELECT coalesce(max(ticket), 0) FROM lanes WHERE ticket IS NOT NULL");
    last.fetch_one(db).await
}
