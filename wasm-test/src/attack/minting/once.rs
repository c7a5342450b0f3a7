//! E06: what counts once, shown many times at the same moment, at two replicas.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::sync::Barrier;
use tokio::task::JoinSet;

use super::setting::{Ask, BEARER, BY_SVID, Desk, Signers};
use crate::Error;
use crate::attack::check::{holds, same};
use crate::attack::stages::{Stages, options};
use crate::client::Answer;
use crate::postgres::{self, POSTGRES};
use crate::stage::{PATIENCE, Pair};
use crate::system::AGENT;

/// How many there are of each.
const COPIES: usize = 100;
/// How often each kind is tried.
const ROUNDS: usize = 5;

/// The answer to an assertion as soon as it and its proof can be told to be unused: seconds
/// after a start.
pub async fn when_taken(desk: &Desk<'_>, ask: Ask) -> Result<Value, Error> {
    let start = Instant::now();
    let mut ask = ask;
    loop {
        let answer = desk.send(&ask).await?;
        if answer.status == 200 {
            return Ok(answer.json());
        }
        holds(
            ["token_spent", "proof_nonce"].contains(&&*answer.reason())
                && start.elapsed() < PATIENCE,
            format!("a client's assertion: {}", answer.text()),
        )?;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let fresh = desk.signers.assertion(&desk.issuer());
        ask = ask.with("client_assertion", &fresh).proven(desk.proof());
    }
}

/// Sends all of these at the same moment, by turns at each desk: how many of each came.
async fn at_once(
    desks: &[Desk<'_>],
    asks: Vec<Ask>,
) -> Result<BTreeMap<(usize, String), usize>, Error> {
    let barrier = Arc::new(Barrier::new(asks.len()));
    let mut all = JoinSet::new();
    for ((at, desk), ask) in desks.iter().enumerate().cycle().zip(asks) {
        let url = format!("{}/oauth2/token", desk.stage.system.http_url());
        let (form, barrier) = (ask.form()?, Arc::clone(&barrier));
        let request = crate::client::http_client()
            .post(&url)
            .header("content-type", "application/x-www-form-urlencoded")
            .header(
                "dpop",
                ask.proofs.first().map(String::as_str).unwrap_or_default(),
            )
            .body(form);
        all.spawn(async move {
            barrier.wait().await;
            let answer = request.send().await.map_err(Error::http(&url))?;
            Ok::<_, Error>((at, Answer::read(answer).await?))
        });
    }
    let mut seen = BTreeMap::new();
    while let Some(one) = all.join_next().await {
        let (at, answer) = one.map_err(|it| Error::Unexpected(it.to_string()))??;
        *seen.entry((at, answer.summary())).or_default() += 1;
    }
    Ok(seen)
}

fn count(seen: &BTreeMap<(usize, String), usize>, wanted: &str) -> usize {
    let those = seen.iter().filter(|((_, what), _)| what == wanted);
    those.map(|(_, count)| count).sum()
}

/// One of them brings a token, and the others are told that it is used up.
fn exactly_one(
    what: &str,
    seen: &BTreeMap<(usize, String), usize>,
    reason: &str,
) -> Result<(), Error> {
    let others = count(seen, &format!("400 {reason}"));
    let got = (count(seen, "200"), others);
    same(&format!("{what}: {seen:?}"), got, (1, COPIES - 1))
}

/// The row.
pub async fn once(_stages: &mut Stages) -> Result<String, Error> {
    let bin = postgres::find()?
        .ok_or_else(|| Error::Setup(format!("this row needs PostgreSQL: set {POSTGRES}")))?;
    let signers = Signers::new()?;
    let pair = Pair::start(&bin, signers.options(options())).await?;
    let seen = of(&pair, &signers).await;
    pair.stop().await;
    seen
}

async fn of(pair: &Pair, signers: &Signers) -> Result<String, Error> {
    let first = Desk::at(&pair.first, signers)?;
    let second = Desk::at(&pair.second, signers)?;
    let issuer = first.issuer();
    same("the two have one name", second.issuer(), issuer.clone())?;
    for desk in [&first, &second] {
        when_taken(desk, desk.as_client(&signers.assertion(&issuer))).await?;
    }
    let desks = [first, second];
    let [first, _] = &desks;
    let copies = |make: &dyn Fn() -> Ask| (0..COPIES).map(|_| make()).collect::<Vec<_>>();
    for _ in 0..ROUNDS {
        let assertion = signers.assertion(&issuer);
        let asks = copies(&|| first.as_client(&assertion));
        let seen = at_once(&desks, asks).await?;
        exactly_one("a client's assertion", &seen, "token_spent")?;
        let jag = signers.id_jag(&issuer);
        let asks = copies(&|| {
            first
                .as_client(&first.svid(AGENT))
                .with("grant_type", BEARER)
                .with("client_assertion_type", BY_SVID)
                .with("assertion", &jag)
        });
        let seen = at_once(&desks, asks).await?;
        exactly_one("an ID-JAG", &seen, "token_spent")?;
    }
    for _ in 0..ROUNDS {
        let proof = first.proof();
        let asks = copies(&|| first.good(AGENT).proven(proof.clone()));
        let seen = at_once(&desks, asks).await?;
        exactly_one("a proof", &seen, "proof_replayed")?;
    }
    pair.recovers().await?;
    Ok(format!(
        "of {COPIES} at once over two replicas one client's assertion, one ID-JAG and one proof brought one token each, {ROUNDS} times"
    ))
}
