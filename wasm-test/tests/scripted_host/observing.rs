//! Routes that observe, what the access log is left, and the signed decision.

use super::fixtures::{Headers, Key, configuration, proof};
use super::vm::{PREFIX, Vm, allow, answer_to, asks, batches, deny, hold, withdrawals};
use super::world::World;
use decision_api::from_control_plane::Message as FromServer;
use decision_api::{Question, answer};
use prost::Message;
use serde_json::{Value, json};

/// `reports` has these members; `files` is as it was.
fn with_reports(members: Value) -> Value {
    let mut configuration = configuration();
    let reports = configuration["routes"][1].as_object_mut().unwrap();
    reports.extend(members.as_object().unwrap().clone());
    configuration
}

fn observing() -> Vm {
    let world = World {
        route_name: "reports".to_owned(),
        ..World::default()
    };
    Vm::ready_with(world, &with_reports(json!({"mode": "observe"})))
}

#[test]
fn what_would_be_refused_goes_on_unnamed_and_is_counted() {
    let mut vm = observing();
    assert_eq!(vm.metric("writ.observe_routes"), 1);
    let bare = Headers::bare("/reports/a").with("x-writ-agent", "spiffe://writ.example/forged");
    let context = vm.request(&bare);
    vm.assert_observed(context, "missing_credentials");
    let stolen = Headers::good("/reports/b", "jti-1").without("dpop");
    let token = String::from_utf8(stolen.value("authorization")[5..].to_vec()).unwrap();
    let stolen = stolen.with("dpop", proof("/reports/b", &token, &Key::number(9)));
    let context = vm.request(&stolen);
    vm.assert_observed(context, "proof_key_mismatch");
    assert_eq!(vm.metric("writ.observed.missing_credentials"), 1);
    assert_eq!(vm.metric("writ.observed.proof_key_mismatch"), 1);
    assert_eq!(vm.metric("writ.refused.missing_credentials"), 0);
    assert_eq!(vm.metric("writ.accepted"), 0);
    vm.pass_ms(6_000);
    let heard = vm.heard();
    let counts = &batches(&heard)[0].counts;
    let missing = counts.iter().find(|it| it.reason == "missing_credentials");
    assert!(missing.is_some_and(|count| count.observed && count.count == 1));
    assert_eq!(asks(&heard).len(), 0);
}

#[test]
fn a_no_of_the_control_planes_is_asked_for_and_not_obeyed() {
    let mut vm = observing();
    let context = vm.request(&Headers::good("/reports/a", "jti-1"));
    vm.assert_paused(context);
    let ask = vm.asked();
    assert!(Question::decode(ask.question.as_slice()).unwrap().observed);
    vm.answer(&ask, deny("policy_denied"));
    assert_eq!(vm.resumed(context), 1);
    vm.assert_observed(context, "policy_denied");
    // What became of it says nothing of a token that was refused.
    vm.respond(context, 200);
    assert!(vm.outcomes().is_empty());
    assert_eq!(vm.metric("writ.observed.policy_denied"), 1);
}

#[test]
fn what_is_allowed_goes_on_by_a_permit_with_its_agent() {
    let mut vm = observing();
    let context = vm.request(&Headers::good("/reports/a", "jti-1"));
    let ask = vm.asked();
    vm.answer(&ask, allow());
    assert_eq!(vm.resumed(context), 1);
    assert!(!vm.http(context).facts.contains_key("observed"));
    let headers = vm.http(context).headers.clone();
    assert!(headers.iter().any(|(name, _)| name == "x-writ-agent"));
    vm.respond(context, 200);
    assert_eq!(vm.outcomes().len(), 1);
    assert_eq!(vm.metric("writ.accepted"), 1);
}

#[test]
fn without_the_control_plane_it_goes_on_unobserved() {
    let mut vm = observing();
    let asked = vm.request(&Headers::good("/reports/a", "jti-1"));
    let ask = vm.asked();
    // No answer: the question is withdrawn, and then nobody is waited for.
    vm.pass_ms(2_000);
    assert_eq!(withdrawals(&vm.heard()).len(), 1);
    vm.assert_paused(asked);
    vm.pass_ms(600);
    vm.assert_observed(asked, "control_plane_unavailable");
    // An allow that comes now was of no use; but nobody says that nothing was sent.
    vm.answer(&ask, allow());
    vm.tick();
    assert!(vm.outcomes().is_empty());
    assert_eq!(vm.resumed(asked), 1);
    vm.cut();
    let context = vm.request(&Headers::good("/reports/b", "jti-2"));
    vm.assert_observed(context, "control_plane_unavailable");
    assert_eq!(vm.metric("writ.unobserved"), 2);
}

#[test]
fn only_the_route_that_says_so_and_that_the_host_names() {
    // The host routes it elsewhere: nothing observes it.
    let mut vm = observing();
    vm.world().route_name = "files".to_owned();
    let context = vm.request(&Headers::bare("/reports/a"));
    vm.assert_refused(context, 401, "missing_credentials");
    // Our table has it elsewhere: a prefix is whole segments.
    let configuration = with_reports(json!({"mode": "observe", "path_prefix": "/reports"}));
    let world = World {
        route_name: "reports".to_owned(),
        ..World::default()
    };
    let mut vm = Vm::ready_with(world, &configuration);
    for path in ["/reportsx", "/files/a", "/reports-2026/a"] {
        let context = vm.request(&Headers::bare(path));
        vm.assert_refused(context, 401, "missing_credentials");
    }
    for path in ["/reports", "/reports/a", "/reports?q=1"] {
        let context = vm.request(&Headers::bare(path));
        vm.assert_observed(context, "missing_credentials");
    }
}

#[test]
fn a_path_that_could_be_another_routes_is_enforced() {
    let mut vm = observing();
    for path in [
        "/reports/..;/files/a",
        "/reports/%2e%2e/files/a",
        "/reports/%252e%252e/files/a",
        "/reports//a",
        "/reports/a;b",
        "/reports/*",
    ] {
        let context = vm.request(&Headers::bare(path));
        vm.assert_refused(context, 401, "missing_credentials");
    }
    for path in ["/reports/a%20b", "/reports/a?q=..;%2F"] {
        let context = vm.request(&Headers::bare(path));
        vm.assert_observed(context, "missing_credentials");
    }
}

#[test]
fn a_hold_is_kept_as_anywhere_and_observed_when_it_ends() {
    let mut vm = observing();
    let context = vm.request(&Headers::good("/reports/a", "jti-1"));
    let ask = vm.asked();
    vm.answer(&ask, hold(5_000));
    vm.assert_paused(context);
    vm.answer(&ask, deny("approval_denied"));
    vm.assert_observed(context, "approval_denied");
    // That took a human's time: it is no decision's latency.
    assert_eq!(vm.metric("writ.decision_us"), 0);
}

#[test]
fn the_access_log_is_left_what_joins_it_and_the_clock_is_compared() {
    let mut vm = Vm::ready();
    let context = vm.request(&Headers::good("/files/a", "jti-1"));
    let ask = vm.asked();
    vm.world().now_ns += 1_500_000;
    let now_ms = vm.world().now_ns / 1_000_000;
    let mut answer = answer_to(&ask, allow());
    answer.time_ms = now_ms - 700;
    vm.say(FromServer::Answer(answer));
    let facts = vm.http(context).facts.clone();
    let hex: String = PREFIX.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(facts["question"], format!("{hex}-1"));
    assert_eq!(facts["token_id"], "token-1");
    assert_eq!(facts["decision_us"], "1500");
    assert_eq!(vm.metric("writ.decision_us"), 1_500);
    assert_eq!(vm.metric("writ.clock_ahead_ms"), 700);
    assert_eq!(vm.metric("writ.clock_behind_ms"), 0);

    let context = vm.request(&Headers::good("/files/b", "jti-2"));
    let ask = vm.asked();
    let mut answer = answer_to(&ask, deny("policy_denied"));
    answer.time_ms = vm.world().now_ns / 1_000_000 + 40;
    vm.say(FromServer::Answer(answer));
    assert_eq!(vm.http(context).facts["token_id"], "jti-2");
    assert_eq!(vm.http(context).facts["question"], format!("{hex}-2"));
    assert_eq!(vm.metric("writ.clock_ahead_ms"), 0);
    assert_eq!(vm.metric("writ.clock_behind_ms"), 40);
    // Of a token that nobody verified there is no word.
    let forged = Headers::bare("/files/c").with("authorization", "DPoP e30.e30.x");
    let context = vm.request(&forged.with("dpop", "x"));
    assert!(vm.http(context).facts.is_empty());
}

#[test]
fn a_route_that_wants_the_signed_decision_forwards_nothing_without_it() {
    let configuration = with_reports(json!({"decision_header": true}));
    let mut vm = Vm::ready_with(World::default(), &configuration);
    let signed = || {
        let answer::Verdict::Allow(allow) = allow() else {
            panic!("it is an allow")
        };
        answer::Verdict::Allow(decision_api::Allow {
            decision: "e30.e30.c2ln".to_owned(),
            ..allow
        })
    };
    let header = |vm: &mut Vm, context| {
        let headers = vm.http(context).headers.clone();
        let mut found = headers
            .into_iter()
            .filter(|(name, _)| name == "x-writ-decision");
        (found.next().map(|(_, value)| value), found.count())
    };
    let forged = Headers::good("/reports/a", "jti-1").with("x-writ-decision", "forged");
    let context = vm.request(&forged);
    let ask = vm.asked();
    vm.answer(&ask, signed());
    assert_eq!(vm.resumed(context), 1);
    assert_eq!(
        header(&mut vm, context),
        (Some(b"e30.e30.c2ln".to_vec()), 0)
    );

    let context = vm.request(&Headers::good("/reports/b", "jti-2"));
    let ask = vm.asked();
    vm.answer(&ask, allow());
    vm.assert_refused(context, 503, "internal_error");
    // Where nobody asked for it, it is not passed on.
    let context = vm.request(&Headers::good("/files/a", "jti-3"));
    let ask = vm.asked();
    vm.answer(&ask, signed());
    assert_eq!(vm.resumed(context), 1);
    assert_eq!(header(&mut vm, context), (None, 0));
}
