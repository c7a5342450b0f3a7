//! The book is true of the code: every key, number, reason, command, path and
//! link that it names is there, and none is left out.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    reason = "tests fail loudly"
)]

#[path = "docs/book.rs"]
mod book;
#[path = "docs/commands.rs"]
mod commands;
#[path = "docs/completion.rs"]
mod completion;
#[path = "docs/config.rs"]
mod config;
#[path = "docs/edge_check.rs"]
mod edge_check;
#[path = "docs/limits.rs"]
mod limits;
#[path = "docs/links.rs"]
mod links;
#[path = "docs/words.rs"]
mod words;
