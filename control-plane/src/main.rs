//! `writ`: the control plane and the command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    control_plane::cli::main()
}
