//! E14: an agent that mints without end.

use std::time::Duration;

use crate::Error;
use crate::attack::check::{holds, same};
use crate::attack::stages::Stages;
use crate::stage::text_at;
use crate::system::{AGENT, Options};
use crate::upstream::REPORT;

use super::Minting;
use super::setting::{CHILD, is_refused};

/// How many tokens an agent may have that it has not used.
const OUTSTANDING: usize = 64;
/// How long they live, in seconds.
const LIVES_S: u64 = 30;
/// And so long later nothing is known of them, in seconds.
const FORGOTTEN_S: u64 = 12;
const ASKED: usize = 400;

/// An agent mints and never uses: it gets so many, others are served, and what was not used
/// is forgotten.
pub async fn unused(_stages: &mut Stages) -> Result<String, Error> {
    let minting = Minting::start(Options {
        token_lifetime_s: LIVES_S,
        extra_config: format!("[limits]\noutstanding_per_agent = {OUTSTANDING}\n"),
        ..Options::default()
    })
    .await?;
    let seen = of(&minting).await;
    minting.stage.stop().await;
    seen
}

async fn of(minting: &Minting) -> Result<String, Error> {
    let desk = minting.desk()?;
    let full = (429, "temporarily_unavailable", "limit_exceeded");
    let mut kept = Vec::new();
    let mut refused = 0;
    for _ in 0..ASKED {
        let answer = desk.send(&desk.good(AGENT)).await?;
        if answer.status == 200 {
            kept.push(text_at(&answer.json(), "/access_token"));
            continue;
        }
        is_refused("one too many", &answer, full)?;
        holds(answer.header("retry-after").is_some(), "no Retry-After")?;
        refused += 1;
    }
    same("tokens", kept.len(), OUTSTANDING)?;
    // Others are not in its way, and what is used makes room for one.
    desk.token("another agent", &desk.good(CHILD)).await?;
    let last = kept.pop().unwrap_or_default();
    let answer = desk.stage.agent.present("GET", REPORT, &last).await?;
    answer.expect("one of them", 200)?;
    desk.token("one more", &desk.good(AGENT)).await?;
    desk.refused("and no other", &desk.good(AGENT), full)
        .await?;
    // Each has one line at most.
    let entries = desk.stage.entries()?;
    let lines = entries
        .iter()
        .filter(|it| text_at(it, "/body/reason") == "limit_exceeded")
        .count();
    holds(lines > 0 && lines <= refused + 1, format!("{lines} lines"))?;
    // They end by themselves, and are forgotten seconds later.
    tokio::time::sleep(Duration::from_secs(LIVES_S + FORGOTTEN_S)).await;
    // What the next entry forgets them by may still be refused itself.
    let next = desk.send(&desk.good(AGENT)).await?;
    let left = OUTSTANDING - usize::from(next.status == 200);
    for _ in 0..left {
        desk.token("after their end", &desk.good(AGENT)).await?;
    }
    desk.refused("and no more", &desk.good(AGENT), full).await?;
    desk.stage.verified()?;
    Ok(format!(
        "of {ASKED} tokens that were asked for and not used {OUTSTANDING} were there at once, {refused} refused in {lines} lines of the log; another agent was served; after {LIVES_S} s there is room again"
    ))
}
