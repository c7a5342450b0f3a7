//! E12: a control plane whose clock steps.

use serde_json::{Value, json};

use super::claims_of;
use crate::Error;
use crate::attack::check::{holds, same};
use crate::attack::stages::Stages;
use crate::client::{Answer, now_s};
use crate::shim::Clock;
use crate::stage::{Stage, eventually, text_at};
use crate::system::Options;
use crate::upstream::REPORT;

/// How long tokens live, in seconds.
const LIVES_S: u64 = 30;
/// What proxies allow for a clock that is ahead (`capability`'s skew), in seconds.
const SKEW_S: u64 = 10;
const HOUR_S: i64 = 3_600;
const EACH: usize = 5;

/// A system whose control plane's clock can be set.
struct Clocked {
    stage: Stage,
    clock: Clock,
}

impl Clocked {
    async fn start() -> Result<Clocked, Error> {
        let clock = Clock::new()?;
        let stage = Stage::start(Options {
            token_lifetime_s: LIVES_S,
            env: clock.env(),
            ..Options::default()
        })
        .await?;
        Ok(Clocked { stage, clock })
    }

    /// One exchange, with an SVID of the control plane's own time.
    async fn mint(&self) -> Result<Answer, Error> {
        let agent = &self.stage.agent;
        let issuer = self.stage.system.issuer();
        let svid = agent.svid_for(&issuer).await?;
        let details = agent.details("GET", REPORT).to_string();
        let answer = agent
            .post_token(&svid, &details, &agent.token_proof())
            .await?;
        let Some(nonce) = answer.header("dpop-nonce") else {
            return Ok(answer);
        };
        let endpoint = format!("{issuer}/oauth2/token");
        let claims = json!({ "nonce": nonce });
        let proof = agent.key().proof_with("POST", &endpoint, None, &claims);
        agent.post_token(&svid, &details, &proof).await
    }

    /// Mints and shows some: none passes that a proxy would not have taken from a right
    /// clock. How many were minted, and how many passed.
    async fn tries(&self, what: &str) -> Result<(usize, usize, String), Error> {
        let (mut minted, mut passed) = (0, 0);
        let mut told = String::new();
        for _ in 0..EACH {
            let answer = self.mint().await?;
            if answer.status != 200 {
                told = answer.summary();
                continue;
            }
            minted += 1;
            let token = text_at(&answer.json(), "/access_token");
            let claims = claims_of(&token);
            let time = |name: &str| claims.get(name).and_then(Value::as_u64);
            let (iat, exp) = (time("iat").unwrap_or(0), time("exp").unwrap_or(u64::MAX));
            holds(exp <= iat + LIVES_S, format!("{what}: {claims}"))?;
            let before = self.stage.arrived()?;
            let shown = self.stage.present(REPORT, &token).await?;
            told = shown.summary();
            if shown.status == 200 {
                passed += 1;
                let latest = now_s() + SKEW_S + LIVES_S;
                holds(exp <= latest, format!("{what}: it passed with {claims}"))?;
            } else {
                same("reached the upstream", self.stage.arrived()?, before)?;
            }
        }
        Ok((minted, passed, told))
    }
}

/// The row.
pub async fn steps(_stages: &mut Stages) -> Result<String, Error> {
    let clocked = Clocked::start().await?;
    let seen = of(&clocked).await;
    clocked.stage.stop().await;
    seen
}

/// What `writ status` warns of.
fn warnings(stage: &Stage) -> Result<String, Error> {
    let mut command = stage.system.writ();
    let output = command
        .args(["status", "--json"])
        .output()
        .map_err(Error::file("run", &stage.system.tools().writ))?;
    let status: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    Ok(status
        .get("warnings")
        .map(Value::to_string)
        .unwrap_or_default())
}

async fn of(clocked: &Clocked) -> Result<String, Error> {
    let (_, passed, told) = clocked.tries("a right clock").await?;
    same(&told, passed, EACH)?;
    let stage = &clocked.stage;
    same("warnings", warnings(stage)?, "[]".to_owned())?;
    let mut seen = Vec::new();
    for (what, seconds, warning) in [
        ("an hour behind", -HOUR_S, "behind the log"),
        ("right again", 0, "stepped by 3600 s"),
        ("an hour ahead", HOUR_S, "stepped by 3600 s"),
        ("right at last", 0, "behind the log"),
    ] {
        clocked.clock.step(seconds)?;
        let told = async || warnings(stage).is_ok_and(|it| it.contains(warning));
        eventually(&format!("{what}: {warning}"), told).await?;
        let (minted, passed, told) = clocked.tries(what).await?;
        // By a clock that is ahead nothing passes before its time.
        holds(
            passed == 0 || seconds != HOUR_S,
            format!("{what}: {passed} passed"),
        )?;
        if what == "right again" {
            same(&format!("{what}: {told}"), passed, EACH)?;
        }
        seen.push(format!("{what}: {minted} minted, {passed} passed ({told})"));
    }
    let log = stage.system.log("control-plane");
    let log = std::fs::read_to_string(&log).map_err(Error::file("read", &log))?;
    holds(log.contains("ALARM: the clock stepped"), "no alarm")?;
    stage.each_once()?;
    Ok(format!(
        "{}; each step is an alarm and a warning",
        seen.join("; ")
    ))
}
