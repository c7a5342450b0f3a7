//! The history: what a journal's bytes mean, and a verifier that needs nothing else.
//!
//! The byte layout and the kinds of line are in `docs/reference/journal.md`.
//! Everything here works on byte slices, except [`reader`] and [`verify()`],
//! which read a directory with `std::fs` and write nothing. The one writer is
//! the `ledger` crate.

pub mod canonical;
pub mod chain;
pub mod evidence;
pub mod follow;
pub mod group;
pub mod line;
pub mod reader;
pub mod segment;
pub mod verify;

pub use chain::{Hash, leaf_hash};
pub use evidence::{AttachmentRef, MAX_ATTACHMENTS, MAX_EVIDENCE, SALT_LEN};
pub use follow::{Broken, Follower};
pub use line::{Line, LinePlace, MAX_LINE};
pub use verify::{Problem, Report, verify};
