//! What a filter takes for a configuration, and for a host.

use super::fixtures::{Headers, Key, configuration};
use super::vm::{Vm, allow};
use super::world::{HostCrypto, World};
use serde_json::{Value, json};

fn edited(edit: impl FnOnce(&mut Value)) -> String {
    let mut value = configuration();
    edit(&mut value);
    value.to_string()
}

fn with(name: &'static str, value: Value) -> String {
    edited(|config| config[name] = value)
}

fn site(name: &str, origin: &str) -> Value {
    json!({"name": name, "origin": origin, "resource": origin})
}

fn without(name: &str) -> String {
    edited(|config| {
        config.as_object_mut().unwrap().remove(name);
    })
}

#[test]
fn a_bad_configuration_is_refused_and_says_why() {
    let duplicate = configuration()
        .to_string()
        .replacen('{', "{\"version\":1,", 1);
    let escaped =
        configuration()
            .to_string()
            .replacen('{', "{\"is\\u0073uer\":\"http://evil.example\",", 1);
    let mut private = Key::issuer().jwk();
    private["kid"] = json!("writ-1");
    private["d"] = private["x"].clone();
    let twice = {
        let key = configuration()["keys"][0].clone();
        json!([key, key])
    };
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let table: Vec<(&str, String, &str)> = vec![
        ("empty", String::new(), "strict JSON"),
        (
            "no JSON",
            "issuer: http://127.0.0.1".to_owned(),
            "strict JSON",
        ),
        (
            "cut off",
            configuration().to_string().trim_end_matches('}').to_owned(),
            "strict JSON",
        ),
        (
            "more behind it",
            format!("{} {{}}", configuration()),
            "strict JSON",
        ),
        ("a list", "[]".to_owned(), "strict JSON"),
        ("nested deeply", deep, "strict JSON"),
        ("a name twice", duplicate, "strict JSON"),
        ("a name twice, once escaped", escaped, "strict JSON"),
        ("another version", with("version", json!(2)), "version"),
        ("no version", without("version"), "version"),
        ("a version as text", with("version", json!("1")), "version"),
        ("no issuer", without("issuer"), "issuer"),
        (
            "an issuer that is no URL",
            with("issuer", json!("writ")),
            "issuer",
        ),
        ("an empty resource", with("resource", json!("")), "resource"),
        (
            "an origin with a path",
            with("origin", json!("http://127.0.0.1:8400/x")),
            "origin",
        ),
        ("no keys", without("keys"), "keys"),
        ("an empty list of keys", with("keys", json!([])), "keys"),
        (
            "a key that is no object",
            with("keys", json!(["key"])),
            "keys[0]",
        ),
        (
            "a key without kid",
            with("keys", json!([Key::issuer().jwk()])),
            "keys[0].kid",
        ),
        ("a private key", with("keys", json!([private])), "private"),
        (
            "a symmetric key",
            with("keys", json!([{"kid": "a", "kty": "oct", "k": "c2VjcmV0"}])),
            "keys[0]",
        ),
        ("a kid twice", with("keys", twice), "keys[1].kid"),
        (
            "token_check misspelt",
            with("token_check", json!("edges")),
            "token_check",
        ),
        (
            "token_check as a number",
            with("token_check", json!(1)),
            "token_check",
        ),
        (
            "crypto misspelt",
            with("crypto", json!("Portable")),
            "crypto",
        ),
        ("crypto null", with("crypto", Value::Null), "crypto"),
        ("no cluster", without("cluster"), "cluster"),
        (
            "a cluster with a blank",
            with("cluster", json!("writ control")),
            "cluster",
        ),
        (
            "a cluster that is too long",
            with("cluster", json!("a".repeat(101))),
            "cluster",
        ),
        (
            "a deadline of zero",
            with("decision_deadline_ms", json!(0)),
            "decision_deadline_ms",
        ),
        (
            "a deadline over the ceiling",
            with("decision_deadline_ms", json!(10_001)),
            "decision_deadline_ms",
        ),
        (
            "a deadline with a fraction",
            with("decision_deadline_ms", json!(1.5)),
            "decision_deadline_ms",
        ),
        (
            "a hold over the ceiling",
            with("hold_ms", json!(55_001)),
            "hold_ms",
        ),
        ("a negative hold", with("hold_ms", json!(-1)), "hold_ms"),
        ("limits as a list", with("limits", json!([])), "limits"),
        (
            "an unknown limit",
            with("limits", json!({"tokens": 1})),
            "limits.tokens",
        ),
        (
            "a token limit over the ceiling",
            with("limits", json!({"token": 8193})),
            "limits.token",
        ),
        (
            "a depth of zero",
            with("limits", json!({"json_depth": 0})),
            "limits.json_depth",
        ),
        ("routes as an object", with("routes", json!({})), "routes"),
        (
            "a route without a name",
            with("routes", json!([{"path_prefix": "/"}])),
            "routes[0].name",
        ),
        (
            "a route that is relative",
            with("routes", json!([{"name": "a", "path_prefix": "a"}])),
            "path_prefix",
        ),
        (
            "a route with more",
            with(
                "routes",
                json!([{"name": "a", "path_prefix": "/", "open": true}]),
            ),
            "routes[0].open",
        ),
        (
            "a route of no site",
            with(
                "routes",
                json!([{"name": "a", "path_prefix": "/", "site": "pay"}]),
            ),
            "routes[0].site: no site has this name",
        ),
        (
            "a site without a resource",
            with(
                "sites",
                json!([{"name": "a", "origin": "http://a.example"}]),
            ),
            "sites[0].resource",
        ),
        (
            "a site with a path",
            with("sites", json!([site("a", "http://a.example/x")])),
            "sites[0].origin",
        ),
        (
            "a site with more",
            edited(|config| {
                config["sites"] = json!([site("a", "http://a.example")]);
                config["sites"][0]["open"] = json!(true);
            }),
            "sites[0].open",
        ),
        (
            "the first origin as a site",
            with("sites", json!([site("a", "http://127.0.0.1:8400")])),
            "sites[0].origin: no request could be told",
        ),
        (
            "one origin, spelt in two ways",
            with(
                "sites",
                json!([
                    site("a", "http://a.example"),
                    site("b", "http://A.example:80")
                ]),
            ),
            "sites[1].origin: no request could be told",
        ),
        (
            "one authority under two schemes",
            with(
                "sites",
                json!([
                    site("a", "http://a.example"),
                    site("b", "https://a.example")
                ]),
            ),
            "sites[1].origin: no request could be told",
        ),
        (
            "two sites of one name",
            with(
                "sites",
                json!([site("a", "http://a.example"), site("a", "http://b.example")]),
            ),
            "sites[1].name",
        ),
        (
            "two sites of one resource",
            edited(|config| {
                config["sites"] =
                    json!([site("a", "http://a.example"), site("b", "http://b.example")]);
                config["sites"][1]["resource"] = json!("http://a.example");
            }),
            "sites[1].resource",
        ),
        (
            "a misspelt member",
            edited(|config| config["tokencheck"] = json!("edge")),
            "tokencheck",
        ),
    ];
    for (what, text, named) in table {
        let (mut vm, taken) = Vm::configure(World::default(), &text);
        assert!(!taken, "{what}");
        let log = vm.world().log.join("\n");
        assert!(log.contains(named), "{what}: {log}");
        assert!(vm.world().streams.is_empty(), "{what}");
    }
}

#[test]
fn all_faults_of_a_configuration_are_told_at_once() {
    let text = edited(|config| {
        config["issuer"] = json!(7);
        config["origin"] = json!("ftp://a");
        config["hold_ms"] = json!("long");
        config["limits"]["proof"] = json!(0);
        config["keys"] = json!([{}]);
    });
    let (mut vm, taken) = Vm::configure(World::default(), text);
    assert!(!taken);
    let log = vm.world().log.join("\n");
    for named in ["issuer", "origin", "hold_ms", "limits.proof", "keys[0].kid"] {
        assert!(log.contains(named), "{named}: {log}");
    }
}

#[test]
fn what_may_be_left_out_has_defaults() {
    let text = edited(|config| {
        for name in [
            "token_check",
            "crypto",
            "decision_deadline_ms",
            "hold_ms",
            "limits",
            "routes",
        ] {
            config.as_object_mut().unwrap().remove(name);
        }
    });
    let (_, taken) = Vm::configure(World::default(), text);
    assert!(taken);
}

#[test]
fn a_host_that_lies_about_signatures_is_refused() {
    for (crypto, named) in [
        (HostCrypto::AlwaysGood, "a bad signature was accepted"),
        (HostCrypto::AlwaysBad, "a good signature was refused"),
        (HostCrypto::Missing, "verify_signature"),
    ] {
        let world = World {
            crypto,
            ..World::default()
        };
        let (mut vm, taken) = Vm::configure(world, configuration().to_string());
        assert!(!taken, "{crypto:?}");
        let log = vm.world().log.join("\n");
        assert!(log.contains(named), "{crypto:?}: {log}");
        // A refused configuration lets nothing through: there is none.
        let context = vm.request(&Headers::good("/files/a", "jti-1"));
        vm.assert_refused(context, 503, "internal_error");
    }
}

#[test]
fn portable_crypto_is_used_only_when_asked_for_by_name() {
    let mut portable = configuration();
    portable["crypto"] = json!("portable");
    let world = World {
        crypto: HostCrypto::Missing,
        ..World::default()
    };
    let mut vm = Vm::ready_with(world, &portable);
    assert_eq!(vm.metric("writ.portable_crypto"), 1);
    let context = vm.request(&Headers::good("/files/a", "jti-1"));
    let ask = vm.asked();
    vm.answer(&ask, allow());
    assert_eq!(vm.resumed(context), 1);
    assert_eq!(vm.world().verifications, 0);

    let mut vm = Vm::ready();
    assert_eq!(vm.metric("writ.portable_crypto"), 0);
    vm.assert_serves();
    // Two for the self-check, and two for the request.
    assert_eq!(vm.world().verifications, 4);
}

#[test]
fn the_stream_goes_to_the_named_cluster() {
    let mut vm = Vm::ready();
    let stream = vm.newest_stream();
    let stream = &vm.world().streams[&stream];
    assert_eq!(stream.method, "/writ.decision.v1.Decisions/Stream");
    // A serialised GrpcService{envoy_grpc{cluster_name}}, never the bare name.
    assert_eq!(stream.upstream, b"\x0a\x14\x0a\x12writ_control_plane");
}
