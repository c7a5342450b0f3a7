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
    /// Requests that were allowed.
    pub allowed: u64,
    /// Requests that were refused, by the filter or here.
    pub refused: u64,
}

impl Tally {
    /// This and another.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            opened: self.opened.saturating_add(other.opened),
            lost: self.lost.saturating_add(other.lost),
            came: self.came.saturating_add(other.came),
            allowed: self.allowed.saturating_add(other.allowed),
            refused: self.refused.saturating_add(other.refused),
        }
    }

    /// How many of a hundred requests were refused.
    #[must_use]
    pub fn refused_percent(self) -> u64 {
        let all = self.allowed.saturating_add(self.refused).max(1);
        self.refused.saturating_mul(100) / all
    }
}

type Modules = Vec<(String, Tally)>;

/// All proxies' filters, by identity and node.
#[derive(Default)]
pub struct Fleet(Mutex<BTreeMap<(String, String), Modules>>);

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
        self.change(seat, |tally| tally.lost = tally.lost.saturating_add(1));
    }

    /// A proxy came, or came again: the streams of the one before went with it.
    pub fn came(&self, peer: &str, node: &str) {
        let mut all = self.lock();
        let here = all.get_mut(&(peer.to_owned(), node.to_owned()));
        for (_, tally) in here.into_iter().flatten() {
            tally.lost = 0;
            tally.came = tally.came.saturating_add(1);
        }
    }

    /// Requests were decided, or refused.
    pub fn decided(&self, seat: &Seat, allowed: u64, refused: u64) {
        self.change(seat, |tally| {
            tally.allowed = tally.allowed.saturating_add(allowed);
            tally.refused = tally.refused.saturating_add(refused);
        });
    }

    /// Forgets modules that this says yes to, for they begin anew, and all proxies
    /// that are not there (`is_there`, by identity and node).
    pub fn forget(&self, of: impl Fn(&str) -> bool, is_there: impl Fn(&str, &str) -> bool) {
        let mut all = self.lock();
        all.retain(|(peer, node), modules| {
            modules.retain(|(module, _)| !of(module));
            is_there(peer, node)
        });
    }

    /// What was seen at a proxy under modules that this says yes to.
    pub fn tally(&self, peer: &str, node: &str, of: impl Fn(&str) -> bool) -> Tally {
        let all = self.lock();
        let modules = all.get(&(peer.to_owned(), node.to_owned()));
        let wanted = modules.into_iter().flatten().filter(|it| of(&it.0));
        wanted.fold(Tally::default(), |sum, (_, tally)| sum.and(*tally))
    }

    fn change(&self, seat: &Seat, change: impl FnOnce(&mut Tally)) {
        let mut all = self.lock();
        let key = (seat.peer.clone(), seat.node.clone());
        if all.len() >= PROXIES_MAX && !all.contains_key(&key) {
            return;
        }
        let modules = all.entry(key).or_default();
        let known = modules.iter_mut().find(|it| it.0 == seat.module);
        if let Some((_, tally)) = known {
            change(tally);
            return;
        }
        if modules.len() >= MODULES_MAX {
            modules.remove(0);
        }
        let mut tally = Tally::default();
        change(&mut tally);
        modules.push((seat.module.clone(), tally));
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(String, String), Modules>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
        fleet.decided(&seat("a", "1"), 3, 1);
        fleet.lost(&seat("b", "1"));
        let tally = fleet.tally("p", "a", |module| module == "1");
        assert_eq!(
            (tally.opened, tally.lost, tally.refused_percent()),
            (1, 0, 25)
        );
        assert_eq!(fleet.tally("q", "a", |_| true), Tally::default());
        for module in 2..10 {
            fleet.opened(&seat("a", &module.to_string()), false);
        }
        assert_eq!(fleet.tally("p", "a", |module| module == "1").opened, 0);
        assert_eq!(fleet.tally("p", "a", |module| module == "9").opened, 1);
        fleet.forget(|module| module == "9", |_, node| node == "a");
        assert_eq!(fleet.tally("p", "a", |module| module == "9").opened, 0);
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
        assert_eq!(fleet.tally("p", "a", |_| true).came, 1);
    }
}
