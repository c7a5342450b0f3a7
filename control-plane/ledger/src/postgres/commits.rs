//! What callers ask to be committed: queued, and answered.

use std::sync::atomic::Ordering;

use super::{
    CATCH_UP, Postgres,
    batch::{is_serial, is_storable},
    outside,
};
use crate::{
    embedded::queue::cost,
    model::{Command, Committed, Refused},
};

impl Postgres {
    pub(crate) async fn commit(&self, command: Command) -> Result<Committed, Refused> {
        if !is_storable(&command) {
            return Err(Refused::TooLarge);
        }
        let inner = self.inner();
        let queue = if is_serial(&command) {
            &inner.serial
        } else {
            &inner.spends
        };
        let cost = cost(&command);
        let answer = queue.push(command, cost).ok_or(Refused::Unavailable)?;
        // Gone without an answer: it may have been committed.
        let answer = answer.await.unwrap_or(Err(Refused::Unknown));
        if let Err(Refused::ApprovalState(_) | Refused::ApprovalDigest) = &answer {
            self.catch_up().await;
        }
        answer
    }

    /// As [`crate::Ledger::commit_all`].
    pub(crate) async fn commit_all(
        &self,
        commands: Vec<Command>,
    ) -> Vec<Result<Committed, Refused>> {
        // What goes by the other lane, or is too large, is no batch's.
        if commands.iter().any(|it| is_serial(it) || !is_storable(it)) {
            let mut each = Vec::with_capacity(commands.len());
            for command in commands {
                each.push(self.commit(command).await);
            }
            return each;
        }
        let count = commands.len();
        let questions = commands.into_iter().map(|it| {
            let cost = cost(&it);
            (it, cost)
        });
        let Some(answers) = self.inner().spends.push_all(questions.collect()) else {
            return vec![Err(Refused::Unavailable); count];
        };
        let mut all = Vec::with_capacity(count);
        for answer in answers {
            // Gone without an answer: it may have been committed.
            all.push(answer.await.unwrap_or(Err(Refused::Unknown)));
        }
        all
    }

    /// Waits until the view has what another replica did to approvals before now:
    /// who is refused for that looks again, and must not find what it found before.
    async fn catch_up(&self) {
        let inner = self.inner();
        let begun = inner.looking.load(Ordering::SeqCst);
        let mut looked = inner.looked.subscribe();
        inner.stirred.notify_one();
        let newer = looked.wait_for(|look| *look > begun);
        // Without a database there is nothing to wait for, and nothing will commit.
        let _ = outside::timeout(CATCH_UP, newer).await;
    }
}
