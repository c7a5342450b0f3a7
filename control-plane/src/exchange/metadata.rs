//! Authorization server metadata (RFC 8414).

use super::GRANT_EXCHANGE;
use serde_json::{Value, json};

/// What standard clients read before they do anything. They require
/// `authorization_endpoint` and `response_types_supported`.
pub fn server(issuer: &str) -> Value {
    json!({
        "issuer": issuer,
        "token_endpoint": format!("{issuer}/oauth2/token"),
        "authorization_endpoint": format!("{issuer}/oauth2/authorize"),
        "jwks_uri": format!("{issuer}/.well-known/jwks.json"),
        "response_types_supported": ["none"],
        "grant_types_supported": [GRANT_EXCHANGE],
        "token_endpoint_auth_methods_supported": ["none"],
        "dpop_signing_alg_values_supported": ["ES256", "Ed25519", "EdDSA"],
        "authorization_details_types_supported": ["http_request"],
    })
}
