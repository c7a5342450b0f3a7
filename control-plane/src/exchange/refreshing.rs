//! Refresh tokens: the first that comes with a token, and the next one of its family.

use super::form::Grant;
use super::{Asking, Exchange, grants};
use crate::state::random_id;
use ledger::model::{GrantKind, GrantTerms, PolicyFacts, TokenRecord};

impl Exchange {
    /// The refresh token that follows the one that was shown, while there is one.
    pub(super) fn next_refresh(&self, asking: Asking<'_>) -> Option<(String, TokenRecord)> {
        let shown = asking.proven.under.as_ref()?;
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
            ..TokenRecord::clone(shown)
        };
        Some((text, next))
    }

    /// The first one, for a client that may have it. What it comes with stands without it.
    pub(super) async fn first_refresh(&self, asking: Asking<'_>) -> Option<String> {
        let lives_s = asking.proven.agent.refresh_s;
        if lives_s == 0 || asking.caller.grant != Grant::Client {
            return None;
        }
        let (text, hash) = grants::fresh(GrantKind::Refresh);
        let terms = grants::own(GrantKind::Refresh, Some(grants::REFRESHES_MAX));
        let mut token = TokenRecord {
            token_hash: hash,
            // All of its family have it, and it says which that is.
            jti: grants::family_name(&hash),
            txn: random_id::<16>(""),
            expires_ms: (asking.now_ms / 1000)
                .saturating_add(lives_s)
                .saturating_mul(1000),
            ..self.record(asking, Some(terms))
        };
        "refresh".clone_into(&mut token.action.kind);
        // The assertion was used up by what this comes with.
        let made = self.command(asking, token, None, PolicyFacts::default(), false);
        match self.core.ledger.commit(made).await {
            Ok(_) => Some(text),
            Err(refused) => {
                tracing::warn!(agent = asking.caller.agent, %refused, "no refresh token is given");
                None
            }
        }
    }
}
