//! What makes a certificate an X.509-SVID (X509-SVID.md, sections 2 to 5).

use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::SpiffeId;

/// Why a certificate names no workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SvidError {
    /// It is not DER, or has bytes after its end.
    #[error("the certificate can't be parsed")]
    Malformed,
    /// It has no URI subject alternative name, or more than one.
    #[error("the certificate does not have exactly one URI subject alternative name")]
    UriNames,
    /// Its URI is not a SPIFFE ID, or a trust domain's own.
    #[error("the certificate's URI is not a workload's SPIFFE ID")]
    Id,
    /// It may sign certificates, or may not sign handshakes.
    #[error("the certificate is not a leaf: it is a CA's, or its key usage is wrong")]
    NotLeaf,
}

/// The workload that a leaf certificate names. The chain is checked elsewhere.
///
/// # Errors
/// When the certificate is not an X.509-SVID's leaf.
pub(crate) fn leaf_identity(der: &[u8]) -> Result<SpiffeId, SvidError> {
    let (rest, certificate) = X509Certificate::from_der(der).map_err(|_| SvidError::Malformed)?;
    if !rest.is_empty() {
        return Err(SvidError::Malformed);
    }
    let ca = certificate
        .basic_constraints()
        .map_err(|_| SvidError::Malformed)?
        .is_some_and(|constraints| constraints.value.ca);
    let usage = certificate
        .key_usage()
        .map_err(|_| SvidError::Malformed)?
        .ok_or(SvidError::NotLeaf)?
        .value;
    if ca || !usage.digital_signature() || usage.key_cert_sign() || usage.crl_sign() {
        return Err(SvidError::NotLeaf);
    }
    let uri = only_uri(&certificate).ok_or(SvidError::UriNames)?;
    let id = SpiffeId::parse(uri).map_err(|_| SvidError::Id)?;
    if id.is_workload() {
        Ok(id)
    } else {
        Err(SvidError::Id)
    }
}

/// The one URI subject alternative name; `None` for none or several.
pub(crate) fn only_uri<'a>(certificate: &'a X509Certificate<'_>) -> Option<&'a str> {
    let names = certificate.subject_alternative_name().ok()??.value;
    let mut uris = names.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    match (uris.next(), uris.next()) {
        (Some(uri), None) => Some(uri),
        _ => None,
    }
}
