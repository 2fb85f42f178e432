//! Simulated workers as files in a directory that tests and the scripted ansible-playbook share.
//!
//! `worker-<n>.json` is a worker: its SSH host key, its accounts, the highest epochs it has seen, what it is told to do
//! wrong. `port-<p>` is a link to the worker that answers on that port now, so that workers can swap addresses.
//! `log.jsonl` has one line per play and per act. A worker's file changes only under its lock.

mod module;
mod play;

pub use play::main;

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// What a run's module does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Op {
    /// `create_user.yml`
    Create,
    /// `delete_user.yml`
    Delete,
    /// `health_check.yml`
    Inspect,
}

/// What a worker does instead of what it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Act {
    /// The right thing, after this many milliseconds.
    Delay(u64),
    /// Nothing, and says `failed`.
    Fail,
    /// Nothing, and says `refused`.
    Refuse,
    /// Nothing, and says `name_taken`.
    NameTaken,
    /// Nothing, and says `not_gone`.
    NotGone,
    /// Nothing; ssh can't reach it.
    Unreachable,
    /// Nothing until the task's timeout, then `failed` for that reason.
    Hang,
    /// Nothing, and the play never ends by itself: ansible-playbook hangs.
    HangForever,
    /// Nothing, and the play ends without a word about it.
    NoResult,
    /// The right thing, but the play ends without a word about it.
    ActThenNoResult,
    /// The whole play crashes when it comes to this worker.
    CrashPlay,
}

/// An [`Act`] for the next `left` operations of a kind.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Behaviour {
    /// Only for this operation; none means each.
    pub op: Option<Op>,
    /// What it does.
    pub act: Act,
    /// How often still; none means always.
    pub left: Option<u32>,
}

/// How a worker's SSH port answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reach {
    /// As it should.
    #[default]
    Answers,
    /// Accepts TCP and never says anything.
    Silent,
    /// Ends each connection at once.
    Refuses,
}

/// An account that exists on a worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// Its name.
    pub name: String,
    /// The epoch it was made with.
    pub epoch: u64,
    /// Its crypt(3) hash.
    pub password_hash: String,
}

/// A worker.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct WorkerState {
    /// `ssh-ed25519 AAAA…`
    pub host_key: String,
    /// The public keys that open `orion-node`, `type base64`.
    pub lets_in: Vec<String>,
    /// How its SSH port answers.
    pub reach: Reach,
    /// Names of accounts that are not Orion's.
    pub foreign_names: Vec<String>,
    /// Managed accounts by UID.
    pub accounts: BTreeMap<u32, Account>,
    /// The highest epoch seen for each UID.
    pub epochs: BTreeMap<u32, u64>,
    /// What goes wrong; the first that fits is used.
    pub behaviours: Vec<Behaviour>,
}

/// One line of the log.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LogLine {
    /// Milliseconds since 1970.
    pub at_ms: u128,
    /// The play's process.
    pub pid: u32,
    /// `play`, `act` or `violation`.
    pub what: String,
    /// What the play does.
    pub op: Op,
    /// The worker's number; none for `play`.
    pub worker: Option<usize>,
    /// Inventory hosts: all of a `play`, the one of an act.
    pub hosts: Vec<String>,
    /// The account the act was for.
    pub uid: Option<u32>,
    /// The epoch it was asked with.
    pub epoch: Option<u64>,
    /// What the worker said, or what was violated.
    pub outcome: Option<String>,
}

/// The shared directory.
#[derive(Clone, Debug)]
pub struct Farm(PathBuf);

impl Farm {
    /// The farm in an existing directory.
    pub fn at(dir: impl Into<PathBuf>) -> Self {
        Self(dir.into())
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.0
    }

    /// Adds a worker that answers on `port`.
    pub fn add(&self, worker: usize, port: u16, state: &WorkerState) {
        self.write(worker, state);
        self.point(port, worker);
    }

    /// From now on `worker` answers on `port`.
    pub fn point(&self, port: u16, worker: usize) {
        let link = self.0.join(format!("port-{port}.new"));
        std::os::unix::fs::symlink(file_name(worker), &link).expect("a link");
        fs::rename(link, self.0.join(format!("port-{port}"))).expect("the link in place");
    }

    /// Who answers on `port`.
    pub fn worker_on(&self, port: u16) -> Option<usize> {
        let target = fs::read_link(self.0.join(format!("port-{port}"))).ok()?;
        let name = target
            .to_str()?
            .strip_prefix("worker-")?
            .strip_suffix(".json")?;
        name.parse().ok()
    }

    /// A worker as it is now.
    pub fn read(&self, worker: usize) -> WorkerState {
        let _lock = self.lock(worker);
        self.load(worker)
    }

    /// Changes a worker while nobody else does.
    pub fn change<T>(&self, worker: usize, change: impl FnOnce(&mut WorkerState) -> T) -> T {
        let _lock = self.lock(worker);
        let mut state = self.load(worker);
        let result = change(&mut state);
        self.write(worker, &state);
        result
    }

    /// Everything that plays did so far.
    pub fn log(&self) -> Vec<LogLine> {
        let text = fs::read_to_string(self.0.join("log.jsonl")).unwrap_or_default();
        text.lines()
            .map(|line| serde_json::from_str(line).expect("a log line"))
            .collect()
    }

    /// Whether the test is over and the directory gone.
    fn is_gone(&self) -> bool {
        !self.0.is_dir()
    }

    fn note(&self, line: &LogLine) {
        let mut text = serde_json::to_string(line).expect("JSON");
        text.push('\n');
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.0.join("log.jsonl"));
        log.and_then(|mut log| log.write_all(text.as_bytes()))
            .expect("the log");
    }

    fn lock(&self, worker: usize) -> File {
        let path = self.0.join(format!("worker-{worker}.lock"));
        let file = File::options()
            .create(true)
            .append(true)
            .open(path)
            .expect("a lock file");
        file.lock().expect("a lock");
        file
    }

    fn load(&self, worker: usize) -> WorkerState {
        let text = fs::read(self.0.join(file_name(worker))).expect("a worker's file");
        serde_json::from_slice(&text).expect("a worker's state")
    }

    fn write(&self, worker: usize, state: &WorkerState) {
        // Renamed into place: a play may be killed while it writes.
        let new = self.0.join(format!("worker-{worker}.new"));
        fs::write(&new, serde_json::to_vec(state).expect("JSON")).expect("a worker's file");
        fs::rename(new, self.0.join(file_name(worker))).expect("a worker's file in place");
    }
}

fn file_name(worker: usize) -> String {
    format!("worker-{worker}.json")
}

fn now_ms() -> u128 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("a clock after 1970")
        .as_millis()
}
