//! Base64url without padding, in its one canonical form (RFC 7515, section 2; RFC 4648, section 3.5).

use base64ct::{Base64UrlUnpadded, Encoding};

/// Encodes without padding.
#[must_use]
pub fn encode(bytes: &[u8]) -> String {
    Base64UrlUnpadded::encode_string(bytes)
}

/// Decodes strictly: padding, the standard alphabet, white space and trailing
/// bits that are not zero are refused, so that each value has one spelling.
#[must_use]
pub fn decode(text: &str) -> Option<Vec<u8>> {
    Base64UrlUnpadded::decode_vec(text).ok()
}

/// Decodes exactly 32 bytes: a SHA-256 digest, a coordinate, a key.
#[must_use]
pub fn decode32(text: &str) -> Option<[u8; 32]> {
    decode(text)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::{decode, encode};
    use proptest::prelude::*;

    #[test]
    fn only_the_canonical_form_decodes() {
        assert_eq!(decode("AQ"), Some(vec![1]));
        assert_eq!(decode(""), Some(vec![]));
        for bad in [
            "AQ==", "AR", "A", "A+", "A/", "A Q", "AQ\n", "AQ.", "\u{e9}A",
        ] {
            assert_eq!(decode(bad), None, "{bad:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn decoding_undoes_encoding(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            prop_assert_eq!(decode(&encode(&bytes)), Some(bytes));
        }

        #[test]
        fn each_value_has_one_spelling(text in "[A-Za-z0-9_+/=-]{0,12}") {
            if let Some(bytes) = decode(&text) {
                prop_assert_eq!(encode(&bytes), text);
            }
        }
    }
}
