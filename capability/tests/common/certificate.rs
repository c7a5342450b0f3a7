//! Certificates put together from their parts, to change each. Nobody has signed
//! them: the reader does not look at signatures.
#![expect(clippy::unwrap_used, reason = "tests fail loudly")]

/// One DER value.
pub fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len()).unwrap();
    let [high, low] = length.to_be_bytes();
    let mut value = match length {
        0..0x80 => vec![tag, low],
        0x80..0x100 => vec![tag, 0x81, low],
        _ => vec![tag, 0x82, high, low],
    };
    value.extend_from_slice(content);
    value
}

/// An extension by the last byte of its id below 2.5.29.
pub fn extension(id: u8, value: &[u8]) -> Vec<u8> {
    let id = der(6, &[0x55, 0x1d, id]);
    der(0x30, &[id, der(4, value)].concat())
}

pub fn uri(name: &[u8]) -> Vec<u8> {
    der(0x86, name)
}

/// `subjectAltName`.
pub fn names(names: &[Vec<u8>]) -> Vec<u8> {
    extension(17, &der(0x30, &names.concat()))
}

/// `keyUsage`, its first byte of bits.
pub fn usage(bits: u8) -> Vec<u8> {
    extension(15, &der(3, &[0, bits]))
}

/// `basicConstraints`.
pub fn constraints(content: &[u8]) -> Vec<u8> {
    extension(19, &der(0x30, content))
}

/// The parts of a certificate, good ones at first.
pub struct Parts {
    pub version: Vec<u8>,
    pub not_before: Vec<u8>,
    pub not_after: Vec<u8>,
    pub extensions: Vec<Vec<u8>>,
    /// What comes after the extensions.
    pub more: Vec<u8>,
}

impl Default for Parts {
    fn default() -> Self {
        Self {
            version: der(0xa0, &der(2, &[2])),
            not_before: der(0x17, b"700101000000Z"),
            not_after: der(0x18, b"20991231235959Z"),
            extensions: vec![
                names(&[uri(b"spiffe://writ.example/agent/demo")]),
                usage(0x80),
            ],
            more: Vec::new(),
        }
    }
}

impl Parts {
    pub fn certificate(&self) -> Vec<u8> {
        let algorithm = der(0x30, &der(6, &[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2]));
        let extensions = der(0x30, &self.extensions.concat());
        let body = [
            self.version.clone(),
            der(2, &[1]),
            algorithm.clone(),
            der(0x30, &[]),
            der(0x30, &[&self.not_before[..], &self.not_after].concat()),
            der(0x30, &[]),
            der(0x30, &der(3, &[0; 70])),
            der(0xa3, &extensions),
            self.more.clone(),
        ];
        let signature = der(3, &[0; 72]);
        der(
            0x30,
            &[der(0x30, &body.concat()), algorithm, signature].concat(),
        )
    }
}

/// PEM as Envoy shows it.
pub fn pem(der: &[u8]) -> String {
    let base64 = <base64ct::Base64 as base64ct::Encoding>::encode_string(der);
    let lines: Vec<&str> = base64
        .as_bytes()
        .chunks(64)
        .map(|line| std::str::from_utf8(line).unwrap())
        .collect();
    format!(
        "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
        lines.join("\n")
    )
    .replace('\n', "%0A")
    .replace(' ', "%20")
    .replace('+', "%2B")
    .replace('/', "%2F")
    .replace('=', "%3D")
}
