//! The stops of the tour that go through Envoy.

use std::time::Duration;

use super::{ALLOWED, DENIED, HELD, Reached, Tour};
use crate::Error;
use crate::client::{Answer, Call, Verdict};

const NOTICE: Duration = Duration::from_secs(10);

/// One token, one request; the same token again is refused.
pub async fn allowed_then_replayed(tour: &mut Tour) -> Result<(), Error> {
    tour.begin("An allowed action goes through, once");
    let token = tour.agent.token("GET", ALLOWED).await?;
    let before = tour.arrived()?;
    let first = tour.agent.present("GET", ALLOWED, &token).await?;
    tour.check(
        &format!("GET {ALLOWED}"),
        &first,
        (200, ""),
        Reached::Upstream,
        before,
    )?;
    let before = tour.arrived()?;
    let again = tour.agent.present("GET", ALLOWED, &token).await?;
    let expected = (401, "token_spent");
    tour.check(
        "the same token, a fresh proof",
        &again,
        expected,
        Reached::Nobody,
        before,
    )?;

    let token = tour.agent.token("GET", ALLOWED).await?;
    let proof = tour
        .agent
        .key()
        .proof("GET", &tour.agent.url(ALLOWED), Some(&token));
    let call = || Call {
        method: "GET",
        path: ALLOWED,
        token: Some(&token),
        proof: Some(&proof),
        ..Call::default()
    };
    let before = tour.arrived()?;
    let first = tour.agent.send(call()).await?;
    tour.check(
        &format!("GET {ALLOWED}"),
        &first,
        (200, ""),
        Reached::Upstream,
        before,
    )?;
    let before = tour.arrived()?;
    let again = tour.agent.send(call()).await?;
    tour.check(
        "the same request, byte for byte",
        &again,
        expected,
        Reached::Nobody,
        before,
    )
}

/// A stolen token is worth nothing without its key, and stays good for its owner.
pub async fn another_key(tour: &mut Tour) -> Result<(), Error> {
    tour.begin("A stolen token is worth nothing without its key");
    let token = tour.agent.token("GET", ALLOWED).await?;
    let thief = tour.agent.with_fresh_key()?;
    let before = tour.arrived()?;
    let stolen = thief.present("GET", ALLOWED, &token).await?;
    let expected = (401, "proof_key_mismatch");
    tour.check(
        "the token with another key's proof",
        &stolen,
        expected,
        Reached::Nobody,
        before,
    )?;
    let before = tour.arrived()?;
    let owner = tour.agent.present("GET", ALLOWED, &token).await?;
    tour.check(
        "the owner, afterwards",
        &owner,
        (200, ""),
        Reached::Upstream,
        before,
    )
}

/// A token is for one method on one URL with its query.
pub async fn another_action(tour: &mut Tour) -> Result<(), Error> {
    tour.begin("A token for one action is no token for another");
    let query = format!("{ALLOWED}?all=1");
    let others = [
        ("another path", "GET", "/files/notes.txt"),
        ("another method", "POST", ALLOWED),
        ("another query", "GET", query.as_str()),
    ];
    for (what, method, path) in others {
        let token = tour.agent.token("GET", ALLOWED).await?;
        let before = tour.arrived()?;
        let answer = tour.agent.present(method, path, &token).await?;
        let expected = (403, "action_mismatch");
        let what = format!("{what}: {method} {path}");
        tour.check(&what, &answer, expected, Reached::Nobody, before)?;
    }
    Ok(())
}

/// What policy doesn't permit gets no token at all.
pub async fn policy_says_no(tour: &mut Tour) -> Result<(), Error> {
    tour.begin("What policy does not permit gets no token");
    let before = tour.arrived()?;
    let answer = tour.agent.exchange("GET", DENIED).await?;
    let what = format!("the exchange for GET {DENIED}");
    if answer.oauth_error() != "access_denied" {
        return Err(Error::Unexpected(format!(
            "{what}: expected access_denied, got {}: {}",
            answer.status,
            answer.text()
        )));
    }
    let expected = (400, "policy_denied");
    tour.check(&what, &answer, expected, Reached::Nobody, before)?;
    let before = tour.arrived()?;
    let call = Call {
        method: "GET",
        path: DENIED,
        ..Call::default()
    };
    let bare = tour.agent.send(call).await?;
    let expected = (401, "missing_credentials");
    tour.check(
        "the request without a token",
        &bare,
        expected,
        Reached::Nobody,
        before,
    )
}

/// A risky action waits in Envoy and goes on when a person says yes.
pub async fn held_and_approved(tour: &mut Tour) -> Result<(), Error> {
    tour.begin("A risky action is held; a person approves it; it goes through");
    let before = tour.arrived()?;
    let answer = hold(tour, Verdict::Approve).await?;
    tour.check(
        &format!("GET {HELD}"),
        &answer,
        (200, ""),
        Reached::Upstream,
        before,
    )
}

/// A risky action that a person refuses.
pub async fn held_and_denied(tour: &mut Tour) -> Result<(), Error> {
    tour.begin("A risky action is held; a person denies it");
    let before = tour.arrived()?;
    let answer = hold(tour, Verdict::Deny).await?;
    let expected = (403, "approval_denied");
    tour.check(
        &format!("GET {HELD}"),
        &answer,
        expected,
        Reached::Nobody,
        before,
    )
}

/// Requests the held path, answers its approval on the page, and returns what
/// the agent got.
async fn hold(tour: &Tour, verdict: Verdict) -> Result<Answer, Error> {
    let known = tour.approver.inbox().await?;
    let before = tour.arrived()?;
    let agent = tour.agent.clone();
    let waiting = tokio::spawn(async move { agent.call("GET", HELD).await });
    let id = tour.approver.next(&known, NOTICE).await?;
    if waiting.is_finished() || tour.arrived()? != before {
        return Err(Error::Unexpected(
            "the request did not wait for its approval".to_owned(),
        ));
    }
    println!("   held: approval {id} is in the inbox, and the request waits");
    let said = tour.approver.decide(&id, verdict).await?;
    if said.status >= 400 {
        return Err(Error::Unexpected(format!(
            "the page refused the answer: {} {}",
            said.status,
            said.text()
        )));
    }
    waiting
        .await
        .map_err(|problem| Error::Unexpected(problem.to_string()))?
}

/// Without the control plane nothing passes; when it is back, all is well.
pub async fn control_plane_gone_and_back(tour: &mut Tour) -> Result<(), Error> {
    tour.begin("Without the control plane nothing passes");
    let token = tour.agent.token("GET", ALLOWED).await?;
    tour.system.stop_control_plane().await;
    let before = tour.arrived()?;
    let answer = tour.agent.present("GET", ALLOWED, &token).await?;
    let expected = (503, "control_plane_unavailable");
    tour.check(
        "control plane stopped",
        &answer,
        expected,
        Reached::Nobody,
        before,
    )?;
    tour.system.start_control_plane().await?;
    tour.system.settled().await?;
    let before = tour.arrived()?;
    let answer = tour.agent.present("GET", ALLOWED, &token).await?;
    let refused = (401, "outcome_unknown");
    tour.check(
        "the old token, after the restart",
        &answer,
        refused,
        Reached::Nobody,
        before,
    )?;
    let before = tour.arrived()?;
    let answer = tour.agent.call("GET", ALLOWED).await?;
    tour.check("a new token", &answer, (200, ""), Reached::Upstream, before)
}
