//! What must hold when everything has come to rest.

use std::collections::{BTreeMap, BTreeSet};

use ocore_core::{
    deployment::Deployment,
    machine::Status,
    port::{Filter, SnapshotState},
    request::Goal,
};
use sqlx::{Connection as _, PgConnection};

use crate::{Result, SITES, Test, name};

#[derive(sqlx::FromRow)]
struct Site {
    name: String,
    fence: i64,
    up: Option<String>,
    data: Vec<String>,
}

pub(crate) async fn everything(test: &Test) -> Result<()> {
    let (mut wrong, mut known) = (Vec::new(), BTreeSet::new());
    let mut counts = BTreeMap::<Status, usize>::new();
    let mut recorded = BTreeSet::new();
    let mut db = PgConnection::connect(&test.url).await?;
    let sites: Vec<Site> = sqlx::query_as("SELECT * FROM world.sites").fetch_all(&mut db).await?;
    for index in 0..SITES {
        let name = name(index);
        let deployments = history(test, &name).await?;
        known.extend(deployments.iter().map(|it| it.id));
        for deployment in &deployments {
            *counts.entry(deployment.status()).or_default() += 1;
            recorded.extend(deployment.image.iter().map(|image| image.reference.clone()));
        }
        in_order(&deployments, &mut wrong);
        let record = test.engine.environment(&name).await?;
        let site = sites.iter().find(|site| site.name == name).ok_or("a site is gone")?;
        let live = record
            .live
            .as_ref()
            .map(|live| live.instances.values().next().map(|it| it.started.reference.clone()));
        expect(&mut wrong, site.up == live.clone().flatten(), || {
            format!("{name}: {:?} is up, and {live:?} is live", site.up)
        });
        let migrated: Vec<_> =
            deployments.iter().filter(|it| has_migrated(it)).map(|it| it.id.to_string()).collect();
        expect(&mut wrong, site.data == migrated, || {
            format!("{name}: the data was migrated by {:?}, and must be by {migrated:?}", site.data)
        });
        let fence = i64::try_from(record.fence.get())?;
        expect(&mut wrong, site.fence <= fence, || {
            format!("{name}: the world has seen {}, beyond {fence}", site.fence)
        });
        for snapshot in test.engine.snapshots(&name).await? {
            expect(&mut wrong, snapshot.state == SnapshotState::Kept, || {
                format!("{snapshot:?} was not removed")
            });
            recorded.insert(snapshot.snapshot.reference);
        }
    }
    eprintln!("{} deployments: {counts:?}", known.len());
    expect(&mut wrong, known == test.accepted, || {
        let lost: Vec<_> = test.accepted.difference(&known).collect();
        format!("what was accepted is not what the history has; lost: {lost:?}")
    });
    for status in [Status::Running, Status::RolledBack] {
        expect(&mut wrong, counts.contains_key(&status), || {
            format!("nothing ended {status}: nothing was tested")
        });
    }
    let rules: Vec<String> = sqlx::query_scalar("SELECT what FROM world.wrongs").fetch_all(&mut db).await?;
    wrong.extend(rules);
    // By the order in which the world let them in.
    let back: Vec<String> = sqlx::query_scalar(
        "SELECT e.site || ': ' || e.what || ' with fence ' || e.fence FROM (
             SELECT *, max(fence) OVER (PARTITION BY site ORDER BY n) AS most FROM world.effects
         ) AS e WHERE e.fence < e.most",
    )
    .fetch_all(&mut db)
    .await?;
    expect(&mut wrong, back.is_empty(), || format!("effects under an older fence: {back:?}"));
    let things: Vec<String> =
        sqlx::query_scalar("SELECT reference FROM world.things").fetch_all(&mut db).await?;
    let orphans: Vec<_> = things.iter().filter(|it| !recorded.contains(*it)).collect();
    expect(&mut wrong, orphans.is_empty(), || format!("no record names {orphans:?}"));
    db.close().await?;
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n").into()) }
}

fn expect(wrong: &mut Vec<String>, holds: bool, otherwise: impl FnOnce() -> String) {
    if !holds {
        wrong.push(otherwise());
    }
}

/// Whether the deployment has changed the data for good: rollbacks are of the code alone.
fn has_migrated(deployment: &Deployment) -> bool {
    deployment.status() == Status::Running && matches!(deployment.request.goal, Goal::Deploy(_))
}

/// All deployments of a site, oldest first.
async fn history(test: &Test, name: &str) -> Result<Vec<Deployment>> {
    let filter = Filter::environment(name.parse()?);
    let (mut deployments, mut before) = (Vec::new(), None);
    loop {
        let page = test.insist(|| test.engine.history(&filter, before, 100)).await?;
        deployments.extend(page.deployments);
        before = page.next;
        if before.is_none() {
            deployments.reverse();
            return Ok(deployments);
        }
    }
}

/// Every deployment is over, and none began before the one ahead of it was.
fn in_order(deployments: &[Deployment], wrong: &mut Vec<String>) {
    let mut last = None;
    for deployment in deployments {
        let id = deployment.id;
        expect(wrong, deployment.status().is_final(), || format!("{id} is {}", deployment.status()));
        let Some(started) = deployment.started_at else {
            expect(wrong, deployment.status() == Status::Cancelled, || format!("{id} never began"));
            continue;
        };
        expect(wrong, last.is_none_or(|(_, ended)| ended <= Some(started)), || {
            format!("{id} began at {started}, before the one ahead of it was over: {last:?}")
        });
        last = Some((id, deployment.finished_at));
    }
}
