//! A proof is one exchange's.

use crate::embedded::state::State;
use crate::model::{Millis, ProofUse, Refused};

impl State {
    /// The proof was used by no other exchange.
    pub(super) fn check_proof(&self, proof: Option<&ProofUse>, now: Millis) -> Result<(), Refused> {
        let Some(proof) = proof else {
            return Ok(());
        };
        // It may have been used, and forgotten since it was looked at.
        if proof.until_ms <= now {
            return Err(Refused::ProofUsed);
        }
        let used = self.proof_used_by(&proof.id);
        if used.is_some_and(|by| by != proof.by) && !planted!(ProofTwice) {
            return Err(Refused::ProofUsed);
        }
        Ok(())
    }
}
