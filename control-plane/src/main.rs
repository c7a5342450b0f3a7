//! `writ`: the control plane and the command line.

use std::process::ExitCode;

// What one thread allocates, another frees: the ledger works on what requests
// brought (docs/benchmarks.md).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    control_plane::cli::main()
}
