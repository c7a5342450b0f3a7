//! From a request's headers to its question: the gates, and, where bodies are
//! read, the wait for one in between.

use super::Core;
use crate::arrival::{self, Content};
use crate::config::Bodies;
use crate::host::{self, Header, HostFault};
use crate::questions::{Caller, Facts, Passage, Waiting};
use crate::refusal::Refusal;
use crate::traps;
use capability::action::Body;
use capability::decide::Mode;
use capability::gates::{self, Checked, RequestView, TokenCheck};
use capability::reason::Reason;
use capability::url;
use decision_api::{Question, ReadBody};
use std::rc::Rc;

/// What became of a request on its arrival, and of its body when that came.
pub enum Arrival {
    /// It is answered here.
    Refused,
    /// It is asked about; or it goes on already, since its route observes.
    Asked(Rc<Passage>),
    /// Its body is awaited.
    Reading,
    /// The instance before this one has let it through, with a permit.
    Passed,
}

impl Core {
    /// A request's headers are there, and whether it ends with them. Unless it
    /// has its permit it is paused now, or its route observes and it would have
    /// been refused.
    pub fn arrive(&mut self, http: u32, ended: bool) -> Arrival {
        if self.settings.bodies == Bodies::Before && host::was_passed() {
            return Arrival::Passed;
        }
        let headers = match arrival::trusted_headers() {
            Ok(headers) => {
                traps::arm(&headers);
                headers
            }
            Err(HostFault) => {
                // What can't be read is of no route: nothing observes it.
                let refusal = Refusal::new(Reason::InternalError);
                return self.refused(http, &Facts::of(&[]), &refusal);
            }
        };
        let mut facts = Facts::of(&headers);
        self.place(&headers, &mut facts);
        match self.judge(http, &headers, ended, &mut facts) {
            Ok(arrival) => arrival,
            Err(refusal) => self.refused(http, &facts, &refusal),
        }
    }

    /// Refuses in the callback of the request itself; where its route observes,
    /// it goes on when that returns.
    pub(super) fn refused(&mut self, http: u32, facts: &Facts, refusal: &Refusal) -> Arrival {
        let passage = self.refuse_on_arrival(http, facts, refusal);
        passage.map_or(Arrival::Refused, Arrival::Asked)
    }

    /// What the request's route asks for. To observe takes two: our own table and
    /// the proxy have to say that it is this route. And it takes a path that the
    /// upstream can't read as one of another route, which would refuse.
    fn place(&self, headers: &[Header], facts: &mut Facts) {
        let authority = self.settings.edge.authority_of(headers);
        facts.metadata = self.settings.metadata_of(authority).cloned();
        let Some(route) = self.settings.route(authority, facts.path()) else {
            return;
        };
        facts.decision_header = route.decision_header;
        facts.asks_nonce = route.nonce;
        let path = headers.iter().find(|(name, _)| name == b":path");
        if route.mode == Mode::Observe
            && path.is_some_and(|(_, path)| url::is_read_alike(path))
            && host::text_property(&["xds", "route_name"]).as_deref() == Some(&route.name)
        {
            facts.mode = Mode::Observe;
        }
    }

    /// The gates, and then the question, or first the body.
    fn judge(
        &mut self,
        http: u32,
        headers: &[Header],
        ended: bool,
        facts: &mut Facts,
    ) -> Result<Arrival, Refusal> {
        let now_us = host::now_us().map_err(|HostFault| Refusal::new(Reason::InternalError))?;
        // Without a demand for certificates there is nothing to read.
        let demanded = self.settings.edge.require_peer;
        let peer = demanded.then(|| self.peers.of_request()).flatten();
        facts.peer = peer.as_ref().map(|leaf| leaf.sha256);
        let view = RequestView {
            headers,
            peer: peer.as_deref(),
            body: match (ended, self.settings.bodies) {
                (true, _) => Body::Empty,
                (false, Bodies::Read) => Body::Awaited,
                (false, Bodies::Pass | Bodies::Before) => Body::Unread,
            },
            nonces: facts.asks_nonce.then(|| self.stream.nonces()),
        };
        let crypto = &self.settings.crypto;
        let checked =
            gates::check(&view, &self.settings.edge, now_us / 1000, crypto).map_err(|refused| {
                facts.caller = refused.authenticated.map(|known| Caller {
                    jti: known.jti,
                    agent: known.agent,
                    token_hash: known.token_hash,
                });
                self.refusal_at_the_gates(refused.reason)
            })?;
        if self.settings.edge.token_check == TokenCheck::Edge {
            facts.caller = Some(Caller {
                jti: checked.jti().to_owned(),
                agent: checked.agent().to_owned(),
                token_hash: checked.token_hash(),
            });
        }
        let content = Content::of(headers).map_err(Refusal::new)?;
        // None is read, or kept waiting, that could not be asked about.
        self.can_ask()?;
        let (authority, path) = (checked.authority(), checked.path());
        let Some(rule) = self.settings.body_rule(authority, path).cloned() else {
            return self.ask_unread(http, (checked, content), ended, facts, now_us);
        };
        match self.settings.bodies {
            Bodies::Pass => self.ask_unread(http, (checked, content), ended, facts, now_us),
            // It has not been where its body is read, so it goes nowhere.
            Bodies::Before => Err(Refusal::new(Reason::InternalError)),
            Bodies::Read => {
                self.begin_reading(http, (checked, content), headers, ended, (rule, facts))
            }
        }
    }

    /// A gate's no. Where a nonce is missing the client is told one; without a stream
    /// there is none to tell, and nobody to ask.
    fn refusal_at_the_gates(&self, reason: Reason) -> Refusal {
        if reason != Reason::ProofNonce {
            return Refusal::new(reason);
        }
        match self.stream.nonces().first() {
            Some(nonce) => Refusal::of_a_nonce(nonce),
            None => self.nobody_to_ask(),
        }
    }

    /// Whether there is somebody to ask, and room for a question.
    fn can_ask(&self) -> Result<(), Refusal> {
        if self.stream.is_up() && !self.questions.is_full() {
            return match self.open.is_full(self.questions.len()) {
                false => Ok(()),
                true => Err(Refusal::too_many_open()),
            };
        }
        Err(self.nobody_to_ask())
    }

    fn nobody_to_ask(&self) -> Refusal {
        if self.stream.fell_silent() {
            self.metrics.unheard.add(1);
        }
        Refusal::not_asked()
    }

    /// Asks about a request whose body is not looked at.
    fn ask_unread(
        &mut self,
        http: u32,
        (checked, content): (Checked, Content),
        ended: bool,
        facts: &mut Facts,
        now_us: u64,
    ) -> Result<Arrival, Refusal> {
        let body = if ended { Body::Empty } else { Body::Unread };
        let checked = checked.with_body(body).map_err(Refusal::new)?;
        self.ask(http, (checked, content), None, facts, now_us)
            .map(Arrival::Asked)
    }

    pub(super) fn ask(
        &mut self,
        http: u32,
        (checked, content): (Checked, Content),
        body: Option<(ReadBody, Waiting)>,
        facts: &mut Facts,
        asked_us: u64,
    ) -> Result<Rc<Passage>, Refusal> {
        self.can_ask()?;
        let (body, waiting) = body.unzip();
        let question = Question {
            token_hash: checked.token_hash().to_vec(),
            proof_jti: checked.proof_jti().to_owned(),
            method: checked.method().to_owned(),
            authority: checked.authority().to_owned(),
            path: checked.path().to_owned(),
            content_type: content.media_type,
            content_encoding: content.encoding,
            request_id: facts.request_id.clone(),
            source_address: host::text_property(&["source", "address"]).unwrap_or_default(),
            route: self
                .settings
                .route(checked.authority(), checked.path())
                .map_or_else(String::new, |route| route.name.clone()),
            observed: facts.mode == Mode::Observe,
            peer_certificate: facts.peer.map(Vec::from).unwrap_or_default(),
            body,
        };
        let times = (
            self.now_ms,
            asked_us,
            self.now_ms
                .saturating_add(self.settings.decision_deadline_ms),
        );
        let entry = self.questions.enter(
            http,
            checked,
            &question,
            self.stream.prefix(),
            (std::mem::take(facts), waiting),
            times,
        );
        let (passage, ask) = (Rc::clone(&entry.request.passage), entry.ask.clone());
        if self.send_with_outcomes(ask).is_err() {
            if let Some(entry) = self.questions.take(Some(passage.id())) {
                *facts = entry.request.facts;
            }
            return Err(Refusal::not_asked());
        }
        self.metrics.in_flight.add(1);
        Ok(passage)
    }
}
