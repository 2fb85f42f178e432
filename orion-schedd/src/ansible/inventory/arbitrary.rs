//! Whatever strings arrive: the real `ansible-inventory` reads exactly our hosts, with the variables we meant.
//!
//! A failing case names the hosts that differ, and its seed is written to `proptest-regressions/`, from where the next run
//! begins with it.
//! `PROPTEST_CASES=200` makes a longer run; `ORION_ANSIBLE_INVENTORY` names another ansible-inventory than Debian's.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use orion_core::{AddressGuard, AddressRules, HostName, NodeId, Uid, UserName};
use orion_daemon::is_own_address;
use orion_testkit::Scratch;
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Value, json};

use super::{ansible_cfg, inventory, known_hosts};
use crate::ansible::testing::{HASH, settings};
use crate::ansible::{CheckedTarget, PlaySettings, Step, Target};

/// What means something to YAML, Jinja, Ansible, ssh or a shell.
const FRAGMENTS: &[&str] = &[
    "{{ lookup('pipe', 'id') }}",
    "{% raw %}",
    "{# #}",
    "!unsafe ",
    "!vault |",
    "$ANSIBLE_VAULT;1.1;AES256\n6162",
    "\n",
    "\r",
    "\0",
    "\t",
    "\"",
    "'",
    "\\",
    "\u{85}",
    "\u{2028}",
    "\u{feff}",
    "é",
    "𝔘",
    ";",
    "#",
    " #",
    ": ",
    "- ",
    "? ",
    "&a ",
    "*a",
    "<<: ",
    "%YAML 1.1\n---\n",
    "...\n",
    "---\n",
    "[1:3]",
    "node-[1:3]",
    "@",
    "`id`",
    "$(id)",
    "| ",
    ">",
    "-",
    "-oProxyCommand=id",
    "~",
    "null",
    "true",
    "0x10",
    "1e3",
    "1_000",
    "12:30:45",
    "2001-01-01",
    "0.0.0.0",
    "127.0.0.1",
    ",",
    " ansible_connection=local",
    "__ansible_unsafe",
    "_meta",
    "all",
    "localhost",
    "../",
    "/",
];

/// Names that look like something else to YAML.
const NAMES: &[&str] = &[
    "localhost",
    "host.docker.internal",
    "null",
    "true",
    "no",
    "on",
    "1e3",
    "0x10",
    "017",
    "1.5",
    "123",
    "2001-01-01",
    "all",
    "node-1",
];

#[derive(Debug, Clone)]
struct Raw {
    host: String,
    port: u16,
    host_keys: Vec<String>,
    uid_base: u32,
    step: RawStep,
}

#[derive(Debug, Clone)]
enum RawStep {
    Create(RawAccount, String, Duration, bool),
    Delete(RawAccount, bool),
    Inspect,
}

#[derive(Debug, Clone)]
struct RawAccount {
    uid: u32,
    name: String,
    epoch: u64,
}

fn hostile() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>(),
        vec(select(FRAGMENTS), 1..4).prop_map(|fragments| fragments.concat()),
    ]
}

/// Something good, something hostile, or both in one.
fn text(good: impl Strategy<Value = String> + Clone + 'static) -> impl Strategy<Value = String> {
    prop_oneof![
        6 => good.clone(),
        1 => hostile(),
        1 => (good.clone(), hostile()).prop_map(|(good, bad)| good + &bad),
        1 => (hostile(), good).prop_map(|(bad, good)| bad + &good),
    ]
}

fn host() -> impl Strategy<Value = String> {
    let v4 = any::<u32>().prop_map(|bits| std::net::Ipv4Addr::from(bits).to_string());
    let v6 = any::<u128>().prop_map(|bits| std::net::Ipv6Addr::from(bits).to_string());
    let name = select(NAMES).prop_map(str::to_owned);
    text(prop_oneof![v4, v6, name].boxed())
}

fn account() -> impl Strategy<Value = RawAccount> {
    let magic = select(&["null", "yes", "no", "on", "true", "nan", "e1", "alice"][..]);
    let name = prop_oneof!["[a-z][a-z0-9_-]{0,30}", magic.prop_map(str::to_owned)];
    (any::<u32>(), text(name.boxed()), any::<u64>()).prop_map(|(uid, name, epoch)| RawAccount {
        uid,
        name,
        epoch,
    })
}

fn step() -> impl Strategy<Value = RawStep> {
    let hash = prop_oneof![Just(HASH.to_owned()), r"\$6\$[a-zA-Z0-9./=$]{0,100}"];
    // Ten years, and a few nanoseconds.
    let ends_in = prop_oneof![0..300_000_000_000_000_000_u64, 0..1_000_000_u64];
    prop_oneof![
        2 => (account(), text(hash.boxed()), ends_in.prop_map(Duration::from_nanos), any::<bool>())
            .prop_map(|(account, hash, ends_in, moved)| RawStep::Create(account, hash, ends_in, moved)),
        1 => (account(), any::<bool>()).prop_map(|(account, keep_home)| RawStep::Delete(account, keep_home)),
        1 => Just(RawStep::Inspect),
    ]
}

fn raw() -> impl Strategy<Value = Raw> {
    let key = prop_oneof![
        "ssh-ed25519 [A-Za-z0-9+/]{4,80}={0,2}",
        "(ssh-rsa|ecdsa-sha2-nistp256) [A-Za-z0-9+/]{4}"
    ];
    (
        host(),
        any::<u16>(),
        vec(text(key.boxed()), 1..4),
        any::<u32>(),
        step(),
    )
        .prop_map(|(host, port, host_keys, uid_base, step)| Raw {
            host,
            port,
            host_keys,
            uid_base,
            step,
        })
}

fn named(raw: &RawAccount) -> Option<(Uid, UserName, u64)> {
    Some((Uid(raw.uid), UserName::stored(&raw.name).ok()?, raw.epoch))
}

impl Raw {
    /// Nothing when the account's name could not have come out of the database.
    fn target(&self, node: NodeId) -> Option<Target> {
        let step = match &self.step {
            RawStep::Inspect => Step::Inspect,
            RawStep::Delete(account, keep_home) => {
                let (uid, name, epoch) = named(account)?;
                Step::Delete {
                    uid,
                    name,
                    epoch,
                    keep_home: *keep_home,
                }
            }
            RawStep::Create(account, hash, ends_in, moved) => {
                let (uid, name, epoch) = named(account)?;
                let (password_hash, ends_in) = (hash.clone(), *ends_in);
                Step::Create {
                    uid,
                    name,
                    password_hash,
                    epoch,
                    ends_in,
                    moved: *moved,
                }
            }
        };
        let (host, host_keys) = (self.host.clone(), self.host_keys.clone());
        Some(Target {
            node,
            host,
            port: self.port,
            host_keys,
            uid_base: self.uid_base,
            step,
        })
    }

    /// A host's variables, said once more in other words than the code's.
    fn meant(&self, node: NodeId, settings: &PlaySettings) -> Value {
        let mut module = json!({"uid_base": self.uid_base, "limit_s": 15.0});
        if let RawStep::Create(account, ..) | RawStep::Delete(account, _) = &self.step {
            module["uid"] = json!(account.uid);
            module["name"] = json!(account.name);
            module["epoch"] = json!(account.epoch);
        }
        if let RawStep::Delete(_, keep_home) = &self.step {
            module["keep_home_s"] = json!(if *keep_home { 86_400.0 } else { 0.0 });
        }
        if let RawStep::Create(_, hash, ends_in, moved) = &self.step {
            module["moved"] = json!(moved);
            module["password_hash"] = json!(hash);
            let rounded_up = u64::try_from(ends_in.as_nanos().div_ceil(1_000_000)).unwrap();
            module["ends_in_s"] = json!(Duration::from_millis(rounded_up).as_secs_f64());
        }
        let host = match self.host.parse::<std::net::IpAddr>() {
            Ok(address) => address.to_string(),
            Err(_) => self.host.to_ascii_lowercase(),
        };
        json!({
            "ansible_host": host, "ansible_port": self.port,
            "ansible_ssh_common_args": format!("-o HostKeyAlias=node-{node}"),
            "ansible_connection": "ssh", "ansible_user": settings.user,
            "ansible_python_interpreter": "/usr/bin/python3", "orion_host_timeout_s": 20,
            "orion_account": module,
            // Ansible's own, where facts are not injected.
            "ansible_local": {},
        })
    }
}

fn everywhere() -> AddressGuard {
    let rules = AddressRules {
        networks: vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()],
        names: NAMES
            .iter()
            .map(|name| HostName::parse(name).unwrap())
            .collect(),
    };
    AddressGuard::new(rules, Vec::new(), is_own_address)
}

/// What the real program makes of the files that a play would have.
fn read_by_ansible(settings: &PlaySettings, targets: &[CheckedTarget]) -> Value {
    let scratch = Scratch::new("inv");
    let file = scratch.write_secret("inventory.json", inventory(settings, targets).unwrap());
    let config = scratch.write_secret(
        "ansible.cfg",
        ansible_cfg(settings, scratch.path(), targets.len()),
    );
    scratch.write_secret("tmp/.keep", "");
    let program = std::env::var("ORION_ANSIBLE_INVENTORY");
    let output = Command::new(program.as_deref().unwrap_or("/usr/bin/ansible-inventory"))
        .arg("-i")
        .arg(file)
        .arg("--list")
        .env_clear()
        .envs([
            ("PATH", "/usr/local/bin:/usr/bin:/bin"),
            ("LANG", "C.UTF-8"),
        ])
        .env("HOME", scratch.path())
        .env("ANSIBLE_HOME", scratch.path())
        .env("ANSIBLE_CONFIG", config)
        .current_dir(scratch.path())
        .output()
        .expect("ansible-inventory (package ansible-core)");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.trim().is_empty(), "{said}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// Our alias and one plain key on each line, for our hosts only.
fn known_hosts_are_ours(targets: &[CheckedTarget]) {
    let ours: Vec<String> = targets
        .iter()
        .map(|checked| format!("node-{}", checked.target.node))
        .collect();
    for line in known_hosts(targets).lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let plain = words.iter().skip(1).all(|word| {
            word.bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-@.+/=".contains(&byte))
        });
        assert!(
            words.len() == 3 && plain && ours.iter().any(|name| name == words[0]),
            "{line:?}"
        );
    }
}

/// Every list of hosts, wherever it is.
fn listed_hosts(groups: &Value) -> Vec<String> {
    let groups = groups.as_object().unwrap().values();
    let lists = groups.filter_map(|group| group["hosts"].as_array());
    let mut hosts: Vec<String> = lists
        .flatten()
        .map(|host| host.as_str().unwrap().to_owned())
        .collect();
    hosts.sort_unstable();
    hosts
}

fn config() -> ProptestConfig {
    let given = std::env::var_os("PROPTEST_CASES").is_some();
    let default = ProptestConfig::default();
    let cases = if given { default.cases } else { 12 };
    // Each starts a process, and a failure says by itself which host it is about.
    ProptestConfig {
        cases,
        max_shrink_iters: 0,
        ..default
    }
}

/// Hosts by the number of their node; does not print itself, since there are hundreds.
#[derive(Clone)]
struct Batch(BTreeMap<u64, Raw>);

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} hosts", self.0.len())
    }
}

fn batch() -> impl Strategy<Value = Batch> {
    btree_map(any::<u64>(), raw(), 100..400).prop_map(Batch)
}

fn differing(
    batch: &Batch,
    meant: &BTreeMap<String, Value>,
    read: &BTreeMap<String, Value>,
) -> Vec<String> {
    let differs = |(name, meant): &(&String, &Value)| read.get(*name) != Some(meant);
    let say = |(name, meant): (&String, &Value)| {
        let raw = batch
            .0
            .iter()
            .find(|(node, _)| format!("node-{node}") == *name);
        format!(
            "{raw:?}\n  meant {meant}\n  read  {:?}",
            read.get(name).map(Value::to_string)
        )
    };
    meant.iter().filter(differs).map(say).collect()
}

/// Nothing in any text that a template, a shell or another parser could make more of: plays resolve `{{ }}` in variables,
/// which reading an inventory does not.
fn is_plain(value: &Value) -> bool {
    match value {
        Value::String(text) => text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b" ./:=$_-".contains(&byte)),
        Value::Array(values) => values.iter().all(is_plain),
        Value::Object(fields) => fields.values().all(is_plain),
        Value::Null | Value::Bool(_) | Value::Number(_) => true,
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn ansible_reads_exactly_our_hosts_with_equal_variables(batch in batch()) {
        let settings = PlaySettings {
            playbooks_dir: Path::new(env!("CARGO_MANIFEST_DIR")).join("../playbooks"),
            addresses: everywhere(),
            ..settings()
        };
        let mut meant = BTreeMap::new();
        let mut targets = Vec::new();
        for (node, raw) in &batch.0 {
            let node = NodeId(*node);
            let target = raw.target(node);
            if let Some(Ok(checked)) = target.map(|target| target.checked(&settings.addresses)) {
                targets.push(checked);
                meant.insert(format!("node-{node}"), raw.meant(node, &settings));
            }
        }
        // Else the checks refuse everything, and nothing is shown.
        prop_assert!(targets.len() * 10 > batch.0.len(), "{} targets", targets.len());
        known_hosts_are_ours(&targets);
        let read = read_by_ansible(&settings, &targets);
        let names: Vec<String> = meant.keys().cloned().collect();
        prop_assert_eq!(listed_hosts(&read), names);
        let variables = read["_meta"]["hostvars"].clone();
        let variables: BTreeMap<String, Value> = serde_json::from_value(variables).unwrap();
        let differing = differing(&batch, &meant, &variables);
        prop_assert!(differing.is_empty(), "{}", differing.join("\n"));
        prop_assert_eq!(variables.len(), meant.len());
        let templates = variables.values().find(|value| !is_plain(value));
        prop_assert!(templates.is_none(), "{:?}", templates);
    }
}
