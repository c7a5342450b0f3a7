//! When each agent was last seen: when it last authenticated, whatever came of it.
//!
//! A time in memory for each, so that a request costs no write for it. Once a minute what is
//! newer than what is kept by [`KEPT_WITHIN_MS`] goes to the ledger's store, beside the log
//! and off the way of decisions, and what other replicas kept there comes back. So a time is
//! never too late, and too early by [`KEPT_WITHIN_MS`] and a minute or two at most, where
//! another replica saw the agent or this process was killed.

use crate::state::Core;
use ledger::model::{Millis, Rights};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

/// How often times are looked through.
const EVERY: Duration = Duration::from_secs(60);
/// Until times that were kept before are here, and while they can't be: how often they are
/// asked for.
const SOON: Duration = Duration::from_secs(2);
/// A time that was kept is not kept again until it is so much newer, in ms.
pub const KEPT_WITHIN_MS: Millis = 5 * 60 * 1000;
/// What was written so long before the last look is asked for again: it may have
/// been under way then, and the store's clock is not quite ours.
const BACK: Duration = Duration::from_secs(120);
/// Agents without a record in the registry whose times are here: as many as are remembered
/// as discovered.
pub const STRANGERS_MAX: usize = 1_024;
/// Times that are kept at once.
const AT_ONCE: usize = 4_096;

/// What is known here of one agent.
#[derive(Default)]
struct Times {
    last_ms: AtomicU64,
    kept_ms: AtomicU64,
}

/// When agents were last seen.
#[derive(Default)]
pub struct Seen {
    agents: RwLock<HashMap<String, Times>>,
}

impl Seen {
    /// An agent has authenticated.
    pub fn saw(&self, agent: &str, now_ms: Millis, rights: impl FnOnce() -> Arc<Rights>) {
        let agents = self.agents.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = agents.get(agent) {
            known.last_ms.fetch_max(now_ms, Ordering::Relaxed);
            return;
        }
        // A registered one always has its place: of others there are no more than this.
        let rights = rights();
        let most = rights.agents.len().saturating_add(STRANGERS_MAX);
        let is_known = rights.agent(agent).is_some();
        // Who gets none makes nobody wait.
        if agents.len() >= most && !is_known {
            return;
        }
        drop(agents);
        let mut agents = self.agents.write().unwrap_or_else(PoisonError::into_inner);
        if agents.len() < most || is_known {
            let times = agents.entry(agent.to_owned()).or_default();
            times.last_ms.fetch_max(now_ms, Ordering::Relaxed);
        }
    }

    /// When an agent was last seen, as far as it is known here.
    #[must_use]
    pub fn last(&self, agent: &str) -> Option<Millis> {
        let agents = self.agents.read().unwrap_or_else(PoisonError::into_inner);
        let last = agents.get(agent)?.last_ms.load(Ordering::Relaxed);
        Some(last).filter(|last| *last > 0)
    }

    /// The times of registered agents that are newer by `behind_ms` than what is kept.
    fn due(&self, rights: &Rights, behind_ms: Millis) -> Vec<(String, Millis)> {
        let agents = self.agents.read().unwrap_or_else(PoisonError::into_inner);
        let due = |(agent, times): (&String, &Times)| {
            let last = times.last_ms.load(Ordering::Relaxed);
            let kept = times.kept_ms.load(Ordering::Relaxed);
            let newer = last > kept && last.saturating_sub(kept) >= behind_ms;
            (newer && rights.agent(agent).is_some()).then(|| (agent.clone(), last))
        };
        agents.iter().filter_map(due).collect()
    }

    /// What is in the store.
    fn kept(&self, times: &[(String, Millis)]) {
        let mut agents = self.agents.write().unwrap_or_else(PoisonError::into_inner);
        for (agent, at) in times {
            let known = agents.entry(agent.clone()).or_default();
            known.last_ms.fetch_max(*at, Ordering::Relaxed);
            known.kept_ms.fetch_max(*at, Ordering::Relaxed);
        }
    }
}

/// Keeps what is due by `behind_ms`, and learns what was kept in the last `within_ms`.
async fn trade(core: &Core, behind_ms: Millis, within_ms: Millis) -> Result<(), ()> {
    let due = core.seen.due(&core.ledger.rights(), behind_ms);
    let mut parts: Vec<&[(String, Millis)]> = due.chunks(AT_ONCE).collect();
    // Others' are asked for with the last part, and where there is none.
    let last = parts.pop().unwrap_or_default();
    for part in parts {
        let traded = core.ledger.trade_seen(part.to_vec(), 0).await;
        traded.map_err(|_| ())?;
        core.seen.kept(part);
    }
    let others = core.ledger.trade_seen(last.to_vec(), within_ms).await;
    let others = others.map_err(|_| ())?;
    core.seen.kept(last);
    core.seen.kept(&others);
    Ok(())
}

/// Trades times each minute, until the task is dropped.
pub async fn keep(core: Arc<Core>) {
    let mut looked: Option<Instant> = None;
    loop {
        let begun = Instant::now();
        // Without what was kept before, an agent could seem never to have been there.
        let within = looked.map_or(Millis::MAX, |looked| {
            let within = looked.elapsed().saturating_add(BACK).as_millis();
            Millis::try_from(within).unwrap_or(Millis::MAX)
        });
        let traded = trade(&core, KEPT_WITHIN_MS, within).await;
        if traded.is_ok() {
            looked = Some(begun);
        } else {
            tracing::debug!("when agents were last seen can't be kept yet");
        }
        let rest = if traded.is_ok() { EVERY } else { SOON };
        tokio::time::sleep(rest).await;
    }
}

/// Keeps all that is newer than what is kept: the process ends in good order.
pub async fn keep_all(core: &Core) {
    if trade(core, 1, 0).await.is_err() {
        tracing::warn!("when agents were last seen is kept up to some minutes ago only");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ledger::model::{AgentRecord, AgentState};

    fn rights(names: &[&str]) -> Arc<Rights> {
        let mut rights = Rights::default();
        for name in names {
            let record = AgentRecord {
                agent: (*name).to_owned(),
                owner: "o".into(),
                purpose: String::new(),
                environment: String::new(),
                state: AgentState::Active,
                created_ms: 1,
                changed_ms: 1,
                changed_by: "a".into(),
                why: String::new(),
                expires_ms: None,
                void_ms: 0,
            };
            rights.agents.insert((*name).to_owned(), Arc::new(record));
        }
        Arc::new(rights)
    }

    #[test]
    fn a_time_never_goes_back_and_is_kept_when_it_is_due() {
        let seen = Seen::default();
        let known = rights(&["a", "b"]);
        let saw = |agent: &str, at| seen.saw(agent, at, || known.clone());
        assert_eq!(seen.last("a"), None);
        saw("a", 1_000_000);
        saw("a", 999_000);
        assert_eq!(seen.last("a"), Some(1_000_000));
        let due = |behind| seen.due(&known, behind);
        assert_eq!(due(KEPT_WITHIN_MS), [("a".to_owned(), 1_000_000)]);
        seen.kept(&due(KEPT_WITHIN_MS));
        saw("a", 1_000_000 + KEPT_WITHIN_MS - 1);
        assert_eq!(due(KEPT_WITHIN_MS), [], "not again so soon");
        assert_eq!(due(1).len(), 1, "but at the end");
        // Another replica saw both, one of them before we did.
        seen.kept(&[("a".into(), 2_000), ("b".into(), 5_000)]);
        let last = Some(1_000_000 + KEPT_WITHIN_MS - 1);
        assert_eq!((seen.last("a"), seen.last("b")), (last, Some(5_000)));
        assert_eq!(due(1).len(), 1, "what others kept is not kept again");
    }

    #[test]
    fn strangers_have_few_places_and_are_not_kept() {
        let seen = Seen::default();
        let known = rights(&["a"]);
        for n in 0..STRANGERS_MAX + 10 {
            seen.saw(&format!("s{n}"), 7, || known.clone());
        }
        seen.saw("a", 8, || known.clone());
        let all = seen.agents.read().unwrap().len();
        assert!(all <= STRANGERS_MAX + 2, "{all}");
        assert_eq!(seen.last("a"), Some(8), "a registered one has its own");
        assert_eq!(seen.due(&known, 1), [("a".to_owned(), 8)]);
    }

    #[test]
    fn a_stranger_without_a_place_makes_nobody_wait() {
        let seen = Arc::new(Seen::default());
        let known = rights(&[]);
        for n in 0..STRANGERS_MAX {
            seen.saw(&format!("s{n}"), 7, || known.clone());
        }
        // While somebody reads, who would write has to wait.
        let reading = seen.agents.read().unwrap();
        let (done, waited) = std::sync::mpsc::channel();
        let other = Arc::clone(&seen);
        let thread = std::thread::spawn(move || {
            other.saw("late", 9, || known.clone());
            done.send(()).unwrap();
        });
        waited.recv_timeout(Duration::from_secs(10)).unwrap();
        drop(reading);
        thread.join().unwrap();
        assert_eq!(seen.last("late"), None);
    }
}
