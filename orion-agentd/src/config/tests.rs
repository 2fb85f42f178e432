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
    assert_eq!(
        settings.endpoint(None),
        Endpoint::parse("http://orion.example")
    );
}

/// A join file with `text` of that mode, while `test` runs.
fn with_join_file<T>(name: &str, text: &str, mode: u32, test: impl FnOnce(&str) -> T) -> T {
    use std::os::unix::fs::PermissionsExt;
    let path = std::env::temp_dir().join(format!("orion-agentd-{name}-{}", std::process::id()));
    std::fs::write(&path, text).expect("written");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("chmod");
    let came = test(path.to_str().expect("text"));
    std::fs::remove_file(&path).expect("removed");
    came
}

fn line() -> String {
    let key = "A".repeat(43);
    format!("http://joined.example#{key}.{key}")
}

#[test]
fn a_join_line_says_where_the_control_plane_is_unless_that_is_set() {
    let endpoint = |environment: &[(&str, &str)]| {
        let settings = load(environment).expect("good").settings;
        let line = settings.join_line().expect("good");
        settings.endpoint(line.as_ref())
    };
    with_join_file("endpoint", &line(), 0o600, |path| {
        let file = ("ORION_AGENTD__JOIN_FILE", path);
        assert_eq!(endpoint(&[file]), Endpoint::parse("http://joined.example"));
        assert_eq!(
            endpoint(&[file, ("API_ENDPOINT", "http://orion.example")]),
            Endpoint::parse("http://orion.example")
        );
    });
}

#[test]
fn a_join_file_that_is_open_to_others_or_cut_is_a_fault_without_its_text() {
    for (name, text, mode) in [
        ("exposed", line(), 0o644),
        ("cut", line()[..70].to_owned(), 0o600),
    ] {
        let error = with_join_file(name, &text, mode, |path| {
            load(&[
                ("ORION_AGENTD__JOIN_FILE", path),
                ("API_ENDPOINT", "http://a"),
            ])
        });
        let error = error.expect_err("bad");
        assert_eq!(keys(&error), ["join_file"], "{error}");
        assert!(!error.to_string().contains("AAAA"), "{error}");
    }
}

#[test]
fn a_worker_that_has_not_joined_can_be_told_to() {
    let args = ConfigArgs::default();
    let loaded = load_from::<JoinSettings>(Path::new("/nonexistent"), &args, []);
    let join_file = loaded.expect("good").settings.0.join_file;
    assert_eq!(join_file, Path::new("/etc/orion/agentd/join"));
    let environment = [("ORION_AGENTD__JOIN_FILE".into(), "relative".into())];
    let error = load_from::<JoinSettings>(Path::new("/nonexistent"), &args, environment);
    assert_eq!(keys(&error.expect_err("relative")), ["join_file"]);
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
        ("ORION_AGENTD__LOGIN_DIR", "var"),
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
        "login_dir",
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
