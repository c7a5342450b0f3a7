//! The decision itself: the control plane's own record of the token, the
//! registry, policy with the real request, and one durable commit.

use super::covers::covers;
use super::facts::{
    Facts, body_digest, body_len, body_record, bounded, certificate_fits, claim, cut, digest_of,
    evidence, request_facts,
};
use super::opinion::Opinion;
use super::own;
use crate::state::Core;
use capability::reason::Reason;
use ledger::model::{
    Approval, ApprovalState, Command, Committed, Evidence, FirstUse, Hash, PolicyFacts, Refused,
    SpentRecord, TokenRecord, TokenState,
};
use policy::Demand;
use sha2::{Digest, Sha256};
use std::sync::Arc;
use std::time::Duration;

/// How often a lapse that found the queue full is tried.
const LAPSE_TRIES: usize = 5;
/// How often a commit that found the state changed is evaluated again.
const EVALUATIONS_MAX: usize = 4;

/// A body that a human is asked about is at most this long, in bytes: it is
/// evidence beside the hold's entry, and shown whole.
pub const HELD_BODY_MAX: u64 = 128 * 1024;

/// What was decided. Everything but `Refused` and `NeedsBody` is durable.
#[derive(Clone, Debug)]
pub enum Ruling {
    /// It may pass; the token is spent.
    Allow(Arc<TokenRecord>),
    /// It may not; the token is spent.
    Deny(Reason),
    /// A gate of the control plane's refused it; nothing was spent, `outcome_unknown` apart.
    Refused(Reason, Option<SpentRecord>),
    /// It waits for a human; the token is held.
    Hold(Box<Approval>),
    /// A human is to be asked, who has to see the body first: decide again with
    /// it. Nothing was spent.
    NeedsBody,
}

/// Decides.
pub struct Engine {
    /// What decisions rest on.
    pub core: Arc<Core>,
}

impl Engine {
    /// Decides a request whose token has not been shown before.
    pub async fn decide(&self, facts: &Facts) -> Ruling {
        let hash = match self.token_hash(facts) {
            Ok(hash) => hash,
            Err(reason) => return Ruling::Refused(reason, None),
        };
        let mut settled = None;
        for _ in 0..EVALUATIONS_MAX {
            let token = match self.outstanding(&hash, facts).await {
                Ok(token) => token,
                Err((reason, first)) => return Ruling::Refused(reason, first),
            };
            self.core.saw(&token.agent);
            let (command, ruling) = match (self.opinion(&token, facts), settled) {
                (Opinion::Allow(policy, approval), _) => (
                    self.allow(hash, facts, policy, approval.as_deref()),
                    Ruling::Allow(token),
                ),
                // An equal approval was given that does not lift the rules, since who gave it
                // may not any more, or refused: asking again would not help.
                (Opinion::Deny(policy, reason), _) | (Opinion::Hold(policy, _), Some(reason)) => {
                    (self.deny(hash, facts, policy, reason), Ruling::Deny(reason))
                }
                // It goes on whatever is said: nobody is asked about what has passed.
                (Opinion::Hold(policy, _), _) if facts.question.observed => (
                    self.deny(hash, facts, policy, Reason::ApprovalPending),
                    Ruling::Deny(Reason::ApprovalPending),
                ),
                (Opinion::Hold(..), _) if body_len(facts) > HELD_BODY_MAX => {
                    return Ruling::Refused(Reason::TooLarge, None);
                }
                (Opinion::Hold(..), _) if body_len(facts) > 0 && facts.body.is_none() => {
                    return Ruling::NeedsBody;
                }
                (Opinion::Hold(policy, demands), None) => {
                    let approval = self.approval(&token, facts, &policy, &demands);
                    (
                        self.hold(hash, facts, policy, approval.clone()),
                        Ruling::Hold(Box::new(approval)),
                    )
                }
            };
            match self.core.ledger.commit(command).await {
                Ok(committed) => return joined(ruling, committed),
                // Somebody else consumed, ended or gave the approval: look again.
                Err(Refused::ApprovalState(Some(ApprovalState::Approved))) => {
                    settled = Some(Reason::PolicyDenied);
                }
                Err(Refused::ApprovalState(Some(ApprovalState::Denied))) => {
                    settled = Some(Reason::ApprovalDenied);
                }
                Err(Refused::ApprovalState(_) | Refused::ApprovalDigest) => {}
                Err(refused) => return self.not_committed(&refused),
            }
        }
        tracing::warn!(attempt = facts.attempt, "approvals change at each look");
        Ruling::Refused(Reason::ControlPlaneUnavailable, None)
    }

    /// Decides again for a request that is held, once its approval was given.
    /// Registry, revocation and policy are asked anew, in this commit.
    pub async fn release(&self, facts: &Facts, approval: &Approval) -> Ruling {
        let Ok(hash) = self.token_hash(facts) else {
            return Ruling::Refused(Reason::InternalError, None);
        };
        if self.is_revoked(facts) {
            self.lapse(facts, "key revoked").await;
            return Ruling::Refused(Reason::TokenRevoked, None);
        }
        let token = match self.core.ledger.token(&hash).await {
            Ok(Some((token, TokenState::Held))) => token,
            Ok(_) => {
                let first = self.core.ledger.spent(&hash).await.unwrap_or_default();
                return Ruling::Refused(Reason::OutcomeUnknown, first);
            }
            Err(refused) => return self.not_committed(&refused),
        };
        match self.opinion_with(&token, facts, Some(approval)) {
            Opinion::Allow(policy, used) => {
                match self
                    .core
                    .ledger
                    .commit(self.allow(hash, facts, policy, used.as_deref()))
                    .await
                {
                    Ok(_) => Ruling::Allow(token),
                    Err(Refused::ApprovalState(_) | Refused::ApprovalDigest) => {
                        Ruling::Refused(Reason::ApprovalPending, None)
                    }
                    Err(refused) => self.not_committed(&refused),
                }
            }
            Opinion::Deny(policy, reason) => {
                match self
                    .core
                    .ledger
                    .commit(self.deny(hash, facts, policy, reason))
                    .await
                {
                    Ok(_) => Ruling::Deny(reason),
                    Err(refused) => self.not_committed(&refused),
                }
            }
            // Policy wants somebody else's yes by now: this request is over.
            Opinion::Hold(policy, _) => {
                match self
                    .core
                    .ledger
                    .commit(self.deny(hash, facts, policy, Reason::PolicyDenied))
                    .await
                {
                    Ok(_) => Ruling::Deny(Reason::PolicyDenied),
                    Err(refused) => self.not_committed(&refused),
                }
            }
        }
    }

    /// Lets a held token lapse; its approval stays open.
    pub async fn lapse(&self, facts: &Facts, why: &'static str) -> bool {
        let Ok(token_hash) = self.token_hash(facts) else {
            return false;
        };
        for _ in 0..LAPSE_TRIES {
            let command = Command::Lapse {
                token_hash,
                attempt: facts.attempt.clone(),
                why,
            };
            match self.core.ledger.commit(command).await {
                Ok(_) => return true,
                Err(Refused::Unavailable | Refused::Full) => {
                    tokio::time::sleep(Duration::from_millis(100)).await
                }
                Err(error) => {
                    tracing::warn!(%error, attempt = facts.attempt, "a held token could not be lapsed");
                    return false;
                }
            }
        }
        // The ledger lapses what is overdue by itself, once it takes anything.
        false
    }

    /// A refusal that changed nothing is an entry all the same, before it is
    /// answered. Returns the reason to answer with.
    pub async fn record_refusal(&self, facts: &Facts, reason: Reason) -> Reason {
        if reason == Reason::ControlPlaneUnavailable {
            return reason;
        }
        // Of a token that is not the question's nothing is believed, not even for the log.
        let its_own = self.token_hash(facts).is_ok();
        // One that is nobody's is counted, as an edge that checks signatures counts it:
        // else who has no token at all could fill the log in an agent's name.
        if its_own && !own::may_name_its_agent(&self.core, facts, reason).await {
            self.core.refusals.count(reason);
            return reason;
        }
        let agent = its_own
            .then(|| claim(&facts.token, "client_id"))
            .flatten()
            .and_then(|claim| claim.as_str().map(str::to_owned))
            .unwrap_or_default();
        if !agent.is_empty() {
            self.core.saw(&agent);
        }
        if !self
            .core
            .refusals
            .may_have_line(&agent, reason, self.core.now())
        {
            return reason;
        }
        let body = serde_json::json!({
            "reason": reason.as_str(),
            "attempt": facts.attempt,
            "agent": cut(&agent),
            "token": hex::encode(&facts.question.token_hash),
            "request": bounded(request_facts(facts)),
        });
        match self
            .core
            .ledger
            .commit(Command::Note {
                kind: "question_refused",
                body,
            })
            .await
        {
            Ok(_) => reason,
            Err(error) => {
                tracing::error!(%error, "a refusal could not be recorded");
                Reason::ControlPlaneUnavailable
            }
        }
    }

    /// The record of a token that is held for this request.
    pub(super) async fn held(&self, facts: &Facts) -> Option<Arc<TokenRecord>> {
        let hash = self.token_hash(facts).ok()?;
        let found = self.core.ledger.token(&hash).await.ok()??;
        Some(found.0)
    }

    /// The token's hash, once the evidence beside the question is the question's:
    /// the token has that hash, the proof that `jti`.
    fn token_hash(&self, facts: &Facts) -> Result<Hash, Reason> {
        let shown: Hash = facts
            .question
            .token_hash
            .as_slice()
            .try_into()
            .map_err(|_| Reason::InternalError)?;
        // The exact bytes count, not what they parse to.
        let of_bytes: Hash = Sha256::digest(facts.token.as_bytes()).into();
        let jti = claim(&facts.proof, "jti");
        let proof_jti = jti.as_ref().and_then(serde_json::Value::as_str);
        if shown == of_bytes && proof_jti == Some(facts.question.proof_jti.as_str()) {
            Ok(shown)
        } else {
            Err(Reason::InternalError)
        }
    }

    /// The token, by our own record of what was issued, and the action it covers.
    async fn outstanding(
        &self,
        hash: &Hash,
        facts: &Facts,
    ) -> Result<Arc<TokenRecord>, (Reason, Option<SpentRecord>)> {
        let unreadable = |error| {
            tracing::warn!(%error, "the ledger could not be read");
            (Reason::ControlPlaneUnavailable, None)
        };
        let (token, state) = match self.core.ledger.token(hash).await.map_err(unreadable)? {
            Some(found) => found,
            None => {
                let first = self.core.ledger.spent(hash).await.map_err(unreadable)?;
                let reason = if first.is_some() {
                    Reason::TokenSpent
                } else {
                    self.absent(facts)
                };
                return Err((reason, first));
            }
        };
        if self.is_revoked(facts) {
            return Err((Reason::TokenRevoked, None));
        }
        if state == TokenState::Held {
            let held = SpentRecord {
                jti: token.jti.clone(),
                expires_ms: token.expires_ms,
                request_id: String::new(),
                outcome: FirstUse::Unknown,
                grant: None,
            };
            return Err((Reason::TokenSpent, Some(held)));
        }
        if self.core.ledger.now() >= token.expires_ms {
            return Err((Reason::TokenExpired, None));
        }
        let edge = &facts.edge;
        let question = &facts.question;
        certificate_fits(&token, question, edge.client_certificates)
            .map_err(|reason| (reason, None))?;
        covers(
            &token.action,
            question,
            facts.body.as_deref(),
            edge.all_sites(),
        )
        .map_err(|reason| (reason, None))?;
        // The proxy has another idea of its routes: what would have been read was not,
        // or what is read here nobody has asked for.
        let reads = edge.body_of(&question.authority, &question.path).is_some();
        if reads != body_digest(question).is_some() {
            return Err((Reason::InternalError, None));
        }
        Ok(token)
    }

    /// Whether the key is revoked that signed the token. The edge refuses it as well
    /// once it has been told, and here it is refused before that.
    fn is_revoked(&self, facts: &Facts) -> bool {
        crate::keys::kid(&facts.token).is_some_and(|kid| self.core.keys.is_revoked(&kid))
    }

    /// A token that is not outstanding and whose use we do not remember: if it
    /// is from before this epoch its outcome is unknown, else we never issued it.
    /// Nor did we when the signature is not ours, whatever it says of its time.
    fn absent(&self, facts: &Facts) -> Reason {
        if !own::is_signed(&self.core, facts) {
            return Reason::TokenUnknown;
        }
        let began_ms = self.core.ledger.epoch_since().unwrap_or_default();
        let began_ms = began_ms.max(self.core.started_ms);
        match claim(&facts.token, "iat").and_then(|iat| iat.as_u64()) {
            Some(issued_s) if issued_s.saturating_mul(1000) > began_ms => Reason::TokenUnknown,
            _ => Reason::OutcomeUnknown,
        }
    }

    pub(super) fn approval(
        &self,
        token: &TokenRecord,
        facts: &Facts,
        policy: &PolicyFacts,
        demands: &[Demand],
    ) -> Approval {
        let now = self.core.ledger.now();
        let pending_s = demands
            .iter()
            .filter_map(|demand| demand.ttl_s)
            .min()
            .unwrap_or(self.core.config.approval.pending_s);
        let mut approvers: Vec<String> = Vec::new();
        for name in demands.iter().flat_map(|demand| &demand.approvers) {
            if !approvers.contains(name) {
                approvers.push(name.clone());
            }
        }
        Approval {
            id: crate::state::random_id::<16>("apr_"),
            digest: digest_of(token, facts),
            agent: token.agent.clone(),
            user: token.user.clone(),
            chain: token.chain.clone(),
            lineage: token.lineage.clone(),
            action: token.action.clone(),
            body: body_record(&facts.question),
            rules: demands.iter().map(|demand| demand.rule.clone()).collect(),
            reasons: demands.iter().map(|demand| demand.reason.clone()).collect(),
            approvers,
            approver_sets: demands
                .iter()
                .map(|demand| demand.approvers.clone())
                .collect(),
            policy_version: policy.version.clone(),
            state: ApprovalState::Pending,
            created_ms: now,
            expires_ms: now.saturating_add(pending_s.saturating_mul(1000)),
            decided_by: None,
            decided_ms: None,
        }
    }

    fn allow(
        &self,
        token_hash: Hash,
        facts: &Facts,
        policy: PolicyFacts,
        approval: Option<&Approval>,
    ) -> Command {
        Command::Allow {
            token_hash,
            attempt: facts.attempt.clone(),
            request: request_facts(facts),
            policy,
            approval: approval.map(|approval| (approval.id.clone(), approval.digest)),
            attachments: evidence(facts),
        }
    }

    fn deny(
        &self,
        token_hash: Hash,
        facts: &Facts,
        policy: PolicyFacts,
        reason: Reason,
    ) -> Command {
        Command::Deny {
            token_hash,
            attempt: facts.attempt.clone(),
            reason: reason.as_str().to_owned(),
            request: request_facts(facts),
            policy,
            attachments: evidence(facts),
        }
    }

    fn hold(
        &self,
        token_hash: Hash,
        facts: &Facts,
        policy: PolicyFacts,
        approval: Approval,
    ) -> Command {
        let mut attachments = evidence(facts);
        let body = facts.body.as_ref();
        attachments.extend(body.map(|body| Evidence::new("body", body)));
        Command::Hold {
            token_hash,
            attempt: facts.attempt.clone(),
            request: request_facts(facts),
            policy,
            approval,
            attachments,
        }
    }

    fn not_committed(&self, refused: &Refused) -> Ruling {
        match refused {
            Refused::NotOutstanding(first) => {
                let reason = if first.is_some() {
                    Reason::TokenSpent
                } else {
                    Reason::OutcomeUnknown
                };
                Ruling::Refused(reason, first.clone())
            }
            Refused::HeldElsewhere => Ruling::Refused(Reason::TokenSpent, None),
            Refused::TokenExpired => Ruling::Refused(Reason::TokenExpired, None),
            Refused::Limit(what) => {
                tracing::warn!(what, "a request is refused at a limit");
                Ruling::Refused(Reason::LimitExceeded, None)
            }
            Refused::TooLarge => Ruling::Refused(Reason::TooLarge, None),
            Refused::Suspended | Refused::Inactive => Ruling::Refused(Reason::AgentInactive, None),
            Refused::Stopped(_) => Ruling::Refused(Reason::TokenRevoked, None),
            Refused::AttemptKnown
            | Refused::ApprovalState(_)
            | Refused::ApprovalDigest
            | Refused::Shown
            | Refused::ProofUsed
            | Refused::NoGrant
            | Refused::NoOwner
            | Refused::NotStopped
            | Refused::Transition(_) => {
                tracing::error!(%refused, "a decision could not be committed");
                Ruling::Refused(Reason::InternalError, None)
            }
            Refused::Unavailable | Refused::Full => {
                Ruling::Refused(Reason::ControlPlaneUnavailable, None)
            }
            Refused::Unknown => Ruling::Refused(Reason::OutcomeUnknown, None),
        }
    }
}

/// A hold that joined an equal pending approval shows that one.
fn joined(ruling: Ruling, committed: Committed) -> Ruling {
    match (ruling, committed.approval) {
        (Ruling::Hold(_), Some(approval)) => Ruling::Hold(approval),
        (ruling, _) => ruling,
    }
}
