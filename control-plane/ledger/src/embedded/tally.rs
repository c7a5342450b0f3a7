//! Counting by agent.

use crate::embedded::state::ByAgent;

/// How many of something each agent has; those without are not in it.
#[derive(Clone, Default)]
#[cfg_attr(test, derive(Debug, PartialEq))]
pub(crate) struct Tally(ByAgent<usize>);

impl Tally {
    pub(crate) fn of(&self, agent: &str) -> usize {
        self.0.get(agent).copied().unwrap_or_default()
    }

    pub(crate) fn set(&mut self, agent: &str, count: usize) {
        self.0.insert(agent.to_owned(), count);
    }

    pub(crate) fn add(&mut self, agent: &str) {
        if let Some(count) = self.0.get_mut(agent) {
            *count += 1;
        } else {
            self.0.insert(agent.to_owned(), 1);
        }
    }

    /// So many are not one's any more, where they were anybody's, but another's.
    pub(crate) fn shift(&mut self, from: Option<&str>, to: &str, count: usize) {
        if count == 0 {
            return;
        }
        if let Some(from) = from {
            let left = self.of(from).saturating_sub(count);
            if left == 0 {
                self.0.remove(from);
            } else {
                self.set(from, left);
            }
        }
        let sum = self.of(to).saturating_add(count);
        self.set(to, sum);
    }

    pub(crate) fn remove(&mut self, agent: &str) {
        if let Some(count) = self.0.get_mut(agent) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.0.remove(agent);
            }
        }
    }
}
