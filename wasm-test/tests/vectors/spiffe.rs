//! SPIFFE IDs: by themselves, and as the agent of a token.

use serde_json::json;

use crate::common::vector_json;
use crate::gates::verdict_of;
use crate::probe::both;

#[test]
fn the_published_cases() {
    let Some(file) = vector_json("spiffe/spiffe_id_cases.json") else {
        return;
    };
    let as_agent = |id: &str| {
        let claims = json!({"sub": id, "client_id": id});
        verdict_of(&json!({"token": {"claims": claims}}), None)
    };
    let valid = file["valid"].as_array().unwrap().iter();
    let mut workloads = 0;
    for id in valid.chain(file["valid_as_x509_leaf"].as_array().unwrap()) {
        let id = id.as_str().unwrap();
        let verdict = both("spiffe", id.as_bytes());
        if verdict.starts_with("ok true ") {
            workloads += 1;
            assert!(as_agent(id).starts_with("ok "), "{id}");
        } else {
            assert!(verdict.starts_with("ok false "), "{id}: {verdict}");
            assert_eq!(as_agent(id), "refused token_malformed", "{id}");
        }
    }
    assert_eq!(workloads, 5);
    let invalid = file["invalid"].as_array().unwrap();
    assert_eq!(invalid.len(), 26);
    for case in invalid {
        let id = case[0].as_str().unwrap();
        let verdict = both("spiffe", id.as_bytes());
        assert!(verdict.starts_with("refused "), "{case}: {verdict}");
        // A name twice over 2 KiB makes a token over 4 KiB.
        let reason = if id.len() > 2048 {
            "too_large"
        } else {
            "token_malformed"
        };
        assert_eq!(as_agent(id), format!("refused {reason}"), "{case}");
    }
}
