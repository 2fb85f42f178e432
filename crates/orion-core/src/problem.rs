//! What an error looks like to a client: RFC 9457 with a stable `code`.

use serde::{Deserialize, Serialize};

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $text:literal, $status:literal, $title:literal;)+) => {
        /// The stable part of an error; clients branch on it. Never renamed.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum ProblemCode { $($(#[$doc])* #[serde(rename = $text)] $variant),+ }

        impl ProblemCode {
            /// Every code, for the documentation's test.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The word in the body.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }

            /// The HTTP status that goes with it.
            pub const fn status(self) -> u16 {
                match self { $(Self::$variant => $status),+ }
            }

            /// One sentence, the same for every occurrence.
            pub const fn title(self) -> &'static str {
                match self { $(Self::$variant => $title),+ }
            }
        }
    };
}

codes!(
    /// The body is absent or is not JSON.
    MalformedJson = "malformed_json", 400, "The body is not JSON";
    /// A field has the wrong JSON type.
    WrongType = "wrong_type", 400, "A field has the wrong type";
    /// A header has a value that can't be used.
    BadHeader = "bad_header", 400, "A header can't be used";
    /// No bearer token was sent.
    TokenMissing = "token_missing", 401, "A bearer token is needed";
    /// The token is not one of ours, or was revoked.
    TokenInvalid = "token_invalid", 401, "The token is not valid";
    /// The token's hour is over.
    TokenExpired = "token_expired", 401, "The token has expired";
    /// Unknown user or wrong password, on purpose the same.
    LoginFailed = "login_failed", 401, "The name or the password is wrong";
    /// An agent's request that must be signed is not.
    SignatureMissing = "signature_missing", 401, "The request must be signed";
    /// A signature, or what it covers, is not what it must be.
    SignatureInvalid = "signature_invalid", 401, "The signature is not valid";
    /// The node has another key than the one that signed.
    NodeKeyMismatch = "node_key_mismatch", 401, "The request is not signed by its node";
    /// The counter of a signed request was used before; `counter` says the highest one so far.
    CounterUsed = "counter_used", 401, "The counter was used before";
    /// A registration of a new worker without a join token that is good for it.
    JoinTokenRefused = "join_token_refused", 401, "The join token lets nobody in";
    /// The right is missing.
    Forbidden = "forbidden", 403, "Not allowed";
    /// `dev.allow_reset` is not set.
    ResetDisabled = "reset_disabled", 403, "Reset is switched off here";
    /// No such thing, or not yours.
    NotFound = "not_found", 404, "Not found";
    /// A beat of a node that is not registered: the agent registers again.
    NodeUnknown = "node_unknown", 404, "The node is not registered";
    /// The path exists, the method does not.
    MethodNotAllowed = "method_not_allowed", 405, "The method is not allowed here";
    /// The body did not arrive in time.
    RequestTimeout = "request_timeout", 408, "The body took too long";
    /// The thing is in a state that does not permit this.
    WrongState = "wrong_state", 409, "Not possible in this state";
    /// Somebody has that user name.
    UsernameTaken = "username_taken", 409, "The user name is taken";
    /// The user's name belongs to another account on the nodes.
    NameTaken = "name_taken", 409, "The name exists on the nodes already";
    /// A live node has that host name and another host key.
    HostnameTaken = "hostname_taken", 409, "The host name belongs to another node";
    /// The node's SSH host keys are not the pinned ones any more; it is quarantined.
    HostKeyChanged = "host_key_changed", 409, "The SSH host keys changed";
    /// Another node has that SSH host key.
    HostKeyTaken = "host_key_taken", 409, "The host key belongs to another node";
    /// The idempotency key was used with another body.
    IdempotencyKeyReused = "idempotency_key_reused", 409, "The idempotency key was used for another request";
    /// The rentals of this idempotency key have ended.
    RequestEnded = "request_ended", 409, "The rentals of this request have ended";
    /// `rent.max_active_per_user` is reached.
    RentalLimit = "rental_limit", 409, "Too many rentals";
    /// The body is longer than allowed.
    BodyTooLarge = "body_too_large", 413, "The body is too large";
    /// The body is not declared as JSON.
    UnsupportedMediaType = "unsupported_media_type", 415, "The body must be application/json";
    /// A value is out of range, a field is missing or unknown.
    InvalidValue = "invalid_value", 422, "A value is not allowed";
    /// Too many passwords are being checked.
    TooManyRequests = "too_many_requests", 429, "Too many requests";
    /// A fault of ours; the log has the request id.
    Internal = "internal", 500, "Internal error";
    /// Fewer free nodes than asked for.
    NoFreeNode = "no_free_node", 503, "Not enough free nodes";
    /// Workers hold accounts that the database never gave out: it was restored from a backup, or several workers lie.
    DatabaseOutdated = "database_outdated", 503, "The database is an old one";
    /// The accounts could not be made in time; everything was undone.
    ProvisioningFailed = "provisioning_failed", 503, "The machines could not be prepared";
    /// The database does not answer.
    DatabaseDown = "database_down", 503, "The database does not answer";
    /// The database's clock stepped, and nobody has said yet whether it is right now.
    ClockStepped = "clock_stepped", 503, "The clock is in doubt";
    /// The daemon is starting or stopping.
    NotReady = "not_ready", 503, "Not ready";
);

/// One bad field.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FieldError {
    /// Its name in the body, the path or the query; dots lead inside.
    pub field: String,
    /// What it must be, with the range.
    pub detail: String,
}

/// The body of every 4xx and 5xx, `application/problem+json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// `/problems/<code>`: where `docs/api.md` explains it.
    #[serde(rename = "type")]
    pub kind: String,
    /// The code's sentence.
    pub title: String,
    /// The HTTP status again.
    pub status: u16,
    /// What happened this time, for a person.
    pub detail: String,
    /// The stable code.
    pub code: ProblemCode,
    /// Finds the request in the log.
    pub request_id: String,
    /// Each bad field.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<FieldError>,
    /// With `no_free_node`: how many are free now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub free: Option<u64>,
    /// With `counter_used`: the highest counter so far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counter: Option<u64>,
}

impl Problem {
    /// A problem without bad fields.
    pub fn new(
        code: ProblemCode,
        detail: impl Into<String>,
        request_id: impl Into<String>,
    ) -> Self {
        Self {
            kind: format!("/problems/{}", code.as_str()),
            title: code.title().to_owned(),
            status: code.status(),
            detail: detail.into(),
            code,
            request_id: request_id.into(),
            errors: Vec::new(),
            free: None,
            counter: None,
        }
    }
}
