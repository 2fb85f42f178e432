use super::*;
use http::{Method, StatusCode};

fn key(byte: u8) -> SigningKey {
    SigningKey::from_seed(&Seed::from_bytes([byte; 32])).unwrap()
}

fn beat(body: &'static str) -> Request<Full<Bytes>> {
    Request::builder()
        .method(Method::POST)
        .uri("/api/workers/beat")
        .header("content-type", "application/json")
        .body(Full::from(body))
        .unwrap()
}

async fn taken_apart(request: Request<Full<Bytes>>) -> (Parts, Bytes) {
    let (parts, body) = request.into_parts();
    (parts, body.collect().await.unwrap().to_bytes())
}

async fn signed(counter: u64) -> (Parts, Bytes) {
    let key = key(1);
    let request = beat("{\"node_id\":1}");
    let request = sign_request(request, counter, &[(Signer::Agent, &key)]).await;
    taken_apart(request.unwrap()).await
}

fn answer(body: &'static str) -> Response<Full<Bytes>> {
    Response::builder()
        .status(StatusCode::OK)
        .body(Full::from(body))
        .unwrap()
}

#[tokio::test]
async fn a_request_proves_its_keys_and_its_counter() {
    let keys = [key(1), key(2), key(3)];
    let [agent, token, next] = &keys;
    let all = [
        (Signer::Agent, agent),
        (Signer::Token, token),
        (Signer::NextKey, next),
    ];
    let (parts, body) = taken_apart(sign_request(beat("{}"), 7, &all).await.unwrap()).await;
    let expected = VerifiedRequest {
        agent: agent.public(),
        token: Some(token.public()),
        next_key: Some(next.public()),
        counter: 7,
    };
    assert_eq!(verify_request(&parts, &body).await, Ok(expected));
}

#[tokio::test]
async fn a_request_whose_method_path_body_or_counter_changed_is_refused() {
    let (good, body) = signed(7).await;
    assert!(verify_request(&good, &body).await.is_ok());
    assert!(
        verify_request(&good, &Bytes::from_static(b"{\"node_id\":2}"))
            .await
            .is_err()
    );

    let mut parts = good.clone();
    parts.method = Method::PUT;
    assert!(verify_request(&parts, &body).await.is_err());

    let mut parts = good.clone();
    parts.uri = "/api/workers/register".parse().unwrap();
    assert!(verify_request(&parts, &body).await.is_err());

    for counter in ["8", "07", "+7", "7.0", ""] {
        let mut parts = good.clone();
        parts.headers.insert(COUNTER, counter.parse().unwrap());
        assert!(verify_request(&parts, &body).await.is_err(), "{counter}");
    }
    for header in [
        "orion-counter",
        "orion-keys",
        "content-digest",
        "signature",
        "signature-input",
    ] {
        let mut parts = good.clone();
        parts.headers.remove(header);
        assert!(
            verify_request(&parts, &body).await.is_err(),
            "{header} removed"
        );
        let mut parts = good.clone();
        let twice = parts.headers[header].clone();
        parts.headers.append(header, twice);
        let doubled = verify_request(&parts, &body).await;
        // Two equal dictionaries joined are one: the last of equal names wins, and it is the same.
        assert!(
            doubled.is_err() || header.starts_with("signature"),
            "{header} twice"
        );
    }
    let mut parts = good.clone();
    let (other, _) = taken_apart(
        sign_request(beat("{}"), 7, &[(Signer::Agent, &key(1))])
            .await
            .unwrap(),
    )
    .await;
    parts
        .headers
        .insert("content-digest", other.headers["content-digest"].clone());
    assert!(verify_request(&parts, &body).await.is_err());
}

#[tokio::test]
async fn a_signature_that_covers_too_little_is_refused() {
    let key = key(1);
    for covered in [
        &REQUEST_COMPONENTS[..4],
        &REQUEST_COMPONENTS[1..],
        &[
            "\"@method\"",
            "\"@path\"",
            "\"orion-counter\"",
            "\"orion-keys\"",
        ],
        &["\"@method\""],
        &[],
    ] {
        let (mut parts, body) = signed(7).await;
        parts.headers.remove(SIGNATURE);
        parts.headers.remove(SIGNATURE_INPUT);
        let mut request = Request::from_parts(parts, Full::new(body.clone()));
        let params = params(covered, &key).unwrap();
        request
            .set_message_signature(&params, &key.secret, Some("agent"))
            .await
            .unwrap();
        let (parts, _) = request.into_parts();
        let said = verify_request(&parts, &body).await.unwrap_err();
        assert!(said.to_string().contains("covers other parts"), "{said}");
    }
}

#[tokio::test]
async fn a_signature_names_the_key_that_made_it() {
    let (good, body) = signed(7).await;
    let input = good.headers[SIGNATURE_INPUT].to_str().unwrap().to_owned();
    let mine = key(1).public().to_string();
    for other in [key(2).public().to_string(), "x".to_owned(), String::new()] {
        let mut parts = good.clone();
        parts.headers.insert(
            SIGNATURE_INPUT,
            input.replace(&mine, &other).parse().unwrap(),
        );
        assert!(verify_request(&parts, &body).await.is_err(), "{other}");
    }
}

#[tokio::test]
async fn a_request_without_the_agents_signature_is_not_signed() {
    let request = sign_request(beat("{}"), 7, &[(Signer::Token, &key(2))])
        .await
        .unwrap();
    let (parts, body) = taken_apart(request).await;
    assert!(matches!(
        verify_request(&parts, &body).await,
        Err(SignatureError::Missing(_))
    ));
    let (parts, body) = taken_apart(beat("{}")).await;
    assert_eq!(
        verify_request(&parts, &body).await,
        Err(SignatureError::Missing(""))
    );
}

#[tokio::test]
async fn garbage_in_the_headers_is_refused() {
    let (good, body) = signed(7).await;
    for garbage in [
        "",
        "x",
        "agent=:AAAA:",
        "agent=();keyid=\"\"",
        "agent=(\"@method\"",
        "\u{7f}",
        "a=1, b=2",
    ] {
        for header in [SIGNATURE, SIGNATURE_INPUT, CONTENT_DIGEST] {
            let mut parts = good.clone();
            parts.headers.insert(
                header,
                HeaderValue::from_bytes(garbage.as_bytes())
                    .unwrap_or(HeaderValue::from_static("?")),
            );
            assert!(
                verify_request(&parts, &body).await.is_err(),
                "{header}: {garbage}"
            );
        }
    }
}

#[tokio::test]
async fn an_answer_belongs_to_one_request() {
    let (request, _) = signed(7).await;
    let signed_answer = sign_answer(answer("{\"next_beat_s\":5}"), &request.headers, &[key(9)])
        .await
        .unwrap();
    let trusted = [key(9).public()];
    assert_eq!(
        verify_answer(signed_answer.clone(), &request.headers, &trusted).await,
        Ok(())
    );
    let (other, _) = signed(8).await;
    assert!(
        verify_answer(signed_answer.clone(), &other.headers, &trusted)
            .await
            .is_err()
    );
    let another = sign_request(beat("{\"node_id\":1}"), 7, &[(Signer::Agent, &key(2))])
        .await
        .unwrap();
    assert!(
        verify_answer(signed_answer, another.headers(), &trusted)
            .await
            .is_err()
    );
}

#[tokio::test]
async fn an_answer_whose_status_or_body_changed_is_refused() {
    let (request, _) = signed(7).await;
    let trusted = [key(9).public()];
    let good = sign_answer(answer("{}"), &request.headers, &[key(9)])
        .await
        .unwrap();
    let mut other = good.clone();
    *other.status_mut() = StatusCode::NOT_FOUND;
    assert!(
        verify_answer(other, &request.headers, &trusted)
            .await
            .is_err()
    );
    let other = good.clone().map(|_| Full::from("{ }"));
    assert!(
        verify_answer(other, &request.headers, &trusted)
            .await
            .is_err()
    );
    let mut other = good;
    other.headers_mut().remove(SIGNATURE);
    other.headers_mut().remove(SIGNATURE_INPUT);
    assert_eq!(
        verify_answer(other, &request.headers, &trusted).await,
        Err(SignatureError::Missing(""))
    );
}

#[tokio::test]
async fn an_answer_is_believed_by_whoever_knows_one_of_its_keys() {
    let (request, _) = signed(7).await;
    let both = sign_answer(answer("{}"), &request.headers, &[key(9), key(8)])
        .await
        .unwrap();
    for knows in [key(8), key(9)] {
        assert_eq!(
            verify_answer(both.clone(), &request.headers, &[knows.public()]).await,
            Ok(())
        );
    }
    let stranger = verify_answer(both, &request.headers, &[key(7).public()]).await;
    assert!(matches!(stranger, Err(SignatureError::Missing(_))));
}

#[test]
fn keys_do_not_print() {
    let printed = format!("{:?} {:#?}", key(0xa5), key(0xa5));
    assert!(!printed.contains("165") && printed.contains(&key(0xa5).public().to_string()));
}

/// The headers of the same request as sealed by others.
async fn sealed_by(keys: &[(Signer, &SigningKey)]) -> (Parts, Bytes) {
    let request = sign_request(beat("{\"node_id\":1}"), 7, keys).await;
    taken_apart(request.unwrap()).await
}

/// `good` with the signature `label` of `other`, under that label or another.
fn spliced(good: &Parts, other: &Parts, from: &str, to: &str) -> Parts {
    let mut parts = good.clone();
    for header in [SIGNATURE, SIGNATURE_INPUT] {
        let mut values: Vec<HeaderValue> = good.headers.get_all(header).iter().cloned().collect();
        values.retain(|value| !value.to_str().unwrap().starts_with(&format!("{to}=")));
        let theirs = other.headers.get_all(header).iter();
        for value in
            theirs.filter_map(|value| value.to_str().unwrap().strip_prefix(&format!("{from}=")))
        {
            values.push(format!("{to}={value}").parse().unwrap());
        }
        parts.headers.remove(header);
        for value in values {
            parts.headers.append(header, value);
        }
    }
    parts
}

#[tokio::test]
async fn no_signature_can_be_added_taken_off_or_passed_off_as_another() {
    let (agent, token, thief) = (key(1), key(2), key(3));
    let (good, body) = sealed_by(&[(Signer::Agent, &agent), (Signer::Token, &token)]).await;
    let (theirs, _) = sealed_by(&[
        (Signer::Agent, &thief),
        (Signer::Token, &thief),
        (Signer::NextKey, &thief),
    ])
    .await;
    let (plain, _) = sealed_by(&[(Signer::Agent, &agent)]).await;
    assert!(verify_request(&good, &body).await.is_ok());
    let attacks = [
        (
            "a next key of the thief's",
            spliced(&good, &theirs, "next", "next"),
        ),
        (
            "the token with the thief's key",
            spliced(&good, &theirs, "agent", "agent"),
        ),
        (
            "the token's signature as the agent's",
            spliced(&good, &good, "token", "agent"),
        ),
        (
            "without the token",
            spliced(&good, &plain, "token", "token"),
        ),
        (
            "with the thief's token",
            spliced(&plain, &theirs, "token", "token"),
        ),
    ];
    for (what, parts) in attacks {
        assert!(verify_request(&parts, &body).await.is_err(), "{what}");
        // Nor with the list of keys changed to fit.
        for list in [&theirs, &plain] {
            let mut parts = parts.clone();
            parts.headers.insert(KEYS, list.headers[KEYS].clone());
            assert!(
                verify_request(&parts, &body).await.is_err(),
                "{what}, list changed"
            );
        }
    }
}
