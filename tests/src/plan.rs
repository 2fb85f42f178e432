//! What a test wants its cluster to be like.

use orion_testkit::{Daemon, DaemonBuilder, Database, Durability, FakeClock, Scratch, Workers};
use std::path::Path;

/// A cluster to be started; the defaults suit most tests.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Simulated workers, registered and ready.
    pub workers: usize,
    /// Processes of orion-apid.
    pub apids: usize,
    /// `rent.deadline_s`
    pub deadline_s: u32,
    /// `executor.host_timeout_s`
    pub host_timeout_s: u32,
    /// A MariaDB server of its own, which may be stopped.
    pub own_database: bool,
    /// What a MariaDB server of its own tells the time by.
    pub clock: Option<FakeClock>,
    /// The daemons tell the time by it, too, as on one machine.
    pub one_machine: bool,
    /// `registration.mode`; in any other than `open` the workers are left to their agents.
    pub mode: &'static str,
    /// `addresses.networks`
    pub networks: &'static str,
    /// `migration.compensate`
    pub compensate: bool,
    /// `cron.expire`
    pub expire: &'static str,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            workers: 3,
            apids: 1,
            deadline_s: 30,
            host_timeout_s: 5,
            own_database: false,
            clock: None,
            one_machine: false,
            mode: "open",
            networks: "[]",
            compensate: false,
            expire: "* * * * * *",
        }
    }
}

impl Plan {
    /// That many workers, and else the defaults.
    pub fn workers(workers: usize) -> Self {
        Self {
            workers,
            ..Self::default()
        }
    }

    pub(crate) async fn database(&self) -> Database {
        if let Some(clock) = &self.clock {
            Database::with_clock(clock.clone()).await
        } else if self.own_database {
            Database::own_server(Durability::Durable).await
        } else {
            Database::fresh().await
        }
    }

    pub(crate) fn apid(&self, db: &Database, files: &Scratch) -> DaemonBuilder {
        let config = format!(
            r#"
            [listen]
            clients = "127.0.0.1:0"
            agents = "127.0.0.1:0"
            [ops]
            listen = "127.0.0.1:0"
            [log]
            format = "json"
            [auth]
            jwt_keys_file = "{jwt}"
            [rent]
            server_keys_file = "{server}"
            deadline_s = {deadline_s}
            max_active_per_user = 1000
            [registration]
            mode = "{mode}"
            signing_keys_file = "{signing}"
            [addresses]
            networks = {networks}
            names = ["localhost"]
            [schedd]
            socket = "{notify}"
            [dev]
            allow_reset = true
            {database}
            "#,
            jwt = files.join("jwt.keys").display(),
            server = files.join("server.keys").display(),
            signing = files.join("signing.keys").display(),
            mode = self.mode,
            networks = self.networks,
            deadline_s = self.deadline_s,
            notify = files.join("run/notify.sock").display(),
            database = database(db),
        );
        self.daemon("orion-apid", config)
    }

    fn daemon(&self, name: &str, config: String) -> DaemonBuilder {
        let clock = self.clock.iter().filter(|_| self.one_machine);
        let environment = clock.flat_map(FakeClock::environment);
        environment.fold(
            DaemonBuilder::new(name, config),
            |builder, (name, value)| builder.env(&name, value),
        )
    }

    pub(crate) fn schedd(
        &self,
        db: &Database,
        files: &Scratch,
        workers: &Workers,
    ) -> DaemonBuilder {
        let playbooks = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("playbooks");
        let config = format!(
            r#"
            [ops]
            listen = "127.0.0.1:0"
            [log]
            format = "json"
            [executor]
            runtime_dir = "{run}"
            state_dir = "{state}"
            host_timeout_s = {host_timeout_s}
            drain_s = 10
            [ansible]
            playbook_command = "{playbook}"
            playbooks_dir = "{playbooks}"
            [ssh]
            pool_key_file = "{pool_key}"
            connect_timeout_s = 2
            [addresses]
            networks = {networks}
            names = ["localhost"]
            [probe]
            timeout_s = 3
            [notify]
            socket = "{notify}"
            [cron]
            expire = "{expire}"
            reconcile = "* * * * * *"
            cleanup = "* * * * * *"
            health_check = "* * * * * *"
            [migration]
            grace_s = 0
            compensate = {compensate}
            {database}
            "#,
            run = files.join("run").display(),
            state = files.join("state").display(),
            host_timeout_s = self.host_timeout_s,
            networks = self.networks,
            compensate = self.compensate,
            expire = self.expire,
            playbook = workers.playbook().display(),
            playbooks = playbooks.display(),
            pool_key = workers.pool_key().display(),
            notify = files.join("run/notify.sock").display(),
            database = database(db),
        );
        self.daemon("orion-schedd", config)
    }
}

fn database(db: &Database) -> String {
    format!(
        "[database]\nsocket = \"{}\"\nuser = \"{}\"\nname = \"{}\"\n",
        db.socket().display(),
        db.user(),
        db.name()
    )
}

/// Starts what a builder describes, with the rights of the database's administrator.
pub(crate) async fn schema_apply(builder: DaemonBuilder) {
    let mut apply: Daemon = builder
        .arg("schema")
        .arg("apply")
        .arg("--database-user")
        .arg(Database::ADMIN)
        .start();
    let status = apply.ended(orion_testkit::PATIENCE).await;
    assert!(
        status.success(),
        "schema apply: {status}\n{:#?}",
        apply.log_lines()
    );
}
