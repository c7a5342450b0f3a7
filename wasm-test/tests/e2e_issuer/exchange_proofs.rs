//! DPoP proofs at the token endpoint (RFC 9449, section 4.3).

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use wasm_test::client::{DpopKey, now_s};

use crate::evidence::encode;
use crate::judging::{Attempt, Bench, Verdict, issued, no, refused};
use crate::plane::Prepared;

type Case = (&'static str, &'static str, fn(&Bench, &mut Attempt));

fn claims(bench: &Bench, attempt: &mut Attempt, claims: Value) {
    attempt.prove(bench.proof_with(&claims));
}

/// The header of a good proof with `header` laid over, and the claims of one.
fn header(bench: &Bench, attempt: &mut Attempt, header: Value) {
    let mut all = json!({ "typ": "dpop+jwt", "alg": "ES256", "jwk": bench.key.jwk() });
    let members = all.as_object_mut().unwrap();
    members.extend(header.as_object().unwrap().clone());
    members.retain(|_, value| !value.is_null());
    attempt.prove(bench.key.sign(&all, &good_claims(bench)));
}

fn good_claims(bench: &Bench) -> Value {
    let jti: [u8; 12] = rand::random();
    json!({ "jti": encode(&jti), "htm": "POST", "htu": bench.plane.token_endpoint(), "iat": now_s() })
}

/// A proof whose `jwk` has `members` laid over.
fn jwk(bench: &Bench, attempt: &mut Attempt, members: Value) {
    let mut jwk = bench.key.jwk().clone();
    let all = jwk.as_object_mut().unwrap();
    all.extend(members.as_object().unwrap().clone());
    all.retain(|_, value| !value.is_null());
    header(bench, attempt, json!({ "jwk": jwk }));
}

const CASES: &[Case] = &[
    ("no proof", "missing_credentials", |_, a| a.proofs.clear()),
    ("two proofs", "proof_malformed", |b, a| {
        a.proofs.push(b.proof().into_bytes());
    }),
    ("two proofs in one header", "proof_malformed", |b, a| {
        a.prove(format!("{}, {}", b.proof(), b.proof()));
    }),
    ("an empty proof", "proof_malformed", |_, a| a.prove("")),
    ("bytes that are not UTF-8", "proof_malformed", |_, a| {
        a.prove(b"\xff\xfe\xfd".as_slice());
    }),
    ("an SVID", "proof_malformed", |b, a| a.prove(b.svid())),
    ("no JWS", "proof_malformed", |_, a| a.prove("proof")),
    ("five parts", "proof_malformed", |_, a| {
        a.prove("e30.e30.e30.e30.e30")
    }),
    ("padding", "proof_malformed", |b, a| {
        a.prove(format!("{}=", b.proof()))
    }),
    ("made two minutes ago", "proof_nonce", |b, a| {
        claims(b, a, json!({ "iat": now_s() - 120 }));
    }),
    ("made in two minutes", "proof_nonce", |b, a| {
        claims(b, a, json!({ "iat": now_s() + 120 }));
    }),
    ("without iat", "proof_malformed", |b, a| {
        claims(b, a, json!({ "iat": null }))
    }),
    ("iat as text", "proof_malformed", |b, a| {
        claims(b, a, json!({ "iat": now_s().to_string() }));
    }),
    ("a negative iat", "proof_malformed", |b, a| {
        claims(b, a, json!({ "iat": -1 }))
    }),
    ("for another method", "proof_method", |b, a| {
        claims(b, a, json!({ "htm": "GET" }))
    }),
    ("for a method in lower case", "proof_method", |b, a| {
        claims(b, a, json!({ "htm": "post" }));
    }),
    ("for another path", "proof_target", |b, a| {
        claims(
            b,
            a,
            json!({ "htu": format!("{}/token", b.plane.issuer()) }),
        );
    }),
    ("for the proxy", "proof_target", |b, a| {
        claims(b, a, json!({ "htu": b.url("/oauth2/token") }));
    }),
    ("for another host", "proof_target", |b, a| {
        let htu = b.plane.token_endpoint().replace("127.0.0.1", "localhost");
        claims(b, a, json!({ "htu": htu }));
    }),
    ("for another scheme", "proof_target", |b, a| {
        let htu = b.plane.token_endpoint().replace("http:", "https:");
        claims(b, a, json!({ "htu": htu }));
    }),
    ("for a path alone", "proof_target", |b, a| {
        claims(b, a, json!({ "htu": "/oauth2/token" }));
    }),
    ("without htu", "proof_malformed", |b, a| {
        claims(b, a, json!({ "htu": null }))
    }),
    ("without jti", "proof_malformed", |b, a| {
        claims(b, a, json!({ "jti": null }))
    }),
    ("an empty jti", "proof_malformed", |b, a| {
        claims(b, a, json!({ "jti": "" }))
    }),
    ("a jti that is a number", "proof_malformed", |b, a| {
        claims(b, a, json!({ "jti": 7 }));
    }),
    ("a jti of 1,000 letters", "proof_malformed", |b, a| {
        claims(b, a, json!({ "jti": "j".repeat(1_000) }));
    }),
    ("over 4 KiB", "too_large", |b, a| {
        claims(b, a, json!({ "filler": "x".repeat(4_000) }))
    }),
    ("typ JWT", "proof_malformed", |b, a| {
        header(b, a, json!({ "typ": "JWT" }))
    }),
    ("typ in upper case", "proof_malformed", |b, a| {
        header(b, a, json!({ "typ": "DPOP+JWT" }));
    }),
    ("no typ", "proof_malformed", |b, a| {
        header(b, a, json!({ "typ": null }))
    }),
    ("alg none", "proof_algorithm", |b, a| {
        header(b, a, json!({ "alg": "none" }))
    }),
    ("alg nOnE", "proof_algorithm", |b, a| {
        header(b, a, json!({ "alg": "nOnE" }))
    }),
    ("alg HS256", "proof_algorithm", |b, a| {
        header(b, a, json!({ "alg": "HS256" }))
    }),
    ("alg RS256", "proof_algorithm", |b, a| {
        header(b, a, json!({ "alg": "RS256" }))
    }),
    ("an alg that is not the key's", "proof_algorithm", |b, a| {
        header(b, a, json!({ "alg": "Ed25519" }));
    }),
    ("no alg", "proof_malformed", |b, a| {
        header(b, a, json!({ "alg": null }))
    }),
    ("crit", "proof_malformed", |b, a| {
        header(b, a, json!({ "crit": ["x"] }))
    }),
    ("no jwk", "proof_malformed", |b, a| {
        header(b, a, json!({ "jwk": null }))
    }),
    ("a kid for a jwk", "proof_malformed", |b, a| {
        header(b, a, json!({ "jwk": null, "kid": "1" }));
    }),
    ("a private jwk", "proof_malformed", |b, a| {
        jwk(b, a, json!({ "d": "AAAA" }))
    }),
    ("a symmetric jwk", "proof_malformed", |b, a| {
        header(b, a, json!({ "jwk": { "kty": "oct", "k": "AAAA" } }));
    }),
    ("another curve's name", "proof_malformed", |b, a| {
        jwk(b, a, json!({ "crv": "P-384" }))
    }),
    ("no kty", "proof_malformed", |b, a| {
        jwk(b, a, json!({ "kty": null }))
    }),
    ("a short x", "proof_malformed", |b, a| {
        jwk(b, a, json!({ "x": "AAAA" }))
    }),
    ("the point at infinity", "proof_malformed", |b, a| {
        let zero = encode(&[0; 32]);
        jwk(b, a, json!({ "x": zero, "y": zero }));
    }),
    ("another key's jwk", "proof_signature", |b, a| {
        let other = DpopKey::generate().unwrap();
        header(b, a, json!({ "jwk": other.jwk() }));
    }),
    ("another proof's signature", "proof_signature", |b, a| {
        let (one, two) = (b.proof(), b.proof());
        let (input, _) = one.rsplit_once('.').unwrap();
        let (_, signature) = two.rsplit_once('.').unwrap();
        a.prove(format!("{input}.{signature}"));
    }),
    ("a signature of zeros", "proof_signature", |b, a| {
        let proof = b.proof();
        let (input, _) = proof.rsplit_once('.').unwrap();
        a.prove(format!("{input}.{}", encode(&[0; 64])));
    }),
    ("no signature", "proof_signature", |b, a| {
        let proof = b.proof();
        let (input, _) = proof.rsplit_once('.').unwrap();
        a.prove(format!("{input}."));
    }),
];

#[tokio::test]
async fn a_wrong_proof_is_told_and_changes_nothing() {
    let bench = Bench::start().await;
    for (what, reason, spoil) in CASES {
        let mut attempt = bench.attempt();
        spoil(&bench, &mut attempt);
        let error = match *reason {
            "proof_nonce" => "use_dpop_nonce",
            _ => "invalid_dpop_proof",
        };
        refused(what, &bench.send(attempt).await, no(error, reason));
    }
    let reply = bench.token().await;
    let mut attempt = bench.attempt();
    attempt.prove(reply["access_token"].as_str().unwrap());
    let verdict = no("invalid_dpop_proof", "proof_malformed");
    refused("a capability", &bench.send(attempt).await, verdict);
    bench.token().await;
}

#[tokio::test]
async fn what_rfc_9449_allows_is_allowed() {
    let bench = Bench::start().await;
    let endpoint = bench.plane.token_endpoint();
    let allowed = [
        ("a clock 50 s behind", json!({ "iat": now_s() - 50 })),
        ("a clock 8 s ahead", json!({ "iat": now_s() + 8 })),
        (
            "a scheme in upper case",
            json!({ "htu": endpoint.replace("http:", "HTTP:") }),
        ),
        (
            "an escape that need not be",
            json!({ "htu": endpoint.replace("token", "%74oken") }),
        ),
        (
            "query and fragment, which do not count",
            json!({ "htu": format!("{endpoint}?a=b#c") }),
        ),
        (
            "a nonce that nobody asked for, and claims that nobody knows",
            json!({ "nonce": "n", "x": [1] }),
        ),
    ];
    // The plane must be older than the clock that is behind, or that proof may
    // be from before its start.
    let mut waiting = Vec::new();
    for (what, claims) in allowed {
        let mut attempt = bench.attempt();
        attempt.prove(bench.proof_with(&claims));
        let answer = bench.send(attempt).await;
        if what.contains("behind") {
            waiting.push(answer);
        } else {
            issued(what, &answer);
        }
    }
    for answer in waiting {
        let before_the_start = no("use_dpop_nonce", "proof_nonce");
        refused("made before the start", &answer, before_the_start);
    }
}

const REPLAYED: Verdict = no("invalid_dpop_proof", "proof_replayed");

#[tokio::test]
async fn a_proof_counts_once_also_when_fifty_show_it_at_once() {
    let bench = Bench::start().await;
    let proof = bench.proof();
    let (svid, attempts) = (bench.svid(), 50);
    let sends = (0..attempts).map(|_| {
        let mut attempt = bench.attempt();
        attempt.set("subject_token", svid.clone());
        attempt.prove(proof.clone());
        bench.send(attempt)
    });
    let mut outcomes: BTreeMap<String, u32> = BTreeMap::new();
    for answer in join_all(sends).await {
        if answer.status == 200 {
            issued("the first", &answer);
        } else {
            refused("another", &answer, REPLAYED);
        }
        *outcomes.entry(answer.summary()).or_default() += 1;
    }
    assert_eq!(outcomes.get("200"), Some(&1), "{outcomes:?}");

    // For another action it is the same proof still.
    let mut attempt = bench.attempt();
    attempt.set(
        "authorization_details",
        bench.details("/files/notes.txt").to_string(),
    );
    attempt.prove(proof);
    refused("for another action", &bench.send(attempt).await, REPLAYED);
}

#[tokio::test]
async fn nobody_can_use_up_the_name_of_anothers_proof() {
    let bench = Bench::start().await;
    let mine = bench.proof_with(&json!({ "jti": "the-same" }));
    let thief = DpopKey::generate().unwrap();
    let theirs = thief.proof_with(
        "POST",
        &bench.plane.token_endpoint(),
        None,
        &json!({ "jti": "the-same" }),
    );
    for (what, proof) in [("theirs", theirs), ("mine", mine)] {
        let mut attempt = bench.attempt();
        attempt.prove(proof);
        issued(what, &bench.send(attempt).await);
    }
}

#[tokio::test]
async fn what_was_refused_uses_up_no_proof() {
    let bench = Bench::start().await;
    let proof = bench.proof();
    let mut attempt = bench.attempt();
    attempt.set(
        "authorization_details",
        bench.details("/admin/keys.txt").to_string(),
    );
    attempt.prove(proof.clone());
    let denied = no("access_denied", "policy_denied");
    refused("policy's no", &bench.send(attempt).await, denied);
    let mut attempt = bench.attempt();
    attempt.prove(proof);
    issued(
        "the same proof for what is allowed",
        &bench.send(attempt).await,
    );
}

#[tokio::test]
async fn a_proof_from_before_a_restart_is_refused() {
    let mut bench = Bench::start().await;
    bench.token().await;
    let used = bench.proof();
    let unused = bench.proof();
    // The clock of who made it is ahead: it says that it is from after the restart.
    let ahead = bench.proof_with(&json!({ "iat": now_s() + 9 }));
    for (what, proof) in [("in time", &used), ("ahead", &ahead)] {
        let mut attempt = bench.attempt();
        attempt.prove(proof.clone());
        issued(what, &bench.send(attempt).await);
    }
    bench.plane = bench.plane.restart().await;
    for (what, proof) in [
        ("a used proof", used),
        ("an unused proof", unused),
        ("a used proof of a clock ahead", ahead),
    ] {
        let mut attempt = bench.attempt();
        attempt.prove(proof);
        let stale = no("use_dpop_nonce", "proof_nonce");
        refused(what, &bench.send(attempt).await, stale);
    }
    // What is made after the start is good at once, with the nonce that is asked for.
    bench.token().await;
}

async fn join_all<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut futures: Vec<_> = futures.map(Box::pin).collect();
    let mut done: Vec<Option<F::Output>> = futures.iter().map(|_| None).collect();
    std::future::poll_fn(|context| {
        for (future, done) in futures.iter_mut().zip(&mut done) {
            if done.is_none()
                && let std::task::Poll::Ready(output) = future.as_mut().poll(context)
            {
                *done = Some(output);
            }
        }
        if done.iter().all(Option::is_some) {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await;
    done.into_iter().flatten().collect()
}

#[tokio::test]
async fn what_the_ledger_refused_uses_up_no_proof() {
    let over = "[limits]\noutstanding_per_agent = 1\n[token]\nlifetime_s = 4";
    let bench = Bench::over(Prepared::new().with(over).start().await);
    bench.token().await;
    let proof = bench.proof();
    let show = async || {
        let mut attempt = bench.attempt();
        attempt.prove(proof.clone());
        bench.send(attempt).await
    };
    let limit = Verdict {
        status: 429,
        error: "temporarily_unavailable",
        reason: "limit_exceeded",
    };
    let first = show().await;
    refused("at the limit", &first, limit);
    assert_eq!(first.header("retry-after"), Some("1"));
    // As it is told to, until the first token has ended.
    let until = Instant::now() + Duration::from_secs(20);
    let last = loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let answer = show().await;
        if answer.status != 429 || Instant::now() > until {
            break answer;
        }
    };
    issued("the same proof, once there is room", &last);
    refused("and then no more", &show().await, REPLAYED);
}
