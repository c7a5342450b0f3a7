//! `writ call`, and what `writ token` shares with it.

use super::{REFUSED, fail, plain, refuse};
use crate::client::{Agent, Answer, ClientError, Proves};
use clap::Args;
use serde_json::Value;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Where an agent's identity and tokens come from.
#[derive(Args)]
pub(super) struct Issued {
    /// The issuer's URL
    #[arg(
        long,
        value_name = "URL",
        env = "WRIT_ISSUER",
        default_value = "http://127.0.0.1:8480"
    )]
    pub(super) issuer: String,
    /// The Workload API's socket
    #[arg(
        long,
        value_name = "SOCKET",
        env = "WRIT_WORKLOAD_API",
        default_value = "/run/writ/workload.sock"
    )]
    workload_api: PathBuf,
    /// A file that has this workload's token of an issuer in the config, in place of the Workload API; read for each exchange
    #[arg(long, value_name = "FILE", env = "WRIT_IDENTITY_TOKEN")]
    identity_token: Option<PathBuf>,
}

impl Issued {
    /// What shows the issuer which agent this is.
    pub(super) fn proves(&self) -> Proves {
        match &self.identity_token {
            Some(file) => Proves::TokenFile(file.clone()),
            None => Proves::WorkloadApi(socket(&self.workload_api)),
        }
    }
}

/// Where an agent finds things.
#[derive(Args)]
pub(super) struct Where {
    #[command(flatten)]
    from: Issued,
    /// The DPoP key's file, made when it is not there [default: writ/dpop-es256.pem in the state directory]
    #[arg(long, value_name = "FILE", env = "WRIT_KEY_FILE")]
    key: Option<PathBuf>,
}

impl Where {
    pub(super) fn agent(&self, timeout: Duration) -> Result<Agent, ClientError> {
        let key = match &self.key {
            Some(key) => key.clone(),
            None => super::local::state_dir()
                .map_err(ClientError::Usage)?
                .join("dpop-es256.pem"),
        };
        Agent::new(&self.from.issuer, self.from.proves(), &key, timeout)
    }
}

/// The spelling `unix:` is what SPIFFE_ENDPOINT_SOCKET has.
fn socket(path: &std::path::Path) -> PathBuf {
    let text = path.to_string_lossy();
    let text = text
        .strip_prefix("unix://")
        .or_else(|| text.strip_prefix("unix:"));
    text.map_or_else(|| path.to_owned(), PathBuf::from)
}

/// Make one call as an agent.
#[derive(Args)]
pub struct Call {
    /// The method
    #[arg(short = 'X', long = "request", value_name = "METHOD")]
    method: Option<String>,
    /// The body; `@FILE` reads a file, `@-` standard input. Where bodies are read, the token allows this one alone
    #[arg(short, long, value_name = "BODY")]
    data: Option<String>,
    /// The one authorization_details element that the token is for, instead of method, URL and body; `@FILE` reads a file
    #[arg(long, value_name = "JSON")]
    details: Option<String>,
    /// The body's content type
    #[arg(long, value_name = "TYPE", default_value = "application/json")]
    content_type: String,
    /// How long to wait for a human when the request is held, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 900)]
    wait: u64,
    /// Don't wait for a human
    #[arg(long)]
    no_wait: bool,
    /// Print status, reason and body as one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    places: Where,
    /// What to call
    url: String,
}

/// An element as the command line has it.
pub(super) fn element(text: &str) -> Result<Value, ClientError> {
    let bad = |what: String| ClientError::Usage(format!("--details: {what}"));
    let text = match text.strip_prefix('@') {
        Some(path) => std::fs::read_to_string(path)
            .map_err(|error| bad(format!("{path} can't be read: {error}")))?,
        None => text.to_owned(),
    };
    let element: Value =
        serde_json::from_str(&text).map_err(|error| bad(format!("it is no JSON: {error}")))?;
    match crate::client::location(&element) {
        Some(_) => Ok(element),
        None => Err(bad(
            "one element with `type`, `actions` and `locations` is wanted, as an object".into(),
        )),
    }
}

impl Call {
    /// Makes the call and prints the answer or a clear reason.
    pub async fn run(self) -> ExitCode {
        match self.call().await {
            Ok(answer) => self.show(&answer),
            Err(error) => failed(&error, self.json),
        }
    }

    async fn call(&self) -> Result<Answer, ClientError> {
        let body = self.body()?;
        let method = self.method.clone().unwrap_or_else(|| {
            if body.is_some() {
                "POST".into()
            } else {
                "GET".into()
            }
        });
        // A held request is answered after the proxy's own wait, 55 s at most.
        let agent = self.places.agent(Duration::from_secs(90))?;
        let deadline = tokio::time::Instant::now() + Duration::from_secs(self.wait);
        let mut approved = String::new();
        loop {
            let granted = match &self.details {
                Some(details) => agent.token_of(element(details)?).await?,
                None => agent.token_for(&method, &self.url, body.as_deref()).await?,
            };
            let hint = hold_hint();
            let answer = agent
                .spend(
                    &granted.access_token,
                    &method,
                    &self.url,
                    body.as_deref(),
                    &self.content_type,
                )
                .await;
            hint.abort();
            let answer = answer?;
            if answer.reason() != Some("approval_pending") || self.no_wait {
                return Ok(answer);
            }
            let problem = answer.refusal.as_ref();
            let member = |name: &str| {
                problem
                    .and_then(|problem| problem.get(name))
                    .and_then(Value::as_str)
                    .unwrap_or_default()
            };
            let id = member("approval_id").to_owned();
            // One yes is for one request.
            if approved == id {
                return Ok(answer);
            }
            eprintln!(
                "writ: held: a human has to say yes (approval {}); waiting",
                plain(&id)
            );
            let left = deadline.saturating_duration_since(tokio::time::Instant::now());
            match agent.approval(member("status_url"), left).await?.as_deref() {
                // The same exchange and request again; the approval is found by what it covers.
                Some("approved") if tokio::time::Instant::now() < deadline => {
                    eprintln!("writ: approved");
                    approved = id;
                }
                _ => return Ok(answer),
            }
        }
    }

    fn body(&self) -> Result<Option<Vec<u8>>, ClientError> {
        let read =
            |error: std::io::Error| ClientError::Usage(format!("can't read the body: {error}"));
        match self.data.as_deref() {
            None => Ok(None),
            Some("@-") => {
                let mut body = Vec::new();
                std::io::Read::read_to_end(&mut std::io::stdin(), &mut body).map_err(read)?;
                Ok(Some(body))
            }
            Some(data) => match data.strip_prefix('@') {
                Some(file) => Ok(Some(std::fs::read(file).map_err(|error| {
                    ClientError::Usage(format!("can't read the body from `{file}`: {error}"))
                })?)),
                None => Ok(Some(data.as_bytes().to_vec())),
            },
        }
    }

    fn show(&self, answer: &Answer) -> ExitCode {
        let ok = (200..400).contains(&answer.status);
        if self.json {
            let shown = serde_json::json!({
                "status": answer.status,
                "reason": answer.reason(),
                "refusal": answer.refusal,
                "content_type": answer.content_type,
                "body": String::from_utf8_lossy(&answer.body),
            });
            println!("{shown}");
            return ExitCode::from(if ok { 0 } else { REFUSED });
        }
        if let Some(problem) = &answer.refusal {
            return refuse(&refusal(answer.status, problem));
        }
        let mut out = std::io::stdout().lock();
        if let Err(error) = out.write_all(&answer.body).and_then(|()| out.flush()) {
            super::print::gone(&error);
        }
        if ok {
            return ExitCode::SUCCESS;
        }
        if std::io::stdout().is_terminal() && !answer.body.ends_with(b"\n") {
            println!();
        }
        refuse(&format!("the upstream answered {}", answer.status))
    }
}

/// Says that the request seems to be held, once it has taken a while.
fn hold_hint() -> tokio::task::JoinHandle<()> {
    tokio::spawn(async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        eprintln!("writ: no answer yet: the request may be held for a human; waiting");
    })
}

/// A refusal in words, with what to do.
fn refusal(status: u16, problem: &Value) -> String {
    let member = |name: &str| problem.get(name).and_then(Value::as_str).map(plain);
    let reason = member("reason").unwrap_or_default();
    let mut text = format!("refused ({status}): {reason}");
    if let Some(title) = member("title") {
        text.push_str(&format!(": {title}"));
    }
    if let Some(first) = problem.get("first_use") {
        let status = first
            .get("upstream_status")
            .and_then(Value::as_u64)
            .unwrap_or(0);
        let result = first
            .get("result")
            .and_then(Value::as_str)
            .map(plain)
            .unwrap_or_default();
        let said = if status > 0 {
            format!("; the upstream answered {status}")
        } else {
            String::new()
        };
        text.push_str(&format!(
            "\n  its first use: {result}{said}. The action was not done again."
        ));
    }
    if let Some(id) = member("approval_id") {
        text.push_str(&format!("\n  approval: {id}"));
    }
    if let Some(id) = member("request_id") {
        text.push_str(&format!("\n  request: {id}"));
    }
    text
}

pub(super) fn failed(error: &ClientError, json: bool) -> ExitCode {
    if json
        && let ClientError::Exchange {
            error,
            reason,
            description,
            request_id,
            why,
        } = error
    {
        let mut said = serde_json::json!({ "status": null, "error": error, "reason": reason,
            "detail": description, "request_id": request_id });
        // As in the answer: left out where there is none.
        if let Some(said) = said.as_object_mut().filter(|_| !why.is_empty()) {
            said.insert("why".into(), why.as_slice().into());
        }
        println!("{said}");
    }
    match error {
        ClientError::Exchange {
            request_id, why, ..
        } => {
            let mut text = plain(&error.to_string());
            for why in why {
                text.push_str(&format!("\n  why: {}", plain(why)));
            }
            if !request_id.is_empty() {
                text.push_str(&format!("\n  request: {}", plain(request_id)));
            }
            refuse(&text)
        }
        _ => fail(&plain(&error.to_string())),
    }
}
