//! `orion-schedd init`: the pool's key pair, made once and never replaced.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::{DirBuilderExt, chown};
use std::path::{Path, PathBuf};

use anyhow::Context;
use orion_daemon::{SecretError, secret_file, write_secret_new};
use russh::keys::PrivateKey;
use russh::keys::ssh_key::LineEnding;
use russh::keys::ssh_key::private::Ed25519Keypair;
use secrecy::{ExposeSecret, SecretString};

use crate::config::ScheddSettings;

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
    let public = public_file(private);
    write_public(&public, &read_key(private)?)?;
    if let Some((user, group)) = owner()? {
        for path in [directory, private, &public] {
            chown(path, Some(user), Some(group)).with_context(|| path.display().to_string())?;
        }
    }
    Ok(public)
}

/// Reads the pool's private key.
///
/// # Errors
/// When the file is missing, open to others, or holds no unencrypted OpenSSH key.
pub(crate) fn read_key(path: &Path) -> Result<PrivateKey, SecretError> {
    let text = secret_file(path)?;
    let malformed = |reason| SecretError::Malformed {
        path: path.to_owned(),
        line: 1,
        reason,
    };
    // The newline that secret_file strips belongs to the format.
    let text = SecretString::from(format!("{}\n", text.expose_secret()));
    let key = PrivateKey::from_openssh(text.expose_secret())
        .map_err(|_| malformed("is no OpenSSH private key"))?;
    if key.is_encrypted() {
        return Err(malformed(
            "is protected by a passphrase, which nobody could type",
        ));
    }
    Ok(key)
}

fn new_key() -> anyhow::Result<SecretString> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).context("no random bytes for a new key")?;
    let mut key = PrivateKey::from(Ed25519Keypair::from_seed(&seed));
    key.set_comment("orion-pool");
    let text = key.to_openssh(LineEnding::LF).context("a new key")?;
    Ok(SecretString::from(text.to_string()))
}

fn public_file(private: &Path) -> PathBuf {
    let mut name = private.as_os_str().to_owned();
    name.push(".pub");
    PathBuf::from(name)
}

/// Written anew each time: it follows from the private key.
fn write_public(path: &Path, key: &PrivateKey) -> anyhow::Result<()> {
    let line = key.public_key().to_openssh().context("the public key")?;
    std::fs::write(path, format!("{line}\n")).with_context(|| path.display().to_string())
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
