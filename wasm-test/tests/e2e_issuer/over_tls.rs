//! What is fetched from others over TLS, as the config says it: an issuer's keys, a client's,
//! and a trust domain's bundle. A place whose certificate is not by the authority that is
//! named for it is not asked, and nobody is believed by it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use rcgen::SanType;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use wasm_test::certificates;
use wasm_test::client::Answer;
use wasm_test::stage::eventually;
use wasm_test::system::AGENT;

use crate::clients::{JWT as ASSERTION, assertion};
use crate::evidence::Authority;
use crate::judging::{Bench, issued, no, refused};
use crate::plane::{Prepared, run};

const AUDIENCE: &str = "https://writ.example/ci";

/// A web server with a certificate for this machine's address.
struct Site {
    url: String,
    pages: Arc<Mutex<BTreeMap<String, Value>>>,
    asked: Arc<Mutex<usize>>,
}

impl Site {
    async fn start(authority: &certificates::Authority) -> Site {
        let here = SanType::IpAddress(std::net::Ipv4Addr::LOCALHOST.into());
        let certified = authority.changed("spiffe://web.example/site", |it| {
            it.subject_alt_names = vec![here];
            Ok(())
        });
        let certified = certified.unwrap();
        let key = PrivateKeyDer::from_pem_slice(certified.key_pem().as_bytes()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![CertificateDer::from(certified.der)], key)
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let site = Site {
            url: format!("https://{}", listener.local_addr().unwrap()),
            pages: Arc::default(),
            asked: Arc::default(),
        };
        let (pages, asked) = (site.pages.clone(), site.asked.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // Who does not believe us leaves.
                let Ok(mut stream) = acceptor.accept(stream).await else {
                    continue;
                };
                let mut request = vec![0; 4096];
                let length = stream.read(&mut request).await.unwrap_or(0);
                let request = String::from_utf8_lossy(&request[..length]).into_owned();
                let path = request.split(' ').nth(1).unwrap_or_default();
                let page = pages.lock().unwrap().get(path).cloned();
                *asked.lock().unwrap() += 1;
                let body = page.unwrap_or_default().to_string();
                let head = format!(
                    "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                    body.len()
                );
                let _ = stream.write_all((head + &body).as_bytes()).await;
                let _ = stream.shutdown().await;
            }
        });
        site
    }

    /// The documents of an issuer, a client and a trust domain with this key.
    fn publish(&self, key: &Authority) {
        let keys = json!({ "keys": [key.client_jwk()] });
        let jwks_uri = format!("{}/keys", self.url);
        let document = json!({ "issuer": self.url, "jwks_uri": jwks_uri });
        let pages = [
            ("/.well-known/openid-configuration", document),
            ("/keys", keys),
            ("/bundle", json!({ "keys": [key.jwk()] })),
        ];
        let pages = pages.map(|(path, page)| (path.to_owned(), page));
        *self.pages.lock().unwrap() = pages.into();
    }

    fn asked(&self) -> usize {
        *self.asked.lock().unwrap()
    }
}

/// Those of one site, whose certificate has to be by this authority.
fn config(site: &Site, ca: &Path, client: &str, trust_domain: &str) -> String {
    let (url, ca) = (&site.url, ca.display());
    format!(
        r#"
[[client]]
client_id = "{client}"
agent = "{AGENT}"
keys = "{url}/keys"
ca_file = "{ca}"
[[agent]]
spiffe_id = "spiffe://{trust_domain}/agent"
owner = "platform@example.com"
[[identity.federated]]
trust_domain = "{trust_domain}"
bundle = "{url}/bundle"
ca_file = "{ca}"
[[identity.issuer]]
issuer = "{url}"
audience = "{AUDIENCE}"
ca_file = "{ca}"
[[identity.issuer.agent]]
spiffe_id = "{AGENT}"
claims = {{ sub = "job" }}
"#
    )
}

/// What the issuer, the client and the trust domain prove of whoever shows it.
async fn shown(bench: &Bench, site: &Site, key: &Authority, named: (&str, &str)) -> [Answer; 3] {
    let none = json!({});
    let (client, trust_domain) = named;
    let us = bench.plane.issuer();
    let job = json!({ "iss": site.url, "sub": "job" });
    let mut by_issuer = bench.attempt();
    by_issuer.set("subject_token", key.svid_with("", AUDIENCE, &job, &none));
    let svid = key.svid(&format!("spiffe://{trust_domain}/agent"), &us, &none);
    let mut by_domain = bench.attempt();
    by_domain.set("subject_token", svid);
    let own = json!({ "iss": client, "sub": client });
    let mut by_client = bench.attempt();
    by_client.set("grant_type", "client_credentials".to_owned());
    by_client.set("subject_token", None);
    by_client.set("subject_token_type", None);
    by_client.set("client_assertion_type", ASSERTION.to_owned());
    by_client.set("client_assertion", assertion(key, &us, &own, &none));
    [
        bench.send(by_issuer).await,
        bench.send(by_domain).await,
        bench.send(by_client).await,
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_believed_rests_on_the_authority_that_the_config_names() {
    let dir = tempfile::tempdir().unwrap();
    let ca = certificates::Authority::fresh("web.example").unwrap();
    let other = certificates::Authority::fresh("web.example").unwrap();
    let file = |name: &str, authority: &certificates::Authority| {
        let path = dir.path().join(name);
        std::fs::write(&path, &authority.pem).unwrap();
        path
    };
    let (right, wrong) = (file("right.pem", &ca), file("wrong.pem", &other));
    let key = Authority::fresh();
    let (believed, doubted) = (Site::start(&ca).await, Site::start(&ca).await);
    for site in [&believed, &doubted] {
        site.publish(&key);
    }
    let names = [("billing", "partner.example"), ("sales", "third.example")];
    let mut config = [
        config(&believed, &right, names[0].0, names[0].1),
        config(&doubted, &wrong, names[1].0, names[1].1),
    ]
    .concat();
    config.push_str(&format!(
        "[[agent]]\nspiffe_id = \"{AGENT}\"\nowner = \"platform@example.com\"\n"
    ));
    let bench = Bench::over(Prepared::new().with(&config).start().await);
    for answer in shown(&bench, &believed, &key, names[0]).await {
        issued("the right authority's", &answer);
    }
    let unavailable = crate::judging::Verdict {
        status: 503,
        ..no("temporarily_unavailable", "control_plane_unavailable")
    };
    for answer in shown(&bench, &doubted, &key, names[1]).await {
        refused("another authority's", &answer, unavailable);
    }
    assert_eq!(doubted.asked(), 0);
    assert!(believed.asked() >= 4, "discovery, keys twice, bundle");
    // Each of them is said, with why.
    eventually("each is a warning", async || {
        let mut command = bench.plane.writ();
        command.args(["status", "--json"]);
        let status: Value = serde_json::from_slice(&run(command).await.stdout).unwrap();
        let warnings = status["warnings"].as_array().unwrap().iter();
        let untrusted = warnings.map(Value::to_string).filter(|it| {
            it.contains("invalid peer certificate") && it.contains(doubted.url.as_str())
        });
        untrusted.count() == 3
    })
    .await
    .unwrap();
}
