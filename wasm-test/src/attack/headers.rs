//! Headers that a client must not be believed, on the way in and on the way out.

use super::check::{holds, same};
use super::edge::{BOTH, Mark, Over, Shot, Want, a_moment, next_good};
use super::stages::Stages;
use super::table::Table;
use super::{How, Row};
use crate::Error;
use crate::raw::field;
use crate::stage::{Stage, jti, text_at};
use crate::system::AGENT;
use crate::upstream::{REPORT, Record};

/// The rows, by their ids.
pub const ROWS: &[Row] = &[
    Row {
        id: "F13",
        how: How::Live(|it| Box::pin(elsewhere(it))),
    },
    Row {
        id: "F15",
        how: How::Live(|it| Box::pin(again(it))),
    },
    Row {
        id: "F16",
        how: How::Live(|it| Box::pin(hurry(it))),
    },
    Row {
        id: "F23",
        how: How::Live(|it| Box::pin(our_facts(it))),
    },
    Row {
        id: "F24",
        how: How::Live(|it| Box::pin(underscores(it))),
    },
];

/// Where a request goes in, besides Writ's own listener: one that trusts every client.
fn trusting(stage: &Stage) -> String {
    let variants = stage.system.variants();
    variants
        .first()
        .map_or_else(String::new, crate::system::Variant::address)
}

/// Both ways in.
pub(super) fn ways(stage: &Stage) -> [String; 2] {
    [stage.address(), trusting(stage)]
}

/// The upstream has none of these headers, in any spelling.
pub(super) fn has_none(what: &str, record: &Record, names: &[&str]) -> Result<(), Error> {
    for name in names {
        let spelt =
            |known: &str| known.replace('_', "-") == name.to_ascii_lowercase().replace('_', "-");
        let found = record.headers.iter().find(|(known, _)| spelt(known));
        holds(
            found.is_none(),
            format!("{what}: the upstream has {found:?}"),
        )?;
    }
    Ok(())
}

/// Sends the action with these headers over both protocols to both listeners,
/// each three times in the one request: it is served without them.
async fn served_without(stages: &mut Stages, names: &[&str], value: &str) -> Result<String, Error> {
    let stage = stages.varied().await?;
    let mut table = Table::of(stage, "GET", REPORT).await?;
    for address in ways(stage) {
        for over in BOTH {
            for few in names.chunks(8) {
                let mut shot = table.right().to(address.clone());
                for name in few {
                    // HTTP/2 has no upper case (RFC 9113, section 8.2.1).
                    let name = if over == Over::Http2 {
                        name.to_ascii_lowercase()
                    } else {
                        (*name).to_owned()
                    };
                    for _ in 0..3 {
                        shot.headers.push(field(&name, value));
                    }
                }
                shot.headers.push(field("x-own", "stays"));
                let what = format!("{few:?} at {address}");
                if let Some(record) = table.expect(&what, &shot, over, Want::Served).await? {
                    table.judge(has_none(&what, &record, few));
                    table.judge(same(&what, record.header("x-own"), Some("stays")));
                }
            }
        }
    }
    table.finish().await
}

async fn elsewhere(stages: &mut Stages) -> Result<String, Error> {
    const NAMES: [&str; 42] = [
        "x-envoy-original-path",
        "X-Envoy-Original-Path",
        "x-envoy-original-url",
        "x-envoy-original-dst-host",
        "x-original-url",
        "X-Original-URL",
        "x-rewrite-url",
        "X-Rewrite-URL",
        "x-original-uri",
        "x-rewrite-uri",
        "x-original-path",
        "x-original-host",
        "x-original-method",
        "x-http-method-override",
        "X-HTTP-Method",
        "x-method-override",
        "x-method",
        "x-forwarded-host",
        "x-forwarded-prefix",
        "x-forwarded-uri",
        "x-host",
        "Forwarded",
        "Destination",
        "x-amz-copy-source",
        "x-accel-mapping",
        "x-bce-copy-source",
        "x-copy-from",
        "x-cos-copy-source",
        "x-goog-copy-source",
        "x-ms-copy-source",
        "x-ms-rename-source",
        "x-obs-copy-source",
        "x-oss-copy-source",
        "x-script-name",
        "x-sendfile-type",
        "x-tos-copy-source",
        "X-Override-URL",
        "x-middleware-rewrite",
        "X.Original.Url",
        "x~http~method~override",
        "X!Rewrite!Url",
        "x|envoy|original-path",
    ];
    served_without(stages, &NAMES, "/admin/keys.txt").await
}

/// Sends the request of a token at both listeners over both protocols with these
/// headers: this status, and the upstream has it once and without them.
async fn once(
    stages: &mut Stages,
    path: &str,
    status: u16,
    more: &[(&str, &str)],
) -> Result<String, Error> {
    let stage = stages.varied().await?;
    let mut tried = 0;
    for address in ways(stage) {
        for over in BOTH {
            let what = format!("{path} over {over:?} at {address}");
            let token = stage.agent.token("GET", path).await?;
            let mut shot = Shot::get(stage, path)
                .with(stage, ("GET", path), &token)
                .to(address.clone());
            shot.headers
                .extend(more.iter().map(|(name, value)| field(name, *value)));
            let mark = Mark::now(stage)?;
            let seen = shot.fire(over).await?;
            same(&what, (seen.status, seen.reason.as_str()), (status, ""))?;
            // Whatever would be tried again would be tried by now.
            a_moment().await;
            let record = mark.exactly(&what, stage, "GET", path)?;
            let names: Vec<&str> = more
                .iter()
                .map(|(name, _)| *name)
                .filter(|name| name.starts_with("x-envoy-"))
                .collect();
            has_none(&what, &record, &names)?;
            let id = jti(&token);
            stage
                .entry("it was let through", |entry| {
                    text_at(entry, "/kind") == "allow" && text_at(entry, "/body/token/jti") == id
                })
                .await?;
            tried += 1;
        }
    }
    next_good(stage).await?;
    Ok(format!(
        "{tried} requests were told {status} and ran once each, with an entry each"
    ))
}

async fn again(stages: &mut Stages) -> Result<String, Error> {
    let retry = [
        ("x-envoy-internal", "true"),
        ("x-forwarded-for", "127.0.0.1"),
        (
            "x-envoy-retry-on",
            "5xx,gateway-error,reset,connect-failure,retriable-4xx,retriable-status-codes",
        ),
        ("x-envoy-retry-grpc-on", "unavailable,internal"),
        ("x-envoy-max-retries", "5"),
        ("x-envoy-retriable-status-codes", "503,200"),
        ("x-envoy-retriable-header-names", "content-type"),
    ];
    let failing = once(stages, "/echo/again?status=503", 503, &retry).await?;
    let reset = once(stages, "/echo/again?reset=1", 503, &retry).await?;
    Ok(format!("failing: {failing}; reset: {reset}"))
}

async fn hurry(stages: &mut Stages) -> Result<String, Error> {
    let hurry = [
        ("x-envoy-internal", "true"),
        ("x-envoy-retry-on", "5xx"),
        ("x-envoy-upstream-rq-timeout-ms", "20"),
        ("x-envoy-upstream-rq-per-try-timeout-ms", "1"),
        ("x-envoy-hedge-on-per-try-timeout", "true"),
        ("x-envoy-upstream-rq-timeout-alt-response", "1"),
        ("x-envoy-expected-rq-timeout-ms", "20"),
        ("x-envoy-upstream-stream-duration-ms", "20"),
    ];
    once(stages, "/echo/slow?ms=500", 200, &hurry).await
}

async fn our_facts(stages: &mut Stages) -> Result<String, Error> {
    const NAMES: [&str; 15] = [
        "x-writ-agent",
        "X-Writ-Agent",
        "X-WRIT-AGENT",
        "x-writ-user",
        "X-Writ-User",
        "x-writ-token-id",
        "X-Writ-Token-Id",
        "x-writ-decision",
        "X-Writ-Decision",
        "x-writ-",
        "x-writ-capability",
        "x-writ-agent-id",
        "X.Writ.Agent",
        "x~writ~user",
        "x-writ.decision",
    ];
    let stage = stages.varied().await?;
    let mut table = Table::of(stage, "GET", REPORT).await?;
    for address in ways(stage) {
        for over in BOTH {
            let id = jti(&table.token);
            let mut shot = table.right().to(address.clone());
            for name in NAMES {
                let name = if over == Over::Http2 {
                    name.to_ascii_lowercase()
                } else {
                    name.to_owned()
                };
                for value in ["spiffe://writ.example/agent/admin", "", "twice"] {
                    shot.headers.push(field(&name, value));
                }
            }
            let what = format!("our names at {address}");
            if let Some(record) = table.expect(&what, &shot, over, Want::Served).await? {
                let ours = record.headers.iter().filter(|(name, _)| {
                    let mut words = name.split(|c: char| !c.is_ascii_alphanumeric());
                    words.nth(1) == Some("writ")
                });
                let mut ours: Vec<(&str, &str)> =
                    ours.map(|(n, v)| (n.as_str(), v.as_str())).collect();
                ours.sort_unstable();
                table.judge(same(
                    &what,
                    ours,
                    vec![("x-writ-agent", AGENT), ("x-writ-token-id", &id)],
                ));
            }
        }
    }
    table.finish().await
}

/// To a CGI, and to some servers, `_` and `-` are one letter.
async fn underscores(stages: &mut Stages) -> Result<String, Error> {
    const NAMES: [&str; 10] = [
        "x_writ_agent",
        "X_Writ_User",
        "x-writ_token-id",
        "x_writ-decision",
        "x_envoy_retry_on",
        "x_http_method_override",
        "x_original_url",
        "x_forwarded_host",
        "dpop_",
        "any_thing",
    ];
    let stage = stages.varied().await?;
    let mut table = Table::of(stage, "GET", REPORT).await?;
    for over in BOTH {
        for name in NAMES {
            let spelt = if over == Over::Http2 {
                name.to_ascii_lowercase()
            } else {
                name.to_owned()
            };
            let shot = table
                .right()
                .and(&spelt, "spiffe://writ.example/agent/admin");
            let refused = Want::Envoy(if over == Over::Http1 { 400 } else { 0 });
            table.expect(name, &shot, over, refused).await?;
            // A listener that lets underscores through: what is ours is taken off.
            let shot = shot.to(trusting(stage));
            if let Some(record) = table.expect(name, &shot, over, Want::Served).await? {
                let kept = ["dpop_", "any_thing"].contains(&name);
                let sent = record
                    .headers
                    .iter()
                    .any(|(known, _)| known.eq_ignore_ascii_case(name));
                table.judge(same(name, sent, kept));
            }
        }
    }
    table.finish().await
}
