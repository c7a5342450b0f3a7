//! Listener and filters agree on client certificates, or nothing is served.

#![expect(clippy::unwrap_used, reason = "tests fail loudly")]

use serde_json::{Value, json};
use xds::{
    AccessLog, Exempt, Listener, Module, Route, Settings, SettingsError, Snapshot,
    WORKLOAD_API_CLUSTER, default_stream_idle_ms,
};

fn settings(listener: bool, filter: Value, bodies: Option<Value>) -> Settings {
    Settings {
        listener: Listener {
            address: "127.0.0.1".parse().unwrap(),
            port: 8400,
            client_certificates: listener,
        },
        authority: "127.0.0.1:8400".to_owned(),
        sites: Vec::new(),
        exempt: Exempt::default(),
        routes: vec![Route {
            name: "files".to_owned(),
            path_prefix: "/".to_owned(),
            upstream_host: "127.0.0.1".to_owned(),
            upstream_port: 9000,
            reads_bodies: bodies.as_ref().map(|_| 1024),
            site: None,
        }],
        module: Module::new(&b"\0asm\x01\0\0\0"[..]).unwrap(),
        plugin_config: filter,
        bodies_config: bodies,
        start: 1,
        hold_ms: 25_000,
        stream_idle_ms: default_stream_idle_ms(25_000),
        max_request_headers_kib: 32,
        access_log: AccessLog::Stdout,
    }
}

#[test]
fn tokens_that_are_bound_are_never_shown_where_nobody_looks() {
    let (yes, no) = (
        json!({ "client_certificates": "required" }),
        json!({ "client_certificates": "none" }),
    );
    for (listener, filter, bodies, agree) in [
        (true, &yes, None, true),
        (false, &no, None, true),
        (false, &json!({}), None, true),
        (true, &yes, Some(&yes), true),
        (false, &no, Some(&no), true),
        (true, &no, None, false),
        (false, &yes, None, false),
        (true, &json!({ "client_certificates": true }), None, false),
        (true, &yes, Some(&no), false),
        (false, &no, Some(&yes), false),
        (true, &no, Some(&yes), false),
    ] {
        let built = Snapshot::build(&settings(listener, filter.clone(), bodies.cloned()));
        let expected = (!agree).then_some(SettingsError::Certificates);
        assert_eq!(built.err(), expected, "{listener} {filter} {bodies:?}");
    }
}

#[test]
fn the_bootstraps_know_where_certificates_come_from() {
    for name in ["bootstrap.yaml", "bootstrap-package.yaml"] {
        let path = format!("{}/../../envoy/{name}", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(path).unwrap();
        let cluster = format!("- name: {WORKLOAD_API_CLUSTER}\n");
        assert!(text.contains(&cluster), "{name}");
    }
}
