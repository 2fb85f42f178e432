//! Orion's scheduler: the only part that runs ansible-playbook and holds the pool's SSH key.
//!
//! An executor claims runs and executes them through Ansible; cron jobs, on one instance at a time, find what
//! must be done: rentals that are over, debts, nodes to inspect, claims and requests that nobody finished. The database
//! is the only truth; whatever this process knows beside it may be lost at any instruction.

mod ansible;
mod clock;
pub mod config;
mod cron;
mod executor;
#[doc(hidden)]
pub mod fuzz;
mod init;
mod jobs;
mod leader;
mod metrics;
mod notify;
mod pool_keys;
mod probe;
mod rotation;
mod serve;

pub use init::init;
pub use rotation::{retire, rotate};
pub use serve::serve;
