use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::*;
use crate::testing::Directory;

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Listen {
    clients: SocketAddr,
    backlog: u16,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Mode {
    Open,
    Closed,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sample {
    name: String,
    proxy: Option<String>,
    names: Vec<String>,
    min: u32,
    max: u32,
    mode: Mode,
    labels: BTreeMap<String, String>,
    listen: Listen,
    log: LogSettings,
    ops: OpsSettings,
}

impl Default for Sample {
    fn default() -> Self {
        Self {
            name: "orion".to_owned(),
            proxy: None,
            names: vec!["a".to_owned()],
            min: 1,
            max: 9,
            mode: Mode::Open,
            labels: BTreeMap::new(),
            listen: Listen {
                clients: SocketAddr::from(([127, 0, 0, 1], 8080)),
                backlog: 16,
            },
            log: LogSettings::default(),
            ops: OpsSettings::on_port(9301),
        }
    }
}

impl Settings for Sample {
    const NAME: &'static str = "orion-sample";
    const ENV_ALIASES: &'static [(&'static str, &'static str)] = &[("MY_NAME", "name")];

    fn check(&self, faults: &mut Faults) {
        faults.require(self.min <= self.max, "min", "must not be above max");
    }

    fn log(&self) -> &LogSettings {
        &self.log
    }

    fn ops(&self) -> &OpsSettings {
        &self.ops
    }
}

fn load_with(
    directory: &Directory,
    environment: &[(&str, &str)],
) -> Result<Loaded<Sample>, ConfigError> {
    load_args(directory, &ConfigArgs::default(), environment)
}

fn load_args(
    directory: &Directory,
    args: &ConfigArgs,
    environment: &[(&str, &str)],
) -> Result<Loaded<Sample>, ConfigError> {
    let environment: Vec<(OsString, OsString)> = environment
        .iter()
        .map(|(name, value)| ((*name).into(), (*value).into()))
        .collect();
    load_from(directory.path(), args, environment)
}

fn named(path: impl Into<PathBuf>) -> ConfigArgs {
    ConfigArgs {
        config: Some(path.into()),
        ..ConfigArgs::default()
    }
}

/// Every fault as (end of the source, key).
fn places(error: &ConfigError) -> Vec<(String, String)> {
    let last = |source: &str| {
        let end = source.rsplit(['/', ' ']).next();
        end.unwrap_or_default().to_owned()
    };
    let fault = |fault: &Fault| (last(&fault.source), fault.key.clone());
    error.faults().iter().map(fault).collect()
}

#[test]
fn defaults_do_when_there_is_no_file() {
    let loaded = load_with(&Directory::new(), &[]).expect("good");
    assert_eq!(loaded.settings.max, 9);
}

#[test]
fn each_layer_wins_over_the_ones_below() {
    let directory = Directory::new();
    directory.write(
        "orion-sample.toml",
        "min = 2\nmax = 20\nname = \"file\"\nproxy = \"p\"\n",
    );
    directory.write("orion-sample.d/20-b.toml", "min = 4\n");
    directory.write("orion-sample.d/10-a.toml", "min = 3\nmax = 30\n");
    directory.write("orion-sample.d/.30-c.toml", "min = 5\n");
    directory.write("orion-sample.d/30-c.toml.dpkg-new", "min = 6\n");
    let environment = [
        ("ORION_SAMPLE__LISTEN__BACKLOG", "7"),
        ("ORION_SAMPLE__NAME", "variable"),
        ("MY_NAME", "alias"),
    ];
    let settings = load_with(&directory, &environment).expect("good").settings;
    assert_eq!((settings.min, settings.max), (4, 30));
    assert_eq!(settings.name, "variable");
    assert_eq!(settings.listen.backlog, 7);
    assert_eq!(settings.proxy.as_deref(), Some("p"));
    let settings = load_with(&directory, &environment[2..])
        .expect("good")
        .settings;
    assert_eq!(settings.name, "alias");
}

#[test]
fn a_variable_is_read_as_what_its_key_is() {
    let environment = [
        ("ORION_SAMPLE__NAME", "123456"),
        ("ORION_SAMPLE__PROXY", "42"),
        ("ORION_SAMPLE__NAMES", "b, c"),
        ("ORION_SAMPLE__MODE", "closed"),
        ("ORION_SAMPLE__LISTEN__CLIENTS", "[::1]:80"),
        ("ORION_SAMPLE__LABELS__ROOM", "7"),
    ];
    let settings = load_with(&Directory::new(), &environment)
        .expect("good")
        .settings;
    assert_eq!(settings.name, "123456");
    assert_eq!(settings.proxy.as_deref(), Some("42"));
    assert_eq!(settings.names, ["b", "c"]);
    assert_eq!(settings.mode, Mode::Closed);
    assert!(settings.listen.clients.is_ipv6());
    assert_eq!(settings.labels.get("room").map(String::as_str), Some("7"));
}

#[test]
fn all_faults_are_reported_at_once_with_source_and_key() {
    let directory = Directory::new();
    directory.write(
        "orion-sample.toml",
        "nmae = \"x\"\nmin = 5\nmax = 3\nmode = \"ajar\"\n[listen]\nbacklog = \"many\"\nport = 1\n[oops]\nlisten = 1\n",
    );
    directory.write(
        "orion-sample.d/a.toml",
        "names = [\"a\", 5]\n[ops]\nlisten = \"0.0.0.0:1\"\n",
    );
    directory.write("orion-sample.d/b.toml", "this is not TOML\n");
    let environment = [
        ("ORION_SAMPLE__LISTEN__CLIENTS", "nowhere"),
        ("ORION_SAMPLE__LISTEN__TYPO", "1"),
        ("ORION_SAMPLE__LOG__LEVEL", "loud"),
    ];
    let error = load_with(&directory, &environment).expect_err("full of faults");
    let mut found = places(&error);
    found.sort();
    let mut expected = [
        ("ORION_SAMPLE__LISTEN__CLIENTS", "listen.clients"),
        ("ORION_SAMPLE__LISTEN__TYPO", "listen.typo"),
        ("ORION_SAMPLE__LOG__LEVEL", "log.level"),
        ("a.toml", "names.1"),
        ("a.toml", "ops.listen"),
        ("b.toml", ""),
        ("orion-sample.toml", "listen.backlog"),
        ("orion-sample.toml", "listen.port"),
        ("orion-sample.toml", "min"),
        ("orion-sample.toml", "mode"),
        ("orion-sample.toml", "nmae"),
        ("orion-sample.toml", "oops"),
    ]
    .map(|(source, key)| (source.to_owned(), key.to_owned()));
    expected.sort();
    assert_eq!(found, expected, "{error}");
}

#[test]
fn a_fault_never_repeats_a_text() {
    let directory = Directory::new();
    directory.write(
        "orion-sample.toml",
        "password = \"hunter2\"\nmin = \"hunter2\"\nmode = \"hunter2\"\n[listen]\nclients = \"hunter2\"\n",
    );
    directory.write("orion-sample.d/a.toml", "secret = 'hunter2\n");
    directory.write("orion-sample.d/b.toml", "secret = hunter2\n");
    directory.write("orion-sample.d/c.toml", "hunter2\n");
    directory.write("orion-sample.d/d.toml", "[a]\nhunter2 = 1\nhunter2 = 2\n");
    let error =
        load_with(&directory, &[("ORION_SAMPLE__DB__PASSWORD", "hunter2")]).expect_err("faults");
    assert_eq!(error.faults().len(), 9, "{error}");
    assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
}

#[test]
fn a_syntax_error_is_found_by_line_and_column() {
    let directory = Directory::new();
    directory.write("orion-sample.toml", "min = 1\nmax = = 3\n");
    let error = load_with(&directory, &[]).expect_err("no TOML");
    assert!(
        error
            .to_string()
            .contains("orion-sample.toml: line 2, column 7"),
        "{error}"
    );
}

#[test]
fn a_table_where_a_value_belongs_and_the_reverse_are_faults() {
    let directory = Directory::new();
    directory.write("orion-sample.toml", "listen = 5\n[min]\na = 1\n");
    let error = load_with(&directory, &[]).expect_err("faults");
    let keys: Vec<&str> = error
        .faults()
        .iter()
        .map(|fault| fault.key.as_str())
        .collect();
    assert_eq!(keys, ["listen", "min"], "{error}");
}

#[test]
fn a_named_file_must_exist_and_replaces_the_default_one() {
    let directory = Directory::new();
    directory.write("orion-sample.toml", "min = 2\n");
    directory.write("orion-sample.d/a.toml", "max = 20\n");
    let error = load_args(&directory, &named(directory.path().join("none.toml")), &[])
        .expect_err("missing");
    assert!(
        error.to_string().contains("none.toml: can't be read"),
        "{error}"
    );
    let other = directory.write("other/mine.toml", "name = \"mine\"\n");
    directory.write("other/mine.d/a.toml", "max = 30\n");
    let settings = load_args(&directory, &named(other), &[])
        .expect("good")
        .settings;
    assert_eq!(
        (settings.min, settings.max, settings.name.as_str()),
        (1, 30, "mine")
    );
}

#[test]
fn the_printed_configuration_names_sources_and_can_be_read_again() {
    let directory = Directory::new();
    directory.write("orion-sample.toml", "min = 2\n[listen]\nbacklog = 5\n");
    let loaded = load_with(&directory, &[("MY_NAME", "a \"b\"")]).expect("good");
    let printed = loaded.print();
    let min = printed
        .lines()
        .find(|line| line.starts_with("min"))
        .expect("min is there");
    assert!(
        min.starts_with("min = 2  # /") && min.ends_with("orion-sample.toml"),
        "{min}"
    );
    assert!(
        printed.contains("# environment variable MY_NAME"),
        "{printed}"
    );
    assert!(printed.contains("max = 9  # compiled default"), "{printed}");
    assert!(printed.contains("# proxy is not set"), "{printed}");
    let again = directory.write("again.toml", printed);
    let settings = load_args(&directory, &named(again), &[])
        .expect("good")
        .settings;
    assert_eq!(
        (
            settings.min,
            settings.listen.backlog,
            settings.name.as_str()
        ),
        (2, 5, "a \"b\"")
    );
}
