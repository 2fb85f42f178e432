//! Follows what beats say of accounts and the database does not, beside the writer: no beat waits for it.

use std::future::Future;

use orion_store::{AccountsReport, Store};
use tokio::sync::mpsc;

use crate::http::problem::chain;
use crate::schedd::Schedd;

/// Reports that may wait. Whatever finds no room is said again by the node's next beat.
const MAX_WAITING: usize = 1_000;

/// Where the writer hands reports over.
pub(super) type Reports = mpsc::Sender<AccountsReport>;

/// The handle, and who follows reports, one after the other, until every handle is gone.
pub(super) fn follow(store: Store, schedd: Schedd) -> (Reports, impl Future<Output = ()> + Send) {
    let (reports, mut waiting) = mpsc::channel::<AccountsReport>(MAX_WAITING);
    let follower = async move {
        while let Some(report) = waiting.recv().await {
            match store.follow_report(&report).await {
                Ok(true) => schedd.look(),
                Ok(false) => {}
                Err(error) => {
                    let node = report.node;
                    tracing::warn!(%node, error = chain(&error), "what a node says of its accounts was not followed");
                }
            }
        }
    };
    (reports, follower)
}
