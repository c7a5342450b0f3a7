//! The token endpoint's parameters, one thing wrong at a time.

use serde_json::{Value, json};
use wasm_test::client::DpopKey;
use wasm_test::system::AGENT;

use crate::judging::{ACCESS, Attempt, Bench, GRANT, JWT, Verdict, form, issued, no, refused};
use crate::plane::Prepared;

/// One way to spoil an exchange, and what must come of it.
type Case = (&'static str, Verdict, fn(&Bench, &mut Attempt));

async fn judge(bench: &Bench, cases: &[Case]) {
    for (what, verdict, spoil) in cases {
        let mut attempt = bench.attempt();
        spoil(bench, &mut attempt);
        refused(what, &bench.send(attempt).await, *verdict);
    }
    // Whatever came before, the next good one is served.
    bench.token().await;
}

const REQUEST: Verdict = no("invalid_request", "malformed_credentials");
const TARGET: Verdict = no("invalid_target", "action_mismatch");
const DETAILS: Verdict = no("invalid_authorization_details", "action_mismatch");

const PARAMS: &[Case] = &[
    ("no grant_type", REQUEST, |_, a| a.set("grant_type", None)),
    ("an empty grant_type counts as none", REQUEST, |_, a| {
        a.set("grant_type", String::new());
    }),
    ("grant_type twice", REQUEST, |_, a| a.add("grant_type", GRANT)),
    (
        "another grant",
        no("unsupported_grant_type", "malformed_credentials"),
        |_, a| a.set("grant_type", "client_credentials".to_owned()),
    ),
    ("no subject_token", REQUEST, |_, a| a.set("subject_token", None)),
    ("subject_token twice", REQUEST, |_, a| {
        let token = a.get("subject_token");
        a.add("subject_token", &token);
    }),
    ("no subject_token_type", REQUEST, |_, a| {
        a.set("subject_token_type", None);
    }),
    ("subject_token_type of an access token", REQUEST, |_, a| {
        a.set("subject_token_type", ACCESS.to_owned());
    }),
    ("subject_token_type twice", REQUEST, |_, a| {
        a.add("subject_token_type", JWT);
    }),
    ("another requested_token_type", REQUEST, |_, a| {
        a.add("requested_token_type", JWT);
    }),
    (
        "scope",
        no("invalid_scope", "malformed_credentials"),
        |_, a| a.add("scope", "read"),
    ),
    ("actor_token", REQUEST, |b, a| a.add("actor_token", &b.svid())),
    ("client_secret", REQUEST, |_, a| a.add("client_secret", "s3cret")),
    ("client_assertion", REQUEST, |b, a| {
        a.add("client_assertion", &b.svid());
    }),
    ("another server's resource", TARGET, |_, a| {
        a.add("resource", "https://elsewhere.example");
    }),
    ("a resource that only begins alike", TARGET, |b, a| {
        a.add("resource", &format!("{}0/files", b.plane.origin()));
    }),
    ("a resource with a user in front", TARGET, |b, a| {
        let origin = b.plane.origin();
        a.add("resource", &format!("{origin}@elsewhere.example/"));
    }),
    ("a resource with a fragment", TARGET, |b, a| {
        a.add("resource", &b.url("/files/report.txt#top"));
    }),
    ("resource twice", TARGET, |b, a| {
        a.add("resource", &b.plane.origin());
        a.add("resource", &b.plane.origin());
    }),
    ("another audience", TARGET, |_, a| a.add("audience", "files")),
    ("audience twice", TARGET, |b, a| {
        a.add("audience", &b.plane.origin());
        a.add("audience", &b.plane.origin());
    }),
    ("parameters in the query", REQUEST, |_, a| {
        a.url.push_str("?grant_type=");
        a.url.push_str(GRANT);
    }),
    ("an empty query", REQUEST, |_, a| a.url.push('?')),
    ("JSON", REQUEST, |_, a| {
        a.content_type = Some("application/json".to_owned());
        a.body = Some(b"{}".to_vec());
    }),
    ("no content type", REQUEST, |_, a| a.content_type = None),
    ("multipart", REQUEST, |_, a| {
        a.content_type = Some("multipart/form-data; boundary=x".to_owned());
    }),
    ("an empty body", REQUEST, |_, a| a.body = Some(Vec::new())),
    ("bytes that are not UTF-8", REQUEST, |_, a| {
        a.body = Some(b"grant_type=\xff\xfe".to_vec());
    }),
    ("escaped bytes that are not UTF-8", REQUEST, |_, a| {
        let mut body = form(&a.params);
        body.extend_from_slice(b"&resource=%ff%fe");
        a.body = Some(body);
    }),
    (
        "a body over 32 KiB",
        no("invalid_request", "too_large"),
        |_, a| a.add("filler", &"x".repeat(40_000)),
    ),
];

#[tokio::test]
async fn a_wrong_parameter_is_told_and_changes_nothing() {
    judge(&Bench::start().await, PARAMS).await;
}

/// Sets the details to what `change` makes of the one good element.
fn element(bench: &Bench, attempt: &mut Attempt, change: impl FnOnce(&mut Value)) {
    let mut details = bench.details("/files/report.txt");
    change(&mut details[0]);
    attempt.set("authorization_details", details.to_string());
}

fn locations(bench: &Bench, attempt: &mut Attempt, locations: Value) {
    element(bench, attempt, |e| e["locations"] = locations);
}

const ACTIONS: &[Case] = &[
    ("no details", DETAILS, |_, a| a.set("authorization_details", None)),
    ("details that are no JSON", DETAILS, |_, a| {
        a.set("authorization_details", "[{".to_owned());
    }),
    ("no element", DETAILS, |_, a| {
        a.set("authorization_details", "[]".to_owned());
    }),
    ("an element that is not in an array", DETAILS, |b, a| {
        let one = b.details("/files/report.txt")[0].to_string();
        a.set("authorization_details", one);
    }),
    ("two elements", DETAILS, |b, a| {
        let one = b.details("/files/report.txt")[0].clone();
        a.set("authorization_details", json!([one, one]).to_string());
    }),
    ("details twice", REQUEST, |_, a| {
        let details = a.get("authorization_details");
        a.add("authorization_details", &details);
    }),
    ("a member twice", DETAILS, |b, a| {
        let url = b.url("/files/report.txt");
        let text = format!(
            r#"[{{"type":"http_request","actions":["GET"],"actions":["POST"],"locations":["{url}"]}}]"#
        );
        a.set("authorization_details", text);
    }),
    ("a member twice, by escape", DETAILS, |b, a| {
        let url = b.url("/files/report.txt");
        let text = format!(
            r#"[{{"type":"http_request","actions":["GET"],"act\u0069ons":["POST"],"locations":["{url}"]}}]"#
        );
        a.set("authorization_details", text);
    }),
    ("JSON 40 deep", DETAILS, |_, a| {
        let text = format!("{}{}", "[".repeat(40), "]".repeat(40));
        a.set("authorization_details", text);
    }),
    ("no type", DETAILS, |b, a| {
        element(b, a, |e| e["type"] = Value::Null);
    }),
    ("a type that is not served", DETAILS, |b, a| {
        element(b, a, |e| e["type"] = json!("mcp_request"));
    }),
    ("content_digest", DETAILS, |b, a| {
        element(b, a, |e| e["content_digest"] = json!("sha-256=:x:"));
    }),
    ("a member that is not known", DETAILS, |b, a| {
        element(b, a, |e| e["identifier"] = json!("1"));
    }),
    ("no method", DETAILS, |b, a| element(b, a, |e| e["actions"] = json!([]))),
    ("two methods", DETAILS, |b, a| {
        element(b, a, |e| e["actions"] = json!(["GET", "POST"]));
    }),
    ("any method", DETAILS, |b, a| {
        element(b, a, |e| e["actions"] = json!(["*"]));
    }),
    ("a method in lower case", DETAILS, |b, a| {
        element(b, a, |e| e["actions"] = json!(["get"]));
    }),
    ("TRACE", DETAILS, |b, a| {
        element(b, a, |e| e["actions"] = json!(["TRACE"]));
    }),
    ("no location", DETAILS, |b, a| locations(b, a, json!([]))),
    ("two locations", DETAILS, |b, a| {
        let (one, two) = (b.url("/files/report.txt"), b.url("/files/notes.txt"));
        locations(b, a, json!([one, two]));
    }),
    ("a location that is a number", DETAILS, |b, a| locations(b, a, json!([1]))),
    ("a wildcard", DETAILS, |b, a| locations(b, a, json!([b.url("/files/*")]))),
    ("a template", DETAILS, |b, a| {
        locations(b, a, json!([b.url("/files/{name}")]));
    }),
    ("a path alone", DETAILS, |b, a| locations(b, a, json!(["/files/report.txt"]))),
    ("another origin", DETAILS, |b, a| {
        locations(b, a, json!(["https://elsewhere.example/files/report.txt"]));
    }),
    ("another port", DETAILS, |b, a| {
        locations(b, a, json!([format!("{}0/files/report.txt", b.plane.origin())]));
    }),
    ("another scheme", DETAILS, |b, a| {
        let url = b.url("/files/report.txt").replace("http:", "https:");
        locations(b, a, json!([url]));
    }),
    ("a user in the URL", DETAILS, |b, a| {
        let url = b.url("/files/report.txt").replace("//", "//admin@");
        locations(b, a, json!([url]));
    }),
    ("a fragment", DETAILS, |b, a| {
        locations(b, a, json!([b.url("/files/report.txt#top")]));
    }),
];

#[tokio::test]
async fn what_is_not_one_exact_action_gets_no_token() {
    judge(&Bench::start().await, ACTIONS).await;
}

#[tokio::test]
async fn what_the_rfcs_allow_is_allowed() {
    let bench = Bench::start().await;
    let origin = bench.plane.origin();
    let allowed: [(&str, fn(&str, &mut Attempt)); 6] = [
        ("the resource by name", |o, a| a.add("resource", o)),
        ("a URL under it", |o, a| a.add("resource", &format!("{o}/files"))),
        ("the audience", |o, a| a.add("audience", o)),
        ("a client_id, which is a label", |_, a| a.add("client_id", "me")),
        ("requested_token_type", |_, a| a.add("requested_token_type", ACCESS)),
        ("an unknown parameter, an empty one, and a charset", |_, a| {
            a.add("nobody_knows", "1");
            a.add("scope", "");
            let form = "Application/X-WWW-form-urlencoded; charset=utf-8";
            a.content_type = Some(form.to_owned());
        }),
    ];
    for (what, change) in allowed {
        let mut attempt = bench.attempt();
        change(&origin, &mut attempt);
        let body = issued(what, &bench.send(attempt).await);
        let details = bench.details("/files/report.txt");
        assert_eq!(body["authorization_details"], details, "{what}");
    }
}

const EVIDENCE: &[Case] = &[
    ("an SVID for another audience", no("invalid_request", "token_audience"), |b, a| {
        let svid = b.authority.svid(AGENT, "https://elsewhere.example", &json!({}));
        a.set("subject_token", svid);
    }),
    ("an SVID for the issuer and another", no("invalid_request", "token_audience"), |b, a| {
        let issuer = b.plane.issuer();
        let both = json!({ "aud": [issuer, "https://elsewhere.example"] });
        a.set("subject_token", b.authority.svid(AGENT, &issuer, &both));
    }),
    ("an SVID for the issuer with a slash", no("invalid_request", "token_audience"), |b, a| {
        let audience = format!("{}/", b.plane.issuer());
        a.set("subject_token", b.authority.svid(AGENT, &audience, &json!({})));
    }),
    ("an SVID that is over", no("invalid_request", "token_expired"), |b, a| {
        let over = json!({ "iat": 1_000_000, "exp": 1_000_300 });
        a.set("subject_token", b.authority.svid(AGENT, &b.plane.issuer(), &over));
    }),
    ("an SVID that begins later", no("invalid_request", "token_not_yet_valid"), |b, a| {
        let later = json!({ "nbf": wasm_test::client::now_s() + 120 });
        a.set("subject_token", b.authority.svid(AGENT, &b.plane.issuer(), &later));
    }),
    ("an SVID without an end", no("invalid_request", "token_malformed"), |b, a| {
        let endless = json!({ "exp": null });
        a.set("subject_token", b.authority.svid(AGENT, &b.plane.issuer(), &endless));
    }),
    ("an SVID whose claims were changed", no("invalid_request", "token_signature"), |b, a| {
        let (good, other) = (b.svid(), b.svid());
        let claims = other.split('.').nth(1).unwrap();
        let parts: Vec<&str> = good.split('.').collect();
        a.set("subject_token", format!("{}.{claims}.{}", parts[0], parts[2]));
    }),
    ("an SVID signed with another key", no("invalid_request", "token_signature"), |b, a| {
        let forged = b.authority.impostor().svid(AGENT, &b.plane.issuer(), &json!({}));
        a.set("subject_token", forged);
    }),
    ("an SVID of another trust domain", no("invalid_request", "token_signature"), |b, a| {
        let foreign = "spiffe://elsewhere.example/agent/demo";
        a.set("subject_token", b.authority.svid(foreign, &b.plane.issuer(), &json!({})));
    }),
    ("an SVID that names nobody", no("invalid_request", "token_malformed"), |b, a| {
        let nobody = b.authority.svid("demo", &b.plane.issuer(), &json!({}));
        a.set("subject_token", nobody);
    }),
    ("an SVID with alg none", no("invalid_request", "token_malformed"), |b, a| {
        let header = json!({ "alg": "none" });
        let svid = b.authority.svid_with(AGENT, &b.plane.issuer(), &json!({}), &header);
        let unsigned = svid.rsplit_once('.').unwrap().0;
        a.set("subject_token", format!("{unsigned}."));
    }),
    ("an SVID over 8 KiB", no("invalid_request", "too_large"), |b, a| {
        let long = json!({ "filler": "x".repeat(9_000) });
        a.set("subject_token", b.authority.svid(AGENT, &b.plane.issuer(), &long));
    }),
    ("something that is no JWT", no("invalid_request", "token_malformed"), |_, a| {
        a.set("subject_token", "a.b".to_owned());
    }),
    ("a proof as the SVID", no("invalid_request", "token_malformed"), |b, a| {
        a.set("subject_token", b.proof());
    }),
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
        status: 429,
        error: "temporarily_unavailable",
        reason: "limit_exceeded",
    };
    refused("a 17th key", &bench.send(attempt(&keys[16])).await, limit);
    for key in &keys[..16] {
        issued("a key that was seen", &bench.send(attempt(key)).await);
    }
    refused("the 17th again", &bench.send(attempt(&keys[16])).await, limit);
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
    let as_agent = |agent: &str| {
        let mut attempt = bench.attempt();
        let svid = bench.authority.svid(agent, &bench.plane.issuer(), &json!({}));
        attempt.set("subject_token", svid);
        attempt
    };
    let inactive = no("access_denied", "agent_inactive");
    for _ in 0..2 {
        refused("a stranger", &bench.send(as_agent(STRANGER)).await, inactive);
    }
    refused("a retired one", &bench.send(as_agent(RETIRED)).await, inactive);
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
    assert_eq!(count(&["\"kind\":\"discover\"", STRANGER]), 1, "once, however often it asks");
    assert_eq!(count(&["agent_inactive", STRANGER]), 2);
    assert_eq!(count(&["agent_inactive", RETIRED]), 1);
    assert_eq!(count(&["policy_denied", AGENT, "/admin/keys.txt"]), 1);
    assert_eq!(count(&["policy_denied", AGENT]), 3);
}
