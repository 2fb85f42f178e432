//! Simulated workers: the accounts that really exist, and what `orion_account` does there.

use crate::support::UID_BASE;
use orion_core::{NodeId, RunKind, RunOutcome};
use orion_store::{ClaimedRun, RunReport};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};

/// All workers. A worker is told by its SSH host key, as in life: its node may be forgotten and come back as another.
#[derive(Default)]
pub(crate) struct World {
    workers: BTreeMap<String, Worker>,
    /// What may never happen and did.
    pub(crate) violations: Vec<String>,
}

#[derive(Default)]
struct Worker {
    /// UIDs that exist.
    accounts: BTreeSet<u32>,
    /// The highest epoch seen for each UID.
    epochs: BTreeMap<u32, u64>,
}

impl World {
    /// Does what a run asks for, on the worker that has the run's host key, and says what the module would say.
    pub(crate) fn act(&mut self, run: &ClaimedRun) -> RunReport {
        let key = run
            .host_keys
            .first()
            .expect("claimed runs have a pinned key");
        let worker = self.workers.entry(key.clone()).or_default();
        let (outcome, evidence) = match (&run.account, run.kind) {
            (Some(account), RunKind::Provision) => (worker.create(account.uid.0, run.epoch), None),
            (Some(account), RunKind::Clean) => (worker.delete(account.uid.0, run.epoch), None),
            (_, RunKind::Inspect | RunKind::Provision | RunKind::Clean) => worker.inspect(),
        };
        if worker.accounts.len() > 1 {
            self.violations
                .push(format!("{key} has {:?} after {run:?}", worker.accounts));
        }
        RunReport {
            outcome,
            detail: Some("seen".to_owned()),
            evidence,
            output: None,
        }
    }

    /// The accounts on the worker with this key.
    pub(crate) fn on(&self, key: &str) -> BTreeSet<u32> {
        self.workers
            .get(key)
            .map(|worker| worker.accounts.clone())
            .unwrap_or_default()
    }

    /// The accounts on all workers.
    pub(crate) fn all(&self) -> BTreeSet<u32> {
        self.workers
            .values()
            .flat_map(|worker| worker.accounts.iter().copied())
            .collect()
    }
}

impl Worker {
    fn create(&mut self, uid: u32, epoch: u64) -> RunOutcome {
        let seen = self.epochs.get(&uid).copied().unwrap_or(0);
        let gone = seen > 0 && !self.accounts.contains(&uid);
        if epoch < seen || (epoch == seen && gone) {
            return RunOutcome::StaleEpoch;
        }
        assert!(uid > UID_BASE, "{uid} is not a rental's");
        self.epochs.insert(uid, epoch);
        self.accounts.insert(uid);
        RunOutcome::Present
    }

    fn delete(&mut self, uid: u32, epoch: u64) -> RunOutcome {
        if epoch < self.epochs.get(&uid).copied().unwrap_or(0) {
            return RunOutcome::StaleEpoch;
        }
        self.epochs.insert(uid, epoch);
        self.accounts.remove(&uid);
        RunOutcome::Gone
    }

    fn inspect(&self) -> (RunOutcome, Option<serde_json::Value>) {
        let accounts: Vec<_> = self
            .accounts
            .iter()
            .map(|uid| json!({"uid": uid, "name": "x", "epoch": self.epochs[uid], "state": "present"}))
            .collect();
        if accounts.is_empty() {
            (RunOutcome::Clean, Some(json!({"accounts": []})))
        } else {
            (RunOutcome::Dirty, Some(json!({"accounts": accounts})))
        }
    }
}

/// A node and the key of the worker behind it.
pub(crate) type Pinned = (NodeId, String);
