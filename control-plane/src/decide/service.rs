//! `writ.decision.v1` over gRPC: one stream per proxy worker.

use super::engine::{Engine, Ruling};
use super::facts::{Facts, cut};
use super::open::{Rooms, Way};
use super::questions::{Asked, Entry, Prefix};
use super::verdicts::{answer_with, refused_verdict};
use super::wire::decisions_server::{Decisions, DecisionsServer};
use crate::canary;
use crate::fleet::{Requests, Seat};
use crate::state::Core;
use capability::reason::Reason;
use decision_api::{
    Answer, Ask, FromControlPlane, FromFilter, Heartbeat, PROTOCOL, Question, QuestionId, Welcome,
    Withdrawn, answer::Verdict, from_control_plane::Message as Down, from_filter::Message as Up,
};
use ledger::model::Command;
use prost::Message as _;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

/// Messages that may wait for a proxy that reads slowly.
const DOWN_QUEUE: usize = 8_192;
/// Prefixes that are remembered, over all proxies.
const PREFIXES_MAX: usize = 4_096;
/// Prefixes of one proxy's identity: it leaves some to the others.
const PREFIXES_OF_ONE: usize = 3_072;
/// A stream whose Hello takes longer is ended.
const HELLO_WITHIN: Duration = Duration::from_secs(10);
/// Denial batches of one stream that wait to be written.
const DENIAL_BATCHES: usize = 64;
/// Outcomes and refusals of strange questions that are being written, over all proxies.
const WRITES_IN_FLIGHT: usize = 4_096;
/// A gRPC message of a filter's, in bytes.
const MESSAGE_MAX: usize = 256 * 1024;

/// The service, shared by all streams.
#[derive(Clone)]
pub struct DecisionsService {
    pub(super) shared: Arc<Shared>,
}

pub(super) struct Shared {
    pub(super) engine: Engine,
    prefixes: Mutex<BTreeMap<[u8; 16], Arc<Prefix>>>,
    pub(super) writes: Arc<Semaphore>,
    /// Room for what is let through.
    pub(super) rooms: Rooms,
    /// Whether requests are held no longer.
    pub(super) stopping: CancellationToken,
    /// How many are held now.
    pub(super) holds: AtomicUsize,
}

impl DecisionsService {
    /// Serves decisions that rest on `core`.
    #[must_use]
    pub fn new(core: Arc<Core>) -> Self {
        let writes = Arc::new(Semaphore::new(WRITES_IN_FLIGHT));
        Self {
            shared: Arc::new(Shared {
                engine: Engine { core },
                prefixes: Mutex::default(),
                writes,
                rooms: Rooms::default(),
                stopping: CancellationToken::new(),
                holds: AtomicUsize::new(0),
            }),
        }
    }

    /// Forgets what is over, each few seconds, until the task is dropped.
    pub async fn sweep(self) {
        let mut tick = tokio::time::interval(Duration::from_secs(5));
        loop {
            tick.tick().await;
            self.shared.sweep();
        }
    }

    /// As a tonic service.
    #[must_use]
    pub fn into_server(self) -> DecisionsServer<Self> {
        DecisionsServer::new(self).max_decoding_message_size(MESSAGE_MAX)
    }
}

#[tonic::async_trait]
impl Decisions for DecisionsService {
    type StreamStream =
        Pin<Box<dyn futures::Stream<Item = Result<FromControlPlane, Status>> + Send>>;

    async fn stream(
        &self,
        request: Request<Streaming<FromFilter>>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        let peer = request
            .extensions()
            .get::<identity::mtls::Peer>()
            .map(|peer| peer.id.to_string())
            .ok_or_else(|| Status::unauthenticated("no client certificate"))?;
        let (down, downs) = mpsc::channel(DOWN_QUEUE);
        let shared = self.shared.clone();
        let ups = request.into_inner();
        tokio::spawn(async move {
            if let Err(status) = shared.serve(peer.clone(), ups, down).await {
                tracing::info!(peer, %status, "a decision stream ended");
            }
        });
        use tokio_stream::StreamExt;
        Ok(Response::new(Box::pin(ReceiverStream::new(downs).map(Ok))))
    }
}

impl Shared {
    async fn serve(
        self: Arc<Self>,
        peer: String,
        mut ups: Streaming<FromFilter>,
        down: mpsc::Sender<FromControlPlane>,
    ) -> Result<(), Status> {
        let first = tokio::time::timeout(HELLO_WITHIN, ups.message())
            .await
            .map_err(|_| Status::deadline_exceeded("no Hello came"))??
            .and_then(|first| first.message);
        let Some(Up::Hello(hello)) = first else {
            return Err(Status::invalid_argument("the first message is a Hello"));
        };
        if hello.protocol != PROTOCOL {
            tracing::error!(
                peer,
                theirs = hello.protocol,
                ours = PROTOCOL,
                "a filter speaks another protocol; it is refused"
            );
            return Err(Status::failed_precondition("protocol version"));
        }
        let core = &self.engine.core;
        let seat = Seat {
            peer: peer.clone(),
            node: xds::bounded(&hello.node),
            module: cut(&hello.module_version).to_owned(),
        };
        core.metrics.connected(&peer, &seat.module);
        let prefix = self.prefix(seat, &hello.resume_prefix)?;
        core.fleet.opened(&prefix.seat);
        let replaced = prefix.attach(down);
        tracing::info!(
            peer,
            prefix = hex::encode(prefix.bytes),
            node = prefix.seat.node,
            module = prefix.seat.module,
            "a filter connected"
        );
        let beat = || self.heartbeat(&prefix.seat);
        let Heartbeat { time_ms, nonces } = beat();
        prefix.send(Down::Welcome(Welcome {
            protocol: PROTOCOL,
            prefix: prefix.bytes.to_vec(),
            time_ms,
            nonces,
        }));
        let result = tokio::select! {
            result = self.read(&prefix, &mut ups) => result,
            () = replaced.cancelled() => Ok(()),
            () = prefix.beat(beat) => Ok(()),
        };
        prefix.detach(&replaced);
        core.fleet.ended(&prefix.seat);
        result
    }

    async fn read(
        self: &Arc<Self>,
        prefix: &Arc<Prefix>,
        ups: &mut Streaming<FromFilter>,
    ) -> Result<(), Status> {
        // Denial batches are taken in their order, beside the questions.
        let (batches, queue) = mpsc::channel(DENIAL_BATCHES);
        tokio::spawn(self.clone().take_denials(prefix.clone(), queue));
        while let Some(up) = ups.message().await? {
            if !up.outcomes.is_empty() {
                self.outcomes(prefix, up.outcomes).await;
            }
            match up.message {
                Some(Up::Ask(ask)) => self.ask(prefix, ask).await,
                Some(Up::Withdraw(withdraw)) => self.withdraw(prefix, withdraw.id),
                Some(Up::Open(part)) => self.told(prefix, part)?,
                Some(Up::Body(body)) => {
                    if let Some(counter) = own_counter(prefix, body.id.as_ref()) {
                        prefix.body_came(counter, body.content);
                    }
                }
                Some(Up::Denials(batch)) => {
                    // A full queue stops the reading: the proxy feels it.
                    let _ = batches.send(batch).await;
                }
                Some(Up::Hello(_)) => return Err(Status::invalid_argument("unexpected message")),
                // A message that carried outcomes alone.
                None => {}
            }
        }
        Ok(())
    }

    /// The prefix that this VM context has, or a new one. It is good for one
    /// certificate's identity: another's is not found.
    fn prefix(&self, seat: Seat, resume: &[u8]) -> Result<Arc<Prefix>, Status> {
        let mut prefixes = self.prefixes.lock().unwrap_or_else(PoisonError::into_inner);
        let known = <[u8; 16]>::try_from(resume)
            .ok()
            .and_then(|bytes| prefixes.get(&bytes).cloned());
        if let Some(known) = known.filter(|known| known.seat == seat) {
            return Ok(known);
        }
        let ours = |known: &&Arc<Prefix>| known.seat.peer == seat.peer;
        let own = prefixes.values().filter(ours).count();
        if prefixes.len() >= PREFIXES_MAX || own >= PREFIXES_OF_ONE {
            return Err(Status::resource_exhausted("too many filters are connected"));
        }
        let prefix = Arc::new(Prefix::new(rand::random(), seat));
        prefixes.insert(prefix.bytes, prefix.clone());
        Ok(prefix)
    }

    async fn ask(self: &Arc<Self>, prefix: &Arc<Prefix>, ask: Ask) {
        let Some(counter) = own_counter(prefix, ask.id.as_ref()) else {
            // A prefix from before a restart: what became of it can't be known.
            let Ok(room) = self.writes.clone().acquire_owned().await else {
                return;
            };
            let (shared, prefix) = (self.clone(), prefix.clone());
            tokio::spawn(async move {
                shared.refuse_foreign(&prefix, ask).await;
                drop(room);
            });
            return;
        };
        let digest = Sha256::digest(&ask.question).into();
        let verdict = match prefix.ask(
            counter,
            digest,
            self.engine.core.config.limits.questions_in_flight,
        ) {
            Asked::New(entry) => {
                let (shared, prefix) = (self.clone(), prefix.clone());
                // A task's cell is aligned, which makes a large one dear.
                let decided = Box::pin(shared.decide(prefix, counter, entry, ask));
                tokio::spawn(decided);
                return;
            }
            Asked::UnderWay => {
                prefix.want_body_again(counter);
                return;
            }
            Asked::Answered(answer) => {
                prefix.send(Down::Answer(*answer));
                return;
            }
            Asked::Conflict => {
                let body = serde_json::json!({ "proxy": prefix.seat.peer, "attempt": attempt(prefix, counter), "question": hex::encode(digest) });
                let note = Command::Note {
                    kind: "question_refused",
                    body,
                };
                if let Err(error) = self.engine.core.ledger.commit(note).await {
                    tracing::error!(%error, "a refused question could not be recorded");
                }
                refused_verdict(Reason::InternalError, None)
            }
            Asked::Full => {
                self.engine.core.refusals.count(Reason::LimitExceeded);
                refused_verdict(Reason::LimitExceeded, None)
            }
        };
        prefix.send(Down::Answer(self.answer(
            prefix.id(counter),
            &ask.question,
            verdict,
        )));
    }

    /// An answer, and what our clock says, so that the proxy can see how far its
    /// own is from it: the real clock, and not the ledger's.
    fn answer(&self, id: QuestionId, question: &[u8], verdict: Verdict) -> Answer {
        let metrics = &self.engine.core.metrics;
        match &verdict {
            Verdict::Allow(_) => metrics.answered("allow", None),
            Verdict::Hold(_) => metrics.answered("hold", None),
            Verdict::Deny(deny) => metrics.answered("deny", Reason::parse(&deny.reason)),
        }
        answer_with(id, question, verdict, self.now_ms())
    }

    fn now_ms(&self) -> u64 {
        (self.engine.core.clock)()
    }

    /// What every stream is told each second. Nonces are by the ledger's time, so
    /// that a clock which steps back brings none back.
    fn heartbeat(&self, seat: &Seat) -> Heartbeat {
        let core = &self.engine.core;
        let edge = core.edges.of(&seat.peer, &seat.module);
        Heartbeat {
            time_ms: self.now_ms(),
            nonces: core.edge_nonces.good(core.now(), edge.nonce_s),
        }
    }

    async fn refuse_foreign(&self, prefix: &Prefix, ask: Ask) {
        let reason = match (Question::decode(ask.question.as_slice()), ask.id.clone()) {
            (Ok(question), Some(id)) => {
                let facts = Facts {
                    question,
                    token: ask.token,
                    proof: ask.proof,
                    digest: Sha256::digest(&ask.question).into(),
                    attempt: format!("{}-{}", hex::encode(&id.prefix), id.counter),
                    proxy: prefix.seat.peer.clone(),
                    edge: self
                        .engine
                        .core
                        .edges
                        .of(&prefix.seat.peer, &prefix.seat.module),
                    body: None,
                    signed: OnceLock::new(),
                };
                self.engine
                    .record_refusal(&facts, Reason::OutcomeUnknown)
                    .await
            }
            _ => {
                self.engine.core.refusals.count(Reason::InternalError);
                Reason::InternalError
            }
        };
        let id = ask.id.unwrap_or_default();
        prefix.send(Down::Answer(self.answer(
            id,
            &ask.question,
            refused_verdict(reason, None),
        )));
    }

    /// Decides one question, from its arrival to its last answer.
    async fn decide(
        self: Arc<Self>,
        prefix: Arc<Prefix>,
        counter: u64,
        entry: Arc<Entry>,
        ask: Ask,
    ) {
        let answer = |verdict| self.answer(prefix.id(counter), &ask.question, verdict);
        let Ok(question) = Question::decode(ask.question.as_slice()) else {
            self.engine.core.refusals.count(Reason::InternalError);
            prefix.answer(&entry, answer(refused_verdict(Reason::InternalError, None)));
            return;
        };
        let mut facts = Facts {
            question,
            token: ask.token,
            proof: ask.proof,
            digest: Sha256::digest(&ask.question).into(),
            attempt: attempt(&prefix, counter),
            proxy: prefix.seat.peer.clone(),
            edge: self
                .engine
                .core
                .edges
                .of(&prefix.seat.peer, &prefix.seat.module),
            body: None,
            signed: OnceLock::new(),
        };
        if !entry.begin_commit() {
            return;
        }
        // Where a route only observes, whatever the answer is the request goes on.
        let room = match facts.question.observed {
            true => None,
            false => match self.rooms.take() {
                Some(room) => Some(room),
                None => {
                    self.engine.core.refusals.count(Reason::LimitExceeded);
                    prefix.answer(&entry, answer(refused_verdict(Reason::LimitExceeded, None)));
                    return;
                }
            },
        };
        let asked = Instant::now();
        let mut ruling = self.engine.decide(&facts).await;
        self.engine.core.metrics.took(asked.elapsed());
        // Until the body is kept, or not.
        let mut _room = None;
        if matches!(ruling, Ruling::NeedsBody) {
            ruling = match self.body(&prefix, counter, &entry, &facts).await {
                Ok((body, room)) => {
                    _room = Some(room);
                    facts.body = Some(body);
                    self.engine.decide(&facts).await
                }
                Err(reason) => Ruling::Refused(reason, None),
            };
        }
        let verdict = match ruling {
            Ruling::Hold(approval) => {
                self.keep_body(&facts, &approval);
                let way = Way {
                    prefix: &prefix,
                    counter,
                    entry: &entry,
                    room,
                };
                self.hold(way, &facts, &answer, *approval).await
            }
            Ruling::Refused(reason, first) => {
                let reason = self.engine.record_refusal(&facts, reason).await;
                Some(refused_verdict(reason, first))
            }
            ruling => {
                let way = Way {
                    prefix: &prefix,
                    counter,
                    entry: &entry,
                    room,
                };
                Some(self.verdict(way, ruling, &facts))
            }
        };
        if let Some(verdict) = verdict {
            self.engine.core.fleet.decided(
                &prefix.seat,
                match verdict {
                    Verdict::Allow(_) => Requests {
                        allowed: 1,
                        ..Requests::default()
                    },
                    // What the canary provokes says nothing of a module.
                    _ if facts.question.path.ends_with(canary::PATH) => Requests::default(),
                    _ if facts.question.observed => Requests {
                        observed: 1,
                        ..Requests::default()
                    },
                    _ => Requests {
                        refused: 1,
                        ..Requests::default()
                    },
                },
            );
            prefix.answer(&entry, answer(verdict));
        }
    }

    fn withdraw(&self, prefix: &Prefix, id: Option<QuestionId>) {
        let Some(counter) = own_counter(prefix, id.as_ref()) else {
            return;
        };
        let confirmed = prefix.withdraw(counter);
        // Whoever takes a question back lets nothing through by its answer.
        prefix.open.over(&prefix.id(counter));
        prefix.send(Down::Withdrawn(Withdrawn {
            id: Some(prefix.id(counter)),
            confirmed,
        }));
    }

    /// All workers that are remembered.
    pub(super) fn prefixes(&self) -> Vec<Arc<Prefix>> {
        let prefixes = self.prefixes.lock().unwrap_or_else(PoisonError::into_inner);
        prefixes.values().cloned().collect()
    }

    /// Forgets what is over, so that memory follows what is in use.
    fn sweep(&self) {
        let now = Instant::now();
        let mut prefixes = self.prefixes.lock().unwrap_or_else(PoisonError::into_inner);
        prefixes.retain(|_, prefix| prefix.sweep(now));
    }
}

pub(super) fn own_counter(prefix: &Prefix, id: Option<&QuestionId>) -> Option<u64> {
    id.filter(|id| id.prefix == prefix.bytes)
        .map(|id| id.counter)
}

pub(super) fn attempt(prefix: &Prefix, counter: u64) -> String {
    format!("{}-{counter}", hex::encode(prefix.bytes))
}
