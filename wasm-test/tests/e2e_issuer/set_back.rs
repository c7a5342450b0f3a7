//! A clock that was ahead and is right again at the next start.

use serde_json::{Value, json};
use wasm_test::client::now_s;
use wasm_test::shim::Clock;
use wasm_test::system::{Options, System};
use wasm_test::upstream::REPORT;

const AHEAD_S: u64 = 25;

/// What was used stays used, and who asks with a nonce waits for no clock.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_used_by_a_clock_ahead_counts_no_second_time_when_it_is_set_back() {
    let clock = Clock::new().unwrap();
    let mut system = System::for_test(Options {
        env: clock.env(),
        ..Options::default()
    })
    .await
    .unwrap();
    let agent = system.agent().await.unwrap();
    let endpoint = format!("{}/oauth2/token", system.issuer());
    let details = agent.details("GET", REPORT).to_string();
    let proof = |claims: &Value| agent.key().proof_with("POST", &endpoint, None, claims);

    clock.step(i64::try_from(AHEAD_S).unwrap()).unwrap();
    let used = proof(&json!({ "iat": now_s() + AHEAD_S }));
    let svid = agent.svid().await.unwrap();
    let answer = agent.post_token(&svid, &details, &used).await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());

    clock.step(0).unwrap();
    system.restart_control_plane().await.unwrap();
    let again = agent.post_token(&svid, &details, &used).await.unwrap();
    assert_eq!(again.oauth_error(), "use_dpop_nonce", "{}", again.text());
    let nonce = again.header("dpop-nonce").unwrap().to_owned();
    let fresh = proof(&json!({ "nonce": nonce }));
    let answer = agent.post_token(&svid, &details, &fresh).await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    let twice = agent.post_token(&svid, &details, &fresh).await.unwrap();
    assert_eq!(twice.reason(), "proof_replayed", "{}", twice.text());
    system.stop().await;
}
