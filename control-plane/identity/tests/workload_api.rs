//! The Workload API through the public client, over the real socket.

#![expect(clippy::unwrap_used, reason = "tests fail loudly")]

mod common;

use std::{sync::Arc, time::Duration};

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair},
};
use base64ct::{Base64UrlUnpadded, Encoding};
use common::{Domain, TIMEOUT, id, now_ms};
use identity::federation::Federation;
use identity::{EvidenceError, Source};
use serde_json::{Value, json};
use spiffe::{WorkloadApiClient, X509SourceBuilder, transport::Endpoint};
use tonic::Code;

const ISSUER: &str = "http://127.0.0.1:8480";

/// Nobody beside our own trust domain.
fn alone(source: &Source) -> Federation {
    Federation::new(source.clone(), Vec::new()).unwrap()
}

async fn client(domain: &Domain) -> WorkloadApiClient {
    WorkloadApiClient::connect(Endpoint::Unix(domain.socket()))
        .await
        .unwrap()
}

#[tokio::test]
async fn every_call_of_the_public_client() {
    let domain = Domain::start();
    let client = client(&domain).await;
    let me = id("control-plane").to_string();

    let svid = client.fetch_x509_svid().await.unwrap();
    assert_eq!(svid.spiffe_id().to_string(), me);
    let bundles = client.fetch_x509_bundles().await.unwrap();
    let bundle = bundles.get(svid.spiffe_id().trust_domain()).unwrap();
    assert_eq!(bundle.authorities().len(), 1);
    let bundles = client.fetch_jwt_bundles().await.unwrap();
    assert!(bundles.get(svid.spiffe_id().trust_domain()).is_some());

    let jwt = client
        .fetch_jwt_svid([ISSUER, "other"], None)
        .await
        .unwrap();
    assert_eq!(jwt.spiffe_id().to_string(), me);
    let verified = client
        .validate_jwt_token(ISSUER, jwt.token())
        .await
        .unwrap();
    assert_eq!(verified.spiffe_id().to_string(), me);
    assert!(
        client
            .validate_jwt_token("third", jwt.token())
            .await
            .is_err()
    );

    let foreign = spiffe::SpiffeId::new(id("somebody").as_str()).unwrap();
    assert!(
        client
            .fetch_jwt_svid([ISSUER], Some(&foreign))
            .await
            .is_err()
    );
    let none: [&str; 0] = [];
    assert!(client.fetch_jwt_svid(none, None).await.is_err());
    assert!(client.fetch_jwt_svid([""], None).await.is_err());
    assert!(client.fetch_jwt_svid(["a"; 17], None).await.is_err());
}

#[tokio::test]
async fn each_jwt_svid_is_another_one() {
    let domain = Domain::start();
    let first = identity::fetch_jwt_svid(&domain.socket(), ISSUER)
        .await
        .unwrap();
    let second = identity::fetch_jwt_svid(&domain.socket(), ISSUER)
        .await
        .unwrap();
    // In the same second too: the count of keys is per SVID.
    assert_ne!(first, second);
}

#[tokio::test]
async fn no_security_header_no_answer() {
    let domain = Domain::start();
    let paths = [
        "/SpiffeWorkloadAPI/FetchX509SVID",
        "/SpiffeWorkloadAPI/FetchX509Bundles",
        "/SpiffeWorkloadAPI/FetchJWTSVID",
        "/SpiffeWorkloadAPI/FetchJWTBundles",
        "/SpiffeWorkloadAPI/ValidateJWTSVID",
    ];
    for path in paths {
        for header in [None, Some("false"), Some("true")] {
            let mut grpc = tonic::client::Grpc::new(domain.channel().await);
            grpc.ready().await.unwrap();
            let mut request = tonic::Request::new(());
            if let Some(value) = header {
                let value = value.parse().unwrap();
                request.metadata_mut().insert("workload.spiffe.io", value);
            }
            let codec = tonic_prost::ProstCodec::<(), ()>::default();
            let path = tonic::codegen::http::uri::PathAndQuery::from_static(path);
            let answer = grpc.server_streaming(request, path, codec).await;
            let answer = match answer {
                Ok(mut reply) => reply.get_mut().message().await.map(|_| ()),
                Err(status) => Err(status),
            };
            match (header, answer) {
                (Some("true"), Ok(())) => {}
                // Two calls want arguments.
                (Some("true"), Err(status)) => assert_ne!(
                    status.message(),
                    "the metadata workload.spiffe.io: true is missing"
                ),
                (_, answer) => assert_eq!(answer.unwrap_err().code(), Code::InvalidArgument),
            }
        }
    }
}

#[tokio::test]
async fn x509_svids_are_rotated_on_the_open_stream() {
    let domain = Domain::with(|settings| settings.x509_ttl = Duration::from_secs(2));
    let socket = domain.socket();
    let source = X509SourceBuilder::new()
        .client_factory(Arc::new(move || {
            let endpoint = Endpoint::Unix(socket.clone());
            Box::pin(WorkloadApiClient::connect(endpoint))
        }))
        .initial_sync_timeout(TIMEOUT)
        .build()
        .await
        .unwrap();
    let first = source.svid().unwrap();
    let mut updates = source.updated();
    tokio::time::timeout(Duration::from_secs(3), updates.changed())
        .await
        .unwrap()
        .unwrap();
    let second = source.svid().unwrap();
    assert_ne!(
        first.cert_chain()[0].as_bytes(),
        second.cert_chain()[0].as_bytes()
    );
    assert_eq!(first.spiffe_id(), second.spiffe_id());
}

#[tokio::test]
async fn a_source_knows_itself_and_checks_evidence() {
    let domain = Domain::start();
    let source = domain.source().await;
    let federation = alone(&source);
    assert_eq!(source.own_id().unwrap(), id("control-plane"));
    let now = now_ms();
    let token = source.fetch_jwt_svid(ISSUER).await.unwrap();
    let evidence = federation.verify_jwt_svid(&token, ISSUER, now).unwrap();
    assert_eq!(evidence.agent, id("control-plane"));
    assert!((now + 298_000..=now + 301_000).contains(&evidence.expires_ms));
    let other = identity::fetch_jwt_svid(&domain.socket(), ISSUER)
        .await
        .unwrap();
    let other_id = federation
        .verify_jwt_svid(&other, ISSUER, now)
        .unwrap()
        .evidence_id;
    // Same second, same claims: the same evidence, whatever the signature.
    assert_eq!(
        token.rsplit_once('.').unwrap().0 == other.rsplit_once('.').unwrap().0,
        other_id == evidence.evidence_id
    );

    let refusal = |token: &str, audience: &str, now| {
        federation
            .verify_jwt_svid(token, audience, now)
            .unwrap_err()
    };
    assert!(matches!(
        refusal(&token, "http://127.0.0.1", now),
        EvidenceError::Audience { .. }
    ));
    assert!(matches!(
        refusal(&token, ISSUER, evidence.expires_ms),
        EvidenceError::Expired
    ));
    assert!(
        federation
            .verify_jwt_svid(&token, ISSUER, evidence.expires_ms - 1)
            .is_ok()
    );
    assert!(matches!(
        refusal(&"a".repeat(8193), ISSUER, now),
        EvidenceError::TooLarge
    ));
    assert!(matches!(
        refusal("", ISSUER, now),
        EvidenceError::Malformed(_)
    ));
    let cut = token.strip_suffix(|_: char| true).unwrap();
    assert!(federation.verify_jwt_svid(cut, ISSUER, now).is_err());

    let client = client(&domain).await;
    let two = client
        .fetch_jwt_svid([ISSUER, "other"], None)
        .await
        .unwrap();
    assert!(matches!(
        refusal(two.token(), ISSUER, now),
        EvidenceError::Audience { .. }
    ));
}

#[tokio::test]
async fn evidence_of_another_domains_key_is_refused() {
    let (ours, theirs) = (Domain::start(), Domain::start());
    let token = theirs.source().await.fetch_jwt_svid(ISSUER).await.unwrap();
    let ours = alone(&ours.source().await);
    let refusal = ours.verify_jwt_svid(&token, ISSUER, now_ms());
    assert!(matches!(refusal, Err(EvidenceError::Signature)));
}

/// A token signed by the trust domain's own key, whatever it says.
fn sign(domain: &Domain, header: &Value, claims: &Value) -> String {
    let pem = std::fs::read_to_string(domain.settings.dir.join("jwt.key")).unwrap();
    let der = rcgen::KeyPair::from_pem(&pem).unwrap().serialize_der();
    let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &der).unwrap();
    let part = |value: &Value| Base64UrlUnpadded::encode_string(value.to_string().as_bytes());
    let signed = format!("{}.{}", part(header), part(claims));
    let signature = key.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
    let signature = Base64UrlUnpadded::encode_string(signature.as_ref());
    format!("{signed}.{signature}")
}

#[tokio::test]
async fn well_signed_tokens_that_are_no_jwt_svids_are_refused() {
    let domain = Domain::start();
    let source = domain.source().await;
    let federation = alone(&source);
    let now = now_ms();
    let exp = now / 1000 + 60;
    let token = source.fetch_jwt_svid(ISSUER).await.unwrap();
    let header = Base64UrlUnpadded::decode_vec(token.split('.').next().unwrap()).unwrap();
    let header: Value = serde_json::from_slice(&header).unwrap();
    let claims = json!({ "sub": id("a").as_str(), "aud": ISSUER, "exp": exp });
    let verify = |header: &Value, claims: &Value| {
        federation.verify_jwt_svid(&sign(&domain, header, claims), ISSUER, now)
    };
    assert_eq!(verify(&header, &claims).unwrap().agent, id("a"));

    let with = |base: &Value, name: &str, value: Value| {
        let mut changed = base.clone();
        changed
            .as_object_mut()
            .unwrap()
            .insert(name.to_owned(), value);
        changed
    };
    let headers = [
        ("alg", json!("none")),
        ("alg", json!("HS256")),
        ("alg", json!("ES384")),
        ("alg", json!("EdDSA")),
        ("typ", json!("at+jwt")),
        ("typ", json!("secevent+jwt")),
        ("typ", json!("logout+jwt")),
        ("kid", json!("other")),
        ("kid", Value::Null),
        ("jku", json!("http://evil.example")),
        ("jwk", json!({})),
        ("crit", json!(["x"])),
    ];
    for (name, value) in headers {
        let changed = with(&header, name, value);
        assert!(verify(&changed, &claims).is_err(), "header {changed}");
    }
    let wrong = [
        ("sub", json!("agent")),
        ("sub", json!("spiffe://writ.example")),
        ("sub", json!("spiffe://other.example/a")),
        ("aud", json!([])),
        ("aud", json!([ISSUER, "other"])),
        ("aud", json!([ISSUER, ISSUER])),
        ("aud", json!("http://127.0.0.1:848")),
        ("aud", json!("http://127.0.0.1:8480/")),
        ("exp", json!(now / 1000)),
        ("exp", json!(exp.to_string())),
        ("exp", json!(-1)),
        ("nbf", json!(exp)),
        ("nbf", Value::Null),
    ];
    for (name, value) in wrong {
        let changed = with(&claims, name, value);
        assert!(verify(&header, &changed).is_err(), "claims {changed}");
    }
    // What is told apart: the name to the letter, the time, and what it is no statement of.
    let (now_s, shouted) = (now / 1000, id("a").as_str().replace("writ", "WRIT"));
    let told = [
        ("sub", json!(shouted), "not a workload's spiffe id"),
        (
            "sub",
            json!("SPIFFE://writ.example/a"),
            "not a workload's spiffe id",
        ),
        ("iat", json!(now_s + 12), "not valid yet"),
        ("iat", json!(now_s + 3_600), "not valid yet"),
        ("iat", json!("soon"), "can't be read"),
        ("iat", Value::Null, "can't be read"),
        ("events", json!({ "x": {} }), "security event"),
        ("events", Value::Null, "security event"),
    ];
    for (name, value, wanted) in told {
        let changed = with(&claims, name, value);
        let refusal = verify(&header, &changed).unwrap_err().to_string();
        assert!(refusal.contains(wanted), "{changed}: {refusal}");
    }
    let ahead = with(&claims, "iat", json!(now_s + 9));
    assert_eq!(verify(&header, &ahead).unwrap().claims["iat"], now_s + 9);
    for name in ["sub", "aud", "exp"] {
        let mut cut = claims.clone();
        cut.as_object_mut().unwrap().remove(name);
        assert!(verify(&header, &cut).is_err(), "no {name}");
    }
}

#[tokio::test]
async fn no_socket_is_an_error_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("nobody.sock");
    let error = identity::Source::connect(&socket, Duration::from_millis(300))
        .await
        .map(|_| ())
        .unwrap_err();
    assert!(error.to_string().contains("nobody.sock"), "{error}");
    let error = identity::fetch_jwt_svid(&socket, ISSUER).await.unwrap_err();
    assert!(error.to_string().contains("nobody.sock"), "{error}");
}

/// Whether the server has closed it; what it says before that is no matter.
async fn closed(stream: &tokio::net::UnixStream, within: Duration) -> bool {
    let ended = async {
        let mut bytes = [0; 1024];
        loop {
            stream.readable().await.unwrap();
            match stream.try_read(&mut bytes) {
                Ok(0) => return,
                Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => return,
                _ => {}
            }
        }
    };
    tokio::time::timeout(within, ended).await.is_ok()
}

#[tokio::test]
async fn one_uid_may_not_have_every_connection() {
    let domain = Domain::start();
    let open = async || tokio::net::UnixStream::connect(domain.socket()).await;
    let mut idle = Vec::new();
    for _ in 0..257 {
        idle.push(open().await.unwrap());
    }
    let (first, last) = (idle.first().unwrap(), idle.last().unwrap());
    assert!(closed(last, TIMEOUT).await);
    assert!(!closed(first, Duration::from_millis(50)).await);
    // Who never says anything has to go, and makes room.
    assert!(closed(first, TIMEOUT * 2).await);
    assert!(client(&domain).await.fetch_x509_svid().await.is_ok());
}
