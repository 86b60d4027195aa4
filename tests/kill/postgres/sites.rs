//! What the test makes and the workers find: the world's tables, and the settings of a site.

use std::time::Duration;

use ocore_core::environment::{EnvironmentSpec, InstanceSpec};

/// The tables. A site is an environment: which deployment's release is up, and which deployments have migrated its data.
pub(crate) const TABLES: &str = "
    CREATE SCHEMA world;
    CREATE TABLE world.sites (name text PRIMARY KEY, fence bigint NOT NULL DEFAULT 0, up text, data text[] NOT NULL DEFAULT '{}');
    CREATE TABLE world.effects (
        n bigserial PRIMARY KEY, site text NOT NULL, deployment text NOT NULL, fence bigint NOT NULL, what text NOT NULL
    );
    CREATE TABLE world.things (reference text PRIMARY KEY, deployment text NOT NULL, kind text NOT NULL, data text[]);
    CREATE TABLE world.wrongs (what text NOT NULL);
";

/// The settings of a site.
pub(crate) fn site(name: &str) -> EnvironmentSpec {
    let spec =
        EnvironmentSpec::new(name, "https://git.example.org/site.git").instance(InstanceSpec::new("web"));
    spec.policy(|policy| {
        policy.health.deadline = Duration::from_secs(1);
        policy.health.interval_min = Duration::from_millis(20);
        policy.retry.delay_min = Duration::from_millis(20);
        policy.retry.delay_max = Duration::from_millis(500);
        policy.retry.attempts_max = 30;
        policy.undo_retry.delay_min = Duration::from_millis(20);
        policy.undo_retry.delay_max = Duration::from_millis(500);
        // Every disturbance may hit the same undo: it is given up later than the test ends.
        policy.undo_retry.attempts_max = 100;
        policy.retention.snapshots_last = 3;
        policy.retention.snapshots_age = Duration::ZERO;
        policy.retention.images_last = 3;
    })
}
