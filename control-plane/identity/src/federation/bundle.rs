//! A trust domain's bundle as one document (SPIFFE_Trust_Domain_and_Bundle.md, section 4).

use base64ct::{Base64, Encoding as _};
use rustls_pki_types::CertificateDer;
use serde_json::{Map, Value};
use spiffe::{JwtBundle, TrustDomain};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::SpiffeId;
use crate::svid::only_uri;

/// Keys of one bundle; more are refused.
const BUNDLE_KEYS_MAX: usize = 64;

/// A trust domain's keys: whom they may name is for who holds the bundle.
#[derive(Debug)]
pub(crate) struct Bundle {
    /// Those that sign JWT-SVIDs.
    pub(crate) jwt: JwtBundle,
    /// The authorities that sign X.509-SVIDs.
    pub(crate) authorities: Vec<CertificateDer<'static>>,
    /// How often it is to be fetched anew, in seconds (section 4.1.2).
    pub(crate) refresh_hint_s: Option<u64>,
    /// Which of several bundles is the newer one (section 4.1.1).
    pub(crate) sequence: Option<u64>,
}

/// Whether a document is a bundle of this trust domain that proves somebody; how many
/// keys it has.
///
/// # Errors
/// What is wrong with it.
pub fn check_bundle(trust_domain: &str, bytes: &[u8]) -> Result<usize, String> {
    match Bundle::parse(trust_domain, bytes)?.keys() {
        0 => Err("it has no key for jwt-svid or x509-svid".to_owned()),
        keys => Ok(keys),
    }
}

impl Bundle {
    /// Reads a bundle. Keys for other uses are left out; one for ours that can't be
    /// read spoils the whole, so that nobody believes that it was taken.
    ///
    /// # Errors
    /// What is wrong with it. That it has no keys is not.
    pub(crate) fn parse(trust_domain: &str, bytes: &[u8]) -> Result<Self, String> {
        let name = TrustDomain::new(trust_domain)
            .map_err(|_| "its trust domain has no usable name".to_owned())?;
        let limits = crate::oidc::document_limits();
        let document = capability::json::parse_object(bytes, &limits)
            .map_err(|_| "it is not one JSON object".to_owned())?;
        let Some(Value::Array(keys)) = document.get("keys") else {
            return Err("it has no list `keys`".to_owned());
        };
        if keys.len() > BUNDLE_KEYS_MAX {
            return Err(format!("it has more than {BUNDLE_KEYS_MAX} keys"));
        }
        let mut bundle = Self {
            jwt: JwtBundle::new(name),
            authorities: Vec::new(),
            refresh_hint_s: number(&document, "spiffe_refresh_hint")?,
            sequence: number(&document, "spiffe_sequence")?,
        };
        for key in keys {
            let Value::Object(jwk) = key else {
                return Err("one of its keys is no JSON object".to_owned());
            };
            match jwk.get("use").and_then(Value::as_str) {
                Some("jwt-svid") => bundle.add_jwt(jwk)?,
                Some("x509-svid") => bundle.authorities.push(authority(trust_domain, jwk)?),
                // Section 4.2.2: of no use to us.
                _ => {}
            }
        }
        Ok(bundle)
    }

    fn add_jwt(&mut self, jwk: &Map<String, Value>) -> Result<(), String> {
        let kid = jwk.get("kid").and_then(Value::as_str).unwrap_or_default();
        if kid.is_empty() {
            return Err("one of its keys for jwt-svid has no `kid`".to_owned());
        }
        if self.jwt.find_jwt_authority(kid).is_some() {
            return Err("two of its keys for jwt-svid have the same `kid`".to_owned());
        }
        let text = Value::Object(jwk.clone()).to_string();
        let added = self.jwt.add_jwk_authority_json(text.as_bytes());
        added.map_err(|error| error.to_string())
    }

    /// How many keys it has.
    pub(crate) fn keys(&self) -> usize {
        let jwt = self.jwt.jwt_authorities().count();
        jwt.saturating_add(self.authorities.len())
    }
}

/// Section 6.2 of X509-SVID.md: `x5c` has the one certificate.
fn authority(
    trust_domain: &str,
    jwk: &Map<String, Value>,
) -> Result<CertificateDer<'static>, String> {
    let wrong = |what: &str| format!("one of its keys for x509-svid {what}");
    let Some(Value::Array(chain)) = jwk.get("x5c") else {
        return Err(wrong("has no `x5c`"));
    };
    let [Value::String(text)] = chain.as_slice() else {
        return Err(wrong("has not exactly one certificate in `x5c`"));
    };
    let der = Base64::decode_vec(text).map_err(|_| wrong("has an `x5c` that is not base64"))?;
    let certificate = match X509Certificate::from_der(&der) {
        Ok(([], certificate)) => certificate,
        _ => return Err(wrong("has an `x5c` that is no certificate")),
    };
    if !certificate.is_ca() {
        return Err(wrong("is no authority's certificate"));
    }
    // An authority may go without a name, and may not have another domain's.
    if let Some(uri) = only_uri(&certificate) {
        let own = SpiffeId::parse(uri).is_ok_and(|id| id.trust_domain() == trust_domain);
        if !own {
            return Err(wrong("is an authority of another trust domain"));
        }
    }
    Ok(CertificateDer::from(der))
}

fn number(document: &Map<String, Value>, name: &str) -> Result<Option<u64>, String> {
    match document.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => {
            let number = value.as_u64();
            number
                .map(Some)
                .ok_or_else(|| format!("its `{name}` is no whole number"))
        }
    }
}
