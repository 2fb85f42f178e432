//! A fresh host: the database, one database user per daemon, the schema, and what may never change afterwards.

use crate::{DatabaseSettings, Store, StoreError};
use mysql_async::prelude::Queryable;
use orion_core::ids::MANAGED_UIDS;

/// The database users, named like the system users: over the socket, the system user is the proof.
const DAEMONS: [&str; 2] = ["orion-apid", "orion-schedd"];

/// Below are the UIDs of people, of Debian's daemons and of systemd's dynamic users.
const LOWEST_UID_BASE: u32 = 100_000;

/// Makes database, users and schema and fixes `uid_base`; what exists already stays as it is. `admin` connects as a user
/// with all rights: root over the server's socket.
///
/// # Errors
/// `Settings` for a database name that isn't a plain word, else what the server says.
pub async fn init(
    admin: &DatabaseSettings,
    database: &str,
    uid_base: u32,
) -> Result<(), StoreError> {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    if database.is_empty() || !database.bytes().all(plain) {
        return Err(StoreError::Settings(
            "database.name must be lower-case letters, digits and `_`".to_owned(),
        ));
    }
    if !(LOWEST_UID_BASE..=u32::MAX - MANAGED_UIDS).contains(&uid_base) {
        return Err(StoreError::Settings(format!(
            "uid_base must lie between {LOWEST_UID_BASE} and {}",
            u32::MAX - MANAGED_UIDS
        )));
    }
    let server = Store::open(
        &DatabaseSettings {
            name: String::new(),
            ..admin.clone()
        },
        None,
    )?;
    let mut conn = server.conn().await?;
    conn.query_drop(format!(
        "CREATE DATABASE IF NOT EXISTS `{database}` CHARACTER SET utf8mb4"
    ))
    .await?;
    // In GRANT, `_` stands for any character.
    let granted = database.replace('_', "\\_");
    for user in DAEMONS {
        conn.query_drop(format!(
            "CREATE USER IF NOT EXISTS '{user}'@'localhost' IDENTIFIED VIA unix_socket"
        ))
        .await?;
        conn.query_drop(format!(
            "GRANT SELECT, INSERT, UPDATE, DELETE ON `{granted}`.* TO '{user}'@'localhost'"
        ))
        .await?;
    }
    drop(conn);
    server.close().await?;
    let store = Store::open(
        &DatabaseSettings {
            name: database.to_owned(),
            ..admin.clone()
        },
        None,
    )?;
    store.apply_schema().await?;
    store
        .conn()
        .await?
        .exec_drop(
            "INSERT IGNORE INTO installation (id, uid_base, created_at) VALUES (1, ?, UTC_TIMESTAMP(6))",
            (uid_base,),
        )
        .await?;
    store.close().await
}
