//! Reset: the lab's way back to an empty pool.

use crate::row::{column, word};
use crate::tx::{Finish, bounded, unit};
use crate::{Store, StoreError};
use mysql_async::prelude::Queryable;
use orion_core::{EndReason, RentalId, RentalState, RequestId, UndoReason};

impl Store {
    /// Ends every live rental with reason `reset`, which writes the debts, and puts every node back to `joining`. Users,
    /// counters and pinned host keys stay. Small transactions: a rent in between simply survives.
    ///
    /// # Errors
    /// When the database is away; repeating it does the rest.
    pub async fn reset(&self) -> Result<(), StoreError> {
        let open: Vec<u64> = bounded(async {
            Ok(self
                .conn()
                .await?
                .query("SELECT id FROM requests WHERE state = 'open' ORDER BY id")
                .await?)
        })
        .await?;
        for id in open {
            self.undo_request(RequestId(id), UndoReason::Reset).await?;
        }
        let live: Vec<u64> = bounded(async {
            Ok(self
                .conn()
                .await?
                .query("SELECT id FROM rentals WHERE state IN ('active', 'degraded') ORDER BY id")
                .await?)
        })
        .await?;
        for id in live {
            self.end_live(RentalId(id), EndReason::Reset).await?;
        }
        unit!(self, |tx| {
            let now = tx.now;
            // The nodes first: a rent that waits for one of them must see its account row in the statement below.
            tx.rows(
                "SELECT id FROM nodes WHERE forgotten_at IS NULL AND availability <> 'joining' ORDER BY id FOR UPDATE",
                (),
            )
            .await?;
            tx.change(
                "UPDATE nodes n SET n.availability = 'joining', n.availability_reason = 'reset', \
                 n.availability_since = ?, n.failed_provisions = 0, n.failed_checks = 0 \
                 WHERE n.forgotten_at IS NULL AND n.availability <> 'joining' AND NOT EXISTS \
                 (SELECT 1 FROM accounts a WHERE a.held_node = n.id AND a.state IN ('making', 'present'))",
                (now,),
            )
            .await?;
            Finish::Commit(())
        })
    }

    /// `active | degraded -> ending` for whatever reason; false when it is in neither any more.
    pub(crate) async fn end_live(
        &self,
        id: RentalId,
        reason: EndReason,
    ) -> Result<bool, StoreError> {
        unit!(self, |tx| {
            let Some(request) = tx.request_of(id).await? else {
                return Ok(false);
            };
            tx.lock_request(request).await?;
            let now = tx.now;
            let found = tx
                .first(
                    "SELECT state, leased_until <= ? AS is_over FROM rentals WHERE id = ? FOR UPDATE",
                    (now, id.0),
                )
                .await?;
            let Some(mut row) = found else {
                return Ok(false);
            };
            let over: Option<bool> = column(&mut row, "is_over")?;
            // The end is read again here: an extension may have come between the scan and this lock.
            if reason == EndReason::Expired && over != Some(true) {
                return Ok(false);
            }
            match word(&mut row, "state")? {
                state @ (RentalState::Active | RentalState::Degraded) => {
                    Finish::Commit(tx.end_rental(id, state, reason).await?)
                }
                RentalState::Provisioning | RentalState::Ending | RentalState::Ended => {
                    Finish::Rollback(false)
                }
            }
        })
    }
}
