//! What the health check sees besides logins: silent agents, accounts that are missing, an old database.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "helpers of tests"
)]

mod support;

use orion_testkit::{Client, Daemon, PATIENCE, wait_until, wait_until_async};
use support::{Bed, ops_page};

async fn metric(daemon: &Daemon, name: &str, value: &str) {
    let ops = Client::new(daemon.address("ops").await);
    let wanted = format!("orion_schedd_{name} {value}");
    wait_until_async(&wanted, PATIENCE, || async {
        let page = ops.get("/metrics").await;
        let text = String::from_utf8_lossy(&page.body).into_owned();
        if text.lines().any(|line| line == wanted) {
            Ok(())
        } else {
            Err(text)
        }
    })
    .await;
}

#[tokio::test]
async fn a_silent_agent_on_a_machine_that_answers_is_an_alarm_and_nothing_moves() {
    let bed = Bed::new(2).await;
    let daemon = bed.start(&bed.plan());
    bed.all_ready().await;
    let rental = bed.rented(1).await[0];
    bed.db.sql(
        "INSERT INTO beats (node_id, beat_at, boot_id, agent) \
         SELECT id, UTC_TIMESTAMP(6) - INTERVAL 4 MINUTE, 'b', '0.1.0' FROM nodes ORDER BY id LIMIT 1",
    );
    metric(&daemon, "agents_down", "1").await;
    let events = "SELECT GROUP_CONCAT(kind) FROM events WHERE kind LIKE 'agent%'";
    assert_eq!(bed.db.sql_one(events), "agent_down");
    let said = |line: &&String| line.contains("systemctl status orion-agentd");
    assert_eq!(daemon.log_lines().iter().filter(said).count(), 1);
    bed.db
        .sql("UPDATE beats SET beat_at = UTC_TIMESTAMP(6) + INTERVAL 1 MINUTE");
    metric(&daemon, "agents_down", "0").await;
    assert_eq!(bed.db.sql_one(events), "agent_down,agent_back");
    assert_eq!(
        bed.nodes()
            .await
            .iter()
            .filter(|node| node.allocated)
            .count(),
        1
    );
    bed.accounts_are(&[rental]);
}

#[tokio::test]
async fn an_account_that_an_inspection_misses_is_made_again() {
    let bed = Bed::new(1).await;
    let _daemon = bed.start(&bed.plan());
    bed.all_ready().await;
    let rental = bed.rented(1).await[0];
    bed.workers[0].lose_accounts();
    bed.db
        .sql("UPDATE accounts SET evidence_at = evidence_at - INTERVAL 1 MINUTE");
    bed.db
        .sql("UPDATE nodes SET last_inspected_at = last_inspected_at - INTERVAL 11 MINUTE");
    wait_until("the account is made again", PATIENCE, || {
        let kinds = "SELECT GROUP_CONCAT(kind ORDER BY id) FROM events WHERE kind LIKE 'account%'";
        match bed.db.sql_one(kinds).as_str() {
            "account_repair,account_repaired" => Ok(()),
            other => Err(other.to_owned()),
        }
    })
    .await;
    bed.accounts_are(&[rental]);
}

#[tokio::test]
async fn an_old_database_is_named_until_the_alarm_is_over_and_by_the_leader_alone() {
    let bed = Bed::new(2).await;
    let daemon = bed.start(&bed.plan());
    bed.all_ready().await;
    bed.db.sql("UPDATE nodes SET highest_uid = 1000900");
    let named = async |wanted: bool| {
        wait_until_async(
            "/readyz names the old database or not",
            PATIENCE,
            || async {
                let (status, page) = ops_page(&daemon, "/readyz").await;
                let named = page.to_string().contains("raise-counter");
                if (named, status == 503) == (wanted, wanted) {
                    Ok(())
                } else {
                    Err(format!("{status} {page}"))
                }
            },
        )
        .await;
    };
    named(true).await;
    metric(&daemon, "database_outdated", "1").await;
    // Another instance leads: what this one saw is old.
    bed.db.sql(
        "UPDATE leader SET holder = REPEAT('a', 32), epoch = epoch + 1, expires_at = UTC_TIMESTAMP(6) + INTERVAL 1 HOUR",
    );
    named(false).await;
    metric(&daemon, "database_outdated", "0").await;
}
