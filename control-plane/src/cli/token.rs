//! `writ token`.

use super::call::{Where, element, failed};
use super::fail;
use crate::client::{Agent, Asked, Behind, ClientError, Granted};
use clap::Args;
use serde_json::Value;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Get a token for one action.
#[derive(Args)]
pub struct Token {
    /// The method
    #[arg(
        short = 'X',
        long = "request",
        value_name = "METHOD",
        default_value = "GET"
    )]
    method: String,
    /// The one authorization_details element that the token is for, such as an mcp_request; `@FILE` reads a file
    #[arg(long, value_name = "JSON", conflicts_with_all = ["method", "url"])]
    details: Option<String>,
    /// Print the whole reply and a proof as one JSON object
    #[arg(long)]
    json: bool,
    /// Act for a user: the file that has the user's token; `-` is standard input
    #[arg(long, value_name = "FILE", conflicts_with = "delegation")]
    user_token: Option<PathBuf>,
    /// What kind of token the user's is
    #[arg(long, value_name = "KIND", default_value = "access_token", value_parser = ["access_token", "id_token", "jwt"])]
    user_token_type: String,
    /// Act for another agent: the file that has the delegation that it gave; `-` is standard input
    #[arg(long, value_name = "FILE")]
    delegation: Option<PathBuf>,
    /// Get a broker session in place of a token for an action
    #[arg(long, conflicts_with_all = ["url", "method", "details"])]
    session: bool,
    #[command(flatten)]
    delegating: Delegating,
    #[command(flatten)]
    places: Where,
    /// The URL that the token is for
    #[arg(required_unless_present_any = ["details", "session"])]
    url: Option<String>,
}

/// What another agent may do for this one.
#[derive(Args)]
struct Delegating {
    /// Get a delegation for this agent in place of a token for an action: it may do that for this one. The URL may end in /*, for all that is under it
    #[arg(long, value_name = "SPIFFE_ID", conflicts_with_all = ["details", "session"])]
    delegate: Option<String>,
    /// How many tokens the delegation may bring
    #[arg(
        long,
        value_name = "NUMBER",
        default_value_t = 1,
        requires = "delegate"
    )]
    uses: u64,
    /// How long the delegation lasts, in seconds
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 300,
        requires = "delegate"
    )]
    lifetime: u64,
    /// How often the delegation may be passed on
    #[arg(
        long,
        value_name = "NUMBER",
        default_value_t = 0,
        requires = "delegate"
    )]
    depth: u64,
}

impl Delegating {
    /// The element of a delegation, where one is asked for.
    fn element(&self, method: &str, url: &str) -> Option<Value> {
        let delegate = self.delegate.as_ref()?;
        Some(
            serde_json::json!({ "type": "delegation", "delegate": delegate,
            "actions": [method], "locations": [url], "depth": self.depth, "uses": self.uses,
            "lifetime_s": self.lifetime }),
        )
    }
}

impl Token {
    async fn granted(&self, agent: &Agent) -> Result<Granted, ClientError> {
        let given = self.url.as_ref();
        let given = given.and_then(|url| self.delegating.element(&self.method, url));
        let of_issuer = match given {
            Some(element) => Some(Asked::Delegation(element)),
            None => self.session.then_some(Asked::Session),
        };
        if let Some(asked) = of_issuer {
            let endpoint = format!("{}/oauth2/token", agent.issuer);
            return agent.exchange(&endpoint, &asked).await;
        }
        match (&self.details, &self.url) {
            (Some(details), _) => agent.token_of(element(details)?).await,
            (None, Some(url)) => agent.token(&self.method, url).await,
            (None, None) => Err(ClientError::Usage("a URL is wanted".into())),
        }
    }

    /// Prints the token, or as JSON the reply and a proof for the request.
    pub async fn run(self) -> ExitCode {
        let mut agent = match self.places.agent(Duration::from_secs(30)) {
            Ok(agent) => agent,
            Err(error) => return fail(&error.to_string()),
        };
        agent.behind = match self.behind() {
            Ok(behind) => behind,
            Err(problem) => return fail(&problem),
        };
        let granted = match self.granted(&agent).await {
            Ok(granted) => granted,
            Err(error) => return failed(&error, self.json),
        };
        // The element as the issuer has it.
        let said = granted.reply.pointer("/authorization_details/0");
        let said = said.unwrap_or(&Value::Null);
        let method = match said.get("type").and_then(Value::as_str) {
            Some("http_request") => said.pointer("/actions/0").and_then(Value::as_str),
            _ => Some("POST"),
        };
        let method = method.unwrap_or(&self.method).to_owned();
        let url = match &self.url {
            Some(url) => url.clone(),
            None => crate::client::location(said).unwrap_or_default().to_owned(),
        };
        if self.json {
            let shown = self.session || self.delegating.delegate.is_some();
            // There is no request to show these to.
            let proof = (!shown).then(|| {
                let now_s = (agent.clock)() / 1000;
                let token = Some(granted.access_token.as_str());
                agent.key.proof(&method, &url, token, now_s)
            });
            let mut reply = granted.reply;
            if let (Some(members), Some(proof)) = (reply.as_object_mut(), proof) {
                members.insert("proof".into(), proof.into());
            }
            println!("{reply}");
        } else {
            println!("{}", granted.access_token);
        }
        ExitCode::SUCCESS
    }
}

impl Token {
    /// Whom it is asked for, if not for the agent itself.
    fn behind(&self) -> Result<Option<Behind>, String> {
        Ok(match (&self.user_token, &self.delegation) {
            (Some(file), _) => Some(Behind::User {
                token: secret(file)?,
                kind: self.user_token_type.clone(),
            }),
            (None, Some(file)) => Some(Behind::Delegator(secret(file)?)),
            (None, None) => None,
        })
    }
}

/// One line of a file, or of standard input: on the command line all could read it.
fn secret(file: &std::path::Path) -> Result<String, String> {
    let read = match file.to_str() {
        Some("-") => std::io::read_to_string(std::io::stdin()),
        _ => std::fs::read_to_string(file),
    };
    let text = read.map_err(|error| format!("can't read `{}`: {error}", file.display()))?;
    let text = text.trim();
    if text.is_empty() || text.contains(char::is_whitespace) {
        return Err(format!(
            "`{}` has to hold one token, and nothing else",
            file.display()
        ));
    }
    Ok(text.to_owned())
}
