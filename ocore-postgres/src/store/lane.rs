//! A lane's row, locked: who changes a lane, or what belongs to it, has this lock first.

use ocore_core::{
    id::{DeploymentId, Fence},
    name::EnvironmentName,
    port::LaneQueue,
};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{
    row::{deployment_id, uncount, uuid},
    sql::Sql,
};

pub(super) struct Lane {
    pub(super) name: EnvironmentName,
    pub(super) paused: bool,
    pub(super) attention: Option<DeploymentId>,
    pub(super) active: Option<DeploymentId>,
    pub(super) fence: Fence,
    pub(super) seq: u64,
}

pub(super) type Columns = (bool, Option<Uuid>, Option<Uuid>, i64, i64);

impl Lane {
    /// The lane, and its lock until the transaction ends.
    pub(super) async fn lock(
        db: &mut PgConnection,
        sql: &Sql,
        name: &EnvironmentName,
    ) -> sqlx::Result<Option<Self>> {
        let row = sql
            .rows("SELECT paused, attention, active, fence, seq FROM ocore.lanes WHERE name = $1 FOR UPDATE");
        Ok(row.bind(name.as_str()).fetch_optional(db).await?.map(|row| Self::read(name, row)))
    }

    pub(super) fn read(name: &EnvironmentName, row: Columns) -> Self {
        let (paused, attention, active, fence, seq) = row;
        Self {
            name: name.clone(),
            paused,
            attention: attention.map(deployment_id),
            active: active.map(deployment_id),
            fence: Fence::new(uncount(fence)),
            seq: uncount(seq),
        }
    }

    /// The lane as the queue's rules see it, without those that wait.
    pub(super) fn queue(&self) -> LaneQueue {
        let mut queue = LaneQueue::default();
        queue.paused = self.paused;
        queue.attention = self.attention;
        queue.active = self.active;
        queue
    }

    /// Whether the lane needs a person for this deployment, and its recovery neither waits nor is under way.
    pub(super) async fn waits_for(
        &self,
        db: &mut PgConnection,
        sql: &Sql,
        stranded: DeploymentId,
    ) -> sqlx::Result<bool> {
        if self.attention != Some(stranded) || self.active.is_some() {
            return Ok(false);
        }
        let recovery = sql.scalar(
            "SELECT NOT EXISTS (SELECT FROM ocore.deployments
                                WHERE environment = $1 AND phase = 'waiting' AND recovers = $2)",
        );
        recovery.bind(self.name.as_str()).bind(uuid(stranded)).fetch_one(db).await
    }
}
