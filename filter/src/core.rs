//! What the root context and its HTTP contexts share: one per plugin
//! configuration and VM. Requests come in at [`Core::arrive`]; answers and
//! deadlines find them by their question's id.
//!
//! A host call acts on the context that is in force, so every act begins with
//! [`Core::put`], and when that fails nothing is done: the context before stays
//! in force, and acting would release somebody else's request.

mod answers;
mod arriving;
mod bodies;
mod passing;

pub use arriving::Arrival;
use bodies::Readings;

use crate::config::Settings;
use crate::denials::{Denials, Kept};
use crate::host::{self, ContextGone, Queue};
use crate::metrics::Metrics;
use crate::open::OpenTable;
use crate::outcomes::Outcomes;
use crate::peers::Peers;
use crate::questions::{Entry, Phase, Questions, cut};
use crate::stream::{NotSent, Stream, Ticked};
use decision_api::from_filter::Message as ToServer;
use decision_api::{DenialBatch, Outcome, QuestionId, Withdraw};
use prost::Message;

/// How long the answer to a withdrawal is waited for; milliseconds.
const WITHDRAWAL_MS: u64 = 500;
/// What a hold may take beyond its own time for its last answer; milliseconds.
const HOLD_MARGIN_MS: u64 = 2_000;
/// How long it is remembered that nobody waits for an answer that may still
/// come; milliseconds. A hold is at most 55 s.
const GONE_MS: u64 = 60_000;
/// Why an allowed request went no further.
const CLIENT_LEFT: &str = "the client had left";
const TOO_LATE: &str = "the deadline had passed";
/// A message from the control plane is at most this long; bytes.
const MESSAGE_MAX: usize = 64 * 1024;
/// Batches of others that are taken over in one tick.
const INHERITED: usize = 32;
/// The proxy's word for how a response ended is cut to this; bytes.
const DETAILS_MAX: usize = 128;

/// Who refused.
#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    /// This filter: its refusals go to the log in batches.
    Filter,
    /// The control plane, which has it in its log already.
    ControlPlane,
}

/// The state of one plugin configuration in one VM.
pub struct Core {
    root: u32,
    in_force: u32,
    now_ms: u64,
    settings: Settings,
    metrics: Metrics,
    stream: Stream,
    questions: Questions,
    denials: Denials,
    outcomes: Outcomes,
    open: OpenTable,
    peers: Peers,
    readings: Readings,
    /// Refusals that a context which went away could not hand in.
    left: Queue,
}

impl Core {
    /// A state without a stream; ticks open one.
    pub fn new(root: u32, settings: Settings, metrics: Metrics, left: Queue) -> Self {
        Self {
            root,
            left,
            in_force: root,
            now_ms: 0,
            stream: Stream::new(),
            questions: Questions::new(settings.questions),
            denials: Denials::new(settings.denials),
            outcomes: Outcomes::new(),
            open: OpenTable::new(settings.open),
            peers: Peers::default(),
            readings: Readings::new(),
            settings,
            metrics,
        }
    }

    /// Takes a new configuration; what is in flight goes on.
    pub fn reconfigure(&mut self, settings: Settings, metrics: Metrics) {
        self.questions.resize(settings.questions);
        self.open.resize(settings.open);
        self.denials.resize(settings.denials);
        self.settings = settings;
        self.metrics.flush();
        self.metrics = metrics;
    }

    /// A callback begins, and the host has put its context in force.
    pub fn begin(&mut self, context: u32) {
        self.in_force = context;
    }

    fn put(&mut self, context: u32) -> Result<(), ContextGone> {
        if self.in_force != context {
            host::enter(context)?;
            self.in_force = context;
        }
        Ok(())
    }

    // ---- requests --------------------------------------------------------------

    /// A request's client left before there was an answer. Its context must not
    /// be touched again, whatever arrives.
    pub fn client_gone(&mut self, id: &QuestionId) {
        if self.take(Some(id)).is_none() {
            return;
        }
        self.metrics.clients_gone.add(1);
        self.leave(id, CLIENT_LEFT);
        self.withdraw(id);
    }

    /// Nobody waits for this question any more, and its last answer may come yet.
    fn leave(&mut self, id: &QuestionId, why: &'static str) {
        self.questions
            .leave(id, self.now_ms.saturating_add(GONE_MS), why);
    }

    /// A request that was let through ended.
    pub fn ended(&mut self, id: &QuestionId, status: u32, response_bytes: u64, details: &str) {
        // One that was stopped is not there any more.
        let _over = self.open.take(id);
        self.outcome(Outcome {
            id: Some(id.clone()),
            status,
            response_bytes,
            details: cut(details, DETAILS_MAX),
            not_forwarded: false,
        });
    }

    /// Takes an outcome, to be reported with the next question. When nothing is
    /// in flight, the next question may be far, so it is reported at once; the
    /// next tick reports what is left.
    fn outcome(&mut self, outcome: Outcome) {
        if self.outcomes.push(outcome) == Kept::Dropped {
            self.metrics.outcomes_dropped.add(1);
        }
        if self.questions.is_empty() || self.outcomes.fill_a_message() {
            self.report_outcomes();
        }
    }

    fn report_outcomes(&mut self) {
        while !self.outcomes.is_empty() && self.stream.is_up() {
            if self.send_with_outcomes(Vec::new()).is_err() {
                return;
            }
        }
    }

    /// Sends a serialised message, and with it the outcomes that wait.
    fn send_with_outcomes(&mut self, mut message: Vec<u8>) -> Result<(), NotSent> {
        // The stream belongs to the root context.
        self.put(self.root).map_err(|ContextGone| NotSent)?;
        let outcomes = self.outcomes.take();
        outcomes.append_to(&mut message);
        let sent = self.stream.send_encoded(&message, self.now_ms);
        if sent.is_err() {
            self.outcomes.put_back(outcomes);
        }
        sent
    }

    fn take(&mut self, id: Option<&QuestionId>) -> Option<Entry> {
        let entry = self.questions.take(id)?;
        self.metrics.in_flight.add(-1);
        Some(entry)
    }

    fn withdraw(&mut self, id: &QuestionId) -> bool {
        let message = ToServer::Withdraw(Withdraw {
            id: Some(id.clone()),
        });
        self.put(self.root).is_ok() && self.stream.send(message, self.now_ms).is_ok()
    }

    // ---- time ------------------------------------------------------------------

    /// Some time has passed. Deadlines count ticks: the host's clock may jump.
    pub fn tick(&mut self, passed_ms: u64) {
        self.now_ms = self.now_ms.saturating_add(passed_ms);
        let Settings {
            upstream, module, ..
        } = &self.settings;
        match self.stream.tick((self.now_ms, passed_ms), upstream, module) {
            Ticked::Opened => self.metrics.streams_opened.add(1),
            Ticked::FellSilent => self.metrics.silences.add(1),
            Ticked::Nothing => {}
        }
        for id in self.questions.overdue(self.now_ms) {
            self.overdue(&id);
        }
        self.questions.sweep(self.now_ms);
        self.end_late_readings();
        self.report_outcomes();
        self.inherit();
        self.report_denials();
        self.metrics.flush();
    }

    fn inherit(&mut self) {
        // What finds no room here stays for the worker that has some.
        for _ in 0..INHERITED {
            if !self.denials.has_room() {
                return;
            }
            let Some(bytes) = self.left.take() else {
                return;
            };
            if let Ok(batch) = DenialBatch::decode(bytes.as_slice()) {
                let over = self.denials.inherit(batch);
                self.metrics.denials_dropped.add(over);
            }
        }
    }

    /// True while there is no stream, when ticks should come sooner.
    pub fn is_waiting(&self) -> bool {
        !self.stream.is_up()
    }

    fn overdue(&mut self, id: &QuestionId) {
        let Some(entry) = self.questions.find(Some(id)) else {
            return;
        };
        let awaited = match &entry.phase {
            Phase::Asked => None,
            Phase::Held { awaited, .. } => Some(awaited.clone()),
            Phase::Withdrawing { .. } => {
                let Some(entry) = self.take(Some(id)) else {
                    return;
                };
                self.unanswered(&entry);
                // Not a word since the question: such a peer may be gone
                // without having closed anything.
                if self.stream.is_up() && self.stream.silent_since(entry.asked_ms) {
                    self.drop_stream();
                }
                return;
            }
        };
        entry.phase = Phase::Withdrawing { awaited };
        entry.deadline_ms = self.now_ms.saturating_add(WITHDRAWAL_MS);
        self.metrics.deadlines.add(1);
        if !self.withdraw(id) {
            let Some(entry) = self.take(Some(id)) else {
                return;
            };
            self.unanswered(&entry);
        }
    }

    fn drop_stream(&mut self) {
        if self.put(self.root).is_ok() {
            self.stream.drop_link(self.now_ms);
        }
    }

    fn report_denials(&mut self) {
        if !self.stream.is_up() || self.put(self.root).is_err() {
            return;
        }
        if let Some(batch) = self.denials.due(self.now_ms) {
            // One that does not leave stays unacknowledged, and is repeated.
            let _repeated = self
                .stream
                .send(ToServer::Denials(batch.clone()), self.now_ms);
        }
    }

    /// The last chance to report anything: the configuration is going away. What
    /// no stream takes is left to the context that takes this one's place: a
    /// control plane that starts again brings a new configuration, which may be
    /// here before the stream is.
    pub fn flush(&mut self) {
        self.metrics.flush();
        self.report_outcomes();
        let mut sends = self.stream.is_up() && self.put(self.root).is_ok();
        for batch in self.denials.flush() {
            sends = sends
                && self
                    .stream
                    .send(ToServer::Denials(batch.clone()), self.now_ms)
                    .is_ok();
            if !sends && self.left.put(&batch.encode_to_vec()).is_err() {
                host::warn("writ: refusals that could not be reported are lost");
            }
        }
    }
}
