//! What SSH logins tell about nodes, and what becomes of the addresses they claim.

use crate::edges::short;
use crate::row::{Address, address, column, word};
use crate::tx::{Finish, Tx, bounded, unit};
use crate::{Store, StoreError};
use mysql_async::prelude::Queryable;
use mysql_async::{Row, Value};
use orion_core::beats::SILENT_INTERVALS;
use orion_core::{Availability, NodeId, NodeStatus};

/// A node to dial.
#[derive(Debug, Clone)]
pub struct ProbeTarget {
    /// The node.
    pub node: NodeId,
    /// Where it is; `None` while another node has proven that the address is its own.
    pub contact: Option<Address>,
    /// Where it says it is now.
    pub pending: Option<AddressClaim>,
    /// The pinned SSH host keys, `type base64`; empty until the first dial.
    pub host_keys: Vec<String>,
    /// Which of the pool's keys the last login used.
    pub login_key: Option<String>,
    /// What may be done with it.
    pub availability: Availability,
    /// What is seen of it.
    pub status: NodeStatus,
}

/// Addresses that a node says are its own now. Each takes effect only where the node's pinned key is met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddressClaim {
    /// Where the control plane would dial.
    pub contact: Address,
    /// What clients would be told.
    pub client: Address,
}

/// What a dial of a node's address met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProbeResult {
    /// The pinned host key, and a login.
    LoggedIn,
    /// Nobody, or nobody in time.
    NoAnswer(String),
    /// Another host key, `type base64`. A node whose agent is silent, too, is not there any more.
    WrongHostKey(String),
    /// The pinned host key, and no login. Somebody is there: not dead.
    Refused(String),
    /// An sshd that turns connections away for now, and what it says. It showed no key, so it is taken for the node's for a
    /// quarter of an hour, and for longer only while the agent beats.
    TurnedAway(&'static str),
}

/// Dead after so many failures in a row over at least `DEAD_AFTER_S` seconds, where the agent is silent, too.
const DEAD_AFTER_FAILURES: u32 = 3;
const DEAD_AFTER_S: u32 = 10;
/// A node whose agent beats is dead all the same when nobody could log in for so long, and so is one whose agent is silent
/// while no other is heard: it may be orion-apid that is away.
const DEAD_IN_SPITE_OF_BEATS_S: u32 = 180;
/// An agent is heard that beat within so many of its intervals; fewer than make one silent, so that an outage is found out
/// before it looks like the silence of one.
const HEARD_INTERVALS: u32 = 2;
/// The longest that an sshd turns somebody away as a penalty is ten minutes by default (OpenSSH's `PerSourcePenalties max`). Where that goes
/// on for longer and the agent is silent, it may be another machine that has the address.
const TURNED_AWAY_S: u32 = 900;
/// So many deaths within a day make it an administrator's matter.
const DEATHS_TO_QUARANTINE: u64 = 3;

impl Store {
    /// Every node that may be dialled: one that awaits approval is not.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn probe_targets(&self) -> Result<Vec<ProbeTarget>, StoreError> {
        bounded(async {
            let rows: Vec<Row> = self
                .conn()
                .await?
                .query(
                    "SELECT n.id, n.contact_host, n.contact_port, n.pending_contact_host, n.pending_contact_port, n.pending_client_host, n.pending_client_port, \
                     n.availability, n.status, n.login_key, (SELECT GROUP_CONCAT(k.host_key SEPARATOR '\n') FROM host_keys k \
                     WHERE k.node_id = n.id) AS host_keys FROM nodes n WHERE n.forgotten_at IS NULL AND n.awaits_approval = FALSE ORDER BY n.id",
                )
                .await?;
            rows.into_iter()
                .map(|mut row| {
                    let keys: Option<String> = column(&mut row, "host_keys")?;
                    let contact_claim = address(&mut row, "pending_contact_host", "pending_contact_port")?;
                    let client_claim = address(&mut row, "pending_client_host", "pending_client_port")?;
                    Ok(ProbeTarget {
                        node: NodeId(column(&mut row, "id")?),
                        contact: address(&mut row, "contact_host", "contact_port")?,
                        pending: contact_claim.zip(client_claim).map(|(contact, client)| AddressClaim { contact, client }),
                        host_keys: keys.map(|keys| keys.lines().map(str::to_owned).collect()).unwrap_or_default(),
                        login_key: column(&mut row, "login_key")?,
                        availability: word(&mut row, "availability")?,
                        status: word(&mut row, "status")?,
                    })
                })
                .collect()
        })
        .await
    }

    /// Decides about the nodes that failed often enough: between two probes, too, a node can turn out to be dead.
    ///
    /// # Errors
    /// When the database is away.
    pub(crate) async fn decide_deaths(&self) -> Result<(), StoreError> {
        let failing: Vec<u64> = bounded(async {
            let sql = "SELECT id FROM nodes WHERE status = 'suspect' AND failed_checks >= ? AND forgotten_at IS NULL \
                 ORDER BY failing_since, id";
            Ok(self.conn().await?.exec(sql, (DEAD_AFTER_FAILURES,)).await?)
        })
        .await?;
        for node in failing {
            unit!(self, |tx| {
                tx.decide_death(NodeId(node)).await?;
                Finish::Commit(())
            })?;
        }
        Ok(())
    }

    /// Records what a dial of a node's contact address met.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn record_probe(&self, node: NodeId, result: &ProbeResult) -> Result<(), StoreError> {
        unit!(self, |tx| {
            match result {
                ProbeResult::LoggedIn => tx.checks_succeeded(&[node]).await?,
                ProbeResult::NoAnswer(reason) => {
                    tx.check_failed(node, &format!("no answer: {reason}"))
                        .await?;
                    tx.decide_death(node).await?;
                }
                ProbeResult::WrongHostKey(_) => {
                    tx.check_failed(node, "another SSH host key answers")
                        .await?;
                    // The agent knows whether the node is still there.
                    if tx.beats(node).await? {
                        tx.is_not_silent(node).await?;
                    } else {
                        tx.decide_death(node).await?;
                    }
                }
                ProbeResult::Refused(reason) => {
                    tx.check_failed(node, &format!("login refused: {reason}"))
                        .await?;
                    tx.is_not_silent(node).await?;
                }
                ProbeResult::TurnedAway(said) => {
                    tx.check_failed(node, &format!("turned away: {said}"))
                        .await?;
                    if tx.beats(node).await? {
                        tx.is_not_silent(node).await?;
                    } else {
                        tx.is_turned_away(node).await?;
                        tx.decide_death(node).await?;
                    }
                }
            }
            Finish::Commit(())
        })
    }

    /// Records for many nodes at once what `record_probe` does for one that was logged in to.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn record_logins(&self, nodes: &[NodeId]) -> Result<(), StoreError> {
        if nodes.is_empty() {
            return Ok(());
        }
        unit!(self, |tx| {
            Finish::Commit(tx.checks_succeeded(nodes).await?)
        })
    }

    /// The pinned key was met at both addresses of the claim: they take effect, and a node that had the contact address
    /// has none from now on: it is dead unless its agent goes on beating. False when the node claims something else by now.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn confirm_address(
        &self,
        node: NodeId,
        claim: &AddressClaim,
    ) -> Result<bool, StoreError> {
        let AddressClaim { contact, client } = claim;
        unit!(self, |tx| {
            tx.rows(
                "SELECT id FROM nodes WHERE id = ? OR live_address = CONCAT(?, ' ', ?) ORDER BY id FOR UPDATE",
                (node.0, &contact.host, contact.port),
            )
            .await?;
            tx.change(
                "UPDATE nodes SET contact_host = NULL, contact_port = NULL, \
                 status_since = IF(status = 'dead', status_since, ?), status = IF(status = 'dead', 'dead', 'suspect'), \
                 status_reason = 'its address belongs to another node now', \
                 failed_checks = ?, failing_since = IFNULL(failing_since, ?) \
                 WHERE live_address = CONCAT(?, ' ', ?) AND id <> ?",
                (tx.now, DEAD_AFTER_FAILURES, tx.now, &contact.host, contact.port, node.0),
            )
            .await?;
            let changed = tx
                .change(
                    "UPDATE nodes SET contact_host = pending_contact_host, contact_port = pending_contact_port, \
                     client_host = pending_client_host, client_port = pending_client_port, \
                     pending_client_host = NULL, pending_client_port = NULL, \
                     pending_contact_host = NULL, pending_contact_port = NULL, failed_checks = 0, failing_since = NULL \
                     WHERE id = ? AND forgotten_at IS NULL AND pending_contact_host = ? AND pending_contact_port = ? \
                     AND pending_client_host = ? AND pending_client_port = ?",
                    (node.0, &contact.host, contact.port, &client.host, client.port),
                )
                .await?;
            if changed == 1 {
                tx.event(
                    "node_moved_to_address",
                    node.into(),
                    Some(&contact.to_string()),
                )
                .await?;
                Finish::Commit(true)
            } else {
                Finish::Rollback(false)
            }
        })
    }

    /// The claim met another key, or nobody: it stays a claim. For a node that has no other address this is a failed
    /// check.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn refuse_address(
        &self,
        node: NodeId,
        claim: &AddressClaim,
        reason: &str,
    ) -> Result<(), StoreError> {
        unit!(self, |tx| {
            let homeless = tx
                .number(
                    "SELECT COUNT(*) FROM nodes WHERE id = ? AND contact_host IS NULL",
                    (node.0,),
                )
                .await?;
            if homeless == 1 {
                tx.check_failed(node, &format!("claims {}: {reason}", claim.contact))
                    .await?;
                tx.decide_death(node).await?;
            }
            Finish::Commit(())
        })
    }

    /// Pins a node that registered without host keys to what its first dial met; false when it is pinned already, or
    /// the key is another node's.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn pin_host_key(&self, node: NodeId, keys: &[String]) -> Result<bool, StoreError> {
        let pinned = unit!(self, |tx| {
            let known = tx
                .first(
                    "SELECT id FROM nodes WHERE id = ? AND forgotten_at IS NULL FOR UPDATE",
                    (node.0,),
                )
                .await?;
            if known.is_some() && tx.pinned_keys(node).await?.is_empty() {
                tx.pin(node, keys).await?;
                Finish::Commit(true)
            } else {
                Finish::Rollback(false)
            }
        });
        match pinned {
            Err(error) if error.is_duplicate("PRIMARY") => Ok(false),
            other => other,
        }
    }
}

impl Tx {
    /// At each of these nodes somebody with the pinned key answered and let us in.
    pub(crate) async fn checks_succeeded(&mut self, nodes: &[NodeId]) -> Result<(), StoreError> {
        let places = vec!["?"; nodes.len()].join(", ");
        let mut params = vec![Value::from(self.now), Value::from(self.now)];
        params.extend(nodes.iter().map(|node| Value::from(node.0)));
        self.change(
            &format!(
                "UPDATE nodes SET status_since = IF(status = 'alive', status_since, ?), status = 'alive', \
                 status_reason = NULL, last_checked_at = ?, failed_checks = 0, failing_since = NULL \
                 WHERE id IN ({places}) AND forgotten_at IS NULL"
            ),
            params,
        )
        .await?;
        Ok(())
    }

    /// One failure makes suspect, never dead.
    pub(crate) async fn check_failed(
        &mut self,
        node: NodeId,
        reason: &str,
    ) -> Result<(), StoreError> {
        let now = self.now;
        self.change(
            "UPDATE nodes SET status_since = IF(status = 'alive', ?, status_since), \
             status = IF(status = 'alive', 'suspect', status), status_reason = ?, last_checked_at = ?, \
             failed_checks = failed_checks + 1, failing_since = IFNULL(failing_since, ?) \
             WHERE id = ? AND forgotten_at IS NULL",
            (now, short(reason), now, now, node.0),
        )
        .await?;
        Ok(())
    }

    /// Somebody is there: whatever silence there was proves nothing any more.
    async fn is_not_silent(&mut self, node: NodeId) -> Result<(), StoreError> {
        self.change(
            "UPDATE nodes SET failed_checks = 0, failing_since = NULL WHERE id = ?",
            (node.0,),
        )
        .await?;
        Ok(())
    }

    /// Somebody is there, and may be the node: that it failed counts only once this goes on for too long. There was no login
    /// meanwhile, so three failures that follow count from where this began.
    async fn is_turned_away(&mut self, node: NodeId) -> Result<(), StoreError> {
        self.change(
            "UPDATE nodes SET failed_checks = 0 WHERE id = ? AND failing_since > ? - INTERVAL ? SECOND",
            (node.0, self.now, TURNED_AWAY_S),
        )
        .await?;
        Ok(())
    }

    /// Whether its agent is heard.
    async fn beats(&mut self, node: NodeId) -> Result<bool, StoreError> {
        let heard = self
            .number(
                "SELECT COUNT(*) FROM beats WHERE node_id = ? AND beat_at >= ? - INTERVAL ? * interval_s SECOND",
                (node.0, self.now, SILENT_INTERVALS),
            )
            .await?;
        Ok(heard > 0)
    }

    /// `suspect -> dead`. A node that died is inspected when it comes back, and waits longer each time before it is
    /// offered again.
    async fn decide_death(&mut self, node: NodeId) -> Result<(), StoreError> {
        if !self.may_die().await? {
            return Ok(());
        }
        let now = self.now;
        let died = self
            .change(
                "UPDATE nodes n LEFT JOIN beats b ON b.node_id = n.id SET n.status = 'dead', n.status_since = ? \
                 WHERE n.id = ? AND n.status IN ('suspect', 'unknown') AND n.failed_checks >= ? \
                 AND n.failing_since <= ? - INTERVAL ? SECOND \
                 AND (b.beat_at IS NULL OR n.failing_since <= ? - INTERVAL ? SECOND \
                      OR (b.beat_at < ? - INTERVAL ? * b.interval_s SECOND AND EXISTS \
                          (SELECT 1 FROM beats o WHERE o.node_id <> n.id AND o.beat_at >= ? - INTERVAL ? * o.interval_s SECOND)))",
                (
                    now, node.0, DEAD_AFTER_FAILURES, now, DEAD_AFTER_S, now, DEAD_IN_SPITE_OF_BEATS_S,
                    now, SILENT_INTERVALS, now, HEARD_INTERVALS,
                ),
            )
            .await?;
        if died == 1 {
            // What it holds is still owed; afterwards it is inspected.
            for from in [Availability::Ready, Availability::Cleaning] {
                self.move_node(node, from, Availability::Joining, Some("died"))
                    .await?;
            }
            self.event("node_dead", node.into(), None).await?;
            // From left to right: each expression sees what those before it set.
            self.change(
                "UPDATE nodes SET deaths = IF(died_at > ? - INTERVAL 1 DAY, deaths + 1, 1), died_at = ?, \
                 held_until = ? + INTERVAL LEAST(60, POW(2, LEAST(deaths, 7) - 1)) MINUTE WHERE id = ?",
                (now, now, now, node.0),
            )
            .await?;
            // `deaths` counts on while less than a day lies between two, and begins anew after a quarantine.
            let deaths = self
                .number(
                    "SELECT LEAST(n.deaths, (SELECT COUNT(*) FROM events e WHERE e.node_id = n.id \
                     AND e.kind = 'node_dead' AND e.at > ? - INTERVAL 1 DAY)) FROM nodes n WHERE n.id = ?",
                    (now, node.0),
                )
                .await?;
            if deaths >= DEATHS_TO_QUARANTINE {
                let reason = format!("died {deaths} times within a day");
                self.quarantine(node, &reason).await?;
            }
        }
        Ok(())
    }
}
