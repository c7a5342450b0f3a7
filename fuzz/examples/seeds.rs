//! Writes the corpora's first inputs, and what the targets know of them:
//! `cargo run -p fuzz --example seeds`, when the rows of the gates have changed.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a tool for developers, which fails loudly"
)]

#[path = "../../capability/tests/common/certificate.rs"]
mod certificate;
#[expect(dead_code, reason = "each user has its own part")]
#[path = "../../capability/tests/common/mod.rs"]
mod common;
#[expect(dead_code, reason = "each user has its own part")]
#[path = "../../capability/tests/common/rows.rs"]
mod rows;

use std::collections::BTreeSet;
use std::path::Path;

use audit::group::{Builder, Header};
use capability::sha256;
use common::{ISSUER, NOW_S, ORIGIN, Signing};
use decision_api::from_control_plane::Message as FromServer;
use decision_api::from_filter::Message as ToServer;
use decision_api::{Answer, Ask, FromControlPlane, FromFilter, QuestionId, Welcome, answer};
use prost::Message;
use serde_json::{Value, json};

const JSON: [&str; 12] = [
    "{}",
    r#"{"a":1,"b":[true,false,null],"c":{"d":"e"}}"#,
    r#"{"a":1,"\u0061":2}"#,
    "[1,-1,0.5,1e-7,9007199254740991,-0]",
    "9007199254740992",
    r#""\ud83d\ude00\u0000\n""#,
    r#""\ud800""#,
    "[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]",
    " [ ] ",
    "[1,]",
    "{\"\u{e9}\":\"\u{20ac}\"}",
    "1e400",
];

const URLS: [&str; 16] = [
    "https://tools.example/files/a.txt?v=1",
    "HTTPS://Tools.Example:443/%7eu/./x/../y?q=%2f#f",
    "http://[2001:db8::1]:8080/a%20b/",
    "https://user@tools.example/",
    "https://tools.example.evil.test/p",
    "https://tools.example//b.example/tools/pay",
    "/files/a.txt?v=1",
    "//b.example/x",
    "/a/..;/b",
    "/a%2Fb",
    "/caf%C3%A9",
    "/?a%5B%5D=1&a=2;b=//x?y",
    "/%252e%252e",
    "tools.example:443",
    "*",
    "ftp://tools.example/",
];

const SPIFFE: [&str; 6] = [
    "spiffe://writ.example/agent/demo",
    "spiffe://writ.example",
    "spiffe://writ.example/agent/",
    "spiffe://Writ.example/a",
    "spiffe://writ.example/../a",
    "spiffe://a_b-c.1/A.b-C_d/x",
];

fn actions() -> Vec<Vec<u8>> {
    let element = |more: Value| {
        let mut element = json!({"type": "http_request", "actions": ["GET"], "locations": ["https://tools.example/p?x=1"]});
        for (name, value) in more.as_object().unwrap() {
            element[name] = value.clone();
        }
        json!([element]).to_string().into_bytes()
    };
    vec![
        element(json!({})),
        element(
            json!({"actions": ["DELETE"], "locations": ["HTTPS://TOOLS.example:443/%7eu/a%20b"]}),
        ),
        element(json!({"content_digest": "47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU"})),
        element(
            json!({"type": "mcp_request", "actions": ["tools/call"], "name": "add", "arguments_digest": "47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU"}),
        ),
        element(json!({"type": "a2a_request", "actions": ["SendMessage"], "skill": "translate"})),
        element(json!({"locations": ["https://tools.example/*"]})),
        b"[]".to_vec(),
    ]
}

fn bodies() -> Vec<Vec<u8>> {
    let order = r#"{"amount": 7, "to": "é", "rush": true, "a/b": [{"~": "x"}], "half": 0.5}"#;
    let twice = r#"{"amount": 7, "amount": 8}"#;
    let (json, patch) = (
        "application/json",
        "application/merge-patch+json; charset=\"UTF-8\"",
    );
    [
        [json, "", "/amount /to /rush /a~1b/0/~0 /half", order],
        [patch, "identity", "/a~1b/0 /a~1b/00 /-", order],
        [json, "gzip", "/amount", twice],
        [
            "application/json; charset=latin1",
            "",
            "amount /a~2b",
            order,
        ],
        ["text/plain", "", "/amount", "{"],
    ]
    .into_iter()
    .map(|parts| parts.join("\n").into_bytes())
    .collect()
}

/// A few of the rows of messages, and what a changed byte of them is.
fn messages() -> Vec<Vec<u8>> {
    let rows = rows::messages().into_iter().step_by(3);
    let message = |row: Value| {
        let details = &row["token"]["claims"]["authorization_details"][0];
        let kind = details["type"].as_str().unwrap().to_owned();
        let body = row["body"].as_str().unwrap_or_default();
        format!("{kind}\n{body}").into_bytes()
    };
    rows.map(message).collect()
}

fn jwks() -> Vec<Vec<u8>> {
    let mut more = Signing::p256("agent").public().to_jwk();
    for (name, value) in [("use", "sig"), ("alg", "ES256"), ("kid", "x")] {
        more[name] = value.into();
    }
    let mut private = Signing::ed25519("agent").public().to_jwk();
    private["d"] = private["x"].clone();
    let jwks = [
        Signing::p256("agent").public().to_jwk(),
        Signing::ed25519("agent").public().to_jwk(),
        more,
        private,
        json!({"kty": "oct", "k": "AAAA"}),
        json!({"kty": "RSA", "n": "AQAB", "e": "AQAB"}),
    ];
    jwks.iter()
        .map(|jwk| jwk.to_string().into_bytes())
        .collect()
}

fn log() -> Vec<Vec<u8>> {
    let line = |index: u64, prev, body| audit::Line {
        index,
        time_ms: NOW_S * 1000,
        prev,
        epoch: 1,
        kind: "issued".to_owned(),
        body,
        attachments: Vec::new(),
    };
    let first = line(0, [0; 32], json!({"agent": common::AGENT}))
        .encode()
        .unwrap();
    let second = line(1, audit::leaf_hash(&first), json!({}))
        .encode()
        .unwrap();
    let mut group = Builder::default();
    group.push(&first, []);
    group.push(&second, []);
    let header = Header {
        log: [7; 16],
        segment: 0,
        group: 0,
        first: 0,
        durable: 0,
        count: 0,
        lines_len: 0,
        total_len: 0,
        head: [0; 32],
    };
    let (_, group) = group.finish(header).unwrap();
    vec![first, second, group]
}

fn certificates() -> Vec<Vec<u8>> {
    use certificate::{Parts, constraints, der, names, uri, usage};
    let demo = || uri(common::AGENT.as_bytes());
    let with = |extensions| {
        let parts = Parts {
            extensions,
            ..Parts::default()
        };
        parts.certificate()
    };
    let good = Parts::default().certificate();
    vec![
        certificate::pem(&good).into_bytes(),
        good,
        with(vec![names(&[demo(), demo()]), usage(0x80)]),
        with(vec![
            names(&[demo(), der(0x82, b"a.example")]),
            usage(0x80),
            constraints(&[]),
        ]),
        with(vec![
            names(&[demo()]),
            usage(0x86),
            constraints(&der(1, &[0xff])),
        ]),
        with(Vec::new()),
    ]
}

fn stream() -> Vec<Vec<u8>> {
    let id = || {
        Some(QuestionId {
            prefix: vec![7; 16],
            counter: 1,
        })
    };
    let ask = FromFilter {
        message: Some(ToServer::Ask(Ask {
            id: id(),
            question: vec![10, 1, 2],
            token: "t".to_owned(),
            proof: "p".to_owned(),
        })),
        outcomes: vec![decision_api::Outcome::default()],
    };
    let welcome = FromControlPlane {
        message: Some(FromServer::Welcome(Welcome {
            protocol: decision_api::PROTOCOL,
            prefix: vec![7; 16],
            time_ms: 0,
            nonces: Vec::new(),
        })),
    };
    let answer = FromControlPlane {
        message: Some(FromServer::Answer(Answer {
            id: id(),
            token_hash: vec![1; 32],
            question_digest: vec![2; 32],
            verdict: Some(answer::Verdict::Deny(decision_api::Deny {
                reason: "token_spent".to_owned(),
                ..decision_api::Deny::default()
            })),
            time_ms: 0,
        })),
    };
    vec![
        ask.encode_to_vec(),
        welcome.encode_to_vec(),
        answer.encode_to_vec(),
    ]
}

/// Of the rows: tokens, proofs and header blocks, and the hashes of tokens that
/// were signed.
struct FromRows {
    tokens: Vec<Vec<u8>>,
    proofs: Vec<Vec<u8>>,
    blocks: Vec<Vec<u8>>,
    minted: BTreeSet<String>,
}

fn from_rows() -> FromRows {
    let mut found = FromRows {
        tokens: Vec::new(),
        proofs: Vec::new(),
        blocks: Vec::new(),
        minted: BTreeSet::new(),
    };
    for (place, row) in rows::rows().into_iter().enumerate() {
        let case = rows::case(&row);
        let value = |name: &str| {
            let mut headers = case.headers.iter();
            let header = headers.find(|(known, _)| known == name.as_bytes());
            header.map(|(_, value)| value.clone()).unwrap_or_default()
        };
        let token = value("authorization");
        let token = token.strip_prefix(b"DPoP ").unwrap_or_default().to_vec();
        let block: Vec<Vec<u8>> = case
            .headers
            .iter()
            .map(|(name, value)| [&name[..], b"=", &value[..]].concat())
            .collect();
        let block = block.join(&b'\n');
        if place % 11 != 0 || block.len() > 2048 {
            continue;
        }
        // A signature is one whatever the row is about.
        found.minted.insert(hex::encode(sha256(&token)));
        found.tokens.push(token);
        found.proofs.push(value("dpop"));
        found.blocks.push(block);
    }
    found
}

fn write(folder: &Path, target: &str, inputs: &[Vec<u8>]) {
    let folder = folder.join(target);
    drop(std::fs::remove_dir_all(&folder));
    std::fs::create_dir_all(&folder).unwrap();
    for input in inputs {
        let name = hex::encode(&sha256(input)[..8]);
        std::fs::write(folder.join(name), input).unwrap();
    }
}

fn main() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let texts = |texts: &[&str]| -> Vec<Vec<u8>> {
        texts.iter().map(|text| text.as_bytes().to_vec()).collect()
    };
    let FromRows {
        tokens,
        proofs,
        blocks,
        minted,
    } = from_rows();
    let jwss: Vec<_> = tokens.iter().chain(&proofs).step_by(4).cloned().collect();
    let mut corpora = vec![
        ("json", texts(&JSON)),
        ("b64", texts(&["", "AQ", "AR", "AQ==", "_-_-", "AQIDBA"])),
        ("url", texts(&URLS)),
        ("spiffe", texts(&SPIFFE)),
        ("jwk", jwks()),
        ("jws", jwss),
        ("action", actions()),
        ("token", tokens),
        ("proof", proofs),
        ("gates", blocks),
        ("x509", certificates()),
        ("body", bodies()),
        ("message", messages()),
    ];
    // The differential target takes the others' inputs, by their probe's place.
    let of_all = corpora.iter().flat_map(|(name, inputs)| {
        let place = probe::place(name).and_then(|place| u8::try_from(place).ok());
        let few = inputs.iter().step_by(4);
        few.map(move |input| [&[place.unwrap()], &input[..]].concat())
    });
    let of_all: Vec<_> = of_all.filter(|input| input.len() < 2048).collect();
    corpora.push(("wasm", of_all));
    corpora.push(("audit", log()));
    corpora.push(("decision", stream()));
    for (target, inputs) in corpora {
        write(&here.join("corpus"), target, &inputs);
    }

    let keys: Vec<Value> = rows::keys()
        .into_iter()
        .map(|(kid, key)| {
            let mut jwk = key.to_jwk();
            jwk["kid"] = kid.into();
            jwk
        })
        .collect();
    let around = json!({
        "around": {
            "issuer": ISSUER, "resource": ORIGIN, "origin": ORIGIN, "keys": keys,
            "now_ms": NOW_S * 1000,
        },
        "minted": minted,
    });
    let text = serde_json::to_string_pretty(&around).unwrap();
    std::fs::write(here.join("src/around.json"), text + "\n").unwrap();
}
