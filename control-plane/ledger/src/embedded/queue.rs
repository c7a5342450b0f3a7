//! The bounded queue in front of the ledger's thread.

use std::{
    collections::VecDeque,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use crate::{
    embedded::answers::Answer,
    model::{Command, Committed, Evidence, Refused},
};

/// A command with the place where its caller waits.
pub(crate) struct Job {
    pub(crate) command: Box<Command>,
    pub(crate) answer: Answer,
    /// From then on its caller has given up.
    pub(crate) until: Instant,
}

/// Where a caller waits.
pub(crate) type Waited = oneshot::Receiver<Result<Committed, Refused>>;

#[derive(Default)]
struct Inner {
    jobs: VecDeque<(usize, Job)>,
    bytes: usize,
    stopping: bool,
    woken: bool,
}

/// Places that are left to what takes rights away when all others are taken: of
/// entries, and of bytes, one in so many.
const LEFT_PART: usize = 16;

/// Bounded by entries and bytes; what does not fit is refused, never waited for.
pub(crate) struct Queue {
    inner: Mutex<Inner>,
    filled: Condvar,
    entries: usize,
    bytes: usize,
}

impl Queue {
    pub(crate) fn new(entries: usize, bytes: usize) -> Self {
        Self {
            inner: Mutex::default(),
            filled: Condvar::new(),
            entries,
            bytes,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // No code that can panic runs under this lock.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a command.
    ///
    /// # Errors
    /// [`Refused::Unavailable`] when the queue is full or closed.
    pub(crate) fn push(&self, command: Command, until: Instant) -> Result<Waited, Refused> {
        let all = self.push_all(vec![command], until)?;
        all.into_iter().next().ok_or(Refused::Unavailable)
    }

    /// Queues commands one after the other, with nothing between them.
    ///
    /// # Errors
    /// [`Refused::Unavailable`] when the queue has no room for all of them, or is closed.
    pub(crate) fn push_all(
        &self,
        commands: Vec<Command>,
        until: Instant,
    ) -> Result<Vec<Waited>, Refused> {
        let away = commands.iter().all(takes_away);
        let most = |all: usize| match away {
            true => all,
            false => all.saturating_sub(all / LEFT_PART),
        };
        let (entries, bytes) = (most(self.entries), most(self.bytes));
        let mut sum = 0_usize;
        let mut jobs = Vec::with_capacity(commands.len());
        let mut waited = Vec::with_capacity(commands.len());
        for command in commands {
            let cost = cost(&command);
            sum = sum.saturating_add(cost);
            let (answer, receiver) = oneshot::channel();
            let job = Job {
                command: Box::new(command),
                answer,
                until,
            };
            jobs.push((cost, job));
            waited.push(receiver);
        }
        let mut inner = self.lock();
        if inner.stopping
            || inner.jobs.len().saturating_add(jobs.len()) > entries
            || inner.bytes.saturating_add(sum) > bytes
        {
            return Err(Refused::Unavailable);
        }
        inner.bytes = inner.bytes.saturating_add(sum);
        inner.jobs.extend(jobs);
        drop(inner);
        self.filled.notify_one();
        Ok(waited)
    }

    /// Waits for work and takes at most `most` of it: none when it was woken only, or
    /// none came within `patience`. `None` once closed and empty.
    pub(crate) fn take(&self, most: usize, patience: Option<Duration>) -> Option<Vec<Job>> {
        let mut inner = self.lock();
        while inner.jobs.is_empty() && !std::mem::take(&mut inner.woken) {
            if inner.stopping {
                return None;
            }
            let Some(patience) = patience else {
                inner = self
                    .filled
                    .wait(inner)
                    .unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let waited = self.filled.wait_timeout(inner, patience);
            let (after, over) = waited.unwrap_or_else(PoisonError::into_inner);
            inner = after;
            if over.timed_out() {
                break;
            }
        }
        let count = inner.jobs.len().min(most);
        let mut taken = Vec::with_capacity(count);
        for (cost, job) in inner.jobs.drain(..count) {
            taken.push((cost, job));
        }
        inner.bytes = inner
            .bytes
            .saturating_sub(taken.iter().map(|(cost, _)| cost).sum());
        Some(taken.into_iter().map(|(_, job)| job).collect())
    }

    /// Ends the wait for work, if there is none.
    pub(crate) fn wake(&self) {
        self.lock().woken = true;
        self.filled.notify_one();
    }

    /// Takes nothing more; what is queued is still done.
    pub(crate) fn close(&self) {
        self.lock().stopping = true;
        self.filled.notify_all();
    }

    /// Closes and drops what is queued, so that its callers learn that nothing was written.
    pub(crate) fn abandon(&self) {
        self.close();
        for (_, job) in self.lock().jobs.drain(..) {
            let _ = job.answer.send(Err(Refused::Unavailable));
        }
    }
}

/// What takes rights away. Each is one of few: of outcomes and notes there can be
/// as many as there are requests, and they would take the places first.
fn takes_away(command: &Command) -> bool {
    matches!(
        command,
        Command::Lapse { .. }
            | Command::LapseOverdue { .. }
            | Command::DecideApproval { approve: false, .. }
            | Command::ExpireApprovals
    )
}

/// Roughly what a command takes in memory: a line, and what stands beside it.
pub(crate) fn cost(command: &Command) -> usize {
    let evidence = |list: &[Evidence]| list.iter().map(|e| e.salted().len()).sum::<usize>();
    let (strings, beside) = match command {
        Command::Issue {
            token, attachments, ..
        } => (token.action.len(), evidence(attachments)),
        Command::Allow {
            request,
            attachments,
            ..
        }
        | Command::Deny {
            request,
            attachments,
            ..
        } => (request.path.len(), evidence(attachments)),
        Command::Hold {
            request,
            approval,
            attachments,
            ..
        } => (
            request.path.len().saturating_add(approval.action.len()),
            evidence(attachments),
        ),
        Command::Ask {
            approval,
            attachments,
            ..
        } => (approval.action.len(), evidence(attachments)),
        Command::ExchangeRefused { action, .. } => (action.as_ref().map_or(0, |a| a.len()), 0),
        _ => (0, 0),
    };
    audit::MAX_LINE
        .saturating_add(strings)
        .saturating_add(beside)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_still_takes_what_takes_rights_away() {
        let queue = Queue::new(32, usize::MAX);
        let until = Instant::now() + Duration::from_secs(60);
        let mut waiting = Vec::new();
        let plain = |n: usize| Command::Discover {
            agent: format!("spiffe://writ.example/agent/{n}"),
        };
        for n in 0..30 {
            waiting.push(queue.push(plain(n), until).unwrap());
        }
        assert_eq!(
            queue.push(plain(30), until).unwrap_err(),
            Refused::Unavailable
        );
        let outcome = Command::Outcome {
            attempt: "a".into(),
            status: 200,
            not_forwarded: false,
            response_bytes: 0,
            details: String::new(),
        };
        let note = Command::Note {
            kind: "gap",
            body: serde_json::json!({}),
        };
        for many in [outcome, note] {
            assert_eq!(queue.push(many, until).unwrap_err(), Refused::Unavailable);
        }
        let revoke = || Command::DecideApproval {
            id: "apr".into(),
            digest: [1; 32],
            approve: false,
            by: "a person".into(),
            usable_ms: 0,
        };
        for _ in 0..2 {
            waiting.push(queue.push(revoke(), until).unwrap());
        }
        assert_eq!(
            queue.push(revoke(), until).unwrap_err(),
            Refused::Unavailable,
            "it is bounded for all"
        );
        assert_eq!(queue.take(100, None).unwrap().len(), 32);
        assert!(queue.push(plain(31), until).is_ok());
    }
}
