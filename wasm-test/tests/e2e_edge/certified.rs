//! What an agent asks for by its certificate: several capabilities at once, a session, and
//! whether it may. Each is good with that certificate and with no other.

use serde_json::{Value, json};
use wasm_test::certificates::{Authority, Certified};
use wasm_test::client::{Agent, Answer, http_client};
use wasm_test::stage::{Stage, text_at};
use wasm_test::system::AGENT;
use wasm_test::upstream::{KEYS, PAYROLL, REPORT};

use super::certificates::start;

const BATCH: &str = "/api/v1/capabilities";
const EVALUATION: &str = "/access/v1/evaluation";
const REQUESTS: &str = "/access/v1/requests";
const STRANGER: &str = "spiffe://writ.example/agent/nobody";

/// A stage, and two certificates of its agent.
struct World {
    stage: Stage,
    base: String,
    authority: Authority,
    svid: Certified,
    own: reqwest::Client,
    other: reqwest::Client,
}

impl World {
    async fn start() -> World {
        let stage = start("").await;
        let authority = stage.system.authority().unwrap();
        let svid = authority.svid(AGENT).unwrap();
        let other = authority.svid(AGENT).unwrap();
        World {
            base: stage.system.mtls_url(),
            own: authority.client(Some(&svid)).unwrap(),
            other: authority.client(Some(&other)).unwrap(),
            stage,
            authority,
            svid,
        }
    }

    fn agent(&self) -> &Agent {
        &self.stage.agent
    }

    fn element(&self, path: &str) -> Value {
        self.agent().details("GET", path)[0].clone()
    }

    /// Posts a document with a proof of that.
    async fn post(
        &self,
        client: &reqwest::Client,
        (base, path): (&str, &str),
        session: Option<&str>,
        body: &Value,
    ) -> Answer {
        let url = format!("{base}{path}");
        let proof = self.agent().key().proof("POST", &url, session);
        let mut request = client.post(&url).header("dpop", proof).json(body);
        if let Some(session) = session {
            request = request.header("authorization", format!("DPoP {session}"));
        }
        Answer::read(request.send().await.unwrap()).await.unwrap()
    }

    async fn exchange(
        &self,
        client: &reqwest::Client,
        base: &str,
        form: &[(&str, &str)],
    ) -> Answer {
        let url = format!("{base}/oauth2/token");
        let proof = self.agent().key().proof("POST", &url, None);
        let request = client.post(&url).header("dpop", proof).form(form);
        Answer::read(request.send().await.unwrap()).await.unwrap()
    }

    /// The token passes with the certificate that it is bound to, and first with no other.
    async fn passes_bound(&self, token: &str) {
        let claims = claims(token);
        assert_eq!(text_at(&claims, "/cnf/x5t#S256"), self.svid.x5t());
        assert_eq!(
            text_at(&claims, "/cnf/jkt"),
            self.agent().key().thumbprint()
        );
        let before = self.stage.arrived().unwrap();
        let by = |client: &reqwest::Client| self.agent().clone().with_client(client.clone());
        let answer = by(&self.other).present("GET", REPORT, token).await.unwrap();
        assert_eq!(answer.reason(), "certificate_mismatch", "{}", answer.text());
        assert_eq!(self.stage.arrived().unwrap(), before);
        let answer = by(&self.own).present("GET", REPORT, token).await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(self.stage.arrived().unwrap(), before + 1);
    }
}

fn claims(token: &str) -> Value {
    use base64ct::{Base64UrlUnpadded, Encoding as _};
    let part = token.split('.').nth(1).unwrap();
    serde_json::from_slice(&Base64UrlUnpadded::decode_vec(part).unwrap()).unwrap()
}

fn no(what: &str, answer: &Answer, error: &str, reason: &str) {
    assert!(answer.status >= 400, "{what}: {}", answer.text());
    let said = (answer.oauth_error(), answer.reason());
    assert_eq!(
        said,
        (error.into(), reason.into()),
        "{what}: {}",
        answer.text()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_by_a_certificate_is_bound_to_that() {
    let world = World::start().await;
    let here = (world.base.as_str(), BATCH);
    let elements = [REPORT, KEYS, REPORT].map(|path| world.element(path));
    let body = json!({ "authorization_details": elements });
    let answer = world.post(&world.own, here, None, &body).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let answer = answer.json();
    let each = answer["capabilities"].as_array().unwrap();
    assert_eq!(each.len(), 3);
    assert_eq!(each[1]["reason"], "policy_denied");
    for at in [0, 2] {
        let token = each[at]["access_token"].as_str().unwrap();
        world.passes_bound(token).await;
    }

    // Whoever shows another workload's certificate, or none, or no proof of this place.
    let stranger = world.authority.svid(STRANGER).unwrap();
    let stranger = world.authority.client(Some(&stranger)).unwrap();
    let answer = world.post(&stranger, here, None, &body).await;
    let each = answer.json();
    let each = each["capabilities"].as_array().unwrap();
    assert!(each.iter().all(|it| it["reason"] == "agent_inactive"));
    let issuer = world.stage.system.issuer();
    let answer = world
        .post(&http_client(), (&issuer, BATCH), None, &body)
        .await;
    no("none", &answer, "invalid_dpop_proof", "missing_credentials");
    let elsewhere = format!("{issuer}{BATCH}");
    let proof = world.agent().key().proof("POST", &elsewhere, None);
    let request = world.own.post(format!("{}{BATCH}", world.base));
    let request = request.header("dpop", proof).json(&body);
    let answer = Answer::read(request.send().await.unwrap()).await.unwrap();
    no(
        "a proof of another place",
        &answer,
        "invalid_dpop_proof",
        "proof_target",
    );
    world.stage.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_was_got_with_a_certificate_is_good_with_no_other() {
    let world = World::start().await;
    let issuer = world.stage.system.issuer();
    let form = [
        ("grant_type", "client_credentials"),
        ("audience", issuer.as_str()),
    ];
    let answer = world.exchange(&world.own, &world.base, &form).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let session = text_at(&answer.json(), "/access_token");
    assert!(session.starts_with("wrs_"), "{}", answer.text());

    let details = world.agent().details("GET", REPORT).to_string();
    let within = [
        (
            "grant_type",
            "urn:ietf:params:oauth:grant-type:token-exchange",
        ),
        ("subject_token", session.as_str()),
        (
            "subject_token_type",
            "urn:ietf:params:oauth:token-type:access_token",
        ),
        ("authorization_details", &details),
    ];
    let batch = json!({ "authorization_details": [world.element(REPORT)] });
    let asked = json!({
        "subject": { "type": "agent", "id": AGENT },
        "action": { "name": "GET" },
        "resource": { "type": "http_request", "id": world.agent().url(REPORT) },
    });
    let none = http_client();
    for (what, client, base) in [
        ("another certificate", &world.other, &world.base),
        ("no certificate", &none, &issuer),
    ] {
        let answer = world.exchange(client, base, &within).await;
        no(what, &answer, "invalid_request", "certificate_mismatch");
        for (path, body) in [(BATCH, &batch), (EVALUATION, &asked)] {
            let answer = world.post(client, (base, path), Some(&session), body).await;
            no(what, &answer, "invalid_request", "certificate_mismatch");
        }
    }
    // None of that has harmed it.
    let answer = world.exchange(&world.own, &world.base, &within).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let token = text_at(&answer.json(), "/access_token");
    world.passes_bound(&token).await;
    let at = |path| (world.base.as_str(), path);
    let answer = world
        .post(&world.own, at(BATCH), Some(&session), &batch)
        .await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let token = text_at(&answer.json(), "/capabilities/0/access_token");
    world.passes_bound(&token).await;
    let answer = world
        .post(&world.own, at(EVALUATION), Some(&session), &asked)
        .await;
    assert_eq!(answer.json()["decision"], true, "{}", answer.text());
    world.stage.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn by_a_certificate_alone_an_agent_asks_whether_it_may() {
    let world = World::start().await;
    let here = (world.base.as_str(), EVALUATION);
    let asked = |path: &str| {
        json!({
            "subject": { "type": "agent", "id": AGENT },
            "action": { "name": "GET" },
            "resource": { "type": "http_request", "id": world.agent().url(path) },
        })
    };
    let answer = world.post(&world.own, here, None, &asked(REPORT)).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.json(), json!({ "decision": true }));
    let answer = world.post(&world.own, here, None, &asked(KEYS)).await;
    let said = answer.json();
    assert_eq!(said["decision"], false, "{said}");
    assert!(said.to_string().contains("policy_denied"), "{said}");

    // What a person may lift is asked for where the certificate is seen.
    let answer = world.post(&world.own, here, None, &asked(PAYROLL)).await;
    let said = answer.json();
    assert_eq!(said["context"]["reason"], "approval_pending", "{said}");
    let request = &said["context"]["access_request"];
    let endpoint = text_at(request, "/endpoint");
    assert_eq!(endpoint, format!("{}{REQUESTS}", world.base));
    let mut body = asked(PAYROLL);
    body["binding_token"] = request["binding_token"].clone();
    let there = (world.base.as_str(), REQUESTS);
    let answer = world.post(&world.own, there, None, &body).await;
    assert_eq!(answer.status, 202, "{}", answer.text());
    assert_eq!(answer.json()["task"]["status"], "pending");

    // By another's certificate nothing is said of this agent.
    let stranger = world.authority.svid(STRANGER).unwrap();
    let stranger = world.authority.client(Some(&stranger)).unwrap();
    let answer = world.post(&stranger, here, None, &asked(REPORT)).await;
    assert_ne!(answer.json()["decision"], true, "{}", answer.text());
    let issuer = world.stage.system.issuer();
    let answer = world
        .post(&http_client(), (&issuer, EVALUATION), None, &asked(REPORT))
        .await;
    no("none", &answer, "invalid_dpop_proof", "missing_credentials");
    // Without a proof a certificate is nobody's question.
    let request = world.own.post(format!("{}{EVALUATION}", world.base));
    let request = request.json(&asked(REPORT)).send().await.unwrap();
    let answer = Answer::read(request).await.unwrap();
    no(
        "no proof",
        &answer,
        "invalid_dpop_proof",
        "missing_credentials",
    );
    world.stage.stop().await;
}
