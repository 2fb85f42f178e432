//! Nodes that die and answer again, and rentals that move.

use super::{Bed, HOLD, instance, report};
use orion_core::{NodeId, RentalId, RunKind, RunOutcome};
use orion_store::*;

/// Every probe of the node fails from `start` on until it is dead.
pub async fn dies(bed: &Bed, node: NodeId, start: i64) {
    let silence = ProbeResult::NoAnswer("timed out".to_owned());
    for second in [0, 6, 12] {
        bed.later(start + second)
            .record_probe(node, &silence)
            .await
            .unwrap();
    }
    assert!(
        bed.node_state(node).starts_with("dead"),
        "{}",
        bed.node_state(node)
    );
}

pub async fn answers(store: &Store, node: NodeId) {
    store
        .record_probe(node, &ProbeResult::LoggedIn)
        .await
        .unwrap();
}

pub async fn migrate(bed: &Bed, second: i64) -> Migrated {
    bed.later(second).migrate(100).await.unwrap()
}

pub fn node_of(bed: &Bed, rental: RentalId) -> NodeId {
    let id = bed.one(&format!(
        "SELECT node_id FROM accounts WHERE rental_id = {rental} AND state IN ('present', 'making')"
    ));
    NodeId(id.parse().unwrap())
}

/// Records every queued run of a kind as seen by somebody `second` later.
pub async fn record_all(bed: &Bed, kind: RunKind, outcome: RunOutcome, second: i64) -> usize {
    let store = bed.later(second);
    let runs = store
        .claim_runs(&instance(1), kind, 100, HOLD)
        .await
        .unwrap();
    for run in &runs {
        store
            .record_run(&instance(1), run, &report(outcome))
            .await
            .unwrap();
    }
    runs.len()
}
