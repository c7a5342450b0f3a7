//! Why an exchange is refused, sorted by whose fault it is, and the one place
//! that maps it to OAuth's words (RFC 6749, 8693, 9396, 9449).

use capability::reason::Reason;
use identity::EvidenceError;
use ledger::model::Refused;
use serde_json::Value;

/// The element of a request that is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Element {
    /// Where it stands in the request, from 0.
    pub index: usize,
    /// Its one normalised form.
    pub element: Value,
    /// What its rules let the agent know of why (`@tell`).
    pub why: Vec<String>,
}

/// A token that waits for a person.
#[derive(Clone, PartialEq, Eq)]
pub struct Waiting {
    /// What the client asks with.
    pub code: String,
    /// Seconds that it may.
    pub expires_in: u64,
    /// Seconds between two questions.
    pub interval: u64,
    /// The approval that it waits for.
    pub approval: String,
    /// What its rules let the agent know of why (`@tell`).
    pub why: Vec<String>,
}

impl std::fmt::Debug for Waiting {
    // The code is the client's alone.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Waiting({})", self.approval)
    }
}

/// A refused exchange.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExchangeError {
    // The client's request.
    /// A parameter is missing, repeated or wrong.
    Request(String),
    /// Not the one grant that is served.
    Grant,
    /// `scope` was asked for.
    Scope,
    /// `resource` or `audience` is not the protected resource.
    Target(String),
    /// `authorization_details` is not one exact action.
    Details(String),
    // The client's credentials.
    /// The DPoP proof.
    Proof(Reason),
    /// The proof's `iat` is no good, or its nonce is not: here is a nonce.
    Nonce,
    /// The proof was used before.
    ProofReplayed,
    /// The body is over its limit.
    TooLarge,
    /// The subject token, and in words what is wrong with it.
    Evidence(Reason, String),
    /// The actor token, and in words what is wrong with it.
    Actor(Reason, String),
    /// The ID-JAG, and in words what is wrong with it.
    Bearer(Reason, String),
    /// The ID-JAG was used before, or the client assertion beside it.
    BearerReplayed,
    /// The refresh token, and in words what is wrong with it.
    Refresh(Reason, String),
    /// The refresh token was used before: its family is revoked.
    RefreshReplayed,
    /// The session or the delegation ended, or was used up, while it was used.
    GrantEnded,
    /// The delegation has no uses left.
    GrantUsed,
    /// The client assertion, and in words what is wrong with it.
    Client(Reason, String),
    /// The client assertion was used before.
    AssertionReplayed,
    /// The subject token is another workload's than the client certificate.
    Certificate,
    /// The client certificate has ended, and its connection has not.
    CertificateExpired,
    /// The client certificate's trust domain has withdrawn what it rests on.
    CertificateUnproven,
    /// The client certificate is of another trust domain, and lasts longer than this, in s.
    CertificateLifetime(u64),
    // Who the caller is.
    /// The registry does not know it.
    Unregistered,
    /// The registry says that it may not act.
    Inactive,
    /// Rights were taken away.
    Stopped,
    /// Policy's no.
    Denied(Box<Element>),
    /// A person is asked; here is a code to ask with.
    Pending(Box<Waiting>),
    /// The person has not decided.
    StillPending,
    /// The code was asked about too soon.
    SlowDown,
    /// The person said no.
    ApprovalDenied,
    /// Nobody decided in time, or the yes was not used in time, or by another.
    ApprovalExpired,
    /// The code, and in words what is wrong with it.
    Deferral(Reason, String),
    /// The user's word is this agent's alone, by this claim or by what a session rests on, and
    /// was to be passed on.
    UserAlone(&'static str),
    /// The subject token has been shown under too many DPoP keys.
    EvidenceKeys,
    /// A named limit of the caller's.
    Limit(&'static str),
    // Ours.
    /// A policy could not be evaluated.
    PolicyError(Box<Element>),
    /// The ledger does not take it now.
    Unavailable,
    /// The ledger has no room to grow.
    Full,
    /// A defect of ours.
    Internal,
}

impl From<EvidenceError> for ExchangeError {
    fn from(error: EvidenceError) -> Self {
        let reason = match &error {
            EvidenceError::TooLarge => Reason::TooLarge,
            EvidenceError::Audience { .. } => Reason::TokenAudience,
            EvidenceError::Expired => Reason::TokenExpired,
            EvidenceError::Lifetime { .. } => Reason::TokenLifetime,
            EvidenceError::NotYetValid => Reason::TokenNotYetValid,
            EvidenceError::Signature => Reason::TokenSignature,
            // Nobody can be judged without bundles: an outage, not the caller's fault.
            EvidenceError::Unavailable(_) => {
                tracing::error!(%error, "an exchange is refused");
                return Self::Unavailable;
            }
            _ => Reason::TokenMalformed,
        };
        Self::Evidence(reason, error.to_string())
    }
}

impl ExchangeError {
    /// What the client is told of a commit that was refused for the store's sake.
    #[must_use]
    pub fn not_recorded(refused: &Refused) -> Self {
        match refused {
            Refused::Full => Self::Full,
            _ => Self::Unavailable,
        }
    }

    /// What a client is told whose question was refused, which would have used up what
    /// counts once.
    #[must_use]
    pub fn of_question(refused: &Refused) -> Self {
        match refused {
            Refused::Limit(what) => Self::Limit(what),
            Refused::Stopped(_) => Self::Stopped,
            Refused::Inactive => Self::Inactive,
            refused => Self::not_recorded(refused),
        }
    }

    /// The same of a client assertion instead of a subject token.
    #[must_use]
    pub fn of_client(self) -> Self {
        match self {
            Self::Evidence(reason, what) => Self::Client(reason, what),
            other => other,
        }
    }

    /// The same of an actor token.
    #[must_use]
    pub fn of_actor(self) -> Self {
        match self {
            Self::Evidence(reason, what) => Self::Actor(reason, what),
            other => other,
        }
    }

    /// The same of an ID-JAG.
    #[must_use]
    pub fn of_grant(self) -> Self {
        match self {
            Self::Evidence(reason, what) => Self::Bearer(reason, what),
            other => other,
        }
    }

    /// The same of a refresh token.
    #[must_use]
    pub fn of_refresh(self) -> Self {
        match self {
            Self::Evidence(reason, what) => Self::Refresh(reason, what),
            Self::GrantEnded => Self::Refresh(Reason::TokenUnknown, "it has ended".into()),
            other => other,
        }
    }

    /// The same of a code.
    #[must_use]
    pub fn of_deferral(self) -> Self {
        match self {
            Self::Evidence(reason, what) => Self::Deferral(reason, what),
            Self::GrantEnded => Self::Deferral(Reason::TokenUnknown, "it has ended".into()),
            other => other,
        }
    }

    /// The OAuth error code.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            // RFC 8693, section 2.2.2, of a subject token that is not acceptable.
            Self::Request(_)
            | Self::TooLarge
            | Self::Evidence(..)
            | Self::Actor(..)
            | Self::Certificate
            | Self::CertificateExpired
            | Self::CertificateUnproven
            | Self::CertificateLifetime(_)
            | Self::GrantEnded
            | Self::GrantUsed
            | Self::UserAlone(_)
            | Self::EvidenceKeys => "invalid_request",
            // RFC 6749, section 5.2.
            Self::Client(..) | Self::AssertionReplayed => "invalid_client",
            Self::Bearer(..)
            | Self::BearerReplayed
            | Self::Refresh(..)
            | Self::RefreshReplayed
            | Self::Deferral(..) => "invalid_grant",
            Self::Pending(_) | Self::StillPending => "authorization_pending",
            Self::SlowDown => "slow_down",
            Self::ApprovalExpired => "expired_token",
            Self::Grant => "unsupported_grant_type",
            Self::Scope => "invalid_scope",
            Self::Target(_) => "invalid_target",
            Self::Details(_) => "invalid_authorization_details",
            Self::Proof(_) | Self::ProofReplayed => "invalid_dpop_proof",
            Self::Nonce => "use_dpop_nonce",
            Self::Unregistered
            | Self::Inactive
            | Self::Stopped
            | Self::Denied(_)
            | Self::ApprovalDenied
            | Self::PolicyError(_) => "access_denied",
            Self::Limit(_) | Self::Unavailable | Self::Full => "temporarily_unavailable",
            Self::Internal => "server_error",
        }
    }

    /// The reason, one of the closed list.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Request(_) | Self::Grant | Self::Scope => Reason::MalformedCredentials,
            Self::Target(_) | Self::Details(_) => Reason::ActionMismatch,
            Self::Proof(reason)
            | Self::Evidence(reason, _)
            | Self::Actor(reason, _)
            | Self::Bearer(reason, _)
            | Self::Refresh(reason, _)
            | Self::Deferral(reason, _)
            | Self::Client(reason, _) => *reason,
            Self::Pending(_) | Self::StillPending => Reason::ApprovalPending,
            Self::SlowDown => Reason::LimitExceeded,
            Self::ApprovalDenied => Reason::ApprovalDenied,
            Self::ApprovalExpired => Reason::ApprovalExpired,
            Self::AssertionReplayed | Self::BearerReplayed | Self::RefreshReplayed => {
                Reason::TokenSpent
            }
            Self::GrantEnded => Reason::TokenUnknown,
            Self::UserAlone(_) => Reason::TokenAudience,
            Self::TooLarge => Reason::TooLarge,
            Self::Nonce => Reason::ProofNonce,
            Self::ProofReplayed => Reason::ProofReplayed,
            Self::Certificate => Reason::CertificateMismatch,
            Self::CertificateExpired => Reason::TokenExpired,
            Self::CertificateUnproven => Reason::TokenSignature,
            Self::CertificateLifetime(_) => Reason::TokenLifetime,
            Self::Unregistered | Self::Inactive => Reason::AgentInactive,
            Self::Stopped => Reason::TokenRevoked,
            Self::Denied(_) => Reason::PolicyDenied,
            Self::PolicyError(_) => Reason::PolicyError,
            Self::Limit(_) | Self::EvidenceKeys | Self::GrantUsed => Reason::LimitExceeded,
            Self::Unavailable | Self::Full => Reason::ControlPlaneUnavailable,
            Self::Internal => Reason::InternalError,
        }
    }

    /// The HTTP status (RFC 6749, section 5.2: 400 unless said otherwise).
    #[must_use]
    pub fn status(&self) -> u16 {
        match self {
            Self::Limit(_) => 429,
            Self::Unavailable | Self::Full => 503,
            Self::Internal => 500,
            _ => 400,
        }
    }

    /// Whether nobody has been authenticated yet when this is found.
    #[must_use]
    pub fn unauthenticated(&self) -> bool {
        matches!(
            self,
            Self::Request(_)
                | Self::TooLarge
                | Self::Grant
                | Self::Scope
                | Self::Proof(_)
                | Self::Nonce
                | Self::Evidence(..)
                | Self::Actor(..)
                | Self::Bearer(..)
                | Self::Refresh(..)
                | Self::RefreshReplayed
                | Self::Deferral(..)
                | Self::Client(..)
                | Self::CertificateExpired
                | Self::CertificateUnproven
                | Self::CertificateLifetime(_)
        )
    }

    /// What of the request is refused, where that is one of its elements.
    #[must_use]
    pub fn element(&self) -> Option<&Element> {
        match self {
            Self::Denied(element) | Self::PolicyError(element) => Some(element),
            _ => None,
        }
    }

    /// What the client is told: enough to mend its request, and of policy nothing.
    #[must_use]
    pub fn description(&self) -> String {
        match self {
            Self::Request(what) | Self::Target(what) | Self::Details(what) => what.clone(),
            Self::Grant => format!(
                "grant_type must be {}; {} and {} are for those who show an X.509-SVID or a client_assertion",
                super::GRANT_EXCHANGE,
                super::GRANT_CLIENT,
                super::GRANT_BEARER
            ),
            Self::Scope => {
                "scopes are not used here; say the one action in authorization_details".into()
            }
            Self::Proof(Reason::MissingCredentials) => {
                "a DPoP proof is needed, in the header DPoP (RFC 9449)".into()
            }
            Self::Proof(reason) => format!("the DPoP proof is refused: {}", reason.title()),
            Self::Nonce => {
                "repeat this with a new DPoP proof that has the nonce of the DPoP-Nonce header; the proof's iat may stay wrong".into()
            }
            Self::ProofReplayed => {
                "the DPoP proof was used before; make a new one for each request".into()
            }
            Self::TooLarge => "the body is larger than 32 KiB".into(),
            Self::Evidence(_, what) => format!("the subject_token is refused: {what}"),
            Self::Actor(_, what) => format!("the actor_token is refused: {what}"),
            Self::Bearer(_, what) => format!("the assertion is refused: {what}"),
            Self::Refresh(_, what) => format!("the refresh_token is refused: {what}"),
            Self::Deferral(_, what) => format!("the deferral_code is refused: {what}"),
            Self::Pending(_) => {
                "a person is asked; ask again with the deferral_code, every interval seconds".into()
            }
            Self::StillPending => "no person has decided yet".into(),
            Self::SlowDown => "ask again no sooner than after the interval, and 5 seconds more".into(),
            Self::ApprovalDenied => "a person was asked and said no".into(),
            Self::ApprovalExpired => {
                "nobody said yes in time, or the yes is not there any more; ask anew".into()
            }
            Self::RefreshReplayed => {
                "the refresh_token was used before, so that it and all that came of it are revoked; authenticate again".into()
            }
            Self::GrantEnded => {
                "the session or the delegation has ended, or does not cover this".into()
            }
            Self::GrantUsed => "the delegation has no uses left; ask for another one".into(),
            Self::BearerReplayed => {
                "the assertion, or the client_assertion, was used before; get a new one for each request".into()
            }
            Self::Client(_, what) => format!("the client_assertion is refused: {what}"),
            Self::AssertionReplayed => {
                "the client_assertion was used before; make a new one for each request".into()
            }
            Self::Certificate => {
                "the subject_token, or client_id, is another workload's than the client certificate".into()
            }
            Self::CertificateExpired => {
                "the client certificate has expired; connect with a new one".into()
            }
            Self::CertificateUnproven => {
                "the client certificate's trust domain does not prove it any more, or its bundle can't be fetched; connect with a new one".into()
            }
            Self::CertificateLifetime(most_s) => {
                format!("the client certificate lasts longer than {most_s} s; connect with one of less")
            }
            Self::Unregistered => {
                "this agent is not registered; its operator can see that it asked".into()
            }
            Self::Inactive => "this agent is not active".into(),
            Self::Stopped => {
                "the rights of this agent, or of what it asks with, were taken away".into()
            }
            Self::Denied(_) => "policy does not allow this action".into(),
            Self::PolicyError(_) => {
                "policy could not be evaluated; nothing is allowed until it can".into()
            }
            Self::UserAlone("session") => {
                "the session was got by a user's token that names this agent alone, so that nothing of it can be passed on".into()
            }
            Self::UserAlone(claim) => format!(
                "the user's token is this agent's alone (`{claim}`), so that nothing of it can be passed on"
            ),
            Self::EvidenceKeys => {
                "the subject_token has been shown under too many DPoP keys; keep one key, or fetch a fresh token".into()
            }
            Self::Limit(what) => format!("a limit is reached: {what}"),
            Self::Unavailable => {
                "the exchange can't be checked or recorded now, so it is refused; try again".into()
            }
            Self::Full => {
                "the control plane has no space left to record it, so it is refused; its operator has to free some".into()
            }
            Self::Internal => "the server failed".into(),
        }
    }
}
