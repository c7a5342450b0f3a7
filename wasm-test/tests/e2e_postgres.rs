//! Two replicas on one PostgreSQL, each behind an Envoy of its own: one log, one
//! use of each token, and either goes on without the other.
//!
//! Needs `WRIT_POSTGRES` besides what the other end-to-end tests need; goes
//! without, loudly, where that is not set and not required.

#![expect(clippy::unwrap_used, reason = "tests fail loudly")]

use std::time::Duration;

use serde_json::{Value, json};
use wasm_test::client::{Answer, Approver, DpopKey, Verdict, http_client, now_s};
use wasm_test::postgres;
use wasm_test::stage::{Pair, Stage, eventually, jti};
use wasm_test::system::{AGENT, Options};
use wasm_test::upstream::REPORT;

const RESTRICTED: &str = "/echo/restricted/pair";
const EXCHANGE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
const DEFERRED: &str = "urn:ietf:params:oauth:grant-type:deferred";

/// The pair, or `None` where there is no PostgreSQL.
async fn pair(what: &str, hold_s: u64) -> Option<Pair> {
    let options = Options {
        hold_s,
        token_lifetime_s: 120,
        ..Options::default()
    };
    with(what, options).await
}

/// The same by these options.
async fn with(what: &str, options: Options) -> Option<Pair> {
    let Some(bin) = postgres::find().unwrap() else {
        eprintln!("\nSKIPPED: {what} needs PostgreSQL; run `cargo xtask test`\n");
        return None;
    };
    Some(Pair::start(&bin, options).await.unwrap())
}

#[track_caller]
fn expect(answer: &Answer, status: u16, reason: &str) {
    let got = (answer.status, answer.reason());
    assert_eq!(got, (status, reason.to_owned()), "{}", answer.text());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_passes_once_at_whichever_replica_it_is_shown() {
    let Some(pair) = pair("single use over replicas", 3).await else {
        return;
    };
    let sides = [&pair.first, &pair.second];
    for (issuer, user, other) in [(0, 0, 1), (0, 1, 0), (1, 0, 1), (1, 1, 0)] {
        let [issuer, user, other]: [&Stage; 3] = [issuer, user, other].map(|at| sides[at]);
        let token = issuer.agent.token("GET", REPORT).await.unwrap();
        // Each agent has a key of its own: the proof is the issuer's.
        let bytes = issuer.signed("GET", REPORT, &token);
        assert_eq!(user.exchange(&bytes).await.unwrap().status, 200);
        for side in [other, user] {
            let again = issuer.signed("GET", REPORT, &token);
            expect(&side.exchange(&again).await.unwrap(), 401, "token_spent");
        }
        assert_eq!(pair.first.uses().unwrap().get(&jti(&token)), Some(&1));
    }
    pair.first.each_once().unwrap();
    // Both say the same of the one log.
    let (one, two) = (pair.first.entries(), pair.second.entries());
    let (one, two) = (one.unwrap(), two.unwrap());
    let shared = one.len().min(two.len());
    assert!(shared > 20);
    assert_eq!(one[..shared], two[..shared]);
    pair.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_yes_at_one_replica_wakes_the_request_that_the_other_holds() {
    let Some(pair) = pair("an approval over replicas", 20).await else {
        return;
    };
    let approver: Approver = pair.second.system.approver().await.unwrap();
    let agent = pair.first.agent.clone();
    let before = pair.first.arrived().unwrap();
    let held = tokio::spawn(async move { agent.call("GET", RESTRICTED).await.unwrap() });
    let id = approver.next(&[], Duration::from_secs(20)).await.unwrap();
    assert_eq!(pair.first.arrived().unwrap(), before, "it did not wait");
    let said = approver.decide(&id, Verdict::Approve).await.unwrap();
    assert!(said.status < 400, "{}", said.text());
    let answer = held.await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(pair.first.arrived().unwrap(), before + 1);

    // Used at the first, it is no good at the second: that one asks anew.
    let agent = pair.second.agent.clone();
    let held = tokio::spawn(async move { agent.call("GET", RESTRICTED).await.unwrap() });
    let known = [id];
    let other = approver
        .next(&known, Duration::from_secs(20))
        .await
        .unwrap();
    let said = approver.decide(&other, Verdict::Deny).await.unwrap();
    assert!(said.status < 400, "{}", said.text());
    expect(&held.await.unwrap(), 403, "approval_denied");
    assert_eq!(pair.first.arrived().unwrap(), before + 1);
    pair.first.each_once().unwrap();
    pair.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_replica_dies_and_the_other_goes_on_with_what_it_had_issued() {
    let Some(mut pair) = pair("the loss of a replica", 3).await else {
        return;
    };
    let (first, second) = (&pair.first, &pair.second);
    let spent = first.agent.token("GET", REPORT).await.unwrap();
    assert_eq!(first.present(REPORT, &spent).await.unwrap().status, 200);
    let unspent = first.agent.token("GET", REPORT).await.unwrap();
    let [spent_again, unspent_now] = [&spent, &unspent].map(|it| first.signed("GET", REPORT, it));
    let before = first.arrived().unwrap();

    pair.first.system.kill_control_plane();
    let at_first = pair.first.exchange(&unspent_now).await.unwrap();
    expect(&at_first, 503, "control_plane_unavailable");
    assert_eq!(pair.first.arrived().unwrap(), before);
    let again = second.exchange(&spent_again).await.unwrap();
    expect(&again, 401, "token_spent");
    assert_eq!(second.exchange(&unspent_now).await.unwrap().status, 200);
    second.good_request_seen_by(&pair.first).await.unwrap();

    // It comes back to the same log, and knows what became of the token meanwhile.
    pair.first.system.start_control_plane().await.unwrap();
    pair.first.recovers().await.unwrap();
    let fresh = pair.first.signed("GET", REPORT, &unspent);
    let late = pair.first.exchange(&fresh).await.unwrap();
    expect(&late, 401, "token_spent");
    assert_eq!(pair.first.uses().unwrap().get(&jti(&unspent)), Some(&1));
    // Entries get their places within a second of their commit.
    eventually("each use has its entry", async || {
        pair.first.each_once().is_ok()
    })
    .await
    .unwrap();
    pair.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_equal_request_at_the_other_replica_waits_for_the_same_yes() {
    let Some(pair) = pair("equal requests over replicas", 20).await else {
        return;
    };
    // Nothing tells the second of what the first commits: it has to wait for its poll.
    let (first, second) = (&pair.first, &pair.second);
    let approver: Approver = second.system.approver().await.unwrap();
    let before = first.arrived().unwrap();
    let mut known = Vec::new();
    for round in 0..5 {
        let path = format!("{RESTRICTED}/{round}");
        let ask = async |side: &Stage| {
            let token = first.agent.token("GET", &path).await.unwrap();
            let bytes = first.signed("GET", &path, &token);
            side.exchange(&bytes).await.unwrap()
        };
        let decide = async {
            let id = approver.next(&known, Duration::from_secs(20)).await;
            let id = id.unwrap();
            // Both wait by now, for this one.
            tokio::time::sleep(Duration::from_secs(2)).await;
            let said = approver.decide(&id, Verdict::Deny).await.unwrap();
            assert!(said.status < 400, "{}", said.text());
            id
        };
        let (one, two, id) = tokio::join!(ask(first), ask(second), decide);
        for (which, answer) in [("the first", one), ("the second", two)] {
            let got = (answer.status, answer.reason());
            let denied = (403, "approval_denied".to_owned());
            assert_eq!(got, denied, "{which}, {round}: {}", answer.text());
        }
        // Whichever is asked next: nobody is asked again so soon.
        for side in [second, first] {
            expect(&ask(side).await, 403, "approval_denied");
        }
        known.push(id);
    }
    assert_eq!(first.arrived().unwrap(), before);
    pair.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_an_epoch_that_no_restart_began_a_used_token_is_of_unknown_outcome() {
    let Some(pair) = pair("an epoch over replicas", 3).await else {
        return;
    };
    let first = &pair.first;
    let token = first.agent.token("GET", REPORT).await.unwrap();
    let present = async |side: &Stage| {
        let bytes = first.signed("GET", REPORT, &token);
        side.exchange(&bytes).await.unwrap()
    };
    assert_eq!(present(first).await.status, 200);
    expect(&present(first).await, 401, "token_spent");
    // As after a takeover: another timeline, and every connection gone.
    pair.postgres
        .sql(
            "UPDATE meta SET timeline = 'FFFFFFFE'; \
             SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
             WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'",
        )
        .unwrap();
    eventually("a replica is back", async || {
        let reason = present(first).await.reason();
        !matches!(reason.as_str(), "control_plane_unavailable" | "token_spent")
    })
    .await
    .unwrap();
    let before = first.arrived().unwrap();
    for side in [first, &pair.second] {
        eventually("it says that nobody knows", async || {
            present(side).await.reason() == "outcome_unknown"
        })
        .await
        .unwrap();
    }
    assert_eq!(first.arrived().unwrap(), before);
    assert_eq!(first.uses().unwrap().get(&jti(&token)), Some(&1));
    pair.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_is_revoked_for_both_and_an_assertion_counts_once_for_both() {
    let dir = tempfile::tempdir().unwrap();
    let key = DpopKey::generate().unwrap();
    let mut jwk = key.jwk().clone();
    jwk["kid"] = json!("k");
    let keys = dir.path().join("client.json");
    std::fs::write(&keys, json!({ "keys": [jwk] }).to_string()).unwrap();
    let extra_config = format!(
        "[[client]]\nclient_id = \"billing\"\nagent = \"{AGENT}\"\nkeys = \"{}\"\n",
        keys.display()
    );
    let options = Options {
        token_lifetime_s: 120,
        extra_config,
        ..Options::default()
    };
    let Some(pair) = with("revocation over replicas", options).await else {
        return;
    };
    let issuer = pair.first.system.issuer();
    let assertion = |name: &str| {
        let header = json!({ "alg": "ES256", "typ": "JWT", "kid": "k" });
        let claims = json!({
            "iss": "billing", "sub": "billing", "aud": issuer, "jti": name,
            "iat": now_s(), "exp": now_s() + 60,
        });
        key.sign(&header, &claims)
    };
    let post = async |side: &Stage, endpoint: &str, token: &str, assertion: &str| {
        let form = [
            ("token", token),
            (
                "client_assertion_type",
                "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
            ),
            ("client_assertion", assertion),
        ];
        let url = format!("{}/oauth2/{endpoint}", side.system.http_url());
        let answer = http_client().post(url).form(&form).send().await.unwrap();
        Answer::read(answer).await.unwrap()
    };
    let (first, second) = (&pair.first, &pair.second);
    let token = first.agent.token("GET", REPORT).await.unwrap();
    let one = assertion("one");
    let said = post(second, "introspect", &token, &one).await;
    assert_eq!(said.status, 200, "{}", said.text());
    assert_eq!(said.json()["active"], true, "{}", said.text());
    assert_eq!(said.json()["cnf"]["jkt"], first.agent.key().thumbprint());
    for side in [first, second] {
        expect(
            &post(side, "introspect", &token, &one).await,
            401,
            "token_spent",
        );
    }
    let revoked = post(second, "revoke", &token, &assertion("two")).await;
    assert_eq!(revoked.status, 200, "{}", revoked.text());
    // At once, also where nobody has been told yet: each commit is checked against it.
    let before = first.arrived().unwrap();
    let bytes = first.signed("GET", REPORT, &token);
    expect(&first.exchange(&bytes).await.unwrap(), 401, "token_revoked");
    assert_eq!(first.arrived().unwrap(), before);
    let nothing: Value = json!({ "active": false });
    let said = post(second, "introspect", &token, &assertion("three")).await;
    assert_eq!(said.json(), nothing);
    // Who only asks hears of it within a second.
    let asked = std::sync::atomic::AtomicUsize::new(0);
    eventually("the first says so too", async || {
        let n = asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let one = assertion(&format!("asked {n}"));
        post(first, "introspect", &token, &one).await.json() == nothing
    })
    .await
    .unwrap();
    pair.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_waits_at_both_replicas_and_comes_from_one_of_them() {
    let options = Options {
        hold_s: 1,
        token_lifetime_s: 120,
        extra_config: "[approval]\npoll_s = 2\n".to_owned(),
        ..Options::default()
    };
    let Some(pair) = with("a deferred token over replicas", options).await else {
        return;
    };
    let (first, second) = (&pair.first, &pair.second);
    let agent = &first.agent;
    let svid = agent.svid().await.unwrap();
    let details = agent.details("GET", RESTRICTED).to_string();
    let post = async |side: &Stage, more: &[(&str, &str)]| {
        let evidence = [
            ("subject_token", svid.as_str()),
            ("subject_token_type", "urn:ietf:params:oauth:token-type:jwt"),
        ];
        let form: Vec<_> = evidence.iter().chain(more).collect();
        let url = format!("{}/oauth2/token", side.system.http_url());
        let request = http_client().post(url).header("dpop", agent.token_proof());
        let answer = request.form(&form).send().await.unwrap();
        Answer::read(answer).await.unwrap()
    };
    let asked = [
        ("grant_type", EXCHANGE),
        ("authorization_details", &details),
        ("completion_mode", "deferred"),
    ];
    let pending = post(first, &asked).await;
    expect(&pending, 400, "approval_pending");
    let (code, id) = (
        pending.json()["deferral_code"].as_str().unwrap().to_owned(),
        pending.json()["approval_id"].as_str().unwrap().to_owned(),
    );
    let poll = [("grant_type", DEFERRED), ("deferral_code", &code)];
    let interval = || tokio::time::sleep(Duration::from_millis(2_100));
    interval().await;
    expect(&post(second, &poll).await, 400, "approval_pending");

    // The yes is said at the second, and asked about at both at once: one has the token.
    let approver: Approver = second.system.approver().await.unwrap();
    eventually("the second shows it", async || {
        approver.inbox().await.unwrap().contains(&id)
    })
    .await
    .unwrap();
    let said = approver.decide(&id, Verdict::Approve).await.unwrap();
    assert!(said.status < 400, "{}", said.text());
    interval().await;
    let (one, other) = tokio::join!(post(first, &poll), post(second, &poll));
    let both = [one, other];
    let tokens: Vec<String> = both
        .iter()
        .filter_map(|it| Some(it.json()["access_token"].as_str()?.to_owned()))
        .collect();
    assert_eq!(tokens.len(), 1, "{both:?}");
    let refused = both.iter().find(|it| it.status != 200).unwrap();
    expect(refused, 400, "token_spent");

    let before = first.arrived().unwrap();
    let passed = first.signed("GET", RESTRICTED, &tokens[0]);
    assert_eq!(second.exchange(&passed).await.unwrap().status, 200);
    assert_eq!(first.arrived().unwrap(), before + 1);
    expect(&first.exchange(&passed).await.unwrap(), 401, "token_spent");
    first.each_once().unwrap();
    pair.stop().await;
}
