//! The database's clock, where an administrator must judge it.

use orion_core::ProblemCode;
use orion_core::api::Message;

use crate::auth::principal::Admin;
use crate::http::problem::Failure;
use crate::http::reply::Reply;
use crate::http::request::Call;

/// `POST /api/clock/accept`: a clock that stepped is right as it is.
///
/// # Errors
/// `wrong_state` where it has not stepped.
pub async fn accept(call: Call, admin: Admin) -> Result<Reply, Failure> {
    call.no_fields()?;
    if !call.app.store.accept_clock().await? {
        let detail = "the database's clock has not stepped, or is back";
        return Err(Failure::new(ProblemCode::WrongState, detail));
    }
    tracing::warn!(by = %admin.id, request_id = call.request_id, "the database's clock is accepted as it is");
    Reply::ok(&Message {
        message: "Clock accepted".to_owned(),
    })
}
