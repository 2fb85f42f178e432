//! A real ansible-playbook and a real ssh that hang: nothing of them outlives its play, however schedd ends.
//!
//! `ORION_ANSIBLE_PLAYBOOK` names another ansible-playbook than Debian's, to try another version.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use std::path::{Path, PathBuf};

use orion_core::{RunKind, RunOutcome};
use orion_testkit::{BlackHole, Daemon, PATIENCE, wait_until, wait_until_async};
use support::{Bed, Plan, working_in};

const PLAYBOOK: &str = "
- hosts: all
  strategy: free
  gather_facts: false
  tasks:
    - ansible.builtin.raw: 'true'
      timeout: \"{{ orion_host_timeout_s }}\"
";

/// A node whose SSH port accepts and never says anything, and a play over it whose ssh waits for a minute.
struct Hanging {
    bed: Bed,
    plan: Plan,
    _hole: BlackHole,
}

impl Hanging {
    async fn new() -> Self {
        let bed = Bed::new(0).await;
        let hole = BlackHole::listen().await;
        let mut plan = bed.plan();
        bed.scratch
            .write_secret("playbooks/health_check.yml", PLAYBOOK);
        let plugins = Path::new(env!("CARGO_MANIFEST_DIR")).join("../playbooks/callback_plugins");
        std::os::unix::fs::symlink(plugins, bed.scratch.join("playbooks/callback_plugins"))
            .unwrap();
        plan.playbook_command = std::env::var_os("ORION_ANSIBLE_PLAYBOOK")
            .map_or_else(|| "/usr/bin/ansible-playbook".into(), PathBuf::from);
        plan.host_timeout_s = 70;
        plan.connect_timeout_s = 60;
        bed.register_at(
            "silent",
            hole.address().port(),
            "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAA",
        )
        .await;
        Self {
            bed,
            plan,
            _hole: hole,
        }
    }

    fn plays(&self) -> PathBuf {
        self.bed.runtime_dir(&self.plan).join("plays")
    }

    /// Waits until ansible-playbook, its worker and the worker's ssh are there; returns their ids. (Ansible asks ssh what
    /// it can do before it starts workers.)
    async fn hangs(&self) -> Vec<u32> {
        let processes = wait_until("an ssh hangs", PATIENCE, || {
            let processes = working_in(&self.plays());
            let named = |name| processes.iter().filter(|(_, is)| is == name).count();
            if named("ssh") >= 1 && named("ansible-playboo") >= 2 {
                Ok(processes)
            } else {
                Err(format!("{processes:?}"))
            }
        })
        .await;
        processes.into_iter().map(|(pid, _)| pid).collect()
    }

    fn still_of(&self, before: &[u32]) -> Vec<(u32, String)> {
        let mut processes = working_in(&self.plays());
        processes.retain(|(pid, _)| before.contains(pid));
        processes
    }
}

async fn start(hanging: &Hanging) -> Daemon {
    let daemon = hanging.bed.start(&hanging.plan);
    daemon.ready().await;
    daemon
}

#[tokio::test]
async fn a_start_ends_what_a_killed_schedd_left_running() {
    let hanging = Hanging::new().await;
    let mut daemon = start(&hanging).await;
    let before = hanging.hangs().await;
    daemon.kill();
    assert_eq!(
        hanging.still_of(&before).len(),
        before.len(),
        "nobody ends them by itself"
    );

    daemon.start_again();
    daemon.ready().await;
    assert_eq!(hanging.still_of(&before), []);
}

#[tokio::test]
async fn a_schedd_that_stops_takes_its_plays_with_it() {
    let mut hanging = Hanging::new().await;
    hanging.plan.drain_s = 0;
    let mut daemon = start(&hanging).await;
    let before = hanging.hangs().await;
    daemon.terminate();
    assert!(daemon.ended(PATIENCE).await.success());
    assert_eq!(hanging.still_of(&before), []);
    let directories = std::fs::read_dir(hanging.plays()).unwrap().count();
    assert_eq!(directories, 0);
}

#[tokio::test]
async fn an_ssh_that_is_given_up_is_an_unreachable_node_and_leaves_nothing() {
    let mut hanging = Hanging::new().await;
    hanging.plan.connect_timeout_s = 2;
    let _daemon = start(&hanging).await;
    wait_until_async("the inspection is recorded", PATIENCE, || async {
        let runs = hanging.bed.runs(RunKind::Inspect).await;
        let seen = runs
            .iter()
            .any(|run| run.outcome == Some(RunOutcome::Unreachable));
        if seen {
            Ok(())
        } else {
            Err(format!("{runs:#?}"))
        }
    })
    .await;
    wait_until("nothing of the play is left", PATIENCE, || {
        let left = working_in(&hanging.plays());
        if left.is_empty() {
            Ok(())
        } else {
            Err(format!("{left:?}"))
        }
    })
    .await;
}
