//! `POST /api/rent`: decide in one transaction, hash, let schedd provision, wait for the decision, answer.
//!
//! It runs in a task that no hang-up cancels, and everything that must survive this process is in the database before it
//! is waited for: whoever finds the request open after its deadline undoes it.

use std::time::Duration;

use http::HeaderMap;
use orion_core::{Password, ProblemCode, RentalId, RequestId};
use orion_store::{IdempotencyKey, KnownRequest, OpenedRequest, RentDecision, RentOrder};
use subtle::ConstantTimeEq;

use crate::app::App;
use crate::auth::principal::Principal;
use crate::config::ApidSettings;
use crate::http::fields::{Fields, Unknown};
use crate::http::problem::{Failure, Number};
use crate::http::reply::Reply;
use crate::http::request::Call;
use crate::rentals::outcome::{give_up_at, machines, patiently, settled};
use crate::rentals::{hours, ssh_password};

const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// After how long it makes sense to ask for a free node again (seconds).
const RETRY_FREE_S: u32 = 5;

/// The same where somebody must act first.
const RETRY_OUTDATED_S: u32 = 300;

#[derive(Debug)]
struct Form {
    duration: Duration,
    count: u32,
    /// Chosen by the client; else derived from a server key.
    ssh_password: Option<Password>,
}

/// Rents `count` machines, all or none.
///
/// # Errors
/// Bad fields; `name_taken`, `rental_limit`, `idempotency_key_reused`, `request_ended`; `no_free_node`,
/// `provisioning_failed`, `clock_stepped`, `database_outdated`.
pub async fn rent(call: Call, principal: Principal) -> Result<Reply, Failure> {
    let app = &call.app;
    let key = idempotency_key(&call.headers)?;
    let form = form(call.fields()?, &app.settings)?;
    if principal
        .name
        .is_reserved(&app.settings.auth.reserved_names)
    {
        let detail =
            "accounts are named like their users, and this name is that of a system account";
        return Err(Failure::new(ProblemCode::NameTaken, detail));
    }
    let (key_id, server_key) = app.server_keys.current();
    let idempotency = match key {
        None => None,
        Some(key) => Some(IdempotencyKey {
            key,
            body_digest: ssh_password::body_digest(server_key, &call.body)?,
            digest_key_id: key_id.as_str(),
        }),
    };
    let order = RentOrder {
        user: principal.id,
        count: form.count,
        duration: form.duration,
        deadline: app.settings.rent.deadline(),
        max_active: app.settings.rent.max_active_per_user,
        apid_request_id: &call.request_id,
        password_key_id: form.ssh_password.is_none().then_some(key_id.as_str()),
        idempotency,
    };
    let request = match app.store.rent(&order).await? {
        RentDecision::Opened(opened) => {
            let request = opened.id;
            tracing::info!(%request, user = %principal.id, count = form.count, request_id = call.request_id, "rent");
            provision(app, opened, form.ssh_password.as_ref()).await?;
            request
        }
        RentDecision::Known(known) => same_body(app, &known, &call.body)?,
        RentDecision::DatabaseOutdated => {
            let detail = "machines hold accounts that the database never gave out; an administrator must act";
            return Err(
                Failure::new(ProblemCode::DatabaseOutdated, detail).retry_after(RETRY_OUTDATED_S)
            );
        }
        RentDecision::NoFreeNode { free } => return Err(no_free_node(free, form.count)),
        RentDecision::ClockStepped => return Err(Failure::clock_stepped()),
        RentDecision::RentalLimit { active } => return Err(rental_limit(app, active, form.count)),
    };
    let view = settled(app, request).await?;
    Reply::ok(&machines(
        app,
        &principal.name,
        view,
        form.ssh_password.as_ref(),
    )?)
}

fn form(mut fields: Fields, settings: &ApidSettings) -> Result<Form, Failure> {
    let rent = &settings.rent;
    let duration = hours(&mut fields, "duration_hours", rent.max_hours);
    let count = fields.whole_or("count", &(1..=u64::from(rent.max_count)), 1);
    let count = count.and_then(|count| u32::try_from(count).ok());
    let text = fields.optional_text("ssh_password");
    let ssh_password = fields.parse_as("ssh_password", text, |text| {
        Password::parse(&text, settings.auth.min_password_length)
    });
    let form = duration.zip(count).map(|(duration, count)| Form {
        duration,
        count,
        ssh_password,
    });
    fields.finish(Unknown::Refused, form)
}

/// Hashes the passwords and queues the runs. Nothing is held meanwhile: no transaction, no connection.
async fn provision(
    app: &App,
    opened: OpenedRequest,
    chosen: Option<&Password>,
) -> Result<(), Failure> {
    let (_, key) = app.server_keys.current();
    let password = |rental: &RentalId| match chosen {
        Some(password) => Ok(password.clone()),
        None => ssh_password::derived(key, *rental, 1),
    };
    let passwords = opened
        .rentals
        .iter()
        .map(password)
        .collect::<Result<Vec<_>, _>>()?;
    let hashes = app.crypt.hashes(passwords).await?;
    let hashes: Vec<_> = opened.rentals.into_iter().zip(hashes).collect();
    let until = give_up_at(app);
    // Where the request was decided meanwhile, for example by a release, waiting finds out.
    patiently(until, || app.store.provision(opened.id, &hashes)).await?;
    app.schedd.look();
    Ok(())
}

/// The request of an idempotency key that was used before, if the body is the same.
fn same_body(app: &App, known: &KnownRequest, body: &[u8]) -> Result<RequestId, Failure> {
    let reused = || {
        let detail = "the key was used for another body; a new rent needs a new key";
        Failure::new(ProblemCode::IdempotencyKeyReused, detail)
    };
    // A key that left the file can't prove the body to be the same.
    let key = app
        .server_keys
        .get(&known.digest_key_id)
        .ok_or_else(reused)?;
    let digest = ssh_password::body_digest(key, body)?;
    let same = bool::from(digest.ct_eq(&known.body_digest));
    if same { Ok(known.id) } else { Err(reused()) }
}

/// 1 to 255 visible ASCII characters, compared as bytes.
fn idempotency_key(headers: &HeaderMap) -> Result<Option<&[u8]>, Failure> {
    let mut values = headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    let key = value.as_bytes();
    let visible = key.iter().all(u8::is_ascii_graphic);
    if values.next().is_some() || !visible || !(1..=255).contains(&key.len()) {
        let detail = "must be there once, with 1 to 255 visible ASCII characters";
        return Err(Failure::field(
            ProblemCode::BadHeader,
            "Idempotency-Key",
            detail,
        ));
    }
    Ok(Some(key))
}

fn no_free_node(free: u64, count: u32) -> Failure {
    Failure {
        number: Some(Number::Free(free)),
        ..Failure::new(
            ProblemCode::NoFreeNode,
            format!("{count} were asked for and {free} are free"),
        )
    }
    .retry_after(RETRY_FREE_S)
}

fn rental_limit(app: &App, active: u64, count: u32) -> Failure {
    let limit = app.settings.rent.max_active_per_user;
    let detail = format!(
        "{active} machines are yours or not yet cleaned, {count} more would exceed {limit}"
    );
    Failure::new(ProblemCode::RentalLimit, detail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn read(body: &str) -> Result<Form, Failure> {
        form(
            Fields::parse(body.as_bytes()).unwrap(),
            &ApidSettings::default(),
        )
    }

    #[test]
    fn count_is_one_where_it_is_absent_and_the_password_is_derived() {
        let form = read(r#"{"duration_hours":2}"#).unwrap();
        assert_eq!((form.count, form.duration.as_secs()), (1, 7200));
        assert!(form.ssh_password.is_none());
    }

    #[test]
    fn a_chosen_password_is_taken_to_the_letter() {
        let form = read(
            r#"{"duration_hours":1,"count":16,"ssh_password":"it's \"$HOME\" {{ x }} \u00e9"}"#,
        )
        .unwrap();
        assert_eq!(
            form.ssh_password.unwrap().expose(),
            "it's \"$HOME\" {{ x }} é"
        );
        assert!(
            read(r#"{"duration_hours":1,"ssh_password":null}"#)
                .unwrap()
                .ssh_password
                .is_none()
        );
    }

    #[test]
    fn every_bad_field_of_a_rent_is_named() {
        let (invalid, wrong) = (ProblemCode::InvalidValue, ProblemCode::WrongType);
        let cases = [
            ("count", "0", invalid),
            ("count", "-1", invalid),
            ("count", "1e9", invalid),
            ("count", "17", invalid),
            ("count", "1.5", wrong),
            ("count", "\"x\"", wrong),
            ("count", "null", wrong),
            ("ssh_password", "\"seven77\"", invalid),
            ("ssh_password", "\"line\\nbreak\"", invalid),
            ("ssh_password", "\"nul\\u0000 byte\"", invalid),
            ("ssh_password", "12345678", wrong),
            ("hours", "1", invalid),
        ];
        for (field, value, code) in cases {
            let failure =
                read(&format!(r#"{{"duration_hours":1,"{field}":{value}}}"#)).unwrap_err();
            let names: Vec<_> = failure
                .errors
                .iter()
                .map(|error| error.field.as_str())
                .collect();
            assert_eq!(
                (names, failure.code),
                (vec![field], code),
                "{field}: {value}"
            );
        }
        assert_eq!(read("{}").unwrap_err().errors[0].field, "duration_hours");
    }

    #[test]
    fn an_idempotency_key_is_visible_ascii_and_there_once() {
        let of = |values: &[&[u8]]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(IDEMPOTENCY_KEY, HeaderValue::from_bytes(value).unwrap());
            }
            idempotency_key(&headers)
                .map(|key| key.map(<[u8]>::to_vec))
                .map_err(|failure| failure.code)
        };
        assert_eq!(of(&[]), Ok(None));
        assert_eq!(of(&[b"a-1"]), Ok(Some(b"a-1".to_vec())));
        assert!(of(&[&[b'k'; 255]]).is_ok());
        for bad in [
            &[&b""[..]][..],
            &[b"a b"],
            &["é".as_bytes()],
            &[&[b'k'; 256]],
            &[b"a", b"a"],
        ] {
            assert_eq!(of(bad), Err(ProblemCode::BadHeader), "{bad:?}");
        }
    }
}
