//! Fixed keys, a well-formed token and proof to change, and the test vectors.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests fail loudly"
)]

use std::io::Write as _;
use std::path::PathBuf;

use capability::action::Action;
use capability::key::PublicKey;
use capability::proof::ProofClaims;
use capability::token::Claims;
use capability::{Algorithm, b64, sha256};
use p256::ecdsa::signature::Signer;
use serde_json::Value;

/// The time of all tests, in seconds.
pub const NOW_S: u64 = 1_800_000_000;
pub const ISSUER: &str = "https://issuer.example";
pub const ORIGIN: &str = "https://tools.example";
pub const AGENT: &str = "spiffe://writ.example/agent/demo";
pub const PATH: &str = "/files/a.txt?v=1";

/// A key to sign with; the text names it.
pub enum Signing {
    P256(Box<p256::ecdsa::SigningKey>),
    Ed25519(Box<ed25519_dalek::SigningKey>),
}

impl Signing {
    pub fn p256(name: &str) -> Self {
        let secret = sha256(name.as_bytes());
        Self::P256(Box::new(
            p256::ecdsa::SigningKey::from_slice(&secret).unwrap(),
        ))
    }

    pub fn ed25519(name: &str) -> Self {
        let secret = sha256(name.as_bytes());
        Self::Ed25519(Box::new(ed25519_dalek::SigningKey::from_bytes(&secret)))
    }

    pub fn public(&self) -> PublicKey {
        match self {
            Self::P256(key) => {
                let point = key.verifying_key().to_sec1_point(false);
                let raw: &[u8] = point.as_ref();
                PublicKey::p256(
                    raw[1..33].try_into().unwrap(),
                    raw[33..65].try_into().unwrap(),
                )
                .unwrap()
            }
            Self::Ed25519(key) => PublicKey::ed25519(key.verifying_key().to_bytes()).unwrap(),
        }
    }

    pub fn algorithm(&self) -> Algorithm {
        self.public().algorithm()
    }

    pub fn signature(&self, message: &[u8]) -> Vec<u8> {
        match self {
            Self::P256(key) => {
                let signature: p256::ecdsa::Signature = key.sign(message);
                signature.to_bytes().to_vec()
            }
            Self::Ed25519(key) => key.sign(message).to_bytes().to_vec(),
        }
    }

    /// Appends the signature to a signing input.
    pub fn seal(&self, input: &str) -> String {
        format!("{input}.{}", b64::encode(&self.signature(input.as_bytes())))
    }
}

pub fn claims(jkt: &str) -> Claims {
    Claims {
        iss: ISSUER.to_owned(),
        aud: vec![ORIGIN.to_owned()],
        sub: AGENT.to_owned(),
        client_id: AGENT.to_owned(),
        chain: Vec::new(),
        iat_s: NOW_S,
        nbf_s: None,
        exp_s: NOW_S + 30,
        jti: "token-1".to_owned(),
        txn: "task-1".to_owned(),
        jkt: jkt.to_owned(),
        x5t_s256: None,
        action: Action::http("GET", &format!("{ORIGIN}{PATH}")).unwrap(),
    }
}

pub fn proof_claims(token: &str) -> ProofClaims {
    ProofClaims {
        htm: "GET".to_owned(),
        htu: format!("{ORIGIN}/files/a.txt"),
        iat_s: NOW_S,
        jti: "proof-1".to_owned(),
        ath: Some(b64::encode(&sha256(token.as_bytes()))),
        nonce: None,
    }
}

/// A file or folder of the third-party vectors, which are in WRIT_VECTORS or in
/// `shared/vectors` beside the workspace; none, and a loud line, where it is not.
pub fn vectors(path: &str) -> Option<PathBuf> {
    let named = std::env::var_os("WRIT_VECTORS").map(PathBuf::from);
    let beside = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/vectors"));
    let found = named.unwrap_or(beside).join(path);
    if found.exists() {
        return Some(found);
    }
    let what = format!("no {}", found.display());
    let required = std::env::var_os("WRIT_REQUIRE_VECTORS").is_some_and(|set| !set.is_empty());
    assert!(!required, "{what}, and WRIT_REQUIRE_VECTORS is set");
    // Past the test harness, which hides what a passing test prints.
    drop(writeln!(
        std::io::stderr(),
        "\n*** SKIPPED: {what}. WRIT_VECTORS names the vectors' directory, and \
         WRIT_REQUIRE_VECTORS=1 makes this a failure. ***"
    ));
    None
}

pub fn vector_json(path: &str) -> Option<Value> {
    let bytes = std::fs::read(vectors(path)?).unwrap();
    Some(serde_json::from_slice(&bytes).unwrap())
}
