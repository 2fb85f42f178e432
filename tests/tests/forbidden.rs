//! In a network namespace of its own, without a way out, listeners on forbidden addresses see no connection, whatever
//! registers.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "helpers of tests"
)]

use orion_testkit::{Client, PATIENCE, Scratch, wait_until, wait_until_async};
use orion_tests::{Cluster, Plan};
use serde_json::{Value, json};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

const INSIDE: &str = "ORION_TEST_IN_NAMESPACE";
const NAME: &str = "forbidden_addresses_see_no_connection";

/// Addresses of the namespace that no worker may have: loopback, link-local, this machine's own, outside the networks.
const LISTENING: [&str; 5] = [
    "127.0.0.1",
    "::1",
    "169.254.169.254",
    "10.66.0.1",
    "203.0.113.5",
];

/// The same addresses in other words, and some that nobody has.
const SPELLINGS: [&str; 16] = [
    "::ffff:127.0.0.1",
    "0:0:0:0:0:0:0:1",
    "127.1",
    "2130706433",
    "0x7f.0.0.1",
    "0177.0.0.1",
    "127.0.0.1%lo",
    "[::1]",
    "::ffff:169.254.169.254",
    "::ffff:10.66.0.1",
    "64:ff9b::10.66.0.1",
    "2002:0a42:0001::1",
    "0.0.0.0",
    "::",
    "255.255.255.255",
    "ip6-localhost",
];

/// Runs this very test again inside a namespace that has loopback and the addresses above, and nothing else.
fn in_namespace() -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let script = "ip link set lo up && ip addr add 169.254.169.254/32 dev lo && ip addr add 10.66.0.1/32 dev lo \
         && ip addr add 203.0.113.5/32 dev lo && exec \"$0\" \"$@\"";
    let status = Command::new("unshare")
        .args(["--net", "sh", "-c", script])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", NAME, "--nocapture"])
        .env(INSIDE, "yes")
        .status()
        .unwrap();
    assert!(status.success(), "inside: {status}");
    false
}

/// A listener that counts who connects.
fn watch(address: &str) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind((address.parse::<IpAddr>().unwrap(), 0)).unwrap();
    let place = listener.local_addr().unwrap();
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            counted.fetch_add(1, Ordering::SeqCst);
            drop(stream);
        }
    });
    (place, count)
}

fn registration(number: usize, ip: &str, port: u16) -> Value {
    json!({"hostname": format!("hostile{number}"), "ip": ip, "ssh_port": port})
}

/// Rounds of schedd's health check that have ended.
async fn rounds(cluster: &Cluster) -> u64 {
    let ops = Client::new(cluster.schedd.address("ops").await);
    let page = String::from_utf8_lossy(&ops.get("/metrics").await.body).into_owned();
    let lines = page
        .lines()
        .filter(|line| line.contains("health_check") && line.contains("_total"));
    lines
        .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
        .sum()
}

type Listeners = [(SocketAddr, Arc<AtomicUsize>)];

/// Everything that a stranger may say; nothing of it is taken.
async fn register_hostile(cluster: &Cluster, listeners: &Listeners, canary: &Path) {
    let agents = Client::new(cluster.apids[0].address("agents").await);
    let ports: Vec<u16> = listeners.iter().map(|(place, _)| place.port()).collect();
    let before = cluster.db.sql("SELECT COUNT(*), MAX(id) FROM nodes");
    let mut sent = 0;
    for address in LISTENING.iter().chain(&SPELLINGS) {
        for port in &ports {
            for body in [
                registration(sent, address, *port),
                json!({"hostname": format!("hostile{sent}"), "ip": "10.77.0.9", "ssh_port": 22, "contact": {"host": address, "port": port}}),
            ] {
                agents
                    .post("/api/workers/register", &body)
                    .await
                    .expect(422);
                sent += 1;
            }
        }
    }
    for name in [
        format!("; rm {}", canary.display()),
        format!("$(rm {})", canary.display()),
        "{{ lookup('pipe', 'id') }}".to_owned(),
    ] {
        let body = json!({"hostname": name, "ip": "10.77.0.9", "ssh_port": 22});
        agents
            .post("/api/workers/register", &body)
            .await
            .expect(422);
    }
    assert_eq!(
        cluster.db.sql("SELECT COUNT(*), MAX(id) FROM nodes"),
        before,
        "no row changed"
    );
}

/// Rows that got there some other way are not dialled either: schedd asks again.
async fn write_hostile(cluster: &Cluster, listeners: &Listeners) {
    for (number, (place, _)) in listeners.iter().enumerate() {
        cluster.db.sql(&format!(
            "INSERT INTO nodes (hostname, client_host, client_port, contact_host, contact_port, status, status_since, availability, \
             availability_since, created_at) VALUES ('written{number}', '{0}', {1}, '{0}', {1}, 'unknown', NOW(6), 'joining', NOW(6), NOW(6))",
            place.ip(),
            place.port()
        ));
    }
    wait_until("schedd has looked at each of them", PATIENCE, || {
        let refused = cluster.db.sql_one(
            "SELECT COUNT(*) FROM nodes WHERE hostname LIKE 'written%' AND failed_checks >= 3",
        );
        if refused == LISTENING.len().to_string() {
            Ok(())
        } else {
            Err(refused)
        }
    })
    .await;
    let now = rounds(cluster).await;
    wait_until_async("two more rounds", PATIENCE, || async {
        let rounds = rounds(cluster).await;
        if rounds >= now + 2 {
            Ok(())
        } else {
            Err(rounds.to_string())
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn forbidden_addresses_see_no_connection() {
    if !in_namespace() {
        return;
    }
    let plan = Plan {
        networks: "[\"0.0.0.0/1\", \"128.0.0.0/2\", \"::/0\"]",
        ..Plan::workers(1)
    };
    let cluster = Cluster::start(plan).await;
    let files = Scratch::new("canary");
    let canary = files.write_secret("canary", "alive\n");
    let listeners: Vec<_> = LISTENING.iter().map(|address| watch(address)).collect();
    register_hostile(&cluster, &listeners, &canary).await;
    write_hostile(&cluster, &listeners).await;
    for (place, count) in &listeners {
        assert_eq!(count.load(Ordering::SeqCst), 0, "{place} was dialled");
        // It would have been seen.
        drop(std::net::TcpStream::connect(place).unwrap());
        wait_until("a connection is counted", PATIENCE, || {
            if count.load(Ordering::SeqCst) == 1 {
                Ok(())
            } else {
                Err("none".to_owned())
            }
        })
        .await;
    }
    assert_eq!(std::fs::read_to_string(canary).unwrap(), "alive\n");
}
