//! What filters do under each module that they run: whether they are there, whether
//! they die, and what they refuse. A roll-out is judged by it.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Proxies that are told apart; further ones are not counted.
const PROXIES_MAX: usize = 4_096;
/// Modules that are told apart for one proxy: the newest.
const MODULES_MAX: usize = 4;

/// A proxy that has just come is told anew what it should run, which ends the contexts
/// that it had; so long nobody takes that for a crash.
const SETTLES: Duration = Duration::from_secs(10);

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
}

impl Requests {
    /// These and others.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            allowed: self.allowed.saturating_add(other.allowed),
            refused: self.refused.saturating_add(other.refused),
            strangers: self.strangers.saturating_add(other.strangers),
        }
    }
}

/// What was seen of a module at one proxy, or at several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Streams that were opened.
    pub opened: u64,
    /// VM contexts whose stream ended, and that did not come back, while their proxy
    /// stayed.
    pub lost: u64,
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
            lost: self.lost.saturating_add(other.lost),
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
    came: Option<Instant>,
    modules: Vec<(String, Tally)>,
}

/// All proxies' filters, by identity and node.
#[derive(Default)]
pub struct Fleet(Mutex<BTreeMap<(String, String), Proxy>>);

impl Fleet {
    /// A stream was opened. `back`: by a context that had lost the one before.
    pub fn opened(&self, seat: &Seat, back: bool) {
        self.change(seat, |tally| {
            tally.opened = tally.opened.saturating_add(1);
            tally.lost = tally.lost.saturating_sub(u64::from(back));
        });
    }

    /// A stream ended, and no other took its place so far.
    pub fn lost(&self, seat: &Seat) {
        self.with(&seat.peer, &seat.node, |proxy| {
            if proxy.came.is_none_or(|came| came.elapsed() >= SETTLES) {
                let tally = proxy.tally(&seat.module);
                tally.lost = tally.lost.saturating_add(1);
            }
        });
    }

    /// A proxy came, or came again: the streams of the one before went with it.
    pub fn came(&self, peer: &str, node: &str) {
        self.with(peer, node, |proxy| {
            proxy.came = Some(Instant::now());
            for (_, tally) in &mut proxy.modules {
                tally.lost = 0;
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
    /// and node). A stream that is open stays known.
    pub fn begin(&self, of: impl Fn(&str) -> bool, is_there: impl Fn(&str, &str) -> bool) {
        let mut all = self.lock();
        all.retain(|(peer, node), _| is_there(peer, node));
        for (module, tally) in all.values_mut().flat_map(|proxy| &mut proxy.modules) {
            if of(module) {
                *tally = Tally {
                    opened: tally.opened,
                    ..Tally::default()
                };
            }
        }
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
        fleet.opened(&seat("a", "1"), false);
        let some = Requests {
            allowed: 3,
            refused: 1,
            strangers: 7,
        };
        fleet.decided(&seat("a", "1"), some);
        fleet.lost(&seat("b", "1"));
        let tally = fleet.tally("p", "a", |module| module == "1");
        assert_eq!((tally.opened, tally.lost, tally.requests()), (1, 0, some));
        fleet.turn();
        let requests = |fleet: &Fleet| fleet.tally("p", "a", |_| true).requests();
        assert_eq!(requests(&fleet), some, "the last turn's are kept");
        fleet.turn();
        assert_eq!(requests(&fleet), Requests::default());
        assert_eq!(fleet.tally("q", "a", |_| true), Tally::default());
        for module in 2..10 {
            fleet.opened(&seat("a", &module.to_string()), false);
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
    fn a_context_is_dead_unless_it_comes_back_or_its_proxy_went_too() {
        let fleet = Fleet::default();
        let lost = |fleet: &Fleet| fleet.tally("p", "a", |_| true).lost;
        fleet.opened(&seat("a", "1"), false);
        fleet.lost(&seat("a", "1"));
        assert_eq!(lost(&fleet), 1);
        fleet.opened(&seat("a", "1"), true);
        assert_eq!(lost(&fleet), 0, "it came back");
        fleet.lost(&seat("a", "1"));
        fleet.opened(&seat("a", "1"), false);
        assert_eq!(lost(&fleet), 1, "another came in its place");
        fleet.came("p", "a");
        assert_eq!(lost(&fleet), 0, "its proxy began anew");
        fleet.lost(&seat("a", "1"));
        assert_eq!(lost(&fleet), 0, "it is told anew what to run");
        assert_eq!(fleet.tally("p", "a", |_| true).came, 1);
    }
}
