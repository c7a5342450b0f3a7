//! `cargo xtask bench edge`: what Writ costs one Envoy worker.
//!
//! The same requests, with single-use tokens and proofs made beforehand, go
//! through a guarded Envoy and through others in turn, on a CPU of their own
//! where there are two: bare ones, an empty filter, the calls alone that a filter
//! like Writ's needs, and what people use instead. `report` lists them.
//! Differences within a round mean something; absolute figures are the machine's.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::answers::Answers;
use super::cpu;
use super::footprint::{self, Footprint, Sync};
use super::load::{self, Volley};
use super::report::{Figure, ROWS, Report, Round, Row};
use super::rivals::{Kind, Parts, Rival};
use crate::Error;
use crate::client::{self, Agent};
use crate::system::{Options, System};
use crate::tools::Tools;
use crate::upstream::{PAYROLL, REPORT};

/// Environment variable with the path of the floor's module.
const FLOOR_WASM: &str = "WRIT_FLOOR_WASM";
/// Requests to each row in one round.
pub const REQUESTS: usize = 2_400;
/// Connections of the load generator.
pub const CONNECTIONS: usize = 128;
/// Requests that are held at a time: what the config allows one agent at most.
const HELD: usize = 256;
const WARM_UP: usize = 600;
const MINTERS: usize = 16;
/// The bare ones are so cheap that a volley would be over in a moment.
const BARE_TIMES: usize = 3;
/// Outcomes are reported, and files synced, a moment after the last answer.
const SETTLE: Duration = Duration::from_millis(150);

/// Measures in so many rounds, prints Markdown tables, and writes `json` when it is
/// given.
///
/// # Errors
/// When a part can't be started or any request is not answered by 200.
pub async fn run(json: Option<&Path>, rounds: usize) -> Result<(), Error> {
    let tools = Tools::from_env()?;
    let floor_wasm = std::env::var_os(FLOOR_WASM).map(PathBuf::from);
    let floor_wasm = floor_wasm.ok_or_else(|| {
        Error::Setup(format!(
            "{FLOOR_WASM} is not set: run this through `cargo xtask bench edge`"
        ))
    })?;
    let edge = Guarded::start(&tools, "edge").await?;
    let record = Guarded::start(&tools, "record").await?;
    let sync = Sync::of(&edge.system.data_dir())?;
    println!("· starting the Envoys to compare with");
    let mut bench = Bench::start(edge, record, floor_wasm).await?;
    let separated = bench.separate()?;
    println!("· warming up");
    bench.round(0, WARM_UP).await?;
    let mut measured = Vec::new();
    for number in 1..=rounds {
        println!("· round {number} of {rounds}");
        measured.push(bench.round(number, REQUESTS).await?);
    }
    println!("· measuring what is no rate");
    let footprint = bench.footprint(sync).await?;
    let report = Report {
        rounds: measured,
        separated,
        footprint,
    };
    print!("{}", report.markdown());
    if let Some(path) = json {
        let text = format!("{:#}\n", report.json());
        std::fs::write(path, text).map_err(Error::file("write", path))?;
    }
    let Bench { edge, record, .. } = bench;
    edge.system.stop().await;
    record.system.stop().await;
    Ok(())
}

/// A system with Writ, and an agent of it.
struct Guarded {
    system: System,
    agent: Agent,
    port: u16,
}

impl Guarded {
    async fn start(tools: &Tools, token_check: &str) -> Result<Guarded, Error> {
        println!("· a system with token_check = \"{token_check}\"");
        let options = Options {
            concurrency: 1,
            hold_s: 30,
            token_lifetime_s: 300,
            upstream_log: false,
            extra_config: format!(
                "[limits]\noutstanding_per_agent = 65536\nheld_per_agent = {HELD}\n\
                 exchanges_per_agent = 1000000\nexchanges_per_owner = 1000000\n\
                 [edge]\ntoken_check = \"{token_check}\"\n"
            ),
            ..Options::default()
        };
        let system = System::start(tools, options, &mut |step| println!("· {step}")).await?;
        Ok(Guarded {
            agent: system.agent().await?,
            port: port_of(&system.proxy_url())?,
            system,
        })
    }

    /// So many requests for what may be read.
    async fn requests(&self, count: usize) -> Result<Arc<Vec<Vec<u8>>>, Error> {
        mint(&self.agent, REPORT, count).await.map(Arc::new)
    }
}

struct Bench {
    edge: Guarded,
    record: Guarded,
    rivals: Vec<(Row, Rival)>,
    answers: Answers,
    floor_wasm: PathBuf,
    jwks: Value,
}

impl Bench {
    async fn start(edge: Guarded, record: Guarded, floor_wasm: PathBuf) -> Result<Bench, Error> {
        let answers = Answers::start(&edge.system.workload_api()).await?;
        let url = format!("{}/.well-known/jwks.json", edge.system.http_url());
        let jwks = client::http_client().get(&url).send().await;
        let jwks = client::Answer::read(jwks.map_err(Error::http(&url))?).await?;
        let mut bench = Bench {
            jwks: jwks.expect("the keys", 200)?.json(),
            edge,
            record,
            rivals: Vec::new(),
            answers,
            floor_wasm,
        };
        for row in ROWS {
            let kind = match row {
                Row::Bare => Kind::Bare,
                Row::Logged => Kind::Logged,
                Row::Empty => Kind::Empty,
                Row::Calls => Kind::Calls,
                Row::Jwt => Kind::Jwt,
                Row::Peer => Kind::Peer { mutual: false },
                Row::PeerTls => Kind::Peer { mutual: true },
                Row::Edge | Row::Record => continue,
            };
            let rival = Rival::start(kind, 1, &bench.parts().await?).await?;
            bench.rivals.push((row, rival));
        }
        Ok(bench)
    }

    async fn parts(&self) -> Result<Parts<'_>, Error> {
        let mut request = mint(&self.edge.agent, REPORT, 1).await?;
        Ok(Parts {
            system: &self.edge.system,
            jwks: self.jwks.clone(),
            answers: &self.answers,
            floor_wasm: &self.floor_wasm,
            request: request.pop().unwrap_or_default(),
        })
    }

    /// All Envoys on one CPU, of which only one works at a time, and everything else
    /// on the others.
    fn separate(&self) -> Result<bool, Error> {
        let rivals = self.rivals.iter().map(|(_, rival)| rival.child.pid());
        let systems = [&self.edge.system, &self.record.system];
        let alone: Vec<u32> = rivals.chain(systems.map(System::envoy_pid)).collect();
        let [edge, record] = systems.map(System::control_plane_pid);
        cpu::separate(&alone, &[edge, record, std::process::id()])
    }

    /// Every row once. Each round begins with another one, so that none always
    /// follows the same.
    async fn round(&self, number: usize, count: usize) -> Result<Round, Error> {
        let edge = self.edge.requests(count).await?;
        let record = self.record.requests(count).await?;
        tokio::time::sleep(SETTLE).await;
        let mut round = Round::default();
        for turn in 0..ROWS.len() {
            let turn = number.saturating_add(turn);
            let row = ROWS.into_iter().cycle().nth(turn).unwrap_or(Row::Bare);
            let rival = self.rivals.iter().find(|(known, _)| *known == row);
            let figure = match rival {
                Some((_, rival)) => self.rival(row, rival, &edge).await?,
                None if row == Row::Record => self.guarded(&self.record, &record).await?,
                None => self.guarded(&self.edge, &edge).await?,
            };
            round.0.push((row, figure));
            tokio::time::sleep(SETTLE).await;
        }
        Ok(round)
    }

    async fn rival(
        &self,
        row: Row,
        rival: &Rival,
        requests: &Arc<Vec<Vec<u8>>>,
    ) -> Result<Figure, Error> {
        let pids = (rival.child.pid(), self.edge.system.control_plane_pid());
        if !matches!(row, Row::Bare | Row::Logged | Row::Empty) {
            return measure(pids, rival.port, requests).await;
        }
        let all = (0..BARE_TIMES).flat_map(|_| requests.iter().cloned());
        measure(pids, rival.port, &Arc::new(all.collect())).await
    }

    /// Through Writ, and every request reaches the upstream.
    async fn guarded(
        &self,
        guarded: &Guarded,
        requests: &Arc<Vec<Vec<u8>>>,
    ) -> Result<Figure, Error> {
        let system = &guarded.system;
        let before = system.upstream()?.arrived();
        let pids = (system.envoy_pid(), system.control_plane_pid());
        let figure = measure(pids, guarded.port, requests).await?;
        let arrived = system.upstream()?.arrived().saturating_sub(before);
        if usize::try_from(arrived).ok() != Some(requests.len()) {
            return Err(Error::Unexpected(format!(
                "{arrived} requests reached the upstream, {} were sent",
                requests.len()
            )));
        }
        Ok(figure)
    }

    /// What is no rate. The Envoys that were compared with end here.
    async fn footprint(&mut self, sync: Sync) -> Result<Footprint, Error> {
        self.rivals.clear();
        let good = self.edge.requests(HELD).await?;
        let held = mint(&self.edge.agent, PAYROLL, HELD).await?;
        let held_kb = footprint::held_kb(&self.edge.system, self.edge.port, (&good, &held)).await?;
        let spent = self.edge.requests(WARM_UP).await?;
        Footprint::measure(&self.parts().await?, &spent, sync, held_kb).await
    }
}

/// One volley, with what an Envoy and a control plane used meanwhile.
async fn measure(
    (envoy, control_plane): (u32, u32),
    port: u16,
    requests: &Arc<Vec<Vec<u8>>>,
) -> Result<Figure, Error> {
    let harness = std::process::id();
    let times = || -> Result<[f64; 4], Error> {
        Ok([
            cpu::time_us(envoy)?,
            cpu::time_us(control_plane)?,
            cpu::time_us(harness)?,
            cpu::machine_us()?,
        ])
    };
    let before = times()?;
    let volley = load::fire(port, requests, CONNECTIONS).await?;
    let after = times()?;
    let (p50_ms, p99_ms) = (volley.within_ms(500), volley.within_ms(990));
    let Volley {
        ok,
        refused,
        example,
        elapsed,
        ..
    } = volley;
    if refused > 0 {
        return Err(Error::Unexpected(format!(
            "{refused} of {} requests were not answered by 200, one of them by\n{example}",
            requests.len()
        )));
    }
    let mut used = after;
    for (used, before) in used.iter_mut().zip(before) {
        *used -= before;
    }
    let [envoy, control_plane, harness, machine] = used;
    let count = f64::from(u32::try_from(ok).unwrap_or(u32::MAX));
    let elapsed_us = elapsed.as_secs_f64() * 1_000_000.0;
    Ok(Figure {
        cpu_us: envoy / count,
        rps: count / elapsed.as_secs_f64(),
        p50_ms,
        p99_ms,
        envoy_busy: envoy / elapsed_us,
        control_plane_us: control_plane / count,
        rest_busy: (control_plane + harness) / elapsed_us,
        strangers_busy: (machine - envoy - control_plane - harness).max(0.0) / elapsed_us,
    })
}

/// Exchanges for `count` tokens and makes the bytes of their requests.
async fn mint(agent: &Agent, path: &'static str, count: usize) -> Result<Vec<Vec<u8>>, Error> {
    let mut tasks = Vec::new();
    for minter in 0..MINTERS {
        let agent = agent.clone();
        let mine = (minter..count).step_by(MINTERS).count();
        tasks.push(tokio::spawn(async move {
            let mut requests = Vec::with_capacity(mine);
            for _ in 0..mine {
                let token = agent.token("GET", path).await?;
                requests.push(request(&agent, path, &token));
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

fn request(agent: &Agent, path: &str, token: &str) -> Vec<u8> {
    let url = agent.url(path);
    let proof = agent.key().proof("GET", &url, Some(token));
    let authority = url
        .trim_start_matches("http://")
        .split('/')
        .next()
        .unwrap_or_default();
    format!(
        "GET {path} HTTP/1.1\r\nhost: {authority}\r\nauthorization: DPoP {token}\r\ndpop: {proof}\r\n\r\n"
    )
    .into_bytes()
}

fn port_of(url: &str) -> Result<u16, Error> {
    url.rsplit(':')
        .next()
        .and_then(|port| port.parse().ok())
        .ok_or_else(|| Error::Unexpected(format!("{url} has no port")))
}
