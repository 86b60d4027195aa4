//! The deployments of all times.

use ocore_core::{
    deployment::Deployment,
    id::DeploymentId,
    port::{Filter, Page},
};
use sqlx::{FromRow, PgConnection, Postgres, QueryBuilder};
use uuid::Uuid;

use super::{
    row::{Record, deployment_id, names, nanos, uuid},
    sql::Sql,
};

pub(super) async fn deployment(
    db: &mut PgConnection,
    sql: &Sql,
    id: DeploymentId,
) -> sqlx::Result<Option<Deployment>> {
    Record::find(db, sql, id).await
}

#[derive(FromRow)]
struct Row {
    id: Uuid,
    #[sqlx(flatten)]
    record: Record,
}

pub(super) async fn page(
    db: &mut PgConnection,
    sql: &Sql,
    filter: Filter,
    before: Option<DeploymentId>,
    limit: usize,
) -> sqlx::Result<Page> {
    let mut query = select(sql, &filter, before);
    let one_more = i64::try_from(limit).unwrap_or(i64::MAX).saturating_add(1);
    query.push(" LIMIT ").push_bind(one_more);
    let query = query.build_query_as::<Row>().persistent(sql.is_prepared());
    let mut rows = query.fetch_all(db).await?;
    let more = rows.len() > limit;
    rows.truncate(limit);
    let last = rows.last().filter(|_| more).map(|row| deployment_id(row.id));
    let mut page = Page::new(Vec::new(), last);
    for row in rows {
        match row.record.read() {
            Ok(deployment) => page.deployments.push(deployment),
            Err(error) => {
                let id = deployment_id(row.id);
                tracing::error!(deployment = %id, %error, "the deployment is left out of the history");
                page.unreadable.push(id);
            }
        }
    }
    Ok(page)
}

/// The query, put together from fixed parts: values are bound.
fn select(sql: &Sql, filter: &Filter, before: Option<DeploymentId>) -> QueryBuilder<Postgres> {
    let mut query = QueryBuilder::new("SELECT id, record, seq, version, begun, cancel FROM ");
    let table = sql.text("ocore.deployments");
    query.push(table.as_str()).push(" WHERE TRUE");
    if let Some(environment) = &filter.environment {
        query.push(" AND environment = ").push_bind(environment.as_str().to_owned());
    }
    match (before, &filter.environment) {
        (Some(id), Some(environment)) => {
            query
                .push(" AND seq < (SELECT seq FROM ")
                .push(table.as_str())
                .push(" WHERE id = ")
                .push_bind(uuid(id));
            query.push(" AND environment = ").push_bind(environment.as_str().to_owned()).push(")");
        }
        (Some(id), None) => {
            query.push(" AND number < (SELECT number FROM ").push(table.as_str());
            query.push(" WHERE id = ").push_bind(uuid(id)).push(")");
        }
        (None, _) => {}
    }
    if !filter.statuses.is_empty() {
        let statuses = names(filter.statuses.iter().map(|status| status.as_str()));
        query.push(" AND status = ANY (").push_bind(statuses).push(")");
    }
    if !filter.triggers.is_empty() {
        query.push(" AND trigger_kind = ANY (").push_bind(filter.triggers.clone()).push(")");
    }
    if let Some(since) = filter.since {
        query.push(" AND requested_at >= ").push_bind(nanos(since));
    }
    if let Some(until) = filter.until {
        query.push(" AND requested_at < ").push_bind(nanos(until));
    }
    if let Some(id) = filter.answers {
        query
            .push(" AND (answers = ")
            .push_bind(uuid(id))
            .push(" OR target = ")
            .push_bind(uuid(id))
            .push(")");
    }
    if let Some(key) = &filter.key {
        query.push(" AND key = ").push_bind(key.clone());
    }
    if let Some(id) = filter.replaced {
        query.push(" AND replaced = ").push_bind(uuid(id));
    }
    query.push(if filter.environment.is_some() { " ORDER BY seq DESC" } else { " ORDER BY number DESC" });
    query
}
