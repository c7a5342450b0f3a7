//! An approval in the words and parts that pages and programs show.

use std::hash::{DefaultHasher, Hash, Hasher};

use super::Desk;
use super::answers::{ActionAnswer, ApprovalAnswer, ApprovalsAnswer, UserName};
use super::bodies::{BodyShown, body_json, shown};
use super::text::{Shown, decoded, span, split_url, time_for_people, time_for_programs};
use ledger::model::{Approval, ApprovalState, Millis, User};

/// Waiting approvals that the inbox shows.
pub(super) const WAITING_MAX: usize = 200;
/// Ended ones below them.
pub(super) const RECENT_MAX: usize = 30;

/// Where an approval stands at this moment, though its end may not have been
/// committed yet.
pub(super) fn standing(approval: &Approval, now: Millis) -> ApprovalState {
    match approval.state {
        ApprovalState::Pending | ApprovalState::Approved if now >= approval.expires_ms => {
            ApprovalState::Expired
        }
        state => state,
    }
}

/// The state's word for programs.
pub(super) fn word(state: ApprovalState) -> &'static str {
    match state {
        ApprovalState::Pending => "pending",
        ApprovalState::Approved => "approved",
        ApprovalState::Denied => "denied",
        ApprovalState::Expired => "expired",
        ApprovalState::Consumed => "consumed",
        ApprovalState::Cancelled => "cancelled",
    }
}

fn label(state: ApprovalState) -> &'static str {
    match state {
        ApprovalState::Pending => "Waiting",
        ApprovalState::Approved => "Approved, not used yet",
        ApprovalState::Denied => "Denied",
        ApprovalState::Expired => "Expired",
        ApprovalState::Consumed => "Approved and used",
        ApprovalState::Cancelled => "Taken back",
    }
}

/// One line of the inbox.
pub(super) struct Row {
    pub(super) id: String,
    pub(super) method: Shown,
    /// The tool, prompt or resource of a message, or its skill.
    pub(super) name: Option<Shown>,
    pub(super) url: Shown,
    pub(super) agent: Shown,
    pub(super) user: Option<Shown>,
    pub(super) reason: Option<Shown>,
    pub(super) state: &'static str,
    pub(super) label: &'static str,
    pub(super) when: String,
    pub(super) left_ms: Millis,
    pub(super) left: String,
}

impl Row {
    fn new(approval: &Approval, now: Millis) -> Self {
        let state = standing(approval, now);
        let left_ms = approval.expires_ms.saturating_sub(now);
        let name = approval
            .action
            .name
            .as_ref()
            .or(approval.action.skill.as_ref());
        Self {
            id: approval.id.clone(),
            method: Shown::url(&approval.action.method),
            name: name.map(|name| Shown::text(name)),
            url: Shown::url(&approval.action.location),
            agent: Shown::text(&approval.agent),
            user: approval
                .user
                .as_ref()
                .map(|user| Shown::text(&user.subject)),
            reason: approval.reasons.first().map(|reason| Shown::text(reason)),
            state: word(state),
            label: label(state),
            when: time_for_people(approval.decided_ms.unwrap_or(approval.created_ms)),
            left_ms,
            left: span(left_ms),
        }
    }
}

/// The inbox: who waits, oldest end first, and what ended lately.
pub(super) struct Inbox {
    pub(super) waiting: Vec<Row>,
    pub(super) waiting_more: usize,
    pub(super) recent: Vec<Row>,
    pub(super) version: String,
}

impl Inbox {
    pub(super) fn new(approvals: &[Approval], now: Millis) -> Self {
        let (mut waiting, mut recent): (Vec<&Approval>, Vec<&Approval>) = approvals
            .iter()
            .partition(|approval| standing(approval, now) == ApprovalState::Pending);
        waiting.sort_by_key(|approval| (approval.expires_ms, approval.id.clone()));
        recent.sort_by_key(|a| {
            (
                std::cmp::Reverse(a.decided_ms.unwrap_or(a.created_ms)),
                a.id.clone(),
            )
        });
        let rows =
            |list: &[&Approval], most| list.iter().take(most).map(|a| Row::new(a, now)).collect();
        Self {
            waiting: rows(&waiting, WAITING_MAX),
            waiting_more: waiting.len().saturating_sub(WAITING_MAX),
            recent: rows(&recent, RECENT_MAX),
            version: version(approvals, now),
        }
    }
}

/// Changes when anything that the inbox shows does, whatever the order.
pub(super) fn version(approvals: &[Approval], now: Millis) -> String {
    let mut keys: Vec<_> = approvals
        .iter()
        .map(|a| (a.id.as_str(), word(standing(a, now))))
        .collect();
    keys.sort_unstable();
    let mut hasher = DefaultHasher::new();
    keys.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

/// One part of a query.
pub(super) struct Parameter {
    pub(super) name: Shown,
    pub(super) value: Shown,
    pub(super) stands_for: Option<Shown>,
}

/// One approval in full. Nothing in it is cut.
pub(super) struct Detail {
    pub(super) row: Row,
    pub(super) origin: Shown,
    pub(super) path: Shown,
    pub(super) path_stands_for: Option<Shown>,
    pub(super) query: Shown,
    pub(super) parameters: Vec<Parameter>,
    pub(super) body: Option<BodyShown>,
    pub(super) kind: Shown,
    /// What its row's name is.
    pub(super) named: &'static str,
    pub(super) user_issuer: Option<Shown>,
    pub(super) chain: Vec<Shown>,
    pub(super) rules: Vec<Rule>,
    pub(super) approvers: Vec<Shown>,
    pub(super) policy_version: Shown,
    pub(super) digest: String,
    pub(super) created: String,
    pub(super) ends: String,
    pub(super) decided: Option<(Shown, String)>,
    pub(super) open: bool,
}

/// A rule that wants a human, and what it says of why.
pub(super) struct Rule {
    pub(super) id: Shown,
    pub(super) reason: Option<Shown>,
}

impl Detail {
    pub(super) fn new(approval: &Approval, body: Option<&[u8]>, now: Millis) -> Self {
        let parts = split_url(&approval.action.location);
        let state = standing(approval, now);
        let texts = |list: &[String]| list.iter().map(|text| Shown::text(text)).collect();
        Self {
            row: Row::new(approval, now),
            origin: Shown::url(parts.origin),
            path: Shown::url(parts.path),
            path_stands_for: decoded(parts.path).map(|text| Shown::text(&text)),
            query: Shown::url(parts.query),
            parameters: parameters(parts.query),
            body: approval.body.as_ref().map(|known| shown(known, body)),
            kind: Shown::text(&approval.action.kind),
            named: if approval.action.skill.is_some() {
                "Skill"
            } else {
                "Name"
            },
            user_issuer: approval.user.as_ref().map(|user| Shown::text(&user.issuer)),
            chain: texts(&approval.chain),
            rules: rules(&approval.rules, &approval.reasons),
            approvers: texts(&approval.approvers),
            policy_version: Shown::text(&approval.policy_version),
            digest: hex::encode(approval.digest),
            created: time_for_people(approval.created_ms),
            ends: time_for_people(approval.expires_ms),
            decided: approval
                .decided_by
                .as_deref()
                .zip(approval.decided_ms)
                .map(|(by, at)| (Shown::text(by), time_for_people(at))),
            open: state == ApprovalState::Pending,
        }
    }

    /// Whether there is a body that can't be shown, so that nobody can say yes.
    pub(super) fn body_is_missing(&self) -> bool {
        self.body.as_ref().is_some_and(|body| body.lines.is_none())
    }
}

// Reasons come in the rules' order; there may be fewer of them, and a reason
// without a rule is shown all the same.
fn rules(ids: &[String], reasons: &[String]) -> Vec<Rule> {
    (0..ids.len().max(reasons.len()))
        .map(|at| Rule {
            id: Shown::text(ids.get(at).map_or("", String::as_str)),
            reason: reasons
                .get(at)
                .filter(|reason| !reason.is_empty())
                .map(|reason| Shown::text(reason)),
        })
        .collect()
}

fn parameters(query: &str) -> Vec<Parameter> {
    let Some(query) = query.strip_prefix('?') else {
        return Vec::new();
    };
    query
        .split('&')
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let stands_for = decoded(pair).map(|text| Shown::text(&text));
            Parameter {
                name: Shown::url(name),
                value: Shown::url(value),
                stands_for,
            }
        })
        .collect()
}

/// An approval as the JSON interface gives it.
pub(super) fn to_json(approval: &Approval, now: Millis) -> ApprovalAnswer {
    let user = approval.user.as_ref().map(named);
    ApprovalAnswer {
        id: approval.id.clone(),
        status: word(standing(approval, now)),
        digest: hex::encode(approval.digest),
        agent: approval.agent.clone(),
        user,
        chain: approval.chain.clone(),
        action: ActionAnswer {
            kind: approval.action.kind.clone(),
            method: approval.action.method.clone(),
            location: approval.action.location.clone(),
            content_digest: approval.action.content_digest.clone(),
            name: approval.action.name.clone(),
            arguments_digest: approval.action.arguments_digest.clone(),
            skill: approval.action.skill.clone(),
        },
        body: approval.body.as_ref().map(body_json),
        rules: approval.rules.clone(),
        reasons: approval.reasons.clone(),
        approvers: approval.approvers.clone(),
        policy_version: approval.policy_version.clone(),
        created_at: time_for_programs(approval.created_ms),
        expires_at: time_for_programs(approval.expires_ms),
        decided_by: approval.decided_by.clone(),
        decided_at: approval.decided_ms.map(time_for_programs),
    }
}

/// A user for programs.
pub(super) fn named(user: &User) -> UserName {
    UserName {
        issuer: user.issuer.clone(),
        subject: user.subject.clone(),
    }
}

/// All of them, in the order that the inbox has.
pub(super) fn all_json(desk: &dyn Desk) -> ApprovalsAnswer {
    let now = desk.now_ms();
    let all = super::inbox::sorted(desk.list());
    let approvals = all.iter().map(|approval| to_json(approval, now)).collect();
    ApprovalsAnswer { approvals }
}
