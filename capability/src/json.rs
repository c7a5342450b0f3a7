//! Strict JSON (RFC 8259, and RFC 7493 where that leaves a choice).
//!
//! Two readers of one text must never see two values: a duplicate name is
//! refused however it is escaped, and so are integers beyond 2^53 - 1 in any
//! spelling (where doubles have gaps), trailing bytes, a byte order mark, lone surrogates and invalid UTF-8.

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use std::fmt;

use crate::limits::Limits;

/// The biggest integer that every JSON reader agrees on: 2^53 - 1.
pub const MAX_INTEGER: u64 = (1 << 53) - 1;

/// [`MAX_INTEGER`] as a double, which holds it exactly.
const MAX_DOUBLE_INTEGER: f64 = 9_007_199_254_740_991.0;

/// The text is not strict JSON within the limits. The message holds a position
/// and the kind of fault, and no part of the text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "not strict JSON at line {line}, column {column}: send each name once, within the limits of depth and members"
)]
pub struct JsonError {
    /// From 1.
    pub line: usize,
    /// From 1; 0 at the start of a line.
    pub column: usize,
}

/// Parses one JSON text, which may have white space around it.
///
/// # Errors
/// Whatever is not strict, or over `json_depth` or `json_members`.
pub fn parse(bytes: &[u8], limits: &Limits) -> Result<Value, JsonError> {
    let fault = |e: &serde_json::Error| JsonError {
        line: e.line(),
        column: e.column(),
    };
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let seed = Strict {
        depth_left: limits.json_depth,
        members: limits.json_members,
    };
    let value = seed.deserialize(&mut reader).map_err(|e| fault(&e))?;
    reader.end().map_err(|e| fault(&e))?;
    Ok(value)
}

/// Parses a JSON object.
///
/// # Errors
/// As [`parse`], and any other type of value.
pub fn parse_object(bytes: &[u8], limits: &Limits) -> Result<Map<String, Value>, JsonError> {
    match parse(bytes, limits)? {
        Value::Object(map) => Ok(map),
        _ => Err(JsonError { line: 1, column: 0 }),
    }
}

/// A non-negative integer up to [`MAX_INTEGER`], written without fraction or exponent.
#[must_use]
pub fn integer(value: &Value) -> Option<u64> {
    value.as_u64().filter(|n| *n <= MAX_INTEGER)
}

#[derive(Clone, Copy)]
struct Strict {
    depth_left: usize,
    members: usize,
}

impl Strict {
    fn inside<E: serde::de::Error>(self) -> Result<Self, E> {
        let depth_left = self.depth_left.checked_sub(1);
        depth_left
            .map(|depth_left| Self { depth_left, ..self })
            .ok_or_else(|| E::custom("nested too deeply"))
    }
}

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Value, E> {
        if value > MAX_INTEGER {
            return Err(E::custom("integer over 2^53 - 1"));
        }
        Ok(Value::Number(value.into()))
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<Value, E> {
        if value.unsigned_abs() > MAX_INTEGER {
            return Err(E::custom("integer under -(2^53 - 1)"));
        }
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        // An integer that only a double could hold comes here too, as does 1e300.
        if value.fract() == 0.0 && value.abs() > MAX_DOUBLE_INTEGER {
            return Err(E::custom("integer beyond 2^53 - 1"));
        }
        Number::from_f64(value)
            .map(Value::Number)
            .ok_or_else(|| E::custom("number out of range"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Value, A::Error> {
        let inside = self.inside()?;
        let mut out = Vec::new();
        while let Some(value) = elements.next_element_seed(inside)? {
            if out.len() == self.members {
                return Err(A::Error::custom("too many elements"));
            }
            out.push(value);
        }
        Ok(Value::Array(out))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let inside = self.inside()?;
        let mut out = Map::new();
        while let Some(name) = members.next_key::<String>()? {
            if out.len() == self.members {
                return Err(A::Error::custom("too many members"));
            }
            // Names are compared after their escapes are resolved, and before
            // the value is read.
            if out.contains_key(&name) {
                return Err(A::Error::custom("duplicate name"));
            }
            let value = members.next_value_seed(inside)?;
            out.insert(name, value);
        }
        Ok(Value::Object(out))
    }
}
