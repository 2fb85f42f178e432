//! What tests need around the code under test: a private mariadbd, a scripted ansible-playbook, simulated workers that
//! answer SSH, the real daemons as child processes, an HTTP client, wait-until.
//!
//! Only ever a dev-dependency. A fault in here is a failed test, so functions panic with a clear message instead of
//! returning errors.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a fault in the test kit is a failed test and says so by panicking"
)]

mod blackhole;
mod child;
mod daemon;
mod database;
mod fake_clock;
mod http_client;
mod mariadb;
mod scratch;
pub mod scripted;
mod ssh;
mod wait;
mod workers;

pub use blackhole::BlackHole;
pub use child::binary;
pub use daemon::{Daemon, DaemonBuilder};
pub use database::Database;
pub use fake_clock::FakeClock;
pub use http_client::{Answer, Client};
pub use mariadb::Durability;
pub use scratch::Scratch;
pub use wait::{PATIENCE, wait_until, wait_until_async};
pub use workers::{HOST, Worker, Workers};
