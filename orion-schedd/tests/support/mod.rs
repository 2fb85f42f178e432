//! A database, simulated workers and the real daemon, and short words for what tests do with them.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests, of which each test binary uses some"
)]

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use orion_core::api::{NodeView, RunView};
use orion_core::{
    Availability, HostName, NodeStatus, RentalId, RequestId, RequestState, Role, RunKind, UserId,
    UserName,
};
use orion_store::{
    Address, Admission, DatabaseSettings, Registration, RentDecision, RentOrder, RequestView,
    Scope, Store,
};
use orion_testkit::scripted::{LogLine, Op};
use orion_testkit::{
    Client, Daemon, DaemonBuilder, Database, HOST, PATIENCE, Scratch, Worker, Workers,
    wait_until_async,
};
use serde_json::Value;

pub const HASH: &str = "$6$saltsalt$./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz./0123456789ABCDEFGHIJ";

/// What a test works with.
pub struct Bed {
    pub store: Store,
    pub workers: Workers,
    pub scratch: Scratch,
    user: UserId,
    // Dropped last: the database goes when nobody uses it any more.
    pub db: Database,
}

/// What a test changes of the daemon's configuration.
pub struct Plan {
    pub playbook_command: PathBuf,
    pub playbooks_dir: PathBuf,
    pub host_timeout_s: u32,
    pub connect_timeout_s: u32,
    pub drain_s: u32,
    pub plays: u32,
    /// `addresses.networks`, as TOML; the workers are `localhost`, which is listed.
    pub networks: &'static str,
    /// Instances of one test that shall not share a runtime directory have different names.
    pub name: &'static str,
}

impl Bed {
    /// With so many workers, which nobody knows yet.
    pub async fn new(workers: usize) -> Self {
        Self::on(Database::fresh().await, workers).await
    }

    pub async fn on(db: Database, workers: usize) -> Self {
        let settings = |user: &str| DatabaseSettings {
            socket: db.socket().to_owned(),
            name: db.name().to_owned(),
            ..DatabaseSettings::for_user(user)
        };
        let admin = Store::open(&settings(Database::ADMIN), None).unwrap();
        admin.apply_schema().await.unwrap();
        admin.close().await.unwrap();
        db.sql(
            "INSERT INTO installation (id, uid_base, created_at) VALUES (1, 1000000, UTC_TIMESTAMP(6))",
        );
        let store = Store::open(&settings(db.user()), None).unwrap();
        let name = UserName::stored("alice").unwrap();
        let user = store.create_user(&name, "$pbkdf2$", Role::User).await;
        Self {
            user: user.unwrap().unwrap(),
            store,
            workers: Workers::new(workers),
            scratch: Scratch::new("schedd"),
            db,
        }
    }

    pub fn plan(&self) -> Plan {
        let playbooks_dir = self.scratch.join("playbooks");
        self.scratch.write_secret("playbooks/create_user.yml", "");
        Plan {
            playbook_command: self.workers.playbook().to_owned(),
            playbooks_dir,
            host_timeout_s: 20,
            connect_timeout_s: 5,
            drain_s: 30,
            plays: 4,
            networks: "[]",
            name: "one",
        }
    }

    /// The daemon, started and not waited for.
    pub fn start(&self, plan: &Plan) -> Daemon {
        DaemonBuilder::new("orion-schedd", self.configuration(plan)).start()
    }

    pub fn configuration(&self, plan: &Plan) -> String {
        let runtime = self.runtime_dir(plan);
        std::fs::create_dir_all(&runtime).unwrap();
        format!(
            r#"
                ops.listen = "127.0.0.1:0"
                log.level = "debug,russh=info,tokio_cron_scheduler=info"
                log.format = "json"
                [database]
                socket = "{socket}"
                user = "{user}"
                name = "{name}"
                [executor]
                plays = {plays}
                host_timeout_s = {host_timeout_s}
                drain_s = {drain_s}
                runtime_dir = "{runtime}"
                state_dir = "{state}"
                [ansible]
                playbook_command = "{command}"
                playbooks_dir = "{playbooks}"
                [ssh]
                pool_key_file = "{key}"
                connect_timeout_s = {connect_timeout_s}
                [addresses]
                networks = {networks}
                names = ["localhost"]
                [notify]
                socket = "{notify}"
                [cron]
                reconcile = "* * * * * *"
                cleanup = "* * * * * *"
                health_check = "* * * * * *"
            "#,
            socket = self.db.socket().display(),
            user = self.db.user(),
            name = self.db.name(),
            plays = plan.plays,
            host_timeout_s = plan.host_timeout_s,
            drain_s = plan.drain_s,
            runtime = runtime.display(),
            state = self.scratch.path().display(),
            command = plan.playbook_command.display(),
            playbooks = plan.playbooks_dir.display(),
            key = self.workers.pool_key().display(),
            connect_timeout_s = plan.connect_timeout_s,
            networks = plan.networks,
            notify = self.notify_socket(plan).display(),
        )
    }

    pub fn runtime_dir(&self, plan: &Plan) -> PathBuf {
        self.scratch.join(&format!("run-{}", plan.name))
    }

    pub fn notify_socket(&self, plan: &Plan) -> PathBuf {
        self.runtime_dir(plan).join("notify.sock")
    }

    /// Registers all workers and waits until they can be rented.
    pub async fn all_ready(&self) {
        for worker in self.workers.all() {
            self.register(worker).await;
        }
        self.ready_nodes(self.workers.all().len()).await;
    }

    pub async fn register(&self, worker: &Worker) {
        self.register_at(worker.hostname(), worker.port(), worker.host_key())
            .await;
    }

    pub async fn register_at(&self, hostname: &str, port: u16, host_key: &str) {
        let address = Address {
            host: HOST.to_owned(),
            port,
        };
        let registration = Registration {
            hostname: &HostName::parse(hostname).unwrap(),
            client: address.clone(),
            contact: address,
            host_keys: &[host_key.to_owned()],
            agent: None,
            boot_id: None,
            signed: None,
            signing_key: None,
        };
        let registered = self.store.register(&registration, Admission::Open).await;
        registered.unwrap();
    }

    /// Waits until exactly so many nodes are alive and ready.
    pub async fn ready_nodes(&self, count: usize) {
        wait_until_async(&format!("{count} nodes are ready"), PATIENCE, || async {
            let nodes = self.nodes().await;
            let ready = |node: &&NodeView| {
                node.availability == Availability::Ready && node.status == NodeStatus::Alive
            };
            let ready = nodes.iter().filter(ready).count();
            if ready == count {
                Ok(())
            } else {
                Err(format!("{nodes:#?}"))
            }
        })
        .await;
    }

    pub async fn nodes(&self) -> Vec<NodeView> {
        self.store.nodes(Scope::All).await.unwrap()
    }

    pub async fn node_named(&self, hostname: &str) -> NodeView {
        let mut nodes = self.nodes().await;
        nodes.retain(|node| node.hostname == hostname);
        nodes.pop().unwrap()
    }

    /// Takes nodes and queues their runs.
    pub async fn rent(&self, count: u32) -> RequestId {
        self.rent_within(count, Duration::from_secs(60)).await
    }

    pub async fn rent_within(&self, count: u32, deadline: Duration) -> RequestId {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let id = format!("{:032x}", NEXT.fetch_add(1, Ordering::Relaxed));
        let order = RentOrder {
            user: self.user,
            count,
            duration: Duration::from_secs(3600),
            deadline,
            max_active: 1000,
            apid_request_id: &id,
            password_key_id: Some("k1"),
            idempotency: None,
        };
        let decision = self.store.rent(&order).await.unwrap();
        let RentDecision::Opened(opened) = decision else {
            panic!("{decision:?}")
        };
        let hash = |id: &RentalId| (*id, HASH.to_owned());
        let hashes: Vec<_> = opened.rentals.iter().map(hash).collect();
        assert!(self.store.provision(opened.id, &hashes).await.unwrap());
        opened.id
    }

    /// Waits until the request is decided.
    pub async fn decided(&self, request: RequestId) -> RequestView {
        wait_until_async("the request is decided", PATIENCE, || async {
            let view = self.store.request(request).await.unwrap().unwrap();
            if view.state == RequestState::Open {
                Err("it is open")
            } else {
                Ok(view)
            }
        })
        .await
    }

    /// A rent that succeeds.
    pub async fn rented(&self, count: u32) -> Vec<RentalId> {
        let view = self.decided(self.rent(count).await).await;
        assert_eq!(view.state, RequestState::Active, "{view:?}");
        view.rentals.iter().map(|rental| rental.id).collect()
    }

    pub async fn release(&self, rental: RentalId) {
        self.store.release(Scope::All, rental).await.unwrap();
    }

    pub async fn runs(&self, kind: RunKind) -> Vec<RunView> {
        let mut runs = self.store.runs(1000).await.unwrap();
        runs.retain(|run| run.kind == kind);
        runs
    }

    /// The scripted playbook's processes that did `op`, each with its hosts.
    pub fn plays(&self, op: Op) -> Vec<LogLine> {
        let mut log = self.workers.log();
        log.retain(|line| line.what == "play" && line.op == op);
        log
    }

    /// Accounts on workers are exactly those of these rentals, and no worker ever had two.
    pub fn accounts_are(&self, rentals: &[RentalId]) {
        let mut expected: Vec<u32> = rentals
            .iter()
            .map(|rental| 1_000_000 + u32::try_from(rental.0).unwrap())
            .collect();
        expected.sort_unstable();
        let found: Vec<u32> = self
            .workers
            .accounts()
            .into_iter()
            .map(|(uid, _)| uid)
            .collect();
        assert_eq!(found, expected);
        assert!(self.workers.violations().is_empty());
    }
}

pub async fn ops_page(daemon: &Daemon, path: &str) -> (u16, Value) {
    let client = Client::new(daemon.address("ops").await);
    let answer = client.send(http::Method::GET, path, None).await.unwrap();
    let status = answer.status;
    (status.into(), answer.json())
}

/// Processes that work in or below a directory: the plays of a runtime directory.
pub fn working_in(directory: &Path) -> Vec<(u32, String)> {
    let directory = directory.canonicalize().unwrap();
    let entries = std::fs::read_dir("/proc").unwrap();
    entries
        .filter_map(|entry| {
            let path = entry.unwrap().path();
            let pid = path.file_name()?.to_str()?.parse().ok()?;
            let place = std::fs::read_link(path.join("cwd")).ok()?;
            let name = std::fs::read_to_string(path.join("comm")).ok()?;
            place
                .starts_with(&directory)
                .then(|| (pid, name.trim_end().to_owned()))
        })
        .collect()
}
