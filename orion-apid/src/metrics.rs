//! What the ops listener shows of apid.

use std::time::Duration;

use orion_daemon::Registry;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

/// Seconds: from a login to a rent's deadline.
const BUCKETS: [f64; 12] = [
    0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0,
];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    operation: &'static str,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Operation {
    operation: &'static str,
}

/// All counters; cheap to clone, clones share them.
#[derive(Debug, Clone)]
pub struct Metrics {
    requests: Family<Answered, Counter>,
    seconds: Family<Operation, Histogram, fn() -> Histogram>,
    /// Passwords that wait to be hashed.
    pub hash_waiting: Gauge,
    /// Logins and sign-ups answered 429.
    pub hash_refused: Counter,
    /// Transactions that recorded beats.
    pub beat_commits: Counter,
    /// Beats recorded by them.
    pub beats: Counter,
    /// How often agents are told to beat (seconds).
    pub beat_interval: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            requests: Family::default(),
            seconds: Family::new_with_constructor(|| Histogram::new(BUCKETS)),
            hash_waiting: Gauge::default(),
            hash_refused: Counter::default(),
            beat_commits: Counter::default(),
            beats: Counter::default(),
            beat_interval: Gauge::default(),
        }
    }
}

impl Metrics {
    /// Registers everything under `orion_apid_`.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("orion_apid");
        registry.register("requests", "Requests answered", self.requests.clone());
        registry.register("request_seconds", "Time to answer", self.seconds.clone());
        registry.register(
            "hash_waiting",
            "Passwords that wait to be hashed",
            self.hash_waiting.clone(),
        );
        registry.register(
            "hash_refused",
            "Logins and sign-ups answered 429",
            self.hash_refused.clone(),
        );
        registry.register(
            "beat_commits",
            "Transactions that recorded beats",
            self.beat_commits.clone(),
        );
        registry.register("beats", "Beats recorded", self.beats.clone());
        registry.register(
            "beat_interval_seconds",
            "How often agents are told to beat",
            self.beat_interval.clone(),
        );
    }

    /// Counts one answer. `operation` is a name of the route table, never a client's text.
    pub fn count(&self, operation: &'static str, status: u16, took: Duration) {
        self.requests
            .get_or_create(&Answered { operation, status })
            .inc();
        self.seconds
            .get_or_create(&Operation { operation })
            .observe(took.as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_counted_by_operation_and_status() {
        let metrics = Metrics::default();
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        metrics.count("rent", 200, Duration::from_millis(40));
        metrics.count("rent", 503, Duration::from_millis(40));
        metrics.count("rent", 200, Duration::from_millis(40));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        assert!(
            text.contains(r#"orion_apid_requests_total{operation="rent",status="200"} 2"#),
            "{text}"
        );
        assert!(
            text.contains(r#"orion_apid_request_seconds_count{operation="rent"} 3"#),
            "{text}"
        );
    }
}
