//! What happens when the daemon, its database or its fellow goes away.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use std::io::Write;
use std::process::{Child, Command, Stdio};

use orion_core::{RequestState, RunKind, RunState};
use orion_testkit::scripted::{Act, Op};
use orion_testkit::{
    Daemon, DaemonBuilder, Database, Durability, PATIENCE, wait_until, wait_until_async,
};
use rustix::process::{Pid, Signal, kill_process};
use support::{Bed, ops_page, working_in};

async fn a_create_hangs(bed: &Bed) {
    wait_until("a create hangs", PATIENCE, || {
        if bed.plays(Op::Create).is_empty() {
            Err("no play yet")
        } else {
            Ok(())
        }
    })
    .await;
}

/// Waits until the daemon leads the jobs, or does not.
async fn leads(daemon: &Daemon, wanted: bool) {
    wait_until_async("the lead has passed on", PATIENCE, || async {
        let (_, page) = ops_page(daemon, "/jobs").await;
        if page.get("leads").and_then(|leads| leads.as_bool()) == Some(wanted) {
            Ok(())
        } else {
            Err(page)
        }
    })
    .await;
}

#[tokio::test]
async fn after_a_kill_minus_9_the_run_is_done_again_and_nothing_of_the_old_play_lives() {
    let bed = Bed::new(1).await;
    let plan = bed.plan();
    let mut daemon = bed.start(&plan);
    bed.all_ready().await;
    bed.workers[0].behave(Some(Op::Create), Act::HangForever, Some(1));
    let request = bed.rent(1).await;
    a_create_hangs(&bed).await;
    daemon.kill();
    let plays = bed.runtime_dir(&plan).join("plays");
    let left: Vec<u32> = working_in(&plays).into_iter().map(|(pid, _)| pid).collect();
    assert!(!left.is_empty());

    daemon.start_again();
    daemon.ready().await;
    let living = working_in(&plays);
    assert!(
        living.iter().all(|(pid, _)| !left.contains(pid)),
        "{living:?} of {left:?}"
    );
    let view = bed.decided(request).await;
    assert_eq!(view.state, RequestState::Active);
    bed.accounts_are(&[view.rentals[0].id]);
}

#[tokio::test]
async fn sigterm_lets_a_play_end_and_gives_nothing_back() {
    let bed = Bed::new(1).await;
    let mut daemon = bed.start(&bed.plan());
    bed.all_ready().await;
    bed.workers[0].behave(Some(Op::Create), Act::Delay(1500), Some(1));
    let request = bed.rent(1).await;
    a_create_hangs(&bed).await;
    daemon.terminate();
    assert!(daemon.ended(PATIENCE).await.success());
    let view = bed.store.request(request).await.unwrap().unwrap();
    assert_eq!(view.state, RequestState::Active);
}

#[tokio::test]
async fn sigterm_stops_a_play_that_takes_too_long_and_gives_its_runs_back() {
    let bed = Bed::new(1).await;
    let mut plan = bed.plan();
    plan.drain_s = 1;
    let mut daemon = bed.start(&plan);
    bed.all_ready().await;
    bed.workers[0].behave(Some(Op::Create), Act::HangForever, Some(1));
    bed.rent(1).await;
    a_create_hangs(&bed).await;
    daemon.terminate();
    assert!(daemon.ended(PATIENCE).await.success());
    assert!(working_in(&bed.scratch.path().join("run-one")).is_empty());
    let runs = bed.runs(RunKind::Provision).await;
    assert_eq!(runs[0].state, RunState::Queued, "{runs:#?}");
}

#[tokio::test]
async fn the_daemon_is_there_before_its_database_and_after_it() {
    let bed = Bed::on(Database::own_server(Durability::Durable).await, 1).await;
    bed.db.stop_server();
    let daemon = bed.start(&bed.plan());
    let (status, page) = ops_page(&daemon, "/readyz").await;
    assert_eq!(
        (status, page["status"].as_str()),
        (503, Some("not ready")),
        "{page}"
    );
    bed.db.start_server();
    daemon.ready().await;
    bed.all_ready().await;

    bed.db.kill_server();
    wait_until_async("readiness is lost", PATIENCE, || async {
        let (status, page) = ops_page(&daemon, "/readyz").await;
        if status == 503 && page["reasons"]["database"].is_string() {
            Ok(())
        } else {
            Err(page)
        }
    })
    .await;
    bed.db.start_server();
    daemon.ready().await;
    bed.rented(1).await;
}

#[tokio::test]
async fn a_result_that_comes_while_the_database_is_away_is_not_lost() {
    let bed = Bed::on(Database::own_server(Durability::Durable).await, 1).await;
    let _daemon = bed.start(&bed.plan());
    bed.all_ready().await;
    bed.workers[0].behave(Some(Op::Create), Act::Delay(1000), Some(1));
    let request = bed.rent(1).await;
    a_create_hangs(&bed).await;
    bed.db.kill_server();
    wait_until("the account is there", PATIENCE, || {
        if bed.workers.accounts().is_empty() {
            Err("not yet")
        } else {
            Ok(())
        }
    })
    .await;
    bed.db.start_server();
    let view = bed.decided(request).await;
    assert_eq!(view.state, RequestState::Active);
    assert_eq!(bed.plays(Op::Create).len(), 1);
}

#[tokio::test]
async fn two_instances_share_the_runs_and_one_leads() {
    let bed = Bed::new(6).await;
    let one = bed.plan();
    let mut two = bed.plan();
    two.name = "two";
    let daemons = [bed.start(&one), bed.start(&two)];
    for daemon in &daemons {
        daemon.ready().await;
    }
    bed.all_ready().await;
    let mut rentals = Vec::new();
    for _ in 0..6 {
        rentals.extend(bed.rented(1).await);
    }
    bed.accounts_are(&rentals);
    let hosts: usize = bed
        .plays(Op::Create)
        .iter()
        .map(|play| play.hosts.len())
        .sum();
    assert_eq!(hosts, 6);
    let mut leaders = 0;
    for daemon in &daemons {
        leaders += u32::from(ops_page(daemon, "/jobs").await.1["leads"] == true);
    }
    assert_eq!(leaders, 1);
}

#[tokio::test]
async fn when_the_leader_is_killed_the_other_instance_leads() {
    let bed = Bed::new(1).await;
    let one = bed.plan();
    let mut two = bed.plan();
    two.name = "two";
    let mut first = bed.start(&one);
    bed.all_ready().await;
    let second = bed.start(&two);
    second.ready().await;
    first.kill();
    let rentals = bed.rented(1).await;
    // Released, not looked at: only the leader's job queues what is left to do, should this be lost.
    bed.release(rentals[0]).await;
    bed.ready_nodes(1).await;
    leads(&second, true).await;
}

#[tokio::test]
async fn a_leader_that_stops_gives_the_lead_back() {
    let bed = Bed::new(1).await;
    let mut daemon = bed.start(&bed.plan());
    bed.all_ready().await;
    daemon.terminate();
    assert!(daemon.ended(PATIENCE).await.success());
    let free = "SELECT expires_at <= UTC_TIMESTAMP(6) FROM leader";
    assert_eq!(bed.db.sql_one(free), "1");
}

/// How many transactions there are in the bed's database of which this is true.
fn transactions(bed: &Bed, is: &str) -> u32 {
    let sql = format!(
        "SELECT COUNT(*) FROM information_schema.innodb_trx t \
         JOIN information_schema.processlist p ON p.id = t.trx_mysql_thread_id WHERE p.db = '{}' AND {is}",
        bed.db.name()
    );
    bed.db.sql_one(&sql).parse().unwrap()
}

/// Locks every node's row until its standard input ends.
fn locked_nodes(bed: &Bed) -> Child {
    let client = Command::new("mariadb")
        .args(["--no-defaults", "--user", Database::ADMIN, "--socket"])
        .arg(bed.db.socket())
        .arg(bed.db.name())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut input = client.stdin.as_ref().unwrap();
    input
        .write_all(b"BEGIN; SELECT id FROM nodes FOR UPDATE;\n")
        .unwrap();
    client
}

#[tokio::test]
async fn a_leader_that_is_stopped_in_a_transaction_does_not_keep_the_lead_for_ever() {
    let bed = Bed::new(1).await;
    let one = bed.plan();
    let mut two = bed.plan();
    two.name = "two";
    let first = bed.start(&one);
    bed.all_ready().await;
    let pid = Pid::from_raw(first.pid().cast_signed()).unwrap();
    // It logs in to the node, has the lead in its hands, and can't record it.
    let mut lock = locked_nodes(&bed);
    wait_until("it is stopped while it waits", PATIENCE, || {
        kill_process(pid, Signal::STOP).unwrap();
        if transactions(&bed, "t.trx_state = 'LOCK WAIT'") == 1 {
            Ok(())
        } else {
            kill_process(pid, Signal::CONT).unwrap();
            Err("nobody waits")
        }
    })
    .await;
    drop(lock.stdin.take());
    assert!(lock.wait().unwrap().success());
    wait_until(
        "its transaction stands still",
        PATIENCE,
        || match transactions(&bed, "p.command = 'Sleep'") {
            0 => Err("none"),
            _ => Ok(()),
        },
    )
    .await;
    let second = bed.start(&two);
    leads(&second, true).await;
}

#[tokio::test]
async fn an_instance_that_believes_it_still_leads_changes_nothing() {
    let bed = Bed::new(1).await;
    let daemon = bed.start(&bed.plan());
    bed.all_ready().await;
    let rental = bed.rented(1).await[0];
    // Another instance leads, and this one learns of it only when it renews.
    bed.db.sql(
        "UPDATE leader SET holder = REPEAT('a', 32), epoch = epoch + 1, expires_at = UTC_TIMESTAMP(6) + INTERVAL 1 HOUR; \
         UPDATE rentals SET leased_from = UTC_TIMESTAMP(6) - INTERVAL 2 HOUR, leased_until = UTC_TIMESTAMP(6) - INTERVAL 1 HOUR",
    );
    leads(&daemon, false).await;
    let state = format!("SELECT state FROM rentals WHERE id = {rental}");
    assert_eq!(bed.db.sql_one(&state), "active");
}

#[tokio::test]
async fn an_ansible_that_does_not_work_is_not_started_in_a_loop() {
    let bed = Bed::new(1).await;
    let mut plan = bed.plan();
    let starts = bed.scratch.join("starts");
    let broken = format!("#!/bin/sh\ndate +%s%3N >> {}\nexit 5\n", starts.display());
    plan.playbook_command = bed.scratch.write_program("broken", &broken);
    let _daemon = bed.start(&plan);
    bed.register(&bed.workers[0]).await;
    let times = wait_until("it was started three times", PATIENCE, || {
        let text = std::fs::read_to_string(&starts).unwrap_or_default();
        let times: Vec<u64> = text.lines().map(|line| line.parse().unwrap()).collect();
        if times.len() >= 3 {
            Ok(times)
        } else {
            Err(text)
        }
    })
    .await;
    // Pauses of 1 and 2 s.
    assert!(
        times[1] - times[0] >= 900 && times[2] - times[1] >= 1900,
        "{times:?}"
    );
}

#[tokio::test]
async fn a_configuration_that_names_what_is_not_there_exits_78() {
    let bed = Bed::new(0).await;
    let mut plan = bed.plan();
    plan.playbook_command = "/nonexistent/ansible-playbook".into();
    let status = bed.start(&plan).ended(PATIENCE).await;
    assert_eq!(status.code(), Some(78));
    let mut misconfigured = DaemonBuilder::new("orion-schedd", "executor.plays = 1\n").start();
    assert_eq!(misconfigured.ended(PATIENCE).await.code(), Some(78));
}
