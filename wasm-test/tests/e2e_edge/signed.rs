//! Signed decisions: an upstream that verifies them serves what came through the
//! proxy as it was allowed, once, and nothing else; and what signs them signs nothing
//! that the edge takes.

use std::sync::Arc;

use hyper::Request;
use hyper::http::request::Parts;
use p256::ecdsa::signature::Signer as _;
use p256::ecdsa::{Signature, SigningKey};
use p256::pkcs8::DecodePrivateKey as _;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use wasm_test::system::{AGENT, Options};
use wasm_test::upstream::REPORT;
use wasm_test::verifying::{HEADER, Unproven, Verifier, serve};

use super::rig::{Rig, claims};

const AUDIENCE: &str = "https://files.example";
const SHOWN: &str = "/echo/shown/a?q=1";

struct Signed {
    rig: Rig,
    /// `http://127.0.0.1:PORT` of an upstream that verifies.
    proven: String,
    jwks: Value,
}

impl Signed {
    /// `/echo/shown` goes to the demo upstream, which records what it is shown;
    /// `/echo/proven` to one that verifies it; the rest is as ever.
    async fn start() -> Signed {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let rig = Rig::start(Options {
            token_lifetime_s: 300,
            extra_config: format!(
                r#"
[edge]
route = [
  {{ name = "files", path_prefix = "/", upstream = "{{upstream}}" }},
  {{ name = "shown", path_prefix = "/echo/shown", upstream = "{{upstream}}", decision_header = true, decision_audience = "{AUDIENCE}" }},
  {{ name = "proven", path_prefix = "/echo/proven", upstream = "{address}", decision_header = true }},
]
"#
            ),
            ..Options::default()
        })
        .await;
        let url = format!(
            "{}/.well-known/writ-decision-jwks.json",
            rig.system.issuer()
        );
        let jwks: Value = reqwest::get(url).await.unwrap().json().await.unwrap();
        let proven = format!("http://{address}");
        let verifier = Verifier::new(&rig.system.issuer(), &proven, &jwks);
        tokio::spawn(serve(listener, Arc::new(verifier)));
        Signed { rig, proven, jwks }
    }

    fn verifier(&self, audience: &str) -> Verifier {
        Verifier::new(&self.rig.system.issuer(), audience, &self.jwks)
    }

    /// What the upstream was shown for a request.
    async fn decision(&self, method: &str, path: &str) -> String {
        let answer = self.rig.agent.call(method, path).await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        let records = self.rig.records();
        let last = records.iter().rfind(|record| record.path == path).unwrap();
        last.header(HEADER)
            .expect("the upstream was shown nothing")
            .to_owned()
    }

    fn request(&self, method: &str, path: &str, decision: &str) -> Parts {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", self.rig.authority())
            .header(HEADER, decision);
        request.body(()).unwrap().into_parts().0
    }
}

fn part(text: &str, at: usize) -> Value {
    use base64ct::{Base64UrlUnpadded, Encoding as _};
    let part = text.split('.').nth(at).unwrap();
    serde_json::from_slice(&Base64UrlUnpadded::decode_vec(part).unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_what_the_proxy_forwarded_is_served_and_only_once() {
    let signed = Signed::start().await;
    let rig = &signed.rig;
    let answer = rig.agent.call("GET", "/echo/proven/a").await.unwrap();
    assert_eq!(
        (answer.status, answer.text()),
        (200, format!("served {AGENT}\n"))
    );

    // Round the proxy: nothing to show, or something made up.
    let http = reqwest::Client::new();
    for made_up in [None, Some("e30.e30.e30"), Some("")] {
        let mut request = http.get(format!("{}/echo/proven/a", signed.proven));
        request = request.header("host", rig.authority());
        if let Some(text) = made_up {
            request = request.header(HEADER, text);
        }
        assert_eq!(request.send().await.unwrap().status(), 403, "{made_up:?}");
    }

    // What one request was allowed by, for every other one.
    let decision = signed.decision("GET", SHOWN).await;
    let said = part(&decision, 1);
    assert_eq!(part(&decision, 0)["typ"], "writ-decision+jwt");
    assert_eq!(said["aud"], AUDIENCE);
    assert_eq!(
        (said["method"].as_str(), said["path"].as_str()),
        (Some("GET"), Some(SHOWN))
    );
    assert_eq!(
        said["exp"].as_u64().unwrap() - said["iat"].as_u64().unwrap(),
        30
    );
    let spent = rig.entries_of("allow");
    let token = &spent.last().unwrap()["body"]["token"];
    assert_eq!(said["token_id"], token["jti"]);
    let now = said["iat"].as_u64().unwrap();
    let verifier = signed.verifier(AUDIENCE);
    let judge = |verifier: &Verifier, request: &Parts, now| verifier.check(request, now).err();
    for (method, path) in [
        ("GET", "/echo/shown/b?q=1"),
        ("GET", "/echo/shown/a?q=2"),
        ("GET", "/echo/shown/a"),
        ("POST", SHOWN),
    ] {
        let altered = signed.request(method, path, &decision);
        assert_eq!(
            judge(&verifier, &altered, now),
            Some(Unproven::OtherRequest),
            "{method} {path}"
        );
    }
    let own = signed.request("GET", SHOWN, &decision);
    let elsewhere = signed.verifier(&signed.proven);
    assert_eq!(judge(&elsewhere, &own, now), Some(Unproven::Elsewhere));
    assert_eq!(judge(&verifier, &own, now + 36), Some(Unproven::Elsewhere));
    assert_eq!(judge(&verifier, &own, now), None, "its own request");
    assert_eq!(judge(&verifier, &own, now), Some(Unproven::Replayed));
    let mut twice = own;
    twice.headers.append(HEADER, decision.parse().unwrap());
    assert_eq!(judge(&verifier, &twice, now), Some(Unproven::Missing));

    // A route that asks for none shows none, whatever the client sends.
    rig.good_request().await;
    let record = rig.records().pop().unwrap();
    assert_eq!(record.path, REPORT);
    assert!(record.header(HEADER).is_none());
    signed.rig.finish().await;
}

/// A JWS with this header and these claims, by this key.
fn sign(key: &SigningKey, header: &Value, claims: &Value) -> String {
    use base64ct::{Base64UrlUnpadded, Encoding as _};
    let part = |value: &Value| Base64UrlUnpadded::encode_string(value.to_string().as_bytes());
    let input = format!("{}.{}", part(header), part(claims));
    let signature: Signature = key.sign(input.as_bytes());
    format!(
        "{input}.{}",
        Base64UrlUnpadded::encode_string(&signature.to_bytes())
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_decision_is_no_token_and_a_token_no_decision() {
    let signed = Signed::start().await;
    let rig = &signed.rig;
    let decision = signed.decision("GET", SHOWN).await;
    let token = rig.agent.token("GET", REPORT).await.unwrap();
    let key = |name: &str| {
        let path = rig.system.state_dir().join("data/keys").join(name);
        let pem = std::fs::read_to_string(&path).unwrap();
        SigningKey::from_pkcs8_pem(&pem).unwrap()
    };
    let (decisions, tokens) = (key("decision-es256.pem"), key("token-es256.pem"));
    let (decision_kid, token_kid) = (
        part(&decision, 0)["kid"].clone(),
        part(&token, 0)["kid"].clone(),
    );
    assert_ne!(decision_kid, token_kid);

    // To the edge: a decision, and tokens that the decisions' key has signed.
    let own = claims(&token);
    let forged = |typ: &str, kid: &Value| {
        sign(
            &decisions,
            &json!({"typ": typ, "alg": "ES256", "kid": kid}),
            &own,
        )
    };
    let before = rig.arrived();
    for (shown, reason) in [
        (decision.clone(), "token_malformed"),
        (forged("at+jwt", &decision_kid), "token_key_unknown"),
        (forged("at+jwt", &token_kid), "token_signature"),
        (forged("writ-decision+jwt", &token_kid), "token_malformed"),
    ] {
        let answer = rig.present(REPORT, &shown).await;
        assert_eq!(
            (answer.status, answer.reason().as_str()),
            (401, reason),
            "{shown}"
        );
    }
    assert_eq!(rig.arrived(), before);
    let url = format!("{}/.well-known/jwks.json", rig.system.issuer());
    let capabilities = reqwest::get(url).await.unwrap().text().await.unwrap();
    assert!(!capabilities.contains(decision_kid.as_str().unwrap()));

    // To the upstream: a token, a proof, and decisions that the tokens' key has signed.
    let verifier = signed.verifier(AUDIENCE);
    let own = part(&decision, 1);
    let forged = |typ: &str, kid: &Value| {
        sign(
            &tokens,
            &json!({"typ": typ, "alg": "ES256", "kid": kid}),
            &own,
        )
    };
    for shown in [
        token.clone(),
        rig.proof("GET", SHOWN, &token),
        forged("writ-decision+jwt", &token_kid),
        forged("writ-decision+jwt", &decision_kid),
        sign(
            &decisions,
            &json!({"typ": "at+jwt", "alg": "ES256", "kid": decision_kid}),
            &own,
        ),
    ] {
        let request = signed.request("GET", SHOWN, &shown);
        let judged = verifier.check(&request, own["iat"].as_u64().unwrap());
        assert_eq!(judged.err(), Some(Unproven::Forged), "{shown}");
    }
    // The decisions' key with the right kind is the one thing that it takes.
    let header = json!({"typ": "writ-decision+jwt", "alg": "ES256", "kid": decision_kid});
    let request = signed.request("GET", SHOWN, &sign(&decisions, &header, &own));
    assert!(
        verifier
            .check(&request, own["iat"].as_u64().unwrap())
            .is_ok()
    );
    assert_eq!(rig.present(REPORT, &token).await.status, 200);
    signed.rig.finish().await;
}
