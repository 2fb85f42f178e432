//! Silence that began while nobody listened proves nothing: after a start, after another instance led, and after the
//! database was away, nodes get time to answer before any is decided dead.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use orion_store::{Store, StoreError};
use tokio::time::Instant;

/// Without a look for so long, whatever failed meanwhile may have been us.
const DEAF: Duration = Duration::from_secs(15);

/// Cheap to clone; clones share what they know.
#[derive(Debug, Clone)]
pub(crate) struct Grace {
    length: Duration,
    last_look: Arc<Mutex<Option<Instant>>>,
}

impl Grace {
    /// `length` is given from a look on that follows none, or a gap.
    pub(crate) fn new(length: Duration) -> Self {
        Self {
            length,
            last_look: Arc::default(),
        }
    }

    /// To be called before each look at nodes.
    ///
    /// # Errors
    /// When the database is away.
    pub(crate) async fn before_a_look(&self, store: &Store) -> Result<(), StoreError> {
        let deaf = {
            let last = self
                .last_look
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            last.is_none_or(|last| last.elapsed() > DEAF)
        };
        if deaf {
            store.begin_grace(self.length).await?;
            let seconds = self.length.as_secs();
            tracing::info!(seconds, "no node is decided dead for a while");
            self.looked();
        }
        Ok(())
    }

    /// To be called where this machine slept: what was seen before is no look.
    pub(crate) fn forget(&self) {
        *self
            .last_look
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// To be called after a look that the database took part in.
    pub(crate) fn looked(&self) {
        let now = Some(Instant::now());
        *self
            .last_look
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = now;
    }
}
