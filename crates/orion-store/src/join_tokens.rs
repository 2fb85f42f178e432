//! Permissions to join, made by administrators. A token is a seed that the database never sees: it keeps the public half.

use crate::row::{column, instant, instant_or_null};
use crate::tx::{Finish, Tx, bounded, unit};
use crate::{Address, Store, StoreError};
use mysql_async::Row;
use mysql_async::prelude::Queryable;
use orion_core::api::JoinTokenView;
use orion_core::{HostName, JoinTokenId, PublicKey, UserId};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::net::IpAddr;
use std::time::Duration;

/// What a new token permits.
#[derive(Debug)]
pub struct JoinTokenOrder {
    /// Its public half.
    pub public_key: PublicKey,
    /// How many nodes it lets in.
    pub uses: u32,
    /// From now on.
    pub lifetime: Duration,
    /// The networks that a node's addresses must lie in; empty for no such bound.
    pub networks: Vec<ipnet::IpNet>,
    /// The host names it lets in; empty for any.
    pub hostnames: Vec<HostName>,
    /// The control plane's key that its join line names.
    pub signing_key: PublicKey,
    /// The administrator.
    pub created_by: UserId,
}

/// How long a token that lets nobody in any more is still listed.
const LISTED_AFTER_END: Duration = Duration::from_secs(30 * 24 * 3600);

/// What became of revoking a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Revocation {
    /// It lets nobody in any more. Nodes that it let in stay.
    Done,
    /// No such token.
    NotFound,
}

/// Why a token does not let a worker in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenFault {
    /// None was shown.
    #[error("a new worker needs a join token")]
    Missing,
    /// Never made here.
    #[error("the join token is not known here")]
    Unknown,
    /// An administrator took it back.
    #[error("the join token was revoked")]
    Revoked,
    /// Its time is over.
    #[error("the join token has expired")]
    Expired,
    /// It let in as many nodes as it may.
    #[error("the join token is used up")]
    UsedUp,
    /// It is for other networks.
    #[error("the join token is for other networks than the worker's addresses")]
    Network,
    /// It is for other names.
    #[error("the join token is for other host names")]
    HostName,
}

const SELECT: &str = "SELECT id, uses, uses_left, networks, hostnames, created_by, created_at, expires_at, revoked_at \
     FROM join_tokens";

impl Store {
    /// A new token.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn create_join_token(
        &self,
        order: &JoinTokenOrder,
    ) -> Result<JoinTokenView, StoreError> {
        let (networks, hostnames) = (list(&order.networks)?, list(&order.hostnames)?);
        let lifetime_us = u64::try_from(order.lifetime.as_micros()).unwrap_or(u64::MAX);
        unit!(self, |tx| {
            let now = tx.now;
            tx.change(
                "DELETE FROM join_tokens WHERE expires_at < ?",
                (now - LISTED_AFTER_END,),
            )
            .await?;
            let id = tx
                .insert(
                    "INSERT INTO join_tokens (public_key, uses, uses_left, networks, hostnames, signing_key, created_by, \
                     created_at, expires_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ? + INTERVAL ? MICROSECOND)",
                    (
                        order.public_key.to_string(),
                        order.uses,
                        order.uses,
                        &networks,
                        &hostnames,
                        order.signing_key.to_string(),
                        order.created_by.0,
                        now,
                        now,
                        lifetime_us,
                    ),
                )
                .await?;
            let row = tx.first(&format!("{SELECT} WHERE id = ?"), (id,)).await?;
            let row = row.ok_or(StoreError::Corrupt {
                column: "join_tokens.id",
                reason: "a new row vanished".to_owned(),
            })?;
            Finish::Commit(view(row)?)
        })
    }

    /// Every token, the newest first.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn join_tokens(&self) -> Result<Vec<JoinTokenView>, StoreError> {
        bounded(async {
            let sql = format!("{SELECT} ORDER BY id DESC");
            let rows: Vec<Row> = self.conn().await?.query(sql).await?;
            rows.into_iter().map(view).collect()
        })
        .await
    }

    /// Tokens that may still let workers in and whose join lines name another key of the control plane: such a worker
    /// would believe no answer once that key is retired.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn join_tokens_for_another_key(
        &self,
        key: &PublicKey,
    ) -> Result<Vec<JoinTokenId>, StoreError> {
        let now = self.now().await?.0;
        bounded(async {
            let sql = "SELECT id FROM join_tokens WHERE revoked_at IS NULL AND uses_left > 0 AND expires_at > ? \
                 AND signing_key <> ? ORDER BY id";
            let ids: Vec<u64> = self.conn().await?.exec(sql, (now, key.to_string())).await?;
            Ok(ids.into_iter().map(JoinTokenId).collect())
        })
        .await
    }

    /// Takes a token back; a second time: the same.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn revoke_join_token(&self, id: JoinTokenId) -> Result<Revocation, StoreError> {
        unit!(self, |tx| {
            let known = tx
                .number("SELECT COUNT(*) FROM join_tokens WHERE id = ?", (id.0,))
                .await?;
            if known == 0 {
                return Ok(Revocation::NotFound);
            }
            let now = tx.now;
            tx.change(
                "UPDATE join_tokens SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL",
                (now, id.0),
            )
            .await?;
            Finish::Commit(Revocation::Done)
        })
    }
}

impl Tx {
    /// Uses a token up by one, if it lets this worker in. Two registrations at once wait for each other at its row.
    pub(crate) async fn use_join_token(
        &mut self,
        token: &PublicKey,
        hostname: &HostName,
        addresses: [&Address; 2],
    ) -> Result<Result<JoinTokenId, TokenFault>, StoreError> {
        let sql = format!("{SELECT} WHERE public_key = ? FOR UPDATE");
        let Some(row) = self.first(&sql, (token.to_string(),)).await? else {
            return Ok(Err(TokenFault::Unknown));
        };
        let token = view(row)?;
        let fault = if token.revoked_at.is_some() {
            Some(TokenFault::Revoked)
        } else if token.expires_at.0 <= self.now {
            Some(TokenFault::Expired)
        } else if token.uses_left == 0 {
            Some(TokenFault::UsedUp)
        } else if !token.hostnames.is_empty() && !token.hostnames.contains(hostname) {
            Some(TokenFault::HostName)
        } else if !addresses.iter().all(|address| is_inside(&token, address)) {
            Some(TokenFault::Network)
        } else {
            None
        };
        if let Some(fault) = fault {
            return Ok(Err(fault));
        }
        self.change(
            "UPDATE join_tokens SET uses_left = uses_left - 1 WHERE id = ?",
            (token.join_token_id.0,),
        )
        .await?;
        Ok(Ok(token.join_token_id))
    }
}

/// A name has no address that could be compared: a token that is bound to networks is not for it.
fn is_inside(token: &JoinTokenView, address: &Address) -> bool {
    token.networks.is_empty()
        || address
            .host
            .parse::<IpAddr>()
            .is_ok_and(|ip| token.networks.iter().any(|network| network.contains(&ip)))
}

fn list(items: &impl Serialize) -> Result<String, StoreError> {
    serde_json::to_string(items).map_err(|error| StoreError::Settings(error.to_string()))
}

fn items<T: DeserializeOwned>(row: &mut Row, name: &'static str) -> Result<Vec<T>, StoreError> {
    let text: String = column(row, name)?;
    serde_json::from_str(&text).map_err(|error| StoreError::Corrupt {
        column: name,
        reason: error.to_string(),
    })
}

fn view(mut row: Row) -> Result<JoinTokenView, StoreError> {
    Ok(JoinTokenView {
        join_token_id: JoinTokenId(column(&mut row, "id")?),
        uses: column(&mut row, "uses")?,
        uses_left: column(&mut row, "uses_left")?,
        networks: items(&mut row, "networks")?,
        hostnames: items(&mut row, "hostnames")?,
        created_by: UserId(column(&mut row, "created_by")?),
        created_at: instant(&mut row, "created_at")?,
        expires_at: instant(&mut row, "expires_at")?,
        revoked_at: instant_or_null(&mut row, "revoked_at")?,
    })
}
