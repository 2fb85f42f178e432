//! Key files, as a daemon's administrator makes and changes them: as root, in a directory that is the daemon's user's, where
//! a link must lead root nowhere.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{
    DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown, lchown,
};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;
use secrecy::{ExposeSecret, SecretString};

use crate::secret::{SecretError, write_secret_new};

/// A user and a group.
type Owner = (u32, u32);

/// Makes a key file, and its directory where there is none, that the system user `daemon` alone enters and reads: both are
/// handed over where that user is there and we are root.
///
/// # Errors
/// [`SecretError::Exists`] when there is a file already, which keeps its text; [`SecretError::Unwritable`].
pub fn make_key_file(file: &Path, text: &SecretString, daemon: &str) -> Result<(), SecretError> {
    let unwritable = |error| SecretError::Unwritable(file.to_owned(), error);
    let owner = system_user(daemon).map_err(unwritable)?;
    if let Some(directory) = file.parent().filter(|directory| !directory.exists()) {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(unwritable)?;
        if let Some((user, group)) = owner {
            lchown(directory, Some(user), Some(group)).map_err(unwritable)?;
        }
    }
    let made = write_secret_new(file, text.expose_secret().as_bytes());
    if let (Some(owner), Ok(()) | Err(SecretError::Exists(_))) = (owner, &made) {
        give(file, owner).map_err(unwritable)?;
    }
    made
}

/// Hands a file over that is root's: a new one, or one that a command has left that was ended before this. Not one with a
/// second name: that may be another file of root's that was linked here.
fn give(file: &Path, (user, group): Owner) -> io::Result<()> {
    if !fs::symlink_metadata(file)?.is_file() {
        return Ok(());
    }
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed())
        .open(file)?;
    let found = opened.metadata()?;
    if found.is_file() && found.uid() == 0 && found.nlink() == 1 {
        fchown(&opened, Some(user), Some(group))?;
    }
    Ok(())
}

/// The user's ids; nothing where there is no such user, or we could not give files away.
fn system_user(name: &str) -> io::Result<Option<Owner>> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let users = fs::read_to_string("/etc/passwd")?;
    Ok(users.lines().find_map(|line| {
        let mut fields = line
            .strip_prefix(name)?
            .strip_prefix(':')?
            .split(':')
            .skip(1);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    }))
}

/// The directory of key files, locked: one command at a time changes what is in it. Each step lasts when it returns, and a
/// crash leaves what was there before it or after it.
pub struct KeyDirectory {
    directory: File,
    path: PathBuf,
}

impl KeyDirectory {
    /// Locks the directory of `file`.
    ///
    /// # Errors
    /// When it is locked already, or not there.
    pub fn lock(file: &Path) -> anyhow::Result<Self> {
        let path = file
            .parent()
            .with_context(|| format!("{} is in no directory", file.display()))?;
        let directory = File::open(path).with_context(|| path.display().to_string())?;
        match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self {
                directory,
                path: path.to_owned(),
            }),
            Err(Errno::WOULDBLOCK) => bail!("another command is changing {}", path.display()),
            Err(error) => Err(error).with_context(|| path.display().to_string()),
        }
    }

    /// Puts another text in a key file's place, with its owner.
    ///
    /// # Errors
    /// When there is no such file, or it can't be written.
    pub fn replace(&self, file: &Path, text: &SecretString) -> anyhow::Result<()> {
        self.put(file, text.expose_secret(), 0o600, file)
    }

    /// Writes what everybody may read beside a key file, with the key file's owner.
    ///
    /// # Errors
    /// When there is no key file, or it can't be written.
    pub fn publish(&self, file: &Path, text: &str, key: &Path) -> anyhow::Result<()> {
        self.put(file, text, 0o644, key)
    }

    /// Gives a key file a second name.
    ///
    /// # Errors
    /// When the name is taken.
    pub fn link(&self, file: &Path, name: &Path) -> anyhow::Result<()> {
        fs::hard_link(file, name).with_context(|| name.display().to_string())?;
        self.sync()
    }

    /// Removes a file, also when there is none.
    ///
    /// # Errors
    /// When it stays.
    pub fn remove(&self, file: &Path) -> anyhow::Result<()> {
        remove_if_there(file).with_context(|| file.display().to_string())?;
        self.sync()
    }

    fn put(&self, file: &Path, text: &str, mode: u32, like: &Path) -> anyhow::Result<()> {
        let mut new = file.as_os_str().to_owned();
        new.push(".new");
        let new = PathBuf::from(new);
        let written = fs::metadata(like).and_then(|like| {
            remove_if_there(&new)?;
            let mut created = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(mode)
                .open(&new)?;
            // Whatever the administrator's umask is.
            created.set_permissions(Permissions::from_mode(mode))?;
            created.write_all(text.as_bytes())?;
            fchown(&created, Some(like.uid()), Some(like.gid()))?;
            created.sync_all()?;
            fs::rename(&new, file)
        });
        written.with_context(|| file.display().to_string())?;
        self.sync()
    }

    fn sync(&self) -> anyhow::Result<()> {
        let synced = self.directory.sync_all();
        synced.with_context(|| self.path.display().to_string())
    }
}

fn remove_if_there(file: &Path) -> io::Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::secret_file;
    use crate::testing::Directory;
    use rustix::fs::Mode;

    fn text(text: &str) -> SecretString {
        SecretString::from(text.to_owned())
    }

    fn read(file: &Path) -> String {
        secret_file(file)
            .expect("readable")
            .expose_secret()
            .to_owned()
    }

    fn mode(file: &Path) -> u32 {
        let metadata = fs::metadata(file).expect("there");
        metadata.permissions().mode() & 0o7777
    }

    #[test]
    fn a_key_file_is_made_once_in_a_directory_that_only_its_owner_enters() {
        let directory = Directory::new();
        let file = directory.path().join("etc/keys");
        make_key_file(&file, &text("first\n"), "nobody-here").expect("made");
        assert_eq!(
            (mode(&directory.path().join("etc")), mode(&file)),
            (0o700, 0o600)
        );
        let again = make_key_file(&file, &text("second\n"), "nobody-here");
        assert!(matches!(again, Err(SecretError::Exists(_))));
        assert_eq!(read(&file), "first");
    }

    /// For root alone: nobody else can give files away.
    #[test]
    fn what_root_makes_is_the_daemons_and_what_was_linked_there_stays_roots() {
        let Some(nobody) = system_user("nobody").expect("read") else {
            return;
        };
        assert_eq!(system_user("nobod").expect("read"), None);
        let directory = Directory::new();
        let file = directory.path().join("etc/keys");
        let owner = |file: &Path| {
            let metadata = fs::metadata(file).expect("there");
            (metadata.uid(), metadata.gid())
        };
        make_key_file(&file, &text("key\n"), "nobody").expect("made");
        assert_eq!(owner(&file), nobody);
        assert_eq!(owner(&directory.path().join("etc")), nobody);
        // As a command leaves it that is ended before it hands the file over, and as a link to a file of root's looks.
        let second_name = directory.path().join("shadow");
        for (is_linked, expected) in [(true, (0, 0)), (false, nobody)] {
            std::os::unix::fs::chown(&file, Some(0), Some(0)).expect("given back");
            if is_linked {
                fs::hard_link(&file, &second_name).expect("linked");
            }
            let again = make_key_file(&file, &text("other\n"), "nobody");
            assert!(matches!(again, Err(SecretError::Exists(_))));
            assert_eq!(owner(&file), expected);
            remove_if_there(&second_name).expect("removed");
        }
        // What replaces a key, or is published beside it, is whose the key is.
        let locked = KeyDirectory::lock(&file).expect("locked");
        let public = directory.path().join("etc/keys.pub");
        locked.replace(&file, &text("new\n")).expect("replaced");
        locked.publish(&public, "line\n", &file).expect("published");
        assert_eq!((owner(&file), owner(&public)), (nobody, nobody));
        // An administrator's link is theirs, and what it leads to stays whose it is.
        let kept_elsewhere = directory.write_secret("elsewhere", "key\n");
        let link = directory.path().join("etc/linked");
        std::os::unix::fs::symlink(&kept_elsewhere, &link).expect("linked");
        let again = make_key_file(&link, &text("other\n"), "nobody");
        assert!(matches!(again, Err(SecretError::Exists(_))), "{again:?}");
        assert_eq!(owner(&kept_elsewhere), (0, 0));
    }

    #[test]
    fn one_command_at_a_time_changes_the_keys() {
        let directory = Directory::new();
        let file = directory.write_secret("keys", "old\n");
        let locked = KeyDirectory::lock(&file).expect("locked");
        let second = KeyDirectory::lock(&file).map(drop).expect_err("refused");
        assert!(second.to_string().contains("another command"), "{second}");
        drop(locked);
        KeyDirectory::lock(&file).expect("free again");
    }

    #[test]
    fn a_replaced_key_stays_secret_and_what_is_published_can_be_read() {
        // As careful administrators have it.
        rustix::process::umask(Mode::from_raw_mode(0o077));
        let directory = Directory::new();
        let file = directory.write_secret("keys", "old\n");
        // Left behind by a command that was ended.
        directory.write("keys.new", "half");
        let locked = KeyDirectory::lock(&file).expect("locked");
        locked.replace(&file, &text("new\n")).expect("replaced");
        assert_eq!((read(&file).as_str(), mode(&file)), ("new", 0o600));
        let public = directory.path().join("keys.pub");
        for line in ["one\n", "two\n"] {
            locked.publish(&public, line, &file).expect("published");
            assert_eq!(fs::read_to_string(&public).expect("there"), line);
        }
        assert_eq!(mode(&public), 0o644);
        assert!(!directory.path().join("keys.new").exists());
    }

    #[test]
    fn a_link_in_the_directory_leads_nowhere() {
        let directory = Directory::new();
        let file = directory.write_secret("keys", "old\n");
        let victim = directory.write("victim", "untouched");
        for name in ["keys.pub", "keys.pub.new", "keys.new"] {
            std::os::unix::fs::symlink(&victim, directory.path().join(name)).expect("linked");
        }
        let locked = KeyDirectory::lock(&file).expect("locked");
        locked.replace(&file, &text("new\n")).expect("replaced");
        let public = directory.path().join("keys.pub");
        locked.publish(&public, "line\n", &file).expect("published");
        assert_eq!(fs::read_to_string(&victim).expect("there"), "untouched");
        assert_eq!(fs::read_to_string(public).expect("there"), "line\n");
    }
}
