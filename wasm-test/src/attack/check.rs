//! What rows demand, with the reason in the error.

use std::fmt::Debug;

use crate::Error;
use crate::client::Answer;

/// It holds.
///
/// # Errors
/// With `what` when it doesn't.
pub fn holds(it: bool, what: impl Into<String>) -> Result<(), Error> {
    if it {
        Ok(())
    } else {
        Err(Error::Unexpected(what.into()))
    }
}

/// The two are equal.
///
/// # Errors
/// With both when they aren't.
pub fn same<T: PartialEq + Debug>(what: &str, got: T, wanted: T) -> Result<(), Error> {
    holds(
        got == wanted,
        format!("{what}: {got:?} instead of {wanted:?}"),
    )
}

/// A refusal with this status and reason.
///
/// # Errors
/// With the whole answer when it is another.
pub fn refused(answer: &Answer, status: u16, reason: &str) -> Result<(), Error> {
    let is = answer.status == status && answer.reason() == reason;
    let (got, text) = (answer.summary(), answer.text());
    holds(is, format!("{got} instead of {status} {reason}: {text}"))
}

/// One of several statuses.
///
/// # Errors
/// With the whole answer when it is another.
pub fn one_of(answer: &Answer, statuses: &[u16]) -> Result<(), Error> {
    let (got, text) = (answer.summary(), answer.text());
    holds(
        statuses.contains(&answer.status),
        format!("{got} is none of {statuses:?}: {text}"),
    )
}
