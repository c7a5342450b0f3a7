//! Tokens and proofs with any bytes in them, sealed with the right keys, so that
//! only the one thing that is wrong is wrong.

use std::path::{Path, PathBuf};

use base64ct::{Base64, Encoding as _};
use capability::{PublicKey, b64, sha256};
use p256::ecdsa::signature::Signer as _;
use p256::pkcs8::DecodePrivateKey as _;
use serde_json::{Map, Value, json};

use crate::Error;
use crate::client::now_s;
use crate::system::{AGENT, System};

/// The time that gates.json was written for, in seconds.
const THEN_S: u64 = 1_800_000_000;
/// Numbers of gates.json so near to that time are times.
const NEAR_S: u64 = 1_000_000;

/// A key to sign with.
#[derive(Clone)]
pub enum Key {
    /// ES256.
    P256(Box<p256::ecdsa::SigningKey>),
    /// Ed25519.
    Ed25519(Box<ed25519_dalek::SigningKey>),
}

impl Key {
    /// A P-256 key that this name always gives.
    ///
    /// # Errors
    /// When SHA-256 of the name is no P-256 key, which has a chance of 2^-32.
    pub fn p256(name: &str) -> Result<Key, Error> {
        let secret = sha256(name.as_bytes());
        let key = p256::ecdsa::SigningKey::from_slice(&secret);
        key.map(|key| Key::P256(Box::new(key)))
            .map_err(|_| bad("a name gives no key"))
    }

    /// An Ed25519 key that this name always gives.
    pub fn ed25519(name: &str) -> Key {
        let secret = sha256(name.as_bytes());
        Key::Ed25519(Box::new(ed25519_dalek::SigningKey::from_bytes(&secret)))
    }

    /// A P-256 key in PKCS #8 and PEM.
    ///
    /// # Errors
    /// When the file can't be read or is another.
    pub fn from_pem(path: &Path) -> Result<Key, Error> {
        let text = std::fs::read_to_string(path).map_err(Error::file("read", path))?;
        let body: String = text.lines().filter(|line| !line.contains('-')).collect();
        let der = Base64::decode_vec(&body).unwrap_or_default();
        let secret = p256::SecretKey::from_pkcs8_der(&der);
        let secret = secret.map_err(|_| bad(&format!("{} is no P-256 key", path.display())))?;
        Ok(Key::P256(Box::new(secret.into())))
    }

    /// The public half.
    ///
    /// # Errors
    /// When `capability` would not have it.
    pub fn public(&self) -> Result<PublicKey, Error> {
        match self {
            Key::P256(key) => {
                let point = key.verifying_key().to_sec1_point(false);
                let raw: &[u8] = point.as_ref();
                let half = |from: usize| raw.get(from..from + 32)?.try_into().ok();
                match (half(1), half(33)) {
                    (Some(x), Some(y)) => PublicKey::p256(x, y).map_err(|it| bad(&it.to_string())),
                    _ => Err(bad("a point without coordinates")),
                }
            }
            Key::Ed25519(key) => PublicKey::ed25519(key.verifying_key().to_bytes())
                .map_err(|it| bad(&it.to_string())),
        }
    }

    /// As `alg` names it.
    pub fn alg(&self) -> &'static str {
        match self {
            Key::P256(_) => "ES256",
            Key::Ed25519(_) => "Ed25519",
        }
    }

    /// The 64 bytes of a signature.
    pub fn signature(&self, message: &[u8]) -> Vec<u8> {
        match self {
            Key::P256(key) => {
                let signature: p256::ecdsa::Signature = key.sign(message);
                signature.to_bytes().to_vec()
            }
            Key::Ed25519(key) => key.sign(message).to_bytes().to_vec(),
        }
    }

    /// A JWS of these two segments' bytes.
    pub fn seal(&self, header: &[u8], claims: &[u8]) -> String {
        let input = format!("{}.{}", b64::encode(header), b64::encode(claims));
        let signature = self.signature(input.as_bytes());
        format!("{input}.{}", b64::encode(&signature))
    }
}

/// What forges for one system.
pub struct Forger {
    /// The key that signs the system's tokens.
    pub issuer: Key,
    /// Its id.
    pub kid: String,
    /// The key that tokens are bound to.
    pub agent: Key,
    /// The system's names.
    pub names: Names,
    /// Where the control plane's own keys are.
    pub keys: PathBuf,
    /// Where the keys of the built-in trust domain are.
    pub trust: PathBuf,
}

/// What a system is called in tokens and proofs.
#[derive(Clone, Debug)]
pub struct Names {
    /// `iss`
    pub issuer: String,
    /// `aud`, and where requests go.
    pub origin: String,
}

impl Names {
    /// Where proofs for an exchange are made for.
    pub fn token_endpoint(&self) -> String {
        format!("{}/oauth2/token", self.issuer)
    }
}

impl Forger {
    /// With the system's own key, from its data directory: the one that it began with.
    ///
    /// # Errors
    /// When there is none.
    pub fn of(system: &System) -> Result<Forger, Error> {
        Forger::with(system, "token-es256.pem")
    }

    /// With the system's own key: the last one that is not revoked.
    ///
    /// # Errors
    /// When there is none.
    pub fn active(system: &System) -> Result<Forger, Error> {
        let path = system.state_dir().join("data/keys/token-keys.json");
        let text = std::fs::read_to_string(&path).map_err(Error::file("read", &path))?;
        let list: Vec<Value> = serde_json::from_str(&text).unwrap_or_default();
        let mut sound = list
            .iter()
            .rev()
            .filter(|key| key.get("revoked_s").is_none());
        let last = sound.next().and_then(|key| key.get("file")?.as_str());
        Forger::with(system, last.unwrap_or_default())
    }

    fn with(system: &System, file: &str) -> Result<Forger, Error> {
        let data = system.state_dir().join("data");
        let issuer = Key::from_pem(&data.join("keys").join(file))?;
        Ok(Forger {
            kid: issuer.public()?.thumbprint(),
            issuer,
            agent: Key::p256("agent")?,
            names: Names {
                issuer: system.issuer(),
                origin: system.origin(),
            },
            keys: data.join("keys"),
            trust: data.join("trust"),
        })
    }

    /// Claims of a good token for `GET` of this path, bound to this key.
    pub fn claims(&self, path: &str, jkt: &str) -> Value {
        let now = now_s();
        json!({
            "iss": self.names.issuer, "aud": self.names.origin,
            "sub": AGENT, "client_id": AGENT,
            "iat": now, "exp": now.saturating_add(30),
            "jti": random(), "txn": random(), "cnf": {"jkt": jkt},
            "authorization_details": [{
                "type": "http_request", "actions": ["GET"],
                "locations": [format!("{}{path}", self.names.origin)],
            }],
        })
    }

    /// Header of a good token.
    pub fn header(&self) -> Value {
        json!({"typ": "at+jwt", "alg": "ES256", "kid": self.kid})
    }

    /// A token with these changes, sealed by the issuer's key unless they name
    /// another.
    ///
    /// # Errors
    /// When the changes ask for what isn't there.
    pub fn token(&self, path: &str, jkt: &str, changes: &Value) -> Result<String, Error> {
        let key = match changes.get("key").and_then(Value::as_str) {
            None => self.issuer.clone(),
            Some("ed25519") => Key::ed25519("issuer"),
            Some(other) => Key::p256(other)?,
        };
        forge(&self.header(), &self.claims(path, jkt), changes, &key)
    }

    /// A proof for `GET` of this path at the edge, with these changes.
    ///
    /// # Errors
    /// When the changes ask for what isn't there.
    pub fn proof(
        &self,
        key: &Key,
        path: &str,
        token: &str,
        changes: &Value,
    ) -> Result<String, Error> {
        let path = path.split(['?', '#']).next().unwrap_or(path);
        let claims = json!({
            "htm": "GET", "htu": format!("{}{path}", self.names.origin),
            "iat": now_s(), "jti": random(), "ath": b64::encode(&sha256(token.as_bytes())),
        });
        forge(&proof_header(key)?, &claims, changes, key)
    }

    /// A proof for the token endpoint, with these changes.
    ///
    /// # Errors
    /// When the changes ask for what isn't there.
    pub fn exchange_proof(&self, key: &Key, changes: &Value) -> Result<String, Error> {
        let claims = json!({
            "htm": "POST", "htu": self.names.token_endpoint(),
            "iat": now_s(), "jti": random(),
        });
        forge(&proof_header(key)?, &claims, changes, key)
    }
}

/// Header of a good proof.
///
/// # Errors
/// When the key is none.
pub fn proof_header(key: &Key) -> Result<Value, Error> {
    Ok(json!({"typ": "dpop+jwt", "alg": key.alg(), "jwk": key.public()?.to_jwk()}))
}

/// 128 random bits.
pub fn random() -> String {
    b64::encode(&rand::random::<[u8; 16]>())
}

/// A JWS of this header and these claims with changes, as
/// `capability/tests/data/gates.json` has them, and `…_end`, which is spliced in
/// before the closing brace.
///
/// # Errors
/// When hexadecimal digits are none.
pub fn forge(header: &Value, claims: &Value, changes: &Value, key: &Key) -> Result<String, Error> {
    let header = segment(header, changes, "header")?;
    let claims = segment(claims, changes, "claims")?;
    let input = format!("{}.{}", b64::encode(&header), b64::encode(&claims));
    let mut signature = key.signature(input.as_bytes());
    match changes.get("signature").and_then(Value::as_str) {
        None => {}
        Some("flipped") => {
            if let Some(byte) = signature.get_mut(40) {
                *byte ^= 1;
            }
        }
        Some("der") => signature = capability::key::ecdsa_der(&signature).unwrap_or_default(),
        Some(digits) => signature = unhex(digits)?,
    }
    let tail = changes.get("append").and_then(Value::as_str);
    let (signature, tail) = (b64::encode(&signature), tail.unwrap_or_default());
    Ok(format!("{input}.{signature}{tail}"))
}

fn segment(base: &Value, changes: &Value, part: &str) -> Result<Vec<u8>, Error> {
    let named = |suffix: &str| changes.get(format!("{part}{suffix}"));
    let text_of = |suffix: &str| named(suffix).and_then(Value::as_str);
    if let Some(digits) = text_of("_hex") {
        return unhex(digits);
    }
    if let Some(raw) = text_of("_raw") {
        return Ok(raw.as_bytes().to_vec());
    }
    let mut object = base.as_object().cloned().unwrap_or_default();
    if let Some(changes) = named("") {
        patch(&mut object, changes);
    }
    let fill = named("_fill").and_then(Value::as_u64).unwrap_or(0);
    object.extend((0..fill).map(|n| (format!("x{n}"), Value::Null)));
    let mut text = Value::Object(object).to_string();
    // Raw text beside the braces: duplicates, escapes, numbers that no Value holds.
    if let Some(splice) = text_of("_splice") {
        text.insert_str(1, splice);
    }
    if let Some(splice) = text_of("_end") {
        text.insert_str(text.len().saturating_sub(1), splice);
    }
    text.push_str(text_of("_tail").unwrap_or_default());
    Ok(text.into_bytes())
}

/// JSON Merge Patch, but `"$null"` sets a null, and `"$deep:N"` and `"$long:N"`
/// stand for N nested arrays and N letters.
fn patch(target: &mut Map<String, Value>, changes: &Value) {
    for (name, change) in changes.as_object().into_iter().flatten() {
        match (change, target.get_mut(name)) {
            (Value::Null, _) => {
                target.remove(name);
            }
            (Value::Object(_), Some(Value::Object(inner))) => patch(inner, change),
            _ => {
                target.insert(name.clone(), special(change));
            }
        }
    }
}

fn special(change: &Value) -> Value {
    let count = |text: &str| text.parse::<usize>().unwrap_or(0);
    match change.as_str().unwrap_or_default().split_once(':') {
        Some(("$deep", n)) => (0..count(n)).fold(Value::Null, |inner, _| Value::Array(vec![inner])),
        Some(("$long", n)) => Value::String("a".repeat(count(n))),
        _ if change == "$null" => Value::Null,
        _ => change.clone(),
    }
}

/// `"$long:N"` as so many letters, anything else as it is.
pub fn long(text: &str) -> String {
    let spelled = special(&Value::String(text.to_owned()));
    spelled.as_str().unwrap_or_default().to_owned()
}

/// A row of gates.json as it has to read at this moment.
pub fn at_this_time(row: &Value) -> Value {
    match row {
        Value::Number(number) => match number.as_u64() {
            Some(s) if s.abs_diff(THEN_S) < NEAR_S => {
                json!(s.saturating_add(now_s()).saturating_sub(THEN_S))
            }
            _ => row.clone(),
        },
        Value::Array(all) => Value::Array(all.iter().map(at_this_time).collect()),
        Value::Object(all) => {
            let moved = all
                .iter()
                .map(|(name, it)| (name.clone(), at_this_time(it)));
            Value::Object(moved.collect())
        }
        _ => row.clone(),
    }
}

fn unhex(digits: &str) -> Result<Vec<u8>, Error> {
    hex::decode(digits).map_err(|it| bad(&it.to_string()))
}

fn bad(what: &str) -> Error {
    Error::Setup(format!("a forged request: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_change_one_thing_each() {
        let key = Key::p256("a").unwrap();
        let (header, claims) = (json!({"alg": "ES256"}), json!({"a": 1, "b": {"c": 2}}));
        let made = |changes: Value| {
            let jws = forge(&header, &claims, &changes, &key).unwrap();
            let part = jws.split('.').nth(1).unwrap().to_owned();
            String::from_utf8(b64::decode(&part).unwrap()).unwrap()
        };
        assert_eq!(made(json!({})), r#"{"a":1,"b":{"c":2}}"#);
        assert_eq!(
            made(json!({"claims": {"b": {"c": null}, "a": "$null"}})),
            r#"{"a":null,"b":{}}"#
        );
        let doubled = made(json!({"claims_splice": "\"a\":0,", "claims_end": ",\"a\":9"}));
        assert_eq!(doubled, r#"{"a":0,"a":1,"b":{"c":2},"a":9}"#);
        assert_eq!(made(json!({"claims_hex": "7b7d"})), "{}");
    }

    #[test]
    fn times_move_and_other_numbers_stay() {
        let moved = at_this_time(&json!({"iat": THEN_S + 10, "x": [7, THEN_S]}));
        assert!(moved["iat"].as_u64().unwrap().abs_diff(now_s() + 10) < 2);
        assert_eq!(moved["x"][0], 7);
    }
}
