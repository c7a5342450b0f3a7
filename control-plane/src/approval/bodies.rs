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
    kept: Mutex<BTreeMap<String, Arc<[u8]>>>,
}

impl Bodies {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<[u8]>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether one more of this size may be kept. Those whose approvals are not
    /// `open` make room; no other does.
    #[must_use]
    pub fn have_room(&self, size: u64, open: &dyn Fn(&str) -> bool) -> bool {
        let fits = |kept: &BTreeMap<String, Arc<[u8]>>| {
            let sizes = kept.values().map(|body| bytes(body));
            sizes.fold(size, u64::saturating_add) <= BODIES_MAX
        };
        let mut kept = self.lock();
        if !fits(&kept) {
            kept.retain(|id, _| open(id));
        }
        fits(&kept)
    }

    /// Keeps one.
    pub fn keep(&self, approval: &str, body: Arc<[u8]>) {
        self.lock().insert(approval.to_owned(), body);
    }

    /// The body of an approval.
    #[must_use]
    pub fn get(&self, approval: &str) -> Option<Arc<[u8]>> {
        self.lock().get(approval).cloned()
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
            assert!(bodies.have_room(bytes(&half), &|_| true));
            bodies.keep(id, half.clone());
        }
        assert!(!bodies.have_room(1, &|_| true));
        assert!(bodies.get("ended").is_some());
        assert!(bodies.have_room(1, &|id| id == "open"));
        assert!(bodies.get("open").is_some() && bodies.get("ended").is_none());
    }
}
