//! `orion-schedd init`: the pool's key pair, made once; `rotate-pool-key` alone replaces it.

use std::path::{Path, PathBuf};

use anyhow::Context;
use orion_daemon::{KeyDirectory, SecretError, Settings, make_key_file};
use russh::keys::PrivateKey;
use russh::keys::ssh_key::LineEnding;
use russh::keys::ssh_key::private::Ed25519Keypair;
use secrecy::SecretString;

use crate::config::ScheddSettings;
use crate::pool_keys::{beside, read_key};

/// Makes what is missing, and returns the path of the public key, which workers must let in.
///
/// # Errors
/// When a file can't be written, or a key that is there can't be used.
pub fn init(settings: &ScheddSettings) -> anyhow::Result<PathBuf> {
    let private = &settings.ssh.pool_key_file;
    match make_key_file(private, &new_key()?, ScheddSettings::NAME) {
        Ok(()) => tracing::info!(file = %private.display(), "a new pool key"),
        Err(SecretError::Exists(_)) => {
            tracing::info!(file = %private.display(), "the pool key is there already")
        }
        Err(error) => return Err(error.into()),
    }
    write_public(&KeyDirectory::lock(private)?, private, &read_key(private)?)
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
pub(crate) fn write_public(
    directory: &KeyDirectory,
    private: &Path,
    key: &PrivateKey,
) -> anyhow::Result<PathBuf> {
    let line = key.public_key().to_openssh().context("the public key")?;
    let path = beside(private, ".pub");
    directory.publish(&path, &format!("{line}\n"), private)?;
    Ok(path)
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
