//! ID-JAGs: grants of an enterprise's identity provider, once and for one client.

use serde_json::{Value, json};
use wasm_test::client::Answer;
use wasm_test::system::{AGENT, Options, System};
use wasm_test::upstream::REPORT;

use crate::evidence::{Authority, decoded};
use crate::judging::{Attempt, Bench, Verdict, issued, no, refused};
use crate::programs::{ask, clients};
use crate::users::{APP, ASSERTION, CLIENT, IDP, MALLORY, US, start};

const BEARER: &str = "urn:ietf:params:oauth:grant-type:jwt-bearer";

/// An ID-JAG for the client, with claims laid over.
pub fn id_jag(idp: &Authority, us: &str, claims: &Value, header: &Value) -> String {
    let mut all = json!({ "iss": IDP, "sub": "ann@example.com", "aud": us, "client_id": CLIENT });
    let over = claims.as_object().unwrap().clone();
    all.as_object_mut().unwrap().extend(over);
    let mut head = json!({ "typ": "oauth-id-jag+jwt" });
    let over = header.as_object().unwrap().clone();
    head.as_object_mut().unwrap().extend(over);
    idp.svid_with("", us, &all, &head)
}

pub fn bearing(bench: &Bench, client: &Authority, jag: String) -> Attempt {
    let us = bench.plane.issuer();
    let own = json!({ "iss": CLIENT, "sub": CLIENT, "aud": us });
    let mut attempt = bench.attempt();
    attempt.set("grant_type", BEARER.to_owned());
    attempt.set("subject_token", None);
    attempt.set("subject_token_type", None);
    attempt.set("assertion", jag);
    attempt.set("client_assertion_type", ASSERTION.to_owned());
    let assertion = client.svid_with("", &us, &own, &json!({}));
    attempt.set("client_assertion", assertion);
    attempt
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_id_jag_is_a_grant_once_for_the_client_that_it_names() {
    let more = "id_jag = true\nscopes = [\"openid\", \"mcp\"]";
    let (_dir, idp, client, bench) = start(more).await;
    let us = bench.plane.issuer();
    let none = json!({});
    let one = |claims: &Value| id_jag(&idp, &us, claims, &none);
    let post = async |jag: String| bench.send(bearing(&bench, &client, jag)).await;

    let first = one(&none);
    let body = issued("a good one", &post(first.clone()).await);
    assert!(body.get("issued_token_type").is_none());
    let (_, claims) = decoded(body["access_token"].as_str().unwrap());
    assert_eq!(
        (&claims["sub"], &claims["act"]),
        (&json!("ann@example.com"), &json!({ "sub": AGENT }))
    );
    let grant = |reason| no("invalid_grant", reason);
    refused("again", &post(first.clone()).await, grant("token_spent"));
    let (_, used) = decoded(&first);
    let renamed = one(&json!({ "jti": used["jti"], "exp": used["exp"].as_u64().unwrap() - 1 }));
    refused("the same name", &post(renamed).await, grant("token_spent"));

    let origin = bench.plane.origin();
    let report = bench.details("/files/report.txt");
    let good = [
        ("scopes", json!({ "scope": "openid mcp" })),
        (
            "a resource",
            json!({ "resource": format!("{origin}/files") }),
        ),
        (
            "resources",
            json!({ "resource": ["https://x.example", origin] }),
        ),
        ("the action", json!({ "authorization_details": report })),
        ("its SPIFFE ID", json!({ "client_id": AGENT })),
        ("its name there", json!({ "client_id": APP })),
        (
            "its key",
            json!({ "cnf": { "jkt": bench.key.thumbprint() } }),
        ),
    ];
    for (what, claims) in good {
        issued(what, &post(one(&claims)).await);
    }
    let now = wasm_test::client::now_s();
    let bad: Vec<(&str, String, Verdict)> = vec![
        (
            "a scope that narrows",
            one(&json!({ "scope": "mcp admin" })),
            grant("action_mismatch"),
        ),
        (
            "a scope that is none",
            one(&json!({ "scope": ["mcp"] })),
            grant("token_malformed"),
        ),
        (
            "another resource",
            one(&json!({ "resource": "https://x.example" })),
            no("invalid_target", "action_mismatch"),
        ),
        (
            "no resource",
            one(&json!({ "resource": [] })),
            no("invalid_target", "action_mismatch"),
        ),
        (
            "another action",
            one(&json!({ "authorization_details": bench.details("/files/notes.txt") })),
            no("invalid_authorization_details", "action_mismatch"),
        ),
        (
            "what is no action",
            one(&json!({ "authorization_details": [{ "type": "x" }] })),
            grant("token_malformed"),
        ),
        (
            "another client",
            one(&json!({ "client_id": "other-app" })),
            grant("token_audience"),
        ),
        (
            "no client",
            one(&json!({ "client_id": null })),
            grant("token_audience"),
        ),
        (
            "another audience",
            one(&json!({ "aud": US })),
            grant("token_audience"),
        ),
        (
            "no name",
            one(&json!({ "jti": null })),
            grant("token_malformed"),
        ),
        (
            "over",
            one(&json!({ "iat": now - 100, "exp": now - 1 })),
            grant("token_expired"),
        ),
        (
            "before the start",
            one(&json!({ "iat": now - 300, "exp": now + 60 })),
            grant("token_spent"),
        ),
        (
            "another key's",
            one(&json!({ "cnf": { "jkt": "A".repeat(43) } })),
            grant("proof_key_mismatch"),
        ),
        (
            "an ID token",
            id_jag(&idp, &us, &none, &json!({ "typ": "JWT" })),
            grant("token_malformed"),
        ),
        (
            "no type",
            id_jag(&idp, &us, &none, &json!({ "typ": null })),
            grant("token_malformed"),
        ),
        (
            "an unknown issuer",
            one(&json!({ "iss": "https://x.example" })),
            grant("token_issuer"),
        ),
        (
            "one whom policy does not let",
            one(&json!({ "sub": MALLORY })),
            no("access_denied", "policy_denied"),
        ),
    ];
    for (what, jag, verdict) in bad {
        refused(what, &post(jag).await, verdict);
    }
    // No grant comes of what narrows: it would not be held to it.
    let narrow = json!({ "resource": format!("{origin}/files") });
    for (what, jag, wanted) in [
        ("a session", one(&narrow), 400),
        ("a session of what does not narrow", one(&none), 200),
    ] {
        let mut attempt = bearing(&bench, &client, jag);
        attempt.set("authorization_details", None);
        attempt.set("audience", us.clone());
        let answer = bench.send(attempt).await;
        assert_eq!(answer.status, wanted, "{what}: {}", answer.text());
        if wanted == 200 {
            let session = answer.json()["access_token"].as_str().unwrap().to_owned();
            let mut within = bench.attempt();
            within.set("subject_token", session);
            within.set("subject_token_type", crate::judging::ACCESS.to_owned());
            let body = issued("in it", &bench.send(within).await);
            let (_, claims) = decoded(body["access_token"].as_str().unwrap());
            assert_eq!(claims["sub"], "ann@example.com");
            assert_eq!(claims["act"], json!({ "sub": AGENT }));
        }
    }
    let mut nobody = bearing(&bench, &client, one(&none));
    nobody.set("client_assertion", None);
    nobody.set("client_assertion_type", None);
    refused(
        "no client",
        &bench.send(nobody).await,
        no("unsupported_grant_type", "malformed_credentials"),
    );
    // What was refused has used nothing up.
    let kept = one(&none);
    let mut wrong = bearing(&bench, &client, kept.clone());
    wrong.set("authorization_details", "[]".to_owned());
    refused(
        "no action",
        &bench.send(wrong).await,
        no("invalid_authorization_details", "action_mismatch"),
    );
    issued("then", &post(kept).await);

    // Attack E06: of many at the same moment one counts.
    let raced = one(&none);
    let all = (0..50).map(|_| post(raced.clone()));
    let answers: Vec<Answer> = futures::future::join_all(all).await;
    let served = answers.iter().filter(|it| it.status == 200).count();
    assert_eq!(served, 1);

    let metadata = format!("{us}/.well-known/oauth-authorization-server");
    let metadata: Value = reqwest::get(metadata).await.unwrap().json().await.unwrap();
    let profiles = &metadata["authorization_grant_profiles_supported"];
    assert_eq!(
        *profiles,
        json!(["urn:ietf:params:oauth:grant-profile:id-jag"])
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn id_jags_are_taken_only_where_the_config_says_so() {
    let (_dir, idp, client, bench) = start("").await;
    let jag = id_jag(&idp, &bench.plane.issuer(), &json!({}), &json!({}));
    let answer = bench.send(bearing(&bench, &client, jag)).await;
    refused("not taken", &answer, no("invalid_grant", "token_issuer"));
}

/// Where an MCP server is, and what agents may do there for users.
fn with_mcp(dir: &std::path::Path, options: Options) -> (u16, Options) {
    let port = wasm_test::ports::free(None).unwrap().upstream;
    let policy = dir.join("policy.cedar");
    let text = r#"
@id("files")
permit (principal is Writ::Agent, action == Writ::Action::"GET", resource)
when { resource.path like "/files/*" };
@id("mcp")
permit (principal is Writ::Agent, action in [Writ::Action::"GET", Writ::Action::"POST"], resource)
when { resource.path == "/mcp" && context has user };
"#;
    std::fs::write(&policy, text).unwrap();
    let options = Options {
        routes: format!(
            "\n[[edge.route]]\nname = \"mcp\"\npath_prefix = \"/mcp\"\nupstream = \"127.0.0.1:{port}\"\n"
        ),
        extra_config: format!("{}\n[edge]\nmetadata = true\n", options.extra_config),
        policy: Some(policy),
        ..options
    };
    (port, options)
}

/// The provider of MCP's SDK for enterprise-managed authorization: it finds everything from
/// the server's URL.
async fn mcp_acts_for_a_user(
    clients: &crate::programs::Clients,
    system: &System,
    port: u16,
    (key, idp): (&Authority, &Authority),
) {
    let url = format!("{}/mcp", system.proxy_url());
    let given = json!({
        "issuer": system.issuer(), "client": CLIENT, "key": key.private_jwk(), "idp": IDP,
        "idp_key": idp.private_jwk(), "user": "ann@example.com", "url": url, "port": port,
    });
    let seen = ask(clients.node("idjag.mjs"), given).await;
    assert_eq!(seen["sum"], "3", "{seen}");
    assert_eq!(seen["called"], json!([["add", 1, 2]]));
    // A grant for each of three messages, which each comes without a token that is good.
    let grant = json!([system.issuer(), system.proxy_url()]);
    assert_eq!(seen["asked"], json!([grant, grant, grant]), "{seen}");
    let spent = || json!(["POST", 401, "token_spent"]);
    let told = json!([
        ["POST", 401, "missing_credentials"],
        ["POST", 200, null],
        spent(),
        ["POST", 202, null],
        spent(),
        ["POST", 200, null],
    ]);
    assert_eq!(seen["seen"], told, "{seen}");
    assert_eq!(seen["complaints"], json!([]), "{seen}");
}

/// Through a real Envoy, by clients that others wrote.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn standard_clients_act_on_an_id_jag_once() {
    let Some(clients) = clients() else { return };
    let dir = tempfile::tempdir().unwrap();
    let (key, idp) = (Authority::fresh(), Authority::fresh());
    let write = |name: &str, key: &Authority| {
        let path = dir.path().join(name);
        std::fs::write(&path, json!({ "keys": [key.client_jwk()] }).to_string()).unwrap();
        path
    };
    let (own, users) = (write("client.json", &key), write("idp.json", &idp));
    let options = Options {
        extra_config: format!(
            r#"
[[client]]
client_id = "{CLIENT}"
agent = "{AGENT}"
keys = {own:?}
[[identity.issuer]]
issuer = "{IDP}"
keys = {users:?}
[identity.issuer.users]
id_jag = true
"#
        ),
        ..Options::default()
    };
    let (port, options) = with_mcp(dir.path(), options);
    let system = System::for_test(options).await.unwrap();
    let agent = system.agent().await.unwrap();
    // Made before the start, as far as can be told, until this is over.
    tokio::time::sleep(std::time::Duration::from_secs(11)).await;
    let jag = id_jag(&idp, &system.issuer(), &json!({}), &json!({}));
    let given = json!({
        "issuer": system.issuer(), "endpoint": format!("{}/oauth2/token", system.issuer()),
        "url": agent.url(REPORT), "client": CLIENT, "key": key.private_jwk(), "id_jag": jag,
    });
    let seen = ask(clients.python("user.py"), given).await;
    assert_eq!(seen["status"], 200, "{seen}");
    assert_eq!(seen["again"], "InvalidGrant", "{seen}");
    let records = system.upstream().unwrap().records().unwrap();
    let named = format!("{IDP}#ann@example.com");
    assert_eq!(records.len(), 1);
    assert_eq!(records[0].header("x-writ-user"), Some(named.as_str()));
    mcp_acts_for_a_user(clients, &system, port, (&key, &idp)).await;
    system.stop().await;
}
