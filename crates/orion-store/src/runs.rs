//! Runs: claiming them, keeping the claim, looking at them.

use crate::row::{Address, address, column, instant, instant_or_null, word, word_or_null};
use crate::tx::{Finish, bounded, unit};
use crate::{InstanceId, Store, StoreError};
use mysql_async::prelude::Queryable;
use mysql_async::{Row, Value};
use orion_core::api::RunView;
use orion_core::{NodeId, RentalId, RunId, RunKind, Uid, UserName};
use std::fmt;
use std::time::Duration;

/// A run that is this instance's until the claim expires.
#[derive(Debug, Clone)]
pub struct ClaimedRun {
    /// The run.
    pub id: RunId,
    /// What it does.
    pub kind: RunKind,
    /// Where.
    pub node: NodeId,
    /// Where to dial.
    pub contact: Address,
    /// The pinned SSH host keys, `type base64`.
    pub host_keys: Vec<String>,
    /// The account's epoch; 0 for an inspection.
    pub epoch: u64,
    /// Counts from 1.
    pub attempt: u32,
    /// What UIDs are Orion's from here on.
    pub uid_base: u32,
    /// The account, for provision and clean.
    pub account: Option<ClaimedAccount>,
}

/// The account a run is about.
#[derive(Clone)]
pub struct ClaimedAccount {
    /// Its UID and GID.
    pub uid: Uid,
    /// Its name.
    pub name: UserName,
    /// The sha512crypt hash; provision only.
    pub password_hash: Option<String>,
    /// From now to the latest end that is possible as things stand; provision only.
    pub ends_in: Option<Duration>,
    /// Its rental was somewhere else before; provision only.
    pub is_moved: bool,
    /// Its rental was moved off, and its client's files are kept for a while; clean only.
    pub keep_home: bool,
}

impl fmt::Debug for ClaimedAccount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClaimedAccount")
            .field("uid", &self.uid)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Store {
    /// Claims up to `limit` queued runs of a kind, oldest first, for `hold`. Runs whose node has no known address or no
    /// pinned key wait; so does provisioning while the database is an old one.
    ///
    /// # Errors
    /// When the database is away; what was claimed then comes back when the claim expires.
    pub async fn claim_runs(
        &self,
        instance: &InstanceId,
        kind: RunKind,
        limit: u32,
        hold: Duration,
    ) -> Result<Vec<ClaimedRun>, StoreError> {
        unit!(self, |tx| {
            if kind == RunKind::Provision && tx.is_outdated().await? {
                return Ok(Vec::new());
            }
            let now = tx.now;
            let queued = tx
                .rows(
                    "SELECT u.id FROM runs u JOIN nodes n ON n.id = u.node_id \
                     WHERE u.state = 'queued' AND u.kind = ? AND n.contact_host IS NOT NULL AND n.forgotten_at IS NULL \
                     AND EXISTS (SELECT 1 FROM host_keys k WHERE k.node_id = n.id) ORDER BY u.id LIMIT ?",
                    (kind.as_str(), limit),
                )
                .await?;
            let mut claimed: Vec<Value> = Vec::with_capacity(queued.len());
            for mut row in queued {
                let id: u64 = column(&mut row, "id")?;
                let changed = tx
                    .change(
                        "UPDATE runs SET state = 'claimed', claimed_by = ?, claim_expires_at = ?, attempt = attempt + 1 \
                         WHERE id = ? AND state = 'queued'",
                        (instance.as_str(), now + hold, id),
                    )
                    .await?;
                if changed == 1 {
                    claimed.push(id.into());
                }
            }
            if claimed.is_empty() {
                return Ok(Vec::new());
            }
            let places = vec!["?"; claimed.len()].join(", ");
            let mut params = vec![Value::from(now)];
            params.append(&mut claimed);
            let rows = tx
                .rows(
                    &format!("{CLAIMED} WHERE u.id IN ({places}) ORDER BY u.id"),
                    params,
                )
                .await?;
            Finish::Commit(rows.into_iter().filter_map(usable).collect::<Vec<_>>())
        })
    }

    /// Keeps claims for another `hold` and tells which are still this instance's.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn renew_claims(
        &self,
        instance: &InstanceId,
        runs: &[RunId],
        hold: Duration,
    ) -> Result<Vec<RunId>, StoreError> {
        if runs.is_empty() {
            return Ok(Vec::new());
        }
        unit!(self, |tx| {
            let places = vec!["?"; runs.len()].join(", ");
            let mine = format!("state = 'claimed' AND claimed_by = ? AND id IN ({places})");
            let mut params = vec![Value::from(tx.now + hold), Value::from(instance.as_str())];
            params.extend(runs.iter().map(|id| Value::from(id.0)));
            tx.change(
                &format!("UPDATE runs SET claim_expires_at = ? WHERE {mine}"),
                params.clone(),
            )
            .await?;
            let rows = tx
                .rows(
                    &format!("SELECT id FROM runs WHERE {mine}"),
                    params.split_off(1),
                )
                .await?;
            Finish::Commit(
                rows.into_iter()
                    .map(|mut row| Ok(RunId(column(&mut row, "id")?)))
                    .collect::<Result<Vec<_>, StoreError>>()?,
            )
        })
    }

    /// The newest runs, without their output. For administrators.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn runs(&self, limit: u32) -> Result<Vec<RunView>, StoreError> {
        bounded(async {
            let rows: Vec<Row> = self
                .conn()
                .await?
                .exec(
                    format!("{VIEW} ORDER BY u.created_at DESC, u.id DESC LIMIT ?"),
                    (limit,),
                )
                .await?;
            rows.into_iter()
                .map(|row| {
                    run_view(row).map(|view| RunView {
                        output: None,
                        ..view
                    })
                })
                .collect()
        })
        .await
    }

    /// One run with its output. For administrators.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn run(&self, id: RunId) -> Result<Option<RunView>, StoreError> {
        bounded(async {
            let row = self
                .conn()
                .await?
                .exec_first(format!("{VIEW} WHERE u.id = ?"), (id.0,))
                .await?;
            row.map(run_view).transpose()
        })
        .await
    }
}

/// An end in the future: of an active rental its end, of one being made its whole duration after the deadline. What is
/// provisioned for an active request was somewhere else before, unless it is made again where it is.
const CLAIMED: &str = "SELECT u.id, u.kind, u.node_id, u.epoch, u.attempt, i.uid_base, a.uid, a.keep_home, \
     s.name, r.password_hash, q.state = 'active' AND EXISTS (SELECT 1 FROM accounts o WHERE o.rental_id = r.id AND o.id <> a.id \
      AND (o.keep_home OR o.state = 'present')) AS is_moved, n.contact_host, n.contact_port, \
     TIMESTAMPDIFF(MICROSECOND, ?, IFNULL(r.leased_until, q.deadline_at + INTERVAL q.duration_us MICROSECOND)) AS ends_in_us, \
     (SELECT GROUP_CONCAT(k.host_key SEPARATOR '\n') FROM host_keys k WHERE k.node_id = n.id) AS host_keys \
     FROM runs u JOIN installation i JOIN nodes n ON n.id = u.node_id LEFT JOIN accounts a ON a.id = u.account_id \
     LEFT JOIN rentals r ON r.id = a.rental_id LEFT JOIN requests q ON q.id = r.request_id \
     LEFT JOIN users s ON s.id = r.user_id";

/// One row that can't be used must not hold up the others; its claim expires and somebody reads the log.
fn usable(row: Row) -> Option<ClaimedRun> {
    claimed_run(row)
        .inspect_err(|error| tracing::error!(%error, "a run can't be used"))
        .ok()
}

fn claimed_run(mut row: Row) -> Result<ClaimedRun, StoreError> {
    let kind: RunKind = word(&mut row, "kind")?;
    let keys: Option<String> = column(&mut row, "host_keys")?;
    let contact =
        address(&mut row, "contact_host", "contact_port")?.ok_or(StoreError::Corrupt {
            column: "contact_host",
            reason: "NULL".to_owned(),
        })?;
    let account = match column::<Option<u32>>(&mut row, "uid")? {
        None => None,
        Some(uid) => {
            let name: String = column(&mut row, "name")?;
            let ends_in_us: Option<i64> = column(&mut row, "ends_in_us")?;
            let provision = kind == RunKind::Provision;
            Some(ClaimedAccount {
                uid: Uid(uid),
                name: UserName::stored(&name).map_err(|reason| StoreError::Corrupt {
                    column: "name",
                    reason: reason.to_owned(),
                })?,
                password_hash: column::<Option<String>>(&mut row, "password_hash")?
                    .filter(|_| provision),
                ends_in: ends_in_us
                    .filter(|_| provision)
                    .map(|us| Duration::from_micros(u64::try_from(us).unwrap_or(0))),
                is_moved: provision && column::<Option<bool>>(&mut row, "is_moved")? == Some(true),
                keep_home: kind == RunKind::Clean && column(&mut row, "keep_home")?,
            })
        }
    };
    Ok(ClaimedRun {
        id: RunId(column(&mut row, "id")?),
        kind,
        node: NodeId(column(&mut row, "node_id")?),
        contact,
        host_keys: keys
            .map(|keys| keys.lines().map(str::to_owned).collect())
            .unwrap_or_default(),
        epoch: column(&mut row, "epoch")?,
        attempt: column(&mut row, "attempt")?,
        uid_base: column(&mut row, "uid_base")?,
        account,
    })
}

const VIEW: &str = "SELECT u.id, u.kind, u.node_id, a.rental_id, u.state, u.attempt, u.outcome, u.detail, u.evidence, \
     u.output, u.created_at, u.finished_at FROM runs u LEFT JOIN accounts a ON a.id = u.account_id";

fn run_view(mut row: Row) -> Result<RunView, StoreError> {
    let evidence: Option<String> = column(&mut row, "evidence")?;
    let evidence = evidence
        .map(|text| serde_json::from_str(&text))
        .transpose()
        .map_err(|error| StoreError::Corrupt {
            column: "evidence",
            reason: error.to_string(),
        })?;
    Ok(RunView {
        run_id: RunId(column(&mut row, "id")?),
        kind: word(&mut row, "kind")?,
        node_id: NodeId(column(&mut row, "node_id")?),
        rental_id: column::<Option<u64>>(&mut row, "rental_id")?.map(RentalId),
        state: word(&mut row, "state")?,
        attempt: column(&mut row, "attempt")?,
        outcome: word_or_null(&mut row, "outcome")?,
        detail: column(&mut row, "detail")?,
        evidence,
        output: column(&mut row, "output")?,
        created_at: instant(&mut row, "created_at")?,
        finished_at: instant_or_null(&mut row, "finished_at")?,
    })
}
