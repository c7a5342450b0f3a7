//! The token endpoint's parameters, one thing wrong at a time.

use serde_json::{Value, json};
use wasm_test::system::AGENT;

use crate::judging::{ACCESS, Attempt, Bench, Case, GRANT, JWT, Verdict, form, issued, judge, no};

const REQUEST: Verdict = no("invalid_request", "malformed_credentials");
const TARGET: Verdict = no("invalid_target", "action_mismatch");
const DETAILS: Verdict = no("invalid_authorization_details", "action_mismatch");

const PARAMS: &[Case] = &[
    ("no grant_type", REQUEST, |_, a| a.set("grant_type", None)),
    ("an empty grant_type counts as none", REQUEST, |_, a| {
        a.set("grant_type", String::new());
    }),
    ("grant_type twice", REQUEST, |_, a| {
        a.add("grant_type", GRANT)
    }),
    (
        "another grant",
        no("unsupported_grant_type", "malformed_credentials"),
        |_, a| a.set("grant_type", "client_credentials".to_owned()),
    ),
    ("no subject_token", REQUEST, |_, a| {
        a.set("subject_token", None)
    }),
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
    ("actor_token", REQUEST, |b, a| {
        a.add("actor_token", &b.svid())
    }),
    ("client_secret", REQUEST, |_, a| {
        a.add("client_secret", "s3cret")
    }),
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
    ("another audience", TARGET, |_, a| {
        a.add("audience", "files")
    }),
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

#[tokio::test]
async fn headers_without_end_are_refused_and_the_next_is_served() {
    let bench = Bench::start().await;
    for (count, length) in [(1_000, 10), (20, 50_000)] {
        let mut attempt = bench.attempt();
        let header = |number| (format!("x-filler-{number}"), "x".repeat(length));
        attempt.headers = (0..count).map(header).collect();
        // A server that has seen enough may hang up before all is sent.
        if let Some(answer) = bench.try_send(attempt).await {
            let what = format!("{count} headers of {length} bytes");
            let refused = (400..500).contains(&answer.status);
            assert!(refused, "{what}: {}", answer.status);
        }
        bench.token().await;
    }
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
    ("no details", DETAILS, |_, a| {
        a.set("authorization_details", None)
    }),
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
        element(b, a, |e| e["type"] = json!("file_request"));
    }),
    ("content_digest", DETAILS, |b, a| {
        element(b, a, |e| e["content_digest"] = json!("sha-256=:x:"));
    }),
    ("a member that is not known", DETAILS, |b, a| {
        element(b, a, |e| e["identifier"] = json!("1"));
    }),
    ("no method", DETAILS, |b, a| {
        element(b, a, |e| e["actions"] = json!([]))
    }),
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
    ("a location that is a number", DETAILS, |b, a| {
        locations(b, a, json!([1]))
    }),
    ("a wildcard", DETAILS, |b, a| {
        locations(b, a, json!([b.url("/files/*")]))
    }),
    ("a template", DETAILS, |b, a| {
        locations(b, a, json!([b.url("/files/{name}")]));
    }),
    ("a path alone", DETAILS, |b, a| {
        locations(b, a, json!(["/files/report.txt"]))
    }),
    ("another origin", DETAILS, |b, a| {
        locations(b, a, json!(["https://elsewhere.example/files/report.txt"]));
    }),
    ("another port", DETAILS, |b, a| {
        locations(
            b,
            a,
            json!([format!("{}0/files/report.txt", b.plane.origin())]),
        );
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

/// A change that the exchange must bear; it is told the origin.
type Allowed = (&'static str, fn(&str, &mut Attempt));

#[tokio::test]
async fn what_the_rfcs_allow_is_allowed() {
    let bench = Bench::start().await;
    let origin = bench.plane.origin();
    let allowed: [Allowed; 6] = [
        ("the resource by name", |o, a| a.add("resource", o)),
        ("a URL under it", |o, a| {
            a.add("resource", &format!("{o}/files"))
        }),
        ("the audience", |o, a| a.add("audience", o)),
        ("the agent's own client_id", |_, a| {
            a.add("client_id", AGENT)
        }),
        ("requested_token_type", |_, a| {
            a.add("requested_token_type", ACCESS)
        }),
        (
            "an unknown parameter, an empty one, and a charset",
            |_, a| {
                a.add("nobody_knows", "1");
                a.add("scope", "");
                let form = "Application/X-WWW-form-urlencoded; charset=utf-8";
                a.content_type = Some(form.to_owned());
            },
        ),
    ];
    for (what, change) in allowed {
        let mut attempt = bench.attempt();
        change(&origin, &mut attempt);
        let body = issued(what, &bench.send(attempt).await);
        let details = bench.details("/files/report.txt");
        assert_eq!(body["authorization_details"], details, "{what}");
    }
}
