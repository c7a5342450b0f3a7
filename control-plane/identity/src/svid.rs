//! What makes a certificate an X.509-SVID (X509-SVID.md, sections 2 to 5).

use capability::x509::{Leaf, NotCertificate};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use crate::{Millis, SpiffeId};

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

/// The workload that a leaf certificate names, by the rule that the edge reads
/// certificates by as well. The chain is checked elsewhere.
///
/// # Errors
/// When the certificate is not an X.509-SVID's leaf.
pub(crate) fn leaf_identity(der: &[u8]) -> Result<SpiffeId, SvidError> {
    let leaf = Leaf::from_der(der).map_err(|NotCertificate| SvidError::Malformed)?;
    if !leaf.signs_handshakes_only {
        return Err(SvidError::NotLeaf);
    }
    let [uri] = leaf.uri_sans.as_slice() else {
        return Err(SvidError::UriNames);
    };
    let id = SpiffeId::parse(uri).map_err(|_| SvidError::Id)?;
    if id.is_workload() {
        Ok(id)
    } else {
        Err(SvidError::Id)
    }
}

/// What counts of a leaf as evidence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LeafEvidence {
    /// When it ends, in milliseconds since the Unix epoch.
    pub(crate) until_ms: Millis,
    /// SHA-256 of what was signed (RFC 5280, section 4.1.1.1). The signature is left
    /// out, because ECDSA lets anybody make a second valid one.
    pub(crate) signed: [u8; 32],
}

/// Reads that of a leaf that is an SVID.
pub(crate) fn leaf_evidence(der: &[u8]) -> Result<LeafEvidence, SvidError> {
    let leaf = Leaf::from_der(der).map_err(|NotCertificate| SvidError::Malformed)?;
    let (_, certificate) = X509Certificate::from_der(der).map_err(|_| SvidError::Malformed)?;
    Ok(LeafEvidence {
        until_ms: leaf.not_after_s.saturating_mul(1000),
        signed: capability::sha256(certificate.tbs_certificate.as_ref()),
    })
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

#[cfg(test)]
mod tests {
    use capability::x509::Leaf;
    use rcgen::{CertificateParams, IsCa, KeyPair, KeyUsagePurpose, SanType};
    use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

    /// Another reader of the same bytes: the URIs, the validity, and whether they
    /// sign handshakes alone.
    fn by_another(der: &[u8]) -> Option<(Vec<String>, i64, i64, bool)> {
        let (rest, certificate) = X509Certificate::from_der(der).ok()?;
        let names = certificate.subject_alternative_name().ok()?;
        let names = names.map(|names| &names.value.general_names);
        let uris = names.into_iter().flatten().filter_map(|name| match name {
            GeneralName::URI(uri) => Some((*uri).to_owned()),
            _ => None,
        });
        let usage = certificate.key_usage().ok()?.map(|usage| usage.value);
        let ca = certificate.basic_constraints().ok()?;
        let ca = ca.is_some_and(|constraints| constraints.value.ca);
        let signs = usage.is_some_and(|usage| {
            usage.digital_signature() && !usage.key_cert_sign() && !usage.crl_sign()
        });
        let validity = certificate.validity();
        let (from, to) = (
            validity.not_before.timestamp(),
            validity.not_after.timestamp(),
        );
        rest.is_empty()
            .then(|| (uris.collect(), from, to, signs && !ca))
    }

    #[test]
    fn another_signature_makes_no_other_evidence() {
        let mut parameters = CertificateParams::default();
        parameters.serial_number = Some(7.into());
        parameters.subject_alt_names =
            vec![SanType::URI("spiffe://writ.example/a".try_into().unwrap())];
        let key = KeyPair::generate().unwrap();
        let sign = |parameters: &CertificateParams| {
            let signed = parameters.self_signed(&key).unwrap();
            signed.der().to_vec()
        };
        let (one, other) = (sign(&parameters), sign(&parameters));
        assert_ne!(one, other, "ECDSA is random");
        let evidence = super::leaf_evidence(&one).unwrap();
        assert_eq!(evidence, super::leaf_evidence(&other).unwrap());
        let (_, _, to, _) = by_another(&one).unwrap();
        assert_eq!(evidence.until_ms, u64::try_from(to).unwrap() * 1000);
        parameters.serial_number = Some(8.into());
        let third = super::leaf_evidence(&sign(&parameters)).unwrap();
        assert_ne!(evidence.signed, third.signed);
    }

    #[test]
    fn the_strict_reader_reads_what_another_reads_whatever_byte_is_changed() {
        let uri = |text: &str| SanType::URI(text.try_into().unwrap());
        let mut parameters = CertificateParams::default();
        parameters.subject_alt_names = vec![
            SanType::DnsName("edge.writ.example".try_into().unwrap()),
            uri("spiffe://writ.example/agent/demo"),
            SanType::IpAddress([127, 0, 0, 1].into()),
        ];
        parameters.is_ca = IsCa::ExplicitNoCa;
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate().unwrap();
        let good = parameters.self_signed(&key).unwrap().der().to_vec();
        let mut compared = 0;
        for at in 0..good.len() {
            for change in [0, 1, 0x20, 0x80, 0xff] {
                let mut der = good.clone();
                if let Some(byte) = der.get_mut(at) {
                    *byte ^= change;
                }
                // What only the other takes is not strict DER.
                let (Ok(leaf), Some(other)) = (Leaf::from_der(&der), by_another(&der)) else {
                    continue;
                };
                let seconds = |time: u64| i64::try_from(time).unwrap();
                let ours = (
                    leaf.uri_sans,
                    seconds(leaf.not_before_s),
                    seconds(leaf.not_after_s),
                    leaf.signs_handshakes_only,
                );
                let other = (other.0, other.1.max(0), other.2.max(0), other.3);
                assert_eq!(ours, other, "byte {at} by {change:x}");
                compared += 1;
            }
        }
        assert!(compared > good.len(), "{compared}");
    }
}
