//! Client certificates of several trust domains.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore,
    SignatureScheme,
};
use rustls_pki_types::{CertificateDer, UnixTime};

use super::{Federation, NoKeys};
use crate::mtls::Peer;
use crate::svid::leaf_identity;
use crate::{Millis, SpiffeId};

/// Verifies a chain against the authorities of the trust domain that its leaf is of, and
/// of no other.
pub(crate) struct ByTrustDomain {
    own: SpiffeId,
    /// For leaves of our own.
    verifier: Arc<dyn ClientCertVerifier>,
    federation: Federation,
}

impl fmt::Debug for ByTrustDomain {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_tuple("ByTrustDomain").field(&self.own).finish()
    }
}

fn refused(why: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(why))))
}

impl ByTrustDomain {
    pub(crate) fn new(
        own: SpiffeId,
        verifier: Arc<dyn ClientCertVerifier>,
        federation: Federation,
    ) -> Self {
        Self {
            own,
            verifier,
            federation,
        }
    }
}

impl Federation {
    /// Made anew each time: keys that were withdrawn since count no more.
    fn verifier(
        &self,
        trust_domain: &str,
        now: Millis,
    ) -> Result<Arc<dyn ClientCertVerifier>, Error> {
        let mut roots = RootCertStore::empty();
        for authority in self.authorities(trust_domain, now).map_err(refused)? {
            roots.add(authority)?;
        }
        let none = |_| refused(NoKeys(format!("{trust_domain} has no authorities now")));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .map_err(none)
    }

    /// Whether a peer's trust domain still proves its certificate: a connection may
    /// outlive the authority that it was made under. Our own proves its own, which are
    /// good until they end.
    #[must_use]
    pub fn still_proves(&self, peer: &Peer, now_ms: Millis) -> bool {
        let Some((leaf, intermediates)) = peer.chain.split_first() else {
            return true;
        };
        let now = UnixTime::since_unix_epoch(Duration::from_millis(now_ms));
        let verified = self
            .verifier(peer.id.trust_domain(), now_ms)
            .and_then(|it| it.verify_client_cert(leaf, intermediates, now));
        if let Err(error) = &verified {
            tracing::debug!(peer = %peer.id, %error, "a client certificate is no longer proven");
        }
        verified.is_ok()
    }
}

impl ClientCertVerifier for ByTrustDomain {
    /// None: a client asks which of its certificates fits by this, and several do.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let id = leaf_identity(leaf).map_err(refused)?;
        if id.trust_domain() == self.own.trust_domain() {
            return self.verifier.verify_client_cert(leaf, intermediates, now);
        }
        let now_ms = now.as_secs().saturating_mul(1000);
        self.federation
            .verifier(id.trust_domain(), now_ms)?
            .verify_client_cert(leaf, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier
            .verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier
            .verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}
