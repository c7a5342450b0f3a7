//! The registry's pages: what they show, to whom, and what their forms do.

use std::sync::atomic::Ordering;

use ledger::model::{AgentChange, AgentRecord, AgentState, Rights, Stop, Target, User};

use super::*;

const MINUTE: Millis = 60_000;

fn id(name: &str) -> String {
    format!("spiffe://writ.example/agent/{name}")
}

fn path(name: &str) -> String {
    format!("/agents/spiffe%3A%2F%2Fwrit.example%2Fagent%2F{name}")
}

fn record(name: &str, owner: &str, state: AgentState) -> AgentRecord {
    AgentRecord {
        agent: id(name),
        owner: owner.to_owned(),
        purpose: String::new(),
        environment: String::new(),
        state,
        created_ms: NOW - 60 * MINUTE,
        changed_ms: NOW - 30 * MINUTE,
        changed_by: "config".to_owned(),
        why: String::new(),
        expires_ms: None,
        void_ms: 0,
    }
}

fn rights(records: impl IntoIterator<Item = AgentRecord>) -> Arc<Rights> {
    let mut rights = Rights::default();
    for record in records {
        let known = Arc::new(record);
        rights.agents.insert(known.agent.clone(), known);
    }
    Arc::new(rights)
}

fn world(records: impl IntoIterator<Item = AgentRecord>) -> World {
    let world = World::new();
    *lock(&world.desk.rights) = rights(records);
    world
}

/// The agents that a page lists, by the last part of their names.
fn listed(page: &str) -> Vec<&str> {
    let rows = page.split("<a href=\"/agents/").skip(1);
    let ids = rows.filter_map(|row| row.split_once('"'));
    let names = ids.filter_map(|(id, _)| id.rsplit_once("%2F"));
    names.map(|(_, name)| name).collect()
}

#[tokio::test]
async fn agents_are_found_by_state_owner_and_text() {
    let mut ended = record("ended", "ops", AgentState::Active);
    ended.expires_ms = Some(NOW);
    let mut described = record("described", "ops", AgentState::Suspended);
    described.purpose = "Reads the PAYROLL".to_owned();
    described.environment = "staging".to_owned();
    let world = world([
        record("a", "team", AgentState::Active),
        record("gone", "team", AgentState::Decommissioned),
        ended,
        described,
    ]);
    *lock(&world.desk.discovered) = vec![(id("stranger"), NOW)];
    let (cookie, _) = world.sign_in().await;
    let table: &[(&str, &[&str])] = &[
        ("", &["a", "described", "ended", "gone", "stranger"]),
        (
            "?state=&owner=&text=&page=1",
            &["a", "described", "ended", "gone", "stranger"],
        ),
        ("?state=active", &["a"]),
        ("?state=expired", &["ended"]),
        ("?state=suspended", &["described"]),
        ("?state=decommissioned", &["gone"]),
        ("?state=discovered", &["stranger"]),
        ("?owner=team", &["a", "gone"]),
        ("?owner=tea", &[]),
        ("?owner=team&state=active", &["a"]),
        ("?text=payroll", &["described"]),
        ("?text=STAGING", &["described"]),
        ("?text=agent/stra", &["stranger"]),
        ("?text=+ops+", &["described", "ended"]),
        ("?text=nothing", &[]),
        ("?page=2", &[]),
    ];
    for (query, wanted) in table {
        let page = world.get(&format!("/agents{query}"), &cookie).await;
        assert_eq!(page.status, StatusCode::OK, "{query}");
        assert_eq!(listed(&page.body), *wanted, "{query}");
        let none = page.body.contains("No agent is here that fits.");
        assert_eq!(none, wanted.is_empty(), "{query}");
    }
    let long = format!("?text={}", "x".repeat(257));
    let owner = format!("?owner={}", "x".repeat(257));
    for (query, said) in [
        ("?state=paused", "is not one that agents can have"),
        ("?page=0", "is not a number from 1 on"),
        ("?page=x", "is not a number from 1 on"),
        ("?state=a&state=b", "may be there once"),
        (&long, "is longer than 256 letters"),
        (&owner, "is longer than 256 letters"),
    ] {
        let page = world.get(&format!("/agents{query}"), &cookie).await;
        assert_eq!(page.status, StatusCode::BAD_REQUEST, "{query}");
        assert!(page.body.contains(said), "{query}: {}", page.body);
    }
}

#[tokio::test]
async fn an_empty_registry_says_what_to_do() {
    let world = world([]);
    let (cookie, _) = world.sign_in().await;
    let page = world.get("/agents", &cookie).await;
    assert!(page.body.contains("writ agents set"), "{}", page.body);
}

#[tokio::test]
async fn a_hundred_thousand_agents_come_in_pages_that_keep_the_question() {
    let name = |n: usize| format!("{n:06}");
    let world = world((0..100_000).map(|n| record(&name(n), "team", AgentState::Active)));
    let (cookie, _) = world.sign_in().await;
    let page = world
        .get("/agents?owner=team&text=agent%2F0", &cookie)
        .await;
    assert_eq!(listed(&page.body).len(), 50);
    assert!(page.body.contains("1 to 50 of 100000"), "{}", page.body);
    let next = "/agents?owner=team&amp;text=agent%2F0&amp;page=2";
    let next_decoded = "/agents?owner=team&#38;text=agent%2F0&#38;page=2";
    assert!(
        page.body.contains(next) || page.body.contains(next_decoded),
        "{}",
        page.body
    );
    assert!(!page.body.contains(">Before<"));
    let last = world.get("/agents?page=2000", &cookie).await;
    assert_eq!(listed(&last.body).last().copied(), Some("099999"));
    assert!(last.body.contains(">Before<") && !last.body.contains(">After<"));
    assert!(page.body.len() < 100_000, "{}", page.body.len());
}

#[tokio::test]
async fn one_agent_is_shown_whole_and_what_others_wrote_as_data() {
    const NASTY: &str = "<script>alert(1)</script>\u{202e}";
    let mut known = record("a", "team<b>", AgentState::Active);
    known.purpose = NASTY.to_owned();
    known.environment = "\"><img src=x onerror=alert(1)>".to_owned();
    known.why = "'{{7*7}}'".to_owned();
    known.expires_ms = Some(NOW + MINUTE);
    let world = world([known]);
    let stop = |target: Target, lifted| {
        let stop = Stop {
            target: target.clone(),
            at_ms: NOW - MINUTE,
            by: "operator".to_owned(),
            why: NASTY.to_owned(),
            until_ms: None,
            lift_asked: None,
            lifted,
        };
        (target, Arc::new(stop))
    };
    let user = User {
        issuer: "https://id.example".to_owned(),
        subject: "maria".to_owned(),
    };
    {
        let mut rights = lock(&world.desk.rights);
        let agent = id("a");
        Arc::make_mut(&mut rights).stops.extend([
            stop(Target::Owner("team<b>".to_owned()), None),
            stop(
                Target::Delegation {
                    user: user.clone(),
                    agent,
                },
                Some(("chair".to_owned(), NOW)),
            ),
            stop(Target::User(user), None),
            stop(Target::Agent(id("b")), None),
        ]);
    }
    lock(&world.desk.seen).insert(id("a"), NOW - 5 * MINUTE);
    let (cookie, _) = world.sign_in().await;
    let page = world.get(&path("a"), &cookie).await;
    assert_eq!(page.status, StatusCode::OK);
    let body = &page.body;
    for shown in [
        "22 Nov 2026, 11:55:05 UTC, 5 min ago",
        "all agents of its owner",
        "what it does for a user",
        "maria of https://id.example",
        "what was given before stays void",
        "22 Nov 2026, 12:01:05 UTC",
        "team&#60;b&#62;",
    ] {
        assert!(body.contains(shown), "{shown}: {body}");
    }
    assert_eq!(
        body.matches("class=\"state denied\">Stopped").count(),
        1,
        "{body}"
    );
    let list = world.get("/agents", &cookie).await;
    for (page, body) in [("one", body), ("list", &list.body)] {
        for markup in ["<script>alert", "<img src=x", "<b>", "\u{202e}"] {
            assert!(!body.contains(markup), "{page}: {markup}");
        }
        assert!(body.contains("U+202E"), "{page}");
    }
}

#[tokio::test]
async fn only_what_may_be_is_offered_and_only_to_who_may() {
    let states = [
        AgentState::Active,
        AgentState::Suspended,
        AgentState::Decommissioned,
    ];
    let world = world(states.map(|state| record(state.as_str(), "team", state)));
    *lock(&world.desk.discovered) = vec![(id("discovered"), NOW)];
    let (admin, _) = world.sign_in().await;
    let secret = world.logins.mint_for("chair", NOW);
    let (other, _) = world.sign_in_with(&secret).await;
    let table: &[(&str, &[&str])] = &[
        ("discovered", &["active", "decommissioned"]),
        ("active", &["suspended", "decommissioned"]),
        ("suspended", &["active", "decommissioned"]),
        ("decommissioned", &[]),
    ];
    for (name, wanted) in table {
        for to in ["discovered", "active", "suspended", "decommissioned"] {
            let change = format!("{}/change?to={to}", path(name));
            let offered = wanted.contains(&to);
            let page = world.get(&path(name), &admin).await;
            assert_eq!(
                page.body.contains(&change),
                offered,
                "{name} {to}: {}",
                page.body
            );
            let asked = world.get(&change, &admin).await.status;
            let expected = if offered {
                StatusCode::OK
            } else {
                StatusCode::CONFLICT
            };
            assert_eq!(asked, expected, "{name} {to}");
            let page = world.get(&path(name), &other).await;
            assert!(!page.body.contains("/change"), "{name}: {}", page.body);
            assert_eq!(
                world.get(&change, &other).await.status,
                StatusCode::FORBIDDEN
            );
        }
    }
    assert!(
        lock(&world.desk.changed).is_empty(),
        "a GET changes nothing"
    );
    let nobody = world.get(&path("active"), "").await;
    assert_eq!(
        (nobody.status, location(&nobody)),
        (StatusCode::SEE_OTHER, "/login")
    );
    assert_eq!(
        world.get(&path("none"), &admin).await.status,
        StatusCode::NOT_FOUND
    );
}

#[tokio::test]
async fn a_form_changes_what_its_page_showed_and_nothing_else() {
    let world = world([record("a", "team", AgentState::Active)]);
    *lock(&world.desk.discovered) = vec![(id("new"), NOW)];
    let (cookie, csrf) = world.sign_in().await;
    let post = async |name: &str, cookie: &str, fields: &str| {
        let with = With::form(fields)
            .header("cookie", cookie)
            .header("origin", ISSUER);
        world.post(&format!("{}/change", path(name)), with).await
    };
    let own = format!("csrf={csrf}");
    let at = format!("changed_ms={}", NOW - 30 * MINUTE);
    let from = |rest: &str| format!("{own}&{at}&from={rest}");
    let long = from(&format!("active&to=suspended&why={}", "y".repeat(257)));
    let suspended = "from=active&to=suspended";
    let earlier = NOW - 31 * MINUTE;
    let refused: &[(&str, &str, &str, u16)] = &[
        ("a", "", &from("active&to=suspended"), 401),
        ("a", &cookie, &format!("csrf=x&{at}&{suspended}"), 403),
        ("a", &cookie, &from("suspended&to=active"), 409),
        ("a", &cookie, &from("active&to=active"), 409),
        ("a", &cookie, &from("active&to=discovered"), 409),
        // It stands there again, by another way than it did.
        (
            "a",
            &cookie,
            &format!("{own}&changed_ms={earlier}&{suspended}"),
            409,
        ),
        (
            "a",
            &cookie,
            &format!("{own}&changed_ms=0&{suspended}"),
            409,
        ),
        ("new", &cookie, &from("discovered&to=active&owner=t"), 409),
        ("a", &cookie, &format!("{own}&{suspended}"), 422),
        ("a", &cookie, &from("active&to=gone"), 422),
        ("a", &cookie, &from("active&to=decommissioned"), 400),
        ("a", &cookie, &from("active&to=suspended&why=a%0Ab"), 400),
        ("a", &cookie, &long, 400),
        (
            "new",
            &cookie,
            &format!("{own}&changed_ms=0&from=discovered&to=active&owner=+"),
            400,
        ),
        ("none", &cookie, &from("active&to=suspended"), 404),
    ];
    for (name, cookie, fields, status) in refused {
        let answer = post(name, cookie, fields).await;
        assert_eq!(
            answer.status.as_u16(),
            *status,
            "{name} {fields}: {}",
            answer.body
        );
    }
    // One who is signed in and may not.
    let secret = world.logins.mint_for("chair", NOW);
    let (chair, csrf) = world.sign_in_with(&secret).await;
    for (name, fields) in [
        ("a", format!("{at}&from=active&to=suspended")),
        ("a", format!("{at}&from=active&to=decommissioned&sure=yes")),
        (
            "new",
            "changed_ms=0&from=discovered&to=active&owner=chair".to_owned(),
        ),
    ] {
        let answer = post(name, &chair, &format!("csrf={csrf}&{fields}")).await;
        assert_eq!(answer.status, StatusCode::FORBIDDEN, "{name} {fields}");
        assert!(answer.body.contains("You may not change this"), "{fields}");
    }
    let with = With::form(format!("{own}&{at}&from=active&to=suspended")).header("cookie", &cookie);
    let elsewhere = with.header("origin", "https://elsewhere.example");
    let answer = world
        .post(&format!("{}/change", path("a")), elsewhere)
        .await;
    assert_eq!(answer.status, StatusCode::FORBIDDEN);
    assert!(lock(&world.desk.changed).is_empty());

    let done = [
        (
            "a",
            format!("{own}&{at}&from=active&to=suspended&why=a+test&owner=mine"),
        ),
        (
            "a",
            format!("{own}&{at}&from=active&to=decommissioned&sure=yes"),
        ),
        (
            "new",
            format!("{own}&changed_ms=0&from=discovered&to=active&owner=team&environment=lab"),
        ),
    ];
    for (name, fields) in &done {
        let answer = post(name, &cookie, fields).await;
        assert_eq!(
            (answer.status, location(&answer)),
            (StatusCode::SEE_OTHER, &*path(name))
        );
    }
    let change = |name: &str, state, change: AgentChange| {
        let change = AgentChange {
            state: Some(state),
            ..change
        };
        let agent = id(name);
        (RightsChange::Agent { agent, change }, "operator".to_owned())
    };
    let wanted = [
        // A registered agent's owner is not this form's to change.
        change(
            "a",
            AgentState::Suspended,
            AgentChange {
                why: "a test".into(),
                ..AgentChange::default()
            },
        ),
        change("a", AgentState::Decommissioned, AgentChange::default()),
        change(
            "new",
            AgentState::Active,
            AgentChange {
                owner: Some("team".into()),
                environment: Some("lab".into()),
                ..AgentChange::default()
            },
        ),
    ];
    assert_eq!(*lock(&world.desk.changed), wanted);
}

/// Who registers an agent chooses of the owners that there are, and gets no other by a form.
#[tokio::test]
async fn a_form_offers_the_owners_that_exist_and_takes_no_other() {
    let world = world([
        record("a", "team", AgentState::Active),
        record("b", "gone", AgentState::Active),
    ]);
    *lock(&world.desk.discovered) = vec![(id("new"), NOW)];
    let (cookie, csrf) = world.sign_in().await;
    let page = world
        .get(&format!("{}/change?to=active", path("new")), &cookie)
        .await;
    for option in [
        "<option value=\"\">choose one</option>",
        "<option value=\"team\">team</option>",
        "<option value=\"ops &#60;1&#62;\">ops &#60;1&#62;</option>",
    ] {
        assert!(page.body.contains(option), "{option}: {}", page.body);
    }
    let fields = format!("csrf={csrf}&changed_ms=0&from=discovered&to=active&owner=nobody");
    let with = With::form(fields)
        .header("cookie", &cookie)
        .header("origin", ISSUER);
    let answer = world.post(&format!("{}/change", path("new")), with).await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
    assert!(answer.body.contains("No such owner"), "{}", answer.body);
    assert!(lock(&world.desk.changed).is_empty());
    // One that is gone is shown so, and one that is there with where to find it.
    let gone = "not in the config any more";
    let list = world.get("/agents", &cookie).await.body;
    assert_eq!(list.matches(gone).count(), 1, "{list}");
    let one = async |name: &str| world.get(&path(name), &cookie).await.body;
    assert!(one("b").await.contains(gone));
    let a = one("a").await;
    assert!(a.contains("#team") && !a.contains(gone), "{a}");
}

#[tokio::test]
async fn the_interface_has_each_agent_with_when_it_was_seen() {
    let world = world([record("a", "team", AgentState::Active)]);
    *lock(&world.desk.discovered) = vec![(id("new"), NOW)];
    lock(&world.desk.seen).insert(id("a"), NOW);
    world.desk.now.store(NOW + MINUTE, Ordering::SeqCst);
    let session = world.sign_in_by_command_line().await;
    let get = async |path: &str, session: &str| {
        let with = With::default().header("authorization", session);
        world
            .ask(Method::GET, &format!("/api/v1{path}"), with)
            .await
    };
    let one = get(&path("a"), &session).await.json();
    assert_eq!(one["last_seen_at"], "2026-11-22T12:00:05.250Z", "{one}");
    let stranger = get(&path("new"), &session).await.json();
    assert_eq!(
        (&stranger["state"], &stranger["last_seen_at"]),
        (&"discovered".into(), &Value::Null)
    );
    let all = get("/agents", &session).await.json();
    assert_eq!(all["agents"][0], one);
    assert_eq!(
        get(&path("none"), &session).await.status,
        StatusCode::NOT_FOUND
    );
    assert_eq!(
        get(&path("a"), "Session AAAA").await.status,
        StatusCode::UNAUTHORIZED
    );
}
