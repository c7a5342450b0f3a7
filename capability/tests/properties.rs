//! No parser panics, and what is printed is read back.
#![expect(clippy::unwrap_used, reason = "tests fail loudly")]

#[expect(dead_code, reason = "each test file uses its own part")]
mod common;

use capability::action::{Action, Body};
use capability::gates::{self, EdgeConfig, RequestView};
use capability::jws::{JwsError, UnverifiedJws};
use capability::key::{PublicKey, ecdsa_der};
use capability::proof::{Expected, UnverifiedProof};
use capability::rpc::{self, Call, Protocol};
use capability::spiffe::{self, SpiffeId};
use capability::token::{self, Claims, UnverifiedToken};
use capability::url::{Origin, Target};
use capability::{Limits, Portable, Reason, b64, jcs, json, proof, sha256};
use common::{AGENT, ISSUER, NOW_S, ORIGIN, Signing};
use proptest::prelude::*;
use serde_json::Value;

/// Any JSON value that the strict parser takes.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-(1_i64 << 53) + 1..1 << 53).prop_map(Value::from),
        any::<f64>()
            .prop_filter("finite", |f| f.is_finite() && f.fract() != 0.0)
            .prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map(any::<String>(), inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// Text that looks enough like the real thing to get past the first check.
fn url_like() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>(),
        "(https?://)?[a-zA-Z0-9.:@\\[\\]-]{0,12}(/[a-z.%;*0-9A-F/\\\\]{0,12})?([?#][a-z%&=0-9]{0,8})?",
        "/[a-z.%~0-9A-F/;]{0,16}(\\?[a-z=%0-9A-F]{0,8})?",
    ]
}

/// A message as a client has it.
#[derive(Clone, Debug)]
struct Sent {
    method: &'static str,
    name: String,
    arguments: Value,
}

fn message() -> impl Strategy<Value = Sent> {
    let method = prop_oneof![
        Just("tools/call"),
        Just("prompts/get"),
        Just("resources/read")
    ];
    let arguments = proptest::collection::btree_map("[ab]", 0..2_i64, 0..2);
    (method, "[a-b]{1,2}", arguments).prop_map(|(method, name, arguments)| Sent {
        method,
        name,
        arguments: serde_json::json!(arguments),
    })
}

fn claims() -> impl Strategy<Value = Claims> {
    let name = "[a-zA-Z0-9:/._-]{1,20}";
    let names = proptest::collection::vec(name, 0..4);
    let agents = proptest::collection::vec(
        "spiffe://[a-z0-9._-]{1,9}(/x[a-zA-Z0-9._-]{0,9}){1,3}",
        0..4,
    );
    (
        names,
        agents,
        name,
        any::<[u8; 32]>(),
        proptest::option::of(any::<[u8; 32]>()),
        proptest::option::of(0..1_u64 << 53),
        "/[a-z0-9~]{0,8}(\\?[a-z=&]{0,8})?",
        0..1_u64 << 53,
    )
        .prop_map(|(aud, others, id, jkt, x5t, nbf_s, path, exp_s)| Claims {
            aud,
            sub: if others.is_empty() {
                AGENT.to_owned()
            } else {
                id.clone()
            },
            chain: if others.is_empty() {
                Vec::new()
            } else {
                std::iter::once(AGENT.to_owned()).chain(others).collect()
            },
            jti: id,
            nbf_s,
            exp_s,
            x5t_s256: x5t.map(|digest| b64::encode(&digest)),
            action: Action::http("PUT", &format!("{ORIGIN}{path}")).unwrap(),
            ..common::claims(&b64::encode(&jkt))
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn json_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..64), text in "[\\[\\]{}\",:0-9eE.\\\\u-]{0,40}") {
        for bytes in [bytes.as_slice(), text.as_bytes()] {
            if let Ok(value) = json::parse(bytes, &Limits::default()) {
                prop_assert_eq!(json::parse(value.to_string().as_bytes(), &Limits::default()), Ok(value));
            }
        }
    }

    #[test]
    fn the_canonical_form_is_read_back_and_stays(value in any_json()) {
        let text = jcs::to_string(&value);
        let back = json::parse(text.as_bytes(), &Limits::CEILING).unwrap();
        prop_assert_eq!(&jcs::to_string(&back), &text);
        prop_assert_eq!(back, value);
    }

    #[test]
    fn urls_never_panic_and_normal_forms_stay(text in url_like()) {
        let origin = Origin::parse(ORIGIN).unwrap();
        let _ = origin.is_authority(text.as_bytes());
        let _ = Target::htu(&text);
        if let Ok(target) = Target::location(&text) {
            let normal = target.to_string();
            prop_assert!(target.is_htu(&normal));
            prop_assert_eq!(Target::location(&normal), Ok(target));
        }
    }

    /// F45: a path never turns into an authority, and what is compared is what came.
    #[test]
    fn path_in_is_path_compared(text in url_like(), prefix in "//?[a-z.]{0,8}") {
        let origin = Origin::parse(ORIGIN).unwrap();
        for text in [text.clone(), format!("{prefix}{text}")] {
            if let Ok(target) = Target::request(&origin, text.as_bytes()) {
                prop_assert_eq!(target.origin(), &origin);
                prop_assert_eq!(target.path(), text.split('?').next().unwrap());
                let absolute = format!("{ORIGIN}{text}");
                prop_assert_eq!(Target::location(&absolute), Ok(target));
            }
        }
    }

    #[test]
    fn keys_never_panic(jwk in any_json(), raw in any::<[u8; 32]>(), other in any::<[u8; 32]>()) {
        let _ = PublicKey::from_jwk(&jwk);
        let keys = [PublicKey::p256(raw, other), PublicKey::ed25519(raw)];
        for key in keys.into_iter().flatten() {
            prop_assert_eq!(PublicKey::from_jwk(&key.to_jwk()), Ok(key.clone()));
            prop_assert_eq!(b64::decode(&key.thumbprint()).unwrap().len(), 32);
        }
    }

    /// What is a name by the standard's grammar is taken, and one byte outside its
    /// alphabet is enough to be refused.
    #[test]
    fn names_are_taken_exactly(
        domain in "[a-z0-9._-]{1,20}",
        segments in proptest::collection::vec("[a-zA-Z0-9_-][a-zA-Z0-9._-]{0,9}", 0..4),
        foreign in "[^a-zA-Z0-9._/-]",
        place in any::<proptest::sample::Index>(),
        text in any::<String>(),
    ) {
        let path: String = segments.iter().map(|segment| format!("/{segment}")).collect();
        let name = format!("spiffe://{domain}{path}");
        let id = SpiffeId::parse(&name).unwrap();
        prop_assert_eq!((id.trust_domain(), id.path()), (domain.as_str(), path.as_str()));
        prop_assert_eq!(spiffe::is_workload(&name), !segments.is_empty());
        let mut spoilt = name.clone();
        spoilt.insert_str("spiffe://".len() + place.index(domain.len() + path.len()), &foreign);
        prop_assert!(SpiffeId::parse(&spoilt).is_err(), "{spoilt}");
        if let Ok(id) = SpiffeId::parse(&text) {
            prop_assert_eq!(id.as_str(), text);
        }
    }

    /// Whatever is an action has one normal form; the digest of a body is in it, and
    /// no other body is the action's.
    #[test]
    fn actions_have_one_form(
        details in any_json(),
        url in url_like(),
        digest in any::<bool>(),
        body in "[a-c]{0,2}",
        bound in "[a-c]{0,2}",
    ) {
        let _ = Action::from_authorization_details(&details);
        let mut element = serde_json::json!({
            "type": "http_request", "actions": ["PUT"], "locations": [url],
        });
        let digest = digest.then(|| sha256(bound.as_bytes()));
        if let Some(digest) = digest {
            element["content_digest"] = b64::encode(&digest).into();
        }
        if let Ok(action) = Action::from_details(&element) {
            prop_assert_eq!(action.content_digest(), digest);
            prop_assert!(action.covers(action.method(), action.target()));
            let fits = |body: Body<'_>| action.covers_body(body) == Ok(None);
            prop_assert_eq!(fits(Body::Unread), digest.is_none());
            prop_assert_eq!(fits(Body::of(body.as_bytes())), digest.is_none() || bound == body);
            prop_assert!(fits(Body::of(bound.as_bytes())));
            prop_assert_eq!(Action::from_details(&action.to_details()), Ok(action));
        }
    }

    /// What a token for a message covers has one reading, that one, and nothing else
    /// passes: neither another method, name or set of arguments, nor a member twice.
    #[test]
    fn a_message_is_covered_exactly(
        ours in message(),
        theirs in message(),
        bound in any::<bool>(),
        id in prop_oneof![any::<String>().prop_map(Value::from), (0..9_i64).prop_map(Value::from)],
        more in any_json(),
        twice in 0..4_usize,
        bytes in proptest::collection::vec(any::<u8>(), 0..40),
    ) {
        let element = |of: &Sent| {
            let mut element = serde_json::json!({
                "type": "mcp_request", "actions": [of.method], "locations": [format!("{ORIGIN}/mcp")],
                "name": of.name,
            });
            if bound && of.method != "resources/read" {
                element["arguments_digest"] = b64::encode(&rpc::digest(Some(&of.arguments)).unwrap()).into();
            }
            element
        };
        let member = |of: &Sent| if of.method == "resources/read" { "uri" } else { "name" };
        let mut params = serde_json::json!({"arguments": theirs.arguments, "_meta": more});
        params[member(&theirs)] = theirs.name.clone().into();
        let body = serde_json::json!({"jsonrpc": "2.0", "id": id, "method": theirs.method, "params": params}).to_string();
        let action = Action::from_details(&element(&ours)).unwrap();
        let covered = action.covers_body(Body::of(body.as_bytes()));
        let same = ours.method == theirs.method && ours.name == theirs.name;
        let arguments = !bound || ours.method == "resources/read" || ours.arguments == theirs.arguments;
        let expected = match (same, arguments) {
            (false, _) => Err(Reason::ActionMismatch),
            (true, false) => Err(Reason::BodyMismatch),
            (true, true) => Ok(()),
        };
        prop_assert_eq!(covered.map(|_| ()), expected);
        // The reading is an action of its own, which covers this body and says so.
        let read = Call::read(Protocol::Mcp, body.as_bytes()).unwrap();
        prop_assert_eq!((read.method(), read.name()), (theirs.method, Some(theirs.name.as_str())));
        let own = Action::message(read.clone(), &format!("{ORIGIN}/mcp")).unwrap();
        prop_assert_eq!(own.covers_body(Body::of(body.as_bytes())), Ok(Some(read)));
        prop_assert_eq!(Action::from_details(&own.to_details()), Ok(own));
        // A second member of a name, in whatever case, is no reading, wherever it stands.
        let name = ["method", "params", "Method", "id"][twice];
        let second = format!("{{\"{name}\":{},{}", serde_json::json!(theirs.method), body.strip_prefix('{').unwrap());
        prop_assert_eq!(Call::read(Protocol::Mcp, second.as_bytes()), None);
        for bytes in [&bytes[..], &[body.as_bytes(), &bytes[..1.min(bytes.len())]].concat()] {
            let _ = Call::read(Protocol::A2a, bytes);
            let cut = Call::read(Protocol::Mcp, bytes);
            prop_assert!(cut.is_none() || bytes.starts_with(body.as_bytes()));
        }
    }

    #[test]
    fn der_signatures_keep_their_numbers(signature in proptest::collection::vec(any::<u8>(), 0..70)) {
        let der = ecdsa_der(&signature);
        prop_assert_eq!(der.is_some(), signature.len() == 64);
    }

    #[test]
    fn tokens_and_proofs_never_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..60),
        header in any_json(),
        payload in any_json(),
        signature in any::<[u8; 8]>(),
    ) {
        let segment = |v: &Value| b64::encode(v.to_string().as_bytes());
        let text = format!("{}.{}.{}", segment(&header), segment(&payload), b64::encode(&signature));
        for bytes in [bytes.as_slice(), text.as_bytes()] {
            let token = UnverifiedToken::parse(bytes, &Limits::default()).err();
            prop_assert!(matches!(token, Some(Reason::TokenMalformed | Reason::TooLarge)));
            let proof = UnverifiedProof::parse(bytes, &Limits::default()).err();
            prop_assert!(matches!(proof, Some(Reason::ProofMalformed | Reason::TooLarge)));
        }
    }

    #[test]
    fn a_token_says_what_was_put_in(claims in claims()) {
        let key = Signing::p256("issuer");
        let text = token::signing_input("k", key.algorithm(), &claims) + ".AAAA";
        let token = UnverifiedToken::parse(text.as_bytes(), &Limits::default()).unwrap();
        let token = token.leave_to_record();
        prop_assert_eq!(token.claims(), &claims);
        prop_assert_eq!(token.hash(), sha256(text.as_bytes()));
        prop_assert!(!token.signature_checked());
    }

    #[test]
    fn the_gates_never_panic(
        names in proptest::collection::vec(prop_oneof![
            Just("authorization".to_owned()), Just("dpop".to_owned()), Just(":path".to_owned()),
            Just(":method".to_owned()), Just(":authority".to_owned()), "[a-z-]{1,8}",
        ], 0..8),
        values in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 8),
        scheme in any::<bool>(),
    ) {
        let headers: Vec<_> = names.into_iter().zip(values).map(|(name, mut value)| {
            if scheme && name == "authorization" {
                value = [b"DPoP ", b64::encode(&value).as_bytes()].concat();
            }
            (name.into_bytes(), value)
        }).collect();
        let config = EdgeConfig::new(ISSUER, ORIGIN, Origin::parse(ORIGIN).unwrap());
        let request = RequestView { headers: &headers, peer: None, body: Body::Unread, nonces: None };
        let refusal = gates::check(&request, &config, NOW_S * 1000, &Portable).unwrap_err();
        prop_assert_eq!(refusal.authenticated, None);
    }
}

proptest! {
    // Signing and checking are slow without optimisation.
    #![proptest_config(ProptestConfig::with_cases(6))]

    #[test]
    fn a_proof_says_what_was_put_in(jti in "[ -~]{1,40}", age_s in 0..60_u64, path in "/[a-z0-9~]{0,8}", old in any::<bool>()) {
        let key = if old { Signing::p256("agent") } else { Signing::ed25519("agent") };
        let target = Target::location(&format!("{ORIGIN}{path}")).unwrap();
        let claims = proof::ProofClaims {
            htu: target.to_string(),
            iat_s: NOW_S - age_s,
            jti: jti.clone(),
            ..common::proof_claims("token")
        };
        let text = key.seal(&proof::signing_input(&key.public().to_jwk(), key.algorithm(), &claims));
        let jkt = key.public().thumbprint();
        let expected = Expected {
            method: "GET", target: &target, now_ms: NOW_S * 1000, window_s: 60,
            ath: Some(sha256(b"token")), jkt: Some(&jkt), nonce: None,
        };
        let parsed = UnverifiedProof::parse(text.as_bytes(), &Limits::default()).unwrap();
        let verified = parsed.check(&expected, &Portable).unwrap();
        prop_assert_eq!(verified.jti(), &jti);
        prop_assert_eq!(verified.jkt(), &jkt);
        prop_assert_eq!(verified.key(), &key.public());
        prop_assert_eq!(verified.iat_s(), NOW_S - age_s);

        // As a JWS of no kind too, under its key and no other.
        let jws = UnverifiedJws::parse(text.as_bytes(), &Limits::default()).unwrap();
        let payload = jws.clone().verify(&key.public(), &Portable).unwrap().payload;
        prop_assert_eq!(b64::encode(&payload), text.split('.').nth(1).unwrap());
        let (other, kind) = (Signing::p256("other"), Signing::ed25519("other"));
        for (other, is_of_kind) in [(other, old), (kind, !old)] {
            let refused = jws.clone().verify(&other.public(), &Portable).unwrap_err();
            let expected = if is_of_kind { JwsError::Signature } else { JwsError::Algorithm };
            prop_assert_eq!(refused, expected);
        }

        // Any flipped bit is a refusal.
        let mut bytes = text.into_bytes();
        let at = usize::from(sha256(jti.as_bytes())[0]) * bytes.len() / 256;
        bytes[at] ^= 1;
        let flipped = UnverifiedProof::parse(&bytes, &Limits::default())
            .and_then(|proof| proof.check(&expected, &Portable));
        prop_assert!(flipped.is_err());
    }
}
