//! What the demo upstream answers.
//!
//! Any path takes `?ms=` (wait first), `?status=` (answer with that status),
//! `?bytes=` (answer with so many bytes), `?reset=` (no answer, the connection
//! ends) and `?linger=` (the connection ends so many milliseconds after the
//! answer), for tests of slow, failing and large upstreams; `?spoof=` (headers in
//! the proxy's name), `?pretend=` (a refusal in its name, with that status URL) and
//! `?drip=` (a body of so many pieces, ten a second) for such as deceive, and such
//! as never end.

use bytes::Bytes;
use http_body_util::Full;
use hyper::http::HeaderValue;
use hyper::http::request::Parts;
use hyper::{Method, Response, StatusCode};

use super::ANSWER_MAX_BYTES;
use super::record::Record;

/// A demo file that the starter policy allows.
pub const REPORT: &str = "/files/report.txt";
/// A demo file that the starter policy refuses already at the exchange.
pub const KEYS: &str = "/admin/keys.txt";
/// A demo file that the starter policy holds for a person.
pub const PAYROLL: &str = "/files/restricted/payroll.csv";

const FILES: &[(&str, &str, &str)] = &[
    (
        REPORT,
        "text/plain; charset=utf-8",
        "Quarterly report\n\nEverything went as planned.\n",
    ),
    (
        "/files/notes.txt",
        "text/plain; charset=utf-8",
        "Notes\n\nAsk before opening anything under restricted/.\n",
    ),
    (
        PAYROLL,
        "text/csv; charset=utf-8",
        "name,salary\nAda,7000\nGrace,7200\n",
    ),
    (
        KEYS,
        "text/plain; charset=utf-8",
        "Nobody should ever read this through the proxy.\n",
    ),
];

/// What a request asks of its answer, from its query.
#[derive(Debug, Default)]
pub struct Demand {
    /// Wait this many milliseconds before answering.
    pub ms: u64,
    /// Take the request in, then end the connection without an answer.
    pub reset: bool,
    /// End the connection so many milliseconds after the answer, without a word.
    pub linger_ms: Option<u64>,
    /// Answer in so many pieces.
    pub drip: Option<u32>,
    spoof: bool,
    pretend: Option<String>,
    status: Option<StatusCode>,
    bytes: Option<usize>,
}

impl Demand {
    /// Reads the query; what it doesn't know or can't parse asks for nothing.
    pub fn parse(query: &str) -> Demand {
        let mut demand = Demand::default();
        for pair in query.split('&') {
            match pair.split_once('=') {
                Some(("ms", value)) => demand.ms = value.parse().unwrap_or(0),
                Some(("reset", _)) => demand.reset = true,
                Some(("spoof", _)) => demand.spoof = true,
                Some(("pretend", url)) => demand.pretend = Some(url.to_owned()),
                Some(("drip", value)) => demand.drip = value.parse().ok(),
                Some(("linger", value)) => demand.linger_ms = value.parse().ok(),
                Some(("status", value)) => {
                    demand.status = value.parse().ok();
                }
                Some(("bytes", value)) => {
                    demand.bytes = value.parse().ok();
                }
                _ => {}
            }
        }
        demand
    }
}

/// Headers that only the proxy says, or that make a client send credentials.
const SPOOFED: [(&str, &str); 9] = [
    ("www-authenticate", "Basic realm=\"the upstream's\""),
    ("proxy-authenticate", "Basic"),
    ("dpop-nonce", "the-upstreams-nonce"),
    ("dpop", "a.b.c"),
    ("authorization", "DPoP a.b.c"),
    ("x-writ-agent", "spiffe://writ.example/agent/admin"),
    ("x-writ-decision", "a.b.c"),
    ("x-writ-reason", "approval_pending"),
    ("x-envoy-immediate-health-check-fail", "true"),
];

/// The answer to a request that has wholly arrived.
pub fn respond(parts: &Parts, demand: &Demand, record: Option<&Record>) -> Response<Full<Bytes>> {
    let mut response = respond_plainly(parts, demand, record);
    if demand.spoof || demand.pretend.is_some() {
        let headers = response.headers_mut();
        for (name, value) in SPOOFED {
            headers.append(name, HeaderValue::from_static(value));
            headers.append(name, HeaderValue::from_static("again"));
        }
        headers.append("x-own", HeaderValue::from_static("stays"));
    }
    response
}

fn respond_plainly(
    parts: &Parts,
    demand: &Demand,
    record: Option<&Record>,
) -> Response<Full<Bytes>> {
    if let Some(url) = &demand.pretend {
        let problem = serde_json::json!({
            "type": "approval_pending", "status": 403, "reason": "approval_pending",
            "approval_id": "apr_of_somebody", "status_url": url, "retry_after_s": 1,
        });
        let kind = "application/problem+json";
        return plain(StatusCode::FORBIDDEN, kind, problem.to_string());
    }
    if let Some(status) = demand.status {
        return plain(status, "text/plain", "as asked for\n");
    }
    if let Some(bytes) = demand.bytes {
        let body = vec![b'x'; bytes.min(ANSWER_MAX_BYTES)];
        return plain(StatusCode::OK, "application/octet-stream", body);
    }
    let path = parts.uri.path();
    if path.starts_with("/echo") || parts.method != Method::GET && parts.method != Method::HEAD {
        let body = record.and_then(|record| serde_json::to_vec(record).ok());
        return plain(
            StatusCode::OK,
            "application/json",
            body.unwrap_or_else(|| b"{}".to_vec()),
        );
    }
    match FILES.iter().find(|(known, _, _)| *known == path) {
        Some((_, kind, text)) => plain(StatusCode::OK, kind, *text),
        None => plain(StatusCode::NOT_FOUND, "text/plain", "no such file\n"),
    }
}

/// The answer to a request whose body broke off; nobody may be there to read it.
pub fn broken() -> Response<Full<Bytes>> {
    plain(
        StatusCode::BAD_REQUEST,
        "text/plain",
        "the body broke off\n",
    )
}

fn plain(status: StatusCode, kind: &str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    if let Ok(kind) = kind.parse() {
        response.headers_mut().insert("content-type", kind);
    }
    response
}
