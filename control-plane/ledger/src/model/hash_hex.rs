//! A hash as lower-case hex, for serde.

use serde::{Deserialize, Deserializer, Serializer, de::Error};

pub(crate) fn serialize<S: Serializer>(hash: &super::Hash, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&hex::encode(hash))
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<super::Hash, D::Error> {
    let text = String::deserialize(from)?;
    let mut hash = [0; 32];
    hex::decode_to_slice(text, &mut hash).map_err(D::Error::custom)?;
    Ok(hash)
}
