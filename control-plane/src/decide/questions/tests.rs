use super::*;

fn prefix() -> Prefix {
    let seat = Seat {
        peer: "spiffe://writ.example/proxy".into(),
        ..Seat::default()
    };
    Prefix::new([7; 16], seat)
}

fn new(prefix: &Prefix, counter: u64) -> Arc<Entry> {
    match prefix.ask(counter, [1; 32], 4) {
        Asked::New(entry) => entry,
        _ => panic!("{counter} is not new"),
    }
}

#[test]
fn asking_again_is_idempotent_and_other_bytes_conflict() {
    let prefix = prefix();
    let entry = new(&prefix, 1);
    assert!(matches!(prefix.ask(1, [1; 32], 4), Asked::UnderWay));
    assert!(matches!(prefix.ask(1, [2; 32], 4), Asked::Conflict));
    prefix.answer(&entry, Answer::default());
    assert!(matches!(prefix.ask(1, [1; 32], 4), Asked::Answered(_)));
    assert!(matches!(prefix.ask(1, [2; 32], 4), Asked::Conflict));
}

#[test]
fn taking_back_what_never_came_has_an_end_and_is_not_confirmed_past_it() {
    let prefix = prefix();
    let most = u64::try_from(REMEMBERED_MAX).unwrap();
    for counter in 0..most {
        assert!(prefix.withdraw(counter), "{counter}");
    }
    assert!(!prefix.withdraw(most));
    assert_eq!(prefix.lock().entries.len(), REMEMBERED_MAX);
    assert!(prefix.withdraw(0), "what is known stays so");
}

#[test]
fn a_held_question_that_is_asked_again_hears_of_its_hold() {
    let prefix = prefix();
    let entry = new(&prefix, 1);
    assert!(entry.begin_commit() && entry.hold(Answer::default()));
    assert!(matches!(prefix.ask(1, [1; 32], 4), Asked::Answered(_)));
}

#[test]
fn what_is_under_way_is_never_forgotten() {
    let prefix = prefix();
    let first = new(&prefix, 0);
    for counter in 1..4 {
        new(&prefix, counter);
    }
    assert!(matches!(prefix.ask(4, [1; 32], 4), Asked::Full));
    prefix.answer(&first, Answer::default());
    new(&prefix, 4);
    assert!(matches!(prefix.ask(1, [1; 32], 4), Asked::UnderWay));
}

#[test]
fn withdrawing_by_stage() {
    let prefix = prefix();
    let evaluating = new(&prefix, 1);
    assert!(
        prefix.withdraw(1) && prefix.withdraw(1),
        "closed, and still closed"
    );
    assert!(
        !evaluating.begin_commit(),
        "a withdrawn question is not committed"
    );

    let committing = new(&prefix, 2);
    assert!(committing.begin_commit());
    assert!(!prefix.withdraw(2), "too late to be sure");
    assert!(
        !committing.hold(Answer::default()),
        "a hold does not outlive its client"
    );

    let held = new(&prefix, 3);
    assert!(held.begin_commit() && held.hold(Answer::default()));
    assert!(prefix.withdraw(3));
    assert!(!held.begin_commit(), "no release after the client left");
}

#[test]
fn a_withdrawal_that_overtakes_its_question_closes_it() {
    let prefix = prefix();
    assert!(prefix.withdraw(9));
    assert!(
        matches!(prefix.ask(9, [1; 32], 4), Asked::UnderWay),
        "never decided"
    );
    assert!(
        !prefix.withdraw(3),
        "one that may have been forgotten is not called closed"
    );
}

#[test]
fn what_is_over_is_forgotten_after_a_minute_and_so_is_an_unused_prefix() {
    let prefix = prefix();
    let entry = new(&prefix, 1);
    let start = Instant::now();
    assert!(
        prefix.sweep(start) && prefix.sweep(start + REMEMBERED_FOR * 2),
        "busy"
    );
    prefix.answer(&entry, Answer::default());
    assert!(prefix.sweep(start));
    assert!(matches!(prefix.ask(1, [1; 32], 4), Asked::Answered(_)));
    assert!(!prefix.sweep(start + REMEMBERED_FOR));
    assert!(prefix.lock().entries.is_empty());
}

#[test]
fn a_stream_that_is_replaced_is_not_read_any_more() {
    let prefix = prefix();
    let (down, _open) = mpsc::channel(1);
    let first = prefix.attach(down.clone());
    let second = prefix.attach(down);
    assert!(first.is_cancelled() && !second.is_cancelled());
    prefix.detach(&first);
    assert!(
        prefix.connected(),
        "the old stream's end does not close the new one"
    );
    prefix.detach(&second);
    assert!(!prefix.connected());
}
