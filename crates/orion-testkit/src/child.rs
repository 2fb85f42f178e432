//! Child processes that can't outlive the test, and where the workspace's own programs are.

use std::io;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::{OnceLock, mpsc};

type Job = (Command, mpsc::Sender<io::Result<Child>>);

/// A command that the kernel kills when this process is gone, however it went.
pub(crate) fn mortal_command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

/// Starts a [`mortal_command`]. The death signal is sent when the *thread* that started a child ends, so one thread that
/// never ends starts them all.
pub(crate) fn spawn(command: Command) -> io::Result<Child> {
    static SPAWNER: OnceLock<mpsc::Sender<Job>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, jobs) = mpsc::channel::<Job>();
        std::thread::spawn(move || {
            for (mut command, reply) in jobs {
                reply.send(command.spawn()).expect("the caller waits");
            }
        });
        sender
    });
    let (reply, answer) = mpsc::channel();
    spawner.send((command, reply)).expect("the spawner lives");
    answer.recv().expect("the spawner answers")
}

/// The path of one of the workspace's programs, built in the same profile as the running test.
///
/// # Panics
/// When it has not been built, saying how to.
pub fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("the test's own path");
    let profile = test.ancestors().find(|dir| dir.join("deps").is_dir());
    let path = profile
        .expect("target/<profile> above the test's own path")
        .join(name);
    let package = if name == "orion-scripted-playbook" {
        "orion-testkit"
    } else {
        name
    };
    assert!(
        path.is_file(),
        "{} is missing: run `cargo build -p {package} --bins` (nextest does it by itself)",
        path.display()
    );
    path
}
