//! Whose rights are taken away, and for how long, in both stores.

use crate::{
    common::*,
    rig::{Rig, on_both_stores},
};
use ledger::{Ledger, model::*};

on_both_stores! {
    a_user_is_stopped_and_what_one_agent_does_for_one,
    whoevers_registration_ends_gets_nothing_from_then_on,
    what_was_given_before_a_stop_is_void_when_that_is_lifted,
    families_are_ended_when_agents_have_no_room_left_and_people_have_the_last,
}

const CHILD: &str = "spiffe://writ.example/agent/child";
const D: Hash = [0xd2; 32];

fn user(subject: &str) -> User {
    User {
        issuer: "https://idp.example".into(),
        subject: subject.into(),
    }
}

/// A token of this agent for this user, in this chain.
fn acting(name: &str, agent: &str, subject: Option<&str>, chain: &[&str]) -> TokenRecord {
    TokenRecord {
        agent: agent.into(),
        user: subject.map(user),
        chain: chain.iter().map(|it| (*it).to_owned()).collect(),
        ..token(name)
    }
}

fn stop(target: &Target) -> Command {
    Command::Stop {
        target: target.clone(),
        by: "ann".into(),
        why: "a test".into(),
        until_ms: None,
        stopper: Stopper::Person,
    }
}

fn lift(target: &Target) -> Command {
    Command::Lift {
        target: target.clone(),
        by: "ann".into(),
    }
}

/// The same subject by another issuer is somebody else.
fn elsewhere(name: &str) -> TokenRecord {
    TokenRecord {
        user: Some(User {
            issuer: "https://other.example".into(),
            ..user("ann")
        }),
        ..token(name)
    }
}

async fn a_user_is_stopped_and_what_one_agent_does_for_one(rig: Rig) {
    let ledger = rig.open().await;
    let delegation = Target::Delegation {
        user: user("ann"),
        agent: AGENT.into(),
    };
    let all = |part: &str| {
        let name = |what: &str| format!("{part} {what}");
        vec![
            ("delegation", acting(&name("it"), AGENT, Some("ann"), &[])),
            (
                "delegation",
                acting(&name("below"), CHILD, Some("ann"), &[CHILD, AGENT]),
            ),
            ("user", acting(&name("another"), CHILD, Some("ann"), &[])),
            ("", acting(&name("for another"), AGENT, Some("bob"), &[])),
            ("", acting(&name("for nobody"), AGENT, None, &[])),
            ("", elsewhere(&name("elsewhere"))),
        ]
    };
    for (target, covers) in [
        (delegation, ["delegation", "delegation"]),
        (Target::User(user("ann")), ["delegation", "user"]),
    ] {
        let kind = target.kind();
        let is_covered = |whose: &str| covers.contains(&whose);
        let had = all(&format!("had before {kind}"));
        for (_, token) in &had {
            ledger.commit(issue(token.clone())).await.unwrap();
        }
        rig.clock.set(ledger.now() + 1);
        ledger.commit(stop(&target)).await.unwrap();
        let stopped = Err(Refused::Stopped(kind));
        for (at, (whose, token)) in had.iter().enumerate() {
            let hash = token.token_hash;
            let command = allowing(hash, &format!("{kind} {at}"));
            match is_covered(whose) {
                true => assert_eq!(ledger.commit(command).await, stopped, "{}", token.jti),
                false => drop(ledger.commit(command).await.unwrap()),
            }
        }
        for (whose, token) in all(&format!("asked during {kind}")) {
            match is_covered(whose) {
                true => assert_eq!(ledger.commit(issue(token)).await, stopped),
                false => drop(ledger.commit(issue(token)).await.unwrap()),
            }
        }
        rig.clock.set(ledger.now() + 1);
        ledger.commit(lift(&target)).await.unwrap();
        for (at, (whose, token)) in had.iter().enumerate() {
            if is_covered(whose) {
                let command = allowing(token.token_hash, &format!("{kind} {at} again"));
                assert_eq!(ledger.commit(command).await, stopped, "{}", token.jti);
            }
        }
        rig.clock.set(ledger.now() + 1);
        for (_, token) in all(&format!("asked after {kind}")) {
            ledger.commit(issue(token)).await.unwrap();
        }
    }
}

fn allowing(token: Hash, attempt: &str) -> Command {
    let mut command = allow("", attempt, None);
    if let Command::Allow { token_hash, .. } = &mut command {
        *token_hash = token;
    }
    command
}

async fn put(ledger: &Ledger, change: AgentChange) {
    let command = Command::PutAgent {
        agent: AGENT.into(),
        change,
        by: "ann".into(),
    };
    ledger.commit(command).await.unwrap();
}

fn ends(at: Millis) -> AgentChange {
    AgentChange {
        owner: Some("team".into()),
        state: Some(AgentState::Active),
        expires_ms: Some(Some(at)),
        ..AgentChange::default()
    }
}

async fn whoevers_registration_ends_gets_nothing_from_then_on(rig: Rig) {
    let ledger = rig.open().await;
    put(&ledger, ends(START + 1_000)).await;
    rig.clock.set(START + 1);
    for name in ["used", "kept", "held", "asked", "renewed"] {
        ledger.commit(issue(token(name))).await.unwrap();
    }
    let below = |name: &str| acting(name, CHILD, None, &[CHILD, AGENT]);
    ledger.commit(issue(below("below"))).await.unwrap();
    let held = hold("held", "1", approval("apr_1", D));
    ledger.commit(held).await.unwrap();

    rig.clock.set(START + 999);
    ledger.commit(allow("used", "2", None)).await.unwrap();
    rig.clock.set(START + 1_000);
    let inactive = Err(Refused::Inactive);
    for command in [
        allow("kept", "3", None),
        allow("below", "4", None),
        issue(token("new")),
        issue(below("new below")),
        hold("asked", "5", approval("apr_2", [1; 32])),
        answer("apr_1", D, true),
    ] {
        assert_eq!(ledger.commit(command).await, inactive);
    }
    ledger.commit(Command::CancelApprovals).await.unwrap();
    let cancelled = ledger.approval("apr_1").unwrap();
    assert_eq!(cancelled.state, ApprovalState::Cancelled);

    // A change of something else gives nothing back; nor does a later end, of what it had.
    let purpose = AgentChange {
        purpose: Some("another".into()),
        ..AgentChange::default()
    };
    put(&ledger, purpose).await;
    assert_eq!(ledger.commit(allow("kept", "6", None)).await, inactive);
    rig.clock.set(START + 2_000);
    put(&ledger, ends(START + 20_000)).await;
    let void = Err(Refused::Stopped("agent"));
    assert_eq!(ledger.commit(allow("kept", "7", None)).await, void);
    rig.clock.set(START + 2_001);
    ledger.commit(issue(token("new"))).await.unwrap();
    ledger.commit(allow("new", "8", None)).await.unwrap();
    // Who is renewed in time loses nothing.
    ledger.commit(issue(token("goes on"))).await.unwrap();
    rig.clock.set(START + 3_000);
    put(&ledger, ends(START + 25_000)).await;
    ledger.commit(allow("goes on", "9", None)).await.unwrap();
}

fn granting(name: &str, kind: GrantKind) -> TokenRecord {
    TokenRecord {
        expires_ms: START + 600_000,
        grant: Some(GrantTerms {
            kind,
            holder: (kind == GrantKind::Delegation).then(|| CHILD.to_owned()),
            scope: Vec::new(),
            depth: 1,
            uses: Some(3),
            deferred: None,
        }),
        ..token(name)
    }
}

/// A token that is got with a grant, by whom that is for.
fn under(grant: &TokenRecord, name: &str) -> Command {
    let holder = grant.grant.as_ref().unwrap().holder.clone();
    let mut command = issue(TokenRecord {
        agent: holder.clone().unwrap_or_else(|| grant.agent.clone()),
        chain: holder.map_or_else(Vec::new, |it| grant.delegated_chain(&it)),
        lineage: grant.heirs(),
        ..token(name)
    });
    if let Command::Issue { under, .. } = &mut command {
        *under = Some(grant.token_hash);
    }
    command
}

async fn what_was_given_before_a_stop_is_void_when_that_is_lifted(rig: Rig) {
    let ledger = rig.open().await;
    put(&ledger, ends(START + 600_000)).await;
    let suspended = |state| AgentChange {
        state: Some(state),
        ..AgentChange::default()
    };
    let agent = Target::Agent(AGENT.into());
    for way in ["stopped", "suspended"] {
        rig.clock.set(ledger.now() + 1);
        let name = |what: &str| format!("{what}, {way}");
        let grants = [
            granting(&name("session"), GrantKind::Session),
            granting(&name("refresh"), GrantKind::Refresh),
            granting(&name("delegation"), GrantKind::Delegation),
        ];
        for grant in &grants {
            ledger.commit(issue(grant.clone())).await.unwrap();
        }
        let digest = hash(&name("digest"));
        let (approved, pending) = (name("apr_yes"), name("apr_open"));
        for (id, digest) in [(&approved, digest), (&pending, hash(&name("open")))] {
            ledger.commit(issue(token(&name(id)))).await.unwrap();
            let held = hold(&name(id), id, approval(id, digest));
            ledger.commit(held).await.unwrap();
        }
        ledger
            .commit(answer(&approved, digest, true))
            .await
            .unwrap();
        rig.clock.set(ledger.now() + 1);
        if way == "stopped" {
            ledger.commit(stop(&agent)).await.unwrap();
            ledger.commit(lift(&agent)).await.unwrap();
        } else {
            put(&ledger, suspended(AgentState::Suspended)).await;
            put(&ledger, suspended(AgentState::Active)).await;
        }
        rig.clock.set(ledger.now() + 1);
        let void = Err(Refused::Stopped("agent"));
        for grant in &grants {
            let got = ledger.commit(under(grant, &name("got"))).await;
            assert_eq!(got, void, "{}", grant.jti);
        }
        // A new token of its own, and the yes that somebody gave before.
        ledger.commit(issue(token(&name("new")))).await.unwrap();
        let used = allow(&name("new"), &name("1"), Some((&approved, digest)));
        let gone = Err(Refused::ApprovalState(Some(ApprovalState::Cancelled)));
        assert_eq!(ledger.commit(used).await, gone);
        let late = answer(&pending, hash(&name("open")), true);
        assert_eq!(ledger.commit(late).await, void);
        // It is no yes any more, and who asks again waits for a person who is asked again.
        assert!(ledger.approved_unused(&digest).is_none());
        for (id, digest) in [(&approved, digest), (&pending, hash(&name("open")))] {
            let (token_name, anew) = (name(&format!("{id} again")), name(&format!("{id} anew")));
            ledger.commit(issue(token(&token_name))).await.unwrap();
            let held = hold(&token_name, &token_name, approval(&anew, digest));
            let waits = ledger.commit(held).await.unwrap().approval.unwrap();
            assert_eq!(waits.id, anew, "{id}");
        }
        let own = allow(&name("new"), &name("2"), None);
        ledger.commit(own).await.unwrap();
        ledger.commit(Command::CancelApprovals).await.unwrap();
        for id in [&approved, &pending] {
            let state = ledger.approval(id).unwrap().state;
            assert_eq!(state, ApprovalState::Cancelled, "{id}");
        }
    }
}

async fn families_are_ended_when_agents_have_no_room_left_and_people_have_the_last(rig: Rig) {
    let limits = Limits {
        stops: 8,
        ..Limits::default()
    };
    let ledger = rig.open_with(limits).await;
    let stop = |n: u8, stopper| Command::Stop {
        target: Target::Token([n; 32]),
        by: AGENT.into(),
        why: String::new(),
        until_ms: Some(START + 60_000),
        stopper,
    };
    let full = Err(Refused::Limit("stops"));
    let mut n = 0;
    for (stopper, room) in [
        (Stopper::Agent, 4),
        (Stopper::Family, 2),
        (Stopper::Person, 2),
    ] {
        for _ in 0..room {
            n += 1;
            ledger.commit(stop(n, stopper)).await.unwrap();
        }
        let more = ledger.commit(stop(n + 1, stopper)).await;
        assert_eq!(more, full, "{stopper:?} at {n}");
    }
    // What is stopped already may be stopped again, and everything at any time.
    for stopper in [Stopper::Agent, Stopper::Family] {
        ledger.commit(stop(1, stopper)).await.unwrap();
    }
    let everything = self::stop(&Target::Everything);
    ledger.commit(everything).await.unwrap();
}
