//! A rental's life from its user's side: release, extend, look.

use crate::row::{address, column, instant, instant_or_null, word, word_or_null};
use crate::tx::{Finish, bounded, unit};
use crate::{Scope, Store, StoreError};
use mysql_async::Row;
use mysql_async::prelude::Queryable;
use orion_core::api::{EventView, RentalView};
use orion_core::{EndReason, NodeId, RentalId, RentalState, UndoReason, UserId, UtcTime};
use std::time::Duration;

/// What became of a release.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Release {
    /// It is ending, or was over already.
    Done,
    /// No such rental in the caller's scope.
    NotFound,
}

/// What became of an extension.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extension {
    /// The new end, UTC.
    Extended(UtcTime),
    /// No such rental in the caller's scope.
    NotFound,
    /// Not active or degraded, or its end is past.
    WrongState(RentalState),
    /// From its start to the new end would be longer than allowed.
    TooLong {
        /// The most that may still be added.
        left: Duration,
    },
    /// The database's clock stepped: an end written now would be wrong.
    ClockStepped,
}

/// A rental's row, locked, after its request's.
struct Locked {
    state: RentalState,
    leased_from: Option<UtcTime>,
    leased_until: Option<UtcTime>,
}

impl crate::tx::Tx {
    async fn lock_rental(
        &mut self,
        scope: Scope,
        id: RentalId,
    ) -> Result<Option<Locked>, StoreError> {
        let Some(request) = self.request_of(id).await? else {
            return Ok(None);
        };
        self.lock_request(request).await?;
        let user = scope.user();
        let found = self
            .first(
                "SELECT state, leased_from, leased_until FROM rentals \
                 WHERE id = ? AND (? IS NULL OR user_id = ?) FOR UPDATE",
                (id.0, user, user),
            )
            .await?;
        let Some(mut row) = found else {
            return Ok(None);
        };
        Ok(Some(Locked {
            state: word(&mut row, "state")?,
            leased_from: instant_or_null(&mut row, "leased_from")?,
            leased_until: instant_or_null(&mut row, "leased_until")?,
        }))
    }
}

impl Store {
    /// Ends a live rental; one that is being provisioned takes its whole request with it. Repeating it changes nothing.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn release(&self, scope: Scope, id: RentalId) -> Result<Release, StoreError> {
        unit!(self, |tx| {
            match tx.lock_rental(scope, id).await? {
                None => Finish::Rollback(Release::NotFound),
                Some(rental) => {
                    match rental.state {
                        RentalState::Active | RentalState::Degraded => {
                            tx.end_rental(id, rental.state, EndReason::Released).await?;
                        }
                        RentalState::Provisioning => {
                            if let Some(request) = tx.request_of(id).await? {
                                tx.undo(request, UndoReason::Released).await?;
                            }
                        }
                        RentalState::Ending | RentalState::Ended => {}
                    }
                    Finish::Commit(Release::Done)
                }
            }
        })
    }

    /// Moves the end of an active or degraded rental; the total from `leased_from` stays within `max_total`.
    ///
    /// # Errors
    /// When the database is away. Then the end may or may not have moved: `rental` tells.
    pub async fn extend(
        &self,
        scope: Scope,
        id: RentalId,
        additional: Duration,
        max_total: Duration,
    ) -> Result<Extension, StoreError> {
        unit!(self, |tx| {
            let Some(rental) = tx.lock_rental(scope, id).await? else {
                return Ok(Extension::NotFound);
            };
            if tx.step.is_some() {
                return Ok(Extension::ClockStepped);
            }
            let now = UtcTime(tx.now);
            let live = matches!(rental.state, RentalState::Active | RentalState::Degraded);
            match (rental.leased_from, rental.leased_until) {
                (Some(from), Some(until)) if live && until > now => {
                    let limit = from.0 + max_total;
                    let new_end = until
                        .0
                        .checked_add(additional.try_into().unwrap_or(time::Duration::MAX));
                    match new_end {
                        Some(new_end) if new_end <= limit => {
                            tx.change(
                                "UPDATE rentals SET leased_until = ? WHERE id = ? AND state = ?",
                                (new_end, id.0, rental.state.as_str()),
                            )
                            .await?;
                            tx.event(
                                "rental_extended",
                                id.into(),
                                Some(&format!("until {}", UtcTime(new_end))),
                            )
                            .await?;
                            Finish::Commit(Extension::Extended(UtcTime(new_end)))
                        }
                        Some(_) | None => {
                            let left = (limit - until.0).try_into().unwrap_or(Duration::ZERO);
                            Finish::Rollback(Extension::TooLong { left })
                        }
                    }
                }
                _ => Finish::Rollback(Extension::WrongState(rental.state)),
            }
        })
    }

    /// The caller's rentals, or everybody's, newest first, without their history.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn rentals(&self, scope: Scope) -> Result<Vec<RentalView>, StoreError> {
        let user = scope.user();
        bounded(async {
            let mut conn = self.conn().await?;
            let sql = format!(
                "{SELECT} WHERE (? IS NULL OR r.user_id = ?) ORDER BY r.created_at DESC, r.id DESC"
            );
            let rows: Vec<Row> = conn.exec(sql, (user, user)).await?;
            rows.into_iter().map(rental_view).collect()
        })
        .await
    }

    /// One rental with its history; `None` also for somebody else's.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn rental(
        &self,
        scope: Scope,
        id: RentalId,
    ) -> Result<Option<RentalView>, StoreError> {
        let user = scope.user();
        bounded(async {
            let mut conn = self.conn().await?;
            let sql = format!("{SELECT} WHERE r.id = ? AND (? IS NULL OR r.user_id = ?)");
            let Some(row) = conn.exec_first(sql, (id.0, user, user)).await? else { return Ok(None) };
            let mut view = rental_view(row)?;
            let events: Vec<Row> = conn
                .exec("SELECT at, kind, node_id, detail FROM events WHERE rental_id = ? ORDER BY at, id", (id.0,))
                .await?;
            view.history = events.into_iter().map(event_view).collect::<Result<_, _>>()?;
            Ok(Some(view))
        })
        .await
    }
}

const SELECT: &str = "SELECT r.id, r.user_id, u.name, r.state, r.end_reason, r.leased_from, r.leased_until, r.ended_at, \
     n.client_host, n.client_port, \
     (SELECT GROUP_CONCAT(k.host_key ORDER BY k.host_key SEPARATOR '\n') FROM host_keys k WHERE k.node_id = n.id) \
     AS host_keys \
     FROM rentals r JOIN users u ON u.id = r.user_id \
     LEFT JOIN accounts a ON a.rental_id = r.id AND a.state = 'present' LEFT JOIN nodes n ON n.id = a.node_id";

fn rental_view(mut row: Row) -> Result<RentalView, StoreError> {
    let address = address(&mut row, "client_host", "client_port")?;
    let host_keys: Option<String> = column(&mut row, "host_keys")?;
    Ok(RentalView {
        rental_id: RentalId(column(&mut row, "id")?),
        user_id: UserId(column(&mut row, "user_id")?),
        state: word(&mut row, "state")?,
        end_reason: word_or_null(&mut row, "end_reason")?,
        host_ip: address.as_ref().map(|address| address.host.clone()),
        ssh_port: address.map(|address| address.port),
        client_user: column(&mut row, "name")?,
        leased_from: instant_or_null(&mut row, "leased_from")?,
        leased_until: instant_or_null(&mut row, "leased_until")?,
        ended_at: instant_or_null(&mut row, "ended_at")?,
        host_keys: host_keys
            .map(|keys| keys.lines().map(str::to_owned).collect())
            .unwrap_or_default(),
        history: Vec::new(),
    })
}

fn event_view(mut row: Row) -> Result<EventView, StoreError> {
    Ok(EventView {
        at: instant(&mut row, "at")?,
        kind: column(&mut row, "kind")?,
        node_id: column::<Option<u64>>(&mut row, "node_id")?.map(NodeId),
        detail: column(&mut row, "detail")?,
    })
}
