//! One case: what a step does to the store, and what must be true after it.

use crate::step::{Pick, Play};
use crate::support::invariants::{self, History};
use crate::support::{Bed, instance};
use crate::world::{Pinned, World};
use mysql_async::Conn;
use mysql_async::prelude::Queryable;
use orion_core::{RentalId, RunKind};
use orion_store::*;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The longest lease, from its start.
pub(crate) const MAX_TOTAL: Duration = Duration::from_secs(3 * 3600);

/// Tables in an order in which rows may be deleted.
const TABLES: [&str; 9] = [
    "migration",
    "events",
    "runs",
    "accounts",
    "rentals",
    "requests",
    "beats",
    "host_keys",
    "nodes",
];

pub(crate) struct Case<'a> {
    bed: &'a Bed,
    clock_us: AtomicI64,
    workers: u32,
    shared: Mutex<Shared>,
    conn: tokio::sync::Mutex<(Conn, History)>,
}

#[derive(Default)]
pub(crate) struct Shared {
    pub(crate) world: World,
    /// Runs that a play does now.
    pub(crate) held: Vec<Held>,
    /// Runs whose play is over or was given up, and whether they were recorded: they may still act.
    pub(crate) past: Vec<(Held, bool)>,
    pub(crate) requests: Vec<OpenedRequest>,
    pub(crate) tally: Tally,
}

#[derive(Clone)]
pub(crate) struct Held {
    pub(crate) instance: InstanceId,
    pub(crate) run: ClaimedRun,
}

/// What happened in all cases, to see that the model does something.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) cases: u64,
    steps: usize,
    pub(crate) opened: u64,
    pub(crate) activated: u64,
    pub(crate) acted: u64,
    pub(crate) recorded: u64,
    pub(crate) lost: u64,
    pub(crate) moved: u64,
    /// Off a node that was drained.
    pub(crate) drained: u64,
}

impl Tally {
    pub(crate) fn add(&mut self, other: &Self, steps: usize) {
        self.steps += steps;
        self.opened += other.opened;
        self.activated += other.activated;
        self.acted += other.acted;
        self.recorded += other.recorded;
        self.lost += other.lost;
        self.moved += other.moved;
        self.drained += other.drained;
    }

    /// A model in which nothing happens proves nothing.
    pub(crate) fn was_worth_it(&self) {
        let each = [
            self.opened,
            self.activated,
            self.acted,
            self.recorded,
            self.lost,
        ];
        assert!(
            each.iter().all(|count| *count >= self.cases / 2),
            "{self:?}"
        );
        assert!(self.moved > 0 || self.cases < 20, "{self:?}");
        assert!(self.drained > 0 || self.cases < 60, "{self:?}");
    }
}

impl<'a> Case<'a> {
    /// An empty database with workers that are ready.
    pub(crate) async fn start(bed: &'a Bed, workers: u32) -> Result<Self, String> {
        let mut conn = bed.connection().await;
        for table in TABLES {
            conn.query_drop(format!("DELETE FROM {table}"))
                .await
                .map_err(text)?;
        }
        let case = Self {
            bed,
            clock_us: AtomicI64::new(0),
            workers,
            shared: Mutex::default(),
            conn: tokio::sync::Mutex::new((conn, History::default())),
        };
        for worker in 0..workers {
            case.register(worker, false).await?;
        }
        for node in case.nodes().await? {
            case.store()
                .record_probe(node.0, &ProbeResult::LoggedIn)
                .await
                .map_err(text)?;
        }
        case.claim(&instance(1), RunKind::Inspect, 100).await?;
        while !case.shared().held.is_empty() {
            case.play(0, Play::Well).await?;
        }
        case.check().await?;
        Ok(case)
    }

    pub(crate) fn store(&self) -> Store {
        self.bed
            .store
            .clone()
            .with_compensation(true)
            .with_clock_offset(self.clock_us.load(Ordering::Relaxed))
    }

    pub(crate) fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn bed(&self) -> &Bed {
        self.bed
    }

    pub(crate) fn workers(&self) -> u32 {
        self.workers
    }

    pub(crate) fn tally(&self) -> Tally {
        self.shared().tally.clone()
    }

    pub(crate) fn wait(&self, seconds: u32) {
        self.clock_us
            .fetch_add(i64::from(seconds) * 1_000_000, Ordering::Relaxed);
    }

    pub(crate) fn request(&self, pick: Pick) -> Option<OpenedRequest> {
        chosen(&self.shared().requests, pick).cloned()
    }

    pub(crate) fn requests(&self) -> Vec<OpenedRequest> {
        self.shared().requests.clone()
    }

    pub(crate) fn rental(&self, pick: Pick) -> Option<RentalId> {
        let rentals: Vec<_> = self
            .shared()
            .requests
            .iter()
            .flat_map(|request| request.rentals.clone())
            .collect();
        chosen(&rentals, pick).copied()
    }

    /// Nodes with the host key of the worker behind them.
    pub(crate) async fn nodes(&self) -> Result<Vec<Pinned>, String> {
        let targets = self.store().probe_targets().await.map_err(text)?;
        let pinned = targets.into_iter().map(|target| {
            (
                target.node,
                target.host_keys.first().cloned().unwrap_or_default(),
            )
        });
        Ok(pinned.collect())
    }

    /// The rules, in the rows and on the workers.
    pub(crate) async fn check(&self) -> Result<(), String> {
        let mut guard = self.conn.lock().await;
        let (conn, history) = &mut *guard;
        let mut broken = invariants::broken(conn).await;
        broken.extend(history.broken(conn).await);
        broken.extend(self.world_broken(conn).await?);
        if broken.is_empty() {
            Ok(())
        } else {
            Err(format!("{broken:#?}"))
        }
    }

    async fn world_broken(&self, conn: &mut Conn) -> Result<Vec<String>, String> {
        let ready: Vec<String> = conn
            .query("SELECT k.host_key FROM nodes n JOIN host_keys k ON k.node_id = n.id WHERE n.availability = 'ready'")
            .await
            .map_err(text)?;
        let present: Vec<(u32, String)> = conn
            .query(
                "SELECT a.uid, k.host_key FROM accounts a JOIN host_keys k ON k.node_id = a.node_id \
                 WHERE a.state = 'present'",
            )
            .await
            .map_err(text)?;
        let ended: Vec<u32> = conn
            .query(
                "SELECT i.uid_base + r.id FROM rentals r JOIN installation i WHERE r.state = 'ended' AND NOT EXISTS \
                 (SELECT 1 FROM accounts a WHERE a.rental_id = r.id AND a.state <> 'gone')",
            )
            .await
            .map_err(text)?;
        let shared = self.shared();
        let mut broken = shared.world.violations.clone();
        for key in ready {
            let accounts = shared.world.on(&key);
            if !accounts.is_empty() {
                broken.push(format!(
                    "the worker of a ready node has {accounts:?} ({key})"
                ));
            }
        }
        for (uid, key) in present {
            if !shared.world.on(&key).contains(&uid) {
                broken.push(format!(
                    "{uid} is present in the table and not on its worker ({key})"
                ));
            }
        }
        let all = shared.world.all();
        broken.extend(
            ended
                .iter()
                .filter(|uid| all.contains(uid))
                .map(|uid| format!("{uid} has ended and exists")),
        );
        Ok(broken)
    }

    /// UIDs of live rentals.
    pub(crate) async fn live(&self) -> Result<Vec<u32>, String> {
        let mut guard = self.conn.lock().await;
        // A degraded rental for which there is no node has no account anywhere.
        let sql = "SELECT i.uid_base + r.id FROM rentals r JOIN installation i \
                   WHERE r.state IN ('provisioning', 'active') OR (r.state = 'degraded' AND EXISTS \
                   (SELECT 1 FROM accounts a WHERE a.rental_id = r.id AND a.state IN ('making', 'present'))) ORDER BY r.id";
        guard.0.query(sql).await.map_err(text)
    }

    /// One number.
    pub(crate) async fn number(&self, sql: &str) -> Result<u64, String> {
        let mut guard = self.conn.lock().await;
        guard
            .0
            .query_first(sql)
            .await
            .map_err(text)?
            .ok_or_else(|| "no row".to_owned())
    }

    /// Says where everything stands, for a failure.
    pub(crate) async fn describe(&self) -> String {
        let sql = "SELECT n.id, n.status, n.availability, a.id, a.state, u.id, u.kind, u.state FROM nodes n \
                   LEFT JOIN accounts a ON a.held_node = n.id LEFT JOIN runs u ON u.account_id = a.id OR \
                   (u.node_id = n.id AND u.account_id IS NULL AND u.state IN ('queued', 'claimed')) \
                   WHERE n.forgotten_at IS NULL";
        let mut guard = self.conn.lock().await;
        let rows: Result<Vec<mysql_async::Row>, _> = guard.0.query(sql).await;
        format!(
            "{:#?}",
            rows.map(|rows| rows
                .into_iter()
                .map(mysql_async::Row::unwrap)
                .collect::<Vec<_>>())
        )
    }
}

pub(crate) fn chosen<T>(all: &[T], pick: Pick) -> Option<&T> {
    all.get(usize::from(pick).checked_rem(all.len())?)
}

pub(crate) fn text(error: impl std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}
