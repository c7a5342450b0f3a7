//! Bodies that are read: what was approved is what is executed, and none of it
//! before the answer. C24 is in `dpop`, for routes that read none; F39 begins with
//! the same where they are read.

use std::time::Duration;

use base64ct::{Base64UrlUnpadded, Encoding as _};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::check::{holds, refused, same};
use super::stages::Stages;
use super::{How, Row};
use crate::Error;
use crate::client::{Answer, Verdict};
use crate::cut::Mode;
use crate::raw::{End, Field, field};
use crate::stage::{Stage, eventually, jti, text_at};

/// The rows, by their ids.
pub const ROWS: &[Row] = &[
    Row {
        id: "F32",
        how: How::Live(|it| Box::pin(batch(it))),
    },
    Row {
        id: "F39",
        how: How::Live(|it| Box::pin(packed(it))),
    },
    Row {
        id: "G11",
        how: How::Live(|it| Box::pin(early(it))),
    },
    Row {
        id: "G12",
        how: How::Live(|it| Box::pin(ends(it))),
    },
    Row {
        id: "G13",
        how: How::Live(|it| Box::pin(large(it))),
    },
    Row {
        id: "G14",
        how: How::Live(|it| Box::pin(endless(it))),
    },
];

/// The routes whose bodies are read, beside the one whose bodies pass.
pub(super) const ROUTES: &str = r#"
[[edge.route]]
name = "notes"
path_prefix = "/echo/notes"
upstream = "{upstream}"
body = "read"
body_limit = 8192

[[edge.route]]
name = "big"
path_prefix = "/echo/big"
upstream = "{upstream}"
body = "read"
body_limit = 1048576

[[edge.route]]
name = "pay"
path_prefix = "/echo/pay"
upstream = "{upstream}"
body = "read"
body_facts = { "/amount" = "long", "/to" = "string" }

[[edge.route]]
name = "calls"
path_prefix = "/echo/calls"
upstream = "{upstream}"
body = "read"
body_facts = { "/method" = "string" }
"#;
const LIMIT: usize = 8192;
const MIB: usize = 1024 * 1024;

const NOTE: &str = "/echo/notes/a";
const PAY: &str = "/echo/pay/order";
const BIG: &str = "/echo/big/file";
/// Where bodies pass.
const PASS: &str = "/echo/upload";
const JSON: &str = "application/json";
const FORM: &str = "application/x-www-form-urlencoded";

/// `{"amount": 1, "to": "bob"}`, packed by gzip.
const PACKED: &str =
    "1f8b0800000000000203ab564acccd2fcd2b51b25230d451502ac907329492f293946a01527502101a000000";

fn hex_digest(body: &[u8]) -> String {
    hex::encode(Sha256::digest(body))
}

fn headers(kind: &str, body: &[u8]) -> Vec<Field> {
    vec![
        field("content-type", kind),
        field("content-length", body.len().to_string()),
    ]
}

/// A token that allows this body alone.
async fn bound(stage: &Stage, path: &str, body: &[u8]) -> Result<String, Error> {
    let mut details = stage.agent.details("POST", path);
    let digest = Base64UrlUnpadded::encode_string(&Sha256::digest(body));
    if let Some(element) = details.get_mut(0).and_then(Value::as_object_mut) {
        element.insert("content_digest".to_owned(), json!(digest));
    }
    let (svid, proof) = (stage.agent.svid().await?, stage.agent.token_proof());
    let details = details.to_string();
    let answer = stage.agent.post_token(&svid, &details, &proof);
    let answer = answer.await?.expect("a token for one body", 200)?;
    Ok(text_at(&answer.json(), "/access_token"))
}

/// Posts a body with these headers besides the credentials.
async fn post(
    stage: &Stage,
    path: &str,
    token: &str,
    more: &[Field],
    body: &[u8],
) -> Result<Answer, Error> {
    let mut all = stage.credentials("POST", path, token);
    all.extend_from_slice(more);
    let mut connection = stage.connect().await?;
    connection.send(&stage.request("POST", path, &all)).await?;
    let closed = || Error::Unexpected("closed without an answer".to_owned());
    connection.exchange(body).await?.ok_or_else(closed)
}

/// The last request at the upstream had exactly this body.
fn executed(stage: &Stage, token: &str, body: &[u8]) -> Result<(), Error> {
    let last = stage.records()?.pop();
    let last = last.ok_or_else(|| Error::Unexpected("nothing reached the upstream".to_owned()))?;
    same(
        "its token",
        last.header("x-writ-token-id"),
        Some(jti(token).as_str()),
    )?;
    same("its body", last.body_sha256, Some(hex_digest(body)))
}

/// A refusal at the edge is in the log with its token and reason.
async fn logged(stage: &Stage, token: &str, reason: &str) -> Result<(), Error> {
    let (id, reason) = (jti(token), reason.to_owned());
    let is_it = |entry: &Value| {
        let text = entry.to_string();
        entry.get("kind") == Some(&json!("edge_denial"))
            && text.contains(&id)
            && text.contains(&reason)
    };
    stage.entry("the refusal", is_it).await.map(|_| ())
}

async fn swapped(stages: &mut Stages) -> Result<String, Error> {
    let stage = stages.bodies().await?;
    let body = br#"{"amount": 10, "to": "bob"}"#;
    let token = bound(stage, NOTE, body).await?;
    let before = stage.arrived()?;
    let others: [&[u8]; 4] = [
        br#"{"amount": 90, "to": "bob"}"#,
        br#"{"amount": 100, "to": "bob"}"#,
        br#"{"amount": 10, "to": "bob"} "#,
        b"",
    ];
    for other in others {
        let answer = post(stage, NOTE, &token, &headers(JSON, other), other).await?;
        refused(&answer, 403, "body_mismatch")?;
    }
    same("reached the upstream", stage.arrived()?, before)?;
    logged(stage, &token, "body_mismatch").await?;
    // Nothing was spent by them.
    let answer = post(stage, NOTE, &token, &headers(JSON, body), body).await?;
    answer.expect("the body that the token is for", 200)?;
    executed(stage, &token, body)?;
    stage.good_request().await?;
    Ok(
        "four other bodies refused at the edge, nothing spent, the right one passed once"
            .to_owned(),
    )
}

/// C25, where bodies pass and then where they are read.
pub(super) async fn relabelled(stages: &mut Stages) -> Result<String, Error> {
    super::dpop_live::content_types(stages).await?;
    let stage = stages.bodies().await?;
    let approver = stage.system.approver().await?;
    // A form to one reader and JSON to another.
    let body = br#"{"amount": 500, "to": "bob", "x": "&amount=1&"}"#;
    let before = stage.arrived()?;
    let mut known = approver.inbox().await?;
    let token = stage.agent.token("POST", PAY).await?;
    let answer = post(stage, PAY, &token, &headers(JSON, body), body).await?;
    refused(&answer, 403, "approval_pending")?;
    let id = approver.next(&known, Duration::from_secs(10)).await?;
    approver.decide(&id, Verdict::Approve).await?;
    known.push(id);
    // The yes was to JSON, without an encoding.
    let json_in = |kind: &str, encoding: Option<&str>| {
        let mut all = headers(kind, body);
        all.extend(encoding.map(|it| field("content-encoding", it)));
        all
    };
    let token = stage.agent.token("POST", PAY).await?;
    let answer = post(stage, PAY, &token, &json_in(FORM, None), body).await?;
    refused(&answer, 403, "policy_error")?;
    let token = stage.agent.token("POST", PAY).await?;
    let answer = post(stage, PAY, &token, &json_in(JSON, Some("gzip")), body).await?;
    refused(&answer, 403, "policy_error")?;
    let token = stage.agent.token("POST", PAY).await?;
    let kind = "application/vnd.x+json";
    let answer = post(stage, PAY, &token, &json_in(kind, None), body).await?;
    refused(&answer, 403, "approval_pending")?;
    same("reached the upstream", stage.arrived()?, before)?;
    // As approved it passes, and headers that nobody bound do not come with it.
    let token = stage.agent.token("POST", PAY).await?;
    let mut all = json_in(JSON, None);
    for name in [
        "x-writ-user",
        "x-http-method-override",
        "x-forwarded-prefix",
    ] {
        all.push(field(name, "other-tenant"));
    }
    let answer = post(stage, PAY, &token, &all, body).await?;
    answer.expect("what was approved", 200)?;
    executed(stage, &token, body)?;
    let last = stage.records()?.pop();
    let leaked = last.is_some_and(|last| last.headers.iter().any(|(_, it)| it == "other-tenant"));
    holds(!leaked, "a header that reinterprets reached the upstream")?;
    stage.good_request().await?;
    Ok(
        "another type and another encoding were not what was approved; the same was, once"
            .to_owned(),
    )
}

async fn batch(stages: &mut Stages) -> Result<String, Error> {
    let stage = stages.bodies().await?;
    let path = "/echo/calls/rpc";
    let call = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/list"});
    let before = stage.arrived()?;
    let many = Value::Array(vec![call.clone(); 50]).to_string();
    let token = stage.agent.token("POST", path).await?;
    let answer = post(
        stage,
        path,
        &token,
        &headers(JSON, many.as_bytes()),
        many.as_bytes(),
    )
    .await?;
    refused(&answer, 403, "policy_error")?;
    same("reached the upstream", stage.arrived()?, before)?;
    let one = call.to_string();
    let token = stage.agent.token("POST", path).await?;
    let answer = post(
        stage,
        path,
        &token,
        &headers(JSON, one.as_bytes()),
        one.as_bytes(),
    )
    .await?;
    answer.expect("one call", 200)?;
    executed(stage, &token, one.as_bytes())?;
    Ok("an array of 50 calls has no method that policy could look at, and is refused".to_owned())
}

async fn packed(stages: &mut Stages) -> Result<String, Error> {
    swapped(stages).await?;
    let stage = stages.bodies().await?;
    let plain = br#"{"amount": 1, "to": "bob"}"#;
    let packed = hex::decode(PACKED).unwrap_or_default();
    let gzip = |body: &[u8]| {
        let mut all = headers(JSON, body);
        all.push(field("content-encoding", "gzip"));
        all
    };
    let before = stage.arrived()?;
    let token = bound(stage, NOTE, plain).await?;
    let answer = post(stage, NOTE, &token, &gzip(&packed), &packed).await?;
    refused(&answer, 403, "body_mismatch")?;
    let token = bound(stage, NOTE, &packed).await?;
    let answer = post(stage, NOTE, &token, &headers(JSON, plain), plain).await?;
    refused(&answer, 403, "body_mismatch")?;
    let other = stage.agent.token("POST", PAY).await?;
    let answer = post(stage, PAY, &other, &gzip(&packed), &packed).await?;
    refused(&answer, 403, "policy_error")?;
    same("reached the upstream", stage.arrived()?, before)?;
    let answer = post(stage, NOTE, &token, &gzip(&packed), &packed).await?;
    answer.expect("the bytes as they were signed for", 200)?;
    executed(stage, &token, &packed)?;
    Ok(
        "the digest is over the bytes as sent; packed ones have no facts, so policy refuses"
            .to_owned(),
    )
}

async fn early(stages: &mut Stages) -> Result<String, Error> {
    const STALL: Duration = Duration::from_secs(1);
    let stage = stages.bodies().await?;
    let body: Vec<u8> = (0..MIB)
        .map(|at| u8::try_from(at % 251).unwrap_or(0))
        .collect();
    for path in [PASS, BIG] {
        let token = stage.agent.token("POST", path).await?;
        let before = stage.arrived()?;
        stage.system.cut()?.set(Mode::Stall);
        let told = headers("text/plain", &body);
        let sent = post(stage, path, &token, &told, &body);
        let (answer, at_upstream) = tokio::join!(sent, async {
            tokio::time::sleep(STALL).await;
            let at_upstream = stage.arrived();
            if let Ok(cut) = stage.system.cut() {
                cut.set(Mode::Pass);
            }
            at_upstream
        });
        same(
            "reached the upstream before the answer",
            at_upstream?,
            before,
        )?;
        answer?.expect(path, 200)?;
        same("reached the upstream", stage.arrived()?, before + 1)?;
        executed(stage, &token, &body)?;
    }
    stage.good_request().await?;
    Ok(
        "1 MiB sent into a stalled decision: not a byte at the upstream, with and without the flag"
            .to_owned(),
    )
}

async fn ends(stages: &mut Stages) -> Result<String, Error> {
    let stage = stages.bodies().await?;
    let mut decided = 0;
    for path in [NOTE, PASS] {
        let mut connection = stage.connect_http2(0).await?;
        for (body, end) in [
            (b"".as_slice(), End::Headers),
            (b"", End::Empty),
            (b"", End::Trailers),
            (b"abc", End::Data),
            (b"abc", End::Empty),
            (b"abc", End::Trailers),
        ] {
            let token = stage.agent.token("POST", path).await?;
            let credentials = stage.credentials("POST", path, &token);
            let authority = stage.agent.authority().to_owned();
            let mut fields: Vec<(&str, &[u8])> = vec![
                (":method", b"POST"),
                (":scheme", b"http"),
                (":path", path.as_bytes()),
                (":authority", authority.as_bytes()),
            ];
            let own = credentials.iter();
            fields.extend(own.map(|(name, value)| (name.as_str(), value.as_slice())));
            let id = connection.upload(&fields, body, end).await?;
            let stream = connection.answers(&[id]).await?.remove(&id);
            let status = stream.map_or(0, |stream| stream.status);
            same(&format!("{path}, {end:?}"), status, 200)?;
            executed(stage, &token, body)?;
            same(
                "decisions",
                stage.allowed()?.get(&jti(&token)).copied(),
                Some(1),
            )?;
            decided += 1;
        }
        // A body after its trailers is no HTTP/2.
        let token = stage.agent.token("POST", path).await?;
        let before = stage.arrived()?;
        let mut bytes = stage.credentials("POST", path, &token);
        bytes.push(field("transfer-encoding", "chunked"));
        let mut raw = stage.connect().await?;
        raw.send(&stage.request("POST", path, &bytes)).await?;
        raw.send(b"1\r\na\r\n0\r\nx-sum: 1\r\n\r\n1\r\nb\r\n0\r\n\r\n")
            .await?;
        let answer = raw.answer().await?;
        same("the first message", answer.map(|it| it.status), Some(200))?;
        executed(stage, &token, b"a")?;
        same("reached the upstream", stage.arrived()?, before + 1)?;
    }
    stage.good_request().await?;
    Ok(format!(
        "{decided} bodies ended in six ways: one decision each, what followed was no part of it"
    ))
}

async fn large(stages: &mut Stages) -> Result<String, Error> {
    let stage = stages.bodies().await?;
    for (path, limit) in [(NOTE, LIMIT), (BIG, MIB)] {
        for (size, fits) in [(limit - 1, true), (limit, true), (limit + 1, false)] {
            let body = vec![b'x'; size];
            let mut chunked = format!("{size:x}\r\n").into_bytes();
            chunked.extend_from_slice(&body);
            chunked.extend(b"\r\n0\r\n\r\n");
            let told = headers("text/plain", &body);
            let found = vec![field("transfer-encoding", "chunked")];
            for (more, bytes) in [(told, &body), (found, &chunked)] {
                let token = stage.agent.token("POST", path).await?;
                let before = stage.arrived()?;
                let answer = post(stage, path, &token, &more, bytes).await?;
                if fits {
                    answer.expect("what fits", 200)?;
                    executed(stage, &token, &body)?;
                } else {
                    refused(&answer, 413, "too_large")?;
                    same("reached the upstream", stage.arrived()?, before)?;
                    // Nothing was spent, and no part of it was digested.
                    let small = headers("text/plain", b"x");
                    let answer = post(stage, path, &token, &small, b"x").await?;
                    answer.expect("the same token", 200)?;
                    executed(stage, &token, b"x")?;
                }
            }
        }
    }
    stage.good_request().await?;
    Ok("8 KiB and 1 MiB, told and found out: one byte more is 413 and spends nothing".to_owned())
}

async fn endless(stages: &mut Stages) -> Result<String, Error> {
    const UPLOADS: usize = 8;
    let stage = stages.bodies().await?;
    let token = stage.agent.token("POST", NOTE).await?;
    let before = stage.arrived()?;
    let mut open = Vec::new();
    for _ in 0..UPLOADS {
        let mut all = stage.credentials("POST", NOTE, &token);
        all.push(field("transfer-encoding", "chunked"));
        let mut connection = stage.connect_to(0).await?;
        connection.send(&stage.request("POST", NOTE, &all)).await?;
        connection.send(b"3\r\nabc\r\n").await?;
        open.push(connection);
    }
    for connection in &mut open {
        connection.send(b"1\r\nd\r\n").await?;
        let closed = || Error::Unexpected("closed without an answer".to_owned());
        let answer = connection.answer().await?.ok_or_else(closed)?;
        refused(&answer, 408, "limit_exceeded")?;
    }
    same("reached the upstream", stage.arrived()?, before)?;
    let http = reqwest::Client::new();
    let url = format!(
        "{}/stats?filter=wasmcustom.writ.bodies",
        stage.system.admin_url()
    );
    eventually("their places are free", async || {
        let Ok(answer) = http.get(&url).send().await else {
            return false;
        };
        let text = answer.text().await.unwrap_or_default();
        text.lines().any(|line| line.trim_end().ends_with(": 0"))
    })
    .await?;
    let answer = post(stage, NOTE, &token, &headers("text/plain", b"x"), b"x").await?;
    answer.expect("the token that they showed", 200)?;
    stage.good_request().await?;
    Ok(format!(
        "{UPLOADS} uploads without an end got 408 in time, their places are free, nothing spent"
    ))
}
