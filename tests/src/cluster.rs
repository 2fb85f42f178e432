//! A running cluster, and short words for what clients do with it.

use crate::plan::{Plan, schema_apply};
use orion_testkit::{
    Answer, Client, Daemon, Database, PATIENCE, Scratch, Worker, Workers, wait_until,
};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Names are given in this order by [`Cluster::user`]; all have this password.
pub const PASSWORD: &str = "correct horse";
const UID_BASE: u32 = 1_000_000;

/// orion-apid, orion-schedd, MariaDB and workers, as a [`Plan`] wants them.
#[derive(Debug)]
pub struct Cluster {
    /// orion-schedd.
    pub schedd: Daemon,
    /// Every orion-apid.
    pub apids: Vec<Daemon>,
    /// The workers.
    pub workers: Workers,
    plan: Plan,
    _files: Scratch,
    /// The database; dropped when nobody uses it any more.
    pub db: Database,
}

impl Cluster {
    /// Starts everything and, in mode `open`, waits until every worker's node is ready.
    pub async fn start(plan: Plan) -> Self {
        let db = plan.database().await;
        let files = Scratch::new("cluster");
        let workers = Workers::new(plan.workers);
        for name in ["jwt.keys", "server.keys", "signing.keys"] {
            files.write_secret(name, "k1:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n");
        }
        files.write_secret("run/.keep", "");
        files.write_secret("state/.keep", "");
        schema_apply(plan.apid(&db, &files)).await;
        db.sql(&format!(
            "INSERT INTO installation (id, uid_base, created_at) VALUES (1, {UID_BASE}, UTC_TIMESTAMP(6))"
        ));
        let schedd = plan.schedd(&db, &files, &workers).start();
        let mut apids: Vec<Daemon> = Vec::new();
        for _ in 0..plan.apids {
            apids.push(plan.apid(&db, &files).start());
        }
        let cluster = Self {
            schedd,
            apids,
            workers,
            plan,
            _files: files,
            db,
        };
        cluster.schedd.ready().await;
        for apid in &cluster.apids {
            apid.ready().await;
        }
        if cluster.plan.mode == "open" {
            for worker in cluster.workers.all() {
                cluster.register(worker).await.expect(201);
            }
            cluster.ready_nodes(cluster.plan.workers).await;
        }
        cluster
    }

    /// A client of the first orion-apid, as nobody.
    pub async fn api(&self) -> Client {
        Client::new(self.apids[0].address("clients").await)
    }

    /// A worker's agent registers it.
    pub async fn register(&self, worker: &Worker) -> Answer {
        let agents = Client::new(self.apids[0].address("agents").await);
        agents
            .post("/api/workers/register", &worker.registration())
            .await
    }

    /// A new user who has logged in, at the first orion-apid.
    pub async fn user(&self, name: &str) -> Client {
        let api = self.api().await;
        let credentials = json!({"username": name, "password": PASSWORD});
        // Hashing costs a third of a second each time; the rows of later users copy the first one's.
        let copied = self.db.sql(&format!(
            "INSERT INTO users (name, password_phc, role, created_at) \
             SELECT '{name}', password_phc, 'user', UTC_TIMESTAMP(6) FROM users ORDER BY id LIMIT 1; SELECT ROW_COUNT()"
        ));
        if copied == [["0"]] {
            api.post("/auth/signup", &credentials).await.expect(201);
        }
        let answer = api.post("/auth/login", &credentials).await.expect(200);
        api.with_token(answer.json()["token"].as_str().expect("a token"))
    }

    /// A user who is an administrator.
    pub async fn admin(&self, name: &str) -> Client {
        let client = self.user(name).await;
        self.db.sql(&format!(
            "UPDATE users SET role = 'admin' WHERE name = '{name}'"
        ));
        client
    }

    /// The worker that a rental's present account is on.
    pub fn worker_of(&self, rental: &Value) -> &Worker {
        let name = self.db.sql_one(&format!(
            "SELECT n.hostname FROM nodes n JOIN accounts a ON a.node_id = n.id \
             WHERE a.rental_id = {rental} AND a.state = 'present'"
        ));
        let mut all = self.workers.all().iter();
        all.find(|worker| worker.hostname() == name)
            .expect("the node is a worker's")
    }

    /// Waits until exactly `count` nodes are alive and ready.
    pub async fn ready_nodes(&self, count: usize) {
        wait_until(&format!("{count} nodes are alive and ready"), PATIENCE, || {
            let nodes = self.db.sql("SELECT id, status, availability, status_reason, availability_reason FROM nodes WHERE forgotten_at IS NULL");
            let ready = nodes.iter().filter(|node| node[1] == "alive" && node[2] == "ready");
            if ready.count() == count { Ok(()) } else { Err(format!("{nodes:?}")) }
        })
        .await;
    }

    /// Waits until nothing is under way any more, then demands that accounts on workers equal live rentals, both ways,
    /// and that no worker ever had two clients. Returns how many rentals live.
    pub async fn at_rest(&self) -> usize {
        let unrest = "SELECT (SELECT COUNT(*) FROM requests WHERE state = 'open') \
             + (SELECT COUNT(*) FROM accounts WHERE state IN ('making', 'leaving')) \
             + (SELECT COUNT(*) FROM runs WHERE state IN ('queued', 'claimed'))";
        wait_until("nothing is under way any more", PATIENCE, || match self.db.sql_one(unrest).as_str() {
            "0" => Ok(()),
            _ => Err(format!("{:#?}", self.db.sql(
                "SELECT u.id, u.kind, u.node_id, u.state, u.attempt, u.outcome, u.detail FROM runs u ORDER BY u.id DESC LIMIT 20"))),
        })
        .await;
        self.accounts_are_live_rentals()
    }

    fn accounts_are_live_rentals(&self) -> usize {
        let live = self.db.sql(
            "SELECT i.uid_base + r.id, u.name FROM rentals r JOIN users u ON u.id = r.user_id JOIN installation i \
             WHERE r.state IN ('provisioning', 'active', 'degraded')",
        );
        let live: BTreeSet<(u32, String)> = live
            .into_iter()
            .map(|row| (row[0].parse().expect("a UID"), row[1].clone()))
            .collect();
        assert_eq!(
            self.workers.accounts(),
            live,
            "accounts on workers (left) must equal live rentals (right)"
        );
        let violations = self.workers.violations();
        assert!(violations.is_empty(), "{violations:#?}");
        live.len()
    }
}

/// The body of a rent.
pub fn rent_of(count: u32) -> Value {
    json!({"duration_hours": 2, "count": count})
}
