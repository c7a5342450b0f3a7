//! One-time sign-in secrets and the sessions that they open.
//!
//! Nothing here can be read back: secrets and session ids are kept as SHA-256
//! only, in memory, so a restart signs everybody out. Time is passed in.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use base64ct::{Base64UrlUnpadded, Encoding};
use ledger::model::{Hash, Millis};
use rand::Rng;
use sha2::{Digest, Sha256};

/// How long a one-time secret may be used: 10 minutes, in ms.
pub const LINK_MS: Millis = 10 * 60 * 1000;
/// How long a session lives at most: 12 hours, in ms.
pub const SESSION_MS: Millis = 12 * 60 * 60 * 1000;
/// How long a session lives without being used: 1 hour, in ms.
pub const IDLE_MS: Millis = 60 * 60 * 1000;
/// Unused one-time secrets of one person at a time; past it, theirs that ends first is dropped.
pub const LINKS_PER_PERSON: usize = 16;
/// The same of everybody; past it, one of who asks or, while they have less than their share,
/// of who has most. Those that sessions made and those of the admin socket are counted apart.
pub const LINKS_MAX: usize = 1024;
/// Sessions of one person at a time; past it, theirs that was unused for longest is dropped,
/// those first that a link opened which was made in another.
pub const SESSIONS_PER_PERSON: usize = 32;
/// The same of everybody, as with links.
pub const SESSIONS_MAX: usize = 4096;
/// Sessions that one is known to come from; of what comes later the first of them count.
const LINE_MAX: usize = 8;
/// Wrong secrets per minute, in all, before the answer is 429.
pub const WRONG_PER_MINUTE: usize = 10;
const MINUTE_MS: Millis = 60 * 1000;

/// The name of a person who came by a link of the starting process.
pub const OPERATOR: &str = "operator";

/// What a session was opened for. One kind is never taken for the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A browser, by cookie.
    Browser,
    /// The command line, by `Authorization: Session`.
    CommandLine,
}

impl Kind {
    /// The word that the audit entry has for it.
    pub fn how(self) -> &'static str {
        match self {
            Kind::Browser => "browser",
            Kind::CommandLine => "command_line",
        }
    }
}

/// A signed-in human, as far as a request needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// Who: the name that the link was made for.
    pub who: String,
    /// The token that this session's forms carry.
    pub csrf: String,
    /// When it was opened, in ms since the epoch.
    pub began_ms: Millis,
    /// When the session ends at the latest, in ms since the epoch.
    pub ends_ms: Millis,
}

/// Why nobody was signed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoginError {
    /// No such secret: never made, used before, or over.
    #[error("this sign-in secret is not valid, was used already, or is over")]
    Wrong,
    /// As [`LoginError::Wrong`], and there were many of those in the last minute.
    #[error("too many wrong sign-in secrets; wait a minute")]
    TooMany,
}

struct Link {
    who: String,
    ends_ms: Millis,
    under: Option<Under>,
}

/// The session that a link was made in. What the link opens is no younger, ends no later,
/// and ends with it.
struct Under {
    began_ms: Millis,
    ends_ms: Millis,
    line: Vec<Hash>,
}

struct Opened {
    /// The sessions that it comes from, the first of them first.
    line: Vec<Hash>,
    began_ms: Millis,
    who: String,
    csrf: String,
    kind: Kind,
    ends_ms: Millis,
    seen_ms: Millis,
}

impl Opened {
    fn alive(&self, now: Millis) -> bool {
        now < self.ends_ms && now < self.seen_ms.saturating_add(IDLE_MS)
    }
}

#[derive(Default)]
struct Inner {
    links: HashMap<Hash, Link>,
    sessions: HashMap<Hash, Opened>,
    wrong: VecDeque<Millis>,
}

/// The sign-in desk: one-time secrets and sessions. Clones share one state.
#[derive(Clone, Default)]
pub struct Logins {
    inner: Arc<Mutex<Inner>>,
}

impl Logins {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes a one-time secret (256 bits, base64url) for [`OPERATOR`].
    pub fn mint(&self, now: Millis) -> String {
        self.mint_for(OPERATOR, now)
    }

    /// Makes a one-time secret for somebody by name.
    pub fn mint_for(&self, who: &str, now: Millis) -> String {
        self.lock().mint(who, None, now)
    }

    /// Makes a one-time secret in a session, for the same person. One for a session that
    /// is over opens nothing.
    pub fn mint_in(&self, id: &str, now: Millis) -> String {
        let key = digest(id);
        let mut inner = self.lock();
        let Some(opened) = inner.sessions.get(&key).filter(|it| it.alive(now)) else {
            return random();
        };
        let line = opened.line.iter().copied().chain([key]);
        let under = Under {
            began_ms: opened.began_ms,
            ends_ms: opened.ends_ms,
            line: line.take(LINE_MAX).collect(),
        };
        let who = opened.who.clone();
        inner.mint(&who, Some(under), now)
    }

    /// Uses a secret up and opens a session; the answer is the session's id
    /// (256 bits, base64url) and the session.
    ///
    /// A right secret is always taken: guessing one of 2^256 needs no limit,
    /// and a limit on right ones would let anybody lock the approvers out.
    ///
    /// # Errors
    /// [`LoginError`], and nothing was opened.
    pub fn open(
        &self,
        secret: &str,
        kind: Kind,
        now: Millis,
    ) -> Result<(String, Session), LoginError> {
        let mut inner = self.lock();
        let link = inner
            .links
            .remove(&digest(secret))
            .filter(|link| now < link.ends_ms);
        let Some(link) = link else {
            return Err(inner.count_wrong(now));
        };
        inner.sessions.retain(|_, session| session.alive(now));
        let all = inner.sessions.iter().map(|(key, session)| {
            let made_here = session.line.is_empty();
            (*key, session.who.as_str(), (made_here, session.seen_ms))
        });
        if let Some(key) = gives_way(all, &link.who, (SESSIONS_PER_PERSON, SESSIONS_MAX)) {
            inner.sessions.remove(&key);
        }
        let id = random();
        let ends_ms = now.saturating_add(SESSION_MS);
        let (began_ms, ends_ms, line) = match link.under {
            Some(under) => (under.began_ms, ends_ms.min(under.ends_ms), under.line),
            None => (now, ends_ms, Vec::new()),
        };
        let opened = Opened {
            line,
            who: link.who,
            csrf: random(),
            kind,
            began_ms,
            ends_ms,
            seen_ms: now,
        };
        let session = Session {
            who: opened.who.clone(),
            csrf: opened.csrf.clone(),
            began_ms: opened.began_ms,
            ends_ms: opened.ends_ms,
        };
        inner.sessions.insert(digest(&id), opened);
        Ok((id, session))
    }

    /// The session of an id, when it is alive and of this kind. `touch` says
    /// that a person did something, which moves the idle time.
    pub fn session(&self, id: &str, kind: Kind, touch: bool, now: Millis) -> Option<Session> {
        let key = digest(id);
        let mut inner = self.lock();
        let opened = inner.sessions.get_mut(&key)?;
        if !opened.alive(now) {
            inner.sessions.remove(&key);
            return None;
        }
        if opened.kind != kind {
            return None;
        }
        if touch {
            opened.seen_ms = opened.seen_ms.max(now);
        }
        Some(Session {
            who: opened.who.clone(),
            csrf: opened.csrf.clone(),
            began_ms: opened.began_ms,
            ends_ms: opened.ends_ms,
        })
    }

    /// Ends a session, and whatever came of the links that were made in it; unknown ids
    /// are fine.
    pub fn close(&self, id: &str) {
        let key = digest(id);
        let mut inner = self.lock();
        inner
            .sessions
            .retain(|known, opened| *known != key && !opened.line.contains(&key));
        inner.links.retain(|_, link| {
            let under = link.under.as_ref();
            under.is_none_or(|it| !it.line.contains(&key))
        });
    }

    // A poisoned lock means that a thread died between two of the small steps
    // above, each of which leaves the maps valid.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn mint(&mut self, who: &str, under: Option<Under>, now: Millis) -> String {
        let secret = random();
        self.links.retain(|_, link| now < link.ends_ms);
        // What a session can make puts out nothing that the admin socket made.
        let alike = |link: &Link| link.under.is_some() == under.is_some();
        let all = self.links.iter().filter(|(_, link)| alike(link));
        let all = all.map(|(key, link)| (*key, link.who.as_str(), link.ends_ms));
        if let Some(key) = gives_way(all, who, (LINKS_PER_PERSON, LINKS_MAX)) {
            self.links.remove(&key);
        }
        let link = Link {
            who: who.to_owned(),
            ends_ms: now.saturating_add(LINK_MS),
            under,
        };
        self.links.insert(digest(&secret), link);
        secret
    }

    fn count_wrong(&mut self, now: Millis) -> LoginError {
        self.wrong.retain(|at| now < at.saturating_add(MINUTE_MS));
        if self.wrong.len() >= WRONG_PER_MINUTE {
            return LoginError::TooMany;
        }
        self.wrong.push_back(now);
        LoginError::Wrong
    }
}

/// Which of all goes so that this person may have one more, if one has to: their own of the
/// lowest rank while they have their share, else one of whoever has most.
fn gives_way<'a, R: Ord>(
    all: impl Iterator<Item = (Hash, &'a str, R)>,
    who: &str,
    (each, most): (usize, usize),
) -> Option<Hash> {
    let mut by_person: BTreeMap<&str, BTreeSet<(R, Hash)>> = BTreeMap::new();
    let mut count = 0;
    for (key, whose, rank) in all {
        by_person.entry(whose).or_default().insert((rank, key));
        count += 1;
    }
    let own = by_person.get(who);
    let has = own.map_or(0, BTreeSet::len);
    let people = by_person.len() + usize::from(own.is_none());
    let share = most.checked_div(people).unwrap_or(each).clamp(1, each);
    let of = match (count >= most, has >= share) {
        _ if has >= each => own,
        (false, _) => None,
        (true, true) => own,
        (true, false) => by_person.values().max_by_key(|it| it.len()),
    };
    of.and_then(BTreeSet::first).map(|(_, key)| *key)
}

fn random() -> String {
    let mut bytes = [0_u8; 32];
    rand::rng().fill_bytes(&mut bytes);
    Base64UrlUnpadded::encode_string(&bytes)
}

// Looked up by digest, so that how long the lookup takes tells nothing of a secret.
fn digest(secret: &str) -> Hash {
    Sha256::digest(secret.as_bytes()).into()
}

#[cfg(test)]
mod tests;
