//! `orion-schedd rotate-pool-key` and `retire-pool-key`: another key for the pool without a moment in which a worker lets
//! nobody in.
//!
//! First both keys are dialled with and told to agents; when every node lets the new one in, the old one goes. Each step
//! is one rename, link or transaction, so wherever a command is ended, the daemon can work with what is there, and the same
//! command again goes on from it.

use anyhow::bail;
use orion_daemon::KeyDirectory;
use orion_store::{DatabaseSettings, Store};

use crate::config::ScheddSettings;
use crate::init::{new_key, write_public};
use crate::pool_keys::{PoolKey, old_file, read_old};
use crate::serve::database_password;

const AFTER_ROTATING: &str = "Next: systemctl restart orion-schedd, on every host that runs it and with the same key \
     files; agents are then told both keys. When each worker has let the new one in: orion-schedd retire-pool-key";

const AFTER_RETIRING: &str = "Next: systemctl restart orion-schedd, so that the old key is not tried any more; where \
     others run it, remove the old key's file there, too. Agents take the key off their workers by themselves.";

/// Makes a new pool key and keeps the one before it; returns what to tell the administrator.
///
/// # Errors
/// When there is no key yet, or a file can't be written.
pub fn rotate(settings: &ScheddSettings) -> anyhow::Result<String> {
    let file = &settings.ssh.pool_key_file;
    let directory = KeyDirectory::lock(file)?;
    let current = PoolKey::read(file)?;
    match read_old(file)? {
        Some(old) if old.public != current.public => {
            write_public(&directory, file, &current.private)?;
            let old = old_file(file);
            return Ok(format!(
                "A rotation is under way: {} is still there, nothing was changed.\n{AFTER_ROTATING}",
                old.display()
            ));
        }
        // A rotation was ended after its first step.
        Some(_) => {}
        None => directory.link(file, &old_file(file))?,
    }
    directory.replace(file, &new_key()?)?;
    let public = write_public(&directory, file, &PoolKey::read(file)?.private)?;
    Ok(format!(
        "{} is a new key, {} its public half; the key before it is kept.\n{AFTER_ROTATING}",
        file.display(),
        public.display()
    ))
}

/// Drops the pool's old key where every node has let the new one in; returns what to tell the administrator.
///
/// # Errors
/// When a node has not, and then nothing was changed; when the database is away; when a file can't be removed.
pub async fn retire(
    settings: &ScheddSettings,
    database_user: Option<&str>,
) -> anyhow::Result<String> {
    let file = &settings.ssh.pool_key_file;
    let directory = KeyDirectory::lock(file)?;
    let current = PoolKey::read(file)?;
    let Some(old) = read_old(file)? else {
        return Ok("There is no old key: nothing to do.".to_owned());
    };
    if old.public == current.public {
        bail!("a rotation was broken off before it made a key: run orion-schedd rotate-pool-key");
    }
    let store = open(&settings.database, database_user)?;
    let behind = store.retire_pool_key(&old.public).await?;
    store.close().await?;
    if !behind.is_empty() {
        bail!(
            "nothing was changed: the last login did not use the new key on {}. Their agents are told it with each \
             beat, while orion-schedd runs with it; a worker without a signing agent needs it in orion-node's \
             authorized_keys; a node that is gone for good must be deleted.",
            behind.join(", ")
        );
    }
    let gone = old_file(file);
    directory.remove(&gone)?;
    Ok(format!("{} is gone.\n{AFTER_RETIRING}", gone.display()))
}

/// Over its socket MariaDB lets everybody in under their own name only, which for root is root.
fn open(configured: &DatabaseSettings, user: Option<&str>) -> anyhow::Result<Store> {
    let over_socket = !configured.socket.as_os_str().is_empty();
    let user = match user {
        Some(user) => user,
        None if over_socket && rustix::process::geteuid().is_root() => "root",
        None => &configured.user,
    };
    let settings = DatabaseSettings {
        user: user.to_owned(),
        ..configured.clone()
    };
    Ok(Store::open(&settings, database_password(&settings)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::init::init;
    use crate::pool_keys::{PoolKeys, beside};
    use orion_testkit::Scratch;
    use std::os::unix::fs::PermissionsExt;

    fn settings(scratch: &Scratch) -> ScheddSettings {
        let mut settings = ScheddSettings::default();
        settings.ssh.pool_key_file = scratch.join("schedd/pool_key");
        init(&settings).unwrap();
        settings
    }

    /// The keys that the daemon would dial with, the newest first.
    fn publics(settings: &ScheddSettings) -> Vec<String> {
        let keys = PoolKeys::read(&settings.ssh.pool_key_file).unwrap();
        keys.all().map(|key| key.public.clone()).collect()
    }

    #[test]
    fn a_rotation_keeps_the_key_before_and_a_second_one_changes_nothing() {
        let scratch = Scratch::new("rotate");
        let settings = settings(&scratch);
        let file = &settings.ssh.pool_key_file;
        let before = publics(&settings);
        assert!(rotate(&settings).unwrap().contains("Next: "));
        let during = publics(&settings);
        assert_eq!((during.len(), &during[1]), (2, &before[0]));
        let mode = std::fs::metadata(file).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
        let public = std::fs::read_to_string(beside(file, ".pub")).unwrap();
        assert!(public.starts_with(&during[0]), "{public}");

        assert!(rotate(&settings).unwrap().contains("under way"));
        assert_eq!(publics(&settings), during);
    }

    #[test]
    fn a_rotation_that_was_ended_anywhere_goes_on_with_a_usable_key_at_each_step() {
        let scratch = Scratch::new("rotate");
        let settings = settings(&scratch);
        let file = &settings.ssh.pool_key_file;
        let before = publics(&settings);
        // After the link.
        std::fs::hard_link(file, old_file(file)).unwrap();
        assert_eq!(publics(&settings), before);
        // In the middle of writing the new key.
        scratch.write_secret("schedd/pool_key.new", "-----BEGIN OPENSSH");
        assert_eq!(publics(&settings), before);
        rotate(&settings).unwrap();
        let during = publics(&settings);
        assert_eq!((during.len(), &during[1]), (2, &before[0]));
        // After the rename, before the public half was written.
        std::fs::write(beside(file, ".pub"), "stale").unwrap();
        rotate(&settings).unwrap();
        assert_eq!(publics(&settings), during);
        let public = std::fs::read_to_string(beside(file, ".pub")).unwrap();
        assert!(public.starts_with(&during[0]), "{public}");
    }

    #[test]
    fn two_commands_at_once_do_not_meet() {
        let scratch = Scratch::new("rotate");
        let settings = settings(&scratch);
        let first = KeyDirectory::lock(&settings.ssh.pool_key_file).unwrap();
        let refused = rotate(&settings).unwrap_err();
        assert!(refused.to_string().contains("another command"), "{refused}");
        drop(first);
        rotate(&settings).unwrap();
    }

    #[tokio::test]
    async fn nothing_is_retired_where_nothing_is_old() {
        let scratch = Scratch::new("rotate");
        let settings = settings(&scratch);
        let said = retire(&settings, None).await.unwrap();
        assert!(said.contains("nothing to do"), "{said}");
        let file = &settings.ssh.pool_key_file;
        std::fs::hard_link(file, old_file(file)).unwrap();
        let refused = retire(&settings, None).await.unwrap_err();
        assert!(refused.to_string().contains("rotate-pool-key"), "{refused}");
        assert!(old_file(file).exists());
    }
}
