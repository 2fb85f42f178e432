//! What `orion_account` does, on a simulated worker.

use super::{Account, Op, WorkerState};
use serde::Deserialize;
use serde_json::{Value, json};

/// The module's arguments, as the inventory carries them.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Arguments {
    #[serde(default)]
    pub(super) uid: u32,
    #[serde(default)]
    pub(super) name: String,
    #[serde(default)]
    password_hash: String,
    #[serde(default)]
    pub(super) epoch: u64,
}

/// What the module answers.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) outcome: &'static str,
    pub(super) detail: String,
    pub(super) evidence: Value,
    /// What may never happen and did.
    pub(super) violation: Option<String>,
}

impl Reply {
    pub(super) fn new(outcome: &'static str, detail: impl Into<String>) -> Self {
        Self {
            outcome,
            detail: detail.into(),
            evidence: json!({}),
            violation: None,
        }
    }

    /// Whether Ansible calls it ok.
    pub(super) fn is_ok(&self) -> bool {
        matches!(self.outcome, "present" | "gone" | "clean" | "dirty")
    }
}

pub(super) fn act(op: Op, arguments: &Arguments, worker: &mut WorkerState) -> Reply {
    match op {
        Op::Create => create(arguments, worker),
        Op::Delete => delete(arguments, worker),
        Op::Inspect => inspect(worker),
    }
}

fn create(arguments: &Arguments, worker: &mut WorkerState) -> Reply {
    let Arguments {
        uid,
        name,
        password_hash,
        epoch,
    } = arguments;
    if !password_hash.starts_with("$6$") || name.is_empty() || *uid == 0 || *epoch == 0 {
        return Reply::new("refused", "the arguments are not those of an account");
    }
    let seen = worker.epochs.get(uid).copied().unwrap_or(0);
    let is_gone = seen > 0 && !worker.accounts.contains_key(uid);
    if *epoch < seen || (*epoch == seen && is_gone) {
        return Reply::new("stale_epoch", format!("epoch {epoch}, but {seen} was seen"));
    }
    let other = worker.accounts.iter().find(|(other, _)| *other != uid);
    let same_name = other.is_some_and(|(_, account)| account.name == *name);
    if worker.foreign_names.contains(name) || same_name {
        return Reply::new("name_taken", format!("{name} is somebody else's name here"));
    }
    let violation = other.map(|(other, _)| format!("{uid} was made where {other} still is"));
    let account = Account {
        name: name.clone(),
        epoch: *epoch,
        password_hash: password_hash.clone(),
    };
    worker.accounts.insert(*uid, account);
    worker.epochs.insert(*uid, *epoch);
    Reply {
        violation,
        ..Reply::new("present", "the account is there and its password works")
    }
}

fn delete(arguments: &Arguments, worker: &mut WorkerState) -> Reply {
    let Arguments { uid, epoch, .. } = arguments;
    let seen = worker.epochs.get(uid).copied().unwrap_or(0);
    if *epoch < seen {
        return Reply::new("stale_epoch", format!("epoch {epoch}, but {seen} was seen"));
    }
    worker.accounts.remove(uid);
    worker.epochs.insert(*uid, *epoch);
    Reply::new("gone", "nothing of it is left")
}

fn inspect(worker: &WorkerState) -> Reply {
    let accounts: Vec<Value> = worker
        .accounts
        .iter()
        .map(|(uid, account)| {
            json!({"uid": uid, "name": account.name, "epoch": account.epoch, "state": "present", "locked": false})
        })
        .collect();
    let outcome = if accounts.is_empty() {
        "clean"
    } else {
        "dirty"
    };
    let max_uid = worker.epochs.keys().max();
    let counts = json!({"accounts": accounts.len()});
    let detail = format!("{} accounts", accounts.len());
    let evidence = json!({"accounts": accounts, "processes": [], "files": [], "max_uid": max_uid, "counts": counts});
    Reply {
        evidence,
        ..Reply::new(outcome, detail)
    }
}
