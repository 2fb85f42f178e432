//! Locking an account and ending its processes, without asking anybody.

use std::fmt;
use std::path::PathBuf;
use std::pin::Pin;
use std::process::Stdio;
use std::time::Duration;

use orion_core::Uid;
use tokio::process::Command;
use tokio::time::timeout;

use crate::processes;
use crate::records::is_managed;

/// For one call of usermod, which waits up to 15 s for another tool's lock.
const PATIENCE: Duration = Duration::from_secs(20);
/// No name of an account is longer.
const MAX_NAME: usize = 32;

/// What ending an account's access took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ended {
    /// Whether something was locked that was open.
    pub locked: bool,
    /// Processes that were ended.
    pub processes: usize,
}

/// The work of [`Access::end`]; what is left or went wrong comes as a sentence.
pub type Ending<'a> = Pin<Box<dyn Future<Output = Result<Ended, String>> + Send + 'a>>;

/// Ends an account's access, so that tests can have a machine of their own.
pub trait Access: fmt::Debug + Send + Sync {
    /// Locks the account with that UID and ends its processes. Good only when both were seen to be done; doing it again
    /// then changes nothing.
    fn end(&self, uid: Uid) -> Ending<'_>;
}

/// The real one.
#[derive(Debug, Clone)]
pub(crate) struct Locksmith {
    /// Where passwd and shadow are.
    etc: PathBuf,
    usermod: PathBuf,
}

impl Default for Locksmith {
    fn default() -> Self {
        Self {
            etc: PathBuf::from("/etc"),
            usermod: PathBuf::from("/usr/sbin/usermod"),
        }
    }
}

impl Access for Locksmith {
    fn end(&self, uid: Uid) -> Ending<'_> {
        Box::pin(self.end_access(uid))
    }
}

impl Locksmith {
    async fn end_access(&self, uid: Uid) -> Result<Ended, String> {
        if !is_managed(uid) {
            return Err("the UID is none that Orion gives out".to_owned());
        }
        // First, so that nobody comes back; but what runs is ended whatever comes of it.
        let locked = self.lock(uid).await;
        let (met, left) = processes::end_all(uid).await;
        let ended = Ended {
            locked: locked?,
            processes: met,
        };
        match left {
            0 => Ok(ended),
            left => Err(format!("{left} processes can't be ended")),
        }
    }

    /// True when something was open.
    async fn lock(&self, uid: Uid) -> Result<bool, String> {
        let passwd = self.table("passwd")?;
        let mut was_open = false;
        for name in names_of(&passwd, uid) {
            let name = name?;
            if is_locked(&self.table("shadow")?, name) {
                continue;
            }
            was_open = true;
            self.usermod(name).await?;
            if !is_locked(&self.table("shadow")?, name) {
                return Err(format!("usermod left the account {name} open"));
            }
        }
        Ok(was_open)
    }

    fn table(&self, name: &str) -> Result<String, String> {
        let path = self.etc.join(name);
        let bytes = std::fs::read(&path);
        let bytes = bytes.map_err(|error| format!("{}: {error}", path.display()))?;
        // A comment may be in any encoding; names are not.
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// No password and no key opens it any more: the one is locked, and the account has expired.
    async fn usermod(&self, name: &str) -> Result<(), String> {
        let mut command = Command::new(&self.usermod);
        command
            .args(["--lock", "--expiredate", "1", name])
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("LC_ALL", "C")
            .current_dir("/")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let output = timeout(PATIENCE, command.output()).await;
        let output = output
            .map_err(|_| format!("usermod is not through within {} s", PATIENCE.as_secs()))?
            .map_err(|error| format!("{}: {error}", self.usermod.display()))?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let said: String = said.trim().chars().take(300).collect();
        Err(format!("usermod: {}: {said}", output.status))
    }
}

/// The names that `passwd` has for `uid`; an error in place of one that can't be acted on.
fn names_of(passwd: &str, uid: Uid) -> impl Iterator<Item = Result<&str, String>> {
    let rows = move || passwd.lines().filter_map(name_and_uid);
    let own = rows().filter(move |(_, found)| *found == uid.0);
    own.map(move |(name, _)| {
        // usermod takes the first line of that name: it must be this one.
        let first = rows().find(|(other, _)| *other == name);
        if is_safe(name) && first == Some((name, uid.0)) {
            Ok(name)
        } else {
            Err("the account's name in /etc/passwd is not one of Orion's".to_owned())
        }
    })
}

fn name_and_uid(line: &str) -> Option<(&str, u32)> {
    let mut columns = line.split(':');
    let name = columns.next()?;
    Some((name, columns.nth(1)?.parse().ok()?))
}

/// Never an option, a path or more than a word.
fn is_safe(name: &str) -> bool {
    let plain =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-".contains(&byte);
    name.len() <= MAX_NAME
        && name.starts_with(|first: char| first.is_ascii_lowercase())
        && name.bytes().all(plain)
}

/// Whether no password matches and the account has expired. One that has no line there has neither.
fn is_locked(shadow: &str, name: &str) -> bool {
    let rows = shadow.lines().map(|line| line.split(':'));
    let mut own = rows.filter_map(|mut columns| (columns.next() == Some(name)).then_some(columns));
    own.all(|mut columns| {
        let hash = columns.next().unwrap_or_default();
        let expires = columns.nth(5).unwrap_or_default();
        hash.starts_with(['!', '*']) && expires == "1"
    })
}

#[cfg(test)]
mod tests;
