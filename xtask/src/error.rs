//! What can go wrong in set-up and builds.

use std::path::{Path, PathBuf};

/// An error of xtask. Each message says what to do where anything can be done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The machine lacks something; the text says what to do.
    #[error("{0}")]
    Machine(String),

    /// A file could not be used.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// What was tried, as a verb.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },

    /// A program failed.
    #[error("{what} failed{}", indented(output))]
    Program {
        /// What it was to do.
        what: String,
        /// The end of its output; empty when it went to the terminal.
        output: String,
    },
}

impl Error {
    /// Adapter for `map_err` on file operations.
    pub fn file(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.to_owned();
        move |source| Error::File {
            action,
            path,
            source,
        }
    }
}

fn indented(output: &str) -> String {
    let lines: Vec<String> = output.lines().map(|line| format!("\n  {line}")).collect();
    if lines.is_empty() {
        return String::new();
    }
    format!(":{}", lines.concat())
}
