//! The log read back from the database, in its order, and verified as a journal is.

use std::collections::VecDeque;

use audit::{Follower, Line, Problem, Report, chain::EMPTY, leaf_hash};

use super::{
    PostgresError, PostgresOptions, draft,
    options::Target,
    session::Session,
    values::{from_i64, to_i64},
};
use crate::{lines::Place, model::Hash};

/// Groups that are read at a time.
const GROUPS: i64 = 16;

/// One entry as the database has it. Nothing of it has been verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEntry {
    /// Its index.
    pub index: u64,
    /// The line, without a newline.
    pub line: Vec<u8>,
    /// The leaf hash that the database has of it.
    pub leaf: Hash,
    /// The attachments' bytes in the line's order, salt first.
    pub attached: Vec<u8>,
}

/// A connection that reads the log and changes nothing.
pub struct LogReader {
    session: Session,
    next: u64,
    read: VecDeque<LogEntry>,
}

impl std::fmt::Debug for LogReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogReader")
            .field("next", &self.next)
            .finish_non_exhaustive()
    }
}

impl LogReader {
    /// Connects to the primary; the log is read from entry `from` on.
    ///
    /// # Errors
    /// A [`PostgresError`] that says what was found and what to do.
    pub async fn connect(options: &PostgresOptions, from: u64) -> Result<Self, PostgresError> {
        let session = Session::open(&Target::new(options)?).await?;
        Ok(Self {
            session,
            next: from,
            read: VecDeque::new(),
        })
    }

    /// How many entries have their place in the log.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn entries(&mut self) -> Result<u64, PostgresError> {
        let entries = self.session.conn.log_len().await?;
        Ok(from_i64(entries))
    }

    /// The log's name; `None` where none was begun.
    ///
    /// # Errors
    /// When the database does not answer, or that is no name.
    async fn log(&mut self) -> Result<Option<[u8; 16]>, PostgresError> {
        self.session.conn.log_of().await
    }

    /// The next entry; `None` at the end, where more may come.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn next(&mut self) -> Result<Option<LogEntry>, PostgresError> {
        if self.read.is_empty() {
            self.fetch().await?;
        }
        let entry = self.read.pop_front();
        if let Some(entry) = &entry {
            self.next = entry.index.saturating_add(1);
        }
        Ok(entry)
    }

    async fn fetch(&mut self) -> Result<(), PostgresError> {
        let conn = &mut self.session.conn;
        let groups = conn.groups_from(to_i64(self.next), GROUPS).await?;
        let ids: Vec<i64> = groups.iter().map(|g| g.0).collect();
        let rows = conn.entries_of(&ids).await?;
        for (id, first, epoch, time, prev, leaves) in groups {
            let mut prev = prev;
            let leaves: Vec<Hash> = draft::leaves_of(&leaves).collect();
            for (_, n, kind, head, attached) in rows.iter().filter(|row| row.0 == id) {
                let n = u64::try_from(*n).unwrap_or_default();
                let place = Place {
                    index: from_i64(first).saturating_add(n),
                    time_ms: from_i64(time),
                    epoch: from_i64(epoch),
                    prev,
                };
                let at = usize::try_from(n).unwrap_or(usize::MAX);
                let leaf = leaves.get(at).copied().unwrap_or(EMPTY);
                prev = leaf;
                if place.index >= self.next {
                    self.read.push_back(LogEntry {
                        index: place.index,
                        line: draft::line(head, kind, &place),
                        leaf,
                        attached: attached.clone(),
                    });
                }
            }
        }
        Ok(())
    }
}

/// Verifies the log in the database by the rules of a journal: canonical lines,
/// the chain, attachments, places without a gap. With `head`, its first `head.0`
/// entries must end in the leaf hash `head.1`. What is committed and has no place
/// yet is not part of it.
///
/// # Errors
/// When the database does not answer; what is wrong with the log is in the report.
pub async fn verify(
    options: &PostgresOptions,
    head: Option<(u64, Hash)>,
) -> Result<Report, PostgresError> {
    let mut reader = LogReader::connect(options, 0).await?;
    let placed = reader.entries().await?;
    let mut follower = Follower::new(head).within(reader.log().await?);
    let found = |follower: &Follower, problem| {
        let index = Some(follower.entries());
        Ok(follower.report(Some((problem, index))))
    };
    while follower.entries() < placed {
        let Some(entry) = reader.next().await? else {
            return found(&follower, Problem::Gap);
        };
        if let Err(problem) = check(&mut follower, &entry) {
            return found(&follower, problem);
        }
    }
    let end = follower.end().err();
    Ok(follower.report(end.map(|(problem, index)| (problem, Some(index)))))
}

/// An entry as it is stored, by the rules of a journal's.
fn check(follower: &mut Follower, entry: &LogEntry) -> Result<(), Problem> {
    let line = Line::decode(&entry.line).map_err(|_| Problem::Changed)?;
    let leaf = leaf_hash(&entry.line);
    let beside = leaf == entry.leaf && is_beside(&line, &entry.attached);
    follower.entry(&line, leaf, beside)?;
    Ok(())
}

/// Whether these bytes are what the line says stands beside it.
fn is_beside(line: &Line, attached: &[u8]) -> bool {
    let mut rest = attached;
    for named in &line.attachments {
        let len = usize::try_from(named.len).unwrap_or(usize::MAX);
        match rest.split_at_checked(len) {
            Some((salted, after)) if named.matches(salted) => rest = after,
            _ => return false,
        }
    }
    rest.is_empty()
}
