//! Introspection (RFC 7662) and revocation (RFC 7009): who may ask, what is said, and
//! what a token is good for afterwards.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use wasm_test::client::{Agent, Answer, Operator};
use wasm_test::system::{AGENT, Options, System};
use wasm_test::upstream::REPORT;

use crate::clients::{CLIENT, JWT, SVID, assertion, client};
use crate::evidence::Authority;
use crate::grants::AGENTS;
use crate::judging::{Attempt, Bench, Verdict, refused};
use crate::plane::Prepared;
use crate::programs::{ask, clients};

const SERVER: &str = "spiffe://writ.example/resource-server";
/// In no registry.
const NOBODY: &str = "spiffe://writ.example/agent/nobody";
const STRANGER: &str = "spiffe://writ.example/agent/stranger";
const ENDPOINTS: [&str; 2] = ["introspect", "revoke"];

const fn no(status: u16, error: &'static str, reason: &'static str) -> Verdict {
    Verdict {
        status,
        error,
        reason,
    }
}

/// A question about a token, by somebody's JWT-SVID.
pub fn about(bench: &Bench, endpoint: &str, token: &str, caller: &str) -> Attempt {
    let svid = bench
        .authority
        .svid(caller, &bench.plane.issuer(), &json!({}));
    let mut attempt = bare(bench, endpoint, token);
    attempt.add("client_assertion_type", SVID);
    attempt.add("client_assertion", &svid);
    attempt
}

/// The same by nobody.
fn bare(bench: &Bench, endpoint: &str, token: &str) -> Attempt {
    Attempt {
        url: format!("{}/oauth2/{endpoint}", bench.plane.issuer()),
        params: vec![("token".to_owned(), token.to_owned())],
        proofs: Vec::new(),
        ..bench.attempt()
    }
}

fn told(what: &str, answer: &Answer) -> Value {
    assert_eq!(answer.status, 200, "{what}: {}", answer.text());
    assert_eq!(answer.header("cache-control"), Some("no-store"), "{what}");
    answer.json()
}

/// A server that may ask, and agents, the stranger to others' tokens among them.
fn server_config() -> String {
    format!("[server]\nintrospection = [\"{SERVER}\"]\n{AGENTS}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_agent_and_a_named_server_are_told_and_nobody_else() {
    let bench = Bench::over(Prepared::new().with(&server_config()).start().await);
    let issued = bench.token().await;
    let token = issued["access_token"].as_str().unwrap();
    let (_, claims) = crate::evidence::decoded(token);
    let nothing = json!({ "active": false });
    let asked = async |caller, token: &str| {
        let attempt = about(&bench, "introspect", token, caller);
        told(caller, &bench.send(attempt).await)
    };
    for caller in [AGENT, SERVER] {
        let said = asked(caller, token).await;
        for name in [
            "iss",
            "sub",
            "aud",
            "client_id",
            "exp",
            "jti",
            "txn",
            "cnf",
            "authorization_details",
        ] {
            assert_eq!(said[name], claims[name], "{caller}: {name}");
        }
        assert_eq!(said["active"], true);
        assert_eq!(said["token_type"], "DPoP");
        let apart = said["iat"].as_u64().unwrap() - claims["iat"].as_u64().unwrap();
        assert!(apart <= 1, "{said} {claims}");
    }
    assert_eq!(asked(STRANGER, token).await, nothing);
    let unregistered = about(&bench, "introspect", token, NOBODY);
    let inactive = no(400, "access_denied", "agent_inactive");
    refused("nobody", &bench.send(unregistered).await, inactive);
    // What it says is not asked: only what was issued, to the byte.
    let other = bench.authority.svid(AGENT, &bench.plane.issuer(), &claims);
    for unknown in ["x", &format!("{token} "), &other, &"x".repeat(20_000)] {
        assert_eq!(asked(SERVER, unknown).await, nothing);
    }
    let after = bench.send(about(&bench, "revoke", token, AGENT)).await;
    assert_eq!(after.status, 200, "{}", after.text());
    assert_eq!(asked(AGENT, token).await, nothing);
    let said = asked(SERVER, token).await;
    assert_eq!(said, json!({ "active": false, "writ_state": "revoked" }));

    let metadata = format!(
        "{}/.well-known/oauth-authorization-server",
        bench.plane.issuer()
    );
    let metadata: Value = reqwest::get(metadata).await.unwrap().json().await.unwrap();
    for (name, path) in [("introspection", "introspect"), ("revocation", "revoke")] {
        let url = format!("{}/oauth2/{path}", bench.plane.issuer());
        assert_eq!(metadata[format!("{name}_endpoint")], url);
        let methods = &metadata[format!("{name}_endpoint_auth_methods_supported")];
        assert_eq!(*methods, json!(["spiffe_jwt"]));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_has_not_authenticated_is_told_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (key, config) = client(dir.path());
    let bench = Bench::over(Prepared::new().with(&config).start().await);
    let us = bench.plane.issuer();
    let none = json!({});
    let issued = bench.token().await;
    let token = issued["access_token"].as_str().unwrap();
    let forged = bench.authority.impostor().svid(AGENT, &us, &none);
    let elsewhere = bench.authority.svid(AGENT, "https://x.example", &none);
    let over = json!({ "iat": 1_000_000, "exp": 1_000_300 });
    let over = bench.authority.svid(AGENT, &us, &over);
    let strange = assertion(&Authority::fresh().named_as(&key), &us, &none, &none);
    let client = |reason| no(401, "invalid_client", reason);
    let request = no(400, "invalid_request", "malformed_credentials");
    type Row<'r> = (&'r str, Verdict, Vec<(&'r str, &'r str)>);
    let table: Vec<Row<'_>> = vec![
        ("nothing", client("missing_credentials"), vec![]),
        (
            "a name alone",
            client("missing_credentials"),
            vec![("client_id", AGENT)],
        ),
        (
            "forged",
            client("token_signature"),
            vec![
                ("client_assertion_type", SVID),
                ("client_assertion", &forged),
            ],
        ),
        (
            "for others",
            client("token_audience"),
            vec![
                ("client_assertion_type", SVID),
                ("client_assertion", &elsewhere),
            ],
        ),
        (
            "over",
            client("token_expired"),
            vec![("client_assertion_type", SVID), ("client_assertion", &over)],
        ),
        (
            "by another key",
            client("token_signature"),
            vec![
                ("client_assertion_type", JWT),
                ("client_assertion", &strange),
            ],
        ),
        (
            "the token itself",
            client("token_malformed"),
            vec![("client_assertion_type", SVID), ("client_assertion", token)],
        ),
        (
            "a secret",
            request,
            vec![("client_id", CLIENT), ("client_secret", "x")],
        ),
        ("no type", request, vec![("client_assertion", &forged)]),
        (
            "no assertion",
            request,
            vec![("client_assertion_type", SVID)],
        ),
        ("another token", request, vec![("token", "x")]),
    ];
    for endpoint in ENDPOINTS {
        for (what, verdict, params) in &table {
            let mut attempt = bare(&bench, endpoint, token);
            for (name, value) in params {
                attempt.add(name, value);
            }
            let answer = bench.send(attempt).await;
            refused(what, &answer, *verdict);
            let challenge = answer.header("www-authenticate");
            assert_eq!(challenge.is_some(), verdict.status == 401, "{what}");
        }
        let mut attempt = about(&bench, endpoint, token, AGENT);
        attempt.set("token", None);
        refused("no token", &bench.send(attempt).await, request);
        let mut attempt = about(&bench, endpoint, token, AGENT);
        attempt.content_type = Some("application/json".to_owned());
        refused("JSON", &bench.send(attempt).await, request);
        let mut attempt = about(&bench, endpoint, token, AGENT);
        attempt.url.push_str("?token=x");
        refused("a query", &bench.send(attempt).await, request);
        let large = "x".repeat(40_000);
        let attempt = about(&bench, endpoint, &large, AGENT);
        let verdict = no(400, "invalid_request", "too_large");
        refused("large", &bench.send(attempt).await, verdict);
        let read = reqwest::get(&bare(&bench, endpoint, token).url).await;
        assert_eq!(read.unwrap().status(), 405);
    }

    // An assertion counts once, for whatever it was shown.
    let spent = client("token_spent");
    let by_key = |endpoint: &str, assertion: &str| {
        let mut attempt = bare(&bench, endpoint, token);
        attempt.add("client_assertion_type", JWT);
        attempt.add("client_assertion", assertion);
        bench.send(attempt)
    };
    let (one, two) = (
        assertion(&key, &us, &none, &none),
        assertion(&key, &us, &none, &none),
    );
    let said = told("by its key", &by_key("introspect", &one).await);
    assert_eq!(said["active"], true);
    refused("again", &by_key("introspect", &one).await, spent);
    refused("for another", &by_key("revoke", &one).await, spent);
    let mut exchange = bench.attempt();
    for (name, value) in [
        ("grant_type", Some("client_credentials")),
        ("subject_token", None),
        ("subject_token_type", None),
        ("client_assertion_type", Some(JWT)),
        ("client_assertion", Some(&*one)),
    ] {
        exchange.set(name, value.map(str::to_owned));
    }
    let verdict = no(400, "invalid_client", "token_spent");
    refused("for a token", &bench.send(exchange).await, verdict);
    // Nobody was refused by it: it still lives.
    let said = told("still", &by_key("introspect", &two).await);
    assert_eq!(said["active"], true);
    let last = bench.plane.entries();
    let presented = last.iter().filter(|it| it["kind"] == "present").count();
    assert_eq!(presented, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_token_passes_nowhere_and_another_agents_is_not_revoked() {
    let system = System::for_test(Options {
        hold_s: 20,
        token_lifetime_s: 120,
        extra_config: server_config(),
        ..Options::default()
    })
    .await
    .unwrap();
    let agent = system.agent().await.unwrap();
    let authority = Authority::of(&system.data_dir());
    let http = wasm_test::client::http_client();
    let post = async |endpoint: &str, caller: &str, token: &str| {
        let svid = authority.svid(caller, &system.issuer(), &json!({}));
        let form = [
            ("token", token),
            ("client_assertion_type", SVID),
            ("client_assertion", &svid),
        ];
        let url = format!("{}/oauth2/{endpoint}", system.issuer());
        let answer = http.post(url).form(&form).send().await.unwrap();
        Answer::read(answer).await.unwrap()
    };
    let nothing = json!({ "active": false });
    let known = async |caller: &str, token: &str| {
        let answer = post("introspect", caller, token).await;
        told(caller, &answer)
    };

    // Spent: nobody but the server learns what became of it.
    let token = agent.token("GET", REPORT).await.unwrap();
    let answer = agent.present("GET", REPORT, &token).await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    let deadline = Instant::now() + Duration::from_secs(5);
    let said = loop {
        let said = known(SERVER, &token).await;
        if said["writ_first_use"]["result"] == "forwarded" {
            break said;
        }
        assert!(Instant::now() < deadline, "{said}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert_eq!(said["active"], false);
    assert_eq!(said["writ_state"], "spent");
    assert_eq!(said["writ_first_use"]["upstream_status"], 200);
    assert!(said["writ_first_use"]["request_id"].is_string());
    for caller in [AGENT, STRANGER] {
        assert_eq!(known(caller, &token).await, nothing);
    }
    assert_eq!(post("revoke", AGENT, &token).await.status, 200);

    // Another's is refused, and passes.
    let token = agent.token("GET", REPORT).await.unwrap();
    for caller in [STRANGER, SERVER] {
        let answer = post("revoke", caller, &token).await;
        let verdict = no(400, "invalid_grant", "token_unknown");
        refused(caller, &answer, verdict);
    }
    assert_eq!(known(AGENT, &token).await["active"], true);
    let answer = agent.present("GET", REPORT, &token).await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());

    // One's own: at once, for good, and no other. What is not known is as good as revoked.
    let (gone, other) = (
        agent.token("GET", REPORT).await.unwrap(),
        agent.token("GET", REPORT).await.unwrap(),
    );
    for token in [&gone, &gone, &"unknown".to_owned()] {
        let answer = post("revoke", AGENT, token).await;
        assert_eq!((answer.status, answer.text().as_str()), (200, ""));
    }
    let before = system.upstream().unwrap().arrived();
    let answer = agent.present("GET", REPORT, &gone).await.unwrap();
    assert_eq!(answer.reason(), "token_revoked", "{}", answer.text());
    assert_eq!(system.upstream().unwrap().arrived(), before);
    let answer = agent.present("GET", REPORT, &other).await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    held_ends(&system, &agent, &post, &known).await;
    let stops = entries(&system, "stop");
    assert_eq!(stops.len(), 2, "{stops:?}");
    for stop in stops {
        assert_eq!(stop["body"]["by"], AGENT);
        assert!(stop["body"]["until_ms"].is_u64());
    }
    too_many(&agent, &post).await;
    system.stop().await;
}

fn entries(system: &System, kind: &str) -> Vec<Value> {
    let all = crate::plane::entries(&system.audit_dir()).into_iter();
    all.filter(|entry| entry["kind"] == kind).collect()
}

/// What is held with a token ends within a second of its revocation.
async fn held_ends(
    system: &System,
    agent: &Agent,
    post: &impl AsyncFn(&str, &str, &str) -> Answer,
    known: &impl AsyncFn(&str, &str) -> Value,
) {
    let path = "/files/restricted/payroll.txt";
    let token = agent.token("GET", path).await.unwrap();
    let calling = agent.clone();
    let shown = token.clone();
    let waiting = tokio::spawn(async move { calling.present("GET", path, &shown).await.unwrap() });
    let deadline = Instant::now() + Duration::from_secs(10);
    while entries(system, "hold").is_empty() {
        assert!(Instant::now() < deadline, "it is not held");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(known(SERVER, &token).await["writ_state"], "held");
    assert_eq!(known(AGENT, &token).await, json!({ "active": false }));
    let began = Instant::now();
    assert_eq!(post("revoke", AGENT, &token).await.status, 200);
    let answer = waiting.await.unwrap();
    let took = began.elapsed();
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert_eq!(answer.reason(), "token_revoked", "{}", answer.text());
}

/// An agent that revokes ever more has to wait, and its tokens still end by themselves.
async fn too_many(agent: &Agent, post: &impl AsyncFn(&str, &str, &str) -> Answer) {
    for n in 0..62 {
        let token = agent.token("GET", REPORT).await.unwrap();
        let answer = post("revoke", AGENT, &token).await;
        if answer.status == 200 {
            continue;
        }
        assert!(n >= 25, "{n}: {}", answer.text());
        let verdict = no(503, "temporarily_unavailable", "limit_exceeded");
        refused("one more", &answer, verdict);
        assert_eq!(answer.header("retry-after"), Some("60"));
        return;
    }
    panic!("62 in two minutes were taken");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn standard_clients_introspect_and_revoke() {
    let Some(clients) = clients() else { return };
    let dir = tempfile::tempdir().unwrap();
    let (key, extra_config) = client(dir.path());
    let options = Options {
        extra_config,
        ..Options::default()
    };
    let system = System::for_test(options).await.unwrap();
    let agent = system.agent().await.unwrap();
    let nothing = json!({ "active": false });
    let by_key = json!({
        "issuer": system.issuer(), "client": CLIENT, "key": key.private_jwk(),
        "url": agent.url(REPORT),
    });
    let by_svid = json!({
        "issuer": system.issuer(), "client": AGENT, "svid": agent.svid().await.unwrap(),
        "url": agent.url(REPORT),
    });
    for given in [by_key.clone(), by_svid] {
        let seen = ask(clients.node("tokens.mjs"), given).await;
        for who in ["oauth", "openid"] {
            assert_eq!(seen[who]["before"]["active"], true, "{seen}");
            assert_eq!(seen[who]["before"]["sub"], AGENT);
            assert_eq!(seen[who]["after"], nothing);
        }
        let revoked = json!({ "status": 401, "reason": "token_revoked" });
        assert_eq!(seen["answers"], json!([revoked, revoked]));
    }
    let seen = ask(clients.python("tokens.py"), by_key).await;
    assert_eq!(seen["before"]["active"], true, "{seen}");
    assert_eq!(seen["before"]["client_id"], AGENT);
    assert_eq!(seen["revoked"], true);
    assert_eq!(seen["after"], nothing);
    assert_eq!(seen["unknown"], nothing);
    assert_eq!(system.upstream().unwrap().arrived(), 0);
    system.stop().await;
}

/// Who asks about tokens writes no more than who asks for them, and nothing when stopped.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn questions_are_bounded_and_a_stopped_agents_use_up_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (key, config) = client(dir.path());
    let config = format!("{config}[limits]\nexchanges_per_agent = 1\n");
    let bench = Bench::over(Prepared::new().with(&config).start().await);
    let us = bench.plane.issuer();
    let none = json!({});
    let ask = async |endpoint: &str| {
        let mut attempt = bare(&bench, endpoint, "unknown");
        attempt.add("client_assertion_type", JWT);
        attempt.add("client_assertion", &assertion(&key, &us, &none, &none));
        bench.send(attempt).await
    };
    let presented = || {
        let entries = bench.plane.entries().into_iter();
        entries.filter(|it| it["kind"] == "present").count()
    };
    let began = Instant::now();
    let mut served = 0;
    for n in 0..40 {
        let answer = ask(ENDPOINTS[n % 2]).await;
        match answer.status {
            200 => served += 1,
            _ => refused(
                "too many",
                &answer,
                no(429, "temporarily_unavailable", "limit_exceeded"),
            ),
        }
    }
    let most = 6 + usize::try_from(began.elapsed().as_secs()).unwrap();
    assert!((5..=most).contains(&served), "{served} of {most}");
    assert_eq!(presented(), served, "what was refused is no entry");

    let link = bench.plane.login_link().to_owned();
    let person = Operator::login_at(&link, &us).await.unwrap();
    person.stop(&json!({ "agent": AGENT })).await.unwrap();
    for endpoint in ENDPOINTS {
        let revoked = no(400, "access_denied", "token_revoked");
        refused("stopped", &ask(endpoint).await, revoked);
    }
    assert_eq!(presented(), served);
}
