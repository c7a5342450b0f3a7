//! Bodies that pass unread, and their ends: none of their bytes before the decision, and one
//! decision whatever the frames are.

use std::time::Duration;

use sha2::{Digest as _, Sha256};

use super::check::{holds, same};
use super::edge::{Audit, Mark, Seen, Shot, Want, a_moment, next_good, wanted};
use super::stages::Stages;
use super::{How, Row};
use crate::Error;
use crate::client::Answer;
use crate::cut::Mode;
use crate::raw::{Field, Http2, field};
use crate::stage::{Stage, jti, text_at};

/// The rows, by their ids.
pub const ROWS: &[Row] = &[
    Row {
        id: "G11-unread",
        how: How::Live(|it| Box::pin(paused(it))),
    },
    Row {
        id: "G12-unread",
        how: How::Live(|it| Box::pin(ends(it))),
    },
    Row {
        id: "G13-unread",
        how: How::Live(|it| Box::pin(whole(it))),
    },
    Row {
        id: "G16",
        how: How::Live(|it| Box::pin(refused_bodies(it))),
    },
];

pub(super) const UPLOAD: &str = "/echo/upload";
const MIB: usize = 1024 * 1024;
/// What one connection may buffer at Envoy before back-pressure, in bytes.
const BUFFER: usize = 128 * 1024;

/// Bytes that no compression, truncation or reordering leaves as they were.
pub(super) fn body(size: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let bytes = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        u8::try_from(state & 0xff).unwrap_or_default()
    });
    bytes.take(size).collect()
}

fn chunked(body: &[u8], trailers: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for chunk in body.chunks(7_777) {
        bytes.extend(format!("{:x}\r\n", chunk.len()).into_bytes());
        bytes.extend_from_slice(chunk);
        bytes.extend(b"\r\n");
    }
    bytes.extend(format!("0\r\n{trailers}\r\n").into_bytes());
    bytes
}

/// How a body is sent: by its length, in chunks, with trailers.
fn framings(body: &[u8]) -> [(&'static str, Field, Vec<u8>); 3] {
    let chunks = || field("transfer-encoding", "chunked");
    [
        (
            "a length",
            field("content-length", body.len().to_string()),
            body.to_vec(),
        ),
        ("chunks", chunks(), chunked(body, "")),
        (
            "trailers",
            chunks(),
            chunked(body, "x-checksum: abc\r\nx-writ-agent: admin\r\n"),
        ),
    ]
}

/// The head of an upload with its credentials, and its token.
pub(super) async fn head(stage: &Stage, more: &[Field]) -> Result<(Vec<u8>, String), Error> {
    let token = stage.agent.token("POST", UPLOAD).await?;
    let mut headers = stage.credentials("POST", UPLOAD, &token);
    headers.extend_from_slice(more);
    Ok((stage.request("POST", UPLOAD, &headers), token))
}

/// Sends head and body from a task of its own: with back-pressure the sender gets
/// no further until there is an answer.
async fn sending(
    stage: &Stage,
    head: Vec<u8>,
    body: Vec<u8>,
) -> Result<tokio::task::JoinHandle<Result<Option<Answer>, Error>>, Error> {
    let mut connection = stage.connect().await?;
    Ok(tokio::spawn(async move {
        connection.send(&head).await?;
        connection.exchange(&body).await
    }))
}

async fn answered(
    task: tokio::task::JoinHandle<Result<Option<Answer>, Error>>,
) -> Result<Answer, Error> {
    let answer = task
        .await
        .map_err(|it| Error::Unexpected(it.to_string()))??;
    answer.ok_or_else(|| Error::Unexpected("closed without an answer".to_owned()))
}

/// One upload has arrived, whole.
pub(super) fn arrived_whole(
    what: &str,
    mark: Mark,
    stage: &Stage,
    token: &str,
    body: &[u8],
) -> Result<(), Error> {
    let record = mark.exactly(what, stage, "POST", UPLOAD)?;
    same(
        what,
        record.body_sha256.clone(),
        Some(hex::encode(Sha256::digest(body))),
    )?;
    same(
        what,
        record.header("x-writ-token-id").map(str::to_owned),
        Some(jti(token)),
    )?;
    same(what, record.complete, true)
}

async fn paused(stages: &mut Stages) -> Result<String, Error> {
    let stage = stages.single().await?;
    let upload = body(MIB);
    for (what, header, bytes) in framings(&upload) {
        let (head, token) = head(stage, &[header]).await?;
        let mark = Mark::now(stage)?;
        stage.system.cut()?.set(Mode::Stall);
        let answer = sending(stage, head, bytes).await?;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let early = mark.arrived(stage)?;
        let decided_ms = now_ms();
        stage.system.cut()?.set(Mode::Pass);
        same(&format!("{what}: before the decision"), early, 0)?;
        same(what, answered(answer).await?.status, 200)?;
        arrived_whole(what, mark, stage, &token, &upload)?;
        let record = mark.records(stage)?.pop().unwrap_or_default();
        holds(
            record.time_ms >= decided_ms,
            format!("{what}: it arrived before the decision"),
        )?;
    }
    // The decision that never comes.
    for (what, header, bytes) in framings(&upload) {
        let (head, _) = head(stage, &[header]).await?;
        let mark = Mark::now(stage)?;
        stage.system.cut()?.set(Mode::Stall);
        let answer = answered(sending(stage, head, bytes).await?).await;
        stage.system.cut()?.set(Mode::Pass);
        wanted(
            what,
            &Seen::of(&answer?),
            Want::No(503, "control_plane_unavailable"),
        )?;
        a_moment().await;
        mark.nothing(what, stage)?;
        stage.recovers().await?;
    }
    next_good(stage).await?;
    Ok(
        "1 MiB in 3 framings: no byte before the decision, every byte after it, none without one"
            .to_owned(),
    )
}

fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}

/// Frames of one HTTP/2 request after its headers, and whether it is a request.
type Frames = (&'static str, &'static [Frame], bool);

#[derive(Clone, Copy)]
enum Frame {
    /// DATA: how many bytes, and whether it is the last.
    Data(usize, bool),
    /// HEADERS again, and whether it is the last.
    Trailers(bool),
    /// RST_STREAM.
    Reset,
}

const ENDS: [Frames; 9] = [
    ("an empty DATA frame", &[Frame::Data(0, true)], true),
    (
        // More than one in a row is a flood to Envoy (CVE-2019-9518).
        "empty ones before it",
        &[
            Frame::Data(0, false),
            Frame::Data(0, false),
            Frame::Data(0, true),
        ],
        false,
    ),
    ("trailers alone", &[Frame::Trailers(true)], true),
    (
        "body and trailers",
        &[Frame::Data(100, false), Frame::Trailers(true)],
        true,
    ),
    (
        "body in pieces",
        &[
            Frame::Data(1, false),
            Frame::Data(99, false),
            Frame::Data(0, true),
        ],
        true,
    ),
    (
        "trailers that do not end it",
        &[Frame::Trailers(false), Frame::Data(0, true)],
        false,
    ),
    (
        "a body after its end",
        &[Frame::Data(10, true), Frame::Data(10, true)],
        false,
    ),
    (
        "a body after trailers",
        &[
            Frame::Data(10, false),
            Frame::Trailers(true),
            Frame::Data(10, true),
        ],
        false,
    ),
    ("a reset", &[Frame::Data(10, false), Frame::Reset], false),
];

async fn ends(stages: &mut Stages) -> Result<String, Error> {
    let stage = stages.single().await?;
    let mut tried = 0;
    for (what, frames, is_request) in ENDS {
        for at_once in [true, false] {
            let token = stage.agent.token("POST", UPLOAD).await?;
            let shot = Shot::get(stage, UPLOAD).with(stage, ("POST", UPLOAD), &token);
            let mut fields: Vec<(&str, &[u8])> = vec![
                (":method", b"POST"),
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
            let (id, mut bytes) = connection.open(&fields);
            if !at_once {
                connection.send(&bytes).await?;
                bytes.clear();
                a_moment().await;
            }
            for frame in frames {
                bytes.extend(match frame {
                    Frame::Data(size, last) => Http2::data(id, &vec![b'x'; *size], *last),
                    Frame::Trailers(last) => Http2::trailers(
                        id,
                        &[("x-checksum", b"abc"), ("x-writ-agent", b"admin")],
                        *last,
                    ),
                    Frame::Reset => Http2::reset(id),
                });
            }
            drop(connection.send(&bytes).await);
            if matches!(frames.last(), Some(Frame::Reset)) {
                a_moment().await;
            } else {
                let answers = connection.answers(&[id]).await?;
                let status = answers.get(&id).map_or(0, |stream| stream.status);
                let fits = if is_request {
                    status == 200
                } else {
                    [0, 200, 400].contains(&status)
                };
                holds(fits, format!("{what}, at once {at_once}: {status}"))?;
            }
            a_moment().await;
            let uses = stage.uses()?.get(&jti(&token)).copied().unwrap_or(0);
            let allowed = stage.allowed()?.get(&jti(&token)).copied().unwrap_or(0);
            holds(
                uses <= 1 && allowed <= 1,
                format!("{what}: {uses} uses, {allowed} decisions"),
            )?;
            if is_request {
                same(what, (uses, allowed), (1, 1))?;
                mark.exactly(what, stage, "POST", UPLOAD)?;
            }
            tried += 1;
        }
    }
    next_good(stage).await?;
    Ok(format!(
        "{tried} endings of HTTP/2 requests: each was decided once, and those that are none ran at most once"
    ))
}

/// Around the size that one connection may buffer, with a slow decision.
async fn whole(stages: &mut Stages) -> Result<String, Error> {
    let stage = stages.single().await?;
    let mut tried = 0;
    for size in [1, BUFFER - 1, BUFFER, BUFFER + 1, 8 * BUFFER + 1] {
        let upload = body(size);
        for (framing, header, bytes) in framings(&upload) {
            let what = format!("{size} bytes with {framing}");
            let (head, token) = head(stage, &[header]).await?;
            let mark = Mark::now(stage)?;
            stage.system.cut()?.set(Mode::Stall);
            let answer = sending(stage, head, bytes).await?;
            a_moment().await;
            stage.system.cut()?.set(Mode::Pass);
            same(&what, answered(answer).await?.status, 200)?;
            arrived_whole(&what, mark, stage, &token, &upload)?;
            tried += 1;
        }
    }
    next_good(stage).await?;
    Ok(format!(
        "{tried} bodies around the buffer's limit arrived whole after a late decision: back-pressure, and no 413"
    ))
}

/// A refusal while a large body is on its way: nothing more happens.
async fn refused_bodies(stages: &mut Stages) -> Result<String, Error> {
    let stage = stages.single().await?;
    let mut audit = Audit::begin(stage)?;
    let upload = body(MIB);
    let mut tried = 0;
    for (framing, header, bytes) in framings(&upload) {
        for credentials in [false, true] {
            let what = format!("{framing}, credentials {credentials}");
            let mark = Mark::now(stage)?;
            let mut headers = vec![header.clone()];
            let want = if credentials {
                let token = stage.agent.token("PUT", UPLOAD).await?;
                headers.extend(stage.credentials("POST", UPLOAD, &token));
                audit.entry(&token, "action_mismatch");
                Want::No(403, "action_mismatch")
            } else {
                audit.count("missing_credentials");
                Want::No(401, "missing_credentials")
            };
            let head = stage.request("POST", UPLOAD, &headers);
            let answer = answered(sending(stage, head, bytes.clone()).await?).await?;
            wanted(&what, &Seen::of(&answer), want)?;
            mark.nothing(&what, stage)?;
            tried += 1;
        }
    }
    // Over HTTP/2 more frames come after the answer.
    let mark = Mark::now(stage)?;
    let mut connection = Http2::connect(&stage.address()).await?;
    let own = stage.agent.authority();
    let fields: [(&str, &[u8]); 4] = [
        (":method", b"POST"),
        (":scheme", b"http"),
        (":authority", own.as_bytes()),
        (":path", UPLOAD.as_bytes()),
    ];
    let (id, opening) = connection.open(&fields);
    connection.send(&opening).await?;
    let mut frames = Vec::new();
    for _ in 0..4 {
        frames.extend(Http2::data(id, &[b'x'; 8_000], false));
    }
    frames.extend(Http2::trailers(id, &[("x-a", b"b")], true));
    drop(connection.send(&frames).await);
    let answers = connection.answers(&[id]).await?;
    let reason = answers
        .get(&id)
        .map(crate::raw::Stream::reason)
        .unwrap_or_default();
    same("over HTTP/2", reason.as_str(), "missing_credentials")?;
    audit.count("missing_credentials");
    a_moment().await;
    mark.nothing("over HTTP/2", stage)?;
    for entry in stage.entries()? {
        holds(
            text_at(&entry, "/body/reason") != "internal_error",
            format!("{entry}"),
        )?;
    }
    next_good(stage).await?;
    let logged = audit.settled(stage).await?;
    Ok(format!(
        "{} refusals while bodies were on their way, and nothing more; {logged}",
        tried + 1
    ))
}
