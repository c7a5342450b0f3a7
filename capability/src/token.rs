//! The capability token: a JWS of type `at+jwt` (RFC 9068) that allows one
//! action, bound to one key (RFC 9449) and to nothing that travels with it.

use serde_json::{Map, Value, json};

use crate::action::Action;
use crate::jws::{self, Compact, Malformed};
use crate::key::{Algorithm, PublicKey, Verifier};
use crate::limits::Limits;
use crate::reason::Reason;
use crate::{b64, json, sha256, spiffe};

/// What a token says. Times are whole seconds since the Unix epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims {
    /// The control plane's issuer URL.
    pub iss: String,
    /// The one protected resource. Of several, which an issuer of ours never
    /// writes, each counts.
    pub aud: Vec<String>,
    /// The user, when the agent acts for one; else the agent.
    pub sub: String,
    /// The agent's SPIFFE ID: the current actor.
    pub client_id: String,
    /// The `act` chain, outermost (the agent itself) first; empty when the
    /// agent is the subject.
    pub chain: Vec<String>,
    /// When it was issued.
    pub iat_s: u64,
    /// Not valid before, when there is such a claim.
    pub nbf_s: Option<u64>,
    /// When it ends: at this second it has ended.
    pub exp_s: u64,
    /// Its identity, with `iss`; never its bytes, which have a twin.
    pub jti: String,
    /// The task that a chain of actions belongs to.
    pub txn: String,
    /// Thumbprint of the key that it is bound to.
    pub jkt: String,
    /// SHA-256 of the client certificate that it is bound to (RFC 8705).
    pub x5t_s256: Option<String>,
    /// The one action.
    pub action: Action,
}

/// What the gates compare claims with.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'a> {
    /// The one issuer.
    pub issuer: &'a str,
    /// The protected resource identifier.
    pub resource: &'a str,
    /// The time.
    pub now_ms: u64,
    /// How far `iat` and `nbf` may lie in the future. `exp` has no such grace.
    pub skew_s: u64,
    /// The most that `exp` may lie after `iat`.
    pub lifetime_max_s: u64,
}

/// A token that parses. It tells nothing but what is needed to verify it.
#[derive(Clone, Debug)]
pub struct UnverifiedToken {
    compact: Compact,
    claims: Claims,
    alg: Algorithm,
    kid: String,
    hash: [u8; 32],
}

impl UnverifiedToken {
    /// Parses a token and demands its form: size, three segments, `typ`, `alg`,
    /// `kid`, every required claim with its type, exactly one action.
    ///
    /// The agents, which are `client_id` and every `sub` of `act`, are SPIFFE IDs
    /// of workloads. `typ` is `at+jwt` or `application/at+jwt` in any case (RFC 9068, section 4).
    /// Header members that bring a key of their own are refused (RFC 8725,
    /// section 3.10), other unknown ones and unknown claims are ignored.
    ///
    /// # Errors
    /// `too_large`, `token_malformed` or `token_algorithm`.
    pub fn parse(bytes: &[u8], limits: &Limits) -> Result<Self, Reason> {
        if bytes.len() > limits.token {
            return Err(Reason::TooLarge);
        }
        let malformed = |_: Malformed| Reason::TokenMalformed;
        let compact = Compact::parse(bytes, limits).map_err(malformed)?;
        let typ = compact.header_text("typ").unwrap_or_default();
        let is_ours = ["at+jwt", "application/at+jwt"]
            .iter()
            .any(|t| t.eq_ignore_ascii_case(typ));
        let brings_key = ["jwk", "jku", "x5u", "x5c"]
            .iter()
            .any(|name| compact.header.contains_key(*name));
        if !is_ours || brings_key {
            return Err(Reason::TokenMalformed);
        }
        let alg = compact.header_text("alg").ok_or(Reason::TokenMalformed)?;
        let alg = Algorithm::parse(alg).ok_or(Reason::TokenAlgorithm)?;
        let kid = jws::identifier(&compact.header, "kid").ok_or(Reason::TokenMalformed)?;
        let claims = read_claims(&compact.payload).map_err(malformed)?;
        let hash = sha256(bytes);
        Ok(Self {
            compact,
            claims,
            alg,
            kid,
            hash,
        })
    }

    /// Checks the signature under the key that `kid` names.
    ///
    /// # Errors
    /// `token_key_unknown`, `token_algorithm` when the key is for another
    /// algorithm, `token_signature`, or `internal_error` when the check itself fails.
    pub fn verify<V: Verifier>(
        self,
        keys: &[(String, PublicKey)],
        verifier: &V,
    ) -> Result<Token, Reason> {
        let key = keys.iter().find(|(kid, _)| *kid == self.kid);
        let (_, key) = key.ok_or(Reason::TokenKeyUnknown)?;
        if key.algorithm() != self.alg {
            return Err(Reason::TokenAlgorithm);
        }
        let Compact {
            signed, signature, ..
        } = &self.compact;
        match verifier.verify(self.alg, key, signed, signature) {
            Ok(true) => Ok(self.into_token(true)),
            Ok(false) => Err(Reason::TokenSignature),
            Err(_) => Err(Reason::InternalError),
        }
    }

    /// Leaves the signature to the control plane, which matches SHA-256 of the
    /// exact bytes with what it issued (`token_check = "record"`). The result
    /// knows that nobody has checked it.
    #[must_use]
    pub fn leave_to_record(self) -> Token {
        self.into_token(false)
    }

    fn into_token(self, signature_checked: bool) -> Token {
        Token {
            claims: self.claims,
            hash: self.hash,
            signature_checked,
        }
    }
}

/// A token whose signature has been checked, or left to the record by config.
#[derive(Clone, Debug)]
pub struct Token {
    claims: Claims,
    hash: [u8; 32],
    signature_checked: bool,
}

impl Token {
    /// Compares `iss`, `aud`, `iat`, `nbf` and `exp`, in this order.
    ///
    /// # Errors
    /// `token_issuer`, `token_audience`, `token_not_yet_valid`,
    /// `token_expired` (at `exp` itself it is) or `token_lifetime`.
    pub fn check(&self, expected: &Expected<'_>) -> Result<(), Reason> {
        let claims = &self.claims;
        if claims.iss != expected.issuer {
            return Err(Reason::TokenIssuer);
        }
        if !claims.aud.iter().any(|aud| aud == expected.resource) {
            return Err(Reason::TokenAudience);
        }
        let latest_start_ms = expected
            .now_ms
            .saturating_add(expected.skew_s.saturating_mul(1000));
        let start_s = claims.iat_s.max(claims.nbf_s.unwrap_or(0));
        if start_s.saturating_mul(1000) > latest_start_ms {
            return Err(Reason::TokenNotYetValid);
        }
        if claims.exp_s.saturating_mul(1000) <= expected.now_ms {
            return Err(Reason::TokenExpired);
        }
        match claims.exp_s.checked_sub(claims.iat_s) {
            Some(lifetime_s) if (1..=expected.lifetime_max_s).contains(&lifetime_s) => Ok(()),
            _ => Err(Reason::TokenLifetime),
        }
    }

    /// What it says, when nothing else is wanted any more.
    #[must_use]
    pub fn into_claims(self) -> Claims {
        self.claims
    }

    /// What it says.
    #[must_use]
    pub fn claims(&self) -> &Claims {
        &self.claims
    }

    /// SHA-256 of its exact bytes: the `ath` of a proof, and the record's key.
    #[must_use]
    pub fn hash(&self) -> [u8; 32] {
        self.hash
    }

    /// Whether its signature was checked here.
    #[must_use]
    pub fn signature_checked(&self) -> bool {
        self.signature_checked
    }
}

impl Claims {
    /// The claims as they go into a token.
    #[must_use]
    pub fn to_value(&self) -> Value {
        let mut claims = json!({
            "iss": self.iss,
            "sub": self.sub,
            "client_id": self.client_id,
            "iat": self.iat_s,
            "exp": self.exp_s,
            "jti": self.jti,
            "txn": self.txn,
            "cnf": {"jkt": self.jkt},
            "authorization_details": [self.action.to_details()],
        });
        let mut set = |pointer: &str, name: &str, value: Value| {
            if let Some(Value::Object(object)) = claims.pointer_mut(pointer) {
                object.insert(name.to_owned(), value);
            }
        };
        match self.aud.as_slice() {
            [one] => set("", "aud", json!(one)),
            several => set("", "aud", json!(several)),
        }
        if let Some(nbf_s) = self.nbf_s {
            set("", "nbf", json!(nbf_s));
        }
        if let Some(x5t) = &self.x5t_s256 {
            set("/cnf", "x5t#S256", json!(x5t));
        }
        let act = self.chain.iter().rev().fold(None, |inner, sub| {
            Some(match inner {
                None => json!({"sub": sub}),
                Some(inner) => json!({"sub": sub, "act": Value::clone(&inner)}),
            })
        });
        if let Some(act) = act {
            set("", "act", act);
        }
        claims
    }
}

/// `header.claims` of a new token. The caller signs it and appends "." and the
/// base64url signature.
#[must_use]
pub fn signing_input(kid: &str, alg: Algorithm, claims: &Claims) -> String {
    let header = json!({"typ": "at+jwt", "alg": alg.as_str(), "kid": kid});
    jws::signing_input(&header, &claims.to_value())
}

fn read_claims(claims: &Map<String, Value>) -> Result<Claims, Malformed> {
    let text = |name| jws::text(claims, name).ok_or(Malformed);
    let identifier = |name| jws::identifier(claims, name).ok_or(Malformed);
    let seconds = |name| claims.get(name).and_then(json::integer).ok_or(Malformed);
    let client_id = agent(claims.get("client_id")).ok_or(Malformed)?;
    // An agent's SPIFFE ID may be longer than the identifiers of users.
    let sub = match claims.get("sub").and_then(Value::as_str) {
        Some(sub) if sub == client_id => client_id.clone(),
        _ => identifier("sub")?,
    };
    let chain = match claims.get("act") {
        None => Vec::new(),
        Some(act) => read_chain(act)?,
    };
    // The outermost actor is the caller; without one the subject is.
    if *chain.first().unwrap_or(&sub) != client_id {
        return Err(Malformed);
    }
    let (jkt, x5t_s256) = read_confirmation(claims.get("cnf").ok_or(Malformed)?)?;
    let details = claims.get("authorization_details").ok_or(Malformed)?;
    Ok(Claims {
        iss: text("iss")?,
        aud: read_audience(claims.get("aud").ok_or(Malformed)?)?,
        sub,
        client_id,
        chain,
        iat_s: seconds("iat")?,
        nbf_s: jws::optional(claims, "nbf", json::integer)?,
        exp_s: seconds("exp")?,
        jti: identifier("jti")?,
        txn: identifier("txn")?,
        jkt,
        x5t_s256,
        action: Action::from_authorization_details(details).map_err(|_| Malformed)?,
    })
}

/// A string, or an array of strings (RFC 7519, section 4.1.3).
fn read_audience(aud: &Value) -> Result<Vec<String>, Malformed> {
    let text = |v: &Value| v.as_str().map(str::to_owned).ok_or(Malformed);
    match aud {
        Value::Array(members) => members.iter().map(text).collect(),
        one => Ok(vec![text(one)?]),
    }
}

/// `act` within `act` (RFC 8693, section 4.1), outermost first. Ends because
/// JSON of a limited depth does.
fn read_chain(act: &Value) -> Result<Vec<String>, Malformed> {
    let mut chain = Vec::new();
    let mut next = Some(act);
    while let Some(actor) = next {
        let actor = actor.as_object().ok_or(Malformed)?;
        chain.push(agent(actor.get("sub")).ok_or(Malformed)?);
        next = actor.get("act");
    }
    Ok(chain)
}

/// An agent's name: the SPIFFE ID of a workload, and nothing else.
fn agent(name: Option<&Value>) -> Option<String> {
    let name = name?.as_str()?;
    spiffe::is_workload(name).then(|| name.to_owned())
}

/// `jkt` always, `x5t#S256` maybe, and no confirmation method that would go
/// unchecked (RFC 7800, section 3.1).
fn read_confirmation(cnf: &Value) -> Result<(String, Option<String>), Malformed> {
    let cnf = cnf.as_object().ok_or(Malformed)?;
    let digest = |v: &Value| {
        let text = v.as_str()?;
        b64::decode32(text).map(|_| text.to_owned())
    };
    if !cnf
        .keys()
        .all(|name| matches!(name.as_str(), "jkt" | "x5t#S256"))
    {
        return Err(Malformed);
    }
    let jkt = cnf.get("jkt").and_then(digest).ok_or(Malformed)?;
    Ok((jkt, jws::optional(cnf, "x5t#S256", digest)?))
}
