//! The pool's SSH public keys, as agents are told them.

use crate::row::column;
use crate::tx::{Finish, Tx, bounded, unit};
use crate::{Store, StoreError};
use mysql_async::Row;
use mysql_async::prelude::Queryable;
use orion_core::NodeId;

const NEWEST_FIRST: &str = "SELECT public_key FROM pool_keys ORDER BY id DESC";

fn texts(rows: Vec<Row>, name: &'static str) -> Result<Vec<String>, StoreError> {
    rows.into_iter()
        .map(|mut row| column(&mut row, name))
        .collect()
}

impl Store {
    /// Tells agents of these keys, `type base64`, the newest last. Keys that are known keep their places.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn publish_pool_keys(&self, keys: &[String]) -> Result<(), StoreError> {
        unit!(self, |tx| {
            let now = tx.now;
            for key in keys {
                tx.change(
                    "INSERT INTO pool_keys (public_key, created_at) VALUES (?, ?) \
                     ON DUPLICATE KEY UPDATE id = id",
                    (key, now),
                )
                .await?;
            }
            Finish::Commit(())
        })
    }

    /// The keys, the newest first.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn pool_keys(&self) -> Result<Vec<String>, StoreError> {
        bounded(async { texts(self.conn().await?.query(NEWEST_FIRST).await?, "public_key") }).await
    }

    /// Takes a key away, unless a node's last login did not use a newer one: then nothing changes, and the host names of
    /// such nodes are returned.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn retire_pool_key(&self, key: &str) -> Result<Vec<String>, StoreError> {
        unit!(self, |tx| {
            let rows = tx
                .rows(
                    "SELECT n.hostname FROM nodes n LEFT JOIN pool_keys p ON p.public_key = n.login_key \
                     WHERE n.forgotten_at IS NULL AND n.awaits_approval = FALSE AND (p.id IS NULL OR p.id <= \
                     IFNULL((SELECT old.id FROM pool_keys old WHERE old.public_key = ?), 0)) ORDER BY n.hostname",
                    (key,),
                )
                .await?;
            let behind = texts(rows, "hostname")?;
            if behind.is_empty() {
                tx.change("DELETE FROM pool_keys WHERE public_key = ?", (key,))
                    .await?;
                Finish::Commit(behind)
            } else {
                Finish::Rollback(behind)
            }
        })
    }

    /// Remembers which of the pool's keys a node let in.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn record_login_key(&self, node: NodeId, key: &str) -> Result<(), StoreError> {
        unit!(self, |tx| {
            tx.change("UPDATE nodes SET login_key = ? WHERE id = ?", (key, node.0))
                .await?;
            Finish::Commit(())
        })
    }
}

impl Tx {
    /// The keys, the newest first.
    pub(crate) async fn pool_keys(&mut self) -> Result<Vec<String>, StoreError> {
        texts(self.rows(NEWEST_FIRST, ()).await?, "public_key")
    }
}
