//! Bodies of requests and replies. The first rows of the contract are bit-compatible: fields may be added, never lost.

use crate::ids::{JoinTokenId, NodeId, RentalId, RunId, Uid, UserId};
use crate::keys::PublicKey;
use crate::names::HostName;
use crate::states::{
    AccountState, Availability, EndReason, NodeStatus, RentalState, RunKind, RunOutcome, RunState,
};
use crate::time::UtcTime;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A reply that only says something.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Message {
    /// The contract's text.
    pub message: String,
}

/// Reply of `POST /auth/login`.
#[derive(Clone, Serialize, Deserialize)]
pub struct LoginReply {
    /// A bearer token.
    pub token: String,
}

/// One machine of the reply of `POST /api/rent`.
#[derive(Clone, Serialize, Deserialize)]
pub struct RentedMachine {
    /// The rental.
    pub rental_id: RentalId,
    /// Where a client reaches it.
    pub host_ip: String,
    /// Its SSH port there.
    pub ssh_port: u16,
    /// The account, named like the user.
    pub client_user: String,
    /// The clear password: here and nowhere else.
    pub client_pass: String,
    /// The end, UTC.
    pub leased_until: UtcTime,
}

/// Reply of `POST /api/extend/{rental_id}`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ExtendReply {
    /// The rental.
    pub lease_id: RentalId,
    /// The new end, UTC.
    pub new_end_at: UtcTime,
}

/// Reply of `GET /api/health`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Health {
    /// `healthy` or `unhealthy`.
    pub status: String,
}

/// One element of `GET /api/nodes`, and `GET /api/nodes/{id}`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeView {
    /// The node.
    pub node_id: NodeId,
    /// As it registered.
    pub hostname: String,
    /// As clients reach it.
    pub host_ip: String,
    /// As clients reach it.
    pub ssh_port: u16,
    /// What is seen.
    pub status: NodeStatus,
    /// Why.
    pub status_reason: Option<String>,
    /// Since when, UTC.
    pub status_since: UtcTime,
    /// The last look, UTC.
    pub last_checked_at: Option<UtcTime>,
    /// What may be done with it.
    pub availability: Availability,
    /// Why.
    pub availability_reason: Option<String>,
    /// It died not long ago: nobody gets it before then, UTC. May be past.
    pub held_until: Option<UtcTime>,
    /// No new rentals.
    pub draining: bool,
    /// While it drains, its rental is moved instead of running out.
    pub drain_move: bool,
    /// An administrator has yet to let it in.
    pub awaits_approval: bool,
    /// An account on it is not gone.
    pub allocated: bool,
    /// Its agent; null where none ever beat, and unless the caller is an administrator.
    #[serde(default)]
    pub agent: Option<AgentView>,
    /// Its rental; null where there is none, and for somebody else's unless the caller is an administrator.
    pub lease: Option<LeaseView>,
    /// The account that must still go from it; null where there is none, and unless the caller is an administrator.
    pub debt: Option<DebtView>,
}

/// An account that must still go from a node, as administrators see it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DebtView {
    /// Whose account it was.
    pub rental_id: RentalId,
    /// Its UID.
    pub uid: Uid,
    /// Since when it must go, UTC.
    pub since: UtcTime,
    /// How many cleanings are over.
    pub attempts: u64,
    /// How the last one ended, with a sentence from the worker or from Ansible; null before the first is over.
    pub last_result: Option<String>,
}

/// Reply of `POST /api/nodes/{node_id}/drain?dry_run=true`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainPlan {
    /// What would be moved; empty where nothing lives on the node.
    pub moves: Vec<PlannedMove>,
}

/// A rental that would be moved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedMove {
    /// The rental.
    pub rental_id: RentalId,
    /// Where it is.
    pub from: NodeName,
    /// Where it would go, as things stand; null where no node is free for it.
    pub to: Option<NodeName>,
}

/// A node, for a person.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeName {
    /// The node.
    pub node_id: NodeId,
    /// As it registered.
    pub hostname: String,
}

/// A node's agent as `GET /api/nodes` shows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AgentView {
    /// As it says.
    pub version: String,
    /// UTC.
    pub last_beat_at: UtcTime,
    /// UTC; null unless it is silent while the machine lets the control plane in.
    pub down_since: Option<UtcTime>,
}

/// A rental as `GET /api/nodes` shows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LeaseView {
    /// The rental.
    pub rental_id: RentalId,
    /// Whose.
    pub user_id: UserId,
    /// Null until it is active.
    pub leased_from: Option<UtcTime>,
    /// Null until it is active.
    pub leased_until: Option<UtcTime>,
    /// Active or degraded.
    pub active: bool,
}

/// One element of `GET /api/rentals`, and `GET /api/rentals/{id}`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RentalView {
    /// The rental.
    pub rental_id: RentalId,
    /// Whose.
    pub user_id: UserId,
    /// Where in its life.
    pub state: RentalState,
    /// Why it ended or is ending.
    pub end_reason: Option<EndReason>,
    /// Null while there is no present account.
    pub host_ip: Option<String>,
    /// Null while there is no present account.
    pub ssh_port: Option<u16>,
    /// The account's name.
    pub client_user: String,
    /// Null until it is active.
    pub leased_from: Option<UtcTime>,
    /// Null until it is active.
    pub leased_until: Option<UtcTime>,
    /// When it was proven gone.
    pub ended_at: Option<UtcTime>,
    /// The machine's SSH host keys, as `known_hosts` wants them after the host.
    pub host_keys: Vec<String>,
    /// What happened, oldest first; only in `GET /api/rentals/{id}`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<EventView>,
}

/// Something that happened.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EventView {
    /// When, UTC.
    pub at: UtcTime,
    /// A stable word such as `rental_active`.
    pub kind: String,
    /// On which node.
    pub node_id: Option<NodeId>,
    /// More, for a person.
    pub detail: Option<String>,
}

/// One element of `GET /api/runs`, and `GET /api/runs/{id}`. For administrators.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RunView {
    /// The run.
    pub run_id: RunId,
    /// What it does.
    pub kind: RunKind,
    /// Where.
    pub node_id: NodeId,
    /// For which rental; null for an inspection.
    pub rental_id: Option<RentalId>,
    /// Where in its life.
    pub state: RunState,
    /// How often it was started.
    pub attempt: u32,
    /// What it saw.
    pub outcome: Option<RunOutcome>,
    /// One sentence from the worker or from Ansible.
    pub detail: Option<String>,
    /// What the worker reported.
    pub evidence: Option<Value>,
    /// Bounded Ansible output; only in `GET /api/runs/{id}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
    /// UTC.
    pub created_at: UtcTime,
    /// UTC.
    pub finished_at: Option<UtcTime>,
}

/// One element of `GET /api/join-tokens`. For administrators.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct JoinTokenView {
    /// The token.
    pub join_token_id: JoinTokenId,
    /// How many nodes it lets in altogether.
    pub uses: u32,
    /// How many of them are still to come.
    pub uses_left: u32,
    /// The networks that a node's addresses must lie in; empty for no such bound.
    pub networks: Vec<IpNet>,
    /// The host names it lets in; empty for any.
    pub hostnames: Vec<HostName>,
    /// Who made it.
    pub created_by: UserId,
    /// UTC.
    pub created_at: UtcTime,
    /// UTC.
    pub expires_at: UtcTime,
    /// UTC; null unless an administrator revoked it.
    pub revoked_at: Option<UtcTime>,
}

/// Reply of `POST /api/join-tokens`.
#[derive(Clone, Serialize, Deserialize)]
pub struct NewJoinToken {
    /// What the worker is given: here and nowhere else.
    pub join_line: String,
    /// The token without its secret.
    #[serde(flatten)]
    pub token: JoinTokenView,
}

/// Body of `POST /api/workers/register`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RegisterRequest {
    /// The worker's host name.
    pub hostname: String,
    /// The client address: what rent returns.
    pub ip: String,
    /// The SSH port at the client address.
    pub ssh_port: u16,
    /// Where the control plane dials, if that differs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contact: Option<Contact>,
    /// SSH host public keys, `type base64`; pinned from the first registration on.
    #[serde(default)]
    pub host_keys: Vec<String>,
    /// The agent's version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    /// Changes with each boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_id: Option<String>,
    /// The first of the control plane's keys that the agent believes; absent where it believes none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signing_key: Option<PublicKey>,
}

/// An address for the control plane.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contact {
    /// An IP address, or a name that `addresses.names` lists.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

/// Reply of `POST /api/workers/register`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RegisterReply {
    /// The contract's text.
    pub message: String,
    /// What beats carry.
    pub node_id: NodeId,
    /// Seconds until the first beat.
    pub next_beat_s: u32,
    /// What every signed answer tells.
    #[serde(flatten)]
    pub trust: Trust,
}

/// What the control plane tells an agent about itself. Of use only in a signed answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trust {
    /// The keys that sign answers, the current one first: from now on the only ones to believe. Empty: nothing new.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub signing_keys: Vec<PublicKey>,
    /// The pool's SSH public keys, `type base64`, the newest first: from now on the only ones that `orion-node` lets in.
    /// Empty: nothing new.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pool_keys: Vec<String>,
    /// What is seen of the node; absent where that was not looked up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<NodeStatus>,
}

/// Body of `POST /api/workers/beat`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BeatRequest {
    /// From the registration's reply.
    pub node_id: NodeId,
    /// Changes with each boot.
    pub boot_id: String,
    /// The agent's version.
    pub agent: String,
    /// The first of the control plane's keys that the agent believes; absent where it believes none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signing_key: Option<PublicKey>,
    /// What the worker's records say; absent where they can't be read, which says nothing of any account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accounts: Option<Vec<ReportedAccount>>,
}

/// Accounts in one beat at most: whoever reports so many may have more.
pub const MAX_REPORTED: usize = 256;

/// An account as a worker reports it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportedAccount {
    /// Its UID.
    pub uid: Uid,
    /// The highest epoch seen for it.
    pub epoch: u64,
    /// `present` or `gone`.
    pub state: AccountState,
    /// The agent has locked it, because its time was over as far as the agent knew.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub locked: bool,
}

/// Reply of `POST /api/workers/beat`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BeatReply {
    /// Seconds until the next beat.
    pub next_beat_s: u32,
    /// Countdowns.
    pub accounts: Vec<Countdown>,
    /// Accounts to lock now.
    pub end: Vec<Uid>,
    /// What every signed answer tells.
    #[serde(flatten)]
    pub trust: Trust,
}

/// How long an account still has.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Countdown {
    /// Its UID.
    pub uid: Uid,
    /// The account's epoch this is about.
    pub epoch: u64,
    /// Seconds from the request on.
    pub ends_in_s: f64,
}
