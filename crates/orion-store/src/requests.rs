//! A request: what became of it, and the end of one that can't be kept.

use crate::row::{Address, address, column, instant_or_null, word, word_or_null};
use crate::tx::{Finish, bounded, unit};
use crate::{Store, StoreError};
use mysql_async::Row;
use mysql_async::prelude::Queryable;
use orion_core::{RentalId, RentalState, RequestId, RequestState, UndoReason, UtcTime};
use std::time::Duration;

/// A request on its way or decided.
#[derive(Debug, Clone)]
pub struct RequestView {
    /// The request.
    pub id: RequestId,
    /// Whether it is decided, and how.
    pub state: RequestState,
    /// Why it was undone.
    pub undo_reason: Option<UndoReason>,
    /// What the last failed run of it said, for the log.
    pub detail: Option<String>,
    /// Until its deadline; zero when that is past.
    pub deadline_in: Duration,
    /// Its rentals, by id.
    pub rentals: Vec<RequestRental>,
}

/// One rental of a request, with what the answer needs.
#[derive(Debug, Clone)]
pub struct RequestRental {
    /// The rental.
    pub id: RentalId,
    /// Where in its life.
    pub state: RentalState,
    /// Counts the rotations of its password.
    pub password_version: u32,
    /// The server key that its password derives from; `None` where the client chose the password.
    pub password_key_id: Option<String>,
    /// Where its present account is.
    pub address: Option<Address>,
    /// The end, UTC.
    pub leased_until: Option<UtcTime>,
}

impl Store {
    /// `open -> undone`; false when the request is decided already, or unknown.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn undo_request(
        &self,
        id: RequestId,
        reason: UndoReason,
    ) -> Result<bool, StoreError> {
        unit!(self, |tx| {
            match tx.lock_request(id).await? {
                Some(RequestState::Open) => Finish::Commit(tx.undo(id, reason).await?),
                Some(RequestState::Active | RequestState::Undone) | None => Finish::Rollback(false),
            }
        })
    }

    /// A request and its rentals. For apid's answer: the caller has checked whose it is.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn request(&self, id: RequestId) -> Result<Option<RequestView>, StoreError> {
        let now = self.now().await?.0;
        bounded(async {
            let mut conn = self.conn().await?;
            let found: Option<Row> = conn
                .exec_first(
                    "SELECT state, undo_reason, TIMESTAMPDIFF(MICROSECOND, ?, deadline_at) AS deadline_in_us \
                     FROM requests WHERE id = ?",
                    (now, id.0),
                )
                .await?;
            let Some(mut row) = found else {
                return Ok(None);
            };
            let deadline_in_us: i64 = column(&mut row, "deadline_in_us")?;
            let detail: Option<String> = conn
                .exec_first(
                    "SELECT CONCAT(u.outcome, ': ', IFNULL(u.detail, '')) FROM runs u \
                     JOIN accounts a ON a.id = u.account_id JOIN rentals r ON r.id = a.rental_id \
                     WHERE r.request_id = ? AND u.kind = 'provision' AND u.state = 'failed' \
                     AND u.outcome <> 'superseded' ORDER BY u.finished_at DESC LIMIT 1",
                    (id.0,),
                )
                .await?;
            let rentals: Vec<Row> = conn
                .exec(
                    "SELECT r.id, r.state, r.password_version, r.password_key_id, r.leased_until, \
                     n.client_host, n.client_port FROM rentals r \
                     LEFT JOIN accounts a ON a.rental_id = r.id AND a.state = 'present' \
                     LEFT JOIN nodes n ON n.id = a.node_id WHERE r.request_id = ? ORDER BY r.id",
                    (id.0,),
                )
                .await?;
            Ok(Some(RequestView {
                id,
                state: word(&mut row, "state")?,
                undo_reason: word_or_null(&mut row, "undo_reason")?,
                detail,
                deadline_in: Duration::from_micros(u64::try_from(deadline_in_us).unwrap_or(0)),
                rentals: rentals
                    .into_iter()
                    .map(request_rental)
                    .collect::<Result<_, _>>()?,
            }))
        })
        .await
    }
}

fn request_rental(mut row: Row) -> Result<RequestRental, StoreError> {
    Ok(RequestRental {
        id: RentalId(column(&mut row, "id")?),
        state: word(&mut row, "state")?,
        password_version: column(&mut row, "password_version")?,
        password_key_id: column(&mut row, "password_key_id")?,
        address: address(&mut row, "client_host", "client_port")?,
        leased_until: instant_or_null(&mut row, "leased_until")?,
    })
}
