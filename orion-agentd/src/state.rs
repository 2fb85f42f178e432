//! What the agent keeps over restarts: its key, its counter, and whom it believes.
//!
//! `STATE_DIR/agent` (0700) holds `key` (the seed), `key.next` while the key is being rotated, `counter` (the highest
//! number that may have been used), `trusted` (the join line's key, then the keys that the control plane signs with), and
//! `joined` (the public half of the token that was answered well, and is not sent any more).

use std::io;
use std::path::{Path, PathBuf};

use orion_core::{JoinLine, PublicKey, Seed};
use orion_signature::{SignatureError, SigningKey, new_seed};

use crate::files;

/// Counters reserved with one write: no beat costs one, and a restart leaves out at most this many. Half of them are
/// beats for half a day, in which a full disk may be noticed.
const BLOCK: u64 = 20_000;
/// A counter told by somebody else is not followed beyond: what is left then would never be used up.
const HIGHEST: u64 = 1 << 62;
/// The control plane has one key, and two while it rotates it.
const MAX_TRUSTED: usize = 8;

/// Why something can't be kept or found.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StateError {
    #[error("{0} can't be read: {1}")]
    Unreadable(PathBuf, #[source] io::Error),
    #[error("{0} can't be written: {1}")]
    Unwritable(PathBuf, #[source] io::Error),
    #[error("{0} is damaged: {1}")]
    Damaged(PathBuf, &'static str),
    #[error("the system gives no random bytes: {0}")]
    NoRandom(String),
    #[error("the agent's key can't be used: {0}")]
    Key(#[from] SignatureError),
    #[error("no counter is left")]
    NoCounter,
}

/// The key that shall replace the agent's.
pub(crate) struct NextKey {
    seed: Seed,
    pub(crate) key: SigningKey,
}

/// Whom the agent believes.
#[derive(Debug)]
struct Trusted {
    /// The join line's key: another line starts anew.
    anchor: PublicKey,
    keys: Vec<PublicKey>,
    /// Whether the file says the same.
    stored: bool,
}

#[derive(Debug)]
pub(crate) struct State {
    directory: PathBuf,
    key: SigningKey,
    next_counter: u64,
    /// No counter above is used before the file says so.
    reserved: u64,
    /// Whether it was logged that no further counters can be reserved.
    said_unreserved: bool,
    trusted: Option<Trusted>,
    /// The token with which the control plane took this worker in.
    joined: Option<PublicKey>,
}

impl State {
    /// Opens the state, and makes what is not there yet.
    pub(crate) fn open(state_dir: &Path, line: Option<&JoinLine>) -> Result<Self, StateError> {
        let directory = directory(state_dir);
        files::make_private_directory(state_dir)
            .and_then(|()| files::make_private_directory(&directory))
            .map_err(|error| StateError::Unwritable(directory.clone(), error))?;
        let seed = match read_seed(&directory.join("key"))? {
            Some(seed) => seed,
            None => {
                let seed = fresh_seed()?;
                write(&directory.join("key"), &seed.expose_text())?;
                seed
            }
        };
        let next = directory.join("key.next");
        // A crash between the two steps of a promotion.
        if read_seed(&next).is_ok_and(|next| next.as_ref() == Some(&seed)) {
            remove(&next)?;
        }
        let used = read_counter(&directory.join("counter"))?;
        Ok(Self {
            key: SigningKey::from_seed(&seed)?,
            next_counter: used.saturating_add(1),
            reserved: used,
            said_unreserved: false,
            trusted: read_trusted(&directory.join("trusted"), line)?,
            // Without it the token is sent once more.
            joined: read(&directory.join("joined"))
                .ok()
                .flatten()
                .and_then(|text| text.trim().parse().ok()),
            directory,
        })
    }

    pub(crate) fn key(&self) -> &SigningKey {
        &self.key
    }

    /// The keys whose signature makes an answer; empty where everybody's answer must do.
    pub(crate) fn trusted(&self) -> &[PublicKey] {
        self.trusted.as_ref().map_or(&[], |trusted| &trusted.keys)
    }

    /// Whether the control plane took this worker in with `token`, and knows it by its own key since then.
    pub(crate) fn has_joined_with(&self, token: &PublicKey) -> bool {
        self.joined.as_ref() == Some(token)
    }

    /// A registration with `token` was answered well.
    pub(crate) fn joined_with(&mut self, token: PublicKey) -> Result<(), StateError> {
        if self.has_joined_with(&token) {
            return Ok(());
        }
        self.joined = Some(token);
        write(&self.directory.join("joined"), &token.to_string())
    }

    /// The control plane knows this worker no more.
    pub(crate) fn joined_no_more(&mut self) -> Result<(), StateError> {
        self.joined = None;
        remove(&self.directory.join("joined"))
    }

    /// A number that no request had before.
    pub(crate) fn take_counter(&mut self) -> Result<u64, StateError> {
        let counter = self.next_counter;
        let next = counter.checked_add(1).ok_or(StateError::NoCounter)?;
        if self.reserved < counter.saturating_add(BLOCK / 2) {
            match self.reserve_from(counter) {
                Ok(()) => self.said_unreserved = false,
                Err(error) if counter > self.reserved => return Err(error),
                Err(error) if !self.said_unreserved => {
                    let left = self.reserved - counter;
                    tracing::error!(
                        "{error}; without it the agent falls silent after {left} requests"
                    );
                    self.said_unreserved = true;
                }
                Err(_) => {}
            }
        }
        self.next_counter = next;
        Ok(counter)
    }

    fn reserve_from(&mut self, counter: u64) -> Result<(), StateError> {
        let reserved = counter
            .checked_add(BLOCK - 1)
            .ok_or(StateError::NoCounter)?;
        write(&self.directory.join("counter"), &reserved.to_string())?;
        self.reserved = reserved;
        Ok(())
    }

    /// The control plane has seen `used`: the file was lost, or is an old one. False when that says nothing new.
    pub(crate) fn raise_counter(&mut self, used: u64) -> bool {
        if used < self.next_counter || used > HIGHEST {
            return false;
        }
        self.next_counter = used + 1;
        true
    }

    /// From now on these keys alone are believed. Only ever called with what a believed answer says.
    pub(crate) fn learn(&mut self, keys: &[PublicKey]) -> Result<bool, StateError> {
        let Some(trusted) = &mut self.trusted else {
            return Ok(false);
        };
        let changed = !keys.is_empty() && keys.len() <= MAX_TRUSTED && trusted.keys != keys;
        if trusted.stored && !changed {
            return Ok(false);
        }
        let keys = if changed { keys } else { &trusted.keys };
        let mut text = trusted.anchor.to_string();
        for key in keys {
            text.push_str(&format!("\n{key}"));
        }
        let keys = keys.to_vec();
        write(&self.directory.join("trusted"), &text)?;
        trusted.keys = keys;
        trusted.stored = true;
        Ok(changed)
    }

    /// The key that an administrator has asked for. Without somebody to believe there is no rotation: an answer that
    /// anybody can forge would make the agent throw its key away.
    pub(crate) fn next_key(&self) -> Result<Option<NextKey>, StateError> {
        if self.trusted.is_none() {
            return Ok(None);
        }
        let Some(seed) = read_seed(&self.directory.join("key.next"))? else {
            return Ok(None);
        };
        let key = SigningKey::from_seed(&seed)?;
        Ok(Some(NextKey { seed, key }))
    }

    /// The control plane took the next key: it is the agent's from now on.
    pub(crate) fn promote(&mut self, next: NextKey) -> Result<(), StateError> {
        write(&self.directory.join("key"), &next.seed.expose_text())?;
        self.key = next.key;
        let path = self.directory.join("key.next");
        // Somebody may have asked for yet another one meanwhile.
        if read_seed(&path)?.as_ref() == Some(&next.seed) {
            remove(&path)?;
        }
        Ok(())
    }
}

/// What came of asking for another key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rotation {
    Begun,
    UnderWay,
}

/// Makes the next key; the agent does the rest.
pub(crate) fn rotate_key(state_dir: &Path) -> Result<Rotation, StateError> {
    let path = directory(state_dir).join("key.next");
    match read_seed(&path) {
        Ok(Some(_)) => return Ok(Rotation::UnderWay),
        // A damaged one was never used by the agent.
        Ok(None) | Err(StateError::Damaged(..)) => {}
        Err(error) => return Err(error),
    }
    write(&path, &fresh_seed()?.expose_text())?;
    Ok(Rotation::Begun)
}

/// Whether an agent has run here and believes a control plane.
pub(crate) fn is_trusting(state_dir: &Path) -> bool {
    let directory = directory(state_dir);
    directory.join("key").exists() && directory.join("trusted").exists()
}

fn directory(state_dir: &Path) -> PathBuf {
    state_dir.join("agent")
}

fn fresh_seed() -> Result<Seed, StateError> {
    new_seed().map_err(|error| StateError::NoRandom(error.to_string()))
}

fn write(path: &Path, text: &str) -> Result<(), StateError> {
    files::replace(path, format!("{text}\n").as_bytes(), 0o600)
        .map_err(|error| StateError::Unwritable(path.to_owned(), error))
}

fn read(path: &Path) -> Result<Option<String>, StateError> {
    files::read(path).map_err(|error| StateError::Unreadable(path.to_owned(), error))
}

fn remove(path: &Path) -> Result<(), StateError> {
    files::remove(path)
        .map(drop)
        .map_err(|error| StateError::Unwritable(path.to_owned(), error))
}

fn read_seed(path: &Path) -> Result<Option<Seed>, StateError> {
    let Some(text) = read(path)? else {
        return Ok(None);
    };
    let seed = text.trim_end_matches('\n').parse();
    seed.map(Some).map_err(|_| {
        StateError::Damaged(
            path.to_owned(),
            "it must hold a key. Without it this worker must join anew",
        )
    })
}

/// A counter that is lost is no reason to stay away: the control plane tells the highest it has seen.
fn read_counter(path: &Path) -> Result<u64, StateError> {
    let Some(text) = read(path)? else {
        return Ok(0);
    };
    Ok(text.trim().parse().unwrap_or_else(|_| {
        tracing::warn!(path = %path.display(), "the counter is damaged; counting from the beginning");
        0
    }))
}

fn read_trusted(path: &Path, line: Option<&JoinLine>) -> Result<Option<Trusted>, StateError> {
    let parsed = match read(path)? {
        None => None,
        Some(text) => match parse_trusted(&text) {
            Some(trusted) => Some(trusted),
            // Believing everybody instead would be worse than not starting.
            None if line.is_none() => {
                let reason = "it must hold the control plane's keys. A new join line heals it";
                return Err(StateError::Damaged(path.to_owned(), reason));
            }
            None => None,
        },
    };
    let Some(line) = line else {
        return Ok(parsed);
    };
    let anchor = line.signing_key;
    let same = parsed.filter(|trusted| trusted.anchor == anchor);
    Ok(Some(same.unwrap_or_else(|| Trusted {
        anchor,
        keys: vec![anchor],
        stored: false,
    })))
}

fn parse_trusted(text: &str) -> Option<Trusted> {
    let mut keys = text.lines().map(str::parse);
    let anchor = keys.next()?.ok()?;
    let keys: Vec<PublicKey> = keys.collect::<Result<_, _>>().ok()?;
    (!keys.is_empty()).then_some(Trusted {
        anchor,
        keys,
        stored: true,
    })
}

#[cfg(test)]
mod tests;
