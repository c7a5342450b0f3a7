//! Rows of group C about proofs that are shown again: elsewhere, later, to somebody
//! who has forgotten, or by somebody else.

use serde_json::json;

use super::check::{holds, refused, same};
use super::forge::{Forger, Key, random};
use super::stages::Stages;
use crate::Error;
use crate::client::{Agent, Answer};
use crate::raw::field;
use crate::stage::{Stage, jti, text_at};
use crate::system::Options;
use crate::upstream::REPORT;

/// One exchange with this proof.
async fn exchange(agent: &Agent, proof: &str) -> Result<Answer, Error> {
    let details = agent.details("GET", REPORT).to_string();
    agent
        .post_token(&agent.svid().await?, &details, proof)
        .await
}

/// An exchange that was used already has this answer.
fn replayed(answer: &Answer) -> Result<(), Error> {
    let got = (answer.status, answer.oauth_error(), answer.reason());
    let wanted = (
        400,
        "invalid_dpop_proof".to_owned(),
        "proof_replayed".to_owned(),
    );
    same("a proof that was used", got, wanted)
}

/// The same proof again: at both proxies, on old and new connections, at the token
/// endpoint, and at another replica.
pub async fn same_jti(stages: &mut Stages) -> Result<String, Error> {
    const AGAIN: usize = 8;
    let stage = stages.single().await?;
    let token = stage.agent.token("GET", REPORT).await?;
    let bytes = stage.signed("GET", REPORT, &token);
    let mut first = stage.connect_to(0).await?;
    first.send(&bytes).await?;
    let closed = || Error::Unexpected("closed without an answer".to_owned());
    let answer = first.answer().await?.ok_or_else(closed)?;
    same("the first use", answer.status, 200)?;
    first.send(&bytes).await?;
    let again = first.answer().await?.ok_or_else(closed)?;
    refused(&again, 401, "token_spent")?;
    for at in 0..AGAIN {
        let mut connection = stage.connect_to(at % 2).await?;
        connection.send(&bytes).await?;
        let answer = connection.answer().await?.ok_or_else(closed)?;
        refused(&answer, 401, "token_spent")?;
    }
    same("uses", stage.uses()?.get(&jti(&token)), Some(&1))?;
    let proof = stage.agent.token_proof();
    same(
        "an exchange",
        exchange(&stage.agent, &proof).await?.status,
        200,
    )?;
    replayed(&exchange(&stage.agent, &proof).await?)?;
    stage.good_request().await?;

    let pair = stages.pair().await?;
    let token = pair.first.agent.token("GET", REPORT).await?;
    let bytes = pair.first.signed("GET", REPORT, &token);
    same(
        "the first use",
        pair.second.exchange(&bytes).await?.status,
        200,
    )?;
    for stage in [&pair.first, &pair.second] {
        refused(&stage.exchange(&bytes).await?, 401, "token_spent")?;
    }
    same("uses", pair.first.uses()?.get(&jti(&token)), Some(&1))?;
    Ok(format!(
        "one use of {} at two proxies, and of three at two replicas; one exchange at the token endpoint",
        AGAIN + 2
    ))
}

/// The same jti in proofs for different targets: what counts is the token.
pub async fn other_target(stages: &mut Stages) -> Result<String, Error> {
    let stage = stages.single().await?;
    let claims = json!({"jti": random()});
    let (one, other) = (REPORT, "/files/notes.txt");
    let with = |path: &str, token: &str| {
        let url = stage.agent.url(path);
        let proof = stage
            .agent
            .key()
            .proof_with("GET", &url, Some(token), &claims);
        let headers = [
            field("authorization", format!("DPoP {token}")),
            field("dpop", proof),
        ];
        stage.request("GET", path, &headers)
    };
    let tokens = [
        stage.agent.token("GET", one).await?,
        stage.agent.token("GET", other).await?,
    ];
    let [first, second] = &tokens;
    same(
        "the first",
        stage.exchange(&with(one, first)).await?.status,
        200,
    )?;
    // Another capability's target, with the capability that is spent, and then rightly.
    let before = stage.arrived()?;
    refused(
        &stage.exchange(&with(other, first)).await?,
        403,
        "action_mismatch",
    )?;
    refused(
        &stage.exchange(&with(one, second)).await?,
        403,
        "action_mismatch",
    )?;
    refused(
        &stage.exchange(&with(one, first)).await?,
        401,
        "token_spent",
    )?;
    same("reached the upstream", stage.arrived()?, before)?;
    same(
        "the second",
        stage.exchange(&with(other, second)).await?.status,
        200,
    )?;
    refused(
        &stage.exchange(&with(other, second)).await?,
        401,
        "token_spent",
    )?;
    let uses = stage.uses()?;
    for token in &tokens {
        same("uses", uses.get(&jti(token)), Some(&1))?;
    }
    stage.good_request().await?;
    Ok("one jti for two targets was good for two capabilities, once each".to_owned())
}

/// So many proofs that what is remembered is full: new ones are refused, and what
/// was used stays used.
pub async fn full(_stages: &mut Stages) -> Result<String, Error> {
    const EACH: usize = 64;
    let options = Options {
        envoys: 1,
        extra_config: format!("[limits]\nproofs_per_agent = {EACH}\n"),
        token_lifetime_s: 120,
        ..Options::default()
    };
    let stage = Stage::start(options).await?;
    let mut proofs = Vec::new();
    let (mut passed, mut limited) = (0, 0);
    for _ in 0..2 * EACH {
        let proof = stage.agent.token_proof();
        let answer = exchange(&stage.agent, &proof).await?;
        match answer.status {
            200 => passed += 1,
            _ => {
                refused(&answer, 429, "limit_exceeded")?;
                holds(answer.header("retry-after").is_some(), "no Retry-After")?;
                limited += 1;
            }
        }
        proofs.push(proof);
    }
    holds(
        passed <= EACH && limited >= EACH,
        format!("{passed} passed"),
    )?;
    for proof in proofs.iter().take(passed) {
        replayed(&exchange(&stage.agent, proof).await?)?;
    }
    stage.stop().await;
    Ok(format!(
        "of {} proofs {passed} were taken and {limited} refused; those taken were refused again, all of them",
        2 * EACH
    ))
}

/// A control plane that is killed and starts again has forgotten nothing that
/// could be used.
pub async fn restart(stages: &mut Stages) -> Result<String, Error> {
    let stage = stages.single().await?;
    let spent = stage.agent.token("GET", REPORT).await?;
    let bytes = stage.signed("GET", REPORT, &spent);
    same("the first use", stage.exchange(&bytes).await?.status, 200)?;
    let unspent = stage.agent.token("GET", REPORT).await?;
    let unspent = (stage.signed("GET", REPORT, &unspent), unspent);
    let used = stage.agent.token_proof();
    same(
        "an exchange",
        exchange(&stage.agent, &used).await?.status,
        200,
    )?;
    stage.system.kill_control_plane();
    stage.system.start_control_plane().await?;
    let answer = exchange(&stage.agent, &used).await?;
    let told = answer.reason();
    holds(
        answer.status == 400 && ["proof_time", "proof_nonce"].contains(&told.as_str()),
        answer.summary(),
    )?;
    stage.recovers().await?;
    let before = stage.arrived()?;
    refused(&stage.exchange(&bytes).await?, 401, "outcome_unknown")?;
    refused(&stage.exchange(&unspent.0).await?, 401, "outcome_unknown")?;
    same("reached the upstream", stage.arrived()?, before)?;
    let uses = stage.uses()?;
    same("uses", uses.get(&jti(&spent)), Some(&1))?;
    same("uses", uses.get(&jti(&unspent.1)), None)?;
    stage.good_request().await?;
    Ok("after SIGKILL neither the proof nor a token of before is good".to_owned())
}

/// Two listeners, one URL, one store.
pub async fn two_listeners(stages: &mut Stages) -> Result<String, Error> {
    const ROUNDS: usize = 6;
    let pair = stages.pair().await?;
    for round in 0..ROUNDS {
        let token = pair.first.agent.token("GET", REPORT).await?;
        let bytes = pair.first.signed("GET", REPORT, &token);
        let (one, other) = match round % 2 {
            0 => (&pair.first, &pair.second),
            _ => (&pair.second, &pair.first),
        };
        let before = pair.first.arrived()?;
        same("the one listener", one.exchange(&bytes).await?.status, 200)?;
        refused(&other.exchange(&bytes).await?, 401, "token_spent")?;
        same("arrived", pair.first.arrived()?, before + 1)?;
    }
    Ok(format!(
        "{ROUNDS} proofs were good at one of two listeners, once"
    ))
}

/// Somebody else's proof with the same jti uses up nothing.
pub async fn burnt_before(stages: &mut Stages) -> Result<String, Error> {
    let named = stages.named().await?;
    let forger: &Forger = &named.forger;
    let stage = &named.stage;
    let thief = Key::p256("thief")?;
    let claims = json!({"claims": {"jti": random()}});
    // At the token endpoint.
    let mut tokens = Vec::new();
    for key in [&thief, &forger.agent] {
        let shown = forger.exchange_proof(key, &claims)?;
        let answer = exchange(&stage.agent, &shown)
            .await?
            .expect("an exchange", 200)?;
        tokens.push((key, text_at(&answer.json(), "/access_token")));
        replayed(&exchange(&stage.agent, &shown).await?)?;
    }
    // At the edge, with a jti that both use as well.
    let before = stage.arrived()?;
    for (key, token) in &tokens {
        let shown = forger.proof(key, REPORT, token, &claims)?;
        let headers = [
            field("authorization", format!("DPoP {token}")),
            field("dpop", shown),
        ];
        let bytes = stage.request("GET", REPORT, &headers);
        same("a first use", stage.exchange(&bytes).await?.status, 200)?;
        refused(&stage.exchange(&bytes).await?, 401, "token_spent")?;
    }
    same("arrived", stage.arrived()?, before + 2)?;
    Ok(
        "two keys with one jti: both first uses passed, at the token endpoint and at the edge"
            .to_owned(),
    )
}
