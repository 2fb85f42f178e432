//! Rent: n ready nodes, all or nothing, in one transaction; then their accounts are made.

use crate::edges::{HeldAccount, MAY_BE_LEASED};
use crate::row::column;
use crate::tx::{Finish, Tx, unit};
use crate::{Store, StoreError};
use orion_core::{AccountId, NodeId, RentalId, RequestId, RequestState, RunKind, UserId};
use std::time::Duration;

/// How long an idempotency key is kept.
const KEY_LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// Losing a race for a node that often means somebody changes nodes in a loop.
const MAX_PICKS: u32 = 100;

/// A client's idempotency key.
pub struct IdempotencyKey<'a> {
    /// The bytes as sent.
    pub key: &'a [u8],
    /// HMAC of the body.
    pub body_digest: [u8; 32],
    /// The server key that made the digest.
    pub digest_key_id: &'a str,
}

/// What a client asks for.
pub struct RentOrder<'a> {
    /// Who rents.
    pub user: UserId,
    /// How many machines.
    pub count: u32,
    /// For how long, from the activation on.
    pub duration: Duration,
    /// How long making the accounts may take.
    pub deadline: Duration,
    /// The most rentals of a user that are not proven gone.
    pub max_active: u32,
    /// Unique among all calls of all replicas, 32 hexadecimal digits: finds the request after a lost COMMIT answer.
    pub apid_request_id: &'a str,
    /// The server key that passwords are derived from; `None` where the client chose the password.
    pub password_key_id: Option<&'a str>,
    /// The client's key, where one was sent.
    pub idempotency: Option<IdempotencyKey<'a>>,
}

/// A request whose nodes are taken and whose accounts are still to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenedRequest {
    /// The request.
    pub id: RequestId,
    /// Its rentals, as many as ordered.
    pub rentals: Vec<RentalId>,
}

/// A request that came before with the same idempotency key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownRequest {
    /// The request.
    pub id: RequestId,
    /// HMAC of its body.
    pub body_digest: [u8; 32],
    /// The server key that made the digest.
    pub digest_key_id: String,
}

/// What became of an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RentDecision {
    /// The nodes are taken; nothing is provisioned yet.
    Opened(OpenedRequest),
    /// The idempotency key was used before.
    Known(KnownRequest),
    /// Fewer nodes are free than ordered.
    NoFreeNode {
        /// How many are.
        free: u64,
    },
    /// Workers hold accounts that the database never gave out: nothing is provisioned.
    DatabaseOutdated,
    /// The user would have too many rentals.
    RentalLimit {
        /// How many are not proven gone.
        active: u64,
    },
    /// The database's clock stepped: an end written now would be wrong.
    ClockStepped,
}

/// So many ready nodes on each side of a random place are read to draw from.
const CANDIDATES_AROUND: u32 = 200;

/// What one attempt to take nodes came to.
enum Pick {
    Decided(RentDecision),
    LostARace,
}

impl Store {
    /// Takes nodes for an order.
    ///
    /// # Errors
    /// When the database is away. A COMMIT whose answer was lost is looked up by `apid_request_id`.
    pub async fn rent(&self, order: &RentOrder<'_>) -> Result<RentDecision, StoreError> {
        for _ in 0..MAX_PICKS {
            match unit!(self, |tx| { tx.pick(order).await? }) {
                Ok(Pick::Decided(decision)) => return Ok(decision),
                Ok(Pick::LostARace) => {}
                Err(error)
                    if error.is_unavailable() || error.is_duplicate("requests_apid_request_id") =>
                {
                    return match self.opened(order.apid_request_id).await? {
                        Some(opened) => Ok(RentDecision::Opened(opened)),
                        None => Err(error),
                    };
                }
                // Two calls with the same new key: the loser finds the winner's row.
                Err(error) if error.is_duplicate("requests_idempotency_key") => {}
                Err(error) => return Err(error),
            }
        }
        Err(StoreError::Contention(MAX_PICKS))
    }

    async fn opened(&self, apid_request_id: &str) -> Result<Option<OpenedRequest>, StoreError> {
        unit!(self, |tx| {
            let found = tx
                .first(
                    "SELECT id FROM requests WHERE apid_request_id = ?",
                    (apid_request_id,),
                )
                .await?;
            Finish::Rollback(match found {
                Some(mut row) => {
                    let id = RequestId(column(&mut row, "id")?);
                    Some(OpenedRequest {
                        id,
                        rentals: tx.rentals_of(id).await?,
                    })
                }
                None => None,
            })
        })
    }

    /// Stores the password hashes and queues the provision runs; false when the request is decided already.
    ///
    /// # Errors
    /// When the database is away; the deadline then undoes the request.
    pub async fn provision(
        &self,
        request: RequestId,
        hashes: &[(RentalId, String)],
    ) -> Result<bool, StoreError> {
        unit!(self, |tx| {
            if tx.lock_request(request).await? == Some(RequestState::Open) {
                for (rental, hash) in hashes {
                    let stored = tx
                        .change(
                            "UPDATE rentals SET password_hash = ? \
                             WHERE id = ? AND request_id = ? AND state = 'provisioning' AND password_hash IS NULL",
                            (hash, rental.0, request.0),
                        )
                        .await?;
                    // Repeated, or not of this request: nothing to start.
                    if stored == 1 {
                        for account in tx.wanted_accounts(*rental).await? {
                            tx.queue_account_run(RunKind::Provision, &account).await?;
                        }
                    }
                }
                Finish::Commit(true)
            } else {
                Finish::Rollback(false)
            }
        })
    }
}

impl Tx {
    async fn pick(&mut self, order: &RentOrder<'_>) -> Result<Finish<Pick>, StoreError> {
        let keep = |decision| Ok(Finish::Rollback(Pick::Decided(decision)));
        // One user's calls queue up here: the limit and the key are decided one after the other.
        self.first(
            "SELECT id FROM users WHERE id = ? FOR UPDATE",
            (order.user.0,),
        )
        .await?;
        if let Some(known) = self.known_request(order).await? {
            return keep(RentDecision::Known(known));
        }
        if self.step.is_some() {
            return keep(RentDecision::ClockStepped);
        }
        if self.is_outdated().await? {
            return keep(RentDecision::DatabaseOutdated);
        }
        let active = self
            .number(
                "SELECT COUNT(*) FROM rentals WHERE user_id = ? AND state <> 'ended'",
                (order.user.0,),
            )
            .await?;
        if active + u64::from(order.count) > u64::from(order.max_active) {
            return keep(RentDecision::RentalLimit { active });
        }
        let mut nodes = self.candidates(order.count, None).await?;
        let ordered = usize::try_from(order.count).unwrap_or(usize::MAX);
        if nodes.len() < ordered {
            return keep(RentDecision::NoFreeNode {
                free: u64::try_from(nodes.len()).unwrap_or(u64::MAX),
            });
        }
        // By id, so that two transactions never wait for each other in a circle.
        nodes.sort_unstable();
        for node in &nodes {
            if !self.take_node(*node).await? {
                return Ok(Finish::Rollback(Pick::LostARace));
            }
        }
        let opened = self.open_request(order, &nodes).await?;
        Ok(Finish::Commit(Pick::Decided(RentDecision::Opened(opened))))
    }

    /// The request that has the order's idempotency key. A key older than its lifetime is freed.
    async fn known_request(
        &mut self,
        order: &RentOrder<'_>,
    ) -> Result<Option<KnownRequest>, StoreError> {
        let Some(idempotency) = &order.idempotency else {
            return Ok(None);
        };
        let found = self
            .first(
                "SELECT id, body_digest, digest_key_id, created_at FROM requests \
                 WHERE user_id = ? AND idempotency_key = ? FOR UPDATE",
                (order.user.0, idempotency.key),
            )
            .await?;
        let Some(mut row) = found else {
            return Ok(None);
        };
        let id = RequestId(column(&mut row, "id")?);
        let created_at: time::PrimitiveDateTime = column(&mut row, "created_at")?;
        if created_at + KEY_LIFETIME <= self.now {
            self.change(
                "UPDATE requests SET idempotency_key = NULL WHERE id = ?",
                (id.0,),
            )
            .await?;
            return Ok(None);
        }
        let digest: Vec<u8> = column(&mut row, "body_digest")?;
        let body_digest = digest.try_into().map_err(|_| StoreError::Corrupt {
            column: "body_digest",
            reason: "not 32 bytes".to_owned(),
        })?;
        Ok(Some(KnownRequest {
            id,
            body_digest,
            digest_key_id: column(&mut row, "digest_key_id")?,
        }))
    }

    /// Random nodes that may be leased; with `request`, none that a rental of it has been on. In a large pool they are
    /// drawn from those around a random place, since drawing from all means to read all.
    pub(crate) async fn candidates(
        &mut self,
        count: u32,
        request: Option<RequestId>,
    ) -> Result<Vec<NodeId>, StoreError> {
        let now = self.now;
        let place = self
            .number(
                "SELECT CAST(FLOOR(RAND() * (IFNULL(MAX(id), 0) + 1)) AS UNSIGNED) FROM nodes",
                (),
            )
            .await?;
        let around = count.max(CANDIDATES_AROUND);
        let free = |side: &str| {
            format!(
                "(SELECT n.id FROM nodes n WHERE {MAY_BE_LEASED} AND n.id {side} AND NOT EXISTS \
                 (SELECT 1 FROM accounts a JOIN rentals r ON r.id = a.rental_id \
                  WHERE r.request_id = ? AND a.node_id = n.id) ORDER BY n.id"
            )
        };
        let (above, below) = (free(">= ?"), free("< ?"));
        let request = request.map(|id| id.0);
        let rows = self
            .rows(
                &format!(
                    "SELECT id FROM ({above} LIMIT ?) UNION ALL {below} DESC LIMIT ?)) AS around ORDER BY RAND() LIMIT ?"
                ),
                (
                    now, now, place, request, around, now, now, place, request, around, count,
                ),
            )
            .await?;
        rows.into_iter()
            .map(|mut row| Ok(NodeId(column(&mut row, "id")?)))
            .collect()
    }

    async fn open_request(
        &mut self,
        order: &RentOrder<'_>,
        nodes: &[NodeId],
    ) -> Result<OpenedRequest, StoreError> {
        let now = self.now;
        let duration_us = u64::try_from(order.duration.as_micros()).unwrap_or(u64::MAX);
        let key = order.idempotency.as_ref();
        let id = self
            .insert(
                "INSERT INTO requests (user_id, state, node_count, duration_us, apid_request_id, idempotency_key, \
                 body_digest, digest_key_id, created_at, deadline_at) VALUES (?, 'open', ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    order.user.0,
                    order.count,
                    duration_us,
                    order.apid_request_id,
                    key.map(|key| key.key),
                    key.map(|key| key.body_digest.as_slice()),
                    key.map(|key| key.digest_key_id),
                    now,
                    now + order.deadline,
                ),
            )
            .await?;
        let mut rentals = Vec::with_capacity(nodes.len());
        for node in nodes {
            let rental = self
                .insert(
                    "INSERT INTO rentals (request_id, user_id, state, password_key_id, created_at) \
                     VALUES (?, ?, 'provisioning', ?, ?)",
                    (id, order.user.0, order.password_key_id, now),
                )
                .await?;
            let rental = RentalId(rental);
            self.make_account(rental, *node, 1).await?;
            rentals.push(rental);
        }
        Ok(OpenedRequest {
            id: RequestId(id),
            rentals,
        })
    }

    /// Another node for a rental whose account could not be made; `None` when no node is left.
    pub(crate) async fn replace_account(
        &mut self,
        request: RequestId,
        rental: RentalId,
    ) -> Result<Option<AccountId>, StoreError> {
        for _ in 0..MAX_PICKS {
            let Some(node) = self.candidates(1, Some(request)).await?.into_iter().next() else {
                return Ok(None);
            };
            if self.take_node(node).await? {
                let id = self.make_account(rental, node, 1).await?;
                self.queue_account_run(RunKind::Provision, &HeldAccount { id, node, epoch: 1 })
                    .await?;
                return Ok(Some(id));
            }
        }
        Ok(None)
    }
}
