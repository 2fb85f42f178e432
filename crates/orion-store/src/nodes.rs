//! Nodes as clients and administrators see them, their beats, and the administrators' edges.

use crate::row::{address, column, instant, instant_or_null, word};
use crate::tx::{Finish, Tx, bounded, unit};
use crate::{Scope, Store, StoreError};
use mysql_async::Row;
use mysql_async::prelude::Queryable;
use orion_core::api::{LeaseView, NodeView};
use orion_core::{Availability, NodeId, RentalId, RentalState, UserId};
use std::collections::HashSet;

/// An agent's sign of life.
#[derive(Debug, Clone)]
pub struct Beat {
    /// Whose.
    pub node: NodeId,
    /// Changes with each boot.
    pub boot_id: String,
    /// The agent's version.
    pub agent: String,
}

/// What became of forgetting a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forget {
    /// Its name and address are free; its row stays for the history.
    Done,
    /// No such node.
    NotFound,
    /// A rental or a debt is on it.
    Held,
}

/// What became of a release from quarantine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unquarantine {
    /// It is joining and will be inspected.
    Done,
    /// No such node.
    NotFound,
    /// It is not quarantined.
    WrongState(Availability),
}

const SELECT: &str = "SELECT n.id, n.hostname, n.client_host, n.client_port, n.status, n.status_reason, n.status_since, \
     n.last_checked_at, n.availability, n.availability_reason, n.draining, a.id IS NOT NULL AS allocated, \
     r.id AS rental_id, r.user_id, r.leased_from, r.leased_until, r.state \
     FROM nodes n LEFT JOIN accounts a ON a.held_node = n.id \
     LEFT JOIN rentals r ON r.id = a.rental_id AND (? IS NULL OR r.user_id = ?) \
     WHERE n.forgotten_at IS NULL";

impl Store {
    /// Every node, by id. A rental outside the scope is not shown, its node's `allocated` is.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn nodes(&self, scope: Scope) -> Result<Vec<NodeView>, StoreError> {
        let user = scope.user();
        bounded(async {
            let rows: Vec<Row> = self
                .conn()
                .await?
                .exec(format!("{SELECT} ORDER BY n.id"), (user, user))
                .await?;
            rows.into_iter().map(|row| node_view(scope, row)).collect()
        })
        .await
    }

    /// One node.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn node(&self, scope: Scope, id: NodeId) -> Result<Option<NodeView>, StoreError> {
        let user = scope.user();
        bounded(async {
            let row = self
                .conn()
                .await?
                .exec_first(format!("{SELECT} AND n.id = ?"), (user, user, id.0))
                .await?;
            row.map(|row| node_view(scope, row)).transpose()
        })
        .await
    }

    /// Records beats, all in one statement, and tells which nodes are known.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn beat_many(&self, beats: &[Beat]) -> Result<HashSet<NodeId>, StoreError> {
        if beats.is_empty() {
            return Ok(HashSet::new());
        }
        unit!(self, |tx| {
            let places = vec!["?"; beats.len()].join(", ");
            let ids: Vec<mysql_async::Value> =
                beats.iter().map(|beat| beat.node.0.into()).collect();
            let rows = tx
                .rows(
                    &format!(
                        "SELECT id FROM nodes WHERE forgotten_at IS NULL AND id IN ({places})"
                    ),
                    ids,
                )
                .await?;
            let known: HashSet<NodeId> = rows
                .into_iter()
                .map(|mut row| Ok(NodeId(column(&mut row, "id")?)))
                .collect::<Result<_, StoreError>>()?;
            let mut values = Vec::new();
            // By id, so that two replicas' batches don't wait for each other in a circle.
            let mut sorted: Vec<&Beat> = beats
                .iter()
                .filter(|beat| known.contains(&beat.node))
                .collect();
            sorted.sort_unstable_by_key(|beat| beat.node);
            for beat in sorted {
                values.push(mysql_async::Value::from(beat.node.0));
                values.push(tx.now.into());
                values.push(beat.boot_id.as_str().into());
                values.push(beat.agent.as_str().into());
            }
            if !values.is_empty() {
                let places = vec!["(?, ?, ?, ?)"; values.len() / 4].join(", ");
                tx.change(
                    &format!(
                        "INSERT INTO beats (node_id, beat_at, boot_id, agent) VALUES {places} ON DUPLICATE KEY UPDATE \
                         beat_at = VALUES(beat_at), boot_id = VALUES(boot_id), agent = VALUES(agent)"
                    ),
                    values,
                )
                .await?;
            }
            Finish::Commit(known)
        })
    }

    /// Forgets a node that holds nothing, or one that is out of service (dead or quarantined) with its debt: that stays
    /// recorded, and its rental ends. An agent that is still there registers as a new node.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn forget_node(&self, id: NodeId) -> Result<Forget, StoreError> {
        unit!(self, |tx| {
            // The request's lock comes before the node's, as everywhere.
            let debtor = tx.rental_on(id).await?;
            if let Some(rental) = debtor
                && let Some(request) = tx.request_of(rental).await?
            {
                tx.lock_request(request).await?;
            }
            let found = tx
                .first(
                    "SELECT status = 'dead' OR availability = 'quarantined' AS out_of_service FROM nodes \
                     WHERE id = ? AND forgotten_at IS NULL FOR UPDATE",
                    (id.0,),
                )
                .await?;
            let Some(mut row) = found else {
                return Ok(Forget::NotFound);
            };
            let out_of_service: bool = column(&mut row, "out_of_service")?;
            let holds = "SELECT COUNT(*) FROM accounts WHERE held_node = ? AND (state <> 'leaving' OR ? = FALSE)";
            if tx.number(holds, (id.0, out_of_service)).await? > 0
                || tx.rental_on(id).await? != debtor
            {
                return Ok(Forget::Held);
            }
            tx.forget(id).await?;
            if let Some(rental) = debtor {
                tx.end_if_gone(rental).await?;
            }
            Finish::Commit(Forget::Done)
        })
    }

    /// `quarantined -> joining`, by an administrator: the node is inspected before anybody gets it.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn release_from_quarantine(&self, id: NodeId) -> Result<Unquarantine, StoreError> {
        unit!(self, |tx| {
            let found = tx
                .first("SELECT availability FROM nodes WHERE id = ? AND forgotten_at IS NULL FOR UPDATE", (id.0,))
                .await?;
            match found
                .map(|mut row| word(&mut row, "availability"))
                .transpose()?
            {
                None => Finish::Rollback(Unquarantine::NotFound),
                Some(Availability::Quarantined) => {
                    tx.move_node(id, Availability::Quarantined, Availability::Joining, None)
                        .await?;
                    tx.change(
                        "UPDATE nodes SET failed_provisions = 0, failed_checks = 0 WHERE id = ?",
                        (id.0,),
                    )
                    .await?;
                    tx.event("node_released_from_quarantine", id.into(), None)
                        .await?;
                    Finish::Commit(Unquarantine::Done)
                }
                Some(other) => Finish::Rollback(Unquarantine::WrongState(other)),
            }
        })
    }
}

impl Tx {
    async fn rental_on(&mut self, node: NodeId) -> Result<Option<RentalId>, StoreError> {
        let found = self
            .first(
                "SELECT rental_id FROM accounts WHERE held_node = ?",
                (node.0,),
            )
            .await?;
        found
            .map(|mut row| Ok(RentalId(column(&mut row, "rental_id")?)))
            .transpose()
    }

    async fn forget(&mut self, node: NodeId) -> Result<(), StoreError> {
        let now = self.now;
        self.change(
            "UPDATE nodes SET forgotten_at = ? WHERE id = ?",
            (now, node.0),
        )
        .await?;
        self.change("DELETE FROM host_keys WHERE node_id = ?", (node.0,))
            .await?;
        self.change(
            "UPDATE runs SET state = 'failed', outcome = 'superseded', finished_at = ?, claimed_by = NULL, \
             claim_expires_at = NULL WHERE node_id = ? AND state IN ('queued', 'claimed')",
            (now, node.0),
        )
        .await?;
        self.event("node_forgotten", node.into(), None).await
    }
}

/// Reasons hold what a worker said: for administrators.
fn node_view(scope: Scope, mut row: Row) -> Result<NodeView, StoreError> {
    let client = address(&mut row, "client_host", "client_port")?.ok_or(StoreError::Corrupt {
        column: "client_host",
        reason: "NULL".to_owned(),
    })?;
    let lease = match column::<Option<u64>>(&mut row, "rental_id")? {
        None => None,
        Some(id) => {
            let state: RentalState = word(&mut row, "state")?;
            Some(LeaseView {
                rental_id: RentalId(id),
                user_id: UserId(column(&mut row, "user_id")?),
                leased_from: instant_or_null(&mut row, "leased_from")?,
                leased_until: instant_or_null(&mut row, "leased_until")?,
                active: matches!(state, RentalState::Active | RentalState::Degraded),
            })
        }
    };
    Ok(NodeView {
        node_id: NodeId(column(&mut row, "id")?),
        hostname: column(&mut row, "hostname")?,
        host_ip: client.host,
        ssh_port: client.port,
        status: word(&mut row, "status")?,
        status_reason: column::<Option<String>>(&mut row, "status_reason")?
            .filter(|_| scope == Scope::All),
        status_since: instant(&mut row, "status_since")?,
        last_checked_at: instant_or_null(&mut row, "last_checked_at")?,
        availability: word(&mut row, "availability")?,
        availability_reason: column::<Option<String>>(&mut row, "availability_reason")?
            .filter(|_| scope == Scope::All),
        draining: column(&mut row, "draining")?,
        allocated: column(&mut row, "allocated")?,
        lease,
    })
}
