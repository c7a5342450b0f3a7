//! The action digest, and strict JSON by the published suite.

#[expect(dead_code, reason = "each test file uses its own part")]
mod common;

use std::collections::BTreeSet;

use capability::action::{Action, DigestInput, digest};
use capability::{Limits, json, sha256};

#[test]
fn the_digest_is_of_this_text() {
    let element = Action::http("GET", "https://a.example/p?x=1")
        .unwrap()
        .to_details();
    let input = DigestInput {
        agent: "spiffe://writ.example/agent/demo",
        user: Some(("https://idp.example", "alice")),
        chain: &["spiffe://writ.example/agent/demo".to_owned()],
        element: &element,
        content_type: Some("application/json"),
        content_encoding: None,
        body_digest: None,
    };
    let text = concat!(
        r#"{"action":{"actions":["GET"],"locations":["https://a.example/p?x=1"],"type":"http_request"},"#,
        r#""agent":"spiffe://writ.example/agent/demo","body_digest":null,"#,
        r#""chain":["spiffe://writ.example/agent/demo"],"content_encoding":null,"#,
        r#""content_type":"application/json","user":{"iss":"https://idp.example","sub":"alice"}}"#
    );
    assert_eq!(digest(&input), sha256(text.as_bytes()));
}

#[test]
fn every_part_changes_the_digest() {
    let get = Action::http("GET", "https://a.example/p")
        .unwrap()
        .to_details();
    let put = Action::http("PUT", "https://a.example/p")
        .unwrap()
        .to_details();
    let (none, one): (Vec<String>, Vec<String>) = (vec![], vec!["b".to_owned()]);
    let base = DigestInput {
        agent: "a",
        user: None,
        chain: &none,
        element: &get,
        content_type: None,
        content_encoding: None,
        body_digest: None,
    };
    let all = [
        base,
        DigestInput { agent: "b", ..base },
        DigestInput {
            user: Some(("i", "s")),
            ..base
        },
        DigestInput {
            user: Some(("is", "")),
            ..base
        },
        DigestInput {
            chain: &one,
            ..base
        },
        DigestInput {
            element: &put,
            ..base
        },
        DigestInput {
            content_type: Some(""),
            ..base
        },
        DigestInput {
            content_type: Some("x"),
            ..base
        },
        DigestInput {
            content_encoding: Some("x"),
            ..base
        },
        DigestInput {
            body_digest: Some("x"),
            ..base
        },
    ];
    let digests: BTreeSet<_> = all.iter().map(digest).collect();
    assert_eq!(digests.len(), all.len());
}

/// What the suite leaves open, and is taken here: numbers that round to zero.
const OPEN_BUT_TAKEN: [&str; 2] = [
    "i_number_double_huge_neg_exp.json",
    "i_number_real_underflow.json",
];

/// What the suite takes and is refused here, since two readers may see two
/// values: duplicate names, and integers where doubles have gaps.
const VALID_BUT_REFUSED: [&str; 7] = [
    "y_number.json",
    "y_number_real_capital_e.json",
    "y_number_real_exponent.json",
    "y_number_real_fraction_exponent.json",
    "y_object_duplicated_key.json",
    "y_object_duplicated_key_and_value.json",
    "y_object_extreme_numbers.json",
];

#[test]
fn the_published_json_suite() {
    let Some(dir) = common::vectors("jsontestsuite/test_parsing") else {
        return;
    };
    let (mut taken, mut refused) = (BTreeSet::new(), BTreeSet::new());
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        let bytes = std::fs::read(entry.path()).unwrap();
        match json::parse(&bytes, &Limits::default()) {
            Ok(_) => taken.insert(name),
            Err(_) => refused.insert(name),
        };
    }
    assert_eq!(taken.len() + refused.len(), 318);
    let starting = |set: &BTreeSet<String>, with: &str| -> Vec<String> {
        set.iter()
            .filter(|n| n.starts_with(with))
            .cloned()
            .collect()
    };
    assert_eq!(starting(&taken, "n_"), Vec::<String>::new());
    assert_eq!(starting(&refused, "n_").len(), 188);
    assert_eq!(starting(&taken, "i_"), OPEN_BUT_TAKEN);
    assert_eq!(starting(&refused, "y_"), VALID_BUT_REFUSED);
}

#[test]
fn limits_of_depth_and_members_hold_at_their_edges() {
    let limits = Limits {
        json_depth: 2,
        json_members: 2,
        ..Limits::default()
    };
    for (text, good) in [
        ("1", true),
        ("[[1,2],[1]]", true),
        ("[[[]]]", false),
        (r#"{"a":{"b":{}}}"#, false),
        ("[1,2,3]", false),
        (r#"{"a":1,"b":2}"#, true),
        (r#"{"a":1,"b":2,"c":3}"#, false),
        (r#"{"a":1,"a":1}"#, false),
        (r#"{"a":1,"\u0061":1}"#, false),
        (r#"{"":1,"":1}"#, false),
        ("9007199254740991", true),
        ("9007199254740992", false),
        ("-9007199254740991", true),
        ("-9007199254740992", false),
        (" 1 \n", true),
        ("1 1", false),
        ("1e400", false),
        ("100000000000000000000", false),
        ("1e16", false),
        ("9007199254740993.0", false),
        ("1e15", true),
        ("0.1", true),
    ] {
        assert_eq!(
            json::parse(text.as_bytes(), &limits).is_ok(),
            good,
            "{text}"
        );
    }
    let bare = |limits: &Limits| json::parse(b"[]", limits).is_ok();
    assert!(bare(&limits));
    assert!(!bare(&Limits {
        json_depth: 0,
        ..limits
    }));
}
