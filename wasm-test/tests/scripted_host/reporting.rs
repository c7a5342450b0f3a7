//! Refusals made at the edge on their way to the log.

use super::fixtures::{AGENT, Headers, Key, claims, configuration, proof, token};
use super::vm::{PREFIX, Vm, allow, asks, batches};
use super::world::World;
use decision_api::from_control_plane::Message as FromServer;
use decision_api::{DenialBatch, DenialsTaken};

/// A request whose signatures are good and whose action is another.
fn mismatched(jti: &str) -> Headers {
    let token = token(&claims("/files/a", jti), &Key::issuer());
    let proof = proof("/files/b", &token, &Key::agent());
    Headers::bare("/files/b")
        .with("authorization", format!("DPoP {token}"))
        .with("dpop", proof)
}

fn taken(vm: &mut Vm, sequence: u64) {
    vm.say(FromServer::DenialsTaken(DenialsTaken { sequence }));
}

fn next_batch(vm: &mut Vm, within_ms: u64) -> DenialBatch {
    vm.pass_ms(within_ms);
    let heard = vm.heard();
    let batches = batches(&heard);
    assert_eq!(batches.len(), 1);
    batches[0].clone()
}

#[test]
fn authenticated_refusals_are_entries() {
    let mut vm = Vm::ready();
    let context = vm.request(&mismatched("jti-1"));
    vm.assert_refused(context, 403, "action_mismatch");
    let batch = next_batch(&mut vm, 200);
    assert_eq!(
        (batch.sequence, batch.entries.len(), batch.dropped),
        (1, 1, 0)
    );
    let entry = &batch.entries[0];
    assert_eq!(
        (
            entry.reason.as_str(),
            entry.jti.as_str(),
            entry.agent.as_str()
        ),
        ("action_mismatch", "jti-1", AGENT)
    );
    assert_eq!(
        (entry.method.as_str(), entry.path.as_str()),
        ("GET", "/files/b")
    );
    assert_eq!(entry.token_hash.len(), 32);
    assert!(entry.time_ms > 0);
}

#[test]
fn refusals_of_somebody_unknown_are_counts() {
    let mut vm = Vm::ready();
    for _ in 0..3 {
        let context = vm.request(&Headers::bare("/files/a"));
        vm.assert_refused(context, 401, "missing_credentials");
    }
    let batch = next_batch(&mut vm, 6_000);
    assert!(batch.entries.is_empty());
    assert_eq!(
        (batch.counts[0].reason.as_str(), batch.counts[0].count),
        ("missing_credentials", 3)
    );
}

#[test]
fn the_control_planes_own_denials_are_not_sent_back() {
    let mut vm = Vm::ready();
    let context = vm.request(&Headers::good("/files/a", "jti-1"));
    let ask = vm.asked();
    vm.answer(&ask, super::vm::deny("policy_denied"));
    vm.assert_refused(context, 403, "policy_denied");
    vm.pass_ms(6_000);
    assert!(batches(&vm.heard()).is_empty());
}

#[test]
fn a_batch_is_repeated_until_it_is_acknowledged() {
    let mut vm = Vm::ready();
    vm.request(&mismatched("jti-1"));
    let first = next_batch(&mut vm, 200);
    // The next one waits for the acknowledgement of this.
    vm.request(&mismatched("jti-2"));
    vm.pass_ms(1_000);
    taken(&mut vm, 7);
    vm.pass_ms(1_000);
    assert!(batches(&vm.heard()).is_empty());
    vm.cut();
    vm.pass_ms(500);
    vm.welcome(PREFIX);
    assert_eq!(batches(&vm.heard()), [&first]);
    taken(&mut vm, 1);
    let second = next_batch(&mut vm, 200);
    assert_eq!(
        (second.sequence, second.entries[0].jti.as_str()),
        (2, "jti-2")
    );
}

#[test]
fn numbers_begin_again_under_a_new_prefix() {
    let mut vm = Vm::ready();
    vm.request(&mismatched("jti-1"));
    assert_eq!(next_batch(&mut vm, 200).sequence, 1);
    taken(&mut vm, 1);
    vm.request(&mismatched("jti-2"));
    assert_eq!(next_batch(&mut vm, 200).sequence, 2);
    vm.cut();
    vm.pass_ms(500);
    vm.welcome(b"other prefix....");
    let heard = vm.heard();
    assert_eq!(
        (
            batches(&heard)[0].sequence,
            batches(&heard)[0].entries[0].jti.as_str()
        ),
        (1, "jti-2")
    );
}

#[test]
fn what_does_not_fit_is_counted() {
    let mut vm = Vm::ready();
    vm.cut();
    // The buffer has room for four.
    for n in 0..7 {
        vm.request(&mismatched(&format!("jti-{n}")));
    }
    assert_eq!(vm.metric("writ.denials_dropped"), 3);
    vm.pass_ms(500);
    vm.welcome(PREFIX);
    let heard = vm.heard();
    let batch = batches(&heard)[0];
    assert_eq!((batch.entries.len(), batch.dropped), (4, 3));
}

#[test]
fn a_question_that_could_not_be_asked_is_an_entry_too() {
    let mut vm = Vm::ready();
    vm.cut();
    let context = vm.request(&Headers::good("/files/a", "jti-1"));
    vm.assert_refused(context, 503, "control_plane_unavailable");
    vm.pass_ms(500);
    vm.welcome(PREFIX);
    let heard = vm.heard();
    assert_eq!(
        batches(&heard)[0].entries[0].reason,
        "control_plane_unavailable"
    );
}

#[test]
fn what_no_stream_takes_at_the_end_goes_to_the_context_that_comes_next() {
    let mut vm = Vm::ready();
    vm.request(&mismatched("jti-0"));
    assert_eq!(next_batch(&mut vm, 200).sequence, 1);
    vm.cut();
    // One is not acknowledged, four have room, two are dropped, one is counted.
    for n in 1..7 {
        vm.request(&mismatched(&format!("jti-{n}")));
    }
    vm.request(&Headers::bare("/files/a"));
    vm.shut_down();
    let left = std::mem::take(&mut vm.world().queue);
    assert!(!left.is_empty());
    let after = |buffered: usize| {
        let world = World {
            queue: left.clone(),
            ..World::default()
        };
        let mut settings = configuration();
        settings["limits"]["denials_buffered"] = buffered.into();
        Vm::ready_with(world, &settings)
    };
    let jtis = |batch: &DenialBatch| {
        let jtis = batch.entries.iter().map(|it| it.jti.clone());
        jtis.collect::<Vec<_>>()
    };
    // With room for whole batches it takes all at once.
    let mut next = after(128);
    let batch = next_batch(&mut next, 6_000);
    assert_eq!(jtis(&batch), ["jti-0", "jti-1", "jti-2", "jti-3", "jti-4"]);
    assert_eq!((batch.sequence, batch.dropped), (1, 2));
    assert_eq!(batch.counts[0].reason, "missing_credentials");
    assert!(next.world().queue.is_empty());
    // With less it takes one, and the next once that is handed in.
    let mut small = after(16);
    assert_eq!(jtis(&next_batch(&mut small, 6_000)), ["jti-0"]);
    taken(&mut small, 1);
    let batch = next_batch(&mut small, 6_000);
    assert_eq!(jtis(&batch), ["jti-1", "jti-2", "jti-3", "jti-4"]);
    assert_eq!((batch.sequence, batch.dropped), (2, 2));
    assert!(small.world().queue.is_empty());
}

#[test]
fn outcomes_wait_for_a_stream() {
    let mut vm = Vm::ready();
    let context = vm.request(&Headers::good("/files/a", "jti-1"));
    let ask = vm.asked();
    vm.answer(&ask, allow());
    vm.cut();
    vm.respond(context, 200);
    vm.pass_ms(500);
    vm.welcome(PREFIX);
    let outcomes = vm.outcomes();
    assert_eq!(
        (
            outcomes[0].id.clone(),
            outcomes[0].status,
            outcomes[0].not_forwarded
        ),
        (ask.id, 200, false)
    );
}

/// Allowed requests of this many clients.
fn allowed(vm: &mut Vm, count: usize) -> Vec<u32> {
    let contexts = (0..count).map(|n| {
        let context = vm.request(&Headers::good("/files/a", &format!("allowed-{n}")));
        let ask = vm.asked();
        vm.answer(&ask, allow());
        context
    });
    contexts.collect()
}

#[test]
fn outcomes_ride_on_the_next_question_of_a_busy_worker() {
    let mut vm = Vm::ready();
    let contexts = allowed(&mut vm, 2);
    let waiting = vm.request(&Headers::good("/files/b", "jti-1"));
    let before = vm.asked();
    for context in contexts {
        vm.respond(context, 200);
    }
    assert!(vm.outcomes().is_empty() && vm.heard().is_empty());
    vm.request(&Headers::good("/files/c", "jti-2"));
    let stream = vm.newest_stream();
    let message = vm.world().streams[&stream].sent.last().unwrap().clone();
    assert_eq!(
        message
            .outcomes
            .iter()
            .map(|o| (o.status, o.response_bytes))
            .collect::<Vec<_>>(),
        [(200, 42), (200, 42)]
    );
    let ask = vm.asked();
    // The question's own bytes are what they would have been alone.
    vm.cut();
    vm.pass_ms(500);
    vm.welcome(PREFIX);
    assert_eq!(asks(&vm.heard()), [&before, &ask]);
    assert!(vm.outcomes().is_empty(), "reported once");
    vm.answer(&before, allow());
    assert_eq!(vm.resumed(waiting), 1);
}

#[test]
fn the_tick_reports_outcomes_that_no_question_took_along() {
    let mut vm = Vm::ready();
    let contexts = allowed(&mut vm, 1);
    vm.request(&Headers::good("/files/b", "jti-1"));
    vm.asked();
    vm.respond(contexts[0], 404);
    assert!(vm.outcomes().is_empty());
    vm.tick();
    assert_eq!(vm.outcomes()[0].status, 404);
}

#[test]
fn an_idle_worker_reports_an_outcome_at_once() {
    let mut vm = Vm::ready();
    let contexts = allowed(&mut vm, 1);
    vm.respond(contexts[0], 200);
    assert_eq!(vm.outcomes().len(), 1);
}

#[test]
fn no_message_has_more_than_64_outcomes() {
    let mut vm = Vm::ready();
    let contexts = allowed(&mut vm, 150);
    vm.cut();
    for context in contexts {
        vm.respond(context, 200);
    }
    vm.pass_ms(500);
    vm.welcome(PREFIX);
    let stream = vm.newest_stream();
    let sizes: Vec<usize> = vm.world().streams[&stream]
        .sent
        .iter()
        .map(|message| message.outcomes.len())
        .filter(|size| *size > 0)
        .collect();
    assert_eq!(sizes, [64, 64, 22]);
}

#[test]
fn nothing_is_lost_when_the_configuration_goes_away() {
    let mut config = super::fixtures::configuration();
    config["limits"]["denials_buffered"] = serde_json::json!(1_000);
    let mut vm = Vm::ready_with(super::world::World::default(), &config);
    let contexts = allowed(&mut vm, 1);
    vm.request(&mismatched("jti-0"));
    // One batch is on its way and not acknowledged.
    let first = next_batch(&mut vm, 200);
    for n in 1..150 {
        vm.request(&mismatched(&format!("jti-{n}")));
    }
    vm.request(&Headers::bare("/files/a"));
    vm.request(&Headers::good("/files/b", "waits"));
    vm.asked();
    vm.respond(contexts[0], 200);
    assert!(vm.outcomes().is_empty());
    vm.shut_down();
    assert_eq!(vm.outcomes().len(), 1);
    let heard = vm.heard();
    let sent = batches(&heard);
    assert_eq!(sent[0], &first);
    let shape: Vec<_> = sent
        .iter()
        .map(|batch| (batch.sequence, batch.entries.len(), batch.dropped))
        .collect();
    assert_eq!(shape, [(1, 1, 0), (2, 64, 0), (3, 64, 0), (4, 21, 0)]);
    assert_eq!(sent[1].counts[0].reason, "missing_credentials");
    assert_eq!(vm.world().metric("writ.refused.missing_credentials"), 1);
}

#[test]
fn what_the_last_messages_cannot_carry_is_counted() {
    let mut config = super::fixtures::configuration();
    config["limits"]["denials_buffered"] = serde_json::json!(1_030);
    let mut vm = Vm::ready_with(super::world::World::default(), &config);
    let refused = mismatched("jti-1");
    for _ in 0..1_030 {
        vm.request(&refused);
    }
    vm.shut_down();
    let heard = vm.heard();
    let sent = batches(&heard);
    assert_eq!(sent.len(), 16);
    let carried: usize = sent.iter().map(|batch| batch.entries.len()).sum();
    let dropped: u64 = sent.iter().map(|batch| batch.dropped).sum();
    assert_eq!((carried, dropped), (1_024, 6));
    assert!(sent.iter().zip(1..).all(|(batch, n)| batch.sequence == n));
}
