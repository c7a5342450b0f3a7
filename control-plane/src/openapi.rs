//! The OpenAPI document of the JSON interface and of the OAuth endpoints. Each route
//! brings its own part, so that none is served that is not in it.

use utoipa::openapi::security::{ApiKey, ApiKeyValue, SecurityScheme};
use utoipa::openapi::{ComponentsBuilder, InfoBuilder, OpenApi, OpenApiBuilder, ServerBuilder};

/// A person's session, at a command line.
const SESSION: &str = "session";

/// The document, for clients of `issuer`.
#[must_use]
pub fn document(issuer: &str) -> OpenApi {
    let info = InfoBuilder::new()
        .title("Writ")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(
            "The control plane: one token for one action (OAuth 2.0), and what people decide about agents. docs/reference/http.md says what the parts are for.",
        ))
        .build();
    // The word and a space go before what a session was opened with.
    let session = ApiKeyValue::with_description(
        "Authorization",
        "`Session` and the `session` that POST /api/v1/session gave",
    );
    let components = ComponentsBuilder::new()
        .security_scheme(SESSION, SecurityScheme::ApiKey(ApiKey::Header(session)))
        .build();
    let mut all = OpenApiBuilder::new()
        .info(info)
        .servers(Some([ServerBuilder::new().url(issuer).build()]))
        .components(Some(components))
        .build();
    all.merge(crate::exchange::openapi());
    all.merge(crate::web::openapi());
    all
}
