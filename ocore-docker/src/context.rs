//! What an engine builds from: files, sent as one archive.

use std::{
    collections::BTreeMap,
    fs::{self, File, Metadata, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Component, Path, PathBuf},
};

use ocore_core::{
    link,
    port::{Classify as _, Error, Result},
};
use tar::{EntryType, Header};
use tokio_util::sync::CancellationToken;

/// The time of every entry: 1980-01-01, in seconds. Archives of Python, which are written in many builds, know none before.
const MODIFIED: u64 = 315_532_800;
/// What is read and written at once, in bytes.
const BUFFER_BYTES: usize = 64 * 1024;

/// The files that an image is built from.
///
/// The archive is the same whenever the files are: entries are in the order of their paths, and all have one owner (0), one
/// time (1980-01-01), and mode 0755 if they are folders or can be run, 0644 if not. So its digest tells whether something
/// has to be built at all. Files are read when the archive is written; they are never all in memory.
#[derive(Debug, Clone)]
pub struct BuildContext {
    entries: BTreeMap<PathBuf, Content>,
    left_out: Vec<PathBuf>,
    limit: Limit,
    size_bytes: u64,
}

/// How much a context may hold.
#[derive(Debug, Clone, Copy)]
struct Limit {
    entries: usize,
    bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Content {
    Folder,
    File { source: PathBuf, size_bytes: u64, can_be_run: bool },
    Text(Vec<u8>),
    Link(PathBuf),
}

impl Default for BuildContext {
    fn default() -> Self {
        Self::new()
    }
}

impl BuildContext {
    /// A context without files. It may hold a million of them, and 8 GiB.
    #[must_use]
    pub const fn new() -> Self {
        let limit = Limit { entries: 1_000_000, bytes: 8 << 30 };
        Self { entries: BTreeMap::new(), left_out: Vec::new(), limit, size_bytes: 0 }
    }

    /// The same context with another limit on its files together, in bytes.
    #[must_use]
    pub const fn size_max(mut self, bytes: u64) -> Self {
        self.limit.bytes = bytes;
        self
    }

    /// The same context with a file of this text.
    ///
    /// # Errors
    ///
    /// Permanent: a place that is there already, or not below the context's top; more than the limit.
    pub fn text(mut self, place: impl AsRef<Path>, text: impl Into<Vec<u8>>) -> Result<Self> {
        let text = text.into();
        self.grow(text.len() as u64)?;
        self.add(checked(place.as_ref())?, Content::Text(text))?;
        Ok(self)
    }

    /// The same context with everything in a folder of this machine, without what is named `.git`. Links stay what they
    /// are; sockets and pipes are [left out](Self::left_out).
    ///
    /// # Errors
    ///
    /// Permanent: a link that leaves the folder, a device, a place that is there already, more than the limit. Transient: a
    /// folder that cannot be read. Cancelled.
    pub fn tree(
        mut self,
        place: impl AsRef<Path>,
        folder: &Path,
        cancellation: &CancellationToken,
    ) -> Result<Self> {
        let place = checked(place.as_ref())?;
        let mut open = vec![PathBuf::new()];
        while let Some(inner) = open.pop() {
            if cancellation.is_cancelled() {
                return Err(Error::cancelled());
            }
            let path = folder.join(&inner);
            for entry in at(fs::read_dir(&path), "list", &path)? {
                let name = at(entry, "list", &path)?.file_name();
                if name == ".git" {
                    continue;
                }
                let inner = inner.join(name);
                let Some(content) = read(folder, &inner)? else {
                    self.left_out.push(inner);
                    continue;
                };
                if content == Content::Folder {
                    open.push(inner.clone());
                }
                self.grow(content.size_bytes())?;
                self.add(place.join(inner), content)?;
            }
        }
        self.left_out.sort();
        Ok(self)
    }

    /// Sockets and pipes, relative to the folder they were found in: they hold nothing that could be built.
    #[must_use]
    pub fn left_out(&self) -> &[PathBuf] {
        &self.left_out
    }

    /// What the files hold together, in bytes: the archive is a little larger.
    #[must_use]
    pub const fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Writes the archive, and gives its BLAKE3 in hexadecimal. `written` is told the number of bytes that have gone out,
    /// again and again.
    ///
    /// # Errors
    ///
    /// Transient: a file that cannot be read, or is not what it was when it was added; whatever `out` answers. Cancelled.
    pub fn write(
        &self,
        out: impl Write,
        cancellation: &CancellationToken,
        written: impl FnMut(u64),
    ) -> Result<String> {
        let hashing = Hashing { out, hasher: blake3::Hasher::new(), bytes: 0, written };
        let mut archive = tar::Builder::new(io::BufWriter::with_capacity(BUFFER_BYTES, hashing));
        for (place, content) in &self.entries {
            if cancellation.is_cancelled() {
                return Err(Error::cancelled());
            }
            content.append(&mut archive, place, cancellation)?;
        }
        let buffered = archive.into_inner().transient("write the build context")?;
        let hashing = buffered.into_inner().map_err(io::IntoInnerError::into_error);
        let mut hashing = hashing.transient("write the build context")?;
        hashing.flush().transient("write the build context")?;
        Ok(hashing.hasher.finalize().to_hex().to_string())
    }

    fn grow(&mut self, bytes: u64) -> Result<()> {
        self.size_bytes += bytes;
        if self.size_bytes > self.limit.bytes {
            let what = format!("the build context holds more than {} bytes", self.limit.bytes);
            return Err(Error::permanent(what));
        }
        if self.entries.len() >= self.limit.entries {
            let what = format!("the build context holds more than {} files", self.limit.entries);
            return Err(Error::permanent(what));
        }
        Ok(())
    }

    fn add(&mut self, place: PathBuf, content: Content) -> Result<()> {
        let shown = place.display().to_string();
        match self.entries.insert(place, content) {
            None => Ok(()),
            Some(_) => Err(Error::permanent(format!("{shown} is in the build context twice"))),
        }
    }
}

/// A place below the context's top, without anything that could lead elsewhere.
fn checked(place: &Path) -> Result<PathBuf> {
    if place.components().all(|component| matches!(component, Component::Normal(_))) {
        return Ok(place.components().collect());
    }
    Err(Error::permanent(format!("{} is no place below the top of a build context", place.display())))
}

/// What is at a path; none for a socket or a pipe.
fn read(folder: &Path, inner: &Path) -> Result<Option<Content>> {
    let path = folder.join(inner);
    let metadata = at(fs::symlink_metadata(&path), "read", &path)?;
    let kind = metadata.file_type();
    if kind.is_dir() {
        return Ok(Some(Content::Folder));
    }
    if kind.is_file() {
        let (size_bytes, can_be_run) = (metadata.len(), can_be_run(&metadata));
        return Ok(Some(Content::File { source: path, size_bytes, can_be_run }));
    }
    if kind.is_symlink() {
        let target = at(fs::read_link(&path), "read the link", &path)?;
        if link::stays_inside(inner, &target) {
            return Ok(Some(Content::Link(target)));
        }
        let (link, target) = (inner.display(), target.display());
        return Err(Error::permanent(format!(
            "the link {link} leaves the repository (it points to {target}): make it relative, or remove it"
        )));
    }
    if metadata.rdev() != 0 {
        return Err(Error::permanent(format!("{} is a device: remove it", path.display())));
    }
    Ok(None)
}

fn can_be_run(metadata: &Metadata) -> bool {
    metadata.permissions().mode() & 0o111 != 0
}

fn at<T>(result: io::Result<T>, what: &str, path: &Path) -> Result<T> {
    result.transient(format!("{what} {}", path.display()))
}

impl Content {
    const fn size_bytes(&self) -> u64 {
        match self {
            Self::File { size_bytes, .. } => *size_bytes,
            Self::Text(text) => text.len() as u64,
            Self::Folder | Self::Link(_) => 0,
        }
    }

    fn append<W: Write>(
        &self,
        archive: &mut tar::Builder<W>,
        place: &Path,
        cancellation: &CancellationToken,
    ) -> Result<()> {
        let mut header = self.header();
        let appended = match self {
            Self::Folder => archive.append_data(&mut header, place, io::empty()),
            Self::Link(target) => archive.append_link(&mut header, place, target),
            Self::Text(text) => archive.append_data(&mut header, place, text.as_slice()),
            Self::File { source, size_bytes, .. } => {
                let file = at(open(source), "open", source)?;
                let mut reading = Reading { file: file.take(*size_bytes), left: *size_bytes, cancellation };
                let appended = archive.append_data(&mut header, place, &mut reading);
                let is_longer = reading.file.into_inner().read(&mut [0]).is_ok_and(|count| count > 0);
                if cancellation.is_cancelled() {
                    return Err(Error::cancelled());
                }
                if is_longer || (reading.left > 0 && appended.is_ok()) {
                    let what = format!("{} changed while it was read", source.display());
                    return Err(Error::transient(what));
                }
                appended
            }
        };
        appended.transient(format!("write {} into the build context", place.display()))
    }

    fn header(&self) -> Header {
        let mut header = Header::new_gnu();
        header.set_mtime(MODIFIED);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(self.size_bytes());
        let (kind, mode) = match self {
            Self::Folder => (EntryType::Directory, 0o755),
            Self::File { can_be_run: true, .. } => (EntryType::Regular, 0o755),
            Self::File { .. } | Self::Text(_) => (EntryType::Regular, 0o644),
            Self::Link(_) => (EntryType::Symlink, 0o777),
        };
        header.set_entry_type(kind);
        header.set_mode(mode);
        header
    }
}

/// Not a link, if it has become one since it was looked at; and not waiting, if it has become a pipe.
fn open(path: &Path) -> io::Result<File> {
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let flags = i32::try_from(flags.bits()).map_err(io::Error::other)?;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("it is no file any more")) }
}

/// A file that is read to a length, or until somebody cancels.
struct Reading<'a> {
    file: io::Take<File>,
    left: u64,
    cancellation: &'a CancellationToken,
}

impl Read for Reading<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.cancellation.is_cancelled() {
            return Err(io::Error::other("it was cancelled"));
        }
        let count = self.file.read(buffer)?;
        self.left -= count as u64;
        Ok(count)
    }
}

/// What goes out is hashed and counted.
struct Hashing<W, F> {
    out: W,
    hasher: blake3::Hasher,
    bytes: u64,
    written: F,
}

impl<W: Write, F: FnMut(u64)> Write for Hashing<W, F> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let count = self.out.write(buffer)?;
        self.hasher.update(&buffer[..count]);
        self.bytes += count as u64;
        (self.written)(self.bytes);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
