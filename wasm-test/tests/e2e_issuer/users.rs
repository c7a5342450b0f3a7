//! Agents that act for users: by a user's token beside their own evidence, and by an
//! ID-JAG.

use std::path::Path;

use serde_json::{Value, json};
use wasm_test::client::{Answer, DpopKey};
use wasm_test::system::{AGENT, Options, System};
use wasm_test::upstream::REPORT;

use crate::evidence::{Authority, decoded};
use crate::foreign::Foreign;
use crate::judging::{ACCESS, Attempt, Bench, JWT, Verdict, issued, no, refused};
use crate::plane::Prepared;
use crate::programs::{ask, clients};
use crate::rights::{done, sign_in};

pub const IDP: &str = "https://idp.example";
pub const US: &str = "https://writ.example/users";
pub const APP: &str = "crm-app";
pub const OTHER: &str = "spiffe://writ.example/agent/other";
pub const CLIENT: &str = "crm";
pub const ID_TOKEN: &str = "urn:ietf:params:oauth:token-type:id_token";
pub const ASSERTION: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
pub const MALLORY: &str = "mallory@example.com";

/// Policy that lets agents read for all users but one, and for themselves no more than
/// one file.
const POLICY: &str = r#"
@id("for-users")
permit (principal is Writ::Agent, action == Writ::Action::"GET", resource)
when { context has user && context.user.issuer == "https://idp.example" && context.user.subject != "mallory@example.com" };
@id("alone")
permit (principal is Writ::Agent, action == Writ::Action::"GET", resource)
when { !(context has user) && resource.path == "/files/report.txt" };
"#;

/// An issuer of users' tokens with this key, and a client with that one.
pub fn config(dir: &Path, idp: &Authority, client: &Authority, more: &str) -> String {
    let file = |name: &str, key: &Authority| {
        let path = dir.join(name);
        let set = json!({ "keys": [key.client_jwk()] });
        std::fs::write(&path, set.to_string()).unwrap();
        path.display().to_string()
    };
    let (users, own) = (file("idp.json", idp), file("client.json", client));
    format!(
        r#"
[[agent]]
spiffe_id = "{AGENT}"
owner = "platform@example.com"
[[agent]]
spiffe_id = "{OTHER}"
owner = "platform@example.com"
[[client]]
client_id = "{CLIENT}"
agent = "{AGENT}"
keys = "{own}"
[[identity.issuer]]
issuer = "{IDP}"
keys = "{users}"
[identity.issuer.users]
audience = "{US}"
{more}
[[identity.issuer.users.client]]
client_id = "{APP}"
agent = "{AGENT}"
[[identity.issuer.users.client]]
client_id = "other-app"
agent = "{OTHER}"
"#
    )
}

/// A user's token, with claims laid over.
pub fn user(idp: &Authority, claims: &Value) -> String {
    user_with(idp, claims, &json!({}))
}

pub fn user_with(idp: &Authority, claims: &Value, header: &Value) -> String {
    let mut all = json!({ "iss": IDP, "sub": "ann@example.com", "aud": US });
    let over = claims.as_object().unwrap().clone();
    all.as_object_mut().unwrap().extend(over);
    idp.svid_with("", US, &all, header)
}

/// An attempt of the agent for this user.
pub fn acting(bench: &Bench, token: String) -> Attempt {
    let mut attempt = bench.attempt();
    attempt.set("subject_token", token);
    attempt.set("actor_token", bench.svid());
    attempt.set("actor_token_type", JWT.to_owned());
    attempt
}

pub async fn start(more: &str) -> (tempfile::TempDir, Authority, Authority, Bench) {
    start_by(more, POLICY, "").await
}

/// The same by this policy, with other tables of the config.
pub async fn start_by(
    more: &str,
    policy: &str,
    tables: &str,
) -> (tempfile::TempDir, Authority, Authority, Bench) {
    let dir = tempfile::tempdir().unwrap();
    let (idp, client) = (Authority::fresh(), Authority::fresh());
    let config = config(dir.path(), &idp, &client, more);
    let prepared = Prepared::new().with(&format!("{config}\n{tables}"));
    prepared.write_policy(policy);
    let bench = Bench::over(prepared.start().await);
    (dir, idp, client, bench)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_for_a_user_names_both_and_what_lets_the_agent_act_decides() {
    let (_dir, idp, client, bench) = start("").await;
    let none = json!({});

    let body = issued(
        "a good one",
        &bench.send(acting(&bench, user(&idp, &none))).await,
    );
    assert_eq!(body["issued_token_type"], ACCESS);
    let (_, claims) = decoded(body["access_token"].as_str().unwrap());
    assert_eq!(claims["sub"], "ann@example.com");
    assert_eq!(claims["act"], json!({ "sub": AGENT }));
    assert_eq!(claims["client_id"], AGENT);
    let named = json!({ "format": "iss_sub", "iss": IDP, "sub": "ann@example.com" });
    assert_eq!(claims["sub_id"], named);
    let token = body["access_token"].as_str().unwrap();
    let asked = crate::tokens::about(&bench, "introspect", token, AGENT);
    let known = bench.send(asked).await.json();
    for name in ["sub", "act", "client_id", "sub_id", "aud", "jti"] {
        assert_eq!(known[name], claims[name], "{name}: {known}");
    }

    // The client's own key, and its SVID as assertion, say who acts just as well.
    let us = bench.plane.issuer();
    let own = json!({ "iss": CLIENT, "sub": CLIENT, "aud": us });
    let assertion = client.svid_with("", &us, &own, &none);
    for (kind, assertion) in [
        (ASSERTION, assertion),
        (
            "urn:ietf:params:oauth:client-assertion-type:jwt-spiffe",
            bench.svid(),
        ),
    ] {
        let mut attempt = bench.attempt();
        attempt.set("subject_token", user(&idp, &none));
        attempt.set("client_assertion_type", kind.to_owned());
        attempt.set("client_assertion", assertion);
        issued(kind, &bench.send(attempt).await);
    }

    let jkt = bench.key.thumbprint();
    let good = [
        ("for its client", json!({ "aud": APP })),
        ("for its client alone", json!({ "aud": [APP], "azp": APP })),
        ("asked for by a client", json!({ "azp": "some-app" })),
        ("may_act", json!({ "may_act": { "sub": AGENT } })),
        (
            "may_act by its name there",
            json!({ "may_act": { "client_id": APP, "iss": IDP } }),
        ),
        (
            "act",
            json!({ "act": { "sub": APP, "act": { "sub": "somebody before" } } }),
        ),
        ("bound to its key", json!({ "cnf": { "jkt": jkt } })),
    ];
    for (what, claims) in good {
        issued(what, &bench.send(acting(&bench, user(&idp, &claims))).await);
    }
    for header in [json!({ "typ": "at+jwt" }), json!({ "typ": null })] {
        let mut attempt = acting(&bench, user_with(&idp, &none, &header));
        attempt.set("subject_token_type", ACCESS.to_owned());
        issued("an access token", &bench.send(attempt).await);
    }

    let evidence = |reason| no("invalid_request", reason);
    let now = wasm_test::client::now_s();
    let bad: Vec<(&str, Value, Verdict)> = vec![
        (
            "for somebody else",
            json!({ "aud": "https://x.example" }),
            evidence("token_audience"),
        ),
        (
            "for us and others",
            json!({ "aud": [US, "https://x.example"] }),
            evidence("token_audience"),
        ),
        (
            "for the issuer, which is no user's audience",
            json!({ "aud": bench.plane.issuer() }),
            evidence("token_audience"),
        ),
        (
            "for another agent's client",
            json!({ "aud": "other-app" }),
            evidence("token_audience"),
        ),
        (
            "asked for by another client",
            json!({ "aud": APP, "azp": "other-app" }),
            evidence("token_audience"),
        ),
        (
            "may_act of another",
            json!({ "may_act": { "sub": OTHER } }),
            evidence("agent_inactive"),
        ),
        (
            "may_act of another's client",
            json!({ "may_act": { "client_id": "other-app" } }),
            evidence("agent_inactive"),
        ),
        (
            "may_act of both",
            json!({ "may_act": { "sub": AGENT, "client_id": "other-app" } }),
            evidence("agent_inactive"),
        ),
        (
            "may_act of another issuer's",
            json!({ "may_act": { "sub": AGENT, "iss": "https://x.example" } }),
            evidence("agent_inactive"),
        ),
        (
            "may_act of what is not known",
            json!({ "may_act": { "sub": AGENT, "email": "x" } }),
            evidence("agent_inactive"),
        ),
        (
            "may_act of nobody",
            json!({ "may_act": {} }),
            evidence("agent_inactive"),
        ),
        (
            "may_act of a text",
            json!({ "may_act": AGENT }),
            evidence("agent_inactive"),
        ),
        (
            "another acts already",
            json!({ "act": { "sub": OTHER, "act": { "sub": AGENT } } }),
            evidence("agent_inactive"),
        ),
        (
            "bound to another key",
            json!({ "cnf": { "jkt": DpopKey::generate().unwrap().thumbprint() } }),
            evidence("proof_key_mismatch"),
        ),
        (
            "bound to a certificate",
            json!({ "cnf": { "jkt": bench.key.thumbprint(), "x5t#S256": "A".repeat(43) } }),
            evidence("proof_key_mismatch"),
        ),
        (
            "bound in a way that is not known",
            json!({ "cnf": { "kid": "x" } }),
            evidence("proof_key_mismatch"),
        ),
        (
            "bound to nothing",
            json!({ "cnf": {} }),
            evidence("proof_key_mismatch"),
        ),
        (
            "of nobody",
            json!({ "sub": null }),
            evidence("token_malformed"),
        ),
        (
            "of a line break",
            json!({ "sub": "a\r\nb" }),
            evidence("token_malformed"),
        ),
        (
            "of too long a name",
            json!({ "sub": "a".repeat(256) }),
            evidence("token_malformed"),
        ),
        (
            "over",
            json!({ "iat": now - 100, "exp": now - 1 }),
            evidence("token_expired"),
        ),
        (
            "long",
            json!({ "exp": now + 4_000 }),
            evidence("token_lifetime"),
        ),
        (
            "of an issuer without users",
            json!({ "iss": "https://x.example" }),
            evidence("token_issuer"),
        ),
        (
            "of one whom policy does not let",
            json!({ "sub": MALLORY }),
            no("access_denied", "policy_denied"),
        ),
    ];
    for (what, claims, verdict) in bad {
        refused(
            what,
            &bench.send(acting(&bench, user(&idp, &claims))).await,
            verdict,
        );
    }
    // What an agent passes on ends with the user's word.
    let mut long = acting(&bench, user(&idp, &json!({ "exp": now + 60 })));
    let delegation = "urn:writ:params:oauth:token-type:delegation";
    long.set("requested_token_type", delegation.to_owned());
    let element = json!([{
        "type": "delegation", "delegate": OTHER, "actions": ["GET"],
        "locations": [bench.url("/files/*")], "lifetime_s": 90,
    }]);
    long.set("authorization_details", element.to_string());
    let answer = bench.send(long).await;
    refused(
        "longer",
        &answer,
        no("invalid_authorization_details", "action_mismatch"),
    );
    let forged = Authority::fresh().named_as(&idp);
    let answer = bench.send(acting(&bench, user(&forged, &none))).await;
    refused("forged", &answer, evidence("token_signature"));
    let typed = user_with(&idp, &none, &json!({ "typ": "oauth-id-jag+jwt" }));
    let answer = bench.send(acting(&bench, typed)).await;
    refused("an ID-JAG", &answer, evidence("token_malformed"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_users_token_says_nothing_of_the_agent_and_an_agents_nothing_of_the_user() {
    let (_dir, idp, _client, bench) = start("").await;
    let none = json!({});
    let request = no("invalid_request", "malformed_credentials");
    type Spoil<'s> = Box<dyn Fn(&mut Attempt) + 's>;
    let token = || user(&idp, &none);
    let spoilt: Vec<(&str, Verdict, Spoil<'_>)> = vec![
        (
            "no actor",
            request,
            Box::new(|it| {
                it.set("actor_token", None);
                it.set("actor_token_type", None);
            }),
        ),
        (
            "no type",
            request,
            Box::new(|it| it.set("actor_token_type", None)),
        ),
        (
            "a type alone",
            request,
            Box::new(|it| it.set("actor_token", None)),
        ),
        (
            "another type",
            request,
            Box::new(|it| it.set("actor_token_type", ACCESS.to_owned())),
        ),
        (
            "the user's token as the actor's",
            no("invalid_request", "token_audience"),
            Box::new(|it| {
                it.set("actor_token", token());
                it.set("actor_token_type", ID_TOKEN.to_owned());
            }),
        ),
        (
            "the agent's own as the user's",
            no("invalid_request", "token_issuer"),
            Box::new(|it| it.set("subject_token", bench.svid())),
        ),
        (
            "actor and client assertion",
            request,
            Box::new(|it| {
                it.set("client_assertion_type", ASSERTION.to_owned());
                it.set("client_assertion", "x".to_owned());
            }),
        ),
        (
            "an unregistered agent",
            no("access_denied", "agent_inactive"),
            Box::new(|it| {
                let nobody = "spiffe://writ.example/agent/nobody";
                let svid = bench.authority.svid(nobody, &bench.plane.issuer(), &none);
                it.set("actor_token", svid);
            }),
        ),
        (
            "a forged actor",
            no("invalid_request", "token_signature"),
            Box::new(|it| {
                let forged = bench.authority.impostor();
                it.set(
                    "actor_token",
                    forged.svid(AGENT, &bench.plane.issuer(), &none),
                );
            }),
        ),
        (
            "what policy lets it only for itself",
            no("access_denied", "policy_denied"),
            Box::new(|it| {
                it.set("subject_token", user(&idp, &json!({ "sub": MALLORY })));
            }),
        ),
        (
            "what policy lets it only for users",
            no("access_denied", "policy_denied"),
            Box::new(|it| {
                it.set("subject_token", bench.svid());
                it.set("actor_token", None);
                it.set("actor_token_type", None);
                let other = bench.details("/files/notes.txt").to_string();
                it.set("authorization_details", other);
            }),
        ),
    ];
    for (what, verdict, spoil) in spoilt {
        let mut attempt = acting(&bench, token());
        spoil(&mut attempt);
        refused(what, &bench.send(attempt).await, verdict);
    }
    bench.token().await;
}

/// One that is bound to a certificate is good where that is shown (RFC 8705).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_users_token_that_is_bound_to_a_certificate_needs_that() {
    let mtls = wasm_test::ports::one().unwrap();
    let base = format!("https://127.0.0.1:{mtls}");
    let dir = tempfile::tempdir().unwrap();
    let (idp, client) = (Authority::fresh(), Authority::fresh());
    let prepared = Prepared::new()
        .with(&config(dir.path(), &idp, &client, ""))
        .with(&format!(
            "[server]\nmtls_listen = \"127.0.0.1:{mtls}\"\nmtls_url = \"{base}\"\n[edge]\nclient_certificates = \"required\"\norigin = \"https://127.0.0.1:8\"\n"
        ));
    prepared.write_policy(POLICY);
    let bench = Bench::over(prepared.start().await);
    let trust = bench.plane.data().join("trust");
    let authority = wasm_test::certificates::Authority::open(&trust).unwrap();
    let (own, other) = (
        authority.svid(AGENT).unwrap(),
        authority.svid(AGENT).unwrap(),
    );
    let by = authority.client(Some(&own)).unwrap();
    let details = json!([{ "type": "http_request", "actions": ["GET"], "locations": ["https://127.0.0.1:8/files/report.txt"] }]);
    let details = details.to_string();
    let url = format!("{base}/oauth2/token");
    let jkt = bench.key.thumbprint();
    let good = json!({ "x5t#S256": own.x5t() });
    for (what, cnf, is_good) in [
        ("the certificate", good.clone(), true),
        ("both", json!({ "x5t#S256": own.x5t(), "jkt": jkt }), true),
        (
            "another certificate",
            json!({ "x5t#S256": other.x5t() }),
            false,
        ),
        (
            "both, another certificate",
            json!({ "x5t#S256": other.x5t(), "jkt": jkt }),
            false,
        ),
        ("no certificate's digest", json!({ "x5t#S256": "" }), false),
    ] {
        let user = user(&idp, &json!({ "cnf": cnf }));
        let actor = bench.svid();
        let form = [
            ("grant_type", crate::judging::GRANT),
            ("subject_token", user.as_str()),
            ("subject_token_type", JWT),
            ("actor_token", &actor),
            ("actor_token_type", JWT),
            ("authorization_details", &details),
        ];
        let request = by.post(&url).form(&form);
        let request = request.header("dpop", bench.key.proof("POST", &url, None));
        let answer = Answer::read(request.send().await.unwrap()).await.unwrap();
        if !is_good {
            refused(what, &answer, no("invalid_request", "proof_key_mismatch"));
            continue;
        }
        let body = issued(what, &answer);
        let (_, claims) = decoded(body["access_token"].as_str().unwrap());
        assert_eq!(claims["sub"], "ann@example.com", "{what}");
        assert_eq!(claims["cnf"]["x5t#S256"], own.x5t(), "{what}");
    }
    // Where no certificate is shown it proves nothing.
    let mut bare = acting(&bench, user(&idp, &json!({ "cnf": good })));
    bare.set("authorization_details", details);
    let answer = bench.send(bare).await;
    refused("bare", &answer, no("invalid_request", "proof_key_mismatch"));
}

/// A user's token is counted by the keys that it is shown under, whoever the agent is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_users_token_has_its_keys_counted() {
    let (_dir, idp, _client, mut bench) = start("").await;
    let token = user(&idp, &json!({}));
    // Another piece of the agent's own evidence each time.
    for _ in 0..16 {
        issued("a key", &bench.send(acting(&bench, token.clone())).await);
        bench.key = DpopKey::generate().unwrap();
    }
    let answer = bench.send(acting(&bench, token)).await;
    refused(
        "a key too many",
        &answer,
        no("invalid_request", "limit_exceeded"),
    );
}

/// Through a real Envoy, by a client that others wrote, with tokens of an issuer that others
/// wrote.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standard_client_acts_for_a_user_until_the_user_is_stopped() {
    let Some(clients) = clients() else { return };
    let mut idp = Foreign::start(clients).await;
    let dir = tempfile::tempdir().unwrap();
    let key = Authority::fresh();
    let keys = dir.path().join("client.json");
    let set = json!({ "keys": [key.client_jwk()] });
    std::fs::write(&keys, set.to_string()).unwrap();
    let options = Options {
        extra_config: format!(
            r#"
[[client]]
client_id = "{CLIENT}"
agent = "{AGENT}"
keys = {keys:?}
[[identity.issuer]]
issuer = "{}"
[identity.issuer.users]
audience = "{US}"
"#,
            idp.url
        ),
        ..Options::default()
    };
    let system = System::for_test(options).await.unwrap();
    let agent = system.agent().await.unwrap();
    let claims = json!({ "sub": "ann", "aud": US });
    let asked = json!({ "alg": "RS256", "claims": claims, "lives_s": 300 });
    let user = idp.signed(asked).await;
    let given = json!({
        "issuer": system.issuer(), "endpoint": format!("{}/oauth2/token", system.issuer()),
        "url": agent.url(REPORT), "client": AGENT,
        "user": user, "actor": agent.svid().await.unwrap(),
    });
    let seen = ask(clients.python("user.py"), given.clone()).await;
    assert_eq!(seen["status"], 200, "{seen}");
    let records = system.upstream().unwrap().records().unwrap();
    let record = records.last().unwrap();
    assert_eq!(record.header("x-writ-agent"), Some(AGENT));
    let named = format!("{}#ann", idp.url);
    assert_eq!(record.header("x-writ-user"), Some(named.as_str()));

    // The log has both, and the user's token nowhere.
    let mut journal = Vec::new();
    for file in std::fs::read_dir(system.audit_dir()).unwrap() {
        journal.extend(std::fs::read(file.unwrap().path()).unwrap());
    }
    let holds = |text: &str| journal.windows(text.len()).any(|it| it == text.as_bytes());
    assert!(holds(&format!(
        "\"user\":{{\"issuer\":\"{}\",\"subject\":\"ann\"}}",
        idp.url
    )));
    assert!(!holds(user.split('.').nth(1).unwrap()));

    // The same by `writ token`, from a file that others can't read.
    let file = dir.path().join("user.jwt");
    std::fs::write(&file, &user).unwrap();
    let mut command = system.writ();
    command
        .env_remove("XDG_STATE_HOME")
        .args(["token", "--json", "--user-token"]);
    command
        .arg(&file)
        .args(["--user-token-type", "jwt"])
        .arg(agent.url(REPORT));
    let got = crate::plane::run(command).await;
    let reply: Value = serde_json::from_slice(&got.stdout).unwrap();
    let claims = decoded(reply["access_token"].as_str().unwrap()).1;
    assert_eq!(
        (&claims["sub"], &claims["act"]["sub"]),
        (&json!("ann"), &json!(AGENT))
    );

    let details = agent.details("GET", REPORT).to_string();
    let svid = agent.svid().await.unwrap();
    let form = [
        ("grant_type", crate::judging::GRANT),
        ("subject_token", user.as_str()),
        ("subject_token_type", JWT),
        ("actor_token", &svid),
        ("actor_token_type", JWT),
        ("authorization_details", &details),
    ];
    let post = async || {
        let request = reqwest::Client::new()
            .post(given["endpoint"].as_str().unwrap())
            .header("dpop", agent.token_proof())
            .form(&form);
        Answer::read(request.send().await.unwrap()).await.unwrap()
    };
    let body = issued("before", &post().await);
    let kept = body["access_token"].as_str().unwrap().to_owned();
    let arrived = system.upstream().unwrap().arrived();
    sign_in(&system).await;
    let stop = ["revoke", "--user", &idp.url, "--subject", "ann"];
    done(&system, &stop, "stopped").await;
    refused(
        "stopped",
        &post().await,
        no("access_denied", "token_revoked"),
    );
    let answer = agent.present("GET", REPORT, &kept).await.unwrap();
    assert_eq!(answer.reason(), "token_revoked", "{}", answer.text());
    assert_eq!(system.upstream().unwrap().arrived(), arrived);
    let own = agent.call("GET", REPORT).await.unwrap();
    assert_eq!(own.status, 200, "for itself it goes on: {}", own.text());
    system.stop().await;
    idp.stop().await;
}
