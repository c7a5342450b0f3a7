//! `cargo xtask bench exchange`: what an exchange costs the control plane.
//!
//! Exchanges over HTTP with keep-alive, each with an SVID and a proof of its own that were
//! made beforehand, in turn on a control plane that knows one agent and on one that knows
//! many and has many tokens outstanding; and in the same rounds the floor: the signature
//! checks and the signature that no exchange could do without. Audit is durable.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _,
    UnparsedPublicKey,
};
use p256::ecdsa::signature::Signer as _;
use p256::ecdsa::{Signature, SigningKey};
use serde_json::{Value, json};

use super::crowd::{Crowd, Holder};
use super::{cpu, load};
use crate::Error;
use crate::client::{Answer, DpopKey, now_s};
use crate::system::{AGENT, Options, System};
use crate::tools::Tools;
use crate::upstream::REPORT;

/// Exchanges of each row in one round.
const EXCHANGES: usize = 1_200;
const WARM_UP: usize = 300;
const CONNECTIONS: usize = 32;
/// Agents that the crowded one knows.
const AGENTS: usize = 100_000;
/// Tokens that it has outstanding when it is measured, at least.
const OUTSTANDING: usize = 1_000_000;
/// Agents that those are of.
const HOLDERS: usize = 64;
/// How long a token is good for, in seconds: the longest that is allowed.
const LIFE_S: u64 = 300;
/// How often the floor is gone through in one round.
const FLOORS: usize = 400;
/// Signatures that are checked each time.
const CHECKS: usize = 3;
/// As long as what a proof or a short token signs.
const MESSAGE: [u8; 600] = [7; 600];

const GRANT: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
const JWT: &str = "urn:ietf:params:oauth:token-type:jwt";

/// One row of one round.
#[derive(Clone, Copy, Default)]
struct Figure {
    cpu_us: f64,
    rate: f64,
    p50_ms: f64,
    p99_ms: f64,
}

/// Measures in so many rounds, prints a Markdown table, and writes `json` when it is given.
///
/// # Errors
/// When a part can't be started, or an exchange is refused.
pub async fn run(json: Option<&Path>, rounds: usize) -> Result<(), Error> {
    let tools = Tools::from_env()?;
    let plain = Plane::start(&tools, 1).await?;
    println!("· a control plane that knows {AGENTS} agents");
    let crowded = Plane::start(&tools, AGENTS).await?;
    let plain_kb = cpu::memory_kb(plain.system.control_plane_pid())?;
    let small_kb = cpu::memory_kb(crowded.system.control_plane_pid())?;
    println!("· {OUTSTANDING} tokens outstanding there");
    let mut crowd = Crowd::new(
        &crowded.system.issuer(),
        &crowded.action(),
        Duration::from_secs(LIFE_S),
    );
    crowd.fill(crowded.sessions().await?, OUTSTANDING).await?;
    let full_kb = cpu::memory_kb(crowded.system.control_plane_pid())?;
    plain.fire(WARM_UP).await?;
    let mut all: Vec<[Figure; 4]> = Vec::new();
    for round in 0..rounds {
        println!("· round {} of {rounds}", round.saturating_add(1));
        crowd.fill(crowded.sessions().await?, OUTSTANDING).await?;
        for plane in [&plain, &crowded] {
            cpu::idle(plane.system.control_plane_pid()).await?;
        }
        let (floor, native) = (floor(Signs::P256)?, floor(Signs::AwsLc)?);
        // Each goes first as often as the other.
        let (one, many) = if round % 2 == 0 {
            let one = plain.fire(EXCHANGES).await?;
            (one, crowded.fire(EXCHANGES).await?)
        } else {
            let many = crowded.fire(EXCHANGES).await?;
            (plain.fire(EXCHANGES).await?, many)
        };
        all.push([floor, one, many, native]);
    }
    let report = Report {
        rounds: all,
        agents_kb: small_kb - plain_kb,
        tokens_kb: full_kb - small_kb,
    };
    print!("{}", report.markdown());
    if let Some(path) = json {
        let text = format!("{:#}\n", report.json());
        std::fs::write(path, text).map_err(Error::file("write", path))?;
    }
    plain.system.stop().await;
    crowded.system.stop().await;
    Ok(())
}

/// A control plane whose trust domain's key is at hand.
struct Plane {
    system: System,
    svids: DpopKey,
    kid: String,
    holders: usize,
}

impl Plane {
    async fn start(tools: &Tools, agents: usize) -> Result<Plane, Error> {
        let mut config = String::from(
            "[limits]\noutstanding_per_agent = 65536\noutstanding_per_owner = 1048576\nproofs_per_agent = 262144\nexchanges_per_agent = 1000000\nexchanges_per_owner = 1000000\n",
        );
        for number in 0..agents {
            writeln!(
                config,
                "[[agent]]\nspiffe_id = {:?}\nowner = \"bench\"",
                agent(number)
            )
            .map_err(|_| Error::Unexpected("no room for a config".to_owned()))?;
        }
        let options = Options {
            concurrency: 1,
            token_lifetime_s: LIFE_S,
            upstream_log: false,
            extra_config: config,
            ..Options::default()
        };
        let system = System::start(tools, options, &mut |_| {}).await?;
        let svids = DpopKey::read(&system.data_dir().join("trust/jwt.key"))?;
        Ok(Plane {
            kid: svids.thumbprint(),
            svids,
            system,
            holders: agents.min(HOLDERS),
        })
    }

    /// Agents with sessions that have just begun.
    async fn sessions(&self) -> Result<Vec<Holder>, Error> {
        let issuer = self.system.issuer();
        let url = format!("{issuer}/oauth2/token");
        let client = reqwest::Client::new();
        let mut holders = Vec::with_capacity(self.holders);
        for number in 0..self.holders {
            let key = DpopKey::generate()?;
            let svid = self.svid(number);
            let form = [
                ("grant_type", GRANT),
                ("subject_token", svid.as_str()),
                ("subject_token_type", JWT),
                ("audience", issuer.as_str()),
            ];
            let request = client
                .post(&url)
                .header("dpop", key.proof("POST", &url, None))
                .form(&form);
            let answer = Answer::read(request.send().await.map_err(Error::http(&url))?).await?;
            let answer = answer.expect("a session", 200)?.json();
            let session = answer.get("access_token").and_then(Value::as_str);
            let session = session.unwrap_or_default().to_owned();
            holders.push(Holder { key, session });
        }
        Ok(holders)
    }

    /// One that nobody has seen.
    fn svid(&self, number: usize) -> String {
        let unique: [u8; 8] = rand::random();
        let head = json!({ "alg": "ES256", "typ": "JWT", "kid": self.kid });
        let claims = json!({
            "sub": agent(number), "aud": [self.system.issuer()], "iat": now_s(),
            "exp": now_s() + 300, "jti": hex::encode(unique),
        });
        self.svids.sign(&head, &claims)
    }

    fn action(&self) -> Value {
        let url = format!("{}{REPORT}", self.system.origin());
        json!({ "type": "http_request", "actions": ["GET"], "locations": [url] })
    }

    /// So many exchanges, each of which brings a token.
    async fn fire(&self, count: usize) -> Result<Figure, Error> {
        let requests = Arc::new(self.requests(count)?);
        let pid = self.system.control_plane_pid();
        let before = cpu::time_us(pid)?;
        let volley = load::fire(self.system.ports().http, &requests, CONNECTIONS).await?;
        let used = cpu::time_us(pid)? - before;
        if volley.refused > 0 {
            return Err(Error::Unexpected(format!(
                "{} of {count} exchanges were refused, one of them by\n{}",
                volley.refused, volley.example
            )));
        }
        let count = f64::from(u32::try_from(volley.ok).unwrap_or(u32::MAX));
        Ok(Figure {
            cpu_us: used / count,
            rate: count / volley.elapsed.as_secs_f64(),
            p50_ms: volley.within_ms(500),
            p99_ms: volley.within_ms(990),
        })
    }

    /// Each by an agent with an SVID, a key and a proof that nobody has seen.
    fn requests(&self, count: usize) -> Result<Vec<Vec<u8>>, Error> {
        let keys: Result<Vec<DpopKey>, Error> = (0..16).map(|_| DpopKey::generate()).collect();
        let keys = keys?;
        let issuer = self.system.issuer();
        let details = json!([self.action()]).to_string();
        let host = issuer.trim_start_matches("http://").to_owned();
        let mut requests = Vec::with_capacity(count);
        for (number, key) in keys.iter().cycle().take(count).enumerate() {
            let svid = self.svid(number % self.holders);
            let form = [
                ("grant_type", GRANT),
                ("subject_token", &svid),
                ("subject_token_type", JWT),
                ("authorization_details", &details),
            ];
            let body = form_of(&form)?;
            let proof = key.proof("POST", &format!("{issuer}/oauth2/token"), None);
            requests.push(
                format!(
                    "POST /oauth2/token HTTP/1.1\r\nhost: {host}\r\ndpop: {proof}\r\n\
                     content-type: application/x-www-form-urlencoded\r\ncontent-length: {}\r\n\r\n{body}",
                    body.len()
                )
                .into_bytes(),
            );
        }
        Ok(requests)
    }
}

fn agent(number: usize) -> String {
    match number {
        0 => AGENT.to_owned(),
        _ => format!("{AGENT}-{number}"),
    }
}

fn form_of(form: &[(&str, &str)]) -> Result<String, Error> {
    let mut url = reqwest::Url::parse("http://form/")
        .map_err(|problem| Error::Unexpected(problem.to_string()))?;
    url.query_pairs_mut().extend_pairs(form);
    Ok(url.query().unwrap_or_default().to_owned())
}

/// What no exchange could do without: the subject's and the proof's signature checked, a
/// third for an actor's, and one made. Each by the library that an exchange uses for it, or
/// all by the one that is not all Rust.
fn floor(signs: Signs) -> Result<Figure, Error> {
    let failed = |_| Error::Unexpected("aws-lc failed".to_owned());
    let native = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).map_err(failed)?;
    let random = SystemRandom::new();
    let signature = native.sign(&random, &MESSAGE).map_err(failed)?;
    let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, native.public_key());
    let bytes: [u8; 32] = rand::random();
    let key = SigningKey::from_slice(&bytes)
        .map_err(|_| Error::Unexpected("random bytes were no P-256 key".to_owned()))?;
    repeated(|| {
        for _ in 0..CHECKS {
            public
                .verify(&MESSAGE, signature.as_ref())
                .map_err(failed)?;
        }
        match signs {
            Signs::P256 => {
                let made: Signature = key.sign(&MESSAGE);
                std::hint::black_box(made);
            }
            Signs::AwsLc => {
                std::hint::black_box(native.sign(&random, &MESSAGE).map_err(failed)?);
            }
        }
        Ok(())
    })
}

/// Which library makes the signature; aws-lc checks those that are there.
#[derive(Clone, Copy)]
enum Signs {
    /// As the control plane does, by jwt-simple.
    P256,
    AwsLc,
}

/// As often as is worth measuring.
fn repeated(mut each: impl FnMut() -> Result<(), Error>) -> Result<Figure, Error> {
    let start = Instant::now();
    let before = cpu::time_us(std::process::id())?;
    for _ in 0..FLOORS {
        each()?;
    }
    let used = cpu::time_us(std::process::id())? - before;
    let count = f64::from(u32::try_from(FLOORS).unwrap_or(u32::MAX));
    let each_ms = start.elapsed().as_secs_f64() * 1_000.0 / count;
    Ok(Figure {
        cpu_us: used / count,
        rate: 1_000.0 / each_ms,
        p50_ms: each_ms,
        p99_ms: each_ms,
    })
}

struct Report {
    rounds: Vec<[Figure; 4]>,
    agents_kb: f64,
    tokens_kb: f64,
}

/// The median, the least and the most.
fn spread(mut all: Vec<f64>) -> (f64, f64, f64) {
    all.sort_by(f64::total_cmp);
    let at = |index: usize| all.get(index).copied().unwrap_or(f64::NAN);
    (at(all.len() / 2), at(0), at(all.len().saturating_sub(1)))
}

const NAMES: [(&str, &str); 4] = [
    (
        "floor",
        "three checks by aws-lc and a signature by p256 alone",
    ),
    ("exchange", "an exchange"),
    ("crowded", "an exchange among many"),
    (
        "floor_native",
        "three checks and a signature alone, all by aws-lc",
    ),
];

impl Report {
    fn of(&self, row: usize, what: impl Fn(&Figure) -> f64) -> (f64, f64, f64) {
        let figures = self.rounds.iter().filter_map(|round| round.get(row));
        spread(figures.map(what).collect())
    }

    /// CPU of one row in that of another, within each round.
    fn ratio(&self, of: usize, to: usize) -> (f64, f64, f64) {
        let within = self
            .rounds
            .iter()
            .filter_map(|round| Some(round.get(of)?.cpu_us / round.get(to)?.cpu_us));
        spread(within.collect())
    }

    fn markdown(&self) -> String {
        let mut text = String::from(
            "\n| | CPU per exchange | a second per core | p50 | p99 |\n|---|---|---|---|---|\n",
        );
        for (row, (_, name)) in NAMES.iter().enumerate() {
            let (cpu, least, most) = self.of(row, |it| it.cpu_us);
            let per_core = 1_000_000.0 / cpu;
            let (p50, ..) = self.of(row, |it| it.p50_ms);
            let (p99, ..) = self.of(row, |it| it.p99_ms);
            text.push_str(&format!(
                "| {name} | {cpu:.0} µs ({least:.0} to {most:.0}) | {per_core:.0} | {p50:.1} ms | {p99:.1} ms |\n"
            ));
        }
        let (floor, least, most) = self.ratio(1, 0);
        let (crowd, crowd_least, crowd_most) = self.ratio(2, 1);
        let (native, ..) = self.ratio(1, 3);
        text.push_str(&format!(
            "\nfloor {floor:.2} ({least:.2} to {most:.2}), crowd {crowd:.2} ({crowd_least:.2} to {crowd_most:.2}), native floor {native:.2}; \
             {AGENTS} agents take {:.0} MiB, {OUTSTANDING} tokens {:.0} MiB\n",
            self.agents_kb / 1024.0,
            self.tokens_kb / 1024.0
        ));
        text
    }

    fn json(&self) -> Value {
        let rows = NAMES.iter().enumerate().map(|(row, (name, _))| {
            let (cpu, least, most) = self.of(row, |it| it.cpu_us);
            json!({
                "name": name, "cpu_us": cpu, "cpu_us_least": least, "cpu_us_most": most,
                "per_core_s": 1_000_000.0 / cpu, "rate_s": self.of(row, |it| it.rate).0,
                "p50_ms": self.of(row, |it| it.p50_ms).0, "p99_ms": self.of(row, |it| it.p99_ms).0,
            })
        });
        json!({
            "rows": rows.collect::<Vec<_>>(),
            "ratios": {
                "floor": self.ratio(1, 0).0, "crowd": self.ratio(2, 1).0,
                "floor_native": self.ratio(1, 3).0,
            },
            "memory_kb": { "agents": self.agents_kb, "tokens": self.tokens_kb },
        })
    }
}
