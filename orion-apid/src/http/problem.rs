//! What went wrong with one call, before it becomes an answer. No status codes here: a [`ProblemCode`] has its own.

use std::error::Error;

use orion_core::{FieldError, ProblemCode};
use orion_store::StoreError;

/// After how long it makes sense to ask again while the database's clock is in doubt (seconds).
const RETRY_CLOCK_S: u32 = 30;

type Cause = Box<dyn Error + Send + Sync>;

/// A number that a program may want from a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Number {
    /// How many nodes are free, with `no_free_node`.
    Free(u64),
    /// The highest counter so far, with `counter_used`.
    Counter(u64),
}

/// Why a call failed. `detail` is for the client; `cause` is for the log alone.
#[derive(Debug)]
pub struct Failure {
    /// The stable code.
    pub code: ProblemCode,
    /// What happened this time, for a person.
    pub detail: String,
    /// Each bad field.
    pub errors: Vec<FieldError>,
    /// A number that goes with the code.
    pub number: Option<Number>,
    /// When another try makes sense (seconds).
    pub retry_after_s: Option<u32>,
    /// The methods of the path, with `method_not_allowed`.
    pub allow: Option<String>,
    /// What really happened.
    pub cause: Option<Cause>,
}

impl Failure {
    /// A failure without bad fields. 429 and 503 tell when to try again: in one second, unless told otherwise.
    pub fn new(code: ProblemCode, detail: impl Into<String>) -> Self {
        Self {
            code,
            detail: detail.into(),
            errors: Vec::new(),
            number: None,
            retry_after_s: None,
            allow: None,
            cause: None,
        }
    }

    /// A failure because of one field.
    pub fn field(code: ProblemCode, field: &str, detail: impl Into<String>) -> Self {
        let error = FieldError {
            field: field.to_owned(),
            detail: detail.into(),
        };
        Self::fields(code, vec![error])
    }

    /// A failure because of these fields.
    pub fn fields(code: ProblemCode, errors: Vec<FieldError>) -> Self {
        let all: Vec<String> = errors
            .iter()
            .map(|error| format!("{} {}", error.field, error.detail))
            .collect();
        Self {
            errors,
            ..Self::new(code, all.join("; "))
        }
    }

    /// A fault of ours. The client learns nothing but the request id.
    pub fn internal(cause: impl Into<Cause>) -> Self {
        Self {
            cause: Some(cause.into()),
            ..Self::new(
                ProblemCode::Internal,
                "the server failed to answer; its log has the request id",
            )
        }
    }

    /// The database is away.
    pub fn database_down(cause: impl Into<Cause>) -> Self {
        Self {
            cause: Some(cause.into()),
            ..Self::new(
                ProblemCode::DatabaseDown,
                "the database does not answer; nothing was changed, or the change is found later",
            )
        }
    }

    /// Whether the database's clock is right now, a person must say, or it says so itself by going back.
    pub fn clock_stepped() -> Self {
        let detail = "the database's clock jumped, and an end that is written now could be wrong; releasing works";
        Self::new(ProblemCode::ClockStepped, detail).retry_after(RETRY_CLOCK_S)
    }

    /// The daemon has no database yet, or one whose schema it does not know.
    pub fn not_ready() -> Self {
        Self::new(ProblemCode::NotReady, "the service is not ready yet")
    }

    /// No such thing, or somebody else's.
    pub fn not_found(what: &str) -> Self {
        Self::new(ProblemCode::NotFound, format!("there is no such {what}"))
    }

    /// Tells when another try makes sense.
    #[must_use]
    pub fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after_s = Some(seconds);
        self
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        if error.is_unavailable() {
            Self::database_down(error)
        } else {
            Self::internal(error)
        }
    }
}

/// An error and what caused it, in one line for the log.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_detail_of_a_fault_of_ours_tells_the_client_nothing() {
        let failure = Failure::internal(std::io::Error::other("table users is broken"));
        assert_eq!(failure.code, ProblemCode::Internal);
        assert!(!failure.detail.contains("users"));
        let cause = failure.cause.unwrap();
        assert_eq!(chain(cause.as_ref()), "table users is broken");
    }

    #[test]
    fn every_bad_field_stands_in_the_detail_too() {
        let errors = vec![
            FieldError {
                field: "count".into(),
                detail: "must be 1 to 16".into(),
            },
            FieldError {
                field: "x".into(),
                detail: "is unknown".into(),
            },
        ];
        let failure = Failure::fields(ProblemCode::InvalidValue, errors);
        assert_eq!(failure.detail, "count must be 1 to 16; x is unknown");
    }
}
