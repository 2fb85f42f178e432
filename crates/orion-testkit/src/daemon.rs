//! The workspace's daemons as child processes.

use crate::child::{binary, mortal_command, spawn};
use crate::http_client::Client;
use crate::scratch::Scratch;
use crate::wait::{PATIENCE, wait_until, wait_until_async};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A daemon to be started.
#[derive(Debug)]
pub struct DaemonBuilder {
    name: String,
    config: String,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
}

/// A daemon that runs until it is stopped or this value is dropped. When the test fails, its log is printed.
#[derive(Debug)]
pub struct Daemon {
    plan: DaemonBuilder,
    scratch: Scratch,
    child: Option<Child>,
    log: Arc<Mutex<Log>>,
}

#[derive(Debug, Default)]
struct Log {
    lines: Vec<String>,
    /// By listener's name; `ops` too.
    listeners: HashMap<String, SocketAddr>,
}

impl DaemonBuilder {
    /// The program's name, as `orion-apid`, and its configuration file's text. Say port 0 for each listener.
    pub fn new(name: &str, config: impl Into<String>) -> Self {
        Self {
            name: name.to_owned(),
            config: config.into(),
            arguments: Vec::new(),
            environment: Vec::new(),
        }
    }

    /// A further argument.
    #[must_use]
    pub fn arg(mut self, argument: impl Into<String>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// A further environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.environment.push((name.to_owned(), value.into()));
        self
    }

    /// Starts it; does not wait.
    pub fn start(self) -> Daemon {
        let scratch = Scratch::new("daemon");
        scratch.write_secret("config.toml", &self.config);
        let mut daemon = Daemon {
            plan: self,
            scratch,
            child: None,
            log: Arc::default(),
        };
        daemon.start_again();
        daemon
    }

    /// Starts it and waits until `/readyz` is good.
    pub async fn start_ready(self) -> Daemon {
        let daemon = self.start();
        daemon.ready().await;
        daemon
    }
}

impl Daemon {
    /// Where a listener is bound: `clients`, `agents` or `ops`. Waits for the log to say so.
    pub async fn address(&self, listener: &str) -> SocketAddr {
        let what = format!("{} listens on {listener}", self.plan.name);
        wait_until(&what, PATIENCE, || {
            let log = self.log();
            log.listeners
                .get(listener)
                .copied()
                .ok_or_else(|| format!("its log:\n{}", log.tail()))
        })
        .await
    }

    /// Waits until it says that it is ready.
    pub async fn ready(&self) {
        let client = Client::new(self.address("ops").await);
        let what = format!("{} is ready", self.plan.name);
        wait_until_async(&what, PATIENCE, || async {
            let answer = client.send(http::Method::GET, "/readyz", None).await?;
            if answer.status == 200 {
                Ok(())
            } else {
                Err(answer.to_string())
            }
        })
        .await;
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// Sends SIGTERM and does not wait.
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Ends it with `kill -9`.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("a signal to our own child");
            child.wait().expect("its end");
        }
    }

    /// Waits until it has ended by itself.
    pub async fn ended(&mut self, limit: Duration) -> ExitStatus {
        let mut child = self.child.take().expect("it runs");
        let what = format!("{} ends", self.plan.name);
        wait_until(&what, limit, || match child.try_wait() {
            Ok(Some(status)) => Ok(status),
            Ok(None) => Err("it runs".to_owned()),
            Err(error) => Err(error.to_string()),
        })
        .await
    }

    /// Starts it again after [`kill`](Self::kill) or [`ended`](Self::ended), with the same configuration; with port 0
    /// its addresses are new.
    pub fn start_again(&mut self) {
        assert!(self.child.is_none(), "{} runs already", self.plan.name);
        self.log().listeners.clear();
        let mut command = mortal_command(binary(&self.plan.name));
        command
            .arg("--config")
            .arg(self.scratch.join("config.toml"))
            .args(&self.plan.arguments)
            .envs(
                self.plan
                    .environment
                    .iter()
                    .map(|(name, value)| (name, value)),
            )
            .env_remove("NOTIFY_SOCKET")
            .env_remove("JOURNAL_STREAM")
            .env("RUST_BACKTRACE", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = spawn(command).expect("setpriv (package util-linux) starts");
        let stderr = BufReader::new(child.stderr.take().expect("a pipe"));
        let log = Arc::clone(&self.log);
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                log.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .take(line);
            }
        });
        self.child = Some(child);
    }

    /// Its log lines so far, over all its lives.
    pub fn log_lines(&self) -> Vec<String> {
        self.log().lines.clone()
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(self.child.as_ref().expect("it runs"));
        kill_process(pid, signal).expect("a signal to our own child");
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("--- log of {}:\n{}", self.plan.name, self.log().tail());
        }
    }
}

impl Log {
    /// Keeps a line. A JSON line says where a listener is bound by a field `ops`, or by `listener` and `address` with
    /// the message `listening`.
    fn take(&mut self, line: String) {
        let parsed: Value = serde_json::from_str(&line).unwrap_or_default();
        let fields = &parsed["fields"];
        let address = |field: &str| fields[field].as_str().and_then(|text| text.parse().ok());
        if let Some(ops) = address("ops") {
            self.listeners.insert("ops".to_owned(), ops);
        }
        if let (Some(listener), Some(bound)) = (fields["listener"].as_str(), address("address")) {
            self.listeners.insert(listener.to_owned(), bound);
        }
        self.lines.push(line);
    }

    fn tail(&self) -> String {
        let skipped = self.lines.len().saturating_sub(150);
        self.lines[skipped..].join("\n")
    }
}
