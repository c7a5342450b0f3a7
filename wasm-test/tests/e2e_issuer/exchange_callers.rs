//! Who asks the token endpoint: evidence, registry, policy.

use serde_json::{Value, json};
use wasm_test::client::DpopKey;
use wasm_test::system::AGENT;

use crate::evidence::signed_otherwise;
use crate::judging::{Bench, Case, Verdict, issued, judge, no, refused};
use crate::plane::Prepared;

const EVIDENCE: &[Case] = &[
    (
        "an SVID for another audience",
        no("invalid_request", "token_audience"),
        |b, a| {
            let svid = b
                .authority
                .svid(AGENT, "https://elsewhere.example", &json!({}));
            a.set("subject_token", svid);
        },
    ),
    (
        "an SVID for the issuer and another",
        no("invalid_request", "token_audience"),
        |b, a| {
            let issuer = b.plane.issuer();
            let both = json!({ "aud": [issuer, "https://elsewhere.example"] });
            a.set("subject_token", b.authority.svid(AGENT, &issuer, &both));
        },
    ),
    (
        "an SVID for the issuer with a slash",
        no("invalid_request", "token_audience"),
        |b, a| {
            let audience = format!("{}/", b.plane.issuer());
            a.set(
                "subject_token",
                b.authority.svid(AGENT, &audience, &json!({})),
            );
        },
    ),
    (
        "an SVID that is over",
        no("invalid_request", "token_expired"),
        |b, a| {
            let over = json!({ "iat": 1_000_000, "exp": 1_000_300 });
            a.set(
                "subject_token",
                b.authority.svid(AGENT, &b.plane.issuer(), &over),
            );
        },
    ),
    (
        "an SVID that begins later",
        no("invalid_request", "token_not_yet_valid"),
        |b, a| {
            let later = json!({ "nbf": wasm_test::client::now_s() + 120 });
            a.set(
                "subject_token",
                b.authority.svid(AGENT, &b.plane.issuer(), &later),
            );
        },
    ),
    (
        "an SVID without an end",
        no("invalid_request", "token_malformed"),
        |b, a| {
            let endless = json!({ "exp": null });
            a.set(
                "subject_token",
                b.authority.svid(AGENT, &b.plane.issuer(), &endless),
            );
        },
    ),
    (
        "an SVID whose claims were changed",
        no("invalid_request", "token_signature"),
        |b, a| {
            let (good, other) = (b.svid(), b.svid());
            let claims = other.split('.').nth(1).unwrap();
            let parts: Vec<&str> = good.split('.').collect();
            a.set(
                "subject_token",
                format!("{}.{claims}.{}", parts[0], parts[2]),
            );
        },
    ),
    (
        "an SVID signed with another key",
        no("invalid_request", "token_signature"),
        |b, a| {
            let forged = b
                .authority
                .impostor()
                .svid(AGENT, &b.plane.issuer(), &json!({}));
            a.set("subject_token", forged);
        },
    ),
    (
        "an SVID of another trust domain",
        no("invalid_request", "token_signature"),
        |b, a| {
            let foreign = "spiffe://elsewhere.example/agent/demo";
            a.set(
                "subject_token",
                b.authority.svid(foreign, &b.plane.issuer(), &json!({})),
            );
        },
    ),
    (
        "an SVID that names nobody",
        no("invalid_request", "token_malformed"),
        |b, a| {
            let nobody = b.authority.svid("demo", &b.plane.issuer(), &json!({}));
            a.set("subject_token", nobody);
        },
    ),
    (
        "an SVID with alg none",
        no("invalid_request", "token_malformed"),
        |b, a| {
            let header = json!({ "alg": "none" });
            let svid = b
                .authority
                .svid_with(AGENT, &b.plane.issuer(), &json!({}), &header);
            let unsigned = svid.rsplit_once('.').unwrap().0;
            a.set("subject_token", format!("{unsigned}."));
        },
    ),
    (
        "an SVID over 8 KiB",
        no("invalid_request", "too_large"),
        |b, a| {
            let long = json!({ "filler": "x".repeat(9_000) });
            a.set(
                "subject_token",
                b.authority.svid(AGENT, &b.plane.issuer(), &long),
            );
        },
    ),
    (
        "something that is no JWT",
        no("invalid_request", "token_malformed"),
        |_, a| {
            a.set("subject_token", "a.b".to_owned());
        },
    ),
    (
        "a proof as the SVID",
        no("invalid_request", "token_malformed"),
        |b, a| {
            a.set("subject_token", b.proof());
        },
    ),
];

#[tokio::test]
async fn evidence_that_proves_nothing_is_told_why() {
    let bench = Bench::start().await;
    judge(&bench, EVIDENCE).await;

    // A capability is no evidence either, though we signed it ourselves.
    let body = bench.token().await;
    let token = body["access_token"].as_str().unwrap().to_owned();
    let mut attempt = bench.attempt();
    attempt.set("subject_token", token);
    let answer = bench.send(attempt).await;
    assert_eq!(answer.status, 400, "{}", answer.text());
    assert_eq!(answer.json()["error"], "invalid_request");
}

#[tokio::test]
async fn an_svid_serves_until_it_ends_under_a_limited_number_of_keys() {
    let bench = Bench::start().await;
    let svid = bench.svid();
    let keys: Vec<DpopKey> = (0..17).map(|_| DpopKey::generate().unwrap()).collect();
    let attempt = |key: &DpopKey| {
        let mut attempt = bench.attempt();
        attempt.set("subject_token", svid.clone());
        attempt.prove(key.proof("POST", &bench.plane.token_endpoint(), None));
        attempt
    };
    for key in &keys[..16] {
        issued("one of sixteen keys", &bench.send(attempt(key)).await);
    }
    let limit = Verdict {
        status: 400,
        error: "invalid_request",
        reason: "limit_exceeded",
    };
    refused("a 17th key", &bench.send(attempt(&keys[16])).await, limit);
    for key in &keys[..16] {
        issued("a key that was seen", &bench.send(attempt(key)).await);
    }
    refused(
        "the 17th again",
        &bench.send(attempt(&keys[16])).await,
        limit,
    );
    issued("another SVID", &bench.send(bench.attempt()).await);

    // The refusal of a caller who is known is an entry.
    let entries = bench.plane.entries();
    let limits = entries
        .iter()
        .filter(|entry| entry.to_string().contains("limit_exceeded"));
    assert_eq!(limits.count(), 2);
}

const STRANGER: &str = "spiffe://writ.example/agent/stranger";
const RETIRED: &str = "spiffe://writ.example/agent/retired";

#[tokio::test]
async fn registry_and_policy_say_no_and_the_log_says_so() {
    let agents = format!(
        "[[agent]]\nspiffe_id = \"{AGENT}\"\nowner = \"a@example.com\"\n\
         [[agent]]\nspiffe_id = \"{RETIRED}\"\nowner = \"b@example.com\"\nactive = false\n"
    );
    let bench = Bench::over(Prepared::new().with(&agents).start().await);
    let as_agent = |agent: &str| bench.attempt_of(agent);
    let inactive = no("access_denied", "agent_inactive");
    for _ in 0..2 {
        refused(
            "a stranger",
            &bench.send(as_agent(STRANGER)).await,
            inactive,
        );
    }
    refused(
        "a retired one",
        &bench.send(as_agent(RETIRED)).await,
        inactive,
    );
    for path in ["/admin/keys.txt", "/files", "/Files/report.txt"] {
        let mut attempt = bench.attempt();
        attempt.set("authorization_details", bench.details(path).to_string());
        let denied = no("access_denied", "policy_denied");
        let answer = bench.send(attempt).await;
        refused(path, &answer, denied);
        // What the rules are is nobody's business (attack L12).
        assert!(!answer.text().contains("read-files"), "{}", answer.text());
    }

    let entries = bench.plane.entries();
    let count = |words: &[&str]| {
        let fits = |entry: &&Value| {
            let text = entry.to_string();
            words.iter().all(|word| text.contains(word))
        };
        entries.iter().filter(fits).count()
    };
    assert_eq!(
        count(&["\"kind\":\"discover\"", STRANGER]),
        1,
        "once, however often it asks"
    );
    assert_eq!(count(&["agent_inactive", STRANGER]), 2);
    assert_eq!(count(&["agent_inactive", RETIRED]), 1);
    assert_eq!(count(&["policy_denied", AGENT, "/admin/keys.txt"]), 1);
    assert_eq!(count(&["policy_denied", AGENT]), 3);
}

/// What is counted is what was signed and never the signature, of which anybody makes more.
#[tokio::test]
async fn an_svid_with_another_good_signature_is_the_same_evidence() {
    let limits = "[limits]\nkeys_per_evidence = 2";
    let mut bench = Bench::over(Prepared::new().with(limits).start().await);
    let svid = bench.svid();
    let other = signed_otherwise(&svid);
    let shown = async |bench: &Bench, svid: &str| {
        let mut attempt = bench.attempt();
        attempt.set("subject_token", svid.to_owned());
        bench.send(attempt).await
    };
    issued("as it was made", &shown(&bench, &svid).await);
    issued("the same key", &shown(&bench, &other).await);
    bench.key = DpopKey::generate().unwrap();
    issued("signed otherwise", &shown(&bench, &other).await);
    bench.key = DpopKey::generate().unwrap();
    for (what, svid) in [("as it was made", &svid), ("signed otherwise", &other)] {
        let answer = shown(&bench, svid).await;
        refused(what, &answer, no("invalid_request", "limit_exceeded"));
    }
    bench.token().await;
}
