//! Which of the filter's two instances is on where: a route table that is wrong
//! about it lets nothing through.

use serde_json::json;
use wasm_test::system::Options;

use super::super::rig::{Rig, field, message};
use super::{Http1, NOTE, PAY, expect, options, with_length};

/// A listener of Envoy's own, beside the control plane's: the same two instances
/// by ECDS, and a table of routes that somebody got wrong.
fn listener(port: u16, upstream: &str) -> String {
    let instance = |name: &str, disabled: bool| {
        json!({
            "name": name,
            "disabled": disabled,
            "config_discovery": {
                "config_source": {"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "0s"},
                "type_urls": ["type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm"],
            },
        })
    };
    let on = json!({"writ.bodies": {
        "@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "config": {},
    }});
    let off = json!({"writ.bodies": {
        "@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "disabled": true,
    }});
    let to = json!({"cluster": upstream});
    let manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "wrong",
        "http_filters": [
            instance("writ.bodies", true),
            instance("writ.filter", false),
            {"name": "envoy.filters.http.router", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
            }},
        ],
        "route_config": {"name": "wrong", "validate_clusters": false, "virtual_hosts": [{
            "name": "all", "domains": ["*"], "routes": [
                // Reads bodies, and the reader is on: as it should be.
                {"match": {"prefix": "/echo/notes"}, "route": to, "typed_per_filter_config": on},
                // Reads bodies, and the reader is off.
                {"match": {"prefix": "/echo/pay"}, "route": to, "typed_per_filter_config": off},
                // Reads bodies, and nobody said anything.
                {"match": {"prefix": "/echo/calls"}, "route": to},
                // Reads none, and the reader is on.
                {"match": {"prefix": "/files"}, "route": to, "typed_per_filter_config": on},
            ],
        }]},
    });
    let listener = json!({
        "name": "wrong",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [{"filters": [
            {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager},
        ]}],
    });
    // JSON is YAML.
    format!("    - {listener}\n")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_table_lets_nothing_through_that_was_not_decided() {
    let port = wasm_test::ports::free(None).unwrap().proxy;
    let rig = Rig::start(Options {
        listeners: listener(port, "writ.route.files"),
        ..options()
    })
    .await;
    let at = format!("127.0.0.1:{port}");
    let before = rig.arrived();
    let call = async |path: &str, token: Option<&str>, body: &[u8]| {
        let mut connection = Http1::connect(&at).await;
        let mut headers = vec![field("host", rig.authority())];
        headers.extend(with_length("text/plain", body));
        if let Some(token) = token {
            headers.extend(rig.credentials("POST", path, token));
        }
        connection.send(&message("POST", path, &headers)).await;
        connection.exchange(body).await.expect("an answer")
    };
    // Nowhere does anything pass without a token.
    for path in [
        NOTE,
        PAY,
        "/echo/calls/x",
        "/files/report.txt",
        "/elsewhere",
    ] {
        for mark in ["", "?writ.passed=1"] {
            let answer = call(&format!("{path}{mark}"), None, b"x").await;
            expect(&answer, 401, "missing_credentials");
        }
    }
    // Where the reader is off, what it would have read is refused, and spent is nothing.
    for path in [PAY, "/echo/calls/x"] {
        let token = rig.agent.token("POST", path).await.unwrap();
        for body in [b"x".as_slice(), b""] {
            expect(&call(path, Some(&token), body).await, 503, "internal_error");
        }
    }
    assert_eq!(rig.arrived(), before);
    // Where it is on, needlessly or not, it guards, and each token is used once.
    let token = rig.agent.token("POST", NOTE).await.unwrap();
    assert_eq!(call(NOTE, Some(&token), b"x").await.status, 200);
    expect(&call(NOTE, Some(&token), b"x").await, 401, "token_spent");
    let path = "/files/report.txt";
    let token = rig.agent.token("GET", path).await.unwrap();
    let mut connection = Http1::connect(&at).await;
    let mut headers = vec![field("host", rig.authority())];
    headers.extend(rig.credentials("GET", path, &token));
    connection.send(&message("GET", path, &headers)).await;
    assert_eq!(connection.answer().await.unwrap().status, 200);
    connection.send(&message("GET", path, &headers)).await;
    expect(&connection.answer().await.unwrap(), 401, "token_spent");
    assert_eq!(rig.arrived(), before + 2);
    // A path without a route is guarded before it is missed.
    let token = rig.agent.token("POST", "/echo/else").await.unwrap();
    assert_eq!(call("/echo/else", Some(&token), b"x").await.status, 404);
    assert_eq!(rig.arrived(), before + 2);
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_decision_that_never_comes_lets_nothing_of_a_body_through() {
    let rig = Rig::start(options()).await;
    let before = rig.arrived();
    let body = vec![b'x'; 5_000];
    let token = rig.agent.token("POST", NOTE).await.unwrap();
    rig.freeze(true).await;
    let mut connection = rig.connect().await;
    let mut headers = rig.credentials("POST", NOTE, &token);
    headers.extend(with_length("text/plain", &body));
    connection.send(&rig.request("POST", NOTE, &headers)).await;
    for part in body.chunks(1_000) {
        connection.send(part).await;
    }
    let answer = connection.answer().await.expect("an answer");
    rig.freeze(false).await;
    expect(&answer, 503, "control_plane_unavailable");
    assert_eq!(rig.arrived(), before, "an undecided request was forwarded");
    rig.recovers().await;
    rig.finish().await;
}
