//! Whatever the callback, or a worker through it, writes: a line of events is read or left out.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|line: &[u8]| {
    orion_schedd::fuzz::event_line(line);
});
