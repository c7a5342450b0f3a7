//! Routes that read bodies: what is digested, told to policy, shown and
//! approved is what the upstream gets, or it gets nothing.

mod holds;
mod tables;
mod uploads;

use std::time::Duration;

use base64ct::{Base64UrlUnpadded, Encoding as _};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use wasm_test::client::Answer;
use wasm_test::system::Options;

use super::raw::Http1;
use super::rig::{Field, Rig, field, sha256};

const LIMIT: usize = 8 * 1024;
const BIG: usize = 1024 * 1024;
const JSON: &str = "application/json";
const NOTE: &str = "/echo/notes/a";
const PAY: &str = "/echo/pay/order";

/// Routes whose bodies are read: without facts, with them, and large ones.
fn routes() -> String {
    format!(
        r#"
[[edge.route]]
name = "notes"
path_prefix = "/echo/notes"
upstream = "{{upstream}}"
body = "read"
body_limit = {LIMIT}

[[edge.route]]
name = "pay"
path_prefix = "/echo/pay"
upstream = "{{upstream}}"
body = "read"
body_facts = {{ "/amount" = "long", "/to" = "string" }}

[[edge.route]]
name = "big"
path_prefix = "/echo/big"
upstream = "{{upstream}}"
body = "read"
body_limit = {BIG}

[[edge.route]]
name = "calls"
path_prefix = "/echo/calls"
upstream = "{{upstream}}"
body = "read"
body_facts = {{ "/method" = "string" }}
"#
    )
}

fn options() -> Options {
    let policy =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e_edge/bodies.cedar");
    Options {
        routes: routes(),
        policy: Some(policy),
        hold_s: 3,
        token_lifetime_s: 120,
        extra_config:
            "[edge]\nbody_deadline_ms = 3000\ndecision_deadline_ms = 3000\n[limits]\nbodies_at_once = 4\n"
                .to_owned(),
        ..Options::default()
    }
}

async fn start() -> Rig {
    Rig::start(options()).await
}

fn digest(body: &[u8]) -> String {
    Base64UrlUnpadded::encode_string(&Sha256::digest(body))
}

/// A token for one body.
async fn bound(rig: &Rig, method: &str, path: &str, body: &[u8]) -> Answer {
    let mut details = rig.agent.details(method, path);
    details[0]["content_digest"] = json!(digest(body));
    let svid = rig.agent.svid().await.unwrap();
    let proof = rig.agent.token_proof();
    rig.agent
        .post_token(&svid, &details.to_string(), &proof)
        .await
        .unwrap()
}

fn token_of(answer: &Answer) -> String {
    answer.json()["access_token"]
        .as_str()
        .unwrap_or_else(|| panic!("{}", answer.text()))
        .to_owned()
}

/// A POST with these headers besides the credentials.
fn head(rig: &Rig, path: &str, token: &str, more: &[Field]) -> Vec<u8> {
    let mut headers = rig.credentials("POST", path, token);
    headers.extend_from_slice(more);
    rig.request("POST", path, &headers)
}

fn with_length(kind: &str, body: &[u8]) -> Vec<Field> {
    vec![
        field("content-type", kind),
        field("content-length", body.len().to_string()),
    ]
}

/// Posts a body with a token that was got before.
async fn post(rig: &Rig, path: &str, token: &str, kind: &str, body: &[u8]) -> Answer {
    let mut connection = Http1::connect(&rig.authority()).await;
    let head = head(rig, path, token, &with_length(kind, body));
    connection.send(&head).await;
    connection.exchange(body).await.expect("an answer")
}

/// Exchange and POST.
async fn call(rig: &Rig, path: &str, kind: &str, body: &[u8]) -> Answer {
    let token = rig.agent.token("POST", path).await.unwrap();
    post(rig, path, &token, kind, body).await
}

fn expect(answer: &Answer, status: u16, reason: &str) {
    assert_eq!(
        (answer.status, answer.reason().as_str()),
        (status, reason),
        "{}",
        answer.text()
    );
}

/// The last request at the upstream had this body, and the log says so.
fn arrived_whole(rig: &Rig, body: &[u8]) {
    let record = rig.records().pop().unwrap();
    assert!(record.complete);
    assert_eq!(record.body_sha256.as_deref(), Some(sha256(body).as_str()));
    let entries = rig.entries_of("allow");
    let request = &entries.last().unwrap()["body"]["request"];
    assert_eq!(request["body"]["sha256"], sha256(body));
    assert_eq!(request["body"]["bytes"], body.len());
}

fn chunked(body: &[u8], trailers: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for chunk in body.chunks(777) {
        bytes.extend(format!("{:x}\r\n", chunk.len()).into_bytes());
        bytes.extend_from_slice(chunk);
        bytes.extend(b"\r\n");
    }
    bytes.extend(format!("0\r\n{trailers}\r\n").into_bytes());
    bytes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_read_is_what_is_forwarded_and_not_before_the_answer() {
    let rig = start().await;
    for size in [0, 1, 5_000, LIMIT] {
        let body: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
        let framings: [(Vec<Field>, Vec<u8>); 3] = [
            (with_length("text/plain", &body), body.clone()),
            (
                vec![field("transfer-encoding", "chunked")],
                chunked(&body, ""),
            ),
            (
                vec![
                    field("transfer-encoding", "chunked"),
                    field("trailer", "x-sum"),
                ],
                chunked(&body, "x-sum: 1\r\n"),
            ),
        ];
        for (headers, bytes) in framings {
            let token = rig.agent.token("POST", NOTE).await.unwrap();
            let before = rig.arrived();
            let mut connection = rig.connect().await;
            rig.freeze(true).await;
            connection.send(&head(&rig, NOTE, &token, &headers)).await;
            connection.send(&bytes).await;
            tokio::time::sleep(Duration::from_millis(400)).await;
            let early = rig.arrived();
            rig.freeze(false).await;
            assert_eq!(early, before, "{size}: forwarded before the answer");
            let answer = connection.answer().await.expect("an answer");
            assert_eq!(answer.status, 200, "{size}: {}", answer.text());
            assert_eq!(rig.arrived(), before + 1);
            arrived_whole(&rig, &body);
            // The permit was that request's: the next one on the connection has none.
            let bare = with_length("text/plain", b"x");
            connection.send(&rig.request("POST", NOTE, &bare)).await;
            connection.send(b"x").await;
            expect(
                &connection.answer().await.unwrap(),
                401,
                "missing_credentials",
            );
            assert_eq!(rig.arrived(), before + 1);
        }
    }
    // A megabyte, which is more than Envoy buffers elsewhere.
    let body: Vec<u8> = (0..BIG).map(|at| (at % 253) as u8).collect();
    let answer = call(&rig, "/echo/big/one", "text/plain", &body).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    arrived_whole(&rig, &body);
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_over_the_limit_is_413_and_spends_nothing() {
    let rig = start().await;
    let before = rig.arrived();
    for (path, limit) in [(NOTE, LIMIT), ("/echo/big/two", BIG)] {
        let token = rig.agent.token("POST", path).await.unwrap();
        let over = vec![b'x'; limit + 1];
        // Announced, so that it is refused without a byte of it.
        expect(
            &post(&rig, path, &token, "text/plain", &over).await,
            413,
            "too_large",
        );
        // Found out.
        let mut connection = Http1::connect(&rig.authority()).await;
        let headers = [field("transfer-encoding", "chunked")];
        connection.send(&head(&rig, path, &token, &headers)).await;
        let mut bytes = format!("{:x}\r\n", over.len()).into_bytes();
        bytes.extend_from_slice(&over);
        bytes.extend(b"\r\n0\r\n\r\n");
        let answer = connection.exchange(&bytes).await.expect("an answer");
        expect(&answer, 413, "too_large");
        assert_eq!(
            answer.header("content-type"),
            Some("application/problem+json")
        );
        // What just fits is the token's one use.
        let fits = vec![b'x'; limit];
        assert_eq!(
            post(&rig, path, &token, "text/plain", &fits).await.status,
            200
        );
        arrived_whole(&rig, &fits);
    }
    assert_eq!(rig.arrived(), before + 2);
    rig.entry("the refusal", |entry| {
        entry["kind"] == "edge_denial" && entry["body"].to_string().contains("too_large")
    })
    .await;
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_for_one_body_allows_no_other_and_only_where_bodies_are_read() {
    let rig = start().await;
    let granted = bound(&rig, "POST", NOTE, b"amount=1").await;
    let token = token_of(&granted);
    let before = rig.arrived();
    for other in [b"amount=2".as_slice(), b"amount=10", b"", b"amount=1\n"] {
        let answer = post(&rig, NOTE, &token, "text/plain", other).await;
        expect(&answer, 403, "body_mismatch");
    }
    assert_eq!(rig.arrived(), before);
    assert_eq!(
        post(&rig, NOTE, &token, "text/plain", b"amount=1")
            .await
            .status,
        200
    );
    arrived_whole(&rig, b"amount=1");
    expect(
        &post(&rig, NOTE, &token, "text/plain", b"amount=1").await,
        401,
        "token_spent",
    );
    for path in ["/echo/else", "/echo/notesx", "/files/report.txt"] {
        let refused = bound(&rig, "POST", path, b"x").await;
        assert_eq!(refused.status, 400, "{path}: {}", refused.text());
        assert_eq!(refused.oauth_error(), "invalid_authorization_details");
        assert!(
            refused.text().contains("edge.route.body"),
            "{}",
            refused.text()
        );
    }

    // `writ call -d` finds out by itself.
    for (path, bound) in [(NOTE, true), ("/echo/else", false)] {
        let mut command = rig.system.writ();
        command.args(["call", "-d", "from the command line", "--json"]);
        let output = command.arg(rig.agent.url(path)).output().unwrap();
        let said: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(said["status"], 200, "{said}");
        let entries = rig.entries_of("issue");
        let action = &entries.last().unwrap()["body"]["token"]["action"];
        let wanted = bound.then(|| digest(b"from the command line"));
        assert_eq!(
            action["content_digest"].as_str(),
            wanted.as_deref(),
            "{path}"
        );
    }
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policy_decides_by_what_is_in_a_body_and_denies_what_it_cannot_read() {
    let rig = start().await;
    let form = "application/x-www-form-urlencoded";
    let mut gzip = hex::decode(PACKED).unwrap();
    let table: [(&str, &str, &[u8], u16, &str); 14] = [
        (PAY, JSON, br#"{"amount": 100, "to": "bob"}"#, 200, ""),
        (
            PAY,
            "application/json; charset=utf-8",
            br#"{"to":"bob","amount":-5,"x":[{}]}"#,
            200,
            "",
        ),
        (
            PAY,
            JSON,
            br#"{"amount": 1, "to": "mallory"}"#,
            403,
            "policy_denied",
        ),
        // Missing, of another kind, no single value.
        (PAY, JSON, br#"{"to": "bob"}"#, 403, "policy_error"),
        (
            PAY,
            JSON,
            br#"{"amount": "1", "to": "bob"}"#,
            403,
            "policy_error",
        ),
        (
            PAY,
            JSON,
            br#"{"amount": 1.5, "to": "bob"}"#,
            403,
            "policy_error",
        ),
        (
            PAY,
            JSON,
            br#"{"amount": null, "to": "bob"}"#,
            403,
            "policy_error",
        ),
        // No JSON, or JSON in two readings, or JSON that is called something else.
        (PAY, JSON, b"amount=1&to=bob", 403, "policy_error"),
        (PAY, JSON, b"", 403, "policy_error"),
        (
            PAY,
            JSON,
            br#"{"amount": 1, "amount": 9, "to": "bob"}"#,
            403,
            "policy_error",
        ),
        (
            PAY,
            form,
            br#"{"amount": 1, "to": "bob&amount=9"}"#,
            403,
            "policy_error",
        ),
        (PAY, JSON, &gzip.clone(), 403, "policy_error"),
        (
            "/echo/calls/rpc",
            JSON,
            br#"[{"method": "tools/list"}]"#,
            403,
            "policy_error",
        ),
        (
            "/echo/calls/rpc",
            JSON,
            br#"{"method": "tools/call"}"#,
            403,
            "policy_denied",
        ),
    ];
    let mut passed = rig.arrived();
    for (path, kind, body, status, reason) in table {
        let answer = call(&rig, path, kind, body).await;
        assert_eq!(
            answer.status,
            status,
            "{kind} {:?}: {}",
            String::from_utf8_lossy(body),
            answer.text()
        );
        if status == 200 {
            passed += 1;
            arrived_whole(&rig, body);
        } else {
            expect(&answer, status, reason);
        }
        assert_eq!(rig.arrived(), passed);
    }
    // What is said to be packed is digested as it was sent.
    gzip.push(b'\n');
    let token = token_of(&bound(&rig, "POST", NOTE, &gzip).await);
    let mut headers = with_length(JSON, &gzip);
    headers.push(field("content-encoding", "gzip"));
    let mut connection = rig.connect().await;
    connection.send(&head(&rig, NOTE, &token, &headers)).await;
    connection.send(&gzip).await;
    assert_eq!(connection.answer().await.unwrap().status, 200);
    arrived_whole(&rig, &gzip);
    assert_eq!(
        rig.records().pop().unwrap().header("content-encoding"),
        Some("gzip")
    );
    // A read needs no facts.
    assert_eq!(rig.agent.call("GET", PAY).await.unwrap().status, 200);
    rig.finish().await;
}

/// `{"amount": 1, "to": "bob"}`, packed by gzip.
const PACKED: &str =
    "1f8b0800000000000203ab564acccd2fcd2b51b25230d451502ac907329492f293946a01527502101a000000";
