//! Tokens for one message of MCP's or A2A's: what passes is that message, once.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use wasm_test::client::{Answer, Verdict};
use wasm_test::system::Options;

use super::raw::Http1;
use super::rig::{Field, Rig, field, sha256};
use super::rows::{message_element, message_headers};

const ROWS: &str = include_str!("../../../capability/tests/data/messages.json");
/// Where bodies are read, and where policy wants messages besides.
const READ: &str = "/echo/calls/rpc";
const MCP: &str = "/echo/mcp/one";
const JSON: &str = "application/json";

fn routes() -> String {
    let route = |name: &str| {
        format!(
            "[[edge.route]]\nname = \"{name}\"\npath_prefix = \"/echo/{name}\"\nupstream = \"{{upstream}}\"\nbody = \"read\"\n"
        )
    };
    format!("\n{}\n{}", route("calls"), route("mcp"))
}

async fn start() -> Rig {
    let policy =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e_edge/messages.cedar");
    Rig::start(Options {
        routes: routes(),
        policy: Some(policy),
        hold_s: 3,
        token_lifetime_s: 200,
        extra_config: "[edge]\nmetadata = true\n".to_owned(),
        ..Options::default()
    })
    .await
}

async fn exchange(rig: &Rig, element: &Value) -> Answer {
    let svid = rig.agent.svid().await.unwrap();
    let proof = rig.agent.token_proof();
    let details = json!([element]).to_string();
    rig.agent.post_token(&svid, &details, &proof).await.unwrap()
}

async fn token(rig: &Rig, element: &Value) -> String {
    let answer = exchange(rig, element).await;
    assert_eq!(answer.status, 200, "{element}: {}", answer.text());
    let body = answer.json();
    // What is said back is what counts (RFC 9396, section 7).
    assert_eq!(body["authorization_details"], json!([element]));
    body["access_token"].as_str().unwrap().to_owned()
}

/// One request, its body in one piece; none ends with its headers.
async fn send(
    rig: &Rig,
    (method, path): (&str, &str),
    token: &str,
    more: Vec<Field>,
    body: Option<&[u8]>,
) -> Answer {
    let mut headers = rig.credentials(method, path, token);
    headers.extend(more);
    headers.extend(body.map(|body| field("content-length", body.len().to_string())));
    let mut connection = Http1::connect(&rig.authority()).await;
    connection.send(&rig.request(method, path, &headers)).await;
    connection
        .exchange(body.unwrap_or_default())
        .await
        .expect("an answer")
}

async fn post(rig: &Rig, path: &str, token: &str, body: &[u8]) -> Answer {
    let more = vec![field("content-type", JSON)];
    send(rig, ("POST", path), token, more, Some(body)).await
}

fn expect(what: &str, answer: &Answer, status: u16, reason: &str) {
    assert_eq!(
        (answer.status, answer.reason().as_str()),
        (status, reason),
        "{what}: {}",
        answer.text()
    );
}

fn call(tool: &str, arguments: &Value, id: u64) -> Vec<u8> {
    let params = json!({"name": tool, "arguments": arguments});
    let message = json!({"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": params});
    message.to_string().into_bytes()
}

fn tool(rig: &Rig, path: &str, name: &str) -> Value {
    json!({
        "type": "mcp_request", "actions": ["tools/call"], "locations": [rig.agent.url(path)],
        "name": name,
    })
}

/// The rows that `capability` is held to, each with its reason, by a proxy and the
/// token endpoint. What is refused spends nothing: the same token goes on to the next
/// row, and to a good request in the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_row_has_its_reason_and_what_is_refused_spends_nothing() {
    let rig = start().await;
    let rows: Vec<Value> = serde_json::from_str(ROWS).unwrap();
    assert!(rows.len() > 130, "{}", rows.len());
    let mut unspent: BTreeMap<String, String> = BTreeMap::new();
    let mut passed = rig.arrived();
    for row in rows {
        let name = row["name"].as_str().unwrap();
        let expected = row["expect"].as_str().unwrap();
        let element = message_element(&row, &rig.agent.url(READ));
        if expected == "token_malformed" {
            // No such token is issued.
            let answer = exchange(&rig, &element).await;
            assert_eq!(answer.status, 400, "{name}: {}", answer.text());
            assert_eq!(answer.oauth_error(), "invalid_authorization_details");
            continue;
        }
        // A proxy that reads bodies reads all of them.
        let Some(body) = row["body"].as_str().or(row["http"].as_str().and(Some(""))) else {
            continue;
        };
        let method = row["http"].as_str().unwrap_or("POST");
        let key = element.to_string();
        let token = match unspent.get(&key) {
            Some(token) => token.clone(),
            None => token(&rig, &element).await,
        };
        let more = message_headers(&row);
        let more = more.iter().map(|(name, value)| field(name, value.as_str()));
        let body = (!body.is_empty()).then_some(body.as_bytes());
        let answer = send(&rig, (method, READ), &token, more.collect(), body).await;
        if expected == "ok" {
            assert_eq!(answer.status, 200, "{name}: {}", answer.text());
            passed += 1;
            let record = rig.records().pop().unwrap();
            let digest = body.map(sha256);
            assert_eq!(record.body_sha256, digest, "{name}");
            unspent.remove(&key);
        } else {
            // Envoy itself refuses names with underscores.
            let spelt = more_than_hyphens(&row);
            if !(spelt && answer.status == 400) {
                expect(name, &answer, 403, expected);
            }
            unspent.insert(key, token);
        }
        assert_eq!(rig.arrived(), passed, "{name}");
    }
    // Each token that was only refused is there still.
    let add = json!({"token": {"type": "mcp_request", "actions": ["tools/call"], "name": "add"}});
    let element = message_element(&add, &rig.agent.url(READ));
    let token = unspent.get(&element.to_string()).expect("a token is left");
    let body = call("add", &json!({"a": 1}), 5);
    assert_eq!(post(&rig, READ, token, &body).await.status, 200);
    expect(
        "again",
        &post(&rig, READ, token, &body).await,
        401,
        "token_spent",
    );
    rig.finish().await;
}

fn more_than_hyphens(row: &Value) -> bool {
    let headers = row["headers"].as_array().into_iter().flatten();
    let mut names = headers.filter_map(|it| it[0].as_str());
    names.any(|name| name.contains('_'))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policy_knows_method_name_and_skill_at_the_exchange_and_at_the_request() {
    let rig = start().await;
    let before = rig.arrived();
    // A rule for tools is not gone round by a plain POST, nor by another kind of message.
    let plain =
        json!({"type": "http_request", "actions": ["POST"], "locations": [rig.agent.url(MCP)]});
    let a2a = |path: &str, skill: &str| json!({"type": "a2a_request", "actions": ["SendMessage"], "locations": [rig.agent.url(path)], "skill": skill});
    let mut bound = tool(&rig, MCP, "transfer");
    let arguments = json!({"amount": 5, "to": "bob"});
    let digest = capability::rpc::digest(Some(&arguments)).unwrap();
    bound["arguments_digest"] = capability::b64::encode(&digest).into();
    for (what, element) in [
        ("a plain POST", plain),
        ("another kind of message", a2a(MCP, "translate")),
        ("the tool", tool(&rig, MCP, "drop")),
        ("arguments of any kind", tool(&rig, MCP, "transfer")),
        ("another skill", a2a(READ, "delete")),
    ] {
        let answer = exchange(&rig, &element).await;
        assert_eq!(
            answer.oauth_error(),
            "access_denied",
            "{what}: {}",
            answer.text()
        );
    }
    let refused = rig.entries_of("exchange_refused");
    let action = &refused.last().unwrap()["body"]["action"];
    assert_eq!(
        *action,
        json!({"type": "a2a_request", "method": "SendMessage", "location": rig.agent.url(READ), "skill": "delete"})
    );

    let transfer = token(&rig, &bound).await;
    let issued = rig.entries_of("issue");
    let action = &issued.last().unwrap()["body"]["token"]["action"];
    assert_eq!(action["type"], "mcp_request");
    assert_eq!(
        (&action["method"], &action["name"]),
        (&json!("tools/call"), &json!("transfer"))
    );
    assert_eq!(action["arguments_digest"], bound["arguments_digest"]);
    let other = call("transfer", &json!({"amount": 500, "to": "bob"}), 1);
    expect(
        "other arguments",
        &post(&rig, MCP, &transfer, &other).await,
        403,
        "body_mismatch",
    );
    let body = call("transfer", &arguments, 2);
    assert_eq!(post(&rig, MCP, &transfer, &body).await.status, 200);
    let skill = token(&rig, &a2a(READ, "translate")).await;
    let message = json!({"jsonrpc": "2.0", "id": "1", "method": "SendMessage",
        "params": {"message": {"messageId": "m", "role": "ROLE_USER", "parts": [{"text": "hi"}], "metadata": {"skillId": "translate"}}}});
    let answer = post(&rig, READ, &skill, message.to_string().as_bytes()).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(rig.arrived(), before + 2);

    // From the command line.
    let run = |arguments: &[&str]| {
        let output = rig.system.writ().args(arguments).output().unwrap();
        let said: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        (said, String::from_utf8(output.stderr).unwrap())
    };
    let details = bound.to_string();
    let (said, _) = run(&["token", "--json", "--details", &details]);
    assert_eq!(said["authorization_details"], json!([bound]), "{said}");
    let shown = said["access_token"].as_str().unwrap();
    let proof = said["proof"].as_str().unwrap();
    let sent = wasm_test::client::Call {
        method: "POST",
        path: MCP,
        token: Some(shown),
        proof: Some(proof),
        headers: &[("content-type", JSON)],
        body: body.clone(),
    };
    let answer = rig.agent.send(sent).await;
    // Its key is the command line's own, and so is its proof.
    assert_eq!(answer.unwrap().status, 200);
    let text = String::from_utf8(body).unwrap();
    let url = rig.agent.url(MCP);
    let (said, _) = run(&["call", "--json", "--details", &details, "-d", &text, &url]);
    assert_eq!(said["status"], 200, "{said}");
    let other = text.replace("bob", "eve");
    let (said, _) = run(&["call", "--json", "--details", &details, "-d", &other, &url]);
    assert_eq!(said["reason"], "body_mismatch", "{said}");
    for (wrong, word) in [
        ("{", "no JSON"),
        ("[]", "one element"),
        ("@/nowhere", "can't be read"),
    ] {
        let (_, said) = run(&["token", "--details", wrong]);
        assert!(said.contains(word), "{wrong}: {said}");
    }
    let (_, said) = run(&["token", "--details", &details, &url]);
    assert!(said.contains("cannot be used with"), "{said}");
    assert_eq!(rig.arrived(), before + 4);

    // The resource's own metadata has the types (RFC 9728).
    let at = rig.agent.url("/.well-known/oauth-protected-resource");
    let metadata: Value = reqwest::get(&at).await.unwrap().json().await.unwrap();
    assert_eq!(
        metadata["authorization_details_types_supported"],
        json!(["http_request", "mcp_request", "a2a_request"]),
        "{metadata}"
    );

    // Where bodies are not read no token can hold a request to a message.
    let answer = exchange(&rig, &tool(&rig, "/echo/else", "add")).await;
    assert_eq!(answer.oauth_error(), "invalid_authorization_details");
    assert!(
        answer.text().contains("edge.route.body"),
        "{}",
        answer.text()
    );
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_person_sees_the_tool_and_says_yes_to_that_call() {
    let rig = start().await;
    let approver = rig.system.approver().await.unwrap();
    let known = approver.inbox().await.unwrap();
    let before = rig.arrived();
    let body = call("pay", &json!({"amount": 5, "to": "bob"}), 1);
    let pay = tool(&rig, MCP, "pay");
    let first = token(&rig, &pay).await;
    let answer = post(&rig, MCP, &first, &body).await;
    expect("nobody has looked", &answer, 403, "approval_pending");
    let id = approver
        .next(&known, Duration::from_secs(10))
        .await
        .unwrap();
    let shown = approver
        .page(&format!("/api/v1/approvals/{id}"))
        .await
        .unwrap()
        .json();
    assert_eq!(
        (&shown["action"]["type"], &shown["action"]["name"]),
        (&json!("mcp_request"), &json!("pay"))
    );
    let page = approver
        .page(&format!("/approvals/{id}"))
        .await
        .unwrap()
        .text();
    assert!(
        page.contains("<dt>Name</dt><dd class=\"data big\">pay</dd>"),
        "{page}"
    );
    approver.decide(&id, Verdict::Approve).await.unwrap();
    // The yes is to this body, and other ones wait for their own.
    let second = token(&rig, &pay).await;
    let other = call("pay", &json!({"amount": 500, "to": "bob"}), 1);
    expect(
        "another amount",
        &post(&rig, MCP, &second, &other).await,
        403,
        "approval_pending",
    );
    assert_eq!(rig.arrived(), before);
    let third = token(&rig, &pay).await;
    assert_eq!(post(&rig, MCP, &third, &body).await.status, 200);
    assert_eq!(rig.arrived(), before + 1);
    rig.finish().await;
}
