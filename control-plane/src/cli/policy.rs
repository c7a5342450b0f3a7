//! `writ policy check`, and `writ serve --check`.

use super::fail;
use crate::config::{Config, ConfigError};
use clap::Subcommand;
use std::path::PathBuf;
use std::process::ExitCode;

/// Policy.
#[derive(Subcommand)]
pub enum Policy {
    /// Check the policy files that a config names; every problem is printed
    Check {
        /// The config file
        #[arg(
            long,
            value_name = "FILE",
            env = "WRIT_CONFIG",
            default_value = "/etc/writ/writ.toml"
        )]
        config: PathBuf,
    },
    /// Print the schema that policies are checked against, in Cedar's syntax
    Schema,
}

impl Policy {
    /// Checks or prints.
    pub fn run(self) -> ExitCode {
        match self {
            Self::Check { config } => check_config(Config::read(&config)),
            Self::Schema => {
                println!("{}", ::policy::SCHEMA.trim());
                ExitCode::SUCCESS
            }
        }
    }
}

/// Checks config and policy as `serve` would, and starts nothing.
pub fn check_config(config: Result<Config, Vec<ConfigError>>) -> ExitCode {
    let config = match config {
        Ok(config) => config,
        Err(errors) => {
            let lines: String = errors.iter().map(|error| format!("\n  {error}")).collect();
            return fail(&format!("the config is not usable:{lines}"));
        }
    };
    match ::policy::Policies::load(&config.policies, &config.approvers) {
        Ok(policies) => {
            println!(
                "config and policy are good; policy version {}",
                policies.version()
            );
            ExitCode::SUCCESS
        }
        Err(errors) => {
            let lines: String = errors.iter().map(|error| format!("\n  {error}")).collect();
            fail(&format!("the policy is not usable:{lines}"))
        }
    }
}
