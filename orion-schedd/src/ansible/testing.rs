//! For this module's tests: settings and a target with nothing special about them.

use std::time::Duration;

use orion_core::{AddressGuard, AddressRules, HostName, NodeId, Uid, UserName};
use orion_daemon::is_own_address;

use super::{PlaySettings, Step, Target};

pub(super) fn settings() -> PlaySettings {
    PlaySettings {
        playbook_command: "/usr/bin/ansible-playbook".into(),
        playbooks_dir: "/usr/share/orion/playbooks".into(),
        state_dir: "/var/lib/orion-schedd".into(),
        user: "orion-node".to_owned(),
        pool_key_file: "/etc/orion/schedd/pool_key".into(),
        addresses: addresses(),
        host_timeout: Duration::from_secs(20),
        connect_timeout: Duration::from_secs(5),
        keep_home: Duration::from_secs(24 * 3600),
    }
}

/// The networks for documentation, and one name.
pub(super) fn addresses() -> AddressGuard {
    let rules = AddressRules {
        networks: vec![
            "192.0.2.0/24".parse().unwrap(),
            "2001:db8::/32".parse().unwrap(),
        ],
        names: vec![HostName::parse("host.docker.internal").unwrap()],
    };
    AddressGuard::new(rules, Vec::new(), is_own_address)
}

pub(super) fn target(node: u64) -> Target {
    Target {
        node: NodeId(node),
        host: "192.0.2.1".to_owned(),
        port: 22,
        host_keys: vec!["ssh-ed25519 AAAAC3Nz".to_owned()],
        uid_base: 1_000_000,
        step: Step::Inspect,
    }
}

pub(super) const HASH: &str = "$6$rounds=5000$saltsalt$./abcXYZ019";

pub(super) fn create(password_hash: &str) -> Step {
    Step::Create {
        uid: Uid(1_000_002),
        name: UserName::stored("alice").unwrap(),
        password_hash: password_hash.to_owned(),
        epoch: 3,
        ends_in: Duration::from_millis(7_200_500),
        moved: false,
    }
}
