//! The examples of RFCs 7515, 7638, 8037, 8705 and 9449, and the `htu` table.

use base64ct::{Base64, Encoding};
use capability::b64;
use serde_json::{Value, json};

use crate::common::{Signing, vector_json};
use crate::gates::verdict_of;
use crate::probe::{both, both_of};

#[test]
fn thumbprints() {
    let Some(file) = vector_json("rfc/jwk_thumbprints.json") else {
        return;
    };
    let vectors = file["vectors"].as_array().unwrap();
    assert_eq!(vectors.len(), 6);
    for vector in vectors {
        let verdict = both("jwk", vector["jwk"].to_string().as_bytes());
        if vector["jwk"]["kty"] == "RSA" {
            assert_eq!(verdict, "refused Unsupported");
        } else {
            let thumbprint = vector["sha256"].as_str().unwrap();
            assert_eq!(verdict.split(' ').nth(1), Some(thumbprint), "{vector}");
        }
    }
}

#[test]
fn published_jwss_and_their_twins() {
    let Some(file) = vector_json("rfc/jws_examples_and_token_identity.json") else {
        return;
    };
    let verdict = |jws: &Value, jwk: &Value| both_of("jws", &json!({"jws": jws, "jwk": jwk}));
    for valid in file["valid"].as_array().unwrap() {
        assert!(verdict(&valid["jws"], &valid["jwk"]).starts_with("ok "));
    }
    let jwk = &file["valid"][0]["jwk"];
    let derived = &file["derived_same_token_identity"];
    // The same token in other bytes: which is why identity is never the bytes.
    assert!(verdict(&derived["ecdsa_s_negated"], jwk).starts_with("ok "));
    let forms = derived["noncanonical_base64url_signature"]
        .as_array()
        .unwrap();
    assert_eq!(forms.len(), 15);
    let others = [
        "padded_signature",
        "std_alphabet_signature",
        "whitespace_in_segment",
    ];
    let others = others.iter().chain(&["four_segments", "leading_dot"]);
    for form in forms.iter().chain(others.map(|name| &derived[name])) {
        assert!(form.is_string());
        assert_eq!(verdict(form, jwk), "refused Malformed", "{form}");
    }
}

#[test]
fn proofs_of_rfc_9449() {
    let Some(file) = vector_json("rfc/rfc9449_dpop.json") else {
        return;
    };
    let vectors = file["vectors"].as_array().unwrap();
    assert_eq!(vectors.len(), 11);
    for vector in vectors {
        let mut input = vector.clone();
        input["jkt"] = file["jkt"].clone();
        input["window_s"] = json!(300);
        input["now_ms"] = json!(vector["verify_at"].as_u64().unwrap() * 1000);
        let verdict = both_of("check_proof", &input);
        let expected = match vector["id"].as_str().unwrap() {
            "rfc9449-resource-wrong-method" => "refused proof_method",
            "rfc9449-resource-wrong-url" => "refused proof_target",
            "rfc9449-resource-wrong-token" | "rfc9449-token-proof-at-resource-no-ath" => {
                "refused proof_token_hash"
            }
            "rfc9449-resource-stale" => "refused proof_time",
            id if id.starts_with("rfc9449-resource") => "ok e1j3V_bKic8-LAEB ",
            _ => "ok -BwC3ESc6acc2lTc ",
        };
        assert!(verdict.starts_with(expected), "{}: {verdict}", vector["id"]);
        assert_eq!(verdict.starts_with("ok "), vector["expect"] == "accept");
    }
}

/// Every row by the RFC's rule. Where the strict rule takes the request at all,
/// it agrees; what it doesn't take is refused whatever the proof.
#[test]
fn the_htu_table() {
    let Some(file) = vector_json("rfc/htu_normalisation.json") else {
        return;
    };
    let cases = file["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 34);
    for case in cases {
        // The one open row: an IPv6 address has one spelling here.
        let by_rfc = case["match"].as_bool().unwrap_or(true);
        let strict = if case["request"] == "https://a.example/a%2Fb" {
            "refused Encoded".to_owned()
        } else {
            by_rfc.to_string()
        };
        assert_eq!(both_of("htu", case), format!("{by_rfc} {strict}"), "{case}");
    }
}

/// RFC 8705: the certificate's own digest binds, and nothing that looks like it.
#[test]
fn certificates_of_rfc_8705() {
    let Some(file) = vector_json("rfc/rfc8705_x5t.json") else {
        return;
    };
    let pem = file["certificate_pem"].as_str().unwrap();
    let body: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    let der = hex::encode(Base64::decode_vec(&body).unwrap());
    // Read as the filter reads it, and as Envoy writes it.
    let escaped = pem
        .replace('\n', "%0A")
        .replace(' ', "%20")
        .replace('+', "%2B")
        .replace('/', "%2F")
        .replace('=', "%3D");
    let digest = b64::decode32(file["x5t#S256"].as_str().unwrap()).unwrap();
    for text in [pem, &escaped] {
        let verdict = both("x509", text.as_bytes());
        let read = format!("pem ok Leaf {{ sha256: {digest:?}, uri_sans: []");
        assert!(verdict.contains(&read), "{verdict}");
    }
    let verdict = |x5t: &Value| {
        let row = json!({"token": {"claims": {"cnf": {"x5t#S256": x5t}}}});
        verdict_of(&row, Some(&der))
    };
    assert!(verdict(&file["x5t#S256"]).starts_with("ok "));
    let wrong = file["wrong_values_that_must_be_rejected"]
        .as_object()
        .unwrap();
    assert_eq!(wrong.len(), 6);
    for (name, x5t) in wrong {
        let expected = match name.as_str() {
            "hash_of_pem_text" | "spki_hash" => {
                "refused certificate_mismatch to spiffe://writ.example/agent/demo"
            }
            _ => "refused token_malformed",
        };
        assert_eq!(verdict(x5t), expected, "{name}");
    }
}

/// One rule for the names of Ed25519 (RFC 8037, RFC 9864): both mean it, in a
/// header and in a key, and no other spelling does.
#[test]
fn the_names_of_ed25519() {
    let key = Signing::ed25519("agent");
    for (name, good) in [
        ("Ed25519", true),
        ("EdDSA", true),
        ("ED25519", false),
        ("eddsa", false),
        ("Ed448", false),
    ] {
        let mut jwk = key.public().to_jwk();
        let row =
            json!({"proof": {"key": "ed25519", "header": {"alg": name, "jwk": {"alg": name}}}});
        assert_eq!(verdict_of(&row, None).starts_with("ok "), good, "{name}");
        jwk["alg"] = json!(name);
        let verdict = both("jwk", jwk.to_string().as_bytes());
        assert_eq!(verdict.starts_with("ok "), good, "{name}");
    }
}
