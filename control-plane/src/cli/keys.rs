//! `writ keys`: list, rotate and revoke the keys that sign tokens. It works on the
//! files in the data directory; a control plane that runs there sees the change
//! within a second.

use super::{REFUSED, fail};
use crate::config::Config;
use crate::keys::{self, AHEAD_S, KeyError, Listed, Revoked};
use clap::{Args, Subcommand};
use serde_json::json;
use std::path::PathBuf;
use std::process::ExitCode;

/// The keys that sign tokens.
#[derive(Subcommand)]
pub enum Keys {
    /// List them: which one signs, which are still or already known, which are revoked
    List {
        #[command(flatten)]
        place: Place,
        /// Print a JSON array
        #[arg(long)]
        json: bool,
    },
    /// Make a new key, which signs in a few seconds, when everybody knows it
    Rotate {
        #[command(flatten)]
        place: Place,
    },
    /// Revoke a key: no token of it is good any more, anywhere
    #[command(
        after_help = "When it is the key that signs, another is made and signs at once.\n\nExit codes: 0 revoked, 1 there is no such key or it is revoked already, 2 it could not be done, or it is revoked and no other could be made."
    )]
    Revoke {
        /// The key's id, as `list` prints it
        // One of 64 begins with a hyphen.
        #[arg(allow_hyphen_values = true)]
        kid: String,
        #[command(flatten)]
        place: Place,
    },
}

/// Where the keys are.
#[derive(Args)]
pub struct Place {
    /// The config file, which names the data directory
    #[arg(
        long,
        value_name = "FILE",
        env = "WRIT_CONFIG",
        default_value = "/etc/writ/writ.toml"
    )]
    config: PathBuf,
}

impl Place {
    /// The token is opened only to change something.
    fn keys(&self, what: &Keys) -> Result<keys::Place, ExitCode> {
        match (Config::read(&self.config), what) {
            (Ok(config), Keys::List { .. }) => {
                Ok(keys::Place::files(&config.server.data_dir.join("keys")))
            }
            (Ok(config), Keys::Rotate { .. }) => {
                keys::Place::of(&config).map_err(|error| fail(&error.to_string()))
            }
            (Ok(config), Keys::Revoke { .. }) => Ok(keys::Place::at_any_rate(&config)),
            (Err(errors), _) => {
                let lines: String = errors.iter().map(|error| format!("\n  {error}")).collect();
                Err(fail(&format!("the config is not usable:{lines}")))
            }
        }
    }
}

impl Keys {
    /// Does it.
    pub fn run(self) -> ExitCode {
        let place = match &self {
            Self::List { place, .. } | Self::Rotate { place } | Self::Revoke { place, .. } => place,
        };
        let place = match place.keys(&self) {
            Ok(place) => place,
            Err(code) => return code,
        };
        let now_s = (crate::state::system_clock())() / 1000;
        let done = match &self {
            Self::List { json, .. } => keys::list(&place, now_s).map(|all| show(&all, *json)),
            Self::Rotate { .. } => keys::rotate(&place, now_s).map(|made| {
                println!("{} signs in {AHEAD_S} s", made.kid);
            }),
            Self::Revoke { kid, .. } => match keys::revoke(&place, kid, now_s) {
                Ok(Revoked::Last(error)) => {
                    return fail(&format!(
                        "{kid} is revoked, and no key signs: {error}; then make one with `writ keys rotate`"
                    ));
                }
                done => done.map(|done| {
                    println!("{kid} is revoked");
                    if let Revoked::Replaced(made) = done {
                        println!("{} signs now", made.kid);
                    }
                }),
            },
        };
        match done {
            Ok(()) => ExitCode::SUCCESS,
            Err(error @ (KeyError::Unknown(_) | KeyError::AlreadyRevoked(_))) => {
                fail(&error.to_string());
                ExitCode::from(REFUSED)
            }
            Err(error) => fail(&error.to_string()),
        }
    }
}

fn show(all: &[(Listed, keys::Standing)], as_json: bool) {
    if as_json {
        let keys: Vec<_> = all
            .iter()
            .map(|(key, standing)| {
                json!({
                    "kid": key.kid, "standing": standing.as_str(), "from_s": key.from_s,
                    "revoked_s": key.revoked_s,
                })
            })
            .collect();
        println!("{:#}", json!(keys));
        return;
    }
    for (key, standing) in all {
        println!("{:<8} {}", standing.as_str(), key.kid);
    }
}
