use crate::support::{Plane, assert_problem};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use orion_apid::auth::token::{Bearer, Tokens};
use orion_core::UserId;
use orion_daemon::{Key, KeyId, Keyring};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Tokens as apid's own key makes them, or another one.
fn tokens(byte: u8) -> Tokens {
    let id = KeyId::new("k1").unwrap();
    Tokens::new(
        Keyring::single(id, Key::new([byte; 32])),
        Duration::from_secs(3600),
    )
}

fn bearer(plane: &Plane, name: &str) -> Bearer {
    let id = plane
        .database
        .sql_one(&format!("SELECT id FROM users WHERE name = '{name}'"));
    Bearer {
        user: UserId(id.parse().unwrap()),
        token_version: 1,
    }
}

async fn with_token(plane: &Plane, token: &str) -> orion_testkit::Answer {
    plane.clients.with_token(token).get("/api/rentals").await
}

#[tokio::test]
async fn only_a_token_of_our_key_and_our_algorithm_is_good() {
    let plane = Plane::start().await;
    plane.user("alice").await;
    let alice = bearer(&plane, "alice");
    let good = tokens(1).issue(alice).unwrap();
    assert_eq!(with_token(&plane, &good).await.status, 200);
    let other_key = tokens(9).issue(alice).unwrap();
    let payload = good.split('.').nth(1).unwrap();
    let none = URL_SAFE_NO_PAD.encode(r#"{"alg":"none","typ":"JWT","kid":"k1"}"#);
    let garbage = ["x", "a.b.c", "....", &"A".repeat(9000)].map(str::to_owned);
    let bad = [other_key, format!("{none}.{payload}."), format!("{good}x")];
    for token in bad.into_iter().chain(garbage) {
        let answer = with_token(&plane, &token).await;
        assert_problem(&answer, 401, "token_invalid");
        let challenge = answer.headers["www-authenticate"].to_str().unwrap();
        assert!(challenge.contains("invalid_token"), "{challenge}");
    }
    let basic = plane
        .clients
        .with_header("authorization", "Basic eDp5")
        .get("/api/rentals")
        .await;
    assert_problem(&basic, 401, "token_missing");
}

#[tokio::test]
async fn an_expired_token_says_so() {
    let plane = Plane::start().await;
    plane.user("alice").await;
    let id = bearer(&plane, "alice").user;
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs();
    let header = jsonwebtoken::Header {
        kid: Some("k1".to_owned()),
        ..jsonwebtoken::Header::new(jsonwebtoken::Algorithm::HS256)
    };
    let claims = serde_json::json!({
        "iss": "orion", "aud": "orion-api", "sub": id.to_string(), "iat": now - 3700, "exp": now - 100, "ver": 1,
    });
    tokens(1);
    let key = jsonwebtoken::EncodingKey::from_secret(&[1; 32]);
    let token = jsonwebtoken::encode(&header, &claims, &key).unwrap();
    assert_problem(&with_token(&plane, &token).await, 401, "token_expired");
}

#[tokio::test]
async fn the_user_s_row_revokes_and_promotes_at_once() {
    let plane = Plane::start().await;
    let alice = plane.user("alice").await;
    assert_problem(&alice.get("/api/runs").await, 403, "forbidden");
    plane
        .database
        .sql("UPDATE users SET role = 'admin' WHERE name = 'alice'");
    assert_eq!(alice.get("/api/runs").await.status, 200);
    plane
        .database
        .sql("UPDATE users SET token_version = 2 WHERE name = 'alice'");
    assert_problem(&alice.get("/api/runs").await, 401, "token_invalid");
    let again = plane.login("alice").await;
    assert_eq!(again.get("/api/runs").await.status, 200);
    plane.database.sql("DELETE FROM users WHERE name = 'alice'");
    assert_problem(&again.get("/api/runs").await, 401, "token_invalid");
}

#[tokio::test]
async fn a_password_hash_with_few_rounds_is_replaced_at_login() {
    let plane = Plane::start().await;
    plane.user("alice").await;
    // "correct horse" with 1,000 rounds.
    let old = "$pbkdf2-sha256$i=1000,l=32$b3Jpb24tdGVzdC1zYWx0$PCPjAgrsTij9Uu/q6glV9No9owm9zQWNgm4+qFpGXTQ";
    plane.database.sql(&format!(
        "UPDATE users SET password_phc = '{old}' WHERE name = 'alice'"
    ));
    plane.login("alice").await;
    let new = plane
        .database
        .sql_one("SELECT password_phc FROM users WHERE name = 'alice'");
    assert!(new.starts_with("$pbkdf2-sha256$i=600000,"), "{new}");
    plane.login("alice").await;
}
