//! How many connections are open, in all and of each user.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Counts open connections.
pub(crate) struct Crowd {
    most: usize,
    most_of_one: usize,
    /// By uid; who has none isn't here.
    open: Mutex<HashMap<u32, usize>>,
}

/// One connection's place; dropping it frees the place.
pub(crate) struct Place {
    crowd: Arc<Crowd>,
    uid: u32,
}

impl Crowd {
    pub(crate) fn new(most: usize, most_of_one: usize) -> Arc<Self> {
        Arc::new(Self {
            most,
            most_of_one,
            open: Mutex::default(),
        })
    }

    /// A place for a connection of `uid`, if there is one.
    pub(crate) fn enter(self: &Arc<Self>, uid: u32) -> Option<Place> {
        let mut open = self.lock();
        let all: usize = open.values().sum();
        let own = open.get(&uid).copied().unwrap_or_default();
        if all >= self.most || own >= self.most_of_one {
            return None;
        }
        open.insert(uid, own + 1);
        Some(Place {
            crowd: Arc::clone(self),
            uid,
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u32, usize>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.crowd.lock();
        match open.get_mut(&self.uid) {
            Some(own) if *own > 1 => *own -= 1,
            _ => {
                open.remove(&self.uid);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_uid_has_its_share_and_all_have_theirs() {
        let crowd = Crowd::new(5, 2);
        let enter = |uid| crowd.enter(uid);
        let mut places = vec![enter(1), enter(1)];
        assert!(enter(1).is_none());
        places.extend([enter(2), enter(2), enter(3)]);
        assert!(places.iter().all(Option::is_some));
        assert!(enter(4).is_none(), "five are all");
        places.remove(0);
        assert!(enter(4).is_some());
        drop(places);
        assert!(crowd.lock().is_empty());
    }
}
