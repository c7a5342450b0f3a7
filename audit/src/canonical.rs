//! Canonical JSON (RFC 8785, JCS) for lines: one value has one encoding.
//!
//! Numbers are integers only, within what an IEEE double holds exactly, so that
//! JCS's number rules (section 3.2.2.3) come down to plain digits.

mod writer;

use serde::Serialize;
use serde_json::{Map, Value};

/// The largest integer that every JSON reader takes exactly: 2^53 − 1.
pub const LARGEST_INTEGER: u64 = (1 << 53) - 1;

/// A value that lines do not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CanonicalError {
    /// A fraction, or an integer beyond ±(2^53 − 1).
    #[error("lines hold integers within ±(2^53 − 1) only")]
    Number,
    /// serde_json could not write a string.
    #[error("a string cannot be encoded")]
    String,
    /// Not JSON, or nested deeper than serde_json reads.
    #[error("not valid JSON")]
    Syntax,
    /// JSON, but not in canonical form: spaces, key order, escapes or a duplicate key.
    #[error("not in canonical form")]
    NotCanonical,
    /// A type that lines have no form for, such as bytes, or a key that is no string.
    #[error("a value of this type has no form in a line")]
    Type,
}

/// JSON in its canonical form; only this module makes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Canonical(Vec<u8>);

impl Canonical {
    /// The encoding.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Serialises a value straight to its canonical form.
    ///
    /// # Errors
    /// When it holds what lines don't: see [`CanonicalError`].
    pub fn of<T: Serialize + ?Sized>(value: &T) -> Result<Self, CanonicalError> {
        writer::to_vec(value).map(Self)
    }

    /// An enum's variant: its name, and the canonical form of what it holds.
    ///
    /// # Errors
    /// As [`Canonical::of`], and [`CanonicalError::Type`] for what is no variant
    /// with content in serde's default (external) representation.
    pub fn of_variant<T: Serialize + ?Sized>(value: &T) -> Result<(String, Self), CanonicalError> {
        let (mut bytes, variant) = writer::to_vec_of_variant(value)?;
        // It is the one member of an object, {"name":content}, and a name has no
        // character that would be escaped.
        let name = variant.ok_or(CanonicalError::Type)?;
        bytes.pop();
        let tag = name.len().saturating_add(4).min(bytes.len());
        bytes.drain(..tag);
        Ok((name, Self(bytes)))
    }
}

/// Encodes a value in its canonical form.
///
/// # Errors
/// [`CanonicalError::Number`] for a number that is no safe integer.
pub fn encode(value: &Value) -> Result<Vec<u8>, CanonicalError> {
    let mut out = Vec::new();
    write(value, &mut out)?;
    Ok(out)
}

/// Appends the canonical form of a value to what is there.
pub(crate) fn append<T: Serialize + ?Sized>(
    value: &T,
    out: Vec<u8>,
) -> Result<Vec<u8>, CanonicalError> {
    writer::append(value, out)
}

/// Parses bytes that must be the canonical form of what they say: they are
/// encoded again and compared, which also finds duplicate keys.
///
/// # Errors
/// [`CanonicalError::Syntax`] and [`CanonicalError::NotCanonical`].
pub fn decode(bytes: &[u8]) -> Result<Value, CanonicalError> {
    let value: Value = serde_json::from_slice(bytes).map_err(|_| CanonicalError::Syntax)?;
    if encode(&value)? == bytes {
        Ok(value)
    } else {
        Err(CanonicalError::NotCanonical)
    }
}

fn write(value: &Value, out: &mut Vec<u8>) -> Result<(), CanonicalError> {
    match value {
        Value::Null => out.extend_from_slice(b"null"),
        Value::Bool(true) => out.extend_from_slice(b"true"),
        Value::Bool(false) => out.extend_from_slice(b"false"),
        Value::Number(number) => {
            let magnitude = match (number.as_u64(), number.as_i64()) {
                (Some(n), _) => n,
                (None, Some(n)) => n.unsigned_abs(),
                (None, None) => return Err(CanonicalError::Number),
            };
            if magnitude > LARGEST_INTEGER {
                return Err(CanonicalError::Number);
            }
            out.extend_from_slice(number.to_string().as_bytes());
        }
        Value::String(text) => string(text, out)?,
        Value::Array(items) => {
            out.push(b'[');
            for (at, item) in items.iter().enumerate() {
                if at > 0 {
                    out.push(b',');
                }
                write(item, out)?;
            }
            out.push(b']');
        }
        Value::Object(members) => object(members, out)?,
    }
    Ok(())
}

fn object(members: &Map<String, Value>, out: &mut Vec<u8>) -> Result<(), CanonicalError> {
    let mut sorted: Vec<(&String, &Value)> = members.iter().collect();
    // RFC 8785, section 3.2.3: by UTF-16 code units, which differs from UTF-8's
    // order beyond the basic plane.
    sorted.sort_by(|(a, _), (b, _)| a.encode_utf16().cmp(b.encode_utf16()));
    out.push(b'{');
    for (at, (key, value)) in sorted.into_iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        string(key, out)?;
        out.push(b':');
        write(value, out)?;
    }
    out.push(b'}');
    Ok(())
}

// serde_json escapes as ECMAScript's JSON.stringify does, which is what JCS asks for.
fn string(text: &str, out: &mut Vec<u8>) -> Result<(), CanonicalError> {
    let plain = |byte: &u8| *byte >= 0x20 && *byte != b'"' && *byte != b'\\';
    // Without an early end inside a chunk: many bytes are looked at in one step.
    let all_plain = |chunk: &[u8]| chunk.iter().fold(true, |all, byte| all & plain(byte));
    if text.as_bytes().chunks(32).all(all_plain) {
        out.push(b'"');
        out.extend_from_slice(text.as_bytes());
        out.push(b'"');
        return Ok(());
    }
    serde_json::to_writer(out, text).map_err(|_| CanonicalError::String)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn text(value: &Value) -> String {
        String::from_utf8(encode(value).unwrap()).unwrap()
    }

    #[test]
    fn keys_sort_by_utf16_and_strings_escape_minimally() {
        // RFC 8785, section 3.2.3, its own sample order.
        let value =
            json!({"\u{20ac}":1,"\r":2,"\u{fb33}":3,"1":4,"\u{1f600}":5,"\u{80}":6,"\u{f6}":7});
        let keys = "{\"\\r\":2,\"1\":4,\"\u{80}\":6,\"\u{f6}\":7,\"\u{20ac}\":1,\"\u{1f600}\":5,\"\u{fb33}\":3}";
        assert_eq!(text(&value), keys);
        assert_eq!(
            text(&json!("\u{8}\t\n\u{c}\r\"\\\u{1}\u{1f}/\u{7f}")),
            "\"\\b\\t\\n\\f\\r\\\"\\\\\\u0001\\u001f/\u{7f}\""
        );
    }

    #[test]
    fn numbers_are_safe_integers() {
        assert_eq!(
            text(&json!([0, -1, LARGEST_INTEGER])),
            "[0,-1,9007199254740991]"
        );
        for bad in [
            json!(1.5),
            json!(LARGEST_INTEGER + 1),
            json!(-9_007_199_254_740_992_i64),
            json!(1e300),
        ] {
            assert_eq!(encode(&bad), Err(CanonicalError::Number), "{bad}");
        }
    }

    #[test]
    fn only_the_canonical_form_decodes() {
        assert!(decode(br#"{"a":1,"b":[]}"#).is_ok());
        for bad in [
            &br#"{"b":[],"a":1}"#[..],
            br#"{"a": 1}"#,
            br#"{"a":1,"a":1}"#,
            br#"{"a":"\u0061"}"#,
            br#"{"a":1} "#,
        ] {
            assert_eq!(
                decode(bad),
                Err(CanonicalError::NotCanonical),
                "{}",
                String::from_utf8_lossy(bad)
            );
        }
        assert_eq!(decode(b"{\"a\":\"\xff\"}"), Err(CanonicalError::Syntax));
        assert_eq!(decode(br#"{"a":1}{}"#), Err(CanonicalError::Syntax));
        for bad in [&br#"{"a":1.0}"#[..], br#"{"a":-0}"#, br#"{"a":1e3}"#] {
            assert_eq!(decode(bad), Err(CanonicalError::Number));
        }
    }

    /// Values of every kind that lines hold, and their nesting.
    fn values() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            (0..=LARGEST_INTEGER).prop_map(Value::from),
            (-9_007_199_254_740_991_i64..0).prop_map(Value::from),
            ".*".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 48, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::vec((".*", inner), 0..6).prop_map(Value::from_iter),
            ]
        })
    }

    #[derive(serde::Serialize)]
    #[serde(rename_all = "snake_case")]
    enum Tagged {
        Struct { z: u8, a: Option<u8> },
        Newtype(Vec<u8>),
        Tuple(u8, u8),
        Unit,
    }

    #[test]
    fn a_variant_is_its_name_and_content() {
        let of = |value| {
            let (name, content) = Canonical::of_variant(&value)?;
            Ok((name, String::from_utf8(content.0).unwrap()))
        };
        for (value, name, content) in [
            (
                Tagged::Struct { z: 1, a: None },
                "struct",
                r#"{"a":null,"z":1}"#,
            ),
            (Tagged::Newtype(vec![1]), "newtype", "[1]"),
            (Tagged::Tuple(1, 2), "tuple", "[1,2]"),
        ] {
            let tagged = json!({name: serde_json::from_str::<Value>(content).unwrap()});
            assert_eq!(Canonical::of(&value).unwrap().0, encode(&tagged).unwrap());
            assert_eq!(of(value), Ok((name.to_owned(), content.to_owned())));
        }
        assert_eq!(of(Tagged::Unit), Err(CanonicalError::Type));
        for no_variant in [json!({"a": 1, "b": 2}), json!({"a": 1}), json!([{"a": 1}])] {
            assert_eq!(
                Canonical::of_variant(&no_variant),
                Err(CanonicalError::Type)
            );
        }
        // Nor one that is further in.
        let within = [Tagged::Newtype(vec![])];
        assert_eq!(Canonical::of_variant(&within), Err(CanonicalError::Type));
    }

    /// A map that says its members as they come, twice if need be.
    struct Members(Vec<(Value, Value)>);

    impl Serialize for Members {
        fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
            to.collect_map(self.0.iter().map(|(key, value)| (key, value)))
        }
    }

    #[test]
    fn what_has_no_form_is_refused() {
        let member = |key: Value| (key, json!(1));
        let twice = Members(vec![
            member("b".into()),
            member("a".into()),
            member("b".into()),
        ]);
        assert_eq!(Canonical::of(&twice), Err(CanonicalError::NotCanonical));
        assert_eq!(
            Canonical::of(&Members(vec![member(1.into())])),
            Err(CanonicalError::Type)
        );
        for number in [json!(0.5), json!(LARGEST_INTEGER + 1), json!(i64::MIN)] {
            assert_eq!(Canonical::of(&number), Err(CanonicalError::Number));
        }
        let nested = |depth| (0..depth).fold(json!(1), |inner, _| json!([inner]));
        assert!(decode(Canonical::of(&nested(100)).unwrap().as_bytes()).is_ok());
        assert_eq!(Canonical::of(&nested(101)), Err(CanonicalError::Syntax));
    }

    proptest! {
        #[test]
        fn serialising_writes_what_encoding_does(value in values()) {
            prop_assert_eq!(Canonical::of(&value).unwrap().0, encode(&value).unwrap());
        }

        #[test]
        fn strings_survive(key in ".*", value in ".*") {
            let bytes = encode(&json!({ key: value })).unwrap();
            prop_assert_eq!(encode(&decode(&bytes).unwrap()).unwrap(), bytes);
        }
    }
}
