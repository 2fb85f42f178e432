//! Moving rentals off nodes that died. A rental keeps its id, its end and its password; its old account becomes a debt in
//! the transaction that takes the new node.
//!
//! Silence is ambiguous: the brakes here bound how fast anything moves, and stop it when so much fails at once that it is
//! likelier us.

use crate::edges::{About, HeldAccount};
use crate::row::{column, word};
use crate::tx::{Finish, Tx, bounded, unit};
use crate::{Store, StoreError};
use mysql_async::prelude::Queryable;
use orion_core::{AccountId, Availability, NodeId, NodeStatus, RentalId, RentalState, RunKind};
use std::time::Duration;

/// Moves that may begin at once, and how fast the allowance comes back: one in 5 s.
const BURST: f64 = 5.0;
const MOVES_PER_S: f64 = 0.2;

/// Nodes that turned bad within this time turned bad together (seconds): a thousand that are silent are found out within
/// three minutes, 64 at once and 12 s each.
const TOGETHER_S: u32 = 300;
/// Fewer nodes that fail together are their own fault.
const TOGETHER_LEAST: u64 = 3;

/// How long an administrator's word lets moves go on while much has failed.
const OVERRIDE: Duration = Duration::from_secs(600);

/// When much that failed is back, the rest gets this time to come back, too.
const AFTER_RESUME: Duration = Duration::from_secs(60);

/// No grace is longer; what says so was written by another clock.
const LONGEST_GRACE_S: u32 = 3600;

/// A name that is taken is tried on one further node (DESIGN 6.13).
const NAMES_TAKEN: u64 = 2;

/// A node on which provisioning failed for a rental is not tried again for it for so long (seconds).
const FAILED_LATELY_S: u32 = 600;

/// What one tick did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Migrated {
    /// Rentals whose node is dead now.
    pub degraded: u64,
    /// Rentals whose node came back before a spare was taken.
    pub healed: u64,
    /// Rentals for which another node was taken.
    pub moving: u64,
    /// Why nothing moves.
    pub suspended: Option<String>,
}

/// How many nodes are bad, and whether more are good. The good ones are not counted to the end: there may be very many,
/// and this is asked each second.
struct Health {
    bad: u64,
    /// Turned bad together, lately.
    together: u64,
    /// At most one more than `bad`.
    good: u64,
}

impl Health {
    /// When so much fails at once, it is likelier us.
    fn is_us(&self) -> bool {
        let half = self.together * 2 >= self.bad + self.good && self.together >= TOGETHER_LEAST;
        let everything = self.good == 0 && self.bad >= 2 && self.together > 0;
        half || everything
    }

    fn is_over(&self) -> bool {
        self.bad == 0 || self.good > self.bad
    }
}

impl Store {
    /// No node is decided dead for `grace` from now on: after a start, and after the database was away.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn begin_grace(&self, grace: Duration) -> Result<(), StoreError> {
        unit!(self, |tx| {
            tx.lock_brakes().await?;
            let until = tx.now + grace;
            tx.change(
                "UPDATE migration SET grace_until = ? WHERE id = 1",
                (until,),
            )
            .await?;
            Finish::Commit(())
        })
    }

    /// Lets rentals move for ten minutes although much has failed: for an administrator who knows that the loss is real.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn override_brakes(&self) -> Result<(), StoreError> {
        unit!(self, |tx| {
            tx.lock_brakes().await?;
            let until = tx.now + OVERRIDE;
            tx.change(
                "UPDATE migration SET override_until = ? WHERE id = 1",
                (until,),
            )
            .await?;
            tx.event("migration_override", About::default(), None)
                .await?;
            Finish::Commit(())
        })
    }

    /// Degrades rentals whose node is dead, gives back those whose node answers again, and takes another node for up to
    /// `limit` others, first degraded first served.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn migrate(&self, limit: u32) -> Result<Migrated, StoreError> {
        let mut done = Migrated {
            suspended: self.judge_brakes().await?,
            ..Migrated::default()
        };
        // From the few nodes or rentals that are like that to the others: a tick with nothing to do must not read them all.
        let on = |first: &str, status: NodeStatus, state: RentalState| {
            format!(
                "SELECT STRAIGHT_JOIN r.id FROM {first} WHERE a.state = 'present' AND r.state = '{state}' \
                 AND n.status = '{status}' AND n.forgotten_at IS NULL AND r.leased_until > ? ORDER BY r.id LIMIT ?"
            )
        };
        let of_rentals =
            "rentals r JOIN accounts a ON a.rental_id = r.id JOIN nodes n ON n.id = a.node_id";
        let of_nodes =
            "nodes n JOIN accounts a ON a.held_node = n.id JOIN rentals r ON r.id = a.rental_id";
        let back = on(of_rentals, NodeStatus::Alive, RentalState::Degraded);
        for id in self.live_rentals(&back, limit).await? {
            done.healed += u64::from(self.heal(id).await?);
        }
        if done.suspended.is_some() {
            return Ok(done);
        }
        self.decide_deaths().await?;
        let lost = on(of_nodes, NodeStatus::Dead, RentalState::Active);
        for id in self.live_rentals(&lost, limit).await? {
            done.degraded += u64::from(self.degrade(id).await?);
        }
        let waiting = "SELECT r.id FROM rentals r WHERE r.state = 'degraded' AND r.leased_until > ? AND NOT EXISTS \
             (SELECT 1 FROM accounts a WHERE a.rental_id = r.id AND a.state = 'making') \
             ORDER BY r.degraded_since, r.id LIMIT ?";
        for id in self.live_rentals(waiting, limit).await? {
            match self.begin_move(id).await? {
                Move::Begun => done.moving += 1,
                // Another one may have better luck.
                Move::NoNodeForIt | Move::NotAnyMore => {}
                Move::NoAllowance => break,
            }
        }
        Ok(done)
    }

    async fn live_rentals(&self, sql: &str, limit: u32) -> Result<Vec<RentalId>, StoreError> {
        let now = self.now().await?.0;
        let ids: Vec<u64> =
            bounded(async { Ok(self.conn().await?.exec(sql, (now, limit)).await?) }).await?;
        Ok(ids.into_iter().map(RentalId).collect())
    }

    /// Why nothing moves now; `None` when rentals may.
    async fn judge_brakes(&self) -> Result<Option<String>, StoreError> {
        unit!(self, |tx| {
            let brakes = tx.lock_brakes().await?;
            let health = tx.health().await?;
            let because = match brakes.suspended_because {
                None if health.is_us() => Some(tx.suspend(&health).await?),
                Some(_) if health.is_over() => {
                    tx.resume().await?;
                    None
                }
                known => known,
            };
            Finish::Commit(because.filter(|_| !brakes.overridden))
        })
    }

    /// `active -> degraded`, while its node is dead.
    async fn degrade(&self, rental: RentalId) -> Result<bool, StoreError> {
        self.on_status(rental, RentalState::Active, NodeStatus::Dead)
            .await
    }

    /// `degraded -> active`, when its node is alive again and no spare was taken.
    async fn heal(&self, rental: RentalId) -> Result<bool, StoreError> {
        self.on_status(rental, RentalState::Degraded, NodeStatus::Alive)
            .await
    }

    async fn on_status(
        &self,
        rental: RentalId,
        from: RentalState,
        status: NodeStatus,
    ) -> Result<bool, StoreError> {
        let (to, kind) = if from == RentalState::Active {
            (RentalState::Degraded, "rental_degraded")
        } else {
            (RentalState::Active, "rental_back")
        };
        debug_assert!(from.can_become(to), "{from} -> {to}");
        unit!(self, |tx| {
            let now = tx.now;
            let Some(node) = tx.lock_rental_on(rental).await? else {
                return Ok(false);
            };
            let since = (to == RentalState::Degraded).then_some(now);
            let changed = tx
                .change(
                    "UPDATE rentals SET state = ?, degraded_since = ? WHERE id = ? AND state = ? AND leased_until > ? \
                     AND EXISTS (SELECT 1 FROM nodes n WHERE n.id = ? AND n.status = ?)",
                    (to.as_str(), since, rental.0, from.as_str(), now, node.0, status.as_str()),
                )
                .await?;
            if changed == 1 {
                let about = About {
                    node: Some(node),
                    rental: Some(rental),
                };
                tx.event(kind, about, None).await?;
            }
            Finish::Commit(changed == 1)
        })
    }

    /// Takes another node for a degraded rental; its old account is a debt from then on.
    async fn begin_move(&self, rental: RentalId) -> Result<Move, StoreError> {
        unit!(self, |tx| {
            match tx.move_to_another_node(rental).await? {
                Move::Begun => Finish::Commit(Move::Begun),
                other @ (Move::NoNodeForIt | Move::NoAllowance | Move::NotAnyMore) => {
                    Finish::Rollback(other)
                }
            }
        })
    }
}

/// What became of an attempt to move a rental.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Move {
    Begun,
    /// None is free, or none that can be tried for this rental.
    NoNodeForIt,
    /// Enough moves have begun for now.
    NoAllowance,
    /// It is over, or back at its node.
    NotAnyMore,
}

struct Brakes {
    suspended_because: Option<String>,
    overridden: bool,
}

impl Tx {
    async fn lock_brakes(&mut self) -> Result<Brakes, StoreError> {
        let now = self.now;
        self.change(
            "INSERT INTO migration (id, tokens, refilled_at) VALUES (1, ?, ?) ON DUPLICATE KEY UPDATE id = id",
            (BURST, now),
        )
        .await?;
        let row = self
            .first(
                "SELECT suspended_because, override_until IS NOT NULL AND override_until > ? \
                 AND override_until <= ? AS overridden FROM migration WHERE id = 1 FOR UPDATE",
                (now, now + OVERRIDE),
            )
            .await?;
        let mut row = row.ok_or(StoreError::Corrupt {
            column: "migration.id",
            reason: "no row".to_owned(),
        })?;
        Ok(Brakes {
            suspended_because: column(&mut row, "suspended_because")?,
            overridden: column(&mut row, "overridden")?,
        })
    }

    async fn health(&mut self) -> Result<Health, StoreError> {
        let lately = self.now - Duration::from_secs(u64::from(TOGETHER_S));
        let row = self
            .first(
                "SELECT COUNT(*) AS bad, CAST(IFNULL(SUM(failing_since >= ?), 0) AS UNSIGNED) AS together FROM nodes \
                 WHERE forgotten_at IS NULL AND status IN ('suspect', 'dead') AND awaits_approval = FALSE",
                (lately,),
            )
            .await?;
        let mut row = row.ok_or(StoreError::Corrupt {
            column: "nodes",
            reason: "no count".to_owned(),
        })?;
        let bad: u64 = column(&mut row, "bad")?;
        let good = self
            .number(
                "SELECT COUNT(*) FROM (SELECT id FROM nodes WHERE forgotten_at IS NULL AND status = 'alive' \
                 AND awaits_approval = FALSE LIMIT ?) AS some",
                (bad + 1,),
            )
            .await?;
        Ok(Health {
            bad,
            together: column(&mut row, "together")?,
            good,
        })
    }

    async fn suspend(&mut self, health: &Health) -> Result<String, StoreError> {
        let because = format!(
            "{} of {} nodes fail, {} of them since less than {TOGETHER_S} s: it may be us",
            health.bad,
            health.bad + health.good,
            health.together
        );
        let now = self.now;
        self.change(
            "UPDATE migration SET suspended_since = ?, suspended_because = ? WHERE id = 1",
            (now, &because),
        )
        .await?;
        self.event("migration_suspended", About::default(), Some(&because))
            .await?;
        Ok(because)
    }

    async fn resume(&mut self) -> Result<(), StoreError> {
        let grace_until = self.now + AFTER_RESUME;
        self.change(
            "UPDATE migration SET suspended_since = NULL, suspended_because = NULL, override_until = NULL, \
             grace_until = ? WHERE id = 1",
            (grace_until,),
        )
        .await?;
        self.event("migration_resumed", About::default(), None)
            .await
    }

    /// Locks a rental's request and finds the node of its present account.
    async fn lock_rental_on(&mut self, rental: RentalId) -> Result<Option<NodeId>, StoreError> {
        let Some(request) = self.request_of(rental).await? else {
            return Ok(None);
        };
        self.lock_request(request).await?;
        let found = self
            .first(
                "SELECT node_id FROM accounts WHERE rental_id = ? AND state = 'present' FOR UPDATE",
                (rental.0,),
            )
            .await?;
        found
            .map(|mut row| Ok(NodeId(column(&mut row, "node_id")?)))
            .transpose()
    }

    async fn move_to_another_node(&mut self, rental: RentalId) -> Result<Move, StoreError> {
        let now = self.now;
        let Some(request) = self.request_of(rental).await? else {
            return Ok(Move::NotAnyMore);
        };
        self.lock_request(request).await?;
        let found = self
            .first(
                "SELECT state FROM rentals WHERE id = ? AND leased_until > ? FOR UPDATE",
                (rental.0, now),
            )
            .await?;
        let state = found.map(|mut row| word(&mut row, "state")).transpose()?;
        let old = self.wanted_accounts(rental).await?;
        if state != Some(RentalState::Degraded) || self.is_any_alive(&old).await? {
            return Ok(Move::NotAnyMore);
        }
        if self.names_taken(rental).await? >= NAMES_TAKEN {
            return Ok(Move::NoNodeForIt);
        }
        let Some(node) = self.spare_for(rental).await? else {
            return Ok(Move::NoNodeForIt);
        };
        let epoch = self
            .number(
                "SELECT MAX(epoch) + 2 FROM accounts WHERE rental_id = ?",
                (rental.0,),
            )
            .await?;
        for account in &old {
            self.leave(account).await?;
            // Who died is inspected before anybody else gets it.
            let (from, to) = (Availability::Cleaning, Availability::Joining);
            self.move_node(account.node, from, to, Some("died")).await?;
        }
        if !self.take_node(node).await? {
            return Ok(Move::NoNodeForIt);
        }
        let id: AccountId = self.make_account(rental, node, epoch).await?;
        let account = HeldAccount { id, node, epoch };
        self.queue_account_run(RunKind::Provision, &account).await?;
        let about = About {
            node: Some(node),
            rental: Some(rental),
        };
        self.event("rental_moving", about, None).await?;
        // Last, as everywhere: see the lock order.
        if self.take_allowance().await? {
            Ok(Move::Begun)
        } else {
            Ok(Move::NoAllowance)
        }
    }

    async fn is_any_alive(&mut self, accounts: &[HeldAccount]) -> Result<bool, StoreError> {
        for account in accounts {
            let sql = "SELECT COUNT(*) FROM nodes WHERE id = ? AND status = 'alive'";
            if self.number(sql, (account.node.0,)).await? > 0 {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// A random node that may be leased, and on which provisioning did not just fail for this rental.
    async fn spare_for(&mut self, rental: RentalId) -> Result<Option<NodeId>, StoreError> {
        let now = self.now;
        let lately = now - Duration::from_secs(u64::from(FAILED_LATELY_S));
        let found = self
            .first(
                "SELECT n.id FROM nodes n WHERE n.availability = 'ready' AND n.status = 'alive' \
                 AND n.draining = FALSE AND n.forgotten_at IS NULL \
                 AND (n.held_until IS NULL OR n.held_until <= ? OR n.held_until > ? + INTERVAL 1 HOUR) AND NOT EXISTS \
                 (SELECT 1 FROM runs u JOIN accounts a ON a.id = u.account_id WHERE a.rental_id = ? AND u.node_id = n.id \
                  AND u.kind = 'provision' AND u.state = 'failed' AND u.finished_at >= ?) ORDER BY RAND() LIMIT 1",
                (now, now, rental.0, lately),
            )
            .await?;
        found
            .map(|mut row| Ok(NodeId(column(&mut row, "id")?)))
            .transpose()
    }

    /// Takes one move from the bucket.
    async fn take_allowance(&mut self) -> Result<bool, StoreError> {
        let now = self.now;
        // A time of filling that lies ahead was written by another clock.
        let filled = "IF(refilled_at > ?, ?, LEAST(?, tokens + TIMESTAMPDIFF(MICROSECOND, refilled_at, ?) / 1000000 * ?))";
        let changed = self
            .change(
                &format!(
                    "UPDATE migration SET tokens = {filled} - 1, refilled_at = ? WHERE id = 1 AND {filled} >= 1"
                ),
                (
                    now, BURST, BURST, now, MOVES_PER_S, now, now, BURST, BURST, now, MOVES_PER_S,
                ),
            )
            .await?;
        Ok(changed == 1)
    }

    /// Whether a node may be decided dead now: not within a grace, and not while so much fails that it is likelier us.
    pub(crate) async fn may_die(&mut self) -> Result<bool, StoreError> {
        let now = self.now;
        let forbidden = self
            .number(
                "SELECT COUNT(*) FROM migration WHERE (grace_until > ? AND grace_until <= ? + INTERVAL ? SECOND) \
                 OR (suspended_because IS NOT NULL AND \
                     (override_until IS NULL OR override_until <= ? OR override_until > ?))",
                (now, now, LONGEST_GRACE_S, now, now + OVERRIDE),
            )
            .await?;
        Ok(forbidden == 0)
    }

    /// `degraded -> active`, in the transaction that records the new account; not past the end.
    pub(crate) async fn arrive(
        &mut self,
        rental: RentalId,
        node: NodeId,
    ) -> Result<bool, StoreError> {
        let now = self.now;
        let changed = self
            .change(
                "UPDATE rentals SET state = 'active', degraded_since = NULL \
                 WHERE id = ? AND state = 'degraded' AND leased_until > ?",
                (rental.0, now),
            )
            .await?;
        if changed == 1 {
            let about = About {
                node: Some(node),
                rental: Some(rental),
            };
            let detail = "its machine died: same account and password here, files are not moved";
            self.event("rental_moved", about, Some(detail)).await?;
        }
        Ok(changed == 1)
    }
}
