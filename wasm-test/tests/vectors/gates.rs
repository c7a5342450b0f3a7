//! The gates: their own rows, and the OpenID Foundation's cases.

use capability::x509::Leaf;
use capability::{Reason, sha256};
use serde_json::{Value, json};

use crate::common::{ISSUER, ORIGIN, vector_json};
use crate::probe::both;
use crate::rows::{SITES, case, keys, messages, rows};

/// What the gates say of a row's request. A certificate with this DER, in hex,
/// takes the place of the row's own.
pub fn verdict_of(row: &Value, der: Option<&str>) -> String {
    let case = case(row);
    let keys: Vec<Value> = keys()
        .into_iter()
        .map(|(kid, key)| {
            let mut jwk = key.to_jwk();
            jwk["kid"] = kid.into();
            jwk
        })
        .collect();
    let peer = match der {
        Some(der) => Some(Leaf {
            sha256: sha256(&hex::decode(der).unwrap()),
            uri_sans: Vec::new(),
            not_before_s: 0,
            not_after_s: u64::MAX,
            signs_handshakes_only: true,
        }),
        None => case.peer(),
    };
    let sites = SITES.map(|(origin, resource)| json!({"origin": origin, "resource": resource}));
    let around = json!({
        "sites": sites,
        "issuer": ISSUER, "resource": ORIGIN, "origin": ORIGIN, "keys": keys,
        "now_ms": case.now_ms, "record": case.record, "require_peer": case.require_peer,
        "peer": peer.map(|leaf| json!({
            "sha256": hex::encode(leaf.sha256), "uri_sans": leaf.uri_sans,
            "not_before_s": leaf.not_before_s, "not_after_s": leaf.not_after_s,
            "signs_handshakes_only": leaf.signs_handshakes_only,
        })),
        "body": case.body.map(hex::encode), "nonces": case.nonces,
    });
    let mut input = around.to_string().into_bytes();
    for (name, value) in case.headers {
        input.extend([b"\n", &name[..], b"=", &value].concat());
    }
    both("gates", &input)
}

fn assert_is(row: &Value, verdict: &str) {
    let expected = row["expect"].as_str().unwrap();
    let matches = if expected == "ok" {
        verdict.starts_with("ok ")
    } else {
        assert!(Reason::parse(expected).is_some(), "{row}");
        let refused = format!("refused {expected}");
        if row["authenticated"] == true {
            verdict == format!("{refused} to spiffe://writ.example/agent/demo")
        } else {
            verdict == refused
        }
    };
    assert!(matches, "{verdict}, and not {expected}: {row}");
}

#[test]
fn every_row_has_its_reason() {
    let rows = rows();
    assert!(rows.len() > 350, "{}", rows.len());
    for row in rows.into_iter().chain(messages()) {
        assert_is(&row, &verdict_of(&row, None));
    }
}

fn oidf() -> Vec<Value> {
    serde_json::from_str(include_str!("../data/oidf.json")).unwrap()
}

/// Each of the 37 cases, those too where the suite only warns. What rests on
/// more than one request is a test elsewhere, which is named.
#[test]
fn the_openid_foundations_cases() {
    let Some(file) = vector_json("oidf/dpop_resource_server_cases.json") else {
        return;
    };
    let published = file["sub_tests"].as_array().unwrap();
    let rows = oidf();
    assert_eq!((published.len(), rows.len()), (37, 37));
    for (published, row) in published.iter().zip(&rows) {
        assert_eq!(
            (&published["n"], &published["case"]),
            (&row["n"], &row["case"])
        );
        if let Some(elsewhere) = row["elsewhere"].as_str() {
            let (file, test) = elsewhere.split_once(": ").unwrap();
            let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
            let text = std::fs::read_to_string(format!("{root}/{file}")).unwrap();
            assert!(text.contains(test), "{file} has no {test}");
            continue;
        }
        let accepted = row["expect"] == "ok";
        assert_eq!(accepted, published["expect"] == "accept", "{row}");
        assert_is(row, &verdict_of(row, None));
    }
}
