//! Orion's words as types: ids, states and their legal edges, request and reply bodies, problem codes. No I/O, no clock.

pub mod address;
pub mod api;
pub mod beats;
pub mod ids;
pub mod join;
pub mod keys;
pub mod names;
pub mod problem;
pub mod states;
pub mod time;

pub use address::{AddressGuard, AddressRules, Host};
pub use ids::{AccountId, JoinTokenId, NodeId, RentalId, RequestId, RunId, Uid, UserId};
pub use join::JoinLine;
pub use keys::{PublicKey, Seed};
pub use names::{HostName, Password, UserName};
pub use problem::{FieldError, Problem, ProblemCode};
pub use states::{
    AccountState, Availability, EndReason, NodeStatus, RentalState, RequestState, Role, RunKind,
    RunOutcome, RunState, UndoReason,
};
pub use time::UtcTime;
