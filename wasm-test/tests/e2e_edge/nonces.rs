//! Routes that ask for a nonce in the proof (RFC 9449, section 9), on a real Envoy: who
//! is refused for want of one has spent nothing, and heals by what it is told.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use wasm_test::client::{Answer, DpopKey, now_s};
use wasm_test::system::Options;
use wasm_test::upstream::REPORT;

use super::rig::{Rig, eventually, field};

/// Below the route that asks, and below the one that reads bodies besides.
const ASKS: &str = "/echo/asks/a";
const NOTES: &str = "/echo/notes/a";
/// One is told for so long, and good for twice as long.
const EVERY: Duration = Duration::from_secs(4);

fn options() -> Options {
    Options {
        token_lifetime_s: 60,
        routes: r#"
[[edge.route]]
name = "asks"
path_prefix = "/echo/asks"
upstream = "{upstream}"
nonce = true

[[edge.route]]
name = "notes"
path_prefix = "/echo/notes"
upstream = "{upstream}"
body = "read"
nonce = true
"#
        .to_owned(),
        extra_config: format!(
            "[edge]\nnonce_s = {}\n[token]\nproof_window_s = 10\n",
            EVERY.as_secs()
        ),
        ..Options::default()
    }
}

/// The nonce of an answer that asks for one, and for nothing else.
fn asked(what: &str, answer: &Answer) -> String {
    let seen = (answer.status, answer.reason());
    assert_eq!(
        seen,
        (401, "proof_nonce".to_owned()),
        "{what}: {}",
        answer.text()
    );
    let all = |name: &str| -> Vec<&String> {
        let of_it = answer.headers.iter().filter(|(known, _)| known == name);
        of_it.map(|(_, value)| value).collect()
    };
    let challenges = all("www-authenticate");
    assert_eq!(challenges.len(), 1, "{what}: {challenges:?}");
    assert!(
        challenges[0].starts_with("DPoP error=\"use_dpop_nonce\", "),
        "{what}: {challenges:?}"
    );
    assert_eq!(all("cache-control"), ["no-store"], "{what}");
    assert_eq!(
        all("access-control-expose-headers"),
        ["DPoP-Nonce, WWW-Authenticate, X-Writ-Reason"],
        "{what}"
    );
    assert!(all("retry-after").is_empty(), "{what}");
    let nonces = all("dpop-nonce");
    assert_eq!(nonces.len(), 1, "{what}: {nonces:?}");
    nonces[0].clone()
}

/// The token once, with a proof that has these claims as well.
async fn show(rig: &Rig, token: &str, claims: Value) -> Answer {
    let shown = rig.agent.present_with("GET", ASKS, token, &claims).await;
    shown.unwrap()
}

async fn token(rig: &Rig) -> String {
    rig.agent.token("GET", ASKS).await.unwrap()
}

/// A nonce of this moment.
async fn told(rig: &Rig) -> String {
    asked(
        "a fresh token",
        &show(rig, &token(rig).await, json!({})).await,
    )
}

/// The exchange that brings a nonce of the token endpoint's, or a token.
async fn exchange(rig: &Rig, claims: &Value) -> Answer {
    let endpoint = format!("{}/oauth2/token", rig.system.issuer());
    let proof = rig.agent.key().proof_with("POST", &endpoint, None, claims);
    let details = rig.agent.details("GET", ASKS).to_string();
    let svid = rig.agent.svid().await.unwrap();
    rig.agent.post_token(&svid, &details, &proof).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_good_one_nothing_is_spent_and_each_place_has_its_own() {
    let rig = Rig::start(options()).await;
    let late = json!({ "iat": now_s() - 3_600 });
    let there = exchange(&rig, &late).await;
    assert_eq!(there.oauth_error(), "use_dpop_nonce");
    let there = there.header("dpop-nonce").unwrap().to_owned();

    let token = token(&rig).await;
    let before = rig.arrived();
    let first = asked("none", &show(&rig, &token, json!({})).await);
    let mut other = first.clone();
    let last = if other.pop() == Some('A') { 'B' } else { 'A' };
    other.push(last);
    for nonce in [
        "",
        "x",
        &there,
        &other,
        first.get(1..).unwrap(),
        &format!("{first} "),
    ] {
        let answer = show(&rig, &token, json!({ "nonce": nonce })).await;
        asked(&format!("{nonce:?}"), &answer);
    }
    // A proof of another time is refused for its time, whatever nonce it has: here
    // nonces mend no clock.
    for iat in [now_s() - 3_600, now_s() + 3_600] {
        let nonce = told(&rig).await;
        let answer = show(&rig, &token, json!({ "iat": iat, "nonce": nonce })).await;
        assert_eq!(
            (answer.status, answer.reason().as_str()),
            (401, "proof_time")
        );
        assert!(answer.header("dpop-nonce").is_none());
    }
    // Nobody else's key is helped by one.
    let thief = DpopKey::generate().unwrap();
    let nonce = told(&rig).await;
    let stolen = thief.proof_with(
        "GET",
        &rig.agent.url(ASKS),
        Some(&token),
        &json!({ "nonce": nonce }),
    );
    let stolen = [super::rig::authorization(&token), field("dpop", stolen)];
    let answer = rig.exchange_raw(&rig.request("GET", ASKS, &stolen)).await;
    assert_eq!(answer.reason(), "proof_key_mismatch");
    assert_eq!(rig.arrived(), before, "something was passed on");

    // After all of them the token is what it was: good, and once.
    let nonce = told(&rig).await;
    let good = show(&rig, &token, json!({ "nonce": nonce })).await;
    assert_eq!(good.status, 200, "{}", good.text());
    assert!(good.header("dpop-nonce").is_none());
    assert_eq!(rig.arrived(), before + 1);
    let nonce = told(&rig).await;
    let again = show(&rig, &token, json!({ "nonce": nonce })).await;
    assert_eq!(
        (again.status, again.reason().as_str()),
        (401, "token_spent")
    );

    // The edge's is none of the token endpoint's.
    let mut with_it = late;
    with_it["nonce"] = told(&rig).await.into();
    assert_eq!(
        exchange(&rig, &with_it).await.oauth_error(),
        "use_dpop_nonce"
    );

    // Other routes ask for none, and mind none.
    for claims in [json!({}), json!({ "nonce": "x" })] {
        let token = rig.agent.token("GET", REPORT).await.unwrap();
        let answer = rig.agent.present_with("GET", REPORT, &token, &claims).await;
        assert_eq!(answer.unwrap().status, 200, "{claims}");
    }
    // Where bodies are read it is asked for before any of one is.
    let token = rig.agent.token("POST", NOTES).await.unwrap();
    let answer = rig
        .agent
        .present_with("POST", NOTES, &token, &json!({}))
        .await;
    let nonce = asked("a route that reads bodies", &answer.unwrap());
    let answer = rig
        .agent
        .present_with("POST", NOTES, &token, &json!({ "nonce": nonce }))
        .await;
    assert_eq!(answer.unwrap().status, 200);

    // Whose proof it was nobody had verified: it is counted, and no entry.
    let denied = rig.entries_of("edge_denial");
    assert!(
        denied
            .iter()
            .all(|it| it["body"]["reason"] != "proof_nonce"),
        "{denied:?}"
    );
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn they_change_with_the_time_and_with_the_key() {
    let mut rig = Rig::start(options()).await;
    let own = token(&rig).await;
    let first = told(&rig).await;
    let start = Instant::now();
    let second = loop {
        let now = told(&rig).await;
        if now != first {
            break now;
        }
        assert!(start.elapsed() < 2 * EVERY, "it stays the same");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    // The one before is good until the next change.
    let good = show(&rig, &own, json!({ "nonce": first })).await;
    assert_eq!(good.status, 200, "{}", good.text());
    let own = token(&rig).await;
    tokio::time::sleep(2 * EVERY + Duration::from_secs(2)).await;
    for over in [&first, &second] {
        let answer = show(&rig, &own, json!({ "nonce": over })).await;
        assert_ne!(asked("one that is over", &answer), **over);
    }
    let healed = rig.present(ASKS, &own).await;
    assert_eq!(healed.status, 200, "{}", healed.text());

    // Without a control plane there is none to tell, and nobody passes with one.
    let (held, own) = (told(&rig).await, token(&rig).await);
    rig.system.stop_control_plane().await;
    for claims in [json!({}), json!({ "nonce": held })] {
        let answer = show(&rig, &own, claims.clone()).await;
        let seen = (answer.status, answer.reason());
        assert_eq!(
            seen,
            (503, "control_plane_unavailable".to_owned()),
            "{claims}"
        );
        assert_eq!(answer.header("retry-after"), Some("1"), "{claims}");
        assert!(answer.header("dpop-nonce").is_none(), "{claims}");
    }
    // With another key all of before are over.
    let key = rig.system.state_dir().join("data/keys/nonce.key");
    std::fs::remove_file(key).unwrap();
    rig.system.start_control_plane().await.unwrap();
    rig.recovers().await;
    let own = token(&rig).await;
    for over in [&held, &first] {
        asked(
            "of another key",
            &show(&rig, &own, json!({ "nonce": over })).await,
        );
    }
    assert_eq!(rig.present(ASKS, &own).await.status, 200);
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_own_clients_and_the_canary_heal_by_themselves() {
    let mut options = options();
    options.extra_config += "[canary]\nevery_s = 1\n";
    let rig = Rig::start(options).await;
    let before = rig.arrived();
    for (at, path) in [ASKS, NOTES].into_iter().enumerate() {
        let mut command = rig.system.writ();
        command.args(["call", "--json", "-X", "POST", "-d", "{}"]);
        command.arg(rig.agent.url(path));
        let output = tokio::task::spawn_blocking(move || command.output()).await;
        let output = output.unwrap().unwrap();
        let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(shown["status"], 200, "{shown}");
        assert_eq!(rig.arrived(), before + 1 + u64::try_from(at).unwrap());
    }
    // Of each route it has tried both, over and over, and each was refused as it must be.
    let rounds = || {
        let log = std::fs::read_to_string(rig.system.log("envoy")).unwrap();
        let lines = log
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let ours = lines.filter(|line| {
            line["path"]
                .as_str()
                .is_some_and(|path| path.starts_with("/echo/asks/.writ-canary"))
        });
        let count =
            |reason: &str, all: &[Value]| all.iter().filter(|it| it["reason"] == reason).count();
        let all: Vec<Value> = ours.collect();
        (
            count("token_signature", &all),
            count("token_spent", &all),
            count("proof_nonce", &all),
        )
    };
    eventually("the canary has tried the route", async || {
        let (bad, spent, asked) = rounds();
        bad >= 4 && spent >= 4 && asked >= 4
    })
    .await;
    let warnings = rig.status()["warnings"].to_string();
    assert!(!warnings.contains("CANARY"), "{warnings}");
    rig.finish().await;
}
