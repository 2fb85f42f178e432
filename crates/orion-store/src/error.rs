//! What can go wrong between Orion and its database.

use mysql_async::Error as DriverError;

/// A failure of the database or of what it holds. Decisions (no free node, not found) are values, not errors.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No connection, or it broke. The outcome of a COMMIT under way is unknown.
    #[error("the database does not answer")]
    Unavailable(#[source] DriverError),
    /// The whole unit of work took too long and was dropped; the outcome of a COMMIT under way is unknown.
    #[error("the database took longer than {} s", crate::tx::UNIT_TIMEOUT.as_secs())]
    TimedOut,
    /// The server refused a statement.
    #[error("the database refused a statement")]
    Query(#[source] DriverError),
    /// A row holds what this version doesn't know.
    #[error("the database holds an unusable value in `{column}`: {reason}")]
    Corrupt {
        /// The column as the statement names it.
        column: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// Other transactions kept winning.
    #[error("gave up after {0} attempts against concurrent transactions")]
    Contention(u32),
    /// The work is the leader's, and another instance leads by now.
    #[error("another instance leads the jobs")]
    NotLeading,
    /// A setting can't be used.
    #[error("{0}")]
    Settings(String),
}

impl StoreError {
    /// Whether the database is away, rather than wrong: worth another try later, the same for every caller.
    pub fn is_unavailable(&self) -> bool {
        match self {
            Self::Unavailable(_) | Self::TimedOut | Self::Contention(_) => true,
            Self::Query(_) | Self::Corrupt { .. } | Self::NotLeading | Self::Settings(_) => false,
        }
    }

    /// Whether the whole transaction may simply be tried again: deadlock (1213), lock wait (1205), changed under the
    /// snapshot (1020), Galera not ready (1047).
    pub(crate) fn is_conflict(&self) -> bool {
        matches!(self, Self::Query(DriverError::Server(error)) if matches!(error.code, 1213 | 1205 | 1020 | 1047))
    }

    /// Whether the UNIQUE key `key` refused the row. Its name ends the message; a client's value stands before it.
    pub(crate) fn is_duplicate(&self, key: &str) -> bool {
        matches!(self, Self::Query(DriverError::Server(error)) if error.code == 1062 && error.message.ends_with(&format!("for key '{key}'")))
    }
}

impl From<DriverError> for StoreError {
    fn from(error: DriverError) -> Self {
        // 1040, 1203: too many connections; 1053: shutdown; 1927: connection killed; 1290, 1836: read-only; 1969: slower
        // than max_statement_time; 1044, 1045, 1049, 1698: not set up yet.
        const AWAY: [u16; 11] = [
            1040, 1203, 1053, 1927, 1290, 1836, 1969, 1044, 1045, 1049, 1698,
        ];
        match &error {
            DriverError::Server(server) if !AWAY.contains(&server.code) => Self::Query(error),
            DriverError::Server(_) | DriverError::Io(_) | DriverError::Driver(_) => {
                Self::Unavailable(error)
            }
            DriverError::Url(_) | DriverError::Other(_) => Self::Query(error),
        }
    }
}
