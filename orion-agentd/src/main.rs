//! orion-agentd, the process.

use std::process::ExitCode;

fn main() -> ExitCode {
    orion_agentd::main()
}
