//! How often agents beat, and when their silence means something.

/// Live nodes that beat every [`SHORTEST_S`]: more beat less often, so that 400 beats a second, in less than two commits,
/// are all that orion-apid ever records.
const PER_SECOND: u64 = 400;

/// The interval of a small pool, and of a node that has just registered (seconds).
pub const SHORTEST_S: u32 = 5;
/// No interval is longer, however many nodes there are; agents obey up to this (seconds).
const LONGEST_S: u32 = 300;

/// So many intervals without a beat, and the agent is silent.
pub const SILENT_INTERVALS: u32 = 4;

/// Seconds from one beat of a node to its next, in a pool of so many live nodes.
pub fn interval_s(live_nodes: u64) -> u32 {
    let stretched = u32::try_from(live_nodes.div_ceil(PER_SECOND)).unwrap_or(LONGEST_S);
    stretched.clamp(SHORTEST_S, LONGEST_S)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beats_are_stretched_so_that_400_a_second_arrive_at_the_most() {
        for (nodes, seconds) in [(0, 5), (1, 5), (2_000, 5), (2_001, 6), (10_000, 25)] {
            assert_eq!(interval_s(nodes), seconds, "{nodes} nodes");
        }
        for nodes in (1..=120_000).step_by(997) {
            assert!(
                nodes <= u64::from(interval_s(nodes)) * PER_SECOND,
                "{nodes}"
            );
        }
        assert_eq!(interval_s(u64::MAX), LONGEST_S);
    }
}
