//! Keys that come over TLS: an issuer's by discovery, a client's from its URL, and a trust
//! domain's bundle. Whose certificate is believed, and where a document may lead.

use identity::federation::{BundleFrom, DomainSettings, Federation};
use identity::oidc::{ForeignIssuer, KeysFrom};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType, date_time_ymd,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::json;
use std::sync::Arc;

use crate::common::{Domain, now_ms};
use crate::signer::{Signer, ec_jwk};
use crate::site::Site;
use crate::{NOW, settings};

const PARTNER: &str = "partner.example";

/// Who signs servers' certificates.
struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Ca {
    fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name.push(DnType::CommonName, name);
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = parameters.self_signed(&key).unwrap().pem();
        Self {
            issuer: Issuer::from_ca_cert_pem(&pem, key).unwrap(),
            pem,
        }
    }

    /// A server's certificate for this machine's address, unless it is changed.
    fn server(&self, change: impl FnOnce(&mut CertificateParams)) -> rustls::ServerConfig {
        let mut parameters = CertificateParams::default();
        let here = std::net::Ipv4Addr::LOCALHOST;
        parameters.subject_alt_names = vec![SanType::IpAddress(here.into())];
        change(&mut parameters);
        let key = KeyPair::generate().unwrap();
        let certificate = parameters.signed_by(&key, &self.issuer).unwrap();
        let certificate = CertificateDer::from(certificate.der().to_vec());
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .unwrap()
    }
}

/// What is fetched from a site at this URL.
#[derive(Clone, Copy, Debug)]
enum What {
    Issuer,
    ClientsKeys,
    Bundle,
}

const ALL: [What; 3] = [What::Issuer, What::ClientsKeys, What::Bundle];

/// The documents of all of them.
fn publish(site: &Site, url: &str, signer: &Signer) {
    let document = json!({ "issuer": url, "jwks_uri": format!("{url}/keys") });
    site.page("/.well-known/openid-configuration", &document);
    site.page("/keys", &signer.jwks());
    let mut jwk = ec_jwk("a", &signer.ec);
    jwk["use"] = json!("jwt-svid");
    site.page("/bundle", &json!({ "keys": [jwk] }));
}

impl What {
    /// Fetches it; how many keys came, or why none did.
    async fn fetch(self, domain: &Domain, url: &str, pem: Option<&str>) -> Result<usize, String> {
        let authorities_pem = pem.map(|pem| pem.as_bytes().to_vec());
        let keys = match self {
            Self::Issuer => KeysFrom::Discovery,
            Self::ClientsKeys => KeysFrom::Url(format!("{url}/keys")),
            Self::Bundle => {
                let partner = DomainSettings {
                    trust_domain: PARTNER.to_owned(),
                    bundle: BundleFrom::Url(format!("{url}/bundle")),
                    authorities_pem,
                    lifetime_max_ms: 86_400_000,
                };
                let federation = Federation::new(domain.source().await, vec![partner]);
                let fetched = federation.unwrap().refresh(PARTNER, now_ms()).await;
                return fetched.map(|it| it.keys).map_err(|error| error.to_string());
            }
        };
        let mut settings = settings(url, keys);
        settings.authorities_pem = authorities_pem;
        let issuer = ForeignIssuer::new(settings).unwrap();
        let fetched = issuer.refresh(NOW).await;
        fetched.map_err(|error| error.to_string())
    }
}

#[tokio::test]
async fn only_the_certificate_of_its_place_by_the_authority_that_was_named_counts() {
    let (signer, domain) = (Signer::new(), Domain::start());
    let (ca, other) = (Ca::new("ours"), Ca::new("other"));
    let namesake = Ca::new("ours");
    let named = |name: &str| {
        let name = SanType::DnsName(name.try_into().unwrap());
        move |it: &mut CertificateParams| it.subject_alt_names = vec![name]
    };
    let ended = |it: &mut CertificateParams| {
        it.not_before = date_time_ymd(2020, 1, 1);
        it.not_after = date_time_ymd(2021, 1, 1);
    };
    let (ours, theirs) = (Some(ca.pem.as_str()), Some(other.pem.as_str()));
    let both = format!("{}{}", other.pem, ca.pem);
    let table = [
        ("the right one", ca.server(|_| {}), ours, None),
        ("one of two", ca.server(|_| {}), Some(both.as_str()), None),
        (
            "another authority is named",
            ca.server(|_| {}),
            theirs,
            Some("UnknownIssuer"),
        ),
        (
            "another authority has signed it",
            other.server(|_| {}),
            ours,
            Some("UnknownIssuer"),
        ),
        (
            "one of the same name has signed it",
            namesake.server(|_| {}),
            ours,
            Some("BadSignature"),
        ),
        (
            "no authority is named, and the system's do not know it",
            ca.server(|_| {}),
            None,
            Some("UnknownIssuer"),
        ),
        (
            "it is another host's",
            ca.server(named("idp.example")),
            ours,
            Some("not valid for name"),
        ),
        ("it is over", ca.server(ended), ours, Some("expired")),
    ];
    for (what, config, pem, why) in table {
        let (site, url) = Site::secure(config).await;
        publish(&site, &url, &signer);
        for (count, fetched) in ALL.into_iter().enumerate() {
            let got = fetched.fetch(&domain, &url, pem).await;
            let Some(why) = why else {
                assert!(got.is_ok_and(|keys| keys > 0), "{what}: {fetched:?}");
                continue;
            };
            let said = got.unwrap_err();
            assert!(said.contains(why), "{what}: {fetched:?}: {said}");
            assert!(said.contains(&url), "{what}: {fetched:?}: {said}");
            assert_eq!(site.asked(), 0, "{what}: {fetched:?}");
            while *site.left.lock().unwrap() <= count {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        }
    }
}

#[tokio::test]
async fn nothing_leads_from_there_to_what_is_in_clear() {
    let (signer, domain, ca) = (Signer::new(), Domain::start(), Ca::new("ours"));
    let (clear, clear_url) = Site::start().await;
    publish(&clear, &clear_url, &signer);
    let (site, url) = Site::secure(ca.server(|_| {})).await;
    let pem = Some(ca.pem.as_str());
    for place in ["/.well-known/openid-configuration", "/keys", "/bundle"] {
        site.answer(
            place,
            &format!(
                "HTTP/1.1 302 Found\r\nLocation: {clear_url}{place}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            ),
        );
    }
    for fetched in ALL {
        let said = fetched.fetch(&domain, &url, pem).await.unwrap_err();
        assert!(said.contains("the answer is 302"), "{fetched:?}: {said}");
    }
    assert_eq!(site.asked(), ALL.len());
    // Nor does a document that names another place.
    let document = json!({ "issuer": url, "jwks_uri": format!("{clear_url}/keys") });
    site.page("/.well-known/openid-configuration", &document);
    let said = What::Issuer.fetch(&domain, &url, pem).await.unwrap_err();
    let why = "its `jwks_uri` is neither https nor on this machine";
    assert!(said.contains(why), "{said}");
    assert_eq!(clear.asked(), 0);
}
