//! Agents that are silent on machines that let the control plane in: an alarm, and nothing moves.

use crate::row::column;
use crate::tx::{Finish, Tx, bounded, unit};
use crate::{Store, StoreError};
use mysql_async::Row;
use mysql_async::prelude::Queryable;
use orion_core::NodeId;
use orion_core::beats::SILENT_INTERVALS;
use std::time::Duration;

/// Rows looked at in one go; the next call does the rest.
const BATCH: u32 = 200;

/// What became of agents since the last call.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AgentsJudged {
    /// The host names of nodes whose agent is down since now.
    pub down: Vec<String>,
    /// Of those whose agent is back.
    pub back: Vec<String>,
    /// How many are down altogether, on machines that are alive.
    pub all_down: u64,
}

/// A node with an agent that fell silent, or spoke again.
struct Judged {
    node: NodeId,
    hostname: String,
}

impl Store {
    /// How long ago any agent beat; `None` where none ever did.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn newest_beat_age(&self) -> Result<Option<Duration>, StoreError> {
        let now = self.now().await?.0;
        bounded(async {
            let sql = "SELECT TIMESTAMPDIFF(MICROSECOND, MAX(beat_at), ?) FROM beats";
            let age: Option<Option<i64>> = self.conn().await?.exec_first(sql, (now,)).await?;
            let age = age.flatten();
            Ok(age.map(|us| Duration::from_micros(u64::try_from(us).unwrap_or(0))))
        })
        .await
    }

    /// Notes whose agent is silent, for four intervals and for `least`, while its machine is alive, and whose is back.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn judge_agents(&self, least: Duration) -> Result<AgentsJudged, StoreError> {
        let mut judged = AgentsJudged::default();
        let silent = format!(
            "n.status = 'alive' AND n.agent_down_since IS NULL \
             AND b.beat_at < ? - INTERVAL GREATEST({SILENT_INTERVALS} * b.interval_s, {}) SECOND",
            least.as_secs()
        );
        for Judged { node, hostname } in self.agents_that(&silent).await? {
            let noted = unit!(self, |tx| { Finish::Commit(tx.agent_down(node).await?) })?;
            judged.down.extend(noted.then_some(hostname));
        }
        let speaking = format!(
            "n.agent_down_since IS NOT NULL AND b.beat_at >= ? - INTERVAL {SILENT_INTERVALS} * b.interval_s SECOND"
        );
        for Judged { node, hostname } in self.agents_that(&speaking).await? {
            let noted = unit!(self, |tx| { Finish::Commit(tx.agent_back(node).await?) })?;
            judged.back.extend(noted.then_some(hostname));
        }
        let down = "SELECT COUNT(*) FROM nodes WHERE agent_down_since IS NOT NULL AND status = 'alive' \
                    AND forgotten_at IS NULL";
        judged.all_down =
            bounded(async { Ok(self.conn().await?.query_first(down).await?.unwrap_or(0)) }).await?;
        Ok(judged)
    }

    async fn agents_that(&self, condition: &str) -> Result<Vec<Judged>, StoreError> {
        let now = self.now().await?.0;
        let sql = format!(
            "SELECT n.id, n.hostname FROM nodes n JOIN beats b ON b.node_id = n.id \
             WHERE n.forgotten_at IS NULL AND {condition} ORDER BY n.id LIMIT {BATCH}"
        );
        let rows: Vec<Row> =
            bounded(async { Ok(self.conn().await?.exec(sql, (now,)).await?) }).await?;
        rows.into_iter()
            .map(|mut row| {
                Ok(Judged {
                    node: NodeId(column(&mut row, "id")?),
                    hostname: column(&mut row, "hostname")?,
                })
            })
            .collect()
    }
}

impl Tx {
    /// Whether it was news.
    async fn agent_down(&mut self, node: NodeId) -> Result<bool, StoreError> {
        let now = self.now;
        let sql = "UPDATE nodes SET agent_down_since = ? WHERE id = ? AND agent_down_since IS NULL";
        let changed = self.change(sql, (now, node.0)).await?;
        if changed == 1 {
            let detail = "it is silent, and SSH works";
            self.event("agent_down", node.into(), Some(detail)).await?;
        }
        Ok(changed == 1)
    }

    /// Whether it was news.
    async fn agent_back(&mut self, node: NodeId) -> Result<bool, StoreError> {
        let sql = "UPDATE nodes SET agent_down_since = NULL WHERE id = ? AND agent_down_since IS NOT NULL";
        let changed = self.change(sql, (node.0,)).await?;
        if changed == 1 {
            self.event("agent_back", node.into(), None).await?;
        }
        Ok(changed == 1)
    }
}
