//! Who an agent's request comes from: nobody in particular, or whoever holds the keys that signed it. Whether these are a
//! node's is decided with the node's row.

use http::request::Parts;
use hyper::body::Bytes;
use orion_core::ProblemCode;
use orion_signature::{SignatureError, VerifiedRequest, is_signed, verify_request};

use crate::config::RegistrationMode;
use crate::http::problem::Failure;

/// A right to the agents' routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Agent {
    /// The contract's bare fields, where the mode is `open`.
    Bare,
    /// Signed, and verified.
    Signed(VerifiedRequest),
}

/// Refuses at once what can't become a right, before a body is read.
///
/// # Errors
/// `signature_missing` in every mode but `open`.
pub fn admit(mode: RegistrationMode, parts: &Parts) -> Result<(), Failure> {
    if mode == RegistrationMode::Open || is_signed(&parts.headers) {
        Ok(())
    } else {
        Err(missing("requests of agents must be signed here"))
    }
}

/// The right that a request carries.
///
/// # Errors
/// `signature_missing`, `signature_invalid`.
pub async fn agent(mode: RegistrationMode, parts: &Parts, body: &Bytes) -> Result<Agent, Failure> {
    admit(mode, parts)?;
    if !is_signed(&parts.headers) {
        return Ok(Agent::Bare);
    }
    match verify_request(parts, body).await {
        Ok(verified) => Ok(Agent::Signed(verified)),
        Err(error @ SignatureError::Missing(_)) => Err(missing(&error.to_string())),
        Err(error @ SignatureError::Invalid(_)) => {
            let detail = error.to_string();
            Err(Failure::new(ProblemCode::SignatureInvalid, detail))
        }
    }
}

fn missing(detail: &str) -> Failure {
    Failure::new(ProblemCode::SignatureMissing, detail)
}
