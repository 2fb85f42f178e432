use super::*;
use orion_daemon::{ConfigArgs, load_from};

const PACKAGED: &str = include_str!("../../../etc/orion-apid.toml");

fn found(change: impl FnOnce(&mut ApidSettings)) -> Vec<String> {
    let mut settings = ApidSettings::default();
    change(&mut settings);
    let mut faults = Faults::default();
    settings.check(&mut faults);
    faults.found().iter().map(|(key, _)| key.clone()).collect()
}

/// The packaged file with every key's comment sign taken off.
fn uncommented() -> String {
    let is_key = |line: &str| {
        line.strip_prefix('#')
            .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_lowercase()))
    };
    let lines = PACKAGED.lines().map(|line| {
        if is_key(line) {
            line.trim_start_matches('#')
        } else {
            line
        }
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn the_packaged_file_sets_nothing_and_explains_every_key_at_its_default() {
    let packaged: toml::Table = toml::from_str(PACKAGED).unwrap();
    assert!(
        packaged
            .values()
            .all(|table| table.as_table().is_some_and(toml::Table::is_empty)),
        "{packaged:?}"
    );
    let mut explained: toml::Table = toml::from_str(&uncommented()).unwrap();
    // Without a default; the file shows an example.
    let registration = explained["registration"].as_table_mut().unwrap();
    assert!(registration.remove("endpoint").is_some());
    let defaults = toml::Table::try_from(ApidSettings::default()).unwrap();
    assert_eq!(explained, defaults);
}

#[test]
fn the_defaults_are_good() {
    assert!(found(|_| ()).is_empty());
}

#[test]
fn every_fault_is_found_at_once() {
    let keys = found(|settings| {
        settings.listen.agents = settings.listen.clients;
        settings.auth.token_lifetime_s = 1;
        settings.auth.min_password_length = 0;
        settings.auth.hash_queue = 0;
        settings.auth.reserved_names = vec!["Not A Name".into()];
        settings.auth.jwt_keys_file = "relative".into();
        settings.rent.max_hours = 0;
        settings.rent.deadline_s = 0;
        settings.rent.max_count = 17;
        settings.registration.endpoint = Some("https://orion.example".into());
        settings.registration.signing_keys_file = "relative".into();
        settings.schedd.socket = "relative".into();
        settings.database.pool_max = 1;
    });
    let expected = [
        "listen.agents",
        "auth.token_lifetime_s",
        "auth.min_password_length",
        "auth.hash_queue",
        "auth.jwt_keys_file",
        "auth.reserved_names",
        "rent.max_hours",
        "rent.deadline_s",
        "rent.max_count",
        "registration.endpoint",
        "registration.signing_keys_file",
        "schedd.socket",
        "database.pool_max",
        "registration.signing_keys_file",
    ];
    assert_eq!(keys, expected);
}

#[test]
fn join_lines_carry_a_plain_base_url() {
    for good in ["http://orion.example", "http://10.0.0.1:8081/orion/"] {
        assert_eq!(parse_endpoint(good).unwrap(), good.trim_end_matches('/'));
    }
    for bad in [
        "",
        "orion.example",
        "https://orion.example",
        "http://",
        "http://a@b",
        "http://a?b",
        "http://a#b",
        "http://a b",
    ] {
        assert!(parse_endpoint(bad).is_err(), "{bad}");
    }
}

#[test]
fn free_ports_may_be_taken_on_both_listeners() {
    let keys = found(|settings| {
        settings.listen.clients.set_port(0);
        settings.listen.agents.set_port(0);
    });
    assert!(keys.is_empty(), "{keys:?}");
}

#[test]
fn unknown_keys_and_modes_are_refused() {
    let directory = std::env::temp_dir().join(format!("orion-apid-config-{}", std::process::id()));
    std::fs::create_dir(&directory).unwrap();
    let path = directory.join("orion-apid.toml");
    std::fs::write(
        &path,
        "[registration]\nmode = \"closed\"\n[rent]\nmax_hour = 1\n",
    )
    .unwrap();
    let error = load_from::<ApidSettings>(&directory, &ConfigArgs::default(), []).unwrap_err();
    std::fs::remove_dir_all(&directory).unwrap();
    let keys: Vec<_> = error
        .faults()
        .iter()
        .map(|fault| fault.key.as_str())
        .collect();
    assert_eq!(keys, ["rent.max_hour", "registration.mode"]);
}
