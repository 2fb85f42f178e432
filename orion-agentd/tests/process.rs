//! The agent as a process: configuration, what systemd hears, signals, exit codes.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test's helper fails the test"
)]

use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

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
        printed.contains("state_dir = \"/var/lib/orion-node\"  # compiled default"),
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

#[test]
fn systemd_hears_ready_while_the_control_plane_is_away_and_stopping_on_sigterm() {
    let directory = Directory::new("notify");
    let socket_path = directory.0.join("notify");
    let socket = UnixDatagram::bind(&socket_path).expect("bound");
    socket
        .set_read_timeout(Some(Duration::from_secs(30)))
        .expect("set");
    let hear = |wanted: &str| {
        let mut heard = String::new();
        while !heard.contains(wanted) {
            let mut message = [0; 4096];
            let length = socket
                .recv(&mut message)
                .unwrap_or_else(|error| panic!("{error}: {heard}"));
            heard.push_str(&text(&message[..length]));
        }
    };
    let environment = [
        NOBODY,
        ("NOTIFY_SOCKET", socket_path.to_str().expect("text")),
    ];
    let mut agent = Running(directory.agent(&[], &environment).spawn().expect("started"));
    hear("READY=1");
    hear("STATUS=ready; not registered");
    assert_eq!(agent.stop(), Some(0));
    hear("STOPPING=1");
}

#[test]
fn an_ops_address_that_is_taken_exits_1_and_says_so() {
    let directory = Directory::new("taken");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    let address = taken.local_addr().expect("address").to_string();
    let environment = [NOBODY, ("ORION_AGENTD__OPS__LISTEN", address.as_str())];
    let output = directory.agent(&[], &environment).output().expect("ran");
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    assert!(
        said.contains(&format!("the ops listener can't listen on {address}")),
        "{said}"
    );
}
