//! Many copies of one token at the same moment, over and over.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::check::{holds, same};
use crate::Error;
use crate::client::Agent;
use crate::raw::Http1;
use crate::stage::{PATIENCE, Stage};
use crate::upstream::REPORT;

/// Races that run beside each other.
const LANES: usize = 32;
/// Connections of each race to each Envoy.
const COPIES: usize = 2;

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Tokens that passed exactly once.
    pub once: usize,
    /// Tokens that passed not at all, one of whose copies was told 503.
    pub in_doubt: usize,
    /// Copies that were refused as spent.
    pub spent: usize,
    /// Copies that were told 503.
    pub unavailable: usize,
    /// How long it took, in seconds.
    pub seconds: f64,
}

/// Shows each of `tokens` tokens at the same moment on two connections to each
/// of the `edges`, an Envoy of a stage each. Tokens come from the edges' own
/// control planes in turn.
///
/// # Errors
/// When a token passes twice, or is refused for any other reason than that it is
/// spent.
pub async fn race(edges: &[(&Stage, usize)], tokens: usize) -> Result<Tally, Error> {
    let start = Instant::now();
    let (upstream, _) = edges
        .first()
        .ok_or_else(|| Error::Unexpected("a race without Envoys".to_owned()))?;
    let before = upstream.arrived()?;
    let left = Arc::new(AtomicUsize::new(tokens));
    let tally = Arc::new(Mutex::new(Tally::default()));
    let mut lanes = JoinSet::new();
    for (number, (issuer, _)) in (0..LANES).zip(edges.iter().cycle()) {
        let mut connections = Vec::new();
        for (stage, envoy) in edges {
            for _ in 0..COPIES {
                connections.push(stage.connect_to(*envoy).await?);
            }
        }
        // Whoever is sent to first must not always be the same.
        let turns = number % connections.len().max(1);
        connections.rotate_left(turns);
        let lane = Lane {
            agent: issuer.agent.clone(),
            connections,
        };
        lanes.spawn(lane.run(Arc::clone(&left), Arc::clone(&tally)));
    }
    while let Some(lane) = lanes.join_next().await {
        lane.map_err(|problem| Error::Unexpected(problem.to_string()))??;
    }
    let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner).clone();
    tally.seconds = start.elapsed().as_secs_f64();
    let reached = upstream.arrived()? - before;
    same(
        "reached the upstream",
        reached,
        u64::try_from(tally.once).unwrap_or(0),
    )?;
    Ok(tally)
}

struct Lane {
    agent: Agent,
    connections: Vec<Http1>,
}

impl Lane {
    async fn run(mut self, left: Arc<AtomicUsize>, tally: Arc<Mutex<Tally>>) -> Result<(), Error> {
        let take = |left: usize| left.checked_sub(1);
        while left
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, take)
            .is_ok()
        {
            let before = left.load(Ordering::SeqCst);
            if before > 0 && before.is_multiple_of(5_000) {
                eprintln!("     … {before} tokens to go");
            }
            let seen = self.round().await?;
            let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
            tally.once += seen.once;
            tally.in_doubt += seen.in_doubt;
            tally.spent += seen.spent;
            tally.unavailable += seen.unavailable;
        }
        Ok(())
    }

    /// A token; a control plane that is too busy to issue one is asked again.
    async fn token(&self) -> Result<String, Error> {
        let start = Instant::now();
        loop {
            match self.agent.token("GET", REPORT).await {
                Err(problem) if start.elapsed() > PATIENCE => return Err(problem),
                Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
                token => return token,
            }
        }
    }

    async fn round(&mut self) -> Result<Tally, Error> {
        let token = self.token().await?;
        let url = self.agent.url(REPORT);
        let proof = self.agent.key().proof("GET", &url, Some(&token));
        let authority = self.agent.authority();
        let bytes = format!(
            "GET {REPORT} HTTP/1.1\r\nhost: {authority}\r\nauthorization: DPoP {token}\r\ndpop: {proof}\r\n\r\n"
        );
        let (most, last) = bytes.as_bytes().split_at(bytes.len().saturating_sub(1));
        for connection in &mut self.connections {
            connection.send(most).await?;
        }
        for connection in &mut self.connections {
            connection.send(last).await?;
        }
        let mut seen = Tally::default();
        let mut passed = 0;
        for connection in &mut self.connections {
            let closed = || Error::Unexpected("closed without an answer".to_owned());
            let answer = connection.answer().await?.ok_or_else(closed)?;
            match (answer.status, answer.reason().as_str()) {
                (200, _) => passed += 1,
                (401, "token_spent") => seen.spent += 1,
                (503, "control_plane_unavailable") => seen.unavailable += 1,
                _ => return Err(Error::Unexpected(format!("a copy: {}", answer.summary()))),
            }
        }
        holds(passed <= 1, format!("a token passed {passed} times"))?;
        // Nobody passed: somebody was told that nobody knows.
        holds(
            passed == 1 || seen.unavailable > 0,
            "a token was refused to all as spent, and nobody passed",
        )?;
        seen.once = passed;
        seen.in_doubt = 1 - passed;
        Ok(seen)
    }
}

impl Tally {
    /// In words.
    pub fn words(&self, tokens: usize) -> String {
        let Tally {
            once,
            in_doubt,
            spent,
            unavailable,
            seconds,
        } = self;
        let rate = f64::from(u32::try_from(tokens).unwrap_or(u32::MAX)) / seconds.max(0.001);
        format!(
            "{once} of {tokens} tokens passed exactly once, none twice; {spent} copies were refused as \
             spent, {unavailable} told 503, {in_doubt} tokens passed nowhere; {seconds:.0} s, {rate:.0} tokens/s"
        )
    }

    /// The tokens are all accounted for, and hardly any passed nowhere.
    ///
    /// # Errors
    /// When that isn't so.
    pub fn expect(&self, tokens: usize) -> Result<(), Error> {
        holds(self.once + self.in_doubt == tokens, "a token was left out")?;
        let most = tokens / 100 + 1;
        holds(
            self.in_doubt <= most,
            format!("too many in doubt: {self:?}"),
        )
    }
}
