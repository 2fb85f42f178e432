//! Why a registration or a beat was of no use.

use std::time::Duration;

use orion_core::ProblemCode;
use serde::de::DeserializeOwned;

use crate::client::{Answer, ExchangeError};
use crate::identity::IdentityError;
use crate::state::StateError;

#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Exchange(#[from] ExchangeError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error("{0}")]
    Problem(Refusal),
    #[error("the answer ({0}) can't be read: {1}")]
    Unreadable(u16, serde_json::Error),
}

/// An answer that is not 2xx.
#[derive(Debug, thiserror::Error)]
#[error("the control plane answered {status} {code}: {detail}{}", advice(code))]
pub(crate) struct Refusal {
    status: u16,
    code: String,
    detail: String,
    retry_after: Option<Duration>,
    counter: Option<u64>,
}

impl Failure {
    fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Problem(refusal) => Some(refusal),
            Self::Identity(_) | Self::Exchange(_) | Self::State(_) | Self::Unreadable(..) => None,
        }
    }

    fn is(&self, code: ProblemCode) -> bool {
        self.refusal()
            .is_some_and(|refusal| refusal.status == code.status() && refusal.code == code.as_str())
    }

    /// True when trying again soon will not help: somebody must change something first.
    pub(crate) fn is_lasting(&self) -> bool {
        let refused = self.refusal().is_some_and(|refusal| {
            (400..500).contains(&refusal.status) && ![408, 429].contains(&refusal.status)
        });
        refused && !self.is(ProblemCode::CounterUsed)
    }

    /// True when a stranger needs a token for this.
    pub(crate) fn wants_token(&self) -> bool {
        self.is(ProblemCode::JoinTokenRefused)
    }

    pub(crate) fn retry_after(&self) -> Option<Duration> {
        self.refusal()?.retry_after
    }

    /// Why a beat that was answered so must be followed by a registration.
    pub(crate) fn wants_registration(&self) -> Option<&'static str> {
        if self.is(ProblemCode::NodeUnknown) {
            Some("the control plane does not know this node")
        } else if self.is(ProblemCode::NodeKeyMismatch) {
            Some("the control plane knows this node by another key")
        } else {
            None
        }
    }

    /// The highest counter that the control plane has seen of this node.
    pub(crate) fn used_counter(&self) -> Option<u64> {
        let refusal = self.refusal()?;
        refusal
            .counter
            .filter(|_| self.is(ProblemCode::CounterUsed))
    }
}

/// What somebody must do about it; begins like the rest of a sentence.
fn advice(code: &str) -> &'static str {
    let is = |known: ProblemCode| code == known.as_str();
    if is(ProblemCode::JoinTokenRefused) || is(ProblemCode::SignatureMissing) {
        "; an administrator must make a join line for this worker (POST /api/join-tokens), \
         to be given to: orion-agentd join"
    } else if is(ProblemCode::NodeKeyMismatch) {
        "; if this machine was reinstalled or copied, an administrator must forget the node that \
         has its name or its SSH host keys (DELETE /api/nodes/ID) and make a new join line"
    } else if is(ProblemCode::HostKeyChanged) {
        "; if this machine was reinstalled, an administrator must forget its node \
         (DELETE /api/nodes/ID) and make a new join line; else somebody has changed its SSH host keys"
    } else if is(ProblemCode::HostnameTaken) {
        "; give this machine a name of its own, or let an administrator forget the other node \
         (DELETE /api/nodes/ID)"
    } else if is(ProblemCode::HostKeyTaken) {
        "; machines that were copied need SSH host keys of their own: remove them and run ssh-keygen -A"
    } else if is(ProblemCode::SignatureInvalid) {
        "; something between here and the control plane changes requests, or the two do not fit \
         each other's version"
    } else {
        ""
    }
}

/// Reads a 2xx answer's JSON, or the problem in any other.
pub(crate) fn read<T: DeserializeOwned>(answer: &Answer) -> Result<T, Failure> {
    let status = answer.status.as_u16();
    if answer.status.is_success() {
        return serde_json::from_slice(&answer.body)
            .map_err(|error| Failure::Unreadable(status, error));
    }
    // Leniently: a newer control plane may have codes that this agent does not know, a proxy answers in HTML.
    let problem: serde_json::Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let text = |key: &str, otherwise: &str| {
        let value = problem.get(key).and_then(serde_json::Value::as_str);
        value.unwrap_or(otherwise).to_owned()
    };
    let mut detail = text("detail", "no detail was given");
    for error in problem
        .get("errors")
        .and_then(serde_json::Value::as_array)
        .into_iter()
        .flatten()
    {
        detail.push_str(&format!("; {error}"));
    }
    Err(Failure::Problem(Refusal {
        status,
        code: text("code", "without a code"),
        detail,
        retry_after: answer.retry_after,
        counter: problem.get("counter").and_then(serde_json::Value::as_u64),
    }))
}
