//! A disk that is really full: a small file system of its own, in a mount namespace.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Write as _},
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use ocore_examples::sample_app::Manifest;

use crate::program::{Ran, Site, program, rows};

/// A site whose state directory is a file system of 16 MiB.
struct SmallDisk {
    /// Keeps the namespaces until its standard input is closed.
    holder: Child,
    site: Site,
}

impl SmallDisk {
    fn new() -> Self {
        let site = Site::new();
        let state = site.path(".ocore");
        fs::create_dir(&state).expect("the directory is made");
        let script = "mount -t tmpfs -o size=16m small \"$0\" && echo mounted && exec cat";
        let mut unshare = Command::new("unshare");
        unshare.args(["--user", "--map-root-user", "--mount", "sh", "-c", script]).arg(&state);
        let mut holder = unshare
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the command `unshare` of the package util-linux is there");
        let mut line = String::new();
        let output = holder.stdout.take().expect("it has a standard output");
        BufReader::new(output).read_line(&mut line).expect("it can be read");
        assert_eq!(line, "mounted\n", "this test needs user and mount namespaces: let the user make them");
        Self { holder, site }
    }

    /// Runs `deploy` where the small disk is mounted.
    fn run(&self, arguments: &[&str]) -> Ran {
        let mut command = Command::new("nsenter");
        command.args(["--user", "--mount", "--preserve-credentials", "--target"]);
        command.arg(self.holder.id().to_string());
        command.arg(format!("--wd={}", self.site.path("").display()));
        command.arg("--").arg(program("deploy")).args(arguments);
        Ran::from(command.output().expect("the command `nsenter` of the package util-linux is there"))
    }

    fn deploy(&self) -> Ran {
        let port = self.site.port.to_string();
        self.run(&["--repository", "repository", "--port", &port, "--health-seconds", "2"])
    }

    /// What the state directory holds, as it is found from outside.
    fn path(&self, name: &str) -> PathBuf {
        let root = format!("/proc/{}/root", self.holder.id());
        PathBuf::from(root + self.site.path(".ocore").join(name).to_str().expect("a path of text"))
    }

    /// The file that takes the space.
    fn ballast(&self) -> PathBuf {
        self.path("ballast")
    }

    /// Writes until nothing more can be written, and then leaves so much.
    fn fill(&self, left: u64) {
        let mut file = File::create(self.ballast()).expect("the file is made");
        let full = std::iter::repeat_with(|| file.write_all(&[7; 4096])).find_map(Result::err);
        assert!(full.is_some_and(|error| error.kind() == std::io::ErrorKind::StorageFull));
        let size = file.metadata().expect("it has a size").len();
        file.set_len(size.saturating_sub(left)).expect("it can be cut");
    }

    fn statuses(&self) -> Vec<String> {
        let table = self.run(&["history"]).expect(0, "status");
        rows(&table.text).into_iter().map(|(_, status)| status).collect()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _there_may_be_nothing_to_stop = self.run(&["stop"]);
        drop(self.holder.stdin.take());
        let _ended = self.holder.wait();
    }
}

#[test]
fn a_full_disk_is_named_and_what_serves_goes_on() {
    let disk = SmallDisk::new();
    disk.site.commit(&Manifest::new("1", 1));
    disk.deploy().expect(0, "Running after");

    // Enough for the records, and not for the new commit.
    fs::write(disk.site.path("repository/big"), noise(3 << 20)).expect("the file is written");
    disk.site.commit(&Manifest::new("2", 2));
    disk.fill(2 << 20);
    disk.deploy().expect(1, "the disk is full; free space below");
    assert_eq!(disk.site.version(), "1");
    assert_eq!(disk.statuses(), ["Running", "Failed"]);

    // Not enough for anything.
    disk.fill(0);
    disk.deploy().expect(2, "full");
    assert_eq!(disk.site.version(), "1");

    fs::remove_file(disk.ballast()).expect("the file is removed");
    disk.deploy().expect(0, "Running after");
    assert_eq!(disk.site.version(), "2");
    assert_eq!(disk.statuses(), ["Running", "Failed", "Running"]);
}

#[test]
fn data_that_could_not_be_restored_is_left_as_it_is() {
    let disk = SmallDisk::new();
    disk.site.commit(&Manifest::new("1", 1));
    disk.deploy().expect(0, "Running after");
    fs::write(disk.path("data/production/big"), noise(4 << 20)).expect("the file is written");
    disk.site.commit(&Manifest::new("2", 2).unhealthy());

    // Enough for the snapshot, and not for the copy that a restore makes beside the data.
    disk.fill(6 << 20);
    disk.deploy().expect(1, "for the snapshot and for restoring it");
    assert_eq!(disk.site.version(), "1");
    assert_eq!(disk.statuses(), ["Running", "Failed"]);

    fs::remove_file(disk.ballast()).expect("the file is removed");
    disk.deploy().expect(1, "RolledBack after");
    assert_eq!(disk.site.version(), "1");
}

/// Bytes that cannot be compressed.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let bytes = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    bytes.flatten().take(length).collect()
}
