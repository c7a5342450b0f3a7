//! DPoP nonces: those of the token endpoint (RFC 9449, section 8), and those of
//! routes at the edge that ask for one (section 9). Neither is good for the other.
//!
//! At the token endpoint a nonce is asked for when a proof's `iat` is no good, and
//! carries the time of whoever made it, so that a client whose clock is wrong gets
//! its token all the same. Nothing is remembered of it: it is sealed with a key that
//! all replicas have, and good for the proof window.
//!
//! At the edge it bounds how long ahead a proof can be made. Filters have no key: they
//! are told the few nonces that are good now, which are the same for all of them.

use crate::keys::{KeyError, secret_file};
use aws_lc_rs::hmac;
use base64ct::{Base64UrlUnpadded, Encoding};
use std::path::Path;
use zeroize::Zeroizing;

/// The key's file, in the directory of keys.
const FILE: &str = "nonce.key";
/// Bytes of the key.
const KEY: usize = 32;
/// Bytes of the time, in milliseconds.
const TIME: usize = 8;
/// Bytes of a nonce that nobody can guess, before the seal.
const RANDOM: usize = 16;
/// Bytes of the seal.
const SEAL: usize = 16;
/// What is sealed besides, so that the key's seals mean nothing elsewhere.
const PURPOSE: &[u8] = b"writ nonce for the token endpoint 1\0";
/// The same of those for the edge.
const PURPOSE_AT_EDGE: &[u8] = b"writ nonce for the edge 1\0";
/// How far replicas' clocks may be apart before a nonce of one is refused at the
/// proxies of another, in milliseconds.
const APART_MS: u64 = 10_000;

/// What a nonce says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// It is not ours.
    Nothing,
    /// It is ours, and good.
    Made {
        /// When it was made, in milliseconds.
        made_ms: u64,
    },
    /// It was good, or will be.
    Stale,
}

/// Makes nonces, and knows its own.
pub struct Nonces {
    key: hmac::Key,
    issuer: String,
    lifetime_ms: u64,
}

impl Nonces {
    /// Opens `dir/nonce.key`, or makes it.
    ///
    /// # Errors
    /// When it can't be read or made, or others may read it.
    pub fn open(dir: &Path, issuer: &str, lifetime_s: u64) -> Result<Self, KeyError> {
        Ok(Self::new(&key_in(dir)?, issuer, lifetime_s))
    }

    fn new(key: &[u8], issuer: &str, lifetime_s: u64) -> Self {
        Self {
            key: hmac::Key::new(hmac::HMAC_SHA256, key),
            issuer: issuer.to_owned(),
            lifetime_ms: lifetime_s.saturating_mul(1000),
        }
    }

    /// A nonce of this moment.
    #[must_use]
    pub fn fresh(&self, now_ms: u64) -> String {
        let random: [u8; RANDOM] = rand::random();
        let open = [now_ms.to_be_bytes().as_slice(), &random].concat();
        let seal = self.seal(&open);
        Base64UrlUnpadded::encode_string(&[open.as_slice(), &seal].concat())
    }

    /// What a nonce says.
    #[must_use]
    pub fn read(&self, nonce: &str, now_ms: u64) -> Told {
        match self.made_ms(nonce) {
            None => Told::Nothing,
            // One from another replica may be a little ahead.
            Some(made_ms) if made_ms.abs_diff(now_ms) <= self.lifetime_ms => Told::Made { made_ms },
            Some(_) => Told::Stale,
        }
    }

    fn made_ms(&self, nonce: &str) -> Option<u64> {
        let bytes = Base64UrlUnpadded::decode_vec(nonce).ok()?;
        let (open, seal) = bytes.split_at_checked(TIME + RANDOM)?;
        if !capability::same_bytes(&self.seal(open), seal) {
            return None;
        }
        Some(u64::from_be_bytes(open.get(..TIME)?.try_into().ok()?))
    }

    /// How long a nonce is good, in seconds.
    #[must_use]
    pub fn lifetime_s(&self) -> u64 {
        self.lifetime_ms / 1000
    }

    fn seal(&self, open: &[u8]) -> Vec<u8> {
        let whole = sealed(&self.key, &[PURPOSE, self.issuer.as_bytes(), &[0], open]);
        whole.as_ref().get(..SEAL).unwrap_or_default().to_vec()
    }
}

/// The nonces of the edge. They change with the time, and all replicas that share the
/// key have the same.
pub struct EdgeNonces {
    key: hmac::Key,
    issuer: String,
}

impl EdgeNonces {
    /// By the same key as [`Nonces::open`].
    ///
    /// # Errors
    /// As there.
    pub fn open(dir: &Path, issuer: &str) -> Result<Self, KeyError> {
        Ok(Self::new(&key_in(dir)?, issuer))
    }

    fn new(key: &[u8], issuer: &str) -> Self {
        Self {
            key: hmac::Key::new(hmac::HMAC_SHA256, key),
            issuer: issuer.to_owned(),
        }
    }

    /// Those that are good now, where they change each `every_s`: the one to tell
    /// clients, the one before it, and shortly before a change the next one, which a
    /// replica whose clock is ahead tells already.
    #[must_use]
    pub fn good(&self, now_ms: u64, every_s: u64) -> Vec<String> {
        let every_ms = every_s.max(1).saturating_mul(1000);
        let began = |at_ms: u64| at_ms.saturating_sub(at_ms.checked_rem(every_ms).unwrap_or(0));
        let now = began(now_ms);
        let before = now.checked_sub(every_ms);
        let next = now.saturating_add(every_ms);
        let is_near = now_ms.saturating_add(APART_MS) >= next;
        let all = [Some(now), before, Some(next).filter(|_| is_near)];
        let all = all.into_iter().flatten();
        all.map(|began_ms| self.of(began_ms, every_ms)).collect()
    }

    fn of(&self, began_ms: u64, every_ms: u64) -> String {
        let (began, every) = (began_ms.to_be_bytes(), every_ms.to_be_bytes());
        let issuer = self.issuer.as_bytes();
        let seal = sealed(&self.key, &[PURPOSE_AT_EDGE, issuer, &[0], &every, &began]);
        Base64UrlUnpadded::encode_string(&[began.as_slice(), seal.as_ref()].concat())
    }
}

/// The key in `dir`, which is made where there is none.
fn key_in(dir: &Path) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    let path = dir.join(FILE);
    let text = secret_file(&path, || {
        let fresh = Zeroizing::new(rand::random::<[u8; KEY]>());
        Ok(Zeroizing::new(hex::encode(*fresh)))
    })?;
    let key = hex::decode(text.trim()).map(Zeroizing::new);
    key.ok()
        .filter(|key| key.len() == KEY)
        .ok_or(KeyError::Damaged(path))
}

fn sealed(key: &hmac::Key, parts: &[&[u8]]) -> hmac::Tag {
    let mut context = hmac::Context::with_key(key);
    for part in parts {
        context.update(part);
    }
    context.sign()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    const NOW: u64 = 1_800_000_000_000;
    const MADE: Told = Told::Made { made_ms: NOW };

    fn nonces(key: u8, issuer: &str) -> Nonces {
        Nonces::new(&[key; KEY], issuer, 60)
    }

    #[test]
    fn it_carries_its_time_and_is_good_for_so_long() {
        let nonces = nonces(1, "https://a.example");
        let nonce = nonces.fresh(NOW);
        for (now, good) in [
            (NOW, true),
            (NOW + 60_000, true),
            (NOW + 60_001, false),
            (NOW - 60_000, true),
            (NOW - 60_001, false),
        ] {
            let told = if good { MADE } else { Told::Stale };
            assert_eq!(nonces.read(&nonce, now), told, "{now}");
        }
    }

    #[test]
    fn another_key_issuer_or_bit_makes_it_nobodys() {
        let ours = nonces(1, "https://a.example");
        let nonce = ours.fresh(NOW);
        assert_eq!(nonces(1, "https://a.example").read(&nonce, NOW), MADE);
        assert_eq!(
            nonces(2, "https://a.example").read(&nonce, NOW),
            Told::Nothing
        );
        assert_eq!(
            nonces(1, "https://b.example").read(&nonce, NOW),
            Told::Nothing
        );
        let bytes = Base64UrlUnpadded::decode_vec(&nonce).unwrap();
        for bit in 0..bytes.len() * 8 {
            let mut other = bytes.clone();
            other[bit / 8] ^= 1 << (bit % 8);
            let other = Base64UrlUnpadded::encode_string(&other);
            assert_eq!(ours.read(&other, NOW), Told::Nothing, "{bit}");
        }
        let padded = format!("{nonce}=");
        for text in ["", "n", "AAAA", nonce.get(1..).unwrap(), padded.as_str()] {
            assert_eq!(ours.read(text, NOW), Told::Nothing, "{text}");
        }
    }

    #[test]
    fn of_a_million_none_comes_twice() {
        let nonces = nonces(1, "https://a.example");
        let mut seen = BTreeSet::new();
        for _ in 0..1_000_000 {
            // All of one millisecond: only what is random tells them apart.
            let bytes = Base64UrlUnpadded::decode_vec(&nonces.fresh(NOW)).unwrap();
            assert!(seen.insert(<[u8; RANDOM]>::try_from(&bytes[TIME..TIME + RANDOM]).unwrap()));
        }
    }

    #[test]
    fn at_the_edge_one_is_told_and_good_until_the_next_but_one() {
        let edge = EdgeNonces::new(&[1; KEY], "https://a.example");
        let at = |now_ms| edge.good(now_ms, 60);
        let told = at(NOW)[0].clone();
        // How far after its beginning it is told, and how far it is good.
        for (after_ms, is_told, is_good) in [
            (0, true, true),
            (59_999, true, true),
            (60_000, false, true),
            (119_999, false, true),
            (120_000, false, false),
        ] {
            let good = at(NOW + after_ms);
            assert_eq!(good[0] == told, is_told, "{after_ms}");
            assert_eq!(good.contains(&told), is_good, "{after_ms}");
        }
        // A replica whose clock is behind takes it a little sooner, and tells another.
        for (before_ms, is_good) in [(10_001, false), (10_000, true), (1, true)] {
            let good = at(NOW - before_ms);
            assert_ne!(good[0], told, "{before_ms}");
            assert_eq!(good.contains(&told), is_good, "{before_ms}");
        }
        assert_eq!(at(0).len(), 1);
        let few: Vec<usize> = (0..60).map(|s| at(NOW + s * 1000).len()).collect();
        assert_eq!((few[49], few[50]), (2, 3));
        // It says when it began, and fits a header (RFC 9449, section 8.1).
        let bytes = Base64UrlUnpadded::decode_vec(&told).unwrap();
        assert_eq!(bytes[..TIME], NOW.to_be_bytes());
        assert_eq!(told.len(), 54);
    }

    #[test]
    fn at_the_edge_key_issuer_and_period_all_count_and_nothing_comes_twice() {
        let good =
            |key, issuer: &str, every_s| EdgeNonces::new(&[key; KEY], issuer).good(NOW, every_s);
        let ours = good(1, "https://a.example", 60);
        assert_eq!(good(1, "https://a.example", 60), ours);
        for other in [
            good(2, "https://a.example", 60),
            good(1, "https://b.example", 60),
            good(1, "https://a.example", 30),
        ] {
            assert!(!other.contains(&ours[0]), "{other:?}");
        }
        let edge = EdgeNonces::new(&[1; KEY], "https://a.example");
        let mut seen = BTreeSet::new();
        for period in 0..100_000_u64 {
            let told = edge.good(NOW + period * 60_000, 60).remove(0);
            let bytes = Base64UrlUnpadded::decode_vec(&told).unwrap();
            assert!(seen.insert(bytes[TIME..].to_vec()), "{period}");
        }
    }

    #[test]
    fn neither_place_takes_the_others() {
        let issuer = "https://a.example";
        let there = nonces(1, issuer);
        let here = EdgeNonces::new(&[1; KEY], issuer);
        for nonce in here.good(NOW, 60) {
            assert_eq!(there.read(&nonce, NOW), Told::Nothing);
        }
        assert!(!here.good(NOW, 60).contains(&there.fresh(NOW)));
    }

    #[test]
    fn the_key_stays_and_is_for_its_owner() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let open = || Nonces::open(dir.path(), "https://a.example", 60);
        let nonce = open().unwrap().fresh(NOW);
        assert_eq!(open().unwrap().read(&nonce, NOW), MADE);
        let at_edge = || EdgeNonces::open(dir.path(), "https://a.example").unwrap();
        let told = at_edge().good(NOW, 60);
        assert_eq!(at_edge().good(NOW, 60), told);
        let file = dir.path().join(FILE);
        let mode = std::fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        std::fs::remove_file(&file).unwrap();
        assert_eq!(
            open().unwrap().read(&nonce, NOW),
            Told::Nothing,
            "another key"
        );
        assert_ne!(at_edge().good(NOW, 60), told, "another key");
        std::fs::write(&file, "00").unwrap();
        assert!(matches!(open(), Err(KeyError::Damaged(_))));
    }
}
