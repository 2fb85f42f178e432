//! The inventory, `known_hosts` and `ansible.cfg` of one play, as text.
//!
//! Host names are ours (`node-42`); everything else comes from a [`CheckedTarget`] or from the checked settings.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use orion_core::{NodeId, Uid};
use serde::Serialize;

use super::PlaySettings;
use super::target::{CheckedTarget, Step, Target};
use crate::pool_keys::old_file;

/// The name of a node in inventories, events and `known_hosts`.
pub(super) fn host_name(node: NodeId) -> String {
    format!("node-{node}")
}

/// The node of an inventory name; nothing for a name that [`host_name`] does not make.
pub(super) fn node_of(name: &str) -> Option<NodeId> {
    let digits = name.strip_prefix("node-")?;
    let node = NodeId(digits.parse().ok()?);
    (host_name(node) == name).then_some(node)
}

#[derive(Serialize)]
struct Inventory<'a> {
    all: Group<'a>,
}

#[derive(Serialize)]
struct Group<'a> {
    hosts: BTreeMap<String, HostVars<'a>>,
    vars: GroupVars<'a>,
}

#[derive(Serialize)]
struct GroupVars<'a> {
    ansible_connection: &'static str,
    ansible_user: &'a str,
    ansible_python_interpreter: &'static str,
    orion_host_timeout_s: u64,
}

#[derive(Serialize)]
struct HostVars<'a> {
    ansible_host: &'a str,
    ansible_port: u16,
    ansible_ssh_common_args: String,
    orion_account: ModuleArguments<'a>,
}

/// What the playbooks pass to the module `orion_account`; which of its operations, each playbook says itself.
#[derive(Serialize)]
struct ModuleArguments<'a> {
    uid_base: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    uid: Option<Uid>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    password_hash: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    epoch: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ends_in_s: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    moved: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    keep_home_s: Option<f64>,
    limit_s: f64,
}

/// `inventory.json`; the later of two targets of one node wins.
pub(super) fn inventory(
    settings: &PlaySettings,
    targets: &[CheckedTarget],
) -> serde_json::Result<Vec<u8>> {
    let hosts = targets.iter().map(|checked| {
        let name = host_name(checked.target.node);
        let vars = HostVars {
            ansible_host: &checked.host,
            ansible_port: checked.target.port,
            ansible_ssh_common_args: format!("-o HostKeyAlias={name}"),
            orion_account: module_arguments(settings, &checked.target),
        };
        (name, vars)
    });
    serde_json::to_vec(&Inventory {
        all: Group {
            hosts: hosts.collect(),
            vars: GroupVars {
                ansible_connection: "ssh",
                ansible_user: &settings.user,
                ansible_python_interpreter: "/usr/bin/python3",
                orion_host_timeout_s: settings.host_timeout.as_secs(),
            },
        },
    })
}

fn module_arguments<'a>(settings: &PlaySettings, target: &'a Target) -> ModuleArguments<'a> {
    let mut arguments = ModuleArguments {
        uid_base: target.uid_base,
        uid: None,
        name: None,
        password_hash: None,
        epoch: None,
        ends_in_s: None,
        moved: None,
        keep_home_s: None,
        limit_s: settings.module_limit().as_secs_f64(),
    };
    match &target.step {
        Step::Create {
            uid,
            name,
            password_hash,
            epoch,
            ends_in,
            moved,
        } => {
            arguments.uid = Some(*uid);
            arguments.name = Some(name.as_str());
            arguments.password_hash = Some(password_hash);
            arguments.epoch = Some(*epoch);
            arguments.ends_in_s = Some(in_milliseconds(*ends_in));
            arguments.moved = Some(*moved);
        }
        Step::Delete {
            uid,
            name,
            epoch,
            keep_home,
        } => {
            let keep = if *keep_home {
                settings.keep_home
            } else {
                Duration::ZERO
            };
            arguments.keep_home_s = Some(keep.as_secs_f64());
            arguments.uid = Some(*uid);
            arguments.name = Some(name.as_str());
            arguments.epoch = Some(*epoch);
        }
        Step::Inspect => {}
    }
    arguments
}

/// Seconds, rounded up to milliseconds: an upper bound stays one, and there is no exponent. Ansible tries JSON before
/// YAML; as YAML, `1e-6` would be a text.
fn in_milliseconds(span: Duration) -> f64 {
    let up = span.as_nanos().div_ceil(1_000_000);
    Duration::from_millis(u64::try_from(up).unwrap_or(u64::MAX)).as_secs_f64()
}

/// `known_hosts`: one line for each pinned key, under the node's alias.
pub(super) fn known_hosts(targets: &[CheckedTarget]) -> String {
    targets
        .iter()
        .flat_map(|checked| {
            let name = host_name(checked.target.node);
            checked
                .host_keys
                .iter()
                .map(move |key| format!("{name} {key}\n"))
        })
        .collect()
}

/// What Ansible waits for sudo's answer. Its setting is also the default of ssh's ConnectTimeout, which has an option of
/// its own here.
const BECOME_TIMEOUT_S: u32 = 15;

/// `ansible.cfg` of a play in `directory`. Paths hold no character that means something here (checked with the
/// settings).
///
/// No ControlMaster: a play has one task, which is one ssh process per host with pipelining, so there is nothing to
/// share, and masters outlive their play.
///
/// Both keys are named whether there is an old one or not, the newest first: ssh passes over a file that is not there,
/// and a rotation may begin and end while this process lives.
pub(super) fn ansible_cfg(settings: &PlaySettings, directory: &Path, hosts: usize) -> String {
    let playbooks = settings.playbooks_dir.display();
    let directory = directory.display();
    let key = settings.pool_key_file.display();
    let old_key = old_file(&settings.pool_key_file);
    let old_key = old_key.display();
    let connect = settings.connect_timeout.as_secs();
    let options = [
        "StrictHostKeyChecking=yes",
        "GlobalKnownHostsFile=/dev/null",
        "UpdateHostKeys=no",
        "CheckHostIP=no",
        "BatchMode=yes",
        "PreferredAuthentications=publickey",
        "IdentitiesOnly=yes",
        "ForwardAgent=no",
        "ClearAllForwardings=yes",
        "ServerAliveInterval=5",
        "ServerAliveCountMax=3",
        "LogLevel=ERROR",
    ];
    let options = options.join(" -o ");
    format!(
        "[defaults]
forks = {hosts}
timeout = {BECOME_TIMEOUT_S}
library = {playbooks}/library
module_utils = {playbooks}/module_utils
callback_plugins = {playbooks}/callback_plugins
callbacks_enabled = orion_events
stdout_callback = default
gathering = explicit
host_key_checking = True
inject_facts_as_vars = False
retry_files_enabled = False
localhost_warning = False
deprecation_warnings = False
system_warnings = False
nocolor = True
nocows = True
local_tmp = {directory}/tmp
remote_tmp = /tmp/.ansible-orion

[inventory]
enable_plugins = yaml
unparsed_is_failed = True

[ssh_connection]
pipelining = True
retries = 0
ssh_args = -F none -o ControlMaster=no -o ControlPath=none -o ConnectTimeout={connect} \
         -o IdentityFile={key} -o IdentityFile={old_key} \
         -o UserKnownHostsFile={directory}/known_hosts -o {options}
"
    )
}

#[cfg(test)]
mod arbitrary;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ansible::testing::{HASH, addresses, create, settings, target};
    use orion_core::UserName;
    use serde_json::Value;

    fn json(target: Target) -> Value {
        let checked = [target.checked(&addresses()).unwrap()];
        serde_json::from_slice(&inventory(&settings(), &checked).unwrap()).unwrap()
    }

    #[test]
    fn the_inventory_holds_our_host_names_and_the_modules_arguments() {
        let node = Target {
            step: create(HASH),
            ..target(42)
        };
        let inventory = json(node);
        let hosts = inventory["all"]["hosts"].as_object().unwrap();
        assert_eq!(hosts.keys().collect::<Vec<_>>(), ["node-42"]);
        let host = &hosts["node-42"];
        assert_eq!(host["ansible_host"], "192.0.2.1");
        assert_eq!(host["ansible_port"], 22);
        assert_eq!(host["ansible_ssh_common_args"], "-o HostKeyAlias=node-42");
        let arguments = &host["orion_account"];
        assert_eq!(arguments["uid"], 1_000_002);
        assert_eq!(arguments["name"], "alice");
        assert_eq!(arguments["password_hash"], HASH);
        assert_eq!(arguments["epoch"], 3);
        assert_eq!(arguments["ends_in_s"], 7200.5);
        assert_eq!(arguments["moved"], false);
        assert_eq!(arguments["limit_s"], 15.0);
        assert_eq!(inventory["all"]["vars"]["orion_host_timeout_s"], 20);
    }

    #[test]
    fn an_inspection_carries_no_account() {
        let inventory = json(target(7));
        let arguments = inventory["all"]["hosts"]["node-7"]["orion_account"]
            .as_object()
            .unwrap();
        assert_eq!(
            arguments.keys().collect::<Vec<_>>(),
            ["limit_s", "uid_base"]
        );
    }

    #[test]
    fn only_the_home_of_a_rental_that_was_moved_off_is_kept() {
        let keep_home_s = |keep_home: bool| {
            let step = Step::Delete {
                uid: Uid(1_000_002),
                name: UserName::stored("alice").unwrap(),
                epoch: 4,
                keep_home,
            };
            let inventory = json(Target { step, ..target(7) });
            inventory["all"]["hosts"]["node-7"]["orion_account"]["keep_home_s"].clone()
        };
        assert_eq!(keep_home_s(true), 86_400.0);
        assert_eq!(keep_home_s(false), 0.0);
    }

    #[test]
    fn known_hosts_has_one_line_for_each_pinned_key_and_no_more() {
        let node = Target {
            host_keys: vec![
                "ssh-ed25519 AAAA root@worker".to_owned(),
                "ecdsa-sha2-nistp256 BBBB=".to_owned(),
                "@cert-authority * ssh-ed25519 CCCC".to_owned(),
                "ssh-ed25519 DDDD\nnode-1 ssh-ed25519 EEEE".to_owned(),
            ],
            ..target(42)
        };
        let text = known_hosts(&[node.checked(&addresses()).unwrap()]);
        assert_eq!(
            text,
            "node-42 ssh-ed25519 AAAA\nnode-42 ecdsa-sha2-nistp256 BBBB=\nnode-42 ssh-ed25519 DDDD\n"
        );
    }

    #[test]
    fn only_names_that_are_ours_lead_back_to_a_node() {
        assert_eq!(node_of("node-42"), Some(NodeId(42)));
        for bad in [
            "node-",
            "node-042",
            "node--1",
            "node-4 2",
            "Node-42",
            "localhost",
            "node-99999999999999999999",
        ] {
            assert_eq!(node_of(bad), None, "{bad}");
        }
    }
}
