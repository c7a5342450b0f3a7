//! Every target over its corpus, and over changed inputs: the same ones each time.
//!
//! WRIT_FUZZ_ROUNDS is how many changed inputs each target gets. WRIT_PROBE_WASM
//! holds the path of the module that native verdicts are compared with; `cargo
//! xtask test` sets it.
#![expect(clippy::unwrap_used, reason = "tests fail loudly")]

#[expect(dead_code, reason = "each user has its own part")]
#[path = "../../capability/tests/common/mod.rs"]
mod common;
#[expect(dead_code, reason = "each user has its own part")]
#[path = "../../capability/tests/common/rows.rs"]
mod rows;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use fuzz::TARGETS;
use fuzz::mutate::Mutator;
use serde_json::json;

/// Changed inputs where nobody says otherwise: a second or so for each target.
const ROUNDS: u64 = 3_000;
/// Of the differential target: an interpreter is slow.
const ROUNDS_IN_WASM: u64 = 600;

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(target);
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    files
        .iter()
        .map(|file| std::fs::read(file).unwrap())
        .collect()
}

fn smoke(name: &str) {
    let (_, target) = TARGETS.iter().find(|(known, _)| *known == name).unwrap();
    let inputs = corpus(name);
    assert!(inputs.len() >= 3, "the corpus of {name} is missing");
    let rounds = match std::env::var("WRIT_FUZZ_ROUNDS") {
        Ok(rounds) => rounds.parse().unwrap(),
        Err(_) if name == "wasm" => ROUNDS_IN_WASM,
        Err(_) => ROUNDS,
    };
    let mut mutator = Mutator::new(0);
    let changed = std::iter::repeat_with(|| mutator.changed(&inputs));
    let changed: Vec<_> = changed.take(usize::try_from(rounds).unwrap()).collect();
    for input in inputs.iter().chain(&changed) {
        let outcome = catch_unwind(AssertUnwindSafe(|| target(input)));
        assert!(outcome.is_ok(), "{name} fails on {}", input.escape_ascii());
    }
}

macro_rules! targets {
    ($($name:ident)*) => {
        $(#[test] fn $name() { smoke(stringify!($name)); })*

        #[test]
        fn every_target_is_here_and_has_its_program() {
            let here = [$(stringify!($name)),*];
            let names: Vec<&str> = TARGETS.iter().map(|(name, _)| *name).collect();
            assert_eq!(names, here);
            for name in names {
                let program = format!("fuzz_targets/{name}.rs");
                let text = std::fs::read_to_string(
                    Path::new(env!("CARGO_MANIFEST_DIR")).join(&program),
                );
                assert!(text.unwrap().contains(&format!("targets::{name}(")), "{program}");
            }
        }
    };
}

targets! { json b64 url spiffe jwk jws action token proof gates wasm audit decision x509 body message }

fn block(row: &serde_json::Value) -> Vec<u8> {
    let headers = rows::case(row).headers.into_iter();
    let lines: Vec<_> = headers
        .map(|(name, value)| [&name[..], b"=", &value[..]].concat())
        .collect();
    lines.join(&b'\n')
}

/// The target would notice a forgery: a good request with a token of which it
/// doesn't know that it was signed is one to it.
#[test]
fn an_accepted_forgery_is_noticed() {
    let outcome = |row: &serde_json::Value| {
        let block = block(row);
        catch_unwind(AssertUnwindSafe(|| fuzz::targets::gates(&block)))
    };
    assert!(outcome(&json!({})).is_ok());
    let unknown = json!({"token": {"claims": {"jti": "another"}}});
    assert!(outcome(&unknown).is_err());
    // One that is refused is no matter.
    let refused = json!({"token": {"claims": {"jti": "another"}}, "proof": {"key": "thief"}});
    assert!(outcome(&refused).is_ok());
}
