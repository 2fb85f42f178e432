//! Accounts that can't be removed: seen, told once, and retried all the same.
#![allow(clippy::expect_used, clippy::panic, reason = "helpers of tests")]

mod support;

use orion_testkit::scripted::{Act, Op};
use orion_testkit::{Client, Daemon, PATIENCE, wait_until_async};
use support::Bed;

/// A metric's value.
async fn metric(daemon: &Daemon, name: &str) -> f64 {
    let ops = Client::new(daemon.address("ops").await);
    let page = String::from_utf8_lossy(&ops.get("/metrics").await.body).into_owned();
    let line = page
        .lines()
        .find_map(|line| line.strip_prefix(&format!("{name} ")));
    line.unwrap_or_else(|| panic!("no {name} in {page}"))
        .parse()
        .expect("a number")
}

fn alarms(daemon: &Daemon) -> Vec<String> {
    let mut lines = daemon.log_lines();
    lines.retain(|line| line.contains("an account can't be removed"));
    lines
}

#[tokio::test]
async fn an_old_debt_has_an_age_and_is_told_once_and_paid_in_the_end() {
    let bed = Bed::new(1).await;
    let daemon = bed.start(&bed.plan());
    bed.all_ready().await;
    let rentals = bed.rented(1).await;
    bed.workers[0].behave(Some(Op::Delete), Act::NotGone, None);
    bed.release(rentals[0]).await;
    bed.db.sql(
        "UPDATE accounts SET state_since = state_since - INTERVAL 11 MINUTE WHERE state = 'leaving'",
    );
    let told = wait_until_async("the debt is told", PATIENCE, || async {
        let told = alarms(&daemon);
        if told.is_empty() {
            Err("no line")
        } else {
            Ok(told)
        }
    })
    .await;
    assert!(told[0].contains("log in to the worker"), "{told:?}");
    wait_until_async("the debt has an age", PATIENCE, || async {
        let (debts, oldest) = (
            metric(&daemon, "orion_schedd_debts").await,
            metric(&daemon, "orion_schedd_oldest_debt_seconds").await,
        );
        if debts > 0.5 && oldest >= 660.0 {
            Ok(())
        } else {
            Err(format!("{debts} {oldest}"))
        }
    })
    .await;
    bed.workers[0].behave_well();
    bed.ready_nodes(1).await;
    bed.accounts_are(&[]);
    wait_until_async("no debt is left", PATIENCE, || async {
        let oldest = metric(&daemon, "orion_schedd_oldest_debt_seconds").await;
        if oldest < 0.1 { Ok(()) } else { Err(oldest) }
    })
    .await;
    assert_eq!(alarms(&daemon).len(), 1, "once");
}
