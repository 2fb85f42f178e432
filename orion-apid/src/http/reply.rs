//! Answers as HTTP. The only file that knows status codes.

use http::{HeaderName, HeaderValue, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Bytes;
use orion_core::{Problem, ProblemCode};
use serde::Serialize;

use crate::http::problem::{Failure, Number};

/// An answer: a reply of a handler, or a problem.
pub type Answer = Response<Full<Bytes>>;

/// What a handler answers when all went well.
#[derive(Debug)]
pub struct Reply {
    status: StatusCode,
    body: Vec<u8>,
}

impl Reply {
    /// 200 with this body.
    ///
    /// # Errors
    /// `internal` where the body can't be written as JSON, which no type of ours can cause.
    pub fn ok(body: &impl Serialize) -> Result<Self, Failure> {
        Self::json(StatusCode::OK, body)
    }

    /// 201 with this body.
    ///
    /// # Errors
    /// As [`ok`](Self::ok).
    pub fn created(body: &impl Serialize) -> Result<Self, Failure> {
        Self::json(StatusCode::CREATED, body)
    }

    /// 503 with this body: the contract's health check has no problem body.
    ///
    /// # Errors
    /// As [`ok`](Self::ok).
    pub fn unavailable(body: &impl Serialize) -> Result<Self, Failure> {
        Self::json(StatusCode::SERVICE_UNAVAILABLE, body)
    }

    fn json(status: StatusCode, body: &impl Serialize) -> Result<Self, Failure> {
        let body = serde_json::to_vec(body).map_err(Failure::internal)?;
        Ok(Self { status, body })
    }

    /// As HTTP.
    pub fn into_answer(self, request_id: &str) -> Answer {
        let mut answer = respond(self.status, "application/json", self.body, request_id);
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            set(&mut answer, header::RETRY_AFTER, "1");
        }
        answer
    }
}

impl Failure {
    /// As HTTP: `application/problem+json` with the headers that go with the status.
    pub fn into_answer(self, request_id: &str) -> Answer {
        let (free, counter) = match self.number {
            None => (None, None),
            Some(Number::Free(free)) => (Some(free), None),
            Some(Number::Counter(counter)) => (None, Some(counter)),
        };
        let problem = Problem {
            errors: self.errors,
            free,
            counter,
            ..Problem::new(self.code, self.detail, request_id)
        };
        // Only texts and numbers: this can't fail, and if it did the status would still be right.
        let body = serde_json::to_vec(&problem).unwrap_or_default();
        let status =
            StatusCode::from_u16(self.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut answer = respond(status, "application/problem+json", body, request_id);
        let retry_after = self.retry_after_s.unwrap_or(1).to_string();
        match status {
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                set(&mut answer, header::RETRY_AFTER, &retry_after);
            }
            StatusCode::UNAUTHORIZED => {
                set(&mut answer, header::WWW_AUTHENTICATE, challenge(self.code));
            }
            StatusCode::METHOD_NOT_ALLOWED => {
                let allow = self.allow.unwrap_or_default();
                set(&mut answer, header::ALLOW, &allow);
            }
            StatusCode::REQUEST_TIMEOUT => set(&mut answer, header::CONNECTION, "close"),
            _ => {}
        }
        answer
    }
}

/// RFC 6750: no error code where no token was sent.
fn challenge(code: ProblemCode) -> &'static str {
    let signs = [
        ProblemCode::SignatureMissing,
        ProblemCode::SignatureInvalid,
        ProblemCode::NodeKeyMismatch,
        ProblemCode::CounterUsed,
        ProblemCode::JoinTokenRefused,
    ];
    if signs.contains(&code) {
        r#"Signature realm="orion""#
    } else if code == ProblemCode::TokenExpired {
        r#"Bearer realm="orion", error="invalid_token", error_description="expired""#
    } else if code == ProblemCode::TokenInvalid {
        r#"Bearer realm="orion", error="invalid_token""#
    } else {
        r#"Bearer realm="orion""#
    }
}

fn respond(
    status: StatusCode,
    content_type: &'static str,
    body: Vec<u8>,
    request_id: &str,
) -> Answer {
    let mut answer = Response::new(Full::from(body));
    *answer.status_mut() = status;
    set(&mut answer, header::CONTENT_TYPE, content_type);
    // Replies hold tokens, passwords and what was true a moment ago.
    set(&mut answer, header::CACHE_CONTROL, "no-store");
    set(
        &mut answer,
        HeaderName::from_static("x-request-id"),
        request_id,
    );
    answer
}

fn set(answer: &mut Answer, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        answer.headers_mut().insert(name, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;

    async fn problem_of(failure: Failure) -> (Answer, Problem) {
        let answer = failure.into_answer("0123");
        let (parts, body) = answer.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let problem = serde_json::from_slice(&bytes).unwrap();
        (Response::from_parts(parts, Full::new(bytes)), problem)
    }

    #[tokio::test]
    async fn every_code_becomes_a_problem_with_its_status_and_headers() {
        for code in ProblemCode::ALL {
            let (answer, problem) = problem_of(Failure::new(*code, "because")).await;
            let headers = answer.headers();
            assert_eq!(answer.status().as_u16(), code.status());
            assert_eq!(headers[header::CONTENT_TYPE], "application/problem+json");
            assert_eq!((problem.code, problem.status), (*code, code.status()));
            assert_eq!(
                (problem.detail.as_str(), problem.request_id.as_str()),
                ("because", "0123")
            );
            assert_eq!(problem.kind, format!("/problems/{}", code.as_str()));
            let again = matches!(code.status(), 429 | 503);
            assert_eq!(headers.contains_key(header::RETRY_AFTER), again, "{code:?}");
            let who = code.status() == 401;
            assert_eq!(
                headers.contains_key(header::WWW_AUTHENTICATE),
                who,
                "{code:?}"
            );
            let methods = code.status() == 405;
            assert_eq!(headers.contains_key(header::ALLOW), methods, "{code:?}");
        }
    }

    #[tokio::test]
    async fn a_problem_names_fields_and_free_nodes_only_where_there_are_some() {
        let (_, problem) = problem_of(Failure {
            number: Some(Number::Free(3)),
            ..Failure::field(ProblemCode::NoFreeNode, "count", "must be less")
        })
        .await;
        assert_eq!((problem.free, problem.errors.len()), (Some(3), 1));
        let plain = Failure::not_found("rental").into_answer("x");
        let bytes = plain.into_body().collect().await.unwrap().to_bytes();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        assert!(!text.contains("errors") && !text.contains("free"), "{text}");
    }

    #[tokio::test]
    async fn replies_are_json_and_never_cached() {
        let answer = Reply::created(&serde_json::json!({"message": "Compte créé"})).unwrap();
        let answer = answer.into_answer("77");
        assert_eq!(answer.status(), StatusCode::CREATED);
        assert_eq!(answer.headers()[header::CACHE_CONTROL], "no-store");
        assert_eq!(answer.headers()["x-request-id"], "77");
        let bytes = answer.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(bytes, "{\"message\":\"Compte créé\"}".as_bytes());
    }
}
