//! Secrets are files that nobody but their owner reads. They go from the file into a type that does not print.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use secrecy::SecretString;

/// No secret of Orion comes near this size (bytes).
const MAX_BYTES: u64 = 64 * 1024;

/// Why a secret can't be used. No variant carries any part of the secret.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The file can't be opened or read.
    #[error("secret file {0} can't be read: {1}")]
    Unreadable(PathBuf, #[source] io::Error),
    /// The file can't be created or written.
    #[error("secret file {0} can't be written: {1}")]
    Unwritable(PathBuf, #[source] io::Error),
    /// A secret that is there is never replaced by a new one.
    #[error("secret file {0} exists already")]
    Exists(PathBuf),
    /// A directory, a pipe or a device.
    #[error("secret file {0} is not a regular file")]
    NotAFile(PathBuf),
    /// The mode (shown in octal) lets the group or others in.
    #[error(
        "secret file {0} has mode {1:04o}: its group and others must have no access (chmod 0600)"
    )]
    Exposed(PathBuf, u32),
    /// Nothing in it.
    #[error("secret file {0} is empty")]
    Empty(PathBuf),
    /// Larger than any secret.
    #[error("secret file {0} is larger than 64 KiB")]
    TooLarge(PathBuf),
    /// The content can't be what it should be; line numbers start at 1.
    #[error("secret file {path}, line {line}: {reason}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong, without the text.
        reason: &'static str,
    },
    /// The system gave no random bytes.
    #[error("no random bytes for a new key: {0}")]
    NoRandom(String),
}

/// Reads a secret verbatim, without the one newline at its end.
///
/// # Errors
/// When the file can't be read, is not a regular file, is open to its group or others, is empty or no UTF-8.
pub fn secret_file(path: impl AsRef<Path>) -> Result<SecretString, SecretError> {
    let path = path.as_ref();
    let unreadable = |error| SecretError::Unreadable(path.to_owned(), error);
    let file = File::open(path).map_err(unreadable)?;
    // Asked of the open file, not of the path: the file that is checked is the file that is read.
    let metadata = file.metadata().map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(SecretError::NotAFile(path.to_owned()));
    }
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(SecretError::Exposed(path.to_owned(), mode));
    }
    if metadata.len() > MAX_BYTES {
        return Err(SecretError::TooLarge(path.to_owned()));
    }
    let mut text = String::new();
    file.take(MAX_BYTES)
        .read_to_string(&mut text)
        .map_err(unreadable)?;
    let end = text.strip_suffix('\n').map_or(text.len(), str::len);
    text.truncate(end);
    if text.is_empty() {
        return Err(SecretError::Empty(path.to_owned()));
    }
    Ok(SecretString::from(text))
}

/// Writes a new secret file with mode 0600, durably; the caller hands it to its owner.
///
/// # Errors
/// [`SecretError::Exists`] when there is a file already, which is left alone; [`SecretError::Unwritable`] else, and
/// then no half-written file stays.
pub(crate) fn write_secret_new(path: &Path, bytes: &[u8]) -> Result<(), SecretError> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(|error| {
            if error.kind() == io::ErrorKind::AlreadyExists {
                SecretError::Exists(path.to_owned())
            } else {
                SecretError::Unwritable(path.to_owned(), error)
            }
        })?;
    let written = file
        .write_all(bytes)
        .and_then(|()| file.sync_all())
        .and_then(|()| sync_directory(path));
    written.map_err(|error| {
        if let Err(left) = std::fs::remove_file(path) {
            tracing::warn!(path = %path.display(), error = %left, "a half-written secret file stays");
        }
        SecretError::Unwritable(path.to_owned(), error)
    })
}

fn sync_directory(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
        Some(_) | None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Directory;
    use secrecy::ExposeSecret;
    use std::fs::Permissions;

    #[test]
    fn a_secret_is_read_verbatim_but_for_one_newline() {
        let directory = Directory::new();
        let path = directory.write_secret("s", " p'\"$ {{ }}é\n\n");
        let secret = secret_file(path).expect("good file");
        assert_eq!(secret.expose_secret(), " p'\"$ {{ }}é\n");
    }

    #[test]
    fn a_file_open_to_its_group_or_to_others_is_refused() {
        let directory = Directory::new();
        let path = directory.write_secret("s", "hidden-value\n");
        for mode in [0o640, 0o604, 0o620, 0o601] {
            std::fs::set_permissions(&path, Permissions::from_mode(mode)).expect("chmod");
            let error = secret_file(&path).expect_err("exposed");
            assert!(
                matches!(error, SecretError::Exposed(_, found) if found == mode),
                "{error}"
            );
            assert!(!format!("{error} {error:?}").contains("hidden-value"));
        }
    }

    #[test]
    fn an_empty_a_missing_and_an_irregular_file_are_refused() {
        let directory = Directory::new();
        let empty = directory.write_secret("s", "\n");
        assert!(matches!(secret_file(empty), Err(SecretError::Empty(_))));
        let missing = directory.path().join("missing");
        assert!(matches!(
            secret_file(missing),
            Err(SecretError::Unreadable(..))
        ));
        assert!(matches!(
            secret_file(directory.path()),
            Err(SecretError::NotAFile(_))
        ));
    }

    #[test]
    fn a_new_secret_has_mode_0600_and_is_never_replaced() {
        let directory = Directory::new();
        let path = directory.path().join("new");
        write_secret_new(&path, b"first\n").expect("written");
        let mode = std::fs::metadata(&path)
            .expect("there")
            .permissions()
            .mode();
        assert_eq!(mode & 0o7777, 0o600);
        let again = write_secret_new(&path, b"second\n");
        assert!(matches!(again, Err(SecretError::Exists(_))));
        assert_eq!(secret_file(&path).expect("good").expose_secret(), "first");
    }
}
