//! Tokens of other issuers as evidence of who asks: OpenID Connect Core 1.0 (section 2),
//! and what is made like it, such as Kubernetes' projected service account tokens and the
//! tokens of CI jobs.
//!
//! An issuer proves which claims it made, and no more: whose they are is for who asks.

pub(crate) mod fetch;
mod keys;
mod token;

pub use fetch::{FetchError, KeysFrom, may_have_keys};
pub use keys::check_keys;
pub use token::{
    ALGORITHMS, ForeignError, MAX_FOREIGN_TOKEN_BYTES, SKEW_MS, Types, claimed_audience,
    claimed_issuer, is_foreign,
};

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;

use crate::Millis;
use fetch::Fetcher;
use keys::{Key, Keys};
use token::Unverified;

/// A key id that is not known is asked for again, and no sooner.
const COOLDOWN_MS: Millis = 10_000;
/// A token that names no key is tried with so many: an old one, and the one after it.
const UNNAMED_MAX: usize = 2;
/// Those who wait for an issuer's keys at a time.
const WAITING_MAX: usize = 64;
/// Documents and files together come within this, or there are none.
pub(crate) const FETCHED_WITHIN: Duration = Duration::from_secs(12);
/// Keys that could not be fetched again for so long count no more.
pub(crate) const STALE_MS: Millis = 24 * 3_600 * 1000;

/// An issuer that is believed.
#[derive(Clone, Debug)]
pub struct IssuerSettings {
    /// Its name: `iss` of its tokens, to the letter.
    pub issuer: String,
    /// The one `aud` of tokens that are meant for us.
    pub audience: String,
    /// Where its keys are.
    pub keys: KeysFrom,
    /// PEM of the only authorities of its TLS certificate; none: the system's.
    pub authorities_pem: Option<Vec<u8>>,
    /// A file with the bearer token that is shown when keys are fetched.
    pub token_file: Option<std::path::PathBuf>,
    /// The longest that a token of its may live, from `iat` to `exp`, in ms.
    pub lifetime_max_ms: Millis,
    /// What `typ` of its tokens may be beside `JWT`.
    pub types: &'static [&'static str],
    /// Whether its tokens may leave out which key signed them (`kid`), which libraries do
    /// that sign for a client with one key.
    pub unnamed: bool,
}

/// What a token has to be for, beside its issuer's own.
#[derive(Clone, Debug)]
pub struct Wanted<'w> {
    /// Its one `aud` is among these.
    pub audiences: Vec<&'w str>,
    /// What its `typ` may be.
    pub types: Types<'w>,
    /// The longest that it may live, from `iat` to `exp`, in ms.
    pub lifetime_max_ms: Millis,
}

impl IssuerSettings {
    fn wanted(&self) -> Wanted<'_> {
        Wanted {
            audiences: vec![&self.audience],
            types: Types::Plain(self.types),
            lifetime_max_ms: self.lifetime_max_ms,
        }
    }

    fn token_file(&self) -> Option<&std::path::Path> {
        self.token_file.as_deref()
    }
}

/// An issuer, and its keys as far as they are known.
#[derive(Clone)]
pub struct ForeignIssuer(Arc<Inner>);

struct Inner {
    settings: IssuerSettings,
    fetcher: Fetcher,
    known: RwLock<Known>,
    /// One fetch at a time.
    fetching: tokio::sync::Mutex<()>,
    /// Those who wait for one.
    waiting: Arc<Semaphore>,
}

#[derive(Default)]
struct Known {
    keys: Option<(Keys, Millis)>,
    tried_ms: Option<Millis>,
    /// Why the last fetch brought nothing.
    failed: Option<String>,
}

/// What an issuer says of a token's bearer. Made by [`ForeignIssuer::verify`] alone.
#[derive(Clone, Debug)]
pub struct ForeignEvidence {
    issuer: String,
    claims: Map<String, Value>,
    issued_ms: Millis,
    expires_ms: Millis,
    evidence_id: [u8; 32],
}

impl ForeignEvidence {
    /// The issuer's name.
    #[must_use]
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// A claim that is a text: by its name, or deeper by a JSON pointer (RFC 6901).
    #[must_use]
    pub fn text(&self, claim: &str) -> Option<&str> {
        let found = match claim.strip_prefix('/') {
            None => self.claims.get(claim),
            Some(pointer) => {
                let (first, rest) = match pointer.split_once('/') {
                    Some((first, rest)) => (first, Some(rest)),
                    None => (pointer, None),
                };
                let first = self
                    .claims
                    .get(&first.replace("~1", "/").replace("~0", "~"))?;
                match rest {
                    Some(rest) => first.pointer(&format!("/{rest}")),
                    None => Some(first),
                }
            }
        };
        found?.as_str()
    }

    /// A claim, whatever it is.
    #[must_use]
    pub fn claim(&self, name: &str) -> Option<&Value> {
        self.claims.get(name)
    }

    /// All of them.
    #[must_use]
    pub fn claims(&self) -> &Map<String, Value> {
        &self.claims
    }

    /// The one audience that it is for.
    #[must_use]
    pub fn audience(&self) -> &str {
        match self.claims.get("aud") {
            Some(Value::Array(list)) => list.first().and_then(Value::as_str),
            one => one.and_then(Value::as_str),
        }
        .unwrap_or_default()
    }

    /// When it was made, as it says, in milliseconds since the Unix epoch.
    #[must_use]
    pub fn issued_ms(&self) -> Millis {
        self.issued_ms
    }

    /// Until when it may be presented, in milliseconds since the Unix epoch.
    #[must_use]
    pub fn expires_ms(&self) -> Millis {
        self.expires_ms
    }

    /// SHA-256 over `HEADER.PAYLOAD`; never over the signature, of which anybody can
    /// make a second one that is valid where it is ECDSA.
    #[must_use]
    pub fn evidence_id(&self) -> [u8; 32] {
        self.evidence_id
    }
}

impl ForeignIssuer {
    /// An issuer whose keys nobody has fetched yet.
    ///
    /// # Errors
    /// When its authorities are no certificates.
    pub fn new(settings: IssuerSettings) -> Result<Self, FetchError> {
        Ok(Self(Arc::new(Inner {
            fetcher: Fetcher::new(settings.authorities_pem.as_deref())?,
            settings,
            known: RwLock::default(),
            fetching: tokio::sync::Mutex::default(),
            waiting: Arc::new(Semaphore::new(WAITING_MAX)),
        })))
    }

    /// Its name.
    #[must_use]
    pub fn issuer(&self) -> &str {
        &self.0.settings.issuer
    }

    /// Verifies a token that this issuer made for us and for nobody else.
    ///
    /// # Errors
    /// When it proves nothing, and why.
    pub async fn verify(&self, token: &str, now: Millis) -> Result<ForeignEvidence, ForeignError> {
        self.verify_as(token, &self.0.settings.wanted(), now).await
    }

    /// As [`ForeignIssuer::verify`], of a token that is for something else than the settings say.
    ///
    /// # Errors
    /// When it proves nothing, and why.
    pub async fn verify_as(
        &self,
        token: &str,
        wanted: &Wanted<'_>,
        now: Millis,
    ) -> Result<ForeignEvidence, ForeignError> {
        let unverified = Unverified::parse(token, wanted.types)?;
        let kid = unverified.kid();
        if kid.is_none() && !self.0.settings.unnamed {
            return Err(ForeignError::Malformed("it names no key (`kid`)"));
        }
        // What costs nothing comes before keys are fetched and signatures checked.
        let (issued_ms, expires_ms) = unverified.check_claims(self.issuer(), wanted, now)?;
        let keys = self.keys(kid, now).await?;
        let fitting = || keys.iter().filter(|key| key.fits(unverified.algorithm()));
        if kid.is_none() && fitting().count() > UNNAMED_MAX {
            let what = "it names no key (`kid`), and its issuer has several";
            return Err(ForeignError::Malformed(what));
        }
        if !fitting().any(|key| unverified.is_signed_by(key)) {
            return Err(ForeignError::Signature);
        }
        Ok(ForeignEvidence {
            issuer: self.0.settings.issuer.clone(),
            issued_ms,
            expires_ms,
            evidence_id: Sha256::digest(unverified.signed()).into(),
            claims: unverified.into_claims(),
        })
    }

    /// Fetches the keys anew, so that those which are withdrawn count no more; the
    /// number of those that can be used.
    ///
    /// # Errors
    /// When there are none to be had; those that are known stay, for a day.
    pub async fn refresh(&self, now: Millis) -> Result<usize, FetchError> {
        let _one = self.0.fetching.lock().await;
        self.fetch(now).await
    }

    /// The keys of this id, or without one all, fetched when there are none known.
    async fn keys(&self, kid: Option<&str>, now: Millis) -> Result<Vec<Key>, ForeignError> {
        if let Some(found) = self.found(kid, now) {
            return Ok(found);
        }
        if self.may_ask(now) {
            // Anybody can name a key that is not known: few wait for the answer.
            let Ok(waits) = self.0.waiting.clone().try_acquire_owned() else {
                return Err(ForeignError::Unavailable(
                    "too many wait for them".to_owned(),
                ));
            };
            // A task of its own: who leaves does not end it, and so start another. Its
            // place is taken until it ends, whoever has left.
            let own = self.clone();
            let fetched = tokio::spawn(async move {
                let _waits = waits;
                let _one = own.0.fetching.lock().await;
                // Somebody else may have fetched them meanwhile.
                if own.may_ask(now) {
                    // That it failed is remembered, and looked at below.
                    drop(own.fetch(now).await);
                }
            });
            drop(fetched.await);
        }
        if let Some(found) = self.found(kid, now) {
            return Ok(found);
        }
        let known = self.read();
        let why = known.failed.clone();
        match (&known.keys, why) {
            (Some(_), None) => Err(ForeignError::KeyUnknown),
            (_, why) => {
                Err(ForeignError::Unavailable(why.unwrap_or_else(|| {
                    "they have not been fetched yet".to_owned()
                })))
            }
        }
    }

    /// Whether the last time that keys were asked for is long enough ago.
    fn may_ask(&self, now: Millis) -> bool {
        let tried = self.read().tried_ms;
        tried.is_none_or(|tried| now.abs_diff(tried) >= COOLDOWN_MS)
    }

    fn found(&self, kid: Option<&str>, now: Millis) -> Option<Vec<Key>> {
        let known = self.read();
        let (keys, fetched_ms) = known.keys.as_ref()?;
        let fresh = now.saturating_sub(*fetched_ms) < STALE_MS;
        fresh.then(|| keys.of(kid)).flatten()
    }

    async fn fetch(&self, now: Millis) -> Result<usize, FetchError> {
        let asked = self.0.fetcher.keys(&self.0.settings);
        let fetched = match tokio::time::timeout(FETCHED_WITHIN, asked).await {
            Ok(fetched) => fetched,
            Err(_) => Err(FetchError::Late),
        };
        let mut known = self.0.known.write().unwrap_or_else(PoisonError::into_inner);
        known.tried_ms = Some(now);
        match fetched {
            Ok(keys) => {
                let count = keys.count();
                known.keys = Some((keys, now));
                known.failed = None;
                Ok(count)
            }
            Err(error) => {
                known.failed = Some(error.to_string());
                Err(error)
            }
        }
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Known> {
        self.0.known.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An issuer's documents have more members than a token may have.
pub(crate) fn document_limits() -> capability::Limits {
    capability::Limits {
        json_members: capability::Limits::CEILING.json_members,
        ..capability::Limits::default()
    }
}
