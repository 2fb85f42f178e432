//! The test kit's own tests: what it promises to the tests that use it.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "helpers of tests"
)]

use orion_testkit::scripted::{Act, Op, Reach};
use orion_testkit::{Database, Durability, Scratch, Workers};
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;

const HASH: &str = "$6$salt$hash";

fn play(workers: &Workers, playbook: &str, hosts: &[(usize, Value)]) -> (Option<i32>, Vec<Value>) {
    let dir = Scratch::new("play");
    let mut inventory = json!({"all": {"hosts": {}, "vars": {"orion_host_timeout_s": 1}}});
    let mut known_hosts = String::new();
    for (number, arguments) in hosts {
        let name = format!("node-{}", number + 1);
        known_hosts += &format!("{name} {}\n", workers[*number].host_key());
        inventory["all"]["hosts"][name] = json!({
            "ansible_host": "127.0.0.1", "ansible_port": workers[*number].port(), "orion_account": arguments,
        });
    }
    let path = dir.write_secret("inventory.json", inventory.to_string());
    dir.write_secret("known_hosts", known_hosts);
    let events = dir.join("events.jsonl");
    let status = Command::new(workers.playbook())
        .env("ORION_EVENTS", &events)
        .arg("-i")
        .arg(path)
        .arg(Path::new("/usr/share/orion/playbooks").join(playbook))
        .status()
        .unwrap();
    let lines = std::fs::read_to_string(events).unwrap();
    let lines = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap());
    (status.code(), lines.collect())
}

fn account(uid: u32, epoch: u64) -> Value {
    json!({"uid_base": 1_000_000, "uid": uid, "name": "alice", "password_hash": HASH, "epoch": epoch,
           "ends_in_s": 60.0, "limit_s": 20})
}

fn outcome(events: &[Value], node: &str) -> Value {
    let of_node = |event: &&Value| event["host"] == node && event["event"] != "start";
    events.iter().find(of_node).cloned().unwrap_or_default()["outcome"].clone()
}

#[tokio::test]
async fn each_database_is_empty_and_its_user_may_not_change_the_schema() {
    let (one, other) = (Database::fresh().await, Database::fresh().await);
    one.sql("CREATE TABLE t (id INT PRIMARY KEY); INSERT INTO t VALUES (7)");
    assert_eq!(one.sql_one("SELECT id FROM t"), "7");
    assert!(other.sql("SHOW TABLES").is_empty());
    let grants = one
        .sql(&format!("SHOW GRANTS FOR {}@localhost", one.user()))
        .concat()
        .join(";");
    assert!(
        grants.contains("SELECT, INSERT, UPDATE, DELETE ON"),
        "{grants}"
    );
    assert!(
        !grants.contains("CREATE") && !grants.contains("DROP"),
        "{grants}"
    );
}

#[tokio::test]
async fn a_durable_server_keeps_its_rows_when_it_is_killed() {
    let database = Database::own_server(Durability::Durable).await;
    database.sql("CREATE TABLE t (id INT PRIMARY KEY); INSERT INTO t VALUES (7)");
    database.kill_server();
    assert!(database.try_sql("SELECT 1").is_err());
    database.start_server();
    assert_eq!(database.sql_one("SELECT id FROM t"), "7");
}

#[test]
fn accounts_are_made_inspected_and_removed() {
    let workers = Workers::new(2);
    let both = [(0, account(1_000_001, 1)), (1, account(1_000_002, 1))];
    let (code, events) = play(&workers, "create_user.yml", &both);
    assert_eq!(code, Some(0));
    assert_eq!(outcome(&events, "node-2"), "present");
    assert_eq!(events.last().unwrap()["event"], "end");
    assert_eq!(workers.accounts().len(), 2);
    let (_, events) = play(&workers, "health_check.yml", &[(0, json!({}))]);
    assert_eq!(outcome(&events, "node-1"), "dirty");
    play(&workers, "delete_user.yml", &[(0, account(1_000_001, 2))]);
    let (_, events) = play(&workers, "health_check.yml", &[(0, json!({}))]);
    assert_eq!(outcome(&events, "node-1"), "clean");
    assert!(workers.violations().is_empty());
}

#[test]
fn a_late_create_is_stale_and_a_second_client_is_a_violation() {
    let workers = Workers::new(1);
    play(&workers, "delete_user.yml", &[(0, account(1_000_001, 5))]);
    let (code, events) = play(&workers, "create_user.yml", &[(0, account(1_000_001, 4))]);
    assert_eq!(
        (code, outcome(&events, "node-1")),
        (Some(2), json!("stale_epoch"))
    );
    let mut other = account(1_000_002, 1);
    other["name"] = json!("bob");
    play(&workers, "create_user.yml", &[(0, account(1_000_001, 6))]);
    play(&workers, "create_user.yml", &[(0, other)]);
    assert_eq!(workers.violations().len(), 1);
}

#[test]
fn workers_do_wrong_what_they_are_told_to() {
    let workers = Workers::new(1);
    let create = || play(&workers, "create_user.yml", &[(0, account(1_000_001, 1))]);
    workers[0].behave(Some(Op::Create), Act::Fail, Some(1));
    assert_eq!(outcome(&create().1, "node-1"), "failed");
    workers[0].behave(None, Act::NoResult, Some(1));
    let (code, events) = create();
    assert_eq!((code, events.len()), (Some(0), 2), "{events:?}");
    workers[0].behave(None, Act::Hang, Some(1));
    let (_, events) = create();
    assert_eq!(events[1]["reason"], "timeout");
    workers[0].behave(None, Act::CrashPlay, Some(1));
    assert_eq!(create().0, Some(250));
    workers[0].add_foreign_account("alice");
    assert_eq!(outcome(&create().1, "node-1"), "name_taken");
    workers[0].reach(Reach::Refuses);
    assert_eq!(create().0, Some(4));
    assert!(workers.accounts().is_empty());
}

#[test]
fn a_worker_at_anothers_address_is_met_with_the_wrong_key() {
    let workers = Workers::new(2);
    let keys = [
        workers[0].host_key().to_owned(),
        workers[1].host_key().to_owned(),
    ];
    workers.swap_addresses(0, 1);
    // The inventory names worker 1's new address, but the pinned key is that of worker 0.
    let dir = Scratch::new("play");
    dir.write_secret("known_hosts", format!("node-1 {}\n", keys[0]));
    let host = json!({"ansible_port": workers[1].port(), "orion_account": account(1_000_001, 1)});
    let inventory = json!({"all": {"hosts": {"node-1": host}}});
    let path = dir.write_secret("inventory.json", inventory.to_string());
    let events = dir.join("events.jsonl");
    let mut command = Command::new(workers.playbook());
    command
        .env("ORION_EVENTS", &events)
        .arg("-i")
        .arg(path)
        .arg("create_user.yml");
    assert_eq!(command.status().unwrap().code(), Some(4));
    assert!(
        std::fs::read_to_string(events)
            .unwrap()
            .contains("host_key_mismatch")
    );
    assert!(workers.accounts().is_empty());
}
