//! What is done for a user is stopped: by one agent, or by all; at the exchange, at a real
//! Envoy, and what was given before for good.

use std::collections::BTreeMap;

use serde_json::json;
use wasm_test::client::{Agent, Answer};
use wasm_test::system::{AGENT, Options, System};
use wasm_test::upstream::REPORT;

use crate::evidence::Authority;
use crate::grants::token_of;
use crate::judging::{GRANT, JWT, issued, no, refused};
use crate::rights::{done, sign_in};
use crate::users::{IDP, OTHER, config, user};

const ANN: &str = "ann@example.com";
const BOB: &str = "bob@example.com";
/// Who acts for whom.
const PAIRS: [(&str, &str); 4] = [(AGENT, ANN), (AGENT, BOB), (OTHER, ANN), (OTHER, BOB)];

type Pair = (&'static str, &'static str);

struct World {
    system: System,
    /// Its key is what all tokens are bound to.
    agent: Agent,
    idp: Authority,
    _dir: tempfile::TempDir,
}

impl World {
    async fn start() -> World {
        let dir = tempfile::tempdir().unwrap();
        let (idp, client) = (Authority::fresh(), Authority::fresh());
        let options = Options {
            extra_config: config(dir.path(), &idp, &client, ""),
            token_lifetime_s: 120,
            ..Options::default()
        };
        let system = System::for_test(options).await.unwrap();
        system.settled().await.unwrap();
        let agent = system.agent().await.unwrap();
        sign_in(&system).await;
        World {
            system,
            agent,
            idp,
            _dir: dir,
        }
    }

    /// An exchange by this agent for this user.
    async fn asks(&self, (agent, subject): Pair) -> Answer {
        let own = Authority::of(&self.system.data_dir());
        let actor = own.svid(agent, &self.system.issuer(), &json!({}));
        let user = user(&self.idp, &json!({ "sub": subject }));
        let details = self.agent.details("GET", REPORT).to_string();
        let form = [
            ("grant_type", GRANT),
            ("subject_token", &user),
            ("subject_token_type", JWT),
            ("actor_token", &actor),
            ("actor_token_type", JWT),
            ("authorization_details", &details),
        ];
        let request = reqwest::Client::new()
            .post(format!("{}/oauth2/token", self.system.issuer()))
            .header("dpop", self.agent.token_proof())
            .form(&form);
        Answer::read(request.send().await.unwrap()).await.unwrap()
    }

    /// A token for each pair, which nobody has shown yet.
    async fn tokens(&self) -> BTreeMap<Pair, String> {
        let mut all = BTreeMap::new();
        for pair in PAIRS {
            let body = issued(&format!("{pair:?}"), &self.asks(pair).await);
            all.insert(pair, token_of(&body));
        }
        all
    }

    /// At the edge: those of `stopped` do not pass and reach nothing, the others do.
    async fn judge_edge(&self, had: BTreeMap<Pair, String>, stopped: &[Pair]) {
        for (pair, token) in had {
            let before = self.system.upstream().unwrap().arrived();
            let answer = self.agent.present("GET", REPORT, &token).await.unwrap();
            let arrived = self.system.upstream().unwrap().arrived() - before;
            if stopped.contains(&pair) {
                assert_eq!(answer.reason(), "token_revoked", "{pair:?}");
                assert_eq!((answer.status, arrived), (401, 0), "{pair:?}");
            } else {
                assert_eq!(answer.status, 200, "{pair:?}: {}", answer.text());
                assert_eq!(arrived, 1, "{pair:?}");
            }
        }
    }

    /// Stops it: those pairs and no others get nothing, nothing that they had passes; and
    /// when it is lifted they get new ones, and what they had stays void.
    async fn stop(&self, target: &[&str], whose: &str, stopped: &[Pair]) {
        let (during, after) = (self.tokens().await, self.tokens().await);
        let stop = [&["revoke", "--why", "a test"], target].concat();
        done(&self.system, &stop, &format!("{whose}: stopped")).await;
        self.judge_edge(during, stopped).await;
        let revoked = no("access_denied", "token_revoked");
        for pair in PAIRS {
            let answer = self.asks(pair).await;
            match stopped.contains(&pair) {
                true => refused(&format!("{pair:?}"), &answer, revoked),
                false => drop(issued(&format!("{pair:?}"), &answer)),
            }
        }
        let own = self.agent.call("GET", REPORT).await.unwrap();
        assert_eq!(own.status, 200, "for itself it goes on: {}", own.text());
        let lift = [&["revoke", "--lift"], target].concat();
        done(&self.system, &lift, "may be given again").await;
        self.judge_edge(after, stopped).await;
        let again = self.tokens().await;
        self.judge_edge(again, &[]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_agent_does_for_one_user_is_stopped_alone() {
    let world = World::start().await;
    let target = ["--user", IDP, "--subject", ANN, "--agent", AGENT];
    world.stop(&target, "does for them", &[(AGENT, ANN)]).await;
    let all = [(AGENT, ANN), (OTHER, ANN)];
    let target = ["--user", IDP, "--subject", ANN];
    world
        .stop(&target, &format!("user {ANN} of {IDP}"), &all)
        .await;
    // The same subject of another issuer is somebody else.
    let elsewhere = "https://elsewhere.example";
    let target = ["--user", elsewhere, "--subject", ANN, "--agent", AGENT];
    world.stop(&target, "does for them", &[]).await;
    let target = ["--user", elsewhere, "--subject", ANN];
    world
        .stop(&target, &format!("user {ANN} of {elsewhere}"), &[])
        .await;
    world.system.stop().await;
}
