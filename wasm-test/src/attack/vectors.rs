//! Third-party test vectors, which are no part of the repository.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::{Error, tools};

/// A file or folder of the vectors: in WRIT_VECTORS, or in `shared/vectors` beside
/// the repository. Where it is missing that is said loudly, or is an error with
/// WRIT_REQUIRE_VECTORS.
///
/// # Errors
/// When it is missing and required.
pub fn find(path: &str) -> Result<Option<PathBuf>, Error> {
    let named = std::env::var_os("WRIT_VECTORS").map(PathBuf::from);
    let beside = || tools::root().join("../shared/vectors");
    let found = named.unwrap_or_else(beside).join(path);
    if found.exists() {
        return Ok(Some(found));
    }
    let what = format!("no {}", found.display());
    if std::env::var_os("WRIT_REQUIRE_VECTORS").is_some_and(|set| !set.is_empty()) {
        return Err(Error::Setup(format!(
            "{what}, and WRIT_REQUIRE_VECTORS is set"
        )));
    }
    eprintln!("*** SKIPPED: {what}. WRIT_VECTORS names the vectors' directory. ***");
    Ok(None)
}

/// A JSON file of the vectors; null when it is missing.
///
/// # Errors
/// When it can't be read.
pub fn json(path: &str) -> Result<Value, Error> {
    let Some(file) = find(path)? else {
        return Ok(Value::Null);
    };
    let bytes = read(&file)?;
    serde_json::from_slice(&bytes)
        .map_err(|problem| Error::Setup(format!("{}: {problem}", file.display())))
}

/// A file's bytes.
///
/// # Errors
/// When it can't be read.
pub fn read(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(Error::file("read", path))
}

/// Text at a JSON pointer; empty when there is none.
pub fn text<'v>(value: &'v Value, pointer: &str) -> &'v str {
    let found = value.pointer(pointer).and_then(Value::as_str);
    found.unwrap_or_default()
}

/// A list at a JSON pointer; empty when there is none.
pub fn list<'v>(value: &'v Value, pointer: &str) -> &'v [Value] {
    let found = value.pointer(pointer).and_then(Value::as_array);
    found.map_or(&[], Vec::as_slice)
}
