//! Bodies that are read before their question is asked. The host keeps the bytes;
//! here is who waits for them, how many may, and for how long.

use super::{Arrival, Core};
use crate::arrival::Content;
use crate::config::BodyRule;
use crate::host::{self, Header};
use crate::questions::{Entry, Facts, Phase, Waiting};
use crate::refusal::Refusal;
use capability::action::Body;
use capability::body::{self, Scalar};
use capability::gates::Checked;
use capability::reason::Reason;
use capability::rpc::Call;
use capability::sha256;
use decision_api::from_filter::Message as ToServer;
use decision_api::{BodyFact, BodyWanted, Message, ReadBody, WholeBody, body_fact::Value};
use std::collections::BTreeMap;
use std::rc::Rc;

/// A body that is sent for a human to see is at most this long, as the control
/// plane has it; bytes.
const SENT_MAX: usize = 128 * 1024;

/// A request whose body is awaited. It has passed the gates.
struct Reading {
    checked: Checked,
    content: Content,
    facts: Facts,
    rule: Rc<BodyRule>,
    /// Bytes that have come.
    seen: usize,
    deadline_ms: u64,
    place: Rc<()>,
}

/// All of them, by their HTTP contexts.
pub(super) struct Readings {
    all: BTreeMap<u32, Reading>,
    /// Each body that waits in the host, read or asked about, has a share of it.
    places: Rc<()>,
    told: usize,
}

impl Readings {
    pub(super) fn new() -> Self {
        Self {
            all: BTreeMap::new(),
            places: Rc::new(()),
            told: 0,
        }
    }

    /// Bodies that wait in the host.
    fn waiting(&self) -> usize {
        Rc::strong_count(&self.places).saturating_sub(1)
    }
}

impl Core {
    /// The headers of a request on a route that reads bodies have passed.
    pub(super) fn begin_reading(
        &mut self,
        http: u32,
        (checked, content): (Checked, Content),
        headers: &[Header],
        ended: bool,
        (rule, facts): (Rc<BodyRule>, &mut Facts),
    ) -> Result<Arrival, Refusal> {
        if announced(headers).is_some_and(|length| length > rule.limit) {
            return Err(Refusal::body_too_large());
        }
        if !ended && self.readings.waiting() >= self.settings.bodies_at_once {
            return Err(Refusal::too_many_bodies());
        }
        let reading = Reading {
            checked,
            content,
            facts: std::mem::take(facts),
            rule,
            seen: 0,
            deadline_ms: self.now_ms.saturating_add(self.settings.body_deadline_ms),
            place: Rc::clone(&self.readings.places),
        };
        if ended {
            return Ok(self.ask_with(http, reading, &[]));
        }
        self.readings.all.insert(http, reading);
        Ok(Arrival::Reading)
    }

    /// More of an awaited body is there: `size` bytes by now, or trailers, which
    /// end it and say no size.
    pub fn body(&mut self, http: u32, size: Option<usize>, ended: bool) -> Arrival {
        let Some(reading) = self.readings.all.get_mut(&http) else {
            return Arrival::Refused;
        };
        reading.seen = size.unwrap_or(reading.seen);
        let over = reading.seen > reading.rule.limit;
        if !over && !ended {
            return Arrival::Reading;
        }
        let Some(reading) = self.readings.all.remove(&http) else {
            return Arrival::Refused;
        };
        if over {
            return self.refused(http, &reading.facts, &Refusal::body_too_large());
        }
        // One byte more than there may be, so that a longer one is noticed.
        let bytes = host::request_body(reading.seen.saturating_add(1));
        if bytes.len() != reading.seen {
            // A part is no body: no digest is made of it.
            let fault = Refusal::new(Reason::InternalError);
            return self.refused(http, &reading.facts, &fault);
        }
        self.ask_with(http, reading, &bytes)
    }

    /// The client of an awaited body left.
    pub fn reader_gone(&mut self, http: u32) {
        if self.readings.all.remove(&http).is_some() {
            self.metrics.clients_gone.add(1);
        }
    }

    fn ask_with(&mut self, http: u32, reading: Reading, bytes: &[u8]) -> Arrival {
        let Reading {
            checked,
            content,
            mut facts,
            rule,
            place,
            ..
        } = reading;
        let digest = sha256(bytes);
        let checked = match checked.with_body(Body::Read { bytes, digest }) {
            Ok(checked) => checked,
            Err(reason) => return self.refused(http, &facts, &Refusal::new(reason)),
        };
        let found = if body::is_json(&content.media_type, &content.encoding) {
            body::facts(bytes, &rule.facts)
        } else {
            Vec::new()
        };
        let read = ReadBody {
            digest: digest.to_vec(),
            size: u64::try_from(bytes.len()).unwrap_or(u64::MAX),
            facts: found.into_iter().map(fact).collect(),
            message: checked.message().map(message),
        };
        let waiting = Waiting {
            size: bytes.len(),
            digest,
            _place: place,
        };
        let Ok(now_us) = host::now_us() else {
            return self.refused(http, &facts, &Refusal::new(Reason::InternalError));
        };
        let asked = (checked, content);
        match self.ask(http, asked, Some((read, waiting)), &mut facts, now_us) {
            Ok(passage) => Arrival::Asked(passage),
            Err(refusal) => self.refused(http, &facts, &refusal),
        }
    }

    /// Ends the wait for bodies that take too long, and shows how many wait.
    pub(super) fn end_late_readings(&mut self) {
        let now_ms = self.now_ms;
        let late = self
            .readings
            .all
            .extract_if(.., |_, reading| now_ms >= reading.deadline_ms);
        let late: Vec<(u32, Reading)> = late.collect();
        for (http, reading) in late {
            // No route that reads bodies observes: this answers, or it stays paused.
            self.refused(http, &reading.facts, &Refusal::body_too_late());
        }
        let waiting = self.readings.waiting();
        let signed = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        let change = signed(waiting).saturating_sub(signed(self.readings.told));
        self.metrics.bodies.add(change);
        self.readings.told = waiting;
    }

    /// A human is to be asked about a question of ours, and has to see its body.
    pub(super) fn body_wanted(&mut self, wanted: &BodyWanted) {
        let open = |entry: &&mut Entry| {
            !matches!(entry.phase, Phase::Withdrawing { .. })
                && entry
                    .pending
                    .is_answered_by(&wanted.token_hash, &wanted.question_digest)
        };
        let entry = self.questions.find(wanted.id.as_ref()).filter(open);
        let waiting = entry.and_then(|entry| {
            let body = entry.body.as_ref().filter(|body| body.size <= SENT_MAX)?;
            Some((entry.request.http, body.size, body.digest))
        });
        let Some((http, size, digest)) = waiting else {
            self.metrics.answers_ignored.add(1);
            return;
        };
        if self.put(http).is_err() {
            self.metrics.contexts_lost.add(1);
            return;
        }
        let content = host::request_body(size.saturating_add(1));
        if sha256(&content) != digest {
            // What cannot be shown is not sent; the question ends at its deadline.
            host::warn("writ: the host no longer has the body of a question");
            return;
        }
        let message = ToServer::Body(WholeBody {
            id: wanted.id.clone(),
            content,
        });
        // One that does not leave is wanted again on the next stream.
        let _lost = self.put(self.root).is_ok() && self.stream.send(message, self.now_ms).is_ok();
    }
}

/// The length that a request announces. Hosts let none pass that is wrong.
fn announced(headers: &[Header]) -> Option<usize> {
    let (_, value) = headers.iter().find(|(name, _)| name == b"content-length")?;
    std::str::from_utf8(value).ok()?.parse().ok()
}

fn message(call: &Call) -> Message {
    let digest = call.arguments_digest();
    Message {
        r#type: call.protocol().kind().to_owned(),
        method: call.method().to_owned(),
        name: call.name().map(str::to_owned),
        arguments_digest: digest.map(Vec::from).unwrap_or_default(),
    }
}

fn fact((pointer, scalar): (String, Scalar)) -> BodyFact {
    let value = match scalar {
        Scalar::Text(text) => Value::Text(text),
        Scalar::Integer(integer) => Value::Integer(integer),
        Scalar::Flag(flag) => Value::Flag(flag),
    };
    BodyFact {
        pointer,
        value: Some(value),
    }
}
