//! Elements for one message of MCP's or A2A's at the token endpoint.

use serde_json::{Value, json};
use wasm_test::ports;
use wasm_test::system::{AGENT, Options, System};

use crate::evidence::{Authority, decoded};
use crate::grants::{AGENTS, CHILD, by, delegating, token_of};
use crate::judging::{Attempt, Bench, issued, no, refused};
use crate::plane::Prepared;
use crate::programs::{ask, clients};
use crate::sessions::{batch, for_session};

const POLICY: &str = r#"
@id("post")
permit (principal is Writ::Agent, action == Writ::Action::"POST", resource)
when { resource.path like "/mcp*" };
@id("not-drop")
forbid (principal, action, resource)
when { context has mcp && context.mcp has name && context.mcp.name == "drop" };
"#;

async fn start() -> Bench {
    let prepared = Prepared::new().with(&format!(
        r#"{AGENTS}
[[edge.route]]
name = "files"
path_prefix = "/files"
upstream = "127.0.0.1:9"
[[edge.route]]
name = "mcp"
path_prefix = "/mcp"
upstream = "127.0.0.1:9"
body = "read"
"#,
    ));
    prepared.write_policy(POLICY);
    Bench::over(prepared.start().await)
}

fn attempt(bench: &Bench, element: &Value) -> Attempt {
    let mut attempt = bench.attempt();
    attempt.set("authorization_details", json!([element]).to_string());
    attempt
}

fn tool(bench: &Bench, more: Value) -> Value {
    let mut element = json!({
        "type": "mcp_request", "actions": ["tools/call"], "locations": [bench.url("/mcp")],
        "name": "add",
    });
    for (name, value) in more.as_object().unwrap() {
        match value {
            Value::Null => drop(element.as_object_mut().unwrap().remove(name)),
            value => element[name] = value.clone(),
        }
    }
    element
}

#[tokio::test]
async fn an_element_for_a_message_is_echoed_and_is_in_the_token() {
    let bench = start().await;
    let digest = "RBNvo1WzZ4oRRq0W9-hknpT7T8If536DEMBg9hyq_4o";
    let location = bench.url("/mcp");
    let upper = location.replace("http://", "HTTP://");
    for element in [
        tool(&bench, json!({})),
        tool(&bench, json!({"arguments_digest": digest})),
        tool(&bench, json!({"actions": ["tools/list"], "name": null})),
        tool(
            &bench,
            json!({"actions": ["resources/read"], "name": "file:///a?b"}),
        ),
        tool(
            &bench,
            json!({"type": "a2a_request", "actions": ["SendMessage"], "name": null}),
        ),
        tool(
            &bench,
            json!({"type": "a2a_request", "actions": ["message/send"], "name": null, "skill": "translate"}),
        ),
    ] {
        let mut spelt = element.clone();
        spelt["locations"] = json!([upper]);
        let what = element.to_string();
        let body = issued(&what, &bench.send(attempt(&bench, &spelt)).await);
        assert_eq!(body["authorization_details"], json!([element]));
        let (_, claims) = decoded(body["access_token"].as_str().unwrap());
        assert_eq!(claims["authorization_details"], json!([element]));
    }
    let url = format!(
        "{}/.well-known/oauth-authorization-server",
        bench.plane.issuer()
    );
    let metadata: Value = reqwest::get(&url).await.unwrap().json().await.unwrap();
    assert_eq!(
        metadata["authorization_details_types_supported"],
        json!(["http_request", "mcp_request", "a2a_request", "delegation"])
    );
}

/// What is wrong with an element, and a word that the refusal has to say.
#[tokio::test]
async fn what_is_not_one_message_is_refused_and_said() {
    let bench = start().await;
    let details = no("invalid_authorization_details", "action_mismatch");
    let a2a = json!({"type": "a2a_request", "actions": ["SendMessage"], "name": null});
    let with = |mut base: Value, name: &str, value: Value| {
        base[name] = value;
        base
    };
    for (what, change, word) in [
        (
            "a member that is not known",
            json!({"identifier": "1"}),
            "not known",
        ),
        (
            "content_digest",
            json!({"content_digest": "x"}),
            "not known",
        ),
        ("a skill", json!({"skill": "x"}), "not known"),
        ("no name", json!({"name": null}), "`name`"),
        ("a name that is a number", json!({"name": 1}), "`name`"),
        ("an empty name", json!({"name": ""}), "`name`"),
        ("any name", json!({"name": "*"}), "wildcard"),
        (
            "a name for a list",
            json!({"actions": ["tools/list"]}),
            "`name`",
        ),
        ("any method", json!({"actions": ["*"]}), "wildcard"),
        (
            "methods that begin alike",
            json!({"actions": ["tools/*"]}),
            "wildcard",
        ),
        (
            "two methods",
            json!({"actions": ["tools/call", "tools/list"]}),
            "exactly one",
        ),
        ("no method", json!({"actions": []}), "exactly one"),
        ("HTTP's method", json!({"actions": ["POST"]}), "JSON-RPC"),
        (
            "A2A's method",
            json!({"actions": ["SendMessage"]}),
            "JSON-RPC",
        ),
        (
            "a digest that is none",
            json!({"arguments_digest": "sha-256=:x:"}),
            "arguments_digest",
        ),
        (
            "a digest where there are no arguments",
            json!({"actions": ["resources/read"], "arguments_digest": "RBNvo1WzZ4oRRq0W9-hknpT7T8If536DEMBg9hyq_4o"}),
            "arguments_digest",
        ),
        (
            "any location",
            json!({"locations": [bench.url("/mcp/*")]}),
            "wildcard",
        ),
        (
            "two locations",
            json!({"locations": [bench.url("/mcp"), bench.url("/mcp2")]}),
            "exactly one",
        ),
        (
            "another origin",
            json!({"locations": ["https://elsewhere.example/mcp"]}),
            "URL under",
        ),
        (
            "where no body is read",
            json!({"locations": [bench.url("/files/a")]}),
            "edge.route.body",
        ),
        (
            "A2A with MCP's name",
            with(a2a.clone(), "name", json!("x")),
            "not known",
        ),
        (
            "A2A with any skill",
            with(a2a.clone(), "skill", json!("*")),
            "wildcard",
        ),
        (
            "A2A with a skill that is a list",
            with(a2a.clone(), "skill", json!(["x"])),
            "`skill`",
        ),
        (
            "A2A with a skill for a task",
            with(
                with(a2a.clone(), "skill", json!("x")),
                "actions",
                json!(["GetTask"]),
            ),
            "`skill`",
        ),
        (
            "A2A with MCP's method",
            with(a2a.clone(), "actions", json!(["tools/call"])),
            "JSON-RPC",
        ),
    ] {
        let answer = bench.send(attempt(&bench, &tool(&bench, change))).await;
        refused(what, &answer, details);
        let said = answer.json()["error_description"].to_string();
        assert!(said.contains(word), "{what}: {said}");
    }
    // Policy sees the name.
    let drop = tool(&bench, json!({"name": "drop"}));
    let answer = bench.send(attempt(&bench, &drop)).await;
    refused(
        "a tool that policy forbids",
        &answer,
        no("access_denied", "policy_denied"),
    );
}

/// Several in a batch, and by a delegation: who may pass on a POST may pass on a message.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_take_them_and_delegations_cover_them_as_posts() {
    let bench = start().await;
    let session = token_of(&issued("a session", &bench.send(for_session(&bench)).await));
    let (add, drop) = (
        tool(&bench, json!({})),
        tool(&bench, json!({"name": "drop"})),
    );
    let nameless = tool(&bench, json!({"name": null}));
    let elements = json!([add, drop, nameless]);
    let answer = batch(&bench, &session, elements, &bench.key).await;
    let body = answer.json();
    let each = &body["capabilities"];
    let (_, claims) = decoded(each[0]["access_token"].as_str().unwrap());
    assert_eq!(claims["authorization_details"], json!([add]));
    assert_eq!(each[1]["reason"], "policy_denied");
    assert_eq!(each[2]["error"], "invalid_authorization_details");

    for (actions, location, covered) in [
        ("POST", "/mcp", true),
        ("POST", "/mcp/*", false),
        ("GET", "/mcp", false),
        ("POST", "/mcp2", false),
    ] {
        let over =
            json!({"actions": [actions], "locations": [bench.url(location)], "delegate": CHILD});
        let made = bench.send(delegating(&bench, &bench.svid(), &over)).await;
        let delegation = token_of(&issued(location, &made));
        let mut attempt = by(&bench, &delegation, CHILD, "/mcp");
        attempt.set("authorization_details", json!([add]).to_string());
        let answer = bench.send(attempt).await;
        if covered {
            issued("by the child", &answer);
        } else {
            let no = no("invalid_authorization_details", "action_mismatch");
            refused(location, &answer, no);
        }
    }
}

/// MCP's own SDK as server and client, with a real Envoy between them: each message that the
/// client sends has a token of its own, and no other message passes by it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_mcp_sdk_calls_a_tool_with_a_token_for_that_call() {
    let Some(clients) = clients() else { return };
    let port = ports::free(None).unwrap().upstream;
    let dir = tempfile::tempdir().unwrap();
    let policy = dir.path().join("mcp.cedar");
    std::fs::write(
        &policy,
        r#"
@id("read-files")
permit (principal is Writ::Agent, action == Writ::Action::"GET", resource)
when { resource.path like "/files/*" || resource.path == "/mcp" };
@id("messages")
permit (principal is Writ::Agent, action == Writ::Action::"POST", resource)
when { resource.path == "/mcp" && context has mcp };
"#,
    )
    .unwrap();
    let system = System::for_test(Options {
        routes: format!(
            "\n[[edge.route]]\nname = \"mcp\"\npath_prefix = \"/mcp\"\nupstream = \"127.0.0.1:{port}\"\nbody = \"read\"\n"
        ),
        policy: Some(policy),
        ..Options::default()
    })
    .await
    .unwrap();
    let authority = Authority::of(&system.data_dir());
    let svid = authority.svid(AGENT, &system.issuer(), &json!({}));
    let given = json!({
        "issuer": system.issuer(), "resource": system.proxy_url(), "agent": AGENT,
        "svid": svid, "url": format!("{}/mcp", system.proxy_url()), "port": port,
    });
    let seen = ask(clients.node("mcp.mjs"), given).await;
    assert_eq!(seen["tools"], json!(["add", "subtract"]), "{seen}");
    assert_eq!(seen["sum"], "3", "{seen}");
    assert_eq!(seen["called"], json!([["add", 1, 2]]), "{seen}");
    let sent = seen["sent"].as_array().unwrap();
    for method in [
        "initialize",
        "notifications/initialized",
        "tools/list",
        "tools/call",
    ] {
        assert!(
            sent.contains(&json!(["mcp_request", method])),
            "{method}: {seen}"
        );
    }
    for (what, reason) in [
        ("tool", "action_mismatch"),
        ("arguments", "body_mismatch"),
        ("again", "token_spent"),
    ] {
        let said = seen["refusals"][what].as_str().unwrap();
        assert!(said.contains(reason), "{what}: {said}");
    }
    system.stop().await;
}
