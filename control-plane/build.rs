//! Generates the server half of `writ.decision.v1`; its messages come from
//! `decision-api`. A pure-Rust compiler: no system `protoc` is needed.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=../decision-api/proto");
    println!("cargo:rerun-if-changed=templates");
    let files = protox::compile(
        ["writ/decision/v1/decision.proto"],
        ["../decision-api/proto"],
    )?;
    tonic_prost_build::configure()
        .build_client(false)
        .extern_path(".writ.decision.v1", "::decision_api")
        .compile_fds(files)?;
    Ok(())
}
