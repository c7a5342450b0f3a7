//! Administrators, each signed in by a link of their own: what takes one of them, what
//! takes two, what takes a session of just now, and what an approver may not.

use std::io::{Seek as _, Write as _};

use serde_json::{Value, json};
use wasm_test::client::{Answer, http_client};
use wasm_test::shim::Clock;

use crate::judging::{Bench, Verdict, refused};
use crate::plane::{Plane, Prepared, run, text};

pub const ANN: &str = "ann@example.com";
pub const BOB: &str = "bob@example.com";
/// An approver who administers nothing.
pub const CAROL: &str = "carol@example.com";

/// A control plane with two administrators, for a machine where a uid is one principal.
pub fn two() -> Prepared {
    let other = rustix::process::getuid().as_raw().wrapping_add(4_711);
    Prepared::new().with(&format!(
        r#"
approver = [{{ name = "{ANN}", groups = ["platform"] }}, {{ name = "{CAROL}", groups = ["board"] }}]
[server]
login_as = "{ANN}"
admins = ["{ANN}", "{BOB}"]
[identity]
dev_single_uid = false
[[identity.workload]]
spiffe_id = "spiffe://writ.example/agent/elsewhere"
uid = {other}
"#
    ))
}

/// `writ login-link --as WHO`, as the user of the control plane.
pub async fn link(plane: &Plane, who: &str) -> (Option<i32>, String) {
    let mut command = plane.writ();
    command.args(["login-link", "--as", who]);
    let output = run(command).await;
    let said = if output.status.success() {
        text(&output.stdout)
    } else {
        text(&output.stderr)
    };
    (output.status.code(), said)
}

/// Somebody who signed in.
pub struct Person {
    issuer: String,
    session: String,
}

impl Person {
    pub async fn of(plane: &Plane, who: &str) -> Person {
        let (code, said) = link(plane, who).await;
        assert_eq!(code, Some(0), "{said}");
        let secret = said.trim().rsplit('#').next().unwrap();
        let url = format!("{}/api/v1/session", plane.issuer());
        let request = http_client().post(url).json(&json!({ "secret": secret }));
        let answer = Answer::read(request.send().await.unwrap()).await.unwrap();
        let opened = answer.json();
        assert_eq!(opened["who"], who, "{opened}");
        Person {
            issuer: plane.issuer(),
            session: opened["session"].as_str().unwrap().to_owned(),
        }
    }

    pub async fn ask(&self, method: reqwest::Method, path: &str, body: Option<Value>) -> Answer {
        let url = format!("{}{path}", self.issuer);
        let mut request = http_client().request(method, url);
        request = request.header("authorization", format!("Session {}", self.session));
        if let Some(body) = body {
            request = request.json(&body);
        }
        Answer::read(request.send().await.unwrap()).await.unwrap()
    }

    pub async fn post(&self, path: &str, body: Value) -> Answer {
        self.ask(reqwest::Method::POST, path, Some(body)).await
    }

    async fn stop(&self, target: Value) -> Answer {
        let body = json!({ "target": target, "why": "a test" });
        self.post("/api/v1/stops", body).await
    }

    async fn lift(&self, target: Value) -> Answer {
        self.post("/api/v1/stops/lift", json!({ "target": target }))
            .await
    }
}

fn everything() -> Value {
    json!({ "everything": true })
}

/// The answer is a no, for this.
pub fn no(answer: &Answer, status: u16, reason: &str) {
    let told = answer.text();
    assert_eq!(
        (answer.status, &*answer.reason()),
        (status, reason),
        "{told}"
    );
}

/// The stop stands, and this person has asked to lift it.
fn waits(answer: &Answer, who: &str) {
    let stop = answer.json();
    assert_eq!(answer.status, 200, "{stop}");
    assert_eq!(stop["stands"], true, "{stop}");
    assert_eq!(stop["lift_asked"]["by"], who, "{stop}");
    assert_eq!(stop["lifted"], Value::Null, "{stop}");
}

async fn nothing_is_issued(bench: &Bench) {
    let stopped = Verdict {
        status: 400,
        error: "access_denied",
        reason: "token_revoked",
    };
    let answer = bench.send(bench.attempt()).await;
    refused("while all is stopped", &answer, stopped);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_is_stopped_by_one_and_lifted_by_two() {
    let bench = Bench::over(two().start().await);
    bench.token().await;
    let ann = Person::of(&bench.plane, ANN).await;
    let carol = Person::of(&bench.plane, CAROL).await;

    // Whoever is on no list gets no link, and who only approves stops nothing.
    let (code, said) = link(&bench.plane, "dave@example.com").await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("server.admins"), "{said}");
    no(&carol.stop(everything()).await, 403, "not_an_admin");
    bench.token().await;

    let stopped = ann.stop(everything()).await;
    assert_eq!(stopped.json()["by"], ANN, "{}", stopped.text());
    nothing_is_issued(&bench).await;

    // One person is one person, in however many sessions.
    no(&carol.lift(everything()).await, 403, "not_an_admin");
    waits(&ann.lift(everything()).await, ANN);
    waits(&ann.lift(everything()).await, ANN);
    no(&carol.lift(everything()).await, 403, "not_an_admin");
    let again = Person::of(&bench.plane, ANN).await;
    waits(&again.lift(everything()).await, ANN);
    nothing_is_issued(&bench).await;

    let (code, said) = by_terminal(&bench.plane, BOB, &["revoke", "--lift", "--everything"]).await;
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("rights may be given again"), "{said}");
    bench.token().await;
    told_by_the_log(&bench.plane);
}

/// Signs in at a terminal of one's own, and runs one command there.
async fn by_terminal(plane: &Plane, who: &str, args: &[&str]) -> (Option<i32>, String) {
    let home = plane.path(who);
    std::fs::create_dir(&home).unwrap();
    let (_, link) = link(plane, who).await;
    let mut given = tempfile::tempfile().unwrap();
    writeln!(given, "{link}").unwrap();
    given.rewind().unwrap();
    let mut login = plane.writ();
    login.env("HOME", &home).arg("login").stdin(given);
    let output = run(login).await;
    let said = text(&output.stderr);
    assert!(said.contains(&format!("signed in as {who}")), "{said}");
    let mut command = plane.writ();
    command.env("HOME", &home).args(args);
    let output = run(command).await;
    (
        output.status.code(),
        text(&output.stdout) + &text(&output.stderr),
    )
}

/// Each step has the name of who did it.
fn told_by_the_log(plane: &Plane) {
    let entries = plane.entries();
    let of = |kind: &str| {
        let found = entries.iter().filter(|it| it["kind"] == kind);
        found.map(|it| it["body"].clone()).collect::<Vec<_>>()
    };
    let stops: Vec<_> = of("stop").iter().map(|it| it["by"].clone()).collect();
    assert_eq!(stops, [ANN]);
    let lifts = of("lift");
    let asked: Vec<_> = lifts.iter().map(|it| it["lift_asked"][0].clone()).collect();
    assert_eq!(asked, [json!(ANN), json!(ANN), json!(ANN), Value::Null]);
    let lifted: Vec<_> = lifts.iter().map(|it| it["lifted"][0].clone()).collect();
    assert_eq!(lifted, [Value::Null, Value::Null, Value::Null, json!(BOB)]);
    let uid = rustix::process::geteuid().as_raw();
    for who in [ANN, BOB, CAROL] {
        let made = json!({ "who": who, "how": "link", "uid": uid });
        let opened = json!({ "who": who, "how": "command_line" });
        let logins = of("login");
        let at = |body: &Value| logins.iter().position(|it| it == body);
        assert!(at(&made) < at(&opened) && at(&made).is_some(), "{logins:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopping_everything_takes_a_session_of_just_now() {
    let clock = Clock::new().unwrap();
    let plane = two().with_env(clock.env()).start().await;
    let bench = Bench::over(plane);
    let ann = Person::of(&bench.plane, ANN).await;
    clock.step(5 * 60).unwrap();
    no(&ann.stop(everything()).await, 403, "step_up_needed");
    // What is less is stopped by the same session.
    let one = json!({ "agent": "spiffe://writ.example/agent/other" });
    assert_eq!(ann.stop(one).await.status, 200);
    let stops = ann.ask(reqwest::Method::GET, "/api/v1/stops", None).await;
    let stops = stops.json()["stops"].as_array().unwrap().clone();
    assert!(stops.iter().all(|it| it["kind"] == "agent"), "{stops:?}");

    let anew = Person::of(&bench.plane, ANN).await;
    assert_eq!(anew.stop(everything()).await.status, 200);
    // The older session is as old as before.
    no(&ann.stop(everything()).await, 403, "step_up_needed");
}

/// A stop of what no agent can be called would stop nothing: it is refused, and says of what.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_that_can_match_nothing_is_refused() {
    let plane = two().start().await;
    let ann = Person::of(&plane, ANN).await;
    let user = json!({ "issuer": "https://idp.example", "subject": "ann" });
    for name in [
        "spiffe://WRIT.example/agent/demo",
        "SPIFFE://writ.example/agent/demo",
        "spiffe://writ.example/agent/demo/",
        "spiffe://writ.example/agent//demo",
        "spiffe://writ.example/agent/d%65mo",
        "spiffe://writ.example",
        "agent/demo",
    ] {
        for target in [
            json!({ "agent": name }),
            json!({ "agent": name, "user": user }),
        ] {
            let answer = ann.stop(target.clone()).await;
            no(&answer, 400, "bad_target");
            let detail = answer.json()["detail"].as_str().unwrap().to_owned();
            let said = detail.contains("`target.agent`") && detail.ends_with(name);
            assert!(said, "{target}: {detail}");
        }
    }
    let stops = ann.ask(reqwest::Method::GET, "/api/v1/stops", None).await;
    assert_eq!(stops.json()["stops"], json!([]));
    let right = json!({ "agent": "spiffe://writ.example/agent/demo" });
    assert_eq!(ann.stop(right).await.status, 200);
}

/// Who is signed in by the start's link is an administrator only where the list says so.
#[tokio::test]
async fn the_list_is_all_who_administer() {
    let plane = two()
        .with(&format!("[server]\nadmins = [\"{BOB}\"]"))
        .start()
        .await;
    let other = json!({ "agent": "spiffe://writ.example/agent/other" });
    let ann = Person::of(&plane, ANN).await;
    no(&ann.stop(other.clone()).await, 403, "not_an_admin");
    let change = json!({ "agent": "spiffe://writ.example/agent/other", "owner": "o" });
    let put = ann
        .ask(reqwest::Method::PUT, "/api/v1/agents", Some(change))
        .await;
    no(&put, 403, "not_an_admin");
    let bob = Person::of(&plane, BOB).await;
    assert_eq!(bob.stop(other).await.status, 200);
}
