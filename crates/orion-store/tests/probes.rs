//! What a probe, or a beat in its place, makes of a node.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use orion_core::NodeId;
use orion_store::*;
use support::{Bed, bare_beat, host_key};

async fn probed(bed: &Bed, second: i64, node: NodeId, result: &ProbeResult) {
    let store = bed.later(second);
    store.record_probe(node, result).await.unwrap();
}

fn no_answer() -> ProbeResult {
    ProbeResult::NoAnswer("timed out".to_owned())
}

#[tokio::test]
async fn one_failed_probe_makes_suspect_and_one_login_alive() {
    let (bed, nodes) = Bed::with_nodes(1).await;
    for result in [
        no_answer(),
        ProbeResult::WrongHostKey(host_key(9)),
        ProbeResult::Refused("penalised".to_owned()),
    ] {
        bed.store.record_probe(nodes[0], &result).await.unwrap();
        assert_eq!(bed.node_state(nodes[0]), "suspect ready");
        assert_eq!(
            bed.rent(bed.alice, 1).await,
            RentDecision::NoFreeNode { free: 0 }
        );
        bed.store
            .record_probe(nodes[0], &ProbeResult::LoggedIn)
            .await
            .unwrap();
        assert_eq!(bed.node_state(nodes[0]), "alive ready");
    }
}

#[tokio::test]
async fn dead_after_several_failures_over_a_while_and_inspected_when_it_comes_back() {
    let (bed, nodes) = Bed::with_nodes(1).await;
    for second in [0, 1, 2, 3] {
        probed(&bed, second, nodes[0], &no_answer()).await;
    }
    assert_eq!(
        bed.node_state(nodes[0]),
        "suspect ready",
        "many failures in a moment are one"
    );
    probed(&bed, 15, nodes[0], &no_answer()).await;
    assert_eq!(bed.node_state(nodes[0]), "dead joining");
    probed(&bed, 16, nodes[0], &ProbeResult::LoggedIn).await;
    assert_eq!(bed.node_state(nodes[0]), "alive joining");
    bed.check().await;
}

#[tokio::test]
async fn who_refuses_a_login_or_shows_another_key_is_not_dead() {
    for result in [
        ProbeResult::Refused("no".to_owned()),
        ProbeResult::WrongHostKey(host_key(9)),
    ] {
        let (bed, nodes) = Bed::with_nodes(1).await;
        for second in [0, 30, 60, 90] {
            probed(&bed, second, nodes[0], &result).await;
        }
        assert_eq!(bed.node_state(nodes[0]), "suspect ready");
    }
}

#[tokio::test]
async fn a_node_that_beats_is_not_dead() {
    let (bed, nodes) = Bed::with_nodes(1).await;
    let beat = bare_beat(nodes[0]);
    for second in [0, 15, 30, 45] {
        bed.later(second)
            .beat_many(std::slice::from_ref(&beat), None)
            .await
            .unwrap();
        probed(&bed, second, nodes[0], &no_answer()).await;
    }
    assert_eq!(
        bed.node_state(nodes[0]),
        "suspect ready",
        "silence on one channel only"
    );
    probed(&bed, 66, nodes[0], &no_answer()).await;
    assert_eq!(bed.node_state(nodes[0]), "dead joining");
}

#[tokio::test]
async fn a_node_turns_out_to_be_dead_between_two_probes_too() {
    let (bed, nodes) = Bed::with_nodes(3).await;
    let node = nodes[0];
    let silence = ProbeResult::NoAnswer("timed out".to_owned());
    for second in [0, 4, 8] {
        let store = bed.later(second);
        store.record_probe(node, &silence).await.unwrap();
        store.migrate(10).await.unwrap();
    }
    assert!(bed.node_state(node).starts_with("suspect"), "within 10 s");
    bed.later(11).migrate(10).await.unwrap();
    assert!(bed.node_state(node).starts_with("dead"));
}

#[tokio::test]
async fn a_dead_node_keeps_its_rental_and_its_debt() {
    let (bed, nodes) = Bed::with_nodes(1).await;
    let rental = bed.active(bed.alice, 1).await[0];
    for second in [0, 10, 20] {
        probed(&bed, second, nodes[0], &no_answer()).await;
    }
    assert_eq!(bed.node_state(nodes[0]), "dead leased");
    assert_eq!(bed.rental_state(rental), "active");
    bed.store.release(Scope::All, rental).await.unwrap();
    assert_eq!(
        bed.rental_state(rental),
        "ending",
        "a dead node comes back dirty"
    );
    bed.check().await;
}

#[tokio::test]
async fn logins_of_many_nodes_are_recorded_together() {
    let (bed, nodes) = Bed::with_nodes(4).await;
    for node in &nodes {
        bed.store.record_probe(*node, &no_answer()).await.unwrap();
    }
    bed.store.record_logins(&nodes[..3]).await.unwrap();
    let states: Vec<_> = nodes.iter().map(|node| bed.node_state(*node)).collect();
    assert_eq!(
        states,
        ["alive ready", "alive ready", "alive ready", "suspect ready"]
    );
    bed.store.record_logins(&[]).await.unwrap();
    bed.check().await;
}
