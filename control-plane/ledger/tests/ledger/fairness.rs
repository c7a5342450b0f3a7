//! One caller cannot use up what all need, and nothing that is held stays for ever.

use crate::{
    common::*,
    rig::{Rig, on_both_stores},
};
use ledger::{Ledger, model::*};

on_both_stores! {
    one_agent_cannot_take_the_approvals_of_all_others,
    evidence_is_counted_per_agent_and_in_all_until_it_ends,
    questions_take_no_more_than_a_share_and_none_of_who_is_stopped,
    what_nobody_released_lapses,
    an_outcome_is_taken_once_of_what_was_allowed,
    followers_of_approvals_hear_of_nothing_else,
    the_approvers_of_each_rule_survive,
}

fn of(agent: &str, name: &str) -> TokenRecord {
    TokenRecord {
        agent: agent.into(),
        ..token(name)
    }
}

async fn one_agent_cannot_take_the_approvals_of_all_others(rig: Rig) {
    let limits = Limits {
        approvals_open_per_agent: 2,
        approvals_open: 3,
        ..Limits::default()
    };
    let mut ledger = rig.open_with(limits.clone()).await;
    let ask = async |ledger: &Ledger, agent: &str, name: &str, digest: u8| {
        ledger.commit(issue(of(agent, name))).await.unwrap();
        let wanted = Approval {
            agent: agent.into(),
            ..approval(name, [digest; 32])
        };
        ledger.commit(hold(name, name, wanted)).await.map(|_| ())
    };
    let refused = |what| Err(Refused::Limit(what));
    assert_eq!(ask(&ledger, "one", "a", 1).await, Ok(()));
    assert_eq!(ask(&ledger, "one", "b", 2).await, Ok(()));
    let more = ask(&ledger, "one", "c", 3).await;
    assert_eq!(more, refused("open approvals per agent"));
    assert_eq!(ask(&ledger, "one", "d", 1).await, Ok(()), "joining is free");
    assert_eq!(ask(&ledger, "two", "e", 4).await, Ok(()));
    assert_eq!(ask(&ledger, "two", "f", 5).await, refused("open approvals"));
    let at_both = ask(&ledger, "one", "g", 6).await;
    assert_eq!(at_both, refused("open approvals per agent"));

    // Approvals survive a restart, and are counted after it.
    ledger.shutdown().await;
    ledger = rig.open_with(limits).await;
    let again = ask(&ledger, "one", "h", 7).await;
    assert_eq!(again, refused("open approvals per agent"));
    ledger.commit(answer("a", [1; 32], false)).await.unwrap();
    ledger.commit(answer("b", [2; 32], true)).await.unwrap();
    assert_eq!(ask(&ledger, "one", "i", 7).await, Ok(()), "one has ended");
    let again = ask(&ledger, "one", "j", 8).await;
    assert_eq!(again, refused("open approvals per agent"), "a yes counts");
    rig.clock.set(START + 900_000);
    while ledger.commit(Command::ExpireApprovals).await.is_ok() {}
    let mut late = of("one", "k");
    late.expires_ms += 900_000;
    ledger.commit(issue(late)).await.unwrap();
    let mut wanted = approval("k", [9; 32]);
    (wanted.agent, wanted.expires_ms) = ("one".into(), START + 1_800_000);
    ledger.commit(hold("k", "k", wanted)).await.unwrap();
}

async fn evidence_is_counted_per_agent_and_in_all_until_it_ends(rig: Rig) {
    let limits = Limits {
        evidence_per_agent: 2,
        evidence_total: 3,
        ..Limits::default()
    };
    let ledger = rig.open_with(limits).await;
    let show = async |agent: &str, name: &str, id: u8, expires_ms: Millis| {
        let mut token = of(agent, name);
        token.expires_ms = expires_ms;
        let mut command = issue(token);
        if let Command::Issue {
            evidence_id,
            evidence_expires_ms,
            ..
        } = &mut command
        {
            (*evidence_id, *evidence_expires_ms) = ([id; 32], expires_ms);
        }
        ledger.commit(command).await.map(|_| ())
    };
    let (first, end) = (START + 30_000, START + 600_000);
    let refused = |what| Err(Refused::Limit(what));
    assert_eq!(show("one", "a", 1, first).await, Ok(()));
    assert_eq!(show("one", "b", 2, end).await, Ok(()));
    assert_eq!(show("one", "c", 1, first).await, Ok(()), "known evidence");
    let third = show("one", "d", 3, end).await;
    assert_eq!(third, refused("evidence per agent"));
    assert_eq!(show("two", "e", 4, end).await, Ok(()));
    assert_eq!(show("two", "f", 5, end).await, refused("evidence"));
    // A minute past its end it is forgotten, and makes room.
    rig.clock.set(first + 59_999);
    ledger.commit(note("config", 0)).await.unwrap();
    let early = show("one", "g", 3, end).await;
    assert_eq!(early, refused("evidence per agent"));
    rig.clock.set(first + 60_000);
    ledger.commit(note("config", 1)).await.unwrap();
    assert_eq!(show("one", "h", 3, end).await, Ok(()));
    assert_eq!(show("two", "i", 5, end).await, refused("evidence"));
}

async fn questions_take_no_more_than_a_share_and_none_of_who_is_stopped(rig: Rig) {
    let limits = Limits::default();
    let shares = limits.evidence_total / limits.evidence_per_agent;
    assert!(shares >= 32, "{shares} agents use up what all need");
    let limits = Limits {
        evidence_per_agent: 3,
        evidence_total: 3 * shares,
        ..limits
    };
    let ledger = rig.open_with(limits).await;
    let ask = async |agent: &str, piece: u8| {
        let once = EvidenceOf {
            id: [piece; 32],
            expires_ms: START + 60_000,
        };
        let agent = agent.to_owned();
        let what = "introspection";
        let shown = Command::Present { agent, once, what };
        ledger.commit(shown).await.map(|_| ())
    };
    for piece in 1..=3 {
        assert_eq!(ask("one", piece).await, Ok(()));
    }
    let most = Err(Refused::Limit("evidence per agent"));
    assert_eq!(ask("one", 4).await, most);
    ledger.commit(issue(of("two", "first"))).await.unwrap();

    let stop = Command::Stop {
        target: Target::Agent("three".into()),
        by: "alice".into(),
        why: String::new(),
        until_ms: None,
        stopper: Stopper::Person,
    };
    let put = |state| Command::PutAgent {
        agent: "four".into(),
        change: AgentChange {
            owner: Some("owner".into()),
            state: Some(state),
            ..AgentChange::default()
        },
        by: "alice".into(),
    };
    for command in [stop, put(AgentState::Active), put(AgentState::Suspended)] {
        ledger.commit(command).await.unwrap();
    }
    assert_eq!(ask("three", 5).await, Err(Refused::Stopped("agent")));
    assert_eq!(ask("four", 6).await, Err(Refused::Inactive));
    let lines = rig.lines(&ledger).await;
    let asked = lines.iter().filter(|line| line.kind == "present");
    assert_eq!(asked.count(), 3);
}

async fn what_nobody_released_lapses(rig: Rig) {
    let limits = Limits {
        held_per_agent: 51,
        ..Limits::default()
    };
    let ledger = rig.open_with(limits.clone()).await;
    let sweep = |held_before_ms| ledger.commit(Command::LapseOverdue { held_before_ms });
    let held = async |name: &str| {
        ledger.commit(issue(token(name))).await.unwrap();
        let wanted = approval("apr", [1; 32]);
        ledger.commit(hold(name, name, wanted)).await.map(|_| ())
    };
    for n in 0..50 {
        assert_eq!(held(&n.to_string()).await, Ok(()));
    }
    rig.clock.set(START + 10_000);
    assert_eq!(held("later").await, Ok(()));
    assert_eq!(
        held("over").await,
        Err(Refused::Limit("held requests per agent"))
    );
    let none = Err(Refused::NotOutstanding(None));
    assert_eq!(sweep(START).await, none, "none is held since before");
    let entries = rig.head(&ledger).await.0;

    // Long past their own ends, too.
    rig.clock.set(START + 60_000);
    sweep(START + 1).await.unwrap();
    let state = async |name: &str| {
        let found = ledger.token(&hash(name)).await.unwrap();
        found.map(|(_, state)| state)
    };
    let mut left = 0;
    for n in 0..50 {
        left += usize::from(state(&n.to_string()).await.is_some());
    }
    assert_eq!(left, 50 - OVERDUE_PER_ENTRY);
    sweep(START + 1).await.unwrap();
    assert_eq!(sweep(START + 1).await, none);
    assert_eq!(
        rig.head(&ledger).await.0,
        entries + 2,
        "a refusal writes nothing"
    );
    for n in 0..50 {
        let name = n.to_string();
        let first = ledger.spent(&hash(&name)).await.unwrap().unwrap();
        assert_eq!(first.outcome, FirstUse::Lapsed);
        assert_eq!(
            ledger.commit(allow(&name, &name, None)).await,
            Err(Refused::NotOutstanding(Some(first))),
            "its holder comes too late"
        );
    }
    assert_eq!(state("later").await, Some(TokenState::Held));
    assert_eq!(
        ledger.approval("apr").unwrap().state,
        ApprovalState::Pending,
        "it stays open"
    );
    let mut fresh = token("fresh");
    fresh.expires_ms = START + 90_000;
    ledger.commit(issue(fresh)).await.unwrap();
    let wanted = approval("apr", [1; 32]);
    ledger.commit(hold("fresh", "f", wanted)).await.unwrap();

    let line = &rig.lines(&ledger).await[usize::try_from(entries).unwrap()];
    let named = line.body["tokens"].as_array().unwrap();
    assert_eq!(
        (line.kind.as_str(), named.len()),
        ("lapses_overdue", OVERDUE_PER_ENTRY),
        "none is cut from the line"
    );
    let head = rig.head(&ledger).await;
    let ledger = rig.next_epoch(ledger, limits).await;
    assert!(rig.verify(Some(head)).await.whole);
    assert_eq!(rig.head(&ledger).await.0, head.0 + rig.epoch_entries());
}

async fn an_outcome_is_taken_once_of_what_was_allowed(rig: Rig) {
    let mut ledger = rig.open().await;
    let names = ["a", "b", "c", "d", "slow", "old"];
    for name in names {
        ledger.commit(issue(token(name))).await.unwrap();
        ledger.commit(allow(name, name, None)).await.unwrap();
    }
    let told = |attempt: &str, status, nothing_sent| Command::Outcome {
        attempt: attempt.into(),
        status,
        not_forwarded: nothing_sent,
        response_bytes: 0,
        details: String::new(),
    };
    let first = async |ledger: &Ledger, name: &str| {
        ledger.spent(&hash(name)).await.unwrap().unwrap().outcome
    };
    for (name, status, nothing_sent, outcome) in [
        ("a", 200, false, FirstUse::Forwarded(200)),
        ("b", 0, false, FirstUse::Unknown),
        ("c", 0, true, FirstUse::NotForwarded),
        ("d", 503, true, FirstUse::Forwarded(503)),
    ] {
        ledger
            .commit(told(name, status, nothing_sent))
            .await
            .unwrap();
        assert_eq!(first(&ledger, name).await, outcome, "{name}");
        // Not even when the first one could not tell.
        for again in [told(name, 500, false), told(name, 0, true)] {
            assert_eq!(ledger.commit(again).await, Err(Refused::AttemptKnown));
        }
        assert_eq!(first(&ledger, name).await, outcome, "{name}");
    }
    let unknown = Err(Refused::NotOutstanding(None));
    let entries = rig.head(&ledger).await.0;
    assert_eq!(ledger.commit(told("nobody", 200, false)).await, unknown);
    assert_eq!(
        rig.head(&ledger).await.0,
        entries,
        "a proxy cannot fill the log"
    );

    // An answer may take longer than its token is remembered.
    rig.clock.set(START + 600_000);
    ledger.commit(note("config", 0)).await.unwrap();
    assert_eq!(ledger.spent(&hash("slow")).await.unwrap(), None);
    ledger.commit(told("slow", 200, false)).await.unwrap();
    assert_eq!(ledger.commit(told("slow", 200, false)).await, unknown);

    // But not than the epoch.
    ledger = rig.next_epoch(ledger, Limits::default()).await;
    assert_eq!(ledger.commit(told("old", 200, false)).await, unknown);
    let bodies: Vec<_> = rig
        .lines(&ledger)
        .await
        .into_iter()
        .filter(|line| line.kind == "outcome")
        .map(|line| (line.body.get("not_forwarded").cloned(), line.body))
        .collect();
    assert_eq!(bodies.len(), 5);
    let said = |n: usize| bodies[n].0.as_ref().and_then(serde_json::Value::as_bool);
    assert_eq!([said(0), said(1), said(2)], [None, None, Some(true)]);
}

async fn followers_of_approvals_hear_of_nothing_else(rig: Rig) {
    let ledger = rig.open().await;
    let mut follower = ledger.subscribe_approvals();
    let mut heard = async |command: Command| {
        // Whatever the last command may still make it hear of.
        rig.settle().await;
        follower.borrow_and_update();
        let index = ledger.commit(command).await.unwrap().index;
        let changed = follower.has_changed().unwrap();
        if let (true, Some(index)) = (changed, index) {
            assert_eq!(*follower.borrow_and_update(), index + 1);
        }
        changed
    };
    let d = |n: u8| [n; 32];
    for name in ["a", "b", "c", "d", "e"] {
        assert!(!heard(issue(token(name))).await);
    }
    assert!(!heard(note("config", 0)).await);
    assert!(!heard(allow("a", "a", None)).await);
    assert!(!heard(outcome("a", 200)).await);
    assert!(heard(hold("b", "b", approval("1", d(1)))).await, "opened");
    assert!(heard(hold("c", "c", approval("2", d(1)))).await, "joined");
    assert!(heard(answer("1", d(1), true)).await, "decided");
    assert!(heard(allow("b", "b", Some(("1", d(1))))).await, "consumed");
    assert!(heard(deny("c", "c")).await, "a held one spent");
    assert!(heard(hold("d", "d", approval("3", d(3)))).await);
    assert!(heard(lapse("d", "d")).await, "lapsed");
    assert!(heard(hold("e", "e", approval("4", d(4)))).await);
    let overdue = Command::LapseOverdue {
        held_before_ms: START + 1,
    };
    assert!(heard(overdue).await, "swept");
    rig.clock.set(START + 900_000);
    assert!(heard(Command::ExpireApprovals).await, "expired");
}

async fn the_approvers_of_each_rule_survive(rig: Rig) {
    let ledger = rig.open().await;
    ledger.commit(issue(token("a"))).await.unwrap();
    let mut wanted = approval("apr", [1; 32]);
    wanted.rules = vec!["two".into(), "one".into()];
    wanted.approver_sets = vec![vec!["ops".into(), "board".into()], vec!["board".into()]];
    ledger.commit(hold("a", "a", wanted.clone())).await.unwrap();
    assert_eq!(ledger.approval("apr").unwrap(), wanted);
    ledger.shutdown().await;
    assert_eq!(rig.open().await.approval("apr").unwrap(), wanted);
}
