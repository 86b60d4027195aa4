//! The server dies and its standby serves; the server is so full that nobody gets in.

use std::time::{Duration, Instant};

use ocore_postgres::store::PostgresStore;
use ocore_test_postgres::{Cluster, Stop};
use sqlx::{Connection as _, PgConnection};

use crate::{Result, Test, WORKERS, crew::Crew, switch::Switch};

/// How many deployments are asked for in each part of a test.
const PART: usize = 40;

impl Test {
    /// Asks for so many more, a little at a time.
    async fn ask_for(&mut self, deployments: usize) -> Result<()> {
        let wanted = self.accepted.len() + deployments;
        while self.accepted.len() < wanted {
            self.ask().await?;
            tokio::time::sleep(Duration::from_millis(self.chance.within(5..30))).await;
        }
        Ok(())
    }
}

/// What was committed is on the standby too. It serves when the server is dead, again and again, and everybody goes on by
/// himself: workers, and those who ask.
async fn fail_over(test: &mut Test, switch: &Switch) -> Result<()> {
    let mut crew = Crew::new(&test.url, true);
    crew.fill(WORKERS)?;
    for _ in 0..2 {
        let standby = tokio::task::block_in_place(|| test.cluster.standby());
        test.ask_for(PART).await?;
        // In the middle of whatever is under way.
        tokio::task::block_in_place(|| {
            test.cluster.stop(Stop::Kill);
            standby.promote();
        });
        switch.lead_to(standby.port());
        test.cluster = standby;
        test.ask_for(PART).await?;
    }
    test.settle(&mut crew).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_loses_nothing_and_everybody_goes_on() {
    let cluster = Cluster::start(&[("max_connections", "60")]);
    let switch = Switch::to(cluster.port()).await.expect("there is a free port");
    let url =
        cluster.url("postgres").replace(&format!(":{}/", cluster.port()), &format!(":{}/", switch.port()));
    let mut test = Test::on(cluster, url, 7).await.expect("the test can be set up");
    if let Err(error) = fail_over(&mut test, &switch).await {
        panic!("{error}");
    }
}

/// Takes every connection that the server has.
async fn crowd(url: &str) -> Vec<PgConnection> {
    let mut crowd = Vec::new();
    while let Ok(one) = PgConnection::connect(url).await {
        crowd.push(one);
    }
    crowd
}

async fn overcrowd(test: &mut Test) -> Result<()> {
    let mut crew = Crew::new(&test.url, true);
    crew.fill(WORKERS)?;
    test.ask_for(PART).await?;
    for _ in 0..2 {
        // Who has a connection loses it, and somebody else gets it.
        let (until, mut strangers, mut said) =
            (Instant::now() + Duration::from_secs(4), Vec::new(), Vec::new());
        while Instant::now() < until {
            strangers.extend(crowd(&test.url).await);
            let store = PostgresStore::builder(test.url.parse()?).connect_timeout(Duration::from_millis(300));
            said.extend(store.open().await.err().map(|error| error.to_string()));
            if let Some(one) = strangers.last_mut() {
                let end =
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'ocore'";
                sqlx::query(end).execute(one).await?;
            }
        }
        assert!(strangers.len() >= 20, "only {} connections were taken", strangers.len());
        assert!(said.iter().any(|it| it.contains("the server has no connection left")), "{said:?}");
        drop(strangers);
        test.ask_for(PART).await?;
    }
    test.settle(&mut crew).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_full_is_left_alone_until_there_is_room() {
    let cluster = Cluster::start(&[("max_connections", "40")]);
    let url = cluster.url("postgres");
    let mut test = Test::on(cluster, url, 8).await.expect("the test can be set up");
    if let Err(error) = overcrowd(&mut test).await {
        panic!("{error}");
    }
}
