//! Maps whose keys need no keyed hash of the standard library's strength.
//!
//! Some are digests already.
//! Hashing a SHA-256 again would cost more than the look-up. Most keys are digests of
//! what was signed here, or by a trust domain; actions, whose text an agent chooses,
//! are few: each agent has a small share of the open approvals.
//!
//! Those that grow with the traffic are in many small parts: a map that grows moves
//! all that it holds at once, and meanwhile nobody is answered.

use std::{
    borrow::Borrow,
    collections::{HashMap, HashSet},
    hash::{BuildHasher, BuildHasherDefault, Hash as Hashed, Hasher},
    sync::Arc,
};

use foldhash::quality::RandomState;

use crate::model::Hash;

/// A map by digest.
pub(crate) type ByHash<V> = HashMap<Hash, V, BuildHasherDefault<Leading>>;

/// A map by the name of an agent, which a trust domain vouches for.
pub(crate) type ByAgent<V> = HashMap<String, V, RandomState>;

/// A large map by digest.
pub(crate) type ManyByHash<V> = Parted<Hash, V, BuildHasherDefault<Leading>>;

/// A large map by the name of an attempt, which authenticated proxies choose.
pub(crate) type ManyByAttempt<V> = Parted<Arc<str>, V, RandomState>;

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

/// Parts of a large map.
const PARTS: usize = 64;

/// Says which part of a map a key is in. A key that somebody chose so that all are
/// in one makes that part a map like any other.
pub(crate) trait Part {
    /// Any number that differs for keys that differ.
    fn part(&self) -> u8;
}

impl Part for Hash {
    // What hashing takes is in front.
    fn part(&self) -> u8 {
        let [.., last] = self;
        *last
    }
}

impl Part for str {
    // The end of a hexadecimal counter is what changes most.
    fn part(&self) -> u8 {
        let digit = |byte: u8| (byte & 15).wrapping_add((byte >> 6).wrapping_mul(9));
        let last = self.as_bytes().rchunks(2).next().unwrap_or_default();
        last.iter().fold(0, |sum: u8, byte| {
            sum.wrapping_mul(16).wrapping_add(digit(*byte))
        })
    }
}

/// A map in parts, each of which grows by itself. Without entries it takes no memory.
#[derive(Clone)]
#[cfg_attr(test, derive(Debug))]
pub(crate) struct Parted<K, V, S>(Vec<HashMap<K, V, S>>);

impl<K, V, S> Default for Parted<K, V, S> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<K: Hashed + Eq, V, S: BuildHasher + Default> Parted<K, V, S> {
    fn at<Q: Part + ?Sized>(key: &Q) -> usize {
        usize::from(key.part()) % PARTS
    }

    pub(crate) fn get<Q>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
        Q: Part + Hashed + Eq + ?Sized,
    {
        self.0.get(Self::at(key))?.get(key)
    }

    pub(crate) fn get_mut<Q>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
        Q: Part + Hashed + Eq + ?Sized,
    {
        self.0.get_mut(Self::at(key))?.get_mut(key)
    }

    pub(crate) fn insert<Q>(&mut self, key: K, value: V)
    where
        K: Borrow<Q>,
        Q: Part + ?Sized,
    {
        if self.0.is_empty() {
            self.0.resize_with(PARTS, HashMap::default);
        }
        let at = Self::at(key.borrow());
        if let Some(part) = self.0.get_mut(at) {
            part.insert(key, value);
        }
    }

    pub(crate) fn remove<Q>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Part + Hashed + Eq + ?Sized,
    {
        self.0.get_mut(Self::at(key))?.remove(key)
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
impl<K: Hashed + Eq, V: PartialEq, S: BuildHasher> PartialEq for Parted<K, V, S> {
    fn eq(&self, other: &Self) -> bool {
        let filled = |map: &Self| map.0.iter().map(HashMap::len).sum::<usize>();
        filled(self) == filled(other) && self.0.iter().zip(&other.0).all(|(a, b)| a == b)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_in_is_found_in_every_part_and_goes() {
        let (mut hashes, mut attempts) = (ManyByHash::default(), ManyByAttempt::default());
        assert_eq!(hashes.get(&[0; 32]), None::<&usize>);
        for n in 0..10_000_usize {
            hashes.insert::<Hash>(audit::leaf_hash(&n.to_be_bytes()), n);
            attempts.insert::<str>(format!("{n:016x}").as_str().into(), n);
        }
        for parts in [
            hashes.0.iter().map(HashMap::len).collect::<Vec<_>>(),
            attempts.0.iter().map(HashMap::len).collect(),
        ] {
            let (least, most) = (parts.iter().min(), parts.iter().max());
            assert!(least > Some(&80) && most < Some(&240), "{parts:?}");
        }
        for n in 0..10_000_usize {
            let (hash, attempt) = (audit::leaf_hash(&n.to_be_bytes()), format!("{n:016x}"));
            assert_eq!(hashes.get(&hash), Some(&n));
            assert_eq!(attempts.get(attempt.as_str()), Some(&n));
            *hashes.get_mut(&hash).unwrap() += 1;
            assert_eq!(hashes.remove(&hash), Some(n + 1));
            assert_eq!(attempts.remove(attempt.as_str()), Some(n));
            assert_eq!(hashes.remove(&hash), None);
        }
        assert_eq!(hashes, ManyByHash::default());
        attempts.insert::<str>("".into(), 1);
        assert_eq!(attempts.get(""), Some(&1));
        attempts.clear();
        assert_eq!(attempts.get(""), None);
    }
}
