//! Proofs that were used at the token endpoint, by (`jkt`, `jti`).

use super::ExchangeError;
use capability::proof::VerifiedProof;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::sync::Mutex;

/// Remembers proofs until they would not be accepted anyway. When it is full it
/// refuses; it never forgets one that could still be replayed.
pub struct SeenProofs {
    most: usize,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    until: BTreeMap<[u8; 32], u64>,
    by_time: BTreeMap<(u64, [u8; 32]), ()>,
}

impl SeenProofs {
    /// A record of at most `most` proofs.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self { most, seen: Mutex::default() }
    }

    /// Uses the proof, once.
    ///
    /// # Errors
    /// [`ExchangeError::ProofReplayed`], or [`ExchangeError::Unavailable`] when full.
    pub fn take(&self, proof: &VerifiedProof, window_s: u64, now_ms: u64) -> Result<(), ExchangeError> {
        let mut digest = Sha256::new();
        digest.update(proof.jkt().as_bytes());
        digest.update([0]);
        digest.update(proof.jti().as_bytes());
        // Its last acceptable moment, not now plus the window.
        let until = proof.iat_s().saturating_add(window_s).saturating_add(1).saturating_mul(1000);
        self.insert(digest.finalize().into(), until, now_ms)
    }

    fn insert(&self, id: [u8; 32], until: u64, now_ms: u64) -> Result<(), ExchangeError> {
        let mut seen = self.seen.lock().map_err(|_| ExchangeError::Internal)?;
        while let Some((&(time, old), ())) = seen.by_time.first_key_value() {
            if time >= now_ms {
                break;
            }
            seen.by_time.remove(&(time, old));
            seen.until.remove(&old);
        }
        if seen.until.contains_key(&id) {
            return Err(ExchangeError::ProofReplayed);
        }
        if seen.until.len() >= self.most {
            return Err(ExchangeError::Unavailable);
        }
        seen.until.insert(id, until);
        seen.by_time.insert((until, id), ());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn once_until_it_ends_and_never_forgotten_early() {
        let seen = SeenProofs::new(2);
        assert_eq!(seen.insert([1; 32], 100, 10), Ok(()));
        assert_eq!(seen.insert([1; 32], 100, 10), Err(ExchangeError::ProofReplayed));
        assert_eq!(seen.insert([2; 32], 200, 10), Ok(()));
        assert_eq!(seen.insert([3; 32], 200, 10), Err(ExchangeError::Unavailable), "full refuses, it does not evict");
        assert_eq!(seen.insert([1; 32], 100, 100), Err(ExchangeError::ProofReplayed), "its last moment counts");
        assert_eq!(seen.insert([3; 32], 300, 101), Ok(()), "the first has ended");
    }
}
