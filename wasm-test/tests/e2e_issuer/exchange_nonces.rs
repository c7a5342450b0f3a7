//! Nonces at the token endpoint (RFC 9449, section 8): a clock that is wrong is told
//! the time, and gets its token.

use std::time::Duration;

use serde_json::{Value, json};
use wasm_test::client::{Answer, now_s};

use crate::judging::{Bench, issued, no, refused};
use crate::plane::Prepared;

async fn show(bench: &Bench, claims: &Value) -> Answer {
    let mut attempt = bench.attempt();
    attempt.prove(bench.proof_with(claims));
    bench.send(attempt).await
}

/// The one nonce of an answer that asks for one.
fn offered(what: &str, answer: &Answer) -> String {
    refused(what, answer, no("use_dpop_nonce", "proof_nonce"));
    let all = answer.headers.iter();
    let nonces: Vec<_> = all.filter(|(name, _)| name == "dpop-nonce").collect();
    assert_eq!(nonces.len(), 1, "{what}");
    assert_eq!(
        answer.header("access-control-expose-headers"),
        Some("DPoP-Nonce")
    );
    nonces[0].1.clone()
}

#[tokio::test]
async fn a_clock_that_is_wrong_gets_its_token_with_a_nonce() {
    let bench = Bench::start().await;
    bench.token().await;
    for iat in [0, now_s() - 3_600, now_s() + 3_600, (1 << 53) - 1] {
        let nonce = offered("another time", &show(&bench, &json!({ "iat": iat })).await);
        let healed = json!({ "iat": iat, "nonce": nonce });
        issued("with the nonce", &show(&bench, &healed).await);
        // Another proof with the same nonce is another proof.
        issued("with it again", &show(&bench, &healed).await);
    }
    // No other refusal has one, and no success needs one.
    let other = show(&bench, &json!({ "htm": "GET" })).await;
    refused(
        "another method",
        &other,
        no("invalid_dpop_proof", "proof_method"),
    );
    assert!(other.header("dpop-nonce").is_none());
}

#[tokio::test]
async fn a_nonce_is_no_way_to_use_a_proof_twice_and_outlives_no_restart() {
    let mut bench = Bench::start().await;
    bench.token().await;
    let late = now_s() - 3_600;
    let nonce = offered("late", &show(&bench, &json!({ "iat": late })).await);
    let proof = bench.proof_with(&json!({ "iat": late, "nonce": nonce }));
    let mut attempt = bench.attempt();
    attempt.prove(proof.clone());
    issued("once", &bench.send(attempt).await);
    let mut attempt = bench.attempt();
    attempt.prove(proof.clone());
    let replayed = no("invalid_dpop_proof", "proof_replayed");
    refused("twice", &bench.send(attempt).await, replayed);
    // What was used is forgotten; so is every nonce of that time.
    bench.plane = bench.plane.restart().await;
    let mut attempt = bench.attempt();
    attempt.prove(proof);
    offered("after the restart", &bench.send(attempt).await);
    bench.token().await;
}

#[tokio::test]
async fn a_proof_is_no_good_by_its_time_once_its_nonce_has_ended() {
    let over = "[token]\nproof_window_s = 4";
    let bench = Bench::over(Prepared::new().with(over).start().await);
    bench.token().await;
    let asked = show(&bench, &json!({ "iat": 0 })).await;
    let began = tokio::time::Instant::now();
    let nonce = offered("another time", &asked);
    // A client whose clock is right shows the last nonce that it got all the same.
    tokio::time::sleep_until(began + Duration::from_secs(3)).await;
    let proof = bench.proof_with(&json!({ "nonce": nonce, "iat": now_s() + 3 }));
    let again = async || {
        let mut attempt = bench.attempt();
        attempt.prove(proof.clone());
        bench.send(attempt).await
    };
    issued("while the nonce is good", &again().await);
    // What was used is remembered for as long as the nonce was good. `iat` alone
    // would still do.
    tokio::time::sleep_until(began + Duration::from_millis(6_500)).await;
    offered("once it has ended", &again().await);
}
