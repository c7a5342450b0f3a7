//! What must hold, for each parser.

use std::cell::RefCell;
use std::sync::OnceLock;

use audit::group::Group;
use base64ct::{Base64UrlUnpadded, Encoding};
use capability::action::{Action, Body};
use capability::body;
use capability::jws::UnverifiedJws;
use capability::key::PublicKey;
use capability::proof::UnverifiedProof;
use capability::rpc::{Call, Protocol};
use capability::spiffe::{self, SpiffeId};
use capability::token::UnverifiedToken;
use capability::url::{Origin, Target};
use capability::x509::Leaf;
use capability::{Limits, Portable, Reason, jcs};
use decision_api::{FromControlPlane, FromFilter, Question};
use probe::guest::Guest;
use prost::Message;
use serde_json::Value;

/// Strict JSON is JSON, means what it means to others, and its canonical form
/// stays as it is.
pub fn json(input: &[u8]) {
    let Ok(value) = capability::json::parse(input, &Limits::default()) else {
        return;
    };
    let other: Result<Value, _> = serde_json::from_slice(input);
    assert_eq!(other.ok().as_ref(), Some(&value), "another reader");
    let text = jcs::to_string(&value);
    let back = capability::json::parse(text.as_bytes(), &Limits::default());
    let back = back.map(|back| jcs::to_string(&back));
    assert_eq!(back.as_ref(), Ok(&text), "the canonical form");
}

/// Each value has one spelling, and another strict decoder agrees.
pub fn b64(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    let bytes = capability::b64::decode(text);
    assert_eq!(bytes, Base64UrlUnpadded::decode_vec(text).ok());
    if let Some(bytes) = bytes {
        assert_eq!(capability::b64::encode(&bytes), text);
    }
}

/// Normal forms stay, a path never turns into an authority, and what is compared
/// is what came.
pub fn url(input: &[u8]) {
    let Ok(origin) = Origin::parse("https://tools.example") else {
        return;
    };
    if origin.is_authority(input) {
        let text = String::from_utf8_lossy(input).to_ascii_lowercase();
        assert!(matches!(
            text.as_str(),
            "tools.example" | "tools.example:443"
        ));
    }
    if let Ok(target) = Target::request(&origin, input) {
        assert_eq!(target.origin(), &origin);
        let path = input.split(|byte| *byte == b'?').next();
        assert_eq!(Some(target.path().as_bytes()), path);
    }
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    if let Ok(target) = Target::location(text) {
        let normal = target.to_string();
        assert!(target.is_htu(text), "it is its own htu");
        assert!(target.is_htu(&normal));
        assert_eq!(Target::location(&normal).as_ref(), Ok(&target));
        let path = target.path_and_query();
        let request = Target::request(target.origin(), path.as_bytes());
        assert_eq!(request, Ok(target), "its origin-form names it");
    }
    if let Ok(htu) = Target::htu(text) {
        let normal = htu.to_string();
        assert_eq!(Target::htu(&normal), Ok(htu));
    }
}

/// A name is its bytes, and has its two parts.
pub fn spiffe(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    match SpiffeId::parse(text) {
        Ok(id) => {
            assert_eq!(id.as_str(), text);
            assert_eq!(format!("spiffe://{}{}", id.trust_domain(), id.path()), text);
            assert_eq!(id.is_workload(), spiffe::is_workload(text));
        }
        Err(_) => assert!(!spiffe::is_workload(text)),
    }
}

/// Equal thumbprints are equal keys: what is read back from the key alone is the
/// key, with the same thumbprint.
pub fn jwk(input: &[u8]) {
    let Ok(jwk) = capability::json::parse(input, &Limits::default()) else {
        return;
    };
    let Ok(key) = PublicKey::from_jwk(&jwk) else {
        return;
    };
    let bare = PublicKey::from_jwk(&key.to_jwk());
    assert_eq!(
        bare.as_ref().map(PublicKey::thumbprint),
        Ok(key.thumbprint())
    );
    assert_eq!(bare, Ok(key));
    assert!(jwk.get("d").is_none() && jwk.get("k").is_none());
}

/// A JWS that nobody has signed is none.
pub fn jws(input: &[u8]) {
    let Ok(jws) = UnverifiedJws::parse(input, &Limits::default()) else {
        return;
    };
    assert_eq!(input.iter().filter(|byte| **byte == b'.').count(), 2);
    for key in keys() {
        let verified = jws.clone().verify(key, &Portable);
        assert!(verified.is_err() || was_minted(input));
    }
}

/// An action's normal form is read back as the same action, which covers itself.
pub fn action(input: &[u8]) {
    let Ok(details) = capability::json::parse(input, &Limits::default()) else {
        return;
    };
    let Ok(action) = Action::from_authorization_details(&details) else {
        return;
    };
    let details = action.to_details();
    let back = Action::from_authorization_details(&Value::Array(vec![details]));
    assert_eq!(back.as_ref(), Ok(&action));
    assert!(action.covers(action.method(), action.target()));
}

/// A token's claims, written anew, are read back as the same claims.
pub fn token(input: &[u8]) {
    let token = match UnverifiedToken::parse(input, &Limits::default()) {
        Ok(token) => token.leave_to_record(),
        Err(Reason::TooLarge | Reason::TokenMalformed | Reason::TokenAlgorithm) => return,
        Err(other) => {
            assert_eq!(other, Reason::TokenMalformed, "no other reason");
            return;
        }
    };
    assert_eq!(token.hash(), capability::sha256(input));
    assert!(!token.signature_checked());
    let claims = token.claims();
    assert!(spiffe::is_workload(&claims.client_id));
    let again = capability::token::signing_input("k", capability::Algorithm::Es256, claims);
    let again = format!("{again}.AAAA");
    let again = UnverifiedToken::parse(again.as_bytes(), &Limits::CEILING);
    let again = again.map(|token| token.leave_to_record().into_claims());
    assert_eq!(again.as_ref(), Ok(claims));
}

/// A proof that parses has a public key of its algorithm, and isn't a token.
pub fn proof(input: &[u8]) {
    match UnverifiedProof::parse(input, &Limits::default()) {
        Ok(_) => {
            let as_token = UnverifiedToken::parse(input, &Limits::default()).err();
            assert_eq!(as_token, Some(Reason::TokenMalformed));
        }
        Err(reason) => assert!(matches!(
            reason,
            Reason::TooLarge | Reason::ProofMalformed | Reason::ProofAlgorithm
        )),
    }
}

/// What the seeds were made with: see `examples/seeds.rs`.
fn around() -> &'static (String, Value) {
    static AROUND: OnceLock<(String, Value)> = OnceLock::new();
    AROUND.get_or_init(|| {
        let text = include_str!("around.json");
        let value: Value = serde_json::from_str(text).unwrap_or_default();
        let around = value.get("around").cloned().unwrap_or_default();
        (around.to_string(), value)
    })
}

fn keys() -> &'static [PublicKey] {
    static KEYS: OnceLock<Vec<PublicKey>> = OnceLock::new();
    KEYS.get_or_init(|| {
        let keys = around().1.pointer("/around/keys").and_then(Value::as_array);
        let keys = keys.map(Vec::as_slice).unwrap_or_default();
        keys.iter().flat_map(PublicKey::from_jwk).collect()
    })
}

/// Whether a token, or its hash in hex, is among those that were signed.
fn is_known(hash: &str) -> bool {
    let minted = around().1.get("minted").and_then(Value::as_array);
    minted.is_some_and(|minted| minted.iter().any(|known| known == hash))
}

fn was_minted(token: &[u8]) -> bool {
    is_known(&hex::encode(capability::sha256(token)))
}

/// Headers of a request, a line each: it passes only with a token and a proof
/// that were signed, for the path that it has.
pub fn gates(input: &[u8]) {
    let (around, _) = around();
    let verdict = probe::run("gates", &[around.as_bytes(), b"\n", input].concat());
    let verdict = verdict.unwrap_or_default();
    assert!(
        verdict.starts_with("ok ") || verdict.starts_with("refused "),
        "{verdict}"
    );
    if verdict.starts_with("ok ") {
        let parts: Vec<&str> = verdict.split('"').collect();
        let hash = parts.len().checked_sub(2).and_then(|at| parts.get(at));
        assert!(hash.is_some_and(|hash| is_known(hash)), "forged: {verdict}");
        let path = parts.get(5).copied().unwrap_or_default();
        let has = |line: &[u8]| {
            line.split_at_checked(b":path=".len())
                .is_some_and(|(name, value)| {
                    name.eq_ignore_ascii_case(b":path=") && value == path.as_bytes()
                })
        };
        assert!(
            input.split(|byte| *byte == b'\n').any(has),
            "another path: {verdict}"
        );
    }
}

/// The verdict natively and in wasm: the first byte names the probe, the rest is
/// its input. WRIT_PROBE_WASM holds the module's path.
pub fn wasm(input: &[u8]) {
    thread_local! {
        static GUEST: RefCell<Option<Guest>> = const { RefCell::new(None) };
    }
    let Some((first, rest)) = input.split_first() else {
        return;
    };
    let place = usize::from(*first) % probe::PROBES.len();
    let Some((name, probe)) = probe::PROBES.get(place) else {
        return;
    };
    let rest = match *name {
        "gates" => [around().0.as_bytes(), b"\n", rest].concat(),
        _ => rest.to_vec(),
    };
    GUEST.with_borrow_mut(|guest| {
        if guest.is_none() {
            match Guest::from_env() {
                Ok(new) => *guest = Some(new),
                Err(fault) => assert_eq!(fault.to_string(), "", "there is no module"),
            }
        }
        let there = guest.as_mut().map(|guest| guest.verdict(place, &rest));
        assert_eq!(there, Some(Ok(probe(&rest))), "{name}");
    });
}

/// A certificate is one value of the length that it says, whose names are ASCII and
/// in it; as PEM it is the same one.
pub fn x509(input: &[u8]) {
    if let Ok(leaf) = Leaf::from_der(input) {
        assert_eq!(leaf.sha256, capability::sha256(input));
        assert!(Leaf::from_der(&[input, &[0]].concat()).is_err());
        assert!(
            input
                .split_last()
                .is_some_and(|(_, cut)| Leaf::from_der(cut).is_err())
        );
        for uri in &leaf.uri_sans {
            assert!(uri.is_ascii());
            let mut places = input.windows(uri.len().max(1));
            assert!(uri.is_empty() || places.any(|bytes| bytes == uri.as_bytes()));
        }
        if let Some(id) = leaf.workload() {
            assert!(leaf.signs_handshakes_only && spiffe::is_workload(id));
            assert_eq!(leaf.uri_sans, [id]);
        }
        let base64 = base64ct::Base64::encode_string(input);
        let pem = format!("-----BEGIN CERTIFICATE-----\n{base64}\n-----END CERTIFICATE-----\n");
        assert_eq!(Leaf::from_pem(pem.as_bytes()).ok(), Some(leaf));
    }
    std::hint::black_box(Leaf::from_pem(input).is_ok());
}

/// What is read of a body is what another reader finds there, and small. The input
/// is that of the probe: `content-type`, `content-encoding`, pointers, body.
pub fn body(input: &[u8]) {
    let mut parts = input.splitn(4, |byte| *byte == b'\n');
    let mut part = || parts.next().unwrap_or_default();
    let (media, coding, pointers, body) = (part(), part(), part(), part());
    let (media, coding) = (
        String::from_utf8_lossy(media),
        String::from_utf8_lossy(coding),
    );
    if body::is_json(&media, &coding) {
        let media = media.to_ascii_lowercase();
        assert!(media.trim_start().starts_with("application/") && media.contains("json"));
        assert!(coding.is_empty() || coding.eq_ignore_ascii_case("identity"));
    }
    let pointers = String::from_utf8_lossy(pointers);
    let usable = pointers
        .split(' ')
        .filter(|pointer| body::is_pointer(pointer));
    let usable: Vec<String> = usable.map(str::to_owned).collect();
    let facts = body::facts(body, &usable);
    let mut asked = usable.iter();
    for (pointer, fact) in &facts {
        assert!(asked.any(|known| known == pointer), "in their order");
        let other: Option<Value> = serde_json::from_slice(body).ok();
        let other = other.as_ref().and_then(|value| value.pointer(pointer));
        let same = match fact {
            body::Scalar::Text(text) => {
                assert!(text.len() <= body::TEXT_MAX);
                other == Some(&Value::from(text.as_str()))
            }
            body::Scalar::Integer(number) => {
                assert!(number.unsigned_abs() <= capability::json::MAX_INTEGER);
                other == Some(&Value::from(*number))
            }
            body::Scalar::Flag(flag) => other == Some(&Value::from(*flag)),
        };
        assert!(same, "another value at {pointer}");
    }
}

/// A body that is a message is the same one to another reader, to one that takes names
/// in any case as well, and an action for it covers it. The input is that of the probe:
/// the type of an element, a line feed, a body.
pub fn message(input: &[u8]) {
    let mut parts = input.splitn(2, |byte| *byte == b'\n');
    let kind = parts.next().unwrap_or_default();
    let body = parts.next().unwrap_or_default();
    let mut protocols = Protocol::ALL.into_iter();
    let Some(protocol) = protocols.find(|it| it.kind().as_bytes() == kind) else {
        return;
    };
    let Some(call) = Call::read(protocol, body) else {
        return;
    };
    let other: Value = serde_json::from_slice(body).unwrap_or_default();
    // As a reader has it that takes names in any case: the only one, or the last.
    let at = |value: &Value, name: &str| {
        let members = value.as_object().into_iter().flatten();
        let mut alike = members.filter(|(known, _)| known.to_lowercase() == name.to_lowercase());
        alike.next_back().map(|(_, value)| value.clone())
    };
    assert_eq!(
        at(&other, "method"),
        Some(call.method().into()),
        "its method"
    );
    let params = at(&other, "params").unwrap_or_default();
    let named = match protocol {
        Protocol::Mcp if call.method().starts_with("resources/") => at(&params, "uri"),
        Protocol::Mcp => at(&params, "name"),
        Protocol::A2a => at(&params, "message")
            .and_then(|it| at(&it, "metadata"))
            .and_then(|it| at(&it, "skillId")),
    };
    if let Some(name) = call.name() {
        assert_eq!(named, Some(name.into()), "its name");
    }
    if let Some(digest) = call.arguments_digest() {
        let arguments = at(&params, "arguments").unwrap_or_else(|| serde_json::json!({}));
        let text = jcs::to_string(&arguments);
        assert_eq!(digest, capability::sha256(text.as_bytes()), "its arguments");
    }
    let action = Action::message(call.clone(), "https://tools.example/rpc");
    let again = action.clone().map(|it| it.to_details());
    let again = again.and_then(|details| Action::from_details(&details));
    assert_eq!(again, action, "its element");
    let covered = action.map(|it| it.covers_body(Body::of(body)));
    assert_eq!(covered, Ok(Ok(Some(call))));
}

/// A line of the log has one form; a group that is whole is what it says.
pub fn audit(input: &[u8]) {
    if let Ok(value) = audit::canonical::decode(input) {
        assert_eq!(
            audit::canonical::encode(&value).ok().as_deref(),
            Some(input)
        );
    }
    if let Ok(line) = audit::Line::decode(input) {
        assert_eq!(line.encode().ok().as_deref(), Some(input));
    }
    if let Ok(group) = Group::decode(input) {
        assert!(!group.is_empty(), "a group says something");
    }
    std::hint::black_box(audit::group::is_unfinished(input));
}

/// What is read of the decision stream is written and read back as the same.
pub fn decision(input: &[u8]) {
    fn stays<M: Message + Default + PartialEq + std::fmt::Debug>(input: &[u8]) {
        if let Ok(message) = M::decode(input) {
            let again = M::decode(message.encode_to_vec().as_slice());
            assert_eq!(again.as_ref(), Ok(&message));
        }
    }
    stays::<FromFilter>(input);
    stays::<FromControlPlane>(input);
    stays::<Question>(input);
}
