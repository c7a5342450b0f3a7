//! A small upstream that serves nobody who can't show the control plane's decision
//! for exactly this request, once. How it judges is in `src/verifying.rs`.
//!
//! `cargo run -p wasm-test --example verifying_upstream -- ISSUER AUDIENCE ADDRESS`
//! says `listening on ADDRESS` when it does.

use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;
use wasm_test::verifying::{Verifier, serve};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [issuer, audience, address] = arguments.as_slice() else {
        return Err("usage: verifying_upstream ISSUER AUDIENCE ADDRESS".into());
    };
    // TLS to an issuer with https needs a provider by name.
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    let url = format!("{issuer}/.well-known/writ-decision-jwks.json");
    let jwks = reqwest::get(url).await?.error_for_status()?.json().await?;
    let verifier = Arc::new(Verifier::new(issuer, audience, &jwks));
    let listener = TcpListener::bind(address.parse::<SocketAddr>()?).await?;
    println!("listening on {}", listener.local_addr()?);
    serve(listener, verifier).await?;
    Ok(())
}
