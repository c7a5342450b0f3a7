//! What has gone on and is not over: the control plane ends it, and is told of it
//! when it may not know it any more.

use super::fixtures::{AGENT, Headers, Key, configuration};
use super::vm::{PREFIX, Vm, allow, answer_to, deny, hold};
use super::world::{HostCrypto, World};
use decision_api::from_control_plane::Message as FromServer;
use decision_api::{Ask, Question, QuestionId, answer};
use prost::Message;

const OTHER_PREFIX: &[u8; 16] = b"other prefix....";

/// A request that has gone on, with the question that was asked about it.
fn open(vm: &mut Vm, jti: &str) -> (u32, Ask) {
    let context = vm.request(&Headers::good("/files/a", jti));
    let ask = vm.asked();
    vm.answer(&ask, allow());
    assert_eq!(vm.resumed(context), 1);
    (context, ask)
}

fn id(ask: &Ask) -> QuestionId {
    ask.id.clone().unwrap()
}

#[test]
fn what_is_stopped_is_reset_and_its_outcome_says_so() {
    let mut vm = Vm::ready();
    let (first, stopped) = open(&mut vm, "jti-1");
    let (second, other) = open(&mut vm, "jti-2");
    vm.end_open(vec![id(&stopped)], "token_revoked");
    assert_eq!((vm.http(first).reset, vm.http(second).reset), (1, 0));
    assert_eq!(vm.http(first).facts["ended"], "token_revoked");
    // Said again, it is over already.
    vm.end_open(vec![id(&stopped)], "token_revoked");
    assert_eq!(vm.http(first).reset, 1);
    vm.end(first);
    vm.tick();
    let outcomes = vm.outcomes();
    assert_eq!(outcomes.len(), 1);
    assert_eq!(outcomes[0].id, stopped.id);
    assert!(!outcomes[0].not_forwarded, "it had gone on");
    assert_eq!(outcomes[0].details, "writ: ended, token_revoked");
    vm.respond(second, 200);
    vm.tick();
    let outcomes = vm.outcomes();
    assert_eq!(
        (outcomes[0].id.clone(), outcomes[0].status),
        (other.id, 200)
    );
    assert_eq!(outcomes[0].details, "via_upstream");
    assert_eq!(vm.metric("writ.ended"), 1);
    vm.assert_serves();
}

#[test]
fn the_upstreams_status_stays_known() {
    let mut vm = Vm::ready();
    let (context, ask) = open(&mut vm, "jti-1");
    vm.answered_by_upstream(context, 206);
    vm.end_open(vec![id(&ask)], "agent_inactive");
    vm.end(context);
    vm.tick();
    let outcome = vm.outcomes().remove(0);
    assert_eq!(outcome.status, 206);
    assert_eq!(outcome.details, "writ: ended, agent_inactive");
}

#[test]
fn nothing_else_is_touched_by_it() {
    let mut vm = Vm::ready();
    let paused = vm.request(&Headers::good("/files/a", "jti-1"));
    let asked = vm.asked();
    let held = vm.request(&Headers::good("/files/a", "jti-2"));
    let waits = vm.asked();
    vm.answer(&waits, hold(25_000));
    let (over, ended) = open(&mut vm, "jti-3");
    vm.respond(over, 200);
    let (going_on, goes_on) = open(&mut vm, "jti-4");
    let mut foreign = id(&goes_on);
    foreign.prefix = OTHER_PREFIX.to_vec();
    let mut unknown = id(&goes_on);
    unknown.counter += 1;
    let ids = vec![id(&asked), id(&waits), id(&ended), foreign, unknown];
    vm.end_open(ids, "token_revoked");
    vm.assert_paused(paused);
    vm.assert_paused(held);
    for context in [over, going_on] {
        assert_eq!(vm.http(context).reset, 0);
    }
    assert_eq!(vm.metric("writ.ended"), 0);
    // A context that can't be put in force is not ended in another's place.
    vm.world().unenterable.insert(going_on);
    vm.end_open(vec![id(&goes_on)], "token_revoked");
    assert_eq!(vm.http(going_on).reset, 0);
    assert_eq!(vm.metric("writ.contexts_lost"), 1);
    vm.world().unenterable.clear();
    // The end is said again until it has come.
    vm.end_open(vec![id(&goes_on)], "token_revoked");
    assert_eq!(vm.http(going_on).reset, 1);
    // Whatever comes on an older stream is nobody's.
    let (context, ask) = open(&mut vm, "jti-5");
    let old = vm.newest_stream();
    vm.cut();
    vm.pass_ms(500);
    vm.welcome(PREFIX);
    vm.say_on(
        old,
        FromServer::End(decision_api::End {
            ids: vec![id(&ask)],
            reason: "token_revoked".to_owned(),
        }),
    );
    assert_eq!(vm.http(context).reset, 0);
    // A word that is not on the list is passed on to nobody.
    vm.end_open(vec![id(&ask)], "made up");
    assert_eq!(vm.http(context).facts["ended"], "internal_error");
}

#[test]
fn on_a_route_that_observes_nothing_is_ended() {
    let world = World {
        route_name: "reports".to_owned(),
        ..World::default()
    };
    let mut observing = configuration();
    observing["routes"][1]["mode"] = "observe".into();
    let mut vm = Vm::ready_with(world, &observing);
    for (jti, verdict) in [("jti-1", allow()), ("jti-2", deny("policy_denied"))] {
        let context = vm.request(&Headers::good("/reports/a", jti));
        let ask = vm.asked();
        vm.answer(&ask, verdict);
        assert_eq!(vm.resumed(context), 1);
        vm.end_open(vec![id(&ask)], "token_revoked");
        assert_eq!(vm.http(context).reset, 0);
    }
    vm.cut();
    vm.pass_ms(500);
    vm.welcome(PREFIX);
    assert!(vm.told().open.is_empty());
}

#[test]
fn whoever_does_not_know_what_is_open_is_told() {
    for prefix in [PREFIX, OTHER_PREFIX] {
        let mut vm = Vm::ready();
        assert!(vm.told().open.is_empty());
        let (first, one) = open(&mut vm, "jti-1");
        let user = |verdict| match verdict {
            answer::Verdict::Allow(mut allow) => {
                allow.user = "https://idp.example#ann".to_owned();
                allow.lineage = vec![vec![7; 32]];
                answer::Verdict::Allow(allow)
            }
            other => other,
        };
        let second = vm.request(&Headers::good("/files/b", "jti-2"));
        let two = vm.asked();
        vm.answer(&two, user(allow()));
        vm.request(&Headers::good("/files/c", "jti-3"));
        let waits = vm.asked();
        let (over, _) = open(&mut vm, "jti-4");
        vm.respond(over, 200);
        vm.cut();
        vm.pass_ms(500);
        vm.welcome(prefix);
        let heard = vm.heard();
        assert_eq!(super::vm::asks(&heard), [&waits]);
        let told = vm.told();
        assert_eq!(told.asked, [id(&waits)]);
        assert_eq!(told.open.len(), 2);
        for (told, ask, user) in [
            (&told.open[0], &one, ""),
            (&told.open[1], &two, "https://idp.example#ann"),
        ] {
            let question = Question::decode(ask.question.as_slice()).unwrap();
            assert_eq!(told.id, ask.id);
            assert_eq!(told.token_hash, question.token_hash);
            assert_eq!((told.agent.as_str(), told.user.as_str()), (AGENT, user));
            assert_eq!(told.jkt, Key::agent().thumbprint());
            assert_eq!(told.lineage.len(), usize::from(!user.is_empty()));
            assert_eq!(told.issued_s, super::fixtures::START_S);
        }
        // Under whatever prefix it was asked, it is ended.
        vm.end_open(vec![id(&one), id(&two)], "token_revoked");
        assert_eq!((vm.http(first).reset, vm.http(second).reset), (1, 1));
        for context in [first, second] {
            vm.end(context);
        }
        vm.tick();
        assert_eq!(vm.outcomes().len(), 3);
        vm.say(FromServer::Answer(answer_to(&waits, deny("policy_denied"))));
        vm.cut();
        vm.pass_ms(500);
        vm.welcome(prefix);
        let told = vm.told();
        assert!(told.open.is_empty() && told.asked.is_empty(), "{told:?}");
    }
}

/// What can't be kept in mind is not let through.
#[test]
fn open_requests_have_a_limit() {
    const MOST: usize = 1_000;
    let mut config = configuration();
    config["limits"]["open_requests"] = MOST.into();
    let mut vm = Vm::ready_with(World::default(), &config);
    vm.world().crypto = HostCrypto::AlwaysGood;
    let headers = Headers::good("/files/a", "jti-1");
    let mut contexts = Vec::new();
    let mut bytes = 0;
    for _ in 0..MOST {
        let context = vm.request(&headers);
        let ask = vm.asked();
        vm.answer(&ask, allow());
        contexts.push(context);
    }
    let last = *contexts.last().unwrap();
    assert_eq!(vm.resumed(last), 1);
    // What waits for an answer may come to be open, and counts.
    vm.end(contexts.remove(0));
    let waiting = vm.request(&headers);
    vm.assert_paused(waiting);
    let waits = vm.asked();
    let context = vm.request(&headers);
    let reply = vm.assert_refused(context, 429, "limit_exceeded");
    assert!(
        reply.headers.contains_key("retry-after"),
        "nothing is spent"
    );
    // All of it is told, in messages that the other side takes.
    vm.cut();
    vm.pass_ms(500);
    vm.welcome(PREFIX);
    vm.heard();
    assert_eq!(vm.told().open.len(), MOST - 1);
    let stream = vm.newest_stream();
    for message in &vm.world().streams[&stream].sent {
        bytes = bytes.max(message.encoded_len());
    }
    assert!((64 * 1024..80 * 1024).contains(&bytes), "{bytes}");
    vm.answer(&waits, deny("policy_denied"));
    vm.assert_serves();
}
