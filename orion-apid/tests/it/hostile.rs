//! Registrations and signatures of a hostile worker, or of one who sits on the wire: nothing is written.

use crate::support::agent::{Agent, BEAT, REGISTER, Sealed, key};
use crate::support::{Check, Plane, assert_problem, fields_of};
use crate::trust::{TOKEN_MODE, joined, rows, token};
use serde_json::{Value, json};

/// What an attacker does to a good request.
fn altered(good: &Sealed) -> Vec<(&'static str, Sealed)> {
    let with = |name: &str, value: &str| {
        let mut sealed = good.clone();
        let name = http::HeaderName::from_bytes(name.as_bytes()).unwrap();
        sealed.headers.insert(name, value.parse().unwrap());
        sealed
    };
    let body = |text: &str| Sealed {
        body: text.to_owned().into(),
        ..good.clone()
    };
    let counter: u64 = good.headers["orion-counter"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    let input = good.headers["signature-input"].to_str().unwrap();
    let text = String::from_utf8(good.body.to_vec()).unwrap();
    let mut unsigned = good.clone();
    unsigned.headers.remove("signature");
    vec![
        (
            "another node",
            body(&text.replace("\"node_id\":1", "\"node_id\":2")),
        ),
        ("a blank more", body(&format!("{text} "))),
        (
            "a higher counter",
            with("orion-counter", &(counter + 1).to_string()),
        ),
        ("no counter", with("orion-counter", "")),
        (
            "another path",
            Sealed {
                path: REGISTER,
                ..good.clone()
            },
        ),
        ("another digest", with("content-digest", "sha-256=:AAAA:")),
        (
            "less covered",
            with("signature-input", &input.replace("\"@path\" ", "")),
        ),
        (
            "another key",
            with(
                "signature-input",
                &input.replace(&key(1).public().to_string(), &key(2).public().to_string()),
            ),
        ),
        ("garbage", with("signature", "agent=:AAAA:")),
        ("half of it", unsigned),
    ]
}

#[tokio::test]
async fn an_altered_replayed_or_reordered_request_changes_nothing() {
    let (plane, _, mut agent, node) = joined().await;
    let beat = json!({"node_id": node, "boot_id": "b", "agent": "0.1.0"});
    let good = agent.seal(BEAT, &beat).await;
    let earlier = agent.seal(BEAT, &beat).await;
    let later = agent.seal(BEAT, &beat).await;
    let before = rows(&plane);
    for (what, sealed) in altered(&good) {
        let answer = agent.send(&sealed).await;
        assert_eq!(answer.status, 401, "{what}: {answer}");
        assert_eq!(rows(&plane), before, "{what}");
    }
    agent.send(&later).await.is(200);
    let after = rows(&plane);
    for (what, sealed) in [
        ("replayed", &later),
        ("reordered", &earlier),
        ("older", &good),
    ] {
        let problem = assert_problem(&agent.send(sealed).await, 401, "counter_used");
        assert_eq!(problem["counter"], json!(agent.counter), "{what}");
        assert_eq!(rows(&plane), after, "{what}");
    }
    let mut registration = agent.registration();
    registration["ip"] = json!("10.0.0.9");
    let old = agent.seal(REGISTER, &registration).await;
    agent.beat(&node).await.is(200);
    let after = rows(&plane);
    assert_problem(&agent.send(&old).await, 401, "counter_used");
    assert_eq!(rows(&plane), after);
}

/// The headers of `good` with one signature of `other`'s.
fn spliced(good: &Sealed, other: &Sealed, label: &str) -> Sealed {
    let mut sealed = good.clone();
    for header in ["signature", "signature-input"] {
        let is =
            |value: &http::HeaderValue| value.to_str().unwrap().starts_with(&format!("{label}="));
        let mut values: Vec<_> = good
            .headers
            .get_all(header)
            .iter()
            .filter(|value| !is(value))
            .cloned()
            .collect();
        values.extend(
            other
                .headers
                .get_all(header)
                .iter()
                .filter(|value| is(value))
                .cloned(),
        );
        sealed.headers.remove(header);
        for value in values {
            sealed.headers.append(header, value);
        }
    }
    sealed
}

#[tokio::test]
async fn a_signature_can_not_be_spliced_into_another_request() {
    let plane = Plane::start_with(TOKEN_MODE).await;
    let admin = plane.admin("chief").await;
    let line = token(&admin, &json!({"uses": 9})).await;
    let mut victim = Agent::with_line(&plane.agents, 1, &line);
    let body = victim.registration();
    // A thief who saw the registration has the token's signature, and keys of his own.
    let good = victim.seal(REGISTER, &body).await;
    let mut thief = Agent {
        key: key(66),
        next_key: Some(key(67)),
        counter: 0,
        ..victim.clone()
    };
    let theirs = thief.seal(REGISTER, &body).await;
    let before = rows(&plane);
    for (what, sealed) in [
        ("the token with his key", spliced(&good, &theirs, "agent")),
        ("his next key", spliced(&good, &theirs, "next")),
    ] {
        let mut with_list = sealed.clone();
        with_list
            .headers
            .insert("orion-keys", theirs.headers["orion-keys"].clone());
        for sealed in [sealed, with_list] {
            let answer = victim.send(&sealed).await;
            assert_eq!(answer.code(), "signature_invalid", "{what}: {answer}");
            assert_eq!(rows(&plane), before, "{what}");
        }
    }
}

/// No form of a name.
const NAMES: [&str; 10] = [
    "{{ 7 * 7 }}",
    "a\nb",
    "a;reboot",
    "-oProxyCommand=x",
    "a\0b",
    "",
    "a b",
    "$(id)",
    "élan",
    "../x",
];

/// Loopback, link-local, multicast, unspecified, broadcast, v4 in disguise, elsewhere, and no addresses: in each spelling.
const ADDRESSES: [&str; 37] = [
    "127.0.0.1",
    "127.1",
    "2130706433",
    "0x7f.0.0.1",
    "0177.0.0.1",
    "::1",
    "0:0:0:0:0:0:0:1",
    "::ffff:127.0.0.1",
    "::ffff:7f00:1",
    "[::1]",
    "::127.0.0.1",
    "169.254.169.254",
    "::ffff:169.254.169.254",
    "fe80::1",
    "fe80::1%lo",
    "224.0.0.1",
    "ff02::1",
    "0.0.0.0",
    "::",
    "255.255.255.255",
    "10.255.255.255",
    "10.0.0.0",
    "::ffff:10.0.0.5",
    "64:ff9b::10.0.0.5",
    "2002:0a00:0005::1",
    "8.8.8.8",
    "2001:db8::1",
    "localhost",
    "control",
    "orion.example",
    "10.0.0.5 ",
    "10.0.0.5\n",
    "10.0.0.5;id",
    "-oProxyCommand=x",
    "{{ 7 * 7 }}",
    "10.0.0.5\0",
    "",
];

const HOST_KEYS: [&str; 4] = [
    "ssh-ed25519",
    "ssh-ed25519 AAAA\n* ssh-ed25519 AAAA",
    "@cert-authority * ssh-ed25519 AAAA",
    "{{ x }} y",
];

fn hostile() -> Vec<(&'static str, Value)> {
    let long = "a".repeat(300);
    let mut table: Vec<(&str, Value)> = vec![
        ("hostname", json!(long)),
        ("ip", json!(long)),
        ("host_keys", json!([])),
        ("agent", json!("a\u{1b}[2J")),
        ("boot_id", json!(long)),
        ("ssh_port", json!(0)),
    ];
    table.extend(NAMES.iter().map(|name| ("hostname", json!(name))));
    table.extend(ADDRESSES.iter().map(|ip| ("ip", json!(ip))));
    table.extend(ADDRESSES.iter().map(|ip| ("contact.host", json!(ip))));
    table.extend(HOST_KEYS.iter().map(|key| ("host_keys.0", json!(key))));
    table
}

#[tokio::test]
async fn hostile_texts_and_addresses_are_refused_field_by_field_and_change_nothing() {
    let plane = Plane::start_with(TOKEN_MODE).await;
    let admin = plane.admin("chief").await;
    let line = token(&admin, &json!({"uses": 100})).await;
    let mut agent = Agent::with_line(&plane.agents, 1, &line);
    let before = rows(&plane);
    for (field, value) in hostile() {
        let mut body = agent.registration();
        match field {
            "contact.host" => body["contact"] = json!({"host": value, "port": 22}),
            "host_keys.0" => body["host_keys"] = json!([value]),
            field => body[field] = value.clone(),
        }
        let answer = agent.ask(REGISTER, &body).await;
        assert_eq!(answer.status, 422, "{field} {value}: {answer}");
        assert_eq!(fields_of(&answer.json()), [field], "{value}");
    }
    assert_eq!(rows(&plane), before);
    agent.register().await.is(201);
}
