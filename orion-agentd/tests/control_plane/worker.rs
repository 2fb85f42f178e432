//! A worker's files for an agent under test.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use orion_agentd::{
    Access, Agent, AgentSettings, Clock, Ended, Ending, Machine, Metrics, Now, Pace, Terminals,
};
use orion_core::{JoinLine, Uid};
use orion_daemon::{Readiness, Registry};
use orion_testkit::{PATIENCE, wait_until};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::{ControlPlane, LONGEST};

/// A public key file's first two words; keys with other numbers differ.
pub(crate) fn ed25519(number: u8) -> String {
    let mut bytes = vec![0, 0, 0, 11];
    bytes.extend_from_slice(b"ssh-ed25519");
    bytes.extend_from_slice(&[0, 0, 0, 32]);
    bytes.extend_from_slice(&[number; 32]);
    format!("ssh-ed25519 {}", STANDARD.encode(bytes))
}

/// A port that was free a moment ago.
pub(crate) fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bound");
    listener.local_addr().expect("address").port()
}

/// A worker's host keys and records in a directory that goes away by itself.
pub(crate) struct Worker(PathBuf, Arc<Stage>);

/// Clocks and accounts that only a test moves and sees.
#[derive(Debug)]
pub(crate) struct Stage {
    /// Seconds that passed, on both clocks.
    passed_s: Mutex<f64>,
    wall_s: f64,
    locked: Mutex<BTreeSet<u32>>,
    /// What terminals were told.
    told: Mutex<Vec<(u32, String)>>,
}

impl Clock for Stage {
    fn now(&self) -> Now {
        let passed_s = *self.passed_s.lock().expect("lock");
        Now {
            boot_s: 1000.0 + passed_s,
            wall_s: self.wall_s + passed_s,
        }
    }

    fn boot_id(&self) -> String {
        BOOT_ID.to_owned()
    }
}

impl Access for Stage {
    fn end(&self, uid: Uid) -> Ending<'_> {
        let locked = self.locked.lock().expect("lock").insert(uid.0);
        let processes = 0;
        Box::pin(async move { Ok(Ended { locked, processes }) })
    }
}

impl Terminals for Stage {
    fn tell(&self, uid: Uid, text: &str) -> usize {
        let mut told = self.told.lock().expect("lock");
        told.push((uid.0, text.to_owned()));
        1
    }
}

const BOOT_ID: &str = "00000000-0000-4000-8000-000000000001";

impl Worker {
    pub(crate) fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("orion-agentd-{name}-{}", std::process::id()));
        std::fs::create_dir_all(path.join("accounts")).expect("made");
        std::fs::create_dir_all(path.join("login")).expect("made");
        let wall = SystemTime::now().duration_since(UNIX_EPOCH);
        let stage = Stage {
            passed_s: Mutex::new(0.0),
            wall_s: wall.expect("after 1970").as_secs_f64(),
            locked: Mutex::default(),
            told: Mutex::default(),
        };
        let worker = Self(path, Arc::new(stage));
        worker.write_host_key(1);
        worker
    }

    /// A worker that has a join line of `plane`.
    pub(crate) fn joined(name: &str, plane: &ControlPlane) -> Self {
        let worker = Self::new(name);
        worker.join(&plane.join_line());
        worker
    }

    pub(crate) fn start(&self, plane: &ControlPlane) -> RunningAgent {
        self.agent(&plane.url())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Gives the agent a join line.
    pub(crate) fn join(&self, line: &JoinLine) {
        use std::os::unix::fs::PermissionsExt;
        let path = self.path("join");
        std::fs::write(&path, line.expose()).expect("written");
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).expect("chmod");
    }

    /// The lines of `authorized_keys` that are keys.
    pub(crate) fn login_keys(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.path("login/.ssh/authorized_keys"));
        let text = text.unwrap_or_default();
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines.map(str::to_owned).collect()
    }

    /// Waits until `found` is what is looked for.
    pub(crate) async fn until<T: PartialEq + std::fmt::Debug>(
        &self,
        found: impl Fn(&Self) -> T,
        wanted: &T,
    ) {
        wait_until(&format!("it is {wanted:?}"), PATIENCE, || {
            let found = found(self);
            if found == *wanted {
                Ok(())
            } else {
                Err(format!("{found:?}"))
            }
        })
        .await;
    }

    pub(crate) fn write_host_key(&self, number: u8) {
        let text = format!("{} root@worker1\n", ed25519(number));
        let new = self.0.join("new");
        std::fs::write(&new, text).expect("written");
        std::fs::rename(new, self.host_key()).expect("renamed");
    }

    pub(crate) fn remove_host_key(&self) {
        std::fs::remove_file(self.host_key()).expect("removed");
    }

    fn host_key(&self) -> PathBuf {
        self.0.join("ssh_host_ed25519_key.pub")
    }

    pub(crate) fn write_record(&self, uid: u32, text: &str) {
        std::fs::write(self.0.join(format!("accounts/{uid}.json")), text).expect("written");
    }

    /// Puts something in the way that makes the records unreadable, also for root.
    pub(crate) fn hide_records(&self) {
        let accounts = self.0.join("accounts");
        std::fs::remove_dir(&accounts).expect("removed");
        std::fs::write(accounts, "in the way").expect("written");
    }

    /// Makes the record of an account that ends that many seconds from now.
    pub(crate) fn create(&self, uid: u32, epoch: u64, seconds: f64) {
        let now = self.1.now();
        let record = json!({
            "uid": uid, "name": "alice", "epoch": epoch, "state": "present", "boot_id": BOOT_ID,
            "ends_at_wall": now.wall_s + seconds, "ends_at_boot": now.boot_s + seconds,
        });
        self.write_record(uid, &record.to_string());
    }

    /// Lets time pass.
    pub(crate) fn pass(&self, seconds: f64) {
        *self.1.passed_s.lock().expect("lock") += seconds;
    }

    /// The accounts that were locked.
    pub(crate) fn locked(&self) -> Vec<u32> {
        self.1
            .locked
            .lock()
            .expect("lock")
            .iter()
            .copied()
            .collect()
    }

    /// What clients' terminals were told since the last call.
    pub(crate) fn told(&self) -> Vec<(u32, String)> {
        std::mem::take(&mut *self.1.told.lock().expect("lock"))
    }

    /// Whether an end was written down that is that many seconds after the test's beginning.
    pub(crate) fn has_countdown(&self, seconds: f64) -> bool {
        let text = std::fs::read_to_string(self.path("agent/countdowns")).unwrap_or_default();
        let file: Value = serde_json::from_str(&text).unwrap_or_default();
        file["accounts"][0]["end_s"].as_f64() == Some(1000.0 + seconds)
    }

    pub(crate) fn settings(&self, url: &str) -> AgentSettings {
        AgentSettings {
            api_endpoint: Some(url.to_owned()),
            join_file: self.path("join"),
            login_dir: self.path("login"),
            hostname: Some("worker1".to_owned()),
            host_keys: self.0.join("ssh_host_*_key.pub"),
            state_dir: self.0.clone(),
            ..AgentSettings::default()
        }
    }

    pub(crate) fn agent(&self, url: &str) -> RunningAgent {
        self.agent_with(self.settings(url))
    }

    pub(crate) fn agent_with(&self, settings: AgentSettings) -> RunningAgent {
        self.agent_on(settings, self.machine())
    }

    /// A machine that is nobody's gateway, with nothing in place of sshd's drop-in.
    pub(crate) fn machine(&self) -> Machine {
        Machine {
            sshd_dropin: self.path("sshd-dropin"),
            is_own: |address| address.is_loopback(),
            gateways: Vec::new,
            clock: Arc::clone(&self.1) as Arc<dyn Clock>,
            access: Arc::clone(&self.1) as Arc<dyn Access>,
            terminals: Arc::clone(&self.1) as Arc<dyn Terminals>,
        }
    }

    pub(crate) fn agent_on(&self, settings: AgentSettings, machine: Machine) -> RunningAgent {
        Self::run(settings, machine, pace(Duration::from_secs(3600)))
    }

    /// An agent for which a source that was good for a moment is a good one.
    pub(crate) fn trusting_agent(&self, plane: &ControlPlane) -> RunningAgent {
        let settings = self.settings(&plane.url());
        Self::run(settings, self.machine(), pace(Duration::ZERO))
    }

    /// An agent that beats as seldom as it is told.
    pub(crate) fn unhurried_agent(&self, plane: &ControlPlane) -> RunningAgent {
        let pace = Pace {
            beat_bounds: (Duration::from_millis(20), Duration::from_secs(3600)),
            ..pace(Duration::from_secs(3600))
        };
        Self::run(self.settings(&plane.url()), self.machine(), pace)
    }

    fn run(settings: AgentSettings, machine: Machine, pace: Pace) -> RunningAgent {
        let metrics = Metrics::registered(&mut Registry::default());
        let ready = Readiness::new(&[]);
        let agent = Agent::new(settings, machine, pace, metrics.clone(), ready).expect("good");
        RunningAgent {
            metrics,
            task: tokio::spawn(agent.run()),
        }
    }
}

fn pace(proven: Duration) -> Pace {
    Pace {
        first: Duration::from_millis(20),
        longest: LONGEST,
        connect: Duration::from_secs(2),
        exchange: Duration::from_millis(500),
        beat_bounds: (Duration::from_millis(20), Duration::from_millis(40)),
        proven,
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).expect("removed");
    }
}

/// An agent that ends with the test.
pub(crate) struct RunningAgent {
    metrics: Metrics,
    task: JoinHandle<()>,
}

impl RunningAgent {
    pub(crate) fn failures(&self) -> u64 {
        self.metrics.failures()
    }

    /// Waits until that many registrations and beats have failed.
    pub(crate) async fn has_failed(&self, times: u64) {
        wait_until(&format!("{times} calls have failed"), PATIENCE, || {
            if self.failures() >= times {
                Ok(())
            } else {
                Err(self.failures())
            }
        })
        .await;
    }
}

impl Drop for RunningAgent {
    fn drop(&mut self) {
        self.task.abort();
    }
}
