use std::net::Ipv4Addr;
use std::path::PathBuf;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::*;
use crate::config::Address;

const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7));

/// The SSH encoding of a key: length and name of its type, then the key, here `byte` alone.
fn key(kind: &str, byte: u8) -> String {
    let mut bytes = u32::try_from(kind.len())
        .expect("short")
        .to_be_bytes()
        .to_vec();
    bytes.extend_from_slice(kind.as_bytes());
    bytes.push(byte);
    format!("{kind} {}", STANDARD.encode(bytes))
}

struct Keys(PathBuf);

impl Keys {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("orion-agentd-{name}-{}", std::process::id()));
        std::fs::create_dir(&path).expect("made");
        Self(path)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.0.join(name), text).expect("written");
    }

    fn settings(&self) -> AgentSettings {
        AgentSettings {
            hostname: Some("Worker1".to_owned()),
            host_keys: self.0.join("ssh_host_*_key.pub"),
            ..AgentSettings::default()
        }
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).expect("removed");
    }
}

#[test]
fn host_keys_are_sent_without_comments_and_only_if_they_are_keys() {
    let keys = Keys::new("keys");
    keys.write(
        "ssh_host_rsa_key.pub",
        &format!("{} root@worker1\n", key("ssh-rsa", 2)),
    );
    keys.write(
        "ssh_host_ed25519_key.pub",
        &format!("{}\n", key("ssh-ed25519", 1)),
    );
    keys.write("ssh_host_ed25519_key", "PRIVATE");
    keys.write("ssh_host_dsa_key.pub", "garbage");
    keys.write(
        "ssh_host_ecdsa_key.pub",
        &key("ssh-rsa", 3).replace("ssh-rsa", "ssh-ed25519"),
    );
    let identity = Identity::read(&keys.settings(), LOCAL).expect("good");
    assert_eq!(
        identity.host_keys,
        [key("ssh-ed25519", 1), key("ssh-rsa", 2)]
    );
    assert_eq!(identity.hostname, "worker1");
}

#[test]
fn without_host_keys_there_is_nothing_to_register() {
    let keys = Keys::new("none");
    let error = Identity::read(&keys.settings(), LOCAL).expect_err("no keys");
    assert!(error.to_string().contains("no SSH host keys"), "{error}");
}

#[test]
fn addresses_are_found_out_unless_they_are_told() {
    let keys = Keys::new("addresses");
    keys.write("ssh_host_ed25519_key.pub", &key("ssh-ed25519", 1));
    let mut settings = keys.settings();
    settings.ssh_port = 22221;
    let read = |settings: &AgentSettings| Identity::read(settings, LOCAL).expect("good");
    let found = read(&settings);
    assert_eq!(
        (found.ip.as_str(), found.ssh_port, found.contact),
        ("192.0.2.7", 22221, None)
    );
    settings.contact.port = Some(22);
    let contact = read(&settings).contact.expect("told");
    assert_eq!((contact.host.as_str(), contact.port), ("192.0.2.7", 22));
    settings.advertise = Address {
        host: Some("198.51.100.1".to_owned()),
        port: Some(2200),
    };
    settings.contact = Address {
        host: Some("host.docker.internal".to_owned()),
        port: None,
    };
    let told = read(&settings);
    assert_eq!((told.ip.as_str(), told.ssh_port), ("198.51.100.1", 2200));
    let contact = told.contact.expect("told");
    assert_eq!(
        (contact.host.as_str(), contact.port),
        ("host.docker.internal", 2200)
    );
}

#[test]
fn an_ipv4_address_is_sent_as_one_also_from_a_dual_stack_socket() {
    let keys = Keys::new("mapped");
    keys.write("ssh_host_ed25519_key.pub", &key("ssh-ed25519", 1));
    let mapped = "::ffff:192.0.2.7".parse().expect("an address");
    let identity = Identity::read(&keys.settings(), mapped).expect("good");
    assert_eq!(identity.ip, "192.0.2.7");
}

#[test]
fn the_systems_host_name_is_the_default() {
    let keys = Keys::new("hostname");
    keys.write("ssh_host_ed25519_key.pub", &key("ssh-ed25519", 1));
    let settings = AgentSettings {
        hostname: None,
        ..keys.settings()
    };
    let system = std::fs::read_to_string("/proc/sys/kernel/hostname").expect("readable");
    let identity = Identity::read(&settings, LOCAL).expect("good");
    assert_eq!(identity.hostname, system.trim().to_ascii_lowercase());
}

#[test]
fn every_change_that_matters_is_a_difference() {
    let keys = Keys::new("differs");
    keys.write("ssh_host_ed25519_key.pub", &key("ssh-ed25519", 1));
    let settings = keys.settings();
    let before = Identity::read(&settings, LOCAL).expect("good");
    let after = |change: &dyn Fn(&mut AgentSettings), local: IpAddr| {
        let mut settings = settings.clone();
        change(&mut settings);
        let now = Identity::read(&settings, local).expect("good");
        before.difference(&now)
    };
    assert_eq!(after(&|_| (), LOCAL), None);
    let elsewhere = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 8));
    assert_eq!(after(&|_| (), elsewhere), Some("the address changed"));
    let port = after(&|settings| settings.ssh_port = 23, LOCAL);
    assert_eq!(port, Some("the address changed"));
    let contact = after(&|settings| settings.contact.port = Some(23), LOCAL);
    assert_eq!(contact, Some("the contact address changed"));
    let name = after(
        &|settings| settings.hostname = Some("worker2".to_owned()),
        LOCAL,
    );
    assert_eq!(name, Some("the host name changed"));
    keys.write("ssh_host_ed25519_key.pub", &key("ssh-ed25519", 2));
    assert_eq!(after(&|_| (), LOCAL), Some("the SSH host keys changed"));
}
