//! `orion-apid init`: the database, and the secrets of a fresh host.

use orion_daemon::{KeyId, SecretError, Settings, generate_key_line, make_key_file};
use orion_store::bootstrap;
use secrecy::SecretString;

use crate::commands::{DatabaseArgs, say};
use crate::config::ApidSettings;

/// Makes what is missing of them.
///
/// # Errors
/// When the database refuses, or a file can't be written.
pub(crate) async fn init(
    settings: &ApidSettings,
    uid_base: u32,
    database: &DatabaseArgs,
) -> anyhow::Result<()> {
    let admin = database.apply(&settings.database);
    bootstrap::init(&admin, &settings.database.name, uid_base).await?;
    say(&format!("database {} is there", settings.database.name))?;
    for path in [
        &settings.auth.jwt_keys_file,
        &settings.rent.server_keys_file,
        &settings.registration.signing_keys_file,
    ] {
        match make_key_file(path, &new_key_line()?, ApidSettings::NAME) {
            Ok(()) => say(&format!("{} written", path.display()))?,
            Err(SecretError::Exists(_)) => say(&format!("{} is there", path.display()))?,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// A line with a new key under a name of its own.
pub(crate) fn new_key_line() -> Result<SecretString, SecretError> {
    let mut id = [0; 4];
    getrandom::fill(&mut id).map_err(|error| SecretError::NoRandom(error.to_string()))?;
    let id = KeyId::new(&format!("k{:08x}", u32::from_be_bytes(id)));
    let id = id.ok_or_else(|| SecretError::NoRandom("a key id".to_owned()))?;
    generate_key_line(&id)
}
