//! Stands in for ansible-playbook in tests: `orion_testkit::scripted`.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(orion_testkit::scripted::main(std::env::args()))
}
