//! How the agent lets the control plane in.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test's helper fails the test"
)]

#[allow(dead_code, reason = "shared by several test programs")]
mod control_plane;

use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;

use control_plane::ControlPlane;
use control_plane::worker::{Worker, ed25519};
use orion_agentd::Machine;
use serde_json::json;

const REGISTER: &str = "/api/workers/register";
const BEAT: &str = "/api/workers/beat";

#[tokio::test]
async fn only_bare_keys_of_the_pool_let_somebody_in() {
    let mut plane = ControlPlane::start().await;
    let worker = Worker::joined("barekeys", &plane);
    plane.tell(json!({"pool_keys": [
        format!("{} comment", ed25519(3)),
        format!("command=\"id\" {}", ed25519(4)),
        format!("{}\n{}", ed25519(5), ed25519(6)),
        "ssh-dss AAAA", "",
        ed25519(2), ed25519(1),
    ]}));
    let _agent = worker.start(&plane);
    plane.expect(REGISTER).await;
    plane.expect(BEAT).await;
    let both = [2, 1].map(|number| format!("restrict {}", ed25519(number)));
    assert_eq!(worker.login_keys(), both);
    let mode = |name: &str| {
        let metadata = std::fs::metadata(worker.path(name)).expect("there");
        metadata.permissions().mode() & 0o7777
    };
    // sshd reads it as orion-node.
    assert_eq!(mode("login/.ssh"), 0o755);
    assert_eq!(mode("login/.ssh/authorized_keys"), 0o644);
    // Somebody's own additions go with the next answer; an answer without keys says nothing new.
    std::fs::write(worker.path("login/.ssh/authorized_keys"), ed25519(66)).expect("written");
    plane.tell(json!({"pool_keys": []}));
    worker.until(Worker::login_keys, &both.to_vec()).await;
}

#[tokio::test]
async fn a_keys_directory_that_a_crash_left_closed_is_opened_again() {
    let mut plane = ControlPlane::start().await;
    let worker = Worker::joined("closed", &plane);
    let directory = worker.path("login/.ssh");
    plane.tell(json!({"pool_keys": [ed25519(1)]}));
    let close = || std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o700));
    let mode = |_: &Worker| {
        let metadata = std::fs::metadata(&directory).expect("there");
        metadata.permissions().mode() & 0o7777
    };
    // As UMask= of the unit makes it.
    std::fs::create_dir(&directory).expect("made");
    close().expect("chmod");
    let _agent = worker.start(&plane);
    plane.expect(REGISTER).await;
    worker.until(mode, &0o755).await;
    worker.until(Worker::login_keys, &from_anywhere()).await;
    close().expect("chmod");
    worker.until(mode, &0o755).await;
}

/// Puts a script in place of sshd-dropin that appends what it finds in the file of the exemption.
fn record_dropin(worker: &Worker) {
    let (script, exempt, log) = (
        worker.path("sshd-dropin"),
        worker.path("exempt"),
        worker.path("dropin.log"),
    );
    let text = format!(
        "#!/bin/sh\necho \"$1 $(cat '{}' 2>/dev/null)\" >>'{}'\n",
        exempt.display(),
        log.display()
    );
    std::fs::write(&script, text).expect("written");
    std::fs::set_permissions(script, std::fs::Permissions::from_mode(0o755)).expect("chmod");
}

fn dropin_calls(worker: &Worker) -> Vec<String> {
    let text = std::fs::read_to_string(worker.path("dropin.log")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

fn from(address: &str) -> Vec<String> {
    vec![format!("restrict,from=\"{address}\" {}", ed25519(1))]
}

fn from_anywhere() -> Vec<String> {
    vec![format!("restrict {}", ed25519(1))]
}

#[tokio::test]
async fn while_the_node_is_alive_keys_are_good_from_the_seen_source_alone() {
    let plane = ControlPlane::start().await;
    let worker = Worker::joined("source", &plane);
    record_dropin(&worker);
    let tell = |status: &str| plane.tell(json!({"pool_keys": [ed25519(1)], "status": status}));
    tell("unknown");
    std::fs::write(worker.path("source"), "192.0.2.9\n").expect("written");
    let agent = worker.start(&plane);
    worker.until(Worker::login_keys, &from_anywhere()).await;
    tell("alive");
    worker.until(Worker::login_keys, &from("192.0.2.9")).await;
    let calls = vec!["apply ".to_owned(), "apply 192.0.2.9".to_owned()];
    worker.until(dropin_calls, &calls).await;
    // A restart changes nothing, also before anything is told of the node.
    drop(agent);
    plane.tell(json!({"pool_keys": [ed25519(1)]}));
    let _agent = worker.start(&plane);
    let calls = [calls, vec!["apply 192.0.2.9".to_owned()]].concat();
    worker.until(dropin_calls, &calls).await;
    assert_eq!(worker.login_keys(), from("192.0.2.9"));
    // A control plane that can't log in may have moved.
    tell("suspect");
    worker.until(Worker::login_keys, &from_anywhere()).await;
    let calls = [calls, vec!["apply ".to_owned()]].concat();
    worker.until(dropin_calls, &calls).await;
    assert!(!worker.path("exempt").exists());
    tell("alive");
    worker.until(Worker::login_keys, &from("192.0.2.9")).await;
}

#[tokio::test]
async fn a_source_that_shuts_the_control_plane_out_is_not_used_again_until_it_is_seen_anew() {
    let mut plane = ControlPlane::start().await;
    let worker = Worker::joined("moved", &plane);
    let tell = |plane: &ControlPlane, status: &str| {
        plane.tell(json!({"pool_keys": [ed25519(1)], "status": status}));
    };
    tell(&plane, "alive");
    std::fs::write(worker.path("source"), "192.0.2.9\n").expect("written");
    let agent = worker.start(&plane);
    worker.until(Worker::login_keys, &from("192.0.2.9")).await;
    tell(&plane, "suspect");
    worker.until(Worker::login_keys, &from_anywhere()).await;
    tell(&plane, "alive");
    while plane.try_next().is_some() {}
    for _ in 0..3 {
        plane.expect(BEAT).await;
    }
    assert_eq!(worker.login_keys(), from_anywhere());
    std::fs::write(worker.path("source"), "192.0.2.10\n").expect("written");
    worker.until(Worker::login_keys, &from("192.0.2.10")).await;
    drop(agent);
    // One that has been good for a while is used again after an outage.
    let _agent = worker.trusting_agent(&plane);
    for _ in 0..2 {
        tell(&plane, "dead");
        worker.until(Worker::login_keys, &from_anywhere()).await;
        tell(&plane, "alive");
        worker.until(Worker::login_keys, &from("192.0.2.10")).await;
    }
}

#[tokio::test]
async fn several_control_planes_are_let_in_from_each_of_their_addresses() {
    let plane = ControlPlane::start().await;
    let worker = Worker::joined("several", &plane);
    record_dropin(&worker);
    let tell = |status: &str| plane.tell(json!({"pool_keys": [ed25519(1)], "status": status}));
    let note = |text: &str| std::fs::write(worker.path("source"), text).expect("written");
    tell("alive");
    // The first line as the module of an older version writes it; the same address twice is one.
    note(
        "2001:db8::5\n192.0.2.9 1700000000\n::ffff:192.0.2.9 1600000000\nrubbish 1\n192.0.2.4 x\n192.0.2.5 1 1\n",
    );
    let agent = worker.start(&plane);
    let both = "192.0.2.9,2001:db8::5";
    worker.until(Worker::login_keys, &from(both)).await;
    let calls = vec![format!("apply {both}")];
    worker.until(dropin_calls, &calls).await;
    // Who came last is no news.
    note("192.0.2.9 1700000001\n2001:db8::5 1700000000\n");
    // A restart changes nothing, also before anything is told of the node.
    drop(agent);
    plane.tell(json!({"pool_keys": [ed25519(1)]}));
    let _agent = worker.start(&plane);
    let calls = [calls, vec![format!("apply {both}")]].concat();
    worker.until(dropin_calls, &calls).await;
    assert_eq!(worker.login_keys(), from(both));
    tell("dead");
    worker.until(Worker::login_keys, &from_anywhere()).await;
    // No more than the note may have.
    tell("alive");
    let many: Vec<String> = (10..30).map(|last| format!("192.0.2.{last} 1\n")).collect();
    note(&many.concat());
    let first: Vec<String> = (10..18).map(|last| format!("192.0.2.{last}")).collect();
    worker
        .until(Worker::login_keys, &from(&first.join(",")))
        .await;
}

#[tokio::test]
async fn a_further_source_is_not_taken_for_one_that_shuts_others_out() {
    let plane = ControlPlane::start().await;
    let worker = Worker::joined("further", &plane);
    let tell = |status: &str| plane.tell(json!({"pool_keys": [ed25519(1)], "status": status}));
    tell("alive");
    std::fs::write(worker.path("source"), "192.0.2.9 1\n").expect("written");
    let agent = worker.start(&plane);
    worker.until(Worker::login_keys, &from("192.0.2.9")).await;
    drop(agent);
    // To this life of the agent the first one is old.
    let _agent = worker.start(&plane);
    std::fs::write(worker.path("source"), "192.0.2.10 2\n192.0.2.9 1\n").expect("written");
    let both = from("192.0.2.9,192.0.2.10");
    worker.until(Worker::login_keys, &both).await;
    tell("suspect");
    worker.until(Worker::login_keys, &from_anywhere()).await;
    tell("alive");
    worker.until(Worker::login_keys, &both).await;
    // Taken up anew a moment ago, and the control plane is out again: both are forgotten.
    tell("suspect");
    worker.until(Worker::login_keys, &from_anywhere()).await;
    worker
        .until(|worker| worker.path("source").exists(), &false)
        .await;
}

#[tokio::test]
async fn who_comes_through_a_gateway_is_let_in_beside_others_and_is_not_exempt() {
    let machine = |worker: &Worker| Machine {
        gateways: || vec![IpAddr::from([192, 0, 2, 1])],
        is_own: |address| address == IpAddr::from([192, 0, 2, 7]),
        ..worker.machine()
    };
    let plane = ControlPlane::start().await;
    let worker = Worker::joined("mixed", &plane);
    record_dropin(&worker);
    plane.tell(json!({"pool_keys": [ed25519(1)], "status": "alive"}));
    let noted = "192.0.2.1 3\n192.0.2.9 2\n192.0.2.7 1\n";
    std::fs::write(worker.path("source"), noted).expect("written");
    let _agent = worker.agent_on(worker.settings(&plane.url()), machine(&worker));
    let all = "192.0.2.1,192.0.2.7,192.0.2.9";
    worker.until(Worker::login_keys, &from(all)).await;
    worker
        .until(dropin_calls, &vec!["apply 192.0.2.9".to_owned()])
        .await;
}

#[tokio::test]
async fn a_source_that_stands_for_others_restricts_and_exempts_nobody() {
    let machine = |worker: &Worker| Machine {
        gateways: || vec![IpAddr::from([192, 0, 2, 1])],
        is_own: |address| address == IpAddr::from([192, 0, 2, 7]),
        ..worker.machine()
    };
    for (name, source) in [
        ("gateway", "192.0.2.1"),
        ("mapped", "::ffff:192.0.2.1"),
        ("own", "192.0.2.7"),
        ("rubbish", "192.0.2.9,192.0.2.10"),
        ("quoted", "192.0.2.9\" ssh-rsa"),
        ("empty", ""),
    ] {
        let mut plane = ControlPlane::start().await;
        let worker = Worker::joined(name, &plane);
        record_dropin(&worker);
        plane.tell(json!({"pool_keys": [ed25519(1)], "status": "alive"}));
        std::fs::write(worker.path("source"), source).expect("written");
        let _agent = worker.agent_on(worker.settings(&plane.url()), machine(&worker));
        for _ in 0..4 {
            plane.next().await;
        }
        assert_eq!(worker.login_keys(), from_anywhere(), "{name}");
        worker.until(dropin_calls, &vec!["apply ".to_owned()]).await;
        assert!(!worker.path("exempt").exists(), "{name}");
    }
}

#[tokio::test]
async fn a_login_that_can_not_be_kept_stops_no_beats() {
    let mut plane = ControlPlane::start().await;
    let worker = Worker::joined("nohome", &plane);
    std::fs::remove_dir(worker.path("login")).expect("removed");
    plane.tell(json!({"pool_keys": [ed25519(1)]}));
    let agent = worker.start(&plane);
    for path in [REGISTER, BEAT, BEAT] {
        plane.expect(path).await;
    }
    std::fs::create_dir(worker.path("login")).expect("made");
    worker.until(Worker::login_keys, &from_anywhere()).await;
    assert_eq!(agent.failures(), 0);
}
