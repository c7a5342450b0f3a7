//! Headers that a client must not be believed, on the way in and on the way out.

use serde_json::Value;

use super::check::{holds, one_of, same};
use super::edge::{BOTH, Mark, Over, Shot, Table, Want, a_moment, next_good, wanted};
use super::stages::Stages;
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
        id: "F17",
        how: How::Live(|it| Box::pin(internal(it))),
    },
    Row {
        id: "F19",
        how: How::Live(|it| Box::pin(request_ids(it))),
    },
    Row {
        id: "F23",
        how: How::Live(|it| Box::pin(our_facts(it))),
    },
    Row {
        id: "F24",
        how: How::Live(|it| Box::pin(underscores(it))),
    },
    Row {
        id: "F25",
        how: How::Live(|it| Box::pin(no_text(it))),
    },
    Row {
        id: "F40",
        how: How::Live(|it| Box::pin(early(it))),
    },
    Row {
        id: "F41",
        how: How::Live(|it| Box::pin(answers(it))),
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
fn ways(stage: &Stage) -> [String; 2] {
    [stage.address(), trusting(stage)]
}

/// The upstream has none of these headers, in any spelling.
fn has_none(what: &str, record: &Record, names: &[&str]) -> Result<(), Error> {
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
    const NAMES: [&str; 22] = [
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

/// The client's own address is what the connection says.
async fn internal(stages: &mut Stages) -> Result<String, Error> {
    let stage = stages.single().await?;
    let mut table = Table::of(stage, "GET", REPORT).await?;
    let mut tokens = Vec::new();
    for claimed in [
        "127.0.0.1",
        "10.9.8.7",
        "192.168.1.1",
        "::1",
        "unknown",
        "10.9.8.7, 127.0.0.1",
    ] {
        for over in BOTH {
            tokens.push(table.token.clone());
            let shot = table
                .right()
                .and("x-envoy-internal", "true")
                .and("x-forwarded-for", claimed)
                .and("x-real-ip", claimed)
                .and("x-envoy-external-address", claimed)
                .and(
                    "x-forwarded-client-cert",
                    "URI=spiffe://writ.example/agent/admin",
                )
                .and("x-forwarded-proto", "https");
            if let Some(record) = table.expect(claimed, &shot, over, Want::Served).await? {
                let names = [
                    "x-envoy-internal",
                    "x-envoy-external-address",
                    "x-forwarded-client-cert",
                ];
                table.judge(has_none(claimed, &record, &names));
                let last = record.header("x-forwarded-for").unwrap_or_default();
                let last = last.rsplit(',').next().unwrap_or_default().trim();
                // Envoy adds the peer; for one on loopback that is this machine's address.
                let believed = last.is_empty() || claimed.ends_with(last) && last != "127.0.0.1";
                table.judge(holds(!believed, format!("{last} came last, it is said")));
                table.judge(same(
                    "the scheme",
                    record.header("x-forwarded-proto"),
                    Some("http"),
                ));
            }
        }
    }
    for token in &tokens {
        let id = jti(token);
        let is = |entry: &Value| {
            text_at(entry, "/kind") == "allow" && text_at(entry, "/body/token/jti") == id
        };
        let entry = stage.entry("it was let through", is).await?;
        let source = text_at(&entry, "/body/request/source");
        table.judge(holds(
            source.starts_with("127.0.0.1:"),
            format!("the log has {source:?} as its source: {entry}"),
        ));
    }
    table.finish().await
}

/// Two requests with one id of the client's are two in the log.
async fn request_ids(stages: &mut Stages) -> Result<String, Error> {
    const CHOSEN: &str = "11111111-2222-4333-8444-555555555555";
    let stage = stages.single().await?;
    let mut table = Table::of(stage, "GET", REPORT).await?;
    let mut ids = Vec::new();
    let mut tokens = Vec::new();
    for over in BOTH {
        for _ in 0..2 {
            tokens.push(table.token.clone());
            let shot = table
                .right()
                .and("x-request-id", CHOSEN)
                .and(
                    "traceparent",
                    "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
                )
                .and("x-client-trace-id", CHOSEN);
            if let Some(record) = table
                .expect("a chosen id", &shot, over, Want::Served)
                .await?
            {
                let all = record
                    .headers
                    .iter()
                    .filter(|(name, _)| name == "x-request-id");
                ids.extend(all.map(|(_, id)| id.clone()));
            }
        }
    }
    same("ids at the upstream", ids.len(), 4)?;
    let mut different = ids.clone();
    different.sort();
    different.dedup();
    same("different ids", different.len(), 4)?;
    holds(
        !ids.iter().any(|id| id == CHOSEN),
        "the client's id was believed",
    )?;
    for (token, id) in tokens.iter().zip(&ids) {
        let jti = jti(token);
        let is = |entry: &Value| {
            text_at(entry, "/kind") == "allow" && text_at(entry, "/body/token/jti") == jti
        };
        let entry = stage.entry("it was let through", is).await?;
        same(
            "the entry's id",
            &text_at(&entry, "/body/request/request_id"),
            id,
        )?;
    }
    // A refusal has an id of its own as well, in the answer and in its entry.
    let mut shot = table.right().and("x-request-id", CHOSEN);
    shot.target = b"/files/report.txt?all=1".to_vec();
    let answer = shot.http1().await?;
    let id = answer
        .map(|it| text_at(&it.json(), "/request_id"))
        .unwrap_or_default();
    holds(
        !id.is_empty() && id != CHOSEN,
        format!("the refusal's id is {id:?}"),
    )?;
    stage
        .entry("the refusal by its id", |entry| {
            text_at(entry, "/kind") == "edge_denial" && text_at(entry, "/body/request_id") == id
        })
        .await?;
    table.finish().await
}

async fn our_facts(stages: &mut Stages) -> Result<String, Error> {
    const NAMES: [&str; 12] = [
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
                let ours = record
                    .headers
                    .iter()
                    .filter(|(name, _)| name.starts_with("x-writ"));
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

/// Bytes that are no text, where something is decided by a header.
async fn no_text(stages: &mut Stages) -> Result<String, Error> {
    let stage = stages.single().await?;
    let mut table = Table::of(stage, "GET", REPORT).await?;
    let malformed = Want::No(401, "malformed_credentials");
    for over in BOTH {
        for bytes in [&b"\xff"[..], b"\xc3\xa9", b"\x80", b"\xed\xa0\x80"] {
            let named = |name: &str| format!("{} in {name}", bytes.escape_ascii());
            for (at, name) in ["authorization", "dpop"].iter().enumerate() {
                let mut shot = table.right();
                if let Some((_, value)) = shot.headers.get_mut(at) {
                    value.extend_from_slice(bytes);
                }
                // A proof that is text is read, and is no proof.
                let want = match (*name, std::str::from_utf8(bytes)) {
                    ("dpop", Ok(_)) => Want::No(401, "proof_malformed"),
                    _ => malformed,
                };
                table.expect(&named(name), &shot, over, want).await?;
            }
            for name in ["content-type", "content-encoding"] {
                let shot = table.right().and(name, [b"text/", bytes].concat());
                // Both signatures are right: it is an entry.
                table
                    .expect(&named(name), &shot, over, Want::No(403, "action_mismatch"))
                    .await?;
            }
            let shot = table.right().and("early-data", bytes);
            table
                .expect(
                    &named("early-data"),
                    &shot,
                    over,
                    Want::No(425, "too_early"),
                )
                .await?;
            // Nothing is decided by this one, and it arrives as it is.
            let shot = table.right().and("x-own", bytes).and("x-writ-agent", bytes);
            if let Some(record) = table
                .expect(&named("x-own"), &shot, over, Want::Served)
                .await?
            {
                table.judge(same("ours", record.header("x-writ-agent"), Some(AGENT)));
            }
        }
    }
    table.finish().await
}

/// Early data is sent again after the handshake; ranges and conditions are the
/// client's, and are of the one action.
async fn early(stages: &mut Stages) -> Result<String, Error> {
    let stage = stages.single().await?;
    let mut table = Table::of(stage, "GET", REPORT).await?;
    for over in BOTH {
        for value in ["1", "0", "", "1, 1", "true"] {
            let shot = table.right().and("early-data", value);
            table
                .expect(
                    &format!("Early-Data: {value:?}"),
                    &shot,
                    over,
                    Want::No(425, "too_early"),
                )
                .await?;
        }
        let twice = table.right().and("early-data", "1").and("early-data", "1");
        table
            .expect("twice", &twice, over, Want::No(425, "too_early"))
            .await?;
        for (name, value) in [
            ("range", "bytes=0-3"),
            ("if-match", "\"x\""),
            ("if-none-match", "*"),
            ("if-modified-since", "Sat, 29 Oct 1994 19:43:31 GMT"),
            ("if-range", "\"x\""),
            ("expect", "100-continue"),
        ] {
            let shot = table.right().and(name, value);
            table.expect(name, &shot, over, Want::Served).await?;
        }
    }
    table.finish().await
}

async fn answers(stages: &mut Stages) -> Result<String, Error> {
    const NAMES: [&str; 7] = [
        "www-authenticate",
        "proxy-authenticate",
        "dpop-nonce",
        "dpop",
        "authorization",
        "x-writ-agent",
        "x-writ-decision",
    ];
    let stage = stages.varied().await?;
    let mut tried = 0;
    for address in ways(stage) {
        for (path, status) in [
            ("/echo/lies?spoof=1", 200),
            ("/echo/lies?spoof=1&status=401", 401),
            ("/echo/lies?spoof=1&status=503", 503),
        ] {
            let token = stage.agent.token("GET", path).await?;
            let shot = Shot::get(stage, path)
                .with(stage, ("GET", path), &token)
                .to(address.clone());
            let mark = Mark::now(stage)?;
            let answer = shot.http1().await?;
            let answer = answer.ok_or_else(|| Error::Unexpected(format!("{path}: closed")))?;
            one_of(&answer, &[status])?;
            mark.exactly(path, stage, "GET", path)?;
            for name in NAMES {
                let said = answer.header(name);
                holds(
                    said.is_none(),
                    format!("{path} at {address}: the client was told {name}: {said:?}"),
                )?;
            }
            let envoys = answer
                .headers
                .iter()
                .find(|(name, value)| name.starts_with("x-envoy-") && value == "true");
            holds(envoys.is_none(), format!("{path}: {envoys:?}"))?;
            same("an honest header", answer.header("x-own"), Some("stays"))?;
            holds(
                !answer.text().contains(&token),
                "the answer has the token in it",
            )?;
            tried += 1;
        }
        // A refusal of ours keeps its own challenge.
        let bare = Shot::get(stage, REPORT).to(address);
        let answer = bare.http1().await?;
        let challenge = answer
            .as_ref()
            .and_then(|it| it.header("www-authenticate"))
            .unwrap_or_default();
        holds(
            challenge.starts_with("DPoP algs="),
            format!("the challenge is {challenge:?}"),
        )?;
        wanted(
            "bare",
            &bare.fire(Over::Http2).await?,
            Want::No(401, "missing_credentials"),
        )?;
    }
    next_good(stage).await?;
    Ok(format!(
        "{tried} answers in the proxy's name came without its headers; our own challenges stay"
    ))
}
