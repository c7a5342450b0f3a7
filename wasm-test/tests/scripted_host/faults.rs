//! Peers that leave, stall or say the wrong thing: nobody is let through by it.

use super::fixtures::{Headers, configuration};
use super::vm::{PREFIX, Vm, allow, answer_to, asks, deny, hold, withdrawals};
use super::world::{ROOT, World};
use decision_api::from_control_plane::Message as FromServer;
use decision_api::{Answer, PROTOCOL, Welcome};
use serde_json::json;

const OTHER_PREFIX: &[u8; 16] = b"other prefix....";

#[test]
fn a_failed_context_switch_releases_nobody() {
    let mut vm = Vm::ready();
    let bystander = vm.request(&Headers::good("/files/a", "jti-1"));
    let first = vm.asked();
    let lost = vm.request(&Headers::good("/files/b", "jti-2"));
    let second = vm.asked();
    vm.world().unenterable.insert(lost);
    for verdict in [allow(), allow()] {
        vm.answer(&second, verdict);
        assert_eq!((vm.resumed(lost), vm.resumed(bystander)), (0, 0));
    }
    vm.assert_paused(bystander);
    assert_eq!(vm.metric("writ.contexts_lost"), 1);
    // Even when its context can be entered again, its question is over.
    vm.world().unenterable.clear();
    vm.answer(&second, allow());
    assert_eq!(vm.resumed(lost), 0);
    // The token is spent; the log learns that nothing was forwarded.
    vm.tick();
    let outcomes = vm.outcomes();
    assert_eq!(outcomes.len(), 1);
    assert_eq!(
        (outcomes[0].not_forwarded, outcomes[0].id.clone()),
        (true, second.id)
    );
    vm.answer(&first, allow());
    assert_eq!(vm.resumed(bystander), 1);
    vm.assert_serves();
}

#[test]
fn a_failed_context_switch_answers_nobody() {
    let mut vm = Vm::ready();
    let bystander = vm.request(&Headers::good("/files/a", "jti-1"));
    vm.asked();
    let lost = vm.request(&Headers::good("/files/b", "jti-2"));
    let ask = vm.asked();
    vm.world().unenterable.insert(lost);
    vm.answer(&ask, deny("policy_denied"));
    assert!(vm.http(lost).reply.is_none());
    vm.assert_paused(bystander);
    vm.world().unenterable.clear();
    vm.assert_serves();
}

#[test]
fn a_stream_that_cannot_be_reached_from_a_request_means_no_question() {
    let mut vm = Vm::ready();
    vm.world().unenterable.insert(ROOT);
    let context = vm.request(&Headers::good("/files/a", "jti-1"));
    vm.assert_refused(context, 503, "control_plane_unavailable");
    vm.world().unenterable.clear();
    assert!(asks(&vm.heard()).is_empty());
    vm.assert_serves();
}

#[test]
fn an_answer_for_a_client_that_left_touches_nothing() {
    for late in [allow(), deny("policy_denied"), hold(1_000)] {
        let mut vm = Vm::ready();
        let gone = vm.request(&Headers::good("/files/a", "jti-1"));
        let ask = vm.asked();
        let waiting = vm.request(&Headers::good("/files/b", "jti-2"));
        vm.asked();
        vm.end(gone);
        let heard = vm.heard();
        assert_eq!(withdrawals(&heard).len(), 1);
        assert_eq!(withdrawals(&heard)[0].id, ask.id);
        let allowed = matches!(late, decision_api::answer::Verdict::Allow(_));
        let held = matches!(late, decision_api::answer::Verdict::Hold(_));
        vm.answer(&ask, late);
        // Editing its headers would have crashed the VM.
        assert_eq!(vm.resumed(gone), 0);
        vm.assert_paused(waiting);
        // Nobody is there to be held: the control plane must let it lapse.
        let heard = vm.heard();
        let withdrawn: Vec<_> = withdrawals(&heard)
            .iter()
            .map(|withdraw| withdraw.id.clone())
            .collect();
        assert_eq!(withdrawn, vec![ask.id.clone(); usize::from(held)]);
        vm.tick();
        let outcomes = vm.outcomes();
        assert_eq!(outcomes.len(), usize::from(allowed));
        for outcome in outcomes {
            assert_eq!((outcome.id, outcome.status), (ask.id.clone(), 0));
            assert!(outcome.not_forwarded);
        }
        assert_eq!(vm.metric("writ.clients_gone"), 1);
        vm.assert_serves();
    }
}

#[test]
fn a_client_that_leaves_while_held_is_withdrawn() {
    let mut vm = Vm::ready();
    let gone = vm.request(&Headers::good("/files/a", "jti-1"));
    let ask = vm.asked();
    vm.answer(&ask, hold(25_000));
    vm.end(gone);
    assert_eq!(withdrawals(&vm.heard()).len(), 1);
    vm.withdrawn(&ask.id.clone().unwrap(), true);
    vm.answer(&ask, allow());
    assert_eq!(vm.resumed(gone), 0);
    assert_eq!(vm.metric("writ.in_flight"), 0);
    vm.assert_serves();
}

#[test]
fn a_decision_that_never_comes_ends_in_a_refusal() {
    let mut vm = Vm::ready();
    let context = vm.request(&Headers::good("/files/a", "jti-1"));
    let ask = vm.asked();
    vm.pass_in_silence_ms(1_900);
    vm.assert_paused(context);
    assert!(withdrawals(&vm.heard()).is_empty());
    vm.pass_in_silence_ms(300);
    vm.assert_paused(context);
    let heard = vm.heard();
    assert_eq!(withdrawals(&heard)[0].id, ask.id);
    vm.pass_in_silence_ms(700);
    // Nobody knows what became of the token, so nobody is told to try again.
    let reply = vm.assert_refused(context, 503, "control_plane_unavailable");
    assert!(!reply.headers.contains_key("retry-after"));
    vm.answer(&ask, allow());
    assert_eq!(vm.resumed(context), 0);
    // The peer had not said a word since: the stream is opened again.
    vm.pass_ms(1_000);
    vm.welcome(PREFIX);
    vm.assert_serves();
}

#[test]
fn only_a_confirmed_withdrawal_says_try_again() {
    for confirmed in [true, false] {
        let mut vm = Vm::ready();
        let context = vm.request(&Headers::good("/files/a", "jti-1"));
        let ask = vm.asked();
        vm.pass_ms(2_200);
        vm.withdrawn(&ask.id.clone().unwrap(), confirmed);
        let reply = vm.assert_refused(context, 503, "control_plane_unavailable");
        assert_eq!(reply.headers.contains_key("retry-after"), confirmed);
        vm.assert_serves();
    }
}

#[test]
fn an_allow_after_the_deadline_lets_nothing_through() {
    let mut vm = Vm::ready();
    let context = vm.request(&Headers::good("/files/a", "jti-1"));
    let ask = vm.asked();
    vm.pass_ms(2_200);
    vm.heard();
    vm.answer(&ask, allow());
    let reply = vm.assert_refused(context, 503, "control_plane_unavailable");
    assert!(!reply.headers.contains_key("retry-after"));
    let outcomes = vm.outcomes();
    assert_eq!((outcomes[0].status, outcomes[0].not_forwarded), (0, true));
    vm.assert_serves();
}

#[test]
fn a_decision_that_was_under_way_when_it_was_withdrawn_is_accounted_for() {
    for left in [true, false] {
        for verdict in [allow(), hold(25_000)] {
            let mut vm = Vm::ready();
            let context = vm.request(&Headers::good("/files/a", "jti-1"));
            let ask = vm.asked();
            if left {
                vm.end(context);
            } else {
                vm.pass_ms(2_200);
            }
            vm.withdrawn(&ask.id.clone().unwrap(), false);
            vm.heard();
            let held = matches!(verdict, decision_api::answer::Verdict::Hold(_));
            // The commit took its time.
            vm.pass_ms(5_000);
            vm.answer(&ask, verdict);
            let heard = vm.heard();
            assert_eq!(withdrawals(&heard).len(), usize::from(held));
            let outcomes = vm.outcomes();
            assert_eq!(outcomes.len(), usize::from(!held));
            for outcome in outcomes {
                assert_eq!(outcome.id, ask.id);
                assert!(outcome.not_forwarded);
            }
            // It was forwarded by nobody, and that is said once.
            vm.answer(&ask, allow());
            vm.answer(&ask, allow());
            assert_eq!(vm.outcomes().len(), usize::from(held));
            assert_eq!(vm.resumed(context), 0);
            vm.assert_serves();
        }
    }
}

#[test]
fn a_hold_that_is_nothing_of_ours_is_not_withdrawn() {
    let mut vm = Vm::ready();
    vm.request(&Headers::good("/files/a", "jti-1"));
    let ask = vm.asked();
    let mut foreign = ask.clone();
    foreign.id.as_mut().unwrap().prefix = OTHER_PREFIX.to_vec();
    vm.answer(&foreign, hold(1_000));
    let mut unasked = ask.clone();
    unasked.id.as_mut().unwrap().counter += 1;
    vm.answer(&unasked, hold(1_000));
    unasked.id.as_mut().unwrap().counter = 0;
    vm.answer(&unasked, hold(1_000));
    assert!(withdrawals(&vm.heard()).is_empty());
}

#[test]
fn a_client_that_leaves_while_there_is_no_stream_is_withdrawn_on_the_next() {
    let mut vm = Vm::ready();
    let gone = vm.request(&Headers::good("/files/a", "jti-1"));
    let ask = vm.asked();
    vm.answer(&ask, hold(25_000));
    vm.cut();
    vm.end(gone);
    vm.pass_ms(500);
    vm.welcome(PREFIX);
    let heard = vm.heard();
    assert_eq!(withdrawals(&heard)[0].id, ask.id);
    assert!(asks(&heard).is_empty());
}

#[test]
fn an_unasked_withdrawal_closes_nothing() {
    let mut vm = Vm::ready();
    let context = vm.request(&Headers::good("/files/a", "jti-1"));
    let ask = vm.asked();
    vm.withdrawn(&ask.id.clone().unwrap(), true);
    vm.assert_paused(context);
    vm.answer(&ask, allow());
    assert_eq!(vm.resumed(context), 1);
}

/// What makes a good answer a bad one.
type Spoil = fn(&mut Answer);

#[test]
fn answers_that_do_not_fit_are_ignored() {
    let spoil: [(&str, Spoil); 8] = [
        ("another token's hash", |answer| {
            answer.token_hash = capability::sha256(b"another").to_vec()
        }),
        ("no token hash", |answer| answer.token_hash.clear()),
        ("another question's digest", |answer| {
            answer.question_digest = capability::sha256(b"another").to_vec()
        }),
        ("half a digest", |answer| {
            answer.question_digest.truncate(16)
        }),
        ("an unknown counter", |answer| {
            answer.id.as_mut().unwrap().counter += 1
        }),
        ("another prefix", |answer| {
            answer.id.as_mut().unwrap().prefix = OTHER_PREFIX.to_vec()
        }),
        ("no id", |answer| answer.id = None),
        ("no verdict", |answer| answer.verdict = None),
    ];
    for (what, spoil) in spoil {
        let mut vm = Vm::ready();
        let context = vm.request(&Headers::good("/files/a", "jti-1"));
        let ask = vm.asked();
        let mut answer = answer_to(&ask, allow());
        spoil(&mut answer);
        vm.say(FromServer::Answer(answer));
        vm.assert_paused(context);
        assert_eq!(vm.metric("writ.answers_ignored"), 1, "{what}");
        // The true answer still counts.
        vm.answer(&ask, allow());
        assert_eq!(vm.resumed(context), 1, "{what}");
    }
}

#[test]
fn a_repeated_answer_changes_nothing() {
    let mut vm = Vm::ready();
    let context = vm.request(&Headers::good("/files/a", "jti-1"));
    let ask = vm.asked();
    vm.answer(&ask, allow());
    for again in [allow(), deny("token_revoked"), hold(1_000)] {
        vm.answer(&ask, again);
    }
    assert_eq!(vm.resumed(context), 1);
    assert!(vm.http(context).reply.is_none());

    let denied = vm.request(&Headers::good("/files/b", "jti-2"));
    let ask = vm.asked();
    vm.answer(&ask, deny("policy_denied"));
    vm.answer(&ask, allow());
    vm.assert_refused(denied, 403, "policy_denied");
}

#[test]
fn messages_that_cannot_be_read_crash_nothing() {
    let mut vm = Vm::ready();
    let context = vm.request(&Headers::good("/files/a", "jti-1"));
    let ask = vm.asked();
    let stream = vm.newest_stream();
    vm.say_bytes(stream, b"\xff\xff not a message");
    vm.assert_paused(context);
    // Something may have been lost, so it is asked again on another stream.
    vm.pass_ms(500);
    vm.welcome(PREFIX);
    let heard = vm.heard();
    assert_eq!(asks(&heard), [&ask]);
    let stream = vm.newest_stream();
    vm.say_bytes(stream, b"");
    vm.answer(&ask, allow());
    assert_eq!(vm.resumed(context), 1);
}

#[test]
fn answers_on_an_older_stream_are_nobodys() {
    let mut vm = Vm::ready();
    let context = vm.request(&Headers::good("/files/a", "jti-1"));
    let ask = vm.asked();
    let old = vm.newest_stream();
    vm.cut();
    vm.pass_ms(500);
    vm.welcome(PREFIX);
    vm.say_on(old, FromServer::Answer(answer_to(&ask, allow())));
    vm.assert_paused(context);
}

#[test]
fn without_a_stream_no_question_is_sent() {
    let (mut vm, taken) = Vm::configure(World::default(), configuration().to_string());
    assert!(taken);
    let refused = |vm: &mut Vm, jti: &str| {
        let context = vm.request(&Headers::good("/files/a", jti));
        let reply = vm.assert_refused(context, 503, "control_plane_unavailable");
        assert!(reply.headers.contains_key("retry-after"));
    };
    // Right after a reload, before the first tick.
    refused(&mut vm, "jti-1");
    vm.world().control_plane_reachable = false;
    vm.pass_ms(5_000);
    refused(&mut vm, "jti-2");
    assert!(vm.world().streams.is_empty());
    // Open, but not welcomed.
    vm.world().control_plane_reachable = true;
    vm.pass_ms(1_100);
    refused(&mut vm, "jti-3");
    vm.welcome(PREFIX);
    vm.assert_serves();
}

#[test]
fn a_reconnect_asks_again_with_the_same_id_and_bytes() {
    let mut vm = Vm::ready();
    let waiting = vm.request(&Headers::good("/files/a", "jti-1"));
    let first = vm.asked();
    let held = vm.request(&Headers::good("/files/b", "jti-2"));
    let second = vm.asked();
    vm.answer(&second, hold(25_000));
    let answered = vm.request(&Headers::good("/files/c", "jti-3"));
    let third = vm.asked();
    vm.answer(&third, allow());
    assert_eq!(vm.resumed(answered), 1);
    let gone = vm.request(&Headers::good("/files/d", "jti-4"));
    vm.asked();
    vm.cut();
    vm.end(gone);
    vm.pass_ms(500);
    let hello = vm.welcome(PREFIX);
    assert_eq!(
        (hello.protocol, hello.resume_prefix.as_slice()),
        (PROTOCOL, PREFIX.as_slice())
    );
    let heard = vm.heard();
    // What is still paused, oldest first; nothing that was answered or left.
    assert_eq!(asks(&heard), [&first, &second]);
    vm.assert_paused(waiting);
    for (context, ask) in [(waiting, first), (held, second)] {
        vm.answer(&ask, allow());
        assert_eq!(vm.resumed(context), 1);
    }
}

#[test]
fn counters_go_on_under_a_new_prefix() {
    let mut vm = Vm::ready();
    let context = vm.request(&Headers::good("/files/a", "jti-1"));
    let before = vm.asked();
    vm.cut();
    vm.pass_ms(500);
    vm.welcome(OTHER_PREFIX);
    // The old question keeps its id; new ones get the new prefix.
    assert_eq!(asks(&vm.heard()), [&before]);
    let other = vm.request(&Headers::good("/files/b", "jti-2"));
    let after = vm.asked();
    let (old, new) = (before.id.clone().unwrap(), after.id.clone().unwrap());
    assert_eq!(new.prefix, OTHER_PREFIX);
    assert!(new.counter > old.counter);
    vm.answer(&after, allow());
    vm.answer(&before, deny("outcome_unknown"));
    assert_eq!(vm.resumed(other), 1);
    vm.assert_refused(context, 401, "outcome_unknown");
}

#[test]
fn an_answer_during_the_greeting_is_not_believed() {
    let mut vm = Vm::ready();
    let context = vm.request(&Headers::good("/files/a", "jti-1"));
    let ask = vm.asked();
    vm.cut();
    vm.pass_ms(500);
    vm.answer(&ask, allow());
    vm.assert_paused(context);
    vm.welcome(PREFIX);
    vm.answer(&ask, allow());
    assert_eq!(vm.resumed(context), 1);
}

#[test]
fn another_protocol_is_refused_and_never_guessed_at() {
    for welcome in [
        Welcome {
            protocol: PROTOCOL + 1,
            prefix: PREFIX.to_vec(),
            ..Welcome::default()
        },
        Welcome {
            protocol: PROTOCOL - 1,
            prefix: PREFIX.to_vec(),
            ..Welcome::default()
        },
        Welcome {
            protocol: PROTOCOL,
            prefix: b"short".to_vec(),
            ..Welcome::default()
        },
    ] {
        let (mut vm, taken) = Vm::configure(World::default(), configuration().to_string());
        assert!(taken);
        vm.tick();
        vm.say(FromServer::Welcome(welcome));
        let context = vm.request(&Headers::good("/files/a", "jti-1"));
        vm.assert_refused(context, 503, "control_plane_unavailable");
        let stream = vm.newest_stream();
        assert!(!vm.world().streams[&stream].open);
        vm.pass_ms(1_500);
        vm.welcome(PREFIX);
        vm.assert_serves();
    }
}

#[test]
fn a_peer_that_does_not_greet_is_given_up() {
    let (mut vm, _) = Vm::configure(World::default(), configuration().to_string());
    vm.tick();
    let silent = vm.newest_stream();
    vm.pass_ms(3_500);
    assert!(!vm.world().streams[&silent].open);
    assert_ne!(vm.newest_stream(), silent);
    vm.welcome(PREFIX);
    vm.assert_serves();
}

#[test]
fn questions_in_flight_have_a_limit() {
    let mut vm = Vm::ready();
    for n in 0..8 {
        let context = vm.request(&Headers::good("/files/a", &format!("jti-{n}")));
        vm.assert_paused(context);
    }
    let context = vm.request(&Headers::good("/files/a", "one more"));
    let reply = vm.assert_refused(context, 503, "control_plane_unavailable");
    assert!(reply.headers.contains_key("retry-after"));
    let heard = vm.heard();
    assert_eq!(asks(&heard).len(), 8);
    let last = asks(&heard)[7].clone();
    vm.answer(&last, allow());
    vm.assert_serves();
}

#[test]
fn a_clock_that_jumps_back_does_not_stretch_a_deadline() {
    let mut config = configuration();
    config["decision_deadline_ms"] = json!(500);
    let mut vm = Vm::ready_with(World::default(), &config);
    let context = vm.request(&Headers::good("/files/a", "jti-1"));
    vm.asked();
    vm.world().now_ns -= 3_600_000_000_000;
    vm.pass_ms(1_300);
    vm.assert_refused(context, 503, "control_plane_unavailable");
}
