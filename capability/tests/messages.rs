//! Elements for one message: what is taken, in which form, and why the rest is not.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests fail loudly"
)]

use capability::action::{Action, ActionError as E, Body};
use capability::rpc::{self, Call, METHOD_MAX, NAME_MAX, Protocol};
use capability::{Reason, b64};
use serde_json::{Value, json};

fn element(more: Value) -> Value {
    let mut element = json!({"locations": ["https://A.example:443/mcp"]});
    for (name, value) in more.as_object().unwrap() {
        element[name] = value.clone();
    }
    element
}

fn mcp(method: &str, more: Value) -> Value {
    let mut element = element(more);
    element["type"] = json!("mcp_request");
    element["actions"] = json!([method]);
    element
}

fn a2a(method: &str, more: Value) -> Value {
    let mut element = mcp(method, more);
    element["type"] = json!("a2a_request");
    element
}

#[test]
fn what_is_taken_has_one_normal_form() {
    let digest = b64::encode(&[7; 32]);
    let long = "n".repeat(NAME_MAX);
    for element in [
        mcp("tools/call", json!({"name": "add"})),
        mcp("tools/call", json!({"name": long})),
        mcp(
            "tools/call",
            json!({"name": "add", "arguments_digest": digest}),
        ),
        mcp(
            "prompts/get",
            json!({"name": "Code review", "arguments_digest": digest}),
        ),
        mcp("resources/read", json!({"name": "file:///a?b#c"})),
        mcp("resources/subscribe", json!({"name": "file:///a"})),
        mcp("resources/unsubscribe", json!({"name": "file:///a"})),
        mcp("tools/list", json!({})),
        mcp("resources/templates/list", json!({})),
        mcp("notifications/initialized", json!({})),
        mcp("server/discover", json!({})),
        a2a("SendMessage", json!({})),
        a2a("SendMessage", json!({"skill": "translate"})),
        a2a("message/stream", json!({"skill": "translate"})),
        a2a("GetTask", json!({})),
        a2a("tasks/pushNotificationConfig/set", json!({})),
    ] {
        let action = Action::from_details(&element).unwrap();
        let mut normal = element.clone();
        normal["locations"] = json!(["https://a.example/mcp"]);
        assert_eq!(action.to_details(), normal);
        assert_eq!(Action::from_details(&normal), Ok(action.clone()));
        assert_eq!(action.kind(), element["type"].as_str().unwrap());
        assert_eq!((action.method(), action.needs_body()), ("POST", true));
        assert_eq!(action.content_digest(), None);
        let call = action.call().unwrap();
        assert_eq!(call.method(), element["actions"][0].as_str().unwrap());
        // Without a body, or with one that nobody has read, it is not this.
        assert_eq!(action.covers_body(Body::Unread), Err(Reason::BodyMismatch));
        assert_eq!(action.covers_body(Body::Empty), Err(Reason::ActionMismatch));
        assert_eq!(action.covers_body(Body::Awaited), Ok(None));
    }
}

#[test]
fn what_is_not_one_message_says_why() {
    let digest = b64::encode(&[7; 32]);
    let named = |name: Value| mcp("tools/call", json!({"name": name}));
    for (element, expected) in [
        (mcp("tools/call", json!({})), E::NameMissing),
        (mcp("prompts/get", json!({})), E::NameMissing),
        (mcp("resources/read", json!({})), E::NameMissing),
        (mcp("resources/subscribe", json!({})), E::NameMissing),
        (mcp("tools/list", json!({"name": "add"})), E::NameUnwanted),
        (mcp("initialize", json!({"name": "add"})), E::NameUnwanted),
        (named(json!("")), E::Name),
        (named(Value::Null), E::Name),
        (named(json!(1)), E::Name),
        (named(json!(["add"])), E::Name),
        (named(json!(" add")), E::Name),
        (named(json!("add ")), E::Name),
        (named(json!("add\n")), E::Name),
        (named(json!("ädd")), E::Name),
        (named(json!("=?base64?YWRk?=")), E::Name),
        (named(json!("n".repeat(NAME_MAX + 1))), E::Name),
        (named(json!("*")), E::Wildcard),
        (named(json!("add*")), E::Wildcard),
        (named(json!("{tool}")), E::Wildcard),
        (mcp("*", json!({})), E::Wildcard),
        (mcp("tools/*", json!({"name": "add"})), E::Wildcard),
        (mcp("", json!({})), E::RpcMethod),
        (mcp("/tools", json!({})), E::RpcMethod),
        (mcp("tools call", json!({})), E::RpcMethod),
        (mcp(&"m".repeat(METHOD_MAX + 1), json!({})), E::RpcMethod),
        (mcp("POST", json!({})), E::RpcMethod),
        (mcp("SendMessage", json!({})), E::RpcMethod),
        (mcp("message/send", json!({})), E::RpcMethod),
        (a2a("tools/call", json!({})), E::RpcMethod),
        (a2a("resources/read", json!({})), E::RpcMethod),
        (a2a("GET", json!({})), E::RpcMethod),
        (
            mcp(
                "tools/call",
                json!({"name": "add", "arguments_digest": "x"}),
            ),
            E::ArgumentsDigest,
        ),
        (
            mcp(
                "tools/call",
                json!({"name": "add", "arguments_digest": null}),
            ),
            E::ArgumentsDigest,
        ),
        (
            mcp("tools/list", json!({"arguments_digest": digest})),
            E::NoArguments,
        ),
        (
            mcp(
                "resources/read",
                json!({"name": "file:///a", "arguments_digest": digest}),
            ),
            E::NoArguments,
        ),
        (a2a("GetTask", json!({"skill": "x"})), E::NoSkill),
        (a2a("SendMessage", json!({"skill": ""})), E::Name),
        (a2a("SendMessage", json!({"skill": "*"})), E::Wildcard),
        (a2a("SendMessage", json!({"name": "x"})), E::UnknownMember),
        (
            a2a("SendMessage", json!({"arguments_digest": digest})),
            E::UnknownMember,
        ),
        (
            mcp("tools/call", json!({"name": "add", "skill": "x"})),
            E::UnknownMember,
        ),
        (
            mcp(
                "tools/call",
                json!({"name": "add", "content_digest": digest}),
            ),
            E::UnknownMember,
        ),
        (
            mcp("tools/list", json!({"locations": ["https://a.example/*"]})),
            E::Wildcard,
        ),
        (mcp("tools/list", json!({"locations": []})), E::Location),
    ] {
        let refused = Action::from_details(&element);
        assert_eq!(refused.as_ref().err(), Some(&expected), "{element}");
        let said = expected.to_string();
        assert!(
            said.bytes().all(|byte| (0x20..0x7f).contains(&byte)),
            "{said}"
        );
    }
    for actions in [
        json!([]),
        json!(["ping", "ping"]),
        json!("ping"),
        json!([1]),
    ] {
        let many = element(json!({"type": "mcp_request", "actions": actions}));
        assert_eq!(Action::from_details(&many), Err(E::RpcMethod), "{many}");
    }
}

/// What can't be in a row of text.
#[test]
fn a_body_that_is_no_text_has_no_reading() {
    let good = br#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"add"}}"#;
    assert!(Call::read(Protocol::Mcp, good).is_some());
    let mut bad = good.to_vec();
    bad[60] = 0xff;
    assert_eq!(Call::read(Protocol::Mcp, &bad), None);
    // UTF-16, which some servers take for JSON.
    let wide: Vec<u8> = good.iter().flat_map(|byte| [*byte, 0]).collect();
    assert_eq!(Call::read(Protocol::Mcp, &wide), None);
    let deep = format!(
        r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"add","x":{}{}}}}}"#,
        "[".repeat(40),
        "]".repeat(40)
    );
    assert_eq!(Call::read(Protocol::Mcp, deep.as_bytes()), None);
}

/// The example of the docs.
#[test]
fn absent_arguments_are_empty_ones() {
    let empty = "RBNvo1WzZ4oRRq0W9-hknpT7T8If536DEMBg9hyq_4o";
    for arguments in [None, Some(&json!({}))] {
        assert_eq!(b64::encode(&rpc::digest(arguments).unwrap()), empty);
    }
    assert_eq!(rpc::digest(Some(&Value::Null)), None);
    assert_eq!(rpc::digest(Some(&json!([]))), None);
}
