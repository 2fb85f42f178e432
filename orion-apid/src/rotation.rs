//! `orion-apid rotate-signing-key` and `retire-signing-key`: another key for answers to agents. Answers are signed with all keys
//! of the file, so agents that know the old one believe the answer that tells them the new one.

use anyhow::{Context, bail};
use orion_daemon::{KeyDirectory, Keyring, secret_file};
use secrecy::{ExposeSecret, SecretString};

use crate::commands::{DatabaseArgs, say};
use crate::config::ApidSettings;
use crate::init::new_key_line;
use crate::serve::{open, signing_keys};

const RESTART: &str =
    "now restart orion-apid, on every host that has one (each with this same file)";

/// Makes a new signing key and keeps the one before it.
///
/// # Errors
/// While a rotation is under way, and when the file can't be changed.
pub(crate) fn rotate(settings: &ApidSettings) -> anyhow::Result<()> {
    let path = &settings.registration.signing_keys_file;
    let directory = KeyDirectory::lock(path)?;
    let keys = signing_keys(&Keyring::load(path)?)?;
    if keys.len() > 1 {
        bail!(
            "there are {} signing keys already: retire-signing-key comes first",
            keys.len()
        );
    }
    let text = format!(
        "{}{}\n",
        new_key_line()?.expose_secret(),
        secret_file(path)?.expose_secret()
    );
    directory.replace(path, &SecretString::from(text))?;
    say(&format!(
        "{} has a new key on top; {RESTART}",
        path.display()
    ))
}

/// Drops the older signing keys.
///
/// # Errors
/// While an agent or a join line needs one of them, and then nothing was changed; when the database is away, or the file can't
/// be changed.
pub(crate) async fn retire(settings: &ApidSettings, database: &DatabaseArgs) -> anyhow::Result<()> {
    let path = &settings.registration.signing_keys_file;
    let directory = KeyDirectory::lock(path)?;
    let keys = signing_keys(&Keyring::load(path)?)?;
    let (Some(newest), true) = (keys.first(), keys.len() > 1) else {
        return say("there is one signing key; nothing is to be retired");
    };
    let store = open(&database.apply(&settings.database))?;
    let behind = store
        .nodes_that_believe_another_key(&newest.public())
        .await?;
    let lines = store.join_tokens_for_another_key(&newest.public()).await?;
    store.close().await?;
    if !lines.is_empty() {
        let ids: Vec<String> = lines.iter().map(ToString::to_string).collect();
        bail!(
            "join lines with the older key may still be used: revoke these join tokens, or wait until they expire: {}",
            ids.join(", ")
        );
    }
    if !behind.is_empty() {
        bail!(
            "these nodes have not heard of the newest key yet: {}; is orion-apid restarted, do their agents run?",
            behind.join(", ")
        );
    }
    let text = secret_file(path)?;
    let is_key = |line: &&str| !line.is_empty() && !line.starts_with('#');
    let first = text.expose_secret().lines().map(str::trim).find(is_key);
    let first = first.context("the file has no key")?;
    directory.replace(path, &SecretString::from(format!("{first}\n")))?;
    say(&format!(
        "{} has its newest key alone; {RESTART}",
        path.display()
    ))
}
