//! The closed list of reasons for a refusal.
//!
//! One word is the problem's `type`, the metric's label and the audit entry's
//! reason, so the spellings never change.

use std::fmt;

/// Declares the list once: variant, word, status, OAuth error and title.
macro_rules! reasons {
    ($($variant:ident $word:literal $status:literal $error:expr, $title:literal;)*) => {
        /// Why a request was refused.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Reason {
            $(#[doc = $title] $variant,)*
        }

        impl Reason {
            /// Every reason, in the order in which the gates can give it.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The word: label, entry and problem `type`.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }

            /// The reason that has this word.
            #[must_use]
            pub fn parse(word: &str) -> Option<Self> {
                match word { $($word => Some(Self::$variant),)* _ => None }
            }

            /// The HTTP status of the refusal.
            #[must_use]
            pub fn status(self) -> u16 {
                match self { $(Self::$variant => $status,)* }
            }

            /// The `error` of the DPoP challenge (RFC 6750, section 3.1; RFC 9449,
            /// section 7.1); none where no credentials came, or they are not at fault.
            #[must_use]
            pub fn oauth_error(self) -> Option<&'static str> {
                match self { $(Self::$variant => $error,)* }
            }

            /// One sentence for people: the problem's `title` (RFC 9457). Printable
            /// ASCII without quotes, so that it fits `error_description` as well.
            #[must_use]
            pub fn title(self) -> &'static str {
                match self { $(Self::$variant => $title,)* }
            }
        }
    };
}

const TOKEN: Option<&str> = Some("invalid_token");
const PROOF: Option<&str> = Some("invalid_dpop_proof");
const NONCE: Option<&str> = Some("use_dpop_nonce");
const SCOPE: Option<&str> = Some("insufficient_scope");

// A wrong key is `invalid_token`, as in the example of RFC 9449, section 7.1:
// the proof is good, but the token is bound to another key.
reasons! {
    TooEarly "too_early" 425 None, "The request came in early data, which can be replayed: send it again after the handshake.";
    MissingCredentials "missing_credentials" 401 None, "A DPoP-bound capability token is required.";
    MalformedCredentials "malformed_credentials" 401 TOKEN, "Send exactly one Authorization header with the DPoP scheme and one token, and exactly one DPoP header.";
    TooLarge "too_large" 431 None, "The headers, the token, the proof or the body are too large.";
    TokenMalformed "token_malformed" 401 TOKEN, "The token is not a well-formed capability token.";
    TokenAlgorithm "token_algorithm" 401 TOKEN, "The token is signed with an algorithm that is not accepted.";
    TokenKeyUnknown "token_key_unknown" 401 TOKEN, "The token names a signing key that is not known here.";
    TokenSignature "token_signature" 401 TOKEN, "The signature of the token is wrong.";
    TokenIssuer "token_issuer" 401 TOKEN, "The token is from another issuer.";
    TokenAudience "token_audience" 401 TOKEN, "The token is for another resource.";
    TokenNotYetValid "token_not_yet_valid" 401 TOKEN, "The token is not valid yet.";
    TokenExpired "token_expired" 401 TOKEN, "The token has expired.";
    TokenLifetime "token_lifetime" 401 TOKEN, "The token lives longer than is allowed.";
    TokenUnknown "token_unknown" 401 TOKEN, "The token is not outstanding.";
    TokenSpent "token_spent" 401 TOKEN, "The token has been used.";
    OutcomeUnknown "outcome_unknown" 401 TOKEN, "The token may have been used and the outcome is not known: do not retry.";
    TokenRevoked "token_revoked" 401 TOKEN, "The token has been revoked.";
    ProofMalformed "proof_malformed" 401 PROOF, "The DPoP proof is not well-formed.";
    ProofAlgorithm "proof_algorithm" 401 PROOF, "The DPoP proof is signed with an algorithm that is not accepted.";
    ProofKeyMismatch "proof_key_mismatch" 401 TOKEN, "The token is bound to another key than the DPoP proof's.";
    ProofMethod "proof_method" 401 PROOF, "The DPoP proof is for another method.";
    ProofTarget "proof_target" 401 PROOF, "The DPoP proof is for another URL, or the URL of the request is not in its normal form.";
    ProofTime "proof_time" 401 PROOF, "The DPoP proof is too old or from the future: check the clock.";
    ProofNonce "proof_nonce" 401 NONCE, "The DPoP proof needs the nonce that was given.";
    ProofTokenHash "proof_token_hash" 401 PROOF, "The DPoP proof is for another token.";
    ProofSignature "proof_signature" 401 PROOF, "The signature of the DPoP proof is wrong.";
    ProofReplayed "proof_replayed" 401 PROOF, "The DPoP proof has been used.";
    CertificateMissing "certificate_missing" 401 TOKEN, "A client certificate is required.";
    CertificateMismatch "certificate_mismatch" 401 TOKEN, "The token is bound to another client certificate.";
    ActionMismatch "action_mismatch" 403 SCOPE, "The request is not the action that the token allows.";
    BodyMismatch "body_mismatch" 403 SCOPE, "The body is not the one that the token allows.";
    PolicyDenied "policy_denied" 403 SCOPE, "Policy does not allow this.";
    PolicyError "policy_error" 403 SCOPE, "Policy could not be evaluated, so this is not allowed.";
    ApprovalPending "approval_pending" 403 SCOPE, "Somebody has to approve this first: repeat the same request later.";
    ApprovalDenied "approval_denied" 403 SCOPE, "Somebody said no to this.";
    ApprovalExpired "approval_expired" 403 SCOPE, "Nobody approved this in time.";
    AgentInactive "agent_inactive" 403 SCOPE, "The agent is not active.";
    LimitExceeded "limit_exceeded" 429 None, "A limit has been reached: try again later.";
    ControlPlaneUnavailable "control_plane_unavailable" 503 None, "The decision could not be asked for.";
    InternalError "internal_error" 503 None, "Something went wrong here.";
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::error::Error for Reason {}

#[cfg(test)]
mod tests {
    use super::Reason;

    #[test]
    fn words_are_read_back_and_nothing_else_is() {
        assert_eq!(Reason::ALL.len(), 40);
        for reason in Reason::ALL {
            assert_eq!(Reason::parse(reason.as_str()), Some(*reason));
        }
        for other in ["", "Token_Spent", "token_spent ", "unknown"] {
            assert_eq!(Reason::parse(other), None);
        }
    }

    #[test]
    fn titles_fit_a_quoted_string() {
        for reason in Reason::ALL {
            let title = reason.title();
            assert!(
                title
                    .bytes()
                    .all(|b| (0x20..0x7f).contains(&b) && b != b'"' && b != b'\\'),
                "{title}"
            );
        }
    }

    #[test]
    fn statuses_follow_whose_fault_it_is() {
        for reason in Reason::ALL {
            let word = reason.as_str();
            let expected = match word {
                "too_early" => 425,
                "too_large" => 431,
                "limit_exceeded" => 429,
                "control_plane_unavailable" | "internal_error" => 503,
                "outcome_unknown" | "missing_credentials" | "malformed_credentials" => 401,
                _ if ["token_", "proof_", "certificate_"]
                    .iter()
                    .any(|p| word.starts_with(p)) =>
                {
                    401
                }
                _ => 403,
            };
            assert_eq!(reason.status(), expected, "{word}");
            let challenged = matches!(expected, 401 | 403) && word != "missing_credentials";
            assert_eq!(reason.oauth_error().is_some(), challenged, "{word}");
        }
    }
}
