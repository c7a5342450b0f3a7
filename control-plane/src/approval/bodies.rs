//! Bodies that humans are asked about, for showing: whole, in memory, and no
//! longer than their approvals are open, where the room is needed.
//!
//! The log has each of them beside its hold. What is not here any more, since
//! the process has started again or another replica asked, can't be shown, and
//! so can't be approved: it is here again when the agent repeats its request.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// All bodies that are kept, in bytes.
pub const BODIES_MAX: u64 = 64 * 1024 * 1024;

/// The bodies, by their approvals' ids.
#[derive(Debug, Default)]
pub struct Bodies {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    kept: BTreeMap<String, Arc<[u8]>>,
    /// Bytes of those that are on their way.
    coming: u64,
}

impl Inner {
    fn fits(&self, size: u64) -> bool {
        let sizes = self.kept.values().map(|body| bytes(body));
        let all = sizes.fold(self.coming, u64::saturating_add);
        all.saturating_add(size) <= BODIES_MAX
    }
}

/// Room for a body that is on its way, until this is dropped.
#[derive(Debug)]
#[must_use = "dropped, it keeps no room"]
pub struct Room<'a> {
    bodies: &'a Bodies,
    size: u64,
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        let mut inner = self.bodies.lock();
        inner.coming = inner.coming.saturating_sub(self.size);
    }
}

impl Bodies {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Room for one more of this size, or none. Those whose approvals are not
    /// `open` make room; no other does.
    pub fn reserve(&self, size: u64, open: &dyn Fn(&str) -> bool) -> Option<Room<'_>> {
        let mut inner = self.lock();
        if !inner.fits(size) {
            inner.kept.retain(|id, _| open(id));
        }
        if !inner.fits(size) {
            return None;
        }
        inner.coming = inner.coming.saturating_add(size);
        drop(inner);
        Some(Room { bodies: self, size })
    }

    /// Keeps one that there is room for.
    pub fn keep(&self, approval: &str, body: Arc<[u8]>) {
        self.lock().kept.insert(approval.to_owned(), body);
    }

    /// The body of an approval.
    #[must_use]
    pub fn get(&self, approval: &str) -> Option<Arc<[u8]>> {
        self.lock().kept.get(approval).cloned()
    }
}

fn bytes(body: &[u8]) -> u64 {
    u64::try_from(body.len()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_open_is_never_thrown_out() {
        let bodies = Bodies::default();
        let half: Arc<[u8]> = vec![0; 32 * 1024 * 1024].into();
        for id in ["open", "ended"] {
            let room = bodies.reserve(bytes(&half), &|_| true);
            assert!(room.is_some());
            bodies.keep(id, half.clone());
        }
        assert!(bodies.reserve(1, &|_| true).is_none());
        assert!(bodies.get("ended").is_some());
        assert!(bodies.reserve(1, &|id| id == "open").is_some());
        assert!(bodies.get("open").is_some() && bodies.get("ended").is_none());
    }

    #[test]
    fn those_that_are_on_their_way_count() {
        let bodies = Bodies::default();
        let rooms: Vec<_> = (0..5)
            .map(|_| bodies.reserve(BODIES_MAX / 4, &|_| true))
            .collect();
        assert_eq!(rooms.iter().flatten().count(), 4);
        drop(rooms);
        assert!(bodies.reserve(BODIES_MAX, &|_| true).is_some());
    }
}
