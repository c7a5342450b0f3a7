//! What a client claims of itself and of its request, and what an upstream claims in
//! the proxy's name.

use serde_json::Value;

use super::check::{holds, one_of, same};
use super::edge::{BOTH, Mark, Over, Shot, Want, next_good, wanted};
use super::headers::{has_none, ways};
use super::stages::Stages;
use super::table::Table;
use super::{How, Row};
use crate::Error;
use crate::stage::{jti, text_at};
use crate::system::AGENT;
use crate::upstream::REPORT;

/// The rows, by their ids.
pub const ROWS: &[Row] = &[
    Row {
        id: "F17",
        how: How::Live(|it| Box::pin(internal(it))),
    },
    Row {
        id: "F19",
        how: How::Live(|it| Box::pin(request_ids(it))),
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
    const NAMES: [&str; 8] = [
        "www-authenticate",
        "proxy-authenticate",
        "dpop-nonce",
        "dpop",
        "authorization",
        "x-writ-agent",
        "x-writ-decision",
        "x-writ-reason",
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
