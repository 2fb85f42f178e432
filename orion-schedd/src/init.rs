//! `orion-schedd init`: the pool's key pair, made once; `rotate-pool-key` alone replaces it.

use std::fs::{DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, lchown};
use std::path::{Path, PathBuf};

use anyhow::Context;
use orion_daemon::{SecretError, write_secret_new};
use russh::keys::PrivateKey;
use russh::keys::ssh_key::LineEnding;
use russh::keys::ssh_key::private::Ed25519Keypair;
use secrecy::{ExposeSecret, SecretString};

use crate::config::ScheddSettings;
use crate::pool_keys::{beside, read_key};

/// The system user that the daemon runs as.
const OWNER: &str = "orion-schedd";

/// Makes what is missing, hands it to the daemon's user where that exists and we are root, and returns the path of the
/// public key, which workers must let in.
///
/// # Errors
/// When a file can't be written, or a key that is there can't be used.
pub fn init(settings: &ScheddSettings) -> anyhow::Result<PathBuf> {
    let private = &settings.ssh.pool_key_file;
    let directory = private
        .parent()
        .context("ssh.pool_key_file is in no directory")?;
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .with_context(|| directory.display().to_string())?;
    match write_secret_new(private, new_key()?.expose_secret().as_bytes()) {
        Ok(()) => tracing::info!(file = %private.display(), "a new pool key"),
        Err(SecretError::Exists(_)) => {
            tracing::info!(file = %private.display(), "the pool key is there already")
        }
        Err(error) => return Err(error.into()),
    }
    give_to_daemon(directory)?;
    give_to_daemon(private)?;
    write_public(private, &read_key(private)?)
}

/// Hands a file to the daemon's user, when we are root and it exists. The directory is that user's: a link put there leads
/// root nowhere.
pub(crate) fn give_to_daemon(path: &Path) -> anyhow::Result<()> {
    if let Some((user, group)) = owner()? {
        lchown(path, Some(user), Some(group)).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

pub(crate) fn new_key() -> anyhow::Result<SecretString> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).context("no random bytes for a new key")?;
    let mut key = PrivateKey::from(Ed25519Keypair::from_seed(&seed));
    key.set_comment("orion-pool");
    let text = key.to_openssh(LineEnding::LF).context("a new key")?;
    Ok(SecretString::from(text.to_string()))
}

/// Writes the public half beside the private key, anew each time since it follows from that, and returns its path.
pub(crate) fn write_public(private: &Path, key: &PrivateKey) -> anyhow::Result<PathBuf> {
    let line = key.public_key().to_openssh().context("the public key")?;
    let path = beside(private, ".pub");
    let new = beside(private, ".pub.new");
    let written = remove_if_there(&new).and_then(|()| {
        let mut file = File::create_new(&new)?;
        writeln!(file, "{line}")?;
        file.sync_all()
    });
    written.with_context(|| new.display().to_string())?;
    give_to_daemon(&new)?;
    std::fs::rename(&new, &path).with_context(|| path.display().to_string())?;
    Ok(path)
}

/// Removes a file, also when there is none.
pub(crate) fn remove_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// The daemon's user and group, when we are root and it exists.
fn owner() -> io::Result<Option<(u32, u32)>> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let passwd = std::fs::read_to_string("/etc/passwd")?;
    Ok(passwd.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        match fields.as_slice() {
            [name, _, user, group, ..] if *name == OWNER => {
                Some((user.parse().ok()?, group.parse().ok()?))
            }
            _ => None,
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use orion_testkit::Scratch;
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    fn settings(scratch: &Scratch) -> ScheddSettings {
        let mut settings = ScheddSettings::default();
        settings.ssh.pool_key_file = scratch.join("schedd/pool_key");
        settings
    }

    #[test]
    fn the_key_pair_is_made_once_and_openssh_can_read_it() {
        let scratch = Scratch::new("init");
        let settings = settings(&scratch);
        let public = init(&settings).unwrap();
        let private = &settings.ssh.pool_key_file;
        let first = std::fs::read(private).unwrap();
        assert_eq!(
            std::fs::metadata(private).unwrap().permissions().mode() & 0o777,
            0o600
        );
        let line = std::fs::read_to_string(&public).unwrap();
        assert!(
            line.starts_with("ssh-ed25519 AAAA") && line.ends_with(" orion-pool\n"),
            "{line}"
        );

        let derived = Command::new("ssh-keygen")
            .arg("-yf")
            .arg(private)
            .output()
            .unwrap();
        assert_eq!(String::from_utf8(derived.stdout).unwrap(), line);

        std::fs::remove_file(&public).unwrap();
        init(&settings).unwrap();
        assert_eq!(std::fs::read(private).unwrap(), first);
        assert_eq!(std::fs::read_to_string(&public).unwrap(), line);
    }

    #[test]
    fn a_link_in_the_daemons_directory_leads_nowhere() {
        let scratch = Scratch::new("init");
        let settings = settings(&scratch);
        init(&settings).unwrap();
        let victim = scratch.write_secret("victim", "untouched");
        for name in ["pool_key.pub", "pool_key.pub.new"] {
            let link = scratch.join("schedd").join(name);
            remove_if_there(&link).unwrap();
            std::os::unix::fs::symlink(&victim, link).unwrap();
        }
        init(&settings).unwrap();
        assert_eq!(std::fs::read_to_string(victim).unwrap(), "untouched");
        let line = std::fs::read_to_string(scratch.join("schedd/pool_key.pub")).unwrap();
        assert!(line.starts_with("ssh-ed25519 "), "{line}");
    }

    #[test]
    fn a_file_that_is_no_key_is_told_and_left_alone() {
        let scratch = Scratch::new("init");
        let settings = settings(&scratch);
        scratch.write_secret("schedd/pool_key", "not a key\n");
        let error = init(&settings).unwrap_err();
        assert!(
            error.to_string().contains("no OpenSSH private key"),
            "{error}"
        );
        assert_eq!(
            std::fs::read_to_string(&settings.ssh.pool_key_file).unwrap(),
            "not a key\n"
        );
    }
}
