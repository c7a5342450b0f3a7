//! What callers ask for with grants, rightly or wrongly.

use crate::{
    model::{Deferred, GrantKind, GrantTerms, Hash, TokenRecord},
    sim::{rng::Rng, whom},
};

/// A token that is asked for, and what it is got with.
pub(crate) struct Asked {
    pub(crate) token: TokenRecord,
    pub(crate) under: Option<Hash>,
    pub(crate) next: Option<TokenRecord>,
}

/// Makes some of what is asked for a grant, and some of it got with one.
pub(crate) fn ask(
    rng: &mut Rng,
    known: &[(u64, TokenRecord)],
    asked: &mut Asked,
    epoch: u64,
    names: &mut u64,
) {
    let of_now = known.iter().filter(|(of, _)| *of == epoch);
    let mut known: Vec<TokenRecord> = of_now.map(|(_, grant)| grant.clone()).collect();
    if rng.percent(14) {
        let kind = rng.one(&[
            GrantKind::Session,
            GrantKind::Refresh,
            GrantKind::Delegation,
            GrantKind::Delegation,
            GrantKind::Deferral,
        ]);
        let holder = rng.one(&[
            "spiffe://sim.example/agent/a",
            "spiffe://sim.example/agent/b",
        ]);
        asked.token.grant = Some(GrantTerms {
            kind,
            holder: (kind == GrantKind::Delegation).then(|| holder.to_owned()),
            scope: Vec::new(),
            depth: rng.one(&[0, 1, 2]),
            uses: rng.one(&[None, Some(1), Some(2)]),
            deferred: (kind == GrantKind::Deferral).then(|| {
                Box::new(Deferred {
                    approval: "apr_1".to_owned(),
                    exchange: rng.percent(50),
                    content_type: String::new(),
                    content_encoding: String::new(),
                })
            }),
        });
        if kind == GrantKind::Refresh {
            asked.token.grant.as_mut().unwrap().uses = Some(3);
        }
    }
    if known.is_empty() || !rng.percent(35) {
        return;
    }
    let at = rng.below(known.len());
    let grant = known.swap_remove(at);
    let terms = grant.grant.clone().unwrap();
    take(&grant, asked);
    if terms.kind == GrantKind::Deferral && rng.percent(90) {
        asked.token.action.clone_from(&grant.action);
    }
    if terms.kind == GrantKind::Refresh && rng.percent(70) {
        *names += 1;
        let uses = terms.uses.unwrap_or_default().saturating_sub(1);
        asked.next = Some(TokenRecord {
            token_hash: audit::leaf_hash(format!("next {names}").as_bytes()),
            lineage: grant.heirs(),
            grant: Some(GrantTerms {
                uses: Some(uses),
                ..terms
            }),
            ..grant.clone()
        });
    }
    spoil(rng, &grant, asked);
    whom::spoil(asked);
}

/// What is asked for is got with this grant, by whom it is for.
pub(super) fn take(grant: &TokenRecord, asked: &mut Asked) {
    asked.under = Some(grant.token_hash);
    let token = &mut asked.token;
    token.lineage = grant.heirs();
    token.user.clone_from(&grant.user);
    token.expires_ms = token.expires_ms.min(grant.expires_ms);
    match grant.grant.as_ref().and_then(|terms| terms.holder.as_ref()) {
        Some(holder) => {
            token.agent.clone_from(holder);
            token.chain = grant.delegated_chain(holder);
        }
        None => {
            token.agent.clone_from(&grant.agent);
            token.chain.clone_from(&grant.chain);
            token.jkt.clone_from(&grant.jkt);
        }
    }
}

/// Some of it is not what the grant is for.
fn spoil(rng: &mut Rng, grant: &TokenRecord, asked: &mut Asked) {
    let token = &mut asked.token;
    match rng.below(40) {
        0..4 => {
            token.agent = "spiffe://sim.example/agent/a".into();
            token.chain = grant.delegated_chain(&token.agent);
        }
        4 => token.jkt = "key 0".into(),
        5 => token.lineage.clear(),
        6 => token.expires_ms = grant.expires_ms + 1,
        7 => token.chain.clear(),
        8 => asked.under = None,
        9 => {
            if let Some(next) = &mut asked.next {
                next.grant = grant.grant.clone();
            }
        }
        _ => {}
    }
}
