//! The claim in a store that holds much: a million that wait, ten millions that are over.

use std::{sync::Arc, time::Instant};

use ocore_core::{
    port::{Claimed, Committed, Finish, Store},
    testing::laws::store::lab,
};

use crate::{
    drain::{AtWork, drain},
    fill::{self, Size},
    latency::Samples,
    place::{Own, Place, SCHEMA},
};

/// The lanes that everything is in.
const LANES: u64 = 1000;

/// Milliseconds of one claim each, in a store with so many that wait and so many that are over.
pub(crate) async fn claims(place: &Place, waiting: u64, over: u64, samples: usize) -> Samples {
    let own = place.store().await;
    filled(&own, waiting, over).await;
    claim(&own.store, samples).await
}

async fn filled(own: &Own, waiting: u64, over: u64) {
    fill::lanes(&own.store, LANES).await;
    if over > 0 {
        let size = Size { lanes: LANES, deployments: LANES };
        fill::ask(&own.store, size, 1).await;
        drain(&own.store, size).await;
        fill::copy(&own.db, SCHEMA, "over", over / LANES - 1).await;
    }
    fill::queue(&own.store, &own.db, SCHEMA, Size { lanes: LANES, deployments: waiting }, LANES + 1).await;
    fill::vacuum(&own.db).await;
}

/// Claims lanes, and ends what it has claimed at once, so that no other lane becomes free.
async fn claim(store: &Arc<dyn Store>, samples: usize) -> Samples {
    let at_work = AtWork::begin(store).await;
    let mut taken = Samples::new();
    for _ in 0..samples {
        let begun = Instant::now();
        let claimed = store.claim(&at_work.worker, &[]).await.expect("the store works");
        taken.push(begun.elapsed().as_secs_f64() * 1000.0);
        let Claimed::Work(claim) = claimed else { panic!("a deployment waits: {claimed:?}") };
        let committed = store.commit(&lab::fail(&at_work.worker, &claim, Finish::default())).await;
        assert!(matches!(committed, Ok(Committed::Finished { successor: None })), "{committed:?}");
    }
    taken
}
