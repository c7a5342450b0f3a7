//! The gates at the edge: one list, in one order, from bytes to [`Checked`].

use crate::action::Body;
use crate::key::{PublicKey, Verifier};
use crate::limits::Limits;
use crate::proof::UnverifiedProof;
use crate::reason::Reason;
use crate::rpc::Call;
use crate::token::{self, Claims, UnverifiedToken};
use crate::url::{Origin, Target};
use crate::x509::Leaf;
use crate::{b64, same_bytes};
use serde::{Deserialize, Serialize};

mod headers;

use headers::{Count, credentials, go_with, only};

/// Who checks a token's signature.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenCheck {
    /// The edge does, and the control plane matches its record as well.
    #[default]
    Edge,
    /// The control plane alone does, by matching SHA-256 of the exact bytes
    /// with what it issued.
    Record,
}

/// What the edge is told by configuration. [`EdgeConfig::new`] has the defaults.
#[derive(Clone, Debug)]
pub struct EdgeConfig {
    /// The one issuer whose tokens count.
    pub issuer: String,
    /// The protected resource identifier that `aud` has to name.
    pub resource: String,
    /// Scheme and authority that clients use. Never taken from a header.
    pub origin: Origin,
    /// Further origins on the same listener, each a protected resource of its
    /// own. Which one a request is for, its `:authority` alone says.
    pub sites: Vec<Site>,
    /// The issuer's keys by `kid`. Of two with one `kid` the first counts.
    pub keys: Vec<(String, PublicKey)>,
    /// Who checks a token's signature.
    pub token_check: TokenCheck,
    /// Sizes and depths.
    pub limits: Limits,
    /// How far a proof's `iat` may lie from now; 300 s.
    pub proof_window_s: u64,
    /// How far a token's `iat` and `nbf` may lie in the future; 10 s.
    pub token_skew_s: u64,
    /// The longest that a token may live; 300 s.
    pub token_lifetime_max_s: u64,
    /// Demand, of every request, a client certificate whose one URI SAN is the
    /// agent's SPIFFE ID; false.
    pub require_peer: bool,
}

/// One of several origins: what clients call it, and the `aud` of its tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// The protected resource identifier that `aud` has to name (RFC 9728).
    pub resource: String,
    /// Scheme and authority that clients use.
    pub origin: Origin,
}

impl EdgeConfig {
    /// The origin and the resource that a request is for, by the one
    /// `:authority` that it has. One that names no origin is judged as the
    /// first origin's, whose gates refuse it.
    fn site(&self, headers: &[(Vec<u8>, Vec<u8>)]) -> (&Origin, &str) {
        let named = |authority: &[u8]| {
            let mut sites = self.sites.iter();
            sites.find(|site| site.origin.is_authority(authority))
        };
        let default = (&self.origin, self.resource.as_str());
        // Most have one origin, which needs no look-up here.
        if self.sites.is_empty() {
            return default;
        }
        match only(headers, ":authority").one() {
            Some(authority) if !self.origin.is_authority(authority) => {
                named(authority).map_or(default, |site| (&site.origin, site.resource.as_str()))
            }
            _ => default,
        }
    }

    /// The authority, normalised, of the origin that a request is for. It is no
    /// verdict: that of a request which is for none is the first origin's.
    #[must_use]
    pub fn authority_of(&self, headers: &[(Vec<u8>, Vec<u8>)]) -> &str {
        self.site(headers).0.authority()
    }

    /// The defaults, with no keys yet.
    #[must_use]
    pub fn new(issuer: impl Into<String>, resource: impl Into<String>, origin: Origin) -> Self {
        Self {
            issuer: issuer.into(),
            resource: resource.into(),
            origin,
            sites: Vec::new(),
            keys: Vec::new(),
            token_check: TokenCheck::Edge,
            limits: Limits::default(),
            proof_window_s: 300,
            token_skew_s: 10,
            token_lifetime_max_s: 300,
            require_peer: false,
        }
    }
}

/// The request as the host shows it.
#[derive(Clone, Copy, Debug)]
pub struct RequestView<'a> {
    /// The whole header map, pseudo headers included, names in lower case.
    pub headers: &'a [(Vec<u8>, Vec<u8>)],
    /// The connection's client certificate, if there is one: from TLS and never from a header.
    pub peer: Option<&'a Leaf>,
    /// The body, where it is known.
    pub body: Body<'a>,
    /// The nonces of which the proof has to have one, where the route asks for that;
    /// none of an empty list is good.
    pub nonces: Option<&'a [String]>,
}

/// A request that passed every gate but the control plane's. Made here alone.
#[derive(Clone, Debug)]
pub struct Checked {
    token: String,
    token_hash: [u8; 32],
    proof: String,
    proof_jti: String,
    claims: Claims,
    method: &'static str,
    authority: String,
    path: String,
    awaits_body: bool,
    message: Option<Call>,
}

impl Checked {
    /// The body that was awaited came, or it is known by now that it is not
    /// read. One that the action does not cover is refused.
    ///
    /// # Errors
    /// [`Reason::BodyMismatch`], or [`Reason::ActionMismatch`] for a body that is another
    /// message than the action's; nothing has been spent.
    pub fn with_body(mut self, body: Body<'_>) -> Result<Self, Reason> {
        self.message = self.claims.action.covers_body(body)?;
        self.awaits_body = body == Body::Awaited;
        Ok(self)
    }

    /// True while its body is still to come.
    #[must_use]
    pub fn awaits_body(&self) -> bool {
        self.awaits_body
    }

    /// The message that its body is, where the action is one and the body was read.
    #[must_use]
    pub fn message(&self) -> Option<&Call> {
        self.message.as_ref()
    }

    /// The token's exact text.
    #[must_use]
    pub fn token(&self) -> &str {
        &self.token
    }

    /// SHA-256 of the token's exact bytes.
    #[must_use]
    pub fn token_hash(&self) -> [u8; 32] {
        self.token_hash
    }

    /// The proof's exact text.
    #[must_use]
    pub fn proof(&self) -> &str {
        &self.proof
    }

    /// The proof's `jti`.
    #[must_use]
    pub fn proof_jti(&self) -> &str {
        &self.proof_jti
    }

    /// The token's `jti`.
    #[must_use]
    pub fn jti(&self) -> &str {
        &self.claims.jti
    }

    /// The agent's SPIFFE ID, from `client_id`.
    #[must_use]
    pub fn agent(&self) -> &str {
        &self.claims.client_id
    }

    /// The subject whom the agent acts for, if it is not the agent itself.
    #[must_use]
    pub fn user(&self) -> Option<&str> {
        Some(self.claims.sub.as_str()).filter(|sub| *sub != self.claims.client_id)
    }

    /// All that the token says.
    #[must_use]
    pub fn claims(&self) -> &Claims {
        &self.claims
    }

    /// All that the token says, when nothing else is wanted any more.
    #[must_use]
    pub fn into_claims(self) -> Claims {
        self.claims
    }

    /// The request's method.
    #[must_use]
    pub fn method(&self) -> &str {
        self.method
    }

    /// The authority that clients use, normalised.
    #[must_use]
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// Path and query as the request has them, which is what is forwarded. The path is in normal
    /// form; the query may spell the action's in another way that [`crate::url`] holds the same.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }
}

/// Whom a refusal is about, when both signatures were verified here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authenticated {
    /// The token's `jti`.
    pub jti: String,
    /// The agent's SPIFFE ID.
    pub agent: String,
    /// SHA-256 of the token's exact bytes.
    pub token_hash: [u8; 32],
}

/// A gate said no. Nothing has been spent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("refused: {reason}")]
pub struct Refusal {
    /// Why.
    pub reason: Reason,
    /// Set when both signatures were verified; otherwise it is only counted.
    pub authenticated: Option<Authenticated>,
}

impl From<Reason> for Refusal {
    fn from(reason: Reason) -> Self {
        Self {
            reason,
            authenticated: None,
        }
    }
}

/// Runs the gates: cheap ones before expensive ones, and nothing is spent.
/// Revocations and spending come after, at the control plane.
///
/// # Errors
/// The first gate that says no.
pub fn check<V: Verifier>(
    request: &RequestView<'_>,
    config: &EdgeConfig,
    now_ms: u64,
    verifier: &V,
) -> Result<Checked, Refusal> {
    let limits = &config.limits;
    // Early data may be a replay, and whoever took it in says so (RFC 8470, section
    // 5.1); a value other than 1 and a second one mean the same.
    if !matches!(only(request.headers, "early-data"), Count::None) {
        return Err(Reason::TooEarly.into());
    }
    // From the whole header map: one `authorization`, one `dpop`.
    let credentials = credentials(request.headers)?;
    // Sizes.
    header_block_fits(request.headers, limits)?;
    // The token parses; `typ`, `alg`, `kid`.
    let token = UnverifiedToken::parse(credentials.token.as_bytes(), limits)?;
    // Its signature, unless the record is asked.
    let token = match config.token_check {
        TokenCheck::Edge => token.verify(&config.keys, verifier)?,
        TokenCheck::Record => token.leave_to_record(),
    };
    // `iss`, `aud`, `iat`, `nbf`, `exp`.
    let (origin, resource) = config.site(request.headers);
    token.check(&token::Expected {
        issuer: &config.issuer,
        resource,
        now_ms,
        skew_s: config.token_skew_s,
        lifetime_max_s: config.token_lifetime_max_s,
    })?;
    // The proof parses; `typ`, `alg`, a public `jwk`.
    let proof = UnverifiedProof::parse(credentials.proof.as_bytes(), limits)?;
    // Its thumbprint equals `cnf.jkt`.
    proof.bound_to(&token.claims().jkt)?;
    // `htm`, `htu`, against the request as it will be forwarded.
    let line = RequestLine::read(request.headers, origin)?;
    proof.made_for(line.method, &line.target)?;
    // The `iat` window, and the nonce where the route asks for one.
    proof.fresh(now_ms, config.proof_window_s)?;
    if let Some(nonces) = request.nonces {
        proof.has_one_of(nonces)?;
    }
    // `ath`.
    proof.covers_token(&token.hash())?;
    // The proof's signature.
    let proof = proof.verify(verifier)?;
    let authenticated = token.signature_checked().then(|| Authenticated {
        jti: token.claims().jti.clone(),
        agent: token.claims().client_id.clone(),
        token_hash: token.hash(),
    });
    let refused = |reason| Refusal {
        reason,
        authenticated: authenticated.clone(),
    };
    // The peer's certificate, when the token or the config asks.
    peer_fits(request.peer, token.claims(), config, now_ms).map_err(refused)?;
    // The action covers the request.
    let action = &token.claims().action;
    if !action.covers(line.method, &line.target) || !go_with(request.headers, action) {
        return Err(refused(Reason::ActionMismatch));
    }
    let message = action.covers_body(request.body).map_err(refused)?;
    Ok(Checked {
        method: action.method(),
        token_hash: token.hash(),
        claims: token.into_claims(),
        token: credentials.token.to_owned(),
        proof: credentials.proof.to_owned(),
        proof_jti: proof.jti().to_owned(),
        authority: origin.authority().to_owned(),
        path: line.path.to_owned(),
        awaits_body: request.body == Body::Awaited,
        message,
    })
}

fn header_block_fits(headers: &[(Vec<u8>, Vec<u8>)], limits: &Limits) -> Result<(), Reason> {
    let size = headers
        .iter()
        .flat_map(|(name, value)| [name.len(), value.len()])
        .fold(0_usize, usize::saturating_add);
    if size > limits.header_block {
        return Err(Reason::TooLarge);
    }
    Ok(())
}

struct RequestLine<'a> {
    method: &'static str,
    target: Target,
    path: &'a str,
}

impl<'a> RequestLine<'a> {
    /// Method and URL. A request that no proof can be made for gets the
    /// proof's reason: a method that no action names, an authority that is not
    /// the configured one, a path that is not in normal form.
    fn read(headers: &'a [(Vec<u8>, Vec<u8>)], origin: &Origin) -> Result<Self, Reason> {
        let method = only(headers, ":method")
            .one()
            .and_then(|method| std::str::from_utf8(method).ok())
            .and_then(crate::action::known_method)
            .ok_or(Reason::ProofMethod)?;
        let authority = only(headers, ":authority").one();
        let host_agrees = match only(headers, "host") {
            Count::None => true,
            Count::One(host) => origin.is_authority(host),
            Count::Many => false,
        };
        if !authority.is_some_and(|a| origin.is_authority(a)) || !host_agrees {
            return Err(Reason::ProofTarget);
        }
        let path = only(headers, ":path").one().ok_or(Reason::ProofTarget)?;
        let path = std::str::from_utf8(path).map_err(|_| Reason::ProofTarget)?;
        let target = Target::request(origin, path.as_bytes()).map_err(|_| Reason::ProofTarget)?;
        Ok(Self {
            method,
            target,
            path,
        })
    }
}

/// The certificate that the token is bound to (RFC 8705, section 3), and the
/// agent's own X.509-SVID where the config demands one. A connection may be
/// older than its certificate's end.
fn peer_fits(
    peer: Option<&Leaf>,
    claims: &Claims,
    config: &EdgeConfig,
    now_ms: u64,
) -> Result<(), Reason> {
    if claims.x5t_s256.is_none() && !config.require_peer {
        return Ok(());
    }
    let peer = peer.ok_or(Reason::CertificateMissing)?;
    if !peer.is_valid_at(now_ms) {
        return Err(Reason::CertificateMismatch);
    }
    if let Some(x5t) = &claims.x5t_s256 {
        let same = b64::decode32(x5t).is_some_and(|x5t| same_bytes(&x5t, &peer.sha256));
        if !same {
            return Err(Reason::CertificateMismatch);
        }
    }
    if config.require_peer && peer.workload() != Some(&claims.client_id) {
        return Err(Reason::CertificateMismatch);
    }
    Ok(())
}
