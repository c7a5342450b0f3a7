//! The harness's raw connections, where a test has nothing to do but fail.

use std::collections::BTreeMap;
use std::time::Duration;

use wasm_test::client::Answer;
use wasm_test::raw;
pub use wasm_test::raw::{End, Stream};

/// One connection that speaks HTTP/1.
pub struct Http1(raw::Http1);

impl Http1 {
    pub async fn connect(authority: &str) -> Http1 {
        Http1(raw::Http1::connect(authority).await.unwrap())
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        self.0.send(bytes).await.unwrap();
    }

    /// As [`Http1::send`], for what the other side may refuse to read.
    pub async fn try_send(&mut self, bytes: &[u8]) -> bool {
        self.0.send(bytes).await.is_ok()
    }

    /// Sends a body while an answer is awaited, which may come before all of
    /// it could be sent.
    pub async fn exchange(self, body: &[u8]) -> Option<Answer> {
        self.0.exchange(body).await.unwrap()
    }

    /// The next answer; `None` when the connection was closed instead.
    pub async fn answer(&mut self) -> Option<Answer> {
        self.0.answer().await.unwrap()
    }

    /// Whether an answer begins within that time.
    pub async fn answers_within(&mut self, time: Duration) -> bool {
        self.0.answers_within(time).await
    }
}

/// One connection that speaks HTTP/2 with prior knowledge.
pub struct Http2(raw::Http2);

impl Http2 {
    pub async fn connect(authority: &str) -> Http2 {
        Http2(raw::Http2::connect(authority).await.unwrap())
    }

    /// The frame of a request without a body, on the next stream.
    pub fn request(&mut self, fields: &[(&str, &[u8])]) -> (u32, Vec<u8>) {
        self.0.request(fields)
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        self.0.send(bytes).await.unwrap();
    }

    /// Sends a request with a body that ends in this way; its stream.
    pub async fn upload(&mut self, fields: &[(&str, &[u8])], body: &[u8], end: End) -> u32 {
        self.0.upload(fields, body, end).await.unwrap()
    }

    /// Reads until these streams are over, or the connection is.
    pub async fn answers(&mut self, wanted: &[u32]) -> BTreeMap<u32, Stream> {
        self.0.answers(wanted).await.unwrap()
    }
}
