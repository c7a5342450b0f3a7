//! The bounded queues in front of the lanes.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::{Notify, oneshot};

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
    stopping: bool,
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
        let (answer, receiver) = oneshot::channel();
        let mut inner = self.lock();
        if inner.stopping
            || inner.jobs.len() >= self.entries
            || inner.bytes.saturating_add(cost) > self.bytes
        {
            return None;
        }
        inner.bytes = inner.bytes.saturating_add(cost);
        inner.jobs.push_back(Job {
            question,
            answer,
            cost,
            since: Instant::now(),
        });
        drop(inner);
        self.filled.notify_one();
        Some(receiver)
    }

    /// Waits for work and takes at most `most` of it. `None` once closed and empty.
    pub(crate) async fn take(&self, most: usize) -> Option<Vec<Job<Q, A>>> {
        loop {
            let filled = self.filled.notified();
            {
                let mut inner = self.lock();
                if !inner.jobs.is_empty() {
                    let taken = Self::first(&mut inner, most);
                    let more = !inner.jobs.is_empty();
                    drop(inner);
                    if more {
                        self.filled.notify_one();
                    }
                    return Some(taken);
                }
                if inner.stopping {
                    // The next lane looks too.
                    self.filled.notify_one();
                    return None;
                }
            }
            filled.await;
        }
    }

    /// Takes what has waited for longer than that.
    pub(crate) fn take_late(&self, longest: Duration) -> Vec<Job<Q, A>> {
        let mut inner = self.lock();
        let late = inner
            .jobs
            .iter()
            .take_while(|job| job.since.elapsed() > longest)
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
