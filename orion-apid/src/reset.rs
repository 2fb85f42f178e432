//! `POST /api/reset`, for the lab.

use orion_core::ProblemCode;
use orion_core::api::Message;

use crate::auth::principal::Admin;
use crate::http::problem::Failure;
use crate::http::reply::Reply;
use crate::http::request::Call;

/// Ends every live rental and lets every node join again.
///
/// # Errors
/// `reset_disabled` unless `dev.allow_reset` is set.
pub async fn reset(call: Call, admin: Admin) -> Result<Reply, Failure> {
    call.no_fields()?;
    if !call.app.settings.dev.allow_reset {
        let detail = "only where `dev.allow_reset` is set, which no production does";
        return Err(Failure::new(ProblemCode::ResetDisabled, detail));
    }
    call.app.store.reset().await?;
    tracing::warn!(by = %admin.id, request_id = call.request_id, "reset");
    call.app.schedd.look();
    Reply::ok(&Message {
        message: "DB reset OK".to_owned(),
    })
}
