//! Permissions for workers to join.

use std::time::Duration;

use orion_core::api::{Message, NewJoinToken};
use orion_core::{HostName, JoinLine, JoinTokenId, PublicKey, Seed};
use orion_signature::{SigningKey, new_seed};
use orion_store::{JoinTokenOrder, Revocation};

use crate::auth::principal::Admin;
use crate::config::parse_endpoint;
use crate::http::fields::{Fields, Unknown};
use crate::http::problem::Failure;
use crate::http::reply::Reply;
use crate::http::request::Call;

/// How long a token lasts where nobody says (seconds), and the bounds: a minute, 30 days.
const DEFAULT_LIFETIME_S: u64 = 30 * 60;
const SHORTEST_S: u64 = 60;
const LONGEST_S: u64 = 30 * 24 * 3600;

/// Nodes that one token may let in at the most.
const MOST_USES: u64 = 10_000;

/// Networks and host names of one token at the most.
const MOST_BOUNDS: usize = 100;

struct Form {
    uses: u32,
    lifetime: Duration,
    networks: Vec<ipnet::IpNet>,
    hostnames: Vec<HostName>,
    endpoint: String,
}

fn form(mut fields: Fields, configured: Option<&str>) -> Result<Form, Failure> {
    let uses = fields.whole_or("uses", &(1..=MOST_USES), 1);
    let uses = uses.and_then(|uses| u32::try_from(uses).ok());
    let lifetime_s = fields.whole_or("lifetime_s", &(SHORTEST_S..=LONGEST_S), DEFAULT_LIFETIME_S);
    let networks = each(&mut fields, "networks", |text| {
        let must = "must be a network such as 10.1.0.0/16";
        text.parse::<ipnet::IpNet>().map_err(|_| must)
    });
    let hostnames = each(&mut fields, "hostnames", HostName::parse);
    let endpoint = fields
        .optional_text("endpoint")
        .or(configured.map(str::to_owned));
    if endpoint.is_none() {
        let detail = "is missing: the URL that agents reach the control plane at; registration.endpoint sets it for all";
        fields.fault("endpoint", detail);
    }
    let endpoint = fields.parse_as("endpoint", endpoint, |text| parse_endpoint(&text));
    let form = uses
        .zip(lifetime_s)
        .zip(endpoint)
        .map(|((uses, lifetime_s), endpoint)| Form {
            uses,
            lifetime: Duration::from_secs(lifetime_s),
            networks,
            hostnames,
            endpoint,
        });
    fields.finish(Unknown::Refused, form)
}

/// The elements that are good; each other is a fault that names its place, as `networks.2`.
fn each<T>(
    fields: &mut Fields,
    name: &str,
    parse: impl Fn(&str) -> Result<T, &'static str>,
) -> Vec<T> {
    let texts = fields.texts(name, MOST_BOUNDS);
    let mut good = Vec::with_capacity(texts.len());
    for (index, text) in texts.into_iter().enumerate() {
        good.extend(fields.parse_as(&format!("{name}.{index}"), Some(text), |text| parse(&text)));
    }
    good
}

/// A token's secret and what the database keeps of it.
fn new_token() -> Result<(Seed, PublicKey), Failure> {
    let seed = new_seed().map_err(Failure::internal)?;
    let public = SigningKey::from_seed(&seed)
        .map_err(Failure::internal)?
        .public();
    Ok((seed, public))
}

/// `POST /api/join-tokens`: the answer alone carries the secret.
///
/// # Errors
/// Bad fields.
pub async fn create(call: Call, admin: Admin) -> Result<Reply, Failure> {
    let fields = if call.body.trim_ascii().is_empty() {
        Fields::parse(b"{}")?
    } else {
        call.fields()?
    };
    let form = form(fields, call.app.settings.registration.endpoint.as_deref())?;
    let signing_key = call.app.public_signing_keys().first().copied();
    let signing_key = signing_key.ok_or_else(|| Failure::internal("there is no signing key"))?;
    let (seed, public_key) = new_token()?;
    let order = JoinTokenOrder {
        public_key,
        uses: form.uses,
        lifetime: form.lifetime,
        networks: form.networks,
        hostnames: form.hostnames,
        signing_key,
        created_by: admin.id,
    };
    let token = call.app.store.create_join_token(&order).await?;
    tracing::info!(join_token = %token.join_token_id, uses = token.uses, by = %admin.id, request_id = call.request_id, "join token made");
    let line = JoinLine {
        endpoint: form.endpoint,
        token: seed,
        signing_key,
    };
    Reply::created(&NewJoinToken {
        join_line: line.expose(),
        token,
    })
}

/// `GET /api/join-tokens`: all of them, the newest first.
///
/// # Errors
/// `database_down`.
pub async fn list(call: Call, _: Admin) -> Result<Reply, Failure> {
    Reply::ok(&call.app.store.join_tokens().await?)
}

/// `DELETE /api/join-tokens/{join_token_id}`: it lets nobody in any more; a second time: the same.
///
/// # Errors
/// `not_found`.
pub async fn revoke(call: Call, admin: Admin) -> Result<Reply, Failure> {
    let id = call.path_id(JoinTokenId)?;
    match call.app.store.revoke_join_token(id).await? {
        Revocation::Done => {
            tracing::info!(join_token = %id, by = %admin.id, request_id = call.request_id, "join token revoked");
            Reply::ok(&Message {
                message: "Join token revoked".to_owned(),
            })
        }
        Revocation::NotFound => Err(Failure::not_found("join token")),
    }
}
