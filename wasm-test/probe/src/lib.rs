//! `capability`'s parsers, checks and gates as functions from bytes to text.
//!
//! The same functions run natively and, built for wasm32, in an interpreter, so
//! that third-party vectors and fuzzing can compare the verdicts of both builds
//! word by word. Nothing here decides anything by itself.

mod checks;
#[cfg(feature = "guest")]
pub mod guest;
mod module;
mod parsers;

/// A probe: its name, and what it does.
pub type Probe = (&'static str, fn(&[u8]) -> String);

/// All probes. The module calls each by its place in this list.
pub const PROBES: [Probe; 16] = [
    ("json", parsers::json),
    ("b64", parsers::b64),
    ("url", parsers::url),
    ("spiffe", parsers::spiffe),
    ("jwk", parsers::jwk),
    ("action", parsers::action),
    ("token", parsers::token),
    ("proof", parsers::proof),
    ("verify", checks::verify),
    ("jws", checks::jws),
    ("htu", checks::htu),
    ("check_proof", checks::check_proof),
    ("gates", checks::gates),
    ("x509", parsers::x509),
    ("body", parsers::body),
    ("message", parsers::message),
];

/// The place of a probe in [`PROBES`].
#[must_use]
pub fn place(name: &str) -> Option<usize> {
    PROBES.iter().position(|(known, _)| *known == name)
}

/// Runs a probe; none when there is none of this name.
#[must_use]
pub fn run(name: &str, input: &[u8]) -> Option<String> {
    let (_, probe) = PROBES.get(place(name)?)?;
    Some(probe(input))
}
