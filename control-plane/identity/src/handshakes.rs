//! Handshakes that are under way, and who gives way when there are too many.
//!
//! Nobody has been authenticated yet, so a full table refuses nobody: it drops
//! the oldest handshake of whoever has the most. One that is in earnest takes
//! milliseconds; one that is there to take up room is the one that is old.

use std::{
    collections::{BTreeMap, VecDeque},
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio_util::sync::CancellationToken;

/// Handshakes of one address at one time: an Envoy connects with each of its
/// workers, perhaps all at once.
pub(crate) const MAX_PER_ADDRESS: usize = 64;
/// Handshakes at one time.
pub(crate) const MAX_HANDSHAKES: usize = 256;

/// The handshakes under way, the oldest first.
pub(crate) struct Handshakes {
    most: usize,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    next: u64,
    entries: VecDeque<Entry>,
}

struct Entry {
    number: u64,
    address: IpAddr,
    gives_way: CancellationToken,
}

/// One handshake's place; dropping it frees the place.
pub(crate) struct Place {
    handshakes: Arc<Handshakes>,
    number: u64,
    gives_way: CancellationToken,
}

impl Handshakes {
    pub(crate) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self {
            most,
            table: Mutex::default(),
        })
    }

    /// A place for a handshake with `address`. Another may have to give way.
    pub(crate) fn enter(self: &Arc<Self>, address: IpAddr) -> Place {
        let address = neighbourhood(address);
        let gives_way = CancellationToken::new();
        let mut table = self.lock();
        let of_address = table.of(address);
        if of_address >= MAX_PER_ADDRESS {
            table.drop_oldest_of(address);
        } else if table.entries.len() >= self.most
            && let Some(crowd) = table.largest()
        {
            table.drop_oldest_of(crowd);
        }
        let number = table.next;
        table.next += 1;
        table.entries.push_back(Entry {
            number,
            address,
            gives_way: gives_way.clone(),
        });
        Place {
            handshakes: Arc::clone(self),
            number,
            gives_way,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn of(&self, address: IpAddr) -> usize {
        let same = self.entries.iter().filter(|entry| entry.address == address);
        same.count()
    }

    /// The address with the most handshakes.
    fn largest(&self) -> Option<IpAddr> {
        let mut counts: BTreeMap<IpAddr, usize> = BTreeMap::new();
        for entry in &self.entries {
            *counts.entry(entry.address).or_default() += 1;
        }
        let largest = counts.into_iter().max_by_key(|(_, count)| *count);
        largest.map(|(address, _)| address)
    }

    fn drop_oldest_of(&mut self, address: IpAddr) {
        let at = self
            .entries
            .iter()
            .position(|entry| entry.address == address);
        if let Some(entry) = at.and_then(|at| self.entries.remove(at)) {
            entry.gives_way.cancel();
        }
    }
}

impl Place {
    /// Ends when the handshake has to give way.
    pub(crate) async fn lost(&self) {
        self.gives_way.cancelled().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut table = self.handshakes.lock();
        table.entries.retain(|entry| entry.number != self.number);
    }
}

/// An IPv6 host has a /64 of addresses at least, so that counts as one.
fn neighbourhood(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let prefix = u128::from(address) & !u128::from(u64::MAX);
            IpAddr::V6(Ipv6Addr::from(prefix))
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn lost(places: &[Place]) -> Vec<usize> {
        let lost = places.iter().enumerate();
        lost.filter(|(_, place)| place.gives_way.is_cancelled())
            .map(|(at, _)| at)
            .collect()
    }

    #[test]
    fn one_address_drops_its_own_oldest() {
        let handshakes = Handshakes::new(MAX_HANDSHAKES);
        let other = handshakes.enter(address("192.0.2.9"));
        let mut places = Vec::new();
        for _ in 0..MAX_PER_ADDRESS {
            places.push(handshakes.enter(address("192.0.2.1")));
        }
        assert!(lost(&places).is_empty());
        places.push(handshakes.enter(address("::ffff:192.0.2.1")));
        assert_eq!(lost(&places), [0]);
        places.remove(5);
        places.push(handshakes.enter(address("192.0.2.1")));
        assert_eq!(lost(&places), [0]);
        assert!(!other.gives_way.is_cancelled());
    }

    #[test]
    fn a_full_table_drops_the_oldest_of_the_largest_crowd() {
        let handshakes = Handshakes::new(8);
        let first = handshakes.enter(address("192.0.2.9"));
        let mut crowd = Vec::new();
        for host in 1..8 {
            crowd.push(handshakes.enter(address(&format!("2001:db8::{host}"))));
        }
        let newcomer = handshakes.enter(address("192.0.2.10"));
        assert_eq!(lost(&crowd), [0]);
        assert!(!first.gives_way.is_cancelled() && !newcomer.gives_way.is_cancelled());
        drop((first, crowd, newcomer));
        assert!(handshakes.lock().entries.is_empty());
    }
}
