//! Registration, beats, addresses, and nodes as they are shown.

mod support;

use orion_core::{Availability, HostName, NodeId, NodeStatus, RunKind, RunOutcome};
use orion_store::*;
use support::{Bed, address, bare_beat, claim, host_key};

#[tokio::test]
async fn a_new_worker_joins_is_inspected_and_gets_ready() {
    let bed = Bed::new().await;
    let node = bed.register_new().await;
    assert_eq!(bed.node_state(node), "unknown joining");
    let run = bed.claim_one(RunKind::Inspect).await;
    assert_eq!((run.node, run.epoch), (node, 0));
    assert!(run.account.is_none());
    bed.record(&run, RunOutcome::Clean).await;
    assert_eq!(bed.node_state(node), "alive ready");
    bed.check().await;
}

#[tokio::test]
async fn registering_again_updates_and_changes_nothing_else() {
    let bed = Bed::new().await;
    let Registered::Created(node) = bed.register(1, 2201).await else {
        panic!()
    };
    assert_eq!(bed.register(1, 2201).await, Registered::Updated(node));
    assert_eq!(bed.one("SELECT COUNT(*) FROM nodes"), "1");
    let targets = bed.store.probe_targets().await.unwrap();
    assert_eq!(
        (targets[0].contact.clone(), targets[0].pending.clone()),
        (Some(address(2201)), None)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_worker_that_registers_many_times_at_once_is_one_node() {
    let bed = std::sync::Arc::new(Bed::new().await);
    let all: Vec<_> = (0..16)
        .map(|_| {
            let bed = bed.clone();
            tokio::spawn(async move { bed.register(1, 2201).await })
        })
        .collect();
    let mut created = 0;
    for one in all {
        created += u32::from(matches!(one.await.unwrap(), Registered::Created(_)));
    }
    assert_eq!(created, 1);
    assert_eq!(bed.one("SELECT COUNT(*) FROM nodes"), "1");
    assert_eq!(bed.one("SELECT COUNT(*) FROM runs"), "1");
}

#[tokio::test]
async fn a_stranger_with_a_live_nodes_name_is_refused() {
    let bed = Bed::new().await;
    bed.register(1, 2201).await;
    let name = HostName::parse("worker1").unwrap();
    let keys = [host_key(2)];
    let stranger = Registration {
        hostname: &name,
        client: address(2202),
        contact: address(2202),
        host_keys: &keys,
        agent: None,
        boot_id: None,
        signed: None,
        signing_key: None,
    };
    assert_eq!(
        bed.store
            .register(&stranger, Admission::Open)
            .await
            .unwrap(),
        Registered::Refused(Refusal::HostnameTaken)
    );
    let none = Registration {
        host_keys: &[],
        ..stranger
    };
    let registered = bed.store.register(&none, Admission::Open).await.unwrap();
    assert!(
        matches!(registered, Registered::Updated(_)),
        "without a key it is only a claim: {registered:?}"
    );
    assert_eq!(bed.one("SELECT client_port FROM nodes"), "2201");
}

#[tokio::test]
async fn a_worker_with_another_nodes_key_is_refused() {
    let bed = Bed::new().await;
    bed.register(1, 2201).await;
    let name = HostName::parse("worker2").unwrap();
    let keys = [host_key(1)];
    let clone = Registration {
        hostname: &name,
        client: address(2202),
        contact: address(2202),
        host_keys: &keys,
        agent: None,
        boot_id: None,
        signed: None,
        signing_key: None,
    };
    assert_eq!(
        bed.store.register(&clone, Admission::Open).await.unwrap(),
        Registered::Refused(Refusal::HostKeyTaken)
    );
    assert_eq!(bed.one("SELECT COUNT(*) FROM nodes"), "1");
    assert_eq!(bed.one("SELECT COUNT(*) FROM runs"), "1");
}

#[tokio::test]
async fn a_new_address_is_a_claim_until_the_pinned_key_is_met_there() {
    let (bed, nodes) = Bed::with_nodes(1).await;
    bed.register(1, 2299).await;
    let targets = bed.store.probe_targets().await.unwrap();
    assert_eq!(targets[0].pending, Some(claim(2299)));
    assert_ne!(targets[0].contact, Some(address(2299)));
    bed.store
        .refuse_address(nodes[0], &claim(2299), "another key")
        .await
        .unwrap();
    let targets = bed.store.probe_targets().await.unwrap();
    assert_eq!(targets[0].pending, Some(claim(2299)), "it stays a claim");
    assert_eq!(
        bed.node_state(nodes[0]),
        "alive ready",
        "the address it has is not touched"
    );
    assert!(
        !bed.store
            .confirm_address(nodes[0], &claim(2298))
            .await
            .unwrap(),
        "not what it claims"
    );
    assert!(
        bed.store
            .confirm_address(nodes[0], &claim(2299))
            .await
            .unwrap()
    );
    let targets = bed.store.probe_targets().await.unwrap();
    assert_eq!(
        (targets[0].contact.clone(), targets[0].pending.clone()),
        (Some(address(2299)), None)
    );
    let view = bed.store.node(Scope::All, nodes[0]).await.unwrap().unwrap();
    assert_eq!((view.host_ip.as_str(), view.ssh_port), ("10.0.0.1", 2299));
}

#[tokio::test]
async fn coming_back_to_the_known_address_drops_the_claim() {
    let bed = Bed::new().await;
    bed.register(1, 2201).await;
    bed.register(1, 2299).await;
    bed.register(1, 2201).await;
    assert_eq!(bed.store.probe_targets().await.unwrap()[0].pending, None);
}

#[tokio::test]
async fn two_nodes_that_swapped_addresses_both_get_theirs() {
    let bed = Bed::new().await;
    let (Registered::Created(one), Registered::Created(two)) =
        (bed.register(1, 2201).await, bed.register(2, 2202).await)
    else {
        panic!()
    };
    for run in bed.claim(RunKind::Inspect).await {
        bed.record(&run, RunOutcome::Clean).await;
    }
    bed.register(1, 2202).await;
    bed.register(2, 2201).await;
    let wrong = ProbeResult::WrongHostKey(host_key(9));
    for node in [one, two] {
        bed.store.record_probe(node, &wrong).await.unwrap();
        assert_eq!(
            bed.node_state(node),
            "suspect ready",
            "never quarantined for it"
        );
    }
    assert!(bed.store.confirm_address(one, &claim(2202)).await.unwrap());
    let targets = bed.store.probe_targets().await.unwrap();
    assert_eq!(targets[0].contact, Some(address(2202)));
    assert_eq!(
        targets[1].contact, None,
        "it has lost its address to the one that proved it"
    );
    assert!(bed.node_state(two).starts_with("suspect"));
    bed.opened_nowhere(two).await;
    assert!(bed.store.confirm_address(two, &claim(2201)).await.unwrap());
    for node in [one, two] {
        bed.store
            .record_probe(node, &ProbeResult::LoggedIn)
            .await
            .unwrap();
    }
    assert_eq!(
        (bed.node_state(one), bed.node_state(two)),
        ("alive ready".into(), "alive ready".into())
    );
    let targets = bed.store.probe_targets().await.unwrap();
    assert_eq!(targets[1].contact, Some(address(2201)));
    bed.check().await;
}

impl Bed {
    /// No run reaches a node that has no address.
    async fn opened_nowhere(&self, node: NodeId) {
        self.db.sql(&format!("INSERT INTO runs (kind, node_id, epoch, state, created_at) VALUES ('inspect', {node}, 0, 'queued', UTC_TIMESTAMP())"));
        assert!(self.claim(RunKind::Inspect).await.is_empty());
        self.db.sql("DELETE FROM runs WHERE state = 'queued'");
    }
}

#[tokio::test]
async fn a_new_worker_at_a_held_address_only_claims_it() {
    let bed = Bed::new().await;
    let Registered::Created(one) = bed.register(1, 2201).await else {
        panic!()
    };
    let Registered::Created(two) = bed.register(2, 2201).await else {
        panic!()
    };
    let targets = bed.store.probe_targets().await.unwrap();
    assert_eq!(
        (targets[0].node, targets[0].contact.clone()),
        (one, Some(address(2201)))
    );
    assert_eq!(
        (
            targets[1].node,
            targets[1].contact.clone(),
            targets[1].pending.clone()
        ),
        (two, None, Some(claim(2201)))
    );
    let claimed = bed.claim_one(RunKind::Inspect).await;
    assert_eq!(claimed.node, one);
    bed.store
        .refuse_address(two, &claim(2201), "another key")
        .await
        .unwrap();
    assert!(
        bed.node_state(two).ends_with("joining"),
        "never quarantined for it"
    );
}

#[tokio::test]
async fn a_node_without_keys_is_pinned_at_the_first_dial_and_only_then() {
    let bed = Bed::new().await;
    let name = HostName::parse("bare").unwrap();
    let bare = Registration {
        hostname: &name,
        client: address(2201),
        contact: address(2201),
        host_keys: &[],
        agent: None,
        boot_id: None,
        signed: None,
        signing_key: None,
    };
    let Registered::Created(node) = bed.store.register(&bare, Admission::Open).await.unwrap()
    else {
        panic!()
    };
    assert!(
        bed.claim(RunKind::Inspect).await.is_empty(),
        "nobody knows who would answer"
    );
    assert!(bed.store.pin_host_key(node, &[host_key(71)]).await.unwrap());
    assert!(!bed.store.pin_host_key(node, &[host_key(72)]).await.unwrap());
    assert_eq!(
        bed.store.probe_targets().await.unwrap()[0].host_keys,
        [host_key(71)]
    );
    let other = bed.register_new().await;
    bed.db
        .sql(&format!("DELETE FROM host_keys WHERE node_id = {other}"));
    assert!(
        !bed.store
            .pin_host_key(other, &[host_key(71)])
            .await
            .unwrap(),
        "another node's key"
    );
}

#[tokio::test]
async fn beats_of_known_nodes_are_kept_and_unknown_ones_named() {
    let (bed, nodes) = Bed::with_nodes(3).await;
    bed.store.forget_node(nodes[2]).await.unwrap();
    let beat = |node, boot: &str| Beat {
        boot_id: boot.to_owned(),
        ..bare_beat(node)
    };
    let beats = [
        beat(nodes[0], "a"),
        beat(nodes[1], "b"),
        beat(nodes[2], "c"),
        beat(NodeId(999), "d"),
    ];
    let recorded = bed.store.beat_many(&beats, None).await.unwrap();
    let counts = BeatOutcome::Recorded {
        status: NodeStatus::Alive,
    };
    let expected = [counts, counts, BeatOutcome::Unknown, BeatOutcome::Unknown];
    assert_eq!(recorded.outcomes, expected);
    bed.later(5)
        .beat_many(&[beat(nodes[0], "a2")], None)
        .await
        .unwrap();
    assert_eq!(
        bed.one(&format!(
            "SELECT boot_id FROM beats WHERE node_id = {}",
            nodes[0]
        )),
        "a2"
    );
    assert_eq!(bed.one("SELECT COUNT(*) FROM beats"), "2");
    assert!(
        bed.store
            .beat_many(&[], None)
            .await
            .unwrap()
            .outcomes
            .is_empty()
    );
}

#[tokio::test]
async fn the_same_node_twice_in_one_batch_of_beats_is_no_error() {
    let (bed, nodes) = Bed::with_nodes(1).await;
    let beat = |boot: &str| Beat {
        boot_id: boot.to_owned(),
        ..bare_beat(nodes[0])
    };
    assert_eq!(
        bed.store
            .beat_many(&[beat("a"), beat("b")], None)
            .await
            .unwrap()
            .outcomes
            .len(),
        2
    );
    assert_eq!(bed.one("SELECT boot_id FROM beats"), "b");
}

#[tokio::test]
async fn a_lease_is_shown_to_its_user_and_to_administrators_only() {
    let (bed, _) = Bed::with_nodes(2).await;
    let rental = bed.active(bed.alice, 1).await[0];
    let held = |scope| {
        let store = bed.store.clone();
        async move {
            store
                .nodes(scope)
                .await
                .unwrap()
                .into_iter()
                .find(|node| node.allocated)
                .unwrap()
        }
    };
    let own = held(Scope::Own(bed.alice)).await;
    let lease = own.lease.unwrap();
    assert_eq!(
        (lease.rental_id, lease.user_id, lease.active),
        (rental, bed.alice, true)
    );
    assert_eq!(
        (own.status, own.availability),
        (NodeStatus::Alive, Availability::Leased)
    );
    assert!(held(Scope::Own(bed.bob)).await.lease.is_none());
    assert_eq!(held(Scope::All).await.lease.unwrap().rental_id, rental);
    bed.store.release(Scope::All, rental).await.unwrap();
    let ending = held(Scope::Own(bed.alice)).await;
    assert!(!ending.lease.unwrap().active, "ending, and still allocated");
    let run = bed.claim_one(RunKind::Clean).await;
    bed.record(&run, RunOutcome::Gone).await;
    let all = bed.store.nodes(Scope::All).await.unwrap();
    assert!(
        all.iter()
            .all(|node| !node.allocated && node.lease.is_none())
    );
    assert!(all.iter().map(|node| node.node_id).is_sorted());
}

#[tokio::test]
async fn a_forgotten_node_frees_its_name_address_and_key() {
    let (bed, nodes) = Bed::with_nodes(1).await;
    assert_eq!(bed.store.forget_node(nodes[0]).await.unwrap(), Forget::Done);
    assert_eq!(
        bed.store.forget_node(nodes[0]).await.unwrap(),
        Forget::NotFound
    );
    assert!(
        bed.store
            .node(Scope::All, nodes[0])
            .await
            .unwrap()
            .is_none()
    );
    assert!(bed.store.nodes(Scope::All).await.unwrap().is_empty());
    assert!(bed.store.probe_targets().await.unwrap().is_empty());
    let again = bed.register(1, 22_001).await;
    assert!(
        matches!(again, Registered::Created(node) if node != nodes[0]),
        "{again:?}"
    );
}

#[tokio::test]
async fn a_node_that_holds_something_is_not_forgotten() {
    let (bed, nodes) = Bed::with_nodes(1).await;
    let rental = bed.active(bed.alice, 1).await[0];
    assert_eq!(bed.store.forget_node(nodes[0]).await.unwrap(), Forget::Held);
    bed.store.release(Scope::All, rental).await.unwrap();
    assert_eq!(
        bed.store.forget_node(nodes[0]).await.unwrap(),
        Forget::Held,
        "a debt is on it"
    );
    let run = bed.claim_one(RunKind::Clean).await;
    bed.record(&run, RunOutcome::Gone).await;
    assert_eq!(bed.store.forget_node(nodes[0]).await.unwrap(), Forget::Done);
    let history = bed.store.rental(Scope::All, rental).await.unwrap().unwrap();
    assert!(!history.history.is_empty(), "its row stays for the history");
}
