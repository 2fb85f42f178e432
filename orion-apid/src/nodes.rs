//! Nodes as clients and administrators see them.

use orion_core::api::Message;
use orion_core::{NodeId, ProblemCode};
use orion_store::{Approval, Drain, Forget, Unquarantine};

use crate::auth::principal::{Admin, Principal};
use crate::http::problem::Failure;
use crate::http::reply::Reply;
use crate::http::request::{Call, parameters};

/// `GET /api/nodes`: all of them, with the caller's own rentals; an administrator sees everybody's.
///
/// # Errors
/// `database_down`.
pub async fn list(call: Call, principal: Principal) -> Result<Reply, Failure> {
    Reply::ok(&call.app.store.nodes(principal.scope()).await?)
}

/// `GET /api/nodes/{node_id}`.
///
/// # Errors
/// `not_found`.
pub async fn get(call: Call, principal: Principal) -> Result<Reply, Failure> {
    let id = call.path_id(NodeId)?;
    let node = call.app.store.node(principal.scope(), id).await?;
    Reply::ok(&node.ok_or_else(|| Failure::not_found("node"))?)
}

/// `DELETE /api/nodes/{node_id}`: the node is forgotten; its agent may register it again, as a new one.
///
/// # Errors
/// `not_found`; `wrong_state` while a rental is on it, or a debt and it is neither dead nor quarantined.
pub async fn forget(call: Call, admin: Admin) -> Result<Reply, Failure> {
    let node = call.path_id(NodeId)?;
    match call.app.store.forget_node(node).await? {
        Forget::Done => {
            tracing::info!(%node, by = %admin.id, request_id = call.request_id, "node forgotten");
            Reply::ok(&Message {
                message: "Node forgotten".to_owned(),
            })
        }
        Forget::NotFound => Err(Failure::not_found("node")),
        Forget::Held => Err(Failure::new(
            ProblemCode::WrongState,
            "a rental or a debt holds the node; release the rental, or wait until the account is seen gone; a dead or quarantined node can be deleted with its debt",
        )),
    }
}

/// `POST /api/nodes/{node_id}/release-from-quarantine`: the node joins again and is inspected before anybody gets it.
///
/// # Errors
/// `not_found`; `wrong_state` where it is not quarantined, or a rental is on it.
pub async fn release_from_quarantine(call: Call, admin: Admin) -> Result<Reply, Failure> {
    let node = call.path_id(NodeId)?;
    call.no_fields()?;
    match call.app.store.release_from_quarantine(node).await? {
        Unquarantine::Done => {
            tracing::info!(%node, by = %admin.id, request_id = call.request_id, "released from quarantine");
            call.app.schedd.look();
            Reply::ok(&Message {
                message: "Node released from quarantine".to_owned(),
            })
        }
        Unquarantine::NotFound => Err(Failure::not_found("node")),
        Unquarantine::WrongState(now) => {
            let detail = format!("the node is not quarantined but {now}");
            Err(Failure::new(ProblemCode::WrongState, detail))
        }
        Unquarantine::Held => Err(Failure::new(
            ProblemCode::WrongState,
            "a rental is on the node; release it, or wait until it ends",
        )),
    }
}

/// `POST /api/nodes/{node_id}/approve`: lets a node in that registered in mode `approve`.
///
/// # Errors
/// `not_found`; `wrong_state` where it does not wait for that.
pub async fn approve(call: Call, admin: Admin) -> Result<Reply, Failure> {
    let node = call.path_id(NodeId)?;
    call.no_fields()?;
    match call.app.store.approve_node(node).await? {
        Approval::Done => {
            tracing::info!(%node, by = %admin.id, request_id = call.request_id, "node approved");
            call.app.schedd.look();
            Reply::ok(&Message {
                message: "Node approved".to_owned(),
            })
        }
        Approval::NotFound => Err(Failure::not_found("node")),
        Approval::NotAwaited => Err(Failure::new(
            ProblemCode::WrongState,
            "the node does not wait for approval",
        )),
    }
}

/// `POST /api/nodes/{node_id}/drain?move=false&dry_run=false`: it takes no new rental; the one it has runs out, or is
/// moved. A dry run changes nothing and tells what would be moved.
///
/// # Errors
/// `invalid_value` naming the query's parameter, `not_found`.
pub async fn drain(call: Call, admin: Admin) -> Result<Reply, Failure> {
    let node = call.path_id(NodeId)?;
    call.no_fields()?;
    let [moves, dry_run] = parameters(&call.query, ["move", "dry_run"])?;
    let (moves, dry_run) = (flag("move", moves)?, flag("dry_run", dry_run)?);
    if dry_run {
        let plan = call.app.store.plan_drain(node).await?;
        return Reply::ok(&plan.ok_or_else(|| Failure::not_found("node"))?);
    }
    let drain = if moves { Drain::Moves } else { Drain::RunsOut };
    set_draining(&call, &admin, node, drain, "Node draining").await
}

/// `POST /api/nodes/{node_id}/undrain`: a rental that is only half moved stays.
///
/// # Errors
/// `invalid_value` naming whatever parameter there is, `not_found`.
pub async fn undrain(call: Call, admin: Admin) -> Result<Reply, Failure> {
    let node = call.path_id(NodeId)?;
    call.no_fields()?;
    let [] = parameters(&call.query, [])?;
    set_draining(&call, &admin, node, Drain::No, "Node not draining").await
}

async fn set_draining(
    call: &Call,
    admin: &Admin,
    node: NodeId,
    drain: Drain,
    message: &str,
) -> Result<Reply, Failure> {
    if !call.app.store.set_draining(node, drain).await? {
        return Err(Failure::not_found("node"));
    }
    tracing::info!(%node, ?drain, by = %admin.id, request_id = call.request_id, "draining set");
    Reply::ok(&Message {
        message: message.to_owned(),
    })
}

/// False unless it is given.
fn flag(name: &str, value: Option<&str>) -> Result<bool, Failure> {
    match value {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(_) => {
            let detail = "must be true or false";
            Err(Failure::field(ProblemCode::InvalidValue, name, detail))
        }
    }
}

/// `POST /api/migration/override`: rentals move for ten minutes although much has failed at once.
///
/// # Errors
/// `database_down`.
pub async fn override_migration(call: Call, admin: Admin) -> Result<Reply, Failure> {
    call.no_fields()?;
    call.app.store.override_brakes().await?;
    tracing::warn!(by = %admin.id, request_id = call.request_id, "rentals may move although much has failed");
    Reply::ok(&Message {
        message: "Migration goes on for ten minutes".to_owned(),
    })
}
