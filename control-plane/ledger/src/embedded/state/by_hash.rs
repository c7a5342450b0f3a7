//! Maps whose keys need no keyed hash of the standard library's strength.
//!
//! Some are digests already.
//! Hashing a SHA-256 again would cost more than the look-up. Most keys are digests of
//! what was signed here, or by a trust domain; actions, whose text an agent chooses,
//! are few: each agent has a small share of the open approvals.

use std::{
    collections::{HashMap, HashSet},
    hash::{BuildHasherDefault, Hasher},
    sync::Arc,
};

use foldhash::quality::RandomState;

use crate::model::Hash;

/// A map by digest.
pub(crate) type ByHash<V> = HashMap<Hash, V, BuildHasherDefault<Leading>>;

/// A map by the name of an attempt, which authenticated proxies choose.
pub(crate) type ByAttempt<V> = HashMap<Arc<str>, V, RandomState>;

/// Attempts.
pub(crate) type Attempts = HashSet<Arc<str>, RandomState>;

/// The first eight bytes of the key, as they are.
#[derive(Default)]
pub(crate) struct Leading(u64);

impl Hasher for Leading {
    fn write(&mut self, bytes: &[u8]) {
        if let Some(leading) = bytes.first_chunk() {
            self.0 = u64::from_ne_bytes(*leading);
        }
    }

    // An array's length comes first; it is always 32.
    fn write_usize(&mut self, _: usize) {}

    fn finish(&self) -> u64 {
        self.0
    }
}
