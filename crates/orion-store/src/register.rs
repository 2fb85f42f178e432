//! Registration: a worker says who and where it is. A node is its agent's key; what is new about a known node's place is a
//! claim until its pinned host key is met there.

use crate::row::{Address, address, column};
use crate::tx::{Finish, Tx, unit};
use crate::{Beat, Store, StoreError, TokenFault};
use orion_core::{HostName, NodeId, PublicKey};

/// Whose signature a request carries, verified by whoever took it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SignedBy {
    /// The agent's key.
    pub key: PublicKey,
    /// The key that it wants to have from now on, which signed as well.
    pub next_key: Option<PublicKey>,
    /// Only its order with the node's other counters says something.
    pub counter: u64,
}

/// What lets a worker in that no node is known for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Nothing: everybody is let in.
    Open,
    /// A join token's public half, whose seed signed the request; without one nobody is.
    Token(Option<PublicKey>),
    /// An administrator, later.
    Approval,
}

/// What a worker says of itself, checked for its form.
pub struct Registration<'a> {
    /// Its host name.
    pub hostname: &'a HostName,
    /// Where clients reach it.
    pub client: Address,
    /// Where the control plane reaches it.
    pub contact: Address,
    /// Its SSH host keys, `type base64`; may be empty, then they are pinned at the first dial.
    pub host_keys: &'a [String],
    /// The agent's version.
    pub agent: Option<&'a str>,
    /// Changes with each boot.
    pub boot_id: Option<&'a str>,
    /// `None` for the contract's bare fields.
    pub signed: Option<SignedBy>,
    /// The first of the control plane's keys that the agent believes.
    pub signing_key: Option<PublicKey>,
}

/// What became of a registration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Registered {
    /// A new node, `joining`.
    Created(NodeId),
    /// The node of that key, or of that name where it has no key; a new address is pending.
    Updated(NodeId),
    /// Nothing but perhaps the node's counter changed.
    Refused(Refusal),
}

/// Why a registration is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// A live node has the name and other keys.
    HostnameTaken,
    /// Another live node has one of the host keys, or the wanted agent's key.
    HostKeyTaken,
    /// The node comes with other host keys than the pinned ones: it is quarantined.
    HostKeyChanged(NodeId),
    /// The counter was used before; the highest so far.
    OldCounter(u64),
    /// Nothing lets this worker in.
    NotAdmitted(TokenFault),
}

/// A live node that has a name.
struct Named {
    id: NodeId,
    has_key: bool,
}

/// None of the pinned keys is among the told ones. Who tells no keys claims nothing about them.
fn are_others(pinned: &[String], told: &[String]) -> bool {
    !told.is_empty() && !told.iter().any(|key| pinned.contains(key))
}

fn sign_of_life(node: NodeId, new: &Registration<'_>, by: SignedBy) -> Beat {
    Beat {
        node,
        boot_id: new.boot_id.unwrap_or_default().to_owned(),
        agent: new.agent.unwrap_or_default().to_owned(),
        signed: Some(by),
        signing_key: new.signing_key,
    }
}

/// Losing so often to other registrations means something else is wrong.
const MAX_RACES: u32 = 10;

impl Store {
    /// Registers a worker or updates what is known of it.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn register(
        &self,
        registration: &Registration<'_>,
        admission: Admission,
    ) -> Result<Registered, StoreError> {
        for _ in 0..MAX_RACES {
            let result = unit!(self, |tx| { tx.register(registration, admission).await? });
            match result {
                // Somebody took the name, the key or the address in between: the second look sees it.
                Err(error)
                    if error.is_duplicate("nodes_live_hostname")
                        || error.is_duplicate("nodes_live_agent_key")
                        || error.is_duplicate("nodes_live_address") => {}
                Err(error) if error.is_duplicate("PRIMARY") => {
                    return Ok(Registered::Refused(Refusal::HostKeyTaken));
                }
                other => return other,
            }
        }
        Err(StoreError::Contention(MAX_RACES))
    }
}

impl Tx {
    async fn register(
        &mut self,
        new: &Registration<'_>,
        admission: Admission,
    ) -> Result<Finish<Registered>, StoreError> {
        if let Some(by) = new.signed
            && let Some(node) = self.live_node_of(&by).await?
        {
            return self.update_signed(node, new, &by).await;
        }
        match (self.live_node_named(new.hostname).await?, new.signed) {
            (None, _) => self.admit(new, admission).await,
            (Some(Named { id, has_key: false }), None) if admission == Admission::Open => {
                self.update_bare(id, new).await
            }
            (Some(_), _) => Ok(Finish::Rollback(Registered::Refused(
                Refusal::HostnameTaken,
            ))),
        }
    }

    /// The node whose key signed; after a rotation whose answer got lost that is the next key.
    async fn live_node_of(&mut self, by: &SignedBy) -> Result<Option<NodeId>, StoreError> {
        let next = by.next_key.unwrap_or(by.key);
        let found = self
            .first(
                "SELECT id FROM nodes WHERE live_agent_key IN (?, ?) ORDER BY live_agent_key = ? DESC LIMIT 1 FOR UPDATE",
                (by.key.to_string(), next.to_string(), by.key.to_string()),
            )
            .await?;
        found
            .map(|mut row| Ok(NodeId(column(&mut row, "id")?)))
            .transpose()
    }

    async fn admit(
        &mut self,
        new: &Registration<'_>,
        admission: Admission,
    ) -> Result<Finish<Registered>, StoreError> {
        let with = match admission {
            Admission::Open => "mode open".to_owned(),
            Admission::Approval => "awaits approval".to_owned(),
            Admission::Token(None) => {
                return Ok(Finish::Rollback(Registered::Refused(Refusal::NotAdmitted(
                    TokenFault::Missing,
                ))));
            }
            Admission::Token(Some(token)) => {
                let used = self
                    .use_join_token(&token, new.hostname, [&new.client, &new.contact])
                    .await?;
                match used {
                    Ok(token) => format!("join token {token}"),
                    Err(fault) => {
                        return Ok(Finish::Rollback(Registered::Refused(Refusal::NotAdmitted(
                            fault,
                        ))));
                    }
                }
            }
        };
        self.create_node(new, admission == Admission::Approval, &with)
            .await
    }

    async fn live_node_named(&mut self, hostname: &HostName) -> Result<Option<Named>, StoreError> {
        let found = self
            .first(
                "SELECT id, agent_key IS NOT NULL AS has_key FROM nodes WHERE live_hostname = ? FOR UPDATE",
                (hostname.as_str(),),
            )
            .await?;
        found
            .map(|mut row| {
                Ok(Named {
                    id: NodeId(column(&mut row, "id")?),
                    has_key: column(&mut row, "has_key")?,
                })
            })
            .transpose()
    }

    async fn create_node(
        &mut self,
        new: &Registration<'_>,
        awaits_approval: bool,
        with: &str,
    ) -> Result<Finish<Registered>, StoreError> {
        let now = self.now;
        let id = self
            .insert(
                "INSERT INTO nodes (hostname, client_host, client_port, agent_key, awaits_approval, status, status_since, \
                 availability, availability_since, created_at) \
                 VALUES (?, ?, ?, ?, ?, 'unknown', ?, 'joining', ?, ?)",
                (
                    new.hostname.as_str(),
                    &new.client.host,
                    new.client.port,
                    new.signed.map(|by| by.key.to_string()),
                    awaits_approval,
                    now,
                    now,
                    now,
                ),
            )
            .await?;
        let id = NodeId(id);
        self.claim_address(id, new, true).await?;
        // A free address is taken at once where clients are sent to the very place that is dialled; everything else stays
        // a claim until the node is met there.
        if new.contact == new.client {
            self.change(
                "UPDATE nodes SET contact_host = pending_contact_host, contact_port = pending_contact_port, \
                 pending_client_host = NULL, pending_client_port = NULL, pending_contact_host = NULL, \
                 pending_contact_port = NULL WHERE id = ? AND NOT EXISTS \
                 (SELECT 1 FROM nodes o WHERE o.live_address = CONCAT(?, ' ', ?))",
                (id.0, &new.contact.host, new.contact.port),
            )
            .await?;
        }
        self.pin(id, new.host_keys).await?;
        if let Some(by) = new.signed {
            self.advance_counter(&sign_of_life(id, new, by)).await?;
        }
        self.queue_inspection(id).await?;
        let detail = format!("{} at {}, {with}", new.hostname, new.contact);
        self.event("node_registered", id.into(), Some(&detail))
            .await?;
        Ok(Finish::Commit(Registered::Created(id)))
    }

    /// A node without a key: its host keys are all that tells it from a stranger.
    async fn update_bare(
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
    async fn update_signed(
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
                return Ok(Finish::Commit(Registered::Refused(Refusal::HostKeyTaken)));
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
    async fn claim_address(
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

    pub(crate) async fn pinned_keys(&mut self, node: NodeId) -> Result<Vec<String>, StoreError> {
        let rows = self
            .rows(
                "SELECT host_key FROM host_keys WHERE node_id = ?",
                (node.0,),
            )
            .await?;
        rows.into_iter()
            .map(|mut row| column(&mut row, "host_key"))
            .collect()
    }

    /// Pins a node to its keys. A key that another live node has is refused by the primary key.
    pub(crate) async fn pin(&mut self, node: NodeId, keys: &[String]) -> Result<(), StoreError> {
        let now = self.now;
        let distinct: std::collections::BTreeSet<&String> = keys.iter().collect();
        for key in distinct {
            self.change(
                "INSERT INTO host_keys (host_key, node_id, pinned_at) VALUES (?, ?, ?)",
                (key, node.0, now),
            )
            .await?;
        }
        Ok(())
    }
}
