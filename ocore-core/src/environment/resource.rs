//! What an instance uses alone.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use crate::name::PoolName;

/// Something that one instance uses alone, in the pool whose machines have it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Resource {
    pool: PoolName,
    what: What,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum What {
    Port(u16, String),
    Database(String),
    DataDirectory(PathBuf),
}

impl Resource {
    pub(super) fn port(pool: &PoolName, port: u16, host: &str) -> Self {
        Self { pool: pool.clone(), what: What::Port(port, host.to_owned()) }
    }

    pub(super) fn database(pool: &PoolName, name: &str) -> Self {
        Self { pool: pool.clone(), what: What::Database(name.to_owned()) }
    }

    pub(super) fn data_directory(pool: &PoolName, path: &Path) -> Self {
        Self { pool: pool.clone(), what: What::DataDirectory(path.to_owned()) }
    }

    /// What of `taken` this would get in the way of, in words: the same thing, or a data directory that lies in this
    /// one or around it. Whoever restores the outer one exchanges the inner one with it.
    #[must_use]
    pub fn clash(&self, taken: &Self) -> Option<String> {
        if self == taken {
            return Some(taken.to_string());
        }
        match (&self.what, &taken.what) {
            (What::DataDirectory(wanted), What::DataDirectory(path)) if self.pool == taken.pool => {
                let wanted_shown = wanted.display();
                if wanted.starts_with(path) {
                    Some(format!("{taken} (in which {wanted_shown} lies)"))
                } else if path.starts_with(wanted) {
                    Some(format!("{taken} (which lies in {wanted_shown})"))
                } else {
                    None
                }
            }
            _ => None,
        }
    }

    /// The resource without its pool, for those who know it.
    pub(super) fn in_its_pool(&self) -> String {
        match &self.what {
            What::Port(port, host) => format!("port {port} of {host}"),
            What::Database(name) => format!("database {name}"),
            What::DataDirectory(path) => format!("data directory {}", path.display()),
        }
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.pool, self.in_its_pool())
    }
}
