//! `writ login-link`: a one-time link, for somebody by name, made by who runs the machine;
//! or for oneself, made by one's session.

use super::approvals::{Issuer, Socket, with_session};
use super::local::admin_send;
use super::{fail, plain, refuse};
use clap::Args;
use hyper::{Method, StatusCode};
use serde_json::{Value, json};
use std::process::ExitCode;

/// For whom.
#[derive(Args)]
pub struct LoginLink {
    /// The person, as `server.admins` or an `[[approver]]` names them; without it, yourself, by the session of `writ login`
    #[arg(long = "as", value_name = "PERSON")]
    who: Option<String>,
    #[command(flatten)]
    socket: Socket,
    #[command(flatten)]
    issuer: Issuer,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl LoginLink {
    /// Makes and prints it.
    pub async fn run(self) -> ExitCode {
        let path = "/api/v1/login-links";
        let asked = match &self.who {
            Some(who) => {
                let body = json!({ "as": who });
                admin_send(&self.socket.admin_socket, Method::POST, path, Some(body)).await
            }
            None => {
                let body = json!({});
                with_session(&self.issuer.issuer, Method::POST, path, Some(body)).await
            }
        };
        let (status, value) = match asked {
            Ok(answered) => answered,
            Err(error) => return fail(&error),
        };
        let text = |name: &str| value.get(name).and_then(Value::as_str).map(plain);
        match (status, text("url")) {
            (StatusCode::CREATED, Some(_)) if self.json => println!("{value}"),
            (StatusCode::CREATED, Some(url)) => {
                eprintln!(
                    "writ: for {}, once, until {}; hand it to nobody else",
                    plain(self.who.as_deref().unwrap_or("yourself")),
                    text("expires_at").unwrap_or_default()
                );
                println!("{url}");
            }
            _ => {
                let detail = text("detail");
                return refuse(&detail.unwrap_or_else(|| "the control plane refused it".into()));
            }
        }
        ExitCode::SUCCESS
    }
}
