use super::*;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use orion_daemon::{Key, KeyId};
use secrecy::SecretString;
use serde_json::{Value, json};

const BEARER: Bearer = Bearer {
    user: UserId(7),
    token_version: 3,
};

fn ring(id: &str, byte: u8) -> Keyring {
    Keyring::single(KeyId::new(id).unwrap(), Key::new([byte; 32]))
}

fn tokens() -> Tokens {
    Tokens::new(ring("k1", 1), Duration::from_secs(3600))
}

fn code(result: Result<Bearer, Failure>) -> ProblemCode {
    result.unwrap_err().code
}

/// Good claims, changed by `change`, signed with the right key under `algorithm`.
fn forged(algorithm: Algorithm, change: impl FnOnce(&mut Value)) -> String {
    tokens();
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs();
    let mut claims =
        json!({"iss": ISSUER, "aud": AUDIENCE, "sub": "7", "iat": now, "exp": now + 60, "ver": 3});
    change(&mut claims);
    let header = Header {
        kid: Some("k1".into()),
        ..Header::new(algorithm)
    };
    encode(&header, &claims, &EncodingKey::from_secret(&[1; 32])).unwrap()
}

#[test]
fn a_token_leads_back_to_its_user_and_version() {
    let tokens = tokens();
    let token = tokens.issue(BEARER).unwrap();
    assert_eq!(tokens.read(&token).unwrap(), BEARER);
    assert_eq!(
        tokens.read(&forged(Algorithm::HS256, |_| ())).unwrap(),
        BEARER
    );
}

#[test]
fn an_expired_token_has_a_code_of_its_own() {
    let tokens = tokens();
    let ago = |seconds| SystemTime::now() - Duration::from_secs(seconds);
    let token = tokens.issue_at(BEARER, ago(3600 + LEEWAY_S + 2)).unwrap();
    assert_eq!(code(tokens.read(&token)), ProblemCode::TokenExpired);
    let token = tokens.issue_at(BEARER, ago(3600 - 10)).unwrap();
    assert!(tokens.read(&token).is_ok());
}

#[test]
fn a_token_signed_with_another_key_is_invalid_even_under_our_key_id() {
    let token = Tokens::new(ring("k1", 2), Duration::from_secs(60))
        .issue(BEARER)
        .unwrap();
    assert_eq!(code(tokens().read(&token)), ProblemCode::TokenInvalid);
    let token = Tokens::new(ring("k2", 1), Duration::from_secs(60))
        .issue(BEARER)
        .unwrap();
    assert_eq!(code(tokens().read(&token)), ProblemCode::TokenInvalid);
}

#[test]
fn algorithm_none_is_invalid() {
    let payload = tokens()
        .issue(BEARER)
        .unwrap()
        .split('.')
        .nth(1)
        .unwrap()
        .to_owned();
    for algorithm in ["none", "None", "NONE"] {
        let header = URL_SAFE_NO_PAD.encode(json!({"alg": algorithm, "kid": "k1"}).to_string());
        for token in [
            format!("{header}.{payload}."),
            format!("{header}.{payload}"),
        ] {
            assert_eq!(
                code(tokens().read(&token)),
                ProblemCode::TokenInvalid,
                "{token}"
            );
        }
    }
}

#[test]
fn another_algorithm_with_our_own_key_is_invalid() {
    for algorithm in [Algorithm::HS384, Algorithm::HS512] {
        assert_eq!(
            code(tokens().read(&forged(algorithm, |_| ()))),
            ProblemCode::TokenInvalid
        );
    }
}

#[test]
fn every_claim_is_required_and_must_be_ours() {
    for claim in ["iss", "aud", "sub", "exp", "ver", "iat"] {
        let token = forged(Algorithm::HS256, |claims| {
            claims.as_object_mut().unwrap().remove(claim);
        });
        assert_eq!(
            code(tokens().read(&token)),
            ProblemCode::TokenInvalid,
            "{claim}"
        );
    }
    for (claim, value) in [
        ("iss", "else"),
        ("aud", "else"),
        ("sub", "x"),
        ("exp", "never"),
    ] {
        let token = forged(Algorithm::HS256, |claims| claims[claim] = json!(value));
        assert_eq!(
            code(tokens().read(&token)),
            ProblemCode::TokenInvalid,
            "{claim}"
        );
    }
}

#[test]
fn a_changed_payload_and_garbage_are_invalid() {
    let token = tokens().issue(BEARER).unwrap();
    let mut parts: Vec<_> = token.split('.').map(str::to_owned).collect();
    let payload = URL_SAFE_NO_PAD.decode(&parts[1]).unwrap();
    let payload = String::from_utf8(payload)
        .unwrap()
        .replace("\"7\"", "\"1\"");
    parts[1] = URL_SAFE_NO_PAD.encode(payload);
    for bad in [
        parts.join("."),
        String::new(),
        "a.b.c".into(),
        "...".into(),
        token + "x",
    ] {
        assert_eq!(
            code(tokens().read(&bad)),
            ProblemCode::TokenInvalid,
            "{bad}"
        );
    }
}

#[test]
fn tokens_of_an_older_key_are_good_until_it_leaves_the_file() {
    let old = Tokens::new(ring("k1", 1), Duration::from_secs(60))
        .issue(BEARER)
        .unwrap();
    let directory = std::env::temp_dir().join(format!("orion-apid-keys-{}", std::process::id()));
    let line = |id: &str, byte: u8| {
        format!(
            "{id}:{}\n",
            base64::engine::general_purpose::STANDARD.encode([byte; 32])
        )
    };
    let text = SecretString::from(line("k2", 2) + &line("k1", 1));
    orion_daemon::make_key_file(&directory, &text, "nobody-here").unwrap();
    let both = Tokens::new(Keyring::load(&directory).unwrap(), Duration::from_secs(60));
    std::fs::remove_file(&directory).unwrap();
    assert_eq!(both.read(&old).unwrap(), BEARER);
    let new = both.issue(BEARER).unwrap();
    assert_eq!(decode_header(&new).unwrap().kid.as_deref(), Some("k2"));
}
