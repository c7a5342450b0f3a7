//! Bodies: none of their bytes reaches the upstream before the answer, and all
//! of them do after a yes.

use std::time::Duration;

use capability::headers::{CREDENTIALS, REINTERPRETING};
use wasm_test::client::Verdict;
use wasm_test::raw::Http2;
use wasm_test::system::Options;

use super::raw::Http1;
use super::rig::{Field, Rig, field, sha256};

const UPLOAD: &str = "/echo/upload";
const MIB: usize = 1024 * 1024;

async fn start() -> Rig {
    let options = Options {
        extra_config: "[edge]\ndecision_deadline_ms = 8000\n".to_owned(),
        ..Options::default()
    };
    Rig::start(options).await
}

/// Bytes that no compression, truncation or reordering leaves as they were.
fn body(size: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let bytes = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
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

/// How a body is sent.
#[derive(Clone, Copy, Debug)]
enum Framing {
    Length,
    Chunked,
    Trailers,
    Expect,
}

impl Framing {
    fn headers(self, size: usize) -> Vec<Field> {
        let chunks = || field("transfer-encoding", "chunked");
        let length = || field("content-length", size.to_string());
        match self {
            Framing::Length => vec![length()],
            Framing::Chunked => vec![chunks()],
            Framing::Trailers => vec![chunks(), field("trailer", "x-checksum")],
            Framing::Expect => vec![length(), field("expect", "100-continue")],
        }
    }

    fn bytes(self, body: &[u8]) -> Vec<u8> {
        match self {
            Framing::Length | Framing::Expect => body.to_vec(),
            Framing::Chunked => chunked(body, ""),
            Framing::Trailers => chunked(body, "x-checksum: abc\r\nx-writ-agent: admin\r\n"),
        }
    }
}

const FRAMINGS: [Framing; 4] = [
    Framing::Length,
    Framing::Chunked,
    Framing::Trailers,
    Framing::Expect,
];

/// Sends head and body from a task of its own: with back-pressure the sender
/// gets no further until there is an answer.
async fn sending(
    rig: &Rig,
    head: Vec<u8>,
    body: Vec<u8>,
) -> tokio::task::JoinHandle<Option<wasm_test::client::Answer>> {
    let mut connection = Http1::connect(&rig.authority()).await;
    tokio::spawn(async move {
        connection.send(&head).await;
        connection.exchange(&body).await
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_byte_before_the_answer_and_every_byte_after() {
    let rig = start().await;
    let upload = body(MIB);
    let digest = sha256(&upload);
    for framing in FRAMINGS {
        let token = rig.agent.token("POST", UPLOAD).await.unwrap();
        let mut headers = rig.credentials("POST", UPLOAD, &token);
        headers.extend(framing.headers(MIB));
        let head = rig.request("POST", UPLOAD, &headers);
        let before = rig.arrived();
        rig.freeze(true).await;
        let answer = sending(&rig, head, framing.bytes(&upload)).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let early = rig.arrived();
        rig.freeze(false).await;
        assert_eq!(
            early, before,
            "{framing:?}: it was forwarded before the answer"
        );
        let answer = answer.await.unwrap().expect("an answer");
        assert_eq!(answer.status, 200, "{framing:?}: {}", answer.text());
        let record = rig.records().pop().unwrap();
        assert_eq!(rig.arrived(), before + 1, "{framing:?}");
        assert_eq!(
            record.body_bytes,
            u64::try_from(MIB).unwrap(),
            "{framing:?}"
        );
        assert_eq!(
            record.body_sha256.as_deref(),
            Some(digest.as_str()),
            "{framing:?}"
        );
        assert!(record.complete);
    }
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_byte_of_a_refused_body() {
    let rig = start().await;
    let upload = body(MIB);
    for framing in FRAMINGS {
        for (what, status, credentials) in [("bare", 401, false), ("another action", 403, true)] {
            let mut headers = framing.headers(MIB);
            if credentials {
                let token = rig.agent.token("PUT", UPLOAD).await.unwrap();
                headers.extend(rig.credentials("POST", UPLOAD, &token));
            }
            let before = rig.arrived();
            let head = rig.request("POST", UPLOAD, &headers);
            let answer = sending(&rig, head, framing.bytes(&upload))
                .await
                .await
                .unwrap();
            let answer = answer.unwrap_or_else(|| panic!("{framing:?}, {what}: no answer"));
            assert_eq!(answer.status, status, "{framing:?}, {what}");
            assert_eq!(rig.arrived(), before, "{framing:?}, {what}");
            rig.good_request().await;
        }
    }
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_held_body_waits_and_a_broken_one_stays_outside() {
    let path = "/echo/restricted/upload";
    let rig = start().await;
    let approver = rig.system.approver().await.unwrap();
    let upload = body(MIB);
    let token = rig.agent.token("POST", path).await.unwrap();
    let mut headers = rig.credentials("POST", path, &token);
    headers.extend(Framing::Chunked.headers(MIB));
    let head = rig.request("POST", path, &headers);
    let before = rig.arrived();
    let answer = sending(&rig, head, Framing::Chunked.bytes(&upload)).await;
    let id = approver.next(&[], Duration::from_secs(10)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(rig.arrived(), before, "a held request was forwarded");
    approver.decide(&id, Verdict::Approve).await.unwrap();
    assert_eq!(answer.await.unwrap().unwrap().status, 200);
    let record = rig.records().pop().unwrap();
    assert_eq!(record.body_sha256, Some(sha256(&upload)));
    assert_eq!(rig.arrived(), before + 1);

    // A body that breaks off while its decision is awaited goes nowhere, and
    // one that breaks off later is never complete.
    for frozen in [true, false] {
        let token = rig.agent.token("POST", UPLOAD).await.unwrap();
        let mut headers = rig.credentials("POST", UPLOAD, &token);
        headers.extend(Framing::Length.headers(MIB));
        let before = rig.arrived();
        if frozen {
            rig.freeze(true).await;
        }
        let mut connection = rig.connect().await;
        connection
            .send(&rig.request("POST", UPLOAD, &headers))
            .await;
        connection.send(&upload[..10_000]).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        drop(connection);
        tokio::time::sleep(Duration::from_millis(200)).await;
        if frozen {
            rig.freeze(false).await;
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert_eq!(
                rig.arrived(),
                before,
                "a request without a client was forwarded"
            );
        }
        // Withdrawn in time or spent: one use at most in all.
        let first = rig.arrived() - before;
        let again = rig.agent.present("POST", UPLOAD, &token).await.unwrap();
        let executed = u64::from(again.status == 200);
        assert_eq!(rig.arrived(), before + first + executed);
        assert!(first + executed <= 1, "a token passed twice");
        rig.good_request().await;
    }
    let broken = rig.records().into_iter().filter(|record| !record.complete);
    assert!(broken.count() <= 1);
    rig.finish().await;
}

/// Our own upstreams get no trailers, since they are told HTTP/1.1; those of
/// somebody else's listener may.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trailers_say_nothing_that_headers_may_not() {
    let rig = Rig::start(Options {
        own_listener: true,
        ..Options::default()
    })
    .await;
    let listener = rig.system.variants()[0].address();
    let mut connection = Http2::connect(&listener).await.unwrap();
    let mut names: Vec<&str> = CREDENTIALS.iter().chain(&REINTERPRETING).copied().collect();
    names.extend(["x-writ-agent", "x-writ-decision", "x-envoy-retry-on"]);
    names.extend(["x_writ_agent", "x_original_url", "x-sum"]);
    names.extend(["x.writ.agent", "x~original~url", "x!http-method!override"]);
    let trailers: Vec<(&str, &[u8])> = names.iter().map(|it| (*it, b"1".as_slice())).collect();
    for body in [b"abc".as_slice(), b""] {
        let token = rig.agent.token("POST", UPLOAD).await.unwrap();
        let credentials = rig.credentials("POST", UPLOAD, &token);
        let authority = rig.authority();
        let mut fields: Vec<(&str, &[u8])> = vec![
            (":method", b"POST"),
            (":scheme", b"http"),
            (":path", UPLOAD.as_bytes()),
            (":authority", authority.as_bytes()),
        ];
        let credentials = credentials.iter();
        fields.extend(credentials.map(|(name, value)| (name.as_str(), value.as_slice())));
        let (id, mut bytes) = connection.open(&fields);
        bytes.extend(Http2::data(id, body, false));
        bytes.extend(Http2::trailers(id, &trailers, true));
        connection.send(&bytes).await.unwrap();
        let stream = connection
            .answers(&[id])
            .await
            .unwrap()
            .remove(&id)
            .unwrap();
        assert_eq!(stream.status, 200, "{}", stream.reason());
        let record = rig.records().pop().unwrap();
        assert_eq!(record.path, UPLOAD);
        assert!(record.header("x-writ-agent").is_some(), "{record:?}");
        assert_eq!(record.trailers, [("x-sum".to_owned(), "1".to_owned())]);
    }
    rig.finish().await;
}
