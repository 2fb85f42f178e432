//! Finding and ending the processes of a UID.

use std::path::Path;
use std::time::Duration;

use orion_core::Uid;
use rustix::process::{
    Pid, PidfdFlags, Resource, Rlimit, Signal, pidfd_open, pidfd_send_signal, prlimit,
};

use crate::records::is_managed;

/// So many scans in a row must find nothing: one can miss a process that forks meanwhile.
const QUIET_SCANS: u32 = 3;
/// Rounds of killing at most; the caller comes back.
const MAX_ROUNDS: u32 = 150;
const PAUSE: Duration = Duration::from_millis(20);

/// Kills what runs as `uid` until nothing is seen any more. Returns how many processes it met, and how many it left.
pub(crate) async fn end_all(uid: Uid) -> (usize, usize) {
    let mut met = 0;
    let mut left = of(uid);
    if left.is_empty() {
        return (0, 0);
    }
    let mut quiet = 0;
    for _ in 0..MAX_ROUNDS {
        met += left.len();
        end_once(uid, &left);
        tokio::time::sleep(PAUSE).await;
        left = of(uid);
        quiet = if left.is_empty() { quiet + 1 } else { 0 };
        if quiet == QUIET_SCANS {
            break;
        }
    }
    (met, left.len())
}

/// The processes that have `uid` as any of their user ids. None of a UID that can't be one of Orion's.
pub(crate) fn of(uid: Uid) -> Vec<Pid> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let pids = names.filter_map(|name| Pid::from_raw(name.parse().ok()?));
    pids.filter(|pid| is_managed(uid) && runs_as(*pid, uid))
        .collect()
}

/// One round. A loop of forks must lose: first no process of the UID may fork any more.
fn end_once(uid: Uid, pids: &[Pid]) {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    for pid in pids.iter().filter(|pid| runs_as(**pid, uid)) {
        // One that is gone by now needs no limit.
        prlimit(Some(*pid), Resource::Nproc, none).map_or_else(drop, drop);
    }
    for pid in pids {
        kill(uid, *pid);
    }
}

/// Kills `pid`, unless its number went to a process of somebody else in the meantime.
fn kill(uid: Uid, pid: Pid) {
    let Ok(handle) = pidfd_open(pid, PidfdFlags::empty()) else {
        return;
    };
    if runs_as(pid, uid) {
        // Gone by now is as good; what can't be ended is seen in the next scan.
        pidfd_send_signal(handle, Signal::KILL).unwrap_or_default();
    }
}

fn runs_as(pid: Pid, uid: Uid) -> bool {
    let directory = Path::new("/proc").join(pid.as_raw_nonzero().to_string());
    let Ok(status) = std::fs::read(directory.join("status")) else {
        return false;
    };
    // A program may give itself a name that is no text.
    let status = String::from_utf8_lossy(&status);
    if !has_uid(&status, uid) {
        return false;
    }
    // A zombie has ended, unless it is merely the first of several threads that has.
    let threads = || std::fs::read_dir(directory.join("task")).map_or(0, Iterator::count);
    !is_zombie(&status) || threads() > 1
}

fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name))
}

/// Real, effective, saved or file system UID.
fn has_uid(status: &str, uid: Uid) -> bool {
    let uids = field(status, "Uid:\t").unwrap_or_default();
    uids.split_ascii_whitespace()
        .any(|text| text.parse() == Ok(uid.0))
}

fn is_zombie(status: &str) -> bool {
    field(status, "State:\t").is_some_and(|state| state.starts_with(['Z', 'X']))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::CommandExt;
    use std::process::{Command, Stdio};

    #[test]
    fn any_of_the_four_uids_makes_a_process_an_accounts() {
        let status =
            "Name:\tUid:\t1000001\nState:\tS (sleeping)\nUid:\t0\t0\t1000002\t0\nGid:\t5\n";
        assert!(has_uid(status, Uid(1_000_002)));
        for other in [1_000_001, 100_000, 1_000_003, 5] {
            assert!(!has_uid(status, Uid(other)), "{other}");
        }
        assert!(!is_zombie(status));
        assert!(is_zombie("Name:\tx\nState:\tZ (zombie)\n"));
    }

    #[tokio::test]
    async fn uids_that_are_not_managed_have_no_processes_to_end() {
        for uid in [0, 1000, 65_534, u32::MAX] {
            assert!(of(Uid(uid)).is_empty(), "{uid}");
        }
    }

    /// As root alone can anything run as another UID; elsewhere there is nothing to see.
    #[tokio::test]
    async fn as_root_all_processes_of_the_uid_are_ended_forks_and_daemons_too_and_no_others() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        // Of no account anywhere, and different for tests at the same time.
        let uid = 3_000_000_000 + std::process::id();
        let run = |uid: u32, script: &str| {
            let mut command = Command::new("/bin/sh");
            command.args(["-c", script]).uid(uid).gid(uid);
            command.stdin(Stdio::null()).process_group(0);
            command.spawn().expect("started")
        };
        let mut other = run(uid + 1, "exec sleep 60");
        let mut own = [
            run(uid, "exec sleep 60"),
            run(
                uid,
                "setsid sh -c 'trap \"\" TERM HUP; sleep 60; sleep 60' & sleep 60",
            ),
            // No loop of forks of its own may outlive the test that failed.
            run(uid, "for i in $(seq 2000); do sleep 5 & sleep 0.01; done"),
        ];
        while of(Uid(uid)).len() < 5 {
            tokio::time::sleep(PAUSE).await;
        }
        let (met, left) = end_all(Uid(uid)).await;
        let spared = of(Uid(uid + 1)).len();
        other.kill().expect("killed");
        other.wait().expect("ended");
        for child in &mut own {
            child.wait().expect("ended");
        }
        assert!(met >= 5, "{met}");
        assert_eq!((left, spared), (0, 1));
        assert_eq!(end_all(Uid(uid)).await, (0, 0));
    }
}
