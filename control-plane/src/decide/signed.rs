//! What an upstream is shown: a statement by the control plane that it allowed
//! this one request, signed with a key that signs nothing else. So an upstream can
//! tell a request that came round the proxy, or that was changed on the way.

use super::facts::{Facts, digest_of};
use crate::config::Route;
use crate::keys::{KeyError, es256_file, public_jwk};
use crate::state::{Core, random_id};
use base64ct::{Base64UrlUnpadded, Encoding};
use jwt_simple::claims::Audiences;
use jwt_simple::prelude::{
    ECDSAP256KeyPairLike, ES256KeyPair, HeaderOptions, JWTClaims, UnixTimeStamp,
};
use ledger::model::TokenRecord;
use serde::Serialize;
use std::path::Path;

/// The `typ` of a signed decision, which no other artefact of ours has.
pub const TYPE: &str = "writ-decision+jwt";
/// How long a decision may be shown to its upstream; seconds.
pub const LIFETIME_S: u64 = 30;

/// The claims that RFC 7519 does not name. Upstreams compare `method`, `authority`
/// and `path` with the request as it reached them.
#[derive(Serialize)]
struct DecisionClaims<'a> {
    /// The agent's SPIFFE ID (RFC 9068).
    client_id: &'a str,
    /// The token that was spent.
    token_id: &'a str,
    /// The proxy's own request id.
    request_id: &'a str,
    method: &'a str,
    authority: &'a str,
    path: &'a str,
    /// The action's digest, base64url: what an approval of it covers.
    action: String,
}

/// The ES256 key that signs decisions, and nothing else. Filters never get it: to
/// them it is no key of a capability's.
pub struct DecisionKey {
    pair: ES256KeyPair,
    kid: String,
}

impl DecisionKey {
    /// Opens `dir/decision-es256.pem`, or makes it; `dir` has to be there.
    ///
    /// # Errors
    /// When it can't be read or made, or others may read it.
    pub fn open(dir: &Path) -> Result<Self, KeyError> {
        let pair = es256_file(&dir.join("decision-es256.pem"))?;
        let kid = format!("decision-{}", pair.jwk_thumbprint());
        Ok(Self {
            pair: pair.with_key_id(&kid),
            kid,
        })
    }

    /// The public half as a JWK.
    #[must_use]
    pub fn public_jwk(&self) -> serde_json::Value {
        public_jwk(&self.pair, &self.kid)
    }

    /// States that this request was allowed by spending this token.
    ///
    /// # Errors
    /// [`KeyError::Sign`], which is ours.
    pub(super) fn sign(
        &self,
        core: &Core,
        route: &Route,
        token: &TokenRecord,
        facts: &Facts,
    ) -> Result<String, KeyError> {
        let now_s = core.now() / 1000;
        let question = &facts.question;
        let claims = JWTClaims {
            issued_at: Some(UnixTimeStamp::from_secs(now_s)),
            expires_at: Some(UnixTimeStamp::from_secs(now_s.saturating_add(LIFETIME_S))),
            invalid_before: None,
            issuer: Some(core.config.server.issuer.clone()),
            subject: Some(subject(token)),
            audiences: Some(Audiences::AsString(route.audience())),
            jwt_id: Some(random_id::<16>("")),
            nonce: None,
            custom: DecisionClaims {
                client_id: &token.agent,
                token_id: &token.jti,
                request_id: &question.request_id,
                method: &question.method,
                authority: &question.authority,
                path: &question.path,
                action: Base64UrlUnpadded::encode_string(&digest_of(token, facts)),
            },
        };
        let options = HeaderOptions {
            signature_type: Some(TYPE.into()),
            ..HeaderOptions::default()
        };
        self.pair
            .sign_with_options(claims, &options)
            .map_err(|_| KeyError::Sign)
    }
}

/// As the token has it: the user where the agent acts for one, else the agent.
fn subject(token: &TokenRecord) -> String {
    match (&token.user, token.chain.last()) {
        (Some(user), _) => user.subject.clone(),
        (None, Some(first)) => first.clone(),
        (None, None) => token.agent.clone(),
    }
}
