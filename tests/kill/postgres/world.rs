//! What workers act on: a world of tables, beside the store and apart from it, that notes every effect.

use std::{path::PathBuf, time::Duration};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use ocore_core::{
    engine::{Engine, Timing},
    environment::Instance,
    port::{
        Builder, Check, Checkout, Context, Error, HealthProbe, Leftovers, Observation, Result, Runtime,
        Snapshotter, Source,
    },
    release::{Commit, Image, LiveInstance, Release, Snapshot, Started},
    request::Revision,
};
use ocore_postgres::store::PostgresStore;
use sqlx::{PgPool, postgres::PgPoolOptions};

/// A release with this beginning of its commit's id is never healthy.
pub(crate) const BAD: &str = "bad";

/// How long a call takes at least.
const CALL: Duration = Duration::from_millis(15);

/// All adapters in one.
#[derive(Clone)]
pub(crate) struct World(PgPool);

/// The engine that works for `timing`; the store's schema is there.
pub(crate) async fn engine(
    url: &str,
    timing: Timing,
) -> std::result::Result<Engine, Box<dyn std::error::Error>> {
    let options: sqlx::postgres::PgConnectOptions = url.parse()?;
    let store = PostgresStore::builder(options.clone())
        .connections_max(4)
        .connect_timeout(Duration::from_millis(800));
    // The server may be about to start.
    let store = loop {
        match store.clone().open().await {
            Ok(store) => break store,
            Err(error) if error.kind() == ocore_core::port::StoreErrorKind::Broken => {
                return Err(error.into());
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    };
    let world = World(
        PgPoolOptions::new()
            .max_connections(3)
            .acquire_timeout(Duration::from_secs(2))
            .connect_lazy_with(options),
    );
    let engine = Engine::builder()
        .store(store)
        .source(world.clone())
        .builder(world.clone())
        .snapshotter(world.clone());
    Ok(engine.runtime(world.clone()).probe(world).timing(timing).workers(8).build()?)
}

impl World {
    /// One effect, if the call's fence is not older than one that was seen: in one transaction with its note.
    async fn effect(&self, context: &Context, what: &str, change: &'static str, value: &str) -> Result<()> {
        tokio::time::sleep(CALL).await;
        let lost = |error: sqlx::Error| Error::unanswered(format!("{what}: {error}"));
        let site = context.environment().name().to_string();
        let fence = i64::try_from(context.fence().get()).expect("a fence of a test is small");
        let mut transaction = self.0.begin().await.map_err(lost)?;
        let admitted = sqlx::query("UPDATE world.sites SET fence = $2 WHERE name = $1 AND fence <= $2");
        let admitted = admitted.bind(&site).bind(fence).execute(&mut *transaction).await.map_err(lost)?;
        if admitted.rows_affected() == 0 {
            return Err(Error::fenced());
        }
        sqlx::query(change).bind(&site).bind(value).execute(&mut *transaction).await.map_err(lost)?;
        let note =
            sqlx::query("INSERT INTO world.effects (site, deployment, fence, what) VALUES ($1, $2, $3, $4)");
        let note = note.bind(&site).bind(context.deployment().to_string()).bind(fence).bind(what);
        note.execute(&mut *transaction).await.map_err(lost)?;
        transaction.commit().await.map_err(lost)
    }

    async fn up(&self, context: &Context) -> Result<Option<String>> {
        let up = sqlx::query_scalar("SELECT up FROM world.sites WHERE name = $1");
        let up = up.bind(context.environment().name().as_str()).fetch_one(&self.0).await;
        up.map_err(|error| Error::transient(format!("look at the site: {error}")))
    }

    async fn thing(&self, kind: &str, context: &Context, reference: &str, data: &'static str) -> Result<()> {
        tokio::time::sleep(CALL).await;
        let made = sqlx::query(data).bind(reference).bind(context.deployment().to_string()).bind(kind);
        let made = made.bind(context.environment().name().as_str()).execute(&self.0).await;
        made.map(drop).map_err(|error| Error::unanswered(format!("make {reference}: {error}")))
    }

    async fn forget(&self, reference: &str) -> Result<()> {
        let forgotten = sqlx::query("DELETE FROM world.things WHERE reference = $1").bind(reference);
        forgotten.execute(&self.0).await.map(drop).map_err(|error| Error::transient(error.to_string()))
    }

    async fn sweep_things(&self, kind: &str, leftovers: &Leftovers) -> Result<()> {
        let ended: Vec<_> = leftovers.ended.iter().map(ToString::to_string).collect();
        let recorded: Vec<_> = leftovers.recorded.iter().cloned().collect();
        let swept = sqlx::query(
            "DELETE FROM world.things WHERE kind = $1 AND deployment = ANY ($2) AND reference <> ALL ($3)",
        );
        let swept = swept.bind(kind).bind(ended).bind(recorded).execute(&self.0).await;
        swept.map(drop).map_err(|error| Error::transient(error.to_string()))
    }
}

#[async_trait]
impl Source for World {
    async fn fetch(&self, _: &Context, revision: &Revision) -> Result<Commit> {
        let Revision::Commit(sha) = revision else {
            return Err(Error::permanent("only commits are asked for"));
        };
        Ok(Commit::new(sha, "A release", "A. Person", DateTime::UNIX_EPOCH))
    }
    async fn checkout(&self, _: &Context, commit: &Commit) -> Result<Checkout> {
        Ok(Checkout::new(PathBuf::from("/nowhere"), commit.clone()))
    }
    async fn discard(&self, _: &Context, _: Checkout) -> Result<()> {
        Ok(())
    }
}

#[async_trait]
impl Builder for World {
    async fn build(&self, context: &Context, checkout: &Checkout) -> Result<Image> {
        let reference = format!("image-{}-{}", context.deployment(), context.fence());
        let make = "INSERT INTO world.things (reference, deployment, kind) SELECT $1, $2, $3 WHERE $4::text IS NOT NULL
                    ON CONFLICT DO NOTHING";
        self.thing("image", context, &reference, make).await?;
        Ok(Image::new(reference).with_update(true).with_setting("sha", checkout.commit.sha.clone()))
    }
    async fn locate(&self, _: &Context, image: &Image) -> Result<bool> {
        let there = sqlx::query_scalar("SELECT EXISTS (SELECT FROM world.things WHERE reference = $1)");
        let there = there.bind(&image.reference).fetch_one(&self.0).await;
        there.map_err(|error| Error::transient(error.to_string()))
    }
    async fn remove(&self, _: &Context, image: &Image) -> Result<()> {
        self.forget(&image.reference).await
    }
    async fn sweep(&self, _: &Context, leftovers: &Leftovers) -> Result<()> {
        self.sweep_things("image", leftovers).await
    }
}

#[async_trait]
impl Snapshotter for World {
    async fn take(&self, context: &Context, _: &Instance) -> Result<Snapshot> {
        let now = Utc::now();
        let number = now.timestamp_nanos_opt().unwrap_or_default();
        let reference = format!("snapshot-{}-{}-{number}", context.deployment(), context.fence());
        let make = "INSERT INTO world.things (reference, deployment, kind, data)
                    SELECT $1, $2, $3, s.data FROM world.sites s WHERE s.name = $4";
        self.thing("snapshot", context, &reference, make).await?;
        Ok(Snapshot::new(reference, now, 1))
    }
    async fn restore(&self, context: &Context, _: &Instance, snapshot: &Snapshot) -> Result<()> {
        let change = "UPDATE world.sites s SET data = t.data FROM world.things t WHERE s.name = $1 AND t.reference = $2";
        self.effect(context, "restore", change, &snapshot.reference).await
    }
    async fn changed_since(&self, context: &Context, _: &Instance, snapshot: &Snapshot) -> Result<bool> {
        let same = sqlx::query_scalar(
            "SELECT s.data IS DISTINCT FROM t.data FROM world.sites s, world.things t WHERE s.name = $1 AND t.reference = $2",
        );
        let same = same.bind(context.environment().name().as_str()).bind(&snapshot.reference);
        let same: Option<bool> =
            same.fetch_optional(&self.0).await.map_err(|error| Error::transient(error.to_string()))?;
        Ok(same != Some(false))
    }
    async fn remove(&self, _: &Context, snapshot: &Snapshot) -> Result<()> {
        self.forget(&snapshot.reference).await
    }
    async fn sweep(&self, _: &Context, leftovers: &Leftovers) -> Result<()> {
        self.sweep_things("snapshot", leftovers).await
    }
}

/// What runs is named after the deployment that started it and the commit that it is of.
fn name(context: &Context, release: &Release) -> String {
    format!("{}:{}", context.deployment(), release.commit.sha)
}

#[async_trait]
impl Runtime for World {
    async fn stop(&self, context: &Context, live: &LiveInstance) -> Result<()> {
        let change = "UPDATE world.sites SET up = NULL WHERE name = $1 AND up = $2";
        self.effect(context, "stop", change, &live.started.reference).await
    }
    async fn update(&self, context: &Context, _: &Instance, _: &Release) -> Result<()> {
        // A second migration by one deployment, and one under a running application, are noted.
        let change = "WITH wrong AS (
                          INSERT INTO world.wrongs SELECT 'update by ' || $2 || ' of ' || s.name || ': ' || s::text
                          FROM world.sites s WHERE s.name = $1 AND ($2 = ANY (s.data) OR s.up IS NOT NULL)
                      ) UPDATE world.sites SET data = data || $2::text WHERE name = $1";
        self.effect(context, "update", change, &context.deployment().to_string()).await
    }
    async fn start(&self, context: &Context, _: &Instance, release: &Release) -> Result<Started> {
        let change = "WITH wrong AS (
                          INSERT INTO world.wrongs SELECT 'start of ' || $2 || ' in ' || s.name || ': ' || s::text
                          FROM world.sites s WHERE s.name = $1 AND s.up IS NOT NULL AND s.up <> $2
                      ) UPDATE world.sites SET up = $2 WHERE name = $1";
        self.effect(context, "start", change, &name(context, release)).await?;
        Ok(Started::new(name(context, release)))
    }
    async fn withdraw(&self, context: &Context, _: &Instance) -> Result<()> {
        let change = "UPDATE world.sites SET up = NULL WHERE name = $1 AND up LIKE $2 || ':%'";
        self.effect(context, "withdraw", change, &context.deployment().to_string()).await
    }
    async fn revive(&self, context: &Context, live: &LiveInstance, _: &Release) -> Result<Started> {
        let change = "UPDATE world.sites SET up = $2 WHERE name = $1";
        self.effect(context, "revive", change, &live.started.reference).await?;
        Ok(live.started.clone())
    }
    async fn inspect(&self, context: &Context, _: &Instance, started: &Started) -> Result<Observation> {
        let up = self.up(context).await?;
        let reason = format!("{up:?} is up");
        Ok(if up.as_ref() == Some(&started.reference) {
            Observation::Up
        } else {
            Observation::Down { reason, log_tail: Vec::new() }
        })
    }
    async fn tail(&self, _: &Context, _: &Instance, _: &Started, _: usize) -> Result<Vec<String>> {
        Ok(Vec::new())
    }
}

#[async_trait]
impl HealthProbe for World {
    async fn check(&self, context: &Context, _: &Instance, started: &Started) -> Result<Check> {
        let failed = |reason: String| Ok(Check::Failed { reason, body: None });
        match self.up(context).await {
            Ok(Some(up)) if up != started.reference => failed(format!("{up} answers")),
            Ok(Some(up)) if up.contains(&format!(":{BAD}")) => failed("it is never healthy".to_owned()),
            Ok(Some(_)) => Ok(Check::Passed),
            Ok(None) => failed("nothing is up".to_owned()),
            Err(error) => failed(error.to_string()),
        }
    }
}
