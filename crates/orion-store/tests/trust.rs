//! Nodes that are their key, counters that only rise, approval, and the pool's keys.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests"
)]

mod support;

use orion_core::{HostName, NodeId, NodeStatus};
use orion_store::*;
use support::signed::{Sent, by, joined, key, sent, token};
use support::{Bed, address, host_key};

fn beat(node: NodeId, signed: Option<SignedBy>) -> Beat {
    Beat {
        node,
        boot_id: "boot".to_owned(),
        agent: "0.1.0".to_owned(),
        signed,
        signing_key: Some(key(250)),
        accounts: None,
    }
}

async fn beat_once(bed: &Bed, node: NodeId, signed: Option<SignedBy>) -> BeatOutcome {
    let recorded = bed
        .store
        .beat_many(&[beat(node, signed)], None)
        .await
        .unwrap();
    recorded.outcomes[0]
}

const RECORDED: BeatOutcome = BeatOutcome::Recorded {
    status: NodeStatus::Unknown,
};

#[tokio::test]
async fn a_node_that_waits_takes_no_address() {
    let bed = Bed::new().await;
    sent(1, by(1, 1))
        .with(&bed.store, Admission::Approval)
        .await;
    assert_eq!(bed.one("SELECT contact_host IS NULL FROM nodes"), "1");
}

#[tokio::test]
async fn a_node_registers_again_by_its_key_with_a_higher_counter_and_needs_no_token() {
    let bed = Bed::new().await;
    let node = joined(&bed).await;
    assert_eq!(
        sent(1, by(1, 1)).again(&bed).await,
        Registered::Refused(Refusal::OldCounter(1)),
        "replayed"
    );
    assert_eq!(
        sent(1, by(1, 2)).again(&bed).await,
        Registered::Updated(node)
    );
    assert_eq!(
        sent(1, by(1, 2)).again(&bed).await,
        Registered::Refused(Refusal::OldCounter(2))
    );
    let renamed = Sent {
        hostname: HostName::parse("renamed").unwrap(),
        ..sent(1, by(1, 9))
    };
    assert_eq!(renamed.again(&bed).await, Registered::Updated(node));
    assert_eq!(bed.one("SELECT hostname FROM nodes"), "renamed");
}

#[tokio::test]
async fn a_stranger_gets_neither_a_nodes_name_nor_its_host_key() {
    let bed = Bed::new().await;
    joined(&bed).await;
    token(&bed, 201, |order| order.uses = 9).await;
    let with = Admission::Token(Some(key(201)));
    let same_name = sent(1, by(7, 1)).with(&bed.store, with).await;
    assert_eq!(same_name, Registered::Refused(Refusal::HostnameTaken));
    let same_host_key = Sent {
        host_keys: vec![host_key(1)],
        ..sent(2, by(7, 1))
    };
    assert_eq!(
        same_host_key.with(&bed.store, with).await,
        Registered::Refused(Refusal::HostKeyTaken)
    );
    let bare = Sent {
        signed: None,
        ..sent(1, by(7, 1))
    };
    assert_eq!(
        bare.with(&bed.store, Admission::Open).await,
        Registered::Refused(Refusal::HostnameTaken)
    );
    assert_eq!(
        bed.one("SELECT CONCAT(COUNT(*), ' ', MAX(agent_key)) FROM nodes"),
        format!("1 {}", key(1))
    );
    let unused = bed.one(&format!(
        "SELECT uses_left FROM join_tokens WHERE public_key = '{}'",
        key(201)
    ));
    assert_eq!(unused, "9", "a refusal uses nothing up");
}

#[tokio::test]
async fn a_node_without_a_key_does_not_become_whoever_signs_with_its_name() {
    let bed = Bed::new().await;
    bed.register(1, 2201).await;
    let stranger = sent(1, by(7, 1));
    assert_eq!(
        stranger.with(&bed.store, Admission::Open).await,
        Registered::Refused(Refusal::HostnameTaken)
    );
    assert_eq!(bed.one("SELECT agent_key IS NULL FROM nodes"), "1");
}

#[tokio::test]
async fn a_node_whose_host_keys_changed_is_quarantined_and_keeps_the_pinned_ones() {
    let bed = Bed::new().await;
    let node = joined(&bed).await;
    let changed = Sent {
        host_keys: vec![host_key(9)],
        ..sent(1, by(1, 2))
    };
    assert_eq!(
        changed.again(&bed).await,
        Registered::Refused(Refusal::HostKeyChanged(node))
    );
    assert!(bed.node_state(node).ends_with("quarantined"));
    assert_eq!(bed.one("SELECT host_key FROM host_keys"), host_key(1));
    bed.store.release_from_quarantine(node).await.unwrap();
    let replayed = Sent {
        host_keys: vec![host_key(9)],
        ..sent(1, by(1, 2))
    };
    assert_eq!(
        replayed.again(&bed).await,
        Registered::Refused(Refusal::OldCounter(2))
    );
    assert!(
        bed.node_state(node).ends_with("joining"),
        "not put back by a copy"
    );
}

#[tokio::test]
async fn a_nodes_key_is_rotated_once_however_often_the_answer_gets_lost() {
    let bed = Bed::new().await;
    let node = joined(&bed).await;
    let rotation = |counter| SignedBy {
        next_key: Some(key(2)),
        ..by(1, counter)
    };
    assert_eq!(
        sent(1, rotation(2)).again(&bed).await,
        Registered::Updated(node)
    );
    assert_eq!(
        sent(1, rotation(3)).again(&bed).await,
        Registered::Updated(node),
        "the answer was lost"
    );
    assert_eq!(
        sent(1, by(2, 4)).again(&bed).await,
        Registered::Updated(node)
    );
    assert_eq!(
        sent(1, by(1, 5)).again(&bed).await,
        Registered::Refused(Refusal::NotAdmitted(TokenFault::Missing)),
        "the old key is nobody's"
    );
    assert_eq!(
        beat_once(&bed, node, Some(by(1, 6))).await,
        BeatOutcome::WrongKey
    );
    assert_eq!(
        bed.one("SELECT COUNT(*) FROM events WHERE kind = 'node_key_rotated'"),
        "1"
    );
}

#[tokio::test]
async fn a_beat_counts_only_with_the_nodes_key_and_a_counter_that_rises() {
    let bed = Bed::new().await;
    let node = joined(&bed).await;
    assert_eq!(beat_once(&bed, node, Some(by(1, 2))).await, RECORDED);
    for (signed, outcome) in [
        (Some(by(1, 2)), BeatOutcome::OldCounter(2)),
        (Some(by(1, 1)), BeatOutcome::OldCounter(2)),
        (Some(by(2, 9)), BeatOutcome::WrongKey),
        (None, BeatOutcome::Unsigned),
    ] {
        assert_eq!(beat_once(&bed, node, signed).await, outcome);
    }
    assert_eq!(bed.one("SELECT counter FROM beats"), "2");
    let behind = |byte| {
        let store = bed.store.clone();
        async move {
            store
                .nodes_that_believe_another_key(&key(byte))
                .await
                .unwrap()
        }
    };
    assert!(behind(250).await.is_empty());
    assert_eq!(behind(251).await, ["worker1"]);
}

#[tokio::test]
async fn a_strangers_beat_in_the_same_batch_does_not_displace_the_nodes_own() {
    let bed = Bed::new().await;
    let node = joined(&bed).await;
    let beats = [
        beat(node, Some(by(7, 99))),
        beat(node, Some(by(1, 2))),
        beat(node, None),
    ];
    let recorded = bed.store.beat_many(&beats, None).await.unwrap();
    assert_eq!(
        recorded.outcomes,
        [BeatOutcome::WrongKey, RECORDED, BeatOutcome::Unsigned]
    );
    assert_eq!(bed.one("SELECT counter FROM beats"), "2");
}

#[tokio::test]
async fn a_node_that_awaits_approval_is_not_dialled() {
    let bed = Bed::new().await;
    let registered = sent(1, by(1, 1))
        .with(&bed.store, Admission::Approval)
        .await;
    let Registered::Created(node) = registered else {
        panic!("{registered:?}")
    };
    assert!(bed.store.probe_targets().await.unwrap().is_empty());
    assert_eq!(bed.one("SELECT COUNT(*) FROM runs"), "0");
    assert_eq!(bed.store.queue_inspections(10).await.unwrap(), 0);
    assert_eq!(beat_once(&bed, node, Some(by(1, 2))).await, RECORDED);
    assert!(
        bed.store
            .node(Scope::All, node)
            .await
            .unwrap()
            .unwrap()
            .awaits_approval
    );

    assert_eq!(bed.store.approve_node(node).await.unwrap(), Approval::Done);
    assert_eq!(
        bed.store.approve_node(node).await.unwrap(),
        Approval::NotAwaited
    );
    assert_eq!(
        bed.store.approve_node(NodeId(99)).await.unwrap(),
        Approval::NotFound
    );
    assert_eq!(bed.store.probe_targets().await.unwrap().len(), 1);
    assert_eq!(bed.one("SELECT kind FROM runs"), "inspect");
}

#[tokio::test]
async fn a_client_address_apart_from_the_contact_address_must_be_met_first() {
    let bed = Bed::new().await;
    let hostname = HostName::parse("worker1").unwrap();
    let keys = [host_key(1)];
    let registration = Registration {
        hostname: &hostname,
        client: address(2299),
        contact: address(2201),
        host_keys: &keys,
        agent: None,
        boot_id: None,
        signed: None,
        signing_key: None,
    };
    bed.store
        .register(&registration, Admission::Open)
        .await
        .unwrap();
    let target = bed.store.probe_targets().await.unwrap().remove(0);
    assert_eq!(target.contact, None);
    let claim = AddressClaim {
        contact: address(2201),
        client: address(2299),
    };
    assert_eq!(target.pending, Some(claim));
}

#[tokio::test]
async fn the_pools_keys_are_told_newest_first_and_retired_when_no_node_needs_them() {
    let bed = Bed::new().await;
    let node = joined(&bed).await;
    let publish = |keys: &[&str]| {
        let (store, keys) = (
            bed.store.clone(),
            keys.iter().map(|key| (*key).to_owned()).collect::<Vec<_>>(),
        );
        async move { store.publish_pool_keys(&keys).await.unwrap() }
    };
    publish(&["old"]).await;
    publish(&["old", "new"]).await;
    publish(&["old", "new"]).await;
    assert_eq!(bed.store.pool_keys().await.unwrap(), ["new", "old"]);
    let told = bed
        .store
        .beat_many(&[beat(node, Some(by(1, 2)))], None)
        .await
        .unwrap()
        .pool_keys;
    assert_eq!(told, ["new", "old"]);

    assert_eq!(
        bed.store.retire_pool_key("old").await.unwrap(),
        ["worker1"],
        "never logged in to"
    );
    bed.store.record_login_key(node, "old").await.unwrap();
    assert_eq!(bed.store.retire_pool_key("old").await.unwrap(), ["worker1"]);
    assert_eq!(
        bed.store.probe_targets().await.unwrap()[0]
            .login_key
            .as_deref(),
        Some("old")
    );
    bed.store.record_login_key(node, "new").await.unwrap();
    assert!(bed.store.retire_pool_key("old").await.unwrap().is_empty());
    assert_eq!(bed.store.pool_keys().await.unwrap(), ["new"]);
}

#[tokio::test]
async fn a_beat_is_told_what_is_wanted_of_the_account_that_the_node_holds() {
    let (bed, nodes) = Bed::with_nodes(1).await;
    let held = |second: i64| {
        let (store, node) = (bed.later(second), nodes[0]);
        async move {
            store
                .beat_many(&[beat(node, None)], None)
                .await
                .unwrap()
                .held
                .get(&node)
                .copied()
        }
    };
    assert_eq!(held(0).await, None);
    let opened = bed.opened(bed.alice, 1).await;
    assert_eq!(held(0).await.unwrap().wanted, Wanted::Undecided);
    let run = bed.claim_one(orion_core::RunKind::Provision).await;
    bed.record(&run, orion_core::RunOutcome::Present).await;
    let told = held(600).await.unwrap();
    let Wanted::For(left) = told.wanted else {
        panic!("{told:?}")
    };
    assert!((2_990..=3_000).contains(&left.as_secs()), "{left:?}");
    assert_eq!(
        (told.uid, told.epoch),
        (run.account.unwrap().uid, run.epoch)
    );
    bed.store
        .release(Scope::All, opened.rentals[0])
        .await
        .unwrap();
    assert_eq!(held(601).await.unwrap().wanted, Wanted::Gone);
    let run = bed.claim_one(orion_core::RunKind::Clean).await;
    bed.record(&run, orion_core::RunOutcome::Gone).await;
    assert_eq!(held(602).await, None);
}
