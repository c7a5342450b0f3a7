//! Tokens, proofs and configurations that are good, for tests to spoil.

use capability::key::Algorithm;
use capability::proof::{self, ProofClaims};
use capability::{b64, sha256};
use p256::ecdsa::SigningKey;
use p256::ecdsa::signature::Signer;
use serde_json::{Value, json};

pub const ISSUER: &str = "http://127.0.0.1:8480";
pub const ORIGIN: &str = "http://127.0.0.1:8400";
pub const AGENT: &str = "spiffe://writ.example/agent/demo";
pub const KID: &str = "writ-1";
/// The time that tests start at; seconds since the Unix epoch.
pub const START_S: u64 = 1_800_000_000;

/// A P-256 key that signs tokens or proofs.
pub struct Key(SigningKey);

impl Key {
    /// One key for each number.
    pub fn number(number: u8) -> Self {
        Self(SigningKey::from_slice(&[number; 32]).unwrap())
    }

    /// The control plane's.
    pub fn issuer() -> Self {
        Self::number(1)
    }

    /// The agent's.
    pub fn agent() -> Self {
        Self::number(2)
    }

    pub fn jwk(&self) -> Value {
        let point = self.0.verifying_key().to_sec1_point(false);
        let (x, y) = (
            b64::encode(point.x().unwrap()),
            b64::encode(point.y().unwrap()),
        );
        json!({"kty": "EC", "crv": "P-256", "x": x, "y": y})
    }

    pub fn thumbprint(&self) -> String {
        capability::PublicKey::from_jwk(&self.jwk())
            .unwrap()
            .thumbprint()
    }

    pub fn sign(&self, input: &str) -> String {
        let signature: p256::ecdsa::Signature = self.0.sign(input.as_bytes());
        format!("{input}.{}", b64::encode(&signature.to_bytes()))
    }
}

/// The claims of a token for a GET of this path.
pub fn claims(path: &str, jti: &str) -> Value {
    json!({
        "iss": ISSUER, "aud": ORIGIN, "sub": AGENT, "client_id": AGENT,
        "iat": START_S, "exp": START_S + 30, "jti": jti, "txn": "task-1",
        "cnf": {"jkt": Key::agent().thumbprint()},
        "authorization_details": [
            {"type": "http_request", "actions": ["GET"], "locations": [format!("{ORIGIN}{path}")]}
        ],
    })
}

/// A token with these claims, signed by this key.
pub fn token(claims: &Value, key: &Key) -> String {
    let header = json!({"typ": "at+jwt", "alg": "ES256", "kid": KID});
    let part = |value: &Value| b64::encode(value.to_string().as_bytes());
    key.sign(&format!("{}.{}", part(&header), part(claims)))
}

/// A proof for a GET of this path with this token.
pub fn proof(path: &str, token: &str, key: &Key) -> String {
    proof_with(path, token, key, None)
}

/// The same, with a nonce.
pub fn proof_with(path: &str, token: &str, key: &Key, nonce: Option<&str>) -> String {
    let claims = ProofClaims {
        htm: "GET".to_owned(),
        htu: format!("{ORIGIN}{path}"),
        iat_s: START_S,
        jti: format!("proof of {}", b64::encode(&sha256(token.as_bytes()))),
        ath: Some(b64::encode(&sha256(token.as_bytes()))),
        nonce: nonce.map(str::to_owned),
    };
    key.sign(&proof::signing_input(&key.jwk(), Algorithm::Es256, &claims))
}

/// The headers of a request, in order, as a client and the proxy make them.
#[derive(Clone, Debug)]
pub struct Headers(pub Vec<(String, Vec<u8>)>);

impl Headers {
    /// A request without credentials.
    pub fn bare(path: &str) -> Self {
        Self(Vec::new())
            .with(":method", "GET")
            .with(":path", path)
            .with(":authority", "127.0.0.1:8400")
            .with(":scheme", "http")
            .with("x-request-id", "9f0c5b7e-request")
            .with("accept", "*/*")
    }

    /// A good request for this path; each `jti` is another token.
    pub fn good(path: &str, jti: &str) -> Self {
        let token = token(&claims(path, jti), &Key::issuer());
        let proof = proof(path, &token, &Key::agent());
        Self::bare(path)
            .with("authorization", format!("DPoP {token}"))
            .with("dpop", proof)
    }

    /// The same, with a nonce in its proof.
    pub fn with_nonce(path: &str, jti: &str, nonce: &str) -> Self {
        let token = token(&claims(path, jti), &Key::issuer());
        let proof = proof_with(path, &token, &Key::agent(), Some(nonce));
        Self::bare(path)
            .with("authorization", format!("DPoP {token}"))
            .with("dpop", proof)
    }

    pub fn with(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.0.push((name.to_owned(), value.as_ref().to_vec()));
        self
    }

    pub fn without(mut self, name: &str) -> Self {
        self.0.retain(|(known, _)| known != name);
        self
    }

    pub fn value(&self, name: &str) -> &[u8] {
        &self
            .0
            .iter()
            .find(|(known, _)| known == name)
            .expect("the header is there")
            .1
    }
}

/// A good configuration.
pub fn configuration() -> Value {
    let mut key = Key::issuer().jwk();
    key["kid"] = json!(KID);
    json!({
        "version": 1,
        "issuer": ISSUER,
        "resource": ORIGIN,
        "origin": ORIGIN,
        "keys": [key],
        "token_check": "edge",
        "crypto": "host",
        "cluster": "writ_control_plane",
        "decision_deadline_ms": 2000,
        "hold_ms": 25000,
        "limits": {"questions_in_flight": 8, "denials_buffered": 4},
        "routes": [{"name": "files", "path_prefix": "/"}, {"name": "reports", "path_prefix": "/reports/"}],
    })
}
