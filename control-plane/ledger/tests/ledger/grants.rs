//! Grants: what is got with them, by whom and how often, in both stores.

use crate::{
    common::*,
    rig::{Rig, on_both_stores},
};
use ledger::model::*;

on_both_stores! {
    a_grant_allows_no_request_and_is_shown_as_one,
    a_delegation_brings_as_many_tokens_as_it_says,
    a_refresh_token_is_spent_by_what_follows,
    of_a_session_that_is_its_agents_alone_nothing_is_passed_on,
    a_deferral_brings_its_one_action_once,
    a_person_is_asked_ahead_and_equal_questions_are_one,
    a_stop_of_a_grant_covers_all_that_came_of_it,
    a_stop_of_a_key_covers_what_was_passed_on_to_other_keys,
    grants_leave_room_for_what_they_bring,
    no_grant_takes_anybodys_last_place,
}

const CHILD: &str = "spiffe://writ.example/agent/child";

fn terms(kind: GrantKind) -> GrantTerms {
    GrantTerms {
        kind,
        holder: (kind == GrantKind::Delegation).then(|| CHILD.to_owned()),
        scope: Vec::new(),
        depth: 1,
        uses: (kind != GrantKind::Session).then_some(3),
        deferred: (kind == GrantKind::Deferral).then(|| {
            Box::new(Deferred {
                approval: "apr_1".to_owned(),
                exchange: true,
                content_type: String::new(),
                content_encoding: String::new(),
            })
        }),
    }
}

fn grant(name: &str, kind: GrantKind) -> TokenRecord {
    TokenRecord {
        grant: Some(terms(kind)),
        ..token(name)
    }
}

/// What is got with a grant, by whom it is for.
fn under(grant: &TokenRecord, name: &str, next: Option<TokenRecord>) -> Command {
    let holder = grant.grant.as_ref().unwrap().holder.clone();
    let made = TokenRecord {
        agent: holder.clone().unwrap_or_else(|| grant.agent.clone()),
        chain: holder.map_or_else(Vec::new, |it| grant.delegated_chain(&it)),
        lineage: grant.heirs(),
        ..token(name)
    };
    let mut command = issue(made);
    if let Command::Issue {
        under, next: after, ..
    } = &mut command
    {
        *under = Some(grant.token_hash);
        *after = next;
    }
    command
}

async fn a_grant_allows_no_request_and_is_shown_as_one(rig: Rig) {
    let ledger = rig.open().await;
    let session = grant("session", GrantKind::Session);
    ledger.commit(issue(session.clone())).await.unwrap();
    assert!(ledger.token(&hash("session")).await.unwrap().is_none());
    assert!(ledger.grant(&hash("session")).await.unwrap().is_some());
    for command in [allow("session", "1", None), deny("session", "1")] {
        let refused = ledger.commit(command).await.unwrap_err();
        assert_eq!(refused, Refused::NotOutstanding(None));
    }
    ledger.commit(under(&session, "a", None)).await.unwrap();
    ledger.commit(allow("a", "2", None)).await.unwrap();
    let spent = ledger.spent(&hash("a")).await.unwrap().unwrap();
    assert_eq!(spent.grant, None, "it was none");
    assert!(ledger.grant(&hash("a")).await.unwrap().is_none());
    // A lineage that no grant was shown for, and a grant that is none.
    let bare = TokenRecord {
        lineage: session.heirs(),
        ..token("b")
    };
    assert_eq!(ledger.commit(issue(bare)).await, Err(Refused::NoGrant));
    let none = grant("nothing", GrantKind::Session);
    let refused = ledger.commit(under(&none, "c", None)).await;
    assert_eq!(refused, Err(Refused::NoGrant));
    let of_a_token = ledger.commit(under(&token_as_grant("a2"), "d", None)).await;
    assert_eq!(of_a_token, Err(Refused::NoGrant));
}

fn token_as_grant(name: &str) -> TokenRecord {
    grant(name, GrantKind::Session)
}

async fn a_delegation_brings_as_many_tokens_as_it_says(rig: Rig) {
    let ledger = rig.open().await;
    let delegation = grant("delegation", GrantKind::Delegation);
    ledger.commit(issue(delegation.clone())).await.unwrap();
    // Another agent, and another chain.
    let Command::Issue { token: good, .. } = under(&delegation, "x", None) else {
        panic!("it is an issue")
    };
    for (agent, chain) in [(AGENT, &good.chain), (CHILD, &Vec::new())] {
        let mut spoilt = under(&delegation, "y", None);
        if let Command::Issue { token, .. } = &mut spoilt {
            token.agent = agent.to_owned();
            token.chain.clone_from(chain);
        }
        assert_eq!(ledger.commit(spoilt).await, Err(Refused::NoGrant));
    }
    let tasks: Vec<_> = (0..20)
        .map(|n| {
            let ledger = ledger.clone();
            let command = under(&delegation, &format!("t{n}"), None);
            tokio::spawn(async move { ledger.commit(command).await })
        })
        .collect();
    let mut got = 0;
    for task in tasks {
        match task.await.unwrap() {
            Ok(_) => got += 1,
            Err(refused) => assert_eq!(refused, Refused::Limit(GRANT_USES)),
        }
    }
    assert_eq!(got, 3);
    let left = ledger.grant(&delegation.token_hash).await.unwrap().unwrap();
    assert_eq!(left.grant.as_ref().unwrap().uses, Some(0));
}

async fn a_refresh_token_is_spent_by_what_follows(rig: Rig) {
    let ledger = rig.open().await;
    let first = grant("r0", GrantKind::Refresh);
    ledger.commit(issue(first.clone())).await.unwrap();
    let next = |name: &str, uses| TokenRecord {
        token_hash: hash(name),
        lineage: first.heirs(),
        grant: Some(GrantTerms {
            uses: Some(uses),
            ..terms(GrantKind::Refresh)
        }),
        ..first.clone()
    };
    // As many as it had are not fewer.
    let wide = under(&first, "t", Some(next("wide", 3)));
    assert_eq!(ledger.commit(wide).await, Err(Refused::NoGrant));
    let tasks: Vec<_> = (0..12)
        .map(|n| {
            let ledger = ledger.clone();
            let next = next(&format!("r1-{n}"), 2);
            let command = under(&first, &format!("t{n}"), Some(next));
            tokio::spawn(async move { (n, ledger.commit(command).await) })
        })
        .collect();
    let mut winner = None;
    for task in tasks {
        match task.await.unwrap() {
            (n, Ok(_)) => assert_eq!(winner.replace(n), None, "two of one"),
            (_, Err(refused)) => assert_eq!(refused, Refused::Shown),
        }
    }
    let second = next(&format!("r1-{}", winner.unwrap()), 2);
    // Whoever has its hash alone learns what it was, and of which family.
    let used = ledger.spent(&first.token_hash).await.unwrap().unwrap();
    assert_eq!(
        (used.jti, used.expires_ms),
        (first.jti.clone(), first.expires_ms)
    );
    let of = used.grant.unwrap();
    assert_eq!((of.kind, of.agent.as_str()), (GrantKind::Refresh, AGENT));
    assert!(ledger.grant(&first.token_hash).await.unwrap().is_none());
    let known = ledger.grant(&second.token_hash).await.unwrap().unwrap();
    assert_eq!(known.lineage, first.heirs());
    ledger.commit(under(&second, "u", None)).await.unwrap();
    let again = ledger.commit(under(&second, "v", None)).await;
    assert_eq!(again, Err(Refused::Shown));
}

async fn of_a_session_that_is_its_agents_alone_nothing_is_passed_on(rig: Rig) {
    let ledger = rig.open().await;
    for alone in [false, true] {
        let mut session = grant(&format!("session {alone}"), GrantKind::Session);
        let agent = session.agent.clone();
        session.grant.as_mut().unwrap().holder = alone.then_some(agent);
        ledger.commit(issue(session.clone())).await.unwrap();
        let on = |kind| {
            let mut command = under(&session, &format!("passed on {alone}"), None);
            if let Command::Issue { token, .. } = &mut command {
                token.agent.clone_from(&session.agent);
                token.chain.clear();
                token.grant = Some(terms(kind));
            }
            command
        };
        let passed_on = ledger.commit(on(GrantKind::Delegation)).await.map(drop);
        let wanted = if alone { Err(Refused::NoGrant) } else { Ok(()) };
        assert_eq!(passed_on, wanted);
        // Its agent goes on by it.
        let mut own = under(&session, &format!("its own {alone}"), None);
        if let Command::Issue { token, .. } = &mut own {
            token.agent.clone_from(&session.agent);
            token.chain.clear();
        }
        ledger.commit(own).await.unwrap();
    }
}

async fn a_stop_of_a_grant_covers_all_that_came_of_it(rig: Rig) {
    let ledger = rig.open().await;
    let session = grant("session", GrantKind::Session);
    ledger.commit(issue(session.clone())).await.unwrap();
    let mut passed_on = under(&session, "delegation", None);
    let Command::Issue { token, .. } = &mut passed_on else {
        panic!("it is an issue")
    };
    token.grant = Some(terms(GrantKind::Delegation));
    let delegation = token.clone();
    ledger.commit(passed_on).await.unwrap();
    ledger
        .commit(under(&delegation, "kept", None))
        .await
        .unwrap();
    ledger
        .commit(issue(crate::common::token("own")))
        .await
        .unwrap();
    let stop = Command::Stop {
        target: Target::Token(session.token_hash),
        by: "ann".into(),
        why: String::new(),
        until_ms: None,
        stopper: Stopper::Person,
    };
    ledger.commit(stop).await.unwrap();
    let stopped = Err(Refused::Stopped("token"));
    assert_eq!(ledger.commit(allow("kept", "1", None)).await, stopped);
    assert_eq!(ledger.commit(under(&delegation, "a", None)).await, stopped);
    assert_eq!(ledger.commit(under(&session, "b", None)).await, stopped);
    ledger.commit(allow("own", "2", None)).await.unwrap();
}

async fn a_stop_of_a_key_covers_what_was_passed_on_to_other_keys(rig: Rig) {
    const GRANDCHILD: &str = "spiffe://writ.example/agent/grandchild";
    let ledger = rig.open().await;
    let given = grant("given", GrantKind::Delegation);
    ledger.commit(issue(given.clone())).await.unwrap();
    // Got with a grant, as another one, under a key of its holder's own.
    let make = async |from: Option<&TokenRecord>, name: &str, terms: GrantTerms| {
        let mut command = match from {
            Some(from) => under(from, name, None),
            None => issue(token(name)),
        };
        let Command::Issue { token, .. } = &mut command else {
            panic!("it is an issue")
        };
        (token.agent, token.jkt) = (CHILD.into(), "the child's".into());
        token.grant = Some(terms);
        let made = token.clone();
        ledger.commit(command).await.unwrap();
        made
    };
    let to_grandchild = GrantTerms {
        holder: Some(GRANDCHILD.into()),
        depth: 0,
        ..terms(GrantKind::Delegation)
    };
    let passed_on = make(Some(&given), "passed on", to_grandchild.clone()).await;
    let code = make(Some(&given), "code", terms(GrantKind::Deferral)).await;
    let own = make(None, "own", to_grandchild).await;
    let bring = async |from: &TokenRecord, name: &str| {
        let mut command = under(from, name, None);
        if let Command::Issue { token, .. } = &mut command {
            let own = from.agent == token.agent;
            if own {
                (token.jkt, token.chain) = (from.jkt.clone(), from.chain.clone());
            } else {
                token.jkt = "the grandchild's".into();
            }
        }
        ledger.commit(command).await.map(|_| ())
    };
    assert_eq!(bring(&passed_on, "a").await, Ok(()));
    let target = Target::Key(given.jkt.clone());
    let stop = Command::Stop {
        target: target.clone(),
        by: "ann".into(),
        why: String::new(),
        until_ms: None,
        stopper: Stopper::Person,
    };
    ledger.commit(stop).await.unwrap();
    let stopped = Err(Refused::Stopped("key"));
    assert_eq!(bring(&passed_on, "b").await, stopped);
    assert_eq!(bring(&code, "c").await, stopped);
    assert_eq!(bring(&own, "d").await, Ok(()), "it came from another key");
    // What was given before stays void.
    let by = "ann".into();
    ledger.commit(Command::Lift { target, by }).await.unwrap();
    assert_eq!(bring(&passed_on, "e").await, stopped);
    assert_eq!(bring(&code, "f").await, stopped);
}

/// Grants last: an agent that takes one after the other is not locked out by that.
async fn grants_leave_room_for_what_they_bring(rig: Rig) {
    let limits = Limits {
        outstanding_per_agent: 8,
        ..Limits::default()
    };
    let ledger = rig.open_with(limits).await;
    for n in 0..4 {
        let session = grant(&format!("session {n}"), GrantKind::Session);
        ledger.commit(issue(session)).await.unwrap();
    }
    let one_more = grant("one more", GrantKind::Session);
    let refused = ledger.commit(issue(one_more.clone())).await.unwrap_err();
    assert!(matches!(refused, Refused::Limit(what) if what.starts_with("grants")));
    let session = grant("session 0", GrantKind::Session);
    for n in 0..4 {
        let name = format!("token {n}");
        ledger.commit(under(&session, &name, None)).await.unwrap();
    }
    let full = ledger.commit(under(&session, "token 4", None)).await;
    assert_eq!(full, Err(Refused::Limit("outstanding tokens per agent")));
    // What was spent makes room for capabilities, and for grants only below the half.
    for n in 0..4 {
        let name = format!("token {n}");
        ledger.commit(allow(&name, &name, None)).await.unwrap();
    }
    ledger.commit(under(&session, "again", None)).await.unwrap();
    assert!(ledger.commit(issue(one_more)).await.is_err());
}

/// Nothing could be got with it, and it lasts.
async fn no_grant_takes_anybodys_last_place(rig: Rig) {
    let limits = Limits {
        outstanding_per_agent: 1,
        ..Limits::default()
    };
    let ledger = rig.open_with(limits).await;
    for kind in [GrantKind::Session, GrantKind::Refresh, GrantKind::Deferral] {
        let refused = ledger.commit(issue(grant("first", kind))).await;
        let refused = refused.unwrap_err();
        assert!(matches!(refused, Refused::Limit(what) if what.starts_with("grants")));
    }
    ledger.commit(issue(token("one"))).await.unwrap();
}

/// Attack E06's kind: over two replicas so many count as there are uses, and of one refresh
/// token one.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_replicas_count_together() {
    let Some(rig) = Rig::postgres().await else {
        return;
    };
    let replicas = [rig.open().await, rig.open().await];
    let delegation = grant("delegation", GrantKind::Delegation);
    let refresh = grant("refresh", GrantKind::Refresh);
    for made in [&delegation, &refresh] {
        replicas[0].commit(issue(made.clone())).await.unwrap();
    }
    let tasks = (0..40).map(|n| {
        let (shown, ledger) = match n % 4 {
            0 | 1 => (&delegation, replicas[n % 2].clone()),
            _ => (&refresh, replicas[n % 2].clone()),
        };
        let command = under(shown, &format!("t{n}"), None);
        let kind = shown.grant.as_ref().unwrap().kind;
        tokio::spawn(async move { (kind, ledger.commit(command).await.is_ok()) })
    });
    let mut got = [0, 0];
    for task in tasks.collect::<Vec<_>>() {
        let (kind, ok) = task.await.unwrap();
        got[usize::from(kind == GrantKind::Refresh)] += usize::from(ok);
    }
    assert_eq!(got, [3, 1]);
    let head = rig.head(&replicas[1]).await;
    assert!(rig.verify(Some(head)).await.whole);
}

async fn a_deferral_brings_its_one_action_once(rig: Rig) {
    let ledger = rig.open().await;
    let session = grant("session", GrantKind::Session);
    ledger.commit(issue(session.clone())).await.unwrap();
    // Got in a session, from which alone what it brings comes.
    let Command::Issue {
        token: mut code, ..
    } = under(&session, "code", None)
    else {
        panic!("it is an issue")
    };
    code.grant = Some(terms(GrantKind::Deferral));
    let mut asked = issue(code.clone());
    if let Command::Issue { under, .. } = &mut asked {
        *under = Some(session.token_hash);
    }
    ledger.commit(asked).await.unwrap();
    assert_eq!(code.heirs(), session.heirs());
    let refused = ledger.commit(allow("code", "1", None)).await.unwrap_err();
    assert_eq!(refused, Refused::NotOutstanding(None));

    type Spoil = fn(&mut TokenRecord);
    let spoils: [(&str, Spoil); 5] = [
        ("another action", |it| it.action.method = "PUT".into()),
        ("another key", |it| it.jkt = "other".into()),
        ("another agent", |it| it.agent = CHILD.into()),
        ("longer", |it| it.expires_ms += 1),
        ("a grant", |it| {
            it.grant = Some(terms(GrantKind::Delegation))
        }),
    ];
    for (what, spoil) in spoils {
        let mut spoilt = under(&code, what, None);
        if let Command::Issue { token, .. } = &mut spoilt {
            spoil(token);
        }
        assert_eq!(ledger.commit(spoilt).await, Err(Refused::NoGrant), "{what}");
    }
    let next = grant("next", GrantKind::Refresh);
    let refreshed = ledger.commit(under(&code, "x", Some(next))).await;
    assert_eq!(refreshed, Err(Refused::NoGrant));

    let race = (0..8).map(|n| {
        let (ledger, command) = (ledger.clone(), under(&code, &format!("t{n}"), None));
        tokio::spawn(async move { ledger.commit(command).await })
    });
    let mut got = 0;
    for tried in race.collect::<Vec<_>>() {
        match tried.await.unwrap() {
            Ok(_) => got += 1,
            Err(refused) => assert_eq!(refused, Refused::Shown),
        }
    }
    assert_eq!(got, 1);
    assert!(ledger.grant(&hash("code")).await.unwrap().is_none());
    let used = ledger.spent(&hash("code")).await.unwrap().unwrap();
    assert_eq!(used.jti, code.jti);
    assert_eq!(used.grant.unwrap().kind, GrantKind::Deferral);
}

fn ask(id: &str, digest: Hash) -> Command {
    Command::Ask {
        request_id: "req_1".into(),
        policy: policy(),
        approval: approval(id, digest),
        attachments: evidence(),
    }
}

async fn a_person_is_asked_ahead_and_equal_questions_are_one(rig: Rig) {
    let ledger = rig.open().await;
    let digest = [7; 32];
    let shown = async |command| {
        let committed = ledger.commit(command).await?;
        Ok::<_, Refused>(committed.approval.unwrap().id)
    };
    assert_eq!(shown(ask("apr_a", digest)).await.unwrap(), "apr_a");
    assert_eq!(shown(ask("apr_b", digest)).await.unwrap(), "apr_a");
    // A request that is held waits for the same, and nothing was held before.
    ledger.commit(issue(token("t"))).await.unwrap();
    assert_eq!(
        shown(hold("t", "1", approval("apr_c", digest)))
            .await
            .unwrap(),
        "apr_a"
    );
    ledger.commit(answer("apr_a", digest, true)).await.unwrap();
    let refused = shown(ask("apr_d", digest)).await;
    assert_eq!(
        refused,
        Err(Refused::ApprovalState(Some(ApprovalState::Approved)))
    );
    // Long ones are whole after a start too.
    let mut long = ask("apr_long", [8; 32]);
    if let Command::Ask { approval, .. } = &mut long {
        approval.action.location = format!("http://127.0.0.1:8400/{}", "p".repeat(3_900));
    }
    shown(long).await.unwrap();
    let ledger = rig.next_epoch(ledger, Limits::default()).await;
    let found = ledger.approval("apr_long").unwrap();
    assert_eq!(found.action.location.len(), 22 + 3_900);
    // In a database a new epoch is after something was lost.
    if !rig.is_postgres() {
        assert_eq!(found.state, ApprovalState::Pending);
    }

    // Who is stopped asks nobody.
    let stop = Command::Stop {
        target: Target::Agent(AGENT.into()),
        by: "alice".into(),
        why: "why".into(),
        until_ms: None,
        stopper: Stopper::Person,
    };
    ledger.commit(stop).await.unwrap();
    let refused = ledger.commit(ask("apr_e", [9; 32])).await;
    assert!(matches!(refused, Err(Refused::Stopped(_))), "{refused:?}");
}
