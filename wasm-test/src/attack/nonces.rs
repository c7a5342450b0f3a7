//! Rows of group C about nonces, which the token endpoint asks for when a proof's
//! time is no good, and the edge on routes that say so.

use std::collections::BTreeSet;
use std::time::Duration;

use base64ct::{Base64UrlUnpadded, Encoding as _};
use serde_json::{Value, json};

use super::cases::{PATH, Run};
use super::check::{holds, same};
use super::forge::{Forger, Key};
use super::jws::proof;
use super::stages::{ASKS, Stages};
use super::told::Told;
use crate::Error;
use crate::client::{Agent, Answer, now_s};
use crate::stage::{Stage, eventually};
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
    one_nonce(answer)
}

fn one_nonce(answer: &Answer) -> Result<String, Error> {
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

/// The nonce of an answer of the edge's that asks for one.
pub fn asked_at_edge(answer: &Answer) -> Result<String, Error> {
    let got = (answer.status, answer.reason());
    same(
        "a proof without a nonce",
        got,
        (401, "proof_nonce".to_owned()),
    )?;
    let challenge = answer.header("www-authenticate").unwrap_or_default();
    holds(
        challenge.starts_with("DPoP error=\"use_dpop_nonce\", "),
        format!("the challenge is {challenge}"),
    )?;
    let cached = answer.header("cache-control");
    same("cache-control", cached, Some("no-store"))?;
    let exposed = answer.header("access-control-expose-headers");
    let wanted = Some("DPoP-Nonce, WWW-Authenticate, X-Writ-Reason");
    same("what scripts may read", exposed, wanted)?;
    one_nonce(answer)
}

/// Shows a token once at the route that asks, with a proof that has these claims too.
pub async fn show(agent: &Agent, token: &str, claims: &Value) -> Result<Answer, Error> {
    agent.present_with("GET", ASKS, token, claims).await
}

/// At the edge: told, and healed by it, with the token as it was; a proof's time is its
/// own matter.
async fn demanded_at_edge(stage: &Stage) -> Result<(), Error> {
    let agent = &stage.agent;
    let token = agent.token("GET", ASKS).await?;
    let before = stage.arrived()?;
    let counted = || Told::read(stage).map_or(0, |it| it.counts.values().sum::<u64>());
    let counted_before = counted();
    let first = asked_at_edge(&show(agent, &token, &json!({})).await?)?;
    let mut nonce = first.clone();
    for bad in ["", "x", &first.to_lowercase(), &format!("{first}A")] {
        let answer = show(agent, &token, &json!({"nonce": bad})).await?;
        nonce = asked_at_edge(&answer)?;
    }
    for (claims, reason) in [
        (
            json!({"nonce": nonce, "iat": now_s() - HOUR_S}),
            "proof_time",
        ),
        (
            json!({"nonce": nonce, "iat": now_s() + HOUR_S}),
            "proof_time",
        ),
        (json!({"nonce": nonce, "ath": "x"}), "proof_token_hash"),
        (json!({"nonce": nonce, "htm": "POST"}), "proof_method"),
    ] {
        let answer = show(agent, &token, &claims).await?;
        let got = (answer.status, answer.reason());
        same("at the edge", got, (401, reason.to_owned()))?;
        holds(answer.header("dpop-nonce").is_none(), "it has a nonce")?;
    }
    same("nothing has passed", stage.arrived()?, before)?;
    let answer = agent.present("GET", ASKS, &token).await?;
    same("with the nonce", answer.status, 200)?;
    let answer = agent.present("GET", ASKS, &token).await?;
    same("once", answer.reason(), "token_spent".to_owned())?;
    same("it has passed", stage.arrived()?, before + 1)?;
    // Else the next row would find them among its own.
    eventually("the nine refusals are counted", async || {
        counted() >= counted_before + 9
    })
    .await
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
    demanded_at_edge(&named.stage).await?;
    named.stage.good_request().await?;
    Ok(format!(
        "{told} clocks were told to use a nonce, and got their tokens with it, once; at the edge a token is as good after such an answer as before"
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

    shared_at_edge(&stages.single().await?.agent).await?;
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
    let token = agent.token("GET", ASKS).await?;
    let nonce = asked_at_edge(&show(&agent, &token, &json!({})).await?)?;
    let good = show(&other, &token, &json!({"nonce": nonce})).await?;
    same("at the other replica's edge", good.status, 200)?;

    let stage = stages.single().await?;
    let issuer = stage.system.issuer();
    let nonce = asked(&exchange(&stage.agent, &shown(&stage.agent, &issuer, &late)).await?)?;
    let token = stage.agent.token("GET", ASKS).await?;
    let at_edge = asked_at_edge(&show(&stage.agent, &token, &json!({})).await?)?;
    stage.system.stop_control_plane().await;
    let key = stage.system.state_dir().join("data/keys/nonce.key");
    std::fs::remove_file(&key).map_err(Error::file("remove", &key))?;
    stage.system.start_control_plane().await?;
    let fresh =
        asked(&exchange(&stage.agent, &shown(&stage.agent, &issuer, &with(&nonce))).await?)?;
    let good = exchange(&stage.agent, &shown(&stage.agent, &issuer, &with(&fresh))).await?;
    same("of the new key", good.status, 200)?;
    stage.recovers().await?;
    let token = stage.agent.token("GET", ASKS).await?;
    let over = json!({"nonce": at_edge});
    asked_at_edge(&show(&stage.agent, &token, &over).await?)?;
    let good = stage.agent.present("GET", ASKS, &token).await?;
    same("of the new key, at the edge", good.status, 200)?;
    Ok(format!(
        "{NONCES} nonces differ; one ends after the window and with its key, and is good at the other replica; so are the edge's"
    ))
}

/// At the edge nobody guesses one, and one that is over brings another.
async fn shared_at_edge(agent: &Agent) -> Result<(), Error> {
    let token = agent.token("GET", ASKS).await?;
    let nonce = asked_at_edge(&show(agent, &token, &json!({})).await?)?;
    let bytes = Base64UrlUnpadded::decode_vec(&nonce)
        .map_err(|problem| Error::Unexpected(problem.to_string()))?;
    for at in [0, 7, 8, bytes.len() / 2, bytes.len() - 1] {
        let mut other = bytes.clone();
        if let Some(byte) = other.get_mut(at) {
            *byte ^= 1;
        }
        let other = json!({"nonce": Base64UrlUnpadded::encode_string(&other)});
        asked_at_edge(&show(agent, &token, &other).await?)?;
    }
    // Twice as long as one is told at this stage, and the next heartbeat.
    tokio::time::sleep(Duration::from_millis(9_500)).await;
    let fresh = asked_at_edge(&show(agent, &token, &json!({"nonce": nonce})).await?)?;
    holds(fresh != nonce, "it is told again")?;
    let good = show(agent, &token, &json!({"nonce": fresh})).await?;
    same("the next one at the edge", good.status, 200)
}

/// The token endpoint's nonce means nothing at the edge, and the edge's nothing there.
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
    let agent = &named.stage.agent;
    let token = agent.token("GET", ASKS).await?;
    let theirs = json!({"nonce": nonce});
    let ours = asked_at_edge(&show(agent, &token, &theirs).await?)?;
    let late = json!({"iat": now_s() - HOUR_S, "nonce": ours});
    asked(&exchange(agent, &shown(agent, &named.stage.system.issuer(), &late)).await?)?;
    let good = agent.present("GET", ASKS, &token).await?;
    same("with the edge's own", good.status, 200)?;
    Ok(format!(
        "{seen}; where no nonce is asked for it neither helps nor harms, and where one is the other place's is none"
    ))
}
