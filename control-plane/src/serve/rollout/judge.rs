//! What is wrong with what is tried, as far as it shows.

use super::{Step, Trial};
use crate::fleet::{Fleet, Requests, Tally};
use std::time::Duration;
use tokio::time::Instant;
use xds::{Kind, ProxyStatus};

/// A context that lives has a stream again before this; those that are missing for
/// longer in all have crashed.
const BACK_WITHIN: Duration = Duration::from_secs(5);
/// No more counts between two looks, however long ago the last was.
const LOOK_MAX: Duration = Duration::from_secs(1);
/// Times that one proxy may come anew within one trial; more is a crash of all of it.
const CAME_MAX: u64 = 2;
/// A filter opens its stream as soon as it runs; one that does not guards nothing.
const SILENT_MAX: Duration = Duration::from_secs(15);
/// So many refusals are looked at; fewer say nothing.
const REFUSALS_MIN: u64 = 20;
/// A smaller share of refusals, in percent, is no jump.
const JUMP_MIN: u64 = 20;

/// What a look at a trial says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Sight {
    /// Its time is not over, or somebody has not said a word yet.
    Wait,
    /// Its time is over and nothing was wrong.
    Well,
    /// What is wrong.
    Fault(String),
}

/// Looks at the connected proxies that a step is about, each with what its filters say
/// under the trial.
pub(super) fn look(
    trial: &mut Trial,
    proxies: &[(ProxyStatus, String)],
    fleet: &Fleet,
    window: Duration,
) -> Sight {
    if !trial.seen && proxies.is_empty() {
        // Until somebody runs it, nothing has been tried.
        trial.since = Instant::now();
        return Sight::Wait;
    }
    trial.seen = true;
    let (mut now, mut before) = (Tally::default(), Tally::default());
    let (mut silent, mut missing) = (None, 0_u64);
    for (proxy, name) in proxies {
        let (peer, node) = (proxy.peer.as_str(), proxy.node_id.as_str());
        let under_it = |module: &str| says(module, name);
        if let Some(error) = trial.refusals(proxy).pop() {
            return Sight::Fault(format!("{node} refused it: {error}"));
        }
        let own = fleet.tally(peer, node, under_it);
        if own.came > CAME_MAX {
            return Sight::Fault(format!("{node} came anew {} times", own.came));
        }
        if own.opened == 0 {
            silent = Some(node);
        } else {
            // As many as there were, also of those whose first request kills them
            // before they have said a word.
            let fewer = fleet.before(peer, node).saturating_sub(own.live);
            missing = missing.saturating_add(fewer);
        }
        now = now.and(own);
        before = before.and(fleet.tally(peer, node, |module| !under_it(module)));
    }
    let tried = trial.since.elapsed();
    let nobody = now.opened == 0 && tried >= window.min(SILENT_MAX);
    let late = tried >= window.saturating_add(SILENT_MAX);
    let fault = match silent {
        None if proxies.is_empty() => late.then(|| "all that tried it are gone".to_owned()),
        Some(node) if nobody || late => Some(format!(
            "no filter of it opened a stream at {node}: it guards nothing"
        )),
        _ => None,
    };
    let fault = fault.or_else(|| dead(trial, missing, late));
    // Under another config another route may observe: what that shows is no fault.
    let requests = |tally: Tally| match (tally.requests(), trial.config_too) {
        (requests, true) => requests,
        (requests, false) => Requests {
            refused: requests.refused.saturating_add(requests.observed),
            ..requests
        },
    };
    match fault.or_else(|| jumped(requests(now), requests(before), tried >= window)) {
        Some(fault) => Sight::Fault(fault),
        None if tried < window || silent.is_some() || proxies.is_empty() => Sight::Wait,
        None if !trial.missed.is_zero() => Sight::Wait,
        None => Sight::Well,
    }
}

/// Contexts that are gone, or come and go, while their proxies stay. `late`: it was
/// waited for them long enough.
fn dead(trial: &mut Trial, missing: u64, late: bool) -> Option<String> {
    let passed = trial.looked.elapsed().min(LOOK_MAX);
    trial.looked = Instant::now();
    trial.missed = match missing {
        0 => trial.missed.saturating_sub(passed),
        _ => trial.missed.saturating_add(passed),
    };
    let dead = trial.missed >= BACK_WITHIN || (late && !trial.missed.is_zero());
    dead.then(|| format!("filters of it crashed, and {missing} are missing"))
}

/// Whether the share of refusals has doubled, or that of what passes halved.
///
/// Anybody can be refused for bad signatures, as often as they like, so that counts
/// only where requests were allowed before and none was until the time is over: this
/// module knows nobody any more.
fn jumped(now: Requests, before: Requests, over: bool) -> Option<String> {
    let knows_nobody = over && now.allowed == 0 && before.allowed >= REFUSALS_MIN;
    let strangers = if knows_nobody { now.strangers } else { 0 };
    let refused = now.refused.saturating_add(strangers);
    let share = |refused: u64, allowed: u64| {
        let all = refused.saturating_add(allowed).max(1);
        refused.saturating_mul(100) / all
    };
    let now_is = share(refused, now.allowed);
    let was = share(before.refused, before.allowed);
    let doubled = now_is >= was.saturating_mul(2);
    let halved = now_is > was && (100 - now_is).saturating_mul(2) <= 100 - was;
    let jump = refused >= REFUSALS_MIN && now_is >= JUMP_MIN && (doubled || halved);
    jump.then(|| format!("refusals jumped from {was} % to {now_is} % of requests"))
}

/// Whether a filter that calls itself so has this name, beside its version.
pub(super) fn says(module: &str, name: &str) -> bool {
    module.rsplit_once('+').is_some_and(|(_, own)| own == name)
}

impl Trial {
    /// Why a proxy refused what is new in this, as far as it did not refuse the same
    /// before.
    fn refusals(&self, proxy: &ProxyStatus) -> Vec<String> {
        let refused = refused(proxy).into_iter();
        let own = refused.filter(|it| it.kind == Kind::Filter || self.config_too);
        own.filter(|it| !self.standing.contains(it))
            .map(|it| it.error)
            .collect()
    }
}

/// Something that a proxy refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    peer: String,
    node: String,
    kind: Kind,
    version: String,
    error: String,
}

/// What a proxy has refused, and refuses still.
pub(super) fn refused(proxy: &ProxyStatus) -> Vec<Refusal> {
    let refused = proxy.types.iter().filter_map(|it| {
        let nack = it.nack.as_ref()?;
        Some(Refusal {
            peer: proxy.peer.to_string(),
            node: proxy.node_id.clone(),
            kind: it.kind,
            version: nack.version.to_string(),
            error: nack.error.clone(),
        })
    });
    refused.collect()
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

    fn requests((allowed, refused, strangers): (u64, u64, u64)) -> Requests {
        Requests {
            allowed,
            refused,
            strangers,
            observed: 0,
        }
    }

    #[test]
    fn a_jump_is_more_than_twice_or_less_than_half() {
        let table = [
            // now, before (allowed, refused, strangers), whether that is a jump
            ((0, 19, 0), (100, 0, 0), false),
            ((0, 20, 0), (100, 0, 0), true),
            ((0, 20, 0), (0, 0, 0), true),
            ((81, 19, 0), (100, 0, 0), false),
            ((80, 20, 0), (90, 10, 0), true),
            ((80, 20, 0), (89, 11, 0), false),
            // A reader of junk all day long is no reason.
            ((0, 500, 0), (0, 500, 0), false),
            ((40, 60, 0), (40, 60, 0), false),
            // What half of all got before is now refused to all of them.
            ((0, 100, 0), (50, 50, 0), true),
            ((26, 74, 0), (50, 50, 0), false),
            ((24, 76, 0), (50, 50, 0), true),
            ((0, 100, 0), (1, 99, 0), true),
            // Nobody is known any more.
            ((0, 0, 20), (20, 0, 0), true),
            ((0, 0, 19), (20, 0, 0), false),
            ((0, 0, 99), (20, 0, 990), true),
            // Strangers alone take nothing back.
            ((1, 0, 9_999), (100, 0, 0), false),
            ((0, 0, 9_999), (19, 0, 0), false),
            ((1, 19, 9_999), (100, 0, 0), false),
        ];
        for (now, before, wanted) in table {
            let jump = jumped(requests(now), requests(before), true);
            assert_eq!(jump.is_some(), wanted, "{now:?} {before:?}");
        }
        // The first good request may be on its way.
        let soon = jumped(requests((0, 0, 20)), requests((20, 0, 0)), false);
        assert_eq!(soon, None);
    }
}
