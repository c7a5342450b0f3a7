//! The host's functions. No other file names them.
//!
//! Only the `*_bytes` variants are used: the string getters panic on header
//! bytes that are not UTF-8. The SDK also panics on a status that it does not
//! expect, which an HTTP context that has ended gives for every edit. So what
//! acts on a request is called for a live context only, and only after
//! [`enter`] said that this context is in force.

use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint};
use proxy_wasm::hostcalls;
use proxy_wasm::types::{BufferType, LogLevel, MapType, MetricType};
use std::time::{Duration, UNIX_EPOCH};

/// One header as the host has it: name (lower case) and value.
pub type Header = (Vec<u8>, Vec<u8>);

/// The host did not put the wanted context in force. The one before stays in
/// force, so whoever sees this must not touch any request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContextGone;

/// The host refused a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostFault;

/// Puts a context in force for the calls that follow.
pub fn enter(context: u32) -> Result<(), ContextGone> {
    hostcalls::set_effective_context(context).map_err(|_status| ContextGone)
}

/// Wall-clock time in milliseconds since the Unix epoch.
pub fn now_ms() -> Result<u64, HostFault> {
    now_us().map(|now_us| now_us / 1000)
}

/// Wall-clock time in microseconds since the Unix epoch.
pub fn now_us() -> Result<u64, HostFault> {
    let now = hostcalls::get_current_time().map_err(|_status| HostFault)?;
    let since = now
        .duration_since(UNIX_EPOCH)
        .map_err(|_before| HostFault)?;
    u64::try_from(since.as_micros()).map_err(|_large| HostFault)
}

/// Writes a line to the host's log. What an attacker sent is never part of it.
pub fn warn(line: &str) {
    // Nothing can be done about a log that takes no line.
    let _lost = hostcalls::log(LogLevel::Warn, line);
}

/// The plugin's configuration, at most `size` bytes; `None` when there is none.
pub fn plugin_configuration(size: usize) -> Option<Vec<u8>> {
    hostcalls::get_buffer(BufferType::PluginConfiguration, 0, size)
        .ok()
        .flatten()
}

/// Asks for a tick every `period_ms` milliseconds.
pub fn tick_every(period_ms: u32) -> Result<(), HostFault> {
    hostcalls::set_tick_period(Duration::from_millis(u64::from(period_ms)))
        .map_err(|_status| HostFault)
}

// ---- the request in force ------------------------------------------------------

/// All request headers, pseudo headers among them, in the host's order.
pub fn request_headers() -> Result<Vec<Header>, HostFault> {
    let map = hostcalls::get_map_bytes(MapType::HttpRequestHeaders).map_err(|_status| HostFault)?;
    Ok(map
        .into_iter()
        .map(|(name, value)| (name.into_bytes(), value))
        .collect())
}

/// Removes every header of this name.
pub fn remove_request_header(name: &str) -> Result<(), HostFault> {
    hostcalls::remove_map_value(MapType::HttpRequestHeaders, name).map_err(|_status| HostFault)
}

/// Sets a header, in the place of all of that name.
pub fn set_request_header(name: &str, value: &[u8]) -> Result<(), HostFault> {
    hostcalls::set_map_value_bytes(MapType::HttpRequestHeaders, name, Some(value))
        .map_err(|_status| HostFault)
}

/// All trailers of the request, in the host's order.
pub fn request_trailers() -> Result<Vec<Header>, HostFault> {
    let map =
        hostcalls::get_map_bytes(MapType::HttpRequestTrailers).map_err(|_status| HostFault)?;
    Ok(map
        .into_iter()
        .map(|(name, value)| (name.into_bytes(), value))
        .collect())
}

/// Removes every trailer of this name.
pub fn remove_request_trailer(name: &str) -> Result<(), HostFault> {
    hostcalls::remove_map_value(MapType::HttpRequestTrailers, name).map_err(|_status| HostFault)
}

/// All headers of the answer that is on its way to the client.
pub fn response_headers() -> Result<Vec<Header>, HostFault> {
    let map =
        hostcalls::get_map_bytes(MapType::HttpResponseHeaders).map_err(|_status| HostFault)?;
    Ok(map
        .into_iter()
        .map(|(name, value)| (name.into_bytes(), value))
        .collect())
}

/// Removes every header of this name from that answer.
pub fn remove_response_header(name: &str) -> Result<(), HostFault> {
    hostcalls::remove_map_value(MapType::HttpResponseHeaders, name).map_err(|_status| HostFault)
}

/// Lets the paused request go on.
pub fn resume_request() -> Result<(), HostFault> {
    hostcalls::resume_http_request().map_err(|_status| HostFault)
}

/// The body of the request in force as far as it has come and waits here, at
/// most `most` bytes of it.
pub fn request_body(most: usize) -> Vec<u8> {
    let body = hostcalls::get_buffer(BufferType::HttpRequestBody, 0, most);
    body.ok().flatten().unwrap_or_default()
}

/// What one instance of the filter tells the one behind it in the same request.
/// No header can set it; filter state lives as long as its request.
const PASSED: &str = "writ.passed";

/// Says that this request has a permit.
pub fn mark_passed() -> Result<(), HostFault> {
    hostcalls::set_property(vec![PASSED], Some(b"1")).map_err(|_status| HostFault)
}

/// Whether an instance before this one has let the request in force through.
pub fn was_passed() -> bool {
    let mark = hostcalls::get_property(vec![PASSED]);
    mark.ok().flatten().as_deref() == Some(b"1".as_slice())
}

/// Answers the request here; nothing of it reaches the upstream.
pub fn reply(status: u16, headers: Vec<(&str, &str)>, body: &[u8]) -> Result<(), HostFault> {
    hostcalls::send_http_response(u32::from(status), headers, Some(body))
        .map_err(|_status| HostFault)
}

/// Ends a request that went on, and its answer: both sides of it are reset when the
/// callback returns.
pub fn reset_request() -> Result<(), HostFault> {
    hostcalls::reset_http_request().map_err(|_status| HostFault)
}

/// Leaves the reason where access logs find it: filter state `wasm.writ.reason`.
pub fn set_reason(reason: &str) -> Result<(), HostFault> {
    hostcalls::set_property(vec!["writ.reason"], Some(reason.as_bytes()))
        .map_err(|_status| HostFault)
}

/// Leaves something else that access logs join a request by, as filter state
/// `wasm.writ.NAME`.
pub fn set_fact(name: &str, value: &str) -> Result<(), HostFault> {
    hostcalls::set_property(vec![&format!("writ.{name}")], Some(value.as_bytes()))
        .map_err(|_status| HostFault)
}

/// A property as text; what is not UTF-8 is replaced.
pub fn text_property(path: &[&str]) -> Option<String> {
    let bytes = hostcalls::get_property(path.to_vec()).ok().flatten()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// A property's bytes.
pub fn bytes_property(path: &[&str]) -> Option<Vec<u8>> {
    hostcalls::get_property(path.to_vec()).ok().flatten()
}

/// A property that is a whole number: eight bytes, little-endian.
pub fn number_property(path: &[&str]) -> Option<u64> {
    let bytes = hostcalls::get_property(path.to_vec()).ok().flatten()?;
    let number = i64::from_le_bytes(bytes.try_into().ok()?);
    u64::try_from(number).ok()
}

// ---- the stream; only with the root context in force -------------------------------

/// The gRPC service to call, as Envoy takes it: `GrpcService{envoy_grpc{cluster_name}}`.
///
/// A bare cluster name will not do: the host first tries to read it as this
/// message, and a name that happens to parse aborts the proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream(String);

#[derive(Clone, PartialEq, Message)]
struct GrpcService {
    #[prost(message, optional, tag = "1")]
    envoy_grpc: Option<EnvoyGrpc>,
}

#[derive(Clone, PartialEq, Message)]
struct EnvoyGrpc {
    #[prost(string, tag = "1")]
    cluster_name: String,
}

impl Upstream {
    /// The longest cluster name that still serialises to text, which is what
    /// the SDK passes on: every length must stay below 128.
    pub const NAME_MAX: usize = 100;

    /// The cluster by its name, or `None` when the name is empty, too long or
    /// not plain.
    pub fn cluster(name: &str) -> Option<Self> {
        let plain = |byte: u8| {
            byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.' | b'|' | b':')
        };
        if name.is_empty() || name.len() > Self::NAME_MAX || !name.bytes().all(plain) {
            return None;
        }
        let service = GrpcService {
            envoy_grpc: Some(EnvoyGrpc {
                cluster_name: name.to_owned(),
            }),
        };
        String::from_utf8(service.encode_to_vec()).ok().map(Self)
    }
}

/// Opens a stream to a method.
pub fn open_stream(upstream: &Upstream, service: &str, method: &str) -> Result<u32, HostFault> {
    hostcalls::open_grpc_stream(&upstream.0, service, method, Vec::new())
        .map_err(|_status| HostFault)
}

/// Sends one message.
pub fn send(stream: u32, message: &[u8]) -> Result<(), HostFault> {
    hostcalls::send_grpc_stream_message(stream, Some(message), false).map_err(|_status| HostFault)
}

/// Drops a stream at once, whatever is still in it.
pub fn cancel_stream(stream: u32) {
    // A stream that is not there any more is what was wanted.
    let _gone = hostcalls::cancel_grpc_stream(stream);
}

/// The message that has just been received. An empty one is a message too,
/// for which the host has no buffer.
pub fn received(size: usize) -> Result<Vec<u8>, HostFault> {
    let buffer = hostcalls::get_buffer(BufferType::GrpcReceiveBuffer, 0, size);
    buffer
        .map(Option::unwrap_or_default)
        .map_err(|_status| HostFault)
}

// ---- what outlives a context -----------------------------------------------------

/// A queue that all contexts of one module and configuration share, in all of
/// the proxy's threads, those that come later among them.
#[derive(Clone, Copy, Debug)]
pub struct Queue(u32);

impl Queue {
    /// The queue of this name.
    pub fn named(name: &str) -> Result<Self, HostFault> {
        hostcalls::register_shared_queue(name)
            .map(Self)
            .map_err(|_status| HostFault)
    }

    /// Puts a message in.
    pub fn put(self, message: &[u8]) -> Result<(), HostFault> {
        hostcalls::enqueue_shared_queue(self.0, Some(message)).map_err(|_status| HostFault)
    }

    /// Takes the oldest message out; `None` when there is none.
    pub fn take(self) -> Option<Vec<u8>> {
        hostcalls::dequeue_shared_queue(self.0).ok().flatten()
    }
}

// ---- signatures ----------------------------------------------------------------

/// What `verify_signature` takes, serialised: {1: hash, 2: key, 3: signature,
/// 4: text}. A message would want to own what is only lent here, twice for each
/// request.
fn verify_arguments(public_key: &[u8], signature: &[u8], text: &[u8]) -> Vec<u8> {
    let fields = [
        (1, b"sha256".as_slice()),
        (2, public_key),
        (3, signature),
        (4, text),
    ];
    let room = fields.iter().fold(0_usize, |room, (_, bytes)| {
        room.saturating_add(bytes.len())
            .saturating_add(FIELD_HEAD_MAX)
    });
    let mut out = Vec::with_capacity(room);
    for (tag, bytes) in fields {
        encode_key(tag, WireType::LengthDelimited, &mut out);
        encode_varint(u64::try_from(bytes.len()).unwrap_or(u64::MAX), &mut out);
        out.extend_from_slice(bytes);
    }
    out
}

/// Tag and length of a field are at most this long; bytes.
const FIELD_HEAD_MAX: usize = 11;

#[derive(Clone, PartialEq, Message)]
struct VerifyResult {
    #[prost(bool, tag = "1")]
    result: bool,
    #[prost(string, tag = "2")]
    error: String,
}

/// Has the host check an ECDSA signature over SHA-256: key as DER
/// SubjectPublicKeyInfo, signature as DER. A fault means that the host could
/// not say; it is never a yes.
pub fn verify_signature(
    public_key: &[u8],
    signature: &[u8],
    text: &[u8],
) -> Result<bool, HostFault> {
    let arguments = verify_arguments(public_key, signature, text);
    let answer = hostcalls::call_foreign_function("verify_signature", Some(&arguments))
        .map_err(|_status| HostFault)?;
    // An all-default message is empty, and so a plain no.
    let answer = VerifyResult::decode(answer.unwrap_or_default().as_slice())
        .map_err(|_malformed| HostFault)?;
    Ok(answer.result)
}

// ---- metrics -------------------------------------------------------------------

/// Defines a counter; its id.
pub fn counter(name: &str) -> Result<u32, HostFault> {
    hostcalls::define_metric(MetricType::Counter, name).map_err(|_status| HostFault)
}

/// Defines a gauge; its id.
pub fn gauge(name: &str) -> Result<u32, HostFault> {
    hostcalls::define_metric(MetricType::Gauge, name).map_err(|_status| HostFault)
}

/// Defines a histogram; its id.
pub fn histogram(name: &str) -> Result<u32, HostFault> {
    hostcalls::define_metric(MetricType::Histogram, name).map_err(|_status| HostFault)
}

/// Adds to a metric.
pub fn add(metric: u32, amount: i64) {
    // A metric that cannot be counted must not decide about a request.
    let _lost = hostcalls::increment_metric(metric, amount);
}

/// Sets a gauge, or adds a value to a histogram.
pub fn record(metric: u32, value: u64) {
    let _lost = hostcalls::record_metric(metric, value);
}
