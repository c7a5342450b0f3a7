//! The rows of data/gates.json as requests. Each row changes one thing of a good
//! request: in a token's or proof's header or claims, its signature, the request.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests fail loudly"
)]

use capability::x509::Leaf;
use capability::{PublicKey, b64, proof, rpc, sha256, token};
use serde_json::{Map, Value, json};

use super::common::{NOW_S, ORIGIN, PATH, Signing, claims, proof_claims};

/// A row's request, and what is around it.
pub struct Case {
    /// Names in lower case, pseudo headers first.
    pub headers: Vec<(Vec<u8>, Vec<u8>)>,
    /// The URI SANs of the client certificate, when there is one.
    pub sans: Option<Vec<String>>,
    /// What else that certificate says, where it isn't a good leaf's.
    pub peer_is: Value,
    /// The config demands a certificate.
    pub require_peer: bool,
    /// The signature is left to the record.
    pub record: bool,
    /// When it comes.
    pub now_ms: u64,
    /// None is unread; an empty one came with its headers.
    pub body: Option<String>,
    /// The nonces that are good, where one is asked for.
    pub nonces: Option<Vec<String>>,
}

/// The client certificate of rows that have one.
pub const CERTIFICATE: &[u8] = b"certificate";

impl Case {
    /// The client certificate's own words.
    pub fn peer(&self) -> Option<Leaf> {
        let number = |name: &str| self.peer_is[name].as_u64();
        self.sans.clone().map(|uri_sans| Leaf {
            sha256: sha256(CERTIFICATE),
            uri_sans,
            not_before_s: number("not_before_s").unwrap_or(0),
            not_after_s: number("not_after_s").unwrap_or(u64::MAX),
            signs_handshakes_only: self.peer_is["signs"].is_null(),
        })
    }
}

pub fn rows() -> Vec<Value> {
    serde_json::from_str(include_str!("../data/gates.json")).unwrap()
}

/// The element that a row of data/messages.json has its token for, at this location:
/// `digest_of` is there for the arguments that `arguments_digest` is of.
pub fn message_element(row: &Value, location: &str) -> Value {
    let mut element = row["token"].clone();
    element["locations"] = json!([location]);
    let members = element.as_object_mut().unwrap();
    if let Some(arguments) = members.remove("digest_of") {
        let digest = rpc::digest(Some(&arguments)).unwrap();
        members.insert("arguments_digest".to_owned(), b64::encode(&digest).into());
    }
    element
}

/// The headers of such a row, besides those of every request.
pub fn message_headers(row: &Value) -> Vec<(String, String)> {
    let given = row["headers"].as_array().into_iter().flatten();
    let given = given.map(|it| (&it[0], &it[1]));
    let media = match row.get("content_type") {
        None => Some("application/json"),
        Some(given) => given.as_str(),
    };
    let media = media.map(|media| ("content-type".to_owned(), media.to_owned()));
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let given = given.map(|(name, value)| (text(name), text(value)));
    media.into_iter().chain(given).collect()
}

/// The rows of data/messages.json as rows of data/gates.json: a token for one message,
/// and a request with a body.
pub fn messages() -> Vec<Value> {
    let rows: Vec<Value> = serde_json::from_str(include_str!("../data/messages.json")).unwrap();
    let full = |row: Value| {
        let method = row["http"].as_str().unwrap_or("POST");
        let element = message_element(&row, &format!("{ORIGIN}{PATH}"));
        let vouched = ["action_mismatch", "body_mismatch"].map(Value::from);
        json!({
            "name": row["name"], "expect": row["expect"], "body": row["body"],
            "authenticated": vouched.contains(&row["expect"]),
            "token": {"claims": {"authorization_details": [element]}},
            "proof": {"claims": {"htm": method}},
            "request": {"method": method, "more": message_headers(&row)},
        })
    };
    rows.into_iter().map(full).collect()
}

/// Further origins that the config holds, each with its resource: one with a path
/// of its own, and two that the first origin is a beginning of, or begins with.
pub const SITES: [(&str, &str); 3] = [
    ("https://pay.example", "https://pay.example/v1"),
    ("https://tools.example.net", "https://tools.example.net"),
    ("https://tools.exam", "https://tools.exam"),
];

/// The issuer's keys, which the config holds.
pub fn keys() -> Vec<(String, PublicKey)> {
    vec![
        ("issuer-1".to_owned(), Signing::p256("issuer").public()),
        ("issuer-2".to_owned(), Signing::ed25519("issuer").public()),
    ]
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
    match change.as_str().unwrap_or_default().split_once(':') {
        Some(("$deep", n)) => {
            (0..n.parse::<usize>().unwrap()).fold(Value::Null, |inner, _| Value::Array(vec![inner]))
        }
        Some(("$long", n)) => Value::String("a".repeat(n.parse().unwrap())),
        _ if change == "$null" => Value::Null,
        _ => change.clone(),
    }
}

/// Applies a row's changes to a signing input, and signs it.
fn forge(input: &str, changes: &Value, signer: &Signing) -> String {
    let segments: Vec<Vec<u8>> = input.split('.').map(|s| b64::decode(s).unwrap()).collect();
    let segment = |i: usize, part: &str| {
        let mut object: Map<String, Value> = serde_json::from_slice(&segments[i]).unwrap();
        patch(&mut object, &changes[part]);
        for n in 0..changes[format!("{part}_fill")].as_u64().unwrap_or(0) {
            object.insert(format!("x{n}"), Value::Null);
        }
        let mut text = Value::Object(object).to_string();
        // Raw text right after the opening brace: duplicates, escapes, numbers
        // that no Value holds.
        if let Some(splice) = changes[format!("{part}_splice")].as_str() {
            text.insert_str(1, splice);
        }
        if let Some(tail) = changes[format!("{part}_tail")].as_str() {
            text.push_str(tail);
        }
        if let Some(raw) = changes[format!("{part}_raw")].as_str() {
            raw.clone_into(&mut text);
        }
        let mut bytes = text.into_bytes();
        if let Some(hex) = changes[format!("{part}_hex")].as_str() {
            bytes = hex::decode(hex).unwrap();
        }
        b64::encode(&bytes)
    };
    let input = format!("{}.{}", segment(0, "header"), segment(1, "claims"));
    let mut sealed = match changes["signature"].as_str() {
        None => signer.seal(&input),
        Some("flipped") => {
            let mut signature = signer.signature(input.as_bytes());
            signature[40] ^= 1;
            format!("{input}.{}", b64::encode(&signature))
        }
        Some("der") => {
            let der = capability::key::ecdsa_der(&signer.signature(input.as_bytes())).unwrap();
            format!("{input}.{}", b64::encode(&der))
        }
        Some(hex) => format!("{input}.{}", b64::encode(&hex::decode(hex).unwrap())),
    };
    sealed.push_str(changes["append"].as_str().unwrap_or_default());
    sealed
}

/// The request that a row describes.
pub fn case(row: &Value) -> Case {
    let key = match row["proof"]["key"].as_str() {
        Some("ed25519") => Signing::ed25519("agent"),
        Some(other) => Signing::p256(other),
        None => Signing::p256("agent"),
    };
    let bound_to = match row["proof"]["key"].as_str() {
        Some("ed25519") => key.public(),
        _ => Signing::p256("agent").public(),
    };
    let token_claims = claims(&bound_to.thumbprint());
    let (kid, issuer) = match row["token"]["key"].as_str() {
        Some("ed25519") => ("issuer-2", Signing::ed25519("issuer")),
        Some(other) => ("issuer-1", Signing::p256(other)),
        None => ("issuer-1", Signing::p256("issuer")),
    };
    let input = token::signing_input(kid, issuer.algorithm(), &token_claims);
    let token = forge(&input, &row["token"], &issuer);
    let input = proof::signing_input(
        &key.public().to_jwk(),
        key.algorithm(),
        &proof_claims(&token),
    );
    let proof = forge(&input, &row["proof"], &key);

    let request = &row["request"];
    let text = |name: &str, otherwise: &str| {
        let given = request[name].as_str().unwrap_or(otherwise);
        given.replace("{token}", &token).replace("{proof}", &proof)
    };
    let mut headers = vec![
        (":method".to_owned(), text("method", "GET")),
        (":authority".to_owned(), text("authority", "tools.example")),
        (":path".to_owned(), text("path", PATH)),
        (
            "authorization".to_owned(),
            text("authorization", "DPoP {token}"),
        ),
        ("dpop".to_owned(), text("dpop", "{proof}")),
    ];
    for gone in request["without"].as_array().into_iter().flatten() {
        headers.retain(|(name, _)| name != gone.as_str().unwrap());
    }
    for more in request["more"].as_array().into_iter().flatten() {
        let value = more[1].as_str().unwrap();
        let value = value.replace("{token}", &token).replace("{proof}", &proof);
        let value = special(&Value::String(value)).as_str().unwrap().to_owned();
        headers.push((more[0].as_str().unwrap().to_owned(), value));
    }
    let mut headers: Vec<(Vec<u8>, Vec<u8>)> = headers
        .into_iter()
        .map(|(name, value)| (name.into_bytes(), value.into_bytes()))
        .collect();
    if let Some(hex) = request["path_hex"].as_str() {
        headers[2].1 = hex::decode(hex).unwrap();
    }

    let now_ms = NOW_S * 1000;
    Case {
        headers,
        sans: serde_json::from_value(row["peer"].clone()).unwrap_or_default(),
        peer_is: row["peer_is"].clone(),
        require_peer: row["require_peer"] == true,
        record: row["token_check"] == "record",
        now_ms: now_ms
            .checked_add_signed(row["now_ms"].as_i64().unwrap_or(0))
            .unwrap(),
        body: row["body"].as_str().map(str::to_owned),
        nonces: serde_json::from_value(row["nonces"].clone()).unwrap(),
    }
}
