//! What the agent counts.

use orion_daemon::Registry;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;

use crate::warden;

/// What the agent counts.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    pub(crate) registrations: Counter,
    pub(crate) beats: Counter,
    pub(crate) failures: Counter,
    pub(crate) node: Gauge,
    pub(crate) warden: warden::Metrics,
}

impl Metrics {
    /// Metrics that `registry` shows.
    pub fn registered(registry: &mut Registry) -> Self {
        let metrics = Self {
            warden: warden::Metrics::registered(registry),
            ..Self::default()
        };
        let Self {
            registrations,
            beats,
            failures,
            node,
            warden: _,
        } = metrics.clone();
        registry.register(
            "orion_agent_registrations",
            "Registrations that were answered well",
            registrations,
        );
        registry.register("orion_agent_beats", "Beats that were answered well", beats);
        registry.register(
            "orion_agent_failures",
            "Registrations and beats that failed",
            failures,
        );
        registry.register(
            "orion_agent_node_id",
            "The id of this node; 0 while it is not registered",
            node,
        );
        metrics
    }

    /// Registrations and beats that failed so far.
    pub fn failures(&self) -> u64 {
        self.failures.get()
    }
}
