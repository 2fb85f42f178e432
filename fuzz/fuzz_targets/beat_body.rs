//! Whatever body arrives, a beat is taken or refused.
#![no_main]

use libfuzzer_sys::fuzz_target;
use orion_apid::http::fields::Fields;
use orion_apid::workers::beat::beat_form;

fuzz_target!(|body: &[u8]| {
    if let Ok(fields) = Fields::parse(body) {
        drop(beat_form(fields));
    }
});
