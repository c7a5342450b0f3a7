//! `cargo xtask bench edge`: what Writ costs one Envoy worker.
//!
//! The same requests, with single-use tokens and proofs made beforehand, go
//! through a guarded Envoy and through a bare one in turn, on a CPU of their
//! own where there are two. Differences between the two in the same run mean
//! something; absolute figures depend on the machine.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};

use super::bare::Bare;
use super::cpu;
use super::load::{self, Volley};
use crate::Error;
use crate::client::Agent;
use crate::system::{Options, System};
use crate::tools::Tools;
use crate::upstream::REPORT;

const ROUNDS: usize = 7;
const REQUESTS: usize = 4_000;
const WARM_UP: usize = 500;
const CONNECTIONS: usize = 64;
const MINTERS: usize = 16;
// A bare request is so cheap that /proc's ticks of 10 ms would show: more of them.
const BARE_TIMES: usize = 4;
/// 1.5 times two host signature checks and a stream answer, less a bare Envoy:
/// the budget that the design sets, in microseconds.
const BUDGET_US: f64 = 1.5 * (168.0 - 43.5);

/// Measures, prints a Markdown table, and writes `json` when it is given.
///
/// # Errors
/// When a part can't be started or any request is not answered by 200.
pub async fn run(json: Option<&Path>) -> Result<(), Error> {
    let tools = Tools::from_env()?;
    let options = Options {
        concurrency: 1,
        token_lifetime_s: 300,
        upstream_log: false,
        extra_config: "[limits]\noutstanding_per_agent = 65536\n".to_owned(),
        ..Options::default()
    };
    let system = System::start(&tools, options, &mut |step| println!("· {step}")).await?;
    let upstream_port = system.upstream()?.address().port();
    let bare = Bare::start(&tools, system.state_dir(), upstream_port).await?;
    let alone = [system.envoy_pid(), bare.child.pid()];
    let others = [system.control_plane_pid(), std::process::id()];
    let separated = cpu::separate(&alone, &others)?;
    let bench = Bench {
        agent: system.agent().await?,
        system,
        bare,
    };
    println!("· warming up");
    bench.round(WARM_UP).await?;
    let mut rounds = Vec::new();
    for number in 1..=ROUNDS {
        println!("· round {number} of {ROUNDS}: {REQUESTS} tokens, then as many requests");
        rounds.push(bench.round(REQUESTS).await?);
    }
    let report = Report::new(&rounds, separated);
    print!("{}", report.markdown());
    if let Some(path) = json {
        let text = format!("{:#}\n", report.json(&rounds));
        std::fs::write(path, text).map_err(Error::file("write", path))?;
    }
    bench.system.stop().await;
    Ok(())
}

struct Bench {
    agent: Agent,
    system: System,
    bare: Bare,
}

/// One Envoy in one round.
#[derive(Clone, Copy, Debug)]
struct Figure {
    cpu_us_per_request: f64,
    requests_per_s: f64,
}

#[derive(Clone, Copy, Debug)]
struct Round {
    bare: Figure,
    writ: Figure,
}

impl Bench {
    async fn round(&self, count: usize) -> Result<Round, Error> {
        let requests = Arc::new(mint(&self.agent, count).await?);
        let many: Vec<Vec<u8>> = (0..BARE_TIMES)
            .flat_map(|_| requests.iter().cloned())
            .collect();
        let bare_pid = self.bare.child.pid();
        let bare = measure(bare_pid, self.bare.port, &Arc::new(many)).await?;
        let before = self.system.upstream()?.arrived();
        let writ_port = port_of(&self.system.proxy_url())?;
        let writ = measure(self.system.envoy_pid(), writ_port, &requests).await?;
        let arrived = self.system.upstream()?.arrived().saturating_sub(before);
        if usize::try_from(arrived).ok() != Some(count) {
            return Err(Error::Unexpected(format!(
                "{arrived} requests reached the upstream, {count} were sent"
            )));
        }
        Ok(Round { bare, writ })
    }
}

async fn measure(pid: u32, port: u16, requests: &Arc<Vec<Vec<u8>>>) -> Result<Figure, Error> {
    let before = cpu::time_us(pid)?;
    let volley = load::fire(port, requests, CONNECTIONS).await?;
    let used = cpu::time_us(pid)?.saturating_sub(before);
    let Volley {
        ok,
        refused,
        example,
        elapsed,
    } = volley;
    if refused > 0 {
        return Err(Error::Unexpected(format!(
            "{refused} of {} requests were not answered by 200, one of them by\n{example}",
            requests.len()
        )));
    }
    let count = float(ok);
    Ok(Figure {
        cpu_us_per_request: float(used) / count,
        requests_per_s: count / elapsed.as_secs_f64(),
    })
}

/// Exchanges for `count` tokens and makes the bytes of their requests.
async fn mint(agent: &Agent, count: usize) -> Result<Vec<Vec<u8>>, Error> {
    let mut tasks = Vec::new();
    for minter in 0..MINTERS {
        let agent = agent.clone();
        let mine = (minter..count).step_by(MINTERS).count();
        tasks.push(tokio::spawn(async move {
            let mut requests = Vec::with_capacity(mine);
            for _ in 0..mine {
                let token = agent.token("GET", REPORT).await?;
                requests.push(request(&agent, &token));
            }
            Ok::<_, Error>(requests)
        }));
    }
    let mut requests = Vec::with_capacity(count);
    for task in tasks {
        let minted = task.await;
        requests.extend(minted.map_err(|problem| Error::Unexpected(problem.to_string()))??);
    }
    Ok(requests)
}

fn request(agent: &Agent, token: &str) -> Vec<u8> {
    let url = agent.url(REPORT);
    let proof = agent.key().proof("GET", &url, Some(token));
    let authority = url
        .trim_start_matches("http://")
        .split('/')
        .next()
        .unwrap_or_default();
    format!(
        "GET {REPORT} HTTP/1.1\r\nhost: {authority}\r\nauthorization: DPoP {token}\r\ndpop: {proof}\r\n\r\n"
    )
    .into_bytes()
}

fn port_of(url: &str) -> Result<u16, Error> {
    url.rsplit(':')
        .next()
        .and_then(|port| port.parse().ok())
        .ok_or_else(|| Error::Unexpected(format!("{url} has no port")))
}

/// Medians over all rounds.
struct Report {
    bare: Figure,
    writ: Figure,
    separated: bool,
}

impl Report {
    fn new(rounds: &[Round], separated: bool) -> Report {
        let over = |pick: fn(&Round) -> f64| median(rounds.iter().map(pick).collect());
        Report {
            bare: Figure {
                cpu_us_per_request: over(|r| r.bare.cpu_us_per_request),
                requests_per_s: over(|r| r.bare.requests_per_s),
            },
            writ: Figure {
                cpu_us_per_request: over(|r| r.writ.cpu_us_per_request),
                requests_per_s: over(|r| r.writ.requests_per_s),
            },
            separated,
        }
    }

    fn added_us(&self) -> f64 {
        self.writ.cpu_us_per_request - self.bare.cpu_us_per_request
    }

    fn markdown(&self) -> String {
        let own = if self.separated {
            "on a CPU of its own"
        } else {
            "sharing its CPU"
        };
        let verdict = if self.added_us() <= BUDGET_US {
            "within"
        } else {
            "over"
        };
        format!(
            "
One Envoy worker {own}, {CONNECTIONS} connections, medians of {ROUNDS} rounds of {REQUESTS} requests.

| | Envoy's CPU per request | requests/s |
|---|---|---|
| bare Envoy | {:.1} µs | {:.0} |
| with Writ | {:.1} µs | {:.0} |
| added | {:.1} µs, {verdict} the budget of {BUDGET_US:.0} µs | |
",
            self.bare.cpu_us_per_request,
            self.bare.requests_per_s,
            self.writ.cpu_us_per_request,
            self.writ.requests_per_s,
            self.added_us(),
        )
    }

    fn json(&self, rounds: &[Round]) -> Value {
        let figure = |f: &Figure| {
            json!({
                "cpu_us_per_request": f.cpu_us_per_request,
                "requests_per_s": f.requests_per_s,
            })
        };
        let rounds: Vec<Value> = rounds
            .iter()
            .map(|round| json!({"bare": figure(&round.bare), "writ": figure(&round.writ)}))
            .collect();
        json!({
            "requests_per_round": REQUESTS,
            "connections": CONNECTIONS,
            "own_cpu": self.separated,
            "bare": figure(&self.bare),
            "writ": figure(&self.writ),
            "added_cpu_us_per_request": self.added_us(),
            "budget_us": BUDGET_US,
            "rounds": rounds,
        })
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Counts and microseconds stay far below 2^53.
fn float(value: u64) -> f64 {
    u32::try_from(value).map_or(f64::MAX, f64::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_one() {
        assert!((median(vec![9.0, 1.0, 5.0]) - 5.0).abs() < f64::EPSILON);
    }
}
