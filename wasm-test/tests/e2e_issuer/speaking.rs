//! MCP's and A2A's own SDKs, as clients and servers with a real Envoy between them.

use serde_json::{Value, json};
use wasm_test::ports;
use wasm_test::system::{AGENT, Options, System};

use crate::evidence::Authority;
use crate::programs::{ask, clients};
use crate::sidecar::Side;

/// A route to a server of the test's own, whose bodies are read, and a policy.
fn speaking(dir: &std::path::Path, path: &str, policy: &str) -> (u16, Options) {
    let port = ports::free(None).unwrap().upstream;
    let file = dir.join("policy.cedar");
    std::fs::write(&file, policy).unwrap();
    let options = Options {
        routes: format!(
            "\n[[edge.route]]\nname = \"own\"\npath_prefix = \"{path}\"\nupstream = \"127.0.0.1:{port}\"\nbody = \"read\"\n"
        ),
        policy: Some(file),
        ..Options::default()
    };
    (port, options)
}

/// Item 11: an agent that knows nothing of Writ.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_mcp_sdk_that_knows_nothing_calls_a_tool_by_way_of_the_sidecar() {
    let Some(clients) = clients() else { return };
    let dir = tempfile::tempdir().unwrap();
    let policy = r#"
@id("mcp")
permit (principal is Writ::Agent, action in [Writ::Action::"POST", Writ::Action::"GET"], resource)
when { resource.path == "/mcp" || resource.path like "/files/*" };
"#;
    let (port, options) = speaking(dir.path(), "/mcp", policy);
    let system = System::for_test(options).await.unwrap();
    let side = Side::start(&system, &[]).await;
    let given = json!({ "url": side.url("/mcp"), "port": port });
    let seen = ask(clients.node("plain.mjs"), given).await;
    for line in ["v1", "v2"] {
        assert_eq!(seen[line]["tools"], json!(["add", "subtract"]), "{seen}");
        assert_eq!(seen[line]["sum"], "3", "{seen}");
    }
    assert_eq!(
        seen["called"],
        json!([["add", 1, 2], ["add", 1, 2]]),
        "{seen}"
    );
    let allowed = crate::plane::entries(&system.audit_dir());
    let allowed = allowed.iter().filter(|it| it["kind"] == "allow");
    let posts = allowed.filter(|it| it["body"]["request"]["path"] == "/mcp");
    assert!(posts.count() >= 6, "each message had a token of its own");
    system.stop().await;
}

/// Item 4. Neither of A2A's SDKs says by itself which skill it wants: a caller of theirs puts
/// it where decision 31 reads it, and they pass that on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_a2a_sdk_sends_messages_with_a_token_for_each_and_its_skill() {
    let Some(clients) = clients() else { return };
    let dir = tempfile::tempdir().unwrap();
    let policy = r#"
@id("files")
permit (principal is Writ::Agent, action == Writ::Action::"GET", resource)
when { resource.path like "/files/*" };
@id("messages")
permit (principal is Writ::Agent, action == Writ::Action::"POST", resource)
when { resource.path == "/a2a" && context has a2a };
"#;
    let (port, options) = speaking(dir.path(), "/a2a", policy);
    let system = System::for_test(options).await.unwrap();
    let authority = Authority::of(&system.data_dir());
    let given = json!({
        "issuer": system.issuer(), "resource": system.proxy_url(), "agent": AGENT,
        "svid": authority.svid(AGENT, &system.issuer(), &json!({})),
        "url": format!("{}/a2a", system.proxy_url()), "port": port,
    });
    let seen = ask(clients.node("a2a.mjs"), given).await;
    assert_eq!(seen["said"], json!(["PLAIN", "HELLO", "STREAM"]), "{seen}");
    let arrived = json!([["plain", null], ["hello", "translate"], ["stream", "shout"]]);
    assert_eq!(seen["arrived"], arrived, "no other message passed: {seen}");
    let no = "action_mismatch";
    assert_eq!(seen["refused"], json!([no, no, no]), "{seen}");
    // What it sends: `metadata` is there where the caller has put something in it.
    let sent = seen["sent"].as_array().unwrap();
    let members: Vec<&Value> = sent.iter().map(|it| &it["members"]).collect();
    assert_eq!(*members[0], json!(["messageId", "parts", "role"]));
    assert_eq!(
        *members[1],
        json!(["messageId", "metadata", "parts", "role"])
    );
    assert_eq!(sent[2]["method"], "SendStreamingMessage");
    for one in sent {
        assert_eq!(one["version"], "1.0", "{one}");
    }
    system.stop().await;
}
