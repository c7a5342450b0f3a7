//! Why nothing is said of a token, and OAuth's words for it (RFC 6749, section 5.2).

use crate::exchange::ExchangeError;
use capability::reason::Reason;

/// A refused introspection or revocation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum TokensError {
    /// The request, the client's credentials or the store, as at the token endpoint.
    Of(ExchangeError),
    /// There are no credentials.
    Unauthenticated,
    /// The token was issued to another client.
    Foreign,
    /// Too many revocations for now.
    Busy,
}

impl From<ExchangeError> for TokensError {
    fn from(error: ExchangeError) -> Self {
        Self::Of(error)
    }
}

impl TokensError {
    /// The OAuth error code. What is wrong with credentials is `invalid_client`,
    /// whichever they are: there is nothing else here that they could be.
    pub(super) fn code(&self) -> &'static str {
        match self {
            Self::Unauthenticated
            | Self::Of(
                ExchangeError::Certificate
                | ExchangeError::CertificateExpired
                | ExchangeError::CertificateUnproven
                | ExchangeError::CertificateLifetime(_),
            ) => "invalid_client",
            Self::Of(error) => error.code(),
            // RFC 6749, section 5.2, of what was issued to another client.
            Self::Foreign => "invalid_grant",
            Self::Busy => "temporarily_unavailable",
        }
    }

    /// The HTTP status; 429 and 503 say when to come again (RFC 7009, section 2.2.1).
    pub(super) fn status(&self) -> u16 {
        match (self, self.code()) {
            (_, "invalid_client") => 401,
            (Self::Of(error), _) => error.status(),
            (Self::Busy, _) => 503,
            _ => 400,
        }
    }

    /// The reason, one of the closed list.
    pub(super) fn reason(&self) -> Reason {
        match self {
            Self::Of(error) => error.reason(),
            Self::Unauthenticated => Reason::MissingCredentials,
            Self::Foreign => Reason::TokenUnknown,
            Self::Busy => Reason::LimitExceeded,
        }
    }

    /// What the client is told.
    pub(super) fn description(&self) -> String {
        match self {
            Self::Of(error) => error.description(),
            Self::Unauthenticated => {
                "authenticate with a client_assertion, or with an X.509-SVID at the issuer's address for these".to_owned()
            }
            Self::Foreign => "the token was issued to another client".to_owned(),
            Self::Busy => "too many tokens are revoked now; try again later".to_owned(),
        }
    }
}
