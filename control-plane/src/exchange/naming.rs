//! Tokens' names.

use base64ct::{Base64UrlUnpadded, Encoding as _};
use ledger::model::Hash;
use serde_json::Value;
use sha2::{Digest, Sha256};

/// A token's `jti`, got by this proof. Two of them differ also where randomness repeats,
/// as it may on a machine that was copied or set back (RFC 4086, section 3): a proof
/// counts once.
pub(super) fn named(random: [u8; 16], proof: &Hash, element: &Value) -> String {
    let hash = Sha256::new()
        .chain_update(random)
        .chain_update(proof)
        .chain_update(element.to_string())
        .finalize();
    let short = hash.get(..16).unwrap_or_default();
    Base64UrlUnpadded::encode_string(short)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::collections::HashSet;

    #[test]
    fn names_differ_where_randomness_repeats() {
        let stuck = [7; 16];
        let element = json!({ "type": "http_request", "locations": ["https://a.example/"] });
        let proof = |n: u32| -> Hash { Sha256::digest(n.to_be_bytes()).into() };
        let names: HashSet<String> = (0..100_000)
            .map(|n| named(stuck, &proof(n), &element))
            .collect();
        assert_eq!(names.len(), 100_000);
        assert!(names.iter().all(|name| name.len() == 22));
        let other = json!({ "type": "http_request", "locations": ["https://b.example/"] });
        for differs in [
            named(stuck, &proof(0), &other),
            named([8; 16], &proof(0), &element),
        ] {
            assert_ne!(named(stuck, &proof(0), &element), differs);
        }
    }
}
