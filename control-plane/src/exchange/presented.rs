//! Who asks elsewhere than at the token endpoint: by a session, or by a certificate alone,
//! each with a proof of that very request.

use super::evidence::Proven;
use super::form::Grant;
use super::proof::Shown;
use super::{Asking, Exchange, ExchangeError, Who, proofs, x5t_of};
use capability::proof::VerifiedProof;
use capability::reason::Reason;
use identity::mtls::Peer;
use ledger::model::ProofUse;

/// What a request shows: the session, where there is one, and the proof.
#[derive(Clone, Copy)]
pub(super) struct Shows<'a> {
    pub(super) session: Option<&'a str>,
    pub(super) proof: &'a str,
    /// The caller by its client certificate, where it has shown one.
    pub(super) peer: Option<&'a Peer>,
    /// What this request is called.
    pub(super) id: &'a str,
}

/// What was shown, checked.
pub(super) struct Presented<'a> {
    shows: Shows<'a>,
    now_ms: u64,
    proof: VerifiedProof,
    until_s: u64,
    proven: Proven,
    who: Who,
    used: ProofUse,
}

impl Presented<'_> {
    pub(super) fn asking(&self) -> Asking<'_> {
        Asking {
            caller: self.who.caller(Grant::Client, self.shows.id),
            proven: &self.proven,
            jkt: self.proof.jkt(),
            proof: self.shows.proof,
            used: &self.used,
            now_ms: self.now_ms,
        }
    }
}

impl Exchange {
    /// Checks what a request to this path of the issuer's shows.
    ///
    /// # Errors
    /// Who asks is not known by it.
    pub(super) async fn presented<'a>(
        &self,
        path: &str,
        shows: Shows<'a>,
    ) -> Result<Presented<'a>, ExchangeError> {
        let Shows { session, peer, .. } = shows;
        let now_ms = self.core.now();
        let Shown { proof, until_s } = self.proof_at(path, shows.proof, session, peer, now_ms)?;
        let x5t = x5t_of(peer);
        self.check_peer(peer, now_ms)?;
        let proven = match (session, peer) {
            (Some(session), _) => self.session(session, (proof.jkt(), x5t.as_deref())).await?,
            (None, Some(peer)) => Self::by_certificate(peer)?,
            (None, None) => return Err(ExchangeError::Proof(Reason::MissingCredentials)),
        };
        let who = Who::of(&proven, x5t);
        let used = proofs::used_by(&proof, until_s, shows.id);
        let it = Presented {
            shows,
            now_ms,
            proof,
            until_s,
            proven,
            who,
            used,
        };
        self.core.saw(&it.who.agent);
        self.is_peers(it.asking(), peer).await?;
        Ok(it)
    }

    /// Uses the proof up, here.
    ///
    /// # Errors
    /// It was used, or there is no room to remember it.
    pub(super) fn use_up(&self, it: &Presented<'_>) -> Result<(), ExchangeError> {
        let agent = &it.who.agent;
        self.proofs.take(agent, &it.proof, it.until_s, it.now_ms)
    }

    /// Nothing came of it: the proof may be shown again.
    pub(super) fn give_back(&self, it: &Presented<'_>) {
        self.proofs.give_back(&it.proof);
    }
}
