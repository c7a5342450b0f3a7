//! Values as columns have them.

use serde::{Deserialize, Serialize};

use crate::model::{FirstUse, SpentGrant};

/// What `uses.record` holds.
#[derive(Serialize, Deserialize)]
pub(crate) struct UseText {
    pub(crate) jti: String,
    pub(crate) request_id: String,
    /// Rows of before have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) grant: Option<Box<SpentGrant>>,
}

pub(crate) fn to_i64(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

pub(crate) fn from_i64(n: i64) -> u64 {
    u64::try_from(n).unwrap_or_default()
}

pub(crate) fn to_count(n: i64) -> usize {
    usize::try_from(n).unwrap_or_default()
}

const NOT_FORWARDED: i32 = -1;
const REFUSED: i32 = -2;
const LAPSED: i32 = -3;

pub(crate) fn outcome(first: FirstUse) -> i32 {
    match first {
        FirstUse::Unknown => 0,
        FirstUse::Forwarded(status) => i32::from(status),
        FirstUse::NotForwarded => NOT_FORWARDED,
        FirstUse::Refused => REFUSED,
        FirstUse::Lapsed => LAPSED,
    }
}

/// What is not known is told as unknown, which grants nothing.
pub(crate) fn first_use(outcome: i32) -> FirstUse {
    match outcome {
        NOT_FORWARDED => FirstUse::NotForwarded,
        REFUSED => FirstUse::Refused,
        LAPSED => FirstUse::Lapsed,
        status => match u16::try_from(status) {
            Ok(status) if status > 0 => FirstUse::Forwarded(status),
            _ => FirstUse::Unknown,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_use_says_what_was_used_and_one_of_before_does_not() {
        let before = r#"{"jti":"j","request_id":"r"}"#;
        let read: UseText = serde_json::from_str(before).unwrap();
        assert_eq!(read.grant, None);
        assert_eq!(serde_json::to_string(&read).unwrap(), before);
        let now = r#"{"jti":"j","request_id":"r","grant":{"kind":"refresh","agent":"a"}}"#;
        let read: UseText = serde_json::from_str(now).unwrap();
        assert_eq!(serde_json::to_string(&read).unwrap(), now);
    }

    #[test]
    fn every_outcome_comes_back() {
        for first in [
            FirstUse::Unknown,
            FirstUse::Forwarded(1),
            FirstUse::Forwarded(u16::MAX),
            FirstUse::NotForwarded,
            FirstUse::Refused,
            FirstUse::Lapsed,
        ] {
            assert_eq!(first_use(outcome(first)), first);
        }
        assert_eq!(first_use(-99), FirstUse::Unknown);
        assert_eq!(first_use(70_000), FirstUse::Unknown);
    }
}
