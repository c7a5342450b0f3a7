//! The root context: reads the configuration, keeps the time, and passes on
//! what the stream brings.

use crate::config::{SIZE_MAX, Settings};
use crate::core::Core;
use crate::host::{self, Queue};
use crate::http::Request;
use crate::metrics::Metrics;
use crate::traps;
use crate::verify::{self, Crypto};
use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::ContextType;
use std::cell::RefCell;
use std::rc::Rc;

/// Between ticks while there is no stream, and while there is one; milliseconds.
const TICK_CONNECTING_MS: u32 = 25;
const TICK_MS: u32 = 100;
/// The queue of refusals that a context could not hand in.
const LEFT: &str = "writ.left";

/// The root context of one plugin configuration.
pub struct Root {
    id: u32,
    period_ms: u32,
    core: Option<Rc<RefCell<Core>>>,
}

impl Root {
    /// A root that has no configuration yet.
    pub fn new(id: u32) -> Self {
        Self {
            id,
            period_ms: TICK_CONNECTING_MS,
            core: None,
        }
    }

    fn configure(&mut self, size: usize) -> Result<(), Vec<String>> {
        if size > SIZE_MAX {
            return Err(vec![format!(
                "the configuration has {size} bytes; at most {SIZE_MAX} are read"
            )]);
        }
        let bytes = host::plugin_configuration(size).unwrap_or_default();
        traps::in_configuration(&bytes);
        let settings = Settings::parse(&bytes)?;
        verify::self_check(settings.crypto).map_err(|failed| vec![failed.explain().to_owned()])?;
        let refused = |what: &str| vec![format!("the host refused {what}")];
        let metrics = Metrics::define(settings.crypto == Crypto::Portable, settings.observing())
            .map_err(|_fault| refused("to define metrics"))?;
        let left = Queue::named(LEFT).map_err(|_fault| refused("a queue"))?;
        host::tick_every(self.period_ms).map_err(|_fault| refused("a timer"))?;
        if settings.observing() > 0 {
            host::warn("writ: routes are configured to observe: on them NOTHING IS REFUSED");
        }
        match &self.core {
            Some(core) => core.borrow_mut().reconfigure(settings, metrics),
            None => {
                self.core = Some(Rc::new(RefCell::new(Core::new(
                    self.id, settings, metrics, left,
                ))))
            }
        }
        Ok(())
    }

    fn with_core(&self, act: impl FnOnce(&mut Core)) {
        if let Some(core) = &self.core {
            let mut core = core.borrow_mut();
            core.begin(self.id);
            act(&mut core);
        }
    }

    /// Ticks come sooner while a stream is being opened, so that a request
    /// right after a reload finds one.
    fn pace(&mut self) {
        let waiting = self
            .core
            .as_ref()
            .is_some_and(|core| core.borrow().is_waiting());
        let period_ms = if waiting { TICK_CONNECTING_MS } else { TICK_MS };
        if period_ms != self.period_ms && host::tick_every(period_ms).is_ok() {
            self.period_ms = period_ms;
        }
    }
}

impl Context for Root {
    fn on_grpc_stream_message(&mut self, stream: u32, size: usize) {
        traps::at("answer");
        self.with_core(|core| core.received(stream, size));
    }

    fn on_grpc_stream_close(&mut self, stream: u32, _status: u32) {
        traps::at("close");
        self.with_core(|core| core.closed(stream));
    }

    fn on_done(&mut self) -> bool {
        self.with_core(Core::flush);
        true
    }
}

impl RootContext for Root {
    fn on_configure(&mut self, size: usize) -> bool {
        match self.configure(size) {
            Ok(()) => true,
            Err(faults) => {
                for fault in faults {
                    host::warn(&format!("writ: bad plugin configuration: {fault}"));
                }
                false
            }
        }
    }

    fn on_tick(&mut self) {
        traps::at("tick");
        let passed_ms = u64::from(self.period_ms);
        self.with_core(|core| core.tick(passed_ms));
        self.pace();
    }

    fn create_http_context(&self, context_id: u32) -> Option<Box<dyn HttpContext>> {
        Some(Box::new(Request::new(context_id, self.core.clone())))
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }
}
