//! Proofs that were used at the token endpoint, by (`jkt`, `jti`).

use super::ExchangeError;
use capability::proof::VerifiedProof;
use ledger::model::ProofUse;
use std::collections::BTreeMap;
use std::sync::Mutex;

/// The whole of the last second, not now plus the window.
fn end_ms(until_s: u64) -> u64 {
    until_s.saturating_add(1).saturating_mul(1000)
}

/// What the ledger is told of a proof by the exchange that is called `id`: with several
/// replicas it alone knows that no other used it.
pub(super) fn used_by(proof: &VerifiedProof, until_s: u64, id: &str) -> ProofUse {
    ProofUse {
        id: proof.id(),
        by: id.to_owned(),
        until_ms: end_ms(until_s),
    }
}

/// Remembers proofs until they would not be accepted anyway. When it is full it
/// refuses; it never forgets one that could still be replayed. Each agent has a
/// share, so that one can't use up the others'.
pub struct SeenProofs {
    most: usize,
    most_per_agent: usize,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    /// With the time at which each ends.
    ids: BTreeMap<[u8; 32], u64>,
    by_time: BTreeMap<(u64, [u8; 32]), String>,
    per_agent: BTreeMap<String, usize>,
}

impl Seen {
    /// Forgets what has ended.
    fn expire(&mut self, now_ms: u64) {
        while let Some(first) = self.by_time.first_entry() {
            let (time, id) = *first.key();
            if time >= now_ms {
                break;
            }
            let agent = first.remove();
            self.ids.remove(&id);
            self.one_less(&agent);
        }
    }

    fn one_less(&mut self, agent: &str) {
        if let Some(count) = self.per_agent.get_mut(agent) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.per_agent.remove(agent);
            }
        }
    }
}

impl SeenProofs {
    /// A record of at most `most` proofs, and `most_per_agent` of each agent's.
    #[must_use]
    pub fn new(most: usize, most_per_agent: usize) -> Self {
        Self {
            most,
            most_per_agent,
            seen: Mutex::default(),
        }
    }

    /// Uses the proof, once. `until_s` is the last second in which it would be taken.
    ///
    /// # Errors
    /// [`ExchangeError::ProofReplayed`]; [`ExchangeError::Limit`] when the agent's
    /// share is used up, [`ExchangeError::Unavailable`] when everything is.
    pub fn take(
        &self,
        agent: &str,
        proof: &VerifiedProof,
        until_s: u64,
        now_ms: u64,
    ) -> Result<(), ExchangeError> {
        self.insert(agent, proof.id(), end_ms(until_s), now_ms)
    }

    /// Takes it as not used: the ledger refused, and wrote nothing. Else a client
    /// that is told to come again could not.
    pub fn give_back(&self, proof: &VerifiedProof) {
        self.remove(&proof.id());
    }

    fn remove(&self, id: &[u8; 32]) {
        if let Ok(mut seen) = self.seen.lock()
            && let Some(until) = seen.ids.remove(id)
            && let Some(agent) = seen.by_time.remove(&(until, *id))
        {
            seen.one_less(&agent);
        }
    }

    fn insert(
        &self,
        agent: &str,
        id: [u8; 32],
        until: u64,
        now_ms: u64,
    ) -> Result<(), ExchangeError> {
        let mut seen = self.seen.lock().map_err(|_| ExchangeError::Internal)?;
        seen.expire(now_ms);
        if seen.ids.contains_key(&id) {
            return Err(ExchangeError::ProofReplayed);
        }
        if seen
            .per_agent
            .get(agent)
            .is_some_and(|count| *count >= self.most_per_agent)
        {
            return Err(ExchangeError::Limit(
                "proofs of one agent that could still be replayed",
            ));
        }
        if seen.ids.len() >= self.most {
            return Err(ExchangeError::Unavailable);
        }
        seen.ids.insert(id, until);
        seen.by_time.insert((until, id), agent.to_owned());
        let count = seen.per_agent.entry(agent.to_owned()).or_default();
        *count = count.saturating_add(1);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn once_until_it_ends_and_never_forgotten_early() {
        let seen = SeenProofs::new(2, 2);
        let insert = |id, until, now| seen.insert("a", [id; 32], until, now);
        assert_eq!(insert(1, 100, 10), Ok(()));
        assert_eq!(insert(1, 100, 10), Err(ExchangeError::ProofReplayed));
        assert_eq!(insert(2, 200, 10), Ok(()));
        assert!(
            insert(3, 200, 10).is_err(),
            "full refuses, it does not evict"
        );
        assert_eq!(
            insert(1, 100, 100),
            Err(ExchangeError::ProofReplayed),
            "its last moment counts"
        );
        assert_eq!(insert(3, 300, 101), Ok(()), "the first has ended");
    }

    #[test]
    fn one_agent_has_a_share_and_everybody_together_the_whole() {
        let seen = SeenProofs::new(3, 2);
        assert_eq!(seen.insert("a", [1; 32], 100, 10), Ok(()));
        assert_eq!(seen.insert("a", [2; 32], 100, 10), Ok(()));
        assert!(matches!(
            seen.insert("a", [3; 32], 100, 10),
            Err(ExchangeError::Limit(_))
        ));
        assert_eq!(seen.insert("b", [3; 32], 100, 10), Ok(()));
        assert_eq!(
            seen.insert("c", [4; 32], 100, 10),
            Err(ExchangeError::Unavailable)
        );
        assert_eq!(
            seen.insert("a", [3; 32], 300, 101),
            Ok(()),
            "its share is free again"
        );
        seen.remove(&[3; 32]);
        assert_eq!(seen.insert("a", [3; 32], 300, 101), Ok(()), "given back");
        seen.remove(&[9; 32]);
        assert_eq!(seen.insert("d", [5; 32], 300, 101), Ok(()));
        assert_eq!(seen.insert("d", [6; 32], 300, 101), Ok(()));
        assert!(seen.insert("e", [7; 32], 300, 101).is_err(), "full again");
    }
}
