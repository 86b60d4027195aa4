//! The log of a started process, with a limit on its size that holds without any worker.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, PipeReader, PipeWriter, Read, Seek, SeekFrom},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use ocore_core::port::{Classify, Result};

use super::launch::classify;
use crate::durable::At;

/// How many of the last bytes are looked at for the last lines.
const TAIL_BYTES: u64 = 64 * 1024;

/// Reads standard input until its end, into standard output, which is the file `$1`. Past `$2` bytes the file is
/// renamed to `$1.1`, in place of the one before, and another one is begun. `dd` writes each line as soon as it has read
/// it, and ends after 1024 of them: then the size is looked at. On a full disk the output is lost, and the program is not
/// disturbed. A log that was removed is not made anew: it belongs to something that was withdrawn.
const KEEPER: &str = r#"
exec 3>&1
while :; do
    report=$(dd bs=4096 count=1024 2>&1 >&3)
    case $report in
        "0+0 "*) exit 0 ;;
    esac
    if [ ! -e "$1" ]; then
        exec 3>/dev/null
    elif [ "$(wc -c <"$1")" -ge "$2" ]; then
        mv -f "$1" "$1.1"
        exec 3>>"$1"
    fi
done
"#;

/// Starts the process that keeps the log, and returns it with the end of the pipe that the program writes to.
///
/// It is a child of the worker that outlives it: it ends when nobody can write into the pipe any more.
pub(super) fn keep(path: &Path, limit_bytes: u64) -> Result<(Child, PipeWriter, u64)> {
    const SHELL: &str = "/bin/sh";
    let (reader, writer) = io::pipe().transient("make a pipe for the log")?;
    let pipe = inode(&reader).transient("look at the pipe of the log")?;
    remove(path);
    let log = OpenOptions::new().create(true).append(true).open(path).at("make the log", path)?;
    let child = Command::new(SHELL)
        .args(["-c", KEEPER, "ocore-log"])
        .arg(path)
        .arg(limit_bytes.to_string())
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .env("LC_ALL", "C")
        .current_dir("/")
        .stdin(Stdio::from(reader))
        .stdout(Stdio::from(log))
        .stderr(Stdio::null())
        .process_group(0)
        .spawn();
    Ok((classify(Path::new(SHELL), child)?, writer, pipe))
}

fn inode(pipe: &PipeReader) -> io::Result<u64> {
    Ok(rustix::fs::fstat(pipe)?.st_ino)
}

/// The last lines, oldest first.
pub(super) fn tail(path: &Path, lines: usize) -> Vec<String> {
    let mut text = String::new();
    for path in [older(path), path.to_owned()] {
        // A log that is not there, or cannot be read, has no lines; the caller is telling of a worse thing.
        text.push_str(&end_of(&path).unwrap_or_default());
    }
    let all: Vec<&str> = text.lines().collect();
    all.iter().skip(all.len().saturating_sub(lines)).map(|line| (*line).to_owned()).collect()
}

fn end_of(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Removes a log, as far as it is there.
pub(super) fn remove(path: &Path) {
    for path in [older(path), path.to_owned()] {
        // What stays is a file of limited size, which the next call tries to remove again.
        drop(fs::remove_file(path));
    }
}

fn older(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_log_keeps_its_end_and_its_limit() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("log");
        let limit = 1 << 20;
        let (mut keeper, mut writer, _) = keep(&path, limit).unwrap();
        let mut written = 0;
        let mut number = 0;
        while written < 40 << 20 {
            let lines: String =
                (number..number + 500).map(|number| format!("line {number} {:80}\n", "")).collect();
            writer.write_all(lines.as_bytes()).unwrap();
            written += lines.len();
            number += 500;
        }
        drop(writer);
        assert!(keeper.wait().unwrap().success());
        let kept =
            fs::metadata(&path).map_or(0, |data| data.len()) + fs::metadata(older(&path)).unwrap().len();
        assert!(kept <= 2 * (limit + (4 << 20)), "{kept} bytes are kept");
        let tail = tail(&path, 50);
        assert_eq!(tail.len(), 50);
        assert!(tail[49].starts_with(&format!("line {} ", number - 1)), "{}", tail[49]);
    }

    #[test]
    fn a_line_is_written_at_once() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("log");
        let (mut keeper, mut writer, _) = keep(&path, 1000).unwrap();
        writer.write_all(b"hello\n").unwrap();
        let began = std::time::Instant::now();
        while tail(&path, 1) != ["hello"] {
            assert!(began.elapsed().as_secs() < 20, "the line is not in the log");
            std::thread::yield_now();
        }
        drop(writer);
        keeper.wait().unwrap();
    }

    #[test]
    fn a_log_that_was_removed_does_not_come_back() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("log");
        let (mut keeper, mut writer, _) = keep(&path, 1000).unwrap();
        remove(&path);
        for _ in 0..100 {
            writer.write_all(&[b'x'; 4096]).unwrap();
        }
        drop(writer);
        assert!(keeper.wait().unwrap().success());
        assert!(!path.exists());
    }
}
