//! Moving rentals off nodes that died, or that an administrator drains. A rental keeps its id, its end and its password;
//! what moves is access, not files.
//!
//! Off a dead node, the old account becomes a debt in the transaction that takes the new node. Off a drained one, it
//! serves until the new account is present, and becomes a debt in the transaction that records that.

mod brakes;
mod degraded;
mod drain;
mod moving;

pub(crate) use brakes::AFTER_RESUME;
pub use drain::Drain;

use crate::tx::bounded;
use crate::{Store, StoreError};
use moving::Move;
use mysql_async::prelude::Queryable;
use orion_core::{NodeStatus, RentalId, RentalState};

/// What one tick did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Migrated {
    /// Rentals whose node is dead now.
    pub degraded: u64,
    /// Rentals whose node came back before a spare was taken.
    pub healed: u64,
    /// Rentals for which another node was taken.
    pub moving: u64,
    /// Rentals that stay where they are, because their node is not drained any more.
    pub stopped: u64,
    /// Why nothing moves.
    pub suspended: Option<String>,
}

/// Who has no access comes first, and the first degraded first. What ends within ten seconds is not moved any more.
const DEGRADED: &str = "SELECT r.id FROM rentals r WHERE r.state = 'degraded' AND r.leased_until > ? + INTERVAL 10 SECOND AND NOT EXISTS \
     (SELECT 1 FROM accounts a WHERE a.rental_id = r.id AND a.state = 'making') ORDER BY r.degraded_since, r.id LIMIT ?";

const DRAINED: &str = "SELECT r.id FROM nodes n JOIN accounts a ON a.held_node = n.id AND a.state = 'present' \
     JOIN rentals r ON r.id = a.rental_id WHERE n.drain_move = TRUE AND n.draining = TRUE AND r.state = 'active' \
     AND r.leased_until > ? + INTERVAL 10 SECOND AND NOT EXISTS \
     (SELECT 1 FROM accounts m WHERE m.rental_id = r.id AND m.state = 'making') ORDER BY n.id LIMIT ?";

/// Half moved, and not to be moved any more.
const NOT_DRAINED: &str = "SELECT r.id FROM accounts m JOIN rentals r ON r.id = m.rental_id AND r.state = 'active' \
     JOIN accounts a ON a.rental_id = r.id AND a.state = 'present' JOIN nodes n ON n.id = a.node_id \
     WHERE m.state = 'making' AND r.leased_until > ? AND (n.draining = FALSE OR n.drain_move = FALSE) ORDER BY r.id LIMIT ?";

/// On their way to a machine that nobody can be sent to, for a minute already: provisioning there never begins.
const UNREACHED: &str = "SELECT r.id FROM (SELECT ? AS at) t JOIN accounts m ON m.state = 'making' \
     AND m.state_since < t.at - INTERVAL 1 MINUTE JOIN nodes n ON n.id = m.node_id AND n.contact_host IS NULL \
     JOIN rentals r ON r.id = m.rental_id AND r.state IN ('active', 'degraded') ORDER BY r.id LIMIT ?";

impl Store {
    /// Degrades rentals whose node is dead, gives back those whose node answers again, stops moves that nobody wants any
    /// more, and takes another node for up to `limit` degraded rentals, first degraded first served, and then for up to
    /// `limit` whose node is drained.
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
        for id in self.live_rentals(NOT_DRAINED, limit).await? {
            done.stopped += u64::from(self.stop_move(id).await?);
        }
        for id in self.live_rentals(UNREACHED, limit).await? {
            self.give_up_move(id).await?;
        }
        if done.suspended.is_some() {
            return Ok(done);
        }
        self.decide_deaths().await?;
        let lost = on(of_nodes, NodeStatus::Dead, RentalState::Active);
        for id in self.live_rentals(&lost, limit).await? {
            done.degraded += u64::from(self.degrade(id).await?);
        }
        if self.outdated().await?.is_some() {
            return Ok(done);
        }
        for waiting in [DEGRADED, DRAINED] {
            for id in self.live_rentals(waiting, limit).await? {
                match self.begin_move(id).await? {
                    Move::Begun => done.moving += 1,
                    // Another one may have better luck.
                    Move::NoNodeForIt | Move::NotAnyMore => {}
                    Move::NoAllowance => return Ok(done),
                }
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
}
