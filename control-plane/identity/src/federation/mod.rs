//! SVIDs of our own trust domain and of those that are believed beside it
//! (SPIFFE_Federation.md).
//!
//! A trust domain's keys prove names of its own and of nobody else's: the name that an
//! SVID has chooses the keys that it has to be signed with, and never the other way round.

mod bundle;
mod client;

pub use bundle::check_bundle;
pub(crate) use client::ByTrustDomain;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rustls_pki_types::CertificateDer;
use spiffe::{BundleSource, JwtBundle, TrustDomain};

use crate::mtls::Peer;
use crate::oidc::fetch::{FetchError, Fetcher, file};
use crate::oidc::{FETCHED_WITHIN, SKEW_MS, STALE_MS};
use crate::{EvidenceError, JwtEvidence, Millis, Source, SourceError, SpiffeId, evidence};
use bundle::Bundle;

/// How often a bundle is fetched where it says nothing of that, and at least.
const REFRESH_S: u64 = 300;
/// How often it is fetched at most, whatever it says.
const REFRESH_LEAST_S: u64 = 10;
/// How often a file is looked at.
const FILE_AGAIN_S: u64 = 5;
/// How long a JWT-SVID of our own trust domain may last, in milliseconds.
const OWN_JWT_LIFETIME_MAX_MS: Millis = 24 * 60 * 60 * 1000;
/// When a fetch that failed is tried again.
const RETRY_S: u64 = 15;

/// Where a trust domain's bundle comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BundleFrom {
    /// The Workload API sends it with our own.
    WorkloadApi,
    /// A bundle endpoint, by its URL (profile `https_web`).
    Url(String),
    /// A file with the same document.
    File(PathBuf),
}

/// Another trust domain that is believed.
#[derive(Clone, Debug)]
pub struct DomainSettings {
    /// Its bare name, such as `partner.example`.
    pub trust_domain: String,
    /// Where its bundle comes from.
    pub bundle: BundleFrom,
    /// PEM of the only authorities of the endpoint's certificate; none: the system's.
    pub authorities_pem: Option<Vec<u8>>,
    /// How long its SVIDs may still last when they are shown, in milliseconds: as long as
    /// they do, they are kept in mind.
    pub lifetime_max_ms: Millis,
}

/// Our own trust domain and those beside it, with their keys as far as they are known.
#[derive(Clone)]
pub struct Federation(Arc<Inner>);

struct Inner {
    source: Source,
    own: SpiffeId,
    domains: BTreeMap<String, Domain>,
}

struct Domain {
    settings: DomainSettings,
    fetcher: Fetcher,
    known: RwLock<Option<Known>>,
}

#[derive(Clone)]
struct Known {
    bundle: Arc<Bundle>,
    /// When it was fetched last.
    at_ms: Millis,
}

/// No keys of a trust domain can be had just now.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct NoKeys(String);

/// What a refresh brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refreshed {
    /// Keys that the trust domain has now.
    pub keys: usize,
    /// When the next one is due.
    pub again: Duration,
}

impl Federation {
    /// Our own trust domain by `source`, and these beside it; nothing is fetched yet.
    ///
    /// # Errors
    /// When our own identity is gone, or authorities are no certificates.
    pub fn new(source: Source, domains: Vec<DomainSettings>) -> Result<Self, NewError> {
        let own = source.own_id()?;
        let mut all = BTreeMap::new();
        for settings in domains {
            let fetcher = Fetcher::new(settings.authorities_pem.as_deref())?;
            let domain = Domain {
                fetcher,
                known: RwLock::default(),
                settings,
            };
            all.insert(domain.settings.trust_domain.clone(), domain);
        }
        // Whatever a file may say, nobody speaks for our own names but we.
        all.remove(own.trust_domain());
        Ok(Self(Arc::new(Inner {
            source,
            own,
            domains: all,
        })))
    }

    /// The other trust domains that have to be refreshed, by their names.
    pub fn fetched(&self) -> impl Iterator<Item = &str> {
        let all = self.0.domains.values();
        let fetched = all.filter(|it| it.settings.bundle != BundleFrom::WorkloadApi);
        fetched.map(|it| it.settings.trust_domain.as_str())
    }

    /// Whether nobody is believed but our own trust domain.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.domains.is_empty()
    }

    /// Whether this one is believed beside our own.
    pub(crate) fn has(&self, trust_domain: &str) -> bool {
        self.0.domains.contains_key(trust_domain)
    }

    /// Fetches a trust domain's bundle anew, so that keys which are withdrawn count no
    /// more.
    ///
    /// # Errors
    /// When there is none to be had; the one that is known stays, for a day.
    pub async fn refresh(&self, trust_domain: &str, now: Millis) -> Result<Refreshed, FetchError> {
        let Some(domain) = self.0.domains.get(trust_domain) else {
            return Err(FetchError::Late);
        };
        match tokio::time::timeout(FETCHED_WITHIN, domain.fetch()).await {
            Ok(fetched) => domain.take(fetched?, now),
            Err(_) => Err(FetchError::Late),
        }
    }

    /// When a refresh that failed is to be tried again.
    #[must_use]
    pub fn retry(&self, trust_domain: &str) -> Duration {
        let bundle = self
            .0
            .domains
            .get(trust_domain)
            .map(|it| &it.settings.bundle);
        Duration::from_secs(match bundle {
            Some(BundleFrom::File(_)) => FILE_AGAIN_S,
            _ => RETRY_S,
        })
    }

    /// Verifies a JWT-SVID that was made for `audience` and for nothing else, with the
    /// keys of the trust domain that its subject is of. `now_ms` counts from the Unix
    /// epoch.
    ///
    /// # Errors
    /// When it proves nothing, and why.
    pub fn verify_jwt_svid(
        &self,
        token: &str,
        audience: &str,
        now_ms: Millis,
    ) -> Result<JwtEvidence, EvidenceError> {
        let bundles = Bundles {
            federation: &self.0,
            now_ms,
        };
        let evidence = evidence::verify(&bundles, token, audience, now_ms)?;
        let trust_domain = evidence.agent.trust_domain();
        let most_ms = self.lifetime_max(trust_domain);
        let most_ms = most_ms.unwrap_or(OWN_JWT_LIFETIME_MAX_MS);
        match lasts(evidence.expires_ms, now_ms, most_ms) {
            true => Err(EvidenceError::Lifetime {
                most_s: most_ms / 1000,
            }),
            false => Ok(evidence),
        }
    }

    /// How long SVIDs of another trust domain may last.
    fn lifetime_max(&self, trust_domain: &str) -> Option<Millis> {
        let domain = self.0.domains.get(trust_domain)?;
        Some(domain.settings.lifetime_max_ms)
    }

    /// Whether a peer's certificate is of another trust domain and lasts longer than one of
    /// it may; that, in seconds. Our own authority is trusted with that.
    #[must_use]
    pub fn lasts_too_long(&self, peer: &Peer, now_ms: Millis) -> Option<u64> {
        let most_ms = self.lifetime_max(peer.id.trust_domain())?;
        lasts(peer.until_ms, now_ms, most_ms).then_some(most_ms / 1000)
    }

    /// The authorities of another trust domain's X.509-SVIDs.
    fn authorities(
        &self,
        trust_domain: &str,
        now: Millis,
    ) -> Result<Vec<CertificateDer<'static>>, NoKeys> {
        let Some(domain) = self.0.domains.get(trust_domain) else {
            return Err(NoKeys(format!("{trust_domain} is not believed here")));
        };
        if domain.settings.bundle != BundleFrom::WorkloadApi {
            return Ok(domain.fresh(now)?.authorities.clone());
        }
        let context = self.0.source.context();
        let context = context.map_err(|error| NoKeys(error.to_string()))?;
        let bundle = TrustDomain::new(trust_domain)
            .ok()
            .and_then(|name| context.bundle_set().get(&name));
        let bundle = bundle
            .ok_or_else(|| NoKeys(format!("the workload api has no bundle of {trust_domain}")))?;
        let all = bundle.authorities().iter();
        Ok(all
            .map(|it| CertificateDer::from(it.as_bytes().to_vec()))
            .collect())
    }
}

/// Whether something lasts longer than this, by clocks that may be apart.
fn lasts(expires_ms: Millis, now_ms: Millis, most_ms: Millis) -> bool {
    expires_ms.saturating_sub(now_ms) > most_ms.saturating_add(SKEW_MS)
}

/// Why there is no federation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NewError {
    /// Our own identity.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A file with authorities.
    #[error(transparent)]
    Authorities(#[from] FetchError),
}

impl Domain {
    async fn fetch(&self) -> Result<Bundle, FetchError> {
        let (place, bytes) = match &self.settings.bundle {
            BundleFrom::Url(url) => (url.clone(), self.fetcher.document(url, None).await?),
            BundleFrom::File(path) => (path.display().to_string(), file(path).await?),
            BundleFrom::WorkloadApi => return Err(FetchError::Late),
        };
        Bundle::parse(&self.settings.trust_domain, &bytes)
            .map_err(|what| FetchError::Document { place, what })
    }

    /// Takes a bundle that came, unless an endpoint sends one that was before ours:
    /// what it withdrew would count again.
    fn take(&self, bundle: Bundle, now: Millis) -> Result<Refreshed, FetchError> {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if let (BundleFrom::Url(url), Some(known)) = (&self.settings.bundle, known.as_ref())
            && let (Some(new), Some(old)) = (bundle.sequence, known.bundle.sequence)
            && new < old
        {
            return Err(FetchError::Document {
                place: url.clone(),
                what: format!("its spiffe_sequence has gone back from {old} to {new}"),
            });
        }
        let hint_s = bundle.refresh_hint_s.unwrap_or(REFRESH_S);
        let again_s = match self.settings.bundle {
            BundleFrom::File(_) => FILE_AGAIN_S,
            _ => hint_s.clamp(REFRESH_LEAST_S, REFRESH_S),
        };
        let keys = bundle.keys();
        *known = Some(Known {
            bundle: Arc::new(bundle),
            at_ms: now,
        });
        Ok(Refreshed {
            keys,
            again: Duration::from_secs(again_s),
        })
    }

    /// The bundle, unless it could not be fetched again for too long.
    fn fresh(&self, now: Millis) -> Result<Arc<Bundle>, NoKeys> {
        let name = &self.settings.trust_domain;
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        match known.as_ref() {
            None => Err(NoKeys(format!("the bundle of {name} has not been read"))),
            Some(known) if now.saturating_sub(known.at_ms) >= STALE_MS => Err(NoKeys(format!(
                "the bundle of {name} could not be read for a day"
            ))),
            Some(known) => Ok(Arc::clone(&known.bundle)),
        }
    }
}

/// JWT bundles, each for names of its own trust domain.
struct Bundles<'a> {
    federation: &'a Inner,
    now_ms: Millis,
}

impl BundleSource for Bundles<'_> {
    type Item = JwtBundle;
    type Error = NoKeys;

    fn bundle_for_trust_domain(
        &self,
        trust_domain: &TrustDomain,
    ) -> Result<Option<Arc<JwtBundle>>, NoKeys> {
        let from_api = || {
            let bundle = self
                .federation
                .source
                .jwt()
                .bundle_for_trust_domain(trust_domain);
            bundle.map_err(|error| NoKeys(error.to_string()))
        };
        let name = trust_domain.as_str();
        if name == self.federation.own.trust_domain() {
            return from_api();
        }
        match self.federation.domains.get(name) {
            // The Workload API may know others, whom nobody here has said to believe.
            None => Ok(None),
            Some(domain) if domain.settings.bundle == BundleFrom::WorkloadApi => from_api(),
            Some(domain) => Ok(Some(Arc::new(domain.fresh(self.now_ms)?.jwt.clone()))),
        }
    }
}

#[cfg(test)]
mod tests;
