//! `writ keys`: list, rotate and revoke the keys that sign tokens. A control plane that
//! runs is asked: the list over the admin socket, a change with a human's session. Where
//! none runs, or where it is said, this works on the files in the data directory.

use super::approvals::with_session;
use super::local::{admin_get, session_file};
use super::{fail, plain, refuse};
use crate::approval::{key_view, keys_in};
use crate::config::Config;
use crate::keys::{self, AHEAD_S};
use crate::web::{DeskError, KeyChange, KeyRefusal};
use clap::{Args, Subcommand};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Where the socket is that the config names elsewhere by default.
const SOCKET: &str = "/run/writ/admin.sock";
/// The issuer where nothing names one.
const ISSUER: &str = "http://127.0.0.1:8480";

/// The keys that sign tokens.
#[derive(Subcommand)]
pub enum Keys {
    /// List them: which one signs, which are still or already known, which are revoked
    List {
        #[command(flatten)]
        place: Place,
    },
    /// Make a new key, which signs in a few seconds, when everybody knows it
    Rotate {
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        issuer: Issuer,
    },
    /// Revoke a key: no token of it is good any more, anywhere
    #[command(
        after_help = "When it is the key that signs, the newest of the others signs again, or else one that is made.\n\nExit codes: 0 revoked, 1 refused, there is no such key or it is revoked already, 2 it could not be done, or it is revoked and no other could be made."
    )]
    Revoke {
        /// The key's id, as `list` prints it
        // One of 64 begins with a hyphen.
        #[arg(allow_hyphen_values = true)]
        kid: String,
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        issuer: Issuer,
        /// Why, for the log
        #[arg(long, default_value = "")]
        why: String,
    },
}

/// Where the keys are.
#[derive(Args)]
pub struct Place {
    /// The config file, which names the socket, the issuer and the data directory
    #[arg(
        long,
        value_name = "FILE",
        env = "WRIT_CONFIG",
        default_value = "/etc/writ/writ.toml"
    )]
    config: PathBuf,
    /// The admin socket, if not the config's
    #[arg(long, value_name = "SOCKET", env = "WRIT_ADMIN_SOCKET")]
    admin_socket: Option<PathBuf>,
    /// Ask no control plane: read or change the files, as the user that has them
    #[arg(long)]
    files: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Who is asked to change them.
#[derive(Args)]
pub struct Issuer {
    /// The issuer's URL, if not the config's
    #[arg(long, value_name = "URL", env = "WRIT_ISSUER")]
    issuer: Option<String>,
}

/// The config, or what is wrong with it.
type Read = Result<Config, String>;

impl Place {
    fn read(&self) -> Read {
        Config::read(&self.config).map_err(|errors| {
            let lines: String = errors.iter().map(|error| format!("\n  {error}")).collect();
            format!("the config is not usable:{lines}")
        })
    }

    fn socket(&self, config: &Read) -> PathBuf {
        let named = config.as_ref().ok().map(|it| &it.server.admin_socket);
        let named = self.admin_socket.as_ref().or(named);
        named.cloned().unwrap_or_else(|| PathBuf::from(SOCKET))
    }

    fn print(&self, value: &Value, said: impl FnOnce(&Value)) {
        if self.json {
            println!("{value:#}");
        } else {
            said(value);
        }
    }
}

impl Issuer {
    fn url(&self, config: &Read) -> String {
        let named = config.as_ref().ok().map(|it| &it.server.issuer);
        let named = self.issuer.as_ref().or(named);
        let url = named.map_or(ISSUER, String::as_str);
        url.trim_end_matches('/').to_owned()
    }
}

impl Keys {
    /// Does it.
    pub async fn run(self) -> ExitCode {
        match self {
            Self::List { place } => list(&place).await,
            Self::Rotate { place, issuer } => change(&place, &issuer, KeyChange::Rotate).await,
            Self::Revoke {
                kid,
                place,
                issuer,
                why,
            } => change(&place, &issuer, KeyChange::Revoke { kid, why }).await,
        }
    }
}

/// Whether something answers there, for us or for others.
async fn is_running(socket: &Path) -> bool {
    match tokio::net::UnixStream::connect(socket).await {
        Ok(_) => true,
        Err(error) => !matches!(
            error.kind(),
            ErrorKind::NotFound | ErrorKind::ConnectionRefused
        ),
    }
}

/// Says that the files are looked at, and which.
fn say_files(socket: &Path, config: &Config) {
    eprintln!(
        "writ: no control plane answers at `{}`; these are the files in `{}`, which it goes by when it runs",
        socket.display(),
        config.server.data_dir.join("keys").display()
    );
}

async fn list(place: &Place) -> ExitCode {
    let config = place.read();
    let socket = place.socket(&config);
    if !place.files {
        match admin_get(&socket, "/api/v1/keys").await {
            Ok((status, mut value)) if status.is_success() => {
                let keys = value.get_mut("keys").map(Value::take);
                place.print(&keys.unwrap_or_default(), show);
                return ExitCode::SUCCESS;
            }
            Ok((_, value)) => return refused(&value),
            Err(error) if is_running(&socket).await => return fail(&error),
            Err(_) => {}
        }
    }
    let config = match config {
        Ok(config) => config,
        Err(error) => return fail(&error),
    };
    if !place.files {
        say_files(&socket, &config);
    }
    // The token is opened only to change something.
    let files = keys::Place::files(&config.server.data_dir.join("keys"));
    let now_s = (crate::state::system_clock())() / 1000;
    match keys::list(&files, now_s) {
        Ok(all) => {
            let views = all.iter().map(|(key, standing)| key_view(key, *standing));
            place.print(&json!(views.collect::<Vec<_>>()), show);
            ExitCode::SUCCESS
        }
        Err(error) => fail(&error.to_string()),
    }
}

fn show(all: &Value) {
    for key in all.as_array().map(Vec::as_slice).unwrap_or_default() {
        println!("{:<8} {}", text(key, "/standing"), text(key, "/kid"));
    }
}

fn text(value: &Value, pointer: &str) -> String {
    let text = value.pointer(pointer).and_then(Value::as_str);
    plain(text.unwrap_or_default())
}

async fn change(place: &Place, issuer: &Issuer, change: KeyChange) -> ExitCode {
    let config = place.read();
    let socket = place.socket(&config);
    if !place.files {
        match asked(&issuer.url(&config), &socket, &change).await {
            Ok(Some((status, value))) => return told(place, &change, status, &value),
            Ok(None) => {}
            Err(code) => return code,
        }
    }
    let config = match config {
        Ok(config) => config,
        Err(error) => return fail(&error),
    };
    if !place.files {
        say_files(&socket, &config);
    }
    let files = match change {
        KeyChange::Rotate => keys::Place::of(&config),
        KeyChange::Revoke { .. } => Ok(keys::Place::at_any_rate(&config)),
    };
    let files = match files {
        Ok(files) => files,
        Err(error) => return fail(&error.to_string()),
    };
    let now_s = (crate::state::system_clock())() / 1000;
    match keys_in(&files, &change, now_s) {
        Ok(done) => told(place, &change, StatusCode::OK, &json!(done)),
        Err(error @ DeskError::Key(KeyRefusal::Unknown | KeyRefusal::Revoked, _)) => {
            refuse(&error.to_string())
        }
        Err(error) => fail(&error.to_string()),
    }
}

/// What the control plane answered; nothing where none runs.
async fn asked(
    issuer: &str,
    socket: &Path,
    change: &KeyChange,
) -> Result<Option<(StatusCode, Value)>, ExitCode> {
    let signed_in = session_file(issuer).map_err(|error| fail(&error))?.exists();
    if signed_in {
        let (path, body) = match change {
            KeyChange::Rotate => ("/api/v1/keys/rotate", json!({})),
            KeyChange::Revoke { kid, why } => {
                let body = json!({ "kid": kid, "why": why });
                ("/api/v1/keys/revoke", body)
            }
        };
        return match with_session(issuer, Method::POST, path, Some(body)).await {
            Ok(answered) => Ok(Some(answered)),
            // Files are not changed behind the back of one that is only hard to reach.
            Err(error) if is_running(socket).await => Err(fail(&error)),
            Err(_) => Ok(None),
        };
    }
    if is_running(socket).await {
        return Err(refuse(
            "the control plane runs, and does this for an administrator who is signed in: run `writ login` first, or, as the user that has its files, say --files",
        ));
    }
    Ok(None)
}

fn refused(value: &Value) -> ExitCode {
    let detail = value.get("detail").and_then(Value::as_str);
    refuse(&plain(detail.unwrap_or("the control plane refused it")))
}

/// Says what came of a change.
fn told(place: &Place, change: &KeyChange, status: StatusCode, value: &Value) -> ExitCode {
    if !status.is_success() {
        let code = refused(value);
        let is_refusal = status.is_client_error();
        return if is_refusal {
            code
        } else {
            ExitCode::from(super::FAILED)
        };
    }
    place.print(value, |done| {
        let kid = text(done, "/key/kid");
        match change {
            KeyChange::Rotate => println!("{kid} signs in {AHEAD_S} s"),
            KeyChange::Revoke { .. } => println!("{kid} is revoked"),
        }
        if done.pointer("/replaced_by/kid").is_some() {
            println!("{} signs now", text(done, "/replaced_by/kid"));
        }
    });
    match value.get("problem").and_then(Value::as_str) {
        Some(problem) => fail(&format!(
            "{} is revoked, and no key signs: {}; then make one with `writ keys rotate`",
            text(value, "/key/kid"),
            plain(problem)
        )),
        None => ExitCode::SUCCESS,
    }
}
