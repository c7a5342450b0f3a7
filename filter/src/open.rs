//! Requests that were let through and are not over: what the control plane may
//! still end, and is told of when it does not know them any more.

use crate::questions::Passage;
use capability::gates::Checked;
use decision_api::{Allow, FromFilter, OpenRequest, OpenRequests, QuestionId, from_filter};
use prost::Message;
use std::collections::BTreeMap;
use std::rc::Rc;

/// A message that tells of them is at most so long, and one request more; bytes.
const TELL_BYTES: usize = 64 * 1024;

/// One of them.
pub struct Open {
    http: u32,
    /// Its way to the upstream.
    pub passage: Rc<Passage>,
    /// Whom its token was given to.
    given: Given,
}

/// Whom a token was given to, and when: what a stop is about.
pub struct Given {
    token_hash: [u8; 32],
    agent: String,
    user: String,
    chain: Vec<String>,
    jkt: String,
    lineage: Vec<Vec<u8>>,
    issued_s: u64,
}

impl Given {
    /// What the token says, which the control plane has matched with its record, and
    /// what else of that it named.
    pub fn of(checked: Checked, allow: &Allow) -> Self {
        let token_hash = checked.token_hash();
        let claims = checked.into_claims();
        Self {
            token_hash,
            agent: claims.client_id,
            user: allow.user.clone(),
            chain: claims.chain,
            jkt: claims.jkt,
            lineage: allow.lineage.clone(),
            issued_s: claims.iat_s,
        }
    }
}

/// All of them, by their questions' counters.
pub struct OpenTable {
    capacity: usize,
    all: BTreeMap<u64, Open>,
}

impl OpenTable {
    /// Room for so many.
    pub fn new(capacity: usize) -> Self {
        Self {
            capacity,
            all: BTreeMap::new(),
        }
    }

    /// Changes the room; what is open stays.
    pub fn resize(&mut self, capacity: usize) {
        self.capacity = capacity;
    }

    /// True when no more may be let through, those that wait for an answer included.
    pub fn is_full(&self, waiting: usize) -> bool {
        self.all.len().saturating_add(waiting) >= self.capacity
    }

    /// One more. Its counter never repeats.
    pub fn enter(&mut self, http: u32, passage: &Rc<Passage>, given: Given) {
        let open = Open {
            http,
            passage: Rc::clone(passage),
            given,
        };
        self.all.insert(passage.id().counter, open);
    }

    /// One is over, or is being ended.
    pub fn take(&mut self, id: &QuestionId) -> Option<Open> {
        self.context_of(id)?;
        self.all.remove(&id.counter)
    }

    /// The HTTP context of one of them.
    pub fn context_of(&self, id: &QuestionId) -> Option<u32> {
        let known = self.all.get(&id.counter)?;
        (known.passage.id() == id).then_some(known.http)
    }

    /// Serialised messages that tell of all of them, and of the questions that still
    /// wait. There is at least one.
    pub fn tell(&self, asked: impl Iterator<Item = QuestionId>) -> Vec<Vec<u8>> {
        let mut messages = Vec::new();
        let mut part = OpenRequests::default();
        let mut flush = |part: &mut OpenRequests, least: usize| {
            if part.encoded_len() >= least {
                messages.push(encode(std::mem::take(part)));
            }
        };
        for open in self.all.values() {
            part.open.push(open.told());
            // Measured now and then: measuring is as long as what there is.
            if part.open.len().is_multiple_of(32) {
                flush(&mut part, TELL_BYTES);
            }
        }
        for id in asked {
            part.asked.push(id);
            if part.asked.len().is_multiple_of(512) {
                flush(&mut part, TELL_BYTES);
            }
        }
        part.last = true;
        flush(&mut part, 0);
        messages
    }
}

impl Open {
    fn told(&self) -> OpenRequest {
        OpenRequest {
            id: Some(self.passage.id().clone()),
            token_hash: self.given.token_hash.to_vec(),
            agent: self.given.agent.clone(),
            user: self.given.user.clone(),
            chain: self.given.chain.clone(),
            jkt: self.given.jkt.clone(),
            lineage: self.given.lineage.clone(),
            issued_s: self.given.issued_s,
        }
    }
}

fn encode(part: OpenRequests) -> Vec<u8> {
    FromFilter {
        message: Some(from_filter::Message::Open(part)),
        outcomes: Vec::new(),
    }
    .encode_to_vec()
}
