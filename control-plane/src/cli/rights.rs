//! `writ agents` and `writ revoke`: who may act, and taking that away. Looking goes
//! over the admin socket; changing takes a human's session.

use super::approvals::{Door, Issuer, Socket, ask, by_door};
use super::stops::{of_agents, target};
use super::{fail, plain, refuse};
use clap::{Args, Subcommand, ValueEnum};
use reqwest::Method;
use serde_json::{Map, Value, json};
use std::process::ExitCode;

/// The registry.
#[derive(Subcommand)]
pub enum Agents {
    /// List them, with those that asked without being registered
    List {
        #[command(flatten)]
        socket: Socket,
        /// Only those in this state
        #[arg(long)]
        state: Option<State>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show what is known of one agent
    Show {
        #[command(flatten)]
        socket: Socket,
        /// Its SPIFFE ID
        agent: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Register an agent, or change what is known of it
    #[command(
        after_help = "Example:\n  writ agents set spiffe://example.org/agent/a --owner platform --state active"
    )]
    Set(Set),
}

/// Where an agent stands.
#[derive(Clone, Copy, ValueEnum)]
pub enum State {
    /// Nobody has let it act
    Discovered,
    /// It may get tokens
    Active,
    /// It may not, until it is active again
    Suspended,
    /// It never may again
    Decommissioned,
}

impl State {
    fn word(self) -> &'static str {
        match self {
            Self::Discovered => "discovered",
            Self::Active => "active",
            Self::Suspended => "suspended",
            Self::Decommissioned => "decommissioned",
        }
    }
}

/// Changes one agent.
#[derive(Args)]
pub struct Set {
    #[command(flatten)]
    issuer: Issuer,
    /// Its SPIFFE ID
    agent: String,
    /// The person or team that answers for it, which the config has to know; a new agent needs one
    #[arg(long)]
    owner: Option<String>,
    /// What it is for
    #[arg(long)]
    purpose: Option<String>,
    /// Where it runs
    #[arg(long)]
    environment: Option<String>,
    /// Where it is to stand
    #[arg(long)]
    state: Option<State>,
    /// When its registration ends, in seconds since the Unix epoch; 0: never
    #[arg(long, value_name = "SECONDS")]
    expires: Option<u64>,
    /// Why, for the log
    #[arg(long, default_value = "")]
    why: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Agents {
    /// Lists or changes.
    pub async fn run(self) -> ExitCode {
        match self {
            Self::List {
                socket,
                state,
                json,
            } => list(&socket, state, json).await,
            Self::Show {
                socket,
                agent,
                json,
            } => show(&socket, &agent, json).await,
            Self::Set(set) => set.run().await,
        }
    }
}

async fn list(socket: &Socket, state: Option<State>, json: bool) -> ExitCode {
    let mut value = match ask(socket, "/api/v1/agents").await {
        Ok(value) => value,
        Err(code) => return code,
    };
    let text = |agent: &Value, name: &str| {
        let text = agent.get(name).and_then(Value::as_str);
        plain(text.unwrap_or("-"))
    };
    if let (Some(state), Some(all)) = (state, value.get_mut("agents").and_then(Value::as_array_mut))
    {
        all.retain(|agent| text(agent, "state") == state.word());
    }
    if json {
        println!("{value}");
        return ExitCode::SUCCESS;
    }
    let all = value.get("agents").and_then(Value::as_array);
    let all = all.map(Vec::as_slice).unwrap_or_default();
    if all.is_empty() {
        println!("No agent is registered, and none has asked.");
    }
    let stops = of_agents(socket).await;
    for agent in all {
        let stopped = stops.stops(agent);
        let stopped = stopped.map(|target| format!("  STOPPED: {target}"));
        println!(
            "{:<15}{}  owner {}{}  seen {}{}{}",
            text(agent, "state"),
            text(agent, "agent"),
            text(agent, "owner"),
            gone(agent),
            text(agent, "last_seen_at"),
            match text(agent, "why").as_str() {
                "" | "-" => String::new(),
                why => format!("  ({why})"),
            },
            stopped.unwrap_or_default()
        );
    }
    ExitCode::SUCCESS
}

/// What is said beside an owner that is none any more.
fn gone(agent: &Value) -> &'static str {
    match agent.get("owner_exists") {
        Some(Value::Bool(false)) => " (not in the config any more)",
        _ => "",
    }
}

/// What is said of an agent, with its words.
const SAID: [(&str, &str); 11] = [
    ("agent", "agent"),
    ("state", "state"),
    ("owner", "owner"),
    ("purpose", "purpose"),
    ("environment", "environment"),
    ("last seen", "last_seen_at"),
    ("created", "created_at"),
    ("expires", "expires_at"),
    ("changed", "changed_at"),
    ("changed by", "changed_by"),
    ("why", "why"),
];

async fn show(socket: &Socket, agent: &str, json: bool) -> ExitCode {
    let id: String = form_urlencoded::byte_serialize(agent.as_bytes()).collect();
    let value = match ask(socket, &format!("/api/v1/agents/{id}")).await {
        Ok(value) => value,
        Err(code) => return code,
    };
    if json {
        println!("{value}");
        return ExitCode::SUCCESS;
    }
    for (name, member) in SAID {
        let text = value.get(member).and_then(Value::as_str);
        let text = text.filter(|it| !it.is_empty()).unwrap_or("-");
        let gone = if name == "owner" { gone(&value) } else { "" };
        println!("{name:<13}{}{gone}", plain(text));
    }
    let stops = of_agents(socket).await;
    println!("{:<13}{}", "stopped", stops.said_of(&value));
    ExitCode::SUCCESS
}

impl Set {
    async fn run(self) -> ExitCode {
        let mut body = Map::new();
        body.insert("agent".into(), self.agent.into());
        body.insert("why".into(), self.why.into());
        let texts = [
            ("owner", self.owner),
            ("purpose", self.purpose),
            ("environment", self.environment),
            ("state", self.state.map(|state| state.word().to_owned())),
        ];
        for (name, text) in texts {
            body.extend(text.map(|text| (name.to_owned(), text.into())));
        }
        body.extend(self.expires.map(|at| ("expires".to_owned(), at.into())));
        let path = "/api/v1/agents";
        let now_s = (crate::state::system_clock())() / 1000;
        let over = self.expires.is_some_and(|at| (1..=now_s).contains(&at));
        let over = if over { ", expired already" } else { "" };
        let said = |agent: &Value| {
            let text = |name: &str| plain(agent.get(name).and_then(Value::as_str).unwrap_or("-"));
            format!(
                "{} is {}, owner {}{over}",
                text("agent"),
                text("state"),
                text("owner")
            )
        };
        let whom = (&self.issuer, &Door::default());
        change(whom, (Method::PUT, path), body.into(), self.json, said).await
    }
}

/// Takes rights away, or lets them be given again.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  writ revoke --agent spiffe://example.org/agent/a --why 'it runs wild'\n  writ revoke --everything\n  writ revoke --lift --agent spiffe://example.org/agent/a\n\nWhat was given before a stop stays void when it is lifted. Lifting the stop of everything takes two people of `server.admins`: see that there are two.\n\n`writ stops` lists what is stopped."
)]
pub struct Revoke {
    #[command(flatten)]
    issuer: Issuer,
    #[command(flatten)]
    door: Door,
    #[command(flatten)]
    what: What,
    /// With --user: its subject at that issuer
    #[arg(long, requires = "user", allow_hyphen_values = true)]
    subject: Option<String>,
    /// Let it be given again, instead
    #[arg(long, conflicts_with = "admin_socket")]
    lift: bool,
    /// Why, for the log
    #[arg(long, default_value = "", conflicts_with = "lift")]
    why: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Whose rights.
#[derive(Args)]
#[group(required = true, multiple = true)]
struct What {
    /// Everybody's: nothing is issued, allowed or approved any more
    #[arg(long)]
    everything: bool,
    /// An agent's, by its SPIFFE ID; with --user, what it does for that user
    #[arg(long, value_name = "SPIFFE_ID")]
    agent: Option<String>,
    /// Those of all agents of an owner
    #[arg(long)]
    owner: Option<String>,
    /// A user's, by the issuer that knows it; --subject names it
    #[arg(long, value_name = "ISSUER", requires = "subject")]
    user: Option<String>,
    /// What is bound to a DPoP key, by its thumbprint
    // One of 64 begins with a hyphen.
    #[arg(long, value_name = "THUMBPRINT", allow_hyphen_values = true)]
    key: Option<String>,
    /// One token, by SHA-256 of its bytes in hex
    #[arg(long, value_name = "SHA256")]
    token: Option<String>,
}

impl Revoke {
    /// Stops or lifts.
    pub async fn run(self) -> ExitCode {
        let mut whose = Map::new();
        if self.what.everything {
            whose.insert("everything".into(), true.into());
        }
        let texts = [
            ("agent", self.what.agent),
            ("owner", self.what.owner),
            ("key", self.what.key),
            ("token", self.what.token),
        ];
        for (name, text) in texts {
            whose.extend(text.map(|text| (name.to_owned(), text.into())));
        }
        if let (Some(issuer), Some(subject)) = (self.what.user, self.subject) {
            let user = json!({ "issuer": issuer, "subject": subject });
            whose.insert("user".into(), user);
        }
        let (path, body) = if self.lift {
            ("/api/v1/stops/lift", json!({ "target": whose }))
        } else {
            ("/api/v1/stops", json!({ "target": whose, "why": self.why }))
        };
        let said = |stop: &Value| {
            let kind = target(stop);
            match (stop.get("stands"), stop.get("lift_asked")) {
                (Some(Value::Bool(false)), _) => format!("{kind}: rights may be given again"),
                (_, Some(Value::Object(_))) => format!(
                    "{kind}: still stopped; a second person has to lift it within 15 minutes"
                ),
                _ => format!("{kind}: stopped"),
            }
        };
        let whom = (&self.issuer, &self.door);
        change(whom, (Method::POST, path), body, self.json, said).await
    }
}

async fn change(
    whom: (&Issuer, &Door),
    (method, path): (Method, &str),
    body: Value,
    json: bool,
    said: impl Fn(&Value) -> String,
) -> ExitCode {
    match by_door(whom, method, path, Some(body)).await {
        Ok((status, value)) if status.is_success() => {
            if json {
                println!("{value}");
            } else {
                println!("{}", said(&value));
            }
            ExitCode::SUCCESS
        }
        Ok((_, value)) => {
            let detail = value.get("detail").and_then(Value::as_str);
            refuse(&plain(detail.unwrap_or("the control plane refused it")))
        }
        Err(error) => fail(&error),
    }
}
