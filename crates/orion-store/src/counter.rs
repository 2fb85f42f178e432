//! Which UIDs were given out, and workers that hold others: the database has forgotten them, because a backup was
//! restored. A single node may be broken, or lie; several stop provisioning.

use crate::edges::About;
use crate::row::column;
use crate::tx::{Finish, Tx, bounded, unit};
use crate::{Store, StoreError};
use mysql_async::Row;
use mysql_async::prelude::Queryable;
use orion_core::{NodeId, RentalId, Uid};

/// One node may be broken, or lie; so many say that the database is an old one.
const OUTDATED_NODES: u64 = 2;

/// Room for workers that were not heard of when the counter was raised (rentals).
const ROOM: u64 = 1_000;

/// No backup is so old that more rentals were made since; ids are never given out twice, so they must not be used up.
const FAR: u64 = 1_000_000;

/// Workers hold accounts that this database never gave out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outdated {
    /// So many nodes.
    pub nodes: u64,
    /// The highest UID on them.
    pub highest_uid: Uid,
    /// The UID that the next rental would get.
    pub next_uid: Uid,
}

/// What became of raising the counter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Raise {
    /// This is the next rental's id.
    To(RentalId),
    /// No node reported an account above it.
    NotNeeded,
    /// This node reports so high a UID that it lies, or is broken.
    Incredible {
        /// Its host name.
        hostname: String,
        /// What it reports.
        uid: Uid,
    },
}

/// Which UIDs are given out.
#[derive(Debug, Clone, Copy)]
pub(crate) struct UidCounter {
    uid_base: u32,
    next_rental: u64,
}

impl UidCounter {
    pub(crate) fn manages(self, uid: u32) -> bool {
        Uid(uid).rental(self.uid_base).is_some()
    }

    pub(crate) fn never_gave(self, uid: u32) -> bool {
        let rental = Uid(uid).rental(self.uid_base);
        rental.is_some_and(|rental| rental.0 >= self.next_rental)
    }

    fn next_uid(self) -> Uid {
        let next = u64::from(self.uid_base) + self.next_rental;
        Uid(u32::try_from(next).unwrap_or(u32::MAX))
    }
}

impl Store {
    /// Whether several nodes hold accounts that were never given out: then nothing is provisioned.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn outdated(&self) -> Result<Option<Outdated>, StoreError> {
        bounded(async {
            let row: Option<Row> = self.conn().await?.query_first(ABOVE_COUNTER).await?;
            row.map_or(Ok(None), outdated)
        })
        .await
    }

    /// Sets the counter of rentals above everything that nodes reported, with room for those that were not heard of yet.
    /// The connection's user needs the right to alter tables.
    ///
    /// # Errors
    /// When the database is away; repeating it does the rest.
    pub async fn raise_counter(&self) -> Result<Raise, StoreError> {
        let mut conn = self.conn().await?;
        let highest: Option<Row> = conn
            .query_first(
                "SELECT n.hostname, n.highest_uid, i.uid_base FROM nodes n JOIN installation i ON i.id = 1 \
                 WHERE n.forgotten_at IS NULL AND n.awaits_approval = FALSE AND n.highest_uid IS NOT NULL ORDER BY n.highest_uid DESC LIMIT 1",
            )
            .await?;
        let Some(mut row) = highest else {
            return Ok(Raise::NotNeeded);
        };
        let now: Option<Option<u64>> = conn
            .query_first(
                "SELECT AUTO_INCREMENT FROM information_schema.tables \
                 WHERE table_schema = DATABASE() AND table_name = 'rentals'",
            )
            .await?;
        let now = now.flatten().unwrap_or(1);
        let uid = Uid(column(&mut row, "highest_uid")?);
        let rental = uid.rental(column(&mut row, "uid_base")?);
        let next = rental.map_or(now, |rental| now.max(rental.0 + 1 + ROOM));
        if next > now + FAR {
            let hostname = column(&mut row, "hostname")?;
            return Ok(Raise::Incredible { hostname, uid });
        }
        conn.query_drop(format!("ALTER TABLE rentals AUTO_INCREMENT = {next}"))
            .await?;
        drop(conn);
        unit!(self, |tx| {
            tx.change(
                "UPDATE installation SET next_rental = GREATEST(next_rental, ?)",
                (next,),
            )
            .await?;
            let detail = format!("the next rental has the id {next}");
            tx.event("counter_raised", About::default(), Some(&detail))
                .await?;
            Finish::Commit(Raise::To(RentalId(next)))
        })
    }
}

/// The nodes on which a UID was seen that is not given out. Who awaits approval is a stranger, whose word stops nothing.
const ABOVE_COUNTER: &str = "SELECT COUNT(*) AS nodes, MAX(n.highest_uid) AS highest_uid, MAX(c.uid_base) AS uid_base, \
     MAX(c.next_rental) AS next_rental FROM \
     (SELECT i.uid_base, GREATEST(i.next_rental, IFNULL((SELECT MAX(id) FROM rentals), 0) + 1) AS next_rental \
      FROM installation i WHERE i.id = 1) c \
     JOIN nodes n ON n.highest_uid >= c.uid_base + c.next_rental \
     WHERE n.forgotten_at IS NULL AND n.awaits_approval = FALSE";

fn outdated(mut row: Row) -> Result<Option<Outdated>, StoreError> {
    let nodes: u64 = column(&mut row, "nodes")?;
    if nodes < OUTDATED_NODES {
        return Ok(None);
    }
    let counter = UidCounter {
        uid_base: column(&mut row, "uid_base")?,
        next_rental: column(&mut row, "next_rental")?,
    };
    Ok(Some(Outdated {
        nodes,
        highest_uid: Uid(column(&mut row, "highest_uid")?),
        next_uid: counter.next_uid(),
    }))
}

impl Tx {
    pub(crate) async fn uid_counter(&mut self) -> Result<UidCounter, StoreError> {
        let found = self
            .first(
                "SELECT uid_base, GREATEST(next_rental, IFNULL((SELECT MAX(id) FROM rentals), 0) + 1) AS next_rental \
                 FROM installation WHERE id = 1",
                (),
            )
            .await?;
        let mut row = found.ok_or(StoreError::Corrupt {
            column: "installation.id",
            reason: "no row".to_owned(),
        })?;
        Ok(UidCounter {
            uid_base: column(&mut row, "uid_base")?,
            next_rental: column(&mut row, "next_rental")?,
        })
    }

    pub(crate) async fn is_outdated(&mut self) -> Result<bool, StoreError> {
        match self.first(ABOVE_COUNTER, ()).await? {
            Some(row) => Ok(outdated(row)?.is_some()),
            None => Ok(false),
        }
    }

    /// A UID above the counter: the node takes no work until an administrator has looked.
    pub(crate) async fn never_given_out(
        &mut self,
        node: NodeId,
        uid: Uid,
        counter: UidCounter,
    ) -> Result<(), StoreError> {
        let was_outdated = self.is_outdated().await?;
        let known = self
            .number(
                "SELECT COUNT(*) FROM nodes WHERE id = ? AND highest_uid IS NOT NULL",
                (node.0,),
            )
            .await?;
        let changed = self
            .change(
                "UPDATE nodes SET highest_uid = ? WHERE id = ? AND IFNULL(highest_uid, 0) < ? AND forgotten_at IS NULL",
                (uid.0, node.0, uid.0),
            )
            .await?;
        if changed == 0 {
            return Ok(());
        }
        let next = counter.next_uid();
        let reason = format!("uid_above_counter: UID {uid} was seen, and the next one is {next}");
        self.quarantine(node, &reason).await?;
        if known == 0 {
            self.event("uid_above_counter", node.into(), Some(&reason))
                .await?;
        }
        if !was_outdated && self.is_outdated().await? {
            let detail =
                "several nodes hold accounts that were never given out: nothing is provisioned";
            self.event("database_outdated", About::default(), Some(detail))
                .await?;
        }
        Ok(())
    }
}
