//! What a probe, or a beat in its place, makes of a node.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use orion_core::NodeId;
use orion_store::*;
use support::moves::dies;
use support::{Bed, bare_beat, host_key};

async fn probed(bed: &Bed, second: i64, node: NodeId, result: &ProbeResult) {
    let store = bed.later(second);
    store.record_probe(node, result).await.unwrap();
}

async fn beats(bed: &Bed, second: i64, node: NodeId) {
    let store = bed.later(second);
    store.beat_many(&[bare_beat(node)], None).await.unwrap();
}

/// The first node moves to where the second one was.
async fn takes_the_address_of_the_second(bed: &Bed, second: i64, first: NodeId) {
    let targets = bed.store.probe_targets().await.unwrap();
    let taken = targets.get(1).unwrap().contact.clone().unwrap();
    bed.register(1, taken.port).await;
    let claim = AddressClaim {
        contact: taken.clone(),
        client: taken,
    };
    let proven = bed.later(second).confirm_address(first, &claim).await;
    assert!(proven.unwrap());
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
        ProbeResult::TurnedAway("Exceeded MaxStartups"),
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
    let node = bed.store.node(Scope::Own(bed.alice), nodes[0]).await;
    assert!(node.unwrap().unwrap().held_until.is_some());
    bed.check().await;
}

#[tokio::test]
async fn who_refuses_a_login_is_not_dead() {
    let (bed, nodes) = Bed::with_nodes(1).await;
    let refused = ProbeResult::Refused("no".to_owned());
    for second in [0, 30, 60, 90] {
        probed(&bed, second, nodes[0], &refused).await;
    }
    assert_eq!(bed.node_state(nodes[0]), "suspect ready");
}

#[tokio::test]
async fn who_turns_connections_away_is_not_dead_for_a_quarter_of_an_hour() {
    let (bed, nodes) = Bed::with_nodes(2).await;
    let turned_away = ProbeResult::TurnedAway("Exceeded MaxStartups");
    probed(&bed, 0, nodes[0], &no_answer()).await;
    for second in (5..900).step_by(60) {
        beats(&bed, second, nodes[1]).await;
        probed(&bed, second, nodes[0], &turned_away).await;
        probed(&bed, second + 1, nodes[0], &turned_away).await;
        probed(&bed, second + 2, nodes[0], &turned_away).await;
    }
    assert_eq!(bed.node_state(nodes[0]), "suspect ready");
    beats(&bed, 905, nodes[1]).await;
    for second in [905, 906, 907] {
        probed(&bed, second, nodes[0], &turned_away).await;
    }
    assert_eq!(
        bed.node_state(nodes[0]),
        "dead joining",
        "no penalty lasts so long: it may be somebody else"
    );
}

#[tokio::test]
async fn who_turned_connections_away_and_then_says_nothing_is_dead_after_three_failures() {
    let (bed, nodes) = Bed::with_nodes(2).await;
    let turned_away = ProbeResult::TurnedAway("Exceeded MaxStartups");
    probed(&bed, 0, nodes[0], &turned_away).await;
    probed(&bed, 300, nodes[0], &turned_away).await;
    beats(&bed, 301, nodes[1]).await;
    for (second, state) in [
        (302, "suspect ready"),
        (303, "suspect ready"),
        (304, "dead joining"),
    ] {
        probed(&bed, second, nodes[0], &no_answer()).await;
        assert_eq!(bed.node_state(nodes[0]), state);
    }
}

#[tokio::test]
async fn who_turns_connections_away_and_beats_is_not_dead() {
    let (bed, nodes) = Bed::with_nodes(1).await;
    for second in (0..2_000).step_by(100) {
        beats(&bed, second, nodes[0]).await;
        let said = ProbeResult::TurnedAway("Not allowed at this time");
        probed(&bed, second, nodes[0], &said).await;
    }
    assert_eq!(bed.node_state(nodes[0]), "suspect ready");
}

#[tokio::test]
async fn a_node_whose_address_shows_another_key_is_dead_when_its_agent_is_silent_too() {
    let (bed, nodes) = Bed::with_nodes(2).await;
    let other_key = ProbeResult::WrongHostKey(host_key(9));
    for second in [0, 100, 200, 300] {
        beats(&bed, second, nodes[0]).await;
        probed(&bed, second, nodes[0], &other_key).await;
    }
    assert_eq!(bed.node_state(nodes[0]), "suspect ready");
    for second in [321, 326, 332] {
        beats(&bed, second, nodes[1]).await;
        probed(&bed, second, nodes[0], &other_key).await;
    }
    assert_eq!(bed.node_state(nodes[0]), "dead joining");
}

#[tokio::test]
async fn a_node_that_lost_its_address_to_another_is_dead_when_its_agent_is_silent_too() {
    let (bed, nodes) = Bed::with_nodes(3).await;
    takes_the_address_of_the_second(&bed, 100, nodes[0]).await;
    bed.later(109).migrate(10).await.unwrap();
    assert_eq!(bed.node_state(nodes[1]), "suspect ready");
    bed.later(110).migrate(10).await.unwrap();
    assert_eq!(bed.node_state(nodes[1]), "dead joining");
    assert_eq!(bed.node_state(nodes[0]), "alive ready");
}

#[tokio::test]
async fn who_is_dead_does_not_die_again_when_another_gets_its_address() {
    let (bed, nodes) = Bed::with_nodes(3).await;
    dies(&bed, nodes[1], 0).await;
    takes_the_address_of_the_second(&bed, 100, nodes[0]).await;
    bed.later(111).migrate(10).await.unwrap();
    assert_eq!(bed.node_state(nodes[1]), "dead joining");
    assert_eq!(bed.one("SELECT MAX(deaths) FROM nodes"), "1");
}

#[tokio::test]
async fn while_no_agent_is_heard_the_silence_of_one_is_not_its_own() {
    let (bed, nodes) = Bed::with_nodes(3).await;
    for (node, second) in [(nodes[0], 0), (nodes[1], 4)] {
        beats(&bed, second, node).await;
    }
    for second in [15, 21, 27, 60] {
        probed(&bed, second, nodes[0], &no_answer()).await;
    }
    assert_eq!(bed.node_state(nodes[0]), "suspect ready");
    beats(&bed, 61, nodes[1]).await;
    probed(&bed, 62, nodes[0], &no_answer()).await;
    assert_eq!(bed.node_state(nodes[0]), "dead joining");
}

#[tokio::test]
async fn a_node_that_beats_is_not_dead() {
    let (bed, nodes) = Bed::with_nodes(2).await;
    for second in [0, 15, 30, 45] {
        beats(&bed, second, nodes[0]).await;
        probed(&bed, second, nodes[0], &no_answer()).await;
    }
    assert_eq!(
        bed.node_state(nodes[0]),
        "suspect ready",
        "silence on one channel only"
    );
    beats(&bed, 65, nodes[1]).await;
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
