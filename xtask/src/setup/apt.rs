//! Debian packages, where this may install them.

use std::path::Path;
use std::process::Command;

use crate::error::Error;
use crate::progress::Progress;
use crate::run::quietly;

/// Whether this process may install packages on a Debian or Ubuntu.
pub fn usable() -> bool {
    Path::new("/usr/bin/apt-get").exists() && rustix::process::geteuid().is_root()
}

/// Installs `packages`, with fresh lists when the machine's know none of them.
///
/// # Errors
/// When apt-get fails.
pub fn install(progress: &Progress, packages: &[&str]) -> Result<(), Error> {
    let step = progress.begin(&format!("installing {} with apt-get", packages.join(", ")));
    if quietly("apt-get install", &mut apt_install(packages)).is_err() {
        quietly("apt-get update", apt().arg("update"))?;
        quietly("apt-get install", &mut apt_install(packages))?;
    }
    step.done("installed");
    Ok(())
}

fn apt_install(packages: &[&str]) -> Command {
    let mut command = apt();
    command
        .args(["install", "-y", "--no-install-recommends"])
        .args(packages);
    command
}

fn apt() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command
}
