//! Whether a token is one that we have signed, where the filter may not have
//! looked: with `edge.token_check = "record"` anybody's token comes as far as this,
//! and nothing that it says of itself is believed before.

use super::facts::Facts;
use crate::keys::Native;
use crate::state::Core;
use capability::Limits;
use capability::key::PublicKey;
use capability::reason::Reason;
use capability::token::UnverifiedToken;

/// Whether one of our keys, as they are known now, has signed it. Asked once of
/// each question, and only about tokens that are not outstanding.
pub(super) fn is_signed(core: &Core, facts: &Facts) -> bool {
    *facts.signed.get_or_init(|| {
        let Ok(token) = UnverifiedToken::parse(facts.token.as_bytes(), &Limits::CEILING) else {
            return false;
        };
        let known = core.keys.known(core.now() / 1000);
        let keys = known.iter().filter_map(|jwk| {
            let kid = jwk.get("kid")?.as_str()?.to_owned();
            Some((kid, PublicKey::from_jwk(jwk).ok()?))
        });
        token.verify(&keys.collect::<Vec<_>>(), &Native).is_ok()
    })
}

/// Whether a refusal may name the agent that the token names. It may when our own
/// record has the token, which each of these reasons but three shows by itself; else
/// when we have signed it.
pub(super) async fn may_name_its_agent(core: &Core, facts: &Facts, reason: Reason) -> bool {
    let unsure = [
        Reason::TokenUnknown,
        Reason::OutcomeUnknown,
        Reason::InternalError,
    ];
    if !unsure.contains(&reason) || is_signed(core, facts) {
        return true;
    }
    // The key may be gone since: what we recorded was ours all the same.
    let Ok(hash) = facts.question.token_hash.as_slice().try_into() else {
        return false;
    };
    let outstanding = core.ledger.token(&hash).await.is_ok_and(|it| it.is_some());
    outstanding || core.ledger.spent(&hash).await.is_ok_and(|it| it.is_some())
}
