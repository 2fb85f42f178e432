//! What every handler works with. Nothing here would be missed by a second replica.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};

use orion_core::{AddressGuard, PublicKey};
use orion_daemon::Keyring;
use orion_signature::SigningKey;
use orion_store::Store;

use crate::auth::password::PasswordHasher;
use crate::auth::token::Tokens;
use crate::beats::Beats;
use crate::config::ApidSettings;
use crate::metrics::Metrics;
use crate::rentals::ssh_password::Crypt;
use crate::schedd::Schedd;

/// One process's parts.
pub struct App {
    /// The configuration.
    pub settings: ApidSettings,
    /// The database.
    pub store: Store,
    /// Makes and reads tokens.
    pub tokens: Tokens,
    /// Users' passwords.
    pub hasher: PasswordHasher,
    /// Accounts' passwords.
    pub crypt: Crypt,
    /// What passwords and digests derive from.
    pub server_keys: Keyring,
    /// Sign answers to agents, the current one first.
    pub signing_keys: Vec<SigningKey>,
    /// Where workers may be.
    pub addresses: AddressGuard,
    /// The line to orion-schedd.
    pub schedd: Schedd,
    /// Records beats.
    pub beats: Beats,
    /// Whether the database can be used.
    pub gate: Gate,
    /// Counters.
    pub metrics: Metrics,
}

impl App {
    /// What agents may believe from now on.
    pub fn public_signing_keys(&self) -> Vec<PublicKey> {
        self.signing_keys.iter().map(SigningKey::public).collect()
    }
}

impl fmt::Debug for App {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("App").finish_non_exhaustive()
    }
}

/// Closed until the database is there with a schema this version knows. It stays open when the database goes away later:
/// then each call finds out for itself, and answers the right thing the moment it is back.
#[derive(Debug, Default)]
pub struct Gate(AtomicBool);

impl Gate {
    /// Lets requests through or not.
    pub fn set(&self, open: bool) {
        self.0.store(open, Ordering::Relaxed);
    }

    /// Whether requests are let through.
    pub fn is_open(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
