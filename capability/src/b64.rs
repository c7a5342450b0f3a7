//! Base64url without padding, in its one canonical form (RFC 7515, section 2; RFC 4648, section 3.5).

use base64ct::{Base64UrlUnpadded, Encoding};

/// Encodes without padding.
#[must_use]
pub fn encode(bytes: &[u8]) -> String {
    Base64UrlUnpadded::encode_string(bytes)
}

/// Not a character of the alphabet.
const FOREIGN: u8 = 0xff;

/// The value of each byte as a character.
const VALUES: [u8; 256] = values();

#[expect(
    clippy::indexing_slicing,
    reason = "evaluated by the compiler, which would refuse a wrong index"
)]
const fn values() -> [u8; 256] {
    let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut values = [FOREIGN; 256];
    let mut value: u8 = 0;
    while value < 64 {
        values[alphabet[value as usize] as usize] = value;
        value += 1;
    }
    values
}

/// Decodes strictly: padding, the standard alphabet, white space and trailing
/// bits that are not zero are refused, so that each value has one spelling.
///
/// By a table, which takes a time that depends on the text: what arrives in
/// tokens, proofs and public keys is known to whoever sent it.
#[must_use]
pub fn decode(text: &str) -> Option<Vec<u8>> {
    let (groups, rest) = text.as_bytes().as_chunks::<4>();
    let whole = groups.len().saturating_mul(3);
    let mut bytes = Vec::with_capacity(whole.saturating_add(2));
    // Written in place: a push asks for room each time.
    bytes.resize(whole, 0);
    for (group, out) in groups.iter().zip(bytes.as_chunks_mut::<3>().0) {
        let [_, first, second, third] = bits(group)?.to_be_bytes();
        *out = [first, second, third];
    }
    match rest {
        [] => {}
        [a, b] => match bits(&[*a, *b, b'A', b'A'])?.to_be_bytes() {
            [_, first, 0, 0] => bytes.push(first),
            _ => return None,
        },
        [a, b, c] => match bits(&[*a, *b, *c, b'A'])?.to_be_bytes() {
            [_, first, second, 0] => bytes.extend_from_slice(&[first, second]),
            _ => return None,
        },
        _ => return None,
    }
    Some(bytes)
}

/// The 24 bits of four characters.
fn bits(group: &[u8; 4]) -> Option<u32> {
    let [a, b, c, d] = group.map(|byte| *VALUES.get(usize::from(byte)).unwrap_or(&FOREIGN));
    // The values of the alphabet have six bits.
    if (a | b | c | d) > 0x3f {
        return None;
    }
    Some(u32::from(a) << 18 | u32::from(b) << 12 | u32::from(c) << 6 | u32::from(d))
}

/// Decodes exactly 32 bytes: a SHA-256 digest, a coordinate, a key.
#[must_use]
pub fn decode32(text: &str) -> Option<[u8; 32]> {
    decode(text)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::{decode, encode};
    use base64ct::Encoding;
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

        #[test]
        fn another_strict_decoder_says_the_same(text in "[A-Za-z0-9_+/=é-]{0,40}") {
            let other = base64ct::Base64UrlUnpadded::decode_vec(&text);
            prop_assert_eq!(decode(&text), other.ok());
        }
    }
}
