//! Deferred tokens where an agent acts for a user: by the user's token, by an ID-JAG, and
//! by a delegation.

use serde_json::{Value, json};
use wasm_test::client::Answer;

use crate::deferring::{self, approve, interval, polling};
use crate::evidence::decoded;
use crate::id_jag::{bearing, id_jag};
use crate::judging::{Attempt, Bench, Verdict, issued, no, refused};
use crate::users::{acting, start_by, user};

const POLICY: &str = r#"
@id("for-users")
permit (principal is Writ::Agent, action == Writ::Action::"GET", resource)
when { context has user };
@id("restricted-needs-approval")
@approvers("platform")
@reason("Somebody has to look first.")
@ttl("10m")
forbid (principal, action, resource)
when { resource.path like "/files/restricted/*" }
unless { context.approvals.contains("restricted-needs-approval") };
"#;
const RESTRICTED: &str = "/files/restricted/a";
const PENDING: Verdict = no("authorization_pending", "approval_pending");

/// The code, which lasts no longer than a user's token of five minutes.
fn code_of(answer: &Answer) -> String {
    refused("the first", answer, PENDING);
    let body = answer.json();
    assert!(body["expires_in"].as_u64().unwrap() <= 300, "{body}");
    body["deferral_code"].as_str().unwrap().to_owned()
}

/// The attempt, for what a person has to look at.
fn deferred(bench: &Bench, attempt: Attempt) -> Attempt {
    deferring::deferred(bench, attempt, RESTRICTED)
}

fn is_for_ann(body: &Value) {
    let (_, claims) = decoded(body["access_token"].as_str().unwrap());
    assert_eq!(claims["sub"], "ann@example.com", "{claims}");
    assert_eq!(claims["act"]["sub"], wasm_test::system::AGENT, "{claims}");
    let location = claims["authorization_details"][0]["locations"][0].as_str();
    assert!(location.unwrap().ends_with(RESTRICTED), "{claims}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_a_user_is_the_users_and_ends_with_the_users_word() {
    let (_dir, idp, client, bench) =
        start_by("id_jag = true", POLICY, "[approval]\npoll_s = 3\n").await;
    let none = json!({});
    let us = bench.plane.issuer();

    let first = deferred(&bench, acting(&bench, user(&idp, &none)));
    let answer = bench.send(first).await;
    let code = code_of(&answer);
    let id = answer.json()["approval_id"].as_str().unwrap().to_owned();
    // Equal ones wait for one person; another user's is another.
    let same = bench
        .send(deferred(&bench, acting(&bench, user(&idp, &none))))
        .await;
    let same_code = code_of(&same);
    assert_eq!(same.json()["approval_id"], id.as_str());
    let bob = user(&idp, &json!({ "sub": "bob@example.com" }));
    let bobs = bench.send(deferred(&bench, acting(&bench, bob))).await;
    assert_ne!(bobs.json()["approval_id"], id.as_str());
    // One that a user's token of a few seconds rests on.
    let now = wasm_test::client::now_s();
    let short = user(&idp, &json!({ "iat": now, "exp": now + 6 }));
    let short = bench.send(deferred(&bench, acting(&bench, short))).await;
    refused("a short one", &short, PENDING);
    let short = short.json();
    assert!(short["expires_in"].as_u64().unwrap() <= 6, "{short}");
    // And one of an ID-JAG, which counts once, whoever waits.
    let jag = id_jag(&idp, &us, &none, &none);
    let jagged = bench
        .send(deferred(&bench, bearing(&bench, &client, jag.clone())))
        .await;
    let jag_code = code_of(&jagged);
    assert_eq!(jagged.json()["approval_id"], id.as_str());
    let again = bench
        .send(deferred(&bench, bearing(&bench, &client, jag)))
        .await;
    refused("again", &again, no("invalid_grant", "token_spent"));

    interval().await;
    refused(
        "waiting",
        &bench.send(polling(&bench, &code)).await,
        PENDING,
    );
    approve(&bench, &id, "approve").await;
    interval().await;
    interval().await;
    is_for_ann(&issued(
        "by a token",
        &bench.send(polling(&bench, &code)).await,
    ));
    is_for_ann(&issued(
        "by an equal one",
        &bench.send(polling(&bench, &same_code)).await,
    ));
    is_for_ann(&issued(
        "by an ID-JAG",
        &bench.send(polling(&bench, &jag_code)).await,
    ));
    let late = short["deferral_code"].as_str().unwrap();
    refused(
        "after the user's token",
        &bench.send(polling(&bench, late)).await,
        no("expired_token", "approval_expired"),
    );
    // Bob's is nobody's yes.
    let bobs = code_of(&bobs);
    refused("bob's", &bench.send(polling(&bench, &bobs)).await, PENDING);
    let entries = bench.plane.entries();
    let issues = entries.iter().filter(|it| it["kind"] == "issue");
    let named = issues.filter(|it| it["body"]["token"]["user"]["subject"] == "ann@example.com");
    assert_eq!(named.count(), 7, "each code and each token names her");
}
