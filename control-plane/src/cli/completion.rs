//! `writ completion`: what makes shells complete commands and options.

use clap::{Args, ValueEnum};
use std::process::ExitCode;

/// A shell.
#[derive(Clone, Copy, ValueEnum)]
enum Shell {
    /// GNU Bash
    Bash,
    /// Z shell
    Zsh,
    /// fish
    Fish,
}

/// The options.
#[derive(Args)]
pub struct Completion {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

impl Completion {
    /// Prints the script.
    pub fn run(self) -> ExitCode {
        let shell = match self.shell {
            Shell::Bash => clap_complete::Shell::Bash,
            Shell::Zsh => clap_complete::Shell::Zsh,
            Shell::Fish => clap_complete::Shell::Fish,
        };
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut super::command(), "writ", &mut script);
        println!("{}", String::from_utf8_lossy(&script).trim_end());
        ExitCode::SUCCESS
    }
}
