//! Allow, deny and hold, as they should go.

use super::fixtures::{AGENT, Headers, Key, claims, proof, token};
use super::vm::{CONTINUE, Vm, allow, answer_to, asks, deny, hold, withdrawals};
use decision_api::from_control_plane::Message as FromServer;
use decision_api::{Allow, Deny, FirstUse, Question, answer};
use prost::Message;
use serde_json::json;

fn header(vm: &mut Vm, context: u32, name: &str) -> Vec<String> {
    let headers = vm
        .http(context)
        .headers
        .iter()
        .filter(|(known, _)| known == name);
    headers
        .map(|(_, value)| String::from_utf8(value.clone()).unwrap())
        .collect()
}

#[test]
fn an_allowed_request_goes_on_with_verified_headers_only() {
    let mut vm = Vm::ready();
    let sent = Headers::good("/reports/2026?q=1", "jti-1")
        .with("x-writ-agent", "spiffe://writ.example/agent/admin")
        .with("x-writ-agent", "spiffe://writ.example/agent/root")
        .with("x-writ-user", "alice")
        .with("x-writ-decision", "forged")
        .with("x-envoy-retry-on", "5xx")
        .with("content-type", "text/plain");
    let context = vm.request(&sent);
    // Stripped before anything is decided.
    for name in [
        "x-writ-agent",
        "x-writ-user",
        "x-writ-decision",
        "x-envoy-retry-on",
    ] {
        assert!(header(&mut vm, context, name).is_empty(), "{name}");
    }
    vm.assert_paused(context);
    let ask = vm.asked();
    let question = Question::decode(ask.question.as_slice()).unwrap();
    let sent_token = String::from_utf8(sent.value("authorization")[5..].to_vec()).unwrap();
    assert_eq!(ask.token, sent_token);
    assert_eq!(
        question.token_hash,
        capability::sha256(sent_token.as_bytes())
    );
    assert_eq!(ask.proof.as_bytes(), sent.value("dpop"));
    assert_eq!(
        (question.method.as_str(), question.path.as_str()),
        ("GET", "/reports/2026?q=1")
    );
    assert_eq!(
        (question.authority.as_str(), question.route.as_str()),
        ("127.0.0.1:8400", "reports")
    );
    assert_eq!(
        (
            question.content_type.as_str(),
            question.content_encoding.as_str()
        ),
        ("text/plain", "")
    );
    assert_eq!(question.request_id, "9f0c5b7e-request");
    assert_eq!(question.source_address, "10.1.2.3:40000");

    vm.answer(&ask, allow());
    assert_eq!(vm.resumed(context), 1);
    assert_eq!(
        (vm.body(context), vm.trailers(context)),
        (CONTINUE, CONTINUE)
    );
    assert_eq!(header(&mut vm, context, "x-writ-agent"), [AGENT]);
    assert_eq!(header(&mut vm, context, "x-writ-token-id"), ["token-1"]);
    for name in ["authorization", "dpop", "x-writ-user", "x-writ-decision"] {
        assert!(header(&mut vm, context, name).is_empty(), "{name}");
    }
    assert_eq!(header(&mut vm, context, "accept"), ["*/*"]);
    assert_eq!(
        (vm.metric("writ.accepted"), vm.metric("writ.in_flight")),
        (1, 0)
    );
}

#[test]
fn the_outcome_of_an_allowed_request_is_reported_once() {
    let mut vm = Vm::ready();
    let context = vm.request(&Headers::good("/files/a", "jti-1"));
    let ask = vm.asked();
    vm.answer(&ask, allow());
    vm.respond(context, 201);
    let reported = vm.outcomes();
    assert_eq!(reported.len(), 1);
    assert_eq!((reported[0].id.clone(), reported[0].status), (ask.id, 201));
    assert_eq!(
        (reported[0].response_bytes, reported[0].details.as_str()),
        (42, "via_upstream")
    );
    vm.assert_serves();
}

#[test]
fn trailers_say_nothing_that_headers_may_not() {
    let mut vm = Vm::ready();
    let context = vm.request(&Headers::good("/files/a", "jti-1"));
    let ask = vm.asked();
    vm.answer(&ask, allow());
    let field = |name: &str| (name.to_owned(), b"1".to_vec());
    let mut sent: Vec<_> = capability::headers::REINTERPRETING.map(field).to_vec();
    let more = ["x-writ-agent", "x-envoy-retry-on", "authorization", "dpop"];
    sent.extend(more.map(field));
    sent.extend(["x_writ_agent", "x_original_url", "x-sum", "x-sum"].map(field));
    sent.extend(["x.writ.agent", "x~original~url", "request`uri"].map(field));
    vm.world().http.get_mut(&context).unwrap().trailers = sent;
    assert_eq!(vm.trailers(context), CONTINUE);
    assert_eq!(vm.http(context).trailers, [field("x-sum"), field("x-sum")]);
}

#[test]
fn an_upstreams_answer_says_nothing_in_the_proxys_name() {
    let mut vm = Vm::ready();
    let context = vm.request(&Headers::good("/files/a", "jti-1"));
    let ask = vm.asked();
    vm.answer(&ask, allow());
    let spoofed = [
        "www-authenticate",
        "proxy-authenticate",
        "dpop-nonce",
        "dpop",
        "authorization",
        "x-writ-agent",
        "x.writ.agent",
        "x-envoy-immediate-health-check-fail",
    ];
    let own = ["content-type", "set-cookie", "set-cookie", "x-own"];
    let all = spoofed.iter().chain(&spoofed).chain(&own);
    let all = all.map(|name| ((*name).to_owned(), b"x".to_vec()));
    vm.world().http.get_mut(&context).unwrap().response = all.collect();
    vm.respond(context, 401);
    let left = &vm.world().http[&context].response;
    let left: Vec<&str> = left.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(left, [&own[..], &[":status"]].concat());
}

#[test]
fn a_user_is_named_when_the_agent_acts_for_one() {
    let mut vm = Vm::ready();
    let context = vm.request(&Headers::good("/files/a", "jti-1"));
    let ask = vm.asked();
    let verdict = answer::Verdict::Allow(Allow {
        agent: AGENT.to_owned(),
        user: "https://idp.example|alice".to_owned(),
        token_id: "token-1".to_owned(),
        txn: "task-1".to_owned(),
        decision: String::new(),
        lineage: Vec::new(),
    });
    vm.answer(&ask, verdict);
    assert_eq!(
        header(&mut vm, context, "x-writ-user"),
        ["https://idp.example|alice"]
    );
}

#[test]
fn verified_facts_that_are_no_header_value_stop_the_request() {
    let mut vm = Vm::ready();
    let context = vm.request(&Headers::good("/files/a", "jti-1"));
    let ask = vm.asked();
    let verdict = answer::Verdict::Allow(Allow {
        agent: AGENT.to_owned(),
        user: "alice\r\nx-admin: 1".to_owned(),
        ..Allow::default()
    });
    vm.answer(&ask, verdict);
    vm.assert_refused(context, 503, "internal_error");
    vm.assert_serves();
}

#[test]
fn a_denied_request_gets_the_reason() {
    for (reason, status, error) in [
        ("policy_denied", 403, Some("insufficient_scope")),
        ("token_unknown", 401, Some("invalid_token")),
        ("proof_replayed", 401, Some("invalid_dpop_proof")),
        ("limit_exceeded", 429, None),
        ("control_plane_unavailable", 503, None),
    ] {
        let mut vm = Vm::ready();
        let context = vm.request(&Headers::good("/files/a", "jti-1"));
        let ask = vm.asked();
        vm.answer(&ask, deny(reason));
        let reply = vm.assert_refused(context, status, reason);
        assert_eq!(reply.body["request_id"], "9f0c5b7e-request");
        assert_eq!(reply.headers["cache-control"], "no-store");
        assert!(!reply.headers.contains_key("retry-after"), "{reason}");
        let challenge = reply.headers.get("www-authenticate");
        assert_eq!(challenge.is_some(), error.is_some(), "{reason}");
        if let (Some(challenge), Some(error)) = (challenge, error) {
            assert!(
                challenge.starts_with(&format!("DPoP error=\"{error}\", error_description=\"")),
                "{challenge}"
            );
            assert!(challenge.ends_with("algs=\"ES256 Ed25519\""), "{challenge}");
        }
        assert_eq!(vm.metric(&format!("writ.refused.{reason}")), 1);
        vm.assert_serves();
    }
}

#[test]
fn an_unknown_reason_is_never_passed_on() {
    let mut vm = Vm::ready();
    let context = vm.request(&Headers::good("/files/a", "jti-1"));
    let ask = vm.asked();
    vm.answer(&ask, deny("because <script>"));
    vm.assert_refused(context, 503, "internal_error");
}

#[test]
fn a_spent_token_shows_its_first_use() {
    let mut vm = Vm::ready();
    let context = vm.request(&Headers::good("/files/a", "jti-1"));
    let ask = vm.asked();
    let first_use = FirstUse {
        result: "forwarded".to_owned(),
        upstream_status: 201,
        request_id: "earlier-request".to_owned(),
    };
    let verdict = Deny {
        reason: "token_spent".to_owned(),
        first_use: Some(first_use),
        ..Deny::default()
    };
    vm.answer(&ask, answer::Verdict::Deny(verdict));
    let reply = vm.assert_refused(context, 401, "token_spent");
    assert_eq!(
        reply.body["first_use"],
        json!({"result": "forwarded", "upstream_status": 201, "request_id": "earlier-request"})
    );
}

#[test]
fn no_credentials_get_a_challenge_without_an_error() {
    let mut vm = Vm::ready();
    let context = vm.request(&Headers::bare("/files/a"));
    let reply = vm.assert_refused(context, 401, "missing_credentials");
    assert_eq!(
        reply.headers["www-authenticate"],
        "DPoP algs=\"ES256 Ed25519\""
    );
    assert!(asks(&vm.heard()).is_empty());
    vm.assert_serves();
}

#[test]
fn a_held_request_waits_and_goes_on_when_somebody_approves() {
    let mut vm = Vm::ready();
    let context = vm.request(&Headers::good("/files/a", "jti-1"));
    let ask = vm.asked();
    vm.answer(&ask, hold(25_000));
    vm.pass_ms(24_000);
    vm.assert_paused(context);
    assert!(withdrawals(&vm.heard()).is_empty());
    vm.answer(&ask, allow());
    assert_eq!(vm.resumed(context), 1);
    assert_eq!(vm.metric("writ.held"), 1);
}

#[test]
fn a_hold_that_nobody_decides_ends_with_the_approvals_id() {
    let mut vm = Vm::ready();
    let context = vm.request(&Headers::good("/files/a", "jti-1"));
    let ask = vm.asked();
    vm.answer(&ask, hold(25_000));
    vm.pass_ms(25_000);
    let verdict = Deny {
        reason: "approval_pending".to_owned(),
        approval_id: "apr_1".to_owned(),
        status_url: "http://127.0.0.1:8480/api/v1/approvals/apr_1".to_owned(),
        retry_after_s: 3,
        first_use: None,
    };
    vm.answer(&ask, answer::Verdict::Deny(verdict));
    let reply = vm.assert_refused(context, 403, "approval_pending");
    assert_eq!(reply.body["approval_id"], "apr_1");
    assert_eq!(
        reply.body["status_url"],
        "http://127.0.0.1:8480/api/v1/approvals/apr_1"
    );
    assert_eq!(reply.headers["retry-after"], "3");
    assert_eq!(reply.body["retry_after_s"], 3);
}

#[test]
fn a_hold_is_never_longer_than_the_configuration_says() {
    let mut vm = Vm::ready();
    let context = vm.request(&Headers::good("/files/a", "jti-1"));
    let ask = vm.asked();
    // An hour, and again after twenty seconds: neither stretches the wait.
    vm.answer(&ask, hold(3_600_000));
    vm.pass_ms(20_000);
    vm.answer(&ask, hold(3_600_000));
    vm.pass_ms(7_200);
    let heard = vm.heard();
    assert_eq!(withdrawals(&heard).len(), 1);
    vm.withdrawn(&ask.id.clone().unwrap(), true);
    let reply = vm.assert_refused(context, 403, "approval_pending");
    assert_eq!(reply.body["approval_id"], "apr_1");
    assert_eq!(
        reply.body["status_url"],
        "http://127.0.0.1:8480/approvals/apr_1/status"
    );
    assert!(reply.headers.contains_key("retry-after"));
    // The yes that comes now is for nobody.
    vm.answer(&ask, allow());
    assert_eq!(vm.resumed(context), 0);
}

#[test]
fn a_hold_is_believed_only_for_its_own_question() {
    let mut vm = Vm::ready();
    let context = vm.request(&Headers::good("/files/a", "jti-1"));
    let ask = vm.asked();
    let mut foreign = answer_to(&ask, hold(25_000));
    foreign.question_digest = capability::sha256(b"another question").to_vec();
    vm.say(FromServer::Answer(foreign));
    vm.pass_ms(2_200);
    assert_eq!(withdrawals(&vm.heard()).len(), 1);
    vm.assert_paused(context);
}

#[test]
fn each_answer_finds_its_own_request() {
    let mut vm = Vm::ready();
    let waiting: Vec<_> = (0..5)
        .map(|n| {
            let context = vm.request(&Headers::good(&format!("/files/{n}"), &format!("jti-{n}")));
            (context, vm.asked())
        })
        .collect();
    assert_eq!(vm.metric("writ.in_flight"), 5);
    for at in [3, 0, 4] {
        let (context, ask) = &waiting[at];
        vm.answer(ask, allow());
        assert_eq!(vm.resumed(*context), 1);
    }
    for at in [1, 2] {
        vm.assert_paused(waiting[at].0);
    }
    vm.answer(&waiting[1].1, deny("policy_denied"));
    vm.assert_refused(waiting[1].0, 403, "policy_denied");
    vm.assert_paused(waiting[2].0);
}

#[test]
fn another_key_another_path_and_another_signer_are_refused_without_a_question() {
    let good = token(&claims("/files/a", "jti-1"), &Key::issuer());
    let stranger = Key::number(9);
    let request = |path: &str, token: &str, proof: String| {
        Headers::bare(path)
            .with("authorization", format!("DPoP {token}"))
            .with("dpop", proof)
    };
    let forged = token(&claims("/files/a", "jti-1"), &stranger);
    let elsewhere = {
        let mut claims = claims("/files/a", "jti-1");
        claims["aud"] = json!("http://other.example");
        token(&claims, &Key::issuer())
    };
    for (headers, status, reason) in [
        (
            request("/files/a", &good, proof("/files/a", &good, &stranger)),
            401,
            "proof_key_mismatch",
        ),
        (
            request("/files/b", &good, proof("/files/b", &good, &Key::agent())),
            403,
            "action_mismatch",
        ),
        (
            request("/files/a", &good, proof("/files/b", &good, &Key::agent())),
            401,
            "proof_target",
        ),
        (
            request(
                "/files/a",
                &forged,
                proof("/files/a", &forged, &Key::agent()),
            ),
            401,
            "token_signature",
        ),
        (
            request(
                "/files/a",
                &elsewhere,
                proof("/files/a", &elsewhere, &Key::agent()),
            ),
            401,
            "token_audience",
        ),
        (
            request("/files/a", &good, proof("/files/a", &forged, &Key::agent())),
            401,
            "proof_token_hash",
        ),
    ] {
        let mut vm = Vm::ready();
        let context = vm.request(&headers);
        vm.assert_refused(context, status, reason);
        assert!(asks(&vm.heard()).is_empty(), "{reason}");
        vm.assert_serves();
    }
}
