//! What the filter is told, in one place.

use super::engine::Ruling;
use super::facts::Facts;
use crate::state::Core;
use capability::reason::Reason;
use decision_api::{
    Allow, Answer, Deny, FirstUse as WireFirstUse, Question, QuestionId, answer::Verdict,
};
use ledger::model::{Approval, SpentRecord, TokenRecord};
use prost::Message as _;
use sha2::{Digest, Sha256};

/// An answer that echoes the token's hash and the question's digest.
pub(super) fn answer_with(
    id: QuestionId,
    question: &[u8],
    verdict: Verdict,
    time_ms: u64,
) -> Answer {
    let token_hash = Question::decode(question)
        .map(|question| question.token_hash)
        .unwrap_or_default();
    Answer {
        id: Some(id),
        token_hash,
        question_digest: Sha256::digest(question).to_vec(),
        verdict: Some(verdict),
        time_ms,
    }
}

pub(super) fn verdict(ruling: Ruling, core: &Core, facts: &Facts) -> Verdict {
    match ruling {
        Ruling::Allow(token) => allow(&token, core, facts),
        Ruling::Deny(reason) => refused_verdict(reason, None),
        Ruling::Refused(reason, first) => refused_verdict(reason, first),
        // The caller has dealt with these.
        Ruling::Hold(_) | Ruling::NeedsBody => refused_verdict(Reason::InternalError, None),
    }
}

fn allow(token: &TokenRecord, core: &Core, facts: &Facts) -> Verdict {
    let name = facts.question.route.as_str();
    let mut routes = facts.edge.routes.iter();
    let asks = routes.find(|route| route.name == name && route.decision_header);
    let decision = match asks.map(|route| core.decision_key.sign(core, route, token, facts)) {
        None => String::new(),
        Some(Ok(decision)) => decision,
        Some(Err(error)) => {
            // It is spent; the filter forwards nothing without the decision anyway.
            tracing::error!(%error, "a decision could not be signed; the request is refused");
            return refused_verdict(Reason::InternalError, None);
        }
    };
    Verdict::Allow(Allow {
        agent: token.agent.clone(),
        user: token
            .user
            .as_ref()
            .map(|user| format!("{}#{}", user.issuer, user.subject))
            .unwrap_or_default(),
        token_id: token.jti.clone(),
        txn: token.txn.clone(),
        decision,
        lineage: token.lineage.iter().map(|it| it.0.to_vec()).collect(),
    })
}

pub(super) fn refused_verdict(reason: Reason, first: Option<SpentRecord>) -> Verdict {
    let first_use = first.map(|first| {
        let (result, status) = first.outcome.told();
        WireFirstUse {
            result: result.to_owned(),
            upstream_status: status.map_or(0, u32::from),
            request_id: first.request_id,
        }
    });
    Verdict::Deny(Deny {
        reason: reason.as_str().to_owned(),
        first_use,
        ..Deny::default()
    })
}

pub(super) fn pending_verdict(reason: Reason, approval: &Approval, core: &Core) -> Verdict {
    if reason != Reason::ApprovalPending {
        return Verdict::Deny(Deny {
            reason: reason.as_str().to_owned(),
            approval_id: approval.id.clone(),
            ..Deny::default()
        });
    }
    Verdict::Deny(Deny {
        reason: reason.as_str().to_owned(),
        approval_id: approval.id.clone(),
        status_url: status_url(core, approval),
        retry_after_s: 5,
        first_use: None,
    })
}

/// Where the agent asks whether somebody has decided.
pub(super) fn status_url(core: &Core, approval: &Approval) -> String {
    format!(
        "{}/approvals/{}/status",
        core.config.server.issuer, approval.id
    )
}
