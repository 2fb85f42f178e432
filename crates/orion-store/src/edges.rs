//! The state edges, as steps of somebody's transaction. Each names the state it comes from; the changed rows decide.

use crate::StoreError;
use crate::row::{column, word};
use crate::tx::Tx;
use orion_core::{
    AccountId, AccountState, Availability, EndReason, NodeId, RentalId, RentalState, RequestId,
    RequestState, RunKind, UndoReason,
};

/// How long a text for people may get in a `VARCHAR(255)` reason.
const REASON_CHARS: usize = 250;

pub(crate) fn short(text: &str) -> String {
    text.chars().take(REASON_CHARS).collect()
}

/// What an event is about.
#[derive(Default, Clone, Copy)]
pub(crate) struct About {
    pub(crate) node: Option<NodeId>,
    pub(crate) rental: Option<RentalId>,
}

impl From<NodeId> for About {
    fn from(node: NodeId) -> Self {
        Self {
            node: Some(node),
            ..Self::default()
        }
    }
}

impl From<RentalId> for About {
    fn from(rental: RentalId) -> Self {
        Self {
            rental: Some(rental),
            ..Self::default()
        }
    }
}

/// An account row with what its edges need.
pub(crate) struct HeldAccount {
    pub(crate) id: AccountId,
    pub(crate) node: NodeId,
    pub(crate) epoch: u64,
}

/// A node `n` that may be leased now. Two parameters, each the time: a `held_until` further ahead than nodes are ever held
/// was written by a clock that was wrong.
pub(crate) const MAY_BE_LEASED: &str = "n.availability = 'ready' AND n.status = 'alive' AND n.draining = FALSE AND n.forgotten_at IS NULL \
     AND (n.held_until IS NULL OR n.held_until <= ? OR n.held_until > ? + INTERVAL 1 HOUR)";

impl Tx {
    pub(crate) async fn event(
        &mut self,
        kind: &str,
        about: About,
        detail: Option<&str>,
    ) -> Result<(), StoreError> {
        let now = self.now;
        self.change(
            "INSERT INTO events (at, kind, user_id, node_id, rental_id, detail) \
             VALUES (?, ?, (SELECT user_id FROM rentals WHERE id = ?), ?, ?, ?)",
            (
                now,
                kind,
                about.rental.map(|id| id.0),
                about.node.map(|id| id.0),
                about.rental.map(|id| id.0),
                detail.map(|text| text.chars().take(2_000).collect::<String>()),
            ),
        )
        .await?;
        Ok(())
    }

    /// Locks a request's row: every decision about its rentals queues up behind it.
    pub(crate) async fn lock_request(
        &mut self,
        id: RequestId,
    ) -> Result<Option<RequestState>, StoreError> {
        match self
            .first(
                "SELECT state FROM requests WHERE id = ? FOR UPDATE",
                (id.0,),
            )
            .await?
        {
            Some(mut row) => word(&mut row, "state").map(Some),
            None => Ok(None),
        }
    }

    pub(crate) async fn request_of(
        &mut self,
        rental: RentalId,
    ) -> Result<Option<RequestId>, StoreError> {
        match self
            .first("SELECT request_id FROM rentals WHERE id = ?", (rental.0,))
            .await?
        {
            Some(mut row) => Ok(Some(RequestId(column(&mut row, "request_id")?))),
            None => Ok(None),
        }
    }

    /// An availability edge; false when the node is not in `from` any more.
    pub(crate) async fn move_node(
        &mut self,
        node: NodeId,
        from: Availability,
        to: Availability,
        reason: Option<&str>,
    ) -> Result<bool, StoreError> {
        debug_assert!(from.can_become(to), "{from} -> {to}");
        let now = self.now;
        let changed = self
            .change(
                "UPDATE nodes SET availability = ?, availability_reason = ?, availability_since = ? WHERE id = ? AND availability = ? AND forgotten_at IS NULL",
                (to.as_str(), reason.map(short), now, node.0, from.as_str()),
            )
            .await?;
        Ok(changed == 1)
    }

    /// Takes a node for an account: `ready -> leased`, and only while it is seen alive and not draining.
    pub(crate) async fn take_node(&mut self, node: NodeId) -> Result<bool, StoreError> {
        let now = self.now;
        let changed = self
            .change(
                "UPDATE nodes SET availability = 'leased', availability_reason = NULL, availability_since = ? WHERE id = ? AND availability = 'ready' AND status = 'alive' \
                 AND draining = FALSE AND forgotten_at IS NULL",
                (now, node.0),
            )
            .await?;
        Ok(changed == 1)
    }

    /// A new account in `making`.
    pub(crate) async fn make_account(
        &mut self,
        rental: RentalId,
        node: NodeId,
        epoch: u64,
    ) -> Result<AccountId, StoreError> {
        let now = self.now;
        let id = self
            .insert(
                "INSERT INTO accounts (rental_id, node_id, uid, epoch, state, state_since) \
                 SELECT ?, ?, uid_base + ?, ?, 'making', ? FROM installation",
                (rental.0, node.0, rental.0, epoch, now),
            )
            .await?;
        Ok(AccountId(id))
    }

    /// Queues a run for an account at the account's epoch. A run of that kind that is still open stays the only one.
    pub(crate) async fn queue_account_run(
        &mut self,
        kind: RunKind,
        account: &HeldAccount,
    ) -> Result<bool, StoreError> {
        let now = self.now;
        let changed = self
            .change(
                "INSERT INTO runs (kind, node_id, account_id, epoch, state, created_at) \
                 VALUES (?, ?, ?, ?, 'queued', ?) ON DUPLICATE KEY UPDATE id = id",
                (
                    kind.as_str(),
                    account.node.0,
                    account.id.0,
                    account.epoch,
                    now,
                ),
            )
            .await?;
        Ok(changed == 1)
    }

    /// Queues an inspection of a node, unless one is open.
    pub(crate) async fn queue_inspection(&mut self, node: NodeId) -> Result<bool, StoreError> {
        let now = self.now;
        let changed = self
            .change(
                "INSERT INTO runs (kind, node_id, epoch, state, created_at) \
                 SELECT 'inspect', id, 0, 'queued', ? FROM nodes \
                 WHERE id = ? AND forgotten_at IS NULL AND awaits_approval = FALSE \
                 ON DUPLICATE KEY UPDATE id = runs.id",
                (now, node.0),
            )
            .await?;
        Ok(changed == 1)
    }

    /// The accounts of a rental that are wanted, locked.
    pub(crate) async fn wanted_accounts(
        &mut self,
        rental: RentalId,
    ) -> Result<Vec<HeldAccount>, StoreError> {
        let rows = self
            .rows(
                "SELECT id, node_id, epoch FROM accounts WHERE rental_id = ? AND state IN ('making', 'present') \
                 ORDER BY node_id FOR UPDATE",
                (rental.0,),
            )
            .await?;
        rows.into_iter()
            .map(|mut row| {
                Ok(HeldAccount {
                    id: AccountId(column(&mut row, "id")?),
                    node: NodeId(column(&mut row, "node_id")?),
                    epoch: column(&mut row, "epoch")?,
                })
            })
            .collect()
    }

    /// `making | present -> leaving`: from here on the account is a debt. The epoch rises, so that whatever is still
    /// under way for it comes too late; its node is cleaning, or joining where it died, and the clean run is queued.
    pub(crate) async fn leave(&mut self, account: &HeldAccount) -> Result<bool, StoreError> {
        debug_assert!(AccountState::Making.can_become(AccountState::Leaving));
        let now = self.now;
        let changed = self
            .change(
                "UPDATE accounts SET state = 'leaving', state_since = ?, epoch = epoch + 1 \
                 WHERE id = ? AND state IN ('making', 'present')",
                (now, account.id.0),
            )
            .await?;
        if changed == 0 {
            return Ok(false);
        }
        self.move_node(
            account.node,
            Availability::Leased,
            Availability::Cleaning,
            None,
        )
        .await?;
        let dead = "SELECT COUNT(*) FROM nodes WHERE id = ? AND status = 'dead'";
        if self.number(dead, (account.node.0,)).await? > 0 {
            self.inspect_who_died(account.node).await?;
        }
        self.change(
            "UPDATE runs SET state = 'failed', outcome = 'superseded', finished_at = ? \
             WHERE account_id = ? AND kind = 'provision' AND state = 'queued'",
            (now, account.id.0),
        )
        .await?;
        let debt = HeldAccount {
            epoch: account.epoch + 1,
            ..*account
        };
        self.queue_account_run(RunKind::Clean, &debt).await?;
        Ok(true)
    }

    /// `cleaning -> joining`: what is owed there is paid all the same, and an inspection comes before the next client.
    pub(crate) async fn inspect_who_died(&mut self, node: NodeId) -> Result<(), StoreError> {
        let (from, to) = (Availability::Cleaning, Availability::Joining);
        self.move_node(node, from, to, Some("died")).await?;
        Ok(())
    }

    /// A live rental's way out: `from -> ending`, and its accounts become debts. The caller holds the request's lock.
    pub(crate) async fn end_rental(
        &mut self,
        rental: RentalId,
        from: RentalState,
        reason: EndReason,
    ) -> Result<bool, StoreError> {
        debug_assert!(from.can_become(RentalState::Ending), "{from} -> ending");
        let now = self.now;
        let changed = self
            .change(
                "UPDATE rentals SET state = 'ending', end_reason = ?, ending_since = ? \
                 WHERE id = ? AND state = ?",
                (reason.as_str(), now, rental.0, from.as_str()),
            )
            .await?;
        if changed == 0 {
            return Ok(false);
        }
        for account in self.wanted_accounts(rental).await? {
            self.leave(&account).await?;
        }
        self.event("rental_ending", rental.into(), Some(reason.as_str()))
            .await?;
        self.end_if_gone(rental).await?;
        Ok(true)
    }

    /// `ending -> ended`, once every account of the rental is seen gone, or is a recorded debt on a forgotten node.
    pub(crate) async fn end_if_gone(&mut self, rental: RentalId) -> Result<bool, StoreError> {
        let now = self.now;
        let changed = self
            .change(
                "UPDATE rentals SET state = 'ended', ended_at = ? \
                 WHERE id = ? AND state = 'ending' \
                 AND NOT EXISTS (SELECT 1 FROM accounts a JOIN nodes n ON n.id = a.node_id \
                 WHERE a.rental_id = ? AND a.state <> 'gone' AND n.forgotten_at IS NULL)",
                (now, rental.0, rental.0),
            )
            .await?;
        if changed == 1 {
            self.event("rental_ended", rental.into(), None).await?;
        }
        Ok(changed == 1)
    }

    /// `open -> undone`: nothing of the request may stay. The caller holds the request's lock. The idempotency key is
    /// free again, because only a 200 sticks.
    pub(crate) async fn undo(
        &mut self,
        request: RequestId,
        reason: UndoReason,
    ) -> Result<bool, StoreError> {
        let now = self.now;
        let changed = self
            .change(
                "UPDATE requests SET state = 'undone', undo_reason = ?, settled_at = ?, idempotency_key = NULL \
                 WHERE id = ? AND state = 'open'",
                (reason.as_str(), now, request.0),
            )
            .await?;
        if changed == 0 {
            return Ok(false);
        }
        let end_reason = match reason {
            UndoReason::Released => EndReason::Released,
            UndoReason::Reset => EndReason::Reset,
            UndoReason::Deadline | UndoReason::NoNode | UndoReason::NameTaken => EndReason::Failed,
        };
        for rental in self.rentals_of(request).await? {
            self.end_rental(rental, RentalState::Provisioning, end_reason)
                .await?;
        }
        Ok(true)
    }

    pub(crate) async fn rentals_of(
        &mut self,
        request: RequestId,
    ) -> Result<Vec<RentalId>, StoreError> {
        let rows = self
            .rows(
                "SELECT id FROM rentals WHERE request_id = ? ORDER BY id",
                (request.0,),
            )
            .await?;
        rows.into_iter()
            .map(|mut row| Ok(RentalId(column(&mut row, "id")?)))
            .collect()
    }

    /// `open -> active`, with every rental of the request, in this one transaction; past the deadline `open -> undone`,
    /// because the workers were given an end that counts from the deadline at the latest. False while an account is
    /// missing. The caller holds the request's lock.
    pub(crate) async fn settle_if_complete(
        &mut self,
        request: RequestId,
    ) -> Result<bool, StoreError> {
        let missing = self
            .number(
                "SELECT COUNT(*) FROM rentals r WHERE r.request_id = ? AND NOT EXISTS \
                 (SELECT 1 FROM accounts a WHERE a.rental_id = r.id AND a.state = 'present')",
                (request.0,),
            )
            .await?;
        if missing > 0 {
            return Ok(false);
        }
        let now = self.now;
        let settled = self
            .change(
                "UPDATE requests SET state = 'active', settled_at = ? \
                 WHERE id = ? AND state = 'open' AND deadline_at > ?",
                (now, request.0, now),
            )
            .await?;
        if settled == 0 {
            return self.undo(request, UndoReason::Deadline).await;
        }
        self.change(
            "UPDATE rentals r JOIN requests q ON q.id = r.request_id SET r.state = 'active', r.leased_from = ?, \
             r.leased_until = ? + INTERVAL q.duration_us MICROSECOND \
             WHERE r.request_id = ? AND r.state = 'provisioning'",
            (now, now, request.0),
        )
        .await?;
        self.change(
            "INSERT INTO events (at, kind, user_id, node_id, rental_id) \
             SELECT ?, 'rental_active', r.user_id, a.node_id, r.id FROM rentals r \
             JOIN accounts a ON a.rental_id = r.id AND a.state = 'present' WHERE r.request_id = ? ORDER BY r.id",
            (now, request.0),
        )
        .await?;
        Ok(true)
    }
}
