//! Group C: proofs of possession, as lists of requests.

use capability::{b64, sha256};
use serde_json::{Value, json};

use super::cases::{PATH, none};
use super::forge::Forger;
use super::jws::{cases, live, proof, token};
use super::{Row, dpop_live, dpop_replay, vectors};
use crate::Error;

/// The rows, by their ids.
pub const ROWS: &[Row] = &[
    cases("C01", none),
    cases("C02", none),
    live("C03", |it| Box::pin(dpop_live::two_proofs(it))),
    cases("C05", none),
    cases("C06", none),
    cases("C07", none),
    cases("C09", none),
    cases("C10", none),
    cases("C11", none),
    live("C12", |it| Box::pin(dpop_replay::same_jti(it))),
    live("C13", |it| Box::pin(dpop_replay::other_target(it))),
    live("C14", |it| Box::pin(dpop_replay::full(it))),
    live("C15", |it| Box::pin(dpop_replay::restart(it))),
    cases("C17", none),
    live("C18", |it| Box::pin(dpop_live::overrides(it))),
    cases("C19", targets),
    cases("C21", targets),
    cases("C22", targets),
    cases("C23", none),
    cases("C24", bodies),
    live("C25", |it| Box::pin(super::bodies::relabelled(it))),
    cases("C26", none),
    cases("C27", none),
    cases("C29", hashes),
    live("C30", |it| Box::pin(dpop_live::made_ahead(it))),
    live("C31", |it| Box::pin(super::nonces::demanded(it))),
    live("C33", |it| Box::pin(super::nonces::shared(it))),
    live("C34", |it| Box::pin(super::nonces::elsewhere(it))),
    live("C35", |it| Box::pin(dpop_live::elsewhere(it))),
    cases("C37", none),
    cases("C38", none),
    cases("C39", none),
    live("C41", |it| Box::pin(dpop_replay::two_listeners(it))),
    live("C42", |it| Box::pin(dpop_live::stripped(it))),
    live("C43", |it| Box::pin(dpop_live::examples(it))),
    cases("C45", none),
    live("C46", |it| Box::pin(dpop_live::other_hosts(it))),
    live("C47", |it| Box::pin(dpop_replay::burnt_before(it))),
];

/// The table of `htu` against requests, for the host of this system.
fn targets(forger: &Forger) -> Result<Vec<Value>, Error> {
    let file = vectors::json("rfc/htu_normalisation.json")?;
    let here = |url: &str| {
        let url = url.replace("a.example", "tools.example");
        url.replace("A.EXAMPLE", "TOOLS.EXAMPLE")
    };
    let jkt = forger.agent.public()?.thumbprint();
    let mut rows = Vec::new();
    for case in vectors::list(&file, "/cases") {
        let (htu, request) = (vectors::text(case, "/htu"), vectors::text(case, "/request"));
        let asked = here(request);
        // Another scheme or host than this system's: capability's own tests have it.
        let Some(path) = asked.strip_prefix(&forger.names.origin) else {
            continue;
        };
        let changes = json!({"claims": {"cnf": {"jkt": jkt}, "authorization_details": [
            {"type": "http_request", "actions": ["GET"], "locations": [asked]}]}});
        let mut row = json!({
            "name": format!("{htu} for {request}"), "token": changes,
            "proof": {"claims": {"htu": here(htu)}},             // Envoy spells out what need not be escaped, and forwards that.
            "request": {"path": path, "seen": path.replace("%7E", "~")},
        });
        let expect = match case.get("match").and_then(Value::as_bool) {
            Some(true) => "ok",
            Some(false) => "proof_target",
            None => "native",
        };
        if let Some(members) = row.as_object_mut() {
            members.insert("expect".to_owned(), json!(expect));
            if path.to_ascii_lowercase().contains("%2f") {
                members.insert("envoy".to_owned(), json!([400]));
            }
        }
        rows.push(row);
    }
    Ok(rows)
}

/// Tokens that allow one body, and requests with another.
fn bodies(forger: &Forger) -> Result<Vec<Value>, Error> {
    let said = br#"{"amount":1}"#;
    let digest = |body: &[u8]| b64::encode(&sha256(body));
    let details = |method: &str, digest: &str| {
        json!({"claims": {"authorization_details": [{
            "type": "http_request", "actions": [method], "content_digest": digest,
            "locations": [format!("{}{PATH}", forger.names.origin)],
        }]}})
    };
    let mut rows = Vec::new();
    for (name, body) in [
        ("one byte swapped", r#"{"amount":9}"#),
        ("longer", r#"{"amount":1000}"#),
        ("shorter", r#"{}"#),
        ("a space after it", r#"{"amount":1} "#),
        ("a byte order mark", "\u{feff}{\"amount\":1}"),
    ] {
        rows.push(json!({
            "name": format!("a body, {name}"), "expect": "body_mismatch", "authenticated": true,
            "token": details("POST", &digest(said)), "proof": {"claims": {"htm": "POST"}},
            "request": {"method": "POST", "body": body, "more": [["content-type", "application/json"]]},
        }));
    }
    let none = json!({"method": "POST", "more": [["content-length", "0"]]});
    for (name, made, expect) in [
        ("none, and one was allowed", digest(said), "body_mismatch"),
        ("none, and none was allowed", digest(b""), "ok"),
    ] {
        rows.push(json!({
            "name": name, "expect": expect, "authenticated": expect != "ok",
            "token": details("POST", &made), "proof": {"claims": {"htm": "POST"}}, "request": none,
        }));
    }
    for form in [
        "x",
        "sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:",
        "",
    ] {
        rows.push(token(
            format!("the digest is {form}"),
            "token_malformed",
            details("GET", form),
        ));
    }
    Ok(rows)
}

/// What `ath` may be mistaken for.
fn hashes(forger: &Forger) -> Result<Vec<Value>, Error> {
    let good = forger.token(PATH, &forger.agent.public()?.thumbprint(), &json!({}))?;
    let hash = sha256(good.as_bytes());
    let of = |text: String| b64::encode(&sha256(text.as_bytes()));
    let mut rows = Vec::new();
    for (name, ath) in [
        ("with the scheme before it", of(format!("DPoP {good}"))),
        (
            "of its signature alone",
            of(good.rsplit('.').next().unwrap_or_default().to_owned()),
        ),
        (
            "without its signature",
            of(good.rsplit_once('.').unwrap_or_default().0.to_owned()),
        ),
        ("in hexadecimal", hex::encode(hash)),
        ("padded", format!("{}=", b64::encode(&hash))),
        ("of its own ath", of(b64::encode(&hash))),
        ("cut", b64::encode(hash.get(..16).unwrap_or_default())),
        ("with a newline", format!("{}\n", b64::encode(&hash))),
    ] {
        rows.push(
            json!({"name": format!("ath {name}"), "expect": "proof_token_hash",
            "token": {"raw": good}, "proof": {"claims": {"ath": ath}}}),
        );
    }
    let empty = proof(
        "ath of nothing",
        "proof_token_hash",
        json!({"claims": {"ath": of(String::new())}}),
    );
    rows.push(empty);
    Ok(rows)
}
