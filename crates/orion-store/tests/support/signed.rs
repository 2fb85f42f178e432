//! Workers that sign what they send, and the tokens that let them in.

use super::{Bed, address, host_key};
use orion_core::{HostName, JoinTokenId, NodeId, PublicKey};
use orion_store::*;
use std::time::Duration;

pub fn key(byte: u8) -> PublicKey {
    PublicKey::from_bytes([byte; 32])
}

pub fn by(byte: u8, counter: u64) -> SignedBy {
    SignedBy {
        key: key(byte),
        next_key: None,
        counter,
    }
}

/// What worker `number` sends, with its own host key.
pub struct Sent {
    pub hostname: HostName,
    pub host_keys: Vec<String>,
    pub port: u16,
    pub signed: Option<SignedBy>,
}

pub fn sent(number: u8, signed: SignedBy) -> Sent {
    Sent {
        hostname: HostName::parse(&format!("worker{number}")).unwrap(),
        host_keys: vec![host_key(number.into())],
        port: 2200 + u16::from(number),
        signed: Some(signed),
    }
}

impl Sent {
    pub async fn with(self, store: &Store, admission: Admission) -> Registered {
        let registration = Registration {
            hostname: &self.hostname,
            client: address(self.port),
            contact: address(self.port),
            host_keys: &self.host_keys,
            agent: Some("0.1.0"),
            boot_id: Some("boot"),
            signed: self.signed,
            signing_key: None,
        };
        store.register(&registration, admission).await.unwrap()
    }

    /// As a worker that is known already: no token would let it in.
    pub async fn again(self, bed: &Bed) -> Registered {
        self.with(&bed.store, Admission::Token(None)).await
    }
}

pub async fn token(bed: &Bed, byte: u8, change: impl FnOnce(&mut JoinTokenOrder)) -> JoinTokenId {
    let mut order = JoinTokenOrder {
        public_key: key(byte),
        uses: 1,
        lifetime: Duration::from_secs(1800),
        networks: Vec::new(),
        hostnames: Vec::new(),
        signing_key: key(240),
        created_by: bed.alice,
    };
    change(&mut order);
    bed.store
        .create_join_token(&order)
        .await
        .unwrap()
        .join_token_id
}

/// A node that joined with key 1 at counter 1.
pub async fn joined(bed: &Bed) -> NodeId {
    token(bed, 200, |_| {}).await;
    let registered = sent(1, by(1, 1))
        .with(&bed.store, Admission::Token(Some(key(200))))
        .await;
    let Registered::Created(node) = registered else {
        panic!("{registered:?}")
    };
    node
}
