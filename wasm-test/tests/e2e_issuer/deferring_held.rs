//! Tokens that wait for a person: what is held to, of what the code says and rests on.

use serde_json::Value;
use wasm_test::client::{Answer, Call, Verdict as Says};

use crate::deferring::{DEFERRED, PENDING, Stage, code_of, interval, params};
use crate::judging::{ACCESS, GRANT, JWT, issued, no, refused};
use crate::plane::run;
use crate::rights::{done, sign_in};

/// All approvals, as the command line lists them.
async fn inbox(stage: &Stage) -> Vec<Value> {
    let mut list = stage.system.writ();
    list.args(["approvals", "list", "--json"]);
    let all: Value = serde_json::from_slice(&run(list).await.stdout).unwrap();
    all["approvals"].as_array().unwrap().clone()
}

/// What the request's `content-type` will be is approved too, where no body is read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_content_type_that_was_said_is_the_one_that_passes() {
    let stage = Stage::start().await;
    let approver = stage.system.approver().await.unwrap();
    let path = "/echo/restricted/typed";
    let details = stage.agent.details("POST", path);
    let said = [("writ_content_type", "application/json")];
    let answer = stage.first(&details, &said).await;
    let code = code_of(&answer);
    let id = answer.json()["approval_id"].as_str().unwrap().to_owned();
    approver.decide(&id, Says::Approve).await.unwrap();
    let body = issued("approved", &stage.poll(&code).await);
    let token = body["access_token"].as_str().unwrap();
    let proof = stage
        .agent
        .key()
        .proof("POST", &stage.agent.url(path), Some(token));
    let call = Call {
        method: "POST",
        path,
        token: Some(token),
        proof: Some(&proof),
        headers: &[("content-type", "application/json")],
        body: b"{}".to_vec(),
    };
    let passed = stage.agent.send(call).await.unwrap();
    assert_eq!(passed.status, 200, "{}", passed.text());
    stage.system.stop().await;
}

/// A session that was revoked says nothing any more, and nobody is asked for a key that is
/// stopped.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_stopped_gets_nothing_by_a_code_and_asks_nobody() {
    let stage = Stage::start().await;
    sign_in(&stage.system).await;
    let svid = stage.agent.svid().await.unwrap();
    let issuer = stage.system.issuer();
    let session = stage.post(params(&[
        ("grant_type", GRANT),
        ("subject_token", &svid),
        ("subject_token_type", JWT),
        ("audience", &issuer),
    ]));
    let session = issued("a session", &session.await);
    let session = session["access_token"].as_str().unwrap().to_owned();
    let answer = stage
        .first(&stage.agent.details("GET", "/echo/restricted/s"), &[])
        .await;
    let code = code_of(&answer);
    let id = answer.json()["approval_id"].as_str().unwrap().to_owned();
    let revoke = reqwest::Client::new()
        .post(format!("{issuer}/oauth2/revoke"))
        .form(&[
            ("token", session.as_str()),
            (
                "client_assertion_type",
                "urn:ietf:params:oauth:client-assertion-type:jwt-spiffe",
            ),
            ("client_assertion", &svid),
        ]);
    let revoked = Answer::read(revoke.send().await.unwrap()).await.unwrap();
    assert_eq!(revoked.status, 200, "{}", revoked.text());
    let one = inbox(&stage)
        .await
        .into_iter()
        .find(|it| it["id"] == id.as_str());
    let digest = one.unwrap()["digest"].as_str().unwrap().to_owned();
    let approve = ["approvals", "approve", "--digest", &digest, &id];
    done(&stage.system, &approve, "approved").await;
    let by_session = params(&[
        ("grant_type", DEFERRED),
        ("deferral_code", &code),
        ("subject_token", &session),
        ("subject_token_type", ACCESS),
    ]);
    let stopped = no("access_denied", "token_revoked");
    refused("a revoked session", &stage.post(by_session).await, stopped);
    interval().await;
    issued("its own evidence", &stage.poll(&code).await);

    let jkt = stage.agent.key().thumbprint();
    done(
        &stage.system,
        &["revoke", "--why", "a test", "--key", &jkt],
        "stopped",
    )
    .await;
    let asked = inbox(&stage).await.len();
    let answer = stage
        .first(&stage.agent.details("GET", "/echo/restricted/t"), &[])
        .await;
    refused("a stopped key", &answer, stopped);
    assert_eq!(inbox(&stage).await.len(), asked, "nobody is asked");
    stage.system.stop().await;
}

/// A person's stop of a code lasts as long as the code.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_of_a_code_lasts_as_long_as_the_code() {
    let stage = Stage::start().await;
    sign_in(&stage.system).await;
    let answer = stage
        .first(&stage.agent.details("GET", "/echo/restricted/u"), &[])
        .await;
    let (code, lives) = (
        code_of(&answer),
        answer.json()["expires_in"].as_u64().unwrap(),
    );
    let hash = hex::encode(<sha2::Sha256 as sha2::Digest>::digest(&code));
    done(
        &stage.system,
        &["revoke", "--why", "a test", "--token", &hash],
        "stopped",
    )
    .await;
    let stops = crate::plane::entries(&stage.system.audit_dir());
    let stop = stops.iter().rfind(|it| it["kind"] == "stop").unwrap();
    let (at, until) = (&stop["body"]["at_ms"], &stop["body"]["until_ms"]);
    let lasts = (until.as_u64().unwrap() - at.as_u64().unwrap()) / 1000;
    assert!(lasts >= lives, "{lasts} s, and the code {lives} s: {stop}");
    refused(
        "stopped",
        &stage.poll(&code).await,
        no("access_denied", "token_revoked"),
    );
    stage.system.stop().await;
}

/// A poll is shown once, also one that was told to wait.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_poll_that_was_told_to_wait_brings_no_token_when_it_is_shown_again() {
    let stage = Stage::start().await;
    let approver = stage.system.approver().await.unwrap();
    let details = stage.agent.details("GET", "/echo/restricted/again");
    let answer = stage.first(&details, &[]).await;
    let code = code_of(&answer);
    let id = answer.json()["approval_id"].as_str().unwrap().to_owned();
    let svid = stage.agent.svid().await.unwrap();
    let poll = || {
        params(&[
            ("grant_type", DEFERRED),
            ("deferral_code", &code),
            ("subject_token", &svid),
            ("subject_token_type", JWT),
        ])
    };
    let (waits, hurries) = (stage.agent.token_proof(), stage.agent.token_proof());
    refused("undecided", &stage.post_with(poll(), &waits).await, PENDING);
    let too_soon = no("slow_down", "limit_exceeded");
    refused(
        "at once",
        &stage.post_with(poll(), &hurries).await,
        too_soon,
    );
    let done = approver.decide(&id, Says::Approve).await.unwrap();
    assert!(done.status < 400, "{}", done.text());
    interval().await;
    let replayed = no("invalid_dpop_proof", "proof_replayed");
    for (what, proof) in [("who waited", &waits), ("who hurried", &hurries)] {
        refused(what, &stage.post_with(poll(), proof).await, replayed);
    }
    issued("its own next", &stage.post(poll()).await);
    stage.system.stop().await;
}

/// Nor does one whose token could not be recorded, once it could.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_poll_that_found_no_room_brings_no_token_when_there_is_some() {
    let stage = Stage::start_with("[limits]\noutstanding_per_agent = 4\n").await;
    let approver = stage.system.approver().await.unwrap();
    let details = stage.agent.details("GET", "/echo/restricted/full");
    let answer = stage.first(&details, &[]).await;
    let code = code_of(&answer);
    let id = answer.json()["approval_id"].as_str().unwrap().to_owned();
    let svid = stage.agent.svid().await.unwrap();
    let poll = || {
        params(&[
            ("grant_type", DEFERRED),
            ("deferral_code", &code),
            ("subject_token", &svid),
            ("subject_token_type", JWT),
        ])
    };
    let done = approver.decide(&id, Says::Approve).await.unwrap();
    assert!(done.status < 400, "{}", done.text());
    let mut tokens = Vec::new();
    for _ in 0..3 {
        tokens.push(stage.agent.token("GET", "/echo/free").await.unwrap());
    }
    interval().await;
    let proof = stage.agent.token_proof();
    let full = stage.post_with(poll(), &proof).await;
    assert_eq!((full.status, &*full.reason()), (429, "limit_exceeded"));
    let spent = stage.agent.present("GET", "/echo/free", &tokens[0]).await;
    assert_eq!(spent.unwrap().status, 200);
    interval().await;
    let replayed = no("invalid_dpop_proof", "proof_replayed");
    refused(
        "its proof",
        &stage.post_with(poll(), &proof).await,
        replayed,
    );
    issued("another proof", &stage.post(poll()).await);
    stage.system.stop().await;
}
