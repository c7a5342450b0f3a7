//! Refusals made at the edge on their way to the log.

use super::fixtures::{AGENT, Headers, Key, claims, proof, token};
use super::vm::{PREFIX, Vm, allow, batches};
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
fn outcomes_wait_for_a_stream() {
    let mut vm = Vm::ready();
    let context = vm.request(&Headers::good("/files/a", "jti-1"));
    let ask = vm.asked();
    vm.answer(&ask, allow());
    vm.cut();
    vm.respond(context, 200);
    vm.pass_ms(500);
    vm.welcome(PREFIX);
    let heard = vm.heard();
    assert_eq!(
        (vm.outcomes()[0].id.clone(), vm.outcomes()[0].status),
        (ask.id, 200)
    );
}
