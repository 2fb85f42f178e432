//! The private directory of one play: everything it reads and writes, for our user alone, removed afterwards.

use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Removed when dropped.
#[derive(Debug)]
pub(super) struct PlayDirectory(PathBuf);

impl PlayDirectory {
    /// Makes the directory, which must not exist, with its places for temporary files.
    pub(super) fn create(path: PathBuf) -> io::Result<Self> {
        make_private(&path)?;
        let directory = Self(path);
        for name in ["tmp", "home"] {
            make_private(&directory.join(name))?;
        }
        Ok(directory)
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    pub(super) fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Where the callback plugin writes.
    pub(super) fn events(&self) -> PathBuf {
        self.join("events.jsonl")
    }

    /// Writes a new file of mode 0600.
    pub(super) fn write(&self, name: &str, content: &[u8]) -> io::Result<PathBuf> {
        let path = self.join(name);
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)?
            .write_all(content)?;
        Ok(path)
    }
}

impl Drop for PlayDirectory {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(directory = %self.0.display(), %error, "a play's directory stays until the next start");
        }
    }
}

fn make_private(path: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use orion_testkit::Scratch;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn nobody_else_can_read_it_and_nothing_stays() {
        let scratch = Scratch::new("playdir");
        let path = scratch.join("play");
        let directory = PlayDirectory::create(path.clone()).unwrap();
        let file = directory.write("inventory.json", b"{}").unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode(&path), 0o700);
        assert_eq!(mode(&directory.join("tmp")), 0o700);
        assert_eq!(mode(&file), 0o600);
        assert!(directory.write("inventory.json", b"{}").is_err());
        assert!(PlayDirectory::create(path.clone()).is_err());
        drop(directory);
        assert!(!path.exists());
    }
}
