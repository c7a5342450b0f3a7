//! Tokens that wait for a person at the token endpoint
//! (draft-ietf-oauth-deferred-token-response). No client of that draft is on a registry:
//! what is sent is written out here.

use std::time::Duration;

use base64ct::{Base64UrlUnpadded, Encoding as _};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use wasm_test::client::{Agent, Answer, Call, DpopKey, Verdict as Says};
use wasm_test::system::{AGENT, Options, System};

use crate::evidence::decoded;
use crate::judging::{ACCESS, Attempt, Bench, GRANT, JWT, Verdict, form, issued, no, refused};
use crate::plane::{Prepared, entries, run};
use crate::rights::{done, sign_in};
use crate::sessions::for_session;
use crate::visitor::Browser;

pub const DEFERRED: &str = "urn:ietf:params:oauth:grant-type:deferred";
pub const PENDING: Verdict = no("authorization_pending", "approval_pending");
const SVID: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-spiffe";
/// Seconds between two questions, in these tests.
const POLL_S: u64 = 3;
const OTHER: &str = "spiffe://writ.example/agent/other";

const POLICY: &str = r#"
@id("reads")
permit (principal is Writ::Agent, action == Writ::Action::"GET", resource);
@id("pays")
permit (principal is Writ::Agent, action == Writ::Action::"POST", resource)
when { resource.path like "/echo/*" };
@id("restricted-needs-approval")
@approvers("platform")
@tell("agent")
@reason("Somebody has to look first.")
@ttl("10m")
forbid (principal, action, resource)
when { resource.path like "/echo/restricted/*" }
unless { context.approvals.contains("restricted-needs-approval") };
@id("large-needs-approval")
@approvers("platform")
@reason("More than 100 is somebody's decision.")
forbid (principal, action, resource)
when { context has body && context.body has "/amount" && context.body["/amount"] > 100 }
unless { context.approvals.contains("large-needs-approval") };
@id("nothing-to-mallory")
forbid (principal, action, resource)
when { context has body && context.body has "/to" && context.body["/to"] == "mallory" };
"#;

pub type Params = Vec<(String, String)>;

pub fn params(all: &[(&str, &str)]) -> Params {
    let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    all.iter().map(owned).collect()
}

/// Waits as long as a client does between two questions.
pub async fn interval() {
    tokio::time::sleep(Duration::from_millis(POLL_S * 1000 + 100)).await;
}

pub fn code_of(answer: &Answer) -> String {
    refused("the first", answer, PENDING);
    let body = answer.json();
    assert_eq!(body["interval"], POLL_S, "{body}");
    assert!(body["expires_in"].as_u64().unwrap() > 600, "{body}");
    body["deferral_code"].as_str().unwrap().to_owned()
}

/// A whole system, whose agent waits at the token endpoint.
pub struct Stage {
    pub system: System,
    pub agent: Agent,
}

impl Stage {
    pub async fn start() -> Stage {
        Self::start_with("").await
    }

    pub async fn start_with(more: &str) -> Stage {
        let policy = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(policy.path(), POLICY).unwrap();
        let routes = r#"
[[edge.route]]
name = "pay"
path_prefix = "/echo/pay"
upstream = "{upstream}"
body = "read"
body_facts = { "/amount" = "long", "/to" = "string" }
"#;
        let options = Options {
            hold_s: 1,
            policy: Some(policy.path().to_owned()),
            routes: routes.to_owned(),
            extra_config: format!("[approval]\npoll_s = {POLL_S}\n{more}"),
            ..Options::default()
        };
        let system = System::for_test(options).await.unwrap();
        Stage {
            agent: system.agent().await.unwrap(),
            system,
        }
    }

    pub async fn post(&self, params: Params) -> Answer {
        self.post_with(params, &self.agent.token_proof()).await
    }

    pub async fn post_with(&self, params: Params, proof: &str) -> Answer {
        let url = format!("{}/oauth2/token", self.system.issuer());
        let request = reqwest::Client::new()
            .post(&url)
            .header("dpop", proof)
            .header("content-type", "application/x-www-form-urlencoded")
            .body(form(&params));
        Answer::read(request.send().await.unwrap()).await.unwrap()
    }

    pub async fn first(&self, details: &Value, more: &[(&str, &str)]) -> Answer {
        let (svid, details) = (self.agent.svid().await.unwrap(), details.to_string());
        let mut all = params(&[
            ("grant_type", GRANT),
            ("subject_token", &svid),
            ("subject_token_type", JWT),
            ("authorization_details", &details),
            ("completion_mode", "sync deferred"),
        ]);
        all.extend(params(more));
        self.post(all).await
    }

    pub async fn poll(&self, code: &str) -> Answer {
        let svid = self.agent.svid().await.unwrap();
        self.post(params(&[
            ("grant_type", DEFERRED),
            ("deferral_code", code),
            ("client_assertion_type", SVID),
            ("client_assertion", &svid),
        ]))
        .await
    }

    fn arrived(&self) -> u64 {
        self.system.upstream().unwrap().arrived()
    }

    fn of_kind(&self, kind: &str) -> Vec<Value> {
        let all = entries(&self.system.audit_dir());
        all.into_iter().filter(|it| it["kind"] == kind).collect()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_waits_for_a_person_and_its_request_passes_at_once() {
    let stage = Stage::start().await;
    let approver = stage.system.approver().await.unwrap();
    let path = "/echo/restricted/x";
    let details = stage.agent.details("GET", path);
    let answer = stage.first(&details, &[]).await;
    let code = code_of(&answer);
    let id = answer.json()["approval_id"].as_str().unwrap().to_owned();
    assert_eq!(answer.json()["why"], json!(["Somebody has to look first."]));
    // An equal one joins: one notice, another code.
    let second = stage.first(&details, &[]).await;
    let other = code_of(&second);
    assert_eq!(second.json()["approval_id"], id.as_str());
    assert_ne!(other, code);
    assert_eq!(approver.inbox().await.unwrap(), [id.as_str()]);
    let page = approver.page(&format!("/approvals/{id}")).await.unwrap();
    for shown in [path, AGENT, "Somebody has to look first.", "GET"] {
        assert!(page.text().contains(shown), "{shown}: {}", page.text());
    }

    refused("undecided", &stage.poll(&code).await, PENDING);
    let too_soon = no("slow_down", "limit_exceeded");
    refused("at once", &stage.poll(&code).await, too_soon);
    let done = approver.decide(&id, Says::Approve).await.unwrap();
    assert!(done.status < 400, "{}", done.text());
    interval().await;
    let body = issued("approved", &stage.poll(&code).await);
    assert_eq!(body["issued_token_type"], ACCESS);
    assert_eq!(body["authorization_details"], details);
    let token = body["access_token"].as_str().unwrap();
    let before = stage.arrived();
    let answer = stage.agent.present("GET", path, token).await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(stage.arrived(), before + 1);

    // The code brought its token, and the yes was for one request.
    let used = no("invalid_grant", "token_spent");
    refused("again", &stage.poll(&code).await, used);
    interval().await;
    let over = no("expired_token", "approval_expired");
    refused("the other code", &stage.poll(&other).await, over);
    let (asked, allowed) = (stage.of_kind("ask"), stage.of_kind("allow"));
    let opened: Vec<bool> = asked
        .iter()
        .map(|it| it["body"]["opened"].is_object())
        .collect();
    assert_eq!(opened, [true, false]);
    assert!(asked.iter().all(|it| it["body"]["approval"] == id.as_str()));
    assert_eq!(
        allowed.last().unwrap()["body"]["approval"]["id"],
        id.as_str()
    );
    assert!(stage.of_kind("hold").is_empty(), "nothing was held");

    // A no, and what needs nobody.
    let answer = stage.first(&details, &[]).await;
    let code = code_of(&answer);
    let next = answer.json()["approval_id"].as_str().unwrap().to_owned();
    assert_ne!(next, id);
    approver.decide(&next, Says::Deny).await.unwrap();
    let denied = no("access_denied", "approval_denied");
    refused("denied", &stage.poll(&code).await, denied);
    // Nobody is asked again what they have just said no to: neither here nor at the edge.
    let denied = no("access_denied", "approval_denied");
    refused("again", &stage.first(&details, &[]).await, denied);
    let held = stage.agent.call("GET", "/echo/restricted/x").await.unwrap();
    assert_eq!(held.summary(), "403 approval_denied");
    let asked = stage.of_kind("ask");
    let opened = asked.iter().filter(|it| it["body"]["opened"].is_object());
    assert_eq!((opened.count(), stage.of_kind("hold").len()), (2, 0));
    let details = stage.agent.details("GET", "/files/report.txt");
    issued("nobody is asked", &stage.first(&details, &[]).await);
    stage.system.stop().await;
}

/// Who waits at the edge gets what who waits here would get, and the other way round.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_held_request_and_a_deferred_token_wait_for_one_approval() {
    let stage = Stage::start().await;
    let approver = stage.system.approver().await.unwrap();
    let path = "/echo/restricted/both";
    let held = stage.agent.call("GET", path).await.unwrap();
    assert_eq!(held.summary(), "403 approval_pending");
    let id = held.json()["approval_id"].as_str().unwrap().to_owned();
    let details = stage.agent.details("GET", path);
    let answer = stage.first(&details, &[]).await;
    let code = code_of(&answer);
    assert_eq!(answer.json()["approval_id"], id.as_str());
    approver.decide(&id, Says::Approve).await.unwrap();
    // With the yes there a token is given at once, without a code; the code's one as well.
    let token = issued("approved before", &stage.first(&details, &[]).await);
    let token = token["access_token"].as_str().unwrap().to_owned();
    let second = issued("by the code", &stage.poll(&code).await);
    let passed = stage.agent.present("GET", path, &token).await.unwrap();
    assert_eq!(passed.status, 200, "{}", passed.text());
    let second = second["access_token"].as_str().unwrap();
    let again = stage.agent.present("GET", path, second).await.unwrap();
    assert_eq!(
        again.summary(),
        "403 approval_pending",
        "one yes, one request"
    );
    assert_eq!(stage.arrived(), 1);
    stage.system.stop().await;
}

/// A yes of before is none to who was stopped since.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_ends_what_waits_and_what_was_approved() {
    let stage = Stage::start().await;
    sign_in(&stage.system).await;
    let mut codes = Vec::new();
    for path in ["/echo/restricted/undecided", "/echo/restricted/approved"] {
        let answer = stage.first(&stage.agent.details("GET", path), &[]).await;
        codes.push(code_of(&answer));
        if path.ends_with("approved") {
            let id = answer.json()["approval_id"].as_str().unwrap().to_owned();
            let mut list = stage.system.writ();
            list.args(["approvals", "list", "--json"]);
            let all: Value = serde_json::from_slice(&run(list).await.stdout).unwrap();
            let mut all = all["approvals"].as_array().unwrap().iter();
            let one = all.find(|it| it["id"] == id.as_str()).unwrap();
            let digest = one["digest"].as_str().unwrap();
            let approve = ["approvals", "approve", "--digest", digest, &id];
            done(&stage.system, &approve, "approved").await;
        }
    }
    let jkt = stage.agent.key().thumbprint();
    let stop = ["revoke", "--why", "a test", "--key", &jkt];
    done(&stage.system, &stop, "stopped").await;
    let stopped = no("access_denied", "token_revoked");
    for code in codes {
        refused("stopped", &stage.poll(&code).await, stopped);
    }
    stage.system.stop().await;
}

fn sha256(bytes: &[u8]) -> String {
    Base64UrlUnpadded::encode_string(&Sha256::digest(bytes))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_a_person_must_see_is_submitted_whole() {
    let stage = Stage::start().await;
    let approver = stage.system.approver().await.unwrap();
    let path = "/echo/pay/order";
    let body = br#"{"amount": 500, "to": "bob", "note": "<i>now</i>"}"#;
    let with = |digest: Option<&[u8]>| {
        let mut details = stage.agent.details("POST", path);
        if let Some(body) = digest {
            details[0]["content_digest"] = sha256(body).into();
        }
        details
    };
    let text = |body: &[u8]| Base64UrlUnpadded::encode_string(body);
    let good = text(body);
    let json_type = ("writ_content_type", "application/json");
    let details = no("invalid_authorization_details", "action_mismatch");
    let request = no("invalid_request", "malformed_credentials");
    let long = text(&vec![b' '; 16 * 1024 + 1]);
    let name = "x".repeat(257);
    type Row<'a> = (&'a str, Option<&'a [u8]>, &'a [(&'a str, &'a str)], Verdict);
    let table: [Row<'_>; 9] = [
        ("no body", Some(body), &[json_type], details),
        ("neither", None, &[json_type], details),
        (
            "no digest",
            None,
            &[json_type, ("writ_content", &good)],
            details,
        ),
        (
            "another body",
            Some(b"{}"),
            &[json_type, ("writ_content", &good)],
            details,
        ),
        (
            "no base64url",
            Some(body),
            &[json_type, ("writ_content", "a+b=")],
            request,
        ),
        (
            "too long",
            Some(body),
            &[json_type, ("writ_content", &long)],
            request,
        ),
        (
            "two types",
            Some(body),
            &[("writ_content_type", "a/b, c/d")],
            request,
        ),
        (
            "a long type",
            Some(body),
            &[("writ_content_type", &name)],
            request,
        ),
        (
            "a strange encoding",
            Some(body),
            &[("writ_content_encoding", "\u{e9}")],
            request,
        ),
    ];
    for (what, digest, more, verdict) in table {
        refused(what, &stage.first(&with(digest), more).await, verdict);
    }
    let answer = stage.first(&with(Some(body)), &[json_type]).await;
    assert!(
        answer.text().contains("held at the edge instead"),
        "{}",
        answer.text()
    );
    assert!(
        approver.inbox().await.unwrap().is_empty(),
        "nobody was asked"
    );

    // What policy refuses of the body it says of the request; what it lets pass needs nobody.
    for (what, other) in [
        (
            "to mallory",
            br#"{"amount": 500, "to": "mallory"}"#.as_slice(),
        ),
        ("a little", br#"{"amount": 5, "to": "bob"}"#),
    ] {
        let other_text = text(other);
        let more = [json_type, ("writ_content", &*other_text)];
        issued(what, &stage.first(&with(Some(other)), &more).await);
    }

    let more = [json_type, ("writ_content", &*good)];
    let answer = stage.first(&with(Some(body)), &more).await;
    let code = code_of(&answer);
    let id = answer.json()["approval_id"].as_str().unwrap().to_owned();
    let page = approver
        .page(&format!("/approvals/{id}"))
        .await
        .unwrap()
        .text();
    assert!(
        page.contains("&#60;i&#62;now") && !page.contains("<i>now"),
        "{page}"
    );
    let asked = stage.of_kind("ask");
    let names = asked[0]["att"].as_array().unwrap().iter();
    let names: Vec<&str> = names.map(|it| it["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["proof", "body"]);
    approver.decide(&id, Says::Approve).await.unwrap();
    let token = issued("approved", &stage.poll(&code).await);
    let token = token["access_token"].as_str().unwrap().to_owned();
    let call = async |body: &[u8], kind: &str| {
        let proof = stage
            .agent
            .key()
            .proof("POST", &stage.agent.url(path), Some(&token));
        let call = Call {
            method: "POST",
            path,
            token: Some(&token),
            proof: Some(&proof),
            headers: &[("content-type", kind)],
            body: body.to_vec(),
        };
        stage.agent.send(call).await.unwrap()
    };
    let other = call(br#"{"amount": 501, "to": "bob"}"#, "application/json").await;
    assert_eq!(other.summary(), "403 body_mismatch");
    assert_eq!(stage.arrived(), 0);
    let passed = call(body, "application/json").await;
    assert_eq!(passed.status, 200, "{}", passed.text());
    assert_eq!(stage.arrived(), 1);
    assert!(stage.of_kind("hold").is_empty(), "nothing was held");
    stage.system.stop().await;
}

const AGENTS: &str = r#"
[[agent]]
spiffe_id = "spiffe://writ.example/agent/demo"
owner = "platform@example.com"
[[agent]]
spiffe_id = "spiffe://writ.example/agent/other"
owner = "platform@example.com"
"#;

/// A token endpoint alone, with this laid over its config.
async fn bench(more: &str) -> Bench {
    let config = format!("{AGENTS}[approval]\npoll_s = {POLL_S}\n{more}");
    Bench::over(Prepared::new().with(&config).start().await)
}

fn waiting(bench: &Bench, path: &str) -> Attempt {
    deferred(bench, bench.attempt(), path)
}

/// The attempt, for an action that its agent would wait for here.
pub fn deferred(bench: &Bench, mut attempt: Attempt, path: &str) -> Attempt {
    attempt.set("authorization_details", bench.details(path).to_string());
    attempt.set("completion_mode", "deferred".to_owned());
    attempt
}

/// A question about a code, by the evidence that its agent has.
pub fn polling(bench: &Bench, code: &str) -> Attempt {
    let mut attempt = bench.attempt();
    attempt.params = params(&[
        ("grant_type", DEFERRED),
        ("deferral_code", code),
        ("subject_token", &bench.svid()),
        ("subject_token_type", JWT),
    ]);
    attempt
}

pub async fn approve(bench: &Bench, id: &str, says: &str) {
    let browser = Browser::login(bench.plane.login_link()).await;
    let page = format!("/approvals/{id}");
    let (csrf, digest) = (
        browser.field(&page, "csrf").await,
        browser.field(&page, "digest").await,
    );
    let fields = [("csrf", csrf.as_str()), ("digest", digest.as_str())];
    let answer = browser.post(&format!("{page}/{says}"), &fields).await;
    assert!(answer.status < 400, "{}", answer.text());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_code_is_its_agents_under_its_key_and_asks_for_nothing_else() {
    let bench = bench("").await;
    let restricted = "/files/restricted/a";
    // Who does not say that it waits, does not.
    for mode in ["sync", "Deferred", "deferred2", "deferred,sync"] {
        let mut attempt = waiting(&bench, restricted);
        attempt.set("completion_mode", mode.to_owned());
        issued(mode, &bench.send(attempt).await);
    }
    let metadata: Value = reqwest::get(format!(
        "{}/.well-known/oauth-authorization-server",
        bench.plane.issuer()
    ))
    .await
    .unwrap()
    .json()
    .await
    .unwrap();
    assert_eq!(metadata["deferred_token_response_supported"], true);
    let grants = metadata["grant_types_supported"].as_array().unwrap();
    assert!(grants.contains(&DEFERRED.into()), "{metadata}");

    // What policy refuses it refuses at once.
    let denied = no("access_denied", "policy_denied");
    refused(
        "never",
        &bench.send(waiting(&bench, "/secret")).await,
        denied,
    );

    let answer = bench.send(waiting(&bench, restricted)).await;
    let code = code_of(&answer);
    let id = answer.json()["approval_id"].as_str().unwrap().to_owned();
    let grant = |reason| no("invalid_grant", reason);
    let request = no("invalid_request", "malformed_credentials");
    type Spoil<'a> = Box<dyn Fn(&mut Attempt) + 'a>;
    let thief = DpopKey::generate().unwrap();
    let set = |name: &'static str, value: &str| -> Spoil<'_> {
        let value = value.to_owned();
        Box::new(move |it: &mut Attempt| it.set(name, value.clone()))
    };
    let details = bench.details("/files/b").to_string();
    let of_other = bench
        .authority
        .svid(OTHER, &bench.plane.issuer(), &json!({}));
    let table: Vec<(&str, Verdict, Spoil<'_>)> = vec![
        (
            "no code",
            request,
            Box::new(|it| it.set("deferral_code", None)),
        ),
        (
            "not a code",
            grant("token_unknown"),
            set("deferral_code", "wrc_x"),
        ),
        (
            "the approval's id",
            grant("token_unknown"),
            set("deferral_code", &id),
        ),
        (
            "a code more",
            grant("token_unknown"),
            set("deferral_code", &format!("{code}A")),
        ),
        (
            "another agent",
            grant("token_unknown"),
            set("subject_token", &of_other),
        ),
        (
            "another key",
            grant("proof_key_mismatch"),
            Box::new(|it| it.prove(thief.proof("POST", &bench.plane.token_endpoint(), None))),
        ),
        (
            "without evidence",
            request,
            Box::new(|it| it.set("subject_token", None)),
        ),
        (
            "evidence that is not its",
            no("invalid_request", "token_malformed"),
            set("subject_token", "x.y.z"),
        ),
        (
            "another action",
            request,
            set("authorization_details", &details),
        ),
        (
            "the mode again",
            request,
            set("completion_mode", "deferred"),
        ),
        ("a resource", request, set("resource", &bench.url("/"))),
        ("an actor", request, set("actor_token", &of_other)),
        ("a body", request, set("writ_content", "YQ")),
        (
            "a scope",
            no("invalid_scope", "malformed_credentials"),
            set("scope", "x"),
        ),
        (
            "a code at another grant",
            request,
            Box::new(|it| it.set("grant_type", GRANT.to_owned())),
        ),
        (
            "as a refresh token",
            no("invalid_request", "malformed_credentials"),
            set("refresh_token", "wrr_x"),
        ),
        (
            "as a subject token",
            no("invalid_request", "token_malformed"),
            set("subject_token", &code),
        ),
    ];
    for (what, verdict, spoil) in table {
        let mut attempt = polling(&bench, &code);
        spoil(&mut attempt);
        refused(what, &bench.send(attempt).await, verdict);
    }
    // None of them has counted as a question.
    refused(
        "the first",
        &bench.send(polling(&bench, &code)).await,
        PENDING,
    );
    approve(&bench, &id, "approve").await;
    // The yes is no more to others than it was.
    let mut stolen = polling(&bench, &code);
    stolen.prove(thief.proof("POST", &bench.plane.token_endpoint(), None));
    refused(
        "stolen",
        &bench.send(stolen).await,
        grant("proof_key_mismatch"),
    );
    interval().await;
    let body = issued("its own", &bench.send(polling(&bench, &code)).await);
    let (_, claims) = decoded(body["access_token"].as_str().unwrap());
    assert_eq!(claims["authorization_details"], bench.details(restricted));
    assert_eq!(claims["cnf"]["jkt"], bench.key.thumbprint());

    // Ended by its agent, who has no use for it.
    let code = code_of(&bench.send(waiting(&bench, "/files/restricted/c")).await);
    let revoke = params(&[
        ("token", &code),
        ("client_assertion_type", SVID),
        ("client_assertion", &bench.svid()),
    ]);
    let url = format!("{}/oauth2/revoke", bench.plane.issuer());
    let answer = reqwest::Client::new()
        .post(&url)
        .header("content-type", "application/x-www-form-urlencoded")
        .body(form(&revoke));
    assert_eq!(answer.send().await.unwrap().status(), 200);
    let ended = no("access_denied", "token_revoked");
    refused("revoked", &bench.send(polling(&bench, &code)).await, ended);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_ends_in_time_and_what_is_judged_again_is_judged_by_what_is_now() {
    let short = "pending_s = 6\n[token]\nsession_s = 300\n";
    let bench = bench(short).await;
    let over = no("expired_token", "approval_expired");
    // In a session, which stands in for the evidence of each question.
    let session = issued("a session", &bench.send(for_session(&bench)).await);
    let session = session["access_token"].as_str().unwrap().to_owned();
    let within = |mut attempt: Attempt| {
        attempt.set("subject_token", session.clone());
        attempt.set("subject_token_type", ACCESS.to_owned());
        attempt
    };
    let answer = bench
        .send(within(waiting(&bench, "/files/restricted/d")))
        .await;
    refused("the first", &answer, PENDING);
    let lives = answer.json()["expires_in"].as_u64().unwrap();
    assert!(lives <= 300, "no longer than the session: {lives}");
    let code = answer.json()["deferral_code"].as_str().unwrap().to_owned();
    let first = bench.send(within(polling(&bench, &code))).await;
    refused("undecided", &first, PENDING);
    tokio::time::sleep(Duration::from_millis(6_500)).await;
    let late = bench.send(within(polling(&bench, &code))).await;
    refused("nobody decided", &late, over);

    // In files a start begins anew: the code is gone, and the approval is not.
    let bench = Bench::over(bench.plane.restart().await);
    let answer = bench.healed(waiting(&bench, "/files/restricted/f")).await;
    let code = answer.json()["deferral_code"].as_str().unwrap().to_owned();
    let id = answer.json()["approval_id"].as_str().unwrap().to_owned();
    approve(&bench, &id, "approve").await;
    let key = bench.key;
    let mut bench = Bench::over(bench.plane.restart().await);
    bench.key = key;
    let gone = no("invalid_grant", "token_unknown");
    refused(
        "of before",
        &bench.healed(polling(&bench, &code)).await,
        gone,
    );
    issued(
        "anew",
        &bench.healed(waiting(&bench, "/files/restricted/f")).await,
    );
}
