//! Private MariaDB servers: one shared by all tests of this user, and servers of a test's own that it may stop.

use crate::child::{mortal_command, spawn};
use crate::fake_clock::FakeClock;
use crate::scratch::Scratch;
use std::fs::{self, File};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// Part of the shared directory's name: raise it when options or layout change.
const LAYOUT: u32 = 2;
/// Bytes; the databases of many tests at once need some hundred MiB.
const ENOUGH_MEMORY: u64 = 2 << 30;
const START_LIMIT: Duration = Duration::from_secs(60);

/// What a server does with a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// It may be lost when the machine stops: fast.
    Relaxed,
    /// It is on disk, as in production: survives `kill -9` of the server too.
    Durable,
}

/// A server that this process alone uses and ends.
#[derive(Debug)]
pub(crate) struct OwnServer {
    scratch: Scratch,
    durability: Durability,
    /// What it sees instead of the machine's.
    clock: Option<FakeClock>,
    child: Mutex<Option<Child>>,
}

impl OwnServer {
    pub(crate) fn start(durability: Durability, clock: Option<FakeClock>) -> Self {
        let scratch = Scratch::new("db");
        copy_template(&scratch.join("data"));
        let server = Self {
            scratch,
            durability,
            clock,
            child: Mutex::new(None),
        };
        server.up();
        server
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.scratch.join("sock")
    }

    /// Starts it (again) and waits until it accepts connections.
    pub(crate) fn up(&self) {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.scratch.join("log"));
        let log = log.expect("mariadbd's log");
        let mut command = mortal_command("mariadbd");
        command
            .args(options(
                &self.scratch.join("data"),
                &self.socket(),
                self.durability,
            ))
            .envs(self.clock.iter().flat_map(FakeClock::environment))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log);
        let child = spawn(command).expect("mariadbd (package mariadb-server-core) starts");
        *self.child() = Some(child);
        await_socket(&self.socket(), &self.scratch.join("log"));
    }

    /// Ends it: orderly or at once.
    pub(crate) fn down(&self, orderly: bool) {
        let Some(mut child) = self.child().take() else {
            return;
        };
        let pid = rustix::process::Pid::from_child(&child);
        let signal = if orderly {
            rustix::process::Signal::TERM
        } else {
            rustix::process::Signal::KILL
        };
        rustix::process::kill_process(pid, signal).expect("a signal to our own child");
        child.wait().expect("mariadbd's end");
    }

    fn child(&self) -> std::sync::MutexGuard<'_, Option<Child>> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for OwnServer {
    fn drop(&mut self) {
        self.down(false);
    }
}

/// The socket of the server that all tests of this user share; started when it does not run. It ends by itself some
/// 20 s after the last process that called this has ended.
pub(crate) fn shared_socket() -> PathBuf {
    static USER: OnceLock<(PathBuf, File)> = OnceLock::new();
    let (socket, _) = USER.get_or_init(|| {
        let dir = shared_dir();
        let socket = dir.join("sock");
        let _start = lock(&dir.join("start.lock"));
        let users = open(&dir.join("users.lock"));
        users.lock_shared().expect("a shared lock");
        if UnixStream::connect(&socket).is_err() {
            start_shared(&dir, &socket);
        }
        (socket, users)
    });
    socket.clone()
}

fn start_shared(dir: &Path, socket: &Path) {
    let data = data_dir(dir);
    if data.exists() {
        fs::remove_dir_all(&data).expect("old data removed");
    }
    copy_template_locked(dir, &data);
    let log = File::create(dir.join("log")).expect("mariadbd's log");
    // `--fork`: nobody waits for the server; it outlives this process, and others may rely on it.
    let mut script = Command::new("setsid");
    script
        .args(["--fork", "bash", "-c", include_str!("shared_server.sh")])
        .arg("orion-testkit-mariadb")
        .args([dir, &data])
        .arg("mariadbd")
        .args(options(&data, socket, Durability::Relaxed))
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a second handle"))
        .stderr(log);
    let forked = script.status().expect("setsid (package util-linux)");
    assert!(forked.success(), "setsid: {forked}");
    await_socket(socket, &dir.join("log"));
}

fn options(data: &Path, socket: &Path, durability: Durability) -> Vec<String> {
    let mut options = vec!["--no-defaults".to_owned()];
    if rustix::process::getuid().is_root() {
        options.push("--user=root".to_owned());
    }
    options.push(format!("--datadir={}", data.display()));
    options.push(format!("--socket={}", socket.display()));
    options.push(format!("--pid-file={}.pid", socket.display()));
    // Character sets as in Debian's packaged configuration.
    let fixed = "--skip-networking --skip-log-bin --skip-name-resolve --performance-schema=OFF \
        --innodb-buffer-pool-size=128M --innodb-log-file-size=32M --max-connections=1000 \
        --character-set-server=utf8mb4 --collation-server=utf8mb4_general_ci";
    options.extend(fixed.split_whitespace().map(str::to_owned));
    let flushing = match durability {
        Durability::Relaxed => {
            "--innodb-flush-log-at-trx-commit=0 --loose-innodb-flush-method=nosync"
        }
        Durability::Durable => "--innodb-flush-log-at-trx-commit=1",
    };
    options.extend(flushing.split_whitespace().map(str::to_owned));
    options
}

fn await_socket(socket: &Path, log: &Path) {
    let start = Instant::now();
    while UnixStream::connect(socket).is_err() {
        if start.elapsed() > START_LIMIT {
            let log = fs::read_to_string(log).unwrap_or_default();
            panic!(
                "mariadbd did not start within {} s:\n{log}",
                START_LIMIT.as_secs()
            );
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn shared_dir() -> PathBuf {
    private_dir(&std::env::temp_dir())
}

/// In memory where there is plenty: making a database with its tables costs 20 ms there, and 600 ms on a disk.
fn data_dir(dir: &Path) -> PathBuf {
    let memory = Path::new("/dev/shm");
    let free = rustix::fs::statvfs(memory).map_or(0, |stat| stat.f_bavail * stat.f_frsize);
    let dir = if free > ENOUGH_MEMORY {
        private_dir(memory)
    } else {
        dir.to_owned()
    };
    dir.join("data")
}

fn private_dir(parent: &Path) -> PathBuf {
    let uid = rustix::process::getuid();
    let dir = parent.join(format!("orion-testkit-{}-v{LAYOUT}", uid.as_raw()));
    if let Err(error) = fs::DirBuilder::new().mode(0o700).create(&dir) {
        assert!(
            error.kind() == std::io::ErrorKind::AlreadyExists,
            "{}: {error}",
            dir.display()
        );
    }
    let meta = fs::symlink_metadata(&dir).expect("a private directory");
    let ours = meta.is_dir() && meta.uid() == uid.as_raw() && meta.mode() & 0o077 == 0;
    assert!(
        ours,
        "{} is not a private directory of this user: remove it",
        dir.display()
    );
    dir
}

fn copy_template(data: &Path) {
    let dir = shared_dir();
    let _start = lock(&dir.join("start.lock"));
    copy_template_locked(&dir, data);
}

/// Copies an empty data directory, which takes seconds to make, and is made once.
fn copy_template_locked(dir: &Path, data: &Path) {
    let template = dir.join("template");
    if !template.is_dir() {
        let new = dir.join("template.new");
        if new.exists() {
            fs::remove_dir_all(&new).expect("a half-made template removed");
        }
        let mut install = Command::new("mariadb-install-db");
        // "normal": root has no password and needs no Unix account of that name, so that any user can run the tests.
        install.args([
            "--no-defaults",
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
        ]);
        install.args(["--skip-name-resolve", "--innodb-log-file-size=32M"]);
        install
            .args(["--innodb-flush-log-at-trx-commit=0"])
            .arg(format!("--datadir={}", new.display()));
        if rustix::process::getuid().is_root() {
            install.arg("--user=root");
        }
        run(&mut install);
        fs::rename(&new, &template).expect("the template in place");
    }
    run(Command::new("cp").arg("-a").arg(&template).arg(data));
}

fn run(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

fn open(path: &Path) -> File {
    let file = File::options().create(true).append(true).open(path);
    file.unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn lock(path: &Path) -> File {
    let file = open(path);
    file.lock()
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    file
}
