//! The forms and answers of the OAuth endpoints, for the OpenAPI document. What they are
//! read and made by is `form.rs` and `http.rs`.

#![expect(dead_code, reason = "they are described, and read and made elsewhere")]

use utoipa::{IntoResponses, ToSchema};

/// What the token endpoint takes; `docs/reference/http.md` says what goes together.
#[derive(ToSchema)]
pub(super) struct TokenForm {
    /// `urn:ietf:params:oauth:grant-type:token-exchange`, `client_credentials`, or
    /// `urn:ietf:params:oauth:grant-type:jwt-bearer`.
    grant_type: String,
    /// One action, as a JSON array with one element (RFC 9396).
    authorization_details: String,
    /// A JWT-SVID, another issuer's token, or a user's.
    subject_token: Option<String>,
    /// Its type (RFC 8693, section 3).
    subject_token_type: Option<String>,
    /// The agent's, where the subject's is a user's.
    actor_token: Option<String>,
    /// Its type.
    actor_token_type: Option<String>,
    /// The type of what is issued.
    requested_token_type: Option<String>,
    /// An ID-JAG (RFC 7523, section 2.1).
    assertion: Option<String>,
    /// RFC 6749, section 6.
    refresh_token: Option<String>,
    /// With `deferred` in it the client waits for a person here, and not at its request
    /// (draft-ietf-oauth-deferred-token-response).
    completion_mode: Option<String>,
    /// What it asks with then.
    deferral_code: Option<String>,
    /// The body that the person has to see, base64url.
    writ_content: Option<String>,
    /// Its `content-type`.
    writ_content_type: Option<String>,
    /// Its `content-encoding`.
    writ_content_encoding: Option<String>,
    /// The location's resource, or a URL under it (RFC 8707).
    resource: Option<String>,
    /// The same.
    audience: Option<String>,
    /// Who the client says that it is.
    client_id: Option<String>,
    /// RFC 7523, or draft-ietf-oauth-spiffe-client-auth.
    client_assertion_type: Option<String>,
    /// A JWT by the client's key, or a JWT-SVID.
    client_assertion: Option<String>,
}

/// A token, and by what the client authenticates; nothing of that at `server.mtls_url`.
#[derive(ToSchema)]
pub(super) struct AboutForm {
    /// The token.
    token: String,
    /// Not looked at.
    token_type_hint: Option<String>,
    /// Who the client says that it is.
    client_id: Option<String>,
    /// RFC 7523, or draft-ietf-oauth-spiffe-client-auth.
    client_assertion_type: Option<String>,
    /// A JWT by the client's key, or a JWT-SVID.
    client_assertion: Option<String>,
}

/// A token for one action.
#[derive(ToSchema)]
pub(super) struct TokenAnswer {
    access_token: String,
    /// `DPoP`.
    token_type: String,
    /// Seconds.
    expires_in: u64,
    /// The one element, normalised.
    #[schema(nullable = false)]
    authorization_details: Option<Vec<serde_json::Value>>,
    /// The next one, where the client has any.
    #[schema(nullable = false)]
    refresh_token: Option<String>,
    /// With a `subject_token`.
    #[schema(nullable = false)]
    issued_token_type: Option<String>,
}

/// Several actions.
#[derive(ToSchema)]
pub(super) struct BatchForm {
    /// 1 to 32 of them.
    authorization_details: Vec<serde_json::Value>,
}

/// What each came to, in their order.
#[derive(ToSchema)]
pub(super) struct BatchAnswer {
    /// A token endpoint's answer, or its refusal.
    capabilities: Vec<serde_json::Value>,
}

/// What is known of a token (RFC 7662). One that is not active has nothing else, but for
/// resource servers.
#[derive(ToSchema)]
pub(super) struct KnownAnswer {
    active: bool,
    #[schema(nullable = false)]
    token_type: Option<String>,
    #[schema(nullable = false)]
    iss: Option<String>,
    #[schema(nullable = false)]
    sub: Option<String>,
    #[schema(nullable = false)]
    client_id: Option<String>,
    #[schema(nullable = false)]
    aud: Option<String>,
    #[schema(nullable = false)]
    iat: Option<u64>,
    #[schema(nullable = false)]
    exp: Option<u64>,
    #[schema(nullable = false)]
    jti: Option<String>,
    #[schema(nullable = false)]
    txn: Option<String>,
    /// `jkt`, and `x5t#S256` where it is bound to a certificate.
    #[schema(nullable = false)]
    cnf: Option<serde_json::Value>,
    /// Who acts, where that is not `sub`.
    #[schema(nullable = false)]
    act: Option<serde_json::Value>,
    /// The user as issuer and subject (RFC 9493).
    #[schema(nullable = false)]
    sub_id: Option<serde_json::Value>,
    #[schema(nullable = false)]
    authorization_details: Option<Vec<serde_json::Value>>,
    /// To resource servers: `spent`, `held`, `expired` or `revoked`.
    #[schema(nullable = false)]
    writ_state: Option<String>,
    /// To resource servers, of a spent one.
    #[schema(nullable = false)]
    writ_first_use: Option<serde_json::Value>,
}

/// A refusal (RFC 6749, section 5.2).
#[derive(ToSchema)]
pub(super) struct Refusal {
    error: String,
    error_description: String,
    /// One of a closed list.
    #[schema(nullable = false)]
    reason: Option<String>,
    /// What it is called in the log.
    #[schema(nullable = false)]
    request_id: Option<String>,
    /// Where the refused element stands in the request, where policy refuses one.
    #[schema(nullable = false)]
    element_index: Option<usize>,
    /// That element, normalised.
    #[schema(nullable = false)]
    element: Option<serde_json::Value>,
    /// With `authorization_pending`: what to ask with.
    #[schema(nullable = false)]
    deferral_code: Option<String>,
    /// Seconds that it may be asked with.
    #[schema(nullable = false)]
    expires_in: Option<u64>,
    /// Seconds between two questions.
    #[schema(nullable = false)]
    interval: Option<u64>,
    /// What a person is asked.
    #[schema(nullable = false)]
    approval_id: Option<String>,
    /// Why, as far as policy lets the agent know.
    #[schema(nullable = false)]
    why: Option<Vec<String>>,
}

/// A set of public keys (RFC 7517).
#[derive(ToSchema)]
pub(super) struct Keys {
    keys: Vec<serde_json::Value>,
}

/// AuthZEN's question, and with `binding_token` its access request.
#[derive(ToSchema)]
pub(super) struct EvaluationForm {
    /// `type` is `agent`, `id` the SPIFFE ID of the agent that asks.
    subject: serde_json::Value,
    /// `name`: the method.
    action: serde_json::Value,
    /// `type` is that of an `authorization_details` element, `id` its one location, and
    /// `properties` what else it has.
    resource: serde_json::Value,
    /// Not looked at.
    context: Option<serde_json::Value>,
    /// Of the evaluation, where a person is to be asked.
    binding_token: Option<String>,
}

/// AuthZEN's answer.
#[derive(ToSchema)]
pub(super) struct Evaluated {
    decision: bool,
    /// Of a no: `reason`, `why`, and where a person may change it `access_request`.
    #[schema(nullable = false)]
    context: Option<serde_json::Value>,
}

/// An access request.
#[derive(ToSchema)]
pub(super) struct TaskAnswer {
    /// `id`, `status`, `status_endpoint`, `expires_at`.
    task: serde_json::Value,
    /// Once a person has said yes: `mode` is `reevaluate`.
    #[schema(nullable = false)]
    result: Option<serde_json::Value>,
}

/// How every one of them refuses.
#[derive(IntoResponses)]
pub(super) enum Refused {
    /// The request, or the token endpoint's evidence, is refused.
    #[response(status = 400)]
    Wrong(#[to_schema] Refusal),
    /// The log takes nothing now, or a limit is reached.
    #[response(status = 503)]
    NotNow(#[to_schema] Refusal),
    /// A defect.
    #[response(status = 500)]
    Defect(#[to_schema] Refusal),
}

/// A client that has not authenticated.
#[derive(IntoResponses)]
pub(super) enum Nobody {
    /// The client's credentials are missing, or refused.
    #[response(status = 401)]
    Nobody(#[to_schema] Refusal),
}

/// A limit of the caller's.
#[derive(IntoResponses)]
pub(super) enum Slower {
    /// A limit of the agent's.
    #[response(status = 429)]
    Slower(#[to_schema] Refusal),
}
