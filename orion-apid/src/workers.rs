//! The agents' two routes: a worker says where it is, and that it lives.

pub mod address;
pub mod host_key;

use orion_core::api::{BeatReply, RegisterReply};
use orion_core::{HostName, NodeId, ProblemCode};
use orion_store::{Address, Beat, Registered, Registration};

use crate::http::fields::{Fields, Unknown};
use crate::http::problem::Failure;
use crate::http::reply::Reply;
use crate::http::request::Call;
use crate::workers::address::parse_host;
use crate::workers::host_key::HostKeys;

/// When an agent beats next (seconds).
const NEXT_BEAT_S: u32 = 5;

/// The longest text of an agent's version, and of a boot id (characters); as wide as their columns.
const MAX_AGENT: usize = 32;
const MAX_BOOT_ID: usize = 64;

#[derive(Debug)]
struct Form {
    hostname: HostName,
    client: Address,
    contact: Address,
    host_keys: Vec<String>,
    agent: Option<String>,
}

/// `POST /api/workers/register`: registers or updates.
///
/// # Errors
/// Bad fields, `hostname_taken`, `host_key_taken`.
pub async fn register(call: Call) -> Result<Reply, Failure> {
    let form = form(
        call.fields()?,
        &call.app.settings.registration.contact_names,
    )?;
    let registered = call
        .app
        .store
        .register(&Registration {
            hostname: &form.hostname,
            client: form.client,
            contact: form.contact,
            host_keys: &form.host_keys,
            agent: form.agent.as_deref(),
        })
        .await?;
    let reply = |message: &str, node_id| RegisterReply {
        message: message.to_owned(),
        node_id,
        next_beat_s: NEXT_BEAT_S,
    };
    match registered {
        Registered::Created(node) => {
            tracing::info!(%node, hostname = ?form.hostname.as_str(), "node registered");
            call.app.schedd.look();
            Reply::created(&reply("Worker enregistré avec succès", node))
        }
        Registered::Updated(node) => {
            call.app.schedd.look();
            Reply::ok(&reply("Worker déjà enregistré", node))
        }
        Registered::HostnameTaken => Err(Failure::field(
            ProblemCode::HostnameTaken,
            "hostname",
            "belongs to a node with other SSH host keys",
        )),
        Registered::HostKeyTaken => Err(Failure::field(
            ProblemCode::HostKeyTaken,
            "host_keys",
            "holds a key of another node; machines made from one image need keys of their own",
        )),
    }
}

fn form(mut fields: Fields, names: &[String]) -> Result<Form, Failure> {
    let hostname = fields.text("hostname");
    let hostname = fields.parse_as("hostname", hostname, |text| HostName::parse(&text));
    let client = address(&mut fields, "ip", "ssh_port", names);
    let mut contact_is_given = false;
    let contact = fields.object("contact", Unknown::Tolerated, |inner| {
        contact_is_given = true;
        address(inner, "host", "port", names)
    });
    let given = fields.texts("host_keys", HostKeys::MOST);
    let host_keys = HostKeys::check(&mut fields, given);
    let agent = short_text(&mut fields, "agent", MAX_AGENT);
    // Told by every agent, of use once beats are signed; a wrong one is a fault already.
    short_text(&mut fields, "boot_id", MAX_BOOT_ID);
    let contact = if contact_is_given {
        contact
    } else {
        client.clone()
    };
    let form = hostname
        .zip(client)
        .zip(contact)
        .map(|((hostname, client), contact)| Form {
            hostname,
            client,
            contact,
            host_keys,
            agent,
        });
    fields.finish(Unknown::Tolerated, form)
}

fn address(fields: &mut Fields, host: &str, port: &str, names: &[String]) -> Option<Address> {
    let text = fields.text(host);
    let parsed = fields.parse_as(host, text, |text| parse_host(&text, names));
    let port = fields.port(port);
    let (host, port) = parsed.zip(port)?;
    Some(Address { host, port })
}

fn short_text(fields: &mut Fields, name: &str, most: usize) -> Option<String> {
    let text = fields.optional_text(name);
    fields.parse_as(name, text, |text| check_short(text, most))
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

/// `POST /api/workers/beat`: answered after the commit that records it.
///
/// # Errors
/// Bad fields; `node_unknown`, after which the agent registers again.
pub async fn beat(call: Call) -> Result<Reply, Failure> {
    let mut fields = call.fields()?;
    let node = fields.whole("node_id", &(1..=u64::MAX)).map(NodeId);
    let boot_id = fields.text("boot_id");
    let boot_id = fields.parse_as("boot_id", boot_id, |text| check_short(text, MAX_BOOT_ID));
    let agent = fields.text("agent");
    let agent = fields.parse_as("agent", agent, |text| check_short(text, MAX_AGENT));
    // What a worker says about its accounts is believed once beats are signed.
    fields.list("accounts");
    let beat = node.zip(boot_id).zip(agent);
    let beat = beat.map(|((node, boot_id), agent)| Beat {
        node,
        boot_id,
        agent,
    });
    let beat = fields.finish(Unknown::Tolerated, beat)?;
    if call.app.beats.record(beat).await? {
        return Reply::ok(&BeatReply {
            next_beat_s: NEXT_BEAT_S,
            accounts: Vec::new(),
            end: Vec::new(),
        });
    }
    let detail = "no node has this id; register again";
    Err(Failure::field(ProblemCode::NodeUnknown, "node_id", detail))
}

#[cfg(test)]
mod tests;
