//! Group B: keys in proofs.

use capability::{b64, sha256};
use serde_json::{Value, json};

use super::cases::{PATH, Run, none};
use super::check::{holds, same};
use super::ed25519::{jwk as ed25519_jwk, low_order};
use super::forge::{Forger, Key};
use super::jws::{cases, live, proof};
use super::stages::Stages;
use super::{Row, vectors};
use crate::Error;
use crate::client::now_s;
use crate::stage::text_at;

/// The rows, by their ids.
pub const ROWS: &[Row] = &[
    cases("B02", off_the_curve),
    cases("B03", other_curves),
    cases("B04", lengths),
    cases("B06", symmetric),
    cases("B07", doubled),
    live("B08", |it| Box::pin(thumbprints(it))),
    cases("B10", escapes),
    cases("B11", injection),
    live("B12", |it| Box::pin(weak_at_mint(it))),
    cases("B14", large),
    cases("B15", uses),
    cases("B16", certificates),
];

/// A proof by the agent's key whose header has this text for its `jwk`.
fn with_jwk(name: &str, expect: &str, jwk: &str) -> Value {
    let changes = json!({"header": {"jwk": null}, "header_end": format!(",\"jwk\":{jwk}")});
    proof(name, expect, changes)
}

/// The same, and the token is bound to this thumbprint.
fn bound(name: &str, expect: &str, jwk: &str, jkt: &str) -> Value {
    let mut row = with_jwk(name, expect, jwk);
    if let Some(row) = row.as_object_mut() {
        row.insert("token".to_owned(), json!({"claims": {"cnf": {"jkt": jkt}}}));
    }
    row
}

/// x and y of the agent's key, in base64url.
fn coordinates(key: &Key) -> Result<(String, String), Error> {
    let jwk = key.public()?.to_jwk();
    Ok((text_at(&jwk, "/x"), text_at(&jwk, "/y")))
}

/// RFC 7638 of coordinates in text, whatever they are.
fn thumbprint(x: &str, y: &str) -> String {
    let text = format!(r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#);
    b64::encode(&sha256(text.as_bytes()))
}

fn ec(x: &str, y: &str) -> String {
    json!({"kty": "EC", "crv": "P-256", "x": x, "y": y}).to_string()
}

fn off_the_curve(forger: &Forger) -> Result<Vec<Value>, Error> {
    let (x, y) = coordinates(&forger.agent)?;
    let p = b64::encode(&P);
    let mut above = P;
    above[31] = 0;
    above[30] = 0;
    let above = b64::encode(&above.map(|byte| byte | 1));
    let one = b64::encode(&[[0; 31].as_slice(), &[1]].concat());
    let mut rows = vec![
        with_jwk("nothing for both", "proof_malformed", &ec("", "")),
        with_jwk("infinity in SEC 1", "proof_malformed", &ec("AA", "AA")),
        with_jwk("x is p", "proof_malformed", &ec(&p, &y)),
        with_jwk("y is p", "proof_malformed", &ec(&x, &p)),
        with_jwk("both over p", "proof_malformed", &ec(&above, &above)),
    ];
    // In the field, and on no curve: bound to that very key, only the signature is
    // left to say no.
    for (name, x, y) in [
        ("1 and 1", &one, &one),
        ("y swapped for x", &x, &x),
        ("x and y swapped", &y, &x),
        ("y is 1", &x, &one),
    ] {
        let jkt = thumbprint(x, y);
        rows.push(bound(name, "proof_signature", &ec(x, y), &jkt));
    }
    Ok(rows)
}

/// The order of P-256's field, big-endian.
const P: [u8; 32] = [
    0xff, 0xff, 0xff, 0xff, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff,
    0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
];

fn other_curves(forger: &Forger) -> Result<Vec<Value>, Error> {
    let (x, y) = coordinates(&forger.agent)?;
    let long = b64::encode(&[7; 48]);
    let mut rows = vec![
        with_jwk("P-256 with 48 bytes", "proof_malformed", &ec(&long, &long)),
        with_jwk(
            "OKP with a P-256 point",
            "proof_malformed",
            &json!({"kty": "OKP", "crv": "P-256", "x": x, "y": y}).to_string(),
        ),
        with_jwk(
            "EC and Ed25519",
            "proof_malformed",
            &json!({"kty": "EC", "crv": "Ed25519", "x": x}).to_string(),
        ),
        with_jwk(
            "Ed25519's x and ES256",
            "proof_algorithm",
            &json!({"kty": "OKP", "crv": "Ed25519", "x": b64::encode(&[9; 32])}).to_string(),
        ),
    ];
    for crv in [
        "P-384",
        "P-521",
        "secp256k1",
        "p-256",
        "P-256 ",
        "X25519",
        "prime256v1",
        "",
    ] {
        let jwk = json!({"kty": "EC", "crv": crv, "x": x, "y": y}).to_string();
        rows.push(with_jwk(&format!("crv {crv}"), "proof_malformed", &jwk));
    }
    Ok(rows)
}

/// A key whose x begins with a zero byte, which some leave out.
fn with_a_leading_zero() -> Result<(Key, Vec<u8>), Error> {
    for n in 0..5_000 {
        let key = Key::p256(&format!("short {n}"))?;
        let raw = key.public()?.raw();
        if raw.get(1) == Some(&0) {
            return Ok((key, raw.get(1..33).unwrap_or_default().to_vec()));
        }
    }
    Err(Error::Setup("no key has a leading zero".to_owned()))
}

fn lengths(forger: &Forger) -> Result<Vec<Value>, Error> {
    let (x, y) = coordinates(&forger.agent)?;
    let mut rows = Vec::new();
    let bytes = |text: &str| b64::decode(text).unwrap_or_default();
    type Make = fn(Vec<u8>) -> Vec<u8>;
    let makes: [(&str, Make); 5] = [
        ("31 bytes", |it| it.get(1..).unwrap_or_default().to_vec()),
        ("33 bytes", |it| [vec![0], it].concat()),
        ("a zero after it", |it| [it, vec![0]].concat()),
        ("64 bytes", |it| [vec![0; 32], it].concat()),
        ("none", |_| Vec::new()),
    ];
    for (name, make) in makes {
        let (other_x, other_y) = (b64::encode(&make(bytes(&x))), b64::encode(&make(bytes(&y))));
        rows.push(with_jwk(
            &format!("x of {name}"),
            "proof_malformed",
            &ec(&other_x, &y),
        ));
        rows.push(with_jwk(
            &format!("y of {name}"),
            "proof_malformed",
            &ec(&x, &other_y),
        ));
    }
    // A key that really has a zero there: in full it is good, and short it is not.
    let (key, full) = with_a_leading_zero()?;
    let (x, y) = coordinates(&key)?;
    let short = b64::encode(full.get(1..).unwrap_or_default());
    for (name, expect, x) in [("in full", "ok", &x), ("short", "proof_malformed", &short)] {
        let token = forger.token(PATH, &thumbprint(x, &y), &json!({}))?;
        let changes = json!({"header": {"jwk": {"x": x, "y": y}}});
        let shown = forger.proof(&key, PATH, &token, &changes)?;
        rows.push(
            json!({"name": format!("a leading zero, {name}"), "expect": expect,
            "token": {"raw": token}, "proof": {"raw": shown}}),
        );
    }
    Ok(rows)
}

fn symmetric(forger: &Forger) -> Result<Vec<Value>, Error> {
    let (x, y) = coordinates(&forger.agent)?;
    let secret = json!({"kty": "oct", "k": "AAAA"});
    Ok(vec![
        with_jwk("oct", "proof_malformed", &secret.to_string()),
        with_jwk(
            "oct with alg",
            "proof_malformed",
            &json!({"kty": "oct", "k": x, "alg": "ES256"}).to_string(),
        ),
        with_jwk(
            "a public key with k",
            "proof_malformed",
            &json!({"kty": "EC", "crv": "P-256", "x": x, "y": y, "k": "AAAA"}).to_string(),
        ),
        proof(
            "oct and HS256",
            "proof_algorithm",
            json!({"header": {"alg": "HS256", "jwk": secret}}),
        ),
    ])
}

fn doubled(forger: &Forger) -> Result<Vec<Value>, Error> {
    let good = forger.agent.public()?.to_jwk();
    let mut rows = Vec::new();
    for name in ["kty", "crv", "x", "y"] {
        let value = good.get(name).unwrap_or(&Value::Null);
        let mut text = good.to_string();
        text.insert_str(1, &format!("\"{name}\":{value},"));
        rows.push(with_jwk(
            &format!("{name} twice, alike"),
            "proof_malformed",
            &text,
        ));
        let mut text = good.to_string();
        text.insert_str(1, &format!("\"{name}\":\"x\","));
        rows.push(with_jwk(
            &format!("{name} twice, bad first"),
            "proof_malformed",
            &text,
        ));
    }
    for kty in ["ec", "Ec", "EC ", "", "okp", "RSA"] {
        let mut jwk = good.clone();
        if let Some(members) = jwk.as_object_mut() {
            members.insert("kty".to_owned(), json!(kty));
        }
        rows.push(with_jwk(
            &format!("kty {kty}"),
            "proof_malformed",
            &jwk.to_string(),
        ));
    }
    for jwk in ["null", "[]", "\"x\"", "1", "{}"] {
        rows.push(with_jwk(&format!("jwk {jwk}"), "proof_malformed", jwk));
    }
    Ok(rows)
}

/// What a token is bound to is RFC 7638's value, whatever else the key says.
async fn thumbprints(stages: &mut Stages) -> Result<String, Error> {
    let named = stages.named().await?;
    let forger = &named.forger;
    let mut run = Run::begin(&named.stage, forger).await?;
    for row in super::cases::listed("B08")? {
        run.one(&row).await?;
    }
    let (x, y) = coordinates(&forger.agent)?;
    let jkt = forger.agent.public()?.thumbprint();
    let turned = format!(
        r#"{{"y":"{y}","use":"sig","x":"{x}","kid":"k","kty":"EC","alg":"ES256","crv":"P-256","key_ops":["verify"]}}"#
    );
    run.one(&with_jwk("another order, and more members", "ok", &turned))
        .await?;
    // The control plane binds to the same value.
    let changes = json!({"header": {"jwk": null}, "header_end": format!(",\"jwk\":{turned}")});
    let shown = forger.exchange_proof(&forger.agent, &changes)?;
    let agent = &named.stage.agent;
    let details = agent.details("GET", PATH).to_string();
    let answer = agent
        .post_token(&agent.svid().await?, &details, &shown)
        .await?;
    let issued = text_at(&answer.expect("an exchange", 200)?.json(), "/access_token");
    let claims = issued
        .split('.')
        .nth(1)
        .and_then(b64::decode)
        .unwrap_or_default();
    let claims: Value = serde_json::from_slice(&claims).unwrap_or_default();
    same("cnf.jkt", text_at(&claims, "/cnf/jkt"), jkt)?;
    // Nobody here has the vectors' private keys: with their thumbprints in the token
    // it is the signature that is wrong, and with another it is the key.
    let file = vectors::json("rfc/jwk_thumbprints.json")?;
    let mut count = 0;
    for vector in vectors::list(&file, "/vectors") {
        let jwk = vector.get("jwk").unwrap_or(&Value::Null);
        let (name, jkt) = (
            vectors::text(vector, "/ref"),
            vectors::text(vector, "/sha256"),
        );
        let is_rsa = vectors::text(jwk, "/kty") == "RSA";
        let alg = match vectors::text(jwk, "/kty") {
            "OKP" => "Ed25519",
            _ => "ES256",
        };
        let other = b64::encode(&[7; 32]);
        for (jkt, expect) in [
            (jkt, "proof_signature"),
            (other.as_str(), "proof_key_mismatch"),
        ] {
            let expect = if is_rsa { "proof_malformed" } else { expect };
            run.one(&json!({
                "name": name, "expect": expect,
                "token": {"claims": {"cnf": {"jkt": jkt}}},
                "proof": {"header": {"jwk": null, "alg": alg}, "header_end": format!(",\"jwk\":{jwk}")},
            }))
            .await?;
        }
        count += 1;
    }
    let seen = run.end().await?;
    Ok(format!("{seen}; {count} thumbprints of vectors"))
}

fn escapes(forger: &Forger) -> Result<Vec<Value>, Error> {
    let (x, y) = coordinates(&forger.agent)?;
    let escaped = |text: &str| -> String {
        text.chars()
            .map(|it| format!("\\u{:04x}", u32::from(it)))
            .collect()
    };
    let with =
        |kty: &str, x: &str| format!(r#"{{"{kty}":"EC","crv":"P-256","x":"{x}","y":"{y}"}}"#);
    Ok(vec![
        // The same text by other letters is the same key.
        with_jwk("a name in escapes", "ok", &with("k\\u0074y", &x)),
        with_jwk("a value in escapes", "ok", &with("kty", &escaped(&x))),
        with_jwk(
            "a name twice by escapes",
            "proof_malformed",
            &format!(r#"{{"kty":"EC","k\u0074y":"EC","crv":"P-256","x":"{x}","y":"{y}"}}"#),
        ),
        with_jwk(
            "another case by escapes",
            "proof_malformed",
            &with("K\\u0074y", &x),
        ),
        with_jwk(
            "a full-width letter",
            "proof_malformed",
            &with("kt\\uff59", &x),
        ),
        with_jwk(
            "a NUL in a name",
            "proof_malformed",
            &with("kty\\u0000", &x),
        ),
        with_jwk(
            "a NUL in a value",
            "proof_malformed",
            &with("kty", &format!("{x}\\u0000")),
        ),
    ])
}

/// Values that would read like further members in a thumbprint's text.
fn injection(forger: &Forger) -> Result<Vec<Value>, Error> {
    let (x, y) = coordinates(&forger.agent)?;
    let inner = format!(r#"{x}\",\"y\":\"{y}"#);
    Ok(vec![
        with_jwk(
            "y within x",
            "proof_malformed",
            &format!(r#"{{"kty":"EC","crv":"P-256","x":"{inner}"}}"#),
        ),
        with_jwk(
            "y within x, and y",
            "proof_malformed",
            &format!(r#"{{"kty":"EC","crv":"P-256","x":"{inner}","y":"{y}"}}"#),
        ),
        with_jwk(
            "all within crv",
            "proof_malformed",
            &format!(r#"{{"crv":"P-256\",\"kty\":\"EC\",\"x\":\"{inner}"}}"#),
        ),
        with_jwk(
            "kty within crv",
            "proof_malformed",
            &format!(r#"{{"crv":"P-256\",\"kty\":\"EC","x":"{x}","y":"{y}"}}"#),
        ),
        with_jwk(
            "objects for values",
            "proof_malformed",
            &format!(r#"{{"kty":{{"":"EC"}},"crv":"P-256","x":"{x}","y":"{y}"}}"#),
        ),
        with_jwk(
            "arrays for values",
            "proof_malformed",
            &format!(r#"{{"kty":"EC","crv":"P-256","x":["{x}"],"y":["{y}"]}}"#),
        ),
    ])
}

/// A token is never bound to a point with which any signature would do.
async fn weak_at_mint(stages: &mut Stages) -> Result<String, Error> {
    let named = stages.named().await?;
    let forger = &named.forger;
    let agent = &named.stage.agent;
    let details = agent.details("GET", PATH).to_string();
    let svid = agent.svid().await?;
    let points = low_order();
    for (at, x) in points.iter().enumerate() {
        let header =
            json!({"typ": "dpop+jwt", "alg": "Ed25519", "jwk": ed25519_jwk(x)}).to_string();
        let claims = json!({"htm": "POST", "htu": forger.names.token_endpoint(),
            "iat": now_s(), "jti": super::forge::random()})
        .to_string();
        let input = format!(
            "{}.{}",
            b64::encode(header.as_bytes()),
            b64::encode(claims.as_bytes())
        );
        for r in &points {
            let signature = [r.as_slice(), &[0; 32]].concat();
            let shown = format!("{input}.{}", b64::encode(&signature));
            let answer = agent.post_token(&svid, &details, &shown).await?;
            let got = (answer.status, answer.reason());
            same(
                &format!("point {at}"),
                got,
                (400, "proof_malformed".to_owned()),
            )?;
        }
    }
    named.stage.good_request().await?;
    let tried = points.len() * points.len();
    holds(tried == 196, format!("{tried} were tried"))?;
    Ok("14 spellings of low order with 14 R each: no token was minted".to_owned())
}

fn large(forger: &Forger) -> Result<Vec<Value>, Error> {
    let good = forger.agent.public()?.to_jwk();
    let with = |count: usize| {
        let mut jwk = good.clone();
        if let Some(members) = jwk.as_object_mut() {
            members.extend((0..count).map(|at| (format!("m{at}"), json!(0))));
        }
        jwk.to_string()
    };
    let mut big = good.clone();
    if let Some(members) = big.as_object_mut() {
        members.insert("kid".to_owned(), json!("a".repeat(1 << 20)));
    }
    Ok(vec![
        with_jwk("61 members", "proof_malformed", &with(61)),
        with_jwk("300 members", "proof_malformed", &with(300)),
        json!({"name": "10^4 members", "expect": "native",
            "proof": {"header": {"jwk": null}, "header_end": format!(",\"jwk\":{}", with(10_000))}}),
        json!({"name": "a jwk of 1 MiB", "expect": "native",
            "proof": {"header": {"jwk": null}, "header_end": format!(",\"jwk\":{big}")}}),
    ])
}

fn uses(_forger: &Forger) -> Result<Vec<Value>, Error> {
    let refused = [
        json!({"use": "enc"}),
        json!({"use": 1}),
        json!({"use": ""}),
        json!({"key_ops": []}),
        json!({"key_ops": ["encrypt"]}),
        json!({"key_ops": ["deriveKey", "sign"]}),
        json!({"key_ops": [1]}),
        json!({"alg": "ES384"}),
    ];
    let rows = refused.map(|jwk| {
        proof(
            jwk.to_string(),
            "proof_malformed",
            json!({"header": {"jwk": jwk}}),
        )
    });
    Ok(rows.to_vec())
}

/// What a certificate in a key says counts for nothing.
fn certificates(forger: &Forger) -> Result<Vec<Value>, Error> {
    let path = forger.trust.join("ca.crt");
    let text = std::fs::read_to_string(&path).map_err(Error::file("read", &path))?;
    let der: String = text.lines().filter(|line| !line.contains('-')).collect();
    let mut rows = none(forger)?;
    for value in [json!([der]), json!(["AAAA"]), json!([]), json!("x")] {
        let changes = json!({"header": {"jwk": {"x5c": value}}});
        rows.push(proof(
            format!("x5c {}", value.to_string().len()),
            "ok",
            changes,
        ));
    }
    // By the certificate's key, over the agent's x and y.
    let ca = Key::from_pem(&forger.trust.join("ca.key"))?;
    let good = forger.agent.public()?.to_jwk();
    let token = forger.token(PATH, &forger.agent.public()?.thumbprint(), &json!({}))?;
    let changes =
        json!({"header": {"jwk": {"x": good.get("x"), "y": good.get("y"), "x5c": [der]}}});
    let shown = forger.proof(&ca, PATH, &token, &changes)?;
    rows.push(
        json!({"name": "by the certificate's key", "expect": "proof_signature",
        "token": {"raw": token}, "proof": {"raw": shown}}),
    );
    Ok(rows)
}
