//! The only place where a transaction begins: whole units of work, bounded in time, retried on conflicts.

use crate::clock::watch::{ClockStep, Reading, since_boot};
use crate::{Store, StoreError};
use mysql_async::prelude::Queryable;
use mysql_async::{Params, Row, Transaction, TxOpts};
use orion_core::UtcTime;
use std::future::Future;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};
use time::PrimitiveDateTime;

/// Around a whole unit of work, never around one statement: a connection whose statement was cancelled answers the next
/// one with the old rows, so everything is dropped together.
pub(crate) const UNIT_TIMEOUT: Duration = Duration::from_secs(10);

/// So many conflicts in a row are not contention any more but a bug.
const MAX_ATTEMPTS: u32 = 20;

/// How a unit of work ends.
pub(crate) enum Finish<T> {
    /// Keep what was written.
    Commit(T),
    /// Nothing may stay.
    Rollback(T),
}

/// An open transaction. Dropped without `commit`, it is rolled back before the connection is used again.
pub(crate) struct Tx {
    inner: Transaction<'static>,
    /// The database's clock when the transaction began: `now` of every decision in it. Where that clock stepped, what it
    /// would say had it not.
    pub(crate) now: PrimitiveDateTime,
    /// How far the database's clock is wrong. Then nothing is decided that can't be taken back.
    pub(crate) step: Option<ClockStep>,
    pub(crate) reading: Reading,
}

impl Store {
    pub(crate) async fn begin(&self) -> Result<Tx, StoreError> {
        let mut tx = self.begin_for_anybody().await?;
        if let Some(lead) = self.lead {
            tx.hold_lead(lead).await?;
        }
        Ok(tx)
    }

    async fn begin_for_anybody(&self) -> Result<Tx, StoreError> {
        let mut inner = self.pool.start_transaction(TxOpts::default()).await?;
        let since_boot = || since_boot() + time::Duration::microseconds(self.elapsed_offset_us);
        let before = since_boot();
        let database = inner
            .exec_first(
                "SELECT UTC_TIMESTAMP(6) + INTERVAL ? MICROSECOND",
                (self.clock_offset_us,),
            )
            .await?
            .ok_or(StoreError::Corrupt {
                column: "now",
                reason: "no row".to_owned(),
            })?;
        let reading = Reading {
            database,
            before,
            after: since_boot(),
        };
        let mut tx = Tx {
            inner,
            now: database,
            step: None,
            reading,
        };
        if self.clock.agree(&reading).is_none() {
            let row = tx.clock_row("").await?;
            let judged = self.clock.judge(&reading, row.as_ref());
            (tx.now, tx.step) = (judged.now, judged.step);
        }
        Ok(tx)
    }

    /// The database's clock, UTC: the one that decides ends and deaths. Where it stepped, what it would say had it not.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn now(&self) -> Result<UtcTime, StoreError> {
        bounded(async { Ok(UtcTime(self.begin_for_anybody().await?.now)) }).await
    }
}

impl Tx {
    /// Runs a statement and tells how many rows it changed.
    pub(crate) async fn change(
        &mut self,
        sql: &str,
        params: impl Into<Params> + Send,
    ) -> Result<u64, StoreError> {
        self.inner.exec_drop(sql, params.into()).await?;
        Ok(self.inner.affected_rows())
    }

    /// Inserts one row and tells its AUTO_INCREMENT id.
    pub(crate) async fn insert(
        &mut self,
        sql: &str,
        params: impl Into<Params> + Send,
    ) -> Result<u64, StoreError> {
        self.inner.exec_drop(sql, params.into()).await?;
        self.inner.last_insert_id().ok_or(StoreError::Corrupt {
            column: "id",
            reason: "no AUTO_INCREMENT value".to_owned(),
        })
    }

    pub(crate) async fn rows(
        &mut self,
        sql: &str,
        params: impl Into<Params> + Send,
    ) -> Result<Vec<Row>, StoreError> {
        Ok(self.inner.exec(sql, params.into()).await?)
    }

    pub(crate) async fn first(
        &mut self,
        sql: &str,
        params: impl Into<Params> + Send,
    ) -> Result<Option<Row>, StoreError> {
        Ok(self.inner.exec_first(sql, params.into()).await?)
    }

    /// One number, for example a count.
    pub(crate) async fn number(
        &mut self,
        sql: &str,
        params: impl Into<Params> + Send,
    ) -> Result<u64, StoreError> {
        Ok(self
            .inner
            .exec_first(sql, params.into())
            .await?
            .unwrap_or(0))
    }

    pub(crate) async fn finish<T>(self, finish: Finish<T>) -> Result<T, StoreError> {
        match finish {
            Finish::Commit(value) => {
                self.inner.commit().await?;
                Ok(value)
            }
            Finish::Rollback(value) => {
                self.inner.rollback().await?;
                Ok(value)
            }
        }
    }
}

/// Bounds a unit of work; what it holds is dropped when its time is over.
pub(crate) async fn bounded<T>(
    work: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    tokio::time::timeout(UNIT_TIMEOUT, work)
        .await
        .unwrap_or(Err(StoreError::TimedOut))
}

/// Counts the attempts of one unit, and their time.
pub(crate) struct Attempts {
    made: u32,
    since: Instant,
}

impl Default for Attempts {
    fn default() -> Self {
        Self {
            made: 0,
            since: Instant::now(),
        }
    }
}

impl Attempts {
    /// Waits and says "again" after a conflict with another transaction; hands everything else out.
    pub(crate) async fn judge<T>(
        &mut self,
        result: Result<T, StoreError>,
    ) -> ControlFlow<Result<T, StoreError>> {
        match result {
            Err(error) if error.is_conflict() => {
                self.made += 1;
                if self.made >= MAX_ATTEMPTS || self.since.elapsed() >= UNIT_TIMEOUT {
                    return ControlFlow::Break(Err(StoreError::Contention(self.made)));
                }
                tokio::time::sleep(Duration::from_micros(jitter_us(self.made))).await;
                ControlFlow::Continue(())
            }
            other => ControlFlow::Break(other),
        }
    }
}

/// Up to 2 ms after the first conflict and up to 30 ms later. The clock's low digits are random enough to part two losers.
fn jitter_us(attempt: u32) -> u64 {
    let limit = u64::from(attempt.min(15)) * 2_000;
    let nanos = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| u64::from(d.subsec_nanos()));
    nanos % limit.max(1)
}

/// `unit!(store, |tx| { … Finish::Commit(value) })`: one transaction, tried again as a whole after a conflict.
macro_rules! unit {
    ($store:expr, |$tx:ident| $work:block) => {{
        let mut attempts = $crate::tx::Attempts::default();
        loop {
            let attempt = async {
                #[allow(unused_mut, reason = "a unit that only reads changes nothing")]
                let mut $tx = $store.begin().await?;
                let finish = $work;
                $tx.finish(finish).await
            };
            match attempts.judge($crate::tx::bounded(attempt).await).await {
                std::ops::ControlFlow::Break(result) => break result,
                std::ops::ControlFlow::Continue(()) => {}
            }
        }
    }};
}
pub(crate) use unit;
