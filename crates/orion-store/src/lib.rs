//! Every SQL string of Orion, its transactions, one compare-and-set function per state edge, and the schema runner.
//!
//! Nothing here knows HTTP, SSH or Ansible. A state changes only in a function that names the state it comes from,
//! and the changed-row count decides who won.
//!
//! **Lock order**, for every transaction: users, requests, rentals, accounts, nodes (by id), runs, migration. The leader's
//! transactions lock its row before all else, shared; the row of `clock` comes next, locked by those alone that change it.
//! Whatever touches a rental locks its request row first, so results, releases and deadlines of one request queue up behind
//! each other.

mod agents;
mod beats;
pub mod bootstrap;
mod clock;
mod counter;
mod debts;
mod edges;
mod error;
mod jobs;
mod join_tokens;
mod leader;
mod migrate;
mod nodes;
mod pool;
mod pool_keys;
mod probes;
mod record;
mod register;
mod rent;
mod rentals;
mod reports;
mod requests;
mod reset;
mod row;
mod runs;
mod schema;
mod tx;
mod users;

pub use agents::AgentsJudged;
pub use beats::{Beat, BeatOutcome, BeatsRecorded};
pub use clock::watch::ClockStep;
pub use counter::{Outdated, Raise};
pub use debts::{DebtAlarm, Debts};
pub use error::StoreError;
pub use jobs::Reconciled;
pub use join_tokens::{JoinTokenOrder, Revocation, TokenFault};
pub use leader::{InstanceId, Lead};
pub use migrate::{Drain, Migrated};
pub use nodes::{Approval, Forget, Unquarantine};
pub use pool::{DatabaseSettings, Store};
pub use probes::{AddressClaim, ProbeResult, ProbeTarget};
pub use record::{Recorded, RunReport};
pub use register::{Admission, Refusal, Registered, Registration, SignedBy};
pub use rent::{IdempotencyKey, KnownRequest, OpenedRequest, RentDecision, RentOrder};
pub use rentals::{Extension, Release};
pub use reports::{AccountsReport, HeldOnNode, Wanted};
pub use requests::{RequestRental, RequestView};
pub use row::Address;
pub use runs::{ClaimedAccount, ClaimedRun};
pub use schema::{AppliedSchema, SchemaFit};
pub use users::User;

use orion_core::UserId;

/// Whose things a caller may see and change: a right, handed over by the caller as an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// A user's own.
    Own(UserId),
    /// An administrator's: everything.
    All,
}

impl Scope {
    /// The user to filter by, or NULL for everything: for `(? IS NULL OR user_id = ?)`.
    fn user(self) -> Option<u64> {
        match self {
            Self::Own(user) => Some(user.0),
            Self::All => None,
        }
    }
}
