//! Routes that ask for a nonce in the proof (RFC 9449, section 9), and where a refused
//! client is told that metadata is (RFC 9728, section 5.1).

use super::fixtures::{Headers, configuration};
use super::vm::{PREFIX, Vm, allow, asks, batches};
use super::world::{Reply, World};
use decision_api::Welcome;
use decision_api::from_control_plane::Message as FromServer;
use serde_json::{Value, json};

const ASKS: &str = "/reports/a";

/// `reports` asks for nonces; `files` is as it was.
fn asking() -> Value {
    let mut configuration = configuration();
    configuration["routes"][1]["nonce"] = json!(true);
    configuration
}

/// The challenge of a reply, which is one for this nonce.
fn assert_asks(reply: &Reply, nonce: &str) {
    let header = |name: &str| reply.headers[name].as_str();
    assert_eq!(header("dpop-nonce"), nonce);
    assert_eq!(header("cache-control"), "no-store");
    let challenge = header("www-authenticate");
    assert!(
        challenge.starts_with("DPoP error=\"use_dpop_nonce\", "),
        "{challenge}"
    );
    assert_eq!(
        header("access-control-expose-headers"),
        "DPoP-Nonce, WWW-Authenticate, X-Writ-Reason"
    );
}

fn passes(vm: &mut Vm, headers: &Headers) {
    let context = vm.request(headers);
    let ask = vm.asked();
    vm.answer(&ask, allow());
    assert_eq!(vm.resumed(context), 1);
}

#[test]
fn without_a_good_one_nothing_is_asked_and_the_newest_is_told() {
    let mut vm = Vm::ready_asking(&asking(), &["now-1", "before-1"]);
    for (jti, headers) in [
        ("jti-1", Headers::good(ASKS, "jti-1")),
        ("jti-2", Headers::with_nonce(ASKS, "jti-2", "now-2")),
        ("jti-3", Headers::with_nonce(ASKS, "jti-3", "")),
    ] {
        let context = vm.request(&headers);
        let reply = vm.assert_refused(context, 401, "proof_nonce");
        assert_asks(&reply, "now-1");
        assert!(!reply.headers.contains_key("retry-after"));
        assert!(vm.heard().is_empty(), "{jti}");
        // The same token, with what was told.
        passes(&mut vm, &Headers::with_nonce(ASKS, jti, "now-1"));
    }
    passes(&mut vm, &Headers::with_nonce(ASKS, "jti-4", "before-1"));
    // Other routes ask for none, and take any.
    passes(&mut vm, &Headers::good("/files/a", "jti-5"));
    passes(&mut vm, &Headers::with_nonce("/files/a", "jti-6", "now-2"));
    // Nobody's signature was verified yet: no entry, but a count.
    vm.pass_ms(6_000);
    let heard = vm.heard();
    let batch = &batches(&heard)[0];
    assert!(batch.entries.is_empty());
    let counts: Vec<_> = batch
        .counts
        .iter()
        .map(|it| (it.reason.as_str(), it.count))
        .collect();
    assert_eq!(counts, [("proof_nonce", 3)]);
    assert_eq!(vm.metric("writ.refused.proof_nonce"), 3);
}

#[test]
fn each_heartbeat_says_which_are_good_from_now_on() {
    let mut vm = Vm::ready_asking(&asking(), &["n1"]);
    passes(&mut vm, &Headers::with_nonce(ASKS, "jti-1", "n1"));
    for (told, good, over) in [
        (vec!["n2", "n1", "n3"], vec!["n1", "n2", "n3"], vec!["n4"]),
        (vec!["n3", "n2"], vec!["n2", "n3"], vec!["n1"]),
        // More than there may be, and what is none, are left out.
        (
            vec![
                "", "a b", "a\"b", "a\\b", "\u{e9}", "n4", "n5", "n6", "n7", "n8",
            ],
            vec!["n4", "n7"],
            vec!["n8", "a b", "\u{e9}"],
        ),
    ] {
        vm.nonces = told.iter().map(|it| (*it).to_owned()).collect();
        let beat = vm.heartbeat();
        vm.say(FromServer::Heartbeat(beat));
        let first = if good.contains(&told[0]) {
            told[0]
        } else {
            "n4"
        };
        for nonce in good {
            passes(
                &mut vm,
                &Headers::with_nonce(ASKS, &format!("{nonce}-good"), nonce),
            );
        }
        for nonce in over {
            let context = vm.request(&Headers::with_nonce(ASKS, "jti-2", nonce));
            let reply = vm.assert_refused(context, 401, "proof_nonce");
            assert_asks(&reply, first);
        }
    }
    let long = "n".repeat(129);
    vm.nonces = vec![long.clone()];
    let beat = vm.heartbeat();
    vm.say(FromServer::Heartbeat(beat));
    let context = vm.request(&Headers::with_nonce(ASKS, "jti-3", &long));
    vm.assert_refused(context, 503, "control_plane_unavailable");
}

/// Refused as without a stream: nothing was asked, and it may be tried again.
fn assert_unheard(vm: &mut Vm, headers: &Headers) {
    let context = vm.request(headers);
    let reply = vm.assert_refused(context, 503, "control_plane_unavailable");
    assert_eq!(reply.headers["retry-after"], "1");
    assert!(!reply.headers.contains_key("dpop-nonce"));
    assert!(!reply.headers.contains_key("www-authenticate"));
    assert!(asks(&vm.heard()).is_empty());
}

#[test]
fn where_none_is_known_nothing_passes() {
    let with = Headers::with_nonce(ASKS, "jti-1", "n1");
    let without = Headers::good(ASKS, "jti-1");
    let (mut vm, taken) = Vm::configure(World::default(), asking().to_string());
    assert!(taken);
    vm.tick();
    // Before the peer has welcomed us, and when it says none.
    for headers in [&with, &without] {
        let context = vm.request(headers);
        vm.assert_refused(context, 503, "control_plane_unavailable");
    }
    vm.welcome(PREFIX);
    assert_unheard(&mut vm, &with);
    assert_unheard(&mut vm, &without);
    // Routes that ask for none are as they were.
    passes(&mut vm, &Headers::good("/files/a", "jti-2"));

    // What was told is over with its stream.
    let mut vm = Vm::ready_asking(&asking(), &["n1"]);
    vm.cut();
    assert_unheard(&mut vm, &with);
    assert_unheard(&mut vm, &without);
    vm.pass_ms(500);
    vm.nonces = vec!["n2".to_owned()];
    vm.welcome(PREFIX);
    let context = vm.request(&with);
    let reply = vm.assert_refused(context, 401, "proof_nonce");
    assert_asks(&reply, "n2");
    passes(&mut vm, &Headers::with_nonce(ASKS, "jti-1", "n2"));

    // And with one that fell silent.
    vm.pass_in_silence_ms(3_000);
    let context = vm.request(&Headers::with_nonce(ASKS, "jti-3", "n2"));
    vm.assert_refused(context, 503, "control_plane_unavailable");
}

#[test]
fn nothing_is_believed_before_the_greeting() {
    let (mut vm, _) = Vm::configure(World::default(), asking().to_string());
    vm.tick();
    vm.nonces = vec!["n1".to_owned()];
    let beat = vm.heartbeat();
    vm.say(FromServer::Heartbeat(beat));
    vm.say(FromServer::Welcome(Welcome {
        protocol: decision_api::PROTOCOL + 1,
        prefix: PREFIX.to_vec(),
        nonces: vec!["n1".to_owned()],
        ..Welcome::default()
    }));
    let context = vm.request(&Headers::good(ASKS, "jti-1"));
    vm.assert_refused(context, 503, "control_plane_unavailable");
}

#[test]
fn the_route_is_found_as_for_anything_else() {
    let mut vm = Vm::ready_asking(&asking(), &["n1"]);
    let deep = format!("/reports/{}?x=/files/", "a/".repeat(400));
    for path in ["/reports/", ASKS, "/reports/a?/files/", deep.as_str()] {
        let context = vm.request(&Headers::good(path, "jti-1"));
        vm.assert_refused(context, 401, "proof_nonce");
    }
    for path in ["/reports", "/reportsa", "/files/reports/", "/?/reports/"] {
        passes(&mut vm, &Headers::good(path, &format!("jti of {path}")));
    }
}

#[test]
fn bad_members_are_told() {
    let mut observes = asking();
    observes["routes"][1]["mode"] = json!("observe");
    let mut word = asking();
    word["routes"][1]["nonce"] = json!("yes");
    let with = |value: Value| {
        let mut configuration = configuration();
        configuration["resource_metadata"] = value;
        configuration
    };
    let mut site = configuration();
    site["sites"] = json!([{
        "name": "a", "origin": "http://a.example", "resource": "http://a.example",
        "resource_metadata": 7,
    }]);
    for (configuration, named) in [
        (observes, "routes[1].nonce: a route that observes"),
        (word, "routes[1].nonce: must be true or false"),
        (with(json!("nowhere")), "resource_metadata"),
        (with(json!("")), "resource_metadata"),
        (with(json!("http://a.example/\"x")), "resource_metadata"),
        (
            with(json!(format!("http://a.example/{}", "x".repeat(512)))),
            "resource_metadata",
        ),
        (site, "sites[0].resource_metadata"),
    ] {
        let (mut vm, taken) = Vm::configure(World::default(), configuration.to_string());
        assert!(!taken, "{configuration}");
        let log = vm.world().log.join("\n");
        assert!(log.contains(named), "{named}: {log}");
    }
}

#[test]
fn with_401_the_metadata_of_the_requests_own_origin_is_named() {
    let first = "http://127.0.0.1:8400/.well-known/oauth-protected-resource";
    let other = "http://a.example/.well-known/oauth-protected-resource/x";
    let mut configuration = asking();
    configuration["resource_metadata"] = json!(first);
    configuration["sites"] = json!([
        {"name": "a", "origin": "http://a.example", "resource": "http://a.example/x", "resource_metadata": other},
        {"name": "b", "origin": "http://b.example", "resource": "http://b.example"},
    ]);
    let mut vm = Vm::ready_asking(&configuration, &["n1"]);
    let mut challenge = |headers: &Headers, status: u32, reason: &str| {
        let context = vm.request(headers);
        let reply = vm.assert_refused(context, status, reason);
        reply
            .headers
            .get("www-authenticate")
            .cloned()
            .unwrap_or_default()
    };
    let at = |authority: &str| {
        Headers::bare("/files/a")
            .without(":authority")
            .with(":authority", authority)
    };
    let none = "missing_credentials";
    for (headers, reason, url) in [
        (at("127.0.0.1:8400"), none, first),
        (at("a.example"), none, other),
        (at("A.example:80"), none, other),
        // One that is none of ours is judged as the first's.
        (at("c.example"), none, first),
        (Headers::good(ASKS, "jti-1"), "proof_nonce", first),
    ] {
        let challenge = challenge(&headers, 401, reason);
        assert!(
            challenge.ends_with(&format!(", resource_metadata=\"{url}\"")),
            "{challenge}"
        );
        assert_eq!(challenge.matches("resource_metadata").count(), 1);
    }
    assert_eq!(
        challenge(&at("b.example"), 401, none),
        "DPoP algs=\"ES256 Ed25519\""
    );
    let more = Headers::good("/files/a", "jti-2").with("content-type", "a,b");
    let challenge = challenge(&more, 403, "action_mismatch");
    assert!(!challenge.contains("resource_metadata"), "{challenge}");
}
