//! How many actions a second an agent, and all agents of one owner, may ask tokens for.
//!
//! A bucket of tokens each, which time fills again. It is this replica's own: with several
//! each has as much.

use super::ExchangeError;
use std::collections::HashMap;
use std::sync::Mutex;

/// So many seconds' worth may come at once.
const BURST_S: u64 = 5;
/// Buckets at a time, of agents and of owners each: as many as there are agents.
const BUCKETS_MAX: usize = 262_144;
/// So few are never looked through.
const SWEEP_MIN: usize = 1_024;
/// Actions are counted in thousandths.
const ONE: u64 = 1_000;

/// What a second brings, and who has how much left.
pub(super) struct Rates {
    per_agent: u64,
    per_owner: u64,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    agents: Buckets,
    owners: Buckets,
}

/// Those that are not full. One that is full again is as one that nobody has asked of.
#[derive(Default)]
struct Buckets {
    by_name: HashMap<String, Bucket>,
    /// There is none that is full, as far as was looked, before this many are there.
    sweep_at: usize,
}

#[derive(Clone, Copy)]
struct Bucket {
    /// Thousandths of an action.
    left: u64,
    at_ms: u64,
}

fn burst(per_second: u64) -> u64 {
    per_second.saturating_mul(BURST_S).saturating_mul(ONE)
}

impl Bucket {
    /// As it is now: a thousandth for each action a second and millisecond.
    fn filled(self, per_second: u64, now_ms: u64) -> Self {
        let passed = now_ms.saturating_sub(self.at_ms);
        let more = passed.saturating_mul(per_second);
        Self {
            left: self.left.saturating_add(more).min(burst(per_second)),
            at_ms: now_ms.max(self.at_ms),
        }
    }
}

impl Buckets {
    fn now(&self, name: &str, per_second: u64, now_ms: u64) -> Bucket {
        let full = Bucket {
            left: burst(per_second),
            at_ms: now_ms,
        };
        let known = self.by_name.get(name);
        known.map_or(full, |it| it.filled(per_second, now_ms))
    }

    /// Whether there is room for one more, or it is there already.
    fn has_room_for(&mut self, name: &str, per_second: u64, now_ms: u64) -> bool {
        // Looked through only when there are twice as many as there were after the last
        // time, so that it costs little for each.
        if self.by_name.len() >= self.sweep_at.clamp(SWEEP_MIN, BUCKETS_MAX) {
            let full = burst(per_second);
            self.by_name
                .retain(|_, it| it.filled(per_second, now_ms).left < full);
            self.sweep_at = self.by_name.len().saturating_mul(2);
        }
        self.by_name.len() < BUCKETS_MAX || self.by_name.contains_key(name)
    }

    fn put(&mut self, name: &str, bucket: Bucket) {
        match self.by_name.get_mut(name) {
            Some(known) => *known = bucket,
            None => {
                self.by_name.insert(name.to_owned(), bucket);
            }
        }
    }
}

impl Rates {
    /// So many actions a second of one agent, and of all of one owner's.
    pub(super) fn new(per_agent: u64, per_owner: u64) -> Self {
        Self {
            per_agent,
            per_owner,
            seen: Mutex::default(),
        }
    }

    /// Takes one action of the agent's, and of its owner's where it has one; neither, where
    /// one of them has none left.
    ///
    /// # Errors
    /// [`ExchangeError::Limit`], and [`ExchangeError::Unavailable`] where there are too many
    /// buckets.
    pub(super) fn take(
        &self,
        agent: &str,
        owner: Option<&str>,
        now_ms: u64,
    ) -> Result<(), ExchangeError> {
        let mut seen = self.seen.lock().map_err(|_| ExchangeError::Internal)?;
        let of_agent = seen.agents.now(agent, self.per_agent, now_ms);
        let of_owner = owner.map(|owner| (owner, seen.owners.now(owner, self.per_owner, now_ms)));
        let Some(left) = of_agent.left.checked_sub(ONE) else {
            return Err(ExchangeError::Limit("exchanges of one agent a second"));
        };
        let room = seen.agents.has_room_for(agent, self.per_agent, now_ms)
            && owner.is_none_or(|it| seen.owners.has_room_for(it, self.per_owner, now_ms));
        if !room {
            return Err(ExchangeError::Unavailable);
        }
        if let Some((owner, bucket)) = of_owner {
            let Some(left) = bucket.left.checked_sub(ONE) else {
                return Err(ExchangeError::Limit(
                    "exchanges of one owner's agents a second",
                ));
            };
            let bucket = Bucket { left, ..bucket };
            seen.owners.put(owner, bucket);
        }
        let bucket = Bucket { left, ..of_agent };
        seen.agents.put(agent, bucket);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(rates: &Rates, agent: &str, owner: Option<&str>, now_ms: u64) -> usize {
        let all = (0..100).take_while(|_| rates.take(agent, owner, now_ms).is_ok());
        all.count()
    }

    #[test]
    fn five_seconds_worth_at_once_and_then_as_time_passes() {
        let rates = Rates::new(2, 1_000);
        assert_eq!(taken(&rates, "a", None, 1_000), 10);
        assert_eq!(
            rates.take("a", None, 1_000),
            Err(ExchangeError::Limit("exchanges of one agent a second"))
        );
        assert_eq!(taken(&rates, "a", None, 1_499), 0, "not yet one");
        assert_eq!(taken(&rates, "a", None, 1_500), 1);
        assert_eq!(taken(&rates, "a", None, 3_000), 3);
        assert_eq!(
            taken(&rates, "a", None, 2_000),
            0,
            "a clock that goes back gives nothing"
        );
        assert_eq!(taken(&rates, "a", None, 900_000), 10, "and never more");
        assert_eq!(taken(&rates, "b", None, 1_000), 10, "another has its own");
    }

    #[test]
    fn an_owner_has_a_share_for_all_its_agents() {
        let rates = Rates::new(2, 3);
        let owner = Some("o");
        assert_eq!(taken(&rates, "a", owner, 0), 10);
        assert_eq!(taken(&rates, "b", owner, 0), 5);
        assert_eq!(
            rates.take("b", owner, 0),
            Err(ExchangeError::Limit(
                "exchanges of one owner's agents a second"
            ))
        );
        assert_eq!(taken(&rates, "c", Some("p"), 0), 10);
        // What the owner had none left for has not cost the agent anything.
        assert_eq!(taken(&rates, "b", None, 0), 5);
    }

    #[test]
    fn what_is_full_again_is_forgotten() {
        let rates = Rates::new(1, 1);
        for at in 0..2_000 {
            rates
                .take(&format!("a{at}"), Some(&format!("o{at}")), 0)
                .unwrap();
        }
        let known = |rates: &Rates| {
            let seen = rates.seen.lock().unwrap();
            (seen.agents.by_name.len(), seen.owners.by_name.len())
        };
        assert_eq!(known(&rates), (2_000, 2_000));
        for at in 0..2_000 {
            rates
                .take(&format!("b{at}"), Some(&format!("p{at}")), 60_000)
                .unwrap();
        }
        let (agents, owners) = known(&rates);
        assert!(agents <= 2_049 && owners <= 2_049, "{agents} {owners}");
    }
}
