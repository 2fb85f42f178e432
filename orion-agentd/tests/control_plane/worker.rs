//! A worker's files for an agent under test.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use orion_agentd::{Agent, AgentSettings, Machine, Metrics, Pace};
use orion_core::JoinLine;
use orion_daemon::{Readiness, Registry};
use tokio::task::JoinHandle;

use super::{ControlPlane, LONGEST, PATIENCE};

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
pub(crate) struct Worker(PathBuf);

impl Worker {
    pub(crate) fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("orion-agentd-{name}-{}", std::process::id()));
        std::fs::create_dir_all(path.join("accounts")).expect("made");
        std::fs::create_dir_all(path.join("login")).expect("made");
        let worker = Self(path);
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
        let waits = async {
            while found(self) != *wanted {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        if tokio::time::timeout(PATIENCE, waits).await.is_err() {
            panic!("{:?} is not {wanted:?}", found(self));
        }
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
        }
    }

    pub(crate) fn agent_on(&self, settings: AgentSettings, machine: Machine) -> RunningAgent {
        Self::run(settings, machine, Duration::from_secs(3600))
    }

    /// An agent for which a source that was good for a moment is a good one.
    pub(crate) fn trusting_agent(&self, plane: &ControlPlane) -> RunningAgent {
        Self::run(self.settings(&plane.url()), self.machine(), Duration::ZERO)
    }

    fn run(settings: AgentSettings, machine: Machine, proven: Duration) -> RunningAgent {
        let pace = Pace {
            first: Duration::from_millis(20),
            longest: LONGEST,
            connect: Duration::from_secs(2),
            exchange: Duration::from_millis(500),
            beat_bounds: (Duration::from_millis(20), Duration::from_millis(40)),
            proven,
        };
        let metrics = Metrics::registered(&mut Registry::default());
        let ready = Readiness::new(&[]);
        let agent = Agent::new(settings, machine, pace, metrics.clone(), ready).expect("good");
        RunningAgent {
            metrics,
            task: tokio::spawn(agent.run()),
        }
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
        let failed = async {
            while self.failures() < times {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, failed)
            .await
            .expect("failures in time");
    }
}

impl Drop for RunningAgent {
    fn drop(&mut self) {
        self.task.abort();
    }
}
