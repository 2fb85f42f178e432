//! Signed HTTP messages between agents and the control plane: RFC 9421 with ed25519, and Content-Digest of RFC 9530.
//!
//! Agents speak plain HTTP, so nothing on the wire is believed for itself. A request covers method, path, body and the
//! node's counter; an answer covers status, body and, with the request's own signatures, everything that the request
//! covered, so that an answer belongs to one request and an old one is worth nothing. No clock takes part.
//!
//! The cryptography and the wire format are the library's. What it leaves to its callers is here: which components *must*
//! be covered, that the digest is the body's, and whose key it was.

use std::fmt;

use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use http_body_util::{BodyExt, Empty, Full};
use httpsig_hyper::prelude::message_component::HttpMessageComponentId;
use httpsig_hyper::prelude::{AlgorithmName, HttpSignatureParams, SecretKey};
use httpsig_hyper::{
    ContentDigestType, MessageSignatureReq, MessageSignatureRes, RequestContentDigest,
    ResponseContentDigest,
};
use hyper::body::Bytes;
use orion_core::{PublicKey, Seed};

/// The header with the node's counter.
pub const COUNTER: HeaderName = HeaderName::from_static("orion-counter");

const SIGNATURE: &str = "signature";
const SIGNATURE_INPUT: &str = "signature-input";
const CONTENT_DIGEST: &str = "content-digest";

/// The header that says which keys sign a request, and as what. Every one of them covers it: no signature can be added,
/// taken off, or passed off as another one's.
pub const KEYS: HeaderName = HeaderName::from_static("orion-keys");

/// What a request covers.
const REQUEST_COMPONENTS: [&str; 5] = [
    "\"@method\"",
    "\"@path\"",
    "\"content-digest\"",
    "\"orion-counter\"",
    "\"orion-keys\"",
];
/// What an answer covers. The request's signatures cover the rest of it.
const ANSWER_COMPONENTS: [&str; 3] = ["\"@status\"", "\"content-digest\"", "\"signature\";req"];

/// Keeps signatures made here from meaning anything anywhere else.
const TAG: &str = "orion";

/// No message has more signatures: an agent's, a join token's, a new key's; each of the control plane's keys.
pub const MAX_SIGNATURES: usize = 4;

/// Why a message is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// No signature of the wanted name, or none at all.
    #[error("it is not signed{0}")]
    Missing(&'static str),
    /// The signature does not fit the message, or covers too little of it.
    #[error("{0}")]
    Invalid(String),
}

fn invalid(reason: impl fmt::Display) -> SignatureError {
    SignatureError::Invalid(reason.to_string())
}

/// A private ed25519 key. It does not print.
#[derive(Clone)]
pub struct SigningKey {
    secret: SecretKey,
    public: PublicKey,
}

impl SigningKey {
    /// The key that follows from a seed.
    ///
    /// # Errors
    /// Never for 32 bytes; the library's types want it said.
    pub fn from_seed(seed: &Seed) -> Result<Self, SignatureError> {
        let secret =
            SecretKey::from_bytes(&AlgorithmName::Ed25519, seed.expose()).map_err(invalid)?;
        let httpsig_hyper::prelude::PublicKey::Ed25519(public) = secret.public_key() else {
            return Err(invalid("not an ed25519 key"));
        };
        Ok(Self {
            public: PublicKey::from_bytes(*public),
            secret,
        })
    }

    /// Its public half.
    pub fn public(&self) -> PublicKey {
        self.public
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.public)
    }
}

/// A new seed.
///
/// # Errors
/// When the system gives no random bytes.
pub fn new_seed() -> Result<Seed, getrandom::Error> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes)?;
    Ok(Seed::from_bytes(bytes))
}

/// What a signature in a request proves; also its name there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signer {
    /// The node's key.
    Agent,
    /// The join token.
    Token,
    /// The key that the node wants to have from now on.
    NextKey,
}

impl Signer {
    fn label(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Token => "token",
            Self::NextKey => "next",
        }
    }
}

/// `agent=KEY;token=KEY;next=KEY`, of those that sign, in this order.
fn key_list(keys: &[(Signer, PublicKey)]) -> String {
    let each = keys
        .iter()
        .map(|(signer, key)| format!("{}={key}", signer.label()));
    each.collect::<Vec<_>>().join(";")
}

/// Signs a request, in the order agent, token, next key, for the path it names; headers and body must not change
/// afterwards, a proxy may move the path.
///
/// # Errors
/// Where the message can't be written, which no message of ours causes.
pub async fn sign_request(
    request: Request<Full<Bytes>>,
    counter: u64,
    keys: &[(Signer, &SigningKey)],
) -> Result<Request<Full<Bytes>>, SignatureError> {
    let request = request
        .set_content_digest(&ContentDigestType::Sha256)
        .await
        .map_err(invalid)?;
    let (mut parts, body) = request.into_parts();
    let body = body.collect().await.map_err(invalid)?.to_bytes();
    parts.headers.insert(COUNTER, HeaderValue::from(counter));
    let named: Vec<_> = keys
        .iter()
        .map(|(signer, key)| (*signer, key.public))
        .collect();
    let named = HeaderValue::from_str(&key_list(&named)).map_err(invalid)?;
    parts.headers.insert(KEYS, named);
    let mut request = Request::from_parts(parts, Full::new(body));
    for (signer, key) in keys {
        let params = params(&REQUEST_COMPONENTS, key)?;
        request
            .set_message_signature(&params, &key.secret, Some(signer.label()))
            .await
            .map_err(invalid)?;
    }
    Ok(request)
}

/// What a request's signatures prove.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VerifiedRequest {
    /// The node's key, or what wants to become one.
    pub agent: PublicKey,
    /// The join token's public half.
    pub token: Option<PublicKey>,
    /// The key that shall replace `agent`.
    pub next_key: Option<PublicKey>,
    /// The node's counter; only its order with the others says something.
    pub counter: u64,
}

/// Whether a message claims to be signed.
pub fn is_signed(headers: &HeaderMap) -> bool {
    headers.contains_key(SIGNATURE) || headers.contains_key(SIGNATURE_INPUT)
}

/// Verifies every signature of a request against the key that it names, and says which keys these were. Whose keys they
/// are is for the caller to know.
///
/// # Errors
/// `Missing` without the agent's signature; `Invalid` when any of the signatures is not good.
pub async fn verify_request(
    parts: &Parts,
    body: &Bytes,
) -> Result<VerifiedRequest, SignatureError> {
    if !is_signed(&parts.headers) {
        return Err(SignatureError::Missing(""));
    }
    let mut copy = Request::new(Full::new(body.clone()));
    *copy.method_mut() = parts.method.clone();
    *copy.uri_mut() = parts.uri.clone();
    *copy.headers_mut() = parts.headers.clone();
    only_one(&parts.headers, CONTENT_DIGEST)?;
    only_one(&parts.headers, COUNTER.as_str())?;
    only_one(&parts.headers, KEYS.as_str())?;
    let found = copy.extract_signatures().map_err(invalid)?;
    bounded(&parts.headers, found.len())?;
    let signers = [Signer::Agent, Signer::Token, Signer::NextKey];
    let mut keys = [None; 3];
    for (label, (base, headers)) in &found {
        let place = signers
            .iter()
            .zip(&mut keys)
            .find(|(signer, _)| signer.label() == label);
        let Some((_, place)) = place else {
            return Err(invalid("it has a signature of an unknown name"));
        };
        let key = named_key(headers.signature_params(), &REQUEST_COMPONENTS)?;
        base.verify_signature_headers(&verifying(&key)?, headers)
            .map_err(|_| invalid("a signature does not fit what it covers"))?;
        *place = Some(key);
    }
    let named: Vec<_> = signers
        .into_iter()
        .zip(keys)
        .filter_map(|(signer, key)| Some((signer, key?)))
        .collect();
    let said = parts.headers.get(KEYS).map(HeaderValue::as_bytes);
    if said != Some(key_list(&named).as_bytes()) {
        return Err(invalid(
            "its signatures are not those of the keys that it names",
        ));
    }
    let counter = parts
        .headers
        .get(COUNTER)
        .and_then(|value| value.to_str().ok());
    let counter = counter
        .and_then(plain_number)
        .ok_or_else(|| invalid("its counter is no number"))?;
    copy.verify_content_digest()
        .await
        .map_err(|_| invalid("the body is not the one that was signed"))?;
    let [agent, token, next_key] = keys;
    Ok(VerifiedRequest {
        agent: agent.ok_or(SignatureError::Missing(" by a node's key"))?,
        token,
        next_key,
        counter,
    })
}

/// Signs an answer to a signed request with every key, so that whoever knows one of them believes it.
///
/// # Errors
/// Where the message can't be written, which no message of ours causes.
pub async fn sign_answer(
    answer: Response<Full<Bytes>>,
    request: &HeaderMap,
    keys: &[SigningKey],
) -> Result<Response<Full<Bytes>>, SignatureError> {
    let answer = answer
        .set_content_digest(&ContentDigestType::Sha256)
        .await
        .map_err(invalid)?;
    let (parts, body) = answer.into_parts();
    let body = body.collect().await.map_err(invalid)?.to_bytes();
    let mut answer = Response::from_parts(parts, Full::new(body));
    let request = headers_only(request);
    for (index, key) in keys.iter().enumerate() {
        let params = params(&ANSWER_COMPONENTS, key)?;
        answer
            .set_message_signature(
                &params,
                &key.secret,
                Some(&format!("key{index}")),
                Some(&request),
            )
            .await
            .map_err(invalid)?;
    }
    Ok(answer)
}

/// Verifies that one of `trusted` signed this answer to the request with these headers.
///
/// # Errors
/// `Missing` where nothing is signed, or by nobody who is trusted; `Invalid` where it does not fit.
pub async fn verify_answer(
    answer: Response<Full<Bytes>>,
    request: &HeaderMap,
    trusted: &[PublicKey],
) -> Result<(), SignatureError> {
    if !is_signed(answer.headers()) {
        return Err(SignatureError::Missing(""));
    }
    only_one(answer.headers(), CONTENT_DIGEST)?;
    let found = answer
        .extract_signatures(Some(&headers_only(request)))
        .map_err(invalid)?;
    bounded(answer.headers(), found.len())?;
    let mut by_trusted = false;
    for (base, headers) in found.values() {
        let key = named_key(headers.signature_params(), &ANSWER_COMPONENTS)?;
        if trusted.contains(&key) {
            base.verify_signature_headers(&verifying(&key)?, headers)
                .map_err(|_| invalid("its signature does not fit what it covers"))?;
            by_trusted = true;
        }
    }
    answer
        .verify_content_digest()
        .await
        .map_err(|_| invalid("its body is not the one that was signed"))?;
    if by_trusted {
        Ok(())
    } else {
        Err(SignatureError::Missing(" by a key that is trusted"))
    }
}

/// Decimal digits without sign and leading zero: one number has one spelling.
fn plain_number(text: &str) -> Option<u64> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let canonical = digits && (text == "0" || !text.starts_with('0'));
    if canonical { text.parse().ok() } else { None }
}

fn only_one(headers: &HeaderMap, name: &str) -> Result<(), SignatureError> {
    match headers.get_all(name).iter().count() {
        1 => Ok(()),
        _ => Err(invalid(format!("it must have one header {name}"))),
    }
}

/// The library leaves out signatures that cover what the message has not; here they make the message bad.
fn bounded(headers: &HeaderMap, found: usize) -> Result<(), SignatureError> {
    let said = headers.get_all(SIGNATURE).iter();
    let said: usize = said
        .map(|value| {
            value
                .as_bytes()
                .iter()
                .filter(|byte| **byte == b'=')
                .count()
        })
        .sum();
    match found {
        0 => Err(SignatureError::Missing("")),
        1..=MAX_SIGNATURES if said <= MAX_SIGNATURES * 3 => Ok(()),
        _ => Err(invalid("it has too many signatures")),
    }
}

fn headers_only(headers: &HeaderMap) -> Request<Empty<Bytes>> {
    let mut request = Request::new(Empty::new());
    *request.headers_mut() = headers.clone();
    request
}

fn components(names: &[&str]) -> Result<Vec<HttpMessageComponentId>, SignatureError> {
    names
        .iter()
        .map(|name| HttpMessageComponentId::try_from(*name).map_err(invalid))
        .collect()
}

fn params(names: &[&str], key: &SigningKey) -> Result<HttpSignatureParams, SignatureError> {
    let mut params = HttpSignatureParams::try_new(&components(names)?).map_err(invalid)?;
    params.created = None;
    params.alg = Some("ed25519".to_owned());
    params.keyid = Some(key.public.to_string());
    params.tag = Some(TAG.to_owned());
    Ok(params)
}

/// The key that a signature names, if it covers exactly what it must and is one of ours.
fn named_key(params: &HttpSignatureParams, names: &[&str]) -> Result<PublicKey, SignatureError> {
    if params.covered_components != components(names)? {
        return Err(invalid(
            "a signature covers other parts of the message than it must",
        ));
    }
    if params.alg.as_deref() != Some("ed25519") || params.tag.as_deref() != Some(TAG) {
        return Err(invalid("a signature is of another kind"));
    }
    let key = params.keyid.as_deref().and_then(|text| text.parse().ok());
    key.ok_or_else(|| invalid("a signature does not name its key"))
}

fn verifying(key: &PublicKey) -> Result<httpsig_hyper::prelude::PublicKey, SignatureError> {
    httpsig_hyper::prelude::PublicKey::from_bytes(&AlgorithmName::Ed25519, key.as_bytes())
        .map_err(invalid)
}

#[cfg(test)]
mod tests;
