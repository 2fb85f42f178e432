//! Registration: a worker says who and where it is. A node is its agent's key; what is new about a known node's place is a
//! claim until its pinned host key is met there.

mod known;

use crate::row::{Address, column};
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
    /// Another live node has one of the host keys.
    HostKeyTaken,
    /// Another live node has the key that the node wants to have from now on.
    NextKeyTaken,
    /// The node comes with other host keys than the pinned ones: it is quarantined.
    HostKeyChanged(NodeId),
    /// The counter was used before; the highest so far.
    OldCounter(u64),
    /// Nothing lets this worker in.
    NotAdmitted(TokenFault),
    /// Too many nodes wait for an administrator already.
    TooManyWait,
}

/// A live node that has a name.
struct Named {
    id: NodeId,
    has_key: bool,
}

fn sign_of_life(node: NodeId, new: &Registration<'_>, by: SignedBy) -> Beat {
    Beat {
        node,
        boot_id: new.boot_id.unwrap_or_default().to_owned(),
        agent: new.agent.unwrap_or_default().to_owned(),
        signed: Some(by),
        signing_key: new.signing_key,
        accounts: None,
    }
}

/// Nodes that may wait for an administrator: strangers make them.
const MOST_WAITING: u64 = 1_000;

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
        // Before anything is said about names: a stranger learns none.
        let with = match self.admit(new, admission).await? {
            Ok(with) => with,
            Err(refusal) => return Ok(Finish::Rollback(Registered::Refused(refusal))),
        };
        match (self.live_node_named(new.hostname).await?, new.signed) {
            (None, Some(by)) => {
                // A node that was deleted is not made again by a copy of what it once said.
                if let Some(highest) = self.highest_counter_of(&by.key).await?
                    && by.counter <= highest
                {
                    return Ok(Finish::Rollback(Registered::Refused(Refusal::OldCounter(
                        highest,
                    ))));
                }
                self.create_node(new, admission == Admission::Approval, &with)
                    .await
            }
            (None, None) => self.create_node(new, false, &with).await,
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

    /// The highest counter of a key, over nodes that were forgotten too.
    async fn highest_counter_of(&mut self, key: &PublicKey) -> Result<Option<u64>, StoreError> {
        let found = self
            .first(
                "SELECT MAX(b.counter) AS highest FROM nodes n JOIN beats b ON b.node_id = n.id WHERE n.agent_key = ?",
                (key.to_string(),),
            )
            .await?;
        match found {
            Some(mut row) => column(&mut row, "highest"),
            None => Ok(None),
        }
    }

    /// What lets a new worker in, in words; or why nothing does.
    async fn admit(
        &mut self,
        new: &Registration<'_>,
        admission: Admission,
    ) -> Result<Result<String, Refusal>, StoreError> {
        let token = match admission {
            Admission::Open => return Ok(Ok("mode open".to_owned())),
            Admission::Approval => {
                let waiting = self
                    .number(
                        "SELECT COUNT(*) FROM nodes WHERE awaits_approval = TRUE AND forgotten_at IS NULL",
                        (),
                    )
                    .await?;
                return Ok(if waiting < MOST_WAITING {
                    Ok("awaits approval".to_owned())
                } else {
                    Err(Refusal::TooManyWait)
                });
            }
            Admission::Token(None) => return Ok(Err(Refusal::NotAdmitted(TokenFault::Missing))),
            Admission::Token(Some(token)) => token,
        };
        let used = self
            .use_join_token(&token, new.hostname, [&new.client, &new.contact])
            .await?;
        Ok(match used {
            Ok(token) => Ok(format!("join token {token}")),
            Err(fault) => Err(Refusal::NotAdmitted(fault)),
        })
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
        if new.contact == new.client && !awaits_approval {
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
