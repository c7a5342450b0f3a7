//! Other trust domains: what their keys prove of their own workloads, and that they
//! prove nothing of anybody else's.

use std::path::Path;

use serde_json::{Value, json};
use wasm_test::certificates::{self, Certified, uri};
use wasm_test::client::Answer;
use wasm_test::stage::eventually;
use wasm_test::system::{AGENT, Options, PROXY, System};
use wasm_test::upstream::REPORT;

use crate::evidence::Authority;
use crate::judging::{Attempt, Bench, issued, no, refused};
use crate::plane::Prepared;

const PARTNER: &str = "spiffe://partner.example/agent/ci";
const THIRD: &str = "spiffe://third.example/agent/ci";
/// What is guarded where clients show certificates; nobody calls it here.
const ORIGIN: &str = "https://127.0.0.1:8";
const GRANT_CLIENT: &str = "client_credentials";

/// A bundle of these keys, as `spire-server bundle show -format spiffe` writes it.
fn bundle(keys: &[Value], sequence: u64) -> String {
    json!({ "keys": keys, "spiffe_sequence": sequence, "spiffe_refresh_hint": 10 }).to_string()
}

fn x509(authority: &certificates::Authority) -> Value {
    let body: String = authority
        .pem
        .lines()
        .filter(|line| !line.contains("---"))
        .collect();
    // What a P-256 key is besides is in the certificate; nobody reads it here.
    json!({ "kty": "EC", "crv": "P-256", "use": "x509-svid", "x5c": [body], "x": "AA", "y": "AA" })
}

fn put(path: &Path, text: &str) {
    // As a whole, as who rotates a file does.
    let aside = path.with_extension("new");
    std::fs::write(&aside, text).unwrap();
    std::fs::rename(aside, path).unwrap();
}

/// What serves a bundle endpoint: one answer, which a test may change.
struct Endpoint {
    url: String,
    body: std::sync::Arc<std::sync::Mutex<String>>,
}

impl Endpoint {
    async fn start(body: String) -> Endpoint {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/bundle", listener.local_addr().unwrap());
        let body = std::sync::Arc::new(std::sync::Mutex::new(body));
        let shown = body.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.read(&mut [0; 4096]).await;
                let body = shown.lock().unwrap().clone();
                let head = format!(
                    "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                    body.len()
                );
                let _ = stream.write_all((head + &body).as_bytes()).await;
            }
        });
        Endpoint { url, body }
    }

    fn set(&self, body: String) {
        *self.body.lock().unwrap() = body;
    }
}

/// Two trust domains beside ours, one by a file and one by its endpoint.
struct World {
    partner: Authority,
    third: Authority,
    partner_ca: certificates::Authority,
    third_ca: certificates::Authority,
    endpoint: Endpoint,
    dir: tempfile::TempDir,
}

impl World {
    async fn new() -> World {
        let partner = Authority::fresh();
        // Under the same key id: a key's name is nobody's alone.
        let third = Authority::fresh().named_as(&partner);
        let partner_ca = certificates::Authority::fresh("partner.example").unwrap();
        let third_ca = certificates::Authority::fresh("third.example").unwrap();
        let theirs = bundle(&[third.jwk(), x509(&third_ca)], 7);
        let world = World {
            endpoint: Endpoint::start(theirs).await,
            dir: tempfile::tempdir().unwrap(),
            partner,
            third,
            partner_ca,
            third_ca,
        };
        world.put(&[world.partner.jwk(), x509(&world.partner_ca)]);
        world
    }

    /// Makes these the partner's keys.
    fn put(&self, keys: &[Value]) {
        put(&self.dir.path().join("partner.json"), &bundle(keys, 1));
    }

    fn config(&self) -> String {
        let (dir, url) = (self.dir.path().display(), &self.endpoint.url);
        format!(
            r#"
[[agent]]
spiffe_id = "{AGENT}"
owner = "platform@example.com"
[[agent]]
spiffe_id = "{PARTNER}"
owner = "partner@example.com"
[[agent]]
spiffe_id = "{THIRD}"
owner = "third@example.com"
[[identity.federated]]
trust_domain = "partner.example"
bundle = "{dir}/partner.json"
[[identity.federated]]
trust_domain = "third.example"
bundle = "{url}"
"#
        )
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_of_another_trust_domain_acts_once_under_its_own_name() {
    let world = World::new().await;
    let options = Options {
        extra_config: world.config(),
        ..Options::default()
    };
    let system = System::for_test(options).await.unwrap();
    let agent = system.agent().await.unwrap();
    let details = agent.details("GET", REPORT).to_string();
    for (authority, name) in [(&world.partner, PARTNER), (&world.third, THIRD)] {
        let svid = authority.svid(name, &system.issuer(), &json!({}));
        let proof = agent.token_proof();
        let answer = agent.post_token(&svid, &details, &proof).await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        let token = answer.json()["access_token"].as_str().unwrap().to_owned();
        let acted = agent.present("GET", REPORT, &token).await.unwrap();
        assert_eq!(acted.status, 200, "{}", acted.text());
        let records = system.upstream().unwrap().records().unwrap();
        assert_eq!(records.last().unwrap().header("x-writ-agent"), Some(name));
        let again = agent.present("GET", REPORT, &token).await.unwrap();
        assert_eq!(again.status, 401, "{}", again.text());
    }
    system.stop().await;
}

/// Attack D11: each key set is good for its own names.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trust_domains_keys_prove_nothing_of_anybody_elses_names() {
    let world = World::new().await;
    let plane = Prepared::new().with(&world.config()).start().await;
    let bench = Bench::over(plane);
    let with = |svid: String| {
        let mut attempt = bench.attempt();
        attempt.set("subject_token", svid);
        attempt
    };
    let us = bench.plane.issuer();
    let none = json!({});
    let signature = no("invalid_request", "token_signature");
    let (partner, third) = (&world.partner, &world.third);
    let elsewhere = "spiffe://elsewhere.example/agent/ci";
    issued(
        "partner",
        &bench.send(with(partner.svid(PARTNER, &us, &none))).await,
    );
    issued(
        "third",
        &bench.send(with(third.svid(THIRD, &us, &none))).await,
    );
    let table = [
        (
            "partner names ours",
            partner.svid(AGENT, &us, &none),
            signature,
        ),
        (
            "partner names third's",
            partner.svid(THIRD, &us, &none),
            signature,
        ),
        (
            "third names partner's",
            third.svid(PARTNER, &us, &none),
            signature,
        ),
        (
            "we name partner's",
            bench.authority.svid(PARTNER, &us, &none),
            signature,
        ),
        (
            "partner names a stranger's",
            partner.svid(elsewhere, &us, &none),
            signature,
        ),
        (
            "a stranger by a stranger",
            Authority::fresh().svid(elsewhere, &us, &none),
            signature,
        ),
        (
            "partner as our name under our key id",
            Authority::fresh()
                .named_as(&bench.authority)
                .svid(AGENT, &us, &none),
            signature,
        ),
        (
            "the trust domain itself",
            partner.svid("spiffe://partner.example", &us, &none),
            no("invalid_request", "token_malformed"),
        ),
        (
            "another audience",
            partner.svid(PARTNER, "https://elsewhere.example", &none),
            no("invalid_request", "token_audience"),
        ),
        (
            "two audiences",
            partner.svid(
                PARTNER,
                &us,
                &json!({ "aud": [us, "https://elsewhere.example"] }),
            ),
            no("invalid_request", "token_audience"),
        ),
        (
            "one that is over",
            partner.svid(PARTNER, &us, &json!({ "iat": 1_000_000, "exp": 1_000_300 })),
            no("invalid_request", "token_expired"),
        ),
        (
            "one that nobody has registered",
            partner.svid("spiffe://partner.example/agent/other", &us, &none),
            no("access_denied", "agent_inactive"),
        ),
    ];
    for (what, svid, verdict) in table {
        refused(what, &bench.send(with(svid)).await, verdict);
    }
    bench.token().await;
}

/// Who holds another domain's keys can't have us keep their evidence in mind for years.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_trust_domains_svids_last_no_longer_than_a_day() {
    let world = World::new().await;
    let bench = Bench::over(Prepared::new().with(&world.config()).start().await);
    let us = bench.plane.issuer();
    let before = bench.plane.entries().len();
    let now = wasm_test::client::now_s();
    let show = async |authority: &Authority, agent: &str, hours: u64| {
        let over = json!({ "exp": now + hours * 3_600 });
        let mut attempt = bench.attempt();
        attempt.set("subject_token", authority.svid(agent, &us, &over));
        bench.send(attempt).await
    };
    let long = no("invalid_request", "token_lifetime");
    for (authority, agent) in [(&world.partner, PARTNER), (&bench.authority, AGENT)] {
        for hours in [25, 10 * 365 * 24] {
            refused(agent, &show(authority, agent, hours).await, long);
        }
    }
    assert_eq!(bench.plane.entries().len(), before, "nothing is kept of it");
    for (authority, agent) in [(&world.partner, PARTNER), (&bench.authority, AGENT)] {
        issued(agent, &show(authority, agent, 24).await);
    }
}

/// What `writ status` warns of.
async fn warnings(bench: &Bench) -> String {
    let mut command = bench.plane.writ();
    command.args(["status", "--json"]);
    let output = crate::plane::run(command).await;
    let status: Value = serde_json::from_slice(&output.stdout).unwrap();
    status["warnings"].to_string()
}

/// Attack D14: what a bundle does not have any more proves nothing, soon.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_come_and_go_with_the_bundle() {
    let world = World::new().await;
    let bench = Bench::over(Prepared::new().with(&world.config()).start().await);
    let us = bench.plane.issuer();
    let shown = async |authority: &Authority, name: &str| -> Answer {
        let mut attempt: Attempt = bench.attempt();
        attempt.set("subject_token", authority.svid(name, &us, &json!({})));
        bench.send(attempt).await
    };
    issued("at first", &shown(&world.partner, PARTNER).await);
    let next = Authority::fresh();
    let signature = no("invalid_request", "token_signature");
    refused("not yet", &shown(&next, PARTNER).await, signature);
    world.put(&[next.jwk()]);
    eventually("the new key counts", async || {
        shown(&next, PARTNER).await.status == 200
    })
    .await
    .unwrap();
    refused(
        "the old one",
        &shown(&world.partner, PARTNER).await,
        signature,
    );

    // A file that is spoilt is a warning, and what was known stays; one without keys
    // withdraws all of them.
    put(&world.dir.path().join("partner.json"), "{");
    eventually("it is a warning", async || {
        warnings(&bench).await.contains("partner.example")
    })
    .await
    .unwrap();
    issued("what is known", &shown(&next, PARTNER).await);
    world.put(&[]);
    eventually("none is left", async || {
        shown(&next, PARTNER).await.status == 400
    })
    .await
    .unwrap();
    refused("without keys", &shown(&next, PARTNER).await, signature);
    assert!(warnings(&bench).await.contains("has no keys now"));

    // An endpoint that goes back in time is not followed; one that goes on is.
    let other = Authority::fresh();
    world.endpoint.set(bundle(&[other.jwk()], 6));
    eventually("it is a warning", async || {
        warnings(&bench).await.contains("has gone back from 7 to 6")
    })
    .await
    .unwrap();
    issued("before", &shown(&world.third, THIRD).await);
    world.endpoint.set(bundle(&[other.jwk()], 8));
    eventually("it is followed", async || {
        shown(&other, THIRD).await.status == 200
    })
    .await
    .unwrap();
    refused("before", &shown(&world.third, THIRD).await, signature);
    bench.token().await;
}

/// A POST to the token endpoint by who shows this certificate: `None` where the
/// connection is refused.
async fn certified(bench: &Bench, base: &str, client: &reqwest::Client) -> Option<Answer> {
    let url = format!("{base}/oauth2/token");
    let location = format!("{ORIGIN}/files/report.txt");
    let details = json!([{ "type": "http_request", "actions": ["GET"], "locations": [location] }]);
    let details = details.to_string();
    let form = [
        ("grant_type", GRANT_CLIENT),
        ("authorization_details", &details),
    ];
    let proof = bench.key.proof("POST", &url, None);
    let request = client.post(&url).header("dpop", proof).form(&form);
    let answer = request.send().await.ok()?;
    Some(Answer::read(answer).await.unwrap())
}

/// Whether who shows this certificate is answered by the listener of proxies.
async fn speaks_http2(trusted: &str, port: u16, shown: &Certified) -> bool {
    use rustls_pki_types::pem::PemObject as _;
    use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut roots = rustls::RootCertStore::empty();
    let root = CertificateDer::from_pem_slice(trusted.as_bytes()).unwrap();
    roots.add(root).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let chain = vec![CertificateDer::from(shown.der.clone())];
    let key = PrivateKeyDer::from_pem_slice(shown.key_pem().as_bytes()).unwrap();
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await;
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let mut stream = connector.connect(name, stream.unwrap()).await.unwrap();
    let _ = stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    stream.read_u8().await.is_ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificates_name_chooses_who_has_to_have_signed_it() {
    let world = World::new().await;
    let mtls = wasm_test::ports::free(None).unwrap().http;
    let base = format!("https://127.0.0.1:{mtls}");
    let over = format!(
        "[server]\nmtls_listen = \"127.0.0.1:{mtls}\"\nmtls_url = \"{base}\"\n[edge]\nclient_certificates = \"required\"\norigin = \"{ORIGIN}\"\n"
    );
    let prepared = Prepared::new().with(&world.config()).with(&over);
    let bench = Bench::over(prepared.start().await);
    let own = certificates::Authority::open(&bench.plane.data().join("trust")).unwrap();
    let (partner, third) = (&world.partner_ca, &world.third_ca);
    let stranger = certificates::Authority::fresh("partner.example").unwrap();
    // They trust our server, and show what others have signed.
    let client = |shown| own.client(Some(&shown)).unwrap();
    let other = "spiffe://partner.example/agent/other";
    let ca = |it: &mut rcgen::CertificateParams| {
        it.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        Ok(())
    };
    let two = |it: &mut rcgen::CertificateParams| {
        it.subject_alt_names.push(uri(PARTNER)?);
        Ok(())
    };

    for (signer, name) in [(&own, AGENT), (partner, PARTNER), (third, THIRD)] {
        let svid = signer.svid(name).unwrap();
        let x5t = svid.x5t();
        let answer = certified(&bench, &base, &client(svid)).await;
        let body = issued(name, &answer.expect("no connection"));
        let (_, claims) = crate::evidence::decoded(body["access_token"].as_str().unwrap());
        assert_eq!(claims["sub"], name);
        assert_eq!(claims["cnf"]["x5t#S256"], x5t.as_str());
    }
    let lasting = |days: u32| {
        move |it: &mut rcgen::CertificateParams| {
            let day = std::time::Duration::from_secs(86_400);
            it.not_after = (std::time::SystemTime::now() + day * days).into();
            Ok(())
        }
    };
    for (signer, name, days, good) in [
        (partner, PARTNER, 1, true),
        (partner, PARTNER, 2, false),
        // Our own authority is trusted with that.
        (&own, AGENT, 2, true),
    ] {
        let shown = client(signer.changed(name, lasting(days)).unwrap());
        let answer = certified(&bench, &base, &shown).await.unwrap();
        match good {
            true => drop(issued(name, &answer)),
            false => refused(name, &answer, no("invalid_request", "token_lifetime")),
        }
    }
    let unregistered = client(partner.svid(other).unwrap());
    let answer = certified(&bench, &base, &unregistered).await.unwrap();
    refused(
        "unregistered",
        &answer,
        no("access_denied", "agent_inactive"),
    );

    let table = [
        ("partner names ours", partner.svid(AGENT)),
        ("partner names our proxy", partner.svid(PROXY)),
        ("partner names third's", partner.svid(THIRD)),
        ("third names partner's", third.svid(PARTNER)),
        ("we name partner's", own.svid(PARTNER)),
        ("one of the same name", stranger.svid(PARTNER)),
        ("an authority", partner.changed(PARTNER, ca)),
        ("two names", partner.changed(other, two)),
        ("two names of two domains", partner.changed(AGENT, two)),
        (
            "the trust domain itself",
            partner.svid("spiffe://partner.example"),
        ),
        (
            "a stranger",
            partner.svid("spiffe://elsewhere.example/agent/ci"),
        ),
    ];
    for (what, svid) in table {
        let answer = certified(&bench, &base, &client(svid.unwrap())).await;
        assert!(answer.is_none(), "{what}: {}", answer.unwrap().text());
    }

    // Proxies are our own alone.
    let grpc = bench.plane.ports().grpc;
    let reaches = async |svid: Certified| speaks_http2(&own.pem, grpc, &svid).await;
    assert!(reaches(own.svid(PROXY).unwrap()).await, "our own proxy");
    for (what, svid) in [
        ("partner's proxy", partner.svid(PROXY)),
        ("partner's agent", partner.svid(PARTNER)),
        ("our agent", own.svid(AGENT)),
    ] {
        assert!(!reaches(svid.unwrap()).await, "{what}");
    }

    // A connection that was made under an authority which is withdrawn.
    let kept = client(partner.svid(PARTNER).unwrap());
    let answer = certified(&bench, &base, &kept).await.unwrap();
    issued("before", &answer);
    let next = certificates::Authority::fresh("partner.example").unwrap();
    world.put(&[x509(&next)]);
    eventually("the next authority counts", async || {
        let answer = certified(&bench, &base, &client(next.svid(PARTNER).unwrap())).await;
        answer.is_some_and(|it| it.status == 200)
    })
    .await
    .unwrap();
    let answer = certified(&bench, &base, &kept).await.unwrap();
    refused("kept", &answer, no("invalid_request", "token_signature"));
    let fresh = client(partner.svid(PARTNER).unwrap());
    assert!(certified(&bench, &base, &fresh).await.is_none());
}
