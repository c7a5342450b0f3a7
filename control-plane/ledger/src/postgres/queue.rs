//! The bounded queues in front of the lanes.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::{Notify, oneshot};

use super::outside::{Instant, elapsed, now, timeout};

/// When so many batches are under way, the next one waits until it is worth it: a
/// batch costs the server as much as dozens of the commands in it.
const CROWD: usize = 4;
/// What is worth it at once.
const WORTH: usize = 64;
/// How long a command waits for that: those under way may hang.
const PATIENCE: Duration = Duration::from_millis(5);

/// Something to do, with the place where its caller waits.
pub(crate) struct Job<Q, A> {
    pub(crate) question: Q,
    pub(crate) answer: oneshot::Sender<A>,
    cost: usize,
    since: Instant,
}

struct Inner<Q, A> {
    jobs: VecDeque<Job<Q, A>>,
    bytes: usize,
    /// Batches that were taken and are not done.
    busy: usize,
    stopping: bool,
}

/// What was taken together; done when it is dropped.
pub(crate) struct Taken<'a, Q, A> {
    pub(crate) jobs: Vec<Job<Q, A>>,
    queue: &'a Queue<Q, A>,
}

impl<Q, A> Drop for Taken<'_, Q, A> {
    fn drop(&mut self) {
        let mut inner = self.queue.lock();
        inner.busy = inner.busy.saturating_sub(1);
        drop(inner);
        self.queue.filled.notify_one();
    }
}

impl<Q, A> Inner<Q, A> {
    /// How long the first in the queue has to wait for others; `None`: not at all.
    fn waits(&self) -> Option<Duration> {
        let first = self.jobs.front()?;
        let crowded = self.busy >= CROWD && self.jobs.len() < WORTH && !self.stopping;
        PATIENCE
            .checked_sub(elapsed(first.since))
            .filter(|left| crowded && !left.is_zero())
    }
}

/// Bounded by entries, bytes and time; what does not fit is refused, never waited for.
pub(crate) struct Queue<Q, A> {
    inner: Mutex<Inner<Q, A>>,
    filled: Notify,
    entries: usize,
    bytes: usize,
}

impl<Q, A> Queue<Q, A> {
    pub(crate) fn new(entries: usize, bytes: usize) -> Self {
        Self {
            inner: Mutex::new(Inner {
                jobs: VecDeque::new(),
                bytes: 0,
                busy: 0,
                stopping: false,
            }),
            filled: Notify::new(),
            entries,
            bytes,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner<Q, A>> {
        // No code that can panic runs under this lock.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `None` when the queue is full or closed.
    pub(crate) fn push(&self, question: Q, cost: usize) -> Option<oneshot::Receiver<A>> {
        self.push_all(vec![(question, cost)])?.pop()
    }

    /// Queues questions, each with its cost, with nothing between them. `None` when there
    /// is no room for all of them, or the queue is closed.
    pub(crate) fn push_all(&self, questions: Vec<(Q, usize)>) -> Option<Vec<oneshot::Receiver<A>>> {
        let sum = questions.iter().map(|(_, cost)| cost);
        let sum = sum.fold(0_usize, |sum, cost| sum.saturating_add(*cost));
        let count = questions.len();
        let mut inner = self.lock();
        if inner.stopping
            || inner.jobs.len().saturating_add(count) > self.entries
            || inner.bytes.saturating_add(sum) > self.bytes
        {
            return None;
        }
        inner.bytes = inner.bytes.saturating_add(sum);
        let since = now();
        let mut waited = Vec::with_capacity(count);
        for (question, cost) in questions {
            let (answer, receiver) = oneshot::channel();
            waited.push(receiver);
            inner.jobs.push_back(Job {
                question,
                answer,
                cost,
                since,
            });
        }
        // Somebody waits with the first one; who comes while it waits wakes nobody.
        let wakes = inner.jobs.len() == count || inner.waits().is_none();
        drop(inner);
        if wakes {
            self.filled.notify_one();
        }
        Some(waited)
    }

    /// Waits for work and takes at most `most` of it. `None` once closed and empty.
    pub(crate) async fn take(&self, most: usize) -> Option<Taken<'_, Q, A>> {
        loop {
            let filled = self.filled.notified();
            let waits = {
                let mut inner = self.lock();
                let waits = inner.waits();
                if !inner.jobs.is_empty() && waits.is_none() {
                    inner.busy = inner.busy.saturating_add(1);
                    let jobs = Self::first(&mut inner, most);
                    let more = !inner.jobs.is_empty();
                    drop(inner);
                    if more {
                        self.filled.notify_one();
                    }
                    return Some(Taken { jobs, queue: self });
                }
                if inner.stopping && inner.jobs.is_empty() {
                    // The next lane looks too.
                    self.filled.notify_one();
                    return None;
                }
                waits
            };
            match waits {
                // Either way it looks again.
                Some(waits) => {
                    let _ = timeout(waits, filled).await;
                }
                None => filled.await,
            }
        }
    }

    /// Takes what has waited for longer than that.
    pub(crate) fn take_late(&self, longest: Duration) -> Vec<Job<Q, A>> {
        let mut inner = self.lock();
        let late = inner
            .jobs
            .iter()
            .take_while(|job| elapsed(job.since) > longest)
            .count();
        Self::first(&mut inner, late)
    }

    fn first(inner: &mut Inner<Q, A>, most: usize) -> Vec<Job<Q, A>> {
        let count = inner.jobs.len().min(most);
        let taken: Vec<_> = inner.jobs.drain(..count).collect();
        let bytes = taken.iter().map(|job| job.cost).sum();
        inner.bytes = inner.bytes.saturating_sub(bytes);
        taken
    }

    /// Takes nothing more; what is queued is still done.
    pub(crate) fn close(&self) {
        self.lock().stopping = true;
        self.filled.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn taken(queue: &Queue<u32, ()>) -> Taken<'_, u32, ()> {
        let taken = timeout(Duration::from_secs(10), queue.take(256)).await;
        taken.unwrap().unwrap()
    }

    #[tokio::test]
    async fn in_a_crowd_a_batch_waits_until_it_is_worth_it_but_not_for_long() {
        let queue = Queue::new(1_000, 1_000_000);
        let mut answers = Vec::new();
        let mut push = |n: u32| answers.push(queue.push(n, 1).unwrap());
        let mut crowd = Vec::new();
        for n in 0..4 {
            push(n);
            crowd.push(taken(&queue).await);
        }
        push(4);
        let begun = Instant::now();
        crowd.push(taken(&queue).await);
        assert!(begun.elapsed() >= PATIENCE / 2, "it waits for others");
        (0..64).for_each(&mut push);
        let all = taken(&queue).await;
        assert_eq!(all.jobs.len(), WORTH, "enough is taken at once");
        // Whoever is done makes room.
        crowd.push(all);
        push(5);
        crowd.truncate(3);
        assert!(queue.lock().waits().is_none());
        assert_eq!(taken(&queue).await.jobs.len(), 1);
        let more = async { queue.push(6, 1) };
        let (last, _more) = tokio::join!(taken(&queue), more);
        assert_eq!(last.jobs.len(), 1, "who waits is woken");
        queue.close();
        assert!(queue.take(1).await.is_none());
    }
}
