//! `cargo xtask bench edge`: what Writ costs one Envoy worker.
//!
//! The same requests, with single-use tokens and proofs made beforehand, go
//! through a guarded Envoy and through others in turn, on a CPU of their own
//! where there are two: a bare one; the floor, which makes two signature checks
//! and waits for a stream answer; and the peer, `jwt_authn` with `ext_authz`.
//! Each goes twice in a round: as fast as it is answered, and all at one rate.
//! Differences within a round mean something; absolute figures are the machine's.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::answers::Answers;
use super::cpu;
use super::load::{self, Pace, Volley};
use super::report::{Figure, Mode, Report, Round, VARIANTS, Variant};
use super::rivals::{Kind, Parts, Rival};
use crate::Error;
use crate::client::Agent;
use crate::system::{Options, System};
use crate::tools::Tools;
use crate::upstream::REPORT;

/// Environment variable with the path of the floor's module.
const FLOOR_WASM: &str = "WRIT_FLOOR_WASM";
/// Rounds, each with every variant in both modes.
pub const ROUNDS: usize = 11;
/// Requests to each variant in one round, as fast as they are answered.
pub const REQUESTS: usize = 1_600;
/// Requests to each variant in one round, at [`RATE`].
pub const PACED_REQUESTS: usize = 1_200;
/// Requests per second that every variant can take.
pub const RATE: u32 = 1_500;
/// Connections of the load generator.
pub const CONNECTIONS: usize = 128;
const WARM_UP: usize = 600;
const MINTERS: usize = 16;
/// The bare ones are so cheap that a volley would be over in a moment.
const BARE_TIMES: usize = 3;
/// Outcomes are reported, and files synced, a moment after the last answer.
const SETTLE: Duration = Duration::from_millis(150);

/// Measures, prints Markdown tables, and writes `json` when it is given.
///
/// # Errors
/// When a part can't be started or any request is not answered by 200.
pub async fn run(json: Option<&Path>) -> Result<(), Error> {
    let tools = Tools::from_env()?;
    let floor_wasm = std::env::var_os(FLOOR_WASM).map(PathBuf::from);
    let floor_wasm = floor_wasm.ok_or_else(|| {
        Error::Setup(format!(
            "{FLOOR_WASM} is not set: run this through `cargo xtask bench edge`"
        ))
    })?;
    let data = memory()?;
    let options = Options {
        concurrency: 1,
        token_lifetime_s: 300,
        upstream_log: false,
        extra_config: format!(
            "[limits]\noutstanding_per_agent = 65536\n[server]\ndata_dir = {:?}\n",
            data.path().join("data"),
        ),
        ..Options::default()
    };
    let system = System::start(&tools, options, &mut |step| println!("· {step}")).await?;
    println!("· starting the Envoys to compare with");
    let bench = Bench::start(system, &floor_wasm).await?;
    let alone: Vec<u32> = bench.rivals.iter().map(|(_, r)| r.child.pid()).collect();
    let alone = [alone, vec![bench.system.envoy_pid()]].concat();
    let others = [bench.system.control_plane_pid(), std::process::id()];
    let separated = cpu::separate(&alone, &others)?;
    println!("· warming up");
    bench.round(0, WARM_UP, WARM_UP / 2).await?;
    let mut rounds = Vec::new();
    for number in 1..=ROUNDS {
        println!("· round {number} of {ROUNDS}");
        rounds.push(bench.round(number, REQUESTS, PACED_REQUESTS).await?);
    }
    let report = Report { rounds, separated };
    print!("{}", report.markdown());
    if let Some(path) = json {
        let text = format!("{:#}\n", report.json());
        std::fs::write(path, text).map_err(Error::file("write", path))?;
    }
    let Bench { system, rivals, .. } = bench;
    drop(rivals);
    system.stop().await;
    drop(data);
    Ok(())
}

/// A place for the journal in memory: what is measured is Envoy, which must not
/// idle for a disk. Where there is no such place, an ordinary one.
fn memory() -> Result<tempfile::TempDir, Error> {
    let shared = Path::new("/dev/shm");
    let mut builder = tempfile::Builder::new();
    builder.prefix("writ-bench-");
    if shared.is_dir() {
        builder.tempdir_in(shared)
    } else {
        builder.tempdir()
    }
    .map_err(Error::file("make a directory in", shared))
}

struct Bench {
    agent: Agent,
    rivals: Vec<(Variant, Rival)>,
    system: System,
    _answers: Answers,
}

impl Bench {
    async fn start(system: System, floor_wasm: &Path) -> Result<Bench, Error> {
        let answers = Answers::start(&system.workload_api()).await?;
        let parts = Parts {
            system: &system,
            answers: &answers,
            floor_wasm,
        };
        let mut rivals = Vec::new();
        for variant in VARIANTS {
            let kind = match variant {
                Variant::Bare => Kind::Bare,
                Variant::Logged => Kind::Logged,
                Variant::Floor => Kind::Floor { mutual: false },
                Variant::FloorTls => Kind::Floor { mutual: true },
                Variant::Peer => Kind::Peer,
                Variant::Writ => continue,
            };
            rivals.push((variant, Rival::start(kind, &parts).await?));
        }
        Ok(Bench {
            agent: system.agent().await?,
            rivals,
            system,
            _answers: answers,
        })
    }

    /// Every variant in both modes. Each round begins with another one, so that
    /// none always follows the same.
    async fn round(&self, number: usize, fast: usize, paced: usize) -> Result<Round, Error> {
        let mut tokens = mint(&self.agent, fast + paced).await?;
        let paced = Arc::new(tokens.split_off(fast));
        let fast = Arc::new(tokens);
        tokio::time::sleep(SETTLE).await;
        let mut round = Round::default();
        for (mode, requests) in [(Mode::Saturated, fast), (Mode::Paced, paced)] {
            for turn in 0..VARIANTS.len() {
                let variant = VARIANTS
                    .into_iter()
                    .cycle()
                    .nth(number.saturating_add(turn))
                    .unwrap_or(Variant::Bare);
                let figure = self.figure(variant, mode, &requests).await?;
                round.figures.push((mode, variant, figure));
                tokio::time::sleep(SETTLE).await;
            }
        }
        Ok(round)
    }

    async fn figure(
        &self,
        variant: Variant,
        mode: Mode,
        requests: &Arc<Vec<Vec<u8>>>,
    ) -> Result<Figure, Error> {
        let pace = match mode {
            Mode::Saturated => Pace::Saturate,
            Mode::Paced => Pace::PerSecond(RATE),
        };
        let rival = self.rivals.iter().find(|(known, _)| *known == variant);
        let Some((_, rival)) = rival else {
            return self.guarded(requests, pace).await;
        };
        let times = match (variant, mode) {
            (Variant::Bare | Variant::Logged, Mode::Saturated) => BARE_TIMES,
            _ => 1,
        };
        let own = |request: &Vec<u8>| rival.request.clone().unwrap_or_else(|| request.clone());
        let requests: Vec<Vec<u8>> = (0..times).flat_map(|_| requests.iter().map(own)).collect();
        self.measure(rival.child.pid(), rival.port, &Arc::new(requests), pace)
            .await
    }

    /// Through Writ, and every request reaches the upstream.
    async fn guarded(&self, requests: &Arc<Vec<Vec<u8>>>, pace: Pace) -> Result<Figure, Error> {
        let before = self.system.upstream()?.arrived();
        let port = port_of(&self.system.proxy_url())?;
        let figure = self
            .measure(self.system.envoy_pid(), port, requests, pace)
            .await?;
        let arrived = self.system.upstream()?.arrived().saturating_sub(before);
        if usize::try_from(arrived).ok() != Some(requests.len()) {
            return Err(Error::Unexpected(format!(
                "{arrived} requests reached the upstream, {} were sent",
                requests.len()
            )));
        }
        Ok(figure)
    }

    async fn measure(
        &self,
        pid: u32,
        port: u16,
        requests: &Arc<Vec<Vec<u8>>>,
        pace: Pace,
    ) -> Result<Figure, Error> {
        let harness = std::process::id();
        let control_plane = self.system.control_plane_pid();
        let times = || -> Result<[f64; 4], Error> {
            Ok([
                cpu::time_us(pid)?,
                cpu::time_us(control_plane)?,
                cpu::time_us(harness)?,
                cpu::machine_us()?,
            ])
        };
        let before = times()?;
        let volley = load::fire(port, requests, CONNECTIONS, pace).await?;
        let after = times()?;
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
        let mut used = after;
        for (used, before) in used.iter_mut().zip(before) {
            *used -= before;
        }
        let [envoy, control_plane, harness, machine] = used;
        let count = f64::from(u32::try_from(ok).unwrap_or(u32::MAX));
        let elapsed_us = elapsed.as_secs_f64() * 1_000_000.0;
        Ok(Figure {
            cpu_us: envoy / count,
            per_s: count / elapsed.as_secs_f64(),
            envoy_busy: envoy / elapsed_us,
            control_plane_us: control_plane / count,
            rest_busy: (control_plane + harness) / elapsed_us,
            strangers_busy: (machine - envoy - control_plane - harness).max(0.0) / elapsed_us,
        })
    }
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
