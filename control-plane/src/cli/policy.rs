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
    Schema {
        /// A config file, whose routes' facts of bodies are then part of it
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
}

impl Policy {
    /// Checks or prints.
    pub fn run(self) -> ExitCode {
        match self {
            Self::Check { config } => check_config(Config::read(&config)),
            Self::Schema { config: None } => {
                println!("{}", ::policy::SCHEMA.trim());
                ExitCode::SUCCESS
            }
            Self::Schema {
                config: Some(config),
            } => match Config::read(&config) {
                Ok(config) => {
                    println!("{}", ::policy::schema(&config.facts()).trim());
                    ExitCode::SUCCESS
                }
                Err(errors) => unusable(&errors),
            },
        }
    }
}

fn unusable(errors: &[ConfigError]) -> ExitCode {
    let lines: String = errors.iter().map(|error| format!("\n  {error}")).collect();
    fail(&format!("the config is not usable:{lines}"))
}

/// Checks config and policy as `serve` would, and starts nothing.
pub fn check_config(config: Result<Config, Vec<ConfigError>>) -> ExitCode {
    let config = match config {
        Ok(config) => config,
        Err(errors) => return unusable(&errors),
    };
    for advice in config.advice() {
        eprintln!("writ: warning: {advice}");
    }
    let facts = config.facts();
    match ::policy::Policies::load_with(&config.policies, &config.approvers, &facts) {
        Ok(policies) => {
            println!(
                "config and policy are good; policy version {}",
                policies.version()
            );
            println!("[edge] {}", config.edge.version());
            for group in &config.edge.groups {
                if let Some(own) = &group.config {
                    println!("[edge] of the group {} {}", group.name, own.version());
                }
            }
            ExitCode::SUCCESS
        }
        Err(errors) => {
            let lines: String = errors.iter().map(|error| format!("\n  {error}")).collect();
            fail(&format!("the policy is not usable:{lines}"))
        }
    }
}
