//! Databases that a restore has replaced, and the way back.

use ocore_core::{
    environment::Instance,
    port::{Context, Error, Result},
};

use super::{
    PostgresSnapshotter,
    ledger::{Kind, Ledger, Made, beside, exists},
    restore::{rename, unique},
    server::{literal, name},
};

/// A database that a restore has replaced, and that is kept for a while: closed, under another name.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Replaced {
    /// Its name now.
    pub name: String,
    /// The deployment whose restore replaced it.
    pub deployment: String,
    /// The snapshot that took its place.
    pub snapshot: String,
    /// How long ago, in seconds.
    pub age_seconds: u64,
}

impl PostgresSnapshotter {
    /// The databases of an instance that were replaced and are still there, the newest first.
    ///
    /// # Errors
    /// Transient if the server does not answer.
    pub async fn replaced(&self, context: &Context, instance: &Instance) -> Result<Vec<Replaced>> {
        let Some(database) = instance.database.as_deref() else { return Ok(Vec::new()) };
        let mut ledger =
            Ledger::open(&self.shared.server, context, &self.shared.application(context)).await?;
        let made = ledger.made(Kind::Replaced, Some(database)).await?;
        Ok(made.into_iter().rev().map(Replaced::from).collect())
    }

    /// Brings back the database that was replaced last: the exchange of a restore, backwards. What is there now is kept
    /// instead. The caller has stopped the application.
    ///
    /// *Called again*: exchanges them again.
    ///
    /// # Errors
    /// Permanent if none was replaced, or with an older fence than one seen before; transient if somebody cannot be
    /// disconnected: then nothing has changed.
    pub async fn undo(&self, context: &Context, instance: &Instance) -> Result<()> {
        let nothing = || Error::permanent(format!("no restore of {} can be undone", instance.name));
        let database = instance.database.as_deref().ok_or_else(nothing)?;
        let mut held = self.shared.enter(context, database).await?;
        let replaced = held.ledger.made(Kind::Replaced, Some(database)).await?;
        let last = replaced.last().ok_or_else(nothing)?;
        let mut statements = Vec::new();
        if exists(&mut held.ledger.session, database).await? {
            let now = beside(database, "old", &unique(&held));
            let now = Made::new(now, database, context.deployment(), &format!("undo of {}", last.reference));
            held.shut().await?;
            held.drain(context).await?;
            statements.extend([rename(database, &now.name), now.insert_replaced()]);
        }
        statements.extend([
            rename(&last.name, database),
            format!("ALTER DATABASE {} ALLOW_CONNECTIONS true", name(database)),
            format!("DELETE FROM ocore_snapshot.made WHERE name = {}", literal(&last.name)),
            held.closed_is(false),
        ]);
        if let Err(error) = held.all_or_none(&statements, "bring the replaced database back").await {
            // The next call opens it, where this one cannot.
            drop(held.settle().await);
            return Err(error);
        }
        Ok(())
    }

    /// Removes every database of an instance that was replaced.
    ///
    /// # Errors
    /// Transient if the server does not answer; permanent with an older fence than one seen before.
    pub async fn remove_replaced(&self, context: &Context, instance: &Instance) -> Result<()> {
        let Some(database) = instance.database.as_deref() else { return Ok(()) };
        let mut held = self.shared.enter(context, database).await?;
        for made in held.ledger.made(Kind::Replaced, Some(database)).await? {
            held.ledger.drop_made(&made.name).await?;
        }
        Ok(())
    }
}

impl From<Made> for Replaced {
    fn from(made: Made) -> Self {
        let Made { name, deployment, reference, age_seconds, .. } = made;
        Self { name, deployment, snapshot: reference, age_seconds: u64::try_from(age_seconds).unwrap_or(0) }
    }
}
