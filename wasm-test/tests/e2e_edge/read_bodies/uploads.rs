//! Uploads that take their time, or end in one way or another.

use wasm_test::system::Options;

use super::super::raw::{End, Http2};
use super::super::rig::{Rig, eventually, field};
use super::{NOTE, arrived_whole, expect, head, options, post, start};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_that_never_end_have_their_time_and_their_number() {
    let rig = Rig::start(Options {
        concurrency: 1,
        ..options()
    })
    .await;
    let before = rig.arrived();
    let mut open = Vec::new();
    let token = rig.agent.token("POST", NOTE).await.unwrap();
    for _ in 0..4 {
        let mut connection = rig.connect().await;
        let headers = [field("transfer-encoding", "chunked")];
        connection.send(&head(&rig, NOTE, &token, &headers)).await;
        connection.send(b"3\r\nabc\r\n").await;
        open.push(connection);
    }
    eventually("all of them are read", async || {
        rig.stat("wasmcustom.writ.bodies").await == 4
    })
    .await;
    let refused = post(&rig, NOTE, &token, "text/plain", b"x").await;
    expect(&refused, 429, "limit_exceeded");
    assert_eq!(refused.header("retry-after"), Some("1"));
    // Those whose client leaves have none any more.
    open.truncate(2);
    eventually("their places are free", async || {
        rig.stat("wasmcustom.writ.bodies").await == 2
    })
    .await;
    for mut connection in open {
        expect(&connection.answer().await.unwrap(), 408, "limit_exceeded");
    }
    assert_eq!(rig.stat("wasmcustom.writ.bodies").await, 0);
    assert_eq!(rig.arrived(), before);
    assert_eq!(
        post(&rig, NOTE, &token, "text/plain", b"x").await.status,
        200
    );
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_http2_a_body_ends_in_each_of_its_ways_and_is_decided_once() {
    let rig = start().await;
    let mut connection = Http2::connect(&rig.authority()).await;
    for (what, body, end) in [
        ("with its last bytes", b"abc".as_slice(), End::Data),
        ("by an empty frame", b"abc", End::Empty),
        ("by trailers", b"abc", End::Trailers),
        ("by trailers alone", b"", End::Trailers),
        ("with the headers", b"", End::Headers),
    ] {
        let token = rig.agent.token("POST", NOTE).await.unwrap();
        let credentials = rig.credentials("POST", NOTE, &token);
        let authority = rig.authority();
        let mut fields: Vec<(&str, &[u8])> = vec![
            (":method", b"POST"),
            (":scheme", b"http"),
            (":path", NOTE.as_bytes()),
            (":authority", authority.as_bytes()),
        ];
        fields.extend(
            credentials
                .iter()
                .map(|(name, value)| (name.as_str(), value.as_slice())),
        );
        let before = rig.arrived();
        let id = connection.upload(&fields, body, end).await;
        let stream = connection.answers(&[id]).await.remove(&id).unwrap();
        assert_eq!(stream.status, 200, "{what}: {}", stream.reason());
        assert_eq!(rig.arrived(), before + 1, "{what}");
        arrived_whole(&rig, body);
    }
    rig.finish().await;
}
