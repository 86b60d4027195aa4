//! The environments and what they serve.

use ocore_core::{
    deployment::Deployment,
    environment::Environment,
    id::{DeploymentId, Fence},
    name::EnvironmentName,
    port::{Acknowledged, EnvironmentRecord, LaneQueue, Saved},
    stored,
};
use sqlx::SqliteConnection;

use super::{
    claim::{read_live, read_settings},
    lane::Lane,
    queue::all_waiting,
    row::{decode, deployment_id, uncount},
};

pub(super) async fn save(db: &mut SqliteConnection, environment: Environment) -> sqlx::Result<Saved> {
    let wanted = environment.resources();
    for (record, active) in records(db, None).await? {
        let name = record.environment.name();
        let taken = record.resources(active.as_ref());
        if name != environment.name()
            && let Some(resource) = wanted.intersection(&taken).next()
        {
            return Ok(Saved::Conflict { resource: resource.clone(), environment: name.clone() });
        }
    }
    let name = environment.name().as_str();
    let known = sqlx::query_scalar::<_, i64>("SELECT count(*) FROM lanes WHERE name = ?1");
    let known = known.bind(name).fetch_one(&mut *db).await? > 0;
    let save = sqlx::query(
        "INSERT INTO lanes (name, pool, settings) VALUES (?1, ?2, ?3)
         ON CONFLICT (name) DO UPDATE SET pool = excluded.pool, settings = excluded.settings",
    );
    save.bind(name).bind(environment.pool().as_str()).bind(stored::encode(&environment)).execute(db).await?;
    Ok(if known { Saved::Updated } else { Saved::Created })
}

pub(super) async fn find(
    db: &mut SqliteConnection,
    name: EnvironmentName,
) -> sqlx::Result<Option<EnvironmentRecord>> {
    Ok(records(db, Some(&name)).await?.pop().map(|(record, _)| record))
}

pub(super) async fn all(db: &mut SqliteConnection) -> sqlx::Result<Vec<EnvironmentRecord>> {
    Ok(records(db, None).await?.into_iter().map(|(record, _)| record).collect())
}

type Columns = (String, bool, Option<Vec<u8>>, Option<String>, Option<Vec<u8>>, i64, i64, Option<String>);

/// Environments, by name, each with the deployment that is under way.
async fn records(
    db: &mut SqliteConnection,
    name: Option<&EnvironmentName>,
) -> sqlx::Result<Vec<(EnvironmentRecord, Option<Deployment>)>> {
    let rows = sqlx::query_as::<_, Columns>(
        "SELECT settings, paused, attention, live, active, fence,
                (SELECT count(*) FROM deployments WHERE environment = lanes.name AND phase = 'waiting'),
                (SELECT record FROM deployments WHERE id = lanes.active)
         FROM lanes WHERE ?1 IS NULL OR name = ?1 ORDER BY name",
    );
    let rows = rows.bind(name.map(EnvironmentName::as_str)).fetch_all(db).await?;
    rows.into_iter().map(record).collect()
}

fn record(row: Columns) -> sqlx::Result<(EnvironmentRecord, Option<Deployment>)> {
    let (settings, paused, attention, live, active, fence, queued, deployment) = row;
    let mut record = EnvironmentRecord::new(read_settings(&settings)?);
    record.paused = paused;
    record.attention = attention.as_deref().map(deployment_id).transpose()?;
    record.live = read_live(live)?;
    record.active = active.as_deref().map(deployment_id).transpose()?;
    record.fence = Fence::new(uncount(fence));
    record.queued = uncount(queued);
    let deployment = deployment.map(|text| decode("the active deployment", &text)).transpose()?;
    Ok((record, deployment))
}

pub(super) async fn set_paused(
    db: &mut SqliteConnection,
    name: EnvironmentName,
    paused: bool,
) -> sqlx::Result<bool> {
    let Some(mut lane) = Lane::find(db, &name).await? else { return Ok(false) };
    lane.paused = paused;
    lane.save(db).await?;
    Ok(true)
}

pub(super) async fn acknowledge(
    db: &mut SqliteConnection,
    name: EnvironmentName,
    stranded: DeploymentId,
) -> sqlx::Result<Acknowledged> {
    let Some(mut lane) = Lane::find(db, &name).await? else { return Ok(Acknowledged::NotWaiting) };
    if !lane.waits_for(db, stranded).await? {
        return Ok(Acknowledged::NotWaiting);
    }
    lane.attention = None;
    lane.save(db).await?;
    Ok(Acknowledged::Done)
}

pub(super) async fn lane(
    db: &mut SqliteConnection,
    name: EnvironmentName,
) -> sqlx::Result<Option<LaneQueue>> {
    let Some(lane) = Lane::find(db, &name).await? else { return Ok(None) };
    let mut queue = lane.queue();
    queue.waiting = all_waiting(db, &name).await?;
    Ok(Some(queue))
}
