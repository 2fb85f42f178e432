use std::ffi::OsString;
use std::path::Path;

use orion_daemon::{ConfigArgs, ConfigError, Loaded, load_from};

use super::*;

fn load(environment: &[(&str, &str)]) -> Result<Loaded<AgentSettings>, ConfigError> {
    load_with(&ConfigArgs::default(), environment)
}

fn load_with(
    args: &ConfigArgs,
    environment: &[(&str, &str)],
) -> Result<Loaded<AgentSettings>, ConfigError> {
    let environment: Vec<(OsString, OsString)> = environment
        .iter()
        .map(|(name, value)| ((*name).into(), (*value).into()))
        .collect();
    load_from(Path::new("/nonexistent"), args, environment)
}

fn keys(error: &ConfigError) -> Vec<&str> {
    error
        .faults()
        .iter()
        .map(|fault| fault.key.as_str())
        .collect()
}

#[test]
fn the_endpoint_and_the_port_come_from_the_contracts_variables_too() {
    let environment = [
        ("API_ENDPOINT", "http://orion.example"),
        ("MY_HOST_PORT", "22221"),
    ];
    let settings = load(&environment).expect("good").settings;
    assert_eq!(settings.ssh_port, 22221);
    assert_eq!(settings.endpoint(), Endpoint::parse("http://orion.example"));
}

#[test]
fn an_agent_that_knows_no_control_plane_is_misconfigured() {
    let error = load(&[]).expect_err("no endpoint");
    assert_eq!(keys(&error), ["api_endpoint"], "{error}");
}

#[test]
fn every_bad_value_is_named_at_once() {
    let environment = [
        ("API_ENDPOINT", "https://orion.example"),
        ("MY_HOST_PORT", "0"),
        ("ORION_AGENTD__ADVERTISE__HOST", "a b"),
        ("ORION_AGENTD__CONTACT__PORT", "70000"),
        ("ORION_AGENTD__HOSTNAME", "-x"),
        ("ORION_AGENTD__HOST_KEYS", "/etc/*/*.pub"),
        ("ORION_AGENTD__OPS__LISTEN", "0.0.0.0:9303"),
        ("ORION_AGENTD__STATE_DIR", "var"),
    ];
    let error = load(&environment).expect_err("all bad");
    let mut keys = keys(&error);
    keys.sort_unstable();
    let expected = [
        "advertise.host",
        "api_endpoint",
        "contact.port",
        "host_keys",
        "hostname",
        "ops.listen",
        "ssh_port",
        "state_dir",
    ];
    assert_eq!(keys, expected, "{error}");
}

/// The shipped file with every `#key = value` line taken in, and the commented keys.
fn shipped() -> (String, Vec<String>) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../etc/orion-agentd.toml");
    let text = std::fs::read_to_string(path).expect("the shipped file");
    let mut table = String::new();
    let mut keys = Vec::new();
    let mut uncommented = String::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('[') {
            table = format!("{}.", name.trim_end_matches(']'));
        }
        match line.strip_prefix('#') {
            Some(setting) if setting.starts_with(|c: char| c.is_ascii_lowercase()) => {
                let key = setting.split(" = ").next().unwrap_or_default();
                keys.push(format!("{table}{key}"));
                uncommented.push_str(setting);
            }
            Some(_) | None => uncommented.push_str(line),
        }
        uncommented.push('\n');
    }
    (uncommented, keys)
}

#[test]
fn the_shipped_file_shows_every_key_at_its_default() {
    let (uncommented, keys) = shipped();
    let path =
        std::env::temp_dir().join(format!("orion-agentd-shipped-{}.toml", std::process::id()));
    std::fs::write(&path, &uncommented).expect("written");
    let args = ConfigArgs {
        config: Some(path.clone()),
        ..ConfigArgs::default()
    };
    let loaded = load_with(&args, &[]);
    std::fs::remove_file(&path).expect("removed");
    let shown = serde_json::to_value(loaded.expect("good").settings).expect("JSON");
    let default = serde_json::to_value(AgentSettings::default()).expect("JSON");
    let mut expected = Vec::new();
    compare("", &default, &shown, &mut expected);
    let mut keys = keys;
    keys.sort();
    expected.sort();
    assert_eq!(keys, expected);
}

/// Collects all keys; those with a default must be shown at it.
fn compare(
    table: &str,
    default: &serde_json::Value,
    shown: &serde_json::Value,
    keys: &mut Vec<String>,
) {
    for (key, value) in default.as_object().expect("a table") {
        let path = format!("{table}{key}");
        let other = &shown[key];
        if value.is_object() {
            compare(&format!("{path}."), value, other, keys);
        } else {
            assert!(
                value.is_null() || value == other,
                "{path}: {other} is not the default {value}"
            );
            keys.push(path);
        }
    }
}
