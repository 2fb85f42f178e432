//! A database with schema, users and nodes, and short words for what tests do with them.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests, of which each test binary uses some"
)]

pub mod invariants;
pub mod moves;
pub mod signed;

use mysql_async::prelude::Queryable;
use mysql_async::{Conn, OptsBuilder};
use orion_core::{HostName, NodeId, RentalId, Role, RunKind, RunOutcome, Uid, UserId, UserName};
use orion_store::*;
use orion_testkit::Database;
use serde_json::{Value, json};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

pub const UID_BASE: u32 = 1_000_000;
pub const HASH: &str = "$6$salt$hash";
pub const HOUR: Duration = Duration::from_secs(3600);
pub const HOLD: Duration = Duration::from_secs(30);
pub const DEADLINE: Duration = Duration::from_secs(60);

/// A store with the rights of a daemon on a database of its own.
pub struct Bed {
    pub store: Store,
    pub alice: UserId,
    pub bob: UserId,
    next: AtomicU32,
    // Dropped last: the database goes when nobody uses it any more.
    pub db: Database,
}

pub fn settings(db: &Database, user: &str) -> DatabaseSettings {
    DatabaseSettings {
        socket: db.socket().to_owned(),
        name: db.name().to_owned(),
        ..DatabaseSettings::for_user(user)
    }
}

pub fn instance(number: u8) -> InstanceId {
    InstanceId::from_random([number; 16])
}

pub fn address(port: u16) -> Address {
    Address {
        host: "10.0.0.1".to_owned(),
        port,
    }
}

/// A sign of life that nobody signed.
pub fn bare_beat(node: NodeId) -> Beat {
    Beat {
        node,
        boot_id: "boot".to_owned(),
        agent: "0.1.0".to_owned(),
        signed: None,
        signing_key: None,
        accounts: None,
    }
}

/// A worker that says both its addresses are this one now.
pub fn claim(port: u16) -> AddressClaim {
    AddressClaim {
        contact: address(port),
        client: address(port),
    }
}

pub fn host_key(number: u32) -> String {
    format!("ssh-ed25519 AAAA{number:08}")
}

/// The UID of a rental's account.
pub fn uid(rental: RentalId) -> Uid {
    Uid::of_rental(UID_BASE, rental).unwrap()
}

/// The evidence of an inspection that saw these accounts and nothing else.
pub fn saw(accounts: &[Value]) -> Value {
    json!({"accounts": accounts, "counts": {"accounts": accounts.len()}})
}

pub fn report(outcome: RunOutcome) -> RunReport {
    RunReport {
        outcome,
        detail: Some("seen".to_owned()),
        evidence: None,
        output: None,
    }
}

/// 32 hexadecimal digits that no other call got.
pub fn unique_id() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{:032x}", NEXT.fetch_add(1, Ordering::Relaxed))
}

pub fn order(user: UserId, count: u32, id: &str) -> RentOrder<'_> {
    RentOrder {
        user,
        count,
        duration: HOUR,
        deadline: DEADLINE,
        max_active: 1_000,
        apid_request_id: id,
        password_key_id: Some("k1"),
        idempotency: None,
    }
}

impl Bed {
    pub async fn new() -> Self {
        Self::on(Database::fresh().await).await
    }

    pub async fn on(db: Database) -> Self {
        let admin = Store::open(&settings(&db, Database::ADMIN), None).unwrap();
        admin.apply_schema().await.unwrap();
        admin.close().await.unwrap();
        db.sql(&format!(
            "INSERT INTO installation (id, uid_base, created_at) VALUES (1, {UID_BASE}, UTC_TIMESTAMP(6))"
        ));
        let store = Store::open(&settings(&db, db.user()), None).unwrap();
        let mut ids = Vec::new();
        for name in ["alice", "bob"] {
            let name = UserName::stored(name).unwrap();
            ids.push(
                store
                    .create_user(&name, "$pbkdf2$", Role::User)
                    .await
                    .unwrap()
                    .unwrap(),
            );
        }
        Self {
            store,
            alice: ids[0],
            bob: ids[1],
            next: AtomicU32::new(1),
            db,
        }
    }

    /// `count` nodes that are alive and ready.
    pub async fn with_nodes(count: u32) -> (Self, Vec<NodeId>) {
        let bed = Self::new().await;
        let nodes = bed.add_nodes(count).await;
        (bed, nodes)
    }

    /// Registers `count` further nodes, which answer and are inspected.
    pub async fn add_nodes(&self, count: u32) -> Vec<NodeId> {
        let mut nodes = Vec::new();
        for _ in 0..count {
            let node = self.register_new().await;
            self.store
                .record_probe(node, &ProbeResult::LoggedIn)
                .await
                .unwrap();
            nodes.push(node);
        }
        for run in self.claim(RunKind::Inspect).await {
            self.record(&run, RunOutcome::Clean).await;
        }
        nodes
    }

    /// Registers a node that nobody has, and does nothing else.
    pub async fn register_new(&self) -> NodeId {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let port = u16::try_from(22_000 + number).unwrap();
        let registered = self.register(number, port).await;
        let Registered::Created(node) = registered else {
            panic!("{registered:?}")
        };
        node
    }

    /// Worker `number` registers at `port`, with its own host key.
    pub async fn register(&self, number: u32, port: u16) -> Registered {
        self.register_with(&self.store, number, port).await.unwrap()
    }

    /// The same through a store with its own clock.
    pub async fn register_with(
        &self,
        store: &Store,
        number: u32,
        port: u16,
    ) -> Result<Registered, StoreError> {
        let hostname = HostName::parse(&format!("worker{number}")).unwrap();
        let keys = [host_key(number)];
        let registration = Registration {
            hostname: &hostname,
            client: address(port),
            contact: address(port),
            host_keys: &keys,
            agent: Some("0.1.0"),
            boot_id: None,
            signed: None,
            signing_key: None,
        };
        store.register(&registration, Admission::Open).await
    }

    pub async fn rent(&self, user: UserId, count: u32) -> RentDecision {
        self.store
            .rent(&order(user, count, &unique_id()))
            .await
            .unwrap()
    }

    /// A request whose nodes are taken and whose runs are queued.
    pub async fn opened(&self, user: UserId, count: u32) -> OpenedRequest {
        let decision = self.rent(user, count).await;
        let RentDecision::Opened(opened) = decision else {
            panic!("{decision:?}")
        };
        assert!(self.provision(&opened).await);
        opened
    }

    pub async fn provision(&self, opened: &OpenedRequest) -> bool {
        let hashes: Vec<_> = opened
            .rentals
            .iter()
            .map(|id| (*id, HASH.to_owned()))
            .collect();
        self.store.provision(opened.id, &hashes).await.unwrap()
    }

    /// Rentals whose accounts exist.
    pub async fn active(&self, user: UserId, count: u32) -> Vec<RentalId> {
        let opened = self.opened(user, count).await;
        for run in self.claim(RunKind::Provision).await {
            self.record(&run, RunOutcome::Present).await;
        }
        opened.rentals
    }

    /// All queued runs of a kind, for instance 1.
    pub async fn claim(&self, kind: RunKind) -> Vec<ClaimedRun> {
        self.store
            .claim_runs(&instance(1), kind, 1_000, HOLD)
            .await
            .unwrap()
    }

    /// The only queued run of a kind.
    pub async fn claim_one(&self, kind: RunKind) -> ClaimedRun {
        let mut runs = self.claim(kind).await;
        assert_eq!(runs.len(), 1, "{runs:?}");
        runs.remove(0)
    }

    pub async fn record(&self, run: &ClaimedRun, outcome: RunOutcome) -> Recorded {
        self.store
            .record_run(&instance(1), run, &report(outcome))
            .await
            .unwrap()
    }

    /// The same, `seconds` later.
    pub async fn record_at(&self, seconds: i64, run: &ClaimedRun, report: &RunReport) -> Recorded {
        let store = self.later(seconds);
        store.record_run(&instance(1), run, report).await.unwrap()
    }

    /// An inspection `seconds` later that is due then and sees this.
    pub async fn inspected_at(
        &self,
        seconds: i64,
        outcome: RunOutcome,
        evidence: Option<Value>,
    ) -> Recorded {
        let store = self.later(seconds);
        store
            .queue_deep_inspections(HOUR / 6, HOUR, 1_000)
            .await
            .unwrap();
        store.queue_inspections(10).await.unwrap();
        let run = self.claim_one(RunKind::Inspect).await;
        let report = RunReport {
            evidence,
            ..report(outcome)
        };
        self.record_at(seconds, &run, &report).await
    }

    /// How many events of a kind there are.
    pub fn events(&self, kind: &str) -> String {
        self.one(&format!(
            "SELECT COUNT(*) FROM events WHERE kind = '{kind}'"
        ))
    }

    /// The same database, `seconds` later.
    pub fn later(&self, seconds: i64) -> Store {
        self.store.clone().with_clock_offset(seconds * 1_000_000)
    }

    pub fn one(&self, sql: &str) -> String {
        self.db.sql_one(sql)
    }

    pub fn node_state(&self, node: NodeId) -> String {
        self.one(&format!(
            "SELECT CONCAT(status, ' ', availability) FROM nodes WHERE id = {node}"
        ))
    }

    pub fn rental_state(&self, rental: RentalId) -> String {
        self.one(&format!("SELECT state FROM rentals WHERE id = {rental}"))
    }

    /// A connection of the administrator, for looking.
    pub async fn connection(&self) -> Conn {
        let opts = OptsBuilder::default()
            .socket(self.db.socket().to_str())
            .prefer_socket(false)
            .user(Some(Database::ADMIN))
            .db_name(Some(self.db.name()));
        Conn::new(opts).await.unwrap()
    }

    /// Panics when the rows contradict the rules.
    pub async fn check(&self) {
        let mut conn = self.connection().await;
        let broken = invariants::broken(&mut conn).await;
        assert!(broken.is_empty(), "broken: {broken:#?}");
        conn.disconnect().await.unwrap();
    }
}

pub async fn count(conn: &mut Conn, sql: &str) -> u64 {
    conn.query_first(sql).await.unwrap().unwrap()
}
