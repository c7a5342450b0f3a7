//! SPIFFE IDs against the published cases, where they are.

use std::path::Path;

use identity::{SpiffeId, SpiffeIdError};

#[test]
fn the_published_cases() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../../shared/vectors/spiffe/spiffe_id_cases.json");
    let Ok(text) = std::fs::read_to_string(&file) else {
        eprintln!("SKIPPED: {} is not there", file.display());
        return;
    };
    let cases: serde_json::Value = serde_json::from_str(&text).unwrap();
    let valid = cases["valid"].as_array().unwrap();
    let leaves = cases["valid_as_x509_leaf"].as_array().unwrap();
    let invalid = cases["invalid"].as_array().unwrap();
    assert!(valid.len() >= 5 && invalid.len() >= 20, "the file is cut");
    for id in valid.iter().chain(leaves) {
        let id = id.as_str().unwrap();
        assert_eq!(SpiffeId::parse(id).unwrap().as_str(), id);
        assert!(spiffe::SpiffeId::new(id).is_ok(), "{id}");
    }
    for id in leaves {
        assert!(SpiffeId::parse(id.as_str().unwrap()).unwrap().is_workload());
    }
    for case in invalid {
        let id = case[0].as_str().unwrap();
        assert!(SpiffeId::parse(id).is_err(), "{case} was accepted");
    }
}

#[test]
fn parts() {
    let id = SpiffeId::parse("spiffe://writ.example/agent/demo").unwrap();
    assert_eq!(
        (id.trust_domain(), id.path()),
        ("writ.example", "/agent/demo")
    );
    let domain = SpiffeId::of_trust_domain("writ.example").unwrap();
    assert_eq!((domain.path(), domain.is_workload()), ("", false));
}

#[test]
fn each_fault_has_its_name() {
    use SpiffeIdError::{Empty, Path, Scheme, TooLong, TrustDomain};
    let long = format!("spiffe://td/{}", "a".repeat(2048 - 12));
    assert!(SpiffeId::parse(&long).is_ok());
    let cases = [
        (String::new(), Empty),
        (format!("{long}a"), TooLong),
        (format!("spiffe://{}/a", "a".repeat(256)), TooLong),
        ("SPIFFE://td/a".to_owned(), Scheme),
        ("spiffe://Td/a".to_owned(), TrustDomain),
        ("spiffe:///a".to_owned(), TrustDomain),
        ("spiffe://td/a/".to_owned(), Path),
        ("spiffe://td/a/../b".to_owned(), Path),
        ("spiffe://td/a?b".to_owned(), Path),
    ];
    for (text, fault) in cases {
        assert_eq!(SpiffeId::parse(&text), Err(fault), "{text}");
    }
    assert_eq!(SpiffeId::of_trust_domain("td/a"), Err(TrustDomain));
}
