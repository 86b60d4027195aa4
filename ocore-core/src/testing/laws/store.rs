//! The laws of the [`Store`]: what every store must do, whatever keeps its data.
//!
//! ```ignore
//! ocore_core::store_laws!(MyFixture::new().await);
//! ```

mod cancels;
mod commits;
mod environments;
mod history;
pub mod lab;
mod lanes;
mod leases;
mod log;
mod snapshots;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;

pub use self::{
    cancels::*, commits::*, environments::*, history::*, lanes::*, leases::*, log::*, snapshots::*,
};
use super::declare_laws;
use crate::port::Store;

/// A fresh, empty store under test. Each law gets one of its own.
#[async_trait]
pub trait Fixture: Send + Sync + 'static {
    /// A client of the store: each call another one, if the store can have several, all with the same data.
    async fn client(&self) -> Arc<dyn Store>;

    /// Lets this much of the store's time pass.
    async fn pass(&self, duration: Duration);

    /// The unit of the laws' leases and waits: far more than a handful of calls takes. A second where time is
    /// moved by hand, some hundred milliseconds where it really passes; the longest law lets about twenty pass.
    fn unit(&self) -> Duration;
}

declare_laws!($
    /// One test per law of the store. The argument makes a fresh [`Fixture`](crate::testing::laws::store::Fixture);
    /// it may await.
    store_laws, store, [
        a_lane_keeps_the_order_of_acceptance,
        one_deployment_of_a_lane_is_active,
        two_workers_never_claim_the_same_lane,
        the_fence_grows_with_every_claim,
        lanes_take_turns,
        a_worker_takes_only_from_its_pools,
        a_repeated_enqueue_makes_nothing_new,
        a_key_is_accepted_once,
        a_newer_push_supersedes_queued_pushes,
        nothing_but_a_queued_push_is_superseded,
        a_full_queue_refuses,
        a_recovery_fits_into_a_full_queue,
        an_unknown_environment_accepts_nothing,
        a_paused_environment_starts_nothing,
        attention_stops_everything_but_the_recovery,
        a_recovery_that_strands_is_waited_for,
        an_acknowledged_environment_goes_on,
        what_was_acknowledged_is_remembered_until_something_runs,
        a_fresh_fence_shuts_out_the_old_one,
        an_old_fence_changes_nothing,
        a_version_must_follow,
        a_released_lane_is_not_the_workers_any_more,
        a_repeated_commit_is_answered_as_the_first_was,
        a_repeated_finish_gives_the_successor_again,
        a_repeated_finish_gives_no_successor_that_moved_on,
        finishing_claims_the_successor,
        what_is_committed_is_read_back,
        what_serves_is_replaced,
        a_wait_keeps_the_lane,
        a_lease_that_ran_out_is_rescued,
        a_heartbeat_extends_the_lease,
        an_expired_worker_is_refused_for_ever,
        an_expired_holder_can_commit_until_it_is_rescued,
        an_expired_worker_gets_no_successor,
        a_retired_worker_gives_its_lanes_back,
        a_lost_claim_is_given_again,
        a_lost_claim_tells_of_the_lost_worker_again,
        a_step_that_may_have_been_begun_has_lost_its_worker,
        idle_tells_when_to_come_back,
        a_queued_deployment_is_cancelled_at_once,
        an_active_deployment_is_told_of_a_cancel,
        a_cancel_comes_before_the_verdict,
        a_wait_ends_with_a_cancel,
        a_cancel_that_is_too_late_says_so,
        an_environment_is_saved_and_replaced,
        two_environments_share_nothing,
        no_data_directory_lies_in_another,
        what_is_deployed_stays_in_its_pool,
        what_serves_is_not_shared_either,
        what_is_being_deployed_is_not_shared_either,
        events_come_in_order,
        an_append_needs_the_fence_of_the_active_deployment,
        a_long_log_keeps_head_tail_and_milestones,
        the_head_of_a_log_is_its_beginning,
        the_history_is_newest_first_and_paged,
        the_history_is_filtered,
        snapshots_are_kept_until_they_are_retired,
        the_snapshot_of_an_unfinished_deployment_is_not_retired,
        no_snapshot_is_retired_while_one_may_be_needed,
        a_pin_is_the_deployments,
        what_is_pinned_is_not_retired,
    ]
);
