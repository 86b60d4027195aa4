//! A dump: what `pg_dump` writes, compressed, with a checksum, on stable storage; and the way back.

use std::{
    fs::File,
    io::{self, PipeReader, Read, Write},
    path::Path,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use ocore_core::{
    event::{Progress, Unit},
    port::{Classify as _, Context, Error, Result},
};
use rustix::fs::{Advice, fadvise};
use tokio::task::JoinHandle;

use super::{
    child::{self, Running},
    manifest::Dumped,
    server::Server,
    shelf::{self, at},
    tools::Tools,
};

/// How much is read and written at once.
const BUFFER_BYTES: usize = 256 * 1024;
/// The fastest level of zstd that is not larger than what `pg_dump` makes by itself: a tenth of its time.
const LEVEL: i32 = 1;
/// How often progress is shown.
const SHOWN_EVERY: Duration = Duration::from_millis(250);

/// A file that holds a dump.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Written {
    pub(super) raw_bytes: u64,
    pub(super) stored_bytes: u64,
    pub(super) blake3: String,
}

/// Work in a thread that moves bytes. Dropped, it stops at its next step.
struct Moving<T> {
    thread: JoinHandle<Result<T>>,
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    bytes: AtomicU64,
    stopped: AtomicBool,
}

impl<T: Send + 'static> Moving<T> {
    fn start(work: impl FnOnce(&State) -> Result<T> + Send + 'static) -> Self {
        let state = Arc::new(State::default());
        let shared = state.clone();
        Self { thread: tokio::task::spawn_blocking(move || work(&shared)), state }
    }

    /// Waits for its end, and shows how far it is.
    async fn end(mut self, context: &Context, what: &'static str, total: Option<u64>) -> Result<T> {
        loop {
            tokio::select! {
                () = context.cancelled() => return Err(Error::cancelled()),
                done = &mut self.thread => {
                    return done.unwrap_or_else(|_| Err(Error::transient("the thread that moves the dump ended")));
                }
                () = tokio::time::sleep(SHOWN_EVERY) => {}
            }
            let bytes = self.state.bytes.load(Ordering::Relaxed);
            // An estimate is no promise: it never says that all is done.
            let total = total.map(|total| total.max(bytes + 1));
            context.progress(Progress::new(what, bytes, total, Unit::Bytes));
        }
    }
}

impl<T> Drop for Moving<T> {
    fn drop(&mut self) {
        self.state.stopped.store(true, Ordering::Relaxed);
    }
}

impl State {
    fn add(&self, bytes: usize) -> io::Result<()> {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        if self.stopped.load(Ordering::Relaxed) {
            return Err(io::Error::other("the call was given up"));
        }
        Ok(())
    }
}

/// What is written through it is counted and hashed.
struct Hashing<W> {
    inner: W,
    hasher: blake3::Hasher,
    bytes: u64,
}

impl<W> Hashing<W> {
    fn new(inner: W) -> Self {
        Self { inner, hasher: blake3::Hasher::new(), bytes: 0 }
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(buffer)?;
        self.hasher.update(&buffer[..count]);
        self.bytes += count as u64;
        Ok(count)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        self.bytes += count as u64;
        Ok(count)
    }
}

/// Runs `pg_dump` into a new file: compressed, hashed and synced. Its exit status and the file's both decide. What is
/// not complete is removed by whoever owns the directory.
pub(super) async fn write(
    context: &Context,
    server: &Server,
    tools: &Tools,
    from: &Origin<'_>,
    path: &Path,
) -> Result<Written> {
    let mut command = tools.dump();
    server.equip(&mut command, from.database, from.name, "");
    command.args(["--format=custom", "--compress=0", "--no-password"]);
    command
        .arg(format!("--lock-wait-timeout={}", server.lock_wait.as_millis()))
        .arg(format!("--snapshot={}", from.snapshot));
    let file = shelf::create(path)?;
    let (mut program, output) = child::produce(command, "pg_dump")?;
    let target = path.to_owned();
    let moving = Moving::start(move |state| compress(output, &file, &target, state));
    let written = together(context, server, &mut program, moving, "dumping", Some(from.size_bytes)).await?;
    if written.raw_bytes == 0 {
        return Err(Error::transient("pg_dump wrote nothing"));
    }
    Ok(written)
}

/// What is dumped: a database, as an exported snapshot sees it.
pub(super) struct Origin<'a> {
    pub(super) database: &'a str,
    pub(super) snapshot: &'a str,
    /// How the server lists the program's session.
    pub(super) name: &'a str,
    /// A guess of what the dump will have.
    pub(super) size_bytes: u64,
}

/// Waits for a program and for the thread at its other end. The thread takes a program that ends early as an end, so that
/// an error of its own explains more than what the program says of a broken pipe.
async fn together<T: Send + 'static>(
    context: &Context,
    server: &Server,
    program: &mut Running,
    moving: Moving<T>,
    what: &'static str,
    total: Option<u64>,
) -> Result<T> {
    match moving.end(context, what, total).await {
        Ok(moved) => program.end(context, server).await.map(|()| moved),
        Err(error) => {
            program.stop().await;
            Err(error)
        }
    }
}

fn compress(mut output: PipeReader, file: &File, path: &Path, state: &State) -> Result<Written> {
    let hashing = Hashing::new(io::BufWriter::with_capacity(BUFFER_BYTES, file));
    let mut encoder = zstd::Encoder::new(hashing, LEVEL).transient("start zstd")?;
    encoder.include_checksum(true).transient("start zstd")?;
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut raw_bytes = 0;
    loop {
        let count = output.read(&mut buffer).transient("read what pg_dump writes")?;
        if count == 0 {
            break;
        }
        raw_bytes += count as u64;
        at(encoder.write_all(&buffer[..count]), "write", path)?;
        at(state.add(count), "write", path)?;
    }
    let mut hashing = at(encoder.finish(), "write", path)?;
    at(hashing.flush(), "write", path)?;
    at(file.sync_all(), "write", path)?;
    let blake3 = hashing.hasher.finalize().to_hex().to_string();
    Ok(Written { raw_bytes, stored_bytes: hashing.bytes, blake3 })
}

/// Reads a file again, from the disk, and compares its checksum.
pub(super) async fn check_file(context: &Context, path: &Path, written: &Written) -> Result<()> {
    let (file, expected) = (path.to_owned(), written.clone());
    let moving = Moving::start(move |state| {
        let mut reader = open(&file)?;
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let count = at(reader.read(&mut buffer), "read", &file)?;
            if count == 0 {
                break;
            }
            at(state.add(count), "read", &file)?;
        }
        compare(&file, &reader, &expected)
    });
    moving.end(context, "checking the dump", Some(written.stored_bytes)).await
}

fn open(path: &Path) -> Result<Hashing<File>> {
    let file = at(File::open(path), "open", path)?;
    // What is still in memory proves nothing about the disk. Where it cannot be told, it is read all the same.
    let _ = fadvise(&file, 0, None, Advice::DontNeed);
    Ok(Hashing::new(file))
}

fn compare<R>(path: &Path, read: &Hashing<R>, expected: &Written) -> Result<()> {
    if read.bytes == expected.stored_bytes && read.hasher.finalize().to_hex().as_str() == expected.blake3 {
        return Ok(());
    }
    Err(Error::permanent(format!(
        "the dump {} is corrupt: it is not what was written ({} bytes, where there were {})",
        path.display(),
        read.bytes,
        expected.stored_bytes
    )))
}

/// Feeds the whole dump to `pg_restore`, which writes scripts to nowhere: every block is read, every checksum compared.
pub(super) async fn read_through(
    context: &Context,
    server: &Server,
    tools: &Tools,
    path: &Path,
    written: &Written,
) -> Result<()> {
    let mut command = tools.restore();
    command.args(["--format=custom", "--file=/dev/null"]).env("LC_ALL", "C");
    feed(context, server, command, path, written, "reading the dump through").await
}

/// Unpacks a dump into a new file, which several jobs can read at once. The file is no copy to keep: it is not synced.
pub(super) async fn unpack(context: &Context, path: &Path, written: &Written, into: &Path) -> Result<()> {
    let (file, expected, target) = (path.to_owned(), written.clone(), into.to_owned());
    let mut output = shelf::create(into)?;
    let moving = Moving::start(move |state| {
        decompress(&file, &expected, state, move |bytes| at(output.write_all(bytes), "write", &target))
    });
    moving.end(context, "unpacking the dump", Some(written.raw_bytes)).await
}

/// Restores into a database. The first error ends it.
pub(super) async fn restore(
    context: &Context,
    server: &Server,
    tools: &Tools,
    into: &Destination<'_>,
    from: &Archive<'_>,
) -> Result<()> {
    let mut command = tools.restore();
    // What is not durable yet when this ends, is when the databases change their names: that commit waits for it. Nothing is
    // left for `--transaction-size` to win, and what is made can be seen.
    let common = "-c synchronous_commit=off -c maintenance_work_mem=256MB";
    let settings = match from {
        Archive::Packed { .. } => common.to_owned(),
        // The jobs are the workers.
        Archive::Unpacked { .. } => format!("{common} -c max_parallel_maintenance_workers=0"),
    };
    server.equip(&mut command, into.database, into.name, &settings);
    command.args(["--format=custom", "--exit-on-error", "--no-password"]);
    command.arg(format!("--dbname={}", into.database)).arg("--use-list").arg(into.list);
    match *from {
        Archive::Packed { path, written } => feed(context, server, command, path, written, "restoring").await,
        Archive::Unpacked { path, jobs } => {
            command.arg(format!("--jobs={jobs}")).arg(path);
            child::alone(command, "pg_restore")?.end(context, server).await
        }
    }
}

/// Where a dump goes.
pub(super) struct Destination<'a> {
    pub(super) database: &'a str,
    /// How the server lists the program's session.
    pub(super) name: &'a str,
    /// The file with the entries that are to be restored.
    pub(super) list: &'a Path,
}

/// Where a dump comes from.
pub(super) enum Archive<'a> {
    /// The file that is kept: one job reads it from its beginning to its end.
    Packed { path: &'a Path, written: &'a Written },
    /// A file that so many jobs can read.
    Unpacked { path: &'a Path, jobs: usize },
}

async fn feed(
    context: &Context,
    server: &Server,
    command: std::process::Command,
    path: &Path,
    written: &Written,
    what: &'static str,
) -> Result<()> {
    let (mut program, mut input) = child::consume(command, "pg_restore", Stdio::null())?;
    let (file, expected) = (path.to_owned(), written.clone());
    let moving = Moving::start(move |state| {
        let mut wanted = true;
        decompress(&file, &expected, state, move |bytes| {
            // One that needs the beginning only closes its end; the rest is read for the checksum's sake.
            wanted = wanted && input.write_all(bytes).is_ok();
            Ok(())
        })
    });
    together(context, server, &mut program, moving, what, Some(written.raw_bytes)).await
}

/// Reads a whole dump, and compares it with what was written at the end.
fn decompress(
    path: &Path,
    expected: &Written,
    state: &State,
    mut put: impl FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let mut hashing = open(path)?;
    let mut decoder = zstd::Decoder::new(&mut hashing).transient("start zstd")?;
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut raw_bytes = 0;
    loop {
        let count = decoder.read(&mut buffer).permanent(format!("the dump {} is corrupt", path.display()))?;
        if count == 0 {
            break;
        }
        raw_bytes += count as u64;
        put(&buffer[..count])?;
        at(state.add(count), "read", path)?;
    }
    drop(decoder);
    // Whoever waits for the rest need not wait for the checksum.
    drop(put);
    io::copy(&mut hashing, &mut io::sink()).transient(format!("read {}", path.display()))?;
    compare(path, &hashing, expected)?;
    if raw_bytes == expected.raw_bytes {
        return Ok(());
    }
    Err(Error::permanent(format!("the dump {} is corrupt: it has another length", path.display())))
}

/// The archive's table of contents, as `pg_restore` prints it.
pub(super) async fn list(
    context: &Context,
    server: &Server,
    tools: &Tools,
    path: &Path,
) -> Result<Vec<String>> {
    let mut command = tools.restore();
    command.args(["--format=custom", "--list"]).env("LC_ALL", "C");
    let (mut reader, writer) = io::pipe().transient("make a pipe")?;
    let (mut program, mut input) = child::consume(command, "pg_restore", writer.into())?;
    let file = path.to_owned();
    let feeding = tokio::task::spawn_blocking(move || {
        let mut decoder =
            zstd::Decoder::new(at(File::open(&file), "open", &file)?).transient("start zstd")?;
        // It reads the beginning and then closes its end.
        drop(io::copy(&mut decoder, &mut input));
        Ok(())
    });
    let reading = tokio::task::spawn_blocking(move || {
        let mut text = String::new();
        reader.read_to_string(&mut text).transient("read what pg_restore writes")?;
        Ok(text)
    });
    program.end(context, server).await?;
    let gone = |_| Error::transient("a thread ended");
    let _fed: () = feeding.await.map_err(gone)??;
    let text: String = reading.await.map_err(gone)??;
    Ok(text.lines().filter(|line| is_entry(line)).map(str::to_owned).collect())
}

/// `3; 2615 16385 SCHEMA - shop odoo`.
fn is_entry(line: &str) -> bool {
    line.split_once(';')
        .is_some_and(|(number, _)| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
}

impl Dumped {
    pub(super) fn written(&self) -> Written {
        let Self { raw_bytes, stored_bytes, blake3, .. } = self;
        Written { raw_bytes: *raw_bytes, stored_bytes: *stored_bytes, blake3: blake3.clone() }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use ocore_core::{
        environment::{Environment, EnvironmentSpec, InstanceSpec},
        port::ErrorKind,
        testing::laws::caller::Caller,
    };

    use super::*;

    /// Flipped bits that `pg_restore` restores without a word, and lengths that its `--list` accepts.
    #[tokio::test]
    async fn every_flipped_bit_and_every_length_is_noticed() {
        let spec = EnvironmentSpec::new("test", "https://git.example.org/test.git");
        let environment = Environment::try_from(spec.instance(InstanceSpec::new("web"))).unwrap();
        let context = Caller::new(environment.into()).call(1, 1);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("dump");
        let text: String = (0..2000).map(|n| format!("row {n} of a table\n")).collect();
        let (reader, mut writer) = io::pipe().unwrap();
        let feeding = std::thread::spawn(move || writer.write_all(text.as_bytes()).unwrap());
        let file = shelf::create(&path).unwrap();
        let written = compress(reader, &file, &path, &State::default()).unwrap();
        feeding.join().unwrap();
        let good = fs::read(&path).unwrap();
        assert_eq!(written.stored_bytes, good.len() as u64);
        check_file(&context, &path, &written).await.unwrap();
        let flip = |bit: usize| {
            let mut bytes = good.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            bytes
        };
        let flips = (0..400).map(|n| flip(n * (good.len() * 8 - 1) / 399));
        let lengths = (0..20).map(|part| good[..good.len() * part / 20].to_vec());
        for damaged in flips.chain(lengths).chain([[good.as_slice(), b"x"].concat()]) {
            fs::write(&path, damaged).unwrap();
            let error = check_file(&context, &path, &written).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Permanent, "{error}");
            assert!(error.to_string().contains("corrupt"), "{error}");
        }
    }
}
