//! What ended stays ended: after the reuse of a refresh token, and after a stop that was
//! lifted or a suspension that was undone.

use reqwest::Method;
use serde_json::{Value, json};
use wasm_test::client::{Agent, Answer, Operator};
use wasm_test::system::{AGENT, Options, System};
use wasm_test::upstream::{PAYROLL, REPORT};

use crate::evidence::Authority;
use crate::grants::token_of;
use crate::judging::{issued, no, refused};
use crate::users::ASSERTION;

const CLIENT: &str = "billing";
const EXCHANGE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";

struct World {
    system: System,
    agent: Agent,
    client: Authority,
    _dir: tempfile::TempDir,
}

impl World {
    async fn start() -> World {
        let dir = tempfile::tempdir().unwrap();
        let client = Authority::fresh();
        let keys = dir.path().join("client.json");
        let set = json!({ "keys": [client.client_jwk()] });
        std::fs::write(&keys, set.to_string()).unwrap();
        let options = Options {
            extra_config: format!(
                "[[client]]\nclient_id = \"{CLIENT}\"\nagent = \"{AGENT}\"\nkeys = {keys:?}\nrefresh_s = 3600\n"
            ),
            hold_s: 1,
            ..Options::default()
        };
        let system = System::for_test(options).await.unwrap();
        system.settled().await.unwrap();
        let agent = system.agent().await.unwrap();
        World {
            system,
            agent,
            client,
            _dir: dir,
        }
    }

    async fn post(&self, form: &[(&str, &str)]) -> Answer {
        let request = reqwest::Client::new()
            .post(format!("{}/oauth2/token", self.system.issuer()))
            .header("dpop", self.agent.token_proof())
            .form(form);
        Answer::read(request.send().await.unwrap()).await.unwrap()
    }

    fn assertion(&self) -> String {
        let us = self.system.issuer();
        let own = json!({ "iss": CLIENT, "sub": CLIENT, "aud": us });
        self.client.svid_with("", &us, &own, &json!({}))
    }

    async fn authenticated(&self) -> Value {
        let assertion = self.assertion();
        let details = self.agent.details("GET", REPORT).to_string();
        let answer = self
            .post(&[
                ("grant_type", "client_credentials"),
                ("client_assertion_type", ASSERTION),
                ("client_assertion", &assertion),
                ("authorization_details", &details),
            ])
            .await;
        issued("a client's own", &answer)
    }

    /// A token exchange with this as the evidence.
    async fn exchanged(&self, (subject, kind): (&str, &str), more: &[(&str, &str)]) -> Answer {
        let kind = format!("urn:ietf:params:oauth:token-type:{kind}");
        let form = [
            ("grant_type", EXCHANGE),
            ("subject_token", subject),
            ("subject_token_type", &kind),
        ];
        self.post(&[&form, more].concat()).await
    }

    /// A session, by a fresh SVID.
    async fn session(&self) -> String {
        let svid = self.agent.svid().await.unwrap();
        let us = self.system.issuer();
        let answer = self.exchanged((&svid, "jwt"), &[("audience", &us)]).await;
        token_of(&issued("a session", &answer))
    }

    async fn within(&self, session: &str) -> Answer {
        let details = self.agent.details("GET", REPORT).to_string();
        let details = [("authorization_details", &*details)];
        self.exchanged((session, "access_token"), &details).await
    }

    async fn refreshed(&self, refresh: &str) -> Answer {
        let details = self.agent.details("GET", REPORT).to_string();
        self.post(&[
            ("grant_type", "refresh_token"),
            ("refresh_token", refresh),
            ("client_assertion_type", ASSERTION),
            ("client_assertion", &self.assertion()),
            ("authorization_details", &details),
        ])
        .await
    }
}

fn refresh_of(body: &Value) -> String {
    body["refresh_token"].as_str().unwrap().to_owned()
}

/// Reuse of a refresh token ends its family, and so what that brought and nobody has used:
/// the token that the first one came with too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_reused_refresh_token_brought_does_not_pass() {
    let world = World::start().await;
    let upstream = world.system.upstream().unwrap();
    let present = async |token: &str| world.agent.present("GET", REPORT, token).await.unwrap();
    let first = world.authenticated().await;
    let body = issued("the next", &world.refreshed(&refresh_of(&first)).await);
    let (used, kept) = (token_of(&body), refresh_of(&body));
    let kept = token_of(&issued("and the next", &world.refreshed(&kept).await));
    let beside = token_of(&world.authenticated().await);
    let own = world.agent.token("GET", REPORT).await.unwrap();
    let passed = present(&used).await;
    assert_eq!(passed.status, 200, "{}", passed.text());

    let arrived = upstream.arrived();
    let reuse = world.refreshed(&refresh_of(&first)).await;
    refused("reuse", &reuse, no("invalid_grant", "token_spent"));
    for token in [&kept, &token_of(&first)] {
        let answer = present(token).await;
        assert_eq!(answer.reason(), "token_revoked", "{}", answer.text());
    }
    assert_eq!(upstream.arrived(), arrived);
    // Another family, and what has none, goes on.
    for token in [&beside, &own] {
        let answer = present(token).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    assert_eq!(upstream.arrived(), arrived + 2);
    world.system.stop().await;
}

/// Somebody says yes to what waits, and the answer is for whoever asks next.
async fn approved(world: &World, operator: &Operator) {
    let answer = world.agent.call("GET", PAYROLL).await.unwrap();
    assert_eq!(answer.reason(), "approval_pending", "{}", answer.text());
    let id = answer.json()["approval_id"].as_str().unwrap().to_owned();
    let path = format!("/api/v1/approvals/{id}");
    let shown = operator.send(Method::GET, &path, &json!({})).await.unwrap();
    let digest = json!({ "digest": shown.json()["digest"] });
    let path = format!("{path}/approve");
    operator.send(Method::POST, &path, &digest).await.unwrap();
}

/// The session, the refresh token and the yes that were had before a stop, and before a
/// suspension, are good for nothing when the agent may act again; what it gets anew is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_reactivation_revives_a_session_a_refresh_token_or_a_yes() {
    let world = World::start().await;
    let issuer = world.system.issuer();
    let link = &world.system.serve_ready().approver_login;
    let operator = Operator::login_at(link, &issuer).await.unwrap();
    let upstream = world.system.upstream().unwrap();
    let put = async |body: Value| {
        let put = operator.send(Method::PUT, "/api/v1/agents", &body).await;
        put.unwrap();
    };
    for suspended in [false, true] {
        let session = world.session().await;
        issued("in the session", &world.within(&session).await);
        let refresh = refresh_of(&world.authenticated().await);
        approved(&world, &operator).await;
        let target = json!({ "agent": AGENT });
        if suspended {
            put(json!({ "agent": AGENT, "state": "suspended" })).await;
            put(json!({ "agent": AGENT, "state": "active" })).await;
        } else {
            operator.stop(&target).await.unwrap();
            operator.lift(&target).await.unwrap();
        }
        let arrived = upstream.arrived();
        let answer = world.within(&session).await;
        refused("the session", &answer, no("access_denied", "token_revoked"));
        let answer = world.refreshed(&refresh).await;
        refused("the refresh", &answer, no("access_denied", "token_revoked"));
        let answer = world.agent.call("GET", PAYROLL).await.unwrap();
        assert_eq!(answer.reason(), "approval_pending", "{}", answer.text());
        assert_eq!(upstream.arrived(), arrived);
        // What was ended stays so, and a new start is one.
        issued("anew", &world.within(&world.session().await).await);
        let answer = world.agent.call("GET", REPORT).await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(upstream.arrived(), arrived + 1);
    }
    world.system.stop().await;
}
