//! Delegations: what one agent lets another do.

use serde_json::{Value, json};
use wasm_test::client::{Agent, Answer, DpopKey};
use wasm_test::system::{AGENT, Options, System};
use wasm_test::upstream::REPORT;

use crate::evidence::{Authority, decoded};
use crate::judging::{Attempt, Bench, JWT, Verdict, issued, no, refused};
use crate::plane::Prepared;
use crate::rights::{done, sign_in};
use crate::sessions::for_session;

pub const DELEGATION: &str = "urn:writ:params:oauth:token-type:delegation";
pub const CHILD: &str = "spiffe://writ.example/agent/child";
const GRANDCHILD: &str = "spiffe://writ.example/agent/grandchild";
const STRANGER: &str = "spiffe://writ.example/agent/stranger";

pub const AGENTS: &str = r#"
[[agent]]
spiffe_id = "spiffe://writ.example/agent/demo"
owner = "platform@example.com"
[[agent]]
spiffe_id = "spiffe://writ.example/agent/child"
owner = "platform@example.com"
[[agent]]
spiffe_id = "spiffe://writ.example/agent/grandchild"
owner = "platform@example.com"
[[agent]]
spiffe_id = "spiffe://writ.example/agent/stranger"
owner = "platform@example.com"
"#;

/// Policy under which the first agent may not do what another may, and a stranger nothing
/// for somebody else.
const POLICY: &str = r#"
@id("read")
permit (principal is Writ::Agent, action == Writ::Action::"GET", resource)
when { resource.path like "/files/*" };
@id("not-the-first")
forbid (principal == Writ::Agent::"spiffe://writ.example/agent/demo", action, resource)
when { resource.path == "/files/only-others.txt" };
@id("nobody-for-the-child")
forbid (principal, action, resource)
when { resource.path == "/files/own.txt" && context.delegators.contains("spiffe://writ.example/agent/child") };
"#;

pub async fn start(more: &str) -> Bench {
    let prepared = Prepared::new().with(&format!("{AGENTS}{more}"));
    prepared.write_policy(POLICY);
    Bench::over(prepared.start().await)
}

pub fn svid(bench: &Bench, agent: &str) -> String {
    bench
        .authority
        .svid(agent, &bench.plane.issuer(), &json!({}))
}

pub fn token_of(body: &Value) -> String {
    body["access_token"].as_str().unwrap().to_owned()
}

pub fn evidence(reason: &'static str) -> Verdict {
    no("invalid_request", reason)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_sessions_and_delegations_in_the_config_there_are_none() {
    let bench = start("[token]\nsession_s = 0\ndelegation_s = 0").await;
    refused(
        "a session",
        &bench.send(for_session(&bench)).await,
        no("invalid_target", "action_mismatch"),
    );
    refused(
        "a delegation",
        &bench
            .send(delegating(&bench, &bench.svid(), &json!({})))
            .await,
        evidence("malformed_credentials"),
    );
}

fn element(bench: &Bench, over: &Value) -> Value {
    let mut element = json!({
        "type": "delegation", "delegate": CHILD, "actions": ["GET"],
        "locations": [bench.url("/files/*")],
    });
    let members = element.as_object_mut().unwrap();
    members.extend(over.as_object().unwrap().clone());
    members.retain(|_, value| !value.is_null());
    element
}

/// Whoever has this evidence passes on what the element says, with members laid over.
pub fn delegating(bench: &Bench, evidence: &str, over: &Value) -> Attempt {
    let mut attempt = bench.attempt();
    attempt.set("subject_token", evidence.to_owned());
    attempt.set("requested_token_type", DELEGATION.to_owned());
    let details = json!([element(bench, over)]).to_string();
    attempt.set("authorization_details", details);
    attempt
}

/// The agent acts by this delegation.
pub fn by(bench: &Bench, delegation: &str, agent: &str, path: &str) -> Attempt {
    let mut attempt = bench.attempt();
    attempt.set("subject_token", delegation.to_owned());
    attempt.set("subject_token_type", DELEGATION.to_owned());
    attempt.set("actor_token", svid(bench, agent));
    attempt.set("actor_token_type", JWT.to_owned());
    attempt.set("authorization_details", bench.details(path).to_string());
    attempt
}

/// The same agent passes it on.
fn on(bench: &Bench, delegation: &str, agent: &str, over: &Value) -> Attempt {
    let mut attempt = by(bench, delegation, agent, "/");
    attempt.set("requested_token_type", DELEGATION.to_owned());
    let details = json!([element(bench, over)]).to_string();
    attempt.set("authorization_details", details);
    attempt
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delegation_is_for_one_agent_and_only_shrinks() {
    let bench = start("").await;
    let details = no("invalid_authorization_details", "action_mismatch");
    let over = json!({ "uses": 4, "depth": 2, "lifetime_s": 200 });
    let body = issued(
        "made",
        &bench.send(delegating(&bench, &bench.svid(), &over)).await,
    );
    assert_eq!(body["token_type"], "N_A");
    assert_eq!(body["issued_token_type"], DELEGATION);
    assert_eq!(body["expires_in"], 200);
    assert_eq!(body["authorization_details"][0]["uses"], 4);
    let first = token_of(&body);

    // With the child's key, which is not its parent's.
    let key = DpopKey::generate().unwrap();
    let mut used = by(&bench, &first, CHILD, "/files/a.txt");
    used.prove(key.proof("POST", &bench.plane.token_endpoint(), None));
    let body = issued("used", &bench.send(used).await);
    let (_, claims) = decoded(&token_of(&body));
    assert_eq!(claims["sub"], AGENT);
    assert_eq!(claims["act"], json!({ "sub": CHILD }));
    assert_eq!(claims["client_id"], CHILD);
    assert_eq!(claims["cnf"], json!({ "jkt": key.thumbprint() }));

    // Another agent, no evidence, more than it covers, more than who gave it may do.
    let bad = [
        (
            "another's",
            by(&bench, &first, STRANGER, "/files/a.txt"),
            evidence("token_audience"),
        ),
        (
            "its giver's",
            by(&bench, &first, AGENT, "/files/a.txt"),
            evidence("token_audience"),
        ),
        (
            "elsewhere",
            by(&bench, &first, CHILD, "/other/a.txt"),
            details,
        ),
        (
            "what its giver may not do",
            by(&bench, &first, CHILD, "/files/only-others.txt"),
            no("access_denied", "policy_denied"),
        ),
        (
            "unknown",
            by(
                &bench,
                &format!("wrd_{}", "A".repeat(43)),
                CHILD,
                "/files/a.txt",
            ),
            evidence("token_unknown"),
        ),
    ];
    for (what, attempt, verdict) in bad {
        refused(what, &bench.send(attempt).await, verdict);
    }
    let mut alone = by(&bench, &first, CHILD, "/files/a.txt");
    alone.set("actor_token", None);
    alone.set("actor_token_type", None);
    refused(
        "without evidence",
        &bench.send(alone).await,
        evidence("malformed_credentials"),
    );
    let mut post = by(&bench, &first, CHILD, "/files/a.txt");
    let other = json!([{ "type": "http_request", "actions": ["POST"], "locations": [bench.url("/files/a.txt")] }]);
    post.set("authorization_details", other.to_string());
    refused("another method", &bench.send(post).await, details);

    // Passed on: less, and never more.
    let to = |over: Value| {
        let mut all = json!({ "delegate": GRANDCHILD, "locations": [bench.url("/files/a.txt"), bench.url("/files/sub/*"), bench.url("/files/own.txt")], "uses": 3, "depth": 1, "lifetime_s": 100 });
        all.as_object_mut()
            .unwrap()
            .extend(over.as_object().unwrap().clone());
        on(&bench, &first, CHILD, &all)
    };
    let second = token_of(&issued("passed on", &bench.send(to(json!({}))).await));
    for (what, over) in [
        ("more places", json!({ "locations": [bench.url("/*")] })),
        (
            "another place",
            json!({ "locations": [bench.url("/other")] }),
        ),
        ("more methods", json!({ "actions": ["GET", "PUT"] })),
        ("as deep", json!({ "depth": 2 })),
        ("more uses", json!({ "uses": 5 })),
        ("longer", json!({ "lifetime_s": 250 })),
        ("to itself", json!({ "delegate": CHILD })),
        ("no use", json!({ "uses": 0 })),
        ("no time", json!({ "lifetime_s": 0 })),
        ("nothing", json!({ "locations": [] })),
        ("a member more", json!({ "scope": "x" })),
        ("to nobody", json!({ "delegate": "child" })),
        ("a fraction", json!({ "uses": 1.5 })),
        ("a negative", json!({ "depth": -1 })),
        (
            "a wildcard",
            json!({ "locations": [bench.url("/files/*/x")] }),
        ),
    ] {
        refused(what, &bench.send(to(over)).await, details);
    }
    let body = issued(
        "two on",
        &bench
            .send(by(&bench, &second, GRANDCHILD, "/files/a.txt"))
            .await,
    );
    let (_, claims) = decoded(&token_of(&body));
    assert_eq!(claims["sub"], AGENT);
    assert_eq!(
        claims["act"],
        json!({ "sub": GRANDCHILD, "act": { "sub": CHILD } })
    );
    refused(
        "what policy lets nobody do for the child",
        &bench
            .send(by(&bench, &second, GRANDCHILD, "/files/own.txt"))
            .await,
        no("access_denied", "policy_denied"),
    );
    // Its depth is 1: the next may not be passed on.
    let third = json!({ "delegate": STRANGER, "locations": [bench.url("/files/a.txt")] });
    let third = token_of(&issued(
        "three on",
        &bench.send(on(&bench, &second, GRANDCHILD, &third)).await,
    ));
    let fourth = json!({ "delegate": CHILD, "locations": [bench.url("/files/a.txt")] });
    refused(
        "four on",
        &bench.send(on(&bench, &third, STRANGER, &fourth)).await,
        details,
    );

    // All that is got below counts above: two of four are used, one of the third's.
    let used = no("invalid_request", "limit_exceeded");
    issued(
        "by the third",
        &bench
            .send(by(&bench, &third, STRANGER, "/files/a.txt"))
            .await,
    );
    refused(
        "its one use",
        &bench
            .send(by(&bench, &third, STRANGER, "/files/a.txt"))
            .await,
        used,
    );
    issued(
        "the fourth use",
        &bench.send(by(&bench, &first, CHILD, "/files/a.txt")).await,
    );
    refused(
        "none is left for those below",
        &bench
            .send(by(&bench, &second, GRANDCHILD, "/files/a.txt"))
            .await,
        used,
    );
}

/// Attack E06's kind: of many at the same moment so many count as there are uses.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uses_are_counted_also_when_fifty_come_at_once() {
    let bench = start("").await;
    let made = bench
        .send(delegating(&bench, &bench.svid(), &json!({ "uses": 7 })))
        .await;
    let delegation = token_of(&issued("made", &made));
    let all = (0..50).map(|_| bench.send(by(&bench, &delegation, CHILD, "/files/a.txt")));
    let answers: Vec<Answer> = futures::future::join_all(all).await;
    assert_eq!(answers.iter().filter(|it| it.status == 200).count(), 7);
}

/// Through a real Envoy: what is got with a delegation passes once, the delegation and the
/// session do not, and a stop of the delegation ends the tree.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_of_a_delegation_passes_until_it_is_revoked() {
    let options = Options {
        extra_config: AGENTS.to_owned(),
        token_lifetime_s: 120,
        ..Options::default()
    };
    let system = System::for_test(options).await.unwrap();
    let agent = system.agent().await.unwrap();
    sign_in(&system).await;
    let authority = Authority::of(&system.data_dir());
    let of = |id: &str| authority.svid(id, &system.issuer(), &json!({}));
    // The child has a key of its own, and its parent none of what that is good for.
    let its = agent.with_fresh_key().unwrap();
    let post_by = async |who: &Agent, form: &[(&str, &str)]| {
        let request = reqwest::Client::new()
            .post(format!("{}/oauth2/token", system.issuer()))
            .header("dpop", who.token_proof())
            .form(form);
        Answer::read(request.send().await.unwrap()).await.unwrap()
    };
    let post = async |form: &[(&str, &str)]| post_by(&agent, form).await;
    let element = json!([{
        "type": "delegation", "delegate": CHILD, "actions": ["GET"],
        "locations": [agent.url("/files/*")], "uses": 9,
    }])
    .to_string();
    let made = post(&[
        ("grant_type", crate::judging::GRANT),
        ("subject_token", &of(AGENT)),
        ("subject_token_type", JWT),
        ("requested_token_type", DELEGATION),
        ("authorization_details", &element),
    ])
    .await;
    let delegation = token_of(&issued("made", &made));
    let details = agent.details("GET", REPORT).to_string();
    let child = of(CHILD);
    let by_child = [
        ("grant_type", crate::judging::GRANT),
        ("subject_token", &delegation),
        ("subject_token_type", DELEGATION),
        ("actor_token", &child),
        ("actor_token_type", JWT),
        ("authorization_details", &details),
    ];
    let got = async || token_of(&issued("by the child", &post_by(&its, &by_child).await));
    let (first, kept) = (got().await, got().await);
    let (_, claims) = decoded(&first);
    let jkt = its.key().thumbprint();
    assert_ne!(jkt, agent.key().thumbprint());
    assert_eq!(claims["cnf"], json!({ "jkt": jkt }));
    let arrived = system.upstream().unwrap().arrived();
    let other = agent.present("GET", REPORT, &first).await.unwrap();
    assert_eq!(other.reason(), "proof_key_mismatch", "{}", other.text());
    assert_eq!(system.upstream().unwrap().arrived(), arrived);
    let passed = its.present("GET", REPORT, &first).await.unwrap();
    assert_eq!(passed.status, 200, "{}", passed.text());
    let records = system.upstream().unwrap().records().unwrap();
    assert_eq!(records.last().unwrap().header("x-writ-agent"), Some(CHILD));
    let session = post(&[
        ("grant_type", crate::judging::GRANT),
        ("subject_token", &of(AGENT)),
        ("subject_token_type", JWT),
        ("audience", &system.issuer()),
    ])
    .await;
    let session = token_of(&issued("a session", &session));
    for grant in [&delegation, &session] {
        let answer = agent.present("GET", REPORT, grant).await.unwrap();
        assert_eq!(answer.status, 401, "{}", answer.text());
        assert_eq!(answer.reason(), "token_malformed");
    }
    let arrived = system.upstream().unwrap().arrived();

    let hash = {
        use sha2::{Digest as _, Sha256};
        hex::encode(Sha256::digest(delegation.as_bytes()))
    };
    done(&system, &["revoke", "--token", &hash], "stopped").await;
    let answer = its.present("GET", REPORT, &kept).await.unwrap();
    assert_eq!(answer.reason(), "token_revoked", "{}", answer.text());
    let revoked = no("access_denied", "token_revoked");
    refused("a new one", &post_by(&its, &by_child).await, revoked);
    assert_eq!(system.upstream().unwrap().arrived(), arrived);

    // And what the agent that gave it is stopped for.
    let again = post(&[
        ("grant_type", crate::judging::GRANT),
        ("subject_token", &of(AGENT)),
        ("subject_token_type", JWT),
        ("requested_token_type", DELEGATION),
        ("authorization_details", &element),
    ])
    .await;
    let delegation = token_of(&issued("made anew", &again));
    let by_child = by_child.map(|(name, value)| match name {
        "subject_token" => (name, delegation.as_str()),
        _ => (name, value),
    });
    let kept = token_of(&issued("by it", &post_by(&its, &by_child).await));
    done(&system, &["revoke", "--agent", AGENT], "stopped").await;
    let answer = its.present("GET", REPORT, &kept).await.unwrap();
    assert_eq!(answer.reason(), "token_revoked", "{}", answer.text());
    done(
        &system,
        &["revoke", "--lift", "--agent", AGENT],
        "may be given again",
    )
    .await;
    refused(
        "not even when it is lifted",
        &post_by(&its, &by_child).await,
        revoked,
    );
    system.stop().await;
}
