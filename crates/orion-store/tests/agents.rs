//! Agents: how often they beat, and what their silence means.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "helpers of tests"
)]

mod support;

use orion_core::NodeId;
use orion_store::*;
use std::time::Duration;
use support::{Bed, bare_beat};

const AT_ONCE: Duration = Duration::ZERO;

async fn beats(bed: &Bed, seconds: i64, node: NodeId, interval_s: Option<u32>) -> u32 {
    let beat = bare_beat(node);
    let store = bed.later(seconds);
    store
        .beat_many(&[beat], interval_s)
        .await
        .unwrap()
        .interval_s
}

async fn logged_in(bed: &Bed, seconds: i64, node: NodeId) {
    let store = bed.later(seconds);
    store
        .record_probe(node, &ProbeResult::LoggedIn)
        .await
        .unwrap();
}

#[tokio::test]
async fn the_interval_of_beats_grows_with_the_nodes_that_live() {
    let (bed, nodes) = Bed::with_nodes(2).await;
    assert_eq!(beats(&bed, 0, nodes[0], None).await, 5);
    bed.db.sql(
        "INSERT INTO nodes (hostname, client_host, client_port, status, status_since, availability, availability_since, created_at) \
         SELECT CONCAT('many', seq), '10.1.0.1', 22, IF(seq <= 3600, 'alive', 'dead'), NOW(), 'joining', NOW(), NOW() FROM seq_1_to_5000",
    );
    assert_eq!(beats(&bed, 0, nodes[0], None).await, 10);
    assert_eq!(
        beats(&bed, 0, nodes[0], Some(7)).await,
        7,
        "what was counted before"
    );
    assert_eq!(
        bed.one(&format!(
            "SELECT interval_s FROM beats WHERE node_id = {}",
            nodes[0]
        )),
        "7"
    );
}

#[tokio::test]
async fn death_waits_for_four_beats_as_the_agent_was_told_them() {
    for (interval_s, seconds, state) in [
        (5, 21, "dead joining"),
        (30, 21, "suspect ready"),
        (30, 121, "dead joining"),
    ] {
        let (bed, nodes) = Bed::with_nodes(2).await;
        beats(&bed, 0, nodes[0], Some(interval_s)).await;
        for second in [1, 8, 15, seconds] {
            beats(&bed, second, nodes[1], Some(interval_s)).await;
            let store = bed.later(second);
            let silence = ProbeResult::NoAnswer("timed out".to_owned());
            store.record_probe(nodes[0], &silence).await.unwrap();
        }
        assert_eq!(
            bed.node_state(nodes[0]),
            state,
            "{interval_s} s, {seconds} s later"
        );
    }
}

#[tokio::test]
async fn an_agent_that_is_silent_on_a_machine_that_lets_us_in_is_down_and_nothing_else_changes() {
    let (bed, nodes) = Bed::with_nodes(2).await;
    let rental = bed.active(bed.alice, 1).await[0];
    let down_since = |node: NodeId| {
        bed.one(&format!(
            "SELECT agent_down_since IS NOT NULL FROM nodes WHERE id = {node}"
        ))
    };
    for node in &nodes {
        beats(&bed, 0, *node, Some(5)).await;
    }
    let judge = async |seconds, least| bed.later(seconds).judge_agents(least).await.unwrap();
    assert_eq!(judge(19, AT_ONCE).await, AgentsJudged::default());
    beats(&bed, 20, nodes[1], Some(5)).await;
    logged_in(&bed, 24, nodes[0]).await;
    assert_eq!(
        judge(24, Duration::from_secs(180)).await.all_down,
        0,
        "it may be us"
    );
    let judged = judge(24, AT_ONCE).await;
    assert_eq!(
        (judged.down, judged.back.len(), judged.all_down),
        (vec!["worker1".to_owned()], 0, 1)
    );
    assert_eq!(
        (down_since(nodes[0]).as_str(), down_since(nodes[1]).as_str()),
        ("1", "0")
    );
    let again = judge(25, AT_ONCE).await;
    assert_eq!((again.down.len(), again.all_down), (0, 1), "said once");
    assert_eq!(bed.rental_state(rental), "active");
    assert_eq!(
        bed.one("SELECT COUNT(*) FROM nodes WHERE status = 'alive'"),
        "2"
    );
    let seen = bed.store.node(Scope::All, nodes[0]).await.unwrap().unwrap();
    let agent = seen.agent.unwrap();
    assert_eq!(
        (agent.version.as_str(), agent.down_since.is_some()),
        ("0.1.0", true)
    );
    let own = bed
        .store
        .node(Scope::Own(bed.alice), nodes[0])
        .await
        .unwrap()
        .unwrap();
    assert!(own.agent.is_none(), "for administrators");
    beats(&bed, 30, nodes[0], Some(5)).await;
    let judged = judge(31, AT_ONCE).await;
    assert_eq!(
        (judged.back, judged.all_down),
        (vec!["worker1".to_owned()], 0)
    );
    let kinds =
        bed.one("SELECT GROUP_CONCAT(kind ORDER BY id) FROM events WHERE kind LIKE 'agent%'");
    assert_eq!(kinds, "agent_down,agent_back");
    bed.check().await;
}

#[tokio::test]
async fn an_agent_is_not_down_where_the_machine_is_or_where_none_ever_beat() {
    let (bed, nodes) = Bed::with_nodes(2).await;
    beats(&bed, 0, nodes[0], Some(5)).await;
    let silence = ProbeResult::NoAnswer("timed out".to_owned());
    bed.later(50)
        .record_probe(nodes[0], &silence)
        .await
        .unwrap();
    let judged = bed.later(60).judge_agents(AT_ONCE).await.unwrap();
    assert_eq!(judged, AgentsJudged::default());
    let age = bed.later(60).newest_beat_age().await.unwrap().unwrap();
    assert!((59..=61).contains(&age.as_secs()), "{age:?}");
}
