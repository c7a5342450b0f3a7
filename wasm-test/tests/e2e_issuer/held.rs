//! What a token narrows, and whom it names, holds for what is got by it: users' tokens, and
//! agents' own evidence.

use serde_json::{Value, json};
use wasm_test::client::{Agent, Answer, DpopKey};
use wasm_test::system::{AGENT, Options, System};
use wasm_test::upstream::REPORT;

use crate::evidence::{Authority, decoded};
use crate::grants::{DELEGATION, token_of};
use crate::id_jag::{bearing, id_jag};
use crate::judging::{ACCESS, Attempt, Bench, GRANT, JWT, Verdict, issued, no, refused};
use crate::users::{
    APP, ASSERTION, CLIENT, ID_TOKEN, OTHER, acting, config, start, start_by, user, user_with,
};

/// An issuer of agents' tokens.
const CI: &str = "https://ci.example";
const JOB: &str = "repo:org/app:ref:refs/heads/main";
const BY_SVID: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-spiffe";
/// What a logout token has in its `events`.
const LOGOUT: &str = "http://schemas.openid.net/event/backchannel-logout";

/// What brings nothing, with the reason and a part of what is said of it.
type Bad = (&'static str, &'static str, &'static str);

fn evidence(reason: &'static str) -> Verdict {
    no("invalid_request", reason)
}

fn says(what: &str, answer: &Answer, (error, reason, part): Bad) {
    refused(what, answer, no(error, reason));
    let said = answer.json()["error_description"].to_string();
    assert!(said.contains(part), "{what}: {said}");
}

struct World {
    system: System,
    /// The first agent; the other one has a key of its own.
    agent: Agent,
    other: Agent,
    idp: Authority,
    client: Authority,
    _dir: tempfile::TempDir,
}

impl World {
    async fn start() -> World {
        let dir = tempfile::tempdir().unwrap();
        let (idp, client) = (Authority::fresh(), Authority::fresh());
        let options = Options {
            extra_config: config(dir.path(), &idp, &client, "id_jag = true"),
            token_lifetime_s: 120,
            ..Options::default()
        };
        let system = System::for_test(options).await.unwrap();
        system.settled().await.unwrap();
        let agent = system.agent().await.unwrap();
        World {
            other: agent.with_fresh_key().unwrap(),
            system,
            agent,
            idp,
            client,
            _dir: dir,
        }
    }

    fn svid(&self, agent: &str) -> String {
        let authority = Authority::of(&self.system.data_dir());
        authority.svid(agent, &self.system.issuer(), &json!({}))
    }

    async fn post(&self, who: &Agent, form: &[(&str, &str)]) -> Answer {
        let request = reqwest::Client::new()
            .post(format!("{}/oauth2/token", self.system.issuer()))
            .header("dpop", who.token_proof())
            .form(form);
        Answer::read(request.send().await.unwrap()).await.unwrap()
    }

    /// An exchange of this token, by this agent under its key.
    async fn exchanged(
        &self,
        (who, id): (&Agent, &str),
        (token, kind): (&str, &str),
        more: &[(&str, &str)],
    ) -> Answer {
        let svid = self.svid(id);
        let mut form = vec![
            ("grant_type", GRANT),
            ("subject_token", token),
            ("subject_token_type", kind),
        ];
        if kind != ACCESS {
            form.extend([("actor_token", &*svid), ("actor_token_type", JWT)]);
        }
        form.extend(more);
        self.post(who, &form).await
    }

    /// The first agent passes on what it has by this token, to the other.
    async fn delegates(&self, token: (&str, &str)) -> Answer {
        let element = json!([{
            "type": "delegation", "delegate": OTHER, "actions": ["GET"],
            "locations": [self.agent.url("/files/*")], "uses": 4,
        }])
        .to_string();
        let more = [
            ("requested_token_type", DELEGATION),
            ("authorization_details", &*element),
        ];
        self.exchanged((&self.agent, AGENT), token, &more).await
    }

    async fn acts(&self, who: (&Agent, &str), token: (&str, &str)) -> Answer {
        let details = who.0.details("GET", REPORT).to_string();
        let more = [("authorization_details", &*details)];
        self.exchanged(who, token, &more).await
    }

    async fn session(&self, user: &str) -> String {
        let us = self.system.issuer();
        let more = [("audience", &*us)];
        let answer = self.exchanged((&self.agent, AGENT), (user, ID_TOKEN), &more);
        token_of(&issued("a session", &answer.await))
    }

    /// It passes at a real Envoy, for the user, as this agent's.
    async fn passes(&self, who: &Agent, agent: &str, token: &str) {
        let upstream = self.system.upstream().unwrap();
        let arrived = upstream.arrived();
        let answer = who.present("GET", REPORT, token).await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(upstream.arrived(), arrived + 1);
        let records = upstream.records().unwrap();
        let record = records.last().unwrap();
        assert_eq!(record.header("x-writ-agent"), Some(agent));
        let ann = "https://idp.example#ann@example.com";
        assert_eq!(record.header("x-writ-user"), Some(ann));
    }
}

/// What a user's token gives to one agent, that agent gives to nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_whose_token_names_one_agent_is_given_to_no_other() {
    let world = World::start().await;
    let jkt = world.agent.key().thumbprint();
    let alone = [
        ("may_act", json!({ "may_act": { "sub": AGENT } })),
        ("aud", json!({ "aud": APP })),
        ("act", json!({ "act": { "sub": AGENT } })),
        ("azp", json!({ "azp": APP })),
        ("client_id", json!({ "client_id": APP })),
        ("cnf", json!({ "cnf": { "jkt": jkt } })),
    ];
    for (claim, claims) in alone {
        let token = user(&world.idp, &claims);
        let direct = world.acts((&world.other, OTHER), (&token, ID_TOKEN)).await;
        assert_eq!(direct.status, 400, "{claim}: {}", direct.text());
        let named = format!("(`{claim}`)");
        let answer = world.delegates((&token, ID_TOKEN)).await;
        refused(claim, &answer, evidence("token_audience"));
        assert!(answer.text().contains(&named), "{}", answer.text());
        // Nor by way of a session.
        let session = world.session(&token).await;
        let answer = world.delegates((&session, ACCESS)).await;
        let bad = (
            "invalid_request",
            "token_audience",
            "the session was got by",
        );
        says(claim, &answer, bad);
        // The agent that is named goes on, in the session too.
        for shown in [(&*token, ID_TOKEN), (&*session, ACCESS)] {
            let answer = world.acts((&world.agent, AGENT), shown).await;
            let body = issued(claim, &answer);
            world.passes(&world.agent, AGENT, &token_of(&body)).await;
        }
    }
    let jag = id_jag(&world.idp, &world.system.issuer(), &json!({}), &json!({}));
    let us = world.system.issuer();
    let own = json!({ "iss": CLIENT, "sub": CLIENT, "aud": us });
    let assertion = world.client.svid_with("", &us, &own, &json!({}));
    let form = [
        ("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer"),
        ("assertion", &*jag),
        ("client_assertion_type", ASSERTION),
        ("client_assertion", &*assertion),
        ("audience", &*us),
    ];
    let answer = world.post(&world.agent, &form).await;
    let session = token_of(&issued("an ID-JAG", &answer));
    let answer = world.delegates((&session, ACCESS)).await;
    refused("an ID-JAG", &answer, evidence("token_audience"));

    // One that names nobody is passed on, as it was, also out of a session.
    for claims in [json!({}), json!({ "azp": "some-app" })] {
        let token = user(&world.idp, &claims);
        let session = world.session(&token).await;
        for shown in [(&*token, ID_TOKEN), (&*session, ACCESS)] {
            let body = issued("passed on", &world.delegates(shown).await);
            let delegation = token_of(&body);
            let by = (&*delegation, DELEGATION);
            let answer = world.acts((&world.other, OTHER), by).await;
            let token = token_of(&issued("by the other", &answer));
            let (_, claims) = decoded(&token);
            assert_eq!(claims["sub"], "ann@example.com");
            let act = json!({ "sub": OTHER, "act": { "sub": AGENT } });
            assert_eq!(claims["act"], act);
            world.passes(&world.other, OTHER, &token).await;
        }
    }
    world.system.stop().await;
}

/// A user's access token, with claims laid over.
fn access(bench: &Bench, idp: &Authority, claims: &Value) -> Attempt {
    let token = user_with(idp, claims, &json!({ "typ": "at+jwt" }));
    let mut attempt = acting(bench, token);
    attempt.set("subject_token_type", ACCESS.to_owned());
    attempt
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_users_access_token_narrows_holds() {
    let (_dir, idp, _client, bench) = start("").await;
    let (origin, report) = (bench.plane.origin(), bench.details("/files/report.txt"));
    let post = json!([{ "type": "http_request", "actions": ["POST"], "locations": [bench.url("/files/report.txt")] }]);
    let others = bench.details("/files/notes.txt");
    let good = [
        json!({ "scope": "openid profile calendar.read", "client_id": "some-app" }),
        json!({ "scope": ["openid"] }),
        json!({ "client_id": APP, "azp": APP }),
        json!({ "client_id": AGENT }),
        json!({ "authorization_details": report }),
        json!({ "authorization_details": [post[0], report[0]] }),
        json!({ "resource": format!("{origin}/files") }),
        json!({ "resource": ["https://x.example", origin] }),
    ];
    for claims in &good {
        let what = claims.to_string();
        issued(&what, &bench.send(access(&bench, &idp, claims)).await);
    }
    let (details, target) = ("invalid_authorization_details", "invalid_target");
    let bad: Vec<(Value, Bad)> = vec![
        (
            json!({ "authorization_details": others }),
            (details, "action_mismatch", "none of the actions"),
        ),
        (
            json!({ "authorization_details": post }),
            (details, "action_mismatch", "none of the actions"),
        ),
        (
            json!({ "authorization_details": [] }),
            (details, "action_mismatch", "none of the actions"),
        ),
        (
            json!({ "authorization_details": [{ "type": "payment_initiation" }] }),
            ("invalid_request", "token_malformed", "not actions"),
        ),
        (
            json!({ "resource": "https://elsewhere.example" }),
            (target, "action_mismatch", "`resource`"),
        ),
        (
            json!({ "resource": [] }),
            (target, "action_mismatch", "`resource`"),
        ),
        (
            json!({ "client_id": "other-app" }),
            (
                "invalid_request",
                "token_audience",
                "another agent (`client_id`)",
            ),
        ),
        (
            json!({ "client_id": OTHER }),
            (
                "invalid_request",
                "token_audience",
                "another agent (`client_id`)",
            ),
        ),
        (
            json!({ "azp": "other-app" }),
            ("invalid_request", "token_audience", "another agent (`azp`)"),
        ),
        (
            json!({ "azp": 5 }),
            ("invalid_request", "token_malformed", "`azp`"),
        ),
        (
            json!({ "aud": APP, "azp": [APP] }),
            ("invalid_request", "token_malformed", "`azp`"),
        ),
        (
            json!({ "client_id": { "id": APP } }),
            ("invalid_request", "token_malformed", "`client_id`"),
        ),
        (
            json!({ "events": { LOGOUT: {} } }),
            ("invalid_request", "token_malformed", "`events`"),
        ),
    ];
    for (claims, bad) in bad {
        let what = claims.to_string();
        says(&what, &bench.send(access(&bench, &idp, &claims)).await, bad);
        // Whatever it is called.
        let answer = bench.send(acting(&bench, user(&idp, &claims))).await;
        says(&what, &answer, bad);
    }
    for typ in ["logout+jwt", "secevent+jwt", "application/logout+jwt"] {
        let token = user_with(&idp, &json!({}), &json!({ "typ": typ }));
        let answer = bench.send(acting(&bench, token)).await;
        refused(typ, &answer, evidence("token_malformed"));
    }
    // No grant comes of what narrows: it would not be held to it.
    let mut session = access(&bench, &idp, &json!({ "authorization_details": report }));
    session.set("authorization_details", None);
    session.set("audience", bench.plane.issuer());
    let bad = (
        "invalid_request",
        "malformed_credentials",
        "only capabilities",
    );
    says("a session", &bench.send(session).await, bad);

    // Where the operator has said which scopes there are, they are all.
    let (_dir, idp, _client, bench) = start("scopes = [\"openid\", \"files\"]").await;
    for (scope, good) in [("openid files", true), ("files pay", false)] {
        let answer = bench.send(access(&bench, &idp, &json!({ "scope": scope })));
        match good {
            true => drop(issued(scope, &answer.await)),
            false => refused(scope, &answer.await, evidence("action_mismatch")),
        }
    }
    let (_dir, idp, _client, bench) = start("scopes = []").await;
    let none = access(&bench, &idp, &json!({ "scope": "openid" }));
    refused("none", &bench.send(none).await, evidence("action_mismatch"));
}

/// What may stand in an agent's own evidence, and what that brings.
fn own(jkt: &str) -> Vec<(Value, Option<&'static str>)> {
    let (other, key) = (Some("agent_inactive"), Some("proof_key_mismatch"));
    vec![
        (json!({}), None),
        (json!({ "cnf": { "jkt": jkt } }), None),
        (json!({ "may_act": { "sub": AGENT } }), None),
        (json!({ "cnf": { "jkt": "A".repeat(43) } }), key),
        (json!({ "cnf": { "jkt": jkt, "kid": "x" } }), key),
        (json!({ "cnf": { "x5t#S256": "A".repeat(43) } }), key),
        (json!({ "cnf": {} }), key),
        (json!({ "act": { "sub": AGENT } }), other),
        (json!({ "act": { "sub": OTHER } }), other),
        (json!({ "may_act": { "sub": OTHER } }), other),
        (json!({ "may_act": {} }), other),
        (json!({ "events": { LOGOUT: {} } }), Some("token_malformed")),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agents_own_evidence_is_held_to_its_key_and_is_nobody_elses() {
    let keys = tempfile::tempdir().unwrap();
    let ci = Authority::fresh();
    let file = keys.path().join("ci.json");
    std::fs::write(&file, json!({ "keys": [ci.client_jwk()] }).to_string()).unwrap();
    let tables = format!(
        "[[identity.issuer]]\nissuer = \"{CI}\"\naudience = \"{CI}/writ\"\nkeys = {file:?}\n[[identity.issuer.agent]]\nspiffe_id = \"{AGENT}\"\nclaims = {{ sub = \"{JOB}\" }}\n"
    );
    let rule = "permit (principal is Writ::Agent, action, resource);";
    let (_dir, idp, client, bench) = start_by("", rule, &tables).await;
    let us = bench.plane.issuer();
    let laid = |base: Value, over: &Value| {
        let mut all = base.as_object().unwrap().clone();
        all.extend(over.as_object().unwrap().clone());
        Value::Object(all)
    };
    for (claims, reason) in own(&bench.key.thumbprint()) {
        let svid = bench.authority.svid(AGENT, &us, &claims);
        let job = laid(
            json!({ "iss": CI, "sub": JOB, "aud": format!("{CI}/writ") }),
            &claims,
        );
        let job = ci.svid_with("", &us, &job, &json!({}));
        let own = laid(json!({ "iss": CLIENT, "sub": CLIENT, "aud": us }), &claims);
        let assertion = client.svid_with("", &us, &own, &json!({}));
        let mut attempts = Vec::new();
        for token in [&svid, &job] {
            let mut subject = bench.attempt();
            subject.set("subject_token", token.clone());
            attempts.push(("invalid_request", subject));
            let mut actor = acting(&bench, user(&idp, &json!({})));
            actor.set("actor_token", token.clone());
            attempts.push(("invalid_request", actor));
        }
        for (kind, token) in [(BY_SVID, &svid), (ASSERTION, &assertion)] {
            let mut attempt = bench.attempt();
            attempt.set("grant_type", "client_credentials".to_owned());
            attempt.set("subject_token", None);
            attempt.set("subject_token_type", None);
            attempt.set("client_assertion_type", kind.to_owned());
            attempt.set("client_assertion", token.clone());
            attempts.push(("invalid_client", attempt));
        }
        for (at, (error, attempt)) in attempts.into_iter().enumerate() {
            let what = format!("{at}: {claims}");
            let answer = bench.send(attempt).await;
            match reason {
                None => drop(issued(&what, &answer)),
                Some(reason) => refused(&what, &answer, no(error, reason)),
            }
        }
    }
    // By whoever has it, what is bound is of no use under another key.
    let bound = json!({ "cnf": { "jkt": bench.key.thumbprint() } });
    let mut stolen = bench.attempt();
    let svid = bench.authority.svid(AGENT, &us, &bound);
    stolen.set("subject_token", svid.clone());
    let thief = DpopKey::generate().unwrap();
    stolen.prove(thief.proof("POST", &bench.plane.token_endpoint(), None));
    let answer = bench.send(stolen).await;
    refused("stolen", &answer, evidence("proof_key_mismatch"));
    // Where no proof is asked for nothing of that is proven.
    for jkt in [bench.key.thumbprint(), String::new()] {
        let mut about = crate::tokens::about(&bench, "introspect", "x", AGENT);
        let claims = json!({ "cnf": { "jkt": jkt } });
        about.set(
            "client_assertion",
            bench.authority.svid(AGENT, &us, &claims),
        );
        assert_eq!(bench.send(about).await.status, 401);
    }
}

/// SPIFFE-ID, section 2.1: a trust domain is in lower case. And nobody's evidence is of later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_jwt_svid_names_its_agent_to_the_letter_and_is_of_now() {
    let (_dir, idp, _client, bench) = start("").await;
    let (us, now) = (bench.plane.issuer(), wasm_test::client::now_s());
    let mut table = Vec::new();
    for name in [
        "spiffe://WRIT.example/agent/demo",
        "spiffe://Writ.Example/agent/demo",
        "SPIFFE://writ.example/agent/demo",
        "spiffe://writ.example:443/agent/demo",
        "spiffe://writ.example/agent/demo/",
        "spiffe://writ.example/agent/d%65mo",
        " spiffe://writ.example/agent/demo",
    ] {
        table.push((json!({ "sub": name }), "token_malformed"));
    }
    let ahead = json!({ "iat": now + 30, "exp": now + 200 });
    table.push((ahead.clone(), "token_not_yet_valid"));
    table.push((json!({ "iat": "now" }), "token_malformed"));
    for (claims, reason) in table {
        let mut attempt = bench.attempt();
        attempt.set("subject_token", bench.authority.svid(AGENT, &us, &claims));
        let answer = bench.send(attempt).await;
        refused(&claims.to_string(), &answer, evidence(reason));
    }
    let answer = bench.send(acting(&bench, user(&idp, &ahead))).await;
    refused("a user's", &answer, evidence("token_not_yet_valid"));
    let mut near = bench.attempt();
    let claims = json!({ "iat": now + 5 });
    near.set("subject_token", bench.authority.svid(AGENT, &us, &claims));
    issued("within the skew", &bench.send(near).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_id_beside_evidence_is_that_agents() {
    let (_dir, idp, client, bench) = start("id_jag = true").await;
    let session = {
        let mut attempt = bench.attempt();
        attempt.set("authorization_details", None);
        attempt.set("audience", bench.plane.issuer());
        token_of(&issued("a session", &bench.send(attempt).await))
    };
    type Way<'w> = Box<dyn Fn() -> Attempt + 'w>;
    let ways: Vec<(&str, Way<'_>)> = vec![
        ("an SVID", Box::new(|| bench.attempt())),
        (
            "for a user",
            Box::new(|| acting(&bench, user(&idp, &json!({})))),
        ),
        (
            "a session",
            Box::new(|| {
                let mut within = bench.attempt();
                within.set("subject_token", session.clone());
                within.set("subject_token_type", ACCESS.to_owned());
                within
            }),
        ),
    ];
    for (what, attempt) in &ways {
        for (name, good) in [
            (AGENT, true),
            (CLIENT, true),
            (APP, true),
            (OTHER, false),
            ("other-app", false),
            ("me", false),
            ("spiffe://WRIT.example/agent/demo", false),
        ] {
            let mut attempt = attempt();
            attempt.set("client_id", name.to_owned());
            let answer = bench.send(attempt).await;
            let what = format!("{what}, {name}");
            if good {
                issued(&what, &answer);
            } else {
                let bad = ("invalid_request", "malformed_credentials", "`client_id`");
                says(&what, &answer, bad);
            }
        }
    }
    // Who authenticates by a key says its own name.
    let jag = id_jag(&idp, &bench.plane.issuer(), &json!({}), &json!({}));
    let mut bearing = bearing(&bench, &client, jag);
    bearing.set("client_id", OTHER.to_owned());
    let answer = bench.send(bearing).await;
    refused("by its key", &answer, no("invalid_client", "token_issuer"));
}

/// RFC 8707: what sessions and delegations are for, where it is said.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_and_a_delegation_are_for_what_is_named() {
    let (_dir, _idp, _client, bench) = start("").await;
    let (us, origin) = (bench.plane.issuer(), bench.plane.origin());
    let foreign = ["https://elsewhere.example/", "writ", &*format!("{us}#x")].map(str::to_owned);
    let target = no("invalid_target", "action_mismatch");
    let session = |name: &str, other: (&str, &str)| {
        let mut attempt = bench.attempt();
        attempt.set("authorization_details", None);
        attempt.set(name, us.clone());
        attempt.add(other.0, other.1);
        attempt
    };
    let element = json!([{
        "type": "delegation", "delegate": OTHER, "actions": ["GET"],
        "locations": [bench.url("/files/*")],
    }])
    .to_string();
    let delegation = |targets: &[(&str, &str)]| {
        let mut attempt = bench.attempt();
        attempt.set("requested_token_type", DELEGATION.to_owned());
        attempt.set("authorization_details", element.clone());
        for (name, value) in targets {
            attempt.add(name, value);
        }
        attempt
    };
    let names = [("audience", "resource"), ("resource", "audience")];
    for (one, other) in names {
        for foreign in foreign.iter().chain([&origin]) {
            let answer = bench.send(session(one, (other, foreign))).await;
            refused("a session", &answer, target);
        }
        for foreign in &foreign {
            for targets in [
                vec![(one, &**foreign)],
                vec![(one, &*us), (other, foreign)],
                vec![(one, &*origin), (other, foreign)],
            ] {
                let answer = bench.send(delegation(&targets)).await;
                refused(&format!("{targets:?}"), &answer, target);
            }
        }
        issued("both", &bench.send(session(one, (other, &us))).await);
        let under = format!("{origin}/files");
        for targets in [
            vec![],
            vec![(one, &*us)],
            vec![(one, &*us), (other, &*us)],
            vec![(one, &*origin)],
            vec![(one, &*under), (other, &*us)],
        ] {
            let answer = bench.send(delegation(&targets)).await;
            issued(&format!("{targets:?}"), &answer);
        }
    }
}
