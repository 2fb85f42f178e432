//! One type per kind of id, so that a rental id can't be passed where a node id is wanted.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::num::ParseIntError;
use std::str::FromStr;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = ParseIntError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse().map(Self)
            }
        }
    };
}

id!(
    /// A registered worker machine.
    NodeId
);
id!(
    /// One user's lease of a machine. Never reused: account UIDs derive from it.
    RentalId
);
id!(
    /// One call of rent, for n rentals that live or fail together.
    RequestId
);
id!(
    /// Somebody who may log in to the API.
    UserId
);
id!(
    /// A row of `accounts`: a rental's Unix account on one node.
    AccountId
);
id!(
    /// One durable piece of Ansible work on one node.
    RunId
);
id!(
    /// An administrator's permission for workers to join.
    JoinTokenId
);

/// The Unix user id of a rental's account, the same on every node the rental ever had; the group id is equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Uid(pub u32);

/// How many UIDs from `uid_base` on are Orion's: one for each rental that can ever be.
pub const MANAGED_UIDS: u32 = 1_000_000_000;

impl Uid {
    /// `uid_base` + rental id, or nothing when the managed range is used up.
    pub fn of_rental(uid_base: u32, rental: RentalId) -> Option<Self> {
        let offset = u32::try_from(rental.0)
            .ok()
            .filter(|offset| *offset < MANAGED_UIDS)?;
        uid_base.checked_add(offset).map(Self)
    }

    /// The rental this UID belongs to, or nothing for a UID outside the managed range.
    pub fn rental(self, uid_base: u32) -> Option<RentalId> {
        let offset = self
            .0
            .checked_sub(uid_base)
            .filter(|offset| *offset < MANAGED_UIDS)?;
        Some(RentalId(u64::from(offset)))
    }
}

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uid_leads_back_to_its_rental() {
        let uid = Uid::of_rental(1_000_000, RentalId(2)).unwrap();
        assert_eq!(uid, Uid(1_000_002));
        assert_eq!(uid.rental(1_000_000), Some(RentalId(2)));
        assert_eq!(Uid(999_999).rental(1_000_000), None);
    }

    #[test]
    fn uids_end_where_the_managed_range_ends() {
        assert_eq!(
            Uid::of_rental(1_000_000, RentalId(u64::from(MANAGED_UIDS))),
            None
        );
        assert_eq!(Uid::of_rental(u32::MAX, RentalId(1)), None);
    }
}
