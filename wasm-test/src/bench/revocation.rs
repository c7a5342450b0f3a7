//! `cargo xtask bench revocation`: how soon a stop is felt at the edge.
//!
//! Twenty Envoys on one control plane, each with an answer that streams over HTTP/1
//! and one over HTTP/2, and requests all the while. The agent is stopped, and what
//! counts is measured from the moment at which the caller has the acknowledgement.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::Error;
use crate::client::{Agent, Operator};
use crate::raw::Http1;
use crate::stage::{Stage, eventually};
use crate::system::{AGENT, Options};
use crate::upstream::REPORT;

/// Envoys on the one control plane.
const PROXIES: usize = 20;
/// Ten pieces a second, for longer than a round.
const STREAM: &str = "/files/stream?drip=6000";
/// Connections that send requests all the while.
const RUNNERS: usize = 8;
/// Requests of each of them in one round, and the pause between two.
const REQUESTS: usize = 160;
const PAUSE: Duration = Duration::from_millis(5);
/// When the agent is stopped, after the first request.
const STOP_AFTER: Duration = Duration::from_millis(400);
const MINTERS: usize = 16;
/// In the place of a status: the answer was cut off.
const CUT_OFF: u16 = 0;

/// Measures in so many rounds, prints a Markdown table, and writes `json` when it is
/// given.
///
/// # Errors
/// When a part can't be started, a stream does not end, or a request that was sent
/// after an acknowledgement passes.
pub async fn run(json: Option<&Path>, rounds: usize) -> Result<(), Error> {
    println!("· starting {PROXIES} Envoys on one control plane");
    let stage = Stage::start(Options {
        envoys: PROXIES,
        concurrency: 1,
        token_lifetime_s: 300,
        extra_config: "[limits]\noutstanding_per_agent = 65536\noutstanding_per_owner = 1048576\n\
             exchanges_per_agent = 1000000\nexchanges_per_owner = 1000000\n"
            .to_owned(),
        ..Options::default()
    })
    .await?;
    let operator = stage.system.operator().await?;
    let mut seen = Seen::default();
    for number in 1..=rounds {
        println!("· round {number} of {rounds}");
        round(&stage, &operator, &mut seen).await?;
    }
    stage.stop().await;
    print!("{}", seen.markdown(rounds));
    if let Some(path) = json {
        let text = format!("{:#}\n", seen.json(rounds));
        std::fs::write(path, text).map_err(Error::file("write", path))?;
    }
    match seen.passed_after {
        0 => Ok(()),
        passed => Err(Error::Unexpected(format!(
            "{passed} requests passed that were sent after the acknowledgement"
        ))),
    }
}

/// What all rounds saw; times in milliseconds.
#[derive(Default)]
struct Seen {
    stop_ms: Vec<f64>,
    http1_ms: Vec<f64>,
    http2_ms: Vec<f64>,
    /// Requests that were served, and whose answers were cut off.
    served: usize,
    cut_off: usize,
    /// Requests that were sent after the acknowledgement, and that passed of these.
    sent_after: usize,
    passed_after: usize,
    /// How long after it requests reached the upstream that were sent before it.
    late_ms: Vec<f64>,
}

async fn round(stage: &Stage, operator: &Operator, seen: &mut Seen) -> Result<(), Error> {
    let target = json!({ "agent": AGENT });
    let tokens = mint(&stage.agent, REPORT, RUNNERS * REQUESTS).await?;
    let upstream = stage.system.upstream()?;
    let mark = upstream.mark();
    let streams = streams(stage).await?;
    let mut runners = JoinSet::new();
    for tokens in tokens.chunks(REQUESTS) {
        let (agent, tokens) = (stage.agent.clone(), tokens.to_vec());
        let connection = stage.connect().await?;
        runners.spawn(runner(agent, connection, tokens));
    }
    tokio::time::sleep(STOP_AFTER).await;
    let began = Instant::now();
    operator.stop(&target).await?;
    let (stopped, stopped_ms) = (Instant::now(), now_ms());
    seen.stop_ms.push(ms(stopped - began));
    seen.ends(streams, stopped).await?;
    while let Some(runner) = runners.join_next().await {
        for (sent, status) in runner.map_err(|it| Error::Unexpected(it.to_string()))?? {
            let (after, passed) = (sent > stopped, matches!(status, 200 | CUT_OFF));
            seen.served += usize::from(status == 200);
            seen.cut_off += usize::from(status == CUT_OFF);
            seen.sent_after += usize::from(after);
            seen.passed_after += usize::from(after && passed);
        }
    }
    for record in upstream.records_since(mark)? {
        if record.path == REPORT && record.time_ms > stopped_ms {
            let late = Duration::from_millis(record.time_ms - stopped_ms);
            seen.late_ms.push(ms(late));
        }
    }
    operator.lift(&target).await?;
    Ok(())
}

/// When each stream of a kind ended.
struct Streams {
    http1: JoinSet<Result<Instant, Error>>,
    http2: JoinSet<Result<Instant, Error>>,
}

/// One of each kind at every Envoy, all of them under way.
async fn streams(stage: &Stage) -> Result<Streams, Error> {
    let tokens = mint(&stage.agent, STREAM, PROXIES * 2).await?;
    let mut tokens = tokens.into_iter();
    let mut next = || {
        let token = tokens.next();
        token.ok_or_else(|| Error::Unexpected("too few tokens".to_owned()))
    };
    let before = stage.arrived()?;
    let mut streams = Streams {
        http1: JoinSet::new(),
        http2: JoinSet::new(),
    };
    for envoy in 0..PROXIES {
        let mut http1 = stage.connect_to(envoy).await?;
        http1.send(&stage.signed("GET", STREAM, &next()?)).await?;
        streams.http1.spawn(async move {
            http1.until_it_ends().await?;
            Ok(Instant::now())
        });
        let mut http2 = stage.connect_http2(envoy).await?;
        let credentials = stage.credentials("GET", STREAM, &next()?);
        let mut fields: Vec<(&str, &[u8])> = vec![
            (":method", b"GET"),
            (":scheme", b"http"),
            (":authority", stage.agent.authority().as_bytes()),
            (":path", STREAM.as_bytes()),
        ];
        fields.extend(
            credentials
                .iter()
                .map(|(name, value)| (name.as_str(), value.as_slice())),
        );
        let (id, frame) = http2.request(&fields);
        http2.send(&frame).await?;
        streams.http2.spawn(async move {
            let mut answers = http2.answers(&[id]).await?;
            let ended = Instant::now();
            match answers.remove(&id).and_then(|stream| stream.reset) {
                Some(_) => Ok(ended),
                None => Err(Error::Unexpected("a stream was not reset".to_owned())),
            }
        });
    }
    let wanted = before + u64::try_from(PROXIES * 2).unwrap_or(u64::MAX);
    eventually("all streams are under way", async || {
        stage.arrived().is_ok_and(|arrived| arrived >= wanted)
    })
    .await?;
    Ok(streams)
}

/// Requests one after the other: when each was sent, and its status.
async fn runner(
    agent: Agent,
    mut connection: Http1,
    tokens: Vec<String>,
) -> Result<Vec<(Instant, u16)>, Error> {
    let mut seen = Vec::with_capacity(tokens.len());
    for token in &tokens {
        let proof = agent.key().proof("GET", &agent.url(REPORT), Some(token));
        let authority = agent.authority();
        let bytes = format!(
            "GET {REPORT} HTTP/1.1\r\nhost: {authority}\r\nauthorization: DPoP {token}\r\ndpop: {proof}\r\n\r\n"
        );
        let sent = Instant::now();
        connection.send(bytes.as_bytes()).await?;
        match connection.answer().await {
            Ok(Some(answer)) => seen.push((sent, answer.status)),
            // It had gone on, and was ended with the others.
            Ok(None) | Err(_) => {
                seen.push((sent, CUT_OFF));
                connection = Http1::connect(authority).await?;
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(seen)
}

/// Exchanges for so many tokens.
async fn mint(agent: &Agent, path: &'static str, count: usize) -> Result<Vec<String>, Error> {
    let mut minters = JoinSet::new();
    for minter in 0..MINTERS {
        let agent = agent.clone();
        let mine = (minter..count).step_by(MINTERS).count();
        minters.spawn(async move {
            let mut tokens = Vec::with_capacity(mine);
            for _ in 0..mine {
                tokens.push(agent.token("GET", path).await?);
            }
            Ok::<_, Error>(tokens)
        });
    }
    let mut tokens = Vec::with_capacity(count);
    while let Some(minted) = minters.join_next().await {
        tokens.extend(minted.map_err(|it| Error::Unexpected(it.to_string()))??);
    }
    Ok(tokens)
}

fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or(u64::MAX))
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1_000.0
}

/// The value that so many thousandths are at most; 0 of nothing.
fn within(values: &[f64], thousandths: usize) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = (sorted.len() * thousandths)
        .div_ceil(1_000)
        .saturating_sub(1);
    sorted.get(at).copied().unwrap_or(0.0)
}

impl Seen {
    async fn ends(&mut self, streams: Streams, stopped: Instant) -> Result<(), Error> {
        let kinds = [
            (streams.http1, &mut self.http1_ms),
            (streams.http2, &mut self.http2_ms),
        ];
        for (mut ends, all) in kinds {
            while let Some(ended) = ends.join_next().await {
                let ended = ended.map_err(|it| Error::Unexpected(it.to_string()))??;
                // It may have ended while the acknowledgement was on its way.
                all.push(ms(ended.saturating_duration_since(stopped)));
            }
        }
        Ok(())
    }

    fn rows(&self) -> [(&'static str, &'static str, &[f64]); 4] {
        [
            ("stop_ms", "the stop's own call", &self.stop_ms),
            ("http2_ms", "an answer over HTTP/2 is reset", &self.http2_ms),
            (
                "http1_ms",
                "a connection of HTTP/1 is closed",
                &self.http1_ms,
            ),
            (
                "late_ms",
                "a request on its way reaches the upstream",
                &self.late_ms,
            ),
        ]
    }

    fn markdown(&self, rounds: usize) -> String {
        let mut text = format!(
            "\n{PROXIES} proxies, {rounds} rounds; {} requests served, {} cut off\n\n| | how many | p50 | p99 | most |\n|---|---|---|---|---|\n",
            self.served, self.cut_off
        );
        for (_, what, values) in self.rows() {
            let [p50, p99, most] = [500, 990, 1_000].map(|at| within(values, at));
            let count = values.len();
            text.push_str(&format!(
                "| {what} | {count} | {p50:.1} ms | {p99:.1} ms | {most:.1} ms |\n"
            ));
        }
        text.push_str(&format!(
            "\n{} requests were sent after the acknowledgement; {} of them passed.\n",
            self.sent_after, self.passed_after
        ));
        text
    }

    fn json(&self, rounds: usize) -> Value {
        let mut all = json!({
            "proxies": PROXIES,
            "rounds": rounds,
            "served": self.served,
            "cut_off": self.cut_off,
            "sent_after": self.sent_after,
            "passed_after": self.passed_after,
        });
        for (name, _, values) in self.rows() {
            let [p50, p99, most] = [500, 990, 1_000].map(|at| within(values, at));
            let row = json!({ "count": values.len(), "p50": p50, "p99": p99, "most": most });
            if let Some(all) = all.as_object_mut() {
                all.insert(name.to_owned(), row);
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_of_values_is_within_the_one_at_its_end() {
        let values: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        assert_eq!(within(&values, 500), 100.0);
        assert_eq!(within(&values, 990), 198.0);
        assert_eq!(within(&values, 1_000), 200.0);
        assert_eq!(within(&[7.0], 990), 7.0);
        assert_eq!(within(&[], 990), 0.0);
    }
}
