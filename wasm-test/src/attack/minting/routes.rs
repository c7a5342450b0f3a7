//! E17: who shows nothing, or what is for something else, changes nothing anywhere.

use serde_json::{Value, json};

use crate::Error;
use crate::attack::check::{holds, same};
use crate::attack::stages::Stages;
use crate::client::{Answer, http_client};
use crate::stage::{Stage, eventually, text_at};
use crate::upstream::REPORT;

/// Where the routes are listed, below the repository's root; its own tests hold that
/// against the code.
const REFERENCE: &str = "docs/reference/http.md";
/// What each is tried with, whatever it is for.
const METHODS: [&str; 5] = ["GET", "POST", "PUT", "PATCH", "DELETE"];
/// Something that only a person may read.
const RESTRICTED: &str = "/files/restricted/plan.txt";

struct Route {
    path: String,
    /// Anybody may read it.
    open: bool,
}

fn routes() -> Result<Vec<Route>, Error> {
    let path = crate::tools::root().join(REFERENCE);
    let text = std::fs::read_to_string(&path).map_err(Error::file("read", &path))?;
    let rows = text.lines().filter_map(|line| {
        let mut cells = line.split('|').skip(1).map(str::trim);
        let path = cells.next()?.strip_prefix('`')?.strip_suffix('`')?;
        let methods = cells.next()?;
        let is_one = path.starts_with('/') && METHODS.iter().any(|it| methods.contains(it));
        let who = cells.next()?;
        is_one.then(|| Route {
            path: path.to_owned(),
            open: who == "anybody" || who == "whoever has the id" || path == "/login",
        })
    });
    let rows: Vec<Route> = rows.collect();
    holds(rows.len() > 30, format!("{} routes", rows.len()))?;
    Ok(rows)
}

/// A body that would do something, had whoever sends it a right to that.
fn body(path: &str, digest: &str) -> Value {
    match path {
        "/api/v1/stops" => json!({"target": {"everything": true}, "why": "x"}),
        "/api/v1/stops/lift" => json!({"target": {"everything": true}}),
        "/api/v1/agents" => json!({
            "agent": "spiffe://writ.example/agent/demo", "state": "suspended", "why": "x",
        }),
        "/api/v1/ledger/confirm" => json!({"restored": 0}),
        "/api/v1/session" => json!({"secret": "guessed"}),
        "/api/v1/keys/rotate" => json!({}),
        "/api/v1/keys/revoke" => json!({"kid": "x"}),
        "/api/v1/login-links" | "/login-links" => json!({}),
        _ => json!({"digest": digest, "secret": "guessed"}),
    }
}

/// Something waits for a person: its id and its digest.
async fn pending(stage: &Stage) -> Result<(String, String), Error> {
    let token = stage.agent.token("GET", RESTRICTED).await?;
    let answer = stage.agent.present("GET", RESTRICTED, &token).await?;
    let id = text_at(&answer.json(), "/approval_id");
    holds(!id.is_empty(), format!("no hold: {}", answer.text()))?;
    let of = |entry: &Value| entry.to_string().contains(&id);
    let entry = stage.entry("the hold", of).await?;
    let digest = text_at(&entry, "/body/approval/digest");
    Ok((id, digest))
}

/// Entries but those that count who was refused.
fn said(stage: &Stage) -> Result<Vec<String>, Error> {
    let all = stage.entries()?.into_iter().map(|it| text_at(&it, "/kind"));
    Ok(all.filter(|kind| !kind.ends_with("counts")).collect())
}

/// Until nothing more is on its way into the log.
async fn settled(stage: &Stage) -> Result<Vec<String>, Error> {
    let last = std::sync::Mutex::new(usize::MAX);
    eventually("the log rests", async || {
        tokio::time::sleep(std::time::Duration::from_millis(400)).await;
        let now = said(stage).map_or(usize::MAX, |it| it.len());
        let mut last = last
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        std::mem::replace(&mut *last, now) == now
    })
    .await?;
    said(stage)
}

async fn standing(stage: &Stage, id: &str) -> Result<String, Error> {
    let url = format!("{}/approvals/{id}/status", stage.system.http_url());
    let got = reqwest::get(&url).await.map_err(Error::http(&url))?;
    Ok(text_at(&Answer::read(got).await?.json(), "/status"))
}

/// The row.
pub async fn nobody(stages: &mut Stages) -> Result<String, Error> {
    let stage = stages.single().await?;
    let (id, digest) = pending(stage).await?;
    let capability = stage.agent.token("GET", REPORT).await?;
    let svid = stage.agent.svid().await?;
    let shown = [
        None,
        Some(("authorization", format!("DPoP {capability}"))),
        Some(("authorization", format!("Bearer {svid}"))),
        Some(("authorization", "Session guessed".to_owned())),
        Some((
            "cookie",
            "session=guessed; __Host-session=guessed".to_owned(),
        )),
    ];
    let before = settled(stage).await?;
    let arrived = stage.arrived()?;
    let http = http_client();
    let (mut tried, mut open) = (0, 0);
    let routes = routes()?;
    for route in &routes {
        let path = route.path.replace("{id}", &id);
        let path = path.replace("{name}", "style.css");
        let url = format!("{}{path}", stage.system.http_url());
        let body = body(&route.path, &digest).to_string();
        for method in METHODS {
            let verb: reqwest::Method = method
                .parse()
                .map_err(|_| Error::Setup(method.to_owned()))?;
            // Secrets are guessed once: who guesses often is told to wait.
            let guesses = method == "POST" && ["/login", "/api/v1/session"].contains(&&*path);
            let most = if guesses { 1 } else { shown.len() };
            for header in shown.iter().take(most) {
                let (kind, body) = match path.starts_with("/api/") {
                    true => ("application/json", body.clone()),
                    false => (
                        "application/x-www-form-urlencoded",
                        format!("digest={digest}&secret=guessed"),
                    ),
                };
                let mut request = http
                    .request(verb.clone(), &url)
                    .header("content-type", kind);
                if method != "GET" {
                    request = request.body(body);
                }
                if let Some((name, value)) = header {
                    request = request.header(*name, value);
                }
                let answer = request.send().await.map_err(Error::http(&url))?;
                let status = answer.status().as_u16();
                let what = format!("{method} {path} with {:?} got {status}", header.as_ref());
                tried += 1;
                if status < 300 {
                    holds(route.open && method == "GET", what)?;
                    open += 1;
                    continue;
                }
                holds((300..500).contains(&status), what.clone())?;
                // A page leads to the login, and nowhere else.
                if status < 400 {
                    let to = answer.headers().get("location");
                    let to = to.and_then(|it| it.to_str().ok()).unwrap_or_default();
                    holds(to.starts_with("/login"), format!("{what}: {to}"))?;
                }
            }
        }
    }
    same("entries", settled(stage).await?, before)?;
    same(
        "the approval",
        standing(stage, &id).await?,
        "pending".into(),
    )?;
    same("reached the upstream", stage.arrived()?, arrived)?;
    stage.good_request().await?;
    Ok(format!(
        "{tried} requests at {} routes by {} methods, with nothing, a capability, an SVID, and guessed sessions: {open} reads of what is open, no entry, no approval",
        routes.len(),
        METHODS.len()
    ))
}
