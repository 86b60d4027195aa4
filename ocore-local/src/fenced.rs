//! A place on disk where one call works at a time, and where no call comes in after one with a higher fence.

use std::{
    fs::{self, File, OpenOptions},
    io,
    path::PathBuf,
    time::Duration,
};

use ocore_core::{
    id::Fence,
    port::{Classify, Context, Error, Result},
};
use rustix::fs::FlockOperation;

use crate::durable::{self, At};

/// How long a call waits for another one to leave the place.
const WAIT_MAX: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(10);

/// A directory with a lock (`lock`) and the highest fence that was let in (`fence`).
#[derive(Debug, Clone)]
pub(crate) struct Fenced {
    directory: PathBuf,
}

/// The right to work in the place: ends when this is dropped, or when the process dies.
///
/// A child that is being started shares the lock until it becomes its own program. So whoever gets the lock after a
/// killed worker also sees everything that the worker started, at most a moment later: `Process::variable` waits for it.
#[derive(Debug)]
pub(crate) struct Held {
    _lock: File,
}

impl Fenced {
    pub(crate) fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// Waits for the lock, refuses an older fence, and remembers a newer one.
    pub(crate) async fn enter(&self, context: &Context) -> Result<Held> {
        let lock = self.open()?;
        let waited = tokio::time::Instant::now();
        while let Err(error) = rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            if error != rustix::io::Errno::WOULDBLOCK {
                return Err(error).transient(format!("lock {}", self.directory.display()));
            }
            if waited.elapsed() > WAIT_MAX {
                let place = self.directory.display();
                return Err(Error::transient(format!("another worker is still at work in {place}")));
            }
            tokio::select! {
                () = context.cancelled() => return Err(Error::cancelled()),
                () = tokio::time::sleep(POLL) => {}
            }
        }
        self.raise(context.fence())?;
        Ok(Held { _lock: lock })
    }

    /// Whether a call with a higher fence has come in meanwhile.
    pub(crate) fn overtaken(&self, fence: Fence) -> bool {
        self.highest().is_ok_and(|highest| highest > fence)
    }

    fn open(&self) -> Result<File> {
        durable::create_directories(&self.directory).at("make", &self.directory)?;
        let path = self.directory.join("lock");
        OpenOptions::new().create(true).truncate(false).write(true).open(&path).at("open", &path)
    }

    fn raise(&self, fence: Fence) -> Result<()> {
        let path = self.path();
        let highest = self.highest()?;
        if highest > fence {
            return Err(Error::fenced());
        }
        if highest < fence {
            durable::write(&path, format!("{fence}\n").as_bytes()).at("write", &path)?;
        }
        Ok(())
    }

    fn highest(&self) -> Result<Fence> {
        let path = self.path();
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Fence::default()),
            other => other.at("read", &path)?,
        };
        let value = text.trim().parse().permanent(format!(
            "{} is corrupt: it must hold one number; remove it when no worker runs",
            path.display()
        ))?;
        Ok(Fence::new(value))
    }

    fn path(&self) -> PathBuf {
        self.directory.join("fence")
    }
}
