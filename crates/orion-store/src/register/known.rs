//! A registration of a worker whose node is known.

use super::{Refusal, Registered, Registration, SignedBy, sign_of_life};
use crate::StoreError;
use crate::row::address;
use crate::tx::{Finish, Tx};
use orion_core::NodeId;

/// None of the pinned keys is among the told ones. Who tells no keys claims nothing about them.
fn are_others(pinned: &[String], told: &[String]) -> bool {
    !told.is_empty() && !told.iter().any(|key| pinned.contains(key))
}

impl Tx {
    /// A node without a key: its host keys are all that tells it from a stranger.
    pub(super) async fn update_bare(
        &mut self,
        id: NodeId,
        new: &Registration<'_>,
    ) -> Result<Finish<Registered>, StoreError> {
        let pinned = self.pinned_keys(id).await?;
        if pinned.is_empty() {
            self.pin(id, new.host_keys).await?;
        } else if are_others(&pinned, new.host_keys) {
            return Ok(Finish::Rollback(Registered::Refused(
                Refusal::HostnameTaken,
            )));
        }
        self.update_address(id, new).await?;
        Ok(Finish::Commit(Registered::Updated(id)))
    }

    /// A node that proved its key. A refusal keeps the counter, so that the request can't be sent once more later.
    pub(super) async fn update_signed(
        &mut self,
        id: NodeId,
        new: &Registration<'_>,
        by: &SignedBy,
    ) -> Result<Finish<Registered>, StoreError> {
        if let Some(highest) = self.advance_counter(&sign_of_life(id, new, *by)).await? {
            return Ok(Finish::Rollback(Registered::Refused(Refusal::OldCounter(
                highest,
            ))));
        }
        let pinned = self.pinned_keys(id).await?;
        if pinned.is_empty() {
            self.pin(id, new.host_keys).await?;
        } else if are_others(&pinned, new.host_keys) {
            let reason = "its SSH host keys changed: delete the node and let it join again, if that was meant";
            self.quarantine(id, reason).await?;
            return Ok(Finish::Commit(Registered::Refused(
                Refusal::HostKeyChanged(id),
            )));
        }
        let name_is_taken = self
            .number(
                "SELECT COUNT(*) FROM nodes WHERE live_hostname = ? AND id <> ?",
                (new.hostname.as_str(), id.0),
            )
            .await?;
        if name_is_taken > 0 {
            return Ok(Finish::Commit(Registered::Refused(Refusal::HostnameTaken)));
        }
        if let Some(next) = by.next_key {
            let another = self
                .number(
                    "SELECT COUNT(*) FROM nodes WHERE live_agent_key = ? AND id <> ?",
                    (next.to_string(), id.0),
                )
                .await?;
            if another > 0 {
                return Ok(Finish::Commit(Registered::Refused(Refusal::NextKeyTaken)));
            }
            let rotated = self
                .change(
                    "UPDATE nodes SET agent_key = ? WHERE id = ? AND agent_key <> ?",
                    (next.to_string(), id.0, next.to_string()),
                )
                .await?;
            if rotated == 1 {
                self.event("node_key_rotated", id.into(), None).await?;
            }
        }
        self.update_address(id, new).await?;
        Ok(Finish::Commit(Registered::Updated(id)))
    }

    async fn update_address(
        &mut self,
        id: NodeId,
        new: &Registration<'_>,
    ) -> Result<(), StoreError> {
        let found = self
            .first(
                "SELECT client_host, client_port, contact_host, contact_port FROM nodes WHERE id = ?",
                (id.0,),
            )
            .await?;
        let Some(mut row) = found else {
            return Err(StoreError::Corrupt {
                column: "nodes.id",
                reason: "a locked row vanished".to_owned(),
            });
        };
        let at_home = address(&mut row, "client_host", "client_port")?.as_ref()
            == Some(&new.client)
            && address(&mut row, "contact_host", "contact_port")?.as_ref() == Some(&new.contact);
        self.claim_address(id, new, !at_home).await?;
        if !at_home {
            let contact = new.contact.to_string();
            self.event("node_claims_address", id.into(), Some(&contact))
                .await?;
        }
        Ok(())
    }

    /// What a worker says of itself; where it says it is now becomes a claim, unless that is known.
    pub(super) async fn claim_address(
        &mut self,
        id: NodeId,
        new: &Registration<'_>,
        is_claim: bool,
    ) -> Result<(), StoreError> {
        let (client, contact) = if is_claim {
            (Some(&new.client), Some(&new.contact))
        } else {
            (None, None)
        };
        self.change(
            "UPDATE nodes SET hostname = ?, agent = ?, pending_client_host = ?, pending_client_port = ?, \
             pending_contact_host = ?, pending_contact_port = ? WHERE id = ?",
            (
                new.hostname.as_str(),
                new.agent,
                client.map(|address| &address.host),
                client.map(|address| address.port),
                contact.map(|address| &address.host),
                contact.map(|address| address.port),
                id.0,
            ),
        )
        .await?;
        Ok(())
    }
}
