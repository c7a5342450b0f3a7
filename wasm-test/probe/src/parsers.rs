//! Probes of the parsers: raw bytes, as an attacker sends them.

use capability::action::Action;
use capability::body;
use capability::key::PublicKey;
use capability::proof::UnverifiedProof;
use capability::rpc::{Call, Protocol};
use capability::spiffe::SpiffeId;
use capability::token::UnverifiedToken;
use capability::url::{Origin, Target, UrlError};
use capability::x509::Leaf;
use capability::{Limits, jcs};

/// Strict JSON: its canonical form, or where the fault is.
pub fn json(input: &[u8]) -> String {
    match capability::json::parse(input, &Limits::default()) {
        Ok(value) => format!("ok {}", jcs::to_string(&value)),
        Err(fault) => format!("refused {}:{}", fault.line, fault.column),
    }
}

/// Base64url: the bytes in hex.
pub fn b64(input: &[u8]) -> String {
    let text = std::str::from_utf8(input).ok();
    match text.and_then(capability::b64::decode) {
        Some(bytes) => format!("ok {}", hex::encode(bytes)),
        None => "refused".to_owned(),
    }
}

/// The text by each way into a URL, a line for each.
pub fn url(input: &[u8]) -> String {
    let origin = Origin::parse("https://tools.example");
    let line = |target: Result<Target, UrlError>| match target {
        Ok(target) => target.to_string(),
        Err(error) => format!("refused {error:?}"),
    };
    let text = std::str::from_utf8(input).unwrap_or("\u{0}");
    format!(
        "location {}\nhtu {}\nrequest {}\norigin {}\nauthority {}",
        line(Target::location(text)),
        line(Target::htu(text)),
        line(
            origin
                .clone()
                .and_then(|origin| Target::request(&origin, input))
        ),
        Origin::parse(text).map_or_else(
            |error| format!("refused {error:?}"),
            |origin| origin.to_string()
        ),
        origin.is_ok_and(|origin| origin.is_authority(input)),
    )
}

/// A SPIFFE ID, and whether it names a workload.
pub fn spiffe(input: &[u8]) -> String {
    let text = std::str::from_utf8(input).unwrap_or("\u{0}");
    match SpiffeId::parse(text) {
        Ok(id) => format!(
            "ok {} {} {}",
            id.is_workload(),
            id.trust_domain(),
            id.path()
        ),
        Err(error) => format!("refused {error:?}"),
    }
}

/// A certificate, as DER and as PEM: all that is read of it.
pub fn x509(input: &[u8]) -> String {
    let line = |leaf: Result<Leaf, _>| match leaf {
        Ok(leaf) => format!("ok {leaf:?} {:?}", leaf.workload()),
        Err(error) => format!("refused {error:?}"),
    };
    format!(
        "der {}\npem {}",
        line(Leaf::from_der(input)),
        line(Leaf::from_pem(input))
    )
}

/// A line with a `content-type`, one with a `content-encoding`, one with pointers,
/// each followed by a space, then a body: is it JSON, which of the pointers can be
/// one, and what they find.
pub fn body(input: &[u8]) -> String {
    let mut parts = input.splitn(4, |byte| *byte == b'\n');
    let mut part = || parts.next().unwrap_or_default();
    let (media, coding, pointers, body) = (part(), part(), part(), part());
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    let pointers = text(pointers);
    let usable = pointers
        .split(' ')
        .filter(|pointer| body::is_pointer(pointer));
    let pointers: Vec<String> = usable.map(str::to_owned).collect();
    format!(
        "{} {pointers:?} {:?}",
        body::is_json(&text(media), &text(coding)),
        body::facts(body, &pointers)
    )
}

/// A line with the type of an element, then a body: the one message that it is.
pub fn message(input: &[u8]) -> String {
    let mut parts = input.splitn(2, |byte| *byte == b'\n');
    let kind = parts.next().unwrap_or_default();
    let mut protocols = Protocol::ALL.into_iter();
    let Some(protocol) = protocols.find(|it| it.kind().as_bytes() == kind) else {
        return "no such type".to_owned();
    };
    match Call::read(protocol, parts.next().unwrap_or_default()) {
        Some(call) => format!("ok {call:?}"),
        None => "refused".to_owned(),
    }
}

/// A JWK: its thumbprint and its SubjectPublicKeyInfo.
pub fn jwk(input: &[u8]) -> String {
    let Ok(jwk) = capability::json::parse(input, &Limits::default()) else {
        return "refused as JSON".to_owned();
    };
    match PublicKey::from_jwk(&jwk) {
        Ok(key) => format!("ok {} {}", key.thumbprint(), hex::encode(key.spki_der())),
        Err(error) => format!("refused {error:?}"),
    }
}

/// `authorization_details`: the normalised element.
pub fn action(input: &[u8]) -> String {
    let Ok(details) = capability::json::parse(input, &Limits::default()) else {
        return "refused as JSON".to_owned();
    };
    match Action::from_authorization_details(&details) {
        Ok(action) => format!("ok {}", jcs::to_string(&action.to_details())),
        Err(error) => format!("refused {error:?}"),
    }
}

/// A token's form: all that it says.
pub fn token(input: &[u8]) -> String {
    match UnverifiedToken::parse(input, &Limits::default()) {
        Ok(token) => format!("ok {:?}", token.leave_to_record().into_claims()),
        Err(reason) => format!("refused {reason}"),
    }
}

/// A proof's form: the nonce that it claims.
pub fn proof(input: &[u8]) -> String {
    match UnverifiedProof::parse(input, &Limits::default()) {
        Ok(proof) => format!("ok {:?}", proof.claimed_nonce()),
        Err(reason) => format!("refused {reason}"),
    }
}
