//! The keys that sign tokens, listed and changed over HTTP: by whom, with what effect at the
//! edge, and what `writ keys` does where nobody answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use wasm_test::client::Agent;
use wasm_test::shim::Clock;
use wasm_test::system::{Options, System};

use crate::admins::{ANN, CAROL, Person, no, two};
use crate::evidence::decoded;
use crate::plane::{Prepared, run, text};
use crate::rights::sign_in;

const FREE: &str = "/files/report.txt";

fn kid(token: &str) -> String {
    decoded(token).0["kid"].as_str().unwrap().to_owned()
}

/// `writ keys` at a running system, as JSON.
async fn keys(system: &System, args: &[&str]) -> Value {
    let mut command = system.writ();
    command.env_remove("XDG_STATE_HOME").arg("keys").args(args);
    let config = system.state_dir().join("writ.toml");
    command.arg("--config").arg(config).arg("--json");
    let output = run(command).await;
    let said = text(&output.stderr);
    assert!(output.status.success(), "{args:?}: {said}");
    assert!(!said.contains("no control plane answers"), "{said}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The ids of those that stand there.
async fn standing(system: &System, word: &str) -> Vec<String> {
    let all = keys(system, &["list"]).await;
    let all = all.as_array().unwrap().iter();
    let ours = all.filter(|key| key["standing"] == word);
    ours.map(|key| key["kid"].as_str().unwrap().to_owned())
        .collect()
}

#[derive(Default)]
struct Load {
    stop: AtomicBool,
    passed: AtomicUsize,
    away: AtomicUsize,
    wrong: AtomicUsize,
}

/// Good requests, until they are stopped.
async fn requests(agent: Agent, load: Arc<Load>) {
    while !load.stop.load(Ordering::SeqCst) {
        let counter = match agent.call("GET", FREE).await.map(|it| it.status) {
            Ok(200) => &load.passed,
            // A worker has no stream for the moment in which it is given other keys.
            Ok(503) => &load.away,
            _ => &load.wrong,
        };
        counter.fetch_add(1, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_rotated_and_revoked_over_http_while_requests_pass() {
    let options = Options {
        token_lifetime_s: 120,
        ..Options::default()
    };
    let system = System::for_test(options).await.unwrap();
    let agent = system.agent().await.unwrap();
    sign_in(&system).await;
    let first = kid(&agent.token("GET", FREE).await.unwrap());
    let load = Arc::new(Load::default());
    let going = tokio::spawn(requests(agent.clone(), load.clone()));

    let made = keys(&system, &["rotate"]).await;
    let next = made["key"]["kid"].as_str().unwrap().to_owned();
    assert_eq!(made["key"]["standing"], "next", "{made}");
    assert_eq!(standing(&system, "next").await, [&*next]);
    assert_eq!(standing(&system, "active").await, [&*first]);
    let began = Instant::now();
    while kid(&agent.token("GET", FREE).await.unwrap()) != next {
        assert!(
            began.elapsed() < Duration::from_secs(30),
            "it does not sign"
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert_eq!(standing(&system, "active").await, [&*next]);
    assert_eq!(standing(&system, "retired").await, [&*first]);
    load.stop.store(true, Ordering::SeqCst);
    going.await.unwrap();
    let count = |it: &AtomicUsize| it.load(Ordering::SeqCst);
    let (passed, away, wrong) = (count(&load.passed), count(&load.away), count(&load.wrong));
    assert_eq!(wrong, 0, "{passed} passed, {away} away");
    assert!(
        passed > 50 && away * 20 <= passed,
        "{passed} passed, {away} away"
    );

    // Revoked: nothing that it signed is good, from the answer on.
    let mut outstanding = Vec::new();
    for _ in 0..8 {
        outstanding.push(agent.token("GET", FREE).await.unwrap());
    }
    let before = system.upstream().unwrap().arrived();
    let done = keys(&system, &["revoke", &next, "--why", "somebody saw it"]).await;
    let began = Instant::now();
    for token in &outstanding {
        let answer = agent.present("GET", FREE, token).await.unwrap();
        // By the control plane, or by a worker that knows the key no more.
        let told = ["token_revoked", "token_key_unknown"].contains(&&*answer.reason());
        assert!(told && answer.status == 401, "{}", answer.text());
    }
    let took = began.elapsed();
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert_eq!(system.upstream().unwrap().arrived(), before);
    assert_eq!(done["key"]["standing"], "revoked", "{done}");
    let instead = done["replaced_by"]["kid"].as_str().unwrap().to_owned();
    // The one before is sound, and signs again.
    assert_eq!(instead, first);
    assert_eq!(standing(&system, "active").await, [&*instead]);
    assert_eq!(standing(&system, "revoked").await, [&*next]);
    // What takes its place is good once proxies know it.
    let began = Instant::now();
    loop {
        let token = agent.token("GET", FREE).await.unwrap();
        assert_eq!(kid(&token), instead);
        if agent.present("GET", FREE, &token).await.unwrap().status == 200 {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(10), "never good");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let entries = crate::plane::entries(&system.state_dir().join("data/journal"));
    let told = entries.iter().filter(|it| it["kind"] == "keys");
    let told: Vec<_> = told.map(|it| &it["body"]).collect();
    let by = |body: &Value, event: &str, kid: &str| {
        (&body["event"], &body["by"], &body["kid"])
            == (&json!(event), &json!("operator"), &json!(kid))
    };
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(by(told[0], "rotated", &next), "{told:?}");
    assert!(by(told[1], "revoked", &next), "{told:?}");
    assert_eq!(
        (&told[1]["why"], &told[1]["replaced_by"]),
        (&json!("somebody saw it"), &json!(instead))
    );
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_changed_by_administrators_and_revoked_by_a_session_of_just_now() {
    let clock = Clock::new().unwrap();
    let plane = two().with_env(clock.env()).start().await;
    let (ann, carol) = (
        Person::of(&plane, ANN).await,
        Person::of(&plane, CAROL).await,
    );
    let list = async || {
        let answer = carol.ask(reqwest::Method::GET, "/api/v1/keys", None).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()["keys"].as_array().unwrap().clone()
    };
    let before = list().await;
    let kid = before[0]["kid"].as_str().unwrap().to_owned();
    let members: Vec<_> = before[0].as_object().unwrap().keys().cloned().collect();
    assert_eq!(members, ["kid", "standing", "from_s", "revoked_s", "held"]);
    let (rotate, revoke) = ("/api/v1/keys/rotate", "/api/v1/keys/revoke");
    let this = json!({ "kid": kid });
    no(&carol.post(rotate, json!({})).await, 403, "not_an_admin");
    no(&carol.post(revoke, this.clone()).await, 403, "not_an_admin");
    clock.step(5 * 60).unwrap();
    no(&ann.post(revoke, this.clone()).await, 403, "step_up_needed");
    assert_eq!(list().await, before);
    // To rotate is no such thing.
    let made = ann.post(rotate, json!({})).await;
    assert_eq!(made.status, 200, "{}", made.text());
    let anew = Person::of(&plane, ANN).await;
    no(
        &anew.post(revoke, json!({ "kid": "x" })).await,
        404,
        "not_found",
    );
    assert_eq!(anew.post(revoke, this.clone()).await.status, 200);
    no(&anew.post(revoke, this).await, 409, "revoked_already");
    assert_eq!(list().await.len(), 3);
    // However many are made, there is room for what a revocation needs.
    let mut answer = anew.post(rotate, json!({})).await;
    for _ in 0..64 {
        if answer.status != 200 {
            break;
        }
        answer = anew.post(rotate, json!({})).await;
    }
    no(&answer, 507, "limit_exceeded");
    let all = list().await;
    let active = all.iter().find(|it| it["standing"] == "active").unwrap();
    let done = anew.post(revoke, json!({ "kid": active["kid"] })).await;
    assert!(
        done.json()["replaced_by"]["kid"].is_string(),
        "{}",
        done.text()
    );
}

/// `writ keys` with the config's socket, issuer and files.
async fn said(prepared: &Prepared, args: &[&str]) -> (Option<i32>, String, String) {
    let mut command = prepared.writ();
    command
        .env_remove("WRIT_ADMIN_SOCKET")
        .env_remove("WRIT_ISSUER");
    command.arg("keys").args(args);
    command.arg("--config").arg(prepared.path("writ.toml"));
    let output = run(command).await;
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    (output.status.code(), out, err)
}

#[tokio::test]
async fn files_are_changed_where_nobody_answers_or_where_it_is_said() {
    const NOBODY: &str = "no control plane answers at";
    let plane = two().start().await;
    let (code, out, err) = said(&plane, &["list"]).await;
    assert_eq!((code, &*err), (Some(0), ""), "{out}");
    let first = out.strip_prefix("active   ").unwrap().trim().to_owned();
    // While it runs a person is asked for, unless the files are meant.
    for words in [&["rotate"] as &[_], &["revoke", &first]] {
        let (code, out, err) = said(&plane, words).await;
        assert_eq!((code, &*out), (Some(1), ""), "{err}");
        assert!(err.contains("run `writ login` first"), "{err}");
    }
    assert_eq!(said(&plane, &["list"]).await.1.lines().count(), 1);
    let (code, out, err) = said(&plane, &["rotate", "--files", "--json"]).await;
    assert_eq!((code, &*err), (Some(0), ""));
    let made: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(
        (&made["key"]["standing"], &made["key"]["held"]),
        (&json!("next"), &json!("file"))
    );

    let prepared = plane.stopped().await;
    let (code, out, err) = said(&prepared, &["list", "--json"]).await;
    assert_eq!(code, Some(0), "{err}");
    assert!(err.contains(NOBODY), "{err}");
    let all: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(all.as_array().unwrap().len(), 2, "{all}");
    let (code, out, err) = said(&prepared, &["revoke", &first, "--json"]).await;
    assert_eq!(code, Some(0), "{err}");
    assert!(err.contains(NOBODY) && err.contains("data/keys"), "{err}");
    let done: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(
        (&done["key"]["kid"], &done["key"]["standing"]),
        (&json!(first), &json!("revoked"))
    );
    let (code, _, err) = said(&prepared, &["revoke", &first]).await;
    assert_eq!(code, Some(1), "{err}");
    assert!(err.contains("is revoked already"), "{err}");
    let plane = prepared.start().await;
    let (_, out, _) = said(&plane, &["list"]).await;
    assert!(out.contains(&format!("revoked  {first}")), "{out}");
}
