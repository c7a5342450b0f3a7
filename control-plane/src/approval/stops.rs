//! What a person's stop of a token ends, and for how long it is kept.

use super::{ApprovalDesk, not_recorded};
use crate::exchange::Family;
use crate::web::DeskError;
use ledger::model::{Millis, Target};

/// How long a person's stop of a token is kept after its end, or from now where that is not
/// known, in ms: what it let through may be open at a proxy that is cut off.
const TOKEN_STOP_MS: u64 = 24 * 60 * 60 * 1000;

/// Until when the stop of a token is kept that ends then, but for what it brought.
pub(crate) fn kept_until(ends_ms: Millis, now_ms: Millis) -> Millis {
    ends_ms.max(now_ms).saturating_add(TOKEN_STOP_MS)
}

impl ApprovalDesk {
    /// What a stop of this has to name, and until when it is kept: of a refresh token, also
    /// of one that was used, its family.
    pub(super) async fn meant(
        &self,
        target: Target,
    ) -> Result<(Target, Option<Millis>), DeskError> {
        let Target::Token(hash) = target else {
            return Ok((target, None));
        };
        let ledger = &self.core.ledger;
        let family = Family::of_grant(ledger, &hash).await;
        let family = family.map_err(|error| not_recorded(&error))?;
        let (hash, ends_ms) = family.map_or((hash, 0), |it| (it.first, it.ends_ms));
        let until_ms = kept_until(ends_ms, ledger.now());
        Ok((Target::Token(hash), Some(until_ms)))
    }
}
