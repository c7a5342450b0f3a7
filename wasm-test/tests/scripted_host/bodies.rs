//! Bodies that are read before anything is asked, and the instance behind.

use super::fixtures::{Headers, Key, claims, configuration, proof, token};
use super::vm::{CONTINUE, PAUSE, Vm, allow, deny, hold};
use super::world::World;
use capability::{b64, sha256};
use decision_api::body_fact::Value as Fact;
use decision_api::from_control_plane::Message as FromServer;
use decision_api::from_filter::Message as ToServer;
use decision_api::{BodyWanted, Question, QuestionId, ReadBody, WholeBody};
use prost::Message;
use serde_json::{Value, json};

const LIMIT: usize = 100;
const PAY: &str = "/pay/order";
const JSON: &str = "application/json";

/// One of the two instances.
fn instance(bodies: &str) -> Value {
    let mut settings = configuration();
    settings["bodies"] = json!(bodies);
    settings["body_deadline_ms"] = json!(1000);
    settings["limits"]["bodies_at_once"] = json!(2);
    settings["routes"] = json!([
        {"name": "all", "path_prefix": "/"},
        {"name": "pay", "path_prefix": "/pay",
         "body": {"limit": LIMIT, "facts": ["/amount", "/to", "/dry"]}},
    ]);
    settings
}

fn reader() -> Vm {
    Vm::ready_with(World::default(), &instance("read"))
}

fn question(vm: &mut Vm) -> (QuestionId, Question, Vec<u8>) {
    let ask = vm.asked();
    let question = Question::decode(ask.question.as_slice()).unwrap();
    (ask.id.unwrap(), question, ask.question)
}

fn read(question: &Question) -> &ReadBody {
    question.body.as_ref().expect("its body was read")
}

/// A request whose token allows this body alone.
fn bound(jti: &str, body: &[u8]) -> Headers {
    let mut claims = claims(PAY, jti);
    let digest = b64::encode(&sha256(body));
    claims["authorization_details"][0]["content_digest"] = json!(digest);
    let token = token(&claims, &Key::issuer());
    let proof = proof(PAY, &token, &Key::agent());
    Headers::bare(PAY)
        .with("authorization", format!("DPoP {token}"))
        .with("dpop", proof)
}

#[test]
fn nothing_is_asked_before_a_body_is_whole_and_nothing_goes_on_before_the_answer() {
    let mut vm = reader();
    let body = br#"{"amount": 7, "to": "bob", "dry": false, "more": [1]}"#;
    let context = vm.request(&Headers::good(PAY, "jti-1").with("content-type", JSON));
    for part in [&body[..10], &body[10..30], &body[30..]] {
        assert!(vm.heard().is_empty(), "asked about a part of a body");
        assert_eq!(vm.more(context, part, false), PAUSE);
        assert_eq!(vm.resumed(context), 0);
    }
    // The end may come by itself.
    assert_eq!(vm.more(context, b"", true), PAUSE);
    let ask = vm.asked();
    let asked = Question::decode(ask.question.as_slice()).unwrap();
    assert_eq!(read(&asked).digest, sha256(body));
    assert_eq!(read(&asked).size, body.len() as u64);
    let facts: Vec<_> = read(&asked)
        .facts
        .iter()
        .map(|fact| (fact.pointer.as_str(), fact.value.clone().unwrap()))
        .collect();
    let wanted = [
        ("/amount", Fact::Integer(7)),
        ("/to", Fact::Text("bob".to_owned())),
        ("/dry", Fact::Flag(false)),
    ];
    assert_eq!(facts, wanted);
    assert_eq!(asked.route, "pay");
    // Whatever is called meanwhile, nothing goes on.
    vm.assert_paused(context);
    assert_eq!(vm.metric("writ.bodies"), 1);
    vm.answer(&ask, allow());
    assert_eq!(vm.resumed(context), 1);
    assert_eq!(vm.trailers(context), CONTINUE);
    assert_eq!(vm.http(context).properties["writ.passed"], b"1");
    assert_eq!(vm.metric("writ.bodies"), 0);
}

#[test]
fn a_body_ends_in_each_of_its_ways_and_is_asked_about_once() {
    let mut vm = reader();
    // With the headers.
    let context = vm.arrive(&Headers::good(PAY, "jti-1"), true);
    let (_, asked, _) = question(&mut vm);
    assert_eq!(
        (read(&asked).size, read(&asked).digest.clone()),
        (0, sha256(b"").to_vec())
    );
    vm.assert_paused(context);
    assert!(vm.heard().is_empty(), "asked twice");
    // With trailers, after a body and without one.
    for (jti, body) in [("jti-2", b"abc".as_slice()), ("jti-3", b"")] {
        let context = vm.request(&Headers::good(PAY, jti));
        if !body.is_empty() {
            assert_eq!(vm.more(context, body, false), PAUSE);
        }
        assert_eq!(vm.trailers(context), PAUSE);
        let ask = vm.asked();
        let asked = Question::decode(ask.question.as_slice()).unwrap();
        assert_eq!(read(&asked).digest, sha256(body));
        assert!(read(&asked).facts.is_empty(), "it is not called JSON");
        vm.answer(&ask, allow());
        assert_eq!(vm.resumed(context), 1);
    }
}

#[test]
fn a_body_over_the_limit_is_413_and_is_never_digested() {
    let mut vm = reader();
    // As it announces.
    let announced = Headers::good(PAY, "jti-1").with("content-length", (LIMIT + 1).to_string());
    let context = vm.request(&announced);
    vm.assert_refused(context, 413, "too_large");
    // As it turns out, before its end.
    let context = vm.request(&Headers::good(PAY, "jti-2"));
    assert_eq!(vm.more(context, &[b'x'; LIMIT], false), PAUSE);
    assert_eq!(vm.more(context, b"x", false), PAUSE);
    vm.assert_refused(context, 413, "too_large");
    assert_eq!(vm.more(context, b"x", true), PAUSE, "after the refusal");
    // What just fits is read.
    let context = vm.request(&Headers::good(PAY, "jti-3"));
    assert_eq!(vm.more(context, &[b'x'; LIMIT], true), PAUSE);
    let (_, asked, _) = question(&mut vm);
    assert_eq!(read(&asked).digest, sha256(&[b'x'; LIMIT]));
    vm.assert_paused(context);
}

#[test]
fn a_body_of_which_the_host_has_a_part_is_refused() {
    let mut vm = reader();
    for (jti, kept) in [("jti-1", 3), ("jti-2", 5)] {
        let context = vm.request(&Headers::good(PAY, jti));
        assert_eq!(vm.more(context, b"abcd", false), PAUSE);
        // It says four bytes and has others.
        vm.world().http.get_mut(&context).unwrap().body = vec![b'a'; kept];
        assert_eq!(vm.trailers(context), PAUSE);
        vm.assert_refused(context, 503, "internal_error");
        assert!(vm.heard().is_empty());
    }
}

#[test]
fn a_token_for_one_body_allows_no_other() {
    let mut vm = reader();
    for (jti, sent) in [
        ("jti-1", b"amount=2".as_slice()),
        ("jti-2", b""),
        ("jti-3", b"amount=10"),
    ] {
        let context = vm.request(&bound(jti, b"amount=1"));
        assert_eq!(vm.more(context, sent, true), PAUSE);
        vm.assert_refused(context, 403, "body_mismatch");
        assert!(vm.heard().is_empty(), "the token is shown to nobody");
    }
    let context = vm.arrive(&bound("jti-4", b"amount=1"), true);
    vm.assert_refused(context, 403, "body_mismatch");
    let context = vm.request(&bound("jti-5", b"amount=1"));
    assert_eq!(vm.more(context, b"amount=1", true), PAUSE);
    let ask = vm.asked();
    vm.answer(&ask, allow());
    assert_eq!(vm.resumed(context), 1);
}

#[test]
fn a_body_that_does_not_end_frees_its_place() {
    let mut vm = reader();
    let first = vm.request(&Headers::good(PAY, "jti-1"));
    let second = vm.request(&Headers::good(PAY, "jti-2"));
    let third = vm.request(&Headers::good(PAY, "jti-3"));
    let reply = vm.assert_refused(third, 429, "limit_exceeded");
    assert_eq!(reply.headers["retry-after"], "1");
    // A client that leaves frees its own.
    vm.end(second);
    let fourth = vm.request(&Headers::good(PAY, "jti-4"));
    assert_eq!(vm.more(first, b"a", false), PAUSE);
    vm.pass_ms(1100);
    vm.assert_refused(first, 408, "limit_exceeded");
    vm.assert_refused(fourth, 408, "limit_exceeded");
    assert!(!vm.heard().iter().any(|it| matches!(it, ToServer::Ask(_))));
    let fifth = vm.request(&Headers::good(PAY, "jti-5"));
    assert_eq!(vm.more(fifth, b"a", true), PAUSE);
    let ask = vm.asked();
    vm.answer(&ask, deny("policy_denied"));
    vm.assert_refused(fifth, 403, "policy_denied");
    assert_eq!(vm.metric("writ.bodies"), 0);
}

#[test]
fn the_body_is_sent_when_a_human_is_to_see_it_and_to_its_own_question_alone() {
    let mut vm = reader();
    let context = vm.request(&Headers::good(PAY, "jti-1"));
    assert_eq!(vm.more(context, b"the whole of it", true), PAUSE);
    let ask = vm.asked();
    let good = BodyWanted {
        id: ask.id.clone(),
        token_hash: sha256(ask.token.as_bytes()).to_vec(),
        question_digest: sha256(&ask.question).to_vec(),
    };
    let mut wrong = vec![good.clone(), good.clone(), good.clone()];
    wrong[0].question_digest[0] ^= 1;
    wrong[1].token_hash[0] ^= 1;
    wrong[2].id.as_mut().unwrap().counter += 1;
    for wanted in wrong {
        vm.say(FromServer::BodyWanted(wanted));
        assert!(vm.heard().is_empty());
    }
    vm.say(FromServer::BodyWanted(good.clone()));
    let sent = vm.heard();
    let [ToServer::Body(WholeBody { id, content })] = sent.as_slice() else {
        panic!("{sent:?}");
    };
    assert_eq!(
        (id, content.as_slice()),
        (&ask.id, b"the whole of it".as_slice())
    );
    vm.assert_paused(context);
    vm.answer(&ask, hold(5000));
    vm.assert_paused(context);
    vm.answer(&ask, allow());
    assert_eq!(vm.resumed(context), 1);
    vm.say(FromServer::BodyWanted(good));
    assert!(
        vm.heard().is_empty(),
        "what was answered has no body any more"
    );
}

#[test]
fn a_decision_that_never_comes_lets_no_callback_go_on() {
    let mut vm = reader();
    let context = vm.request(&Headers::good(PAY, "jti-1"));
    for _ in 0..5 {
        assert_eq!(vm.more(context, b"ab", false), PAUSE);
    }
    assert_eq!(vm.more(context, b"", true), PAUSE);
    for _ in 0..20 {
        assert_eq!((vm.body(context), vm.trailers(context)), (PAUSE, PAUSE));
        vm.tick();
    }
    vm.pass_ms(3000);
    vm.assert_refused(context, 503, "control_plane_unavailable");
}

#[test]
fn paths_without_such_a_route_are_guarded_without_their_bodies() {
    let mut vm = reader();
    for (path, route) in [
        ("/payroll", "all"),
        ("/files/pay", "all"),
        ("/pa?x=/pay/y", "all"),
    ] {
        let context = vm.request(&Headers::good(path, path));
        let ask = vm.asked();
        let asked = Question::decode(ask.question.as_slice()).unwrap();
        assert_eq!((asked.body, asked.route.as_str()), (None, route));
        assert_eq!(vm.more(context, b"x", false), PAUSE);
        vm.answer(&ask, allow());
        assert_eq!(vm.resumed(context), 1);
    }
}

#[test]
fn the_instance_behind_lets_through_what_has_its_permit_and_nothing_else_of_those_routes() {
    let mut vm = Vm::ready_with(World::default(), &instance("before"));
    // The mark is the host's: a header of that name is none.
    let forged = Headers::good(PAY, "jti-1")
        .with("writ.passed", "1")
        .with("x-writ-passed", "1");
    let context = vm.request(&forged);
    vm.assert_refused(context, 503, "internal_error");
    for (jti, mark) in [("jti-2", b"".as_slice()), ("jti-3", b"0"), ("jti-4", b"11")] {
        let marked = vm.arrive_with(&Headers::good(PAY, jti), false, &[("writ.passed", mark)]);
        assert_eq!(marked.1, PAUSE);
        vm.assert_refused(marked.0, 503, "internal_error");
    }
    let bare = vm.request(&Headers::bare(PAY));
    vm.assert_refused(bare, 401, "missing_credentials");
    assert!(vm.heard().is_empty());
    let passed = [("writ.passed", b"1".as_slice())];
    let (context, action) = vm.arrive_with(&Headers::bare(PAY), false, &passed);
    assert_eq!(action, CONTINUE);
    assert_eq!(
        (vm.body(context), vm.trailers(context)),
        (CONTINUE, CONTINUE)
    );
    assert!(
        vm.heard().is_empty(),
        "it is asked about once, and has been"
    );
    // Every other path is its own.
    vm.assert_serves();

    // An instance that stands alone believes no mark.
    let mut vm = Vm::ready_with(World::default(), &instance("pass"));
    let (context, action) = vm.arrive_with(&Headers::bare(PAY), false, &passed);
    assert_eq!(action, PAUSE);
    vm.assert_refused(context, 401, "missing_credentials");
    let mut vm = reader();
    let (context, action) = vm.arrive_with(&Headers::bare(PAY), false, &passed);
    assert_eq!(action, PAUSE);
    vm.assert_refused(context, 401, "missing_credentials");
}

#[test]
fn what_a_configuration_says_of_bodies_is_read_strictly() {
    for (pointer, value, told) in [
        ("/bodies", json!("all"), "bodies"),
        ("/body_deadline_ms", json!(0), "body_deadline_ms"),
        ("/limits/bodies_at_once", json!(5000), "bodies_at_once"),
        ("/routes/1/body/limit", json!(1024 * 1024 + 1), "limit"),
        ("/routes/1/body/facts", json!(["amount"]), "facts"),
        ("/routes/1/body/facts", json!(vec!["/a"; 17]), "facts"),
        ("/routes/1/body", json!({"size": 1}), "size"),
        ("/routes/1/body", json!("read"), "body"),
    ] {
        let mut settings = instance("read");
        *settings.pointer_mut(pointer).unwrap() = value;
        let (mut vm, taken) = Vm::configure(World::default(), settings.to_string());
        assert!(!taken, "{pointer}");
        let log = vm.world().log.join("\n");
        assert!(log.contains(told), "{pointer}: {log}");
    }
}
