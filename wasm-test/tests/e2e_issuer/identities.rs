//! Who gets which identity from the built-in trust domain, and what happens
//! when identities are rotated under load.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use wasm_test::system::{AGENT, Options, System};
use wasm_test::upstream::REPORT;

use crate::evidence::decoded;
use crate::plane::{Prepared, run, text};
use crate::programs::{ask, clients};

const COURIER: &str = "spiffe://writ.example/agent/courier";

/// A config in which one copy of `writ` is an agent of its own.
fn with_courier(plain_uid_too: bool) -> (Prepared, PathBuf) {
    let prepared = Prepared::new();
    let copy = prepared.path("courier");
    std::fs::copy(std::env::var("WRIT_BIN").unwrap(), &copy).unwrap();
    let uid = rustix::process::getuid().as_raw();
    let mut entries = format!(
        "[[identity.workload]]\nspiffe_id = {COURIER:?}\nuid = {uid}\nexecutable = {copy:?}\n"
    );
    if plain_uid_too {
        entries.push_str(&format!(
            "[[identity.workload]]\nspiffe_id = {AGENT:?}\nuid = {uid}\n"
        ));
    }
    for agent in [AGENT, COURIER] {
        entries.push_str(&format!(
            "[[agent]]\nspiffe_id = {agent:?}\nowner = \"a\"\n"
        ));
    }
    (prepared.with(&entries), copy)
}

#[tokio::test]
async fn an_executable_is_an_identity_of_its_own() {
    let (prepared, copy) = with_courier(true);
    let plane = prepared.start().await;
    let url = format!("{}/files/report.txt", plane.origin());
    let token = async |program: Option<&PathBuf>| {
        let mut command = plane.writ();
        if let Some(program) = program {
            let mut other = std::process::Command::new(program);
            other.envs(command.get_envs().filter_map(|(k, v)| Some((k, v?))));
            command = other;
        }
        command.args(["token", &url]);
        run(command).await
    };
    for (program, agent) in [(None, AGENT), (Some(&copy), COURIER)] {
        let output = token(program).await;
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let (_, claims) = decoded(text(&output.stdout).trim());
        assert_eq!(
            (&claims["sub"], &claims["client_id"]),
            (&json!(agent), &json!(agent))
        );
    }
    // A file of the same bytes in another place is another executable.
    let other = plane.path("pretender");
    std::fs::copy(&copy, &other).unwrap();
    let output = token(Some(&other)).await;
    let (_, claims) = decoded(text(&output.stdout).trim());
    assert_eq!(claims["sub"], AGENT);
}

#[tokio::test]
async fn who_has_no_entry_gets_nothing() {
    let (prepared, copy) = with_courier(false);
    let plane = prepared.start().await;
    let url = format!("{}/files/report.txt", plane.origin());
    let mut command = plane.writ();
    command.args(["token", &url]);
    let output = run(command).await;
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(
        text(&output.stderr).contains("no identity issued"),
        "{output:?}"
    );
    let mut command = std::process::Command::new(copy);
    command.envs(plane.writ().get_envs().filter_map(|(k, v)| Some((k, v?))));
    command.args(["token", &url]);
    assert_eq!(run(command).await.status.code(), Some(0));

    let Some(clients) = clients() else { return };
    let mut command = clients.python("raw.py");
    command.arg(plane.path("workload.sock"));
    let got = ask(command, Value::Null).await;
    for (call, status) in got.as_object().unwrap() {
        let wanted = if call.contains("header") {
            "INVALID_ARGUMENT"
        } else {
            "PERMISSION_DENIED"
        };
        assert_eq!(status, wanted, "{call}");
    }
}

#[tokio::test]
async fn the_workload_api_keeps_its_rules_for_those_it_knows() {
    let Some(clients) = clients() else { return };
    let plane = Prepared::new().start().await;
    let mut command = clients.python("raw.py");
    command.arg(plane.path("workload.sock"));
    let got = ask(command, Value::Null).await;
    let wanted = json!({
        "x509": "OK", "x509_without_header": "INVALID_ARGUMENT", "x509_wrong_header": "INVALID_ARGUMENT",
        "x509_bundles": "OK", "x509_bundles_without_header": "INVALID_ARGUMENT",
        "jwt_without_header": "INVALID_ARGUMENT", "jwt_without_audience": "INVALID_ARGUMENT",
        "jwt_bundles": "OK", "jwt_bundles_without_header": "INVALID_ARGUMENT",
        "validate_without_header": "INVALID_ARGUMENT",
        "sds": "OK", "sds_once": "OK",
    });
    assert_eq!(got, wanted);
}

/// The serial numbers of the certificates that Envoy holds.
async fn serials(system: &System) -> BTreeSet<String> {
    let url = format!("{}/certs", system.admin_url());
    let certs: Value = reqwest::get(url).await.unwrap().json().await.unwrap();
    let all = certs["certificates"].as_array().unwrap();
    all.iter()
        .flat_map(|context| context["cert_chain"].as_array().into_iter().flatten())
        .map(|certificate| certificate["serial_number"].as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test]
async fn identities_are_rotated_under_load_without_a_failed_request() {
    let options = Options {
        extra_config: "[identity]\nsvid_ttl_s = 10".to_owned(),
        ..Options::default()
    };
    let mut system = System::for_test(options).await.unwrap();
    let begin = Instant::now();
    let mut seen = serials(&system).await;
    let mut requests = 0;
    while begin.elapsed() < Duration::from_secs(13) {
        // A fresh one each round: its SVID ends after 10 s as well.
        let agent = system.agent().await.unwrap();
        for _ in 0..10 {
            let answer = agent.call("GET", REPORT).await.unwrap();
            assert_eq!(
                answer.status,
                200,
                "after {:?}: {}",
                begin.elapsed(),
                answer.text()
            );
            requests += 1;
        }
        seen.extend(serials(&system).await);
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    assert!(
        seen.len() >= 3,
        "the certificate was rotated twice in 13 s: {seen:?}"
    );
    assert_eq!(system.upstream().unwrap().arrived(), requests);

    // What was valid at the start is over: both ends reconnect with new ones.
    system.restart_control_plane().await.unwrap();
    system.settled().await.unwrap();
    let answer = system
        .agent()
        .await
        .unwrap()
        .call("GET", REPORT)
        .await
        .unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    system.stop().await;
}
