//! The token: minted in memory, recorded, and only then handed out.

use super::evidence::Proven;
use super::form::Grant;
use super::{Caller, Exchange, ExchangeError, Issued};
use crate::keys::{CapabilityClaims, KeyError, Mint};
use crate::state::{element, random_id, split_location};
use capability::proof::VerifiedProof;
use ledger::model::{
    ActionRecord, Command, EVIDENCE_KEYS, Evidence, PolicyFacts, Refused, TokenRecord, User,
};
use sha2::{Digest, Sha256};

impl Exchange {
    pub(super) async fn issue(
        &self,
        caller: Caller<'_>,
        proven: Proven,
        (proof, proof_text): (&VerifiedProof, &str),
        action: ActionRecord,
        policy: PolicyFacts,
        now_ms: u64,
    ) -> Result<Issued, ExchangeError> {
        let config = &self.core.config;
        let Proven { agent: of, user } = proven;
        let agent = caller.agent.to_owned();
        let issued_s = now_ms / 1000;
        let expires_s = issued_s.saturating_add(config.token.lifetime_s);
        let (jti, txn) = (random_id::<16>(""), random_id::<16>(""));
        let element = element(&action);
        let mut cnf = serde_json::json!({ "jkt": proof.jkt() });
        if let (Some(x5t), Some(cnf)) = (caller.x5t, cnf.as_object_mut()) {
            cnf.insert("x5t#S256".into(), x5t.into());
        }
        let minted = self.mint(Mint {
            issuer: config.server.issuer.clone(),
            audience: self.audience(&action)?,
            subject: caller
                .user
                .map_or_else(|| agent.clone(), |user| user.subject.clone()),
            id: jti.clone(),
            issued_s,
            expires_s,
            claims: CapabilityClaims {
                client_id: agent.clone(),
                act: caller.user.map(|_| serde_json::json!({ "sub": agent })),
                sub_id: caller.user.map(sub_id),
                txn: txn.clone(),
                cnf,
                authorization_details: [element.clone()],
            },
        });
        let access_token = match minted.await {
            Ok(token) => token,
            Err(error) => {
                // Nothing came of it.
                self.proofs.give_back(proof);
                return Err(self
                    .refused(caller, Some(action), Some(policy), error)
                    .await);
            }
        };
        // The edge would refuse it, so it is not issued.
        if access_token.len() > config.limits.read.token {
            let error = ExchangeError::Details("the location is too long for a token".into());
            return Err(self
                .refused(caller, Some(action), Some(policy), error)
                .await);
        }
        let token = TokenRecord {
            token_hash: Sha256::digest(access_token.as_bytes()).into(),
            jti,
            agent: agent.clone(),
            user: caller.user.cloned(),
            chain: caller.user.map(|_| agent.clone()).into_iter().collect(),
            jkt: proof.jkt().to_owned(),
            x5t: caller.x5t.map(str::to_owned),
            action: action.clone(),
            txn,
            issued_ms: 0,
            expires_ms: expires_s.saturating_mul(1000),
            lineage: Vec::new(),
            grant: None,
        };
        let mut attachments = vec![Evidence::new("proof", proof_text.as_bytes())];
        if !of.told.is_null() {
            attachments.push(Evidence::new("identity", of.told.to_string().as_bytes()));
        }
        if let Some(user) = &user {
            attachments.push(Evidence::new("user", user.told.to_string().as_bytes()));
        }
        let users_once = user.as_ref().and_then(|it| it.once);
        let committed = self.core.ledger.commit(Command::Issue {
            token,
            evidence_id: of.evidence.evidence_id,
            evidence_expires_ms: of.evidence.expires_ms,
            also: user.iter().map(|it| it.evidence).collect(),
            once: of.once.into_iter().chain(users_once).collect(),
            under: None,
            next: None,
            policy: policy.clone(),
            attachments,
        });
        let committed = committed.await;
        if committed
            .as_ref()
            .is_err_and(|error| *error != Refused::Unknown)
        {
            self.proofs.give_back(proof);
        }
        match committed {
            // Durable: only now does the token leave.
            Ok(_) => Ok(Issued {
                access_token,
                expires_in: config.token.lifetime_s,
                element,
                exchanged: caller.grant == Grant::Exchange,
            }),
            Err(refused) => {
                let error = self.of_commit(caller, refused)?;
                Err(self
                    .refused(caller, Some(action), Some(policy), error)
                    .await)
            }
        }
    }

    /// The token, by the key that signs at its time.
    async fn mint(&self, mint: Mint) -> Result<String, ExchangeError> {
        let minted = match self.core.keys.active(mint.issued_s) {
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

    /// What the caller is told of a commit that was refused; the error is what is not an
    /// entry.
    fn of_commit(
        &self,
        caller: Caller<'_>,
        refused: Refused,
    ) -> Result<ExchangeError, ExchangeError> {
        let agent = caller.agent;
        match refused {
            Refused::Limit(EVIDENCE_KEYS) => {
                tracing::error!(
                    agent,
                    "ALARM: a subject token is shown under ever more DPoP keys: somebody else may have it"
                );
                Ok(ExchangeError::EvidenceKeys)
            }
            Refused::Limit(what) => {
                tracing::warn!(agent, what, "the exchange is refused at a limit");
                Ok(ExchangeError::Limit(what))
            }
            Refused::TooLarge => Ok(ExchangeError::Details("the location is too long".into())),
            Refused::Shown => Ok(match caller.grant {
                Grant::Bearer => ExchangeError::BearerReplayed,
                Grant::Exchange | Grant::Client => ExchangeError::AssertionReplayed,
            }),
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

/// A user as issuer and subject, which `sub` alone is not (RFC 9493, section 3.2.2).
fn sub_id(user: &User) -> serde_json::Value {
    serde_json::json!({ "format": "iss_sub", "iss": user.issuer, "sub": user.subject })
}
