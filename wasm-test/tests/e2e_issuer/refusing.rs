//! What an agent is told of an action that policy refuses: which, and why where a rule
//! lets it know.

use serde_json::{Value, json};
use wasm_test::client::Answer;

use crate::grants::token_of;
use crate::judging::{Bench, issued, no, refused};
use crate::plane::Prepared;
use crate::sessions::for_session;

const POLICY: &str = r#"
@id("read")
permit (principal is Writ::Agent, action == Writ::Action::"GET", resource)
when { resource.path like "/files/*" };
@id("told")
@tell("agent")
@reason("Payroll is closed until \"Friday\".")
forbid (principal, action, resource)
when { resource.path like "/files/payroll/*" };
@id("kept")
@reason("We suspect this agent.")
forbid (principal, action, resource)
when { resource.path like "/files/*/kept" };
"#;

async fn start() -> Bench {
    let prepared = Prepared::new();
    prepared.write_policy(POLICY);
    Bench::over(prepared.start().await)
}

/// What the element is called in a refusal.
fn named(bench: &Bench, index: usize, path: &str, why: Value) -> Value {
    let element = bench.details(path)[0].clone();
    json!({ "element_index": index, "element": element, "why": why })
}

fn told(body: &Value) -> Value {
    json!({ "element_index": body["element_index"], "element": body["element"], "why": body["why"] })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_names_the_element_and_why_where_that_may_be_told() {
    let bench = start().await;
    let friday = json!(["Payroll is closed until \"Friday\"."]);
    for (path, normal, why) in [
        ("/secret.txt", "/secret.txt", Value::Null),
        ("/files/payroll/may", "/files/payroll/may", friday.clone()),
        ("/files/m%61y/kept", "/files/may/kept", Value::Null),
        ("/files/payroll/kept", "/files/payroll/kept", friday.clone()),
    ] {
        let mut attempt = bench.attempt();
        attempt.set("authorization_details", bench.details(path).to_string());
        let answer = bench.send(attempt).await;
        refused(path, &answer, no("access_denied", "policy_denied"));
        assert_eq!(
            told(&answer.json()),
            named(&bench, 0, normal, why),
            "{path}"
        );
        assert!(!answer.text().contains("suspect"), "{}", answer.text());
    }
    // What is no element of a policy's no names none.
    let mut attempt = bench.attempt();
    attempt.set("authorization_details", "[{}]".to_owned());
    let answer = bench.send(attempt).await;
    refused(
        "no action",
        &answer,
        no("invalid_authorization_details", "action_mismatch"),
    );
    assert_eq!(answer.json().get("element_index"), None);

    // Several at once: each says which it is.
    let session = token_of(&issued("a session", &bench.send(for_session(&bench)).await));
    let paths = [
        "/files/a",
        "/files/payroll/may",
        "/files/b",
        "/files/x/kept",
    ];
    let elements: Vec<Value> = paths
        .iter()
        .map(|path| bench.details(path)[0].clone())
        .collect();
    let url = format!("{}/api/v1/capabilities", bench.plane.issuer());
    let request = reqwest::Client::new()
        .post(&url)
        .header("authorization", format!("DPoP {session}"))
        .header("dpop", bench.key.proof("POST", &url, Some(&session)))
        .json(&json!({ "authorization_details": elements }));
    let answer = Answer::read(request.send().await.unwrap()).await.unwrap();
    let body = answer.json();
    for (at, why) in [(1, friday), (3, Value::Null)] {
        let one = &body["capabilities"][at];
        assert_eq!(one["reason"], "policy_denied", "{body}");
        assert_eq!(told(one), named(&bench, at, paths[at], why), "{body}");
    }
    for at in [0, 2] {
        assert!(
            body["capabilities"][at]["access_token"].is_string(),
            "{body}"
        );
    }
}
