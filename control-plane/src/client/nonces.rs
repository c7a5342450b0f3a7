//! The nonces that servers ask for in proofs (RFC 9449, section 9).

use http::header::WWW_AUTHENTICATE;
use http::{HeaderMap, StatusCode};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Origins whose nonces are remembered.
const ORIGINS_MAX: usize = 64;
/// A nonce that is longer is not taken; bytes.
const NONCE_MAX: usize = 512;
const DPOP_NONCE: &str = "dpop-nonce";

/// The last one that each origin has told.
#[derive(Default)]
pub(super) struct Nonces(Mutex<BTreeMap<String, String>>);

impl Nonces {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The one for this URL, if there is one.
    pub(super) fn of(&self, url: &str) -> Option<String> {
        self.lock().get(&origin(url)?).cloned()
    }

    /// Remembers what the origin of this URL has told.
    pub(super) fn keep(&self, url: &str, nonce: &str) {
        let Some(origin) = origin(url) else { return };
        let mut known = self.lock();
        if known.len() >= ORIGINS_MAX && !known.contains_key(&origin) {
            known.clear();
        }
        known.insert(origin, nonce.to_owned());
    }
}

fn origin(url: &str) -> Option<String> {
    let url = reqwest::Url::parse(url).ok()?;
    Some(url.origin().ascii_serialization())
}

/// The nonce that an answer asks for. Such a request went no further, and nothing was
/// spent by it: it may be sent again.
pub(crate) fn asked(status: StatusCode, headers: &HeaderMap) -> Option<String> {
    let challenge = headers.get(WWW_AUTHENTICATE)?.to_str().ok()?;
    let asks = status == StatusCode::UNAUTHORIZED && challenge.contains("\"use_dpop_nonce\"");
    let nonce = headers.get(DPOP_NONCE)?.to_str().ok()?;
    let fits = asks && !nonce.is_empty() && nonce.len() <= NONCE_MAX;
    fits.then(|| nonce.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn only_a_challenge_for_a_nonce_is_one() {
        let asks = "DPoP error=\"use_dpop_nonce\", algs=\"ES256\"";
        for (status, challenge, nonce, wanted) in [
            (401, Some(asks), Some("n1"), Some("n1")),
            (400, Some(asks), Some("n1"), None),
            (403, Some(asks), Some("n1"), None),
            (200, Some(asks), Some("n1"), None),
            (401, Some("DPoP error=\"invalid_token\""), Some("n1"), None),
            (401, None, Some("n1"), None),
            (401, Some(asks), None, None),
            (401, Some(asks), Some(""), None),
        ] {
            let mut headers = HeaderMap::new();
            let fields = [("www-authenticate", challenge), (DPOP_NONCE, nonce)];
            for (name, value) in fields {
                if let Some(value) = value {
                    headers.insert(name, HeaderValue::from_static(value));
                }
            }
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(
                asked(status, &headers).as_deref(),
                wanted,
                "{status} {headers:?}"
            );
        }
    }

    #[test]
    fn each_origin_has_its_own_and_they_do_not_heap_up() {
        let nonces = Nonces::default();
        nonces.keep("http://127.0.0.1:1/a?b", "n1");
        assert_eq!(nonces.of("http://127.0.0.1:1/c").as_deref(), Some("n1"));
        for other in ["http://127.0.0.1:2/a", "https://127.0.0.1:1/a", "nowhere"] {
            assert_eq!(nonces.of(other), None, "{other}");
        }
        for port in 1..1_000 {
            nonces.keep(&format!("http://127.0.0.1:{port}/"), "n2");
            assert!(nonces.lock().len() <= ORIGINS_MAX);
        }
        assert_eq!(nonces.of("http://127.0.0.1:999/").as_deref(), Some("n2"));
    }
}
