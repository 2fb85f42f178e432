//! The connection pool.

use crate::StoreError;
use crate::clock::watch::ClockWatch;
use crate::leader::Lead;
use mysql_async::prelude::Queryable;
use mysql_async::{Conn, OptsBuilder, Pool, PoolConstraints, PoolOpts};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// `[database]` of a daemon's configuration.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatabaseSettings {
    /// The server's Unix socket; an empty path means TCP to `host`.
    pub socket: PathBuf,
    /// The server's host, where there is no socket.
    pub host: String,
    /// The server's TCP port.
    pub port: u16,
    /// The database user; over the socket it is the system user that proves it.
    pub user: String,
    /// A file with the password; empty means none is needed.
    pub password_file: PathBuf,
    /// The database.
    pub name: String,
    /// The most connections of one daemon. All daemons together must stay below the server's `max_connections`.
    pub pool_max: u32,
}

impl DatabaseSettings {
    /// The defaults of a daemon that connects as `user`.
    pub fn for_user(user: &str) -> Self {
        Self {
            socket: PathBuf::from("/run/mysqld/mysqld.sock"),
            host: "127.0.0.1".to_owned(),
            port: 3306,
            user: user.to_owned(),
            password_file: PathBuf::new(),
            name: "orion".to_owned(),
            pool_max: 32,
        }
    }

    /// The server's addresses where it is reached over TCP; none where its name leads nowhere now.
    pub fn tcp_addresses(&self) -> Vec<IpAddr> {
        if !self.socket.as_os_str().is_empty() {
            return Vec::new();
        }
        match (self.host.as_str(), self.port).to_socket_addrs() {
            Ok(addresses) => addresses.map(|address| address.ip()).collect(),
            Err(error) => {
                tracing::warn!(host = ?self.host, %error, "the database's name leads nowhere");
                Vec::new()
            }
        }
    }
}

/// Orion's database. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    pub(crate) pool: Pool,
    /// Clones share what they know of the database's clock.
    pub(crate) clock: Arc<ClockWatch>,
    /// Added to the database's clock in every decision; zero but in tests.
    pub(crate) clock_offset_us: i64,
    /// Added to the time since this machine's boot; zero but in tests.
    pub(crate) elapsed_offset_us: i64,
    /// Whether a rental gets back the time in which its node was dead.
    pub(crate) compensates: bool,
    /// Without which nothing is done, where the work is the leader's.
    pub(crate) lead: Option<Lead>,
}

/// Run at each new connection. The server's own limits end a statement that hangs; 3 s of lock wait and 8 s of statement
/// stay below the unit's time-out, so that the server gives up before we do. A daemon that is stopped, or cut off, in the middle
/// of a transaction keeps its locks for 5 s: the leader's row among them, for which the next leader waits.
const SESSION: &str = "SET SESSION time_zone = '+00:00', \
     sql_mode = 'STRICT_ALL_TABLES,ERROR_FOR_DIVISION_BY_ZERO,NO_ENGINE_SUBSTITUTION', \
     tx_isolation = 'READ-COMMITTED', innodb_lock_wait_timeout = 3, max_statement_time = 8, \
     idle_transaction_timeout = 5";

impl Store {
    /// Makes the pool; connects lazily. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// `Settings` where `pool_max` is zero.
    pub fn open(
        settings: &DatabaseSettings,
        password: Option<SecretString>,
    ) -> Result<Self, StoreError> {
        let max = usize::try_from(settings.pool_max).unwrap_or(usize::MAX);
        let constraints = PoolConstraints::new(max.min(2), max)
            .filter(|_| max > 0)
            .ok_or_else(|| {
                StoreError::Settings("database.pool_max must be at least 1".to_owned())
            })?;
        let pool_opts = PoolOpts::default()
            .with_constraints(constraints)
            .with_inactive_connection_ttl(Duration::from_secs(60))
            .with_reset_connection(false);
        let socket = settings
            .socket
            .to_str()
            .filter(|path| !path.is_empty())
            .map(str::to_owned);
        let opts = OptsBuilder::default()
            .ip_or_hostname(settings.host.clone())
            .tcp_port(settings.port)
            .socket(socket)
            .prefer_socket(false)
            .user(Some(settings.user.clone()))
            .pass(password.map(|secret| secret.expose_secret().to_owned()))
            .db_name(Some(settings.name.clone()).filter(|name| !name.is_empty()))
            .setup(vec![SESSION])
            .pool_opts(pool_opts);
        Ok(Self {
            pool: Pool::new(opts),
            clock: Arc::new(ClockWatch::of_this_boot()),
            clock_offset_us: 0,
            elapsed_offset_us: 0,
            compensates: false,
            lead: None,
        })
    }

    /// The same database `microseconds` later. For tests.
    #[must_use]
    pub fn with_clock_offset(self, microseconds: i64) -> Self {
        Self {
            clock_offset_us: microseconds,
            elapsed_offset_us: microseconds,
            ..self
        }
    }

    /// The same database whose clock stepped by `microseconds`. For tests.
    #[must_use]
    pub fn with_clock_step(self, microseconds: i64) -> Self {
        Self {
            clock_offset_us: self.clock_offset_us + microseconds,
            ..self
        }
    }

    /// The same database, seen by a process that has just started on the machine with this boot id. For tests.
    #[must_use]
    pub fn on_machine(self, boot_id: &str) -> Self {
        Self {
            clock: Arc::new(ClockWatch::of_boot(boot_id)),
            ..self
        }
    }

    /// The same database, where a degraded rental that becomes active again gets lost time back, or does not.
    #[must_use]
    pub fn with_compensation(self, compensates: bool) -> Self {
        Self {
            compensates,
            ..self
        }
    }

    /// Whether the database answers, within 2 s.
    ///
    /// # Errors
    /// `Unavailable` or `TimedOut`.
    pub async fn ping(&self) -> Result<(), StoreError> {
        let ping = async {
            let mut conn = self.pool.get_conn().await?;
            conn.query_drop("SELECT 1").await?;
            Ok(())
        };
        tokio::time::timeout(Duration::from_secs(2), ping)
            .await
            .unwrap_or(Err(StoreError::TimedOut))
    }

    /// Closes every connection after the work under way.
    ///
    /// # Errors
    /// When a connection could not say goodbye; it is closed all the same.
    pub async fn close(self) -> Result<(), StoreError> {
        Ok(self.pool.disconnect().await?)
    }

    /// A connection for reads that need no transaction. Callers put `bounded` around all they do with it.
    pub(crate) async fn conn(&self) -> Result<Conn, StoreError> {
        Ok(self.pool.get_conn().await?)
    }
}
