//! The pool's SSH keys as the daemon uses them: the newest one and, while they are rotated, the one before it.

use std::io;
use std::path::{Path, PathBuf};

use orion_daemon::{SecretError, secret_file};
use orion_store::{Store, StoreError};
use russh::keys::PrivateKey;
use secrecy::{ExposeSecret, SecretString};

use crate::ansible::plain_key;

/// Both are dialled with, the newest first.
#[derive(Debug)]
pub(crate) struct PoolKeys {
    newest: PoolKey,
    old: Option<PoolKey>,
}

/// One of the pool's keys.
#[derive(Debug, Clone)]
pub(crate) struct PoolKey {
    /// The whole key.
    pub private: PrivateKey,
    /// Its public half, `type base64`.
    pub public: String,
}

impl PoolKeys {
    /// Reads `ssh.pool_key_file` and the old key beside it, where there is one.
    ///
    /// # Errors
    /// When a file is missing, open to others, or holds no unencrypted OpenSSH key.
    pub(crate) fn read(file: &Path) -> Result<Self, SecretError> {
        let newest = PoolKey::read(file)?;
        // Equal in the middle of a rotation, which begins with a second name for the file.
        let old = read_old(file)?.filter(|old| old.public != newest.public);
        Ok(Self { newest, old })
    }

    /// The newest first.
    pub(crate) fn all(&self) -> impl Iterator<Item = &PoolKey> {
        std::iter::once(&self.newest).chain(&self.old)
    }

    /// Has agents told which keys their workers shall let in.
    ///
    /// # Errors
    /// When the database is away.
    pub(crate) async fn publish(&self, store: &Store) -> Result<(), StoreError> {
        let known = store.pool_keys().await?;
        let newest = &self.newest.public;
        let mut keys = Vec::new();
        match &self.old {
            // Taken away by a retirement that did not get as far as its file. Told again it would count as the newest.
            Some(old) if known.contains(newest) && !known.contains(&old.public) => {
                tracing::warn!(
                    "the pool's old key is retired and its file is still there: run orion-schedd retire-pool-key again"
                );
            }
            Some(old) => keys.push(old.public.clone()),
            None => {}
        }
        keys.push(newest.clone());
        store.publish_pool_keys(&keys).await
    }
}

impl PoolKey {
    /// Reads one file.
    ///
    /// # Errors
    /// As [`PoolKeys::read`].
    pub(crate) fn read(file: &Path) -> Result<Self, SecretError> {
        let private = read_key(file)?;
        let public = private.public_key().to_openssh().ok();
        let public = public.and_then(|line| plain_key(&line));
        let public = public.ok_or_else(|| malformed(file, "has no public half"))?;
        Ok(Self { private, public })
    }
}

/// The key before the newest one; nothing when no rotation is under way.
///
/// # Errors
/// As [`PoolKeys::read`].
pub(crate) fn read_old(file: &Path) -> Result<Option<PoolKey>, SecretError> {
    match PoolKey::read(&old_file(file)) {
        Ok(old) => Ok(Some(old)),
        Err(SecretError::Unreadable(_, error)) if error.kind() == io::ErrorKind::NotFound => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Reads a private key.
///
/// # Errors
/// When the file is missing, open to others, or holds no unencrypted OpenSSH key.
pub(crate) fn read_key(path: &Path) -> Result<PrivateKey, SecretError> {
    let text = secret_file(path)?;
    // The newline that secret_file strips belongs to the format.
    let text = SecretString::from(format!("{}\n", text.expose_secret()));
    let key = PrivateKey::from_openssh(text.expose_secret())
        .map_err(|_| malformed(path, "is no OpenSSH private key"))?;
    if key.is_encrypted() {
        let reason = "is protected by a passphrase, which nobody could type";
        return Err(malformed(path, reason));
    }
    Ok(key)
}

fn malformed(path: &Path, reason: &'static str) -> SecretError {
    SecretError::Malformed {
        path: path.to_owned(),
        line: 1,
        reason,
    }
}

/// Where the key before the newest one lies while keys are rotated.
pub(crate) fn old_file(file: &Path) -> PathBuf {
    beside(file, ".old")
}

/// The file's path with `ending` behind it.
pub(crate) fn beside(file: &Path, ending: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(ending);
    PathBuf::from(name)
}
