//! Where one request ends and the next begins, and what HTTP/2 can say that
//! HTTP/1 must not be told.

use std::time::Duration;

use super::check::{holds, same};
use super::edge::{Audit, Mark, Over, Seen, Shot, Want, a_moment, next_good, wanted};
use super::stages::{Stages, options};
use super::table::Table;
use super::{How, Row};
use crate::Error;
use crate::raw::{Field, Http1, Http2, field};
use crate::stage::Stage;
use crate::system::Options;
use crate::upstream::REPORT;

/// The rows, by their ids.
pub const ROWS: &[Row] = &[
    Row {
        id: "F27",
        how: How::Live(|it| Box::pin(downgrade(it))),
    },
    Row {
        id: "F28",
        how: How::Live(|it| Box::pin(tunnels(it))),
    },
    Row {
        id: "F29",
        how: How::Live(|it| Box::pin(pipelined(it))),
    },
    Row {
        id: "F31",
        how: How::Live(|it| Box::pin(long_stream(it))),
    },
];

/// A field, and whether the request goes on without it.
type Smuggled = (&'static str, &'static [u8], Want);

/// What would be another line, another header or another length in HTTP/1.
const SMUGGLED: [Smuggled; 16] = [
    ("x-a", b"b\r\nx-writ-agent: admin", Want::Envoy(0)),
    ("x-a", b"b\nGET /admin/keys.txt HTTP/1.1", Want::Envoy(0)),
    ("x-a", b"b\rc", Want::Envoy(0)),
    ("x-a", b"b\0c", Want::Envoy(0)),
    ("x-a: b\r\nx-writ-user", b"admin", Want::Envoy(0)),
    ("x-a:", b"b", Want::Envoy(0)),
    ("x a", b"b", Want::Envoy(0)),
    ("", b"b", Want::Envoy(0)),
    ("X-Writ-Agent", b"admin", Want::Envoy(0)),
    ("transfer-encoding", b"chunked", Want::Envoy(0)),
    ("connection", b"keep-alive", Want::Envoy(0)),
    ("upgrade", b"websocket", Want::Envoy(0)),
    (":path", b"/admin/keys.txt", Want::Envoy(0)),
    (":method", b"DELETE", Want::Envoy(0)),
    (":unknown", b"x", Want::Envoy(0)),
    ("te", b"trailers, deflate", Want::Envoy(0)),
];

async fn downgrade(stages: &mut Stages) -> Result<String, Error> {
    let stage = stages.single().await?;
    let mut table = Table::of(stage, "GET", REPORT).await?;
    for (name, value, want) in SMUGGLED {
        let shot = table.right().and(name, value);
        let what = format!("{name:?}: {}", value.escape_ascii());
        table.expect(&what, &shot, Over::Http2, want).await?;
    }
    for (pseudo, value) in [
        ("method", "GET\r\nx: y"),
        ("path", "/files/report.txt HTTP/1.1\r\nx: y"),
        ("authority", "a\r\nx: y"),
    ] {
        let mut shot = table.right();
        match pseudo {
            "method" => shot.method = value.into(),
            "path" => shot.target = value.into(),
            _ => shot.authority = vec![value.into()],
        }
        table
            .expect(pseudo, &shot, Over::Http2, Want::Envoy(0))
            .await?;
    }
    let said = table.finish().await?;
    let lengths = lengths(stage).await?;
    next_good(stage).await?;
    Ok(format!("{said}; {lengths}"))
}

/// A length that is not the body's: the request is never whole at the upstream.
async fn lengths(stage: &Stage) -> Result<String, Error> {
    const PATH: &str = "/echo/lengths";
    let mut tried = 0;
    for (length, body, at_once) in [
        ("10", &b"abc"[..], true),
        ("2", b"abc", true),
        ("0", b"abc", true),
        ("10", b"abc", false),
        ("2", b"abc", false),
        ("-1", b"abc", true),
        ("3, 4", b"abc", true),
    ] {
        let token = stage.agent.token("POST", PATH).await?;
        let mut shot = Shot::get(stage, PATH).with(stage, ("POST", PATH), &token);
        shot.method = b"POST".to_vec();
        shot.headers.push(field("content-length", length));
        let mut fields: Vec<(&str, &[u8])> = vec![
            (":method", &shot.method),
            (":scheme", b"http"),
            (":path", &shot.target),
        ];
        fields.extend(
            shot.authority
                .iter()
                .map(|it| (":authority", it.as_slice())),
        );
        fields.extend(
            shot.headers
                .iter()
                .map(|(name, value)| (name.as_str(), value.as_slice())),
        );
        let mark = Mark::now(stage)?;
        let mut connection = Http2::connect(&shot.to).await?;
        let (id, head) = connection.open(&fields);
        let rest = Http2::data(id, body, true);
        if at_once {
            connection.send(&[head, rest].concat()).await?;
        } else {
            connection.send(&head).await?;
            a_moment().await;
            drop(connection.send(&rest).await);
        }
        let answers = connection.answers(&[id]).await?;
        let status = answers.get(&id).map_or(0, |stream| stream.status);
        holds(
            status == 0 || (400..600).contains(&status),
            format!("content-length {length}: {status}"),
        )?;
        a_moment().await;
        let whole = mark
            .records(stage)?
            .into_iter()
            .filter(|record| record.complete)
            .count();
        same(
            &format!("content-length {length}: whole requests"),
            whole,
            0,
        )?;
        tried += 1;
    }
    Ok(format!(
        "{tried} lengths that lie were never a whole request"
    ))
}

/// Headers that ask for another protocol.
const UPGRADES: [&[(&str, &str)]; 4] = [
    &[
        ("connection", "upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ],
    &[
        ("connection", "Upgrade, HTTP2-Settings"),
        ("upgrade", "h2c"),
        ("http2-settings", "AAMAAABkAAQAAP__"),
    ],
    &[("connection", "upgrade"), ("upgrade", "connect-udp")],
    &[("connection", "upgrade"), ("upgrade", "anything")],
];

/// No tunnel is opened; what follows in it is a request like any other.
async fn tunnels(stages: &mut Stages) -> Result<String, Error> {
    let stage = stages.single().await?;
    let mut audit = Audit::begin(stage)?;
    let mut tried = 0;
    for upgrade in UPGRADES {
        let what = format!("{upgrade:?}");
        let token = stage.agent.token("GET", REPORT).await?;
        let mut headers = stage.credentials("GET", REPORT, &token);
        headers.extend(upgrade.iter().map(|(name, value)| field(name, *value)));
        let first = stage.request("GET", REPORT, &headers);
        // What a client would say in the tunnel, before it is there.
        let inside = stage.request("GET", "/admin/keys.txt", &[]);
        let mark = Mark::now(stage)?;
        let mut connection = stage.connect().await?;
        connection.send(&[first, inside].concat()).await?;
        let answer = connection.answer().await?;
        let seen = answer.as_ref().map_or(0, |answer| answer.status);
        if seen == 200 {
            let record = mark.exactly(&what, stage, "GET", REPORT)?;
            holds(
                record.header("upgrade").is_none(),
                format!("{what}: {record:?}"),
            )?;
            let second = connection.answer().await?.map(|it| Seen::of(&it));
            if let Some(second) = second {
                wanted(
                    "in its shadow",
                    &second,
                    Want::No(401, "missing_credentials"),
                )?;
                audit.count("missing_credentials");
            }
        } else {
            holds((400..500).contains(&seen), format!("{what}: {seen}"))?;
            mark.nothing(&what, stage)?;
        }
        tried += 1;
    }
    tried += connects(stage).await?;
    next_good(stage).await?;
    let logged = audit.settled(stage).await?;
    Ok(format!(
        "{tried} ways to ask for a tunnel, and none was opened; {logged}"
    ))
}

/// CONNECT over HTTP/1 and HTTP/2, plain and extended (RFC 8441).
async fn connects(stage: &Stage) -> Result<usize, Error> {
    let own = stage.agent.authority();
    let token = stage.agent.token("GET", REPORT).await?;
    let mut tried = 0;
    for target in [
        own,
        "other.example:443",
        "127.0.0.1:80",
        "/files/report.txt",
        "*",
    ] {
        let mut shot = Shot::get(stage, target).with(stage, ("CONNECT", REPORT), &token);
        shot.method = b"CONNECT".to_vec();
        let mark = Mark::now(stage)?;
        let seen = shot.fire(Over::Http1).await?;
        holds(seen.is_refusal(), format!("CONNECT {target}: {seen:?}"))?;
        mark.nothing(target, stage)?;
        tried += 1;
    }
    let authorization = format!("DPoP {token}");
    let proof = stage.credentials("GET", REPORT, &token);
    let proof = proof
        .iter()
        .find(|(name, _)| name == "dpop")
        .map(|(_, value)| value.clone())
        .unwrap_or_default();
    let plain: &[(&str, &[u8])] = &[(":method", b"CONNECT"), (":authority", own.as_bytes())];
    for protocol in [
        None,
        Some("websocket"),
        Some("connect-udp"),
        Some("connect-ip"),
    ] {
        let mut fields = plain.to_vec();
        if let Some(protocol) = protocol {
            fields.extend([
                (":scheme", &b"http"[..]),
                (":path", REPORT.as_bytes()),
                (":protocol", protocol.as_bytes()),
            ]);
        }
        fields.extend([
            ("authorization", authorization.as_bytes()),
            ("dpop", proof.as_slice()),
        ]);
        let mark = Mark::now(stage)?;
        let mut connection = Http2::connect(&stage.address()).await?;
        let (id, head) = connection.open(&fields);
        let inside = stage.request("GET", "/admin/keys.txt", &[]);
        drop(
            connection
                .send(&[head, Http2::data(id, &inside, true)].concat())
                .await,
        );
        let answers = connection.answers(&[id]).await?;
        let status = answers.get(&id).map_or(0, |stream| stream.status);
        holds(
            status == 0 || (400..502).contains(&status),
            format!("CONNECT {protocol:?}: {status}"),
        )?;
        mark.nothing("an extended CONNECT", stage)?;
        tried += 1;
    }
    Ok(tried)
}

/// What is true of a connection's first request is not true of its second.
async fn pipelined(stages: &mut Stages) -> Result<String, Error> {
    let stage = stages.single().await?;
    let mut audit = Audit::begin(stage)?;
    let token = stage.agent.token("GET", REPORT).await?;
    let first = stage.signed("GET", REPORT, &token);
    let bare = stage.request("GET", REPORT, &[]);
    const NOTES: &str = "/files/notes.txt";
    let other = stage.request("GET", NOTES, &stage.credentials("GET", NOTES, &token));
    let mark = Mark::now(stage)?;
    for (second, wants) in [
        (bare, [Want::Served, Want::No(401, "missing_credentials")]),
        (
            other,
            [
                Want::No(401, "token_spent"),
                Want::No(403, "action_mismatch"),
            ],
        ),
    ] {
        let mut connection = stage.connect().await?;
        connection.send(&[first.clone(), second].concat()).await?;
        for (at, want) in wants.into_iter().enumerate() {
            let answer = connection.answer().await?;
            let answer =
                answer.ok_or_else(|| Error::Unexpected(format!("no answer to request {at}")))?;
            let what = format!("request {at} of a connection");
            wanted(&what, &Seen::of(&answer), want)?;
        }
    }
    audit.count("missing_credentials");
    audit.entry(&token, "action_mismatch");
    mark.exactly("a pipeline", stage, "GET", REPORT)?;
    let smuggled = hidden(stage).await?;
    next_good(stage).await?;
    let logged = audit.settled(stage).await?;
    Ok(format!(
        "of 4 requests, two in one segment each, the first alone passed; {smuggled} second requests hidden behind a length arrived as none; {logged}"
    ))
}

/// A second request behind the first one's length.
async fn hidden(stage: &Stage) -> Result<usize, Error> {
    const PATH: &str = "/echo/post";
    let framings: [&[Field]; 6] = [
        &[
            field("content-length", "0"),
            field("transfer-encoding", "chunked"),
        ],
        &[field("content-length", "0"), field("content-length", "40")],
        &[field("content-length", "+0")],
        &[field("transfer-encoding", "chunked, identity")],
        &[field("transfer-encoding", "\x0bchunked")],
        &[field("transfer-encoding ", "chunked")],
    ];
    for framing in framings {
        let what = format!("{framing:?}");
        let token = stage.agent.token("POST", PATH).await?;
        let mut headers = stage.credentials("POST", PATH, &token);
        headers.extend_from_slice(framing);
        let mark = Mark::now(stage)?;
        let mut connection = stage.connect().await?;
        let bytes = [
            stage.request("POST", PATH, &headers),
            b"0\r\n\r\n".to_vec(),
            stage.request("GET", "/admin/keys.txt", &[]),
        ];
        drop(connection.send(&bytes.concat()).await);
        let first = connection.answer().await?.map_or(0, |answer| answer.status);
        holds(
            first == 200 || first == 0 || (400..502).contains(&first),
            format!("{what}: {first}"),
        )?;
        let records = mark.records(stage)?;
        holds(
            records.len() <= 1 && records.iter().all(|it| it.path == PATH),
            format!("{what}: {records:?}"),
        )?;
    }
    Ok(framings.len())
}

/// The answer to one action may outlive its token, and nothing else comes of it:
/// no second action in the stream, none beside it, and no way back up.
async fn long_stream(_: &mut Stages) -> Result<String, Error> {
    const PATH: &str = "/echo/events?drip=60";
    let stage = Stage::start(Options {
        token_lifetime_s: 2,
        ..options()
    })
    .await?;
    let token = stage.agent.token("GET", PATH).await?;
    let mark = Mark::now(&stage)?;
    let mut connection: Http1 = stage.connect().await?;
    connection.send(&stage.signed("GET", PATH, &token)).await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    // The token's time is over: for any other request, and on this connection too.
    let beside = stage.present(PATH, &token).await?;
    wanted(
        "beside the stream",
        &Seen::of(&beside),
        Want::No(401, "token_expired"),
    )?;
    connection.send(&stage.signed("GET", PATH, &token)).await?;
    let answer = connection.answer().await?;
    let answer = answer.ok_or_else(|| Error::Unexpected("the stream was cut".to_owned()))?;
    same("pieces", answer.text().matches("data: .").count(), 60)?;
    let next = connection.answer().await?;
    let next = next.ok_or_else(|| Error::Unexpected("no second answer".to_owned()))?;
    wanted(
        "after the stream",
        &Seen::of(&next),
        Want::No(401, "token_expired"),
    )?;
    mark.exactly("a stream", &stage, "GET", PATH)?;
    stage.recovers().await?;
    stage.each_once()?;
    stage.stop().await;
    Ok("an answer of 6 s went on past the 2 s of its token, as one action; what came beside it and after it was refused".to_owned())
}
