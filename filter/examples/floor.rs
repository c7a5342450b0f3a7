//! The least that a filter of this kind can cost, for `cargo xtask bench edge`:
//! two signature checks by the host and one answer on a gRPC stream for each
//! request, and nothing else; or, when it is told to be empty, not even that. It
//! reads no header and judges nothing, so it must never stand in front of anything;
//! the product does not contain it.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use capability::b64;
use proxy_wasm::hostcalls;
use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::{Action, BufferType, ContextType, LogLevel};
use serde_json::Value;

/// Signature checks for each request: a token's and a proof's.
const CHECKS: usize = 2;
/// A serialised answer of `verify_signature` that says yes.
const GOOD: &[u8] = &[8, 1];

/// What the configuration says, and the stream once it is open.
#[derive(Default)]
struct Shared {
    root: u32,
    empty: bool,
    upstream: String,
    question_bytes: usize,
    checks: Vec<Vec<u8>>,
    next: Cell<usize>,
    stream: Cell<Option<u32>>,
}

struct Root {
    id: u32,
    shared: Rc<Shared>,
}

struct Request {
    id: u32,
    shared: Rc<Shared>,
}

impl Root {
    fn new(id: u32) -> Self {
        Self {
            id,
            shared: Rc::default(),
        }
    }

    /// `upstream` is a serialised GrpcService, `checks` are arguments of
    /// `verify_signature` in base64url, taken in turn: to check one signature
    /// over and over is easier for a processor than real ones are.
    fn configure(&mut self, bytes: &[u8]) -> Option<()> {
        let settings: Value = serde_json::from_slice(bytes).ok()?;
        if settings.get("empty").is_some() {
            self.shared = Rc::new(Shared {
                empty: true,
                ..Shared::default()
            });
            return Some(());
        }
        self.shared = Rc::new(Shared {
            root: self.id,
            empty: false,
            question_bytes: usize::try_from(settings.get("question_bytes")?.as_u64()?).ok()?,
            upstream: settings.get("upstream")?.as_str()?.to_owned(),
            checks: settings
                .get("checks")?
                .as_array()?
                .iter()
                .map(|check| b64::decode(check.as_str()?))
                .collect::<Option<_>>()?,
            next: Cell::new(0),
            stream: Cell::new(None),
        });
        Some(())
    }
}

impl Context for Root {
    /// An answer begins with the context's id, as the question did.
    fn on_grpc_stream_message(&mut self, _stream: u32, size: usize) {
        let answer = hostcalls::get_buffer(BufferType::GrpcReceiveBuffer, 0, size);
        let id = answer.ok().flatten();
        let id = id.and_then(|answer| answer.first_chunk().copied());
        if let Some(id) = id.map(u32::from_le_bytes)
            && hostcalls::set_effective_context(id).is_ok()
        {
            let _ended = hostcalls::resume_http_request();
        }
    }

    fn on_grpc_stream_close(&mut self, _stream: u32, _status: u32) {
        self.shared.stream.set(None);
    }
}

impl RootContext for Root {
    fn on_configure(&mut self, size: usize) -> bool {
        let bytes = hostcalls::get_buffer(BufferType::PluginConfiguration, 0, size);
        let good = bytes
            .ok()
            .flatten()
            .and_then(|bytes| self.configure(&bytes));
        if self.shared.empty {
            return true;
        }
        good.is_some() && hostcalls::set_tick_period(Duration::from_millis(50)).is_ok()
    }

    fn on_tick(&mut self) {
        if self.shared.stream.get().is_none() {
            let opened =
                hostcalls::open_grpc_stream(&self.shared.upstream, "floor", "Echo", Vec::new());
            self.shared.stream.set(opened.ok());
        }
    }

    fn create_http_context(&self, id: u32) -> Option<Box<dyn HttpContext>> {
        Some(Box::new(Request {
            id,
            shared: Rc::clone(&self.shared),
        }))
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }
}

impl Request {
    /// Both checks and the question.
    fn ask(&self) -> Option<()> {
        for _ in 0..CHECKS {
            let checks = &self.shared.checks;
            let next = self.shared.next.get();
            self.shared
                .next
                .set(next.saturating_add(1) % checks.len().max(1));
            let answer = hostcalls::call_foreign_function(
                "verify_signature",
                Some(checks.get(next)?.as_slice()),
            );
            answer.ok().flatten().filter(|answer| answer == GOOD)?;
        }
        let stream = self.shared.stream.get()?;
        hostcalls::set_effective_context(self.shared.root).ok()?;
        let mut question = self.id.to_le_bytes().to_vec();
        question.resize(self.shared.question_bytes.max(question.len()), b'q');
        hostcalls::send_grpc_stream_message(stream, Some(&question), false).ok()
    }
}

impl Context for Request {}

impl HttpContext for Request {
    fn on_http_request_headers(&mut self, _headers: usize, _end_of_stream: bool) -> Action {
        if self.shared.empty {
            return Action::Continue;
        }
        if self.ask().is_none() && hostcalls::set_effective_context(self.id).is_ok() {
            let _ended = hostcalls::send_http_response(503, Vec::new(), None);
        }
        Action::Pause
    }
}

/// What the host calls first.
mod start {
    use super::{LogLevel, Root};

    proxy_wasm::main! {{
        proxy_wasm::set_log_level(LogLevel::Warn);
        proxy_wasm::set_root_context(|id| Box::new(Root::new(id)));
    }}
}
