//! Nodes as clients and administrators see them, and the administrators' edges.

use crate::row::{address, column, instant, instant_or_null, word};
use crate::tx::{Finish, Tx, bounded, unit};
use crate::{Scope, Store, StoreError};
use mysql_async::Row;
use mysql_async::prelude::Queryable;
use orion_core::api::{AgentView, DebtView, LeaseView, NodeView};
use orion_core::{Availability, NodeId, RentalId, RentalState, Uid, UserId};

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
    /// A rental is on it, and it could not be inspected.
    Held,
}

/// What became of an approval.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Approval {
    /// The control plane dials it from now on.
    Done,
    /// No such node.
    NotFound,
    /// It does not wait for one.
    NotAwaited,
}

const SELECT: &str = "SELECT n.id, n.hostname, n.client_host, n.client_port, n.status, n.status_reason, n.status_since, \
     n.last_checked_at, n.availability, n.availability_reason, n.held_until, n.draining, n.drain_move, n.awaits_approval, \
     a.id IS NOT NULL AS allocated, b.agent, b.beat_at, n.agent_down_since, r.id AS rental_id, r.user_id, r.leased_from, r.leased_until, r.state, \
     d.rental_id AS debtor, d.uid, d.state_since, \
     (SELECT COUNT(*) FROM runs u WHERE u.account_id = d.id AND u.kind = 'clean' AND u.finished_at IS NOT NULL) AS attempts, \
     (SELECT CONCAT_WS(': ', u.outcome, u.detail) FROM runs u WHERE u.account_id = d.id AND u.kind = 'clean' \
      AND u.finished_at IS NOT NULL ORDER BY u.finished_at DESC, u.id DESC LIMIT 1) AS last_result \
     FROM nodes n LEFT JOIN beats b ON b.node_id = n.id LEFT JOIN accounts a ON a.held_node = n.id \
     LEFT JOIN accounts d ON d.held_node = n.id AND d.state = 'leaving' \
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
                    let wanted = "SELECT COUNT(*) FROM accounts WHERE held_node = ? AND state IN ('making', 'present')";
                    if tx.number(wanted, (id.0,)).await? > 0 {
                        return Ok(Unquarantine::Held);
                    }
                    tx.move_node(id, Availability::Quarantined, Availability::Joining, None)
                        .await?;
                    tx.change(
                        "UPDATE nodes SET failed_provisions = 0, failed_checks = 0, deaths = 0, held_until = NULL, highest_uid = NULL WHERE id = ?",
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

impl Store {
    /// Lets a node in that registered in mode `approve`: it is dialled and inspected like any other.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn approve_node(&self, id: NodeId) -> Result<Approval, StoreError> {
        unit!(self, |tx| {
            let known = tx
                .number(
                    "SELECT COUNT(*) FROM nodes WHERE id = ? AND forgotten_at IS NULL",
                    (id.0,),
                )
                .await?;
            if known == 0 {
                return Ok(Approval::NotFound);
            }
            let sql =
                "UPDATE nodes SET awaits_approval = FALSE WHERE id = ? AND awaits_approval = TRUE";
            if tx.change(sql, (id.0,)).await? == 0 {
                return Ok(Approval::NotAwaited);
            }
            tx.event("node_approved", id.into(), None).await?;
            tx.queue_inspection(id).await?;
            Finish::Commit(Approval::Done)
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
    let debt = match column::<Option<u64>>(&mut row, "debtor")?.filter(|_| scope == Scope::All) {
        None => None,
        Some(id) => Some(DebtView {
            rental_id: RentalId(id),
            uid: Uid(column(&mut row, "uid")?),
            since: instant(&mut row, "state_since")?,
            attempts: column(&mut row, "attempts")?,
            last_result: column(&mut row, "last_result")?,
        }),
    };
    let agent = match instant_or_null(&mut row, "beat_at")? {
        Some(last_beat_at) if scope == Scope::All => Some(AgentView {
            version: column(&mut row, "agent")?,
            last_beat_at,
            down_since: instant_or_null(&mut row, "agent_down_since")?,
        }),
        Some(_) | None => None,
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
        held_until: instant_or_null(&mut row, "held_until")?,
        draining: column(&mut row, "draining")?,
        drain_move: column(&mut row, "drain_move")?,
        awaits_approval: column(&mut row, "awaits_approval")?,
        allocated: column(&mut row, "allocated")?,
        agent,
        lease,
        debt,
    })
}
