//! Hints that something has changed, over `LISTEN` and `NOTIFY`. Nothing depends on them: the engine polls as well.

use std::{sync::Arc, time::Duration};

use sqlx::{
    PgPool,
    postgres::{PgConnectOptions, PgListener, PgPoolOptions},
};
use tokio::sync::{Notify, futures::Notified};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::sql::Sql;

/// A process notifies the others at most this often: a notification takes a lock of the whole server at its commit.
const TELL_EVERY: Duration = Duration::from_millis(10);

/// How long to wait before listening is tried again.
const LISTEN_AGAIN: Duration = Duration::from_secs(1);

pub(super) struct Hints {
    changed: Arc<Notify>,
    written: Arc<Notify>,
    _end: DropGuard,
}

impl Hints {
    /// With a listener, other processes are told, and heard.
    pub(super) fn start(listener: Option<PgConnectOptions>, pool: &PgPool, sql: &Sql) -> Self {
        let (changed, written, end) =
            (Arc::new(Notify::new()), Arc::new(Notify::new()), CancellationToken::new());
        if let Some(listener) = listener {
            // Channels are names of the database: one per schema.
            let channel = format!("ocore:{}", sql.schema());
            let tell = tell(pool.clone(), channel.clone(), sql.is_prepared(), written.clone());
            let hear = hear(listener, channel, changed.clone());
            for task in [futures::future::Either::Left(tell), futures::future::Either::Right(hear)] {
                let end = end.clone();
                tokio::spawn(async move {
                    tokio::select! {
                        () = end.cancelled() => {}
                        () = task => {}
                    }
                });
            }
        }
        Self { changed, written, _end: end.drop_guard() }
    }

    pub(super) fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }

    pub(super) fn tell(&self) {
        self.changed.notify_waiters();
        self.written.notify_one();
    }
}

/// Tells the other processes: at once, and once more at the end of a burst.
async fn tell(pool: PgPool, channel: String, prepared: bool, written: Arc<Notify>) {
    loop {
        written.notified().await;
        if let Err(error) = tell_once(&pool, &channel, prepared).await {
            tracing::debug!(%error, "other processes were not told of a change; they look by themselves");
        }
        tokio::time::sleep(TELL_EVERY).await;
    }
}

async fn tell_once(pool: &PgPool, channel: &str, prepared: bool) -> sqlx::Result<()> {
    // Nobody waits for the disk on its account: after a crash everyone looks by himself.
    let tell = sqlx::query("SELECT set_config('synchronous_commit', 'off', true), pg_notify($1, '')");
    let tell = tell.bind(channel).persistent(false);
    if prepared {
        return tell.execute(pool).await.map(drop);
    }
    // Its messages must reach one connection.
    let mut transaction = pool.begin().await?;
    tell.execute(&mut *transaction).await?;
    transaction.commit().await
}

/// Hears of other processes' changes. After each beginning something may have been missed.
async fn hear(options: PgConnectOptions, channel: String, changed: Arc<Notify>) {
    loop {
        let heard: sqlx::Result<()> = async {
            let pool = PgPoolOptions::new().max_connections(1).connect_with(options.clone()).await?;
            let mut listener = PgListener::connect_with(&pool).await?;
            listener.listen(&channel).await?;
            loop {
                changed.notify_waiters();
                // `None`: the connection was lost and is there again.
                listener.try_recv().await?;
            }
        }
        .await;
        if let Err(error) = heard {
            tracing::debug!(%error, "changes of other processes are not heard at present");
        }
        tokio::time::sleep(LISTEN_AGAIN).await;
    }
}
