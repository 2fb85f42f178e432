//! `POST /api/workers/beat`: a worker says that it lives, and what accounts it has.

use orion_core::api::{BeatReply, Countdown, ReportedAccount, Trust};
use orion_core::{NodeId, ProblemCode, PublicKey, Uid};
use orion_store::{Beat, BeatOutcome, HeldOnNode, Wanted};
use serde_json::Value;

use super::{MAX_AGENT, MAX_BOOT_ID, check_short, old_counter, public_key};
use crate::auth::agent::Agent;
use crate::http::fields::{Fields, Unknown};
use crate::http::problem::Failure;
use crate::http::reply::Reply;
use crate::http::request::Call;

/// A beat's body, checked for its form.
#[derive(Debug)]
pub struct BeatForm {
    node: NodeId,
    boot_id: String,
    agent: String,
    signing_key: Option<PublicKey>,
    accounts: Option<Vec<ReportedAccount>>,
}

/// `POST /api/workers/beat`: answered after the commit that records it and advances the node's counter.
///
/// # Errors
/// Bad fields; `node_unknown` and `node_key_mismatch`, after which the agent registers again; `counter_used`;
/// `signature_missing` for a node that has a key.
pub async fn beat(call: Call, agent: Agent) -> Result<Reply, Failure> {
    let form = beat_form(call.fields()?)?;
    let beat = Beat {
        node: form.node,
        boot_id: form.boot_id,
        agent: form.agent,
        signed: agent.signed_by(),
        signing_key: form.signing_key,
        accounts: form.accounts,
    };
    let recorded = call.app.beats.record(beat).await?;
    // Who does not sign gets no countdown: nobody could tell it from a stranger's.
    let signs = agent != Agent::Bare;
    match recorded.outcome {
        BeatOutcome::Recorded { status } => Reply::ok(&BeatReply {
            next_beat_s: recorded.interval_s,
            accounts: recorded
                .held
                .filter(|_| signs)
                .and_then(countdown)
                .into_iter()
                .collect(),
            end: recorded
                .held
                .filter(|_| signs)
                .and_then(to_end)
                .into_iter()
                .collect(),
            trust: match agent {
                Agent::Bare => Trust::default(),
                Agent::Signed(_) => Trust {
                    signing_keys: call.app.public_signing_keys(),
                    pool_keys: recorded.pool_keys.to_vec(),
                    status: Some(status),
                },
            },
        }),
        BeatOutcome::Unknown => {
            let detail = "no node has this id; register again";
            Err(Failure::field(ProblemCode::NodeUnknown, "node_id", detail))
        }
        BeatOutcome::Unsigned => {
            let detail = "the node has a key, which must sign its beats";
            Err(Failure::new(ProblemCode::SignatureMissing, detail))
        }
        BeatOutcome::WrongKey => {
            let detail = "belongs to a node with another key";
            Err(Failure::field(
                ProblemCode::NodeKeyMismatch,
                "node_id",
                detail,
            ))
        }
        BeatOutcome::OldCounter(highest) => Err(old_counter(highest)),
    }
}

fn countdown(held: HeldOnNode) -> Option<Countdown> {
    match held.wanted {
        Wanted::For(left) => Some(Countdown {
            uid: held.uid,
            epoch: held.epoch,
            ends_in_s: left.as_secs_f64(),
        }),
        Wanted::Gone | Wanted::Undecided => None,
    }
}

fn to_end(held: HeldOnNode) -> Option<Uid> {
    (held.wanted == Wanted::Gone).then_some(held.uid)
}

/// Checks the body of a beat.
///
/// # Errors
/// Bad fields.
pub fn beat_form(mut fields: Fields) -> Result<BeatForm, Failure> {
    let node = fields.whole("node_id", &(1..=u64::MAX)).map(NodeId);
    let boot_id = fields.text("boot_id");
    let boot_id = fields.parse_as("boot_id", boot_id, |text| check_short(text, MAX_BOOT_ID));
    let agent = fields.text("agent");
    let agent = fields.parse_as("agent", agent, |text| check_short(text, MAX_AGENT));
    let signing_key = public_key(&mut fields, "signing_key");
    let accounts = fields.optional_list("accounts").and_then(read_accounts);
    let form = node
        .zip(boot_id)
        .zip(agent)
        .map(|((node, boot_id), agent)| BeatForm {
            node,
            boot_id,
            agent,
            signing_key,
            accounts,
        });
    fields.finish(Unknown::Tolerated, form)
}

/// `None` where one of them can't be read: an agent that is newer must not seem to have lost an account.
fn read_accounts(items: Vec<Value>) -> Option<Vec<ReportedAccount>> {
    let read = items.into_iter().map(serde_json::from_value);
    read.collect::<Result<_, _>>().ok()
}
