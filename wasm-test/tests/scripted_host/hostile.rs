//! Bytes from an attacker: a clear refusal, the VM alive, the next good request
//! served.

use super::fixtures::{Headers, Key, START_S, claims, proof, token};
use super::vm::{Vm, allow, asks};
use serde_json::json;

/// A request that is refused here, for this reason, and leaves the VM alive.
fn assert_turned_away(what: &str, headers: &Headers, status: u32, reason: &str) {
    let mut vm = Vm::ready();
    let context = vm.request(headers);
    let reply = vm.http(context).reply.clone();
    let got = reply.map(|reply| {
        (
            reply.status,
            reply.body["reason"].as_str().unwrap_or_default().to_owned(),
        )
    });
    assert_eq!(got, Some((status, reason.to_owned())), "{what}");
    vm.assert_refused(context, status, reason);
    assert!(asks(&vm.heard()).is_empty(), "{what}");
    vm.assert_serves();
}

#[test]
fn credentials_that_are_not_exactly_one_of_each_are_malformed() {
    let good = Headers::good("/files/a", "jti-1");
    let (authorization, dpop) = (
        good.value("authorization").to_vec(),
        good.value("dpop").to_vec(),
    );
    let token = String::from_utf8(authorization[5..].to_vec()).unwrap();
    let authorized = |value: &[u8]| {
        good.clone()
            .without("authorization")
            .with("authorization", value)
    };
    let joined = [authorization.as_slice(), b", ", &authorization].concat();
    let joined_tight = [authorization.as_slice(), b",", &authorization].concat();
    let joined_proofs = [dpop.as_slice(), b", ", &dpop].concat();
    for (what, headers) in [
        ("two authorization joined by a comma", authorized(&joined)),
        ("joined without a blank", authorized(&joined_tight)),
        (
            "two authorization",
            good.clone().with("authorization", &authorization),
        ),
        (
            "another scheme beside it",
            good.clone().with("authorization", "Basic dXNlcjpwYXNz"),
        ),
        ("Bearer", authorized(format!("Bearer {token}").as_bytes())),
        (
            "two blanks",
            authorized(format!("DPoP  {token}").as_bytes()),
        ),
        ("a tab", authorized(format!("DPoP\t{token}").as_bytes())),
        ("no token", authorized(b"DPoP ")),
        (
            "a parameter",
            authorized(format!("DPoP token={token}").as_bytes()),
        ),
        ("not UTF-8", authorized(b"DPoP \xff\xfe\xfd")),
        ("two dpop", good.clone().with("dpop", &dpop)),
        (
            "two dpop joined",
            good.clone().without("dpop").with("dpop", &joined_proofs),
        ),
        ("no dpop", good.clone().without("dpop")),
        (
            "an empty dpop",
            good.clone().without("dpop").with("dpop", ""),
        ),
        (
            "a dpop that is not UTF-8",
            good.clone().without("dpop").with("dpop", b"\x80\x81"),
        ),
    ] {
        let reason = if what == "two dpop joined" {
            "proof_malformed"
        } else {
            "malformed_credentials"
        };
        assert_turned_away(what, &headers, 401, reason);
    }
}

#[test]
fn headers_that_are_not_utf8_neither_crash_nor_confuse() {
    let mut vm = Vm::ready();
    let strange = Headers::good("/files/a", "jti-1")
        .with("x-latin", b"caf\xe9")
        .with("cookie", b"\xff\xfe\x00\x01")
        .with("x-writ-agent", b"\xf0\x28\x8c\x28");
    let context = vm.request(&strange);
    let ask = vm.asked();
    vm.answer(&ask, allow());
    assert_eq!(vm.resumed(context), 1);
    // What is nobody's business goes on as it came.
    assert!(
        vm.http(context)
            .headers
            .contains(&("x-latin".to_owned(), b"caf\xe9".to_vec()))
    );
    vm.assert_serves();

    let good = Headers::good("/files/a", "jti-2");
    for name in [":path", ":authority", ":method"] {
        let reason = if name == ":method" {
            "proof_method"
        } else {
            "proof_target"
        };
        assert_turned_away(
            name,
            &good.clone().without(name).with(name, b"\xff\xfe"),
            401,
            reason,
        );
        assert_turned_away(name, &good.clone().without(name), 401, reason);
    }
}

#[test]
fn headers_that_reinterpret_the_request_are_taken_off() {
    let names = [
        "x-http-method-override",
        "x-http-method",
        "x-method-override",
        "x-original-url",
        "x-rewrite-url",
        "x-original-host",
        "x-forwarded-host",
        "x-forwarded-method",
        "x-forwarded-path",
        "x-forwarded-prefix",
        "x-forwarded-uri",
        "x-host",
        "x-http-host-override",
        "x-method",
        "x-original-method",
        "x-original-path",
        "x-original-uri",
        "x-rewrite-uri",
        "forwarded",
        "destination",
        "x-amz-copy-source",
        "x-accel-mapping",
        "x-bce-copy-source",
        "x-copy-from",
        "x-cos-copy-source",
        "x-goog-copy-source",
        "x-ms-copy-source",
        "x-ms-rename-source",
        "x-obs-copy-source",
        "x-oss-copy-source",
        "x-script-name",
        "x-sendfile-type",
        "x-tos-copy-source",
        "x.http.method.override",
        "x~original~url",
        "x.writ.agent",
        "x|envoy|retry-on",
    ];
    let mut vm = Vm::ready();
    let mut headers = Headers::good("/files/a", "jti-1")
        .with("x-http-methods", "harmless")
        .with("x-forwarded-for", "10.1.2.3");
    for name in names {
        headers = headers.with(name, "DELETE").with(name, "/admin");
    }
    let context = vm.request(&headers);
    let left = |vm: &mut Vm| -> Vec<String> {
        let headers = vm.http(context).headers.iter();
        headers.map(|(name, _)| name.clone()).collect()
    };
    assert!(
        left(&mut vm)
            .iter()
            .all(|name| !names.contains(&name.as_str()))
    );
    let ask = vm.asked();
    vm.answer(&ask, allow());
    assert_eq!(vm.resumed(context), 1);
    for name in ["x-http-methods", "x-forwarded-for"] {
        assert!(left(&mut vm).iter().any(|known| known == name), "{name}");
    }
}

#[test]
fn a_body_that_could_be_read_in_two_ways_is_refused() {
    let good = Headers::good("/files/a", "jti-1");
    for (what, headers) in [
        (
            "two content types",
            good.clone()
                .with("content-type", "text/plain")
                .with("content-type", "application/json"),
        ),
        (
            "the same twice",
            good.clone()
                .with("content-type", "text/plain")
                .with("content-type", "text/plain"),
        ),
        (
            "two joined by the host",
            good.clone()
                .with("content-type", "text/plain,application/json"),
        ),
        (
            "two content encodings",
            good.clone()
                .with("content-encoding", "gzip")
                .with("content-encoding", "br"),
        ),
        (
            "a content encoding that only some servers see",
            good.clone().with("content.encoding", "gzip"),
        ),
        (
            "another content type for some servers",
            good.clone()
                .with("content-type", "text/plain")
                .with("content_type", "application/json"),
        ),
        (
            "a content type that is not UTF-8",
            good.clone().with("content-type", b"text/\xc3\x28"),
        ),
        (
            "a content type that would be cut",
            good.clone()
                .with("content-type", format!("text/plain;x={}", "a".repeat(256))),
        ),
    ] {
        assert_turned_away(what, &headers, 403, "action_mismatch");
    }
    let mut vm = Vm::ready();
    let context = vm.request(
        &good
            .with("content-type", "text/plain")
            .with("content-encoding", "gzip, br"),
    );
    let ask = vm.asked();
    vm.answer(&ask, allow());
    assert_eq!(vm.resumed(context), 1);
}

#[test]
fn a_request_id_is_data_and_never_markup() {
    let mut vm = Vm::ready();
    let headers = Headers::bare("/files/a")
        .without("x-request-id")
        .with("x-request-id", b"\",\"reason\":\"ok\x07\xff<b>");
    let context = vm.request(&headers);
    let reply = vm.assert_refused(context, 401, "missing_credentials");
    assert!(
        reply.body["request_id"]
            .as_str()
            .unwrap()
            .starts_with("\",\"reason\":\"ok")
    );
}

#[test]
fn tokens_that_are_not_plain_are_refused() {
    let issuer = Key::issuer();
    let with_token = |token: &str| {
        Headers::bare("/files/a")
            .with("authorization", format!("DPoP {token}"))
            .with("dpop", proof("/files/a", token, &Key::agent()))
    };
    let good = token(&claims("/files/a", "jti-1"), &issuer);
    let parts: Vec<&str> = good.split('.').collect();
    let reheaded = |header: serde_json::Value| {
        let header = capability::b64::encode(header.to_string().as_bytes());
        with_token(&issuer.sign(&format!("{header}.{}", parts[1])))
    };
    let reclaimed = |claims: &str| {
        with_token(&issuer.sign(&format!(
            "{}.{}",
            parts[0],
            capability::b64::encode(claims.as_bytes())
        )))
    };
    let plain = claims("/files/a", "jti-1").to_string();
    let twice = plain.replacen('{', "{\"exp\":4000000000,", 1);
    let deep = plain.replacen(
        "\"txn\":\"task-1\"",
        &format!("\"txn\":{}{}", "[".repeat(200), "]".repeat(200)),
        1,
    );
    for (what, headers, reason) in [
        (
            "alg none",
            reheaded(json!({"typ": "at+jwt", "alg": "none", "kid": "writ-1"})),
            "token_algorithm",
        ),
        (
            "HS256",
            reheaded(json!({"typ": "at+jwt", "alg": "HS256", "kid": "writ-1"})),
            "token_algorithm",
        ),
        (
            "another key",
            reheaded(json!({"typ": "at+jwt", "alg": "ES256", "kid": "writ-2"})),
            "token_key_unknown",
        ),
        (
            "another type",
            reheaded(json!({"typ": "dpop+jwt", "alg": "ES256", "kid": "writ-1"})),
            "token_malformed",
        ),
        (
            "two parts",
            with_token(&parts[..2].join(".")),
            "token_malformed",
        ),
        (
            "five parts",
            with_token(&format!("{good}.a.b")),
            "token_malformed",
        ),
        ("padded", with_token(&format!("{good}=")), "token_malformed"),
        ("a claim twice", reclaimed(&twice), "token_malformed"),
        ("nested deeply", reclaimed(&deep), "token_malformed"),
        ("no JSON", reclaimed("exp=1"), "token_malformed"),
    ] {
        assert_turned_away(what, &headers, 401, reason);
    }
}

#[test]
fn a_signature_in_der_is_none() {
    let good = token(&claims("/files/a", "jti-1"), &Key::issuer());
    let (input, signature) = good.rsplit_once('.').unwrap();
    let raw = capability::b64::decode(signature).unwrap();
    let der = p256::ecdsa::Signature::from_slice(&raw).unwrap().to_der();
    let in_der = format!("{input}.{}", capability::b64::encode(der.as_bytes()));
    let zero = format!("{input}.{}", capability::b64::encode(&[0; 64]));
    for (what, token) in [("DER", in_der), ("zero", zero)] {
        let headers = Headers::bare("/files/a")
            .with("authorization", format!("DPoP {token}"))
            .with("dpop", proof("/files/a", &token, &Key::agent()));
        let mut vm = Vm::ready();
        let context = vm.request(&headers);
        let reply = vm.reply(context);
        assert_eq!(reply.status, 401, "{what}");
        assert!(
            ["token_signature", "token_malformed"]
                .contains(&reply.body["reason"].as_str().unwrap()),
            "{what}"
        );
        vm.assert_serves();
    }
}

#[test]
fn what_is_too_large_is_refused_before_it_is_read() {
    let good = Headers::good("/files/a", "jti-1");
    let token = "a".repeat(5_000);
    let many = (0..400).fold(good.clone(), |headers, n| {
        headers.with(&format!("x-{n}"), "b".repeat(100))
    });
    for (what, headers) in [
        (
            "a token",
            good.clone()
                .without("authorization")
                .with("authorization", format!("DPoP {token}")),
        ),
        ("a proof", good.clone().without("dpop").with("dpop", &token)),
        ("the header block", many),
    ] {
        assert_turned_away(what, &headers, 431, "too_large");
    }
}

#[test]
fn an_expired_token_is_refused_by_the_hosts_clock() {
    let mut vm = Vm::ready();
    let headers = Headers::good("/files/a", "jti-1");
    vm.world().now_ns = (START_S + 30) * 1_000_000_000;
    let context = vm.request(&headers);
    vm.assert_refused(context, 401, "token_expired");
    assert!(asks(&vm.heard()).is_empty());
}

#[test]
fn paths_that_mean_more_than_one_thing_are_refused() {
    for path in [
        "/files/%2e%2e/a",
        "/files//a",
        "//evil.example/a",
        "/files/a#b",
        "*",
        "",
        "/files/%zz",
        "http://a/b",
    ] {
        let good = Headers::good("/files/a", "jti-1")
            .without(":path")
            .with(":path", path);
        let mut vm = Vm::ready();
        let context = vm.request(&good);
        let reply = vm.reply(context);
        assert!([401, 403].contains(&reply.status), "{path}: {reply:?}");
        assert_eq!(vm.resumed(context), 0, "{path}");
        assert!(asks(&vm.heard()).is_empty(), "{path}");
        vm.assert_serves();
    }
}
