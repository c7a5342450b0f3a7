//! Refresh tokens: each comes with a token, as the next one of its family.
//!
//! The first of a family is handed out to nobody: it is recorded before the token that
//! begins the family, which is got with it as all others are with the one before. So that
//! has it in its lineage too, and ends with the family.

use super::form::Grant;
use super::mint::{Failed, Told};
use super::{Asking, Exchange, grants};
use crate::state::random_id;
use ledger::model::{GrantKind, GrantTerms, PolicyFacts, Refused, TokenRecord};

/// The refresh token that follows this one, while there is one, and ends by then at last.
pub(super) fn next(shown: &TokenRecord, ends_ms: u64) -> Option<(String, TokenRecord)> {
    let terms = shown.grant.as_ref()?;
    let left = terms.uses.filter(|_| terms.kind == GrantKind::Refresh)?;
    let uses = left.checked_sub(1)?;
    let (text, hash) = grants::fresh(GrantKind::Refresh);
    let next = TokenRecord {
        token_hash: hash,
        lineage: shown.heirs(),
        grant: Some(GrantTerms {
            uses: Some(uses),
            ..terms.clone()
        }),
        expires_ms: shown.expires_ms.min(ends_ms),
        ..TokenRecord::clone(shown)
    };
    Some((text, next))
}

impl Exchange {
    /// The first of a family, for a client that may have one, and when those end that follow
    /// it. Where a limit is in the way the token is given without. `first`: what counts once
    /// has not been used up yet, and is by this.
    pub(super) async fn family(
        &self,
        asking: Asking<'_>,
        told: &Told,
        first: bool,
    ) -> Result<Option<(TokenRecord, u64)>, Failed> {
        let lives_s = asking.proven.agent.refresh_s;
        if lives_s == 0 || asking.caller.grant != Grant::Client {
            return Ok(None);
        }
        let (agent, refusals) = (asking.caller.agent, &self.core.refusals);
        if !refusals.may_begin_family(agent, asking.now_ms) {
            tracing::warn!(
                agent,
                "no refresh token is given: many of this agent's were used twice just now"
            );
            return Ok(None);
        }
        let (_, hash) = grants::fresh(GrantKind::Refresh);
        // It is spent at once by what it brings.
        let terms = grants::own(GrantKind::Refresh, Some(grants::REFRESHES_MAX + 1));
        let ends_ms = |lives_s: u64| {
            let ends_s = (asking.now_ms / 1000).saturating_add(lives_s);
            ends_s.saturating_mul(1000)
        };
        let mut token = TokenRecord {
            token_hash: hash,
            // All of its family have it, and it says which that is.
            jti: grants::family_name(&hash),
            txn: random_id::<16>(""),
            // What it brings ends by itself.
            expires_ms: ends_ms(lives_s.max(self.core.config.token.lifetime_s)),
            ..self.record(asking, Some(terms))
        };
        "refresh".clone_into(&mut token.action.kind);
        let made = self.command(asking, token.clone(), None, PolicyFacts::default(), first);
        match self.core.ledger.commit(made).await {
            Ok(_) => Ok(Some((token, ends_ms(lives_s)))),
            Err(Refused::Limit(what)) => {
                tracing::warn!(agent, what, "no refresh token is given");
                Ok(None)
            }
            Err(refused) => Err(self.not_committed(asking, refused, told.clone()).await),
        }
    }
}
