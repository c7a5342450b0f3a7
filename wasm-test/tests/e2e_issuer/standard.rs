//! What else clients do that others wrote without knowing Writ: find who issues a resource's
//! tokens, show a certificate, have a wrong clock, go on by refresh tokens, let another agent
//! do something, verify tokens over a rotation, and ask a decision point.

use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use wasm_test::client::Agent;
use wasm_test::ports;
use wasm_test::system::{AGENT, Options, System};
use wasm_test::upstream::REPORT;

use crate::evidence::{Authority, decoded};
use crate::grants::{AGENTS, CHILD};
use crate::judging::ACCESS;
use crate::plane::run;
use crate::programs::{Clients, ask, clients};

const DELEGATION: &str = "urn:writ:params:oauth:token-type:delegation";
/// A request that passed.
const PASSED: u64 = 200;

/// Who got the last request through to the upstream.
fn last_agent(system: &System) -> String {
    let records = system.upstream().unwrap().records().unwrap();
    let last = records.last().expect("nothing has arrived");
    last.header("x-writ-agent").unwrap().to_owned()
}

/// RFC 9728: the guarded URL is all that a client is told. `below` is where its resource is.
async fn is_found(clients: &Clients, below: &str) {
    let ports = ports::free(None).unwrap();
    let origin = format!("http://127.0.0.1:{}", ports.proxy);
    let resource = format!("{origin}{below}");
    let system = System::for_test(Options {
        wanted_ports: Some(ports),
        extra_config: format!("[edge]\nmetadata = true\nresource = \"{resource}\"\n"),
        ..Options::default()
    })
    .await
    .unwrap();
    assert_eq!(system.proxy_url(), origin, "the port was taken");
    let authority = Authority::of(&system.data_dir());
    let endpoint = match below {
        // Of a resource that is an origin, all URLs there are its own.
        "" => format!("{origin}{REPORT}"),
        _ => resource.clone(),
    };
    let given = json!({
        "resource": resource, "endpoint": endpoint, "agent": AGENT, "url": format!("{origin}{REPORT}"),
        "svid": authority.svid(AGENT, &system.issuer(), &json!({})),
    });
    let seen = ask(clients.node("resource.mjs"), given).await;
    assert_eq!(seen["acted"]["status"], PASSED, "{below}: {seen}");
    assert_eq!(seen["issuer"], system.issuer(), "{below}: {seen}");
    assert_eq!(seen["bound"], true);
    for line in ["v1", "v2"] {
        let expected = json!({
            "resource": resource, "bound": true, "allowed": true,
            "token_endpoint": seen["token_endpoint"], "server": system.issuer(),
        });
        assert_eq!(seen["mcp"][line], expected, "MCP {line}, {below}");
    }
    assert_eq!(last_agent(&system), AGENT);
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn standard_clients_find_the_issuer_from_a_guarded_url_alone() {
    let Some(clients) = clients() else { return };
    is_found(clients, "").await;
    is_found(clients, "/files").await;
}

/// Item 1's recommended evidence.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn standard_clients_show_an_x509_svid_and_nothing_else() {
    let Some(clients) = clients() else { return };
    let options = Options {
        client_certificates: true,
        ..Options::default()
    };
    let system = System::for_test(options).await.unwrap();
    system.settled().await.unwrap();
    let before = system.upstream().unwrap().arrived();
    let given = json!({
        "issuer": system.issuer(), "socket": system.workload_api(),
        "url": format!("{}{REPORT}", system.proxy_url()),
    });
    let seen = ask(clients.python("certificate.py"), given).await;
    assert_eq!(seen["agent"], AGENT, "{seen}");
    assert_eq!(
        seen["endpoint"],
        format!("{}/oauth2/token", system.mtls_url())
    );
    let methods = seen["method"].as_array().unwrap();
    assert!(methods.contains(&json!("tls_client_auth")), "{methods:?}");
    assert_eq!(seen["status"], PASSED, "{seen}");
    assert!(seen["body"].as_str().unwrap().contains("Quarterly report"));
    assert_eq!(seen["token_type"], "DPoP");
    let (_, claims) = decoded(seen["token"].as_str().unwrap());
    let x5t = claims["cnf"]["x5t#S256"].as_str().unwrap();
    assert_eq!((x5t.len(), &claims["sub"]), (43, &json!(AGENT)), "{claims}");
    assert_eq!(seen["known"]["active"], true, "{seen}");
    assert_eq!(seen["known"]["cnf"], claims["cnf"]);
    let without = seen["without"].as_str().unwrap_or_default();
    assert!(without.ends_with("Error"), "{seen}");
    assert_eq!(system.upstream().unwrap().arrived(), before + 1);
    assert_eq!(last_agent(&system), AGENT);
    system.stop().await;
}

/// RFC 9449, section 8: two requests, the first with the wrong time and no nonce.
fn is_healed(who: &str, skew_s: i64, sent: &Value) {
    let sent = sent.as_array().unwrap();
    let first = (&sent[0]["status"], &sent[0]["nonce"]);
    assert_eq!(first, (&json!(400), &json!(false)), "{who}: {sent:?}");
    let second = (&sent[1]["status"], &sent[1]["nonce"]);
    assert_eq!(second, (&json!(200), &json!(true)), "{who}: {sent:?}");
    for proof in sent {
        let off_s = proof["off_s"].as_i64().unwrap();
        assert!((off_s - skew_s).abs() < 30, "{who}: its clock is right");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn standard_clients_get_a_token_though_their_clock_is_an_hour_off() {
    let Some(clients) = clients() else { return };
    let system = System::for_test(Options::default()).await.unwrap();
    let agent = system.agent().await.unwrap();
    let arrived = system.upstream().unwrap().arrived();
    for skew_s in [-3_600, 3_600] {
        let given = json!({
            "issuer": system.issuer(), "agent": AGENT, "svid": agent.svid().await.unwrap(),
            "url": agent.url(REPORT), "skew_s": skew_s,
        });
        let seen = ask(clients.node("clock.mjs"), given.clone()).await;
        for (who, requests) in [("openid", 3), ("oauth", 2)] {
            let sent = &seen[who]["sent"];
            is_healed(who, skew_s, sent);
            assert_eq!(sent.as_array().unwrap().len(), requests, "{who}: {sent}");
            assert_eq!(seen[who]["claims"]["sub"], AGENT);
            // The edge goes by the time, and gives no nonce.
            let refused = json!({ "status": 401, "reason": "proof_time" });
            assert_eq!(seen[who]["edge"], refused, "{who}");
        }
        assert_eq!(seen["openid"]["sent"][2]["nonce"], true, "it keeps it");
        let seen = ask(clients.python("clock.py"), given).await;
        is_healed("requests_oauth2client", skew_s, &seen["sent"]);
        assert_eq!(seen["sent"].as_array().unwrap().len(), 2, "{seen}");
        assert_eq!(seen["claims"]["sub"], AGENT);
    }
    assert_eq!(system.upstream().unwrap().arrived(), arrived);
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn standard_clients_go_on_by_refresh_tokens_until_one_is_used_twice() {
    let Some(clients) = clients() else { return };
    let dir = tempfile::tempdir().unwrap();
    let (key, config) = crate::clients::client(dir.path());
    let system = System::for_test(Options {
        extra_config: format!("{config}refresh_s = 3600\n"),
        ..Options::default()
    })
    .await
    .unwrap();
    let given = json!({
        "issuer": system.issuer(), "client": crate::clients::CLIENT, "key": key.private_jwk(),
        "url": format!("{}{REPORT}", system.proxy_url()),
    });
    let reuse = json!({ "error": "invalid_grant", "reason": "token_spent" });
    let family = json!({ "error": "access_denied", "reason": "token_revoked" });
    let is_one_life = |who: &str, seen: &Value| {
        assert_eq!(seen["acted"]["status"], PASSED, "{who}: {seen}");
        assert_eq!(seen["reuse"], reuse, "{who}: {seen}");
        assert_eq!(seen["family"], family, "{who}: {seen}");
    };
    let seen = ask(clients.node("refresh.mjs"), given.clone()).await;
    for who in ["oauth", "openid"] {
        is_one_life(who, &seen[who]);
        let revoked = json!({ "status": 401, "reason": "token_revoked" });
        assert_eq!(seen[who]["brought"], revoked, "{who}");
    }
    let seen = ask(clients.python("refresh.py"), given).await;
    is_one_life("requests_oauth2client", &seen);
    assert_eq!(system.upstream().unwrap().arrived(), 3);
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn standard_clients_delegate_and_have_sessions() {
    let Some(clients) = clients() else { return };
    let system = System::for_test(Options {
        extra_config: AGENTS.to_owned(),
        ..Options::default()
    })
    .await
    .unwrap();
    let authority = Authority::of(&system.data_dir());
    let issuer = system.issuer();
    let origin = system.proxy_url();
    let given = json!({
        "issuer": issuer, "agent": AGENT, "child": CHILD,
        "svid": authority.svid(AGENT, &issuer, &json!({})),
        "child_svid": authority.svid(CHILD, &issuer, &json!({})),
        "url": format!("{origin}{REPORT}"), "over": format!("{origin}/files/*"),
    });
    let seen = ask(clients.node("delegate.mjs"), given.clone()).await;
    let passed = json!({ "status": PASSED });
    for who in ["oauth", "openid"] {
        let it = &seen[who];
        assert_eq!(it["delegation"], json!(["n_a", DELEGATION, 2]), "{who}");
        assert_eq!(it["child"], passed, "{who}: {seen}");
        assert_eq!(it["session"], json!(["dpop", ACCESS]), "{who}");
        assert_eq!(it["within"], passed, "{who}: {seen}");
        let refused = json!({ "status": 401, "reason": "token_malformed" });
        assert_eq!(it["session_at_the_edge"], refused, "{who}");
    }
    // RFC 8693 has it so; a client that does not know that type says so.
    let untold = seen["untold"].as_str().unwrap();
    assert!(untold.contains("unsupported `token_type`"), "{untold}");
    let seen = ask(clients.python("delegate.py"), given).await;
    assert_eq!(seen["delegation"], json!(["N_A", DELEGATION]), "{seen}");
    assert_eq!(seen["child"], PASSED, "{seen}");
    assert_eq!(seen["session"], json!(["DPoP", ACCESS]), "{seen}");
    assert_eq!(seen["within"], PASSED, "{seen}");
    let records = system.upstream().unwrap().records().unwrap();
    let agents: Vec<_> = records.iter().map(|it| it.header("x-writ-agent")).collect();
    assert_eq!(agents, [Some(CHILD), Some(AGENT)].repeat(3));
    system.stop().await;
}

/// Until a token is signed by another key than this one.
async fn signed_anew(agent: &Agent, old: &Value) -> String {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let token = agent.token("GET", REPORT).await.unwrap();
        if decoded(&token).0["kid"] != *old {
            return token;
        }
        assert!(Instant::now() < deadline, "no other key signs");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Item 7: a resource server that verifies by the published keys never lacks one, where it
/// asks again as soon as the keys may change; and what the old key signed stays good.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standard_key_set_follows_a_rotation() {
    let Some(clients) = clients() else { return };
    let system = System::for_test(Options {
        token_lifetime_s: 120,
        ..Options::default()
    })
    .await
    .unwrap();
    let agent = system.agent().await.unwrap();
    let mut verifier = tokio::process::Command::from(clients.node("rotated.mjs"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut asks = verifier.stdin.take().unwrap();
    let mut says = BufReader::new(verifier.stdout.take().unwrap()).lines();
    let mut say = async |line: String| {
        asks.write_all(format!("{line}\n").as_bytes())
            .await
            .unwrap();
    };
    let jwks = format!("{}/.well-known/jwks.json", system.issuer());
    say(json!({ "jwks": jwks, "issuer": system.issuer() }).to_string()).await;
    let mut verified = async |token: &str| -> Value {
        say(token.to_owned()).await;
        let line = says.next_line().await.unwrap();
        serde_json::from_str(&line.expect("the verifier has ended")).unwrap()
    };

    let first = agent.token("GET", REPORT).await.unwrap();
    let old = decoded(&first).0["kid"].clone();
    let said = verified(&first).await;
    assert_eq!((&said["verified"], &said["fetched"]), (&old, &json!(1)));
    let mut rotate = system.writ();
    let config = system.state_dir().join("writ.toml");
    rotate
        .args(["keys", "rotate", "--files", "--config"])
        .arg(config);
    let rotated = run(rotate).await;
    assert!(rotated.status.success(), "{rotated:?}");
    let second = signed_anew(&agent, &old).await;
    let new = decoded(&second).0["kid"].clone();
    let said = verified(&second).await;
    assert_eq!(said["verified"], new, "{said}");
    assert_eq!(said["fetched"], 2, "it asks for the key that it lacks");
    let said = verified(&first).await;
    assert_eq!(said["verified"], old, "still published: {said}");
    // A key that is not published is asked for once more, and no more.
    let forged = Authority::fresh().svid(AGENT, &system.issuer(), &json!({}));
    let said = verified(&forged).await;
    assert_eq!(said["code"], "ERR_JWKS_NO_MATCHING_KEY", "{said}");
    system.stop().await;
}

/// Item 4: AuthZEN 1.0 as somebody else's client speaks it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standard_authzen_client_learns_what_the_edge_would_say() {
    let Some(clients) = clients() else { return };
    let system = System::for_test(Options {
        client_certificates: true,
        ..Options::default()
    })
    .await
    .unwrap();
    let question = |method: &str, path: &str| {
        json!({
            "subject": { "type": "agent", "id": AGENT },
            "action": method,
            "resource": { "type": "http_request", "id": format!("{}{path}", system.proxy_url()) },
        })
    };
    let mut other = question("GET", REPORT);
    other["subject"]["id"] = json!("spiffe://writ.example/agent/other");
    let given = json!({
        "issuer": system.issuer(), "socket": system.workload_api(), "at": system.mtls_url(),
        "questions": [question("GET", REPORT), question("DELETE", REPORT), other],
    });
    let seen = ask(clients.python("authzen.py"), given).await;
    let found = &seen["metadata"]["access_evaluation_endpoint"];
    let at = format!("{}/access/v1/evaluation", system.issuer());
    assert_eq!(*found, at, "where the client asks");
    let answers = &seen["answers"];
    assert_eq!(answers[0]["allowed"], true, "{seen}");
    assert_eq!(answers[1]["allowed"], false, "{seen}");
    assert_eq!(answers[1]["context"]["reason"], "policy_denied", "{seen}");
    // A question about another is no decision, and the client does not take it for one.
    assert_eq!(answers[2]["status"], 400, "{seen}");
    assert_eq!(answers[2]["body"]["error"], "invalid_request", "{seen}");
    system.stop().await;
}
