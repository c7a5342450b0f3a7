//! The wasm target: out of the toolchain, by rustup, or by Debian's compiler
//! with the standard library built from its source.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::error::Error;
use crate::progress::Progress;
use crate::run::{cargo, loudly, quietly, succeeds_within};
use crate::setup::apt;

const TARGET: &str = "wasm32-unknown-unknown";
const PACKAGES: [&str; 4] = ["rustc-web", "cargo-web", "rust-web-src", "lld-19"];
const DEBIAN_CARGO: &str = "/usr/bin/cargo";
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_LINKER: &str = "/usr/bin/wasm-ld-19";
// Offline it fails within seconds; a download is some 20 MB.
const RUSTUP_LIMIT: Duration = Duration::from_secs(180);
/// `rustup` or `debian` leaves the other way out.
const CHOICE: &str = "WRIT_WASM_TOOLCHAIN";

/// How the filter can be built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Toolchain {
    /// The toolchain in use has the target.
    Own,
    /// Debian's compiler, with `std` built from source.
    Debian,
}

/// Finds a way to build for wasm, or makes one.
///
/// # Errors
/// When there is none; the message has both.
pub fn find(progress: &Progress) -> Result<Toolchain, Error> {
    let choice = std::env::var(CHOICE).unwrap_or_default();
    let (own, debian) = match choice.as_str() {
        "" => (true, true),
        "rustup" => (true, false),
        "debian" => (false, true),
        other => {
            return Err(Error::Machine(format!(
                "{CHOICE} is {other:?}: it can be `rustup` or `debian`"
            )));
        }
    };
    if own && own_has_target() {
        return Ok(Toolchain::Own);
    }
    // Before rustup's download: it would be tried at every start of a machine
    // that can't reach it.
    if debian && debian_complete() {
        return Ok(Toolchain::Debian);
    }
    if own && rustup_adds_target(progress) {
        return Ok(Toolchain::Own);
    }
    if debian && apt::usable() {
        apt::install(progress, &PACKAGES)?;
        if debian_complete() {
            return Ok(Toolchain::Debian);
        }
    }
    Err(Error::Machine(format!(
        "no compiler for {TARGET}. One of these makes one, then run this again:\n  \
         rustup target add {TARGET}\n  \
         sudo apt-get install --no-install-recommends {}",
        PACKAGES.join(" ")
    )))
}

/// The modules that tests run.
pub struct Modules {
    /// The filter.
    pub filter: PathBuf,
    /// `capability` alone.
    pub probe: PathBuf,
}

/// Builds the filter and the probe, and returns the modules' paths.
///
/// # Errors
/// When a build fails.
pub fn build(toolchain: &Toolchain) -> Result<Modules, Error> {
    build_with(toolchain, &["--package", "probe"])?;
    Ok(Modules {
        filter: modules().join("filter.wasm"),
        probe: modules().join("probe.wasm"),
    })
}

/// Builds what the benchmark compares the filter with, and returns its path.
///
/// # Errors
/// When the build fails.
pub fn build_floor(toolchain: &Toolchain) -> Result<PathBuf, Error> {
    build_with(toolchain, &["--example", "floor"])?;
    Ok(modules().join("examples/floor.wasm"))
}

/// Builds the filter with faults on demand, and returns its path.
///
/// # Errors
/// When the build fails.
pub fn build_traps(toolchain: &Toolchain) -> Result<PathBuf, Error> {
    build_in("traps", toolchain, &["--features", "traps"])?;
    Ok(modules_of("traps").join("filter.wasm"))
}

fn modules() -> PathBuf {
    modules_of("release")
}

fn modules_of(profile: &str) -> PathBuf {
    let target_dir = crate::build::target_dir().join("wasm");
    target_dir.join(TARGET).join(profile)
}

fn build_with(toolchain: &Toolchain, more: &[&str]) -> Result<(), Error> {
    build_in("release", toolchain, more)
}

fn build_in(profile: &str, toolchain: &Toolchain, more: &[&str]) -> Result<(), Error> {
    let target_dir = crate::build::target_dir().join("wasm");
    let mut command = match toolchain {
        Toolchain::Own => cargo(),
        Toolchain::Debian => debian_cargo(),
    };
    command
        .args(["build", "--profile", profile, "--package", "filter"])
        .args(["--target", TARGET])
        .args(more)
        .arg("--target-dir")
        .arg(&target_dir);
    if *toolchain == Toolchain::Debian {
        command.arg("-Zbuild-std=std,panic_abort");
    }
    loudly("building the filter", &mut command)
}

fn own_has_target() -> bool {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    sysroot(Command::new(rustc).current_dir(crate::run::root())).is_some_and(|sysroot| {
        sysroot
            .join("lib/rustlib")
            .join(TARGET)
            .join("lib")
            .exists()
    })
}

fn debian_complete() -> bool {
    let programs = [DEBIAN_CARGO, DEBIAN_RUSTC, DEBIAN_LINKER];
    programs.iter().all(|program| Path::new(program).exists())
        && sysroot(&mut Command::new(DEBIAN_RUSTC))
            .is_some_and(|sysroot| sysroot.join("lib/rustlib/src/rust/library").exists())
}

fn sysroot(rustc: &mut Command) -> Option<PathBuf> {
    let output = quietly("rustc", rustc.args(["--print", "sysroot"])).ok()?;
    let path = String::from_utf8(output.stdout).ok()?;
    Some(PathBuf::from(path.trim()))
}

fn rustup_adds_target(progress: &Progress) -> bool {
    let mut version = Command::new("rustup");
    if !succeeds_within(version.arg("--version"), Duration::from_secs(10)) {
        return false;
    }
    let step = progress.begin(&format!("adding {TARGET} with rustup"));
    let mut add = Command::new("rustup");
    add.args(["target", "add", TARGET])
        .current_dir(crate::run::root());
    let added = succeeds_within(&mut add, RUSTUP_LIMIT) && own_has_target();
    step.done(if added { "added" } else { "not reachable" });
    added
}

fn debian_cargo() -> Command {
    let mut command = Command::new(DEBIAN_CARGO);
    command
        .current_dir(crate::run::root())
        // What `cargo run` of another toolchain has left in the environment.
        .env_remove("RUSTUP_TOOLCHAIN")
        .env_remove("CARGO")
        .env("RUSTC", DEBIAN_RUSTC)
        // Building std is unstable, and this compiler is a stable one.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", DEBIAN_LINKER);
    command
}
