//! From a request to its answer: find the route, check the right, read the body, call the handler, log one line.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use http::request::Parts;
use http::{HeaderMap, Method, Request};
use hyper::body::{Bytes, Incoming};
use matchit::InsertError;
use orion_core::ProblemCode;

use crate::app::App;
use crate::auth::agent::{self, Agent};
use crate::auth::principal::principal;
use crate::health;
use crate::http::problem::{Failure, chain};
use crate::http::reply::{Answer, Reply};
use crate::http::request::{Call, discard, read_body};
use crate::http::route::{Handler, Handling, Right, Route, RouteTable};

/// One listener's table with everything its handlers work with.
#[derive(Debug)]
pub struct Front {
    app: Arc<App>,
    routes: RouteTable,
    for_agents: bool,
}

impl Front {
    /// The face of `app` on one listener.
    ///
    /// # Errors
    /// As [`RouteTable::new`].
    pub fn new(app: Arc<App>, routes: &'static [Route]) -> Result<Arc<Self>, InsertError> {
        Ok(Arc::new(Self {
            app,
            for_agents: routes.iter().any(|route| route.right() == Right::Agent),
            routes: RouteTable::new(routes)?,
        }))
    }

    /// Answers one request. It runs in a task of its own: a client that hangs up cancels nothing.
    pub async fn answer(self: Arc<Self>, request: Request<Incoming>, peer: SocketAddr) -> Answer {
        let start = Instant::now();
        let method = request.method().clone();
        let path: String = request.uri().path().chars().take(200).collect();
        // On the agents' listener alone: a client's answer must never pass for an agent's.
        let signs = self.for_agents && orion_signature::is_signed(request.headers());
        let signed = signs.then(|| request.headers().clone());
        let mut operation = "none";
        let (request_id, result) = match random_id() {
            Ok(id) => {
                let result = self.handle(request, &id, &mut operation).await;
                (id, result)
            }
            Err(failure) => (String::new(), Err(failure)),
        };
        if let Err(failure) = &result {
            log_cause(failure, &request_id);
        }
        let code = result.as_ref().err().map(|failure| failure.code.as_str());
        let answer = match result {
            Ok(reply) => reply.into_answer(&request_id),
            Err(failure) => failure.into_answer(&request_id),
        };
        let answer = match signed {
            Some(headers) => self.sign(answer, &headers, &request_id).await,
            None => answer,
        };
        let status = answer.status().as_u16();
        self.app.metrics.count(operation, status, start.elapsed());
        let ms = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
        tracing::info!(%method, ?path, operation, status, code, ms, request_id, %peer, "answered");
        answer
    }

    async fn handle(
        &self,
        request: Request<Incoming>,
        request_id: &str,
        operation: &mut &'static str,
    ) -> Result<Reply, Failure> {
        let (parts, body) = request.into_parts();
        let mode = self.app.settings.registration.mode;
        let (handler, parameter) = match self.admit(&parts, operation).await {
            Ok(admitted) => admitted,
            Err(failure) => {
                discard(&parts.headers, body);
                return Err(failure);
            }
        };
        let body = if parts.method == Method::POST {
            read_body(&parts.headers, body).await?
        } else {
            discard(&parts.headers, body);
            Bytes::new()
        };
        let handler = match handler {
            Admitted::Complete(handler) => handler,
            Admitted::Agent(handler) => {
                let agent = agent::agent(mode, &parts, &body).await?;
                Box::new(move |call| handler(call, agent))
            }
        };
        handler(Call {
            app: Arc::clone(&self.app),
            request_id: request_id.to_owned(),
            body,
            parameter,
            query: parts.uri.query().unwrap_or_default().to_owned(),
            headers: parts.headers,
        })
        .await
    }

    /// Finds the route and checks the caller's right; only then is a body read.
    async fn admit(
        &self,
        parts: &Parts,
        operation: &mut &'static str,
    ) -> Result<(Admitted, Option<(String, String)>), Failure> {
        let found = self.routes.find(&parts.method, parts.uri.path())?;
        *operation = found.route.operation;
        // Health says by itself that we are not ready; everything else would fail one by one.
        if !self.app.gate.is_open() && found.route.operation != health::OPERATION {
            return Err(Failure::not_ready());
        }
        let caller = || principal(&parts.headers, &self.app.tokens, &self.app.store);
        let handler = match found.route.handler {
            Handler::Public(handler) => Admitted::Complete(Box::new(handler)),
            Handler::User(handler) => {
                let principal = caller().await?;
                Admitted::Complete(Box::new(move |call| handler(call, principal)))
            }
            Handler::Admin(handler) => {
                let admin = caller().await?.into_admin()?;
                Admitted::Complete(Box::new(move |call| handler(call, admin)))
            }
            Handler::Agent(handler) => {
                agent::admit(self.app.settings.registration.mode, parts)?;
                Admitted::Agent(handler)
            }
        };
        Ok((handler, found.parameter))
    }

    /// Whoever signs a request gets a signed answer, whatever it says: an unsigned one could be anybody's.
    async fn sign(&self, answer: Answer, request: &HeaderMap, request_id: &str) -> Answer {
        let keys = &self.app.signing_keys;
        match orion_signature::sign_answer(answer.clone(), request, keys).await {
            Ok(signed) => signed,
            Err(error) => {
                // The request's signature can't be read: there is nothing that an answer could belong to.
                tracing::debug!(request_id, %error, "an answer was not signed");
                answer
            }
        }
    }
}

/// A handler that was given its caller.
type Complete = Box<dyn FnOnce(Call) -> Handling + Send>;

/// A handler whose caller may call it.
enum Admitted {
    Complete(Complete),
    /// The body is part of the proof.
    Agent(fn(Call, Agent) -> Handling),
}

/// 32 random hexadecimal digits.
fn random_id() -> Result<String, Failure> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| Failure::internal(error.to_string()))?;
    Ok(u128::from_be_bytes(bytes)).map(|number| format!("{number:032x}"))
}

/// The one place where the cause of a failure is logged.
fn log_cause(failure: &Failure, request_id: &str) {
    let Some(cause) = &failure.cause else {
        return;
    };
    let cause = chain(cause.as_ref());
    let code = failure.code.as_str();
    if failure.code == ProblemCode::Internal {
        tracing::error!(request_id, code, cause, "a request failed");
    } else {
        tracing::warn!(request_id, code, cause, "a request failed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_ids_are_32_hexadecimal_digits_and_differ() {
        let (first, second) = (random_id().unwrap(), random_id().unwrap());
        assert_ne!(first, second);
        assert!(first.len() == 32 && first.bytes().all(|byte| byte.is_ascii_hexdigit()));
    }
}
