//! What filters do under each module that they run: whether they are there, whether
//! they die, and what they refuse. A roll-out is judged by it.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Proxies that are told apart; further ones are not counted.
const PROXIES_MAX: usize = 4_096;
/// Modules that are told apart for one proxy: the newest.
const MODULES_MAX: usize = 4;

/// One VM context's place: its proxy by certificate, the node's own label, and the
/// module as the filter names it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seat {
    /// The proxy's SPIFFE ID.
    pub peer: String,
    /// What the node calls itself; empty when it does not say.
    pub node: String,
    /// Version and digest of the module.
    pub module: String,
}

/// Requests, and what became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Requests {
    /// Allowed.
    pub allowed: u64,
    /// Refused, though the caller's signatures were good.
    pub refused: u64,
    /// Refused to somebody unknown: anybody can make these.
    pub strangers: u64,
    /// What would have been refused to somebody known, and went on.
    pub observed: u64,
}

impl Requests {
    /// These and others.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            allowed: self.allowed.saturating_add(other.allowed),
            refused: self.refused.saturating_add(other.refused),
            strangers: self.strangers.saturating_add(other.strangers),
            observed: self.observed.saturating_add(other.observed),
        }
    }
}

/// What was seen of a module at one proxy, or at several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Streams that were opened.
    pub opened: u64,
    /// Those of them that are open: one for each VM context that lives.
    pub live: u64,
    /// Times that the proxy itself came anew.
    pub came: u64,
    /// Requests since the last turn.
    recent: Requests,
    /// Requests between the last turn and the one before.
    older: Requests,
}

impl Tally {
    /// This and another.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            opened: self.opened.saturating_add(other.opened),
            live: self.live.saturating_add(other.live),
            came: self.came.saturating_add(other.came),
            recent: self.recent.and(other.recent),
            older: self.older.and(other.older),
        }
    }

    /// The requests that are not forgotten yet.
    #[must_use]
    pub fn requests(self) -> Requests {
        self.recent.and(self.older)
    }
}

/// One proxy.
#[derive(Default)]
struct Proxy {
    /// Streams that were open when the trial began.
    before: u64,
    modules: Vec<(String, Tally)>,
}

/// All proxies' filters, by identity and node.
#[derive(Default)]
pub struct Fleet(Mutex<BTreeMap<(String, String), Proxy>>);

impl Fleet {
    /// A stream was opened.
    pub fn opened(&self, seat: &Seat) {
        self.change(seat, |tally| {
            tally.opened = tally.opened.saturating_add(1);
            tally.live = tally.live.saturating_add(1);
        });
    }

    /// One of those ended, whatever for.
    pub fn ended(&self, seat: &Seat) {
        self.change(seat, |tally| tally.live = tally.live.saturating_sub(1));
    }

    /// A proxy came, or came again.
    pub fn came(&self, peer: &str, node: &str) {
        self.with(peer, node, |proxy| {
            for (_, tally) in &mut proxy.modules {
                tally.came = tally.came.saturating_add(1);
            }
        });
    }

    /// Requests were decided, or refused.
    pub fn decided(&self, seat: &Seat, requests: Requests) {
        self.change(seat, |tally| tally.recent = tally.recent.and(requests));
    }

    /// A time is over: requests of before the last turn are forgotten.
    pub fn turn(&self) {
        let mut all = self.lock();
        let proxies = all.values_mut();
        for (_, tally) in proxies.flat_map(|proxy| &mut proxy.modules) {
            tally.older = std::mem::take(&mut tally.recent);
        }
    }

    /// A trial of modules that this says yes to begins: what was seen of them before
    /// is forgotten, and so are all proxies that are not there (`is_there`, by identity
    /// and node). A stream that is open stays known, and how many are is remembered.
    pub fn begin(&self, of: impl Fn(&str) -> bool, is_there: impl Fn(&str, &str) -> bool) {
        let mut all = self.lock();
        all.retain(|(peer, node), _| is_there(peer, node));
        for proxy in all.values_mut() {
            proxy.before = proxy.modules.iter().map(|(_, tally)| tally.live).sum();
            let tried = proxy.modules.iter_mut().filter(|it| of(&it.0));
            for (_, tally) in tried {
                *tally = Tally {
                    opened: tally.live,
                    live: tally.live,
                    ..Tally::default()
                };
            }
        }
    }

    /// Streams that a proxy had open when the trial began: as many as it has VM
    /// contexts. 0 when it was not there.
    pub fn before(&self, peer: &str, node: &str) -> u64 {
        let all = self.lock();
        let proxy = all.get(&(peer.to_owned(), node.to_owned()));
        proxy.map_or(0, |proxy| proxy.before)
    }

    /// What was seen at a proxy under modules that this says yes to.
    pub fn tally(&self, peer: &str, node: &str, of: impl Fn(&str) -> bool) -> Tally {
        let all = self.lock();
        let proxy = all.get(&(peer.to_owned(), node.to_owned()));
        let modules = proxy.into_iter().flat_map(|proxy| &proxy.modules);
        let wanted = modules.filter(|it| of(&it.0));
        wanted.fold(Tally::default(), |sum, (_, tally)| sum.and(*tally))
    }

    fn change(&self, seat: &Seat, change: impl FnOnce(&mut Tally)) {
        self.with(&seat.peer, &seat.node, |proxy| {
            change(proxy.tally(&seat.module));
        });
    }

    fn with(&self, peer: &str, node: &str, change: impl FnOnce(&mut Proxy)) {
        let mut all = self.lock();
        let key = (peer.to_owned(), node.to_owned());
        if all.len() < PROXIES_MAX || all.contains_key(&key) {
            change(all.entry(key).or_default());
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(String, String), Proxy>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Proxy {
    fn tally(&mut self, module: &str) -> &mut Tally {
        let known = self.modules.iter().position(|it| it.0 == module);
        let (name, tally) = match known {
            Some(at) => self.modules.remove(at),
            None => (module.to_owned(), Tally::default()),
        };
        if self.modules.len() >= MODULES_MAX {
            self.modules.remove(0);
        }
        &mut self.modules.push_mut((name, tally)).1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seat(node: &str, module: &str) -> Seat {
        Seat {
            peer: "p".to_owned(),
            node: node.to_owned(),
            module: module.to_owned(),
        }
    }

    #[test]
    fn modules_and_nodes_are_told_apart_and_few_are_kept() {
        let fleet = Fleet::default();
        fleet.opened(&seat("a", "1"));
        let some = Requests {
            allowed: 3,
            refused: 1,
            strangers: 7,
            observed: 2,
        };
        fleet.decided(&seat("a", "1"), some);
        fleet.ended(&seat("b", "1"));
        let tally = fleet.tally("p", "a", |module| module == "1");
        assert_eq!((tally.opened, tally.live, tally.requests()), (1, 1, some));
        fleet.turn();
        let requests = |fleet: &Fleet| fleet.tally("p", "a", |_| true).requests();
        assert_eq!(requests(&fleet), some, "the last turn's are kept");
        fleet.turn();
        assert_eq!(requests(&fleet), Requests::default());
        assert_eq!(fleet.tally("q", "a", |_| true), Tally::default());
        for module in 2..10 {
            fleet.opened(&seat("a", &module.to_string()));
        }
        assert_eq!(fleet.tally("p", "a", |module| module == "1").opened, 0);
        assert_eq!(fleet.tally("p", "a", |module| module == "9").opened, 1);
        fleet.decided(&seat("a", "9"), some);
        fleet.begin(|module| module == "9", |_, node| node == "a");
        let nine = fleet.tally("p", "a", |module| module == "9");
        assert_eq!((nine.opened, nine.requests()), (1, Requests::default()));
        assert_eq!(fleet.tally("p", "a", |module| module == "8").opened, 1);
        assert_eq!(fleet.tally("p", "b", |_| true), Tally::default());
    }

    #[test]
    fn what_lives_is_what_was_opened_and_has_not_ended() {
        let fleet = Fleet::default();
        let seen = |module: &'static str| {
            let tally = fleet.tally("p", "a", |it| it == module);
            (tally.opened, tally.live, tally.came)
        };
        for _ in 0..3 {
            fleet.opened(&seat("a", "1"));
        }
        fleet.ended(&seat("a", "1"));
        fleet.opened(&seat("a", "2"));
        fleet.ended(&seat("a", "2"));
        fleet.came("p", "a");
        assert_eq!((seen("1"), seen("2")), ((3, 2, 1), (1, 0, 1)));
        fleet.begin(|module| module == "2", |_, _| true);
        assert_eq!((seen("1"), seen("2")), ((3, 2, 1), (0, 0, 0)));
        assert_eq!((fleet.before("p", "a"), fleet.before("p", "b")), (2, 0));
        // One takes the other's place, before or after it has ended.
        fleet.opened(&seat("a", "2"));
        fleet.ended(&seat("a", "1"));
        fleet.ended(&seat("a", "1"));
        fleet.opened(&seat("a", "2"));
        assert_eq!((seen("1"), seen("2")), ((3, 0, 1), (2, 2, 0)));
        assert_eq!(fleet.before("p", "a"), 2, "as it began");
    }
}
