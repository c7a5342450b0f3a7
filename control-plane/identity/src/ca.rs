//! The built-in trust domain's X.509 authority (X509-SVID.md).

use std::{path::Path, time::Duration};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::{Millis, SpiffeId, TrustDomainError, keyfile};

const KEY_FILE: &str = "ca.key";
const CERTIFICATE_FILE: &str = "ca.crt";
const CA_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// With less than this left the CA certificate is made anew, with the same key.
const CA_RENEW_BEFORE: Duration = Duration::from_secs(365 * 24 * 3600);
/// Peers' clocks may be behind ours by this much.
const BACKDATE: Duration = Duration::from_secs(10);

/// The key that signs X.509-SVIDs, and its certificate.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    certificate_pem: String,
    lifetime: Duration,
}

/// One X.509-SVID with its key.
pub(crate) struct X509Identity {
    pub(crate) spiffe_id: SpiffeId,
    /// The leaf alone: the authority is the trust anchor itself.
    pub(crate) certificate_der: Vec<u8>,
    pub(crate) certificate_pem: String,
    pub(crate) key_der: Vec<u8>,
    pub(crate) key_pem: String,
}

impl Authority {
    /// Reads the authority, or makes it on the first start.
    pub(crate) fn open(
        dir: &Path,
        trust_domain: &SpiffeId,
        lifetime: Duration,
        now: Millis,
    ) -> Result<Self, TrustDomainError> {
        let key_path = dir.join(KEY_FILE);
        let certificate_path = dir.join(CERTIFICATE_FILE);
        let stored = keyfile::read(&certificate_path)?;
        let key = match keyfile::read(&key_path)? {
            Some(pem) => {
                KeyPair::from_pem(&pem).map_err(|_| TrustDomainError::BadFile { path: key_path })?
            }
            // A fresh key under an old certificate would be another trust
            // domain with the same name: the operator decides that.
            None if stored.is_some() => {
                return Err(TrustDomainError::KeyMissing {
                    key: key_path,
                    certificate: certificate_path,
                });
            }
            None => {
                let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
                keyfile::write(dir, KEY_FILE, &key.serialize_pem())?;
                key
            }
        };
        let kept = match stored {
            Some(pem) => {
                let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|_| {
                    TrustDomainError::BadFile {
                        path: certificate_path.clone(),
                    }
                })?;
                still_good(&der, &key, trust_domain, now)
                    .ok_or(TrustDomainError::BadFile {
                        path: certificate_path,
                    })?
                    .then_some((der, pem))
            }
            None => None,
        };
        let (certificate, certificate_pem) = match kept {
            Some(kept) => kept,
            None => {
                let certificate = authority_parameters(trust_domain, now)?.self_signed(&key)?;
                keyfile::write(dir, CERTIFICATE_FILE, &certificate.pem())?;
                (certificate.der().clone(), certificate.pem())
            }
        };
        Ok(Self {
            issuer: Issuer::from_ca_cert_der(&certificate, key)?,
            certificate,
            certificate_pem,
            lifetime,
        })
    }

    /// The trust bundle: one DER certificate.
    pub(crate) fn bundle_der(&self) -> &[u8] {
        &self.certificate
    }

    /// The trust bundle as PEM.
    pub(crate) fn bundle_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// How long an X.509-SVID is served before a new one takes its place.
    pub(crate) fn rotate_after(&self) -> Duration {
        self.lifetime / 2
    }

    /// Makes a fresh key and an X.509-SVID for it; `hosts` are names and IP
    /// addresses that the workload is reached by (X509-SVID.md, section 2, allows
    /// them beside the one URI).
    pub(crate) fn issue(
        &self,
        id: &SpiffeId,
        hosts: &[String],
        now: Millis,
    ) -> Result<X509Identity, rcgen::Error> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut parameters = CertificateParams::default();
        (parameters.not_before, parameters.not_after) = validity(now, self.lifetime)?;
        parameters.subject_alt_names = vec![SanType::URI(id.as_str().try_into()?)];
        for host in hosts {
            parameters.subject_alt_names.push(match host.parse() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(host.as_str().try_into()?),
            });
        }
        parameters.distinguished_name = organisation();
        parameters.is_ca = IsCa::ExplicitNoCa;
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        parameters.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        parameters.use_authority_key_identifier_extension = true;
        let certificate = parameters.signed_by(&key, &self.issuer)?;
        Ok(X509Identity {
            spiffe_id: id.clone(),
            certificate_pem: certificate.pem(),
            certificate_der: certificate.der().to_vec(),
            key_der: key.serialize_der(),
            key_pem: key.serialize_pem(),
        })
    }
}

fn organisation() -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "Writ");
    name
}

fn authority_parameters(
    trust_domain: &SpiffeId,
    now: Millis,
) -> Result<CertificateParams, rcgen::Error> {
    let mut parameters = CertificateParams::default();
    (parameters.not_before, parameters.not_after) = validity(now, CA_LIFETIME)?;
    parameters.subject_alt_names = vec![SanType::URI(trust_domain.as_str().try_into()?)];
    parameters.distinguished_name = organisation();
    parameters.distinguished_name.push(
        DnType::CommonName,
        format!("trust domain {}", trust_domain.trust_domain()),
    );
    parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(parameters)
}

fn validity(
    now: Millis,
    lifetime: Duration,
) -> Result<(OffsetDateTime, OffsetDateTime), rcgen::Error> {
    let now = i64::try_from(now / 1000)
        .ok()
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .ok_or(rcgen::Error::Time)?;
    Ok((now - BACKDATE, now + lifetime))
}

/// Whether a stored certificate has enough life left; `None` when it is not
/// this trust domain's or not this key's.
fn still_good(
    der: &CertificateDer<'_>,
    key: &KeyPair,
    trust_domain: &SpiffeId,
    now: Millis,
) -> Option<bool> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let same_key =
        certificate.public_key().subject_public_key.data.as_ref() == key.public_key_raw();
    if !same_key || crate::svid::only_uri(&certificate)? != trust_domain.as_str() {
        return None;
    }
    let left = certificate
        .validity()
        .not_after
        .timestamp()
        .checked_sub(i64::try_from(now / 1000).ok()?)?;
    Some(u64::try_from(left).is_ok_and(|left| left > CA_RENEW_BEFORE.as_secs()))
}
