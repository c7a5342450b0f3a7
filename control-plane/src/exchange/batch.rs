//! Several capabilities at once: one proof, one token for each action.
//!
//! For calls in parallel, and for what is fetched ahead. Each token is for one action as
//! any other is, and each action that is refused is said so beside those that are not.

use super::form::Grant;
use super::mint::Failed;
use super::proof::Shown;
use super::{Asking, Exchange, ExchangeError, Issued, Who, proofs, x5t_of};
use capability::reason::Reason;
use identity::mtls::Peer;
use serde_json::Value;

/// Actions of one batch.
pub(super) const BATCH_MAX: usize = 32;

/// What came of each action, in their order.
pub type Each = Vec<Result<Issued, ExchangeError>>;

impl Exchange {
    /// Answers a batch for whom the session, or the client certificate, says it is.
    ///
    /// # Errors
    /// When none of it is looked at.
    pub async fn batch(
        &self,
        elements: &[Value],
        (session, proof): (Option<&str>, &str),
        id: &str,
        peer: Option<&Peer>,
    ) -> Result<Each, ExchangeError> {
        if elements.is_empty() || elements.len() > BATCH_MAX {
            return Err(ExchangeError::Details(format!(
                "authorization_details has 1 to {BATCH_MAX} elements here, one action each"
            )));
        }
        let now_ms = self.core.now();
        let proof_text = proof;
        let Shown { proof, until_s } = self.batch_proof(proof, session, peer, now_ms)?;
        let x5t = x5t_of(peer);
        self.check_peer(peer, now_ms)?;
        let proven = match (session, peer) {
            (Some(session), _) => self.session(session, (proof.jkt(), x5t.as_deref())).await?,
            (None, Some(peer)) => Self::by_certificate(peer)?,
            (None, None) => return Err(ExchangeError::Proof(Reason::MissingCredentials)),
        };
        let who = Who::of(&proven, x5t);
        let used = proofs::used_by(&proof, until_s, id);
        let asking = Asking {
            caller: who.caller(Grant::Client, id),
            proven: &proven,
            jkt: proof.jkt(),
            proof: proof_text,
            used: &used,
            now_ms,
        };
        self.core.saw(&who.agent);
        self.is_peers(asking, peer).await?;
        let mut judged = Vec::with_capacity(elements.len());
        for element in elements.iter().enumerate() {
            judged.push(self.judge(asking, element, None).await);
        }
        // Last before the mint: a batch that gets nothing has used up no proof.
        if judged.iter().any(Result::is_ok)
            && let Err(error) = self.proofs.take(&who.agent, &proof, until_s, now_ms)
        {
            return Err(self.refused(asking.caller, None, None, error).await);
        }
        // Together, so that they share a commit's sync.
        let minted = judged.into_iter().map(|judged| async move {
            match judged {
                Ok(judged) => self.capability(asking, judged, true).await,
                Err(error) => Err(Failed::from(error)),
            }
        });
        let minted = futures::future::join_all(minted).await;
        let nothing =
            |it: &Result<Issued, Failed>| it.as_ref().is_err_and(|failed| failed.nothing_happened);
        if minted.iter().all(nothing) {
            self.proofs.give_back(&proof);
        }
        let each = minted.into_iter();
        Ok(each.map(|it| it.map_err(|failed| failed.error)).collect())
    }
}
