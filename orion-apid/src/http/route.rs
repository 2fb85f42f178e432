//! The two route tables. A row says method, path, operation and right; the handler's own arguments are the right, so a
//! row can't promise another one than its handler demands.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;

use http::Method;
use matchit::{InsertError, Router};
use orion_core::ProblemCode;

use crate::auth::agent::Agent;
use crate::auth::principal::{Admin, Principal};
use crate::http::problem::Failure;
use crate::http::reply::Reply;
use crate::http::request::Call;
use crate::{clock, health, join_tokens, nodes, rentals, reset, runs, users, workers};

/// What a handler returns.
pub type Handling = Pin<Box<dyn Future<Output = Result<Reply, Failure>> + Send>>;

/// A handler, by what it must be given.
#[derive(Clone, Copy)]
pub enum Handler {
    /// Anybody may call it.
    Public(fn(Call) -> Handling),
    /// Whoever has a good token.
    User(fn(Call, Principal) -> Handling),
    /// Administrators.
    Admin(fn(Call, Admin) -> Handling),
    /// Agents; `registration.mode` decides how they prove it.
    Agent(fn(Call, Agent) -> Handling),
}

/// Who may call a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Right {
    /// Anybody.
    Public,
    /// Whoever has a good token.
    User,
    /// Administrators.
    Admin,
    /// Agents.
    Agent,
}

/// One row of a table.
pub struct Route {
    /// The method. HEAD goes wherever GET goes.
    pub method: Method,
    /// The path, with at most one parameter in braces.
    pub pattern: &'static str,
    /// The name in logs and metrics.
    pub operation: &'static str,
    /// What it does, and for whom.
    pub handler: Handler,
}

impl Route {
    /// Who may call it.
    pub fn right(&self) -> Right {
        match self.handler {
            Handler::Public(_) => Right::Public,
            Handler::User(_) => Right::User,
            Handler::Admin(_) => Right::Admin,
            Handler::Agent(_) => Right::Agent,
        }
    }
}

impl fmt::Debug for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {} ({}, {:?})",
            self.method,
            self.pattern,
            self.operation,
            self.right()
        )
    }
}

/// `route!(METHOD "/path" "operation" Right handler)`
macro_rules! route {
    ($method:ident $pattern:literal $operation:literal User $handler:path) => {
        route!(@row $method $pattern $operation Handler::User(|call, principal| Box::pin($handler(call, principal))))
    };
    ($method:ident $pattern:literal $operation:literal Admin $handler:path) => {
        route!(@row $method $pattern $operation Handler::Admin(|call, admin| Box::pin($handler(call, admin))))
    };
    ($method:ident $pattern:literal $operation:literal Agent $handler:path) => {
        route!(@row $method $pattern $operation Handler::Agent(|call, agent| Box::pin($handler(call, agent))))
    };
    ($method:ident $pattern:literal $operation:literal $right:ident $handler:path) => {
        route!(@row $method $pattern $operation Handler::$right(|call| Box::pin($handler(call))))
    };
    (@row $method:ident $pattern:literal $operation:literal $handler:expr) => {
        Route {
            method: Method::$method,
            pattern: $pattern,
            operation: $operation,
            handler: $handler,
        }
    };
}

/// The clients' listener.
pub const CLIENT_ROUTES: &[Route] = &[
    route!(POST "/auth/signup" "signup" Public users::signup),
    route!(POST "/auth/login" "login" Public users::login),
    route!(POST "/api/rent" "rent" User rentals::rent::rent),
    route!(POST "/api/release/{rental_id}" "release" User rentals::release),
    route!(POST "/api/extend/{rental_id}" "extend" User rentals::extend),
    route!(GET "/api/rentals" "list_rentals" User rentals::list),
    route!(GET "/api/rentals/{rental_id}" "get_rental" User rentals::get),
    route!(GET "/api/nodes" "list_nodes" User nodes::list),
    route!(GET "/api/nodes/{node_id}" "get_node" User nodes::get),
    route!(DELETE "/api/nodes/{node_id}" "forget_node" Admin nodes::forget),
    route!(POST "/api/nodes/{node_id}/release-from-quarantine" "release_from_quarantine" Admin nodes::release_from_quarantine),
    route!(POST "/api/nodes/{node_id}/approve" "approve_node" Admin nodes::approve),
    route!(POST "/api/nodes/{node_id}/drain" "drain_node" Admin nodes::drain),
    route!(POST "/api/nodes/{node_id}/undrain" "undrain_node" Admin nodes::undrain),
    route!(POST "/api/migration/override" "override_migration" Admin nodes::override_migration),
    route!(POST "/api/clock/accept" "accept_clock" Admin clock::accept),
    route!(POST "/api/join-tokens" "create_join_token" Admin join_tokens::create),
    route!(GET "/api/join-tokens" "list_join_tokens" Admin join_tokens::list),
    route!(DELETE "/api/join-tokens/{join_token_id}" "revoke_join_token" Admin join_tokens::revoke),
    route!(GET "/api/runs" "list_runs" Admin runs::list),
    route!(GET "/api/runs/{run_id}" "get_run" Admin runs::get),
    route!(GET "/api/health" "health" Public health::health),
    route!(POST "/api/reset" "reset" Admin reset::reset),
];

/// The agents' listener.
pub const AGENT_ROUTES: &[Route] = &[
    route!(POST "/api/workers/register" "register" Agent workers::register::register),
    route!(POST "/api/workers/beat" "beat" Agent workers::beat::beat),
];

/// A table made ready for matching.
#[derive(Debug)]
pub struct RouteTable {
    paths: Router<HashMap<Method, &'static Route>>,
}

/// What a request's method and path lead to.
#[derive(Debug)]
pub struct Matched {
    /// The row.
    pub route: &'static Route,
    /// The path's parameter with its name.
    pub parameter: Option<(String, String)>,
}

impl RouteTable {
    /// Makes a table ready.
    ///
    /// # Errors
    /// Where two patterns contradict each other; the tables here do not, which a test proves.
    pub fn new(routes: &'static [Route]) -> Result<Self, InsertError> {
        let mut methods: HashMap<&str, HashMap<Method, &'static Route>> = HashMap::new();
        for route in routes {
            let of_path = methods.entry(route.pattern).or_default();
            of_path.insert(route.method.clone(), route);
            if route.method == Method::GET {
                of_path.insert(Method::HEAD, route);
            }
        }
        let mut paths = Router::new();
        for (pattern, of_path) in methods {
            paths.insert(pattern, of_path)?;
        }
        Ok(Self { paths })
    }

    /// The row for a method and a path.
    ///
    /// # Errors
    /// `not_found`, or `method_not_allowed` with the methods there are.
    pub fn find(&self, method: &Method, path: &str) -> Result<Matched, Failure> {
        let Ok(found) = self.paths.at(path) else {
            return Err(Failure::new(ProblemCode::NotFound, "there is no such path"));
        };
        let Some(route) = found.value.get(method) else {
            let mut allowed: Vec<&str> = found.value.keys().map(Method::as_str).collect();
            allowed.sort_unstable();
            let allowed = allowed.join(", ");
            return Err(Failure {
                allow: Some(allowed.clone()),
                ..Failure::new(ProblemCode::MethodNotAllowed, format!("only {allowed}"))
            });
        };
        let parameter = found.params.iter().next();
        Ok(Matched {
            route,
            parameter: parameter.map(|(name, value)| (name.to_owned(), value.to_owned())),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn the_tables_have_no_contradictions_and_every_row_is_found() {
        for routes in [CLIENT_ROUTES, AGENT_ROUTES] {
            let table = RouteTable::new(routes).unwrap();
            for route in routes {
                let path = route
                    .pattern
                    .replace("{rental_id}", "1")
                    .replace("{node_id}", "2");
                let path = path
                    .replace("{run_id}", "3")
                    .replace("{join_token_id}", "4");
                let found = table.find(&route.method, &path).unwrap();
                assert_eq!(found.route.operation, route.operation);
                assert_eq!(found.parameter.is_some(), route.pattern.contains('{'));
            }
        }
    }

    #[test]
    fn every_operation_has_a_name_of_its_own() {
        let all: Vec<_> = CLIENT_ROUTES
            .iter()
            .chain(AGENT_ROUTES)
            .map(|route| route.operation)
            .collect();
        assert_eq!(all.iter().collect::<HashSet<_>>().len(), all.len());
    }

    #[test]
    fn agents_have_two_routes_and_clients_none_of_them() {
        let operations: Vec<_> = AGENT_ROUTES.iter().map(|route| route.operation).collect();
        assert_eq!(operations, ["register", "beat"]);
        assert!(
            AGENT_ROUTES
                .iter()
                .all(|route| route.right() == Right::Agent)
        );
        assert!(
            CLIENT_ROUTES
                .iter()
                .all(|route| route.right() != Right::Agent)
        );
        let clients = RouteTable::new(CLIENT_ROUTES).unwrap();
        let failure = clients
            .find(&Method::POST, "/api/workers/register")
            .unwrap_err();
        assert_eq!(failure.code, ProblemCode::NotFound);
    }

    #[test]
    fn an_unknown_path_is_404_and_a_wrong_method_is_405_with_the_right_ones() {
        let table = RouteTable::new(CLIENT_ROUTES).unwrap();
        for path in [
            "/",
            "/api",
            "/api/rentals/",
            "/api/rentals/1/x",
            "//api/nodes",
            "/API/nodes",
            "/api/rentals/../nodes",
        ] {
            assert_eq!(
                table.find(&Method::GET, path).unwrap_err().code,
                ProblemCode::NotFound,
                "{path}"
            );
        }
        let failure = table.find(&Method::PUT, "/api/nodes/7").unwrap_err();
        assert_eq!(failure.code, ProblemCode::MethodNotAllowed);
        assert_eq!(failure.allow.as_deref(), Some("DELETE, GET, HEAD"));
    }

    #[test]
    fn only_what_the_contract_says_is_public() {
        let public: Vec<_> = CLIENT_ROUTES
            .iter()
            .filter(|route| route.right() == Right::Public)
            .collect();
        let public: Vec<_> = public.iter().map(|route| route.operation).collect();
        assert_eq!(public, ["signup", "login", "health"]);
    }
}
