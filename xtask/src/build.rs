//! Building what a system is made of, each once and in one profile.

use std::path::PathBuf;

use crate::error::Error;
use crate::progress::Progress;
use crate::run::{cargo, loudly, root};
use crate::setup::wasm;

/// How the native programs are built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// What `up`, `demo` and `test` share.
    Dev,
    /// Optimised, for `bench` alone: a control plane that is not would limit the
    /// rate, and an idling Envoy costs more for each request.
    Measure,
}

impl Profile {
    /// Cargo's name for it, and for its directory.
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Profile::Dev => ("dev", "debug"),
            Profile::Measure => ("measure", "measure"),
        }
    }
}

/// What was found and built.
pub struct Built {
    /// The Envoy executable; none when tests go without.
    pub envoy: Option<PathBuf>,
    /// The filter module.
    pub filter_wasm: PathBuf,
    /// The module with `capability` alone.
    pub probe_wasm: PathBuf,
    /// The `writ` binary.
    pub writ: PathBuf,
    /// What runs systems, demos and benchmarks.
    pub system: PathBuf,
}

impl Built {
    /// How `wasm-test` learns of it.
    pub fn environment(&self) -> Vec<(&'static str, PathBuf)> {
        let mut environment = vec![
            ("WRIT_FILTER_WASM", self.filter_wasm.clone()),
            ("WRIT_PROBE_WASM", self.probe_wasm.clone()),
            ("WRIT_BIN", self.writ.clone()),
        ];
        if let Some(envoy) = &self.envoy {
            environment.push(("WRIT_ENVOY", envoy.clone()));
        }
        environment
    }
}

/// Builds the filter for wasm and the native programs.
///
/// # Errors
/// When the wasm target can't be had or a build fails.
pub fn everything(progress: &Progress, envoy: impl Into<Option<PathBuf>>) -> Result<Built, Error> {
    everything_in(Profile::Dev, progress, envoy)
}

/// As [`everything`], in a profile.
///
/// # Errors
/// As [`everything`].
pub fn everything_in(
    profile: Profile,
    progress: &Progress,
    envoy: impl Into<Option<PathBuf>>,
) -> Result<Built, Error> {
    let toolchain = wasm::find(progress)?;
    progress.say("building the filter for wasm32-unknown-unknown");
    let modules = wasm::build(&toolchain)?;
    progress.say("building the control plane and the harness (minutes, the first time)");
    // The whole workspace is named so that shared dependencies get the same
    // features as in `cargo test --workspace`, and are built once.
    let mut build = cargo();
    let (name, directory) = profile.names();
    build.args(["build", "--workspace", "--profile", name]);
    build.args(["--bin", "writ", "--bin", "writ-system"]);
    loudly("building the programs", &mut build)?;
    let built = target_dir().join(directory);
    Ok(Built {
        envoy: envoy.into(),
        filter_wasm: modules.filter,
        probe_wasm: modules.probe,
        writ: built.join("writ"),
        system: built.join("writ-system"),
    })
}

/// Where cargo builds.
pub fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}
