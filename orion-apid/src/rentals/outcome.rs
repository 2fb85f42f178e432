//! Waiting for a request's one decision, and the answer that follows from it. The request's row decides; here it is only
//! read.

use std::future::Future;
use std::time::Duration;

use orion_core::api::RentedMachine;
use orion_core::{Password, ProblemCode, RequestId, RequestState, UndoReason, UserName};
use orion_store::{RequestRental, RequestView, StoreError};
use tokio::time::Instant;

use crate::app::App;
use crate::http::problem::Failure;
use crate::rentals::ssh_password;

/// How often the database is asked while schedd says nothing: it may be another host's schedd that does the work.
const POLL: Duration = Duration::from_millis(250);

/// How long beyond a request's deadline its answer may take when the database stumbles.
const GRACE: Duration = Duration::from_secs(5);

/// After how long another try makes sense when machines could not be prepared (seconds).
const RETRY_FAILED_S: u32 = 5;

/// When a rent that began now gives up on an absent database.
pub(super) fn give_up_at(app: &App) -> Instant {
    Instant::now() + app.settings.rent.deadline() + GRACE
}

/// Repeats `work` while the database is away, until `until`. Only for what may happen twice.
///
/// # Errors
/// The last error.
pub(super) async fn patiently<T, F>(
    until: Instant,
    mut work: impl FnMut() -> F,
) -> Result<T, StoreError>
where
    F: Future<Output = Result<T, StoreError>>,
{
    loop {
        match work().await {
            Err(error) if error.is_unavailable() && Instant::now() < until => {
                tokio::time::sleep(POLL).await;
            }
            other => return other,
        }
    }
}

/// Waits until the request is decided, and undoes it at its deadline.
///
/// # Errors
/// `database_down` where the database stays away beyond the deadline; the request is decided all the same, later.
pub(super) async fn settled(app: &App, request: RequestId) -> Result<RequestView, Failure> {
    let waiter = app.schedd.waiter(request);
    let until = give_up_at(app);
    loop {
        let view = patiently(until, || app.store.request(request)).await?;
        let view =
            view.ok_or_else(|| Failure::internal(format!("request {request} has no row")))?;
        match view.state {
            RequestState::Active | RequestState::Undone => return Ok(view),
            RequestState::Open if view.deadline_in.is_zero() => {
                // Whether this call undoes it or somebody was faster: now it is decided.
                patiently(until, || {
                    app.store.undo_request(request, UndoReason::Deadline)
                })
                .await?;
                app.schedd.look();
            }
            RequestState::Open => waiter.wait(view.deadline_in.min(POLL)).await,
        }
    }
}

/// The machines of an active request with their passwords, rebuilt from rows alone.
///
/// # Errors
/// What an undone request is answered; `request_ended` where a machine is the user's no more.
pub(super) fn machines(
    app: &App,
    user: &UserName,
    view: RequestView,
    chosen: Option<&Password>,
) -> Result<Vec<RentedMachine>, Failure> {
    if view.state != RequestState::Active {
        return Err(undone(view));
    }
    view.rentals
        .into_iter()
        .map(|rental| machine(app, user, rental, chosen))
        .collect()
}

fn machine(
    app: &App,
    user: &UserName,
    rental: RequestRental,
    chosen: Option<&Password>,
) -> Result<RentedMachine, Failure> {
    if !rental.state.is_live() {
        let detail = "a rental of this request has ended; a new rent needs a new idempotency key";
        return Err(Failure::new(ProblemCode::RequestEnded, detail));
    }
    let (Some(address), Some(leased_until)) = (rental.address, rental.leased_until) else {
        let detail = format!(
            "rental {} is being moved; see GET /api/rentals/{}",
            rental.id, rental.id
        );
        return Err(Failure::new(ProblemCode::WrongState, detail));
    };
    let password = match (&rental.password_key_id, chosen) {
        (None, Some(chosen)) => chosen.clone(),
        (Some(id), None) => {
            let key = app.server_keys.get(id);
            let key = key.ok_or_else(|| {
                Failure::internal(format!("server key {id} is not in the file any more"))
            })?;
            ssh_password::derived(key, rental.id, rental.password_version)?
        }
        // The same body was proven by its digest, so that both agree.
        (None, None) | (Some(_), Some(_)) => {
            return Err(Failure::internal(
                "the row and the body disagree on who chose the password",
            ));
        }
    };
    Ok(RentedMachine {
        rental_id: rental.id,
        host_ip: address.host,
        ssh_port: address.port,
        client_user: user.as_str().to_owned(),
        client_pass: password.expose().to_owned(),
        leased_until,
    })
}

/// Why nothing was rented. What a worker said goes to the log: it may hold anything.
fn undone(view: RequestView) -> Failure {
    let failed = |detail: &str| {
        let failure = Failure::new(ProblemCode::ProvisioningFailed, detail);
        failure.retry_after(RETRY_FAILED_S)
    };
    let failure = match view.undo_reason {
        Some(UndoReason::Deadline) => {
            failed("not every machine was ready in time; everything was undone")
        }
        Some(UndoReason::NoNode) => {
            failed("a machine could not be prepared and no other was free; everything was undone")
        }
        Some(UndoReason::Reset) => {
            failed("an administrator reset the service; everything was undone")
        }
        Some(UndoReason::NameTaken) => Failure::new(
            ProblemCode::NameTaken,
            "an account of this name exists on the machines and is not ours",
        ),
        Some(UndoReason::Released) => Failure::new(
            ProblemCode::WrongState,
            "a rental of this request was released before it was ready; everything was undone",
        ),
        None => Failure::internal(format!("request {} is undone without a reason", view.id)),
    };
    Failure {
        cause: failure.cause.or_else(|| {
            let seen = view.detail.unwrap_or_else(|| "no run said why".to_owned());
            Some(format!("request {} was undone: {seen}", view.id).into())
        }),
        ..failure
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_to_undo_has_its_answer_and_the_worker_s_words_stay_in_the_log() {
        let expected = [
            (UndoReason::Deadline, ProblemCode::ProvisioningFailed),
            (UndoReason::NoNode, ProblemCode::ProvisioningFailed),
            (UndoReason::Reset, ProblemCode::ProvisioningFailed),
            (UndoReason::NameTaken, ProblemCode::NameTaken),
            (UndoReason::Released, ProblemCode::WrongState),
        ];
        assert_eq!(expected.len(), UndoReason::ALL.len());
        for (reason, code) in expected {
            let failure = undone(RequestView {
                id: RequestId(7),
                state: RequestState::Undone,
                undo_reason: Some(reason),
                detail: Some("worker says hunter2".to_owned()),
                deadline_in: Duration::ZERO,
                rentals: Vec::new(),
            });
            assert_eq!(failure.code, code);
            assert!(!failure.detail.contains("hunter2"));
            assert!(failure.cause.unwrap().to_string().contains("hunter2"));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_absent_database_is_asked_again_until_the_time_is_over() {
        let mut tries = 0;
        let until = Instant::now() + Duration::from_secs(1);
        let result: Result<(), _> = patiently(until, || {
            tries += 1;
            async { Err(StoreError::TimedOut) }
        })
        .await;
        assert!(result.unwrap_err().is_unavailable());
        assert_eq!(tries, 5);
        let mut tries = 0;
        let result: Result<(), _> = patiently(until + Duration::from_secs(9), || {
            tries += 1;
            let wrong = StoreError::Settings("wrong".to_owned());
            async { Err(wrong) }
        })
        .await;
        assert!(!result.unwrap_err().is_unavailable());
        assert_eq!(tries, 1);
    }
}
