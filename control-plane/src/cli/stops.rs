//! `writ stops`: what is stopped.

use super::approvals::{Socket, ask};
use super::plain;
use clap::Args;
use serde_json::Value;
use std::process::ExitCode;

/// Which of them.
#[derive(Args)]
pub struct Stops {
    #[command(flatten)]
    socket: Socket,
    /// Those that were lifted as well, for as long as they void what was given before
    #[arg(long)]
    all: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Stops {
    /// Lists them.
    pub async fn run(self) -> ExitCode {
        let value = match standing(&self.socket, self.all).await {
            Ok(value) => value,
            Err(code) => return code,
        };
        if self.json {
            println!("{}", serde_json::json!({ "stops": value }));
            return ExitCode::SUCCESS;
        }
        if value.is_empty() {
            println!("Nothing is stopped.");
        }
        for stop in &value {
            println!("{}", line(stop));
        }
        ExitCode::SUCCESS
    }
}

/// The stops that stand, and with `all` those that were lifted.
pub(super) async fn standing(socket: &Socket, all: bool) -> Result<Vec<Value>, ExitCode> {
    let mut value = ask(socket, "/api/v1/stops").await?;
    let stops = value.get_mut("stops").and_then(Value::as_array_mut);
    let mut stops = stops.map(std::mem::take).unwrap_or_default();
    stops.retain(|stop| all || stop.get("stands") != Some(&Value::Bool(false)));
    Ok(stops)
}

/// What is stopped, by whom and why.
fn line(stop: &Value) -> String {
    let text = |name: &str| stop.get(name).and_then(Value::as_str).unwrap_or_default();
    let mut said = format!(
        "{}  since {} by {}",
        target(stop),
        plain(text("at")),
        plain(text("by"))
    );
    if !text("why").is_empty() {
        said.push_str(&format!("  ({})", plain(text("why"))));
    }
    let by = |name: &str| stop.get(name)?.get("by")?.as_str().map(plain);
    if let Some(by) = by("lifted") {
        said.push_str(&format!("  lifted by {by}"));
    } else if let Some(by) = by("lift_asked") {
        said.push_str(&format!("  {by} asked to lift it"));
    }
    said
}

/// A stop's target in words: `agent spiffe://…`, `everything`.
pub(super) fn target(stop: &Value) -> String {
    let Some(target) = stop.get("target") else {
        return "it".to_owned();
    };
    let text = |name: &str| target.get(name).and_then(Value::as_str).map(plain);
    let user = |name: &str| target.get("user")?.get(name)?.as_str().map(plain);
    if let (Some(issuer), Some(subject)) = (user("issuer"), user("subject")) {
        let of = text("agent").map(|agent| format!(", what {agent} does for them"));
        return format!("user {subject} of {issuer}{}", of.unwrap_or_default());
    }
    let named = ["agent", "owner", "key", "token"].into_iter();
    let mut named = named.filter_map(|kind| Some(format!("{kind} {}", text(kind)?)));
    named.next().unwrap_or_else(|| "everything".to_owned())
}

/// The first of these stops that covers this agent as such: by its name, by its owner's, or
/// with everything.
pub(super) fn of_agent<'a>(stops: &'a [Value], agent: &Value) -> Option<&'a Value> {
    stops.iter().find(|stop| {
        let Some(target) = stop.get("target") else {
            return false;
        };
        let same = |name: &str| {
            target
                .get(name)
                .is_some_and(|it| agent.get(name) == Some(it))
        };
        target.get("everything").is_some()
            || (target.get("user").is_none() && (same("agent") || same("owner")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_stop_is_told_with_what_it_covers() {
        let agent = json!({ "agent": "spiffe://x/a", "owner": "platform", "state": "active" });
        let table = [
            (json!({ "everything": true }), "everything", true),
            (
                json!({ "agent": "spiffe://x/a" }),
                "agent spiffe://x/a",
                true,
            ),
            (
                json!({ "agent": "spiffe://x/b" }),
                "agent spiffe://x/b",
                false,
            ),
            (json!({ "owner": "platform" }), "owner platform", true),
            (json!({ "owner": "other" }), "owner other", false),
            (json!({ "key": "abc" }), "key abc", false),
            (json!({ "token": "00ff" }), "token 00ff", false),
            (
                json!({ "user": { "issuer": "https://i", "subject": "ann" } }),
                "user ann of https://i",
                false,
            ),
            (
                json!({ "agent": "spiffe://x/a", "user": { "issuer": "https://i", "subject": "ann" } }),
                "user ann of https://i, what spiffe://x/a does for them",
                false,
            ),
        ];
        for (named, words, covers) in table {
            let stop = json!({ "target": named, "at": "now", "by": "bob", "why": "w" });
            assert_eq!(target(&stop), words);
            assert_eq!(
                of_agent(std::slice::from_ref(&stop), &agent).is_some(),
                covers,
                "{words}"
            );
            assert_eq!(line(&stop), format!("{words}  since now by bob  (w)"));
        }
        let asked = json!({ "target": { "everything": true }, "at": "now", "by": "bob", "why": "",
            "lift_asked": { "by": "ann\u{1b}[2J", "at": "now" } });
        let said = line(&asked);
        assert!(
            said.contains("asked to lift it") && !said.contains('\u{1b}'),
            "{said}"
        );
    }
}
