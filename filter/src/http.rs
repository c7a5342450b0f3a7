//! One HTTP request. It is paused from its first header on, in every callback,
//! until its passage is open. Where bodies are read, what the host keeps of one
//! until then is what was digested: a callback that let go of a part of it would
//! forward an undecided request.

use crate::arrival;
use crate::core::{Arrival, Core};
use crate::host::{self, HostFault};
use crate::questions::Passage;
use crate::refusal::Refusal;
use crate::traps;
use capability::reason::Reason;
use proxy_wasm::traits::{Context, HttpContext};
use proxy_wasm::types::Action;
use std::cell::RefCell;
use std::rc::Rc;

/// The proxy's word for a response that came from the upstream.
const FROM_UPSTREAM: &str = "via_upstream";

/// The context of one request.
pub struct Request {
    id: u32,
    core: Option<Rc<RefCell<Core>>>,
    passage: Option<Rc<Passage>>,
    /// Its body is awaited, before anything is asked.
    reading: bool,
    /// The instance of the filter before this one has its permit.
    passed: bool,
    upstream_status: u32,
}

impl Request {
    /// A request under a configuration; without one it will be refused.
    pub fn new(id: u32, core: Option<Rc<RefCell<Core>>>) -> Self {
        Self {
            id,
            core,
            passage: None,
            reading: false,
            passed: false,
            upstream_status: 0,
        }
    }

    /// Continue is said here and nowhere else on the way to the upstream.
    fn may_go_on(&self) -> Action {
        match &self.passage {
            Some(passage) if passage.is_open() => Action::Continue,
            None if self.passed => Action::Continue,
            _ => Action::Pause,
        }
    }

    /// More of the body is there, or its end. It waits in the host: until there
    /// is a permit, what the host is told is always to wait.
    fn read(&mut self, size: Option<usize>, ended: bool) {
        if let (true, Some(core)) = (self.reading, &self.core) {
            let mut core = core.borrow_mut();
            core.begin(self.id);
            let arrival = core.body(self.id, size, ended);
            drop(core);
            self.arrived(arrival);
        }
    }

    fn arrived(&mut self, arrival: Arrival) {
        self.reading = matches!(arrival, Arrival::Reading);
        match arrival {
            Arrival::Asked(passage) => self.passage = Some(passage),
            Arrival::Passed => self.passed = true,
            Arrival::Refused | Arrival::Reading => {}
        }
    }

    /// Ends a request that can't go on as it must, whoever has allowed it.
    fn stop(&mut self) -> Action {
        if Refusal::new(Reason::InternalError).reply("", None).is_err() {
            host::warn("writ: the host did not take a refusal; the request stays paused");
        }
        self.end();
        self.passed = false;
        Action::Pause
    }

    /// The request is over: reports what became of it, or takes its question
    /// back. Hosts log before or after they are done; the first of both counts.
    fn end(&mut self) {
        if let (true, Some(core)) = (std::mem::take(&mut self.reading), &self.core) {
            core.borrow_mut().reader_gone(self.id);
        }
        let (Some(passage), Some(core)) = (self.passage.take(), &self.core) else {
            return;
        };
        let mut core = core.borrow_mut();
        core.begin(self.id);
        if !passage.is_open() {
            core.client_gone(passage.id());
            return;
        }
        // Only what was allowed has an outcome.
        if !passage.is_permitted() {
            return;
        }
        let bytes = host::number_property(&["response", "size"]).unwrap_or_default();
        let details = match passage.ended() {
            Some(reason) => format!("writ: ended, {}", reason.as_str()),
            None => host::text_property(&["response", "code_details"]).unwrap_or_default(),
        };
        core.ended(passage.id(), self.upstream_status, bytes, &details);
    }
}

impl Context for Request {
    fn on_done(&mut self) -> bool {
        traps::at("done");
        self.end();
        true
    }
}

impl HttpContext for Request {
    fn on_http_request_headers(&mut self, _headers: usize, end_of_stream: bool) -> Action {
        match &self.core {
            Some(core) => {
                let mut core = core.borrow_mut();
                core.begin(self.id);
                let arrival = core.arrive(self.id, end_of_stream);
                drop(core);
                self.arrived(arrival);
                traps::at("headers");
            }
            None => {
                // Only a host that serves requests before it configured us gets here.
                return self.stop();
            }
        }
        self.may_go_on()
    }

    fn on_http_request_body(&mut self, size: usize, end_of_stream: bool) -> Action {
        traps::at("body");
        self.read(Some(size), end_of_stream);
        self.may_go_on()
    }

    fn on_http_request_trailers(&mut self, _trailers: usize) -> Action {
        traps::at("trailers");
        if arrival::strip_trailers().is_err() {
            return self.stop();
        }
        self.read(None, true);
        self.may_go_on()
    }

    fn on_http_response_headers(&mut self, _headers: usize, _end_of_stream: bool) -> Action {
        traps::at("response");
        // The proxy's own replies pass here too; they are no upstream's answer. What was
        // let through where a route observes has one as well.
        if host::text_property(&["response", "code_details"]).as_deref() == Some(FROM_UPSTREAM) {
            match arrival::strip_response() {
                Ok(status) => self.upstream_status = status,
                Err(HostFault) => {
                    host::warn("writ: the host did not take headers off an upstream's answer");
                }
            }
        }
        Action::Continue
    }

    fn on_log(&mut self) {
        traps::at("log");
        self.end();
    }
}
