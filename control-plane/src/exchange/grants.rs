//! Grants that are shown instead of evidence: broker sessions, refresh tokens, and what
//! one agent lets another do.
//!
//! Each is a random text that the ledger knows by its hash. None of them is a JWT, so none
//! can be taken for a capability, and a capability for none.

use super::evidence::{Mapped, Proven};
use super::form::Params;
use super::tokens::revoked_until;
use super::{Exchange, ExchangeError};
use capability::reason::Reason;
use capability::same_bytes;
use identity::{JwtEvidence, SpiffeId};
use ledger::Ledger;
use ledger::model::{
    Command, GrantKind, GrantTerms, Hash, HexHash, Refused, SpentRecord, Stopper, Target,
    TokenRecord,
};
use sha2::{Digest, Sha256};
use std::sync::Arc;

/// What a session begins with.
const SESSION: &str = "wrs_";
/// What a refresh token begins with.
const REFRESH: &str = "wrr_";
/// What a delegation begins with.
const DELEGATION: &str = "wrd_";
/// What a code begins with for a token that waits for a person.
const DEFERRAL: &str = "wrc_";
/// Bytes of a grant; what is longer is none.
const GRANT_MAX: usize = 64;

/// Whether it would be a session.
pub(super) fn is_session(text: &str) -> bool {
    text.starts_with(SESSION)
}

/// Whether it would be a delegation.
pub(super) fn is_delegation_text(text: &str) -> bool {
    text.starts_with(DELEGATION)
}

/// Whether a grant is a delegation.
pub(super) fn is_delegation(grant: &TokenRecord) -> bool {
    kind(grant) == Some(GrantKind::Delegation)
}

pub(super) fn kind(grant: &TokenRecord) -> Option<GrantKind> {
    grant.grant.as_ref().map(|terms| terms.kind)
}

/// A new grant, and what it is known by: 256 random bits.
pub(super) fn fresh(kind: GrantKind) -> (String, Hash) {
    let text = crate::state::random_id::<32>(match kind {
        GrantKind::Session => SESSION,
        GrantKind::Refresh => REFRESH,
        GrantKind::Delegation => DELEGATION,
        GrantKind::Deferral => DEFERRAL,
    });
    let hash = Sha256::digest(&text).into();
    (text, hash)
}

/// How often a refresh token may be followed by another.
pub(super) const REFRESHES_MAX: u64 = 1_024;

/// The terms of a grant that is its agent's own, and covers what policy allows.
pub(super) fn own(kind: GrantKind, uses: Option<u64>) -> GrantTerms {
    GrantTerms {
        kind,
        holder: None,
        scope: Vec::new(),
        depth: 0,
        uses,
        deferred: None,
    }
}

fn no<T>(reason: Reason, what: &str) -> Result<T, ExchangeError> {
    Err(ExchangeError::Evidence(reason, what.to_owned()))
}

fn anothers<T>() -> Result<T, ExchangeError> {
    let what = "the refresh token is another agent's";
    no(Reason::TokenAudience, what).map_err(ExchangeError::of_refresh)
}

/// Whether a grant is shown under the key, and with the certificate, that it is bound to.
pub(super) fn bound(
    grant: &TokenRecord,
    (jkt, x5t): (&str, Option<&str>),
) -> Result<(), ExchangeError> {
    if !same_bytes(grant.jkt.as_bytes(), jkt.as_bytes()) {
        let what = "the DPoP proof is not of the key that it is bound to";
        return no(Reason::ProofKeyMismatch, what);
    }
    if grant.x5t.is_some() && grant.x5t.as_deref() != x5t {
        let what = "it is bound to a client certificate, which was not shown";
        return no(Reason::CertificateMismatch, what);
    }
    Ok(())
}

/// The agent that a grant of its own stands in for.
fn itself(grant: &Arc<TokenRecord>) -> Result<Proven, ExchangeError> {
    let agent = SpiffeId::parse(&grant.agent).map_err(|_| ExchangeError::Internal)?;
    Ok(Proven {
        agent: Mapped {
            evidence: JwtEvidence {
                agent,
                expires_ms: grant.expires_ms,
                evidence_id: family(grant),
                // What it was got by was held to them then, and it is bound itself.
                claims: serde_json::Map::new(),
            },
            told: serde_json::Value::Null,
            once: None,
            refresh_s: 0,
        },
        user: None,
        under: Some(grant.clone()),
    })
}

/// What it counts as, and what is stopped with it: of a refresh token its whole family,
/// and what that brought (RFC 7009, section 2.1), which all have the first one in their
/// lineage.
pub(super) fn family(record: &TokenRecord) -> Hash {
    match record.lineage.first() {
        Some(HexHash(first)) if kind(record) == Some(GrantKind::Refresh) => *first,
        _ => record.token_hash,
    }
}

/// What a stop names, to end what somebody knows by a hash.
pub struct Family {
    /// The first of a refresh token's family; of anything else itself.
    pub first: Hash,
    /// When the last of it ends by itself, but for what it brings until then.
    pub ends_ms: u64,
    /// The agent that it was issued to, where that is known.
    pub agent: Option<String>,
    /// Whether anything is got with it.
    pub brings: bool,
}

impl Family {
    /// Of a token, or of a grant that was not used up.
    pub(super) fn of(record: &TokenRecord) -> Self {
        Self {
            first: family(record),
            ends_ms: record.expires_ms,
            agent: Some(record.agent.clone()),
            brings: record.grant.is_some(),
        }
    }

    /// Of a used refresh token, whose `jti` is its family's; nothing else that was used
    /// up has left anything.
    fn of_used(spent: &SpentRecord) -> Option<Self> {
        let grant = spent.grant.as_deref();
        // A database may have rows of before that don't say what they were. A deferral's
        // names nothing that there is, and a capability's is shorter.
        if grant.is_some_and(|it| it.kind != GrantKind::Refresh) {
            return None;
        }
        Some(Self {
            first: capability::b64::decode32(&spent.jti)?,
            ends_ms: spent.expires_ms,
            agent: grant.map(|it| it.agent.clone()),
            brings: true,
        })
    }

    /// Of the grant that is known by a hash, used up or not; of no token for a request.
    ///
    /// # Errors
    /// The ledger can't be read.
    pub async fn of_grant(ledger: &Ledger, hash: &Hash) -> Result<Option<Self>, Refused> {
        // In this order: one that is used meanwhile is found as the one or the other.
        if let Some(grant) = ledger.grant(hash).await? {
            return Ok(Some(Self::of(&grant)));
        }
        let spent = ledger.spent(hash).await?;
        Ok(spent.as_ref().and_then(Self::of_used))
    }
}

impl Exchange {
    async fn known(
        &self,
        text: &str,
        wanted: GrantKind,
    ) -> Result<Option<Arc<TokenRecord>>, ExchangeError> {
        if text.len() > GRANT_MAX {
            return Ok(None);
        }
        let hash: Hash = Sha256::digest(text).into();
        let found = self.core.ledger.grant(&hash).await;
        let found = found.map_err(|refused| ExchangeError::not_recorded(&refused))?;
        let now_ms = self.core.now();
        Ok(found.filter(|it| kind(it) == Some(wanted) && it.expires_ms > now_ms))
    }

    /// The agent whose session it is.
    pub(super) async fn in_session(
        &self,
        text: &str,
        params: &Params,
        keys: (&str, Option<&str>),
    ) -> Result<Proven, ExchangeError> {
        // What is shown beside it would be believed unseen.
        if params.actor_token().is_some() || params.asserts() {
            let what = "a session says who acts: leave actor_token and client_assertion out";
            return Err(ExchangeError::Request(what.to_owned()));
        }
        self.session(text, keys).await
    }

    /// The same, of a session that was shown elsewhere than in a form.
    pub(super) async fn session(
        &self,
        text: &str,
        keys: (&str, Option<&str>),
    ) -> Result<Proven, ExchangeError> {
        let Some(grant) = self.known(text, GrantKind::Session).await? else {
            return no(
                Reason::TokenUnknown,
                "there is no such session, or it has ended",
            );
        };
        bound(&grant, keys)?;
        itself(&grant)
    }

    /// The agent that a delegation is for, by its own evidence.
    pub(super) async fn delegated(
        &self,
        text: &str,
        agent: Mapped,
    ) -> Result<Proven, ExchangeError> {
        let Some(grant) = self.known(text, GrantKind::Delegation).await? else {
            return no(
                Reason::TokenUnknown,
                "there is no such delegation, or it has ended",
            );
        };
        let holder = grant.grant.as_ref().and_then(|it| it.holder.as_deref());
        if holder != Some(agent.evidence.agent.as_str()) {
            return no(Reason::TokenAudience, "the delegation is another agent's");
        }
        Ok(Proven {
            agent,
            user: None,
            under: Some(grant),
        })
    }

    /// Whose refresh token it is: of the client that has authenticated. One that was used
    /// before is somebody's who should not have it, the client's or the thief's: then none
    /// of its family counts.
    pub(super) async fn refreshed(
        &self,
        text: &str,
        client: Mapped,
        keys: (&str, Option<&str>),
    ) -> Result<Proven, ExchangeError> {
        let agent = client.evidence.agent.as_str();
        let Some(grant) = self.known(text, GrantKind::Refresh).await? else {
            self.stop_family(text, agent).await?;
            let what = "there is no such refresh token, or it has ended";
            return no(Reason::TokenUnknown, what).map_err(ExchangeError::of_refresh);
        };
        if grant.agent != agent {
            return anothers();
        }
        bound(&grant, keys).map_err(ExchangeError::of_refresh)?;
        let proven = itself(&grant)?;
        Ok(Proven {
            agent: Mapped {
                told: client.told,
                once: client.once,
                ..proven.agent
            },
            ..proven
        })
    }

    /// Stops what a used refresh token of this agent's belongs to; what nobody issued
    /// changes nothing.
    async fn stop_family(&self, text: &str, agent: &str) -> Result<(), ExchangeError> {
        if !text.starts_with(REFRESH) || text.len() > GRANT_MAX {
            return Ok(());
        }
        let hash: Hash = Sha256::digest(text).into();
        let spent = self.core.ledger.spent(&hash).await;
        let spent = spent.map_err(|refused| ExchangeError::not_recorded(&refused))?;
        let Some(spent) = spent else {
            return Ok(());
        };
        let family = Family::of_used(&spent).ok_or(ExchangeError::Internal)?;
        if family.agent.is_some_and(|it| it != agent) {
            return anothers();
        }
        self.stop((family.first, family.ends_ms), agent).await?;
        Err(ExchangeError::RefreshReplayed)
    }

    /// Stops a family of this agent's refresh tokens, which ends then, and what was got with
    /// them. Nothing waits before that: where there is no room for it, the agent is stopped.
    pub(super) async fn stop(
        &self,
        (family, ends_ms): (Hash, u64),
        agent: &str,
    ) -> Result<(), ExchangeError> {
        let target = Target::Token(family);
        let known = self.core.ledger.rights();
        let stands = known.stops.get(&target);
        if stands.is_some_and(|it| it.lifted.is_none()) {
            return Ok(());
        }
        tracing::error!(
            family = family_name(&family),
            agent,
            "ALARM: a refresh token was used twice: somebody else may have it; its family is revoked"
        );
        let now_ms = self.core.now();
        let stop = |target, why: &str, until_ms| Command::Stop {
            target,
            by: "the token endpoint".into(),
            why: why.into(),
            until_ms,
            stopper: Stopper::Family,
        };
        let until_ms = revoked_until(&self.core, ends_ms, true);
        let one = stop(target, "a refresh token was used twice", Some(until_ms));
        let done = match self.core.ledger.commit(one).await {
            Err(Refused::Limit(what)) => {
                tracing::error!(
                    agent,
                    what,
                    "ALARM: there is no room to revoke a family of refresh tokens; its agent is stopped"
                );
                let why = "a refresh token was used twice, and there are too many stops for one of its family";
                let whole = stop(Target::Agent(agent.to_owned()), why, None);
                self.core.ledger.commit(whole).await
            }
            done => done,
        };
        done.map_err(|refused| ExchangeError::not_recorded(&refused))?;
        self.core.refusals.ended_family(agent, now_ms);
        Ok(())
    }
}

/// What a family of refresh tokens is called.
pub(super) fn family_name(first: &Hash) -> String {
    capability::b64::encode(first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ledger::model::{FirstUse, SpentGrant};

    fn used(kind: Option<GrantKind>, jti: &str) -> Option<(Hash, Option<String>)> {
        let grant = kind.map(|kind| {
            let agent = "a".to_owned();
            Box::new(SpentGrant { kind, agent })
        });
        let family = Family::of_used(&SpentRecord {
            jti: jti.to_owned(),
            expires_ms: 7,
            request_id: String::new(),
            outcome: FirstUse::Unknown,
            grant,
        });
        let family = family?;
        assert_eq!((family.ends_ms, family.brings), (7, true));
        Some((family.first, family.agent))
    }

    #[test]
    fn a_used_refresh_token_names_its_family_and_nothing_else_does() {
        let first = [5; 32];
        let name = family_name(&first);
        let agent = Some("a".to_owned());
        assert_eq!(used(Some(GrantKind::Refresh), &name), Some((first, agent)));
        assert_eq!(used(None, &name), Some((first, None)), "a row of before");
        let short = crate::state::random_id::<16>("");
        for (kind, jti) in [
            (Some(GrantKind::Deferral), &name),
            (None, &short),
            (Some(GrantKind::Refresh), &short),
        ] {
            assert_eq!(used(kind, jti), None, "{kind:?} {jti}");
        }
    }
}
