//! Authorization server metadata (RFC 8414).

use super::{GRANT_BEARER, GRANT_CLIENT, GRANT_EXCHANGE};
use crate::config::{Edge, Route, Server};
use serde_json::{Value, json};

/// The profile of grants that ID-JAGs are.
const ID_JAG_PROFILE: &str = "urn:ietf:params:oauth:grant-profile:id-jag";

/// What standard clients read before they do anything. They require
/// `authorization_endpoint` and `response_types_supported`. Where there is a
/// token endpoint for client certificates, its tokens are bound to them, and
/// clients find it by its alias (RFC 8705, sections 3.3 and 5).
///
/// `clients`: whether there are clients with keys of their own; `more`: grants that only some
/// configs have.
pub fn server(server: &Server, edge: &Edge, clients: bool, more: &[&str]) -> Value {
    let (issuer, mtls_url) = (&server.issuer, server.mtls_url.as_deref());
    // Longest prefix first, as they match: true where `content_digest` is taken.
    let mut routes: Vec<&Route> = edge.routes.iter().collect();
    routes.sort_by_key(|route| std::cmp::Reverse(route.path_prefix.len()));
    let digests = routes.iter().map(|route| {
        let site = edge.site_named(route.site.as_deref());
        let origin = site.map_or_else(String::new, |site| site.origin);
        let location = format!("{origin}{}", route.path_prefix);
        json!({ "location": location, "content_digest": route.body.is_some() })
    });
    let digests: Vec<Value> = digests.collect();
    let mut types = edge.details_types(None);
    types.push("delegation");
    let mut metadata = json!({
        "writ_content_digest_locations": digests,
        "issuer": issuer,
        "token_endpoint": format!("{issuer}/oauth2/token"),
        "authorization_endpoint": format!("{issuer}/oauth2/authorize"),
        "introspection_endpoint": format!("{issuer}/oauth2/introspect"),
        "revocation_endpoint": format!("{issuer}/oauth2/revoke"),
        "jwks_uri": format!("{issuer}/.well-known/jwks.json"),
        "response_types_supported": ["none"],
        "dpop_signing_alg_values_supported": ["ES256", "Ed25519", "EdDSA"],
        "authorization_details_types_supported": types,
        "writ_capabilities_endpoint": format!("{issuer}/api/v1/capabilities"),
    });
    // draft-ietf-oauth-spiffe-client-auth, section 4.
    let mut methods = vec!["none", "spiffe_jwt"];
    if mtls_url.is_some() {
        methods.extend(["tls_client_auth", "spiffe_x509"]);
    }
    if clients {
        methods.push("private_key_jwt");
    }
    if let Some(members) = metadata.as_object_mut() {
        let grants: Vec<&str> = [GRANT_EXCHANGE, GRANT_CLIENT]
            .iter()
            .chain(more)
            .copied()
            .collect();
        members.insert("grant_types_supported".into(), json!(grants));
        if more.contains(&GRANT_BEARER) {
            // draft-ietf-oauth-identity-assertion-authz-grant.
            let name = "authorization_grant_profiles_supported";
            members.insert(name.into(), json!([ID_JAG_PROFILE]));
        }
        // Who shows a subject token has not authenticated as a client.
        let proven = methods.iter().filter(|it| **it != "none");
        let proven: Vec<&str> = proven.copied().collect();
        for (endpoint, methods) in [
            ("token", &methods),
            ("introspection", &proven),
            ("revocation", &proven),
        ] {
            let name = format!("{endpoint}_endpoint_auth_methods_supported");
            members.insert(name, json!(methods));
            if clients {
                // Required where there are such clients (RFC 8414, section 2).
                let name = format!("{endpoint}_endpoint_auth_signing_alg_values_supported");
                members.insert(name, json!(identity::oidc::ALGORITHMS));
            }
        }
    }
    if let (Some(url), Some(members)) = (mtls_url, metadata.as_object_mut()) {
        members.insert(
            "tls_client_certificate_bound_access_tokens".into(),
            true.into(),
        );
        members.insert(
            "mtls_endpoint_aliases".into(),
            json!({
                "token_endpoint": format!("{url}/oauth2/token"),
                "introspection_endpoint": format!("{url}/oauth2/introspect"),
                "revocation_endpoint": format!("{url}/oauth2/revoke"),
            }),
        );
    }
    metadata
}
