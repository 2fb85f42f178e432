//! Registration: a worker says where it is. What is new about a known node is a claim until its pinned key is met there.

use crate::row::{Address, address, column};
use crate::tx::{Finish, Tx, unit};
use crate::{Store, StoreError};
use orion_core::{HostName, NodeId};

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
}

/// What became of a registration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Registered {
    /// A new node, `joining`.
    Created(NodeId),
    /// The node of that name; a new address is pending.
    Updated(NodeId),
    /// A live node has the name and other host keys.
    HostnameTaken,
    /// A live node has one of the host keys and another name.
    HostKeyTaken,
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
    ) -> Result<Registered, StoreError> {
        for _ in 0..MAX_RACES {
            let result = unit!(self, |tx| {
                match tx.live_node_named(registration.hostname).await? {
                    None => tx.create_node(registration).await?,
                    Some(node) => tx.update_node(node, registration).await?,
                }
            });
            match result {
                // Somebody took the name or the address in between: the second look sees it.
                Err(error)
                    if error.is_duplicate("nodes_live_hostname")
                        || error.is_duplicate("nodes_live_address") => {}
                Err(error) if error.is_duplicate("PRIMARY") => return Ok(Registered::HostKeyTaken),
                other => return other,
            }
        }
        Err(StoreError::Contention(MAX_RACES))
    }
}

impl Tx {
    async fn live_node_named(&mut self, hostname: &HostName) -> Result<Option<NodeId>, StoreError> {
        let found = self
            .first(
                "SELECT id FROM nodes WHERE live_hostname = ? FOR UPDATE",
                (hostname.as_str(),),
            )
            .await?;
        found
            .map(|mut row| Ok(NodeId(column(&mut row, "id")?)))
            .transpose()
    }

    async fn create_node(
        &mut self,
        new: &Registration<'_>,
    ) -> Result<Finish<Registered>, StoreError> {
        let now = self.now;
        let id = self
            .insert(
                "INSERT INTO nodes (hostname, client_host, client_port, pending_client_host, pending_client_port, \
                 pending_contact_host, pending_contact_port, agent, status, status_since, availability, \
                 availability_since, created_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, 'unknown', ?, 'joining', ?, ?)",
                (
                    new.hostname.as_str(),
                    &new.client.host,
                    new.client.port,
                    &new.client.host,
                    new.client.port,
                    &new.contact.host,
                    new.contact.port,
                    new.agent,
                    now,
                    now,
                    now,
                ),
            )
            .await?;
        let id = NodeId(id);
        // A free address is taken at once; one that another node has stays a claim.
        let taken = self
            .number(
                "SELECT COUNT(*) FROM nodes WHERE live_address = CONCAT(?, ' ', ?)",
                (&new.contact.host, new.contact.port),
            )
            .await?;
        if taken == 0 {
            self.change(
                "UPDATE nodes SET contact_host = pending_contact_host, contact_port = pending_contact_port, \
                 pending_client_host = NULL, pending_client_port = NULL, pending_contact_host = NULL, \
                 pending_contact_port = NULL WHERE id = ?",
                (id.0,),
            )
            .await?;
        }
        self.pin(id, new.host_keys).await?;
        self.queue_inspection(id).await?;
        self.event(
            "node_registered",
            id.into(),
            Some(&format!("{} at {}", new.hostname, new.contact)),
        )
        .await?;
        Ok(Finish::Commit(Registered::Created(id)))
    }

    async fn update_node(
        &mut self,
        id: NodeId,
        new: &Registration<'_>,
    ) -> Result<Finish<Registered>, StoreError> {
        let pinned = self.pinned_keys(id).await?;
        if pinned.is_empty() {
            self.pin(id, new.host_keys).await?;
        } else if !new.host_keys.is_empty() && !new.host_keys.iter().any(|key| pinned.contains(key))
        {
            return Ok(Finish::Rollback(Registered::HostnameTaken));
        }
        let found = self
            .first("SELECT client_host, client_port, contact_host, contact_port FROM nodes WHERE id = ?", (id.0,))
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
        let (client, contact) = if at_home {
            (None, None)
        } else {
            (Some(&new.client), Some(&new.contact))
        };
        self.change(
            "UPDATE nodes SET agent = ?, pending_client_host = ?, pending_client_port = ?, pending_contact_host = ?, \
             pending_contact_port = ? WHERE id = ?",
            (
                new.agent,
                client.map(|address| &address.host),
                client.map(|address| address.port),
                contact.map(|address| &address.host),
                contact.map(|address| address.port),
                id.0,
            ),
        )
        .await?;
        if let Some(contact) = contact {
            self.event("node_claims_address", id.into(), Some(&contact.to_string()))
                .await?;
        }
        Ok(Finish::Commit(Registered::Updated(id)))
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
