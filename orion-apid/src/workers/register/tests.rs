use super::*;
use crate::workers::host_key::tests::key;
use orion_core::AddressRules;
use serde_json::{Value, json};

fn read(body: &Value) -> Result<RegistrationForm, Failure> {
    let guard = AddressGuard::new(AddressRules::default(), Vec::new(), |_| false);
    let fields = Fields::parse(body.to_string().as_bytes()).unwrap();
    registration(fields, &guard, false)
}

fn bad_fields(body: &Value) -> Vec<String> {
    read(body)
        .unwrap_err()
        .errors
        .into_iter()
        .map(|error| error.field)
        .collect()
}

fn good() -> Value {
    json!({"hostname": "Worker1", "ip": "192.168.0.10", "ssh_port": 22221})
}

fn with(name: &str, value: Value) -> Value {
    let mut body = good();
    body[name] = value;
    body
}

#[test]
fn the_contract_s_three_fields_are_enough_and_the_contact_is_the_client_address() {
    let form = read(&good()).unwrap();
    assert_eq!(form.hostname.as_str(), "worker1");
    assert_eq!(
        (form.client.host.as_str(), form.client.port),
        ("192.168.0.10", 22221)
    );
    assert_eq!(form.contact, form.client);
    assert!(form.host_keys.is_empty() && form.agent.is_none());
}

#[test]
fn a_worker_may_tell_its_contact_its_keys_and_what_we_do_not_know_yet() {
    let keys = json!([
        key("ssh-ed25519", "ssh-ed25519", 1),
        key("ssh-rsa", "ssh-rsa", 2)
    ]);
    let mut body = with("host_keys", keys);
    body["contact"] = json!({"host": "host.docker.internal", "port": 2222, "zone": "b"});
    body["agent"] = json!("0.2.0");
    body["boot_id"] = json!("6c3b…");
    body["newer"] = json!({"field": [1]});
    let form = read(&body).unwrap();
    assert_eq!(
        (form.contact.host.as_str(), form.contact.port),
        ("host.docker.internal", 2222)
    );
    assert_eq!(
        (form.host_keys.len(), form.agent.as_deref()),
        (2, Some("0.2.0"))
    );
}

#[test]
fn every_bad_field_of_a_registration_is_named() {
    let wrong = [
        ("hostname", json!("a b")),
        ("hostname", json!(7)),
        ("hostname", Value::Null),
        ("ip", json!("localhost")),
        ("ip", json!("169.254.169.254")),
        ("ip", json!(1)),
        ("ssh_port", json!(0)),
        ("ssh_port", json!(65_536)),
        ("ssh_port", json!("22")),
        ("contact", json!("x")),
        ("host_keys", json!("x")),
        ("host_keys", json!(vec!["x"; 17])),
        ("agent", json!("x".repeat(33))),
        ("boot_id", json!("a\nb")),
    ];
    for (field, value) in wrong {
        assert_eq!(bad_fields(&with(field, value.clone())), [field], "{value}");
    }
    assert_eq!(
        bad_fields(&with("host_keys", json!(["x"]))),
        ["host_keys.0"]
    );
    let contact = json!({"host": "::", "port": 0});
    assert_eq!(
        bad_fields(&with("contact", contact)),
        ["contact.host", "contact.port"]
    );
    assert_eq!(bad_fields(&json!({})), ["hostname", "ip", "ssh_port"]);
}
