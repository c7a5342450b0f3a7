//! Rows of group C about nonces, which the token endpoint asks for when a proof's
//! time is no good, and the edge never.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};

use super::cases::{PATH, Run};
use super::check::{holds, same};
use super::forge::{Forger, Key};
use super::jws::proof;
use super::stages::Stages;
use crate::Error;
use crate::client::{Agent, Answer, now_s};
use crate::upstream::REPORT;

const HOUR_S: u64 = 3_600;

async fn exchange(agent: &Agent, proof: &str) -> Result<Answer, Error> {
    let details = agent.details("GET", REPORT).to_string();
    agent
        .post_token(&agent.svid().await?, &details, proof)
        .await
}

/// The agent's own proof for the token endpoint, with these claims.
fn shown(agent: &Agent, issuer: &str, claims: &Value) -> String {
    let endpoint = format!("{issuer}/oauth2/token");
    agent.key().proof_with("POST", &endpoint, None, claims)
}

/// The nonce of an answer that asks for one.
fn asked(answer: &Answer) -> Result<String, Error> {
    let got = (answer.status, answer.oauth_error(), answer.reason());
    let wanted = (400, "use_dpop_nonce".to_owned(), "proof_nonce".to_owned());
    same("a proof of another time", got, wanted)?;
    same(
        "cache-control",
        answer.header("cache-control"),
        Some("no-store"),
    )?;
    let exposed = answer.header("access-control-expose-headers");
    same("what scripts may read", exposed, Some("DPoP-Nonce"))?;
    let all = answer.headers.iter();
    let nonces: Vec<&String> = all
        .filter(|(name, _)| name == "dpop-nonce")
        .map(|(_, it)| it)
        .collect();
    match nonces.as_slice() {
        [one] if !one.is_empty() => Ok((*one).clone()),
        other => Err(Error::Unexpected(format!("{} nonces", other.len()))),
    }
}

/// A wrong clock is told so by a nonce, and heals.
pub async fn demanded(stages: &mut Stages) -> Result<String, Error> {
    let named = stages.named().await?;
    let forger = &named.forger;
    let agent = &named.stage.agent;
    let mut told = 0;
    for iat in [
        0,
        now_s() - HOUR_S,
        now_s() - 120,
        now_s() + 120,
        now_s() + HOUR_S,
    ] {
        let made = |more: Value| {
            let mut claims = json!({"iat": iat});
            if let (Some(all), Some(more)) = (claims.as_object_mut(), more.as_object()) {
                all.extend(more.clone());
            }
            forger.exchange_proof(&forger.agent, &json!({"claims": claims}))
        };
        let nonce = asked(&exchange(agent, &made(json!({}))?).await?)?;
        let good = made(json!({"nonce": nonce}))?;
        same("with the nonce", exchange(agent, &good).await?.status, 200)?;
        let again = exchange(agent, &good).await?;
        same(
            "the same proof again",
            again.reason(),
            "proof_replayed".to_owned(),
        )?;
        // A nonce mends the time and nothing else.
        let thief = Key::p256("thief")?;
        let other = forger.exchange_proof(
            &thief,
            &json!({"claims": {"iat": iat, "nonce": nonce},
            "signature": "flipped"}),
        )?;
        same(
            "another signature",
            exchange(agent, &other).await?.reason(),
            "proof_signature".to_owned(),
        )?;
        for bad in [
            "",
            "x",
            "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
        ] {
            asked(&exchange(agent, &made(json!({"nonce": bad}))?).await?)?;
        }
        told += 1;
    }
    named.stage.good_request().await?;
    Ok(format!(
        "{told} clocks were told to use a nonce, and got their tokens with it, once"
    ))
}

/// Nobody guesses one, it ends, replicas share it, and a new key ends it too.
pub async fn shared(stages: &mut Stages) -> Result<String, Error> {
    const NONCES: usize = 1_000;
    let stage = stages.single().await?;
    let issuer = stage.system.issuer();
    let late = json!({"iat": now_s() - HOUR_S});
    let mut seen = BTreeSet::new();
    for _ in 0..NONCES {
        let answer = exchange(&stage.agent, &shown(&stage.agent, &issuer, &late)).await?;
        holds(seen.insert(asked(&answer)?), "a nonce came twice")?;
    }
    let with = |nonce: &str| json!({"iat": now_s() - HOUR_S, "nonce": nonce});
    let answer = exchange(&stage.agent, &shown(&stage.agent, &issuer, &late)).await?;
    let nonce = asked(&answer)?;
    // Each letter counts, the last one's spare bits as well.
    for at in [0, nonce.len() / 2, nonce.len() - 1] {
        let other: String = nonce
            .chars()
            .enumerate()
            .map(|(index, it)| {
                if index != at {
                    it
                } else if it == 'A' {
                    'B'
                } else {
                    'A'
                }
            })
            .collect();
        asked(&exchange(&stage.agent, &shown(&stage.agent, &issuer, &with(&other))).await?)?;
    }
    let good = exchange(&stage.agent, &shown(&stage.agent, &issuer, &with(&nonce))).await?;
    same("while it lasts", good.status, 200)?;
    // Longer than the window of this stage.
    tokio::time::sleep(Duration::from_secs(11)).await;
    let fresh =
        asked(&exchange(&stage.agent, &shown(&stage.agent, &issuer, &with(&nonce))).await?)?;
    let good = exchange(&stage.agent, &shown(&stage.agent, &issuer, &with(&fresh))).await?;
    same("the next one", good.status, 200)?;

    let pair = stages.pair().await?;
    let (first, second) = (&pair.first, &pair.second);
    let issuer = first.system.issuer();
    let agent = first.agent.clone();
    let other = agent
        .clone()
        .by_way_of(&second.system.http_url(), &second.system.proxy_url());
    let nonce = asked(&exchange(&agent, &shown(&agent, &issuer, &late)).await?)?;
    let good = exchange(&other, &shown(&agent, &issuer, &with(&nonce))).await?;
    same("at the other replica", good.status, 200)?;

    let stage = stages.single().await?;
    let issuer = stage.system.issuer();
    let nonce = asked(&exchange(&stage.agent, &shown(&stage.agent, &issuer, &late)).await?)?;
    stage.system.stop_control_plane().await;
    let key = stage.system.state_dir().join("data/keys/nonce.key");
    std::fs::remove_file(&key).map_err(Error::file("remove", &key))?;
    stage.system.start_control_plane().await?;
    let fresh =
        asked(&exchange(&stage.agent, &shown(&stage.agent, &issuer, &with(&nonce))).await?)?;
    let good = exchange(&stage.agent, &shown(&stage.agent, &issuer, &with(&fresh))).await?;
    same("of the new key", good.status, 200)?;
    stage.recovers().await?;
    Ok(format!(
        "{NONCES} nonces differ; one ends after the window and with its key, and is good at the other replica"
    ))
}

/// The token endpoint's nonce means nothing at the edge.
pub async fn elsewhere(stages: &mut Stages) -> Result<String, Error> {
    let named = stages.named().await?;
    let forger: &Forger = &named.forger;
    let late =
        forger.exchange_proof(&forger.agent, &json!({"claims": {"iat": now_s() - HOUR_S}}))?;
    let nonce = asked(&exchange(&named.stage.agent, &late).await?)?;
    let mut run = Run::begin(&named.stage, forger).await?;
    let hour = 1_799_996_400;
    for (name, expect, claims) in [
        (
            "an hour late, with the nonce",
            "proof_time",
            json!({"iat": hour, "nonce": nonce}),
        ),
        ("an hour late, without", "proof_time", json!({"iat": hour})),
        (
            "at this time, with the nonce",
            "ok",
            json!({"nonce": nonce}),
        ),
        ("at this time, with another", "ok", json!({"nonce": "x"})),
    ] {
        let mut row = proof(name, expect, json!({"claims": claims}));
        // It is the edge that is asked here.
        if let Some(members) = row.as_object_mut() {
            members.insert("request".to_owned(), json!({"path": PATH}));
        }
        run.one(&row).await?;
    }
    let seen = run.end().await?;
    Ok(format!(
        "{seen}; at the edge a nonce neither helps nor harms"
    ))
}
