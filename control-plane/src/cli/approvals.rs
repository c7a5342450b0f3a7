//! `writ login`, `writ approvals` and `writ status`: reading comes in over the
//! admin socket as this uid; deciding takes a human's session.

use super::local::{admin_as, admin_send, admin_told, session_file, write_secret};
use super::{approval, fail, plain, refuse};
use crate::client::may_carry_secrets;
use clap::{Args, Subcommand};
use reqwest::StatusCode;
use serde_json::{Value, json};
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Where the control plane on this machine is asked.
#[derive(Args)]
pub struct Socket {
    /// The admin socket
    #[arg(
        long,
        value_name = "SOCKET",
        env = "WRIT_ADMIN_SOCKET",
        default_value = "/run/writ/admin.sock"
    )]
    pub(super) admin_socket: PathBuf,
}

/// Whose session it is.
#[derive(Args)]
pub struct Issuer {
    /// The issuer's URL
    #[arg(
        long,
        value_name = "URL",
        env = "WRIT_ISSUER",
        default_value = "http://127.0.0.1:8480"
    )]
    pub(super) issuer: String,
}

/// By which door.
#[derive(Args, Default)]
pub struct Door {
    /// Go by the admin socket on this machine, which serves whatever keeps the issuer's address busy
    #[arg(long, value_name = "SOCKET")]
    pub(super) admin_socket: Option<PathBuf>,
}

/// Approvals.
#[derive(Subcommand)]
pub enum Approvals {
    /// List them, what is pending first
    List {
        #[command(flatten)]
        socket: Socket,
        /// Only those that stand there: pending, approved, denied, expired, consumed, cancelled
        #[arg(long, value_name = "STATE", value_parser = ["pending", "approved", "denied", "expired", "consumed", "cancelled"])]
        state: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Say yes to exactly what one shows
    Approve(Decide),
    /// Say no
    Deny(Decide),
}

/// Decide one approval.
#[derive(Args)]
pub struct Decide {
    #[command(flatten)]
    issuer: Issuer,
    /// The digest that was looked at; without it, what is shown now is decided
    #[arg(long, value_name = "HEX")]
    digest: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// The approval's id
    id: String,
}

/// Sign in. The link is read from standard input, since every process of this
/// machine can read a command line.
#[derive(Args)]
pub struct Login {
    #[command(flatten)]
    issuer: Issuer,
    #[command(flatten)]
    door: Door,
    /// End the session instead
    #[arg(long, conflicts_with = "admin_socket")]
    logout: bool,
}

/// What runs.
#[derive(Args)]
pub struct Status {
    #[command(flatten)]
    socket: Socket,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Approvals {
    /// Lists or decides.
    pub async fn run(self) -> ExitCode {
        match self {
            Self::List {
                socket,
                state,
                json,
            } => list(&socket, state.as_deref(), json).await,
            Self::Approve(decide) => decide.run("approve").await,
            Self::Deny(decide) => decide.run("deny").await,
        }
    }
}

async fn list(socket: &Socket, state: Option<&str>, json: bool) -> ExitCode {
    let mut value = match ask(socket, "/api/v1/approvals").await {
        Ok(value) => value,
        Err(code) => return code,
    };
    let all = value.get_mut("approvals").and_then(Value::as_array_mut);
    if let (Some(all), Some(state)) = (all, state) {
        all.retain(|it| it.get("status").and_then(Value::as_str) == Some(state));
    }
    if json {
        println!("{value}");
        return ExitCode::SUCCESS;
    }
    let none = Vec::new();
    let approvals = value
        .get("approvals")
        .and_then(Value::as_array)
        .unwrap_or(&none);
    if approvals.is_empty() {
        match state {
            Some(state) => println!("Nothing is {state}."),
            None => println!("Nothing has been held yet."),
        }
    }
    for approval in approvals {
        println!("{}", approval::lines(approval));
    }
    ExitCode::SUCCESS
}

pub(super) async fn ask(socket: &Socket, path: &str) -> Result<Value, ExitCode> {
    let told = admin_told(&socket.admin_socket, path).await;
    told.map_err(|untold| untold.end())
}

fn http() -> Result<reqwest::Client, String> {
    reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .timeout(Duration::from_secs(30))
        .build()
        .map_err(|error| format!("the HTTP client can't be set up: {error}"))
}

/// This user's session with an issuer.
fn session_with(issuer: &str) -> Result<String, String> {
    let session = std::fs::read_to_string(session_file(issuer)?)
        .map_err(|_| "no session: run `writ login` with a one-time link first".to_owned())?;
    Ok(session.trim().to_owned())
}

/// The same path at the admin socket, where that is the door.
pub(super) async fn by_door(
    (issuer, door): (&Issuer, &Door),
    method: reqwest::Method,
    path: &str,
    body: Option<Value>,
) -> Result<(StatusCode, Value), String> {
    let issuer = issuer.issuer.trim_end_matches('/');
    let Some(socket) = &door.admin_socket else {
        return with_session(issuer, method, path, body).await;
    };
    let session = session_with(issuer)?;
    admin_as(socket, (method, path), body, Some(&session)).await
}

/// A path of the issuer's, spoken to with this user's session.
pub(super) async fn with_session(
    issuer: &str,
    method: reqwest::Method,
    path: &str,
    body: Option<Value>,
) -> Result<(StatusCode, Value), String> {
    let issuer = issuer.trim_end_matches('/');
    let session = session_with(issuer)?;
    let mut request = http()?
        .request(method, format!("{issuer}{path}"))
        .header("authorization", format!("Session {session}"));
    if let Some(body) = body {
        request = request.json(&body);
    }
    let response = request
        .send()
        .await
        .map_err(|error| format!("{issuer} can't be reached: {error}"))?;
    let status = response.status();
    Ok((status, response.json().await.unwrap_or(Value::Null)))
}

impl Decide {
    async fn run(&self, verdict: &str) -> ExitCode {
        match self.decide(verdict).await {
            Ok((status, value)) if status.is_success() => {
                if self.json {
                    println!("{value}");
                } else {
                    println!("{}", approval::lines(&value));
                }
                ExitCode::SUCCESS
            }
            Ok((_, problem)) => {
                let detail = problem
                    .get("detail")
                    .and_then(Value::as_str)
                    .unwrap_or("refused");
                refuse(&plain(detail))
            }
            Err(error) => fail(&error),
        }
    }

    async fn decide(&self, verdict: &str) -> Result<(StatusCode, Value), String> {
        if !self
            .id
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
        {
            return Err(format!("`{}` is not an approval's id", plain(&self.id)));
        }
        let path = format!("/api/v1/approvals/{}", self.id);
        let digest = match &self.digest {
            Some(digest) => digest.clone(),
            None => {
                let (status, shown) =
                    with_session(&self.issuer.issuer, reqwest::Method::GET, &path, None).await?;
                if !status.is_success() {
                    return Ok((status, shown));
                }
                eprintln!("deciding exactly this:");
                eprintln!("{}", approval::lines(&shown));
                show_body(&shown);
                let digest = shown.get("digest").and_then(Value::as_str);
                digest.map(plain).unwrap_or_default()
            }
        };
        let body = json!({ "digest": digest });
        with_session(
            &self.issuer.issuer,
            reqwest::Method::POST,
            &format!("{path}/{verdict}"),
            Some(body),
        )
        .await
    }
}

/// The body that goes with it, all of it, as data.
fn show_body(approval: &Value) {
    let Some(body) = approval.get("body").filter(|body| body.is_object()) else {
        return;
    };
    let text = |name: &str| body.get(name).and_then(Value::as_str).unwrap_or_default();
    let bytes = body.get("bytes").and_then(Value::as_u64).unwrap_or(0);
    let (kind, encoding) = (plain(text("content_type")), plain(text("content_encoding")));
    eprintln!("    with this body: {bytes} bytes, {kind} {encoding}");
    match body.pointer("/content/text").and_then(Value::as_str) {
        Some(content) => content
            .split('\n')
            .for_each(|line| eprintln!("    | {}", plain(line))),
        None => match body.pointer("/content/base64").and_then(Value::as_str) {
            Some(content) => eprintln!("    | in base64: {}", plain(content)),
            None if bytes > 0 => eprintln!("    | it can't be shown any more"),
            None => {}
        },
    }
}

impl Login {
    /// Opens a session, or ends it.
    pub async fn run(self) -> ExitCode {
        let issuer = self.issuer.issuer.trim_end_matches('/').to_owned();
        let done = if self.logout {
            logout(&issuer).await
        } else {
            self.login(&issuer).await
        };
        match done {
            Ok(message) => {
                eprintln!("writ: {message}");
                ExitCode::SUCCESS
            }
            Err(error) => fail(&error),
        }
    }

    async fn login(&self, issuer: &str) -> Result<String, String> {
        if self.door.admin_socket.is_none() && !may_carry_secrets(issuer) {
            return Err(format!(
                "{issuer} is not https: the session would cross the network in the clear"
            ));
        }
        if std::io::stdin().is_terminal() {
            eprintln!("Paste the one-time link or its secret:");
        }
        let mut given = String::new();
        std::io::stdin()
            .read_line(&mut given)
            .map_err(|error| format!("can't read it: {error}"))?;
        let secret = given.trim().rsplit('#').next().unwrap_or_default();
        if secret.is_empty() {
            return Err("no secret was given".into());
        }
        let (path, body) = ("/api/v1/session", json!({ "secret": secret }));
        let (status, value) = match &self.door.admin_socket {
            Some(socket) => admin_send(socket, reqwest::Method::POST, path, Some(body)).await?,
            None => {
                let response = http()?.post(format!("{issuer}{path}")).json(&body).send();
                let response = response
                    .await
                    .map_err(|error| format!("{issuer} can't be reached: {error}"))?;
                let status = response.status();
                (status, response.json().await.unwrap_or(Value::Null))
            }
        };
        let ok = status.is_success();
        let text = |name: &str| value.get(name).and_then(Value::as_str).map(plain);
        match (ok, value.get("session").and_then(Value::as_str)) {
            (true, Some(session)) => {
                write_secret(&session_file(issuer)?, session)?;
                Ok(format!(
                    "signed in as {} until {}",
                    text("who").unwrap_or_default(),
                    text("expires_at").unwrap_or_default()
                ))
            }
            _ => Err(text("detail").unwrap_or_else(|| "the login was refused".into())),
        }
    }
}

async fn logout(issuer: &str) -> Result<String, String> {
    if !session_file(issuer)?.exists() {
        return Ok(format!("not signed in to {issuer}"));
    }
    let ended = with_session(issuer, reqwest::Method::DELETE, "/api/v1/session", None).await;
    let file = session_file(issuer)?;
    std::fs::remove_file(&file)
        .map_err(|error| format!("can't remove `{}`: {error}", file.display()))?;
    match ended {
        Ok((status, _)) if status.is_success() => Ok("signed out".into()),
        _ => Err("the session's file is removed, but the control plane did not confirm its end; it ends by itself within 12 hours".into()),
    }
}

impl Status {
    /// Prints what runs.
    pub async fn run(self) -> ExitCode {
        let value = match ask(&self.socket, "/api/v1/status").await {
            Ok(value) => value,
            Err(code) => return code,
        };
        if self.json {
            println!("{value}");
            return ExitCode::SUCCESS;
        }
        let text = |pointer: &str| {
            value.pointer(pointer).map(|found| match found {
                Value::String(text) => plain(text),
                other => other.to_string(),
            })
        };
        if let Some(entries) = text("/suspended/entries") {
            println!(
                "RESTORED  {entries} entries: agents are suspended until `writ ledger confirm`"
            );
        }
        if value.get("journal_full").and_then(Value::as_bool) == Some(true) {
            println!(
                "FULL      no space is left for the journal: only what takes rights away is taken; free some"
            );
        }
        let none = Vec::new();
        let warnings = value.get("warnings").and_then(Value::as_array);
        for warning in warnings.unwrap_or(&none).iter().filter_map(Value::as_str) {
            println!("WARNING   {}", plain(warning));
        }
        println!("version   {}", text("/version").unwrap_or_default());
        println!("filter    {}", text("/module_sha256").unwrap_or_default());
        println!(
            "pending   {}",
            text("/approvals/pending").unwrap_or_default()
        );
        let proxies = value
            .get("proxies")
            .and_then(Value::as_array)
            .unwrap_or(&none);
        if proxies.is_empty() {
            println!("proxies   none has connected");
        }
        for proxy in proxies {
            let text = |name: &str| {
                proxy
                    .get(name)
                    .and_then(Value::as_str)
                    .map(plain)
                    .unwrap_or_default()
            };
            let connected = if proxy.get("connected").and_then(Value::as_bool) == Some(true) {
                "connected"
            } else {
                "gone"
            };
            println!(
                "proxy     {} ({}) {connected}: {}",
                text("id"),
                text("node"),
                text("detail")
            );
            if !text("problem").is_empty() {
                println!("          REFUSED its config: {}", text("problem"));
            }
        }
        ExitCode::SUCCESS
    }
}
