//! `writ stops`: what is stopped.

use super::approvals::Socket;
use super::local::{Untold, admin_told};
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
        let told = match told(&self.socket, "", self.all).await {
            Ok(told) => told,
            Err(untold) => return untold.end(),
        };
        if self.json {
            let Told { stops, more } = told;
            println!("{}", serde_json::json!({ "stops": stops, "more": more }));
            return ExitCode::SUCCESS;
        }
        if told.stops.is_empty() {
            println!("Nothing is stopped.");
        }
        for stop in &told.stops {
            println!("{}", line(stop));
        }
        if told.more > 0 {
            println!("{}", left_out(told.more, self.all));
        }
        ExitCode::SUCCESS
    }
}

/// Stops that were told, and how many more there may be.
struct Told {
    stops: Vec<Value>,
    more: u64,
}

impl Told {
    /// Those of an answer that stand, and with `all` those that were lifted.
    fn of(mut answer: Value, all: bool) -> Self {
        let more = answer.get("more").and_then(Value::as_u64);
        let stops = answer.get_mut("stops").and_then(Value::as_array_mut);
        let mut stops = stops.map(std::mem::take).unwrap_or_default();
        let told = stops.len();
        stops.retain(|stop| all || stop.get("stands") != Some(&Value::Bool(false)));
        // Those that stand come first: after one that was lifted there is none.
        let is_whole = stops.len() < told;
        Self {
            stops,
            more: more.filter(|_| !is_whole).unwrap_or_default(),
        }
    }
}

async fn told(socket: &Socket, query: &str, all: bool) -> Result<Told, Untold> {
    let path = format!("/api/v1/stops{query}");
    let answer = admin_told(&socket.admin_socket, &path).await?;
    Ok(Told::of(answer, all))
}

/// What is said of stops that are not listed: they may have been lifted.
fn left_out(more: u64, all: bool) -> String {
    match all {
        true => format!("and {more} more"),
        false => format!("and up to {more} more"),
    }
}

/// The stops that cover agents as such.
pub(super) struct OfAgents {
    stops: Vec<Value>,
    /// Whether these are all that there are.
    is_whole: bool,
}

/// Which agents are stopped. What can't be known of that is said on standard error, and
/// keeps nobody from seeing the agents.
pub(super) async fn of_agents(socket: &Socket) -> OfAgents {
    match told(socket, "?kind=agent,owner,everything", false).await {
        Ok(told) => {
            if told.more > 0 {
                eprintln!(
                    "writ: up to {} stops more were not looked at: an agent may be stopped without its being said",
                    told.more
                );
            }
            OfAgents {
                is_whole: told.more == 0,
                stops: told.stops,
            }
        }
        Err(untold) => {
            eprintln!("writ: what is stopped is not known: {}", untold.why);
            OfAgents {
                stops: Vec::new(),
                is_whole: false,
            }
        }
    }
}

impl OfAgents {
    /// What stops this agent, where that is known.
    pub(super) fn stops(&self, agent: &Value) -> Option<String> {
        of_agent(&self.stops, agent).map(target)
    }

    /// The same, where it is looked at alone.
    pub(super) fn said_of(&self, agent: &Value) -> String {
        let none = if self.is_whole { "-" } else { "not known" };
        self.stops(agent).unwrap_or_else(|| none.to_owned())
    }
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
fn of_agent<'a>(stops: &'a [Value], agent: &Value) -> Option<&'a Value> {
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

    #[test]
    fn what_is_left_out_is_known_where_it_may_stand() {
        let stop = |stands: bool| json!({ "target": { "key": "k" }, "stands": stands });
        let table = [
            (json!([stop(true)]), 3, (1, 3), (1, 3)),
            (json!([stop(true), stop(false)]), 3, (1, 0), (2, 3)),
            (json!([stop(true)]), 0, (1, 0), (1, 0)),
            (json!([]), 0, (0, 0), (0, 0)),
        ];
        for (stops, more, standing, all) in table {
            let answer = json!({ "stops": stops, "more": more });
            let told = |all| {
                let told = Told::of(answer.clone(), all);
                (told.stops.len(), told.more)
            };
            assert_eq!((told(false), told(true)), (standing, all), "{answer}");
        }
        let before = Told::of(json!({ "stops": [stop(true)] }), false);
        assert_eq!((before.stops.len(), before.more), (1, 0));
        assert_eq!(left_out(3, false), "and up to 3 more");
    }

    #[tokio::test]
    async fn stops_that_cannot_be_had_are_told_as_not_known() {
        let dir = tempfile::tempdir().unwrap();
        let nobody = Socket {
            admin_socket: dir.path().join("admin.sock"),
        };
        let agent = json!({ "agent": "spiffe://x/a" });
        let unknown = of_agents(&nobody).await;
        assert_eq!(unknown.stops(&agent), None);
        assert_eq!(unknown.said_of(&agent), "not known");
        let known = OfAgents {
            stops: vec![json!({ "target": { "agent": "spiffe://x/a" } })],
            is_whole: true,
        };
        assert_eq!(known.said_of(&agent), "agent spiffe://x/a");
        let other = json!({ "agent": "spiffe://x/b" });
        assert_eq!(known.said_of(&other), "-");
    }
}
