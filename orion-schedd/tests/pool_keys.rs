//! The pool's key is rotated while logins, plays and rentals go on.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "helpers of tests"
)]

mod support;

use std::path::PathBuf;
use std::process::{Command, Output};

use orion_testkit::{Daemon, PATIENCE, Worker, binary, wait_until_async};
use support::{Bed, Plan};

/// The command as an administrator runs it.
fn run(bed: &Bed, plan: &Plan, arguments: &[&str]) -> Output {
    let config = bed
        .scratch
        .write_secret("command.toml", bed.configuration(plan));
    Command::new(binary("orion-schedd"))
        .arg("--config")
        .arg(config)
        .args(arguments)
        .output()
        .unwrap()
}

fn rotate(bed: &Bed, plan: &Plan) -> String {
    let output = run(bed, plan, &["rotate-pool-key"]);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn retire(bed: &Bed, plan: &Plan) -> Output {
    run(
        bed,
        plan,
        &["retire-pool-key", "--database-user", bed.db.user()],
    )
}

fn public(bed: &Bed) -> String {
    let mut file = bed.workers.pool_key().as_os_str().to_owned();
    file.push(".pub");
    let line = std::fs::read_to_string(file).unwrap();
    let words: Vec<&str> = line.split_whitespace().take(2).collect();
    words.join(" ")
}

fn old_file(bed: &Bed) -> PathBuf {
    bed.workers.pool_key().with_file_name("pool_key.old")
}

async fn agents_are_told(bed: &Bed, newest_first: &[&String]) {
    let told = bed.store.pool_keys().await.unwrap();
    assert_eq!(told.iter().collect::<Vec<_>>(), newest_first);
}

async fn restart(daemon: &mut Daemon) {
    daemon.terminate();
    assert!(daemon.ended(PATIENCE).await.success());
    daemon.start_again();
    daemon.ready().await;
}

async fn login_key_is(bed: &Bed, worker: &Worker, key: &str) {
    let what = format!("{} was logged in to with the key", worker.hostname());
    wait_until_async(&what, PATIENCE, || async {
        let targets = bed.store.probe_targets().await.unwrap();
        let node = bed.node_named(worker.hostname()).await.node_id;
        let target = targets.into_iter().find(|target| target.node == node);
        match target.unwrap().login_key {
            Some(used) if used == key => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

/// Rents and releases every worker: each play logs in to it.
async fn every_worker_can_be_rented(bed: &Bed) {
    let all = bed.workers.all().len();
    bed.ready_nodes(all).await;
    let rentals = bed.rented(u32::try_from(all).unwrap()).await;
    bed.accounts_are(&rentals);
    for rental in rentals {
        bed.release(rental).await;
    }
    bed.ready_nodes(all).await;
}

#[tokio::test]
async fn the_pools_key_is_rotated_without_a_login_that_fails() {
    let bed = Bed::new(2).await;
    let plan = bed.plan();
    let mut daemon = bed.start(&plan);
    bed.all_ready().await;
    let old = public(&bed);
    agents_are_told(&bed, &[&old]).await;
    for worker in bed.workers.all() {
        login_key_is(&bed, worker, &old).await;
    }

    // Rotated, not restarted: plays read the files anew.
    let said = rotate(&bed, &plan);
    assert!(said.contains("restart orion-schedd"), "{said}");
    let new = public(&bed);
    assert_ne!(new, old);
    every_worker_can_be_rented(&bed).await;
    let early = retire(&bed, &plan);
    assert_eq!(early.status.code(), Some(1), "{early:?}");

    // Restarted: agents can be told the new key; no worker has it yet.
    restart(&mut daemon).await;
    agents_are_told(&bed, &[&new, &old]).await;
    every_worker_can_be_rented(&bed).await;

    // One worker's agent has heard of it.
    bed.workers[0].lets_in(&[&new, &old]);
    login_key_is(&bed, &bed.workers[0], &new).await;
    let refused = retire(&bed, &plan);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(
        said.contains("worker2") && !said.contains("worker1"),
        "{said}"
    );
    assert!(old_file(&bed).exists());
    agents_are_told(&bed, &[&new, &old]).await;
    every_worker_can_be_rented(&bed).await;

    bed.workers[1].lets_in(&[&new, &old]);
    login_key_is(&bed, &bed.workers[1], &new).await;
    let retired = retire(&bed, &plan);
    assert!(retired.status.success(), "{retired:?}");
    assert!(!old_file(&bed).exists());
    agents_are_told(&bed, &[&new]).await;
    let again = retire(&bed, &plan);
    assert!(
        String::from_utf8_lossy(&again.stdout).contains("nothing to do"),
        "{again:?}"
    );

    // The agents take the old key away; the daemon still tries it until its restart.
    for worker in bed.workers.all() {
        worker.lets_in(&[&new]);
    }
    every_worker_can_be_rented(&bed).await;
    restart(&mut daemon).await;
    agents_are_told(&bed, &[&new]).await;
    every_worker_can_be_rented(&bed).await;
    let failed = "SELECT COUNT(*) FROM runs WHERE state = 'failed'";
    assert_eq!(bed.db.sql_one(failed), "0");
}

#[tokio::test]
async fn a_retirement_that_was_ended_before_the_file_went_is_finished_by_the_next_one() {
    let bed = Bed::new(1).await;
    let plan = bed.plan();
    rotate(&bed, &plan);
    let new = public(&bed);
    bed.workers[0].lets_in(&[&new]);
    let mut daemon = bed.start(&plan);
    bed.all_ready().await;
    login_key_is(&bed, &bed.workers[0], &new).await;
    let kept = std::fs::read(old_file(&bed)).unwrap();
    assert!(retire(&bed, &plan).status.success());
    bed.scratch.write_secret("kept", kept);
    std::fs::copy(bed.scratch.join("kept"), old_file(&bed)).unwrap();

    daemon.kill();
    daemon.start_again();
    daemon.ready().await;
    agents_are_told(&bed, &[&new]).await;
    assert!(retire(&bed, &plan).status.success());
    assert!(!old_file(&bed).exists());
    agents_are_told(&bed, &[&new]).await;
}
