//! What callers want to change.

use super::{
    ActionRecord, AgentChange, Approval, Evidence, EvidenceOf, Hash, Millis, PolicyFacts, ProofUse,
    RequestFacts, Stopper, Target, TokenRecord, User,
};

/// One change, proposed by a caller that has verified everything it can.
#[derive(Clone, Debug)]
pub enum Command {
    /// A capability was minted. Refused when the agent has too many outstanding
    /// or the piece of evidence was shown under too many keys.
    Issue {
        /// The token.
        token: TokenRecord,
        /// SHA-256 of the SVID's header and payload: the evidence presented.
        evidence_id: Hash,
        /// When that evidence ends.
        evidence_expires_ms: Millis,
        /// Further evidence that the token rests on (RFC 8693's other token), counted alike.
        also: Vec<EvidenceOf>,
        /// What may be shown once: an assertion (RFC 7523), an ID-JAG. Refused with
        /// [`Refused::Shown`] when one was.
        once: Vec<EvidenceOf>,
        /// The proof that was shown. Refused with [`Refused::ProofUsed`] when another
        /// exchange used it.
        proof: Option<Box<ProofUse>>,
        /// The grant that it is got with, outstanding; a refresh token is spent by it.
        under: Option<Hash>,
        /// The refresh token that follows the one that was spent.
        next: Option<TokenRecord>,
        /// What policy said.
        policy: PolicyFacts,
        /// The agent's DPoP proof of the exchange.
        attachments: Vec<Evidence>,
    },
    /// An exchange was refused after the caller was authenticated.
    ExchangeRefused {
        /// The agent's SPIFFE ID.
        agent: String,
        /// The user whom it would act for.
        user: Option<User>,
        /// A reason of the closed list.
        reason: String,
        /// The OAuth error code that the client got.
        error: String,
        /// The `request_id` that the client got.
        request_id: String,
        /// The action, when it could be read.
        action: Option<ActionRecord>,
        /// What policy said, when it was asked.
        policy: Option<PolicyFacts>,
    },
    /// What may be shown once was shown, to ask and not to get anything: it is used up.
    /// Refused with [`super::Refused::Shown`] when it was shown before, and as what gives
    /// something when its agent is stopped or not active.
    Present {
        /// The agent's SPIFFE ID.
        agent: String,
        /// What was shown.
        once: EvidenceOf,
        /// What it was shown for, in a word.
        what: &'static str,
    },
    /// An agent that the registry does not know showed valid evidence. One that
    /// is remembered already is refused with [`Refused::AttemptKnown`].
    Discover {
        /// The agent's SPIFFE ID.
        agent: String,
    },
    /// The request may pass: spends the token, and consumes the approval if one is named.
    Allow {
        /// The token, outstanding: issued, or held by this same attempt.
        token_hash: Hash,
        /// The attempt: the question's id, prefix ‖ counter, unique.
        attempt: String,
        /// The request.
        request: RequestFacts,
        /// What policy said.
        policy: PolicyFacts,
        /// The approval that lifts the rules, approved and unused, with its digest.
        approval: Option<(String, Hash)>,
        /// Token and proof.
        attachments: Vec<Evidence>,
    },
    /// The request may not pass: spends the token.
    Deny {
        /// The token, outstanding.
        token_hash: Hash,
        /// The attempt.
        attempt: String,
        /// A reason of the closed list.
        reason: String,
        /// The request.
        request: RequestFacts,
        /// What policy said.
        policy: PolicyFacts,
        /// Token and proof.
        attachments: Vec<Evidence>,
    },
    /// The request waits for a human: the token goes to held, and the approval
    /// is opened, or joined when an equal one (same digest, same rules) is pending.
    /// Refused with [`Refused::ApprovalState`]`(Some(Approved))` when an equal one of
    /// the same policy version was approved meanwhile: evaluate again.
    Hold {
        /// The token, issued and unexpired.
        token_hash: Hash,
        /// The attempt.
        attempt: String,
        /// The request.
        request: RequestFacts,
        /// What policy said.
        policy: PolicyFacts,
        /// Opened when no pending one has its digest.
        approval: Approval,
        /// Token and proof.
        attachments: Vec<Evidence>,
    },
    /// A human is asked ahead of the request: the approval is opened, or joined, as by
    /// [`Command::Hold`], and no token is held for it.
    Ask {
        /// What it was asked in: the `request_id` that the client got.
        request_id: String,
        /// What policy said.
        policy: PolicyFacts,
        /// Opened when no pending one has its digest; its agent asks.
        approval: Approval,
        /// The agent's DPoP proof, and the body where there is one.
        attachments: Vec<Evidence>,
    },
    /// A held token lapses; its approval stays open.
    Lapse {
        /// The token, held.
        token_hash: Hash,
        /// The attempt that holds it.
        attempt: String,
        /// `timeout`, `withdrawn`, `approval_denied`, `approval_expired`, `policy` or `stream_lost`.
        why: &'static str,
    },
    /// Tokens that are held since before a time lapse, those held longest first,
    /// at most [`OVERDUE_PER_ENTRY`] of them in one entry: whoever held them is
    /// gone, or could not say so. Refused with
    /// [`Refused::NotOutstanding`]`(None)` when there is none, so that nothing is written.
    LapseOverdue {
        /// Ledger time; what is held since then, or later, stays.
        held_before_ms: Millis,
    },
    /// A human decided.
    DecideApproval {
        /// The approval, pending.
        id: String,
        /// The digest that the human was shown.
        digest: Hash,
        /// Yes or no.
        approve: bool,
        /// Who.
        by: String,
        /// How long a yes may be used.
        usable_ms: Millis,
    },
    /// Pending or approved approvals whose time is over end, at most
    /// [`EXPIRED_PER_ENTRY`] of them in one entry. Refused with
    /// [`Refused::ApprovalState`]`(None)` when there is none, so that nothing is written.
    ExpireApprovals,
    /// The registry learns of an agent, or changes what it knows.
    PutAgent {
        /// The agent's SPIFFE ID.
        agent: String,
        /// What changes.
        change: AgentChange,
        /// Who changes it.
        by: String,
    },
    /// Rights are taken away. Once this is durable nothing that it covers is
    /// issued, allowed, held or approved. A stop that stands already is made anew.
    Stop {
        /// What it covers.
        target: Target,
        /// Who stops it.
        by: String,
        /// Why.
        why: String,
        /// When it is forgotten, where nothing that it covers lives longer.
        until_ms: Option<Millis>,
        /// Whose it is.
        stopper: Stopper,
    },
    /// A stop ends: what is given from now on counts, what was given before does
    /// not. Of [`Target::Everything`] it takes two people: the first one's word is
    /// kept for [`LIFT_WAITS_MS`].
    Lift {
        /// What is stopped.
        target: Target,
        /// Who lifts it.
        by: String,
    },
    /// Open approvals of what is stopped end, at most [`EXPIRED_PER_ENTRY`] of them
    /// in one entry. Refused with [`Refused::ApprovalState`]`(None)` when there is none.
    CancelApprovals,
    /// An admin has looked at what was restored, and lets agents act again.
    /// Refused with [`Refused::AttemptKnown`] when nothing waits for that, or
    /// something else does.
    ConfirmRestore {
        /// [`Suspension::index`] of what was looked at.
        restored: u64,
        /// Who.
        by: String,
    },
    /// An allowed request ended. One outcome is taken of each of the newest
    /// [`OUTCOMES_AWAITED`] allows of this epoch. Any other is refused: with
    /// [`Refused::AttemptKnown`] while it is remembered what became of the
    /// attempt, else with [`Refused::NotOutstanding`]`(None)`.
    Outcome {
        /// The attempt that allowed it.
        attempt: String,
        /// Upstream status; 0 when none was seen.
        status: u16,
        /// Whether the proxy knows that nothing was sent. A status says the
        /// opposite, and counts.
        not_forwarded: bool,
        /// Size of the response's body.
        response_bytes: u64,
        /// The proxy's own word for how it ended.
        details: String,
    },
    /// Something worth a line that changes no state here: `edge_denial`,
    /// `edge_counts`, `gap`, `config`, `proxy`, `login`, `question_refused`, ….
    Note {
        /// The line's kind; one of [`NOTE_KINDS`].
        kind: &'static str,
        /// Its body.
        body: serde_json::Value,
    },
}
