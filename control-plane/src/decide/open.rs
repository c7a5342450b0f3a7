//! Requests that were let through and are not over, as far as proxies have said.
//! What of them is stopped is ended: rights are asked about again for each of them
//! whenever they change.

use super::engine::Ruling;
use super::facts::Facts;
use super::questions::{Entry, Prefix};
use super::reports;
use super::service::{DecisionsService, Shared};
use super::verdicts::{refused_verdict, verdict};
use crate::state::Core;
use capability::reason::Reason;
use decision_api::answer::Verdict;
use decision_api::{
    End, OpenRequest, OpenRequests, Outcome, QuestionId, from_control_plane::Message,
};
use ledger::model::{Bar, Given, Hash, HexHash, Rights, TokenRecord, User};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Status;

/// Open requests of one worker.
const OPEN_MAX: usize = 16_384;
/// Open requests of all proxies.
const OPEN_TOTAL: usize = 262_144;
/// Ids of requests and questions that a worker may tell of after a reconnect.
const TOLD_MAX: usize = 131_072;
/// The longest name in what a proxy tells of an open request; bytes.
const NAME_MAX: usize = 2_048;
/// Agents in a chain that it tells of.
const CHAIN_MAX: usize = 32;
/// Grants that it tells its token was got with.
const LINEAGE_MAX: usize = 32;
/// Readings of a user that it tells of: a `#` stands between issuer and subject, and
/// may be in either.
const USERS_MAX: usize = 8;
/// Requests that one message ends.
const ENDS_PER_MESSAGE: usize = 512;
/// Rights that end by themselves are looked at again this often at the least.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// Room for one open request, from before it is decided: what cannot be kept in
/// mind is not let through.
pub(super) struct Room {
    _permit: OwnedSemaphorePermit,
    /// How often rights had been looked at by then.
    looked: u64,
}

/// What all open requests share.
pub(super) struct Rooms {
    free: Arc<Semaphore>,
    /// How often rights have been looked at, and with them all that is open.
    looked: AtomicU64,
}

impl Default for Rooms {
    fn default() -> Self {
        Self {
            free: Arc::new(Semaphore::new(OPEN_TOTAL)),
            looked: AtomicU64::new(0),
        }
    }
}

impl Rooms {
    /// Room for one more, if there is any.
    pub(super) fn take(&self) -> Option<Room> {
        let looked = self.looked.load(Ordering::SeqCst);
        let permit = self.free.clone().try_acquire_owned().ok()?;
        Some(Room {
            _permit: permit,
            looked,
        })
    }
}

/// Whom an open request's token was given to.
enum Whose {
    /// By our own record.
    Record(Arc<TokenRecord>),
    /// As its proxy told: it was let through before we knew this proxy. Nothing but
    /// its end rests on it.
    Told(Box<Told>),
}

struct Told {
    token_hash: Hash,
    agent: String,
    /// Whoever may be meant: issuer and subject come as one text.
    users: Vec<User>,
    chain: Vec<String>,
    jkt: String,
    /// The grants that it was got with.
    lineage: Vec<HexHash>,
    issued_ms: u64,
}

impl Whose {
    fn find(&self, bar: impl Fn(&Given<'_>) -> Option<Reason>) -> Option<Reason> {
        let told = match self {
            Self::Record(token) => return bar(&Given::from(token.as_ref())),
            Self::Told(told) => told,
        };
        let given = |user| {
            bar(&Given {
                agent: &told.agent,
                user,
                chain: &told.chain,
                jkt: Some(&told.jkt),
                token: Some(&told.token_hash),
                lineage: &told.lineage,
                at_ms: told.issued_ms,
            })
        };
        match told.users.as_slice() {
            [] => given(None),
            users => users.iter().find_map(|user| given(Some(user))),
        }
    }
}

struct One {
    id: QuestionId,
    whose: Whose,
    /// It is stopped, and its end is awaited.
    ending: Option<Reason>,
    _room: Room,
}

/// What is open under one prefix, by the counters of its worker, which never repeat.
#[derive(Default)]
pub(super) struct Table(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    all: BTreeMap<u64, One>,
    ending: BTreeSet<u64>,
    /// What the worker has told of since it connected, until it has told of all.
    told: BTreeSet<u64>,
}

/// What became known of a request that is over.
pub(super) struct Over {
    /// Its agent, as the proxy told.
    pub(super) agent: String,
    /// SHA-256 of its token, as the proxy told.
    pub(super) token_hash: Hash,
}

impl Table {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether no further request of this worker may be let through.
    pub(super) fn is_full(&self) -> bool {
        self.lock().all.len() >= OPEN_MAX
    }

    /// A request is over, or never went on. What an earlier control plane let
    /// through comes back.
    pub(super) fn over(&self, id: &QuestionId) -> Option<Over> {
        let mut inner = self.lock();
        if inner.all.get(&id.counter)?.id != *id {
            return None;
        }
        inner.ending.remove(&id.counter);
        match inner.all.remove(&id.counter)?.whose {
            Whose::Record(_) => None,
            Whose::Told(told) => Some(Over {
                agent: told.agent,
                token_hash: told.token_hash,
            }),
        }
    }

    /// What ends whatever is stopped and not over, said again.
    pub(super) fn ends(&self) -> Vec<End> {
        let inner = self.lock();
        let mut by_reason: BTreeMap<&'static str, Vec<QuestionId>> = BTreeMap::new();
        for one in inner.ending.iter().filter_map(|at| inner.all.get(at)) {
            if let Some(reason) = one.ending {
                let ids = by_reason.entry(reason.as_str()).or_default();
                ids.push(one.id.clone());
            }
        }
        drop(inner);
        let mut ends = Vec::new();
        for (reason, ids) in by_reason {
            ends.extend(ids.chunks(ENDS_PER_MESSAGE).map(|ids| End {
                ids: ids.to_vec(),
                reason: reason.to_owned(),
            }));
        }
        ends
    }

    /// Marks what is stopped by now; how many these are, by reason.
    fn look(&self, bar: impl Fn(&Given<'_>) -> Option<Reason>) -> BTreeMap<Reason, u64> {
        let mut inner = self.lock();
        let Inner { all, ending, .. } = &mut *inner;
        let mut stopped = BTreeMap::new();
        for (counter, one) in all.iter_mut().filter(|(_, one)| one.ending.is_none()) {
            one.ending = one.whose.find(&bar);
            if let Some(reason) = one.ending {
                ending.insert(*counter);
                *stopped.entry(reason).or_default() += 1;
            }
        }
        stopped
    }

    fn enter(&self, one: One) {
        let mut inner = self.lock();
        let counter = one.id.counter;
        if one.ending.is_some() {
            inner.ending.insert(counter);
        }
        inner.all.insert(counter, one);
    }

    /// Another stream of the worker: it tells anew what is open.
    pub(super) fn reconnected(&self) {
        self.lock().told.clear();
    }
}

/// What the last answer to a question needs to be a yes.
pub(super) struct Way<'w> {
    pub(super) prefix: &'w Prefix,
    pub(super) counter: u64,
    pub(super) entry: &'w Entry,
    /// None where a route only observes: nothing ends what goes on there.
    pub(super) room: Option<Room>,
}

/// Why what was given counts no more, if it doesn't.
fn barred(core: &Core, rights: &Rights, given: &Given<'_>) -> Option<Reason> {
    // After a restore nobody acts before a person has confirmed it.
    if core.ledger.suspended().is_some() {
        return Some(Reason::AgentInactive);
    }
    rights.bar(given, core.now()).map(|bar| match bar {
        Bar::Stopped(_) => Reason::TokenRevoked,
        Bar::Inactive => Reason::AgentInactive,
    })
}

impl Shared {
    /// What the filter is told. What is allowed is open from now on.
    pub(super) fn verdict(&self, way: Way<'_>, ruling: Ruling, facts: &Facts) -> Verdict {
        let core = &self.engine.core;
        let token = match &ruling {
            Ruling::Allow(token) => Some(Arc::clone(token)),
            _ => None,
        };
        let said = verdict(ruling, core, facts);
        let (Verdict::Allow(_), Some(token), Some(room)) = (&said, token, way.room) else {
            return said;
        };
        if let Some(reason) = self.opened(way.prefix, way.counter, room, &token) {
            let (core, attempt) = (Arc::clone(core), facts.attempt.clone());
            let outcome = Outcome {
                details: "writ: not forwarded, it was stopped meanwhile".to_owned(),
                not_forwarded: true,
                ..Outcome::default()
            };
            tokio::spawn(async move { reports::outcome_of(&core, attempt, &outcome).await });
            return refused_verdict(reason, None);
        }
        if way.entry.was_left() {
            way.prefix.open.over(&way.prefix.id(way.counter));
        }
        said
    }

    /// A request was allowed: it is open from now on. Unless it was stopped since its
    /// commit, which is why, and then it must not pass.
    fn opened(
        &self,
        prefix: &Prefix,
        counter: u64,
        room: Room,
        token: &Arc<TokenRecord>,
    ) -> Option<Reason> {
        let core = &self.engine.core;
        let looked = room.looked;
        let id = prefix.id(counter);
        prefix.open.enter(One {
            id: id.clone(),
            whose: Whose::Record(Arc::clone(token)),
            ending: None,
            _room: room,
        });
        // Whoever looks from now on finds it. Who has begun to since its commit may
        // have missed it; and of what changed before that its commit knew.
        if self.rooms.looked.load(Ordering::SeqCst) == looked {
            return None;
        }
        let given = Given::from(token.as_ref());
        let reason = barred(core, &core.ledger.rights(), &given)?;
        prefix.open.over(&id);
        Some(reason)
    }

    /// A worker tells what it has let through that is not over, and what it still
    /// waits for. What is not known here is asked about rights at once; what it does
    /// not tell of is over.
    ///
    /// # Errors
    /// When it tells of more than it can have.
    pub(super) fn told(&self, prefix: &Prefix, part: OpenRequests) -> Result<(), Status> {
        let core = &self.engine.core;
        let rights = core.ledger.rights();
        let mut inner = prefix.open.lock();
        let ids = part.open.iter().filter_map(|open| open.id.as_ref());
        let counters = ids.chain(&part.asked).map(|id| id.counter);
        inner.told.extend(counters);
        if inner.told.len() > TOLD_MAX {
            return Err(Status::invalid_argument("too many open requests"));
        }
        drop(inner);
        for open in part.open {
            let Some(id) = open.id.clone() else { continue };
            let known = prefix
                .open
                .lock()
                .all
                .get(&id.counter)
                .map(|it| it.id == id);
            if known == Some(true) {
                continue;
            }
            let told = read(open);
            let room = (!prefix.open.is_full())
                .then(|| self.rooms.take())
                .flatten();
            let (Some(told), Some(room), None) = (told, room, known) else {
                // What can't be kept in mind can't be ended later.
                let reason = Reason::LimitExceeded;
                core.metrics.ended(reason, 1);
                prefix.send(Message::End(End {
                    ids: vec![id],
                    reason: reason.as_str().to_owned(),
                }));
                continue;
            };
            let whose = Whose::Told(Box::new(told));
            let ending = whose.find(|given| barred(core, &rights, given));
            if let Some(reason) = ending {
                core.metrics.ended(reason, 1);
            }
            prefix.open.enter(One {
                id,
                whose,
                ending,
                _room: room,
            });
        }
        if part.last {
            let mut inner = prefix.open.lock();
            let told = std::mem::take(&mut inner.told);
            inner.all.retain(|counter, _| told.contains(counter));
            inner.ending.retain(|counter| told.contains(counter));
            drop(inner);
            // Rights may have changed since they were read, and what ended before
            // may not have been heard.
            self.end_stopped(prefix);
            prefix.send_ends();
        }
        Ok(())
    }

    /// Ends what of this worker's open requests is stopped by now.
    fn end_stopped(&self, prefix: &Prefix) {
        let core = &self.engine.core;
        let rights = core.ledger.rights();
        let stopped = prefix.open.look(|given| barred(core, &rights, given));
        if stopped.is_empty() {
            return;
        }
        prefix.send_ends();
        for (reason, count) in stopped {
            core.metrics.ended(reason, count);
            tracing::info!(
                peer = prefix.seat.peer,
                count,
                reason = reason.as_str(),
                "open requests are ended"
            );
        }
    }
}

impl Prefix {
    /// Says again what ends, as long as something does.
    pub(super) fn send_ends(&self) {
        for end in self.open.ends() {
            self.send(Message::End(end));
        }
    }
}

impl DecisionsService {
    /// Ends open requests of whatever is stopped, until the task is dropped.
    pub async fn end_what_is_stopped(self) {
        let shared = &self.shared;
        let core = &shared.engine.core;
        let mut changes = core.ledger.subscribe_approvals();
        let mut known: Option<Arc<Rights>> = None;
        let mut next_ms = 0;
        loop {
            changes.borrow_and_update();
            // Before rights are read: what is let through meanwhile looks for itself.
            shared.rooms.looked.fetch_add(1, Ordering::SeqCst);
            let rights = core.ledger.rights();
            let now_ms = core.now();
            let same = known.as_ref().is_some_and(|it| Arc::ptr_eq(it, &rights));
            if !same || now_ms >= next_ms {
                let ends = rights.agents.values().filter_map(|it| it.expires_ms);
                next_ms = ends.filter(|at| *at > now_ms).min().unwrap_or(u64::MAX);
                for prefix in shared.prefixes() {
                    shared.end_stopped(&prefix);
                    tokio::task::yield_now().await;
                }
                known = Some(rights);
            }
            let left = Duration::from_millis(next_ms.saturating_sub(now_ms));
            tokio::select! {
                changed = changes.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                () = tokio::time::sleep(left.min(LOOK_EVERY)) => {}
            }
        }
    }
}

/// What a proxy tells of one; nothing when it can't be of ours.
fn read(open: OpenRequest) -> Option<Told> {
    let names = [&open.agent, &open.user, &open.jkt];
    let fits = |name: &String| name.len() <= NAME_MAX;
    let all = names.into_iter().chain(&open.chain).all(fits);
    if !all || open.chain.len() > CHAIN_MAX {
        return None;
    }
    let user = open.user.as_str();
    let splits = user.match_indices('#').map(|(at, _)| user.split_at(at));
    let users: Vec<User> = splits
        .take(USERS_MAX + 1)
        .map(|(issuer, subject)| User {
            issuer: issuer.to_owned(),
            subject: subject.strip_prefix('#').unwrap_or_default().to_owned(),
        })
        .collect();
    if users.len() > USERS_MAX || users.is_empty() != user.is_empty() {
        return None;
    }
    if open.lineage.len() > LINEAGE_MAX {
        return None;
    }
    let lineage = open.lineage.into_iter();
    let lineage = lineage.map(|hash| Some(HexHash(hash.try_into().ok()?)));
    Some(Told {
        lineage: lineage.collect::<Option<_>>()?,
        token_hash: open.token_hash.try_into().ok()?,
        agent: open.agent,
        users,
        chain: open.chain,
        jkt: open.jkt,
        issued_ms: open.issued_s.saturating_mul(1000),
    })
}
