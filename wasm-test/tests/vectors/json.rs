//! JSONTestSuite: every text as JSON, as a token's header and as its claims.

use std::path::PathBuf;

use capability::b64;

use crate::common::vectors;
use crate::probe::both;

fn files(dir: PathBuf) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            (name, std::fs::read(entry.path()).unwrap())
        })
        .collect();
    files.sort();
    files
}

#[test]
fn all_188_are_refused_and_the_open_ones_have_one_verdict() {
    let Some(dir) = vectors("jsontestsuite/test_parsing") else {
        return;
    };
    let (mut must_not, mut open) = (0, 0);
    for (name, bytes) in files(dir) {
        let verdict = both("json", &bytes);
        let object = r#"{"typ":"at+jwt","alg":"ES256","kid":"k"}"#;
        let [segment, other] = [&bytes[..], object.as_bytes()].map(b64::encode);
        // Too long for a token, for the few that are.
        let is_refused = |verdict: &str| {
            verdict == "refused token_malformed"
                || (bytes.len() > 2048 && verdict == "refused too_large")
        };
        let as_header = both("token", format!("{segment}.{other}.AAAA").as_bytes());
        let as_claims = both("token", format!("{other}.{segment}.AAAA").as_bytes());
        assert!(is_refused(&as_header), "{name} as header: {as_header}");
        assert!(is_refused(&as_claims), "{name} as claims: {as_claims}");
        if name.starts_with("n_") {
            must_not += 1;
            assert!(verdict.starts_with("refused "), "{name}: {verdict}");
        } else if name.starts_with("i_") {
            open += 1;
        }
    }
    assert_eq!((must_not, open), (188, 35));
}

/// Texts in which readers see different things: what is taken means one thing
/// here, and what it means is pinned. Names are compared by their code points,
/// and numbers are doubles; the integers that doubles can't tell apart, names
/// that come twice and lone surrogates are refused.
const TAKEN: [(&str, &str); 8] = [
    ("number_1.0.json", "[1]"),
    ("number_1.000000000000000005.json", "[1]"),
    ("number_1000000000000000.json", "[1000000000000000]"),
    ("number_1e-999.json", "[0]"),
    ("number_1e6.json", "[1000000]"),
    (
        "object_key_nfc_nfd.json",
        "{\"e\u{301}\":\"NFD\",\"\u{e9}\":\"NFC\"}",
    ),
    (
        "object_key_nfd_nfc.json",
        "{\"e\u{301}\":\"NFD\",\"\u{e9}\":\"NFC\"}",
    ),
    ("string_with_escaped_NULL.json", r#"["A\u0000B"]"#),
];

#[test]
fn what_readers_see_in_different_ways_means_one_thing_or_is_refused() {
    let Some(dir) = vectors("jsontestsuite/test_transform") else {
        return;
    };
    let files = files(dir);
    assert_eq!(files.len(), 22);
    let mut taken = Vec::new();
    for (name, bytes) in &files {
        if let Some(meaning) = both("json", bytes).strip_prefix("ok ") {
            taken.push((name.as_str(), meaning.to_owned()));
        }
    }
    let expected = TAKEN.map(|(name, meaning)| (name, meaning.to_owned()));
    assert_eq!(taken, expected);
}
