//! The agents' two routes: a worker says who and where it is, and that it lives.

pub mod beat;
pub mod host_key;
pub mod register;

use orion_core::{ProblemCode, PublicKey};
use orion_store::SignedBy;

use crate::auth::agent::Agent;
use crate::http::fields::Fields;
use crate::http::problem::{Failure, Number};

/// The longest text of an agent's version, and of a boot id (characters); as wide as their columns.
const MAX_AGENT: usize = 32;
const MAX_BOOT_ID: usize = 64;

impl Agent {
    fn signed_by(&self) -> Option<SignedBy> {
        match self {
            Self::Bare => None,
            Self::Signed(verified) => Some(SignedBy {
                key: verified.agent,
                next_key: verified.next_key,
                counter: verified.counter,
            }),
        }
    }
}

fn old_counter(highest: u64) -> Failure {
    let detail = format!("the counter must be above {highest}");
    Failure {
        number: Some(Number::Counter(highest)),
        ..Failure::new(ProblemCode::CounterUsed, detail)
    }
}

fn public_key(fields: &mut Fields, name: &str) -> Option<PublicKey> {
    let text = fields.optional_text(name);
    fields.parse_as(name, text, |text| {
        text.parse()
            .map_err(|error: orion_core::keys::NotAKey| error.to_string())
    })
}

fn check_short(text: String, most: usize) -> Result<String, String> {
    let length = text.chars().count();
    if (1..=most).contains(&length) && !text.chars().any(char::is_control) {
        Ok(text)
    } else {
        Err(format!(
            "must have 1 to {most} characters and none that control"
        ))
    }
}
