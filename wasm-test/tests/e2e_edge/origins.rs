//! Several origins on one Envoy: each has tokens, proofs and an upstream of its
//! own, and what is for one is refused at every other.

use serde_json::json;
use wasm_test::client::{Agent, Answer, Call};
use wasm_test::ports;
use wasm_test::system::Options;
use wasm_test::upstream::{REPORT, Upstream};

use super::raw::Http2;
use super::rig::{Rig, claims, field, message};

const PAY: &str = "http://pay.example";
/// One that the other is a beginning of.
const LONG: &str = "http://pay.example.org";
const PATH: &str = "/echo/x";

/// Three origins, and an upstream for each.
struct Origins {
    rig: Rig,
    upstreams: [Upstream; 2],
    /// For each origin, with one key.
    agents: [Agent; 3],
    _logs: tempfile::TempDir,
}

impl Origins {
    async fn start() -> Self {
        let logs = tempfile::tempdir().unwrap();
        let upstream = |name: &str| Upstream::start(0, Some(&logs.path().join(name))).unwrap();
        let upstreams = [upstream("pay"), upstream("long")];
        let ports = ports::free(None).unwrap();
        let config = format!(
            r#"
[[edge.site]]
name = "pay"
origin = "{PAY}"
resource = "{PAY}/echo"

[[edge.site]]
name = "long"
origin = "{LONG}"

[[edge.route]]
name = "files"
path_prefix = "/"
upstream = "127.0.0.1:{}"

[[edge.route]]
name = "pay"
path_prefix = "/"
upstream = "{}"
site = "pay"

[[edge.route]]
name = "long"
path_prefix = "/"
upstream = "{}"
site = "long"

[edge]
metadata = true
"#,
            ports.upstream,
            upstreams[0].address(),
            upstreams[1].address(),
        );
        let options = Options {
            wanted_ports: Some(ports),
            extra_config: config,
            ..Options::default()
        };
        let rig = Rig::start(options).await;
        let at = |origin: &'static str| {
            let system = &rig.system;
            async move {
                let (issuer, workload_api) = (system.issuer(), system.workload_api());
                let agent = Agent::connect(&issuer, origin, &workload_api).await;
                agent
                    .unwrap()
                    .by_way_of(&system.issuer(), &system.proxy_url())
            }
        };
        let agents = [rig.agent.clone(), at(PAY).await, at(LONG).await];
        Self {
            agents,
            upstreams,
            rig,
            _logs: logs,
        }
    }

    fn arrived(&self) -> [u64; 3] {
        let [pay, long] = &self.upstreams;
        [self.rig.arrived(), pay.arrived(), long.arrived()]
    }

    /// A token of one origin's with a proof for another's URL, shown at a third.
    async fn shown(&self, token: usize, proof: usize, at: usize) -> Answer {
        let owner = &self.agents[token];
        let token = owner.token("GET", PATH).await.unwrap();
        let url = self.agents[proof].url(PATH);
        let proof = owner.key().proof("GET", &url, Some(&token));
        let call = Call {
            method: "GET",
            path: PATH,
            token: Some(&token),
            proof: Some(&proof),
            ..Call::default()
        };
        self.agents[at].send(call).await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_for_one_origin_is_refused_at_every_other() {
    let origins = Origins::start().await;
    let resources = [
        origins.rig.system.origin(),
        format!("{PAY}/echo"),
        LONG.to_owned(),
    ];
    for (token, resource) in resources.iter().enumerate() {
        for proof in 0..3 {
            for at in 0..3 {
                let what = format!("token {token}, proof {proof}, at {at}");
                let before = origins.arrived();
                let answer = origins.shown(token, proof, at).await;
                let mut wanted = before;
                if token == proof && proof == at {
                    assert_eq!(answer.status, 200, "{what}: {}", answer.text());
                    wanted[at] += 1;
                } else {
                    // The audience comes before the proof.
                    let reason = if token == at {
                        "proof_target"
                    } else {
                        "token_audience"
                    };
                    assert_eq!(
                        (answer.status, answer.reason().as_str()),
                        (401, reason),
                        "{what}"
                    );
                }
                assert_eq!(origins.arrived(), wanted, "{what}");
            }
        }
        let issued = origins.agents[token].token("GET", PATH).await.unwrap();
        assert_eq!(claims(&issued)["aud"], resource.as_str());
    }
    // The upstream got the origin that was asked for, and verified facts.
    let record = origins.upstreams[0].records().unwrap().pop().unwrap();
    assert_eq!(record.header("host"), Some("pay.example"));
    assert!(record.header("x-writ-token-id").is_some());
    assert_eq!(record.header("authorization"), None);
    let allow = origins.rig.entries_of("allow");
    let routes: Vec<_> = allow
        .iter()
        .map(|it| &it["body"]["request"]["authority"])
        .collect();
    assert!(routes.contains(&&json!("pay.example.org")), "{routes:?}");
    origins.rig.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_are_for_known_origins_and_their_resource() {
    let origins = Origins::start().await;
    let agent = &origins.agents[1];
    let ask = async |location: &str| {
        let details =
            json!([{"type": "http_request", "actions": ["GET"], "locations": [location]}]);
        let svid = agent.svid().await.unwrap();
        let proof = agent.token_proof();
        agent
            .post_token(&svid, &details.to_string(), &proof)
            .await
            .unwrap()
    };
    for good in [
        "http://pay.example/echo/x",
        "HTTP://PAY.example:80/echo/x",
        "http://pay.example/echo/",
    ] {
        assert_eq!(ask(good).await.status, 200, "{good}");
    }
    for bad in [
        // Beside the resource of its origin.
        "http://pay.example/files/report.txt",
        "http://pay.example/echoes",
        "http://pay.example/echo/../files/report.txt",
        "https://pay.example/echo/x",
        "http://pay.example:8080/echo/x",
        "http://pay.example.evil/echo/x",
        "http://ay.example/echo/x",
        "http://pay.example.org@evil.example/echo/x",
    ] {
        let answer = ask(bad).await;
        assert_eq!(
            (answer.status, answer.oauth_error().as_str()),
            (400, "invalid_authorization_details"),
            "{bad}"
        );
    }
    // No other authority has a route, whoever asks.
    let token = agent.token("GET", PATH).await.unwrap();
    for host in [
        "pay.example:81",
        "pay.example.",
        "ay.example",
        "pay.example.org.evil",
        "evil.example",
    ] {
        let before = origins.arrived();
        let credentials = [
            field("host", host),
            field("authorization", format!("DPoP {token}")),
            field(
                "dpop",
                agent.key().proof("GET", &agent.url(PATH), Some(&token)),
            ),
        ];
        let answer = origins
            .rig
            .exchange_raw(&message("GET", PATH, &credentials))
            .await;
        assert!(
            [400, 401, 404].contains(&answer.status),
            "{host}: {}",
            answer.status
        );
        assert_eq!(origins.arrived(), before, "{host}");
    }
    // Two words for the authority, and the second is another origin's.
    let proof = agent.key().proof("GET", &agent.url(PATH), Some(&token));
    let authorization = format!("DPoP {token}");
    let before = origins.arrived();
    let mut connection = Http2::connect(&origins.rig.authority()).await;
    let (stream, bytes) = connection.request(&[
        (":method", b"GET"),
        (":scheme", b"http"),
        (":authority", b"pay.example"),
        (":path", PATH.as_bytes()),
        ("host", b"pay.example.org"),
        ("authorization", authorization.as_bytes()),
        ("dpop", proof.as_bytes()),
    ]);
    connection.send(&bytes).await;
    let status = connection.answers(&[stream]).await[&stream].status;
    // Envoy drops the one that does not count, or nobody gets it.
    if status == 200 {
        assert_eq!(origins.arrived()[1], before[1] + 1);
    } else {
        assert_eq!(origins.arrived(), before, "{status}");
    }
    assert_eq!(origins.arrived()[2], before[2]);
    origins.rig.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_origin_says_who_issues_its_tokens() {
    let origins = Origins::start().await;
    let table = [
        (
            0,
            "/.well-known/oauth-protected-resource",
            origins.rig.system.origin(),
        ),
        (
            1,
            "/.well-known/oauth-protected-resource/echo",
            format!("{PAY}/echo"),
        ),
        (2, "/.well-known/oauth-protected-resource", LONG.to_owned()),
    ];
    let before = origins.arrived();
    for (at, path, resource) in table {
        let get = Call {
            method: "GET",
            path,
            ..Call::default()
        };
        let answer = origins.agents[at].send(get.clone()).await.unwrap();
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        assert_eq!(answer.json()["resource"], resource.as_str());
        assert_eq!(
            answer.json()["authorization_servers"],
            json!([origins.rig.system.issuer()])
        );
        assert_eq!(answer.json()["dpop_bound_access_tokens_required"], true);
        let url = origins.agents[at].url(path);
        // Nothing beside it is open.
        for (method, path) in [
            ("POST", path.to_owned()),
            ("GET", format!("{path}/x")),
            ("GET", REPORT.to_owned()),
        ] {
            let other = Call {
                method,
                path: &path,
                ..get.clone()
            };
            let answer = origins.agents[at].send(other).await.unwrap();
            assert_eq!(
                (answer.status, answer.reason().as_str()),
                (401, "missing_credentials"),
                "{method} {path}"
            );
            // Whoever is refused is told where it is (RFC 9728, section 5.1).
            let challenge = answer.header("www-authenticate");
            let wanted = format!("DPoP algs=\"ES256 Ed25519\", resource_metadata=\"{url}\"");
            assert_eq!(challenge, Some(wanted.as_str()), "{method} {path}");
        }
    }
    assert_eq!(origins.arrived(), before);
    origins.rig.finish().await;
}
