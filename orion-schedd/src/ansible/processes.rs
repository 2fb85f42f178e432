//! Containment: finding every process of a play, and ending them until none is left.
//!
//! A process belongs to a play when it descends from the play's ansible-playbook, or its environment carries the play's
//! mark, or its working directory is the play's. One sign alone is not enough: ansible-core 2.19 gives its workers
//! sessions of their own, orphans lose their ancestors, and OpenSSH's masters overwrite their environment with their
//! process title (tried with 9.2: what stays is the working directory).

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, pidfd_open, pidfd_send_signal, waitpid,
};
use tokio::process::{Child, Command};

/// How long each rung of the ladder may take before the next one.
const RUNGS: [(Signal, Duration); 3] = [
    (Signal::INT, Duration::from_secs(3)),
    (Signal::TERM, Duration::from_secs(2)),
    (Signal::KILL, Duration::from_secs(10)),
];
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// What the processes of one play, or of all plays of one instance, have in common.
#[derive(Debug, Clone)]
pub(super) struct Mark {
    value: String,
}

impl Mark {
    pub(super) const VARIABLE: &'static str = "ORION_RUN";

    pub(super) fn of_play(instance: &str, play: u64) -> Self {
        Self {
            value: format!("{instance}:{play}"),
        }
    }

    pub(super) fn value(&self) -> &str {
        &self.value
    }
}

/// Whose processes are looked for.
#[derive(Debug)]
pub(super) enum Wanted<'a> {
    /// One play's; `leader` is its ansible-playbook while that is not reaped.
    Play {
        mark: &'a Mark,
        directory: &'a Path,
        leader: Option<i32>,
    },
    /// All plays' of an instance that is gone: its marks, and its directories below `plays`.
    Instance { instance: &'a str, plays: &'a Path },
}

/// Processes that did not end, not even by SIGKILL: they hang in the kernel.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} process(es) did not end: {pids:?}", pids.len())]
pub(crate) struct Left {
    /// Their ids.
    pub pids: Vec<i32>,
}

/// A process as /proc shows it.
#[derive(Debug)]
pub(super) struct Seen {
    pid: i32,
    parent: i32,
    dead: bool,
    mark: Option<String>,
    events: Option<PathBuf>,
    directory: Option<PathBuf>,
}

/// Keeps track of the children that tokio reaps, so that orphans, which become our children too, are reaped by id and
/// no status is taken from tokio.
#[derive(Debug, Default)]
pub(crate) struct Containment {
    children: Mutex<HashSet<i32>>,
}

impl Containment {
    /// Makes this process the parent of orphans among its descendants.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn new() -> io::Result<Self> {
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
        Ok(Self::default())
    }

    /// Starts a child that tokio will reap; [`forget`](Self::forget) it when that is done.
    pub(super) fn spawn(&self, command: &mut Command) -> io::Result<(Child, i32)> {
        // Held over both steps: the child may be dead before it is in the list.
        let mut children = self.children();
        let child = command.spawn()?;
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
        let pid = pid.ok_or_else(|| io::Error::other("the child has no process id"))?;
        children.insert(pid);
        Ok((child, pid))
    }

    pub(super) fn forget(&self, pid: i32) {
        self.children().remove(&pid);
    }

    /// Reaps orphans that have died.
    fn reap_orphans(&self) {
        let us = rustix::process::getpid().as_raw_nonzero().get();
        let dead: Vec<i32> = own_entries()
            .filter_map(|(pid, entry)| {
                let (parent, dead) = stat(&entry)?;
                (dead && parent == us).then_some(pid)
            })
            .collect();
        // Asked after /proc is read: a child of tokio's is in the list from its birth until tokio has reaped it.
        let children = self.children();
        for orphan in dead.into_iter().filter(|pid| !children.contains(pid)) {
            if let Some(pid) = Pid::from_raw(orphan)
                && let Err(error) = waitpid(Some(pid), WaitOptions::NOHANG)
            {
                tracing::debug!(orphan, %error, "an orphan was reaped by somebody else");
            }
        }
    }

    /// Ends every process of a play, gently first. Blocks; returns when none is left.
    ///
    /// # Errors
    /// The processes that outlived SIGKILL.
    pub(super) fn stop(&self, wanted: &Wanted<'_>) -> Result<(), Left> {
        self.climb(wanted, &RUNGS)
    }

    /// As [`stop`](Self::stop), for what a play leaves behind after its end: no time for SIGINT, which is a request to
    /// ansible-playbook itself.
    pub(super) fn sweep(&self, wanted: &Wanted<'_>) -> Result<(), Left> {
        let rungs = [
            (Signal::TERM, Duration::from_secs(1)),
            (Signal::KILL, Duration::from_secs(10)),
        ];
        self.climb(wanted, &rungs)
    }

    fn climb(&self, wanted: &Wanted<'_>, rungs: &[(Signal, Duration)]) -> Result<(), Left> {
        for (signal, patience) in rungs {
            let start = Instant::now();
            let mut told = HashSet::new();
            loop {
                let found = hold(&members(wanted));
                // Looked at a second time: an id may have been used again before its descriptor was opened, and a
                // process may have been born while /proc was read.
                let confirmed = members(wanted);
                self.reap_orphans();
                if found.is_empty() && confirmed.is_empty() {
                    return Ok(());
                }
                for (pid, descriptor) in &found {
                    // Those born meanwhile hear it too; a gentle signal is said once, SIGKILL as often as it takes.
                    if confirmed.contains(pid) && (told.insert(*pid) || *signal == Signal::KILL) {
                        send(*pid, descriptor, *signal);
                    }
                }
                if start.elapsed() >= *patience {
                    break;
                }
                std::thread::sleep(LOOK_AGAIN);
            }
        }
        Err(Left {
            pids: members(wanted),
        })
    }

    fn children(&self) -> MutexGuard<'_, HashSet<i32>> {
        self.children.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Descriptors of processes: an id is used again after its process, a descriptor is not.
fn hold(pids: &[i32]) -> Vec<(i32, OwnedFd)> {
    let open = |pid: &i32| {
        Some((
            *pid,
            pidfd_open(Pid::from_raw(*pid)?, PidfdFlags::empty()).ok()?,
        ))
    };
    pids.iter().filter_map(open).collect()
}

fn send(pid: i32, descriptor: &OwnedFd, signal: Signal) {
    match pidfd_send_signal(descriptor, signal) {
        Ok(()) | Err(Errno::SRCH) => {}
        Err(error) => tracing::warn!(pid, %error, "a process of a play can't be signalled"),
    }
}

/// The living processes that are wanted, oldest ids first.
fn members(wanted: &Wanted<'_>) -> Vec<i32> {
    let processes = processes();
    let parents: HashMap<i32, i32> = processes
        .iter()
        .map(|seen| (seen.pid, seen.parent))
        .collect();
    let marked: HashSet<i32> = processes
        .iter()
        .filter(|seen| wanted.names(seen))
        .map(|seen| seen.pid)
        .collect();
    let us = std::process::id();
    let belongs = |seen: &&Seen| {
        let ancestors = std::iter::successors(Some(seen.pid), |pid| parents.get(pid).copied());
        // A chain has an end; should /proc show a loop while ids change hands, so has this.
        !seen.dead
            && i64::from(seen.pid) != i64::from(us)
            && ancestors.take(64).any(|pid| marked.contains(&pid))
    };
    processes
        .iter()
        .filter(belongs)
        .map(|seen| seen.pid)
        .collect()
}

impl Wanted<'_> {
    /// Whether the process itself carries a sign; its descendants follow.
    fn names(&self, seen: &Seen) -> bool {
        match self {
            Self::Play {
                mark,
                directory,
                leader,
            } => {
                *leader == Some(seen.pid)
                    || seen.mark.as_deref() == Some(mark.value())
                    || seen
                        .directory
                        .as_ref()
                        .is_some_and(|place| place.starts_with(directory))
            }
            Self::Instance { instance, plays } => {
                seen.instance(plays).as_deref() == Some(*instance)
            }
        }
    }
}

impl Seen {
    /// The instance whose play, below the directory `plays`, this process belongs to by its own signs.
    pub(super) fn instance(&self, plays: &Path) -> Option<String> {
        let below = |path: &PathBuf| -> Option<String> {
            let first = path.strip_prefix(plays).ok()?.iter().next()?;
            Some(first.to_str()?.split_once('-')?.0.to_owned())
        };
        // Other instances may keep their plays elsewhere, and then they are not ours to judge: an environment's mark
        // counts only together with a path below our directory.
        let by_environment = || {
            let below_ours = self
                .events
                .as_ref()
                .is_some_and(|path| path.starts_with(plays));
            let mark = self.mark.as_deref().filter(|_| below_ours)?;
            Some(mark.split_once(':')?.0.to_owned())
        };
        self.directory
            .as_ref()
            .and_then(below)
            .or_else(by_environment)
    }
}

/// Our user's processes. One that ends while it is read is left out.
pub(super) fn processes() -> Vec<Seen> {
    own_entries()
        .filter_map(|(pid, entry)| look(pid, &entry))
        .collect()
}

/// The directories of our user's processes in /proc.
fn own_entries() -> impl Iterator<Item = (i32, PathBuf)> {
    let user = rustix::process::geteuid().as_raw();
    let entries = std::fs::read_dir("/proc");
    if let Err(error) = &entries {
        tracing::error!(%error, "/proc can't be read: processes of plays are not seen");
    }
    entries.into_iter().flatten().filter_map(move |entry| {
        let entry = entry.ok()?;
        let pid = entry.file_name().to_str()?.parse().ok()?;
        (entry.metadata().ok()?.uid() == user).then(|| (pid, entry.path()))
    })
}

/// The parent of a process, and whether it is dead and only waits to be reaped.
fn stat(entry: &Path) -> Option<(i32, bool)> {
    // pid (name) state parent …; the name may hold anything, also brackets.
    let stat = std::fs::read_to_string(entry.join("stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let (state, parent) = (fields.next()?, fields.next()?);
    Some((parent.parse().ok()?, matches!(state, "Z" | "X")))
}

fn look(pid: i32, entry: &Path) -> Option<Seen> {
    let (parent, dead) = stat(entry)?;
    let environment = std::fs::read(entry.join("environ")).unwrap_or_default();
    let variable = |name: &str| {
        environment.split(|byte| *byte == 0).find_map(|pair| {
            let value = pair.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
            String::from_utf8(value.to_vec()).ok()
        })
    };
    Some(Seen {
        pid,
        parent,
        dead,
        mark: variable(Mark::VARIABLE),
        events: variable("ORION_EVENTS").map(PathBuf::from),
        directory: std::fs::read_link(entry.join("cwd"))
            .ok()
            .map(without_deleted),
    })
}

/// A directory that was removed is shown with this behind its path.
fn without_deleted(path: PathBuf) -> PathBuf {
    match path.as_os_str().as_bytes().strip_suffix(b" (deleted)") {
        Some(bare) => PathBuf::from(OsStr::from_bytes(bare)),
        None => path,
    }
}

#[cfg(test)]
mod tests;
