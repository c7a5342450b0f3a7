//! A process that the harness started, ends, and answers for.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::Error;

/// How long a process may take to end by itself after SIGTERM.
pub const GRACE: Duration = Duration::from_secs(10);

const TAIL_LINES: usize = 25;
const POLL: Duration = Duration::from_millis(20);

/// A running process with its output in a file. Dropping it ends the process.
#[derive(Debug)]
pub struct Child {
    name: &'static str,
    process: std::process::Child,
    log: PathBuf,
    ended: Option<ExitStatus>,
}

impl Child {
    /// Starts `command` with both its outputs appended to `log`.
    ///
    /// # Errors
    /// When the log can't be opened or the program can't be started.
    pub fn spawn(name: &'static str, command: &mut Command, log: &Path) -> Result<Child, Error> {
        let out = open_log(log)?;
        let err = out
            .try_clone()
            .map_err(Error::file("open a second time", log))?;
        let process = command
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .spawn()
            .map_err(Error::file("start", Path::new(command.get_program())))?;
        Ok(Child {
            name,
            process,
            log: log.to_owned(),
            ended: None,
        })
    }

    /// What it is called in messages.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Where its output goes.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// How it ended, once it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.process.try_wait().ok().flatten();
        }
        self.ended
    }

    /// An error about this process with the end of its output.
    pub fn error(&self, problem: impl Into<String>) -> Error {
        Error::Process {
            name: self.name.to_owned(),
            problem: problem.into(),
            log: self.log.clone(),
            tail: tail(&self.log),
        }
    }

    /// Fails when the process has ended.
    ///
    /// # Errors
    /// With how it ended and its last lines.
    pub fn still_running(&mut self) -> Result<(), Error> {
        match self.ended() {
            None => Ok(()),
            Some(status) => Err(self.error(format!("ended too soon ({status})"))),
        }
    }

    /// Asks the process to end. Returns at once.
    pub fn terminate(&mut self) {
        self.signal(Signal::TERM);
    }

    /// Ends the process without asking, and waits until it is gone.
    pub fn kill(&mut self) {
        if self.ended().is_none() {
            self.signal(Signal::KILL);
            self.ended = self.process.wait().ok();
        }
    }

    /// Asks the process to end, waits up to [`GRACE`], then kills it.
    pub async fn stop(&mut self) {
        self.terminate();
        let deadline = Instant::now() + GRACE;
        while self.ended().is_none() && Instant::now() < deadline {
            tokio::time::sleep(POLL).await;
        }
        self.kill();
    }

    fn signal(&mut self, signal: Signal) {
        // A reaped process's id may belong to somebody else by now.
        if self.ended().is_some() {
            return;
        }
        if let Some(pid) = i32::try_from(self.pid()).ok().and_then(Pid::from_raw) {
            // The one possible failure is that it has just ended.
            let _ = kill_process(pid, signal);
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.terminate();
        let deadline = Instant::now() + GRACE;
        while self.ended().is_none() && Instant::now() < deadline {
            std::thread::sleep(POLL);
        }
        self.kill();
    }
}

fn open_log(path: &Path) -> Result<File, Error> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .map_err(Error::file("open the log", path))
}

fn tail(path: &Path) -> String {
    let Ok(bytes) = std::fs::read(path) else {
        return "  (no output)".to_owned();
    };
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(TAIL_LINES);
    let last: Vec<String> = lines.iter().skip(from).map(|l| format!("  {l}")).collect();
    if last.is_empty() {
        "  (no output)".to_owned()
    } else {
        last.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, log: &Path) -> Child {
        Child::spawn("sh", Command::new("sh").args(["-c", script]), log).unwrap()
    }

    #[tokio::test]
    async fn stop_ends_a_process_and_drop_reaps_it() {
        let dir = tempfile::tempdir().unwrap();
        let mut child = shell("exec sleep 60", &dir.path().join("log"));
        assert!(child.still_running().is_ok());
        child.stop().await;
        assert!(child.ended().is_some());
    }

    #[test]
    fn an_early_end_shows_the_last_lines() {
        let dir = tempfile::tempdir().unwrap();
        let mut child = shell("echo the reason; exit 3", &dir.path().join("log"));
        while child.ended().is_none() {
            std::thread::sleep(POLL);
        }
        let message = child.still_running().unwrap_err().to_string();
        assert!(message.contains("the reason"), "{message}");
        assert!(message.contains('3'), "{message}");
    }
}
