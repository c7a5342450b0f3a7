//! What is read from a body: single values by JSON pointers (RFC 6901).
//!
//! Policy decides by them and the upstream reads the same bytes, so the text has
//! one reading here or none: strict JSON, without an encoding around it, called
//! JSON by its own `content-type`.

use serde_json::Value;

use crate::json::{self, MAX_INTEGER};
use crate::limits::Limits;

/// Pointers of one route, at most.
pub const POINTERS_MAX: usize = 16;
/// A pointer is at most this long; bytes.
pub const POINTER_MAX: usize = 128;
/// A text that is a fact is at most this long; bytes.
pub const TEXT_MAX: usize = 1024;
/// What of a body is read: deeper or wider JSON has no facts.
pub(crate) const LIMITS: Limits = Limits {
    json_depth: 32,
    json_members: 4096,
    ..Limits::CEILING
};

/// One value, as JSON has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scalar {
    /// A string of at most [`TEXT_MAX`] bytes.
    Text(String),
    /// A number without fraction or exponent, within ±(2^53 − 1).
    Integer(i64),
    /// `true` or `false`.
    Flag(bool),
}

/// What kind of value a fact has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// [`Scalar::Text`].
    Text,
    /// [`Scalar::Integer`].
    Integer,
    /// [`Scalar::Flag`].
    Flag,
}

impl Scalar {
    /// Its kind.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Text(_) => Kind::Text,
            Self::Integer(_) => Kind::Integer,
            Self::Flag(_) => Kind::Flag,
        }
    }

    fn of(value: &Value) -> Option<Self> {
        match value {
            Value::String(text) if text.len() <= TEXT_MAX => Some(Self::Text(text.clone())),
            Value::Number(number) => number
                .as_i64()
                .filter(|number| number.unsigned_abs() <= MAX_INTEGER)
                .map(Self::Integer),
            Value::Bool(flag) => Some(Self::Flag(*flag)),
            _ => None,
        }
    }
}

/// Whether this can be a route's pointer: `/`, printable ASCII without quotes and
/// backslashes, `~` only before `0` or `1`.
#[must_use]
pub fn is_pointer(text: &str) -> bool {
    let plain = |byte: u8| (0x20..0x7f).contains(&byte) && !matches!(byte, b'"' | b'\'' | b'\\');
    let mut escapes = text.split('~').skip(1);
    text.starts_with('/')
        && text.len() <= POINTER_MAX
        && text.bytes().all(plain)
        && escapes.all(|rest| rest.starts_with(['0', '1']))
}

/// Whether these headers say JSON in UTF-8 and nothing around it: the media type
/// is `application/json` or ends in `+json`, its only parameter `charset=utf-8`.
#[must_use]
pub fn is_json(content_type: &str, content_encoding: &str) -> bool {
    let mut parts = content_type.split(';').map(str::trim);
    let media = parts.next().unwrap_or_default().to_ascii_lowercase();
    let suffix = media
        .strip_prefix("application/")
        .is_some_and(|kind| kind == "json" || kind.ends_with("+json"));
    let charset = |part: &str| {
        part.split_once('=').is_some_and(|(name, value)| {
            name.eq_ignore_ascii_case("charset")
                && value.trim_matches('"').eq_ignore_ascii_case("utf-8")
        })
    };
    let plain = content_encoding.is_empty() || content_encoding.eq_ignore_ascii_case("identity");
    suffix && parts.all(charset) && plain
}

/// The values at these pointers, in their order. What is not there, is no single
/// value, or is too long is left out; of a text that is no strict JSON all are.
#[must_use]
pub fn facts(body: &[u8], pointers: &[String]) -> Vec<(String, Scalar)> {
    let Ok(value) = json::parse(body, &LIMITS) else {
        return Vec::new();
    };
    let fact = |pointer: &String| Some((pointer.clone(), Scalar::of(value.pointer(pointer)?)?));
    pointers.iter().filter_map(fact).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(body: &str, pointers: &[&str]) -> Vec<(String, Scalar)> {
        let pointers: Vec<String> = pointers.iter().map(|&it| it.to_owned()).collect();
        facts(body.as_bytes(), &pointers)
    }

    fn one(body: &str, pointer: &str) -> Option<Scalar> {
        all(body, &[pointer]).pop().map(|(_, fact)| fact)
    }

    #[test]
    fn single_values_are_facts_and_nothing_else_is() {
        let body = r#"{"n": -7, "t": "é", "f": false, "o": {"a/b": [1, {"x": 2}], "~": 3},
            "null": null, "half": 1.5, "one": 1.0, "exp": 1e3}"#;
        for (pointer, wanted) in [
            ("/n", Some(Scalar::Integer(-7))),
            ("/t", Some(Scalar::Text("é".to_owned()))),
            ("/f", Some(Scalar::Flag(false))),
            ("/o/a~1b/1/x", Some(Scalar::Integer(2))),
            ("/o/~0", Some(Scalar::Integer(3))),
            ("/o", None),
            ("/o/a~1b", None),
            ("/o/a~1b/01", None),
            ("/o/a~1b/-", None),
            ("/null", None),
            ("/half", None),
            ("/one", None),
            ("/exp", None),
            ("/missing", None),
            ("/t/x", None),
        ] {
            assert_eq!(one(body, pointer), wanted, "{pointer}");
        }
        let both = all(body, &["/f", "/missing", "/n"]);
        assert_eq!(both.len(), 2, "{both:?}");
    }

    #[test]
    fn a_text_with_two_readings_has_no_facts() {
        for body in [
            "",
            "{",
            r#"{"n": 1, "n": 2}"#,
            r#"{"n": 1, "\u006e": 2}"#,
            r#"{"n": 1} x"#,
            r#"{"n": 1, "big": 9007199254740993}"#,
            "\u{feff}{\"n\": 1}",
            "n=1",
        ] {
            assert_eq!(one(body, "/n"), None, "{body}");
        }
        // An array is no object, whatever its elements hold (a batch of calls).
        assert_eq!(one(r#"[{"n": 1}, {"n": 2}]"#, "/n"), None);
        let deep = format!(r#"{{"n": 1, "d": {}{}}}"#, "[".repeat(40), "]".repeat(40));
        assert_eq!(one(&deep, "/n"), None);
        let wide = format!(r#"{{"n": 1, "d": [0{}]}}"#, ",0".repeat(4096));
        assert_eq!(one(&wide, "/n"), None);
        let long = format!(r#"{{"n": "{}"}}"#, "x".repeat(TEXT_MAX + 1));
        assert_eq!(one(&long, "/n"), None);
    }

    #[test]
    fn headers_have_to_say_json_and_nothing_around_it() {
        for (content_type, encoding, wanted) in [
            ("application/json", "", true),
            ("Application/JSON; charset=UTF-8", "identity", true),
            (r#"application/ld+json;charset="utf-8""#, "", true),
            ("application/json", "gzip", false),
            ("application/json; charset=utf-16", "", false),
            ("application/json; x=y", "", false),
            ("application/json;", "", false),
            ("application/x-www-form-urlencoded", "", false),
            ("text/json", "", false),
            ("text/plain", "", false),
            ("", "", false),
        ] {
            assert_eq!(is_json(content_type, encoding), wanted, "{content_type}");
        }
    }

    #[test]
    fn pointers_are_plain() {
        for good in ["/amount", "/a/0/b", "/", "/a~0b~1c", "/a b"] {
            assert!(is_pointer(good), "{good}");
        }
        let long = format!("/{}", "x".repeat(POINTER_MAX));
        for bad in ["", "amount", "/a~", "/a~2", "/\"", "/a\\b", "/é", &long] {
            assert!(!is_pointer(bad), "{bad}");
        }
    }
}
