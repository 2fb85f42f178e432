//! Applies `migrations/` step by step. MariaDB commits around DDL, so each step is one statement that may run twice.

use crate::tx::bounded;
use crate::{Store, StoreError};
use mysql_async::prelude::Queryable;

/// One file of `migrations/`.
struct Step {
    version: u32,
    name: &'static str,
    sql: &'static str,
    /// The oldest schema a daemon may have been built for to run with this step applied.
    min_reader: u32,
}

macro_rules! step {
    ($version:literal, $name:literal, $min_reader:literal) => {
        Step {
            version: $version,
            name: $name,
            sql: include_str!(concat!("../../../migrations/", $name, ".sql")),
            min_reader: $min_reader,
        }
    };
}

/// In order. Released steps are never edited.
const STEPS: &[Step] = &[
    step!(1, "0001_installation", 1),
    step!(2, "0002_users", 1),
    step!(3, "0003_nodes", 1),
    step!(4, "0004_host_keys", 1),
    step!(5, "0005_beats", 1),
    step!(6, "0006_requests", 1),
    step!(7, "0007_rentals", 1),
    step!(8, "0008_accounts", 1),
    step!(9, "0009_runs", 1),
    step!(10, "0010_events", 1),
    step!(11, "0011_leader", 1),
    step!(12, "0012_nodes_agent_key", 1),
    step!(13, "0013_beats_counter", 1),
    step!(14, "0014_join_tokens", 1),
    step!(15, "0015_pool_keys", 1),
    step!(16, "0016_nodes_deaths", 1),
    step!(17, "0017_rentals_degraded", 1),
    step!(18, "0018_migration", 1),
    step!(19, "0019_clock", 1),
    step!(20, "0020_accounts_keep_home", 1),
    step!(21, "0021_rentals_lost_since", 1),
    step!(22, "0022_nodes_drain_move", 1),
    step!(23, "0023_nodes_seen", 1),
    step!(24, "0024_beats_interval", 1),
    step!(25, "0025_installation_next_rental", 1),
    step!(26, "0026_nodes_health", 1),
];

const VERSION_TABLE: &str = "CREATE TABLE IF NOT EXISTS schema_version (
    version INT UNSIGNED NOT NULL PRIMARY KEY,
    min_reader INT UNSIGNED NOT NULL,
    name VARCHAR(64) CHARACTER SET ascii NOT NULL,
    applied_at DATETIME(6) NOT NULL
) ENGINE = InnoDB";

/// What `apply_schema` did.
#[derive(Debug, PartialEq, Eq)]
pub struct AppliedSchema {
    /// The version now.
    pub version: u32,
    /// How many steps it took to get there; 0 when nothing was to do.
    pub steps: usize,
}

/// Whether this daemon can work with the schema it finds.
#[derive(Debug, PartialEq, Eq)]
pub enum SchemaFit {
    /// It can.
    Fits,
    /// `orion-apid schema apply` never ran.
    Absent,
    /// `orion-apid schema apply` must run.
    TooOld {
        /// The database's version.
        found: u32,
        /// The version this daemon needs.
        needed: u32,
    },
    /// The daemon must be upgraded.
    TooNew {
        /// The database's version.
        found: u32,
        /// The newest version this daemon knows.
        known: u32,
    },
}

fn newest() -> u32 {
    STEPS.last().map_or(0, |step| step.version)
}

impl Store {
    /// Applies what is missing. Safe to repeat, and from two hosts at once: a step does nothing the second time.
    /// The connection's user needs the right to create tables.
    ///
    /// # Errors
    /// The first step that fails; the ones before stay applied.
    pub async fn apply_schema(&self) -> Result<AppliedSchema, StoreError> {
        let mut conn = self.conn().await?;
        // A step may have to copy a large table.
        conn.query_drop("SET SESSION max_statement_time = 0")
            .await?;
        conn.query_drop(VERSION_TABLE).await?;
        let found: u32 = conn
            .query_first("SELECT MAX(version) FROM schema_version")
            .await?
            .flatten()
            .unwrap_or(0);
        let mut steps = 0;
        for step in STEPS.iter().filter(|step| step.version > found) {
            conn.query_drop(step.sql).await?;
            conn.exec_drop(
                "INSERT IGNORE INTO schema_version (version, min_reader, name, applied_at) \
                 VALUES (?, ?, ?, UTC_TIMESTAMP(6))",
                (step.version, step.min_reader, step.name),
            )
            .await?;
            steps += 1;
        }
        // Not back into the pool, with that setting.
        conn.disconnect().await?;
        Ok(AppliedSchema {
            version: found.max(newest()),
            steps,
        })
    }

    /// Whether the schema lies within the range this daemon knows.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn schema_fits(&self) -> Result<SchemaFit, StoreError> {
        bounded(async {
            let mut conn = self.conn().await?;
            let table: Option<u8> = conn
                .query_first(
                    "SELECT 1 FROM information_schema.tables \
                     WHERE table_schema = DATABASE() AND table_name = 'schema_version'",
                )
                .await?;
            if table.is_none() {
                return Ok(SchemaFit::Absent);
            }
            let (found, min_reader): (Option<u32>, Option<u32>) = conn
                .query_first("SELECT MAX(version), MAX(min_reader) FROM schema_version")
                .await?
                .unwrap_or((None, None));
            Ok(match (found, min_reader) {
                (None, _) | (_, None) => SchemaFit::Absent,
                (Some(found), _) if found < newest() => SchemaFit::TooOld {
                    found,
                    needed: newest(),
                },
                (Some(found), Some(min_reader)) if min_reader > newest() => SchemaFit::TooNew {
                    found,
                    known: newest(),
                },
                (Some(_), Some(_)) => SchemaFit::Fits,
            })
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_numbered_without_a_gap_and_named_like_their_files() {
        for (index, step) in STEPS.iter().enumerate() {
            assert_eq!(step.version as usize, index + 1);
            assert!(
                step.name.starts_with(&format!("{:04}_", step.version)),
                "{}",
                step.name
            );
        }
    }
}
