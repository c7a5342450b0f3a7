//! AuthZEN: an agent asks whether it may, and asks a person where that is what is missing.
//! No client of its profile for access requests is on a registry: what is sent is written
//! out here.

use serde_json::{Value, json};
use wasm_test::client::{Agent, Answer, DpopKey, Verdict as Says};
use wasm_test::system::{AGENT, Options, System};

use crate::judging::{GRANT, JWT, issued, no, refused};
use crate::plane::entries;
use crate::rights::{done, sign_in};

const POLICY: &str = r#"
@id("reads")
permit (principal is Writ::Agent, action == Writ::Action::"GET", resource);
@id("pays")
permit (principal is Writ::Agent, action == Writ::Action::"POST", resource)
when { resource.path like "/echo/*" };
@id("nothing-secret")
@tell("agent")
@reason("Secrets stay here.")
forbid (principal, action, resource) when { resource.path like "/secret*" };
@id("restricted-needs-approval")
@approvers("platform")
@tell("agent")
@reason("Somebody has to look first.")
forbid (principal, action, resource)
when { resource.path like "/echo/restricted/*" }
unless { context.approvals.contains("restricted-needs-approval") };
"#;
const ROUTES: &str = r#"
[[edge.route]]
name = "pay"
path_prefix = "/echo/pay"
upstream = "{upstream}"
body = "read"
"#;

struct Stage {
    system: System,
    agent: Agent,
    session: String,
}

impl Stage {
    async fn start() -> Stage {
        let policy = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(policy.path(), POLICY).unwrap();
        let options = Options {
            hold_s: 1,
            policy: Some(policy.path().to_owned()),
            routes: ROUTES.to_owned(),
            extra_config: "[approval]\npoll_s = 3\n".to_owned(),
            ..Options::default()
        };
        let system = System::for_test(options).await.unwrap();
        let agent = system.agent().await.unwrap();
        let svid = agent.svid().await.unwrap();
        let issuer = system.issuer();
        let form = [
            ("grant_type", GRANT),
            ("subject_token", svid.as_str()),
            ("subject_token_type", JWT),
            ("audience", &issuer),
        ];
        let request = reqwest::Client::new()
            .post(format!("{issuer}/oauth2/token"))
            .header("dpop", agent.token_proof())
            .form(&form);
        let answer = Answer::read(request.send().await.unwrap()).await.unwrap();
        let body = issued("a session", &answer);
        Stage {
            session: body["access_token"].as_str().unwrap().to_owned(),
            agent,
            system,
        }
    }

    fn asked(&self, method: &str, path: &str) -> Value {
        json!({
            "subject": { "type": "agent", "id": AGENT },
            "action": { "name": method },
            "resource": { "type": "http_request", "id": self.agent.url(path) },
            "context": { "time": "whenever" },
        })
    }

    async fn post(&self, path: &str, body: &Value, key: &DpopKey) -> Answer {
        let url = format!("{}{path}", self.system.issuer());
        let proof = key.proof("POST", &url, Some(&self.session));
        let request = reqwest::Client::new()
            .post(&url)
            .header("authorization", format!("DPoP {}", self.session))
            .header("dpop", proof)
            .header("x-request-id", "mine-1")
            .json(body);
        Answer::read(request.send().await.unwrap()).await.unwrap()
    }

    async fn evaluate(&self, body: &Value) -> Value {
        let answer = self
            .post("/access/v1/evaluation", body, self.agent.key())
            .await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.header("x-request-id"), Some("mine-1"));
        assert_eq!(answer.header("cache-control"), Some("no-store"));
        answer.json()
    }

    fn lines(&self) -> usize {
        entries(&self.system.audit_dir()).len()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_learns_what_exchange_and_edge_would_say() {
    let stage = Stage::start().await;
    let before = stage.lines();
    assert_eq!(
        stage
            .evaluate(&stage.asked("GET", "/files/report.txt"))
            .await,
        json!({ "decision": true })
    );
    let table = [
        ("DELETE", "/files/report.txt", "policy_denied", json!(null)),
        (
            "GET",
            "/secret/x",
            "policy_denied",
            json!(["Secrets stay here."]),
        ),
        // What decides is a body, which does not come here.
        ("POST", "/echo/pay/order", "body_mismatch", json!(null)),
    ];
    for (method, path, reason, why) in table {
        let said = stage.evaluate(&stage.asked(method, path)).await;
        let context = &said["context"];
        assert_eq!(said["decision"], false, "{said}");
        assert_eq!(
            (&context["reason"], &context["why"]),
            (&json!(reason), &why)
        );
        assert!(context["access_request"].is_null(), "{said}");
    }
    assert_eq!(stage.lines(), before, "a question is no entry");

    let good = || stage.asked("GET", "/files/report.txt");
    let over = |pointer: &str, value: Value| {
        let mut body = good();
        *body.pointer_mut(pointer).unwrap() = value;
        body
    };
    let request = no("invalid_request", "malformed_credentials");
    let details = no("invalid_authorization_details", "action_mismatch");
    let table = [
        (
            "another agent",
            over("/subject/id", json!("spiffe://writ.example/agent/other")),
            request,
        ),
        ("a user", over("/subject/type", json!("user")), request),
        ("no action", over("/action", json!({})), request),
        ("no resource", over("/resource", json!("x")), request),
        (
            "an unknown type",
            over("/resource/type", json!("file")),
            details,
        ),
        ("a wildcard", over("/action/name", json!("*")), details),
        (
            "a foreign place",
            over("/resource/id", json!("https://x.example/")),
            details,
        ),
        (
            "what an element has not",
            over(
                "/resource",
                json!({ "type": "http_request", "id": stage.agent.url("/files/a"), "properties": { "x": 1 } }),
            ),
            details,
        ),
        (
            "two locations",
            over(
                "/resource",
                json!({ "type": "http_request", "id": stage.agent.url("/files/a"), "properties": { "locations": [] } }),
            ),
            request,
        ),
    ];
    for (what, body, verdict) in table {
        let answer = stage
            .post("/access/v1/evaluation", &body, stage.agent.key())
            .await;
        refused(what, &answer, verdict);
    }
    let thief = DpopKey::generate().unwrap();
    let answer = stage.post("/access/v1/evaluation", &good(), &thief).await;
    refused(
        "another key",
        &answer,
        no("invalid_request", "proof_key_mismatch"),
    );
    // The proof is for one place and one session, and counts once.
    let url = format!("{}/access/v1/evaluation", stage.system.issuer());
    let proof = stage.agent.key().proof("POST", &url, Some(&stage.session));
    for verdict in [None, Some(no("invalid_dpop_proof", "proof_replayed"))] {
        let request = reqwest::Client::new()
            .post(&url)
            .header("authorization", format!("DPoP {}", stage.session))
            .header("dpop", &proof)
            .json(&good());
        let answer = Answer::read(request.send().await.unwrap()).await.unwrap();
        match verdict {
            None => assert_eq!(answer.status, 200, "{}", answer.text()),
            Some(verdict) => refused("again", &answer, verdict),
        }
    }
    let bare = reqwest::Client::new()
        .post(&url)
        .header("dpop", stage.agent.token_proof())
        .json(&good());
    let answer = Answer::read(bare.send().await.unwrap()).await.unwrap();
    assert_eq!(answer.status, 400, "{}", answer.text());

    let found = format!(
        "{}/.well-known/authzen-configuration",
        stage.system.issuer()
    );
    let found: Value = reqwest::get(found).await.unwrap().json().await.unwrap();
    assert_eq!(found["policy_decision_point"], stage.system.issuer());
    assert_eq!(found["access_evaluation_endpoint"], url);

    sign_in(&stage.system).await;
    let jkt = stage.agent.key().thumbprint();
    done(
        &stage.system,
        &["revoke", "--why", "a test", "--key", &jkt],
        "stopped",
    )
    .await;
    let answer = stage
        .post("/access/v1/evaluation", &good(), stage.agent.key())
        .await;
    assert_ne!(answer.json()["decision"], true, "{}", answer.text());
    stage.system.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_person_may_lift_can_be_asked_for_and_is_used_at_the_edge() {
    let stage = Stage::start().await;
    let approver = stage.system.approver().await.unwrap();
    let path = "/echo/restricted/x";
    let mut body = stage.asked("GET", path);
    let said = stage.evaluate(&body).await;
    let context = &said["context"];
    assert_eq!(
        (&said["decision"], &context["reason"]),
        (&json!(false), &json!("approval_pending"))
    );
    assert_eq!(context["why"], json!(["Somebody has to look first."]));
    let asks = &context["access_request"];
    let endpoint = format!("{}/access/v1/requests", stage.system.issuer());
    assert_eq!(asks["endpoint"], endpoint);
    assert!(
        approver.inbox().await.unwrap().is_empty(),
        "a question asks nobody"
    );

    // It is bound to its evaluation.
    let request = no("invalid_request", "malformed_credentials");
    let post = async |body: &Value| {
        stage
            .post("/access/v1/requests", body, stage.agent.key())
            .await
    };
    refused("unbound", &post(&body).await, request);
    let mut other = stage.asked("GET", "/echo/restricted/y");
    other["binding_token"] = asks["binding_token"].clone();
    refused("another's", &post(&other).await, request);
    body["binding_token"] = asks["binding_token"].clone();
    let answer = post(&body).await;
    assert_eq!(answer.status, 202, "{}", answer.text());
    let task = answer.json()["task"].clone();
    assert_eq!(task["status"], "pending");
    let id = task["id"].as_str().unwrap();
    let refusals = entries(&stage.system.audit_dir()).into_iter();
    let refusals = refusals.filter(|it| it["kind"] == "exchange_refused");
    assert_eq!(refusals.count(), 2, "each no to a request is an entry");
    // The same again is the same task: one notice.
    assert_eq!(post(&body).await.json()["task"]["id"], id);
    assert_eq!(approver.inbox().await.unwrap(), [id]);

    let status = async || {
        let got = reqwest::get(task["status_endpoint"].as_str().unwrap())
            .await
            .unwrap();
        Answer::read(got).await.unwrap()
    };
    let pending = status().await;
    assert_eq!(
        (pending.status, pending.header("retry-after")),
        (200, Some("3"))
    );
    assert!(pending.json()["result"].is_null());
    approver.decide(id, Says::Approve).await.unwrap();
    let approved = status().await.json();
    assert_eq!(approved["task"]["status"], "approved");
    assert_eq!(approved["result"], json!({ "mode": "reevaluate" }));
    let missing = reqwest::get(format!("{endpoint}/apr_none")).await.unwrap();
    assert_eq!(missing.status(), 404);

    // The yes is for this action, once, by way of exchange and edge.
    assert_eq!(
        stage.evaluate(&stage.asked("GET", path)).await["decision"],
        true
    );
    assert_eq!(
        stage
            .evaluate(&stage.asked("GET", "/echo/restricted/y"))
            .await["decision"],
        false
    );
    let passed = stage.agent.call("GET", path).await.unwrap();
    assert_eq!(passed.status, 200, "{}", passed.text());
    assert_eq!(
        stage.evaluate(&stage.asked("GET", path)).await["decision"],
        false
    );
    refused(
        "nothing to ask",
        &post(&{
            let mut body = stage.asked("GET", "/files/report.txt");
            body["binding_token"] = asks["binding_token"].clone();
            body
        })
        .await,
        request,
    );
    stage.system.stop().await;
}
