//! What can go wrong in the harness, by whose fault it is.

use std::path::{Path, PathBuf};

/// An error of the harness. Each message says what to do where anything can be done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The machine or the caller lacks something; the text says what to do.
    #[error("{0}")]
    Setup(String),

    /// A file or socket of the harness could not be used.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// What was tried, as a verb.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },

    /// A process that the harness started ended or never became ready.
    #[error("{name} {problem}; the last lines of {}:\n{tail}", log.display())]
    Process {
        /// Which process.
        name: String,
        /// What is wrong with it.
        problem: String,
        /// Where its output is.
        log: PathBuf,
        /// The end of that output.
        tail: String,
    },

    /// A request that the harness made got no answer.
    #[error("no answer from {url}: {source}")]
    Http {
        /// Where it was sent.
        url: String,
        /// What the HTTP client said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },

    /// The Workload API gave no SVID.
    #[error("the workload API gave no SVID: {0}")]
    WorkloadApi(String),

    /// An answer came and is not what it should be.
    #[error("{0}")]
    Unexpected(String),
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

    /// Adapter for `map_err` on HTTP requests.
    pub fn http<E>(url: &str) -> impl FnOnce(E) -> Error
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let url = url.to_owned();
        move |source| Error::Http {
            url,
            source: source.into(),
        }
    }
}
