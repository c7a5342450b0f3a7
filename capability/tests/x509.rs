//! What is read of a certificate, and what is none.

#[path = "common/certificate.rs"]
mod certificate;

use base64ct::{Base64, Encoding};
use capability::sha256;
use capability::x509::{Leaf, MAX_CERTIFICATE_BYTES, NotCertificate};
use certificate::{Parts, constraints, der, extension, names, uri, usage};
use proptest::prelude::*;

const DEMO: &str = "spiffe://writ.example/agent/demo";

fn read(parts: &Parts) -> Result<Leaf, NotCertificate> {
    Leaf::from_der(&parts.certificate())
}

fn with(extensions: Vec<Vec<u8>>) -> Parts {
    Parts {
        extensions,
        ..Parts::default()
    }
}

#[test]
fn a_leaf_says_who_it_is_and_until_when() {
    let der = Parts::default().certificate();
    let leaf = Leaf::from_der(&der).unwrap();
    assert_eq!(leaf.sha256, sha256(&der));
    assert_eq!(leaf.uri_sans, [DEMO]);
    assert_eq!(leaf.workload(), Some(DEMO));
    assert_eq!((leaf.not_before_s, leaf.not_after_s), (0, 4_102_444_799));
    let ends = leaf.not_after_s * 1000;
    assert!(leaf.is_valid_at(0) && leaf.is_valid_at(ends + 999));
    assert!(!leaf.is_valid_at(ends + 1000));
}

#[test]
fn only_the_leaf_of_an_x509_svid_names_a_workload() {
    let demo = || uri(DEMO.as_bytes());
    let good = || names(&[demo()]);
    let other = |name: &[u8]| with(vec![names(&[uri(name)]), usage(0x80)]);
    let table: Vec<(&str, Parts, Option<&str>)> = vec![
        (
            "a DNS name beside it",
            with(vec![
                names(&[der(0x82, b"edge.example"), demo()]),
                usage(0x80),
            ]),
            Some(DEMO),
        ),
        (
            "no CA, said so",
            with(vec![good(), usage(0x80), constraints(&[])]),
            Some(DEMO),
        ),
        ("two uses", with(vec![good(), usage(0x88)]), Some(DEMO)),
        (
            "unknown extensions",
            with(vec![
                good(),
                usage(0x80),
                extension(37, &[5, 0]),
                extension(14, b"x"),
            ]),
            Some(DEMO),
        ),
        (
            "two URIs",
            with(vec![
                names(&[demo(), uri(b"spiffe://writ.example/x")]),
                usage(0x80),
            ]),
            None,
        ),
        (
            "the same URI twice",
            with(vec![names(&[demo(), demo()]), usage(0x80)]),
            None,
        ),
        (
            "a URI that is no SPIFFE ID beside it",
            with(vec![
                names(&[demo(), uri(b"https://a.example")]),
                usage(0x80),
            ]),
            None,
        ),
        ("no name", with(vec![usage(0x80)]), None),
        (
            "the name as DNS name",
            with(vec![names(&[der(0x82, DEMO.as_bytes())]), usage(0x80)]),
            None,
        ),
        (
            "the name as other name",
            with(vec![
                names(&[der(0xa0, &der(30, DEMO.as_bytes()))]),
                usage(0x80),
            ]),
            None,
        ),
        ("no path", other(b"spiffe://writ.example"), None),
        (
            "a slash at the end",
            other(b"spiffe://writ.example/agent/"),
            None,
        ),
        (
            "a NUL",
            other(b"spiffe://writ.example/agent/demo\0evil"),
            None,
        ),
        (
            "a line",
            other(b"spiffe://writ.example/agent/demo\r\nx: y"),
            None,
        ),
        (
            "a quote",
            other(b"spiffe://writ.example/agent/demo\";URI="),
            None,
        ),
        (
            "a CA",
            with(vec![good(), usage(0x80), constraints(&der(1, &[0xff]))]),
            None,
        ),
        (
            "it may sign certificates",
            with(vec![good(), usage(0x84)]),
            None,
        ),
        ("it may sign lists", with(vec![good(), usage(0x82)]), None),
        ("it may not sign", with(vec![good(), usage(0x08)]), None),
        ("no usage", with(vec![good()]), None),
    ];
    for (what, parts, expected) in table {
        let leaf = read(&parts).unwrap();
        assert_eq!(leaf.workload(), expected, "{what}");
    }
}

#[test]
fn what_is_not_der_or_there_twice_is_no_certificate() {
    let good = || names(&[uri(DEMO.as_bytes())]);
    let times = |not_before: Vec<u8>| Parts {
        not_before,
        ..Parts::default()
    };
    let table: Vec<(&str, Parts)> = vec![
        ("names twice", with(vec![good(), usage(0x80), good()])),
        ("usage twice", with(vec![good(), usage(0x80), usage(0x80)])),
        (
            "a name that is not ASCII",
            with(vec![names(&[uri(
                "spiffe://writ.example/\u{e9}".as_bytes()
            )])]),
        ),
        (
            "a name that is no text",
            with(vec![names(&[uri(b"spiffe://writ.example/\xff")])]),
        ),
        (
            "bytes after the names",
            with(vec![extension(17, &[der(0x30, &[]), vec![5, 0]].concat())]),
        ),
        (
            "false, said so",
            with(vec![good(), constraints(&der(1, &[0]))]),
        ),
        (
            "true by another byte",
            with(vec![good(), constraints(&der(1, &[1]))]),
        ),
        (
            "a usage without bits",
            with(vec![good(), extension(15, &der(3, &[0]))]),
        ),
        (
            "a usage with nine bits too many",
            with(vec![good(), extension(15, &der(3, &[9, 0x80]))]),
        ),
        (
            "too many extensions",
            with((0..33).map(|id| extension(id + 64, &[])).collect()),
        ),
        (
            "extensions of version 1",
            Parts {
                version: Vec::new(),
                ..Parts::default()
            },
        ),
        (
            "extensions of version 2",
            Parts {
                version: der(0xa0, &der(2, &[1])),
                ..Parts::default()
            },
        ),
        (
            "something after the extensions",
            Parts {
                more: der(5, &[]),
                ..Parts::default()
            },
        ),
        ("no seconds", times(der(0x17, b"7001010000Z"))),
        ("a zone", times(der(0x18, b"20260101000000+"))),
        ("month 13", times(der(0x17, b"701301000000Z"))),
        ("month 0", times(der(0x17, b"700001000000Z"))),
        ("hour 24", times(der(0x17, b"700101240000Z"))),
        ("no digits", times(der(0x17, b"7001010000x0Z"))),
        ("another type", times(der(0x16, b"700101000000Z"))),
    ];
    for (what, parts) in table {
        assert_eq!(read(&parts), Err(NotCertificate), "{what}");
    }
    let whole = Parts::default().certificate();
    for cut in 0..whole.len() {
        assert_eq!(Leaf::from_der(&whole[..cut]), Err(NotCertificate), "{cut}");
    }
    let longer = [&whole[..], &[0]].concat();
    assert_eq!(Leaf::from_der(&longer), Err(NotCertificate));
    // The same length in more bytes, and one that is not said.
    let body = &whole[4..];
    for head in [&[0x30, 0x83, 0][..], &[0x30, 0x80][..]] {
        let size = u16::try_from(body.len()).unwrap().to_be_bytes();
        let other = [head, &size, body].concat();
        assert_eq!(Leaf::from_der(&other), Err(NotCertificate));
    }
}

#[test]
fn times_are_those_of_the_calendar() {
    for (tag, text, seconds) in [
        (0x17, &b"000229235959Z"[..], 951_868_799),
        (0x17, b"491231235959Z", 2_524_607_999),
        (0x17, b"500101000000Z", 0),
        (0x17, b"261128170409Z", 1_795_885_449),
        (0x18, b"21000301000000Z", 4_107_542_400),
        (0x18, b"99991231235959Z", 253_402_300_799),
    ] {
        let parts = Parts {
            not_before: der(tag, text),
            ..Parts::default()
        };
        assert_eq!(read(&parts).unwrap().not_before_s, seconds, "{text:?}");
    }
}

#[test]
fn pem_is_one_block_as_envoy_writes_it() {
    let der = Parts::default().certificate();
    let base64 = Base64::encode_string(&der);
    let escaped = certificate::pem(&der);
    let pem = escaped
        .replace("%0A", "\n")
        .replace("%20", " ")
        .replace("%2B", "+")
        .replace("%2F", "/")
        .replace("%3D", "=");
    let leaf = Leaf::from_der(&der);
    assert!(leaf.is_ok());
    assert_eq!(Leaf::from_pem(pem.as_bytes()), leaf);
    assert_eq!(Leaf::from_pem(escaped.as_bytes()), leaf);
    for other in [
        String::new(),
        base64,
        format!("{pem}{pem}"),
        format!("x{pem}"),
        pem.replace("CERTIFICATE", "TRUSTED CERTIFICATE"),
        pem.replace("\n-----END", "=\n-----END"),
        pem.replacen("AAAA", "AA-A", 1),
        pem.trim_end().to_owned(),
        pem.replace('\n', "\r\n"),
        escaped.replace("%0A", "%0a"),
        format!("{escaped}%"),
        format!("{escaped}%41"),
        "%\u{20ac}".to_owned(),
    ] {
        assert_eq!(
            Leaf::from_pem(other.as_bytes()),
            Err(NotCertificate),
            "{other}"
        );
    }
}

#[test]
fn sizes_have_a_limit() {
    let fill = |size| with(vec![extension(64, &vec![0; size])]).certificate();
    let most = (1..).find(|size| fill(*size).len() == MAX_CERTIFICATE_BYTES);
    assert!(Leaf::from_der(&fill(most.unwrap())).is_ok());
    assert!(Leaf::from_der(&fill(most.unwrap() + 1)).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn names_are_read_as_they_were_written(texts in proptest::collection::vec("[ -~]{0,40}", 0..5)) {
        let parts = with(vec![
            names(&texts.iter().map(|text| uri(text.as_bytes())).collect::<Vec<_>>()),
            usage(0x80),
        ]);
        prop_assert_eq!(read(&parts).unwrap().uri_sans, texts);
    }

    #[test]
    fn a_changed_byte_is_no_panic_and_never_another_agent(at in 0..400_usize, byte: u8) {
        let mut der = Parts::default().certificate();
        let at = at % der.len();
        let same = der[at] == byte;
        der[at] = byte;
        if let Ok(leaf) = Leaf::from_der(&der) {
            prop_assert_eq!(leaf.sha256, sha256(&der));
            prop_assert!(same || leaf.sha256 != sha256(&Parts::default().certificate()));
            prop_assert!(leaf.uri_sans.len() <= 1);
        }
    }

    #[test]
    fn any_bytes_and_any_text_are_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80), text in "(-----BEGIN CERTIFICATE-----\n)?[ -~\n]{0,80}") {
        prop_assert!(Leaf::from_der(&bytes).is_err());
        prop_assert!(Leaf::from_pem(text.as_bytes()).is_err());
    }
}
