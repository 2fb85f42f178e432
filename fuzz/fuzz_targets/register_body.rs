//! Whatever body arrives, a registration is taken or refused, and what is taken can't be more than data further on.
#![no_main]

use libfuzzer_sys::fuzz_target;
use orion_apid::http::fields::Fields;
use orion_apid::workers::register::registration;
use orion_core::{AddressGuard, AddressRules};

fuzz_target!(|body: &[u8]| {
    let guard = AddressGuard::new(AddressRules::default(), Vec::new(), |_| false);
    let Ok(fields) = Fields::parse(body) else { return };
    if let Ok(form) = registration(fields, &guard, body.len() & 1 == 0) {
        for text in form.texts() {
            assert!(!text.chars().any(char::is_control), "{text:?}");
        }
        for host in form.hosts() {
            assert!(!host.starts_with('-'), "{host:?}");
            assert!(guard.check(host).is_ok(), "{host:?}");
        }
    }
});
