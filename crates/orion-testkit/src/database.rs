//! A database for one test.

use crate::fake_clock::FakeClock;
use crate::mariadb::{Durability, OwnServer, shared_socket};
use crate::scratch::random_hex;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// An empty database of its own on a private MariaDB server; the code under test applies the schema. Dropped with this
/// value.
#[derive(Debug)]
pub struct Database {
    name: String,
    socket: PathBuf,
    own: Option<OwnServer>,
}

impl Database {
    /// The administrator of every server here: all rights, no password, over the socket.
    pub const ADMIN: &'static str = "root";

    /// A fresh database on the server that all tests share: a few milliseconds.
    pub async fn fresh() -> Self {
        Self::on(shared_socket(), None)
    }

    /// A fresh database on a server of its own, which the test may stop and start: half a second.
    pub async fn own_server(durability: Durability) -> Self {
        let server = OwnServer::start(durability, None);
        Self::on(server.socket(), Some(server))
    }

    /// A fresh database on a server of its own that tells the time by `clock`.
    pub async fn with_clock(clock: FakeClock) -> Self {
        let server = OwnServer::start(Durability::Durable, Some(clock));
        Self::on(server.socket(), Some(server))
    }

    fn on(socket: PathBuf, own: Option<OwnServer>) -> Self {
        let name = format!("orion_{}", random_hex(8));
        let database = Self { name, socket, own };
        let name = &database.name;
        database.admin_sql(
            "",
            &format!(
                "CREATE DATABASE {name}; CREATE USER {name}@localhost;
                 GRANT SELECT, INSERT, UPDATE, DELETE ON {name}.* TO {name}@localhost"
            ),
        );
        database
    }

    /// The server's Unix socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The database's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A database user with the rights a daemon has (rows of this database, no schema changes) and no password.
    pub fn user(&self) -> &str {
        &self.name
    }

    /// Runs statements as the administrator and returns the rows as text, NULL as `NULL`.
    ///
    /// # Panics
    /// When a statement fails.
    pub fn sql(&self, statements: &str) -> Vec<Vec<String>> {
        self.admin_sql(&self.name, statements)
    }

    /// The only value of the only row.
    pub fn sql_one(&self, statement: &str) -> String {
        let rows = self.sql(statement);
        match rows.as_slice() {
            [row] if row.len() == 1 => row[0].clone(),
            _ => panic!("not one value: {rows:?}\nof: {statement}"),
        }
    }

    /// Runs statements as the administrator; the server's words when one fails.
    pub fn try_sql(&self, statements: &str) -> Result<Vec<Vec<String>>, String> {
        self.client(&self.name, statements)
    }

    /// Ends the server, orderly.
    ///
    /// # Panics
    /// When the server is shared.
    pub fn stop_server(&self) {
        self.own().down(true);
    }

    /// Ends the server with `kill -9`.
    ///
    /// # Panics
    /// When the server is shared.
    pub fn kill_server(&self) {
        self.own().down(false);
    }

    /// Starts the server again and waits until it accepts connections.
    ///
    /// # Panics
    /// When the server is shared.
    pub fn start_server(&self) {
        self.own().up();
    }

    fn own(&self) -> &OwnServer {
        self.own
            .as_ref()
            .expect("only a Database::own_server may be stopped")
    }

    fn admin_sql(&self, database: &str, statements: &str) -> Vec<Vec<String>> {
        let rows = self.client(database, statements);
        rows.unwrap_or_else(|error| panic!("{error}\nin: {statements}"))
    }

    fn client(&self, database: &str, statements: &str) -> Result<Vec<Vec<String>>, String> {
        let mut client = Command::new("mariadb")
            .args(["--no-defaults", "--batch", "--raw", "--skip-column-names"])
            .args(["--default-character-set=utf8mb4", "--user", Self::ADMIN])
            .arg("--socket")
            .arg(&self.socket)
            .arg(database)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("mariadb (package mariadb-client-core) starts");
        let mut input = client.stdin.take().expect("a pipe");
        input
            .write_all(statements.as_bytes())
            .expect("mariadb reads");
        drop(input);
        let output = client.wait_with_output().expect("mariadb's output");
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        let text = String::from_utf8_lossy(&output.stdout);
        Ok(text
            .lines()
            .map(|line| line.split('\t').map(str::to_owned).collect())
            .collect())
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        if self.own.is_none() {
            let name = &self.name;
            let drop = format!(
                "KILL USER {name}@localhost; SET lock_wait_timeout = 5; DROP DATABASE {name}; DROP USER {name}@localhost"
            );
            if let Err(error) = self.client("", &drop) {
                eprintln!("{name} is left behind: {error}");
            }
        }
    }
}
