use crate::support::{Check, PASSWORD, config, prepare};
use orion_testkit::{Client, DaemonBuilder, Database, Scratch};
use serde_json::json;
use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// Runs `orion-apid` with this configuration file, as the database's administrator.
pub(crate) fn apid(config: &Path, arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_orion-apid"))
        .arg("--config")
        .arg(config)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("orion-apid starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    // A command that does not read its input may be gone already.
    stdin.write_all(input.as_bytes()).unwrap_or_default();
    drop(stdin);
    child.wait_with_output().expect("its output")
}

pub(crate) fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[output.stdout.as_slice(), &output.stderr].concat()).into_owned()
}

pub(crate) const AS_ROOT: [&str; 2] = ["--database-user", Database::ADMIN];

#[tokio::test]
async fn create_admin_makes_an_administrator_once() {
    let database = Database::fresh().await;
    prepare(&database).await;
    let scratch = Scratch::new("apid");
    let settings = config(&database, &scratch, "");
    let file = scratch.write_secret("apid.toml", &settings);
    let create = |name: &str, password: &str| {
        let arguments = [&["create-admin", name][..], &AS_ROOT].concat();
        apid(&file, &arguments, password)
    };
    let made = create("admin", &format!("{PASSWORD}\n"));
    assert!(made.status.success(), "{}", text(&made));
    let again = create("admin", "another password\n");
    assert_eq!(again.status.code(), Some(1));
    assert!(
        text(&again).contains("there is a user admin already"),
        "{}",
        text(&again)
    );
    for (name, password) in [("Not A Name", PASSWORD), ("chief", "short"), ("chief", "")] {
        assert_eq!(
            create(name, password).status.code(),
            Some(1),
            "{name} {password}"
        );
    }
    assert_eq!(database.sql_one("SELECT COUNT(*) FROM users"), "1");
    let daemon = DaemonBuilder::new("orion-apid", settings)
        .start_ready()
        .await;
    let clients = Client::new(daemon.address("clients").await);
    let login = json!({"username": "admin", "password": PASSWORD});
    let token = clients.post("/auth/login", &login).await.is(200).json()["token"].clone();
    clients
        .with_token(token.as_str().expect("a token"))
        .get("/api/runs")
        .await
        .is(200);
}

#[tokio::test]
async fn init_makes_database_schema_and_secrets_and_may_be_repeated() {
    let database = Database::fresh().await;
    let scratch = Scratch::new("apid");
    let fresh = scratch.join("etc/apid");
    let name = format!("{}_init", database.name());
    let keys = format!(
        "auth.jwt_keys_file = {:?}\nrent.server_keys_file = {:?}\ndatabase.name = {name:?}\n",
        fresh.join("jwt.keys"),
        fresh.join("server.keys"),
    );
    let file = scratch.write_secret("apid.toml", config(&database, &scratch, &keys));
    let arguments = [&["init", "--uid-base", "2000000"][..], &AS_ROOT].concat();
    let first = apid(&file, &arguments, "");
    assert!(first.status.success(), "{}", text(&first));
    let uid_base = format!("SELECT uid_base FROM {name}.installation");
    assert_eq!(database.sql_one(&uid_base), "2000000");
    let written = fs::read_to_string(fresh.join("jwt.keys")).expect("written");
    assert_ne!(
        written,
        fs::read_to_string(fresh.join("server.keys")).expect("written")
    );
    let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
    assert_eq!(
        (mode(&fresh), mode(&fresh.join("jwt.keys"))),
        (0o700, 0o600)
    );
    let again = [&["init", "--uid-base", "3000000"][..], &AS_ROOT].concat();
    let again = apid(&file, &again, "");
    assert!(again.status.success(), "{}", text(&again));
    assert_eq!(database.sql_one(&uid_base), "2000000");
    assert_eq!(
        fs::read_to_string(fresh.join("jwt.keys")).expect("there"),
        written
    );
    let schema = apid(&file, &[&["schema", "apply"][..], &AS_ROOT].concat(), "");
    assert!(
        text(&schema).contains("(0 steps applied)"),
        "{}",
        text(&schema)
    );
    database.sql(&format!("DROP DATABASE {name}"));
}

#[tokio::test]
async fn a_bad_configuration_or_secret_exits_78_and_says_where() {
    let database = Database::fresh().await;
    let scratch = Scratch::new("apid");
    let bad = "auth.hash_queue = 0\nrent.max_hour = 3\n";
    let file = scratch.write_secret("bad.toml", config(&database, &scratch, bad));
    let output = apid(&file, &["--check-config"], "");
    assert_eq!(output.status.code(), Some(78));
    for expected in ["auth.hash_queue", "rent.max_hour", "bad.toml"] {
        assert!(text(&output).contains(expected), "{}", text(&output));
    }
    let file = scratch.write_secret("good.toml", config(&database, &scratch, ""));
    assert_eq!(apid(&file, &["--check-config"], "").status.code(), Some(0));
    let printed = text(&apid(&file, &["--print-config"], ""));
    assert!(
        printed.contains("max_hours = 720  # compiled default"),
        "{printed}"
    );
    let keys = scratch.join("jwt.keys");
    fs::set_permissions(&keys, Permissions::from_mode(0o644)).expect("chmod");
    let output = apid(&file, &[], "");
    assert_eq!(output.status.code(), Some(78), "{}", text(&output));
    assert!(text(&output).contains("jwt.keys"), "{}", text(&output));
    fs::remove_file(&keys).expect("removed");
    assert_eq!(apid(&file, &[], "").status.code(), Some(78));
}
