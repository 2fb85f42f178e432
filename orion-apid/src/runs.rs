//! Runs, for administrators: why a step on a worker failed.

use orion_core::{ProblemCode, RunId};

use crate::auth::principal::Admin;
use crate::http::problem::Failure;
use crate::http::reply::Reply;
use crate::http::request::{Call, parameters};

/// How many runs one answer may hold.
const MAX_LIMIT: u32 = 1000;

/// `GET /api/runs?limit=100`: the newest first, without output.
///
/// # Errors
/// `invalid_value` naming the query's parameter.
pub async fn list(call: Call, _: Admin) -> Result<Reply, Failure> {
    let limit = limit(&call.query)?;
    Reply::ok(&call.app.store.runs(limit).await?)
}

/// `GET /api/runs/{run_id}`: one run with its bounded output.
///
/// # Errors
/// `not_found`.
pub async fn get(call: Call, _: Admin) -> Result<Reply, Failure> {
    let id = call.path_id(RunId)?;
    let run = call.app.store.run(id).await?;
    Reply::ok(&run.ok_or_else(|| Failure::not_found("run"))?)
}

fn limit(query: &str) -> Result<u32, Failure> {
    let [Some(value)] = parameters(query, ["limit"])? else {
        return Ok(100);
    };
    let limit = value.parse().ok();
    limit
        .filter(|limit| (1..=MAX_LIMIT).contains(limit))
        .ok_or_else(|| {
            let range = format!("must be 1 to {MAX_LIMIT}");
            Failure::field(ProblemCode::InvalidValue, "limit", range)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_100_unless_a_good_one_is_given() {
        assert_eq!(limit("").unwrap(), 100);
        assert_eq!(limit("limit=7").unwrap(), 7);
        for bad in ["limit=0", "limit=1001", "limit=x", "limit", "limit=-1"] {
            assert_eq!(limit(bad).unwrap_err().errors[0].field, "limit", "{bad}");
        }
        assert_eq!(limit("size=1").unwrap_err().errors[0].field, "size");
    }
}
