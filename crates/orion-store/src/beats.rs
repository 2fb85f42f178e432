//! Agents' signs of life, and the counters of what they sign.

use crate::register::SignedBy;
use crate::reports::{AccountsReport, HeldOnNode, Wanted};
use crate::row::{column, word, word_or_null};
use crate::tx::{Finish, Tx, bounded, unit};
use crate::{Store, StoreError};
use mysql_async::Value;
use mysql_async::prelude::Queryable;
use orion_core::api::ReportedAccount;
use orion_core::{AccountState, NodeId, NodeStatus, PublicKey, Uid, beats};
use std::collections::HashMap;
use std::time::Duration;

/// An agent's sign of life.
#[derive(Debug, Clone)]
pub struct Beat {
    /// Whose.
    pub node: NodeId,
    /// Changes with each boot.
    pub boot_id: String,
    /// The agent's version.
    pub agent: String,
    /// Who signed it; `None` where nobody did.
    pub signed: Option<SignedBy>,
    /// The first of the control plane's keys that the agent believes.
    pub signing_key: Option<PublicKey>,
    /// What it says of the accounts there; `None` where that can't be read. Believed only if it is signed.
    pub accounts: Option<Vec<ReportedAccount>>,
}

/// What became of a beat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BeatOutcome {
    /// It counts.
    Recorded {
        /// What is seen of the node.
        status: NodeStatus,
    },
    /// No node has this id.
    Unknown,
    /// The node has a key, and nobody signed.
    Unsigned,
    /// The node has another key, or none.
    WrongKey,
    /// The counter was used before; the highest so far.
    OldCounter(u64),
}

/// What became of some beats.
#[derive(Debug, Clone, Default)]
pub struct BeatsRecorded {
    /// For each beat, in the order they were given.
    pub outcomes: Vec<BeatOutcome>,
    /// What the control plane wants of the account that a node holds, if it holds one.
    pub held: HashMap<NodeId, HeldOnNode>,
    /// The pool's SSH public keys, the newest first.
    pub pool_keys: Vec<String>,
    /// When each node beats next (seconds).
    pub interval_s: u32,
    /// What signed beats say of accounts and the database does not: for [`Store::follow_report`].
    pub differing: Vec<AccountsReport>,
}

/// What is known of a node that beats.
struct Known {
    status: NodeStatus,
    agent_key: Option<PublicKey>,
    counter: u64,
}

impl Known {
    fn judge(&self, beat: &Beat) -> BeatOutcome {
        let recorded = BeatOutcome::Recorded {
            status: self.status,
        };
        match (self.agent_key, beat.signed) {
            (None, None) => recorded,
            (Some(_), None) => BeatOutcome::Unsigned,
            (Some(key), Some(by)) if key == by.key => {
                if by.counter > self.counter {
                    recorded
                } else {
                    BeatOutcome::OldCounter(self.counter)
                }
            }
            (_, Some(_)) => BeatOutcome::WrongKey,
        }
    }
}

impl Store {
    /// Records beats, at most one of a node and signer, all in one transaction that advances the nodes' counters. Their
    /// answers tell `interval_s`; `None` counts the nodes anew for it.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn beat_many(
        &self,
        beats: &[Beat],
        interval_s: Option<u32>,
    ) -> Result<BeatsRecorded, StoreError> {
        if beats.is_empty() {
            return Ok(BeatsRecorded::default());
        }
        unit!(self, |tx| {
            let known = tx.known_beaters(beats).await?;
            let judge = |beat: &Beat| match known.get(&beat.node) {
                Some(known) => known.judge(beat),
                None => BeatOutcome::Unknown,
            };
            let outcomes: Vec<BeatOutcome> = beats.iter().map(judge).collect();
            let mut good: Vec<&Beat> = beats
                .iter()
                .zip(&outcomes)
                .filter(|(_, outcome)| matches!(outcome, BeatOutcome::Recorded { .. }))
                .map(|(beat, _)| beat)
                .collect();
            // By id, so that two replicas' batches don't wait for each other in a circle.
            good.sort_unstable_by_key(|beat| beat.node);
            let interval_s = match interval_s {
                Some(known) => known,
                None => beats::interval_s(tx.live_nodes().await?),
            };
            tx.write_beats(&good, interval_s).await?;
            let held = tx.held_on(&good).await?;
            let pool_keys = tx.pool_keys().await?;
            let differing = tx.differing(&good, &held).await?;
            Finish::Commit(BeatsRecorded {
                outcomes,
                held,
                pool_keys,
                interval_s,
                differing,
            })
        })
    }
}

impl Store {
    /// The host names of nodes whose agents believe keys of the control plane, and not this one first.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn nodes_that_believe_another_key(
        &self,
        key: &PublicKey,
    ) -> Result<Vec<String>, StoreError> {
        bounded(async {
            let sql = "SELECT n.hostname FROM nodes n JOIN beats b ON b.node_id = n.id \
                 WHERE n.forgotten_at IS NULL AND b.signing_key <> ? ORDER BY n.hostname";
            Ok(self.conn().await?.exec(sql, (key.to_string(),)).await?)
        })
        .await
    }
}

impl Tx {
    /// Locks the rows of beats alone: nodes' rows are others' for longer.
    async fn known_beaters(
        &mut self,
        beats: &[Beat],
    ) -> Result<HashMap<NodeId, Known>, StoreError> {
        let places = vec!["?"; beats.len()].join(", ");
        let ids: Vec<Value> = beats.iter().map(|beat| beat.node.0.into()).collect();
        let counters = self
            .rows(
                &format!(
                    "SELECT node_id, counter FROM beats WHERE node_id IN ({places}) ORDER BY node_id FOR UPDATE"
                ),
                ids.clone(),
            )
            .await?;
        let mut counter_of: HashMap<u64, u64> = HashMap::new();
        for mut row in counters {
            counter_of.insert(column(&mut row, "node_id")?, column(&mut row, "counter")?);
        }
        let nodes = self
            .rows(
                &format!(
                    "SELECT id, status, agent_key FROM nodes WHERE forgotten_at IS NULL AND id IN ({places})"
                ),
                ids,
            )
            .await?;
        nodes
            .into_iter()
            .map(|mut row| {
                let id: u64 = column(&mut row, "id")?;
                let known = Known {
                    status: word(&mut row, "status")?,
                    agent_key: word_or_null(&mut row, "agent_key")?,
                    counter: counter_of.get(&id).copied().unwrap_or(0),
                };
                Ok((NodeId(id), known))
            })
            .collect()
    }

    /// Nodes that may beat.
    async fn live_nodes(&mut self) -> Result<u64, StoreError> {
        self.number(
            "SELECT COUNT(*) FROM nodes WHERE forgotten_at IS NULL AND status <> 'dead'",
            (),
        )
        .await
    }

    async fn write_beats(&mut self, beats: &[&Beat], interval_s: u32) -> Result<(), StoreError> {
        if beats.is_empty() {
            return Ok(());
        }
        let mut values: Vec<Value> = Vec::with_capacity(beats.len() * 7);
        for beat in beats {
            values.push(beat.node.0.into());
            values.push(self.now.into());
            values.push(beat.boot_id.as_str().into());
            values.push(beat.agent.as_str().into());
            values.push(beat.signed.map_or(0, |by| by.counter).into());
            values.push(beat.signing_key.map(|key| key.to_string()).into());
            values.push(interval_s.into());
        }
        let places = vec!["(?, ?, ?, ?, ?, ?, ?)"; beats.len()].join(", ");
        // GREATEST: two first beats of a node at once find no row to lock.
        self.change(
            &format!(
                "INSERT INTO beats (node_id, beat_at, boot_id, agent, counter, signing_key, interval_s) VALUES {places} \
                 ON DUPLICATE KEY UPDATE beat_at = VALUES(beat_at), boot_id = VALUES(boot_id), \
                 agent = VALUES(agent), counter = GREATEST(counter, VALUES(counter)), signing_key = VALUES(signing_key), \
                 interval_s = VALUES(interval_s)"
            ),
            values,
        )
        .await?;
        Ok(())
    }

    /// Without locks: what a beat's answer misses, the next one tells.
    async fn held_on(
        &mut self,
        beats: &[&Beat],
    ) -> Result<HashMap<NodeId, HeldOnNode>, StoreError> {
        if beats.is_empty() {
            return Ok(HashMap::new());
        }
        let places = vec!["?"; beats.len()].join(", ");
        let stepped = self.step.is_some();
        let mut params = vec![Value::from(self.now)];
        params.extend(beats.iter().map(|beat| Value::from(beat.node.0)));
        let rows = self
            .rows(
                &format!(
                    "SELECT a.node_id, a.uid, a.epoch, a.state, TIMESTAMPDIFF(MICROSECOND, ?, r.leased_until) AS left_us \
                     FROM accounts a JOIN rentals r ON r.id = a.rental_id WHERE a.held_node IN ({places})"
                ),
                params,
            )
            .await?;
        rows.into_iter()
            .map(|mut row| {
                let state: AccountState = word(&mut row, "state")?;
                let left_us: Option<i64> = column(&mut row, "left_us")?;
                let wanted = match (state, left_us) {
                    (AccountState::Leaving | AccountState::Gone, _) => Wanted::Gone,
                    // An answer may lengthen a countdown: while the clock is in doubt, the worker's own counts.
                    (_, Some(_)) if stepped => Wanted::Undecided,
                    (_, Some(left)) => {
                        Wanted::For(Duration::from_micros(u64::try_from(left).unwrap_or(0)))
                    }
                    (AccountState::Making | AccountState::Present, None) => Wanted::Undecided,
                };
                let held = HeldOnNode {
                    uid: Uid(column(&mut row, "uid")?),
                    epoch: column(&mut row, "epoch")?,
                    wanted,
                };
                Ok((NodeId(column(&mut row, "node_id")?), held))
            })
            .collect()
    }

    /// What is worth a closer look, found without locks: the next beat says it again.
    async fn differing(
        &mut self,
        beats: &[&Beat],
        held: &HashMap<NodeId, HeldOnNode>,
    ) -> Result<Vec<AccountsReport>, StoreError> {
        let reports: Vec<AccountsReport> = beats
            .iter()
            .filter(|beat| beat.signed.is_some())
            .filter_map(|beat| {
                let accounts = beat.accounts.clone()?;
                Some(AccountsReport {
                    node: beat.node,
                    accounts,
                })
            })
            .collect();
        if reports.is_empty() {
            return Ok(reports);
        }
        let counter = self.uid_counter().await?;
        let differs = |report: &AccountsReport| report.differs(held.get(&report.node), counter);
        Ok(reports.into_iter().filter(differs).collect())
    }

    /// Takes a registration for a sign of life, and its counter with it. The highest counter so far where it is not
    /// above that.
    pub(crate) async fn advance_counter(&mut self, beat: &Beat) -> Result<Option<u64>, StoreError> {
        let counter = beat.signed.map_or(0, |by| by.counter);
        let highest = self
            .number(
                "SELECT counter FROM beats WHERE node_id = ? FOR UPDATE",
                (beat.node.0,),
            )
            .await?;
        if counter <= highest {
            return Ok(Some(highest));
        }
        self.write_beats(&[beat], beats::SHORTEST_S).await?;
        Ok(None)
    }
}
