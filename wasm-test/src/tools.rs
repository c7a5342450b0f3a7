//! The built and installed programs that a system is made of.

use std::path::{Path, PathBuf};

use crate::Error;

/// Environment variable with the path of Envoy.
pub const ENVOY: &str = "WRIT_ENVOY";
/// Environment variable with the path of the built filter module.
pub const FILTER_WASM: &str = "WRIT_FILTER_WASM";
/// Environment variable with the path of the `writ` binary.
pub const BIN: &str = "WRIT_BIN";

/// Where the programs are. `cargo xtask` finds and builds them and passes
/// them on in the environment.
#[derive(Clone, Debug)]
pub struct Tools {
    /// The Envoy executable itself, without symbolic links.
    pub envoy: PathBuf,
    /// The filter, built for wasm32.
    pub filter_wasm: PathBuf,
    /// The `writ` binary.
    pub writ: PathBuf,
    /// The repository's root.
    pub root: PathBuf,
}

impl Tools {
    /// Reads the three variables.
    ///
    /// # Errors
    /// When one is missing or names no file.
    pub fn from_env() -> Result<Tools, Error> {
        Ok(Tools {
            envoy: from_variable(ENVOY)?,
            filter_wasm: from_variable(FILTER_WASM)?,
            writ: from_variable(BIN)?,
            root: root(),
        })
    }
}

fn from_variable(name: &str) -> Result<PathBuf, Error> {
    let value = std::env::var_os(name).ok_or_else(|| {
        Error::Setup(format!(
            "{name} is not set: run this through `cargo xtask test`, `up`, `demo` or `bench`, \
             which find and build what it needs"
        ))
    })?;
    let path = PathBuf::from(value);
    // Attestation compares executables by the path that the kernel reports.
    path.canonicalize()
        .map_err(Error::file("find what the environment names as", &path))
}

/// The repository's root.
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}
