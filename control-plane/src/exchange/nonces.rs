//! DPoP nonces of the token endpoint (RFC 9449, section 8).
//!
//! A nonce is asked for when a proof's `iat` is no good, and carries the time of
//! whoever made it, so that a client whose clock is wrong gets its token all the
//! same. Nothing is remembered of it: it is sealed with a key that all replicas
//! have, and good for the proof window. The edge knows none of them.

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
        let path = dir.join(FILE);
        let text = secret_file(&path, || {
            let fresh = Zeroizing::new(rand::random::<[u8; KEY]>());
            Ok(Zeroizing::new(hex::encode(*fresh)))
        })?;
        let key = hex::decode(text.trim()).map(Zeroizing::new);
        match key {
            Ok(key) if key.len() == KEY => Ok(Self::new(&key, issuer, lifetime_s)),
            _ => Err(KeyError::Damaged(path)),
        }
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
        let mut context = hmac::Context::with_key(&self.key);
        for part in [PURPOSE, self.issuer.as_bytes(), &[0], open] {
            context.update(part);
        }
        let whole = context.sign();
        whole.as_ref().get(..SEAL).unwrap_or_default().to_vec()
    }
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
    fn the_key_stays_and_is_for_its_owner() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let open = || Nonces::open(dir.path(), "https://a.example", 60);
        let nonce = open().unwrap().fresh(NOW);
        assert_eq!(open().unwrap().read(&nonce, NOW), MADE);
        let file = dir.path().join(FILE);
        let mode = std::fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        std::fs::remove_file(&file).unwrap();
        assert_eq!(
            open().unwrap().read(&nonce, NOW),
            Told::Nothing,
            "another key"
        );
        std::fs::write(&file, "00").unwrap();
        assert!(matches!(open(), Err(KeyError::Damaged(_))));
    }
}
