//! Tokens of another issuer as evidence: one that others wrote, with RSA and EC keys, which
//! it changes.

use std::process::Stdio;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout};
use wasm_test::client::{Agent, Answer};
use wasm_test::stage::eventually;
use wasm_test::system::{AGENT, Options, System};
use wasm_test::upstream::REPORT;

use crate::programs::{Clients, clients};

const AUDIENCE: &str = "https://writ.example/ci";
/// An issuer whose name leads nowhere: its keys are here.
const ELSEWHERE: &str = "https://elsewhere.example";
const SUBJECT: &str = "repo:org/app:ref:refs/heads/main";

/// The issuer, while it runs.
pub struct Foreign {
    child: Child,
    asks: ChildStdin,
    says: Lines<BufReader<ChildStdout>>,
    pub url: String,
}

impl Foreign {
    pub async fn start(clients: &Clients) -> Foreign {
        let mut command = tokio::process::Command::from(clients.node("issuer.mjs"));
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let asks = child.stdin.take().unwrap();
        let says = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut foreign = Foreign {
            child,
            asks,
            says,
            url: String::new(),
        };
        let said = foreign.said().await;
        foreign.url = said["issuer"].as_str().unwrap().to_owned();
        foreign
    }

    async fn said(&mut self) -> Value {
        let line = self.says.next_line().await.unwrap();
        serde_json::from_str(&line.expect("the issuer has ended")).unwrap()
    }

    /// A token of a CI job, with these claims laid over.
    async fn token(&mut self, alg: &str, claims: Value) -> String {
        self.signed(json!({ "alg": alg, "claims": claims, "lives_s": 300 }))
            .await
    }

    pub async fn signed(&mut self, mut asked: Value) -> String {
        let mut claims = json!({
            "aud": AUDIENCE, "sub": SUBJECT, "repository": "org/app",
            "environment": { "name": "prod" },
        });
        let over = asked["claims"].as_object().unwrap().clone();
        claims.as_object_mut().unwrap().extend(over);
        asked["claims"] = claims;
        self.exact(asked).await
    }

    /// A token with these claims, beside those of its time, and no others.
    pub async fn exact(&mut self, asked: Value) -> String {
        let line = format!("{asked}\n");
        self.asks.write_all(line.as_bytes()).await.unwrap();
        self.said().await["token"].as_str().unwrap().to_owned()
    }

    pub async fn stop(mut self) {
        self.child.kill().await.unwrap();
    }
}

/// A system that believes this issuer, of one job.
async fn start(issuer: &str) -> System {
    let system = System::for_test(Options {
        extra_config: format!(
            r#"
[limits]
keys_per_evidence = 2
[[identity.issuer]]
issuer = "{issuer}"
audience = "{AUDIENCE}"
[[identity.issuer.agent]]
spiffe_id = "{AGENT}"
claims = {{ sub = "{SUBJECT}", repository = "org/app", "/environment/name" = "prod" }}
[[identity.issuer]]
issuer = "{ELSEWHERE}"
audience = "{AUDIENCE}"
keys = "{issuer}/jwks"
[[identity.issuer.agent]]
spiffe_id = "{AGENT}"
claims = {{ sub = "{SUBJECT}" }}
"#
        ),
        // Nobody answers there, and nobody is to be asked: keys in clear are this
        // machine's.
        env: ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"]
            .map(|name| (name.to_owned(), "http://127.0.0.1:9".to_owned()))
            .to_vec(),
        ..Options::default()
    });
    system.await.unwrap()
}

async fn exchange(issuer: &str, agent: &Agent, token: &str) -> Answer {
    let details = agent.details("GET", REPORT).to_string();
    let proof = agent.token_proof();
    let answer = agent.post_token(token, &details, &proof).await.unwrap();
    let Some(nonce) = answer.header("dpop-nonce") else {
        return answer;
    };
    // Right after a start.
    let endpoint = format!("{issuer}/oauth2/token");
    let claims = json!({ "nonce": nonce });
    let proof = agent.key().proof_with("POST", &endpoint, None, &claims);
    agent.post_token(token, &details, &proof).await.unwrap()
}

/// Exchanges a token, and acts with what it brought.
async fn acts(system: &System, agent: &Agent, token: &str) {
    let before = system.upstream().unwrap().arrived();
    let answer = exchange(&system.issuer(), agent, token).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let capability = answer.json()["access_token"].as_str().unwrap().to_owned();
    let acted = agent.present("GET", REPORT, &capability).await.unwrap();
    assert_eq!(acted.status, 200, "{}", acted.text());
    let upstream = system.upstream().unwrap();
    assert_eq!(upstream.arrived(), before + 1);
    let records = upstream.records().unwrap();
    assert_eq!(records.last().unwrap().header("x-writ-agent"), Some(AGENT));
}

/// What `writ status` warns of.
fn warnings(system: &System) -> String {
    let mut command = system.writ();
    let output = command.args(["status", "--json"]).output().unwrap();
    let status: Value = serde_json::from_slice(&output.stdout).unwrap();
    status["warnings"].to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_with_its_issuers_token_acts_once_as_the_agent_that_it_is_mapped_to() {
    let Some(clients) = clients() else { return };
    let mut foreign = Foreign::start(clients).await;
    let mut system = start(&foreign.url).await;
    let agent = system.agent().await.unwrap();

    let mut shown = Vec::new();
    for alg in ["RS256", "ES256"] {
        let token = foreign.token(alg, json!({})).await;
        acts(&system, &agent, &token).await;
        shown.push(token);
    }

    let named = json!({ "iss": ELSEWHERE });
    acts(&system, &agent, &foreign.token("RS256", named).await).await;

    // What it proves is nobody's, or nothing: told apart, and nothing is issued.
    let writ = agent.token("GET", REPORT).await.unwrap();
    let late = json!({ "alg": "RS256", "claims": {}, "lives_s": 3_601 });
    let gone = json!({ "alg": "RS256", "claims": {}, "lives_s": -1 });
    let table = [
        (
            foreign
                .token("RS256", json!({ "repository": "org/other" }))
                .await,
            "no agent is mapped to its claims",
        ),
        (
            foreign
                .token("RS256", json!({ "sub": "repo:org/app:pull_request" }))
                .await,
            "no agent is mapped to its claims",
        ),
        (
            foreign
                .token("RS256", json!({ "environment": { "name": "test" } }))
                .await,
            "no agent is mapped to its claims",
        ),
        (
            foreign
                .token("ES256", json!({ "aud": system.issuer() }))
                .await,
            "its `aud` is not",
        ),
        (
            foreign
                .token("ES256", json!({ "aud": [AUDIENCE, "https://x.example"] }))
                .await,
            "its `aud` is not",
        ),
        (foreign.signed(late).await, "it lives longer than 3600 s"),
        (foreign.signed(gone).await, "it has expired"),
        (
            shown[0].rsplit_once('.').unwrap().0.to_owned() + ".AAAA",
            "its signature is not",
        ),
        (
            foreign
                .token("RS256", json!({ "iss": "https://x.example" }))
                .await,
            "its `iss` is no issuer that is believed here",
        ),
        (writ, "the subject_token is refused"),
    ];
    for (token, wanted) in table {
        let answer = exchange(&system.issuer(), &agent, &token).await;
        assert_eq!(answer.status, 400, "{wanted}: {}", answer.text());
        assert_eq!(answer.oauth_error(), "invalid_request", "{}", answer.text());
        let text = answer.json()["error_description"]
            .as_str()
            .unwrap()
            .to_owned();
        assert!(text.contains(wanted), "{wanted}: {text}");
    }

    // It may be shown again, under few keys.
    let second = agent.with_fresh_key().unwrap();
    acts(&system, &second, &shown[0]).await;
    acts(&system, &agent, &shown[0]).await;
    let third = agent.with_fresh_key().unwrap();
    let answer = exchange(&system.issuer(), &third, &shown[0]).await;
    assert_eq!(answer.status, 400, "{}", answer.text());
    assert!(
        answer.text().contains("under too many DPoP keys"),
        "{}",
        answer.text()
    );

    // A new key is found when it is used first, ten seconds after the last look at most.
    let asked = json!({ "alg": "RS256", "claims": {}, "lives_s": 300, "new": true });
    let token = foreign.signed(asked).await;
    eventually("the new key is known", async || {
        exchange(&system.issuer(), &agent, &token).await.status == 200
    })
    .await
    .unwrap();

    // The log names who said it, and has no token of theirs.
    let log = std::fs::read_to_string(system.log("control-plane")).unwrap();
    let mut journal = Vec::new();
    for file in std::fs::read_dir(system.audit_dir()).unwrap() {
        journal.extend(std::fs::read(file.unwrap().path()).unwrap());
    }
    let holds = |text: &str| journal.windows(text.len()).any(|it| it == text.as_bytes());
    assert!(holds(&format!("\"issuer\":\"{}\"", foreign.url)) && holds(SUBJECT));
    for token in &shown {
        let payload = token.split('.').nth(1).unwrap();
        assert!(
            !holds(payload) && !log.contains(payload),
            "a token is written down"
        );
    }

    // Without its keys nobody can be judged, which is an outage, and said.
    let token = foreign.token("RS256", json!({})).await;
    foreign.stop().await;
    acts(&system, &agent, &token).await;
    system.restart_control_plane().await.unwrap();
    system.configured().await.unwrap();
    eventually("it is a warning", async || {
        warnings(&system).contains("can't be fetched")
    })
    .await
    .unwrap();
    let agent = system.agent().await.unwrap();
    let answer = exchange(&system.issuer(), &agent, &token).await;
    assert_eq!(answer.status, 503, "{}", answer.text());
    let answer = agent.exchange("GET", REPORT).await.unwrap();
    assert_eq!(answer.status, 200, "SVIDs go on: {}", answer.text());
    system.stop().await;
}
