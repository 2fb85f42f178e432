//! Taking a node out of service by hand: it takes no new rental, and the one it has runs out or is moved.

use crate::row::column;
use crate::tx::{Finish, Tx, unit};
use crate::{Store, StoreError};
use orion_core::api::{DrainPlan, NodeName, PlannedMove};
use orion_core::{NodeId, RentalId};

/// What an administrator wants of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drain {
    /// It takes new rentals.
    No,
    /// It takes no new rental; the one it has runs out.
    RunsOut,
    /// It takes no new rental; the one it has is moved while the node still serves it.
    Moves,
}

impl Store {
    /// Drains a node, or takes that back; the last word counts. False where there is no such node.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn set_draining(&self, id: NodeId, drain: Drain) -> Result<bool, StoreError> {
        let (draining, moves) = (drain != Drain::No, drain == Drain::Moves);
        let (kind, detail) = match drain {
            Drain::No => ("node_not_draining", None),
            Drain::RunsOut => ("node_draining", None),
            Drain::Moves => ("node_draining", Some("its rental is moved")),
        };
        unit!(self, |tx| {
            let known = tx.name_of(id).await?.is_some();
            let changed = tx
                .change(
                    "UPDATE nodes SET draining = ?, drain_move = ? WHERE id = ? AND forgotten_at IS NULL \
                     AND (draining <> ? OR drain_move <> ?)",
                    (draining, moves, id.0, draining, moves),
                )
                .await?;
            if changed == 1 {
                tx.event(kind, id.into(), detail).await?;
            }
            Finish::Commit(known)
        })
    }

    /// What draining a node with moving would move, and where to as things stand; changes nothing. `None` where there is
    /// no such node.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn plan_drain(&self, id: NodeId) -> Result<Option<DrainPlan>, StoreError> {
        unit!(self, |tx| {
            let Some(from) = tx.name_of(id).await? else {
                return Ok(None);
            };
            let mut moves = Vec::new();
            if let Some(rental_id) = tx.served_by(id).await? {
                let to = match tx.moves_to(rental_id).await? {
                    Some(node) => Some(node),
                    None => tx.spare_for(rental_id).await?,
                };
                let to = match to {
                    Some(node) => tx.name_of(node).await?,
                    None => None,
                };
                moves.push(PlannedMove {
                    rental_id,
                    from,
                    to,
                });
            }
            Finish::Rollback(Some(DrainPlan { moves }))
        })
    }
}

impl Tx {
    async fn name_of(&mut self, node: NodeId) -> Result<Option<NodeName>, StoreError> {
        let sql = "SELECT hostname FROM nodes WHERE id = ? AND forgotten_at IS NULL";
        let found = self.first(sql, (node.0,)).await?;
        found
            .map(|mut row| {
                Ok(NodeName {
                    node_id: node,
                    hostname: column(&mut row, "hostname")?,
                })
            })
            .transpose()
    }

    /// The rental whose account is present on a node, unless its end is past.
    async fn served_by(&mut self, node: NodeId) -> Result<Option<RentalId>, StoreError> {
        let now = self.now;
        let found = self
            .first(
                "SELECT r.id FROM accounts a JOIN rentals r ON r.id = a.rental_id WHERE a.held_node = ? \
                 AND a.state = 'present' AND r.state IN ('active', 'degraded') AND r.leased_until > ?",
                (node.0, now),
            )
            .await?;
        found
            .map(|mut row| Ok(RentalId(column(&mut row, "id")?)))
            .transpose()
    }

    /// Where a rental is on its way to.
    async fn moves_to(&mut self, rental: RentalId) -> Result<Option<NodeId>, StoreError> {
        let sql = "SELECT node_id FROM accounts WHERE rental_id = ? AND state = 'making'";
        let found = self.first(sql, (rental.0,)).await?;
        found
            .map(|mut row| Ok(NodeId(column(&mut row, "node_id")?)))
            .transpose()
    }
}
