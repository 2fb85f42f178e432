//! One rental's move: another node is taken, and its account takes the old one's place.

use super::degraded::Back;
use crate::edges::{About, HeldAccount, MAY_BE_LEASED};
use crate::row::{column, word};
use crate::tx::{Finish, Tx, unit};
use crate::{Store, StoreError};
use orion_core::{AccountId, NodeId, RentalId, RentalState, RunKind};
use std::time::Duration;

/// A name that is taken is tried on one further node (DESIGN 6.13).
const NAMES_TAKEN: u64 = 2;

/// A node on which provisioning failed for a rental is not tried again for it for so long (seconds).
const FAILED_LATELY_S: u32 = 600;

/// What became of an attempt to move a rental.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Move {
    Begun,
    /// None is free, or none that can be tried for this rental.
    NoNodeForIt,
    /// Enough moves have begun for now.
    NoAllowance,
    /// It is over, back at its node, or may stay there.
    NotAnyMore,
}

/// Why a rental moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    Died,
    Drained,
}

impl Why {
    fn begun(self) -> &'static str {
        match self {
            Self::Died => "its machine died",
            Self::Drained => "its machine is drained",
        }
    }

    fn done(self) -> &'static str {
        match self {
            Self::Died => "its machine died: same account and password here, files are not moved",
            Self::Drained => {
                "its machine is drained: same account and password here, files are not moved"
            }
        }
    }
}

impl Store {
    /// Takes another node for a rental that is degraded, or whose node is drained.
    pub(super) async fn begin_move(&self, rental: RentalId) -> Result<Move, StoreError> {
        unit!(self, |tx| {
            match tx.move_to_another_node(rental).await? {
                Move::Begun => Finish::Commit(Move::Begun),
                other @ (Move::NoNodeForIt | Move::NoAllowance | Move::NotAnyMore) => {
                    Finish::Rollback(other)
                }
            }
        })
    }

    /// Gives up the move of an active rental whose node is not drained any more: its new account, which nobody used, is
    /// a debt.
    pub(super) async fn stop_move(&self, rental: RentalId) -> Result<bool, StoreError> {
        unit!(self, |tx| {
            let Some(node) = tx.lock_rental_on(rental).await? else {
                return Ok(false);
            };
            if tx.live_state(rental).await? != Some(RentalState::Active)
                || tx.is_moved_off(node).await?
            {
                return Ok(false);
            }
            let wanted = tx.wanted_accounts(rental).await?;
            let mut stopped = false;
            for account in wanted.iter().filter(|account| account.node != node) {
                tx.stay(rental, account).await?;
                stopped = true;
            }
            Finish::Commit(stopped)
        })
    }

    /// Gives up the move of a rental to a node that has no address any more, since another node has proven that it is its
    /// own: its new account, which nobody used, is a debt, and another node can be taken.
    pub(super) async fn give_up_move(&self, rental: RentalId) -> Result<(), StoreError> {
        unit!(self, |tx| {
            let Some(request) = tx.request_of(rental).await? else {
                return Ok(());
            };
            tx.lock_request(request).await?;
            for account in tx.wanted_accounts(rental).await? {
                let sql = "SELECT COUNT(*) FROM accounts a JOIN nodes n ON n.id = a.node_id \
                     WHERE a.id = ? AND a.state = 'making' AND n.contact_host IS NULL";
                if tx.number(sql, (account.id.0,)).await? > 0 {
                    tx.leave(&account).await?;
                    let about = About {
                        node: Some(account.node),
                        rental: Some(rental),
                    };
                    let detail = "the machine that was taken for it has no address any more";
                    tx.event("rental_move_failed", about, Some(detail)).await?;
                }
            }
            Finish::Commit(())
        })
    }
}

impl Tx {
    /// The state of a rental whose end is not past, locked.
    async fn live_state(&mut self, rental: RentalId) -> Result<Option<RentalState>, StoreError> {
        let now = self.now;
        let sql = "SELECT state FROM rentals WHERE id = ? AND leased_until > ? FOR UPDATE";
        let found = self.first(sql, (rental.0, now)).await?;
        found.map(|mut row| word(&mut row, "state")).transpose()
    }

    async fn move_to_another_node(&mut self, rental: RentalId) -> Result<Move, StoreError> {
        let Some(request) = self.request_of(rental).await? else {
            return Ok(Move::NotAnyMore);
        };
        self.lock_request(request).await?;
        let state = self.live_state(rental).await?;
        let old = self.wanted_accounts(rental).await?;
        let Some(why) = self.why_to_move(state, &old).await? else {
            return Ok(Move::NotAnyMore);
        };
        let Some(node) = self.spare_for(rental).await? else {
            return Ok(Move::NoNodeForIt);
        };
        // Above whatever the old account becomes.
        let epoch = self
            .number(
                "SELECT MAX(epoch) + 2 FROM accounts WHERE rental_id = ?",
                (rental.0,),
            )
            .await?;
        if why == Why::Died {
            for account in &old {
                self.leave_behind(account, why).await?;
            }
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
        self.event("rental_moving", about, Some(why.begun()))
            .await?;
        // Last, as everywhere: see the lock order.
        if self.take_allowance().await? {
            Ok(Move::Begun)
        } else {
            Ok(Move::NoAllowance)
        }
    }

    /// `None` where it has to stay, or is under way.
    async fn why_to_move(
        &mut self,
        state: Option<RentalState>,
        wanted: &[HeldAccount],
    ) -> Result<Option<Why>, StoreError> {
        match (state, wanted) {
            (Some(RentalState::Degraded), _) if !self.is_any_alive(wanted).await? => {
                Ok(Some(Why::Died))
            }
            // An active rental has a present account; with a second one it is under way.
            (Some(RentalState::Active), [only]) if self.is_moved_off(only.node).await? => {
                Ok(Some(Why::Drained))
            }
            _ => Ok(None),
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

    /// Whether the node is drained, and what is on it moved.
    async fn is_moved_off(&mut self, node: NodeId) -> Result<bool, StoreError> {
        let sql =
            "SELECT COUNT(*) FROM nodes WHERE id = ? AND draining = TRUE AND drain_move = TRUE";
        Ok(self.number(sql, (node.0,)).await? > 0)
    }

    /// A random node that may be leased, and on which provisioning did not just fail for this rental; none where its
    /// name was taken too often.
    pub(super) async fn spare_for(
        &mut self,
        rental: RentalId,
    ) -> Result<Option<NodeId>, StoreError> {
        if self.names_taken(rental).await? >= NAMES_TAKEN {
            return Ok(None);
        }
        let now = self.now;
        let lately = now - Duration::from_secs(u64::from(FAILED_LATELY_S));
        let found = self
            .first(
                &format!("SELECT n.id FROM nodes n WHERE {MAY_BE_LEASED} AND NOT EXISTS \
                 (SELECT 1 FROM runs u JOIN accounts a ON a.id = u.account_id WHERE a.rental_id = ? AND u.node_id = n.id \
                  AND u.kind = 'provision' AND u.state = 'failed' AND u.outcome <> 'superseded' AND u.finished_at BETWEEN ? AND ?) ORDER BY RAND() LIMIT 1"),
                (now, now, rental.0, lately, now),
            )
            .await?;
        found
            .map(|mut row| Ok(NodeId(column(&mut row, "id")?)))
            .transpose()
    }

    /// The old account of a rental that is moved is a debt; its client's files are kept for a while.
    async fn leave_behind(&mut self, account: &HeldAccount, why: Why) -> Result<(), StoreError> {
        self.change(
            "UPDATE accounts SET keep_home = TRUE WHERE id = ? AND state = 'present'",
            (account.id.0,),
        )
        .await?;
        self.leave(account).await?;
        if why == Why::Died {
            // Also where it is back by now.
            self.inspect_who_died(account.node).await?;
        }
        Ok(())
    }

    /// The new account is not needed any more: a debt.
    async fn stay(&mut self, rental: RentalId, new: &HeldAccount) -> Result<(), StoreError> {
        self.leave(new).await?;
        let about = About {
            node: Some(new.node),
            rental: Some(rental),
        };
        let detail = "its machine is not drained any more";
        self.event("rental_stays", about, Some(detail)).await
    }

    /// The new account of a rental is present, in the transaction that records it: whatever the rental had before is a
    /// debt from here on, and a degraded rental active again, where its end is not past.
    pub(crate) async fn arrive(
        &mut self,
        rental: RentalId,
        new: &HeldAccount,
        compensates: bool,
    ) -> Result<(), StoreError> {
        let sql = "SELECT state FROM rentals WHERE id = ? FOR UPDATE";
        let Some(mut row) = self.first(sql, (rental.0,)).await? else {
            return Ok(());
        };
        let is_degraded = word::<RentalState>(&mut row, "state")? == RentalState::Degraded;
        let mut old = self.wanted_accounts(rental).await?;
        old.retain(|account| account.id != new.id);
        let why = if is_degraded { Why::Died } else { Why::Drained };
        for account in &old {
            if why == Why::Drained && !self.is_moved_off(account.node).await? {
                return self.stay(rental, new).await;
            }
            self.leave_behind(account, why).await?;
        }
        if is_degraded {
            let back = Back {
                rental,
                node: new.node,
                event: "rental_moved",
                detail: Some(why.done()),
                compensates,
            };
            self.active_again(&back).await?;
            return Ok(());
        }
        let about = About {
            node: Some(new.node),
            rental: Some(rental),
        };
        self.event("rental_moved", about, Some(why.done())).await
    }
}
