//! Who has a connection, and whose is closed so that another may have one.
//!
//! A place is never refused to somebody new for the sake of those who only wait: the
//! connection that has waited for its client for longest makes room. One address, one uid,
//! or one workload, has a share, and past that it is its own connections that make room.

use identity::SpiffeId;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// One address, one uid, or one workload, has one part in so many of the places.
const PEER_PART: usize = 2;
/// While all that there are do something, how often is looked for one that does not.
const LOOK: Duration = Duration::from_millis(50);
/// That connections are closed for others is said at most this often, in so many of them.
const SAID_EVERY: u64 = 1_024;

/// Whom a connection is counted with.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Peer {
    /// An address; of IPv6 the /64 that it is in.
    Address(u64),
    /// A local process, by its uid.
    Uid(u32),
    /// A workload that has shown its certificate, wherever it is.
    Workload(SpiffeId),
}

impl From<IpAddr> for Peer {
    fn from(address: IpAddr) -> Self {
        Self::Address(match address.to_canonical() {
            IpAddr::V4(four) => u64::from(four.to_bits()),
            // Whose first half is zeros is nobody's address, or `::1`, which shares with 0.0.0.0.
            IpAddr::V6(six) => u64::try_from(six.to_bits() >> 64).unwrap_or_default(),
        })
    }
}

/// The places of one listener.
#[derive(Clone)]
pub struct Places {
    most: usize,
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    /// Counts what happens: who has the lowest number has waited for longest.
    now: u64,
    all: BTreeMap<u64, Held>,
    by_peer: BTreeMap<Peer, usize>,
    closed: u64,
}

struct Held {
    peer: Peer,
    /// Since when it waits for its client; `None`: it is being answered.
    waits: Option<u64>,
    end: CancellationToken,
}

/// Why there is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NoPlace {
    /// All are being answered.
    Now,
    /// This peer has its share, and all of that is being answered.
    OfPeer,
}

/// A place, until it is dropped.
pub struct Place {
    places: Places,
    id: u64,
    end: CancellationToken,
}

impl Places {
    /// So many.
    pub fn new(most: usize) -> Self {
        Self {
            most: most.max(1),
            inner: Arc::default(),
        }
    }

    /// A place for this peer, as soon as there is one; nothing at the stop, and where
    /// the peer has too many.
    pub async fn take(&self, peer: Peer, stop: &CancellationToken) -> Option<Place> {
        loop {
            match self.try_take(&peer) {
                Ok(place) => return Some(place),
                Err(NoPlace::OfPeer) => {
                    tracing::debug!(?peer, "a peer has too many connections for another one");
                    return None;
                }
                Err(NoPlace::Now) => tokio::select! {
                    () = stop.cancelled() => return None,
                    () = tokio::time::sleep(LOOK) => {}
                },
            }
        }
    }

    fn try_take(&self, peer: &Peer) -> Result<Place, NoPlace> {
        let mut inner = self.lock();
        let share = (self.most / PEER_PART).max(1);
        let has = inner.by_peer.get(peer).copied().unwrap_or_default();
        if has >= share {
            inner.make_room(Some(peer)).ok_or(NoPlace::OfPeer)?;
        } else if inner.all.len() >= self.most {
            inner.make_room(None).ok_or(NoPlace::Now)?;
        }
        let id = inner.tick();
        let end = CancellationToken::new();
        let held = Held {
            peer: peer.clone(),
            waits: Some(id),
            end: end.clone(),
        };
        inner.all.insert(id, held);
        let count = inner.by_peer.entry(peer.clone()).or_default();
        *count = count.saturating_add(1);
        Ok(Place {
            places: self.clone(),
            id,
            end,
        })
    }

    // What is done under it can't fail halfway.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn tick(&mut self) -> u64 {
        self.now = self.now.saturating_add(1);
        self.now
    }

    /// Closes whichever has waited for longest: of all, or of one peer's.
    fn make_room(&mut self, of: Option<&Peer>) -> Option<()> {
        let all = self.all.iter();
        let all = all.filter(|(_, held)| of.is_none_or(|peer| held.peer == *peer));
        let waiting = all.filter_map(|(id, held)| Some((held.waits?, *id)));
        let (_, id) = waiting.min()?;
        let gone = self.remove(id)?;
        gone.end.cancel();
        if self.closed.is_multiple_of(SAID_EVERY) {
            tracing::warn!(
                peer = ?gone.peer,
                "there are too many connections: those that wait for their clients for longest are closed"
            );
        }
        self.closed = self.closed.saturating_add(1);
        Some(())
    }

    fn remove(&mut self, id: u64) -> Option<Held> {
        let gone = self.all.remove(&id)?;
        if let Some(count) = self.by_peer.get_mut(&gone.peer) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.by_peer.remove(&gone.peer);
            }
        }
        Some(gone)
    }
}

impl Place {
    /// Ends when the place is another's.
    pub async fn ended(&self) {
        self.end.cancelled().await;
    }

    /// It is being answered: nobody takes its place.
    pub fn answers(&self) {
        if let Some(held) = self.places.lock().all.get_mut(&self.id) {
            held.waits = None;
        }
    }

    /// It waits for its client, from now on.
    pub fn waits(&self) {
        let mut inner = self.places.lock();
        let now = inner.tick();
        if let Some(held) = inner.all.get_mut(&self.id) {
            held.waits = Some(now);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.lock().remove(self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Peer = Peer::Address(1);
    const B: Peer = Peer::Address(2);

    fn is_ended(place: &Place) -> bool {
        place.end.is_cancelled()
    }

    #[test]
    fn who_has_waited_for_longest_makes_room() {
        let places = Places::new(4);
        let all: Vec<Place> = [A, B, A, B]
            .iter()
            .map(|peer| places.try_take(peer).ok().unwrap())
            .collect();
        // The first has said something since, and the second is being answered.
        all[0].waits();
        all[1].answers();
        let other = places.try_take(&Peer::Uid(7)).ok().unwrap();
        let ended: Vec<bool> = all.iter().map(is_ended).collect();
        assert_eq!(ended, [false, false, true, false]);
        drop(other);
        let _free = places.try_take(&Peer::Uid(8)).ok().unwrap();
        assert!(!is_ended(&all[3]), "there was a free one");
    }

    #[test]
    fn a_peer_past_its_share_makes_room_itself_and_others_have_theirs() {
        let places = Places::new(8);
        let of_b = places.try_take(&B).ok().unwrap();
        let mut of_a = Vec::new();
        for _ in 0..100 {
            of_a.push(places.try_take(&A).ok().unwrap());
        }
        assert!(!is_ended(&of_b), "another's waited for longer");
        assert_eq!(of_a.iter().filter(|it| !is_ended(it)).count(), 4);
        for place in &of_a {
            place.answers();
        }
        assert_eq!(places.try_take(&A).err(), Some(NoPlace::OfPeer));
        let others: Vec<Place> = (10..13)
            .map(|n| places.try_take(&Peer::Uid(n)).ok().unwrap())
            .collect();
        for place in others.iter().chain([&of_b]) {
            place.answers();
        }
        assert_eq!(places.try_take(&Peer::Uid(20)).err(), Some(NoPlace::Now));
        others[0].waits();
        assert!(places.try_take(&Peer::Uid(20)).is_ok());
        assert!(is_ended(&others[0]));
    }

    #[test]
    fn what_is_dropped_is_free_and_forgotten() {
        let places = Places::new(4);
        for _ in 0..10 {
            let both = [places.try_take(&A), places.try_take(&B)];
            assert!(both.iter().all(Result::is_ok));
        }
        let inner = places.lock();
        assert!(inner.all.is_empty() && inner.by_peer.is_empty());
        assert_eq!(inner.closed, 0);
    }

    #[test]
    fn a_network_of_ipv6_is_one_peer() {
        let peer = |text: &str| Peer::from(text.parse::<IpAddr>().unwrap());
        assert_eq!(peer("2001:db8::1"), peer("2001:db8::2"));
        assert_ne!(peer("2001:db8::1"), peer("2001:db8:0:1::1"));
        assert_ne!(peer("192.0.2.1"), peer("192.0.2.2"));
        assert_eq!(peer("192.0.2.1"), peer("::ffff:192.0.2.1"));
    }
}
