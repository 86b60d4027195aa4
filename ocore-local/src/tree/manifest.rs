//! The list of what a release or a snapshot holds, with checksums. It is written last: a directory without one is
//! unfinished.

use std::{
    fs::{self, File},
    io::{BufWriter, Write},
    path::Path,
};

use ocore_core::port::{Classify, Error, Result};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{Entry, is_below};
use crate::durable::{self, At};

/// The name of the manifest's file.
pub(crate) const FILE_NAME: &str = "manifest";

/// An entry with the BLAKE3 checksum of its content, in hexadecimal, where it is a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Listed {
    #[serde(flatten)]
    pub(crate) entry: Entry,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) blake3: Option<String>,
}

/// Lines of JSON: a head, one line per entry, and the checksum of all lines before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Manifest<H> {
    pub(crate) head: H,
    pub(crate) entries: Vec<Listed>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Foot {
    blake3_of_all_lines_before: String,
}

impl<H: Serialize + DeserializeOwned> Manifest<H> {
    /// Writes it into `directory`, durably.
    pub(crate) fn write(&self, directory: &Path) -> Result<()> {
        let path = directory.join(FILE_NAME);
        let mut file = BufWriter::new(File::create(&path).at("write", &path)?);
        let mut hasher = blake3::Hasher::new();
        let mut line = |line: serde_json::Result<String>| {
            let line = line.permanent("write the manifest")? + "\n";
            hasher.update(line.as_bytes());
            file.write_all(line.as_bytes()).at("write", &path)
        };
        line(serde_json::to_string(&self.head))?;
        for listed in &self.entries {
            line(serde_json::to_string(listed))?;
        }
        let foot = Foot { blake3_of_all_lines_before: hasher.finalize().to_hex().to_string() };
        let foot = serde_json::to_string(&foot).permanent("write the manifest")?;
        writeln!(file, "{foot}").at("write", &path)?;
        let file = file.into_inner().map_err(std::io::IntoInnerError::into_error).at("write", &path)?;
        file.sync_all().at("write", &path)?;
        durable::sync_directory(directory).at("write", directory)
    }

    /// Reads it; an error says that the file is corrupt or cut off.
    pub(crate) fn read(directory: &Path) -> Result<Self> {
        let path = directory.join(FILE_NAME);
        let text = fs::read(&path).at("read", &path)?;
        Self::parse(&text).ok_or_else(|| {
            Error::permanent(format!(
                "{} is corrupt or cut off, or of a newer version: what it lists cannot be used",
                path.display()
            ))
        })
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?.strip_suffix('\n')?;
        let (lines, foot) = text.rsplit_once('\n')?;
        let foot: Foot = serde_json::from_str(foot).ok()?;
        let mut hasher = blake3::Hasher::new();
        hasher.update(lines.as_bytes()).update(b"\n");
        if hasher.finalize().to_hex().as_str() != foot.blake3_of_all_lines_before {
            return None;
        }
        let mut lines = lines.lines();
        let head = serde_json::from_str(lines.next()?).ok()?;
        let entries: Option<Vec<Listed>> = lines.map(|line| serde_json::from_str(line).ok()).collect();
        let entries = entries.filter(|entries| entries.iter().all(|listed| is_below(&listed.entry.path)))?;
        Some(Self { head, entries })
    }

    /// What the listed files occupy, in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.entries.iter().map(|listed| listed.entry.size()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{blocking::Cancel, tree};

    #[test]
    fn every_cut_and_every_flipped_bit_is_noticed() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("file"), "x").unwrap();
        let limit = tree::Limit { entries: 10, bytes: 10 };
        let entries = tree::list(root.path(), limit, &Cancel::never()).unwrap().entries;
        let entries = entries.into_iter().map(|entry| Listed { entry, blake3: Some("00".into()) }).collect();
        let manifest = Manifest { head: "head".to_owned(), entries };
        manifest.write(root.path()).unwrap();
        assert_eq!(Manifest::<String>::read(root.path()).unwrap(), manifest);
        let bytes = fs::read(root.path().join(FILE_NAME)).unwrap();
        for end in 0..bytes.len() {
            assert_eq!(Manifest::<String>::parse(&bytes[..end]), None, "cut at {end}");
        }
        for at in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[at / 8] ^= 1 << (at % 8);
            assert_eq!(Manifest::<String>::parse(&flipped), None, "bit {at} flipped");
        }
    }
}
