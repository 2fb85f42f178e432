//! orion-apid.

use std::process::ExitCode;

use clap::Parser;
use orion_apid::commands::Arguments;

fn main() -> ExitCode {
    orion_apid::main(Arguments::parse())
}
