//! The schema: applied twice, by two at once, and what it refuses by itself.

mod support;

use mysql_async::prelude::Queryable;
use orion_store::*;
use orion_testkit::{Database, Durability};
use support::{Bed, settings};

#[tokio::test]
async fn applying_the_schema_again_does_nothing() {
    let db = Database::fresh().await;
    let store = Store::open(&settings(&db, Database::ADMIN), None).unwrap();
    assert_eq!(store.schema_fits().await.unwrap(), SchemaFit::Absent);
    let first = store.apply_schema().await.unwrap();
    assert!(first.steps > 0 && first.version as usize == first.steps);
    let tables = db.sql("SHOW TABLES");
    assert_eq!(
        store.apply_schema().await.unwrap(),
        AppliedSchema { steps: 0, ..first }
    );
    assert_eq!(db.sql("SHOW TABLES"), tables);
    assert_eq!(store.schema_fits().await.unwrap(), SchemaFit::Fits);
}

#[tokio::test]
async fn a_schema_that_stopped_half_way_is_finished() {
    let db = Database::fresh().await;
    let store = Store::open(&settings(&db, Database::ADMIN), None).unwrap();
    let whole = store.apply_schema().await.unwrap();
    // As if the process had died after a step and before it was written down.
    db.sql("DELETE FROM schema_version WHERE version > 3");
    let found = store.schema_fits().await.unwrap();
    assert_eq!(
        found,
        SchemaFit::TooOld {
            found: 3,
            needed: whole.version
        }
    );
    assert_eq!(store.apply_schema().await.unwrap().version, whole.version);
    assert_eq!(store.schema_fits().await.unwrap(), SchemaFit::Fits);
}

#[tokio::test]
async fn a_schema_for_newer_daemons_only_is_refused() {
    let bed = Bed::new().await;
    bed.db
        .sql("INSERT INTO schema_version VALUES (900, 1, 'later', UTC_TIMESTAMP())");
    assert_eq!(bed.store.schema_fits().await.unwrap(), SchemaFit::Fits);
    bed.db
        .sql("INSERT INTO schema_version VALUES (901, 901, 'later still', UTC_TIMESTAMP())");
    let found = bed.store.schema_fits().await.unwrap();
    assert!(
        matches!(found, SchemaFit::TooNew { found: 901, .. }),
        "{found:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_hosts_may_apply_the_schema_at_once() {
    let db = Database::fresh().await;
    let store = Store::open(&settings(&db, Database::ADMIN), None).unwrap();
    let both =
        [store.clone(), store.clone()].map(|s| tokio::spawn(async move { s.apply_schema().await }));
    for one in both {
        one.await.unwrap().unwrap();
    }
    assert_eq!(store.schema_fits().await.unwrap(), SchemaFit::Fits);
}

#[tokio::test]
async fn a_fresh_host_gets_everything_and_a_second_init_changes_nothing() {
    let db = Database::own_server(Durability::Relaxed).await;
    let admin = settings(&db, Database::ADMIN);
    bootstrap::init(&admin, "orion", 1_000_000).await.unwrap();
    bootstrap::init(&admin, "orion", 2_000_000).await.unwrap();
    assert_eq!(
        db.sql_one("SELECT uid_base FROM orion.installation"),
        "1000000"
    );
    for user in ["orion-apid", "orion-schedd"] {
        let grants = db
            .sql(&format!("SHOW GRANTS FOR '{user}'@localhost"))
            .concat()
            .join("\n");
        assert!(grants.contains("VIA unix_socket"), "{grants}");
        assert!(
            grants.contains("GRANT SELECT, INSERT, UPDATE, DELETE ON `orion`.* TO"),
            "{grants}"
        );
        assert_eq!(
            grants.matches("GRANT ").count(),
            2,
            "USAGE and these rights, nothing else: {grants}"
        );
    }
    for name in ["", "a`b", "a b", "Orion"] {
        let refused = bootstrap::init(&admin, name, 1).await;
        assert!(
            matches!(refused, Err(StoreError::Settings(_))),
            "{name:?}: {refused:?}"
        );
    }
}

#[tokio::test]
async fn a_daemon_may_not_change_the_schema() {
    let bed = Bed::new().await;
    let refused = bed.store.apply_schema().await;
    assert!(refused.is_err(), "{refused:?}");
}

/// Rows that mean nothing; each must be refused by the schema itself, whoever writes it.
const NONSENSE: &[&str] = &[
    "UPDATE nodes SET status = 'well'",
    "UPDATE nodes SET availability = 'free'",
    "UPDATE nodes SET availability = 'quarantined', availability_reason = NULL",
    "UPDATE users SET role = 'root'",
    "UPDATE requests SET state = 'done'",
    "UPDATE requests SET state = 'undone', undo_reason = NULL",
    "UPDATE requests SET undo_reason = 'deadline'",
    "UPDATE requests SET state = 'undone', undo_reason = 'mood'",
    "UPDATE requests SET idempotency_key = 'k', body_digest = NULL",
    "UPDATE rentals SET state = 'live'",
    "UPDATE rentals SET end_reason = 'released'",
    "UPDATE rentals SET state = 'ending', end_reason = NULL",
    "UPDATE rentals SET state = 'ending', end_reason = 'bored'",
    "UPDATE rentals SET leased_until = NULL",
    "UPDATE rentals SET state = 'ended', end_reason = 'released', ended_at = NULL",
    "UPDATE rentals SET ended_at = UTC_TIMESTAMP()",
    "UPDATE accounts SET state = 'there'",
    "UPDATE accounts SET state = 'gone', evidence_at = NULL",
    "UPDATE accounts SET rental_id = 999",
    "UPDATE accounts SET node_id = 999",
    "UPDATE runs SET kind = 'dance'",
    "UPDATE runs SET state = 'running'",
    "UPDATE runs SET kind = 'inspect' WHERE account_id IS NOT NULL",
    "UPDATE runs SET account_id = NULL WHERE kind <> 'inspect'",
    "UPDATE runs SET state = 'claimed'",
    "UPDATE runs SET state = 'queued'",
    "UPDATE runs SET finished_at = NULL",
    "UPDATE nodes SET contact_host = NULL",
    "UPDATE nodes SET pending_client_host = 'x', pending_client_port = 1",
    "UPDATE requests SET settled_at = NULL",
    "UPDATE requests SET node_count = 0",
    "UPDATE rentals SET leased_until = leased_from",
    "UPDATE accounts SET epoch = 0",
    "UPDATE runs SET outcome = NULL",
    "UPDATE installation SET id = 2",
];

#[tokio::test]
async fn the_schema_refuses_rows_that_mean_nothing() {
    let (bed, _) = Bed::with_nodes(1).await;
    bed.active(bed.alice, 1).await;
    for statement in NONSENSE {
        let refused = bed.db.try_sql(statement);
        let error = refused.expect_err(statement);
        assert!(
            error.contains("CONSTRAINT") || error.contains("FOREIGN KEY"),
            "{statement}: {error}"
        );
    }
}

#[tokio::test]
async fn a_node_can_not_hold_a_second_account() {
    let (bed, nodes) = Bed::with_nodes(1).await;
    let rental = bed.active(bed.alice, 1).await[0];
    let insert = |state: &str| {
        format!(
            "INSERT INTO accounts (rental_id, node_id, uid, epoch, state, state_since, evidence_at) \
             VALUES ({rental}, {}, 1, 1, '{state}', UTC_TIMESTAMP(), UTC_TIMESTAMP())",
            nodes[0]
        )
    };
    for state in ["making", "present", "leaving"] {
        let error = bed.db.try_sql(&insert(state)).unwrap_err();
        assert!(error.contains("accounts_held_node"), "{error}");
    }
    bed.db.try_sql(&insert("gone")).unwrap();
    let error = bed
        .db
        .try_sql("UPDATE accounts SET state = 'leaving' WHERE state = 'gone'")
        .unwrap_err();
    assert!(error.contains("accounts_held_node"), "{error}");
}

#[tokio::test]
async fn the_session_is_strict_reads_committed_rows_and_counts_in_utc() {
    let bed = Bed::new().await;
    // What a statement of the store sees is what another session of the same user is told by the setup.
    let now = bed.store.now().await.unwrap();
    let mut conn = bed.connection().await;
    let utc: time::PrimitiveDateTime = conn
        .query_first("SELECT UTC_TIMESTAMP(6)")
        .await
        .unwrap()
        .unwrap();
    assert!(
        (utc - now.0).abs() < time::Duration::seconds(30),
        "{utc} {now}"
    );
    let ahead = bed.later(3_600).now().await.unwrap();
    assert!((ahead.0 - now.0 - time::Duration::HOUR).abs() < time::Duration::seconds(30));
}

#[tokio::test]
async fn a_database_that_is_away_is_said_to_be_away() {
    let db = Database::own_server(Durability::Durable).await;
    let bed = Bed::on(db).await;
    bed.store.ping().await.unwrap();
    bed.db.kill_server();
    assert!(bed.store.ping().await.unwrap_err().is_unavailable());
    assert!(
        bed.store
            .user(bed.alice)
            .await
            .unwrap_err()
            .is_unavailable()
    );
    assert!(
        bed.store
            .rent(&support::order(bed.alice, 1, &support::unique_id()))
            .await
            .unwrap_err()
            .is_unavailable()
    );
    bed.db.start_server();
    bed.store.ping().await.unwrap();
    assert!(bed.store.user(bed.alice).await.unwrap().is_some());
}
