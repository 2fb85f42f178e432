//! Whom the agent believes, and how it shows who it is.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test's helper fails the test"
)]

#[allow(dead_code, reason = "shared by several test programs")]
mod control_plane;

use control_plane::worker::{Worker, ed25519};
use control_plane::{ControlPlane, Forgery, Reply, signing_key};
use orion_core::PublicKey;
use serde_json::{Value, json};

const REGISTER: &str = "/api/workers/register";
const BEAT: &str = "/api/workers/beat";

fn problem(status: u16, code: &str) -> Value {
    json!({"status": status, "code": code, "detail": "x"})
}

fn key_file(worker: &Worker, name: &str) -> Option<PublicKey> {
    let text = std::fs::read_to_string(worker.path("agent").join(name)).ok()?;
    let seed = text.trim().parse().expect("a key");
    let key = orion_signature::SigningKey::from_seed(&seed).expect("a key");
    Some(key.public())
}

/// What `orion-agentd rotate-key` does.
fn rotate(worker: &Worker) -> PublicKey {
    let config = worker.path("agent.toml");
    let text = format!(
        "join_file = {:?}\nstate_dir = {:?}\n",
        worker.path("join"),
        worker.path("")
    );
    std::fs::write(&config, text).expect("written");
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_orion-agentd"))
        .arg("rotate-key")
        .arg("--config")
        .arg(config)
        .env_clear()
        .output()
        .expect("ran");
    assert!(output.status.success(), "{output:?}");
    // The running agent may have done it already.
    key_file(worker, "key.next")
        .or_else(|| key_file(worker, "key"))
        .expect("a key")
}

#[tokio::test]
async fn every_request_is_signed_with_rising_counters_and_the_first_registration_by_the_token() {
    let mut plane = ControlPlane::start().await;
    let worker = Worker::joined("signs", &plane);
    plane.next_beat(Reply::Json(404, problem(404, "node_unknown")));
    let _agent = worker.start(&plane);
    let token = signing_key(100).public();
    let mut counter = 0;
    for (number, path) in [REGISTER, BEAT, REGISTER, BEAT, BEAT]
        .into_iter()
        .enumerate()
    {
        let seen = plane.next().await;
        assert_eq!(seen.path, path);
        assert_eq!(Some(seen.signed.agent), key_file(&worker, "key"));
        assert_eq!(seen.signed.token, (number == 0).then_some(token));
        assert_eq!(seen.signed.next_key, None);
        assert!(seen.signed.counter > counter);
        counter = seen.signed.counter;
        assert_eq!(seen.body["signing_key"], json!(plane.public_keys()[0]));
    }
}

#[tokio::test]
async fn the_token_is_sent_until_it_was_answered_and_again_when_it_is_wanted() {
    let mut plane = ControlPlane::start().await;
    let worker = Worker::joined("token", &plane);
    let token = Some(signing_key(100).public());
    // Neither a forged answer nor a refusal is the answer.
    plane.next_register(Reply::Forged(Forgery::Unsigned, json!({})));
    plane.next_register(Reply::Json(503, problem(503, "database_down")));
    plane.next_register(Reply::Json(401, problem(401, "join_token_refused")));
    let agent = worker.start(&plane);
    for _ in 0..4 {
        let seen = plane.next().await;
        assert_eq!((seen.path.as_str(), seen.signed.token), (REGISTER, token));
    }
    plane.expect(BEAT).await;
    drop(agent);
    // Not after a restart either; what nobody signed does not ask for it.
    while plane.try_next().is_some() {}
    let refused = json!({"status": 401, "code": "join_token_refused", "detail": "x"});
    plane.next_register(Reply::Forged(Forgery::Unsigned, refused));
    plane.next_register(Reply::Json(401, problem(401, "join_token_refused")));
    let agent = worker.start(&plane);
    for sent in [None, None, token] {
        let seen = plane.next().await;
        assert_eq!((seen.path.as_str(), seen.signed.token), (REGISTER, sent));
    }
    plane.expect(BEAT).await;
    drop(agent);
    // Another line is another token.
    let mut line = plane.join_line();
    line.token = orion_core::Seed::from_bytes([101; 32]);
    worker.join(&line);
    while plane.try_next().is_some() {}
    let _agent = worker.start(&plane);
    let seen = plane.next().await;
    let other = Some(signing_key(101).public());
    assert_eq!((seen.path.as_str(), seen.signed.token), (REGISTER, other));
}

#[tokio::test]
async fn without_a_join_line_requests_are_signed_and_answers_give_no_access() {
    let mut plane = ControlPlane::start().await;
    plane.tell(json!({"pool_keys": [ed25519(9)], "status": "alive"}));
    let worker = Worker::new("openmode");
    let _agent = worker.start(&plane);
    for path in [REGISTER, BEAT, BEAT] {
        let seen = plane.next().await;
        assert_eq!(seen.path, path);
        assert_eq!((seen.signed.token, seen.signed.next_key), (None, None));
        assert_eq!(seen.body.get("signing_key"), None);
    }
    assert!(worker.login_keys().is_empty());
    assert!(!worker.path("agent/trusted").exists());
}

#[tokio::test]
async fn answers_that_the_control_plane_did_not_sign_are_no_answers() {
    for (name, forgery) in [
        ("unsigned", Forgery::Unsigned),
        ("altered", Forgery::Altered),
        ("foreign", Forgery::Foreign),
    ] {
        let mut plane = ControlPlane::start().await;
        let worker = Worker::joined(name, &plane);
        plane.tell(json!({"pool_keys": [ed25519(1)]}));
        let evil = json!({
            "pool_keys": [ed25519(66)], "signing_keys": [signing_key(66).public()], "node_id": 66,
        });
        plane.next_register(Reply::Forged(forgery, evil.clone()));
        plane.next_beat(Reply::Forged(forgery, evil));
        let agent = worker.start(&plane);
        // The registration again, because the first answer was none; then the beat again, for the same node.
        for path in [REGISTER, REGISTER, BEAT, BEAT, BEAT] {
            let body = plane.expect(path).await;
            if path == BEAT {
                assert_eq!(body["node_id"], 42, "{name}");
            }
            let keys = worker.login_keys();
            assert!(!keys.concat().contains(&ed25519(66)), "{name}: {keys:?}");
        }
        assert_eq!(agent.failures(), 2, "{name}");
        assert_eq!(worker.login_keys(), [format!("restrict {}", ed25519(1))]);
        let trusted = std::fs::read_to_string(worker.path("agent/trusted")).expect("there");
        let evil = signing_key(66).public().to_string();
        assert!(!trusted.contains(&evil), "{name}");
    }
}

#[tokio::test]
async fn an_old_answer_is_no_answer() {
    let mut plane = ControlPlane::start().await;
    let worker = Worker::joined("replayed", &plane);
    plane.tell(json!({"pool_keys": [ed25519(1)]}));
    let agent = worker.start(&plane);
    plane.expect(REGISTER).await;
    plane.expect(BEAT).await;
    plane.expect(BEAT).await;
    plane.tell(json!({"pool_keys": [ed25519(2)]}));
    let new = [format!("restrict {}", ed25519(2))];
    worker.until(Worker::login_keys, &new.to_vec()).await;
    plane.tell(json!({"pool_keys": [ed25519(3)]}));
    plane.next_beat(Reply::Forged(Forgery::Replayed, json!({})));
    agent.has_failed(1).await;
    let new = [format!("restrict {}", ed25519(3))];
    worker.until(Worker::login_keys, &new.to_vec()).await;
}

#[tokio::test]
async fn a_refusal_that_nobody_signed_changes_nothing() {
    let mut plane = ControlPlane::start().await;
    let worker = Worker::joined("refusals", &plane);
    let evil = json!({"status": 404, "code": "node_unknown", "counter": 1_000_000, "detail": "x"});
    plane.next_beat(Reply::Forged(Forgery::Unsigned, evil));
    let _agent = worker.start(&plane);
    let first = plane.next().await.signed.counter;
    for _ in 0..3 {
        let seen = plane.next().await;
        assert_eq!(seen.path, BEAT);
        assert!(seen.signed.counter < first + 10);
    }
}

#[tokio::test]
async fn a_node_that_has_another_key_registers_again() {
    let mut plane = ControlPlane::start().await;
    let worker = Worker::joined("mismatch", &plane);
    plane.next_beat(Reply::Json(401, problem(401, "node_key_mismatch")));
    let _agent = worker.start(&plane);
    for path in [REGISTER, BEAT, REGISTER, BEAT] {
        plane.expect(path).await;
    }
}

#[tokio::test]
async fn a_restart_uses_no_counter_twice() {
    let mut plane = ControlPlane::start().await;
    let worker = Worker::joined("counters", &plane);
    let mut counter = 0;
    for _ in 0..3 {
        let agent = worker.start(&plane);
        for _ in 0..3 {
            let seen = plane.next().await;
            assert!(seen.signed.counter > counter);
            counter = seen.signed.counter;
        }
        drop(agent);
        // A request that the agent had under way.
        while let Some(seen) = plane.try_next() {
            counter = counter.max(seen.signed.counter);
        }
    }
}

#[tokio::test]
async fn a_counter_that_was_lost_is_told_by_the_control_plane() {
    let mut plane = ControlPlane::start().await;
    let worker = Worker::joined("lost", &plane);
    let used = |counter: u64| {
        let mut body = problem(401, "counter_used");
        body["counter"] = json!(counter);
        Reply::Json(401, body)
    };
    plane.next_register(used(5_000));
    plane.next_beat(used(9_000));
    let _agent = worker.start(&plane);
    assert!(plane.next().await.signed.counter < 5_000);
    assert_eq!(plane.next().await.signed.counter, 5_001);
    assert_eq!(plane.next().await.signed.counter, 5_002);
    assert_eq!(plane.next().await.signed.counter, 9_001);
}

#[tokio::test]
async fn a_key_is_rotated_while_the_agent_runs() {
    let mut plane = ControlPlane::start().await;
    let worker = Worker::joined("rotates", &plane);
    let _agent = worker.start(&plane);
    plane.expect(REGISTER).await;
    plane.expect(BEAT).await;
    plane.expect(BEAT).await;
    let old = key_file(&worker, "key").expect("a key");
    let next = rotate(&worker);
    assert_ne!(old, next);
    let registration = loop {
        let seen = plane.next().await;
        assert_eq!(seen.signed.agent, old);
        if seen.path == REGISTER {
            break seen;
        }
    };
    assert_eq!(registration.signed.next_key, Some(next));
    for _ in 0..2 {
        let seen = plane.next().await;
        assert_eq!((seen.path.as_str(), seen.signed.agent), (BEAT, next));
        assert_eq!(seen.signed.next_key, None);
    }
    assert_eq!(key_file(&worker, "key"), Some(next));
    assert_eq!(key_file(&worker, "key.next"), None);
}

#[tokio::test]
async fn a_next_key_that_is_damaged_stops_neither_registrations_nor_beats() {
    let mut plane = ControlPlane::start().await;
    let worker = Worker::joined("nextdamaged", &plane);
    std::fs::create_dir(worker.path("agent")).expect("made");
    std::fs::write(worker.path("agent/key.next"), "x\n").expect("written");
    let agent = worker.start(&plane);
    for path in [REGISTER, BEAT, BEAT] {
        let seen = plane.next().await;
        assert_eq!((seen.path.as_str(), seen.signed.next_key), (path, None));
    }
    assert_eq!(agent.failures(), 0);
    // And it is replaced as one that was never used.
    let next = rotate(&worker);
    worker
        .until(|worker| key_file(worker, "key"), &Some(next))
        .await;
}

#[tokio::test]
async fn a_rotation_whose_answer_was_lost_or_forged_is_registered_by_both_keys_again() {
    let mut plane = ControlPlane::start().await;
    let worker = Worker::joined("lostanswer", &plane);
    let agent = worker.start(&plane);
    plane.expect(REGISTER).await;
    plane.expect(BEAT).await;
    plane.expect(BEAT).await;
    let old = key_file(&worker, "key").expect("a key");
    plane.next_register(Reply::Close);
    plane.next_register(Reply::Forged(Forgery::Unsigned, json!({})));
    plane.next_register(Reply::Forged(Forgery::Foreign, json!({})));
    plane.next_register(Reply::Json(503, problem(503, "database_down")));
    // The last one in this life of the agent, and again in the next.
    plane.next_register(Reply::Close);
    plane.next_register(Reply::Close);
    let next = rotate(&worker);
    agent.has_failed(5).await;
    drop(agent);
    assert_eq!(key_file(&worker, "key"), Some(old));
    assert_eq!(key_file(&worker, "key.next"), Some(next));
    let _agent = worker.start(&plane);
    let mut registrations = 0;
    loop {
        let seen = plane.next().await;
        if seen.path == BEAT && registrations > 0 {
            assert_eq!(seen.signed.agent, next);
            break;
        }
        assert_eq!(seen.signed.agent, old);
        if seen.path == REGISTER {
            assert_eq!(seen.signed.next_key, Some(next));
            registrations += 1;
        }
    }
    assert!(registrations >= 6, "{registrations}");
    assert_eq!(key_file(&worker, "key"), Some(next));
}

#[tokio::test]
async fn the_control_planes_next_key_is_learnt_and_its_old_one_forgotten() {
    let mut plane = ControlPlane::start().await;
    let worker = Worker::joined("learns", &plane);
    let agent = worker.start(&plane);
    plane.expect(REGISTER).await;
    plane.expect(BEAT).await;
    // Both sign, the newer one first.
    plane.sign_with(&[201, 200]);
    plane.tell(json!({"signing_keys": plane.public_keys()}));
    while plane.expect(BEAT).await["signing_key"] != json!(plane.public_keys()[0]) {}
    // Then the newer one alone.
    plane.sign_with(&[201]);
    plane.tell(json!({"signing_keys": plane.public_keys()}));
    for _ in 0..3 {
        plane.expect(BEAT).await;
    }
    assert_eq!(agent.failures(), 0);
    drop(agent);
    // A restart knows it too, though the join line has the old one.
    let agent = worker.start(&plane);
    plane.expect_after(REGISTER, BEAT).await;
    plane.expect(BEAT).await;
    assert_eq!(agent.failures(), 0);
    // What the old one alone signs is not believed any more.
    plane.sign_with(&[200]);
    agent.has_failed(1).await;
}
