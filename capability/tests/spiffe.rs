//! SPIFFE IDs against the published cases, where they are.

#[expect(dead_code, reason = "each test file uses its own part")]
mod common;

use capability::spiffe::{SpiffeId, SpiffeIdError, is_workload};

#[test]
fn the_published_cases() {
    let Some(cases) = common::vector_json("spiffe/spiffe_id_cases.json") else {
        return;
    };
    let valid = cases["valid"].as_array().unwrap();
    let leaves = cases["valid_as_x509_leaf"].as_array().unwrap();
    let invalid = cases["invalid"].as_array().unwrap();
    assert!(valid.len() >= 5 && invalid.len() >= 20, "the file is cut");
    for id in valid.iter().chain(leaves) {
        let id = id.as_str().unwrap();
        assert_eq!(SpiffeId::parse(id).unwrap().as_str(), id);
    }
    for id in leaves {
        assert!(is_workload(id.as_str().unwrap()));
    }
    for case in invalid {
        let id = case[0].as_str().unwrap();
        assert!(SpiffeId::parse(id).is_err(), "{case} was accepted");
        assert!(!is_workload(id), "{case} was accepted");
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
