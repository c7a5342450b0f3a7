//! Questions in flight: one entry per paused request, found by its question's
//! id and by nothing else.

use crate::host::Header;
use capability::decide::{Leave, Mode, Pending};
use capability::gates::Checked;
use capability::reason::Reason;
use decision_api::{Ask, Denial, FromFilter, Question, QuestionId, from_filter};
use prost::Message;
use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

/// The way to the upstream for one request. Closed until a leave opens it.
pub struct Passage {
    id: QuestionId,
    state: Cell<State>,
    ended: Cell<Option<Reason>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Closed,
    Permitted,
    Observed,
}

impl Passage {
    fn closed(id: QuestionId) -> Rc<Self> {
        Rc::new(Self {
            id,
            state: Cell::new(State::Closed),
            ended: Cell::new(None),
        })
    }

    /// One for a request that nothing was asked about.
    pub fn unasked() -> Rc<Self> {
        Self::closed(QuestionId::default())
    }

    /// Opens it, for good. The leave is used up; what the control plane allowed comes
    /// back.
    pub fn open(&self, leave: Leave) -> Option<Checked> {
        let (state, allowed) = match leave {
            Leave::Permitted(permit) => (State::Permitted, Some(permit.into_checked())),
            Leave::Observed(_used_up) => (State::Observed, None),
        };
        self.state.set(state);
        allowed
    }

    /// What has gone through is ended, for this reason.
    pub fn end(&self, reason: Reason) {
        self.ended.set(Some(reason));
    }

    /// Why what has gone through was ended, if it was.
    pub fn ended(&self) -> Option<Reason> {
        self.ended.get()
    }

    /// True once the request may go on.
    pub fn is_open(&self) -> bool {
        self.state.get() != State::Closed
    }

    /// True once it may go on because the control plane allowed it.
    pub fn is_permitted(&self) -> bool {
        self.state.get() == State::Permitted
    }

    /// The question that was asked about the request.
    pub fn id(&self) -> &QuestionId {
        &self.id
    }
}

/// Who asks for what, as far as refusals and the log need it.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Envoy's own request id.
    pub request_id: String,
    method: String,
    authority: String,
    path: String,
    /// Set once both signatures have verified.
    pub caller: Option<Caller>,
    /// SHA-256 of the connection's client certificate, where one is demanded.
    pub peer: Option<[u8; 32]>,
    /// What the request's route makes of a refusal, from its arrival on.
    pub mode: Mode,
    /// Its route's upstream is shown the control plane's signed decision.
    pub decision_header: bool,
    /// Its route asks for a nonce in the proof.
    pub asks_nonce: bool,
    /// Where the metadata of its origin is, where that is served.
    pub metadata: Option<Rc<str>>,
    /// The id of the question that was asked about it, as the log has it.
    pub question: String,
    /// How long that question's last answer took; microseconds.
    pub decision_us: Option<u64>,
}

/// An authenticated caller.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The token's `jti`.
    pub jti: String,
    /// The agent's SPIFFE ID.
    pub agent: String,
    /// SHA-256 of the token.
    pub token_hash: [u8; 32],
}

impl Facts {
    /// What the headers say; nothing of it has been verified.
    pub fn of(headers: &[Header]) -> Self {
        Self {
            request_id: text(headers, "x-request-id", 128),
            method: text(headers, ":method", 32),
            authority: text(headers, ":authority", 256),
            path: text(headers, ":path", 1024),
            ..Self::default()
        }
    }

    /// The path, as much of it as is kept; empty when there was none.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The log's entry for a refusal, or `None` when nobody was authenticated.
    pub fn denial(&self, reason: &str, time_ms: u64, observed: bool) -> Option<Denial> {
        let caller = self.caller.as_ref()?;
        Some(Denial {
            reason: reason.to_owned(),
            token_hash: caller.token_hash.to_vec(),
            jti: caller.jti.clone(),
            agent: caller.agent.clone(),
            method: self.method.clone(),
            authority: self.authority.clone(),
            path: self.path.clone(),
            request_id: self.request_id.clone(),
            time_ms,
            observed,
        })
    }
}

/// A question's id as the audit log has it: prefix in hex, and counter.
fn attempt(id: &QuestionId) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |half: u8| DIGITS.get(usize::from(half)).copied().map(char::from);
    let halves = id.prefix.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    let mut text: String = halves.filter_map(digit).collect();
    text.push('-');
    text.push_str(&id.counter.to_string());
    text
}

/// The first header of that name as text, cut to so many bytes; what is not
/// UTF-8 is replaced.
fn text(headers: &[Header], name: &str, most: usize) -> String {
    let value = headers
        .iter()
        .find(|(candidate, _)| candidate == name.as_bytes())
        .map(|(_, value)| value.as_slice());
    cut(&String::from_utf8_lossy(value.unwrap_or_default()), most)
}

/// The text's first bytes, at most so many, whole characters only.
pub fn cut(text: &str, most: usize) -> String {
    let (kept, _) = text.split_at(text.floor_char_boundary(most));
    kept.to_owned()
}

/// An approval that a request waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Awaited {
    /// Its id.
    pub approval_id: String,
    /// Where the client sees whether somebody has decided; may be empty.
    pub status_url: String,
}

/// Where an entry stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Asked; no answer yet.
    Asked,
    /// A human is being asked.
    Held {
        /// When the wait began.
        since_ms: u64,
        /// What it waits for.
        awaited: Awaited,
    },
    /// Its time is over, and the control plane has been told. Nothing that
    /// arrives now can let the request through.
    Withdrawing {
        /// What it waited for, if it was held.
        awaited: Option<Awaited>,
    },
}

/// One paused request.
pub struct Paused {
    /// Its HTTP context.
    pub http: u32,
    /// Its way to the upstream.
    pub passage: Rc<Passage>,
    /// Who asks.
    pub facts: Facts,
}

/// One question without a last answer.
pub struct Entry {
    /// The request that waits for it.
    pub request: Paused,
    /// What the answer is judged by.
    pub pending: Pending,
    /// The message that asked, kept to ask again after a reconnect.
    pub ask: Vec<u8>,
    /// When it was asked, by the ticks.
    pub asked_ms: u64,
    /// When it was asked, by the host's clock; microseconds.
    pub asked_us: u64,
    /// When the present phase ends.
    pub deadline_ms: u64,
    /// Where it stands.
    pub phase: Phase,
    /// Its body, which waits in the host.
    pub body: Option<Waiting>,
}

/// A body that waits in the host for its question's answer.
pub struct Waiting {
    /// Its bytes.
    pub size: usize,
    /// SHA-256 of them.
    pub digest: [u8; 32],
    /// The place that it takes up.
    pub _place: Rc<()>,
}

/// A question that nobody waits for any more, and whose last answer has not come.
struct Gone {
    id: QuestionId,
    until_ms: u64,
    why: &'static str,
}

/// All of them.
pub struct Questions {
    capacity: usize,
    counter: u64,
    entries: BTreeMap<u64, Entry>,
    /// In the order in which their clients left.
    gone: VecDeque<Gone>,
}

impl Questions {
    /// Room for so many questions without an answer.
    pub fn new(capacity: usize) -> Self {
        Self {
            capacity,
            counter: 0,
            entries: BTreeMap::new(),
            gone: VecDeque::new(),
        }
    }

    /// Changes the room; what is in flight stays.
    pub fn resize(&mut self, capacity: usize) {
        self.capacity = capacity;
    }

    /// True when no more may be asked.
    pub fn is_full(&self) -> bool {
        self.entries.len() >= self.capacity
    }

    /// Enters a request. The counter never repeats in a VM context, whatever
    /// the prefix, so it alone finds the entry.
    pub fn enter(
        &mut self,
        http: u32,
        checked: Checked,
        question: &Question,
        prefix: &[u8],
        (mut facts, body): (Facts, Option<Waiting>),
        (asked_ms, asked_us, deadline_ms): (u64, u64, u64),
    ) -> &Entry {
        self.counter = self.counter.saturating_add(1);
        let id = QuestionId {
            prefix: prefix.to_vec(),
            counter: self.counter,
        };
        facts.question = attempt(&id);
        let question = question.encode_to_vec();
        let ask = Ask {
            id: Some(id.clone()),
            token: checked.token().to_owned(),
            proof: checked.proof().to_owned(),
            question,
        };
        let pending = Pending::new(checked, &ask.question);
        let entry = Entry {
            request: Paused {
                http,
                passage: Passage::closed(id),
                facts,
            },
            pending,
            ask: FromFilter {
                message: Some(from_filter::Message::Ask(ask)),
                outcomes: Vec::new(),
            }
            .encode_to_vec(),
            asked_ms,
            asked_us,
            deadline_ms,
            phase: Phase::Asked,
            body,
        };
        self.entries
            .entry(self.counter)
            .insert_entry(entry)
            .into_mut()
    }

    /// The entry of an id; none for an id that is unknown, answered or not ours.
    pub fn find(&mut self, id: Option<&QuestionId>) -> Option<&mut Entry> {
        let id = id?;
        self.entries
            .get_mut(&id.counter)
            .filter(|entry| entry.request.passage.id() == id)
    }

    /// Takes the entry of an id out, so that it can be answered once.
    pub fn take(&mut self, id: Option<&QuestionId>) -> Option<Entry> {
        self.find(id)?;
        self.entries.remove(&id?.counter)
    }

    /// Those whose time is over.
    pub fn overdue(&self, now_ms: u64) -> Vec<QuestionId> {
        let over = self
            .entries
            .values()
            .filter(|entry| now_ms >= entry.deadline_ms);
        over.map(|entry| entry.request.passage.id().clone())
            .collect()
    }

    /// All without a last answer, oldest first.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }

    /// How many wait for an answer.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True when nothing waits for an answer.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// True for an id that was given out under this prefix, whatever became of it.
    pub fn was_asked(&self, id: &QuestionId, prefix: &[u8]) -> bool {
        id.prefix == prefix && (1..=self.counter).contains(&id.counter)
    }

    /// Remembers for a while that nobody waits for this question's answer, and
    /// why. Of too many the oldest is forgotten.
    pub fn leave(&mut self, id: &QuestionId, until_ms: u64, why: &'static str) {
        if self.gone.len() >= self.capacity {
            self.gone.pop_front();
        }
        self.gone.push_back(Gone {
            id: id.clone(),
            until_ms,
            why,
        });
    }

    /// Forgets a question that nobody waits for; why that was, when it was one.
    pub fn forget(&mut self, id: &QuestionId) -> Option<&'static str> {
        let at = self.gone.iter().position(|gone| gone.id == *id)?;
        self.gone.remove(at).map(|gone| gone.why)
    }

    /// Those that nobody waits for and whose last answer has not come.
    pub fn gone(&self) -> impl Iterator<Item = QuestionId> {
        self.gone.iter().map(|gone| gone.id.clone())
    }

    /// Forgets those of them that nothing has come for.
    pub fn sweep(&mut self, now_ms: u64) {
        self.gone.retain(|gone| now_ms < gone.until_ms);
    }
}
