//! An ansible-playbook that talks as the real one with Orion's callback plugin does, and acts on simulated workers.

use super::module::{Arguments, Reply, act};
use super::{Act, Farm, LogLine, Op, Reach, now_ms};
use crate::ssh::public_line_of;
use serde_json::{Value, json};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// ssh's ConnectTimeout in Orion's ansible.cfg; it covers the banner too.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const DEFAULT_TASK_TIMEOUT_S: f64 = 20.0;
/// A play that hangs for ever ends when its test is over, and at last after this time.
const FOR_EVER: Duration = Duration::from_secs(600);

/// `orion-scripted-playbook FARM [ansible-playbook's arguments]`; returns the exit code.
pub fn main(arguments: impl Iterator<Item = String>) -> u8 {
    let mut arguments = arguments.skip(1);
    let Some(farm) = arguments.next().map(Farm::at) else {
        return 2;
    };
    let command = CommandLine::read(arguments);
    if command.version {
        println_version();
        return 0;
    }
    let (Some(op), Some(inventory)) = (command.op, command.inventory) else {
        eprintln!("no playbook of Orion's, or no inventory");
        return 1;
    };
    let play = Play::new(farm, op, &inventory, command.extra_vars.as_deref());
    play.run()
}

#[derive(Default)]
struct CommandLine {
    version: bool,
    op: Option<Op>,
    inventory: Option<PathBuf>,
    extra_vars: Option<PathBuf>,
}

impl CommandLine {
    fn read(mut arguments: impl Iterator<Item = String>) -> Self {
        let mut command = Self::default();
        while let Some(argument) = arguments.next() {
            let (name, inline) = match argument.split_once('=') {
                Some((name, value)) if name.starts_with("--") => {
                    (name.to_owned(), Some(value.to_owned()))
                }
                _ => (argument, None),
            };
            match name.as_str() {
                "--version" => command.version = true,
                "-i" | "--inventory" => {
                    command.inventory = inline.or_else(|| arguments.next()).map(Into::into)
                }
                "-e" | "--extra-vars" => {
                    let value = inline.or_else(|| arguments.next()).unwrap_or_default();
                    command.extra_vars = value.strip_prefix('@').map(Into::into);
                }
                "-f" | "--forks" | "--timeout" => drop(inline.or_else(|| arguments.next())),
                path => command.op = command.op.or_else(|| op_of(path)),
            }
        }
        command
    }
}

fn op_of(path: &str) -> Option<Op> {
    match Path::new(path).file_name()?.to_str()? {
        "create_user.yml" => Some(Op::Create),
        "delete_user.yml" => Some(Op::Delete),
        "health_check.yml" => Some(Op::Inspect),
        _ => None,
    }
}

struct Play {
    farm: Farm,
    op: Op,
    hosts: Vec<(String, Value)>,
    known_hosts: String,
    /// The public halves of what `ansible.cfg` has ssh log in with; none where there is no such file.
    identities: Option<Vec<String>>,
    task_timeout: Duration,
    events: Option<Mutex<File>>,
}

/// How one host's part ended for the play.
enum End {
    /// With an event, or deliberately without.
    Done { failed: bool, unreachable: bool },
    /// The whole process ends now.
    Crash,
}

impl Play {
    fn new(farm: Farm, op: Op, inventory_path: &Path, extra_vars: Option<&Path>) -> Self {
        let inventory = read_json(inventory_path);
        let extra = extra_vars.map(read_json).unwrap_or_default();
        let hosts = inventory["all"]["hosts"]
            .as_object()
            .or_else(|| inventory["_meta"]["hostvars"].as_object());
        let hosts = hosts
            .expect("hosts in the inventory")
            .clone()
            .into_iter()
            .collect();
        let timeout = [
            &extra["orion_host_timeout_s"],
            &inventory["all"]["vars"]["orion_host_timeout_s"],
        ];
        let timeout = timeout
            .iter()
            .find_map(|value| value.as_f64())
            .unwrap_or(DEFAULT_TASK_TIMEOUT_S);
        let events = std::env::var_os("ORION_EVENTS").map(|path| {
            let file = File::options().create(true).append(true).open(path);
            Mutex::new(file.expect("ORION_EVENTS can be written"))
        });
        let known_hosts = inventory_path.with_file_name("known_hosts");
        Self {
            farm,
            op,
            hosts,
            known_hosts: std::fs::read_to_string(known_hosts).unwrap_or_default(),
            identities: identities(&inventory_path.with_file_name("ansible.cfg")),
            task_timeout: Duration::from_secs_f64(timeout),
            events,
        }
    }

    fn run(&self) -> u8 {
        let names: Vec<String> = self.hosts.iter().map(|(name, _)| name.clone()).collect();
        self.note("play", None, names, None, None);
        let (mut failed, mut unreachable) = (false, false);
        std::thread::scope(|scope| {
            let parts: Vec<_> = self
                .hosts
                .iter()
                .map(|host| scope.spawn(|| self.one(host)))
                .collect();
            for part in parts {
                match part.join().expect("no panic") {
                    End::Done {
                        failed: f,
                        unreachable: u,
                    } => {
                        failed |= f;
                        unreachable |= u;
                    }
                    End::Crash => std::process::exit(250),
                }
            }
        });
        self.event(&json!({"event": "end"}));
        if unreachable {
            4
        } else if failed {
            2
        } else {
            0
        }
    }

    /// One host's task, as the real play does it for all hosts side by side.
    fn one(&self, (name, vars): &(String, Value)) -> End {
        self.event(&json!({"event": "start", "host": name, "task": "scripted"}));
        let port = vars["ansible_port"]
            .as_u64()
            .and_then(|port| u16::try_from(port).ok())
            .unwrap_or(22);
        let Some(worker) = self.farm.worker_on(port) else {
            return self.unreachable(name, "connect", "Connection refused");
        };
        let state = self.farm.read(worker);
        match state.reach {
            Reach::Silent => {
                std::thread::sleep(CONNECT_TIMEOUT.min(self.task_timeout));
                return self.unreachable(
                    name,
                    "connect",
                    "Connection timed out during banner exchange",
                );
            }
            Reach::Refuses => {
                return self.unreachable(name, "connect", "Connection closed by remote host");
            }
            Reach::Answers => {}
        }
        if let Some(end) = self.check_host_key(name, &state.host_key) {
            return end;
        }
        let let_in = |keys: &Vec<String>| keys.iter().any(|key| state.lets_in.contains(key));
        if !self.identities.as_ref().is_none_or(let_in) {
            return self.unreachable(name, "auth", "Permission denied (publickey).");
        }
        let arguments: Arguments =
            serde_json::from_value(vars["orion_account"].clone()).expect("the module's arguments");
        self.behave(name, worker, &arguments)
    }

    fn behave(&self, name: &str, worker: usize, arguments: &Arguments) -> End {
        let told = self.farm.change(worker, |state| {
            let fits = |b: &&mut super::Behaviour| {
                b.op.is_none_or(|op| op == self.op) && b.left != Some(0)
            };
            let behaviour = state.behaviours.iter_mut().find(fits)?;
            behaviour.left = behaviour.left.map(|left| left - 1);
            Some(behaviour.act)
        });
        let said = |outcome, detail| {
            self.note(
                "act",
                Some(worker),
                vec![name.to_owned()],
                Some(arguments),
                Some(outcome),
            );
            self.reply(name, &Reply::new(outcome, detail))
        };
        match told {
            None => self.reply(name, &self.act(name, worker, arguments)),
            Some(Act::Delay(ms)) => {
                std::thread::sleep(Duration::from_millis(ms));
                self.reply(name, &self.act(name, worker, arguments))
            }
            Some(Act::Fail) => said("failed", "useradd said no"),
            Some(Act::Refuse) => said("refused", "the UID lies in a subordinate range"),
            Some(Act::NameTaken) => said("name_taken", "the name is somebody else's here"),
            Some(Act::NotGone) => said("not_gone", "a process does not die"),
            Some(Act::Unreachable) => self.unreachable(name, "connect", "Connection refused"),
            Some(Act::Hang) => {
                self.sleep_while_the_test_lives(self.task_timeout);
                self.task_timed_out(name)
            }
            Some(Act::HangForever) => {
                self.sleep_while_the_test_lives(FOR_EVER);
                End::Crash
            }
            Some(Act::NoResult) => End::Done {
                failed: false,
                unreachable: false,
            },
            Some(Act::ActThenNoResult) => {
                self.act(name, worker, arguments);
                End::Done {
                    failed: false,
                    unreachable: false,
                }
            }
            // From the middle of everything, as a crash is: other hosts' parts end here too.
            Some(Act::CrashPlay) => std::process::exit(250),
        }
    }

    fn act(&self, name: &str, worker: usize, arguments: &Arguments) -> Reply {
        self.farm.change(worker, |state| {
            let reply = act(self.op, arguments, state);
            let hosts = vec![name.to_owned()];
            self.note(
                "act",
                Some(worker),
                hosts.clone(),
                Some(arguments),
                Some(reply.outcome),
            );
            if let Some(violation) = &reply.violation {
                self.note(
                    "violation",
                    Some(worker),
                    hosts,
                    Some(arguments),
                    Some(violation),
                );
            }
            reply
        })
    }

    /// Strict checking under the alias `node-<id>`, as ssh does it.
    fn check_host_key(&self, name: &str, host_key: &str) -> Option<End> {
        let mut pinned = self
            .known_hosts
            .lines()
            .filter_map(|line| line.split_once(' '));
        let mut known = false;
        if pinned.any(|(host, key)| {
            host == name && {
                known = true;
                key.trim() == host_key
            }
        }) {
            return None;
        }
        let (reason, detail) = if known {
            (
                "host_key_mismatch",
                "WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!",
            )
        } else {
            ("host_key_unknown", "Host key verification failed.")
        };
        Some(self.unreachable(name, reason, detail))
    }

    fn reply(&self, name: &str, reply: &Reply) -> End {
        let event = if reply.is_ok() { "ok" } else { "failed" };
        self.event(&json!({
            "event": event, "host": name, "task": "scripted",
            "outcome": reply.outcome, "detail": reply.detail, "evidence": reply.evidence,
        }));
        End::Done {
            failed: !reply.is_ok(),
            unreachable: false,
        }
    }

    fn task_timed_out(&self, name: &str) -> End {
        let seconds = self.task_timeout.as_secs();
        let detail = format!(
            "The orion_account action failed to execute in the expected time frame ({seconds}) and was terminated"
        );
        self.event(&json!({
            "event": "failed", "host": name, "task": "scripted",
            "outcome": null, "detail": detail, "evidence": {}, "reason": "timeout",
        }));
        End::Done {
            failed: true,
            unreachable: false,
        }
    }

    fn unreachable(&self, name: &str, reason: &str, detail: &str) -> End {
        self.event(&json!({
            "event": "unreachable", "host": name, "task": "scripted",
            "outcome": null, "detail": format!("Failed to connect to the host via ssh: {detail}"),
            "evidence": {}, "reason": reason,
        }));
        End::Done {
            failed: false,
            unreachable: true,
        }
    }

    fn event(&self, event: &Value) {
        if let Some(events) = &self.events {
            let line = format!("{event}\n");
            let mut events = events.lock().expect("no panic");
            events
                .write_all(line.as_bytes())
                .expect("ORION_EVENTS can be written");
        }
    }

    fn note(
        &self,
        what: &str,
        worker: Option<usize>,
        hosts: Vec<String>,
        arguments: Option<&Arguments>,
        outcome: Option<&str>,
    ) {
        self.farm.note(&LogLine {
            at_ms: now_ms(),
            pid: std::process::id(),
            what: what.to_owned(),
            op: self.op,
            worker,
            hosts,
            uid: arguments.map(|a| a.uid),
            epoch: arguments.map(|a| a.epoch),
            outcome: outcome.map(str::to_owned),
        });
    }

    fn sleep_while_the_test_lives(&self, limit: Duration) {
        let start = Instant::now();
        while start.elapsed() < limit && !self.farm.is_gone() {
            std::thread::sleep(Duration::from_millis(100).min(limit));
        }
    }
}

/// As ssh does it: a file that is not there is passed over.
fn identities(config: &Path) -> Option<Vec<String>> {
    let config = std::fs::read_to_string(config).ok()?;
    let files = config
        .split_ascii_whitespace()
        .filter_map(|word| word.strip_prefix("IdentityFile="));
    let keys = files.filter_map(|file| std::fs::read(file).ok());
    Some(keys.map(|key| public_line_of(&key)).collect())
}

fn read_json(path: &Path) -> Value {
    let text = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[allow(clippy::print_stdout, reason = "ansible-playbook --version prints")]
fn println_version() {
    println!("ansible-playbook [core 2.14.18]");
}
