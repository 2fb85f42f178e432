//! orion-apid as a black box: the real program, a real MariaDB, and a stand-in for orion-schedd that does the runs.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a fault here is a failed test"
)]

mod admin;
mod bad_input;
mod documented;
mod hostile;
mod idempotency;
mod limits;
mod nodes;
mod outage;
mod rent;
mod rentals;
mod reports;
mod routes;
mod support;
mod tokens;
mod trust;
mod workers;
