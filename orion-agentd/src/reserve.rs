//! Room on a full disk. Locking an account rewrites passwd and shadow, which a client that filled the disk, or used up
//! its inodes, would else prevent: these files are given away then.

use std::io;
use std::path::{Path, PathBuf};

use crate::files;

/// As many inodes as the tools need for locks, copies and new files, and some more.
const FILES: usize = 16;
/// Bytes of each: together some twenty times what passwd and shadow usually take.
const FILE_BYTES: usize = 16 * 1024;

/// A directory of files that hold nothing.
#[derive(Debug, Clone)]
pub(crate) struct Reserve(PathBuf);

impl Reserve {
    pub(crate) fn new(directory: &Path) -> Self {
        Self(directory.to_owned())
    }

    /// Makes what is missing of it.
    pub(crate) fn fill(&self) -> io::Result<()> {
        for path in self.files() {
            if !path.exists() {
                files::make_private_directory(&self.0)?;
                // Not zeros: some file systems store nothing for them.
                files::replace(&path, &[b'.'; FILE_BYTES], 0o600)?;
            }
        }
        Ok(())
    }

    /// Gives the room away; true when there was some.
    pub(crate) fn release(&self) -> bool {
        let removed = self
            .files()
            .filter(|path| files::remove(path).is_ok_and(|there| there));
        removed.count() > 0
    }

    fn files(&self) -> impl Iterator<Item = PathBuf> {
        (0..FILES).map(|number| self.0.join(number.to_string()))
    }
}
