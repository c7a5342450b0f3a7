//! What each command does, what it refuses, and what it leaves in the journal.

use crate::{
    common::*,
    rig::{Rig, on_both_stores},
};
use ledger::model::*;

on_both_stores! {
    a_token_is_issued_spent_once_and_remembered,
    denying_spends_and_attempts_are_unique,
    a_token_ends_to_the_millisecond_and_time_never_falls,
    a_hold_is_approved_and_released_once,
    approvals_end,
    limits_hold,
    what_may_be_shown_once_is_used_up_by_whatever_it_was_shown_for,
    a_proof_is_one_exchanges_and_brings_it_all_of_its_tokens,
    what_agents_stop_leaves_room_for_what_people_stop,
    what_is_long_is_cut_but_recorded,
    what_cannot_be_recorded_is_refused,
}

const D: Hash = [0xd1; 32];

async fn a_token_is_issued_spent_once_and_remembered(rig: Rig) {
    let ledger = rig.open().await;
    let spent_first = ledger.commit(allow("a", "1", None)).await;
    assert_eq!(
        spent_first,
        Err(Refused::NotOutstanding(None)),
        "absence refuses"
    );

    assert_eq!(
        ledger.commit(issue(token("a"))).await.unwrap().index,
        rig.index(1)
    );
    assert_eq!(
        ledger.commit(issue(token("a"))).await,
        Err(Refused::AttemptKnown)
    );
    // When it was issued is the ledger's to say.
    let issued = TokenRecord {
        issued_ms: ledger.now(),
        ..token("a")
    };
    assert_eq!(
        ledger.token(&hash("a")).await.unwrap().unwrap(),
        (std::sync::Arc::new(issued), TokenState::Issued)
    );

    let committed = ledger.commit(allow("a", "1", None)).await.unwrap();
    assert_eq!(
        (committed.index, committed.time_ms, committed.approval),
        (rig.index(2), START, None)
    );
    assert_eq!(ledger.token(&hash("a")).await.unwrap(), None);
    let first = ledger.spent(&hash("a")).await.unwrap().unwrap();
    assert_eq!(
        (first.outcome, first.request_id.as_str()),
        (FirstUse::Unknown, "req")
    );
    for again in [
        allow("a", "2", None),
        deny("a", "2"),
        hold("a", "2", approval("x", D)),
        lapse("a", "1"),
    ] {
        assert_eq!(
            ledger.commit(again).await,
            Err(Refused::NotOutstanding(Some(first.clone())))
        );
    }
    ledger.commit(outcome("1", 201)).await.unwrap();
    assert_eq!(
        ledger.commit(outcome("1", 500)).await,
        Err(Refused::AttemptKnown)
    );
    assert_eq!(
        ledger.spent(&hash("a")).await.unwrap().unwrap().outcome,
        FirstUse::Forwarded(201)
    );
    assert_eq!(
        ledger.commit(issue(token("a"))).await,
        Err(Refused::AttemptKnown),
        "spent is not issued again"
    );

    let kinds: Vec<String> = rig
        .lines(&ledger)
        .await
        .into_iter()
        .map(|line| line.kind)
        .collect();
    assert_eq!(
        kinds,
        ["epoch", "issue", "allow", "outcome"],
        "refusals write nothing"
    );
    let (entries, head) = rig.head(&ledger).await;
    assert!(rig.verify(Some((entries, head))).await.whole);
}

async fn denying_spends_and_attempts_are_unique(rig: Rig) {
    let ledger = rig.open().await;
    for name in ["a", "b"] {
        ledger.commit(issue(token(name))).await.unwrap();
    }
    ledger.commit(deny("a", "1")).await.unwrap();
    assert_eq!(
        ledger.spent(&hash("a")).await.unwrap().unwrap().outcome,
        FirstUse::Refused
    );
    assert_eq!(
        ledger.commit(outcome("1", 200)).await,
        Err(Refused::AttemptKnown),
        "a denial has no outcome"
    );
    for same in [
        allow("b", "1", None),
        deny("b", "1"),
        hold("b", "1", approval("x", D)),
    ] {
        assert_eq!(ledger.commit(same).await, Err(Refused::AttemptKnown));
    }
    assert!(
        ledger.token(&hash("b")).await.unwrap().is_some(),
        "a refusal spends nothing"
    );
}

async fn a_token_ends_to_the_millisecond_and_time_never_falls(rig: Rig) {
    let ledger = rig.open().await;
    for name in ["a", "b", "c"] {
        ledger.commit(issue(token(name))).await.unwrap();
    }
    rig.clock.set(START + 29_999);
    ledger.commit(allow("a", "1", None)).await.unwrap();
    rig.clock.set(START + 30_000);
    for late in [
        allow("b", "2", None),
        deny("b", "2"),
        hold("b", "2", approval("x", D)),
        issue(token("d")),
    ] {
        assert_eq!(ledger.commit(late).await, Err(Refused::TokenExpired));
    }
    let late = ledger.commit(note("config", 0)).await.unwrap();
    rig.clock.set(START);
    assert_eq!(
        ledger.now(),
        START + 30_000,
        "ledger time is max(last, now)"
    );
    assert_eq!(
        ledger.commit(allow("b", "2", None)).await,
        Err(Refused::TokenExpired),
        "a clock step gives nothing back"
    );
    assert_eq!(
        ledger.commit(note("config", 1)).await.unwrap().time_ms,
        late.time_ms
    );
    // Long past their end, tokens and spent records are forgotten, and absence refuses.
    rig.clock.set(START + 60_000);
    ledger.commit(note("config", 2)).await.unwrap();
    assert_eq!(
        (
            ledger.token(&hash("b")).await.unwrap(),
            ledger.spent(&hash("a")).await.unwrap()
        ),
        (None, None)
    );
    assert_eq!(
        ledger.commit(allow("a", "1", None)).await,
        Err(Refused::NotOutstanding(None))
    );
}

async fn a_hold_is_approved_and_released_once(rig: Rig) {
    let ledger = rig.open().await;
    for name in ["a", "b", "c", "d"] {
        ledger.commit(issue(token(name))).await.unwrap();
    }
    let opened = ledger
        .commit(hold("a", "1", approval("apr_1", D)))
        .await
        .unwrap()
        .approval
        .unwrap();
    assert_eq!(
        (opened.id.as_str(), opened.state),
        ("apr_1", ApprovalState::Pending)
    );
    assert_eq!(
        ledger.token(&hash("a")).await.unwrap().unwrap().1,
        TokenState::Held
    );
    let joined = ledger
        .commit(hold("b", "2", approval("apr_2", D)))
        .await
        .unwrap()
        .approval
        .unwrap();
    assert_eq!(joined.id, "apr_1", "an equal request joins");
    assert_eq!(ledger.approval("apr_2"), None);
    let mut other = approval("apr_3", D);
    other.rules = vec!["another rule".into()];
    let own = ledger
        .commit(hold("c", "3", other))
        .await
        .unwrap()
        .approval
        .unwrap();
    assert_eq!(own.id, "apr_3", "other rules ask again");

    assert_eq!(
        ledger.commit(hold("a", "1", approval("x", D))).await,
        Err(Refused::AttemptKnown)
    );
    assert_eq!(
        ledger.commit(allow("a", "9", None)).await,
        Err(Refused::HeldElsewhere)
    );
    assert_eq!(
        ledger.commit(lapse("a", "9")).await,
        Err(Refused::HeldElsewhere)
    );
    let early = ledger.commit(allow("a", "1", Some(("apr_1", D)))).await;
    assert_eq!(
        early,
        Err(Refused::ApprovalState(Some(ApprovalState::Pending)))
    );
    let shown_other = ledger.commit(answer("apr_1", [0; 32], true)).await;
    assert_eq!(
        shown_other,
        Err(Refused::ApprovalDigest),
        "what was shown is what is approved"
    );
    assert_eq!(ledger.approved_unused(&D), None);

    let yes = ledger
        .commit(answer("apr_1", D, true))
        .await
        .unwrap()
        .approval
        .unwrap();
    assert_eq!(
        (yes.state, yes.decided_by.as_deref()),
        (ApprovalState::Approved, Some("alice"))
    );
    assert_eq!(
        (yes.decided_ms, yes.expires_ms),
        (Some(START), START + 600_000)
    );
    assert_eq!(
        ledger.commit(answer("apr_1", D, false)).await,
        Err(Refused::ApprovalState(Some(ApprovalState::Approved)))
    );
    let meanwhile = ledger.commit(hold("d", "4", approval("apr_4", D))).await;
    assert_eq!(
        meanwhile,
        Err(Refused::ApprovalState(Some(ApprovalState::Approved))),
        "evaluate again"
    );
    assert_eq!(ledger.approved_unused(&D).unwrap().id, "apr_1");

    // A held token's end was checked on entry.
    rig.clock.set(START + 31_000);
    let wrong = ledger
        .commit(allow("a", "1", Some(("apr_1", [0; 32]))))
        .await;
    assert_eq!(wrong, Err(Refused::ApprovalDigest));
    let used = ledger
        .commit(allow("a", "1", Some(("apr_1", D))))
        .await
        .unwrap()
        .approval
        .unwrap();
    assert_eq!(used.state, ApprovalState::Consumed);
    let twice = ledger.commit(allow("b", "2", Some(("apr_1", D)))).await;
    assert_eq!(
        twice,
        Err(Refused::ApprovalState(Some(ApprovalState::Consumed))),
        "once"
    );
    assert_eq!(ledger.approved_unused(&D), None);

    ledger.commit(lapse("b", "2")).await.unwrap();
    assert_eq!(
        ledger.spent(&hash("b")).await.unwrap().unwrap().outcome,
        FirstUse::Lapsed
    );
    ledger.commit(deny("c", "3")).await.unwrap();
    assert_eq!(
        ledger.approval("apr_3").unwrap().state,
        ApprovalState::Pending,
        "it stays open"
    );
}

async fn approvals_end(rig: Rig) {
    let ledger = rig.open().await;
    let digests: Vec<Hash> = (0..4).map(|n| [n; 32]).collect();
    for (name, digest) in ["a", "b", "c", "d"].into_iter().zip(&digests) {
        ledger.commit(issue(token(name))).await.unwrap();
        ledger
            .commit(hold(name, name, approval(name, *digest)))
            .await
            .unwrap();
    }
    assert_eq!(
        ledger.commit(Command::ExpireApprovals).await,
        Err(Refused::ApprovalState(None)),
        "none is over"
    );
    ledger.commit(answer("a", digests[0], false)).await.unwrap();
    ledger.commit(answer("b", digests[1], true)).await.unwrap();
    assert_eq!(ledger.approval("a").unwrap().state, ApprovalState::Denied);

    rig.clock.set(START + 600_000);
    let late = ledger
        .commit(allow("b", "b", Some(("b", digests[1]))))
        .await;
    assert_eq!(
        late,
        Err(Refused::ApprovalState(Some(ApprovalState::Expired)))
    );
    assert_eq!(ledger.approved_unused(&digests[1]), None);
    rig.clock.set(START + 900_000);
    let late = ledger.commit(answer("c", digests[2], true)).await;
    assert_eq!(
        late,
        Err(Refused::ApprovalState(Some(ApprovalState::Expired)))
    );
    // One whose time is over is not joined, even before it is marked.
    let mut fresh = token("e");
    fresh.expires_ms = START + 990_000;
    ledger.commit(issue(fresh)).await.unwrap();
    let mut again = approval("c2", digests[2]);
    again.expires_ms = START + 1_900_000;
    let reopened = ledger
        .commit(hold("e", "e", again))
        .await
        .unwrap()
        .approval
        .unwrap();
    assert_eq!(
        (reopened.id.as_str(), reopened.created_ms),
        ("c2", START + 900_000)
    );

    ledger.commit(Command::ExpireApprovals).await.unwrap();
    let state = |id: &str| ledger.approval(id).unwrap().state;
    assert_eq!(
        ["a", "b", "c", "d", "c2"].map(state),
        [
            ApprovalState::Denied,
            ApprovalState::Expired,
            ApprovalState::Expired,
            ApprovalState::Expired,
            ApprovalState::Pending,
        ]
    );
    assert_eq!(
        ledger.commit(Command::ExpireApprovals).await,
        Err(Refused::ApprovalState(None))
    );
    assert_eq!(
        ledger.commit(answer("nobody", D, true)).await,
        Err(Refused::ApprovalState(None))
    );
}

async fn limits_hold(rig: Rig) {
    let limits = Limits {
        outstanding_per_agent: 4,
        held_per_agent: 2,
        held_total: 3,
        keys_per_evidence: 2,
        discovered: 1,
        approvals_open: 2,
        ..Limits::default()
    };
    let ledger = rig.open_with(limits).await;
    let with = |name: &str, agent: &str, jkt: &str| TokenRecord {
        agent: agent.into(),
        jkt: jkt.into(),
        ..token(name)
    };
    let refused = |what| Err(Refused::Limit(what));

    for (name, jkt) in [("a", "k1"), ("b", "k2"), ("c", "k1")] {
        ledger.commit(issue(with(name, "one", jkt))).await.unwrap();
    }
    let third = ledger.commit(issue(with("x", "one", "k3"))).await;
    assert_eq!(third, refused("keys per piece of evidence"));
    ledger.commit(issue(with("d", "one", "k2"))).await.unwrap();
    assert_eq!(
        ledger.commit(issue(with("x", "one", "k1"))).await,
        refused("outstanding tokens per agent")
    );
    for (name, agent) in [("e", "two"), ("f", "two")] {
        ledger.commit(issue(with(name, agent, "k1"))).await.unwrap();
    }

    ledger
        .commit(hold("a", "a", approval("a", [1; 32])))
        .await
        .unwrap();
    ledger
        .commit(hold("b", "b", approval("b", [2; 32])))
        .await
        .unwrap();
    assert_eq!(
        ledger.commit(hold("c", "c", approval("c", [1; 32]))).await,
        refused("held requests per agent")
    );
    assert_eq!(
        ledger.commit(hold("e", "e", approval("e", [3; 32]))).await,
        refused("open approvals")
    );
    ledger
        .commit(hold("e", "e", approval("e", [1; 32])))
        .await
        .unwrap();
    assert_eq!(
        ledger.commit(hold("f", "f", approval("f", [1; 32]))).await,
        refused("held requests")
    );
    ledger.commit(lapse("a", "a")).await.unwrap();
    ledger
        .commit(hold("f", "f", approval("f", [1; 32])))
        .await
        .unwrap();
    ledger.commit(issue(with("g", "one", "k1"))).await.unwrap();

    let discover = |agent: &str| Command::Discover {
        agent: agent.into(),
    };
    ledger.commit(discover("new")).await.unwrap();
    assert_eq!(
        ledger.commit(discover("new")).await,
        Err(Refused::AttemptKnown)
    );
    assert_eq!(
        ledger.commit(discover("newer")).await,
        refused("discovered agents")
    );
    assert_eq!(ledger.discovered(), [("new".to_owned(), START)]);
    assert_eq!(
        ledger.commit(note("issue", 0)).await,
        refused("kinds of notes"),
        "a note cannot pass for a decision"
    );
}

async fn what_is_long_is_cut_but_recorded(rig: Rig) {
    let ledger = rig.open().await;
    let long = format!("/{}", "ü%\"".repeat(4_000));
    for name in ["a", "b"] {
        let mut record = token(name);
        record.action.location.clone_from(&long);
        ledger.commit(issue(record)).await.unwrap();
    }
    let mut facts = request();
    facts.path.clone_from(&long);
    let command = Command::Allow {
        token_hash: hash("a"),
        attempt: "1".into(),
        request: facts,
        policy: PolicyFacts {
            version: "v".into(),
            determining: (0..400).map(|n| format!("rule-{n}")).collect(),
        },
        approval: None,
        attachments: evidence(),
    };
    let (allowed, _) = rig.head(&ledger).await;
    ledger.commit(command).await.unwrap();
    let mut wanted = approval("apr_long", D);
    wanted.action.location.clone_from(&long);
    wanted.reasons = vec!["why ".repeat(500)];
    ledger.commit(hold("b", "2", wanted.clone())).await.unwrap();

    let line = rig
        .lines(&ledger)
        .await
        .remove(usize::try_from(allowed).unwrap());
    let path = line.body.pointer("/request/path").unwrap();
    let digest = audit_hex(long.as_bytes());
    assert_eq!(path["sha256"], digest);
    assert_eq!(path["bytes"], long.len());
    assert!(long.starts_with(path["cut"].as_str().unwrap()));
    let rules = line
        .body
        .pointer("/policy/determining")
        .unwrap()
        .as_array()
        .unwrap();
    assert_eq!(
        (rules.len(), &rules[8]["more"]),
        (9, &serde_json::json!(392))
    );

    // What a human is shown after a restart is whole all the same.
    let before = ledger.approval("apr_long");
    assert_eq!(before, Some(wanted));
    ledger.shutdown().await;
    assert_eq!(rig.open().await.approval("apr_long"), before);
    assert!(rig.verify(None).await.whole);
}

fn audit_hex(bytes: &[u8]) -> String {
    use sha2::Digest;
    hex::encode(sha2::Sha256::digest(bytes))
}

async fn what_cannot_be_recorded_is_refused(rig: Rig) {
    let ledger = rig.open().await;
    ledger.commit(issue(token("a"))).await.unwrap();
    let with = |attachments| Command::Deny {
        token_hash: hash("a"),
        attempt: "1".into(),
        reason: "policy_denied".into(),
        request: request(),
        policy: policy(),
        attachments,
    };
    let big = |len| vec![Evidence::new("proof", &vec![b'x'; len])];
    let many = vec![Evidence::new("proof", &[]); 9];
    let fraction = Command::Note {
        kind: "config",
        body: serde_json::json!({"n": 0.5}),
    };
    let wide = Command::Note {
        kind: "config",
        body: (0..600)
            .map(|n| (n.to_string(), serde_json::json!(n)))
            .collect(),
    };
    let unsafe_integer = Command::Note {
        kind: "config",
        body: serde_json::json!({"n": 9_007_199_254_740_992_u64}),
    };
    let bare = Command::Note {
        kind: "config",
        body: serde_json::json!("text"),
    };
    for command in [
        with(big(128 * 1024 + 1)),
        with(many),
        fraction,
        wide,
        unsafe_integer,
        bare,
    ] {
        assert_eq!(ledger.commit(command).await, Err(Refused::TooLarge));
    }
    if !rig.is_postgres() {
        // No segment would take it.
        let refused = ledger.commit(with(big(SEGMENT))).await;
        assert_eq!(refused, Err(Refused::TooLarge));
    }
    assert!(ledger.token(&hash("a")).await.unwrap().is_some());
    ledger.commit(with(big(16 * 1024))).await.unwrap();
    assert!(rig.verify(None).await.whole);
}

async fn what_may_be_shown_once_is_used_up_by_whatever_it_was_shown_for(rig: Rig) {
    let ledger = rig
        .open_with(Limits {
            evidence_per_agent: 3,
            ..Limits::default()
        })
        .await;
    let piece = |n: u8| EvidenceOf {
        id: [n; 32],
        expires_ms: START + 60_000,
    };
    let present = |n: u8| Command::Present {
        agent: AGENT.into(),
        once: piece(n),
        what: "introspection",
    };
    let issued_for = |name: &str, n: u8| {
        let mut command = issue(token(name));
        if let Command::Issue { once, .. } = &mut command {
            once.push(piece(n));
        }
        command
    };
    ledger.commit(present(1)).await.unwrap();
    assert_eq!(ledger.commit(present(1)).await, Err(Refused::Shown));
    let taken = ledger.commit(issued_for("a", 1)).await;
    assert_eq!(taken, Err(Refused::Shown), "nor for a token");
    ledger.commit(issued_for("a", 2)).await.unwrap();
    assert_eq!(ledger.commit(present(2)).await, Err(Refused::Shown));
    // Three by now: the token's own, and these two.
    let most = Refused::Limit("evidence per agent");
    assert_eq!(ledger.commit(present(4)).await, Err(most));
}

async fn a_proof_is_one_exchanges_and_brings_it_all_of_its_tokens(rig: Rig) {
    let ledger = rig.open().await;
    let by = |name: &str, by: &str| proven(issue(token(name)), [1; 32], by);
    ledger.commit(by("a", "x")).await.unwrap();
    ledger.commit(by("b", "x")).await.unwrap();
    assert_eq!(ledger.commit(by("c", "y")).await, Err(Refused::ProofUsed));
    assert!(ledger.token(&hash("c")).await.unwrap().is_none());
    // Together, as a batch is written.
    let other = |name: &str, by: &str| proven(issue(token(name)), [2; 32], by);
    let (one, two, three) = tokio::join!(
        ledger.commit(other("d", "x")),
        ledger.commit(other("e", "x")),
        ledger.commit(other("f", "x"))
    );
    assert!(one.is_ok() && two.is_ok() && three.is_ok());
    // Nothing else is refused for it, and what was refused used up nothing.
    let stale = |by: &str| {
        let stale = TokenRecord {
            expires_ms: START,
            ..token("g")
        };
        proven(issue(stale), [3; 32], by)
    };
    assert_eq!(ledger.commit(stale("x")).await, Err(Refused::TokenExpired));
    ledger
        .commit(proven(issue(token("h")), [3; 32], "y"))
        .await
        .unwrap();
    // As long as it would be taken, and not when that is over and it may be forgotten.
    for at in [START + PROVEN_MS - 1, START + PROVEN_MS] {
        rig.clock.set(at);
        assert_eq!(ledger.commit(by("i", "z")).await, Err(Refused::ProofUsed));
        ledger.commit(issue(token(&format!("{at}")))).await.unwrap();
    }
    assert!(rig.verify(None).await.whole);
}

async fn what_agents_stop_leaves_room_for_what_people_stop(rig: Rig) {
    let ledger = rig
        .open_with(Limits {
            stops: 4,
            ..Limits::default()
        })
        .await;
    let stop = |target| Command::Stop {
        target,
        by: AGENT.into(),
        why: String::new(),
        until_ms: Some(START + 60_000),
        stopper: Stopper::Agent,
    };
    let one = |n: u8| stop(Target::Token([n; 32]));
    ledger.commit(one(1)).await.unwrap();
    ledger.commit(one(2)).await.unwrap();
    let full = Err(Refused::Limit("stops"));
    assert_eq!(ledger.commit(one(3)).await, full);
    ledger.commit(one(2)).await.unwrap();
    // Whoever stops it again never shortens that, and may make it longer.
    let two = Target::Token([2; 32]);
    for (asked, lasts) in [(1_000, 60_000), (90_000, 90_000)] {
        let again = Command::Stop {
            target: two.clone(),
            by: "somebody else".into(),
            why: String::new(),
            until_ms: Some(START + asked),
            stopper: Stopper::Agent,
        };
        ledger.commit(again).await.unwrap();
        let stop = ledger.rights().stops.get(&two).cloned();
        assert_eq!(stop.unwrap().until_ms, Some(START + lasts));
    }
    for agent in ["a", "b"] {
        ledger
            .commit(stop(Target::Agent(agent.into())))
            .await
            .unwrap();
    }
    let more = ledger.commit(stop(Target::Agent("c".into()))).await;
    assert_eq!(more, full);
    ledger.commit(stop(Target::Everything)).await.unwrap();
}
