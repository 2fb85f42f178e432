//! Rentals whose node is dead, and their two ways back: their node answers again, or they are moved.

use crate::edges::About;
use crate::row::{column, instant};
use crate::tx::{Finish, Tx, unit};
use crate::{Store, StoreError};
use orion_core::{NodeId, RentalId, RentalState};
use std::time::Duration;

impl Store {
    /// `active -> degraded`, while its node is dead. From when that was last seen well, its time is lost.
    pub(super) async fn degrade(&self, rental: RentalId) -> Result<bool, StoreError> {
        debug_assert!(RentalState::Active.can_become(RentalState::Degraded));
        unit!(self, |tx| {
            let now = tx.now;
            let Some(node) = tx.lock_rental_on(rental).await? else {
                return Ok(false);
            };
            let changed = tx
                .change(
                    "UPDATE rentals SET state = 'degraded', degraded_since = ?, lost_since = GREATEST(leased_from, \
                     (SELECT IFNULL(n.failing_since, n.status_since) FROM nodes n WHERE n.id = ?)) \
                     WHERE id = ? AND state = 'active' AND leased_until > ? \
                     AND EXISTS (SELECT 1 FROM nodes n WHERE n.id = ? AND n.status = 'dead')",
                    (now, node.0, rental.0, now, node.0),
                )
                .await?;
            if changed == 1 {
                let about = About {
                    node: Some(node),
                    rental: Some(rental),
                };
                tx.event("rental_degraded", about, None).await?;
            }
            Finish::Commit(changed == 1)
        })
    }

    /// `degraded -> active`, when its node is alive again and nothing took its place.
    pub(super) async fn heal(&self, rental: RentalId) -> Result<bool, StoreError> {
        unit!(self, |tx| {
            let Some(node) = tx.lock_rental_on(rental).await? else {
                return Ok(false);
            };
            let sql = "SELECT COUNT(*) FROM nodes WHERE id = ? AND status = 'alive'";
            if tx.number(sql, (node.0,)).await? == 0 {
                return Ok(false);
            }
            let back = Back {
                rental,
                node,
                event: "rental_back",
                detail: None,
                compensates: self.compensates,
            };
            Finish::Commit(tx.active_again(&back).await?)
        })
    }
}

/// A degraded rental's way back.
pub(super) struct Back<'a> {
    pub(super) rental: RentalId,
    /// Where its present account is.
    pub(super) node: NodeId,
    pub(super) event: &'a str,
    pub(super) detail: Option<&'a str>,
    /// Whether lost time is given back.
    pub(super) compensates: bool,
}

impl Tx {
    /// Locks a rental's request and finds the node of its present account.
    pub(super) async fn lock_rental_on(
        &mut self,
        rental: RentalId,
    ) -> Result<Option<NodeId>, StoreError> {
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

    /// `degraded -> active`; not past the end. Time is given back once: what it is counted from goes in the same
    /// statement. The new end may lie behind the longest lease, because the time was paid for already.
    pub(super) async fn active_again(&mut self, back: &Back<'_>) -> Result<bool, StoreError> {
        debug_assert!(RentalState::Degraded.can_become(RentalState::Active));
        let now = self.now;
        let lost_us = self
            .number(
                "SELECT CAST(IF(? AND lost_since < ?, TIMESTAMPDIFF(MICROSECOND, lost_since, ?), 0) AS UNSIGNED) \
                 FROM rentals WHERE id = ? FOR UPDATE",
                (back.compensates, now, now, back.rental.0),
            )
            .await?;
        let changed = self
            .change(
                "UPDATE rentals SET state = 'active', degraded_since = NULL, lost_since = NULL, \
                 leased_until = leased_until + INTERVAL ? MICROSECOND \
                 WHERE id = ? AND state = 'degraded' AND leased_until > ?",
                (lost_us, back.rental.0, now),
            )
            .await?;
        if changed == 0 {
            return Ok(false);
        }
        let about = About {
            node: Some(back.node),
            rental: Some(back.rental),
        };
        self.event(back.event, about, back.detail).await?;
        if lost_us > 0 {
            self.say_compensated(back.rental, Duration::from_micros(lost_us))
                .await?;
        }
        Ok(true)
    }

    async fn say_compensated(
        &mut self,
        rental: RentalId,
        lost: Duration,
    ) -> Result<(), StoreError> {
        let sql = "SELECT leased_until FROM rentals WHERE id = ?";
        let Some(mut row) = self.first(sql, (rental.0,)).await? else {
            return Ok(());
        };
        let until = instant(&mut row, "leased_until")?;
        let seconds = lost.as_secs_f64();
        let detail = format!("{seconds:.1} s were lost and are given back: until {until}");
        self.event("rental_compensated", rental.into(), Some(&detail))
            .await
    }
}
