//! Tokens: minted in memory, recorded, and only then handed out.

use super::form::Grant;
use super::naming::named;
use super::{Asking, Caller, Exchange, ExchangeError, Issued, TYPE_ACCESS_TOKEN};
use super::{grants, refreshing};
use crate::keys::{CapabilityClaims, KeyError, Mint};
use crate::state::{element, random_id, split_location};
use capability::reason::Reason;
use ledger::model::{
    ActionRecord, Command, Committed, EVIDENCE_KEYS, Evidence, GRANT_USES, GrantTerms, Hash,
    PolicyFacts, Refused, TokenRecord, User,
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Why nothing was handed out.
pub(super) struct Failed {
    pub(super) error: ExchangeError,
    /// Nothing was used up by it: the same proof may be shown again.
    pub(super) nothing_happened: bool,
}

impl From<ExchangeError> for Failed {
    fn from(error: ExchangeError) -> Self {
        Self {
            error,
            nothing_happened: true,
        }
    }
}

/// A token that is signed and not recorded yet, so that nobody has it.
pub(super) struct Signed {
    access_token: String,
    expires_in: u64,
    element: serde_json::Value,
    refresh_token: Option<String>,
    /// What counts once is used up already.
    used_up: bool,
    told: Told,
}

/// What a refusal's entry says of what was asked for.
pub(super) type Told = (Option<ActionRecord>, Option<PolicyFacts>);

impl Exchange {
    /// Mints and records a token for an action that was judged. `first`: what counts once
    /// has not been used up yet.
    pub(super) async fn capability(
        &self,
        asking: Asking<'_>,
        judged: (ActionRecord, PolicyFacts),
        first: bool,
    ) -> Result<Issued, Failed> {
        let (signed, command) = self.signed(asking, judged, first).await?;
        let outcome = self.core.ledger.commit(command).await;
        self.recorded(asking, signed, outcome).await
    }

    /// Signs a token, and says what records it.
    pub(super) async fn signed(
        &self,
        asking: Asking<'_>,
        (action, policy): (ActionRecord, PolicyFacts),
        first: bool,
    ) -> Result<(Signed, Command), Failed> {
        let Asking { caller, proven, .. } = asking;
        let config = &self.core.config;
        let issued_s = asking.now_ms / 1000;
        let expires_s = issued_s.saturating_add(config.token.lifetime_s);
        let expires_s = match &proven.under {
            Some(grant) => expires_s.min(grant.expires_ms / 1000),
            None => expires_s,
        };
        let (jti, txn) = (
            named(rand::random(), &asking.used.id, &element(&action)),
            random_id::<16>(""),
        );
        let element = element(&action);
        let minted = self.minted(asking, &action, (&jti, &txn), (issued_s, expires_s));
        let access_token = match minted.await {
            Ok(token) => token,
            Err(error) => {
                let error = self.refused(caller, Some(action), Some(policy), error);
                return Err(error.await.into());
            }
        };
        // The edge would refuse it, so it is not issued.
        if access_token.len() > config.limits.read.token {
            let error = ExchangeError::Details("the location is too long for a token".into());
            let error = self.refused(caller, Some(action), Some(policy), error);
            return Err(error.await.into());
        }
        let token = TokenRecord {
            token_hash: Sha256::digest(access_token.as_bytes()).into(),
            jti,
            txn,
            action,
            expires_ms: expires_s.saturating_mul(1000),
            ..self.record(asking, None)
        };
        let told = (Some(token.action.clone()), Some(policy.clone()));
        let family = self.family(asking, &told, first).await?;
        let used_up = family.is_some();
        let (begun, ends_ms) = family.unzip();
        let before = begun.as_ref().or(asking.proven.under.as_deref());
        let token = TokenRecord {
            lineage: before.map(TokenRecord::heirs).unwrap_or_default(),
            ..token
        };
        let next = before.and_then(|it| refreshing::next(it, ends_ms.unwrap_or(u64::MAX)));
        let (refresh_token, next) = next.unzip();
        let signed = Signed {
            access_token,
            expires_in: expires_s.saturating_sub(issued_s),
            element,
            refresh_token,
            used_up,
            told,
        };
        let got_with = before.map(|it| it.token_hash);
        let mut command = self.command(asking, token, next, policy, first && !used_up);
        if let Command::Issue { under, .. } = &mut command {
            *under = got_with;
        }
        Ok((signed, command))
    }

    /// Hands out what was signed, once it is recorded.
    pub(super) async fn recorded(
        &self,
        asking: Asking<'_>,
        signed: Signed,
        outcome: Result<Committed, Refused>,
    ) -> Result<Issued, Failed> {
        let committed = self.committed(asking, outcome, signed.told).await;
        committed.map_err(|failed| Failed {
            nothing_happened: failed.nothing_happened && !signed.used_up,
            ..failed
        })?;
        Ok(Issued {
            access_token: signed.access_token,
            expires_in: signed.expires_in,
            element: Some(signed.element),
            issued_type: is_exchange(asking).then_some(TYPE_ACCESS_TOKEN),
            token_type: "DPoP",
            refresh_token: signed.refresh_token,
        })
    }

    /// The token, by the key that signs at its time.
    async fn minted(
        &self,
        asking: Asking<'_>,
        action: &ActionRecord,
        (jti, txn): (&str, &str),
        (issued_s, expires_s): (u64, u64),
    ) -> Result<String, ExchangeError> {
        let caller = asking.caller;
        let mut cnf = json!({ "jkt": asking.jkt });
        if let (Some(x5t), Some(cnf)) = (caller.x5t, cnf.as_object_mut()) {
            cnf.insert("x5t#S256".into(), x5t.into());
        }
        // Who stands first in the chain is the subject, where no user is.
        let (subject, actors) = match (caller.user, caller.chain.split_last()) {
            (Some(user), _) => (user.subject.clone(), caller.chain),
            (None, Some((first, actors))) => (first.clone(), actors),
            (None, None) => (caller.agent.to_owned(), caller.chain),
        };
        let mint = Mint {
            issuer: self.core.config.server.issuer.clone(),
            audience: self.audience(action)?,
            subject,
            id: jti.to_owned(),
            issued_s,
            expires_s,
            claims: CapabilityClaims {
                client_id: caller.agent.to_owned(),
                act: nested(actors),
                sub_id: caller.user.map(sub_id),
                txn: txn.to_owned(),
                cnf,
                authorization_details: [element(action)],
            },
        };
        let minted = match self.core.keys.active(issued_s) {
            Ok(key) => key.mint(mint).await,
            Err(error) => Err(error),
        };
        minted.map_err(|error| {
            // Of a PKCS#11 token a warning says it, once for all of them.
            if error.may_pass() && !matches!(error, KeyError::NoneActive) {
                tracing::debug!(%error, "no token can be signed");
            } else {
                tracing::error!(%error, "no token can be signed");
            }
            match error.may_pass() {
                true => ExchangeError::Unavailable,
                false => ExchangeError::Internal,
            }
        })
    }

    /// What all that is handed out has in common.
    pub(super) fn record(&self, asking: Asking<'_>, grant: Option<GrantTerms>) -> TokenRecord {
        let caller = asking.caller;
        let under = asking.proven.under.as_ref();
        TokenRecord {
            token_hash: Hash::default(),
            jti: String::new(),
            agent: caller.agent.to_owned(),
            user: caller.user.cloned(),
            chain: caller.chain.to_vec(),
            jkt: asking.jkt.to_owned(),
            x5t: caller.x5t.map(str::to_owned),
            // Of a grant its kind is all that there is to say.
            action: ActionRecord {
                kind: String::new(),
                method: String::new(),
                location: String::new(),
                ..ActionRecord::default()
            },
            txn: String::new(),
            issued_ms: 0,
            expires_ms: 0,
            lineage: under.map(|it| it.heirs()).unwrap_or_default(),
            grant,
        }
    }

    pub(super) fn command(
        &self,
        asking: Asking<'_>,
        token: TokenRecord,
        next: Option<TokenRecord>,
        policy: PolicyFacts,
        first: bool,
    ) -> Command {
        let (of, user) = (&asking.proven.agent, &asking.proven.user);
        let mut attachments = vec![Evidence::new("proof", asking.proof.as_bytes())];
        if !of.told.is_null() {
            attachments.push(Evidence::new("identity", of.told.to_string().as_bytes()));
        }
        if let Some(user) = user {
            attachments.push(Evidence::new("user", user.told.to_string().as_bytes()));
        }
        let once = of.once.iter().chain(user.iter().flat_map(|it| &it.once));
        Command::Issue {
            token,
            evidence_id: of.evidence.evidence_id,
            evidence_expires_ms: of.evidence.expires_ms,
            also: user.iter().map(|it| it.evidence).collect(),
            once: once.filter(|_| first).copied().collect(),
            proof: Some(Box::new(asking.used.clone())),
            under: asking.proven.under.as_ref().map(|it| it.token_hash),
            next,
            policy,
            attachments,
        }
    }

    /// Makes it durable. Only then it leaves.
    pub(super) async fn commit(
        &self,
        asking: Asking<'_>,
        command: Command,
        told: Told,
    ) -> Result<(), Failed> {
        let outcome = self.core.ledger.commit(command).await;
        self.committed(asking, outcome, told).await
    }

    async fn committed(
        &self,
        asking: Asking<'_>,
        outcome: Result<Committed, Refused>,
        told: Told,
    ) -> Result<(), Failed> {
        match outcome {
            Ok(_) => Ok(()),
            Err(refused) => Err(self.not_committed(asking, refused, told).await),
        }
    }

    /// What becomes of a commit that was refused.
    pub(super) async fn not_committed(
        &self,
        asking: Asking<'_>,
        refused: Refused,
        (action, policy): Told,
    ) -> Failed {
        let nothing_happened = refused != Refused::Unknown;
        let error = match self.of_commit(asking, refused).await {
            Ok(error) => self.refused(asking.caller, action, policy, error).await,
            Err(error) => error,
        };
        Failed {
            error,
            nothing_happened,
        }
    }

    /// What the caller is told of a commit that was refused; the error is what is not an
    /// entry.
    pub(super) async fn of_commit(
        &self,
        asking: Asking<'_>,
        refused: Refused,
    ) -> Result<ExchangeError, ExchangeError> {
        let Caller { agent, grant, .. } = asking.caller;
        match refused {
            Refused::Limit(EVIDENCE_KEYS) => {
                tracing::error!(
                    agent,
                    "ALARM: a subject token is shown under ever more DPoP keys: somebody else may have it"
                );
                Ok(ExchangeError::EvidenceKeys)
            }
            // Nothing that waiting would mend.
            Refused::Limit(GRANT_USES) => Ok(ExchangeError::GrantUsed),
            Refused::Limit(what) => {
                tracing::warn!(agent, what, "the exchange is refused at a limit");
                Ok(ExchangeError::Limit(what))
            }
            // At another replica: this one's own record is looked at before.
            Refused::ProofUsed => Ok(ExchangeError::ProofReplayed),
            Refused::TooLarge => Ok(ExchangeError::Details("the location is too long".into())),
            Refused::Shown => match grant {
                Grant::Bearer => Ok(ExchangeError::BearerReplayed),
                // Somebody else was faster: one of the two should not have it. Where nobody
                // was, it is the assertion that was used before.
                Grant::Refresh => {
                    let shown = asking.proven.under.as_ref();
                    let shown = shown.ok_or(ExchangeError::Internal)?;
                    let used = self.core.ledger.spent(&shown.token_hash).await;
                    let used = used.map_err(|refused| ExchangeError::not_recorded(&refused))?;
                    if used.is_none() {
                        return Ok(ExchangeError::AssertionReplayed);
                    }
                    let family = (grants::family(shown), shown.expires_ms);
                    self.stop(family, agent).await?;
                    Ok(ExchangeError::RefreshReplayed)
                }
                Grant::Deferred => Ok(ExchangeError::Deferral(
                    Reason::TokenSpent,
                    "its token was given already, or the client_assertion was used before".into(),
                )),
                Grant::Exchange | Grant::Client => Ok(ExchangeError::AssertionReplayed),
            },
            // It ended, or was stopped and forgotten, while it was used.
            Refused::NoGrant | Refused::TokenExpired if asking.proven.under.is_some() => {
                Ok(match grant {
                    Grant::Refresh => ExchangeError::GrantEnded.of_refresh(),
                    Grant::Deferred => ExchangeError::GrantEnded.of_deferral(),
                    _ => ExchangeError::GrantEnded,
                })
            }
            Refused::Stopped(_) => Ok(ExchangeError::Stopped),
            Refused::Suspended | Refused::Inactive => Ok(ExchangeError::Inactive),
            error => {
                tracing::error!(%error, "the ledger did not take an issue entry");
                Err(ExchangeError::not_recorded(&error))
            }
        }
    }

    /// The `aud` of a token for this action: its site's resource, and no other's.
    fn audience(&self, action: &ActionRecord) -> Result<String, ExchangeError> {
        let origin = split_location(&action.location).0;
        let site = self.core.config.edge.site_of(origin);
        site.map(|site| site.resource)
            .ok_or(ExchangeError::Internal)
    }
}

/// Whether it is for a subject token (RFC 8693), shown now or for the code.
fn is_exchange(asking: Asking<'_>) -> bool {
    let under = asking.proven.under.as_ref();
    let deferred = under.and_then(|it| it.grant.as_ref()?.deferred.as_ref());
    asking.caller.grant == Grant::Exchange || deferred.is_some_and(|it| it.exchange)
}

/// A user as issuer and subject, which `sub` alone is not (RFC 9493, section 3.2.2).
pub(super) fn sub_id(user: &User) -> Value {
    json!({ "format": "iss_sub", "iss": user.issuer, "sub": user.subject })
}

/// `act` (RFC 8693, section 4.1), the first of these outermost.
pub(super) fn nested(actors: &[String]) -> Option<Value> {
    actors.iter().rev().fold(None, |inner, sub| {
        Some(match inner {
            None => json!({ "sub": sub }),
            Some(inner) => json!({ "sub": sub, "act": Value::clone(&inner) }),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn actors_are_nested_the_current_one_outermost() {
        let actors = |all: &[&str]| nested(&all.iter().map(|it| (*it).into()).collect::<Vec<_>>());
        assert_eq!(actors(&[]), None);
        assert_eq!(actors(&["a"]), Some(json!({ "sub": "a" })));
        assert_eq!(
            actors(&["c", "b", "a"]),
            Some(json!({ "sub": "c", "act": { "sub": "b", "act": { "sub": "a" } } }))
        );
    }
}
