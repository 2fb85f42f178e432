//! From wherever a case ended: when everybody does what they should, everything comes to rest, and nothing is left over.

use crate::case::{Case, text};
use crate::step::Play;
use crate::support::instance;
use orion_core::RunKind;
use orion_store::{ProbeResult, Scope};
use std::collections::BTreeSet;

/// Rounds of all jobs; each debt and node needs a handful.
const ROUNDS: u32 = 40;

/// Everything that must still happen: nothing of it may be left.
const UNREST: &str = "SELECT (SELECT COUNT(*) FROM runs WHERE state IN ('queued', 'claimed')) \
     + (SELECT COUNT(*) FROM accounts a JOIN nodes n ON n.id = a.node_id \
        WHERE a.state IN ('making', 'leaving') AND n.forgotten_at IS NULL) \
     + (SELECT COUNT(*) FROM requests WHERE state = 'open') \
     + (SELECT COUNT(*) FROM rentals WHERE state IN ('provisioning', 'ending')) \
     + (SELECT COUNT(*) FROM rentals WHERE state = 'degraded' AND EXISTS \
        (SELECT 1 FROM nodes WHERE availability = 'ready' AND draining = FALSE AND forgotten_at IS NULL)) \
     + (SELECT COUNT(*) FROM nodes WHERE forgotten_at IS NULL AND availability IN ('joining', 'cleaning'))";

/// Drives a case to rest and checks what is left: first the live rentals, then, once these are released, nothing.
pub(crate) async fn reach(case: &Case<'_>) -> Result<(), String> {
    settle(case).await?;
    let live: BTreeSet<u32> = case.live().await?.into_iter().collect();
    let on_workers = case.shared().world.all();
    if live != on_workers {
        return Err(format!(
            "live rentals {live:?}, accounts on workers {on_workers:?}"
        ));
    }
    for rental in case
        .requests()
        .into_iter()
        .flat_map(|request| request.rentals)
    {
        case.store()
            .release(Scope::All, rental)
            .await
            .map_err(text)?;
    }
    settle(case).await?;
    let left = case.shared().world.all();
    let held = case
        .number(
            "SELECT COUNT(*) FROM accounts a JOIN nodes n ON n.id = a.node_id \
             WHERE a.state <> 'gone' AND n.forgotten_at IS NULL",
        )
        .await?;
    let lost = case
        .number("SELECT COUNT(*) FROM nodes WHERE forgotten_at IS NULL AND availability NOT IN ('ready', 'quarantined')")
        .await?;
    if left.is_empty() && held == 0 && lost == 0 {
        Ok(())
    } else {
        Err(format!(
            "left: {left:?}, {held} accounts held, {lost} nodes neither ready nor quarantined"
        ))
    }
}

async fn settle(case: &Case<'_>) -> Result<(), String> {
    // Whoever held runs is dead; the claims expire. What apid was about to hash, it hashes now. Workers whose nodes were
    // forgotten register anew.
    case.shared().held.clear();
    for worker in 0..case.workers() {
        case.register(worker, false).await?;
    }
    for request in case.requests() {
        case.provision(&request).await?;
    }
    for _ in 0..ROUNDS {
        if case.number(UNREST).await? == 0 {
            return Ok(());
        }
        round(case, 65, Play::Well).await?;
    }
    Err(format!(
        "no rest after {ROUNDS} rounds: {}",
        case.describe().await
    ))
}

/// Everybody does what they should, once; of the plays, the first does as told.
pub(crate) async fn round(case: &Case<'_>, seconds: u32, first: Play) -> Result<(), String> {
    case.wait(seconds);
    everybody_at_home(case).await?;
    let store = case.store();
    store.reconcile().await.map_err(text)?;
    store.expire_rentals(100).await.map_err(text)?;
    store.migrate(100).await.map_err(text)?;
    store.queue_cleaning(100).await.map_err(text)?;
    store.queue_inspections(100).await.map_err(text)?;
    for kind in [RunKind::Provision, RunKind::Clean, RunKind::Inspect] {
        case.claim(&instance(3), kind, 100).await?;
    }
    let mut play = first;
    while !case.shared().held.is_empty() {
        case.play(0, play).await?;
        case.check().await?;
        play = Play::Well;
    }
    Ok(())
}

/// Each worker answers where it says it is.
async fn everybody_at_home(case: &Case<'_>) -> Result<(), String> {
    let store = case.store();
    for target in store.probe_targets().await.map_err(text)? {
        if let Some(pending) = &target.pending {
            store
                .confirm_address(target.node, pending)
                .await
                .map_err(text)?;
        } else {
            store
                .record_probe(target.node, &ProbeResult::LoggedIn)
                .await
                .map_err(text)?;
        }
    }
    Ok(())
}
