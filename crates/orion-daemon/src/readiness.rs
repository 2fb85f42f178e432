//! Whether the daemon can do its work, and if not, why. Read by `/readyz` and told to systemd.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::notify;

/// The state of each component a daemon needs (`database`, `schema`, …). Clones share one state.
///
/// systemd is told `READY=1` once, the first time that all components are ready; afterwards only `/readyz` and the
/// status line follow, because a daemon that lost its database shall not be restarted for it.
#[derive(Debug, Clone)]
pub struct Readiness {
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    /// Component -> why it is not ready; `None` when it is.
    components: BTreeMap<String, Option<String>>,
    note: String,
    stopping: bool,
    told: bool,
}

impl Readiness {
    /// Nothing is ready yet. Without components the daemon is ready as soon as it listens.
    pub fn new(components: &[&str]) -> Self {
        let starting = |name: &&str| ((*name).to_owned(), Some("starting".to_owned()));
        Self {
            state: Arc::new(Mutex::new(State {
                components: components.iter().map(starting).collect(),
                note: String::new(),
                stopping: false,
                told: false,
            })),
        }
    }

    /// The component can do its work.
    pub fn set_ready(&self, component: &str) {
        self.set(component, None);
    }

    /// The component can't; `reason` is for an operator and must hold no secret.
    pub fn set_not_ready(&self, component: &str, reason: impl Into<String>) {
        self.set(component, Some(reason.into()));
    }

    /// These components are nothing that this daemon knows of any more.
    pub fn forget(&self, components: &[&str]) {
        let mut state = self.lock();
        let known = state.components.len();
        state
            .components
            .retain(|name, _| !components.contains(&name.as_str()));
        if state.components.len() != known {
            state.tell();
        }
    }

    /// A few words for `systemctl status`, as in `node 42`.
    pub fn note(&self, note: impl Into<String>) {
        let note = note.into();
        let mut state = self.lock();
        if state.note != note {
            state.note = note;
            state.tell();
        }
    }

    /// True when every component is ready and the daemon is not stopping.
    pub fn is_ready(&self) -> bool {
        self.lock().is_ready()
    }

    /// Each component that is not ready, with its reason.
    pub fn reasons(&self) -> BTreeMap<String, String> {
        self.lock().reasons()
    }

    /// From now on the daemon is not ready, because it stops; systemd hears so once.
    pub(crate) fn stopping(&self, drain: Duration) {
        let mut state = self.lock();
        if !state.stopping {
            state.stopping = true;
            notify::stopping(drain);
            state.tell();
        }
    }

    /// Tells systemd where things stand; called once when the listener is there.
    pub(crate) fn announce(&self) {
        self.lock().tell();
    }

    fn set(&self, component: &str, reason: Option<String>) {
        let mut state = self.lock();
        if state.components.get(component) == Some(&reason) {
            return;
        }
        match &reason {
            Some(reason) => tracing::warn!(component, reason, "not ready"),
            None => tracing::info!(component, "ready"),
        }
        state.components.insert(component.to_owned(), reason);
        state.tell();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is valid after every statement, so a panic elsewhere does not spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn is_ready(&self) -> bool {
        !self.stopping && self.components.values().all(Option::is_none)
    }

    fn reasons(&self) -> BTreeMap<String, String> {
        let mut reasons: BTreeMap<String, String> = self
            .components
            .iter()
            .filter_map(|(name, reason)| Some((name.clone(), reason.clone()?)))
            .collect();
        if self.stopping {
            reasons.insert("process".to_owned(), "stopping".to_owned());
        }
        reasons
    }

    fn tell(&mut self) {
        let ready = self.is_ready();
        let mut status = if ready {
            "ready".to_owned()
        } else {
            "not ready".to_owned()
        };
        for (component, reason) in self.reasons() {
            status.push_str(&format!("; {component}: {reason}"));
        }
        if !self.note.is_empty() {
            status.push_str(&format!("; {}", self.note));
        }
        notify::status(&status);
        if ready && !self.told {
            self.told = true;
            notify::ready();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_ready_when_all_components_are_and_says_why_when_not() {
        let ready = Readiness::new(&["database", "schema"]);
        ready.set_ready("database");
        assert!(!ready.is_ready());
        assert_eq!(
            ready.reasons().get("schema").map(String::as_str),
            Some("starting")
        );
        ready.set_ready("schema");
        assert!(ready.is_ready() && ready.reasons().is_empty());
        ready.set_not_ready("database", "connection refused");
        assert!(!ready.is_ready());
        assert_eq!(ready.reasons().len(), 1);
    }

    #[test]
    fn it_is_not_ready_while_it_stops() {
        let ready = Readiness::new(&[]);
        assert!(ready.is_ready());
        ready.stopping(Duration::ZERO);
        assert!(!ready.is_ready());
        assert_eq!(
            ready.reasons().get("process").map(String::as_str),
            Some("stopping")
        );
    }
}
