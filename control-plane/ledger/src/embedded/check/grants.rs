//! What is got with grants: sessions, refresh tokens, delegations.

use crate::{
    embedded::state::State,
    model::{
        GRANT_USES, Given, GrantKind, GrantTerms, Hash, HexHash, Millis, Refused, TokenRecord,
    },
};

impl State {
    /// Whether a token may be got with the grant that it names, and without one has none
    /// of what grants bring.
    pub(super) fn check_grants(
        &self,
        token: &TokenRecord,
        under: Option<Hash>,
        next: Option<&TokenRecord>,
        now: Millis,
    ) -> Result<(), Refused> {
        let Some(under) = under else {
            let bare = token.lineage.is_empty() && next.is_none();
            return if bare { Ok(()) } else { Err(Refused::NoGrant) };
        };
        let (grant, terms) = self.grant(&under)?;
        // And so nothing is got with it after its end.
        if token.expires_ms > grant.expires_ms && !planted!(GrantTimeUnchecked) {
            return Err(Refused::NoGrant);
        }
        if !covers(grant, terms, token) || !follows(grant, terms, token, next) {
            return Err(Refused::NoGrant);
        }
        self.may_use(&Given::from(grant), now)?;
        // What was passed on is bound to other keys than what it came from.
        for HexHash(hash) in &token.lineage {
            let unchecked = planted!(LineageUnchecked) || planted!(AncestorsUnchecked);
            if let Some(before) = self.token(hash).filter(|_| !unchecked) {
                self.may_use(&Given::from(&*before.record), now)?;
            }
        }
        if token.grant.is_some() {
            return Ok(());
        }
        let used_up = |HexHash(hash): &HexHash| {
            let known = self.token(hash).and_then(|it| it.record.grant.as_ref());
            let counts = known.filter(|it| it.kind == GrantKind::Delegation);
            counts.is_some_and(|it| it.uses == Some(0))
        };
        if token.lineage.iter().any(used_up) && !planted!(UsesOverrun) {
            return Err(Refused::Limit(GRANT_USES));
        }
        Ok(())
    }

    fn grant(&self, hash: &Hash) -> Result<(&TokenRecord, &GrantTerms), Refused> {
        let found = self.token(hash).map(|it| &*it.record);
        let found = found.and_then(|it| Some((it, it.grant.as_ref()?)));
        found.ok_or_else(|| match self.spent(hash) {
            Some(_) => Refused::Shown,
            None => Refused::NoGrant,
        })
    }
}

/// Whether the grant is for whom the token is.
fn covers(grant: &TokenRecord, terms: &GrantTerms, token: &TokenRecord) -> bool {
    let own = || token.agent == grant.agent && token.chain == grant.chain && token.jkt == grant.jkt;
    let held = |holder: &str| {
        (token.agent == holder || planted!(HolderUnchecked))
            && token.chain == grant.delegated_chain(&token.agent)
    };
    let whose = match terms.kind {
        GrantKind::Session | GrantKind::Refresh => own(),
        GrantKind::Delegation => terms.holder.as_deref().is_some_and(held),
        GrantKind::Deferral => own() && (token.action == grant.action || planted!(DeferralWidened)),
    };
    let same_user = token.user == grant.user || planted!(GrantUserUnchecked);
    whose && same_user && token.lineage == grant.heirs()
}

/// Whether what comes of it beside a capability is less than the grant.
fn follows(
    grant: &TokenRecord,
    terms: &GrantTerms,
    token: &TokenRecord,
    next: Option<&TokenRecord>,
) -> bool {
    // What is passed on is passed on less often.
    let narrower = token
        .grant
        .as_ref()
        .is_none_or(|made| match (made.kind, terms.kind) {
            (GrantKind::Delegation, GrantKind::Delegation) => made.depth < terms.depth,
            (GrantKind::Delegation, GrantKind::Session) => !terms.is_alone(),
            (GrantKind::Deferral, GrantKind::Session | GrantKind::Delegation) => true,
            _ => false,
        });
    let same = |next: &TokenRecord| {
        let fewer = next.grant.as_ref().is_some_and(|it| {
            let less = |left: u64| terms.uses.is_some_and(|had| left < had);
            it.kind == GrantKind::Refresh && it.uses.is_some_and(less)
        });
        fewer
            && terms.kind == GrantKind::Refresh
            && next.agent == grant.agent
            && next.user == grant.user
            && next.chain == grant.chain
            && next.jkt == grant.jkt
            && next.lineage == grant.heirs()
            && next.token_hash != token.token_hash
            && next.expires_ms <= grant.expires_ms
    };
    narrower && next.is_none_or(same)
}
