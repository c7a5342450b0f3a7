//! A clock that a test sets: what makes the time of day wrong for one process.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::process::Command;

use crate::Error;

/// Makes the time of day of the processes that are started with its environment wrong.
pub struct Clock {
    seconds: File,
    dir: tempfile::TempDir,
}

impl Clock {
    /// Builds it; the time is right at first.
    ///
    /// # Errors
    /// When there is no C compiler, or no room.
    pub fn new() -> Result<Clock, Error> {
        let dir = tempfile::tempdir().map_err(|it| Error::Setup(it.to_string()))?;
        let path = dir.path().join("seconds");
        std::fs::write(&path, 0_i64.to_ne_bytes()).map_err(Error::file("write", &path))?;
        let seconds = File::options().write(true).open(&path);
        let seconds = seconds.map_err(Error::file("open", &path))?;
        let source = crate::tools::root().join("wasm-test/src/attack/data/clock.c");
        let mut command = Command::new("cc");
        command.args(["-shared", "-fPIC", "-O1", "-o"]);
        command.arg(dir.path().join("clock.so")).arg(&source);
        let output = command
            .output()
            .map_err(|problem| Error::Setup(format!("this needs a C compiler, cc: {problem}")))?;
        if !output.status.success() {
            let problem = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(Error::Setup(format!("cc: {problem}")));
        }
        Ok(Clock { seconds, dir })
    }

    /// What the process has to be started with.
    #[must_use]
    pub fn env(&self) -> Vec<(String, String)> {
        let path = |name: &str| self.dir.path().join(name).display().to_string();
        vec![
            ("LD_PRELOAD".to_owned(), path("clock.so")),
            ("WRIT_TEST_CLOCK".to_owned(), path("seconds")),
        ]
    }

    /// Sets the clock so many seconds off.
    ///
    /// # Errors
    /// When it can't be set.
    pub fn step(&self, seconds: i64) -> Result<(), Error> {
        let set = self.seconds.write_all_at(&seconds.to_ne_bytes(), 0);
        set.map_err(|problem| Error::Unexpected(problem.to_string()))
    }
}
