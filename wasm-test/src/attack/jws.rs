//! Group A: the parsing and the signatures of tokens and proofs.

use aws_lc_rs::{hmac, rand::SystemRandom, rsa, signature as lc};
use capability::{b64, key::ecdsa_der};
use serde_json::{Value, json};

use super::cases::{PATH, none};
use super::forge::{Forger, Key};
use super::vectors;
use super::{How, Row, jws_forms, jws_live};
use crate::Error;

/// The rows, by their ids.
pub const ROWS: &[Row] = &[
    cases("A01", no_algorithm),
    cases("A02", shared_secrets),
    cases("A04", rsa_signatures),
    cases("A05", ecdsa_edges),
    cases("A06", ecdsa_in_der),
    cases("A08", super::ed25519::weak_points),
    cases("A09", super::ed25519::other_scalars),
    cases("A10", jws_forms::spellings),
    cases("A12", jws_forms::serializations),
    cases("A13", none),
    cases("A14", jws_forms::unencoded),
    cases("A16", jws_forms::doubled),
    cases("A17", jws_forms::doubled_by_escapes),
    cases("A18", jws_forms::json_files),
    cases("A19", none),
    cases("A20", none),
    cases("A21", none),
    live("A22", |it| Box::pin(jws_live::around_exp(it))),
    cases("A24", none),
    cases("A25", none),
    live("A26", |it| Box::pin(jws_live::types(it))),
    live("A28", |it| Box::pin(jws_live::canary(it))),
    cases("A29", other_keys),
    live("A30", |it| Box::pin(jws_live::large(it))),
    live("A32", |it| Box::pin(jws_live::deep(it))),
    live("A33", |it| Box::pin(jws_live::flood(it))),
    cases("A34", none),
    cases("A36", none),
    cases("A37", none),
    live("A38", |it| Box::pin(jws_live::timing(it))),
    live("A40", |it| Box::pin(super::keys::rotated(it))),
    live("A41", |it| Box::pin(super::keys::revoked(it))),
    live("A42", |it| Box::pin(jws_live::said_by_others(it))),
];

/// A row of requests.
pub const fn cases(id: &'static str, more: super::cases::More) -> Row {
    Row {
        id,
        how: How::Cases(more),
    }
}

/// A row of its own.
pub const fn live(
    id: &'static str,
    work: for<'a> fn(&'a mut super::Stages) -> super::Work<'a>,
) -> Row {
    Row {
        id,
        how: How::Live(work),
    }
}

/// A request with these changes to its token.
pub fn token(name: impl Into<String>, expect: &str, changes: Value) -> Value {
    json!({"name": name.into(), "expect": expect, "token": changes})
}

/// A request with these changes to its proof.
pub fn proof(name: impl Into<String>, expect: &str, changes: Value) -> Value {
    json!({"name": name.into(), "expect": expect, "proof": changes})
}

/// A token and a proof that are good but for their signatures, which this makes
/// of the signing input.
fn resigned(
    forger: &Forger,
    name: &str,
    make: &dyn Fn(&Key, &[u8]) -> Vec<u8>,
) -> Result<[Value; 2], Error> {
    let jkt = forger.agent.public()?.thumbprint();
    let sealed = |jws: &str, key: &Key| {
        let (input, _) = jws.rsplit_once('.').unwrap_or_default();
        format!("{input}.{}", b64::encode(&make(key, input.as_bytes())))
    };
    let good = forger.token(PATH, &jkt, &json!({}))?;
    let made = sealed(&good, &forger.issuer);
    let shown = forger.proof(&forger.agent, PATH, &good, &json!({}))?;
    let shown = sealed(&shown, &forger.agent);
    Ok([
        token(name, "token_signature", json!({"raw": made})),
        json!({"name": format!("proof: {name}"), "expect": "proof_signature",
            "token": {"raw": good}, "proof": {"raw": shown}}),
    ])
}

fn no_algorithm(_forger: &Forger) -> Result<Vec<Value>, Error> {
    let mut rows = Vec::new();
    for alg in ["none", "None", "nOnE", "NONE", "none "] {
        for changes in [
            json!({"header": {"alg": alg}}),
            json!({"header": {"alg": alg}, "signature": ""}),
        ] {
            rows.push(token(
                format!("token: alg {alg}"),
                "token_algorithm",
                changes.clone(),
            ));
            rows.push(proof(
                format!("proof: alg {alg}"),
                "proof_algorithm",
                changes,
            ));
        }
    }
    Ok(rows)
}

/// The public key's bytes in each form as the secret of an HMAC.
fn shared_secrets(forger: &Forger) -> Result<Vec<Value>, Error> {
    let public = forger.issuer.public()?;
    let der = public.spki_der();
    let raw = public.raw();
    let coordinate = raw.get(1..33).unwrap_or_default().to_vec();
    let jwk = public.to_jwk().to_string().into_bytes();
    let claims = forger.claims(PATH, &forger.agent.public()?.thumbprint());
    let mut rows = Vec::new();
    for (name, secret) in [
        ("PEM", pem_of(&der)),
        ("DER", der.clone()),
        ("a raw point", raw),
        ("a JWK's text", jwk),
        ("x as octets", coordinate),
        ("nothing", Vec::new()),
    ] {
        for (alg, with) in [
            ("HS256", hmac::HMAC_SHA256),
            ("HS384", hmac::HMAC_SHA384),
            ("HS512", hmac::HMAC_SHA512),
        ] {
            let mut header = forger.header();
            put(&mut header, "alg", json!(alg));
            let input = input(&header, &claims);
            let tag = hmac::sign(&hmac::Key::new(with, &secret), input.as_bytes());
            let made = format!("{input}.{}", b64::encode(tag.as_ref()));
            let name = format!("{alg} with {name} as the secret");
            rows.push(token(name, "token_algorithm", json!({"raw": made})));
        }
    }
    Ok(rows)
}

fn pem_of(der: &[u8]) -> Vec<u8> {
    use base64ct::{Base64, Encoding as _};
    let mut pem = "-----BEGIN PUBLIC KEY-----\n".to_owned();
    let text = Base64::encode_string(der);
    for line in text.as_bytes().chunks(64) {
        pem.push_str(&String::from_utf8_lossy(line));
        pem.push('\n');
    }
    pem.push_str("-----END PUBLIC KEY-----\n");
    pem.into_bytes()
}

/// Sets a member.
pub fn put(object: &mut Value, name: &str, value: Value) {
    if let Some(members) = object.as_object_mut() {
        members.insert(name.to_owned(), value);
    }
}

fn input(header: &Value, claims: &Value) -> String {
    let part = |value: &Value| b64::encode(value.to_string().as_bytes());
    format!("{}.{}", part(header), part(claims))
}

/// Valid signatures, of a kind that nobody takes.
fn rsa_signatures(forger: &Forger) -> Result<Vec<Value>, Error> {
    let fails = |_| Error::Setup("there is no RSA key".to_owned());
    let pair = rsa::KeyPair::generate(rsa::KeySize::Rsa2048).map_err(fails)?;
    let public = lc::KeyPair::public_key(&pair);
    let number = |bytes: &[u8]| b64::encode(bytes);
    let jwk = json!({
        "kty": "RSA",
        "n": number(public.modulus().big_endian_without_leading_zero()),
        "e": number(public.exponent().big_endian_without_leading_zero()),
    });
    let sign = |padding: &'static dyn lc::RsaEncoding, input: &str| {
        let mut signature = vec![0; pair.public_modulus_len()];
        let random = SystemRandom::new();
        pair.sign(padding, &random, input.as_bytes(), &mut signature)
            .map_err(|_| Error::Setup("RSA does not sign".to_owned()))?;
        Ok::<_, Error>(format!("{input}.{}", b64::encode(&signature)))
    };
    let claims = forger.claims(PATH, &forger.agent.public()?.thumbprint());
    let mut rows = Vec::new();
    let kinds: [(&str, &'static dyn lc::RsaEncoding); 4] = [
        ("RS256", &lc::RSA_PKCS1_SHA256),
        ("RS512", &lc::RSA_PKCS1_SHA512),
        ("PS256", &lc::RSA_PSS_SHA256),
        ("PS512", &lc::RSA_PSS_SHA512),
    ];
    for (alg, padding) in kinds {
        for kid in [forger.kid.as_str(), "rsa"] {
            let header = json!({"typ": "at+jwt", "alg": alg, "kid": kid});
            let made = sign(padding, &input(&header, &claims))?;
            rows.push(token(
                format!("{alg} under {kid}"),
                "token_algorithm",
                json!({"raw": made}),
            ));
        }
        let good = forger.token(PATH, &forger.agent.public()?.thumbprint(), &json!({}))?;
        let header = json!({"typ": "dpop+jwt", "alg": alg, "jwk": jwk});
        let shown = json!({
            "htm": "GET", "htu": format!("{}/files/a.txt", forger.names.origin),
            "iat": crate::client::now_s(), "jti": super::forge::random(),
            "ath": b64::encode(&capability::sha256(good.as_bytes())),
        });
        let shown = sign(padding, &input(&header, &shown))?;
        rows.push(
            json!({"name": format!("proof by {alg}"), "expect": "proof_algorithm",
            "token": {"raw": good}, "proof": {"raw": shown}}),
        );
    }
    Ok(rows)
}

/// The order of P-256, big-endian.
const ORDER: [u8; 32] = [
    0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xbc, 0xe6,
    0xfa, 0xad, 0xa7, 0x17, 0x9e, 0x84, 0xf3, 0xb9, 0xca, 0xc2, 0xfc, 0x63, 0x25, 0x51,
];

/// r and s of no order, and of other lengths, made of good signatures.
fn ecdsa_edges(forger: &Forger) -> Result<Vec<Value>, Error> {
    fn halves(signature: &[u8]) -> (Vec<u8>, Vec<u8>) {
        let (r, s) = signature.split_at_checked(32).unwrap_or_default();
        (r.to_vec(), s.to_vec())
    }
    let mut above = ORDER;
    if let Some(last) = above.last_mut() {
        *last += 1;
    }
    let mut rows = Vec::new();
    for (name, number) in [
        ("0", [0; 32]),
        ("n", ORDER),
        ("n + 1", above),
        ("2^256 - 1", [0xff; 32]),
    ] {
        rows.extend(resigned(forger, &format!("r is {name}"), &|key, input| {
            let (_, s) = halves(&key.signature(input));
            [number.to_vec(), s].concat()
        })?);
        rows.extend(resigned(forger, &format!("s is {name}"), &|key, input| {
            let (r, _) = halves(&key.signature(input));
            [r, number.to_vec()].concat()
        })?);
    }
    type Make = fn(Vec<u8>, Vec<u8>) -> Vec<u8>;
    let others: [(&str, Make); 8] = [
        ("s before r", |r, s| [s, r].concat()),
        ("a zero after it", |r, s| [r, s, vec![0]].concat()),
        ("a zero before it", |r, s| [vec![0], r, s].concat()),
        ("33 bytes each", |r, s| [vec![0], r, vec![0], s].concat()),
        ("the last byte gone", |r, s| {
            let all = [r, s].concat();
            all.get(..63).unwrap_or_default().to_vec()
        }),
        ("r alone", |r, _| r),
        ("twice", |r, s| [r.clone(), s.clone(), r, s].concat()),
        ("48 bytes each", |r, s| {
            [vec![0; 16], r, vec![0; 16], s].concat()
        }),
    ];
    for (name, make) in others {
        rows.extend(resigned(forger, name, &|key, input| {
            let (r, s) = halves(&key.signature(input));
            make(r, s)
        })?);
    }
    let file = vectors::json("wycheproof/ecdsa_secp256r1_sha256_p1363_test.json")?;
    for group in vectors::list(&file, "/testGroups") {
        for test in vectors::list(group, "/tests") {
            if vectors::text(test, "/result") != "invalid" {
                continue;
            }
            let id = test.get("tcId").unwrap_or(&Value::Null);
            let signature = json!({"signature": vectors::text(test, "/sig")});
            rows.push(token(
                format!("Wycheproof {id}"),
                "token_signature",
                signature.clone(),
            ));
            rows.push(proof(
                format!("proof: Wycheproof {id}"),
                "proof_signature",
                signature,
            ));
        }
    }
    Ok(rows)
}

fn ecdsa_in_der(forger: &Forger) -> Result<Vec<Value>, Error> {
    let der = |key: &Key, input: &[u8]| ecdsa_der(&key.signature(input)).unwrap_or_default();
    let mut rows = Vec::new();
    for at in 0..20 {
        // Lengths of r and s differ from one to the next.
        rows.extend(resigned(forger, &format!("in DER, {at}"), &der)?);
    }
    rows.extend(resigned(
        forger,
        "in BER, its length in two bytes",
        &|key, input| {
            let der = der(key, input);
            let body = der.get(2..).unwrap_or_default();
            let length = u8::try_from(body.len()).unwrap_or_default();
            [&[0x30, 0x81, length], body].concat()
        },
    )?);
    rows.extend(resigned(
        forger,
        "in DER, cut to 64 bytes",
        &|key, input| {
            let mut der = der(key, input);
            der.truncate(64);
            der
        },
    )?);
    Ok(rows)
}

/// Each other key of the system, under our name and under its own.
fn other_keys(forger: &Forger) -> Result<Vec<Value>, Error> {
    let jkt = forger.agent.public()?.thumbprint();
    let claims = forger.claims(PATH, &jkt).to_string();
    let mut rows = Vec::new();
    for (name, key) in [
        (
            "the JWT-SVIDs' key",
            Key::from_pem(&forger.trust.join("jwt.key"))?,
        ),
        ("the CA's key", Key::from_pem(&forger.trust.join("ca.key"))?),
        ("the agent's key", forger.agent.clone()),
        (
            "the key of decisions",
            Key::from_pem(&forger.keys.join("decision-es256.pem"))?,
        ),
    ] {
        let own = key.public()?.thumbprint();
        for (kid, expect) in [
            (&forger.kid, "token_signature"),
            (&own, "token_key_unknown"),
        ] {
            let header = json!({"typ": "at+jwt", "alg": "ES256", "kid": kid}).to_string();
            let made = key.seal(header.as_bytes(), claims.as_bytes());
            rows.push(token(
                format!("{name} under {kid}"),
                expect,
                json!({"raw": made}),
            ));
        }
    }
    Ok(rows)
}
