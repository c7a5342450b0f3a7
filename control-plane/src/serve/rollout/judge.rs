//! What is wrong with a module that is tried, as far as it shows.

use super::{Step, Trial};
use crate::fleet::{Fleet, Tally};
use std::time::Duration;
use tokio::time::Instant;
use xds::{Kind, ProxyStatus};

/// A context that lost its stream and lives has another one by then.
const BACK_WITHIN: Duration = Duration::from_secs(5);
/// Times that one proxy may come anew within one step; more is a crash of all of it.
const CAME_MAX: u64 = 2;
/// A filter opens its stream as soon as it runs; one that does not guards nothing.
const SILENT_MAX: Duration = Duration::from_secs(15);
/// So many refusals are looked at; fewer say nothing.
const REFUSALS_MIN: u64 = 20;
/// A smaller share of refusals, in percent, is no jump.
const JUMP_MIN: u64 = 20;

/// Looks at the connected proxies that a step is about.
pub(super) fn fault(
    trial: &mut Trial,
    proxies: &[ProxyStatus],
    fleet: &Fleet,
    window: Duration,
) -> Option<String> {
    let under_it = |module: &str| trial.is_named(module);
    let (mut now, mut before) = (Tally::default(), Tally::default());
    for proxy in proxies {
        let (peer, node) = (proxy.peer.as_str(), proxy.node_id.as_str());
        let mut filters = proxy.types.iter().filter(|it| it.kind == Kind::Filter);
        if let Some(nack) = filters.find_map(|it| it.nack.as_ref()) {
            return Some(format!("{node} refused it: {}", nack.error));
        }
        let own = fleet.tally(peer, node, under_it);
        if own.came > CAME_MAX {
            return Some(format!("{node} came anew {} times", own.came));
        }
        now = now.and(own);
        before = before.and(fleet.tally(peer, node, |module| !under_it(module)));
    }
    let tried = trial.since.elapsed();
    if !proxies.is_empty() && now.opened == 0 && tried >= window.min(SILENT_MAX) {
        return Some("no filter of it opened a stream: it guards nothing".to_owned());
    }
    dead(trial, now.lost).or_else(|| jumped(now, before))
}

/// Contexts that ended while their proxies stayed, and that did not come back.
fn dead(trial: &mut Trial, lost: u64) -> Option<String> {
    let pushed = trial.pushed_again;
    if pushed.is_some_and(|at| at.elapsed() < BACK_WITHIN) {
        // Other keys have just replaced all contexts.
        trial.lost_by_us = lost;
    }
    let dead = lost.saturating_sub(trial.lost_by_us);
    if dead == 0 {
        trial.lost_since = None;
        return None;
    }
    let since = *trial.lost_since.get_or_insert_with(Instant::now);
    (since.elapsed() >= BACK_WITHIN).then(|| format!("{dead} of its filters crashed"))
}

/// Whether the share of refusals has doubled, or that of what passes halved.
fn jumped(now: Tally, before: Tally) -> Option<String> {
    let (now_is, was) = (now.refused_percent(), before.refused_percent());
    let doubled = now_is >= was.saturating_mul(2);
    let halved = now_is > was && (100 - now_is).saturating_mul(2) <= 100 - was;
    let jump = now.refused >= REFUSALS_MIN && now_is >= JUMP_MIN && (doubled || halved);
    jump.then(|| format!("refusals jumped from {was} % to {now_is} % of requests"))
}

impl Step {
    /// The word of a step in the journal and in metrics.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::First => "try",
            Self::All => "all",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jump_is_more_than_twice_or_less_than_half() {
        let tally = |allowed, refused| Tally {
            allowed,
            refused,
            ..Tally::default()
        };
        let table = [
            // now, before, whether that is a jump
            ((0, 19), (100, 0), false),
            ((0, 20), (100, 0), true),
            ((0, 20), (0, 0), true),
            ((81, 19), (100, 0), false),
            ((80, 20), (90, 10), true),
            ((80, 20), (89, 11), false),
            // A reader of junk all day long is no reason.
            ((0, 500), (0, 500), false),
            ((40, 60), (40, 60), false),
            // What half of all got before is now refused to all of them.
            ((0, 100), (50, 50), true),
            ((26, 74), (50, 50), false),
            ((24, 76), (50, 50), true),
            ((0, 100), (1, 99), true),
        ];
        for (now, before, wanted) in table {
            let (now, before) = (tally(now.0, now.1), tally(before.0, before.1));
            assert_eq!(jumped(now, before).is_some(), wanted, "{now:?} {before:?}");
        }
    }
}
