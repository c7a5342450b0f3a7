//! Group A: the forms of tokens and proofs, in base64url and in JSON.

use capability::b64;
use serde_json::{Value, json};

use super::cases::PATH;
use super::forge::{Forger, proof_header};
use super::jws::{proof, put, token};
use super::vectors;
use crate::Error;

/// Base64url that is none: other alphabets, padding, space, bits that count for nothing.
pub fn spellings(forger: &Forger) -> Result<Vec<Value>, Error> {
    const ALPHABET: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let jkt = forger.agent.public()?.thumbprint();
    let good = forger.token(PATH, &jkt, &json!({}))?;
    let shown = forger.proof(&forger.agent, PATH, &good, &json!({}))?;
    let mut rows = Vec::new();
    let both = |rows: &mut Vec<Value>, name: &str, spell: &dyn Fn(&str) -> String| {
        rows.push(token(name, "token_malformed", json!({"raw": spell(&good)})));
        rows.push(
            json!({"name": format!("proof: {name}"), "expect": "proof_malformed",
            "token": {"raw": good}, "proof": {"raw": spell(&shown)}}),
        );
    };
    let last = good
        .chars()
        .last()
        .and_then(|it| ALPHABET.find(it))
        .unwrap_or(0);
    // Of the last letter of 64 bytes two bits count.
    for spare in 1..16_usize {
        both(
            &mut rows,
            &format!("{spare} in the bits that count for nothing"),
            &|jws| {
                let (rest, letter) = jws.split_at_checked(jws.len() - 1).unwrap_or_default();
                let at = ALPHABET.find(letter).unwrap_or(last);
                let other = ALPHABET.as_bytes().get((at & 0x30) | spare).copied();
                format!("{rest}{}", char::from(other.unwrap_or(b'A')))
            },
        );
    }
    for (name, tail) in [("one = after it", "="), ("two = after it", "==")] {
        both(&mut rows, name, &|jws| format!("{jws}{tail}"));
    }
    // Within a token68 padding has no place.
    for (name, at) in [("header", 0), ("claims", 1)] {
        let spell = |jws: &str| {
            let mut parts: Vec<String> = jws.split('.').map(str::to_owned).collect();
            if let Some(part) = parts.get_mut(at) {
                part.push('=');
            }
            parts.join(".")
        };
        rows.push(token(
            format!("= after the {name}"),
            "malformed_credentials",
            json!({"raw": spell(&good)}),
        ));
        rows.push(json!({"name": format!("proof: = after the {name}"),
            "expect": "proof_malformed",
            "token": {"raw": good}, "proof": {"raw": spell(&shown)}}));
    }
    both(&mut rows, "a + in it", &|jws| format!("{jws}+"));
    both(&mut rows, "a / in it", &|jws| format!("{jws}/"));
    both(&mut rows, "~ in it", &|jws| jws.replacen('e', "~", 1));
    // The proof's header may have them, and they are none of base64url; token68
    // has none of them.
    for (name, bad) in [("a space", " "), ("a tab", "\t"), ("a percent sign", "%2E")] {
        let spell = |jws: &str| jws.replacen('.', &format!("{bad}."), 1);
        rows.push(
            json!({"name": format!("{name} in it"), "expect": "malformed_credentials",
            "token": {"raw": spell(&good)}}),
        );
        rows.push(
            json!({"name": format!("proof: {name} in it"), "expect": "proof_malformed",
            "token": {"raw": good}, "proof": {"raw": spell(&shown)}}),
        );
    }
    // A newline ends a header: what follows is another, and no good one.
    rows.push(json!({"name": "a newline in it", "envoy": [400],
        "token": {"raw": good.replacen('.', "\n.", 1)}}));
    Ok(rows)
}

/// A JWE, and a JWS in JSON (RFC 7515, section 7.2).
pub fn serializations(forger: &Forger) -> Result<Vec<Value>, Error> {
    let jkt = forger.agent.public()?.thumbprint();
    let good = forger.token(PATH, &jkt, &json!({}))?;
    let shown = forger.proof(&forger.agent, PATH, &good, &json!({}))?;
    let mut rows = Vec::new();
    for (of, jws, whole) in [("token", &good, false), ("proof", &shown, true)] {
        let parts: Vec<&str> = jws.split('.').collect();
        let [header, claims, signature] = parts.as_slice() else {
            continue;
        };
        let one = json!({"protected": header, "signature": signature});
        let mut flattened = one.clone();
        put(&mut flattened, "payload", json!(claims));
        for (name, value) in [
            ("flattened", flattened.to_string()),
            (
                "general",
                json!({"payload": claims, "signatures": [one]}).to_string(),
            ),
            (
                "general, no signatures",
                json!({"payload": claims, "signatures": []}).to_string(),
            ),
            (
                "general, one of two",
                json!({"payload": claims, "signatures": [one, {}]}).to_string(),
            ),
        ] {
            rows.push(if whole {
                json!({"name": format!("{of}: {name}"), "expect": "proof_malformed",
                    "token": {"raw": good}, "proof": {"raw": value}})
            } else {
                // No token68 (RFC 9110, section 11.2).
                json!({"name": format!("{of}: {name}"), "expect": "malformed_credentials",
                    "token": {"raw": value}})
            });
        }
        let jwe = b64::encode(br#"{"alg":"dir","enc":"A256GCM","typ":"at+jwt"}"#);
        for value in [
            format!("{jwe}..AA.AA.AA"),
            format!("{jws}.AA.AA"),
            format!("{jwe}.AA.AA.AA.AA"),
        ] {
            rows.push(if whole {
                json!({"name": "proof: a JWE", "expect": "proof_malformed",
                    "token": {"raw": good}, "proof": {"raw": value}})
            } else {
                token("token: a JWE", "token_malformed", json!({"raw": value}))
            });
        }
    }
    Ok(rows)
}

/// RFC 7797, as token and as proof, with the payload left out and as it is.
pub fn unencoded(forger: &Forger) -> Result<Vec<Value>, Error> {
    let jkt = forger.agent.public()?.thumbprint();
    let claims = forger.claims(PATH, &jkt).to_string();
    let mut rows = Vec::new();
    for crit in [true, false] {
        let mut header = forger.header();
        put(&mut header, "b64", json!(false));
        let mut shown = proof_header(&forger.agent)?;
        put(&mut shown, "b64", json!(false));
        if crit {
            put(&mut header, "crit", json!(["b64"]));
            put(&mut shown, "crit", json!(["b64"]));
        }
        let part = b64::encode(header.to_string().as_bytes());
        let signature = forger
            .issuer
            .signature(format!("{part}.{claims}").as_bytes());
        let made = format!("{part}..{}", b64::encode(&signature));
        rows.push(token(
            "b64 false, the payload left out",
            "token_malformed",
            json!({"raw": made}),
        ));
        rows.push(proof(
            "b64 false",
            "proof_malformed",
            json!({"header": {"b64": false,
            "crit": if crit { json!(["b64"]) } else { Value::Null }}}),
        ));
        let part = b64::encode(shown.to_string().as_bytes());
        let signature = forger.agent.signature(format!("{part}.{{}}").as_bytes());
        let made = format!("{part}.{{}}.{}", b64::encode(&signature));
        rows.push(json!({"name": "proof: b64 false, the payload as it is",
            "expect": "proof_malformed", "proof": {"raw": made}}));
    }
    Ok(rows)
}

const TOKEN_CLAIMS: [&str; 10] = [
    "iss",
    "aud",
    "sub",
    "client_id",
    "iat",
    "exp",
    "jti",
    "txn",
    "cnf",
    "authorization_details",
];
const PROOF_CLAIMS: [&str; 5] = ["htm", "htu", "iat", "jti", "ath"];

/// Every name twice, the good value first and last.
pub fn doubled(forger: &Forger) -> Result<Vec<Value>, Error> {
    let mut rows = Vec::new();
    let mut twice = |of: &str, part: &str, name: &str| {
        for value in ["null", "\"x\"", "1"] {
            let (before, after) = (
                format!("\"{name}\":{value},"),
                format!(",\"{name}\":{value}"),
            );
            let (first, last) = (format!("{part}_splice"), format!("{part}_end"));
            rows.push(json!({"name": format!("{of}: {name} twice, bad first"),
                "expect": format!("{of}_malformed"), of: {first: before}}));
            rows.push(json!({"name": format!("{of}: {name} twice, good first"),
                "expect": format!("{of}_malformed"), of: {last: after}}));
        }
    };
    for name in ["alg", "typ", "kid"] {
        twice("token", "header", name);
    }
    for name in TOKEN_CLAIMS {
        twice("token", "claims", name);
    }
    for name in ["alg", "typ", "jwk"] {
        twice("proof", "header", name);
    }
    for name in PROOF_CLAIMS {
        twice("proof", "claims", name);
    }
    let jkt = forger.agent.public()?.thumbprint();
    for inner in [
        format!("\"jkt\":\"{jkt}\",\"jkt\":\"x\""),
        format!("\"jkt\":\"x\",\"jkt\":\"{jkt}\""),
    ] {
        let changes =
            json!({"claims": {"cnf": null}, "claims_end": format!(",\"cnf\":{{{inner}}}")});
        rows.push(token("token: jkt twice in cnf", "token_malformed", changes));
    }
    Ok(rows)
}

/// The same by other spellings of a name.
pub fn doubled_by_escapes(_forger: &Forger) -> Result<Vec<Value>, Error> {
    let mut rows = Vec::new();
    let escaped = |name: &str, at: usize| {
        let mut out = String::new();
        for (index, letter) in name.chars().enumerate() {
            if index == at {
                out.push_str(&format!("\\u{:04x}", u32::from(letter)));
            } else {
                out.push(letter);
            }
        }
        out
    };
    for (of, names) in [("token", &TOKEN_CLAIMS[..]), ("proof", &PROOF_CLAIMS[..])] {
        for name in names {
            for at in [0, name.len() - 1] {
                let twin = escaped(name, at);
                rows.push(json!({"name": format!("{of}: {name} and {twin}"),
                    "expect": format!("{of}_malformed"),
                    of: {"claims_end": format!(",\"{twin}\":1")}}));
            }
        }
    }
    Ok(rows)
}

/// The test suite's files as header and as claims, of token and proof: all that
/// must be refused is, and of what may be either both builds say the same.
pub fn json_files(_forger: &Forger) -> Result<Vec<Value>, Error> {
    let Some(folder) = vectors::find("jsontestsuite/test_parsing")? else {
        return Ok(Vec::new());
    };
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .map_err(Error::file("read", &folder))?
        .flatten()
        .map(|entry| entry.path())
        .collect();
    files.sort();
    let mut rows = Vec::new();
    for path in files {
        let name = path.file_name().map(|it| it.to_string_lossy().into_owned());
        let name = name.unwrap_or_default();
        if name.starts_with("y_") {
            continue;
        }
        let digits = hex::encode(vectors::read(&path)?);
        for of in ["token", "proof"] {
            for part in ["header_hex", "claims_hex"] {
                // Some are too large before they are read.
                rows.push(
                    json!({"name": format!("{name}: {of} {part}"), "expect": "native",
                    "refused": true, of: {part: digits}}),
                );
            }
        }
    }
    Ok(rows)
}
