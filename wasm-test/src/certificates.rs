//! Certificates for those who show them: good ones of a trust domain, ones with
//! something wrong, and another trust domain's.

use std::path::Path;

use base64ct::{Base64UrlUnpadded, Encoding as _};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use sha2::{Digest as _, Sha256};

use crate::Error;
use crate::client::http_client_builder;

/// How long certificates last from now, and have lasted.
const LIFETIME: std::time::Duration = std::time::Duration::from_secs(3_600);

/// A certificate authority with its key.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its certificate, as PEM.
    pub pem: String,
}

/// A certificate with its key.
#[derive(Clone, Debug)]
pub struct Certified {
    /// The certificate.
    pub der: Vec<u8>,
    /// The certificate as PEM.
    pub pem: String,
    key_pem: String,
}

fn failed(problem: impl std::fmt::Display) -> Error {
    Error::Setup(format!("a certificate can't be made: {problem}"))
}

impl Authority {
    /// The built-in trust domain's own, from its directory: what only the control
    /// plane has outside tests.
    ///
    /// # Errors
    /// When its files can't be read.
    pub fn open(dir: &Path) -> Result<Authority, Error> {
        let read = |name: &str| {
            let path = dir.join(name);
            std::fs::read_to_string(&path).map_err(Error::file("read", &path))
        };
        let key = KeyPair::from_pem(&read("ca.key")?).map_err(failed)?;
        let pem = read("ca.crt")?;
        let issuer = Issuer::from_ca_cert_pem(&pem, key).map_err(failed)?;
        Ok(Authority { issuer, pem })
    }

    /// A fresh one of a trust domain of this name.
    ///
    /// # Errors
    /// When it can't be made.
    pub fn fresh(trust_domain: &str) -> Result<Authority, Error> {
        let key = KeyPair::generate().map_err(failed)?;
        let mut parameters = CertificateParams::default();
        parameters.subject_alt_names = vec![uri(&format!("spiffe://{trust_domain}"))?];
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let pem = parameters.self_signed(&key).map_err(failed)?.pem();
        let issuer = Issuer::from_ca_cert_pem(&pem, key).map_err(failed)?;
        Ok(Authority { issuer, pem })
    }

    /// A good X.509-SVID of this workload, for an hour.
    ///
    /// # Errors
    /// When the name can't be in a certificate.
    pub fn svid(&self, id: &str) -> Result<Certified, Error> {
        self.changed(id, |_| Ok(()))
    }

    /// As [`Authority::svid`], with something changed.
    ///
    /// # Errors
    /// As [`Authority::svid`].
    pub fn changed(
        &self,
        id: &str,
        change: impl FnOnce(&mut CertificateParams) -> Result<(), Error>,
    ) -> Result<Certified, Error> {
        let mut parameters = CertificateParams::default();
        parameters.subject_alt_names = vec![uri(id)?];
        parameters.is_ca = IsCa::ExplicitNoCa;
        let now = std::time::SystemTime::now();
        parameters.not_before = (now - LIFETIME).into();
        parameters.not_after = (now + LIFETIME).into();
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        parameters.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        change(&mut parameters)?;
        let key = KeyPair::generate().map_err(failed)?;
        let certificate = parameters.signed_by(&key, &self.issuer).map_err(failed)?;
        Ok(Certified {
            der: certificate.der().to_vec(),
            pem: certificate.pem(),
            key_pem: key.serialize_pem(),
        })
    }

    /// A client that trusts this authority and nobody else, and shows a
    /// certificate, or none. It has connections of its own.
    ///
    /// # Errors
    /// When the certificate can't be used.
    pub fn client(&self, shown: Option<&Certified>) -> Result<reqwest::Client, Error> {
        let root = reqwest::Certificate::from_pem(self.pem.as_bytes()).map_err(failed)?;
        let mut client = http_client_builder().tls_certs_only([root]);
        if let Some(shown) = shown {
            let both = format!("{}{}", shown.key_pem, shown.pem);
            let identity = reqwest::Identity::from_pem(both.as_bytes()).map_err(failed)?;
            client = client.identity(identity);
        }
        client.build().map_err(failed)
    }
}

impl Certified {
    /// Its key as PEM.
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }

    /// `x5t#S256` (RFC 8705, section 3.1).
    pub fn x5t(&self) -> String {
        Base64UrlUnpadded::encode_string(&Sha256::digest(&self.der))
    }
}

/// A URI name.
///
/// # Errors
/// When it is not ASCII.
pub fn uri(text: &str) -> Result<SanType, Error> {
    Ok(SanType::URI(text.try_into().map_err(failed)?))
}
