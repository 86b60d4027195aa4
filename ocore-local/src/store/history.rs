//! The deployments of all times.

use ocore_core::{
    deployment::Deployment,
    id::DeploymentId,
    port::{Filter, Page},
};
use sqlx::{QueryBuilder, Sqlite, SqliteConnection};

use super::row::{bytes, decode, deployment_id, list, nanos};

pub(super) async fn deployment(
    db: &mut SqliteConnection,
    id: DeploymentId,
) -> sqlx::Result<Option<Deployment>> {
    let record = sqlx::query_scalar::<_, String>("SELECT record FROM deployments WHERE id = ?1");
    let record = record.bind(bytes(id)).fetch_optional(db).await?;
    record.map(|record| decode("a deployment", &record)).transpose()
}

pub(super) async fn page(
    db: &mut SqliteConnection,
    filter: Filter,
    before: Option<DeploymentId>,
    limit: usize,
) -> sqlx::Result<Page> {
    let mut query = select(&filter, before);
    let one_more = i64::try_from(limit).unwrap_or(i64::MAX).saturating_add(1);
    query.push(" LIMIT ").push_bind(one_more);
    let mut rows: Vec<(Vec<u8>, String)> = query.build_query_as().fetch_all(db).await?;
    let more = rows.len() > limit;
    rows.truncate(limit);
    let last = rows.last().filter(|_| more).map(|(id, _)| deployment_id(id)).transpose()?;
    let mut page = Page::new(Vec::new(), last);
    for (id, record) in rows {
        match decode("a deployment", &record) {
            Ok(deployment) => page.deployments.push(deployment),
            Err(error) => {
                let id = deployment_id(&id)?;
                tracing::error!(deployment = %id, %error, "the deployment is left out of the history");
                page.unreadable.push(id);
            }
        }
    }
    Ok(page)
}

/// The query, put together from fixed parts: values are bound.
pub(super) fn select(filter: &Filter, before: Option<DeploymentId>) -> QueryBuilder<Sqlite> {
    let mut query = QueryBuilder::new("SELECT id, record FROM deployments WHERE TRUE");
    if let Some(environment) = &filter.environment {
        query.push(" AND environment = ").push_bind(environment.as_str().to_owned());
    }
    match (before, &filter.environment) {
        (Some(id), Some(environment)) => {
            query.push(" AND seq < (SELECT seq FROM deployments WHERE id = ").push_bind(bytes(id));
            query.push(" AND environment = ").push_bind(environment.as_str().to_owned()).push(")");
        }
        (Some(id), None) => {
            query
                .push(" AND number < (SELECT number FROM deployments WHERE id = ")
                .push_bind(bytes(id))
                .push(")");
        }
        (None, _) => {}
    }
    if !filter.statuses.is_empty() {
        let statuses = list(filter.statuses.iter().map(|status| status.as_str()));
        query.push(" AND status IN (SELECT value FROM json_each(").push_bind(statuses).push("))");
    }
    if !filter.triggers.is_empty() {
        let triggers = list(filter.triggers.iter().cloned());
        query.push(" AND trigger_kind IN (SELECT value FROM json_each(").push_bind(triggers).push("))");
    }
    if let Some(since) = filter.since {
        query.push(" AND requested_at >= ").push_bind(nanos(since));
    }
    if let Some(until) = filter.until {
        query.push(" AND requested_at < ").push_bind(nanos(until));
    }
    if let Some(id) = filter.answers {
        query.push(" AND ").push_bind(bytes(id)).push(" IN (answers, target)");
    }
    if let Some(key) = &filter.key {
        query.push(" AND key = ").push_bind(key.clone());
    }
    if let Some(id) = filter.replaced {
        query.push(" AND replaced = ").push_bind(bytes(id));
    }
    query.push(if filter.environment.is_some() { " ORDER BY seq DESC" } else { " ORDER BY number DESC" });
    query
}
