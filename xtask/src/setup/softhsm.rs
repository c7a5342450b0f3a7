//! SoftHSM and the tools of OpenSC and p11-kit, for tests of keys in a PKCS#11 token.

use crate::error::Error;
use crate::progress::Progress;
use crate::setup::apt;

/// The packages, by Debian's names.
const PACKAGES: [&str; 4] = ["softhsm2", "opensc", "p11-kit", "p11-kit-modules"];
/// A program of each that has one.
const PROGRAMS: [&str; 3] = ["softhsm2-util", "pkcs11-tool", "p11-kit"];

/// Installs what is missing, where this may.
///
/// # Errors
/// When something is missing and can't be installed.
pub fn find(progress: &Progress) -> Result<(), Error> {
    if PROGRAMS.iter().all(|program| is_there(program)) {
        return Ok(());
    }
    if apt::usable() {
        return apt::install(progress, &PACKAGES);
    }
    Err(Error::Machine(format!(
        "the tests of keys in a PKCS#11 token need {}; install {}",
        PROGRAMS.join(", "),
        PACKAGES.join(", ")
    )))
}

fn is_there(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).exists())
}
