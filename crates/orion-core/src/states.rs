//! The states of everything that has one, as the database spells them, and the edges between them.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A text that is not one of a state's names: a row written by another version, or by hand.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a {kind}")]
pub struct UnknownState {
    kind: &'static str,
    text: String,
}

macro_rules! states {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum $name { $($(#[$vdoc])* #[serde(rename = $text)] $variant),+ }

        impl $name {
            /// Every value, in the order of a normal life.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The word in SQL, JSON and logs.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl FromStr for $name {
            type Err = UnknownState;

            fn from_str(text: &str) -> Result<Self, UnknownState> {
                match text {
                    $($text => Ok(Self::$variant),)+
                    _ => Err(UnknownState { kind: stringify!($name), text: text.to_owned() }),
                }
            }
        }
    };
}

states!(
    /// What a user may do.
    Role {
        /// Rents machines and sees their own.
        User = "user",
        /// Sees and ends everything, looks after nodes.
        Admin = "admin",
    }
);

states!(
    /// What is seen of a node. Only `alive` is leased.
    NodeStatus {
        /// Never reached yet.
        Unknown = "unknown",
        /// The last look succeeded.
        Alive = "alive",
        /// Something is wrong, death is not decided.
        Suspect = "suspect",
        /// Several failures over a window.
        Dead = "dead",
    }
);

states!(
    /// What may be done with a node.
    ///
    /// ```text
    /// joining -> ready     store, an inspection observed no managed account, process or file
    /// ready -> leased      store, rent or a replacement
    /// leased -> cleaning   store, its account is leaving
    /// cleaning -> ready    store, its account is seen gone
    /// ready | cleaning -> joining   died, came back, changed; reset
    /// any -> quarantined   with a reason; out of it by an administrator or a verified clean, through joining
    /// ```
    Availability {
        /// Must be inspected before anybody gets it.
        Joining = "joining",
        /// Clean and free.
        Ready = "ready",
        /// Holds an account that is wanted.
        Leased = "leased",
        /// Holds an account that must go.
        Cleaning = "cleaning",
        /// Needs an administrator, or a verified clean.
        Quarantined = "quarantined",
    }
);

impl Availability {
    /// Whether the edge exists.
    pub const fn can_become(self, next: Self) -> bool {
        match (self, next) {
            (Self::Joining, Self::Ready)
            | (Self::Ready, Self::Leased | Self::Joining)
            | (Self::Leased, Self::Cleaning)
            | (Self::Cleaning, Self::Ready | Self::Joining)
            | (Self::Quarantined, Self::Joining) => true,
            (from, Self::Quarantined) => !matches!(from, Self::Quarantined),
            (_, Self::Joining | Self::Ready | Self::Leased | Self::Cleaning) => false,
        }
    }
}

states!(
    /// One call of rent decides once between activation and undoing.
    RequestState {
        /// Accounts are being made.
        Open = "open",
        /// Every rental became active, in one transaction.
        Active = "active",
        /// Nothing of it may stay.
        Undone = "undone",
    }
);

states!(
    /// Why a request was undone; the client's answer follows from it.
    UndoReason {
        /// The deadline passed: 503.
        Deadline = "deadline",
        /// No other node was left to replace one that failed: 503.
        NoNode = "no_node",
        /// The user's name exists on the workers: 409.
        NameTaken = "name_taken",
        /// The user released a rental of it: 409.
        Released = "released",
        /// An administrator reset the database: 503.
        Reset = "reset",
    }
);

states!(
    /// A rental's life.
    ///
    /// ```text
    /// provisioning -> active    store, with the last account of the request present
    /// provisioning -> ending    store, with the request undone
    /// active -> degraded        migrate, its node is dead
    /// degraded -> active        store, with the new account present
    /// active, degraded -> ending   release, expire, reset
    /// ending -> ended           store, each account gone, or a recorded debt on a node out of service
    /// ```
    RentalState {
        /// Its account is being made.
        Provisioning = "provisioning",
        /// The user can log in.
        Active = "active",
        /// Its node is dead and a spare is looked for.
        Degraded = "degraded",
        /// Access must go.
        Ending = "ending",
        /// Access is provably gone.
        Ended = "ended",
    }
);

impl RentalState {
    /// Whether the edge exists.
    pub const fn can_become(self, next: Self) -> bool {
        matches!(
            (self, next),
            (Self::Provisioning, Self::Active | Self::Ending)
                | (Self::Active, Self::Degraded | Self::Ending)
                | (Self::Degraded, Self::Active | Self::Ending)
                | (Self::Ending, Self::Ended)
        )
    }

    /// The user's: access exists or is promised.
    pub const fn is_live(self) -> bool {
        match self {
            Self::Provisioning | Self::Active | Self::Degraded => true,
            Self::Ending | Self::Ended => false,
        }
    }
}

states!(
    /// Why a rental ended.
    EndReason {
        /// By its user or an administrator.
        Released = "released",
        /// Its time was over.
        Expired = "expired",
        /// It never became active.
        Failed = "failed",
        /// An administrator reset the database.
        Reset = "reset",
    }
);

states!(
    /// What may exist of a rental on one node. A row in `leaving` is a debt.
    AccountState {
        /// May exist already.
        Making = "making",
        /// Seen, with a working password.
        Present = "present",
        /// Must go and may still exist.
        Leaving = "leaving",
        /// Seen gone.
        Gone = "gone",
    }
);

impl AccountState {
    /// Whether the edge exists.
    pub const fn can_become(self, next: Self) -> bool {
        matches!(
            (self, next),
            (Self::Making, Self::Present | Self::Leaving)
                | (Self::Present, Self::Leaving)
                | (Self::Leaving, Self::Gone)
        )
    }
}

states!(
    /// What a run does, and by which playbook.
    RunKind {
        /// Makes an account: `create_user.yml`.
        Provision = "provision",
        /// Removes an account and proves it: `delete_user.yml`.
        Clean = "clean",
        /// Looks and changes nothing: `health_check.yml`.
        Inspect = "inspect",
    }
);

states!(
    /// A run's life: `queued -> claimed -> done | failed`; back to `queued` when no result came or its claimant vanished.
    RunState {
        /// Waits for an executor.
        Queued = "queued",
        /// An executor has it until the claim expires.
        Claimed = "claimed",
        /// It did what it was for.
        Done = "done",
        /// It did not; a later run may.
        Failed = "failed",
    }
);

impl RunState {
    /// Whether the edge exists.
    pub const fn can_become(self, next: Self) -> bool {
        matches!(
            (self, next),
            (Self::Queued, Self::Claimed | Self::Failed)
                | (Self::Claimed, Self::Queued | Self::Done | Self::Failed)
        )
    }
}

states!(
    /// What one run saw on its host: the module's words, then those of the executor where the module never spoke.
    RunOutcome {
        /// provision: the account exists and its password works.
        Present = "present",
        /// clean: nothing of the account is left.
        Gone = "gone",
        /// inspect: no managed account, process or file.
        Clean = "clean",
        /// inspect: something managed is there.
        Dirty = "dirty",
        /// provision: the name belongs to somebody else on that node.
        NameTaken = "name_taken",
        /// The worker has seen a higher epoch for this account.
        StaleEpoch = "stale_epoch",
        /// The worker refuses, for example because the UID lies in a subuid range.
        Refused = "refused",
        /// clean: something is left.
        NotGone = "not_gone",
        /// The step failed and says why.
        Failed = "failed",
        /// The host could not be reached or did not answer in its time.
        Unreachable = "unreachable",
        /// Another SSH host key than the pinned one answered.
        HostKeyMismatch = "host_key_mismatch",
        /// The playbook ended without a word about this host: it is queued again.
        NoResult = "no_result",
        /// Nobody needs it any more.
        Superseded = "superseded",
    }
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_is_read_back_from_its_word() {
        for state in RentalState::ALL {
            assert_eq!(state.as_str().parse::<RentalState>().as_ref(), Ok(state));
        }
        assert_eq!(
            "Ready".parse::<Availability>().unwrap_err().to_string(),
            "`Ready` is not a Availability"
        );
    }

    #[test]
    fn what_is_over_never_lives_again() {
        for next in RentalState::ALL {
            assert!(!RentalState::Ended.can_become(*next));
            assert!(!RentalState::Ending.can_become(*next) || *next == RentalState::Ended);
        }
        for next in AccountState::ALL {
            assert!(!AccountState::Gone.can_become(*next));
        }
    }

    #[test]
    fn a_node_becomes_ready_only_after_a_look() {
        for from in Availability::ALL {
            let seen_clean = matches!(from, Availability::Joining | Availability::Cleaning);
            assert_eq!(from.can_become(Availability::Ready), seen_clean, "{from}");
        }
    }
}
