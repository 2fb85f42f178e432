//! Whole-system tests of Orion: the real orion-apid (any number) and orion-schedd on a private MariaDB, simulated
//! workers, and the scripted ansible-playbook in between. The tests are in `tests/tests/`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a fault in here is a failed test and says so by panicking"
)]

mod cluster;
mod plan;

pub use cluster::{Cluster, PASSWORD, rent_of};
pub use plan::Plan;
