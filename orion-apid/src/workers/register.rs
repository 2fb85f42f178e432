//! `POST /api/workers/register`: a worker says who and where it is.

use orion_core::api::{RegisterReply, Trust};
use orion_core::beats::SHORTEST_S;
use orion_core::{AddressGuard, HostName, NodeId, ProblemCode, PublicKey};
use orion_store::{Address, Admission, Refusal, Registered, Registration, TokenFault};

use super::host_key::HostKeys;
use super::{MAX_AGENT, MAX_BOOT_ID, check_short, old_counter, public_key};
use crate::auth::agent::Agent;
use crate::config::RegistrationMode;
use crate::http::fields::{Fields, Unknown};
use crate::http::problem::Failure;
use crate::http::reply::Reply;
use crate::http::request::Call;

impl Agent {
    fn admission(&self, mode: RegistrationMode) -> Admission {
        match (mode, self) {
            (RegistrationMode::Open, _) => Admission::Open,
            (RegistrationMode::Approve, _) => Admission::Approval,
            (RegistrationMode::Token, Self::Signed(verified)) => Admission::Token(verified.token),
            (RegistrationMode::Token, Self::Bare) => Admission::Token(None),
        }
    }
}

/// A registration's body, checked for its form.
#[derive(Debug)]
pub struct RegistrationForm {
    hostname: HostName,
    client: Address,
    contact: Address,
    host_keys: Vec<String>,
    agent: Option<String>,
    boot_id: Option<String>,
    signing_key: Option<PublicKey>,
}

impl RegistrationForm {
    /// Where the control plane and clients would connect.
    pub fn hosts(&self) -> impl Iterator<Item = &str> {
        [&self.client, &self.contact]
            .into_iter()
            .map(|address| address.host.as_str())
    }

    /// Every text that a worker chose and that goes on from here.
    pub fn texts(&self) -> impl Iterator<Item = &str> {
        let keys = self.host_keys.iter().map(String::as_str);
        let others = self.agent.iter().chain(&self.boot_id).map(String::as_str);
        self.hosts()
            .chain([self.hostname.as_str()])
            .chain(keys)
            .chain(others)
    }
}

/// `POST /api/workers/register`: registers or updates.
///
/// # Errors
/// Bad fields, `hostname_taken`, `host_key_taken`, `host_key_changed`, `counter_used`, `join_token_refused`.
pub async fn register(call: Call, agent: Agent) -> Result<Reply, Failure> {
    let form = registration(call.fields()?, &call.app.addresses, agent != Agent::Bare)?;
    let admission = agent.admission(call.app.settings.registration.mode);
    let asked = Registration {
        hostname: &form.hostname,
        client: form.client,
        contact: form.contact,
        host_keys: &form.host_keys,
        agent: form.agent.as_deref(),
        boot_id: form.boot_id.as_deref(),
        signed: agent.signed_by(),
        signing_key: form.signing_key,
    };
    let registered = call.app.store.register(&asked, admission).await?;
    let signs = agent != Agent::Bare;
    match registered {
        Registered::Created(node) => {
            tracing::info!(%node, hostname = ?form.hostname.as_str(), "node registered");
            let message = "Worker enregistré avec succès";
            Reply::created(&welcome(&call, node, message, signs).await?)
        }
        Registered::Updated(node) => {
            let message = "Worker déjà enregistré";
            Reply::ok(&welcome(&call, node, message, signs).await?)
        }
        Registered::Refused(refusal) => Err(refused(refusal)),
    }
}

async fn welcome(
    call: &Call,
    node_id: NodeId,
    message: &str,
    signs: bool,
) -> Result<RegisterReply, Failure> {
    call.app.schedd.look();
    let trust = if signs {
        Trust {
            signing_keys: call.app.public_signing_keys(),
            pool_keys: call.app.store.pool_keys().await?,
            status: None,
        }
    } else {
        Trust::default()
    };
    Ok(RegisterReply {
        message: message.to_owned(),
        node_id,
        next_beat_s: SHORTEST_S,
        trust,
    })
}

fn refused(refusal: Refusal) -> Failure {
    match refusal {
        Refusal::HostnameTaken => Failure::field(
            ProblemCode::HostnameTaken,
            "hostname",
            "belongs to a node with other keys; an administrator must delete that node first",
        ),
        Refusal::HostKeyTaken => Failure::field(
            ProblemCode::HostKeyTaken,
            "host_keys",
            "holds a key of another node; machines made from one image need keys of their own",
        ),
        Refusal::NextKeyTaken => Failure::new(
            ProblemCode::NodeKeyMismatch,
            "the key that shall replace the node's belongs to another node",
        ),
        Refusal::TooManyWait => Failure::new(
            ProblemCode::TooManyRequests,
            "too many nodes wait for an administrator",
        )
        .retry_after(60),
        Refusal::HostKeyChanged(node) => {
            tracing::warn!(%node, "a node came with other SSH host keys and is quarantined");
            Failure::field(
                ProblemCode::HostKeyChanged,
                "host_keys",
                "holds none of the pinned keys; the node is quarantined until an administrator deletes it",
            )
        }
        Refusal::OldCounter(highest) => old_counter(highest),
        Refusal::NotAdmitted(fault) => {
            tracing::warn!(reason = %fault, "a worker was not let in");
            let code = ProblemCode::JoinTokenRefused;
            match fault {
                TokenFault::Network => Failure::field(code, "ip", fault.to_string()),
                TokenFault::HostName => Failure::field(code, "hostname", fault.to_string()),
                TokenFault::Missing
                | TokenFault::Unknown
                | TokenFault::Revoked
                | TokenFault::Expired
                | TokenFault::UsedUp => Failure::new(code, fault.to_string()),
            }
        }
    }
}

/// Checks the body of a registration. Whoever signs has host keys to tell.
///
/// # Errors
/// Bad fields.
pub fn registration(
    mut fields: Fields,
    addresses: &AddressGuard,
    is_signed: bool,
) -> Result<RegistrationForm, Failure> {
    let hostname = fields.text("hostname");
    let hostname = fields.parse_as("hostname", hostname, |text| HostName::parse(&text));
    let client = address(&mut fields, "ip", "ssh_port", addresses);
    let mut contact_is_given = false;
    let contact = fields.object("contact", Unknown::Tolerated, |inner| {
        contact_is_given = true;
        address(inner, "host", "port", addresses)
    });
    let given = fields.texts("host_keys", HostKeys::MOST);
    if is_signed && given.is_empty() {
        fields.fault("host_keys", "must hold the worker's SSH host keys");
    }
    let host_keys = HostKeys::check(&mut fields, given);
    let agent = short_text(&mut fields, "agent", MAX_AGENT);
    let boot_id = short_text(&mut fields, "boot_id", MAX_BOOT_ID);
    let signing_key = public_key(&mut fields, "signing_key");
    let contact = if contact_is_given {
        contact
    } else {
        client.clone()
    };
    let form = hostname
        .zip(client)
        .zip(contact)
        .map(|((hostname, client), contact)| RegistrationForm {
            hostname,
            client,
            contact,
            host_keys,
            agent,
            boot_id,
            signing_key,
        });
    fields.finish(Unknown::Tolerated, form)
}

fn address(
    fields: &mut Fields,
    host: &str,
    port: &str,
    addresses: &AddressGuard,
) -> Option<Address> {
    let text = fields.text(host);
    let host = fields.parse_as(host, text, |text| addresses.check(&text));
    let port = fields.port(port);
    let (host, port) = host.zip(port)?;
    Some(Address {
        host: host.to_string(),
        port,
    })
}

fn short_text(fields: &mut Fields, name: &str, most: usize) -> Option<String> {
    let text = fields.optional_text(name);
    fields.parse_as(name, text, |text| check_short(text, most))
}

#[cfg(test)]
mod tests;
