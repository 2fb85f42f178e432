//! The agent as a process: configuration, what systemd hears, signals, exit codes.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test's helper fails the test"
)]

#[allow(dead_code, reason = "shared by several test programs")]
mod control_plane;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use control_plane::worker::Worker;
use control_plane::{ControlPlane, Forgery, Reply, signing_key};
use orion_core::{JoinLine, Seed};
use rustix::process::{Pid, Signal, kill_process};

/// A directory with an empty configuration file, which keeps this machine's own configuration out.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("orion-agentd-{name}-{}", std::process::id()));
        std::fs::create_dir(&path).expect("made");
        std::fs::write(path.join("agent.toml"), "").expect("written");
        Self(path)
    }

    fn agent(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_orion-agentd"));
        command
            .arg("--config")
            .arg(self.0.join("agent.toml"))
            .args(arguments)
            .env_clear()
            .env("ORION_AGENTD__OPS__LISTEN", "127.0.0.1:0")
            .env("ORION_AGENTD__JOIN_FILE", self.0.join("agentd/join"))
            .env("ORION_AGENTD__LOGIN_DIR", self.0.join("login"))
            .env("ORION_AGENTD__STATE_DIR", self.0.join("state"))
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).expect("removed");
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("text")
}

/// Where nobody listens: port 1 of this machine.
const NOBODY: (&str, &str) = ("API_ENDPOINT", "http://127.0.0.1:1");

#[test]
fn a_good_configuration_is_called_good() {
    let directory = Directory::new("good");
    let output = directory
        .agent(&["--check-config"], &[NOBODY])
        .output()
        .expect("ran");
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(text(&output.stdout), "configuration is good\n");
}

#[test]
fn a_bad_configuration_exits_78_and_names_every_fault() {
    let directory = Directory::new("bad");
    std::fs::write(
        directory.0.join("agent.toml"),
        "api_endpiont = \"x\"\nssh_port = \"many\"\n",
    )
    .expect("written");
    for arguments in [&["--check-config"][..], &[], &["--print-config"]] {
        let Output { status, stderr, .. } = directory.agent(arguments, &[]).output().expect("ran");
        let said = text(&stderr);
        assert_eq!(status.code(), Some(78), "{said}");
        assert!(
            said.contains("agent.toml: api_endpiont: is not a key of this daemon"),
            "{said}"
        );
        assert!(
            said.contains("agent.toml: ssh_port: must be u16, not a text"),
            "{said}"
        );
        assert!(
            said.contains("compiled default: api_endpoint: must be set"),
            "{said}"
        );
    }
}

#[test]
fn the_printed_configuration_says_where_each_value_came_from() {
    let directory = Directory::new("printed");
    let environment = [NOBODY, ("MY_HOST_PORT", "22221")];
    let output = directory
        .agent(&["--print-config"], &environment)
        .output()
        .expect("ran");
    let printed = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0));
    assert!(
        printed.contains("ssh_port = 22221  # environment variable MY_HOST_PORT"),
        "{printed}"
    );
    assert!(
        printed.contains("host_keys = \"/etc/ssh/ssh_host_*_key.pub\"  # compiled default"),
        "{printed}"
    );
}

/// An agent that is killed when the test ends early.
struct Running(Child);

impl Running {
    fn stop(&mut self) -> Option<i32> {
        let pid = i32::try_from(self.0.id()).expect("a pid");
        kill_process(Pid::from_raw(pid).expect("a pid"), Signal::TERM).expect("sent");
        self.0.wait().expect("ended").code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        self.0.kill().unwrap_or_default();
        self.0.wait().expect("ended");
    }
}

/// What a service manager hears of an agent.
struct Manager(UnixDatagram, PathBuf);

impl Manager {
    fn new(directory: &Directory) -> Self {
        let path = directory.0.join("notify");
        let socket = UnixDatagram::bind(&path).expect("bound");
        let patience = Some(Duration::from_secs(30));
        socket.set_read_timeout(patience).expect("set");
        Self(socket, path)
    }

    fn start(&self, directory: &Directory, environment: &[(&str, &str)]) -> Running {
        let socket = ("NOTIFY_SOCKET", self.1.to_str().expect("text"));
        let mut command = directory.agent(&[], &[NOBODY, socket]);
        command.envs(environment.iter().copied());
        Running(command.spawn().expect("started"))
    }

    fn hear(&self, wanted: &str) {
        let mut heard = String::new();
        while !heard.contains(wanted) {
            let mut message = [0; 4096];
            let received = self.0.recv(&mut message);
            let length = received.unwrap_or_else(|error| panic!("{error}: {heard}"));
            heard.push_str(&text(&message[..length]));
        }
    }
}

#[test]
fn systemd_hears_ready_while_the_control_plane_is_away_and_stopping_on_sigterm() {
    let directory = Directory::new("notify");
    let manager = Manager::new(&directory);
    let mut agent = manager.start(&directory, &[]);
    manager.hear("READY=1");
    manager.hear("STATUS=ready; not registered");
    assert_eq!(agent.stop(), Some(0));
    manager.hear("STOPPING=1");
}

#[test]
fn an_ops_address_that_is_taken_keeps_the_agent_from_nothing_else() {
    let directory = Directory::new("taken");
    let manager = Manager::new(&directory);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    let address = taken.local_addr().expect("address").to_string();
    let mut agent = manager.start(&directory, &[("ORION_AGENTD__OPS__LISTEN", &address)]);
    manager.hear("READY=1");
    manager.hear("STATUS=ready; not registered");
    assert_eq!(agent.stop(), Some(0));
    let mut said = String::new();
    let stderr = agent.0.stderr.as_mut().expect("piped");
    std::io::Read::read_to_string(stderr, &mut said).expect("read");
    let warning = format!("the ops listener can't listen on {address} yet");
    assert_eq!(said.matches(&warning).count(), 1, "{said}");
}

fn line() -> JoinLine {
    JoinLine {
        endpoint: "http://orion.example".to_owned(),
        token: Seed::from_bytes([100; 32]),
        signing_key: signing_key(200).public(),
    }
}

/// Runs `orion-agentd join` with `text` on standard input.
fn join(directory: &Directory, text: &str) -> Output {
    let mut child = directory
        .agent(&["join"], &[])
        .stdin(Stdio::piped())
        .spawn()
        .expect("started");
    let mut stdin = child.stdin.take().expect("a pipe");
    // No more is read than a line can have.
    stdin.write_all(text.as_bytes()).unwrap_or_default();
    drop(stdin);
    child.wait_with_output().expect("ended")
}

#[test]
fn a_join_line_is_kept_where_only_its_owner_reads_it_and_the_next_step_is_said() {
    let directory = Directory::new("joins");
    let path = directory.0.join("agentd/join");
    let mode = |path: &std::path::Path| {
        let metadata = std::fs::metadata(path).expect("there");
        metadata.permissions().mode() & 0o7777
    };
    let mut other = line();
    other.token = Seed::from_bytes([101; 32]);
    for line in [other, line()] {
        let output = join(&directory, &format!("  {}\n", line.expose()));
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let said = text(&output.stdout);
        assert!(said.contains("systemctl restart orion-agentd"), "{said}");
        assert!(!said.contains(&line.token.expose_text()));
        let kept = std::fs::read_to_string(&path).expect("there");
        assert_eq!(kept, format!("{}\n", line.expose()));
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(&directory.0.join("agentd")), 0o700);
    }
    let files = std::fs::read_dir(directory.0.join("agentd")).expect("there");
    assert_eq!(files.count(), 1);
}

#[test]
fn a_bad_join_line_is_refused_without_repeating_its_token_and_changes_nothing() {
    let directory = Directory::new("badline");
    assert_eq!(join(&directory, &line().expose()).status.code(), Some(0));
    let good = line().expose();
    let token = line().token.expose_text();
    let half = &token[..20];
    for bad in [
        String::new(),
        "x".repeat(100_000),
        good[..good.len() - 1].to_owned(),
        good.replace("http://", "https://"),
        good.replace("orion.example", "orion.example/?a=b"),
        good.replace('.', ""),
        token.clone(),
        format!("{good} {good}"),
    ] {
        let output = join(&directory, &bad);
        let said = format!("{}{}", text(&output.stdout), text(&output.stderr));
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("the join line"), "{said}");
        assert!(said.contains("nothing was changed"), "{said}");
        assert!(!said.contains(half), "{said}");
    }
    let kept = std::fs::read_to_string(directory.0.join("agentd/join")).expect("there");
    assert_eq!(kept, format!("{good}\n"));
}

#[test]
fn a_join_line_as_an_argument_is_refused_without_repeating_it() {
    let directory = Directory::new("argument");
    let output = directory.agent(&["join", &line().expose()], &[]).output();
    let output = output.expect("ran");
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("never an argument"), "{said}");
    assert!(!said.contains(&line().token.expose_text()), "{said}");
}

#[test]
fn a_worker_that_has_not_joined_has_no_key_to_rotate() {
    let directory = Directory::new("norotation");
    let output = directory.agent(&["rotate-key"], &[]).output().expect("ran");
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("has not joined"), "{said}");
    assert!(!directory.0.join("state/agent/key.next").exists());
}

#[tokio::test]
async fn answers_that_are_not_believed_are_logged_once_and_refusals_say_what_to_do() {
    let mut plane = ControlPlane::start().await;
    let worker = Worker::new("logs");
    for _ in 0..3 {
        let evil = serde_json::json!({"node_id": 66});
        plane.next_register(Reply::Forged(Forgery::Unsigned, evil));
    }
    let refused = serde_json::json!({"status": 401, "code": "join_token_refused", "detail": "it has expired"});
    plane.next_register(Reply::Json(401, refused));
    let directory = Directory::new("logged");
    let joined = join(&directory, &plane.join_line().expose());
    assert_eq!(joined.status.code(), Some(0));
    let keys = worker.path("ssh_host_*_key.pub");
    let environment = [
        ("ORION_AGENTD__HOST_KEYS", keys.to_str().expect("text")),
        ("ORION_AGENTD__HOSTNAME", "worker1"),
    ];
    let mut agent = Running(directory.agent(&[], &environment).spawn().expect("started"));
    for _ in 0..4 {
        plane.expect("/api/workers/register").await;
    }
    let out = agent.0.stderr.take().expect("a pipe");
    // It stays open until the agent has stopped.
    let mut out = BufReader::new(out).lines();
    let read = tokio::task::spawn_blocking(move || {
        let mut lines = Vec::new();
        for line in out.by_ref() {
            lines.push(line.expect("text"));
            if lines
                .last()
                .is_some_and(|line| line.contains("join_token_refused"))
            {
                break;
            }
        }
        (lines, out)
    });
    let (lines, _out) = read.await.expect("read");
    let lines = lines.join("\n");
    assert_eq!(agent.stop(), Some(0));
    assert_eq!(lines.matches("was not believed").count(), 1, "{lines}");
    assert!(lines.contains("POST /api/join-tokens"), "{lines}");
    assert!(!lines.contains(&line().token.expose_text()), "{lines}");
}
