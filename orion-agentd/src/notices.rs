//! Telling a client's terminals that its time is nearly over, as wall(1) would, and nobody else's.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use orion_core::Uid;
use rustix::fs::OFlags;

use crate::records::is_managed;

/// A client is told that many minutes before its end.
const STEPS_MIN: [u32; 3] = [1, 5, 15];
/// A client may open terminals without end; so many are told.
const MAX_TERMINALS: usize = 64;

/// The step that an end so many seconds away is within (minutes); `None` while it is farther than all of them.
pub(crate) fn step(left_s: f64) -> Option<u32> {
    STEPS_MIN
        .into_iter()
        .find(|minutes| left_s <= f64::from(*minutes) * 60.0)
}

/// What is written: plain ASCII, and at the left of the screen also where a program has taken the terminal over.
pub(crate) fn text(left_s: f64) -> String {
    let minutes = (left_s / 60.0).ceil().max(1.0);
    let minutes = if minutes == 1.0 {
        "1 minute".to_owned()
    } else {
        format!("{minutes} minutes")
    };
    format!(
        "\r\n\x07Orion: this rental ends in {minutes}. The account and everything in it is removed then.\r\n\
         To stay longer, extend the rental: POST /api/extend/ID, where ID is the rental of the login message.\r\n"
    )
}

/// Where clients look, so that tests can look there themselves.
pub trait Terminals: fmt::Debug + Send + Sync {
    /// Writes `text` to the terminals of that UID, and never waits for one. Returns how many took it.
    fn tell(&self, uid: Uid, text: &str) -> usize;
}

/// The machine's pseudo terminals: sshd, tmux and the like give each to the user whom they serve.
#[derive(Debug)]
pub(crate) struct PseudoTerminals {
    directory: PathBuf,
}

impl Default for PseudoTerminals {
    fn default() -> Self {
        Self {
            directory: PathBuf::from("/dev/pts"),
        }
    }
}

impl Terminals for PseudoTerminals {
    fn tell(&self, uid: Uid, text: &str) -> usize {
        if !is_managed(uid) {
            return 0;
        }
        tell_all(&self.directory, uid, text)
    }
}

fn tell_all(directory: &Path, uid: Uid, text: &str) -> usize {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return 0;
    };
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let terminals = paths.filter_map(|path| open(&path, uid).ok().flatten());
    let told = terminals
        .take(MAX_TERMINALS)
        .filter_map(|mut terminal| terminal.write(text.as_bytes()).ok());
    told.count()
}

/// Opened so that neither a link is followed, nor the terminal becomes ours, nor one that was stopped (`^S`) is waited
/// for; `None` for what is no terminal of `uid`.
fn open(path: &Path, uid: Uid) -> io::Result<Option<File>> {
    let is_of_uid = |metadata: &std::fs::Metadata| {
        metadata.file_type().is_char_device() && metadata.uid() == uid.0
    };
    if !is_of_uid(&std::fs::symlink_metadata(path)?) {
        return Ok(None);
    }
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let flags = i32::try_from(flags.bits()).map_err(io::Error::other)?;
    let file = OpenOptions::new()
        .write(true)
        .custom_flags(flags)
        .open(path)?;
    // It may have become another one's since.
    Ok(is_of_uid(&file.metadata()?).then_some(file))
}

#[cfg(test)]
mod tests;
