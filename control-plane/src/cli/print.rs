//! Printing that ends quietly when nobody reads any more.
//!
//! Within `cli`, `println!` and `eprintln!` are these: the standard ones panic
//! on a closed pipe, as in `writ policy schema | head -1`.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::fmt::Arguments;
use std::io::{ErrorKind, Write};

/// What a shell says of a program that a closed pipe ended: 128 and SIGPIPE.
const CLOSED_PIPE: i32 = 141;

macro_rules! println {
    () => { crate::cli::print::line(format_args!("")) };
    ($($text:tt)*) => { crate::cli::print::line(format_args!($($text)*)) };
}

macro_rules! eprintln {
    ($($text:tt)*) => { crate::cli::print::message(format_args!($($text)*)) };
}

/// A line of data.
pub(crate) fn line(text: Arguments<'_>) {
    let mut out = std::io::stdout().lock();
    if let Err(error) = writeln!(out, "{text}").and_then(|()| out.flush()) {
        gone(&error);
    }
}

/// Ends the program, since what it has to say can't be said.
pub(crate) fn gone(error: &std::io::Error) -> ! {
    if error.kind() == ErrorKind::BrokenPipe {
        std::process::exit(CLOSED_PIPE);
    }
    eprintln!("writ: can't write to standard output: {error}");
    std::process::exit(super::FAILED.into());
}

/// A message. Where nobody reads those, the exit code still tells.
pub(crate) fn message(text: Arguments<'_>) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// Whether standard output is a pipe that nobody reads any more: a program that
/// waits for something to print would else wait for ever.
pub(crate) fn nobody_reads() -> bool {
    let stdout = std::io::stdout();
    let mut watched = [PollFd::new(&stdout, PollFlags::empty())];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    poll(&mut watched, Some(&now)).is_ok()
        && watched
            .iter()
            .any(|it| it.revents().contains(PollFlags::ERR))
}
