//! What a reused refresh token brought.

use serde_json::{Value, json};
use wasm_test::client::{Agent, Answer};
use wasm_test::system::{AGENT, Options, System};
use wasm_test::upstream::REPORT;

use crate::evidence::Authority;
use crate::grants::token_of;
use crate::judging::{issued, no, refused};
use crate::users::ASSERTION;

const CLIENT: &str = "billing";

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

/// Reuse of a refresh token ends its family, and so what that brought and nobody has used.
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
    let answer = present(&kept).await;
    assert_eq!(answer.reason(), "token_revoked", "{}", answer.text());
    assert_eq!(upstream.arrived(), arrived);
    // Another family, and what has none, goes on.
    for token in [&beside, &own] {
        let answer = present(token).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    assert_eq!(upstream.arrived(), arrived + 2);
    world.system.stop().await;
}
