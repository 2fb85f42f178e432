//! Rentals from their user's side.

mod outcome;
pub mod rent;
pub mod ssh_password;

use std::time::Duration;

use orion_core::api::{ExtendReply, Message};
use orion_core::{ProblemCode, RentalId};
use orion_store::{Extension, Release};

use crate::auth::principal::Principal;
use crate::http::fields::{Fields, Unknown};
use crate::http::problem::Failure;
use crate::http::reply::Reply;
use crate::http::request::Call;

/// The shortest time that can be asked for.
const SHORTEST: Duration = Duration::from_secs(10);

/// `GET /api/rentals`: the caller's, newest first; an administrator sees all.
///
/// # Errors
/// `database_down`.
pub async fn list(call: Call, principal: Principal) -> Result<Reply, Failure> {
    Reply::ok(&call.app.store.rentals(principal.scope()).await?)
}

/// `GET /api/rentals/{rental_id}`, with its history.
///
/// # Errors
/// `not_found`, also for somebody else's.
pub async fn get(call: Call, principal: Principal) -> Result<Reply, Failure> {
    let id = call.path_id(RentalId)?;
    let rental = call.app.store.rental(principal.scope(), id).await?;
    Reply::ok(&rental.ok_or_else(|| Failure::not_found("rental"))?)
}

/// `POST /api/release/{rental_id}`: answers after the commit; cleaning follows. A second time it says the same.
///
/// # Errors
/// `not_found`, also for somebody else's unless the caller is an administrator.
pub async fn release(call: Call, principal: Principal) -> Result<Reply, Failure> {
    let rental = call.path_id(RentalId)?;
    call.no_fields()?;
    match call.app.store.release(principal.scope(), rental).await? {
        Release::Done => {
            tracing::info!(%rental, by = %principal.id, request_id = call.request_id, "released");
            call.app.schedd.look();
            Reply::ok(&Message {
                message: "Lease released".to_owned(),
            })
        }
        Release::NotFound => Err(Failure::not_found("rental")),
    }
}

/// `POST /api/extend/{rental_id}`.
///
/// # Errors
/// `not_found`; `wrong_state` from the end on; `invalid_value` where the total would exceed `rent.max_hours`;
/// `clock_stepped`.
pub async fn extend(call: Call, principal: Principal) -> Result<Reply, Failure> {
    let rental = call.path_id(RentalId)?;
    let rent = &call.app.settings.rent;
    let mut fields = call.fields()?;
    let additional = hours(&mut fields, "additional_hours", rent.max_hours);
    let additional = fields.finish(Unknown::Refused, additional)?;
    let scope = principal.scope();
    match call
        .app
        .store
        .extend(scope, rental, additional, rent.max_duration())
        .await?
    {
        Extension::Extended(new_end_at) => {
            tracing::info!(%rental, by = %principal.id, until = %new_end_at, request_id = call.request_id, "extended");
            Reply::ok(&ExtendReply {
                lease_id: rental,
                new_end_at,
            })
        }
        Extension::NotFound => Err(Failure::not_found("rental")),
        Extension::ClockStepped => Err(Failure::clock_stepped()),
        Extension::WrongState(state) => {
            let detail =
                format!("the rental is {state}; only active and degraded ones can be extended");
            Err(Failure::new(ProblemCode::WrongState, detail))
        }
        Extension::TooLong { left } => {
            let left = left.as_secs_f64() / 3600.0;
            let detail = format!(
                "must be at most {left:.4} for this rental: all together it may last {} hours",
                rent.max_hours
            );
            Err(Failure::field(
                ProblemCode::InvalidValue,
                "additional_hours",
                detail,
            ))
        }
    }
}

/// A time given in hours, fractions allowed, from 10 seconds to `max_hours`; rounded to microseconds, as it is stored.
fn hours(fields: &mut Fields, name: &str, max_hours: u32) -> Option<Duration> {
    let number = fields.number(name);
    fields.parse_as(name, number, |hours| {
        let seconds = (hours * 3_600_000_000.0).round() / 1_000_000.0;
        let most = Duration::from_secs(u64::from(max_hours) * 3600);
        Duration::try_from_secs_f64(seconds)
            .ok()
            .filter(|time| (SHORTEST..=most).contains(time))
            .ok_or_else(|| format!("must be from 10 seconds (0.00278) to {max_hours} hours"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(value: &str) -> Result<Duration, ProblemCode> {
        let mut fields = Fields::parse(format!("{{\"h\":{value}}}").as_bytes()).unwrap();
        let time = hours(&mut fields, "h", 720);
        fields
            .finish(Unknown::Refused, time)
            .map_err(|failure| failure.code)
    }

    #[test]
    fn hours_may_be_fractions_from_ten_seconds_to_the_longest_rental() {
        assert_eq!(read("2"), Ok(Duration::from_secs(7200)));
        assert_eq!(read("0.5"), Ok(Duration::from_secs(1800)));
        assert_eq!(read("720"), Ok(Duration::from_secs(720 * 3600)));
        // 10, 20 and 7 seconds and a bit, as a client computes them.
        assert_eq!(read("0.002777777777777778"), Ok(Duration::from_secs(10)));
        assert_eq!(read("0.0055555555555555558"), Ok(Duration::from_secs(20)));
        assert_eq!(read("1e-2"), Ok(Duration::from_secs(36)));
    }

    #[test]
    fn hours_out_of_range_are_refused_and_never_clamped() {
        for bad in [
            "0", "-0.0", "-1", "0.0027", "720.001", "1e9", "1e308", "-1e308",
        ] {
            assert_eq!(read(bad), Err(ProblemCode::InvalidValue), "{bad}");
        }
        for bad in ["\"2\"", "null", "true", "[2]"] {
            assert_eq!(read(bad), Err(ProblemCode::WrongType), "{bad}");
        }
    }
}
