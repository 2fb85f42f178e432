//! Runs from the queue to their end, with the scripted ansible-playbook.

mod support;

use std::time::{Duration, Instant};

use orion_core::{Availability, RequestState, RunKind, RunOutcome, UndoReason};
use orion_testkit::scripted::{Act, Op, Reach};
use orion_testkit::{PATIENCE, wait_until_async};
use support::{Bed, ops_page};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

#[tokio::test]
async fn a_rental_is_made_and_after_its_release_nothing_is_left() {
    let bed = Bed::new(3).await;
    let _daemon = bed.start(&bed.plan());
    bed.all_ready().await;
    let rentals = bed.rented(2).await;
    bed.accounts_are(&rentals);
    for rental in rentals {
        bed.release(rental).await;
    }
    bed.ready_nodes(3).await;
    bed.accounts_are(&[]);
}

#[tokio::test]
async fn runs_that_come_while_a_play_runs_leave_together() {
    let bed = Bed::new(20).await;
    let _daemon = bed.start(&bed.plan());
    bed.all_ready().await;
    for worker in bed.workers.all() {
        worker.behave(Some(Op::Create), Act::Delay(700), None);
    }
    let mut requests = Vec::new();
    for _ in 0..20 {
        requests.push(bed.rent(1).await);
    }
    for request in requests {
        assert_eq!(bed.decided(request).await.state, RequestState::Active);
    }
    let hosts: Vec<usize> = bed
        .plays(Op::Create)
        .iter()
        .map(|play| play.hosts.len())
        .collect();
    assert_eq!(hosts.iter().sum::<usize>(), 20);
    assert!(
        hosts.len() <= 5,
        "20 rents became plays over {hosts:?} hosts"
    );
}

#[tokio::test]
async fn a_host_is_done_when_it_is_done_and_not_when_the_slowest_is() {
    let bed = Bed::new(4).await;
    let _daemon = bed.start(&bed.plan());
    bed.all_ready().await;
    let slow = &bed.workers[0];
    slow.behave(Some(Op::Create), Act::HangForever, None);
    // All four leave in one play, because they are queued in one transaction.
    let request = bed.rent(4).await;
    wait_until_async(
        "three runs are done while the fourth hangs",
        PATIENCE,
        || async {
            let runs = bed.runs(RunKind::Provision).await;
            let done = runs
                .iter()
                .filter(|run| run.outcome == Some(RunOutcome::Present))
                .count();
            if done == 3 {
                Ok(())
            } else {
                Err(format!("{runs:#?}"))
            }
        },
    )
    .await;
    let view = bed.store.request(request).await.unwrap().unwrap();
    assert_eq!(view.state, RequestState::Open);
    assert_eq!(bed.plays(Op::Create).len(), 1);
}

#[tokio::test]
async fn a_hanging_play_delays_nobody_else() {
    let bed = Bed::new(3).await;
    let _daemon = bed.start(&bed.plan());
    bed.all_ready().await;
    bed.workers[0].behave(Some(Op::Create), Act::HangForever, None);
    bed.workers[1].behave(Some(Op::Create), Act::HangForever, None);
    bed.rent(1).await;
    bed.rent(1).await;
    bed.rent(1).await;
    // Whichever two requests hang: the third does not wait for their 20 s and more.
    let start = Instant::now();
    wait_until_async("the third rent is done", PATIENCE, || async {
        let runs = bed.runs(RunKind::Provision).await;
        let done = runs
            .iter()
            .any(|run| run.outcome == Some(RunOutcome::Present));
        if done { Ok(()) } else { Err("it is not") }
    })
    .await;
    assert!(start.elapsed() < Duration::from_secs(15));
}

#[tokio::test]
async fn a_play_that_never_ends_is_killed_and_its_runs_are_given_back() {
    let bed = Bed::new(1).await;
    let mut plan = bed.plan();
    plan.host_timeout_s = 2;
    plan.connect_timeout_s = 1;
    let _daemon = bed.start(&plan);
    bed.all_ready().await;
    bed.workers[0].behave(Some(Op::Create), Act::HangForever, Some(1));
    let view = bed.decided(bed.rent(1).await).await;
    assert_eq!(view.state, RequestState::Active);
    assert_eq!(bed.plays(Op::Create).len(), 2);
    assert!(support::working_in(&bed.runtime_dir(&plan).join("plays")).is_empty());
}

#[tokio::test]
async fn a_node_that_fails_is_replaced_and_a_host_without_a_result_is_tried_again() {
    let bed = Bed::new(3).await;
    let _daemon = bed.start(&bed.plan());
    bed.all_ready().await;
    bed.workers[0].behave(Some(Op::Create), Act::Fail, None);
    bed.workers[1].behave(Some(Op::Create), Act::ActThenNoResult, Some(1));
    let rentals = bed.rented(2).await;
    let runs = bed.runs(RunKind::Provision).await;
    let failed = runs
        .iter()
        .find(|run| run.outcome == Some(RunOutcome::Failed));
    if let Some(failed) = failed {
        assert_eq!(failed.detail.as_deref(), Some("useradd said no"));
    }
    for rental in &rentals {
        bed.release(*rental).await;
    }
    wait_until_async("everything is clean", PATIENCE, || async {
        let accounts = bed.workers.accounts();
        if accounts.is_empty() {
            Ok(())
        } else {
            Err(format!("{accounts:?}"))
        }
    })
    .await;
    bed.accounts_are(&[]);
}

#[tokio::test]
async fn a_name_that_is_taken_undoes_the_request_and_harms_no_node() {
    let bed = Bed::new(2).await;
    let _daemon = bed.start(&bed.plan());
    bed.all_ready().await;
    for worker in bed.workers.all() {
        worker.add_foreign_account("alice");
    }
    let view = bed.decided(bed.rent(1).await).await;
    assert_eq!(view.undo_reason, Some(UndoReason::NameTaken));
    bed.ready_nodes(2).await;
}

#[tokio::test]
async fn look_is_heard_at_once_and_settled_is_told() {
    let bed = Bed::new(1).await;
    let plan = bed.plan();
    let daemon = bed.start(&plan);
    bed.all_ready().await;
    let stream = UnixStream::connect(bed.notify_socket(&plan)).await.unwrap();
    let (reader, mut writer) = stream.into_split();
    let mut lines = BufReader::new(reader).lines();
    let request = bed.rent(1).await;
    writer.write_all(b"look\n").await.unwrap();
    let line = tokio::time::timeout(PATIENCE, lines.next_line())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(line, Some(format!("settled {request}")));
    drop(daemon);
}

#[tokio::test]
async fn a_rental_ends_by_itself_and_its_node_is_ready_again() {
    let bed = Bed::new(1).await;
    let _daemon = bed.start(&bed.plan());
    bed.all_ready().await;
    let rentals = bed.rented(1).await;
    bed.accounts_are(&rentals);
    bed.db
        .sql("UPDATE rentals SET leased_until = UTC_TIMESTAMP(6)");
    bed.ready_nodes(1).await;
    bed.accounts_are(&[]);
}

#[tokio::test]
async fn a_silent_worker_becomes_suspect_and_its_debt_is_paid_when_it_is_back() {
    let bed = Bed::new(1).await;
    let mut plan = bed.plan();
    plan.host_timeout_s = 2;
    plan.connect_timeout_s = 1;
    let _daemon = bed.start(&plan);
    bed.all_ready().await;
    let rentals = bed.rented(1).await;
    bed.workers[0].reach(Reach::Refuses);
    bed.release(rentals[0]).await;
    wait_until_async("the cleaning has failed", PATIENCE, || async {
        let runs = bed.runs(RunKind::Clean).await;
        let failed = runs
            .iter()
            .any(|run| run.outcome == Some(RunOutcome::Unreachable));
        if failed {
            Ok(())
        } else {
            Err(format!("{runs:#?}"))
        }
    })
    .await;
    bed.accounts_are(&rentals);
    bed.workers[0].reach(Reach::Answers);
    bed.ready_nodes(1).await;
    bed.accounts_are(&[]);
}

#[tokio::test]
async fn two_workers_that_swap_addresses_are_told_apart_by_their_keys() {
    let bed = Bed::new(2).await;
    let _daemon = bed.start(&bed.plan());
    bed.all_ready().await;
    bed.workers.swap_addresses(0, 1);
    for worker in bed.workers.all() {
        bed.register(worker).await;
    }
    wait_until_async("both have their new addresses", PATIENCE, || async {
        for worker in bed.workers.all() {
            let node = bed.node_named(worker.hostname()).await;
            if node.ssh_port != worker.port() {
                return Err(format!("{node:#?}"));
            }
        }
        Ok(())
    })
    .await;
    bed.ready_nodes(2).await;
    assert!(bed.workers.violations().is_empty());
}

#[tokio::test]
async fn a_stranger_at_a_nodes_address_is_given_nothing() {
    let bed = Bed::new(2).await;
    let _daemon = bed.start(&bed.plan());
    // Worker 2 answers where node `worker1` is said to be.
    bed.register_at("worker1", bed.workers[1].port(), bed.workers[0].host_key())
        .await;
    wait_until_async("the inspection has failed", PATIENCE, || async {
        let runs = bed.runs(RunKind::Inspect).await;
        let met = runs
            .iter()
            .any(|run| run.outcome == Some(RunOutcome::HostKeyMismatch));
        if met {
            Ok(())
        } else {
            Err(format!("{runs:#?}"))
        }
    })
    .await;
    let node = bed.node_named("worker1").await;
    assert_ne!(node.availability, Availability::Ready, "{node:#?}");
    let acts = bed
        .workers
        .log()
        .into_iter()
        .filter(|line| line.what == "act")
        .count();
    assert_eq!(acts, 0);
}

#[tokio::test]
async fn the_jobs_page_shows_each_jobs_last_result() {
    let bed = Bed::new(1).await;
    let daemon = bed.start(&bed.plan());
    bed.all_ready().await;
    wait_until_async("every job has ticked", PATIENCE, || async {
        let (_, page) = ops_page(&daemon, "/jobs").await;
        for job in ["expire", "reconcile", "cleanup", "health_check"] {
            if page["jobs"][job]["ticks"]["last_success_at"].is_null() {
                return Err(page.to_string());
            }
        }
        if page["jobs"]["health_check"]["ticks"]["last"]["counts"]["logged_in"] != 1 {
            return Err(page.to_string());
        }
        Ok(())
    })
    .await;
}
