//! The parts that every test here needs.

pub(crate) mod agent;
mod fake_schedd;

pub(crate) use fake_schedd::{FakeSchedd, Script};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use orion_store::{DatabaseSettings, Store};
use orion_testkit::{Answer, Client, Daemon, DaemonBuilder, Database, Durability, Scratch};
use serde_json::{Value, json};
use std::fmt::Write;

/// A password that every user here has.
pub(crate) const PASSWORD: &str = "correct horse";

/// One control plane without schedd: a database of its own and one apid.
pub(crate) struct Plane {
    pub(crate) daemon: Daemon,
    pub(crate) database: Database,
    /// Speaks to the clients' listener, as nobody.
    pub(crate) clients: Client,
    /// Speaks to the agents' listener.
    pub(crate) agents: Client,
    pub(crate) scratch: Scratch,
}

/// How a [`Plane`] differs from the usual one.
#[derive(Default)]
pub(crate) struct Plan {
    /// Further lines of the configuration, as `rent.deadline_s = 2`.
    pub(crate) settings: String,
    /// A server that the test may stop.
    pub(crate) own_server: bool,
}

impl Plane {
    pub(crate) async fn start() -> Self {
        Self::start_with("").await
    }

    /// With further lines of configuration.
    pub(crate) async fn start_with(settings: &str) -> Self {
        let settings = settings.to_owned();
        Self::planned(Plan {
            settings,
            own_server: false,
        })
        .await
    }

    pub(crate) async fn planned(plan: Plan) -> Self {
        let database = if plan.own_server {
            Database::own_server(Durability::Relaxed).await
        } else {
            Database::fresh().await
        };
        prepare(&database).await;
        let scratch = Scratch::new("apid");
        let config = config(&database, &scratch, &plan.settings);
        let daemon = DaemonBuilder::new("orion-apid", config).start_ready().await;
        let clients = Client::new(daemon.address("clients").await);
        let agents = Client::new(daemon.address("agents").await);
        Self {
            daemon,
            database,
            clients,
            agents,
            scratch,
        }
    }

    /// A client with the token of a new user.
    pub(crate) async fn user(&self, name: &str) -> Client {
        let body = json!({"username": name, "password": PASSWORD});
        let answer = self.clients.post("/auth/signup", &body).await.is(201);
        assert_eq!(answer.json(), json!({"message": "Compte créé"}));
        self.login(name).await
    }

    /// A client with a new token.
    pub(crate) async fn login(&self, name: &str) -> Client {
        let body = json!({"username": name, "password": PASSWORD});
        let answer = self.clients.post("/auth/login", &body).await.is(200);
        self.clients
            .with_token(answer.json()["token"].as_str().expect("a token"))
    }

    /// A client with the token of a new administrator.
    pub(crate) async fn admin(&self, name: &str) -> Client {
        let client = self.user(name).await;
        self.database.sql(&format!(
            "UPDATE users SET role = 'admin' WHERE name = '{name}'"
        ));
        client
    }

    /// Registers `count` workers, inspected and ready.
    pub(crate) async fn ready_nodes(&self, count: u16) {
        for number in 1..=count {
            self.agents
                .post("/api/workers/register", &worker(number))
                .await
                .is(201);
        }
        self.all_nodes_ready();
    }

    pub(crate) fn all_nodes_ready(&self) {
        self.database
            .sql("UPDATE nodes SET status = 'alive', availability = 'ready'");
    }

    /// The store as schedd uses it.
    pub(crate) fn store(&self) -> Store {
        Store::open(&database_settings(&self.database), None).expect("a pool")
    }

    /// A schedd that does what `script` says.
    pub(crate) fn schedd(&self, script: Script) -> FakeSchedd {
        FakeSchedd::start(self.store(), script)
    }
}

/// What worker number `number` sends to register.
pub(crate) fn worker(number: u16) -> Value {
    json!({
        "hostname": format!("worker{number}"),
        "ip": "10.0.0.1",
        "ssh_port": 20_000 + number,
        "host_keys": [host_key(number)],
        "agent": "0.1.0",
        "boot_id": "b",
    })
}

/// A made-up ed25519 host key.
pub(crate) fn host_key(number: u16) -> String {
    let mut blob = b"\0\0\0\x0bssh-ed25519\0\0\0\x20".to_vec();
    blob.extend_from_slice(&[7; 30]);
    blob.extend_from_slice(&number.to_be_bytes());
    format!("ssh-ed25519 {}", STANDARD.encode(blob))
}

fn database_settings(database: &Database) -> DatabaseSettings {
    DatabaseSettings {
        socket: database.socket().to_owned(),
        name: database.name().to_owned(),
        ..DatabaseSettings::for_user(database.user())
    }
}

/// Schema and installation row, as `orion-apid init` makes them.
pub(crate) async fn prepare(database: &Database) {
    let admin = DatabaseSettings {
        user: Database::ADMIN.to_owned(),
        ..database_settings(database)
    };
    let store = Store::open(&admin, None).expect("a pool");
    store.apply_schema().await.expect("the schema");
    store.close().await.expect("closed");
    database.sql(
        "INSERT INTO installation (id, uid_base, created_at) VALUES (1, 1000000, UTC_TIMESTAMP(6))",
    );
}

/// A configuration with its two key files; `extra` may override what stands there as `table.key = value`.
pub(crate) fn config(database: &Database, scratch: &Scratch, extra: &str) -> String {
    let key = |byte: u8| format!("k1:{}\n", STANDARD.encode([byte; 32]));
    let jwt = scratch.write_secret("jwt.keys", key(1));
    let server = scratch.write_secret("server.keys", key(2));
    let signing = scratch.write_secret("signing.keys", key(3));
    let mut text = extra.to_owned();
    let mut set = |key: &str, value: String| {
        if !extra.contains(key) {
            writeln!(text, "{key} = {value}").expect("a string");
        }
    };
    let path = |path: &std::path::Path| format!("{:?}", path.display().to_string());
    set("listen.clients", "\"127.0.0.1:0\"".to_owned());
    set("listen.agents", "\"127.0.0.1:0\"".to_owned());
    set("ops.listen", "\"127.0.0.1:0\"".to_owned());
    set("log.format", "\"json\"".to_owned());
    set("database.socket", path(database.socket()));
    set("database.name", format!("{:?}", database.name()));
    set("database.user", format!("{:?}", database.user()));
    set("auth.jwt_keys_file", path(&jwt));
    set("rent.server_keys_file", path(&server));
    set("registration.mode", "\"open\"".to_owned());
    set("registration.signing_keys_file", path(&signing));
    set("schedd.socket", path(&scratch.join("notify.sock")));
    text
}

/// Checks an answer's status in passing.
pub(crate) trait Check {
    /// Itself, when it has this status.
    fn is(self, status: u16) -> Self;
}

impl Check for Answer {
    fn is(self, status: u16) -> Self {
        self.expect(status)
    }
}

/// The answer is a problem with this status and code, well-formed.
pub(crate) fn assert_problem(answer: &Answer, status: u16, code: &str) -> Value {
    assert_eq!(
        (answer.status.as_u16(), answer.code().as_str()),
        (status, code),
        "{answer}"
    );
    assert_eq!(answer.headers["content-type"], "application/problem+json");
    let problem = answer.json();
    assert_eq!(problem["status"], status);
    assert_eq!(problem["type"], format!("/problems/{code}"));
    let id = problem["request_id"].as_str().expect("a request id");
    assert!(
        id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()),
        "{id}"
    );
    assert_eq!(answer.headers["x-request-id"], id);
    assert!(
        problem["title"].is_string() && problem["detail"].is_string(),
        "{problem}"
    );
    let again = matches!(status, 429 | 503);
    assert_eq!(
        answer.headers.contains_key("retry-after"),
        again,
        "{answer}"
    );
    assert_eq!(
        answer.headers.contains_key("www-authenticate"),
        status == 401,
        "{answer}"
    );
    problem
}

/// The fields that a problem names.
pub(crate) fn fields_of(problem: &Value) -> Vec<&str> {
    let errors = problem["errors"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    errors
        .iter()
        .filter_map(|error| error["field"].as_str())
        .collect()
}
