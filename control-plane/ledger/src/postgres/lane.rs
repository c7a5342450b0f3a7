//! A lane: one connection, one batch at a time.
//!
//! Lanes take what waits as one batch, so that batches grow with the load. A
//! command's fate is told only when it is proven: everything short of that is
//! `Unavailable` before COMMIT was asked for, and `Unknown` after.

use std::{sync::Arc, time::Duration};

use super::{
    Inner, PostgresError,
    batch::{Decided, Keys, changes_rights, decide},
    epoch,
    error::{Fault, fault},
    load::{self, Lane, Loaded},
    outside::{self, Instant, backoff, now, sleep, timeout},
    owners::Reserved,
    save::{self, GroupToken},
    session::{Commit, Session},
};
use crate::model::{Command, Committed, Refused};

/// Most commands of one transaction.
const BATCH: usize = 256;
/// How often a batch that was in others' way is tried.
const TRIES: u32 = 8;
/// How long a connection that could not be made is not tried again.
const REST: Duration = Duration::from_millis(200);
/// How often it is asked what became of a commit.
const PROOFS: u32 = 4;

type Answers = Vec<Result<Committed, Refused>>;

pub(super) struct Worker {
    inner: Arc<Inner>,
    session: Option<Session>,
    rests_until: Option<Instant>,
    lane: Lane,
}

enum Once {
    Answers(Answers),
    Again(Lane),
    Failed(Fault),
}

impl Worker {
    pub(super) fn new(inner: Arc<Inner>, lane: Lane) -> Self {
        Self {
            inner,
            session: None,
            rests_until: None,
            lane,
        }
    }

    /// Runs until its queue is closed and empty.
    pub(super) async fn run(mut self) {
        let inner = Arc::clone(&self.inner);
        let queue = match self.lane {
            Lane::Serial => &inner.serial,
            _ => &inner.spends,
        };
        while let Some(mut taken) = queue.take(BATCH).await {
            let (commands, askers): (Vec<_>, Vec<_>) = std::mem::take(&mut taken.jobs)
                .into_iter()
                .map(|job| (job.question, job.answer))
                .unzip();
            let answers = self.commit(&commands).await;
            drop(taken);
            for (asker, answer) in askers.into_iter().zip(answers) {
                // A caller that left has nothing to be told; its commit stands.
                let _ = asker.send(answer);
            }
        }
        if let Some(session) = self.session.take() {
            let _ = timeout(REST, epoch::close(session)).await;
        }
    }

    async fn commit(&mut self, commands: &[Command]) -> Answers {
        let until = now() + self.inner.deadline;
        match self.tries(commands, until).await {
            Ok(answers) => answers,
            // The server refused what one of them holds, or it is always in the way:
            // the others are not to blame.
            Err(Fault::Command | Fault::Conflict) if commands.len() > 1 => {
                let until = until + self.inner.deadline;
                let mut answers = Vec::with_capacity(commands.len());
                for command in commands {
                    let alone = self.tries(std::slice::from_ref(command), until).await;
                    answers.extend(alone.unwrap_or_else(|_| vec![Err(Refused::Unavailable)]));
                }
                answers
            }
            Err(_) => vec![Err(Refused::Unavailable); commands.len()],
        }
    }

    async fn tries(&mut self, commands: &[Command], until: Instant) -> Result<Answers, Fault> {
        let keys = Keys::of(commands);
        let mut lane = self.lane;
        if commands.iter().any(changes_rights) {
            lane = Lane::Rights;
        }
        for tried in 0..TRIES {
            if now() >= until {
                break;
            }
            match self.once(commands, &keys, lane).await {
                Once::Answers(answers) => return Ok(answers),
                Once::Again(next) if next != lane => lane = next,
                Once::Again(_) => sleep(backoff(tried)).await,
                Once::Failed(Fault::Conflict) => sleep(backoff(tried)).await,
                Once::Failed(fault) => return Err(fault),
            }
        }
        Err(Fault::Conflict)
    }

    /// One transaction.
    async fn once(&mut self, commands: &[Command], keys: &Keys, lane: Lane) -> Once {
        let Some(mut session) = self.session().await else {
            return Once::Failed(Fault::Store);
        };
        let inner = Arc::clone(&self.inner);
        let mut token: GroupToken = [0; 16];
        outside::fill(&mut token);
        // The server's own deadlines end each statement; this one, a server that is gone.
        let prepared = timeout(inner.deadline * 2, async {
            let before = inner.before();
            let loaded = load::begin(&mut session, lane, keys, &before, &inner.limits).await?;
            let (rows, elsewhere, reserved) = match loaded {
                Loaded::Rows(rows, elsewhere, reserved) => (*rows, elsewhere, reserved),
                Loaded::Agents(missing) => return Ok(Prepared::Agents(missing)),
                Loaded::Evidence => return Ok(Prepared::Evidence),
            };
            // Only now: it may have waited for others.
            let time_ms = rows.time_ms.max((inner.clock)());
            let decided = decide(rows, elsewhere, commands, time_ms, &inner.limits);
            let versions = if decided.writes.drafts.is_empty() {
                save::Versions::default()
            } else {
                save::save(&mut session.conn, &decided.writes, &token, &session.ground).await?
            };
            let decided = Box::new(decided);
            Ok::<_, PostgresError>(Prepared::Decided(decided, versions, reserved))
        });
        match prepared.await {
            Ok(Ok(Prepared::Decided(decided, ..))) if decided.writes.drafts.is_empty() => {
                self.give_up(session).await;
                Once::Answers(decided.answers)
            }
            // What it issues is under way until it is known what became of it.
            Ok(Ok(Prepared::Decided(decided, versions, mut reserved))) => {
                if let Some(reserved) = &mut reserved {
                    reserved.issues(&decided.writes.issued);
                }
                self.finish(session, *decided, versions, &token).await
            }
            Ok(Ok(Prepared::Agents(missing))) => {
                if session.rollback().await && add_agents(&mut session, &missing).await {
                    self.session = Some(session);
                }
                Once::Again(lane)
            }
            Ok(Ok(Prepared::Evidence)) => {
                self.give_up(session).await;
                Once::Again(Lane::NewEvidence)
            }
            Ok(Err(PostgresError::Database(error))) => {
                let fault = fault(&error);
                match fault {
                    Fault::Store => tracing::warn!(%error, "a batch was not committed"),
                    _ => tracing::debug!(%error, "a batch is tried again"),
                }
                if fault != Fault::Store {
                    self.give_up(session).await;
                }
                Once::Failed(fault)
            }
            // Without this connection: a new one finds out what there is now.
            Ok(Err(error @ PostgresError::Moved)) => {
                tracing::warn!(%error, "a batch is tried again");
                Once::Failed(Fault::Conflict)
            }
            Ok(Err(error)) => {
                tracing::error!(%error, "a batch was not committed");
                Once::Failed(Fault::Store)
            }
            // Dropping the connection rolls back: COMMIT was never sent.
            Err(_) => {
                tracing::warn!("the database did not answer in time; a batch was not committed");
                Once::Failed(Fault::Store)
            }
        }
    }

    async fn give_up(&mut self, mut session: Session) {
        if session.rollback().await {
            self.session = Some(session);
        }
    }

    /// Commits, and answers only what is proven.
    async fn finish(
        &mut self,
        mut session: Session,
        decided: Decided,
        versions: save::Versions,
        token: &GroupToken,
    ) -> Once {
        if planted!(AnswerBeforeCommit) {
            outside::spawn(async move {
                session.commit().await;
            });
            self.inner.publish(&decided.writes, versions);
            return Once::Answers(decided.answers);
        }
        let proven = match session.commit().await {
            Commit::InDoubt if planted!(DoubtRetried) => return Once::Failed(Fault::Conflict),
            Commit::InDoubt if planted!(DoubtIsYes) => true,
            Commit::Proven => {
                self.session = Some(session);
                true
            }
            Commit::RolledBack => {
                self.session = Some(session);
                return Once::Failed(Fault::Conflict);
            }
            Commit::InDoubt => {
                drop(session);
                let longest = self.inner.deadline * 2;
                timeout(longest, self.prove(token)).await.unwrap_or(false)
            }
        };
        let Decided {
            mut answers,
            writes,
        } = decided;
        if proven {
            self.inner.publish(&writes, versions);
        } else {
            for answer in &mut answers {
                if answer.is_ok() {
                    *answer = Err(if planted!(DoubtIsNo) {
                        Refused::Unavailable
                    } else {
                        Refused::Unknown
                    });
                }
            }
        }
        Once::Answers(answers)
    }

    /// Asks on a new connection what became of a commit. True: it is there, and
    /// what was written after it is durable, so that it is too.
    async fn prove(&mut self, token: &GroupToken) -> bool {
        for tried in 0..PROOFS {
            self.rests_until = None;
            if let Some(mut session) = self.session().await
                && let Ok(Ok(true)) = timeout(self.inner.deadline, find(&mut session, token)).await
                && (planted!(FoundIsProof) || session.commit().await == Commit::Proven)
            {
                self.session = Some(session);
                return true;
            }
            // It may be under way still: not found is no proof that it never will be.
            sleep(backoff(tried) * 10).await;
        }
        false
    }

    /// The lane's connection, or a new one.
    async fn session(&mut self) -> Option<Session> {
        if !self.inner.is_healthy() {
            self.session = None;
            return None;
        }
        if let Some(session) = self.session.take() {
            return Some(session);
        }
        if self.rests_until.is_some_and(|until| now() < until) {
            return None;
        }
        match self.inner.connect().await {
            Ok(session) => Some(session),
            Err(error) => {
                tracing::warn!(%error, "no connection to the database");
                self.rests_until = Some(now() + REST);
                None
            }
        }
    }
}

enum Prepared {
    Decided(Box<Decided>, save::Versions, Option<Reserved>),
    Agents(Vec<String>),
    Evidence,
}

/// Begins a transaction that finds the group and writes something: once that is
/// committed as promised, everything before it is.
async fn find(session: &mut Session, token: &GroupToken) -> Result<bool, PostgresError> {
    session.conn.begin_plain().await?;
    let found = session.conn.find_group(token).await?;
    if found {
        let id = i32::try_from(outside::within(0, 64)).unwrap_or_default();
        session.conn.barrier(id).await?;
    }
    Ok(found)
}

/// Rows for agents that have none, in a transaction of their own: sorted, so that
/// two replicas do not wait for each other.
async fn add_agents(session: &mut Session, agents: &[String]) -> bool {
    let added = session.conn.add_agents(agents).await;
    added
        .inspect_err(|error| tracing::warn!(%error, "agents' rows could not be added"))
        .is_ok()
}
