//! A disk that is soon full.

use std::{fs, os::unix::fs::symlink, path::Path, process::Command};

use crate::site::Site;

/// A file system of this size that nobody but this test uses, gone with it.
pub(crate) struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    pub(crate) fn new(megabytes: u32) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={megabytes}m,mode=0777"), "ocore-test"])
            .arg(directory.path())
            .status();
        assert!(mounted.unwrap().success(), "a small file system needs the right to mount one");
        Self(directory)
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// Makes it larger, or smaller: false if more than that is used already.
    pub(crate) fn resize(&self, megabytes: u32) -> bool {
        let size = format!("remount,size={megabytes}m");
        let resized = Command::new("mount").args(["-o", &size]).arg(self.path()).output();
        resized.unwrap().status.success()
    }

    /// Holds the snapshots of a site from now on.
    pub(crate) fn hold(&self, site: &Site) {
        let snapshots = self.path().join("snapshots");
        fs::create_dir(&snapshots).unwrap();
        symlink(&snapshots, site.snapshots()).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("--lazy").arg(self.0.path()).status());
    }
}
