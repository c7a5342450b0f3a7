//! Saying what takes long: a spinner on a terminal, plain lines elsewhere.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Where progress goes.
pub struct Progress {
    terminal: bool,
}

/// Something that is going on. Dropped without [`Step::done`], it failed.
pub struct Step {
    what: String,
    start: Instant,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// To standard error.
    pub fn new() -> Progress {
        Progress {
            terminal: std::io::stderr().is_terminal(),
        }
    }

    /// Says that something begins which prints nothing itself.
    pub fn begin(&self, what: &str) -> Step {
        let bar = self.terminal.then(|| {
            let bar = ProgressBar::new_spinner().with_message(what.to_owned());
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        if bar.is_none() {
            eprintln!("· {what}");
        }
        Step {
            what: what.to_owned(),
            start: Instant::now(),
            bar,
        }
    }

    /// Says something that needs no waiting, or whose program shows its own progress.
    pub fn say(&self, what: &str) {
        eprintln!("· {what}");
    }
}

impl Step {
    /// Says how it ended.
    pub fn done(mut self, result: &str) {
        let seconds = self.start.elapsed().as_secs_f32();
        let line = format!("· {}: {result} ({seconds:.1} s)", self.what);
        match self.bar.take() {
            Some(bar) => {
                bar.finish_and_clear();
                eprintln!("{line}");
            }
            None => eprintln!("{line}"),
        }
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}
