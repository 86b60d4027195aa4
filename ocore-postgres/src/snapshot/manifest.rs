//! What is written down of a snapshot, beside its data.

use std::{collections::BTreeMap, fs, path::Path};

use chrono::{DateTime, Utc};
use ocore_core::{
    id::DeploymentId,
    name::InstanceName,
    port::{Classify as _, Error, Result},
};
use serde::{Deserialize, Serialize};

use super::{attributes::Attributes, shelf};

/// The version of this form. Another form has another number, and the types of this one stay.
pub(super) const VERSION: u32 = 1;
/// The manifest's name in the snapshot's directory.
pub(super) const FILE_NAME: &str = "manifest.json";
/// The longest manifest that is read, in bytes.
const BYTES_MAX: u64 = 64 * 1024 * 1024;

/// A snapshot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    pub(super) version: u32,
    pub(super) reference: String,
    pub(super) deployment: DeploymentId,
    pub(super) instance: InstanceName,
    pub(super) taken_at: DateTime<Utc>,
    pub(super) data: Held,
}

/// What there was to copy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Held {
    /// The instance had no database in its configuration.
    Unmanaged,
    /// The database was not there.
    Absent,
    /// A database.
    Database(Box<Copied>),
}

/// A database that was copied.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Copied {
    pub(super) source: Source,
    pub(super) attributes: Attributes,
    pub(super) counters: Counters,
    /// `dump`, `clone` or `clone_then_dump`, and why that one.
    pub(super) strategy: String,
    pub(super) because: String,
    pub(super) clone: Option<Cloned>,
    pub(super) dump: Option<Dumped>,
}

/// Where it came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Source {
    pub(super) database: String,
    pub(super) oid: i64,
    /// As the server says it: `15.18`.
    pub(super) server: String,
    /// What the database occupied, in bytes.
    pub(super) size_bytes: u64,
}

/// How much had been written to the database: equal numbers later say that nothing was written in between.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Counters {
    pub(super) rows: i64,
    pub(super) reset_at: Option<String>,
    /// Of all values of all sequences.
    pub(super) sequences: String,
}

/// A database that is a copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Cloned {
    pub(super) database: String,
    pub(super) oid: i64,
    pub(super) duration_ms: u64,
}

/// A file that is a dump.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Dumped {
    /// In the snapshot's directory.
    pub(super) file: String,
    /// `custom+zstd`: `zstd -d` gives what `pg_restore` reads.
    pub(super) format: String,
    pub(super) raw_bytes: u64,
    pub(super) stored_bytes: u64,
    pub(super) blake3: String,
    /// Entries in the archive's table of contents.
    pub(super) entries: u64,
    pub(super) pg_dump: String,
    pub(super) pg_restore: String,
    pub(super) duration_ms: u64,
    pub(super) contents: Contents,
    pub(super) verified: Verified,
}

/// What was in the database at the very moment of the dump.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Contents {
    /// Roles that own something or were granted something.
    pub(super) roles: Vec<String>,
    pub(super) extensions: BTreeMap<String, Extension>,
    /// Functions of extensions with what `ALTER FUNCTION` may have changed, which a dump leaves out.
    pub(super) functions: BTreeMap<String, String>,
    pub(super) large_objects: i64,
    /// Rows per table, and what they sum up to.
    pub(super) tables: BTreeMap<String, Table>,
}

/// An installed extension, and the schema that it is in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Extension {
    pub(super) version: String,
    pub(super) schema: String,
    pub(super) schema_owner: String,
}

/// A table's rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Table {
    pub(super) rows: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) hash: Option<String>,
}

/// How thoroughly the dump was read again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Verified {
    pub(super) level: u8,
    pub(super) at: DateTime<Utc>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sealed {
    manifest: serde_json::Value,
    /// Of the manifest's compact form.
    blake3: String,
}

impl Manifest {
    /// The JSON that is stored, with a checksum of its own.
    pub(super) fn seal(&self) -> Result<Vec<u8>> {
        let manifest = serde_json::to_value(self).permanent("write the manifest")?;
        let blake3 = digest(&manifest);
        let mut text =
            serde_json::to_vec_pretty(&Sealed { manifest, blake3 }).permanent("write the manifest")?;
        text.push(b'\n');
        Ok(text)
    }

    /// Understands what was stored.
    pub(super) fn open(text: &[u8]) -> Result<Self> {
        let Sealed { manifest, blake3 } =
            serde_json::from_slice(text).permanent("the manifest is corrupt")?;
        if digest(&manifest) != blake3 {
            return Err(Error::permanent("the manifest is corrupt: its checksum is another one"));
        }
        let version = manifest.get("version").and_then(serde_json::Value::as_u64);
        if version != Some(u64::from(VERSION)) {
            let version = version.map_or_else(|| "unknown".to_owned(), |version| version.to_string());
            return Err(Error::permanent(format!("the manifest is of version {version}: use a newer ocore")));
        }
        serde_json::from_value(manifest).permanent("the manifest is corrupt")
    }

    /// The manifest in a snapshot's directory.
    pub(super) fn read(directory: &Path) -> Result<Self> {
        let path = directory.join(FILE_NAME);
        let shown = directory.display();
        let size = match fs::metadata(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(Error::permanent(format!("the snapshot {shown} is not there")));
            }
            found => shelf::at(found, "read", &path)?.len(),
        };
        if size > BYTES_MAX {
            return Err(Error::permanent(format!(
                "the manifest in {shown} has {size} bytes, more than {BYTES_MAX}"
            )));
        }
        Self::open(&shelf::at(fs::read(&path), "read", &path)?)
    }

    /// What the snapshot occupies, in bytes: zero if there was no data.
    pub(super) fn size_bytes(&self) -> u64 {
        let Held::Database(copied) = &self.data else { return 0 };
        let clone = copied.clone.as_ref().map_or(0, |_| copied.source.size_bytes);
        (clone + copied.dump.as_ref().map_or(0, |dump| dump.stored_bytes)).max(1)
    }
}

/// A value's compact form has its keys in order, so that one value has one digest.
fn digest(manifest: &serde_json::Value) -> String {
    blake3::hash(manifest.to_string().as_bytes()).to_hex().to_string()
}

#[cfg(test)]
mod tests;
