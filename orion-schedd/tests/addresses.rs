//! Addresses that stand in the database and that no worker can have: nothing is dialled there, by probes or by plays.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "helpers of tests"
)]

mod support;

use std::net::{IpAddr, TcpListener, UdpSocket};

use orion_core::{NodeStatus, RunKind, RunOutcome};
use orion_testkit::scripted::Op;
use orion_testkit::{PATIENCE, wait_until_async};
use support::{Bed, Plan};

/// Listens on a port of every address of this machine, and counts on hearing nothing.
struct Ear(TcpListener);

impl Ear {
    fn open() -> Self {
        let listener = TcpListener::bind("[::]:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        Self(listener)
    }

    fn port(&self) -> u16 {
        self.0.local_addr().unwrap().port()
    }

    fn heard_nothing(&self) {
        let heard = self.0.accept().map(|(_, from)| from);
        assert!(heard.is_err(), "a connection from {heard:?}");
    }
}

/// This machine's address on the way to others; nothing where it has no network.
fn own_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    // Sends nothing: it asks the kernel for a route.
    socket.connect("192.0.2.1:9").ok()?;
    let own = socket.local_addr().unwrap().ip();
    (!own.is_loopback() && !own.is_unspecified()).then_some(own)
}

/// Everything but what no network makes good.
fn wide_open(bed: &Bed) -> Plan {
    Plan {
        networks: "[\"0.0.0.0/0\", \"::/0\"]",
        ..bed.plan()
    }
}

fn forbidden() -> Vec<(String, &'static str)> {
    let mut all: Vec<(String, &str)> = [
        ("127.0.0.1", "a loopback one"),
        ("127.9.9.9", "a loopback one"),
        ("::1", "a loopback one"),
        ("169.254.169.254", "a link-local one"),
        ("fe80::1", "a link-local one"),
        ("::ffff:127.0.0.1", "an IPv4 address in disguise"),
        ("0.0.0.0", "an unspecified one"),
        ("224.0.0.1", "a multicast one"),
        ("ip6-localhost", "a name that the configuration lists"),
        ("127.1", "a name that the configuration lists"),
        ("{{ 1 }}", "a name that the configuration lists"),
    ]
    .map(|(host, why)| (host.to_owned(), why))
    .to_vec();
    all.extend(own_address().map(|own| (own.to_string(), "the control plane's own")));
    all
}

fn move_node(bed: &Bed, hostname: &str, host: &str, port: u16) {
    bed.db.sql(&format!(
        "UPDATE nodes SET contact_host = '{host}', contact_port = {port}, pending_contact_host = NULL, \
         pending_contact_port = NULL, pending_client_host = NULL, pending_client_port = NULL WHERE hostname = '{hostname}'"
    ));
}

async fn status_says(bed: &Bed, hostname: &str, why: &str) {
    wait_until_async(
        &format!("{hostname} is refused: {why}"),
        PATIENCE,
        || async {
            let node = bed.node_named(hostname).await;
            let reason = node.status_reason.clone().unwrap_or_default();
            if node.status != NodeStatus::Alive
                && reason.contains("not dialled")
                && reason.contains(why)
            {
                Ok(())
            } else {
                Err(format!("{node:#?}"))
            }
        },
    )
    .await;
}

#[tokio::test]
async fn a_probe_never_dials_a_forbidden_address_and_the_status_says_why() {
    let bed = Bed::new(1).await;
    let _daemon = bed.start(&wide_open(&bed));
    bed.all_ready().await;
    let ear = Ear::open();
    for (host, why) in forbidden() {
        move_node(&bed, "worker1", &host, ear.port());
        status_says(&bed, "worker1", why).await;
        ear.heard_nothing();
    }
    move_node(&bed, "worker1", "localhost", bed.workers[0].port());
    bed.ready_nodes(1).await;
}

#[tokio::test]
async fn an_address_outside_of_the_networks_is_not_dialled() {
    let bed = Bed::new(1).await;
    let _daemon = bed.start(&Plan {
        networks: "[\"198.51.100.0/24\"]",
        ..bed.plan()
    });
    bed.all_ready().await;
    for host in ["203.0.113.7", "198.51.101.1", "2001:db8::1"] {
        move_node(&bed, "worker1", host, 22);
        status_says(&bed, "worker1", "inside the networks").await;
    }
    move_node(&bed, "worker1", "198.51.100.255", 22);
    status_says(&bed, "worker1", "broadcast").await;
}

#[tokio::test]
async fn neither_address_of_a_claim_is_dialled_where_it_is_forbidden() {
    let bed = Bed::new(1).await;
    let _daemon = bed.start(&wide_open(&bed));
    bed.all_ready().await;
    let ear = Ear::open();
    let (good, bad) = (bed.workers[0].port(), ear.port());
    for (contact, client) in [
        (("127.0.0.1", bad), ("localhost", good)),
        (("localhost", good), ("127.0.0.1", bad)),
        (("::1", bad), ("::1", bad)),
    ] {
        bed.db.sql(&format!(
            "UPDATE nodes SET contact_host = NULL, contact_port = NULL, pending_contact_host = '{}', \
             pending_contact_port = {}, pending_client_host = '{}', pending_client_port = {}, status_reason = NULL",
            contact.0, contact.1, client.0, client.1
        ));
        status_says(&bed, "worker1", "a loopback one").await;
        ear.heard_nothing();
        let still = "SELECT COUNT(*) FROM nodes WHERE contact_host IS NULL";
        assert_eq!(bed.db.sql_one(still), "1");
    }
    bed.register(&bed.workers[0]).await;
    bed.ready_nodes(1).await;
}

#[tokio::test]
async fn a_play_leaves_out_a_forbidden_address_and_serves_the_others_of_its_batch() {
    let bed = Bed::new(3).await;
    // One slot is busy with a hanging play, so that the three runs gather and leave together.
    let _daemon = bed.start(&wide_open(&bed));
    bed.all_ready().await;
    let rentals = bed.rented(3).await;
    let ear = Ear::open();
    move_node(&bed, "worker2", "127.0.0.1", ear.port());
    for rental in rentals {
        bed.release(rental).await;
    }
    bed.ready_nodes(2).await;
    let refused = wait_until_async("the third cleaning has failed", PATIENCE, || async {
        let mut runs = bed.runs(RunKind::Clean).await;
        runs.retain(|run| {
            run.outcome
                .is_some_and(|outcome| outcome != RunOutcome::Gone)
        });
        runs.pop().ok_or("not yet")
    })
    .await;
    assert_eq!(refused.outcome, Some(RunOutcome::Unreachable));
    let detail = refused.detail.unwrap_or_default();
    assert!(
        detail.starts_with("not dialled: its address must be") && detail.contains("loopback"),
        "{detail}"
    );
    let node = format!("node-{}", bed.node_named("worker2").await.node_id);
    for play in bed.plays(Op::Delete) {
        assert!(!play.hosts.contains(&node), "{play:?}");
    }
    ear.heard_nothing();
    assert_eq!(bed.workers[1].accounts().len(), 1);

    // The debt is paid when it is back where it was.
    move_node(&bed, "worker2", "localhost", bed.workers[1].port());
    bed.ready_nodes(3).await;
    bed.accounts_are(&[]);
}

#[tokio::test]
async fn the_real_ansible_is_not_started_for_a_forbidden_address() {
    let bed = Bed::new(0).await;
    let ear = Ear::open();
    let started = bed.scratch.join("started");
    let mut plan = wide_open(&bed);
    let program = format!("#!/bin/sh\ntouch {}\nexit 5\n", started.display());
    plan.playbook_command = bed.scratch.write_program("playbook", &program);
    let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAA";
    bed.register_at("evil", ear.port(), key).await;
    move_node(&bed, "evil", "127.0.0.1", ear.port());
    let _daemon = bed.start(&plan);
    wait_until_async("the inspection has failed", PATIENCE, || async {
        let runs = bed.runs(RunKind::Inspect).await;
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
    assert!(!started.exists(), "a play was started");
    ear.heard_nothing();
}
