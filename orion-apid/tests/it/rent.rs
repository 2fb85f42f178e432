use crate::support::{Check, FakeSchedd, PASSWORD, Plane, assert_problem};
use orion_core::{RunKind, RunOutcome};
use orion_store::ClaimedRun;
use orion_testkit::{PATIENCE, wait_until, wait_until_async};
use serde_json::{Value, json};
use std::collections::HashSet;
use std::io::Write as _;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpStream, UnixListener};

fn silent_about_provisioning(run: &ClaimedRun) -> Option<RunOutcome> {
    if run.kind == RunKind::Provision {
        None
    } else {
        FakeSchedd::all_well(run)
    }
}

/// Accounts that may exist, over all nodes.
fn accounts(plane: &Plane) -> String {
    plane
        .database
        .sql_one("SELECT COUNT(*) FROM accounts WHERE state IN ('making', 'present')")
}

fn wait_for_accounts(plane: &Plane, count: &str) -> impl Future<Output = ()> {
    wait_until("the accounts are as expected", PATIENCE, move || {
        let found = accounts(plane);
        if found == count {
            Ok(())
        } else {
            Err(format!("{found} accounts"))
        }
    })
}

#[tokio::test]
async fn a_rent_of_two_is_answered_with_two_machines_and_their_derived_passwords() {
    let plane = Plane::start().await;
    plane.ready_nodes(3).await;
    let alice = plane.user("alice").await;
    let _schedd = plane.schedd(FakeSchedd::all_well);
    let answer = alice
        .post("/api/rent", &json!({"duration_hours": 2, "count": 2}))
        .await
        .is(200);
    let machines = answer.json();
    let machines = machines.as_array().expect("a list");
    let mut passwords = HashSet::new();
    let mut ports = HashSet::new();
    for machine in machines {
        let names: Vec<_> = machine
            .as_object()
            .expect("an object")
            .keys()
            .map(String::as_str)
            .collect();
        assert_eq!(
            names,
            [
                "client_pass",
                "client_user",
                "host_ip",
                "leased_until",
                "rental_id",
                "ssh_port"
            ]
        );
        assert_eq!(
            (&machine["host_ip"], &machine["client_user"]),
            (&json!("10.0.0.1"), &json!("alice"))
        );
        let password = machine["client_pass"].as_str().expect("a text");
        assert!(password.len() >= 20, "{password}");
        passwords.insert(password.to_owned());
        ports.insert(machine["ssh_port"].as_u64());
        let until = machine["leased_until"].as_str().expect("a text");
        assert!(until.len() == 26 && until.as_bytes()[19] == b'.', "{until}");
        let hash = plane.database.sql_one(&format!(
            "SELECT password_hash FROM rentals WHERE id = {}",
            machine["rental_id"]
        ));
        assert!(hash.starts_with("$6$"), "{hash}");
        assert!(crypt_matches(password, &hash), "{password} {hash}");
    }
    assert_eq!((machines.len(), passwords.len(), ports.len()), (2, 2, 2));
    let log = plane.daemon.log_lines().join("\n");
    assert!(passwords.iter().all(|password| !log.contains(password)));
    assert!(!log.contains(PASSWORD) && !log.contains("$6$"));
}

fn crypt_matches(password: &str, hash: &str) -> bool {
    use sha_crypt::PasswordVerifier as _;
    sha_crypt::ShaCrypt::SHA512
        .verify_password(password.as_bytes(), hash)
        .is_ok()
}

#[tokio::test]
async fn a_chosen_password_is_used_to_the_letter() {
    let plane = Plane::start().await;
    plane.ready_nodes(1).await;
    let alice = plane.user("alice").await;
    let _schedd = plane.schedd(FakeSchedd::all_well);
    let password = "it's \"$HOME\" {{ x }} пароль";
    let body = json!({"duration_hours": 0.5, "ssh_password": password});
    let machine = alice.post("/api/rent", &body).await.is(200).json();
    assert_eq!(machine[0]["client_pass"], password);
    let hash = plane.database.sql_one("SELECT password_hash FROM rentals");
    assert!(crypt_matches(password, &hash));
}

#[tokio::test]
async fn without_enough_free_nodes_nothing_is_rented_and_the_number_of_free_ones_is_told() {
    let plane = Plane::start().await;
    plane.ready_nodes(2).await;
    let alice = plane.user("alice").await;
    let answer = alice
        .post("/api/rent", &json!({"duration_hours": 1, "count": 3}))
        .await;
    let problem = assert_problem(&answer, 503, "no_free_node");
    assert_eq!(problem["free"], 2);
    assert_eq!(accounts(&plane), "0");
}

#[tokio::test]
async fn what_is_not_ready_at_the_deadline_is_undone() {
    let plane = Plane::start_with("rent.deadline_s = 2\n").await;
    plane.ready_nodes(2).await;
    let alice = plane.user("alice").await;
    let _schedd = plane.schedd(silent_about_provisioning);
    let answer = alice
        .post("/api/rent", &json!({"duration_hours": 1, "count": 2}))
        .await;
    assert_problem(&answer, 503, "provisioning_failed");
    assert_eq!(accounts(&plane), "0");
    let rentals = alice.get("/api/rentals").await.json();
    let live = rentals
        .as_array()
        .expect("a list")
        .iter()
        .filter(|rental| rental["state"] == "active");
    assert_eq!(live.count(), 0);
}

#[tokio::test]
async fn a_name_that_belongs_to_somebody_else_on_the_nodes_is_409() {
    let plane = Plane::start().await;
    plane.ready_nodes(3).await;
    let alice = plane.user("alice").await;
    let _schedd = plane.schedd(|run| match run.kind {
        RunKind::Provision => Some(RunOutcome::NameTaken),
        RunKind::Clean | RunKind::Inspect => FakeSchedd::all_well(run),
    });
    let answer = alice.post("/api/rent", &json!({"duration_hours": 1})).await;
    assert_problem(&answer, 409, "name_taken");
    wait_for_accounts(&plane, "0").await;
}

#[tokio::test]
async fn a_user_with_a_system_name_can_not_rent() {
    let plane = Plane::start().await;
    plane.ready_nodes(1).await;
    plane.user("chief").await;
    plane
        .database
        .sql("UPDATE users SET name = 'root' WHERE name = 'chief'");
    let root = plane.login("root").await;
    assert_problem(
        &root.post("/api/rent", &json!({"duration_hours": 1})).await,
        409,
        "name_taken",
    );
    assert_eq!(accounts(&plane), "0");
}

#[tokio::test]
async fn a_user_may_hold_only_so_many_machines() {
    let plane = Plane::start_with("rent.max_active_per_user = 2\nrent.max_count = 2\n").await;
    plane.ready_nodes(4).await;
    let alice = plane.user("alice").await;
    let _schedd = plane.schedd(FakeSchedd::all_well);
    alice
        .post("/api/rent", &json!({"duration_hours": 1}))
        .await
        .is(200);
    let answer = alice
        .post("/api/rent", &json!({"duration_hours": 1, "count": 2}))
        .await;
    assert_problem(&answer, 409, "rental_limit");
    let answer = alice
        .post("/api/rent", &json!({"duration_hours": 1, "count": 3}))
        .await;
    assert_problem(&answer, 422, "invalid_value");
}

#[tokio::test]
async fn a_release_before_everything_is_ready_undoes_the_rent() {
    let plane = Plane::start().await;
    plane.ready_nodes(1).await;
    let alice = plane.user("alice").await;
    let _schedd = plane.schedd(silent_about_provisioning);
    let renting = alice.clone();
    let rent = tokio::spawn(async move {
        renting
            .post("/api/rent", &json!({"duration_hours": 1}))
            .await
    });
    let id = wait_until_async("the rental is there", PATIENCE, || async {
        let rentals = alice.get("/api/rentals").await.json();
        rentals[0]["rental_id"].as_u64().ok_or("none")
    })
    .await;
    alice
        .post_empty(&format!("/api/release/{id}"))
        .await
        .is(200);
    assert_problem(&rent.await.expect("no panic"), 409, "wrong_state");
    assert_eq!(accounts(&plane), "0");
}

#[tokio::test]
async fn clients_that_hang_up_find_their_rentals() {
    let plane = Plane::start().await;
    plane.ready_nodes(12).await;
    let alice = plane.user("alice").await;
    let token = token_of(&plane, "alice").await;
    let body = r#"{"duration_hours":1}"#;
    let head = format!(
        "POST /api/rent HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    let address = plane.daemon.address("clients").await;
    // They go away in turn: before anything is decided, when the request is recorded, when its run is queued.
    for number in 0..12 {
        let mut stream = TcpStream::connect(address).await.expect("connected");
        stream.write_all(head.as_bytes()).await.expect("written");
        let recorded = match number % 3 {
            0 => continue,
            1 => "SELECT COUNT(*) FROM requests",
            _ => "SELECT COUNT(*) FROM runs WHERE kind = 'provision'",
        };
        wait_until("those so far are", PATIENCE, || {
            let count = plane.database.sql_one(recorded);
            if count == (number + 1).to_string() {
                Ok(())
            } else {
                Err(count)
            }
        })
        .await;
    }
    let _schedd = plane.schedd(FakeSchedd::all_well);
    wait_until_async("all rentals are active", PATIENCE, || async {
        let rentals = alice.get("/api/rentals").await.json();
        let all = rentals.as_array().expect("a list");
        let active = all
            .iter()
            .filter(|rental| rental["state"] == "active")
            .count();
        if active == 12 {
            Ok(())
        } else {
            Err(format!("{active} of {}", all.len()))
        }
    })
    .await;
}

async fn token_of(plane: &Plane, name: &str) -> String {
    let body = json!({"username": name, "password": PASSWORD});
    let answer: Value = plane
        .clients
        .post("/auth/login", &body)
        .await
        .is(200)
        .json();
    answer["token"].as_str().expect("a token").to_owned()
}

#[tokio::test]
async fn a_stop_waits_for_the_rents_in_progress_and_refuses_new_ones() {
    let mut plane = Plane::start().await;
    plane.ready_nodes(1).await;
    let alice = plane.user("alice").await;
    let rent =
        tokio::spawn(async move { alice.post("/api/rent", &json!({"duration_hours": 1})).await });
    wait_for_accounts(&plane, "1").await;
    plane.daemon.terminate();
    let address = plane.daemon.address("clients").await;
    wait_until_async("nobody listens any more", PATIENCE, || async {
        match TcpStream::connect(address).await {
            Ok(_) => Err("somebody does"),
            Err(_) => Ok(()),
        }
    })
    .await;
    let _schedd = plane.schedd(FakeSchedd::all_well);
    let answer = rent.await.expect("no panic").is(200);
    assert_eq!(answer.json().as_array().map(Vec::len), Some(1));
    assert!(plane.daemon.ended(PATIENCE).await.success());
}

#[tokio::test]
async fn schedd_is_told_to_look_and_believed_only_with_the_database() {
    let plane = Plane::start().await;
    plane.ready_nodes(1).await;
    let alice = plane.user("alice").await;
    let socket = UnixListener::bind(plane.scratch.join("notify.sock")).expect("a socket");
    let (stream, _) = tokio::time::timeout(PATIENCE, socket.accept())
        .await
        .expect("in time")
        .expect("apid connects");
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read).lines();
    // Registrations before had nobody to tell; they left one "look" behind.
    assert_eq!(
        lines.next_line().await.expect("a line").as_deref(),
        Some("look")
    );
    let rent =
        tokio::spawn(async move { alice.post("/api/rent", &json!({"duration_hours": 1})).await });
    assert_eq!(
        lines.next_line().await.expect("a line").as_deref(),
        Some("look")
    );
    let request = plane.database.sql_one("SELECT id FROM requests");
    write
        .write_all(format!("settled {request}\n").as_bytes())
        .await
        .expect("written");
    assert_eq!(plane.database.sql_one("SELECT state FROM requests"), "open");
    assert!(!rent.is_finished(), "a word of schedd decided a rent");
    let _schedd = plane.schedd(FakeSchedd::all_well);
    let answer = rent.await.expect("no panic").is(200);
    std::io::stdout().flush().expect("flushed");
    assert_eq!(answer.json()[0]["client_user"], "alice");
}

#[tokio::test]
async fn apid_killed_in_the_middle_of_a_rent_leaves_nothing_behind() {
    let mut plane = Plane::start_with("rent.deadline_s = 2\n").await;
    plane.ready_nodes(1).await;
    let alice = plane.user("alice").await;
    let rent = tokio::spawn(async move {
        alice
            .send(
                http::Method::POST,
                "/api/rent",
                Some(&json!({"duration_hours": 1})),
            )
            .await
    });
    wait_for_accounts(&plane, "1").await;
    plane.daemon.kill();
    assert!(rent.await.expect("no panic").is_err());
    // schedd's reconciliation is what undoes it.
    let store = plane.store();
    wait_until_async("the request is undone", PATIENCE, || async {
        let done = store.reconcile().await.expect("the database");
        let state = plane.database.sql_one("SELECT state FROM requests");
        if state == "undone" {
            Ok(())
        } else {
            Err(format!("{state} {}", done.undone.len()))
        }
    })
    .await;
    let _schedd = plane.schedd(FakeSchedd::all_well);
    wait_for_accounts(&plane, "0").await;
}
