//! What must not be told, and how it is found.

use std::path::Path;

use base64ct::{Base64, Encoding as _};
use p256::ecdsa::SigningKey;
use p256::pkcs8::DecodePrivateKey as _;

use super::Said;
use crate::evidence::encode;

/// So much of an opaque token is looked for: what is left is too little to guess the rest by.
const OPAQUE_START: usize = 20;

/// Secrets by name.
#[derive(Default)]
pub struct Secrets(Vec<(String, String)>);

impl Secrets {
    /// A token of any kind: whole, and of a JWS its signature alone, which with header and
    /// claims is all of it; of an opaque one its beginning.
    pub fn add(&mut self, name: &str, secret: &str) {
        assert!(secret.len() >= OPAQUE_START, "{name}: {secret}");
        self.0.push((name.to_owned(), secret.to_owned()));
        let parts: Vec<&str> = secret.split('.').collect();
        match parts.as_slice() {
            [_, _, signature] => self
                .0
                .push((format!("the signature of {name}"), (*signature).to_owned())),
            _ => {
                let start = secret.get(..OPAQUE_START).unwrap().to_owned();
                self.0.push((format!("the start of {name}"), start));
            }
        }
    }

    /// A scalar, or whatever else is kept as bytes, in the forms in which it could be told.
    pub fn add_bytes(&mut self, name: &str, bytes: &[u8]) {
        let forms = [
            ("hex", hex::encode(bytes)),
            ("base64url", encode(bytes)),
            (
                "base64",
                Base64::encode_string(bytes)
                    .trim_end_matches('=')
                    .to_owned(),
            ),
            (
                "debug",
                format!("{bytes:?}").trim_matches(['[', ']']).to_owned(),
            ),
        ];
        for (form, text) in forms {
            self.0.push((format!("{name} in {form}"), text));
        }
    }

    /// Every private key and secret that a control plane keeps.
    pub fn add_keys_of(&mut self, data: &Path) {
        let mut keys = 0;
        for dir in ["keys", "trust"] {
            for entry in std::fs::read_dir(data.join(dir)).unwrap() {
                let path = entry.unwrap().path();
                let name = format!("{dir}/{}", path.file_name().unwrap().to_string_lossy());
                let bytes = std::fs::read(&path).unwrap();
                if bytes.is_empty() {
                    continue;
                }
                let text = String::from_utf8_lossy(&bytes).into_owned();
                if text.contains("PRIVATE KEY") {
                    let body: String = text.lines().filter(|it| !it.contains("---")).collect();
                    let der = Base64::decode_vec(&body).unwrap();
                    let key = SigningKey::from_pkcs8_der(&der).unwrap();
                    self.add_bytes(&name, &key.to_bytes());
                    self.0.push((format!("{name} in PEM"), text));
                    self.0.push((format!("{name} in DER"), body));
                    keys += 1;
                } else if text.contains("BEGIN CERTIFICATE") || text.starts_with(['{', '[']) {
                    assert!(!text.contains("\"d\""), "{name}");
                } else {
                    self.add_bytes(&name, &bytes);
                    self.0
                        .push((format!("{name} as it is"), text.trim().to_owned()));
                    keys += 1;
                }
            }
        }
        assert!(keys >= 4, "{keys} keys in {}", data.display());
    }

    pub fn all(&self) -> impl Iterator<Item = (&str, &str)> {
        let all = self.0.iter();
        all.map(|(name, secret)| (name.as_str(), secret.as_str()))
    }

    /// What of it is in there, and where; and whatever looks like a token of anybody's.
    pub fn within(&self, said: &Said) -> Vec<String> {
        let known = self.all().filter(|(_, secret)| said.text.contains(*secret));
        let around = |secret: &str| {
            let at = said.text.find(secret).unwrap_or_default();
            let from = said.text.floor_char_boundary(at.saturating_sub(160));
            said.text.get(from..at).unwrap_or_default().to_owned()
        };
        let mut found: Vec<String> = known
            .map(|(name, secret)| format!("{name} in {}: …{}", said.place, around(secret)))
            .collect();
        if let Some(strange) = token_like(&said.text) {
            let what = format!("{strange} in {}: …{}", said.place, around(&strange));
            found.push(what);
        }
        found
    }
}

/// The first stretch of text that is a JWS or one of our grants: three parts of base64url,
/// the first of which begins an object, or a grant's prefix and enough behind it.
fn token_like(text: &str) -> Option<String> {
    let of_token = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let mut words = text.split(|c| !of_token(c));
    let found = words.find(|word| {
        let jws = || {
            let parts: Vec<&str> = word.split('.').collect();
            parts.len() == 3 && word.starts_with("eyJ") && parts[2].len() >= 43
        };
        let grant = ["wrs_", "wrr_", "wrd_", "wrc_"].iter().any(|prefix| {
            let rest = word.split_once(prefix).map(|(_, rest)| rest);
            rest.is_some_and(|rest| rest.len() >= 30)
        });
        grant || (word.len() > 100 && jws())
    });
    found.map(ToOwned::to_owned)
}

#[test]
fn what_looks_like_a_token_is_found_in_any_text() {
    let jws = format!("eyJhbGciOiJFUzI1NiJ9.{}.{}", "a".repeat(50), "b".repeat(86));
    let grant = format!("wrs_{}", "c".repeat(43));
    for token in [&jws, &grant] {
        for text in [
            token.clone(),
            format!("authorization: DPoP {token}\n"),
            format!("{{\"t\":\"{token}\"}}"),
            format!("x={token}&y"),
        ] {
            assert!(token_like(&text).is_some(), "{text}");
        }
    }
    for text in ["", "a.b.c", "eyJ.a.b", "wrs_", "hickory_resolver.x.y"] {
        assert_eq!(token_like(text), None);
    }
}
