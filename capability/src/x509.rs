//! What a client certificate says of itself: a strict reader of DER for the few
//! parts that an X.509-SVID's leaf is judged by (RFC 5280, section 4.1;
//! X509-SVID.md, sections 2 to 5). Whether its chain holds is the proxy's TLS's
//! to say; here are only the names, which a proxy shows the first of.

use crate::{b64, sha256, spiffe};

/// The largest certificate that is read; bytes of DER.
pub const MAX_CERTIFICATE_BYTES: usize = 16 * 1024;
/// The most extensions of one certificate.
const MAX_EXTENSIONS: usize = 32;

/// Not a certificate in DER, or not one alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not one X.509 certificate in DER")]
pub struct NotCertificate;

/// A leaf certificate's own words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// SHA-256 of its DER: `x5t#S256` before base64url (RFC 8705, section 3.1).
    pub sha256: [u8; 32],
    /// Every URI among its subject alternative names.
    pub uri_sans: Vec<String>,
    /// The first second at which it is valid, since the Unix epoch.
    pub not_before_s: u64,
    /// The last one.
    pub not_after_s: u64,
    /// It may sign handshakes and nothing else: it is no CA's and says so in its
    /// key usage (X509-SVID.md, sections 4.1 and 4.3).
    pub signs_handshakes_only: bool,
}

impl Leaf {
    /// Reads one certificate, all of it and nothing after it.
    ///
    /// # Errors
    /// When it is longer than [`MAX_CERTIFICATE_BYTES`], or anything on the way
    /// to its names is not DER, there twice, or not ASCII where it has to be.
    pub fn from_der(der: &[u8]) -> Result<Self, NotCertificate> {
        if der.len() > MAX_CERTIFICATE_BYTES {
            return Err(NotCertificate);
        }
        let mut certificate = Der(der).only(SEQUENCE)?;
        let mut body = certificate.take(SEQUENCE)?;
        certificate.take(SEQUENCE)?;
        certificate.take(BIT_STRING)?;
        certificate.end()?;
        let is_v3 = match body.take_if(VERSION)? {
            Some(version) => version.only(INTEGER)?.0 == [2],
            None => false,
        };
        // Serial number, signature algorithm, issuer.
        body.take(INTEGER)?;
        body.take(SEQUENCE)?;
        body.take(SEQUENCE)?;
        let mut validity = body.take(SEQUENCE)?;
        let (not_before_s, not_after_s) = (validity.time()?, validity.time()?);
        validity.end()?;
        // Subject, public key.
        body.take(SEQUENCE)?;
        body.take(SEQUENCE)?;
        body.take_if(ISSUER_UNIQUE_ID)?;
        body.take_if(SUBJECT_UNIQUE_ID)?;
        let extensions = match body.take_if(EXTENSIONS)? {
            Some(extensions) if is_v3 => Extensions::read(extensions.only(SEQUENCE)?)?,
            Some(_) => return Err(NotCertificate),
            None => Extensions::default(),
        };
        body.end()?;
        Ok(Self {
            sha256: sha256(der),
            uri_sans: extensions.uri_sans,
            not_before_s,
            not_after_s,
            signs_handshakes_only: extensions.usage == Some(Usage::Handshakes) && !extensions.is_ca,
        })
    }

    /// Reads one certificate as Envoy shows it: PEM (RFC 7468), of which line
    /// ends, spaces, `+`, `/` and `=` may be percent-encoded.
    ///
    /// # Errors
    /// As [`Leaf::from_der`], and when it isn't one PEM block and nothing else.
    pub fn from_pem(text: &[u8]) -> Result<Self, NotCertificate> {
        // A third more for base64, and line ends and escapes.
        if text.len() > MAX_CERTIFICATE_BYTES.saturating_mul(2) {
            return Err(NotCertificate);
        }
        let text = unescaped(text)?;
        let body = text
            .strip_prefix(b"-----BEGIN CERTIFICATE-----\n")
            .and_then(|text| text.strip_suffix(b"\n-----END CERTIFICATE-----\n"))
            .ok_or(NotCertificate)?;
        Self::from_der(&base64(body)?)
    }

    /// What stands for a certificate that can't be read: it names nobody and is
    /// never valid.
    #[must_use]
    pub fn of_nobody() -> Self {
        Self {
            sha256: [0; 32],
            uri_sans: Vec::new(),
            not_before_s: u64::MAX,
            not_after_s: 0,
            signs_handshakes_only: false,
        }
    }

    /// The workload that it names, if it is the leaf of an X.509-SVID: exactly
    /// one URI, which is a workload's SPIFFE ID, on a certificate that may sign
    /// handshakes and nothing else.
    #[must_use]
    pub fn workload(&self) -> Option<&str> {
        match self.uri_sans.as_slice() {
            [uri] if self.signs_handshakes_only && spiffe::is_workload(uri) => Some(uri),
            _ => None,
        }
    }

    /// Whether it is valid at this time (RFC 5280, section 4.1.2.5: both ends
    /// belong to it).
    #[must_use]
    pub fn is_valid_at(&self, now_ms: u64) -> bool {
        (self.not_before_s..=self.not_after_s).contains(&(now_ms / 1000))
    }
}

/// Undoes the five escapes that Envoy writes; no other is one.
fn unescaped(text: &[u8]) -> Result<Vec<u8>, NotCertificate> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        if *byte != b'%' {
            out.push(*byte);
            continue;
        }
        let (code, after) = rest.split_at_checked(2).ok_or(NotCertificate)?;
        rest = after;
        out.push(match code {
            b"0A" => b'\n',
            b"20" => b' ',
            b"2B" => b'+',
            b"2F" => b'/',
            b"3D" => b'=',
            _ => return Err(NotCertificate),
        });
    }
    Ok(out)
}

/// Base64 in lines, with its padding: by the reader of base64url, whose alphabet
/// differs in two letters.
fn base64(lines: &[u8]) -> Result<Vec<u8>, NotCertificate> {
    let mut text = String::with_capacity(lines.len());
    let mut padding: usize = 0;
    for byte in lines {
        match byte {
            b'\n' => {}
            b'=' => padding = padding.saturating_add(1),
            _ if padding > 0 => return Err(NotCertificate),
            b'+' => text.push('-'),
            b'/' => text.push('_'),
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' => text.push(char::from(*byte)),
            _ => return Err(NotCertificate),
        }
    }
    if padding > 2 || !text.len().saturating_add(padding).is_multiple_of(4) {
        return Err(NotCertificate);
    }
    b64::decode(&text).ok_or(NotCertificate)
}

const BOOLEAN: u8 = 0x01;
const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OCTET_STRING: u8 = 0x04;
const OBJECT_ID: u8 = 0x06;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
/// `[0] EXPLICIT` of a certificate's body.
const VERSION: u8 = 0xa0;
/// `[1] IMPLICIT BIT STRING`.
const ISSUER_UNIQUE_ID: u8 = 0x81;
/// `[2] IMPLICIT BIT STRING`.
const SUBJECT_UNIQUE_ID: u8 = 0x82;
/// `[3] EXPLICIT`.
const EXTENSIONS: u8 = 0xa3;
/// `uniformResourceIdentifier [6] IMPLICIT IA5String`.
const URI: u8 = 0x86;

/// 2.5.29.15, 2.5.29.17, 2.5.29.19.
const KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x0f];
const SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1d, 0x11];
const BASIC_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 0x13];

/// The names of RFC 5280, section 4.2.1.6, each in the one form that DER has for it.
const GENERAL_NAMES: [u8; 9] = [0xa0, 0x81, 0x82, 0xa3, 0xa4, 0xa5, URI, 0x87, 0x88];

/// The first byte of a key usage: the bits for `digitalSignature`, `keyCertSign`
/// and `cRLSign` (RFC 5280, section 4.2.1.3).
const DIGITAL_SIGNATURE: u8 = 0x80;
const SIGNS_CERTIFICATES: u8 = 0x04 | 0x02;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Usage {
    Handshakes,
    Other,
}

#[derive(Default)]
struct Extensions {
    uri_sans: Vec<String>,
    usage: Option<Usage>,
    is_ca: bool,
}

impl Extensions {
    fn read(mut list: Der<'_>) -> Result<Self, NotCertificate> {
        let mut read = Self::default();
        let mut seen: Vec<&[u8]> = Vec::new();
        while !list.0.is_empty() {
            let mut extension = list.take(SEQUENCE)?;
            let id = extension.take(OBJECT_ID)?.0;
            extension.flag()?;
            let value = Der(extension.take(OCTET_STRING)?.0);
            extension.end()?;
            if seen.contains(&id) || seen.len() >= MAX_EXTENSIONS {
                return Err(NotCertificate);
            }
            seen.push(id);
            match id {
                SUBJECT_ALT_NAME => read.uri_sans = uris(value.only(SEQUENCE)?)?,
                BASIC_CONSTRAINTS => read.is_ca = value.only(SEQUENCE)?.flag()?,
                KEY_USAGE => read.usage = Some(usage(value.only(BIT_STRING)?.0)?),
                _ => {}
            }
        }
        Ok(read)
    }
}

fn uris(mut names: Der<'_>) -> Result<Vec<String>, NotCertificate> {
    let mut uris = Vec::new();
    while !names.0.is_empty() {
        let (tag, name) = names.next()?;
        // A name that another reader might take for one more URI is none at all.
        if !GENERAL_NAMES.contains(&tag) {
            return Err(NotCertificate);
        }
        if tag == URI {
            let name = std::str::from_utf8(name).map_err(|_| NotCertificate)?;
            if !name.is_ascii() {
                return Err(NotCertificate);
            }
            uris.push(name.to_owned());
        }
    }
    Ok(uris)
}

fn usage(bits: &[u8]) -> Result<Usage, NotCertificate> {
    // The first byte counts the bits at the end that are none.
    let (0..=7, Some(first)) = (bits.first().ok_or(NotCertificate)?, bits.get(1)) else {
        return Err(NotCertificate);
    };
    let only_handshakes = first & DIGITAL_SIGNATURE != 0 && first & SIGNS_CERTIFICATES == 0;
    Ok(if only_handshakes {
        Usage::Handshakes
    } else {
        Usage::Other
    })
}

/// What is left of some DER values in a row (X.690, sections 8 and 10).
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    /// The next value: its tag and its content. Lengths are definite and in
    /// their shortest form, tags have one byte.
    #[inline(never)]
    fn next(&mut self) -> Result<(u8, &'a [u8]), NotCertificate> {
        let (tag, rest) = self.0.split_first().ok_or(NotCertificate)?;
        let (first, mut rest) = rest.split_first().ok_or(NotCertificate)?;
        let mut length = usize::from(*first);
        if *first >= 0x80 {
            // No certificate that is read needs more than two bytes.
            let count = usize::from(first & 0x7f);
            let (bytes, after) = rest.split_at_checked(count).ok_or(NotCertificate)?;
            length = match bytes {
                [one @ 0x80..=0xff] => usize::from(*one),
                [high @ 1..=0xff, low] => usize::from(*high) << 8 | usize::from(*low),
                _ => return Err(NotCertificate),
            };
            rest = after;
        }
        let (content, after) = rest.split_at_checked(length).ok_or(NotCertificate)?;
        if tag & 0x1f == 0x1f {
            return Err(NotCertificate);
        }
        self.0 = after;
        Ok((*tag, content))
    }

    #[inline(never)]
    fn take(&mut self, wanted: u8) -> Result<Self, NotCertificate> {
        match self.next()? {
            (tag, content) if tag == wanted => Ok(Der(content)),
            _ => Err(NotCertificate),
        }
    }

    fn take_if(&mut self, wanted: u8) -> Result<Option<Self>, NotCertificate> {
        if self.0.first() == Some(&wanted) {
            self.take(wanted).map(Some)
        } else {
            Ok(None)
        }
    }

    /// The one value of this tag that there is.
    fn only(mut self, wanted: u8) -> Result<Self, NotCertificate> {
        let value = self.take(wanted)?;
        self.end()?;
        Ok(value)
    }

    fn end(&self) -> Result<(), NotCertificate> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(NotCertificate)
        }
    }

    /// `BOOLEAN DEFAULT FALSE`: in DER it is true, or not there.
    fn flag(&mut self) -> Result<bool, NotCertificate> {
        match self.take_if(BOOLEAN)? {
            None => Ok(false),
            Some(Der([0xff])) => Ok(true),
            Some(_) => Err(NotCertificate),
        }
    }

    /// Seconds since the Unix epoch; what is before it counts as the epoch
    /// (RFC 5280, sections 4.1.2.5.1 and 4.1.2.5.2: seconds, and `Z`).
    fn time(&mut self) -> Result<u64, NotCertificate> {
        let (tag, text) = self.next()?;
        let two = |at: usize| match text.get(at..at.saturating_add(2)) {
            Some([tens @ b'0'..=b'9', ones @ b'0'..=b'9']) => {
                Ok(u64::from(tens - b'0') * 10 + u64::from(ones - b'0'))
            }
            _ => Err(NotCertificate),
        };
        let (year, at) = match (tag, text.len()) {
            (UTC_TIME, 13) => match two(0)? {
                year @ 50.. => (1900 + year, 2),
                year => (2000 + year, 2),
            },
            (GENERALIZED_TIME, 15) => (two(0)? * 100 + two(2)?, 4),
            _ => return Err(NotCertificate),
        };
        let (month, day) = (two(at)?, two(at + 2)?);
        let (hour, minute, second) = (two(at + 4)?, two(at + 6)?, two(at + 8)?);
        let fits = (1..=12).contains(&month) && (1..=31).contains(&day);
        if !fits || hour > 23 || minute > 59 || second > 59 || text.last() != Some(&b'Z') {
            return Err(NotCertificate);
        }
        let days = days_since_epoch(year, month, day);
        Ok(days * 86_400 + hour * 3_600 + minute * 60 + second)
    }
}

/// Days from the Unix epoch to a date of the Gregorian calendar; none before it.
fn days_since_epoch(year: u64, month: u64, day: u64) -> u64 {
    // Years that begin in March have their leap day at their end.
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year.saturating_sub(1), month + 9)
    };
    let leap_days = year / 4 + year / 400 - year / 100;
    let days = year * 365 + leap_days + (month * 153 + 2) / 5 + day;
    // The count of 1970-01-01.
    days.saturating_sub(719_469)
}
