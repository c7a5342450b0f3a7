//! Whether a journal is whole, without trusting who wrote it.
//!
//! Everything is recomputed from the bytes: digests, canonical form, chain,
//! attachments. What cannot be seen from the bytes alone is a cut at the very
//! end; that takes a head that was remembered. What the lines mean is not
//! judged: a writer that lies does so in good form.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::Serialize;

use crate::{
    chain::{Hash, leaf_hash},
    follow::{Broken, Follower},
    group::{BLOCK, Group, GroupError, Header, is_unfinished, lines_leniently},
    line::Line,
    reader::segments,
    segment::find_group,
};

/// What is wrong with a journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Problem {
    /// Entries are missing from the end, compared with the remembered head.
    Cut,
    /// An entry, its attachments or its place in the chain are not what they were.
    Changed,
    /// An entry stands in another place than its own, or twice.
    Reordered,
    /// Entries are missing before others.
    Gap,
    /// There is no journal, its files cannot be read, or its format is not known.
    Unreadable,
}

/// What verifying found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Nothing is wrong.
    pub whole: bool,
    /// Entries that were verified, from the first on without a break.
    pub entries: u64,
    /// `SIZE:HASH`: those entries, and the leaf hash of the last in hex; what
    /// the next verification may be given.
    pub head: String,
    /// What is wrong first.
    pub problem: Option<Problem>,
    /// The entry where it is wrong.
    pub index: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Found {
    problem: Problem,
    index: Option<u64>,
}

/// How often a problem is looked at again: a file that is being written, or put
/// in place anew, may read as if it were damaged, but not twice.
pub(crate) const LOOKS: usize = 3;

/// Verifies the journal in `dir`, also while it is being written: a last group
/// that is not finished is not there yet, and is no damage. With `head`, its
/// first `head.0` entries must end in the leaf hash `head.1`.
#[must_use]
pub fn verify(dir: &Path, head: Option<(u64, Hash)>) -> Report {
    let mut looks = 1;
    loop {
        let mut checker = Checker::new(head);
        let outcome = checker.directory(dir).unwrap_or(Err(Found {
            problem: Problem::Unreadable,
            index: None,
        }));
        match outcome {
            Err(_) if looks < LOOKS => looks += 1,
            other => return checker.report(other),
        }
    }
}

struct Checker {
    follower: Follower,
    group: u64,
}

impl Checker {
    fn new(remembered: Option<(u64, Hash)>) -> Self {
        Self {
            follower: Follower::new(remembered),
            group: 0,
        }
    }

    fn report(&self, outcome: Result<(), Found>) -> Report {
        let found = outcome.err().map(|found| (found.problem, found.index));
        self.follower.report(found)
    }

    fn next(&self) -> u64 {
        self.follower.entries()
    }

    fn found(&self, problem: Problem) -> Result<(), Found> {
        Err(Found {
            problem,
            index: Some(self.next()),
        })
    }

    fn directory(&mut self, dir: &Path) -> io::Result<Result<(), Found>> {
        let files = segments(dir)?;
        if files.is_empty() {
            return Ok(Err(Found {
                problem: Problem::Unreadable,
                index: None,
            }));
        }
        let last = files.len().saturating_sub(1);
        for (at, (number, path)) in files.iter().enumerate() {
            let bytes = fs::read(path)?;
            let later = files.get(at.saturating_add(1)..).unwrap_or_default();
            if let Err(found) = self.segment(*number, &bytes, at == last, later) {
                return Ok(Err(found));
            }
        }
        Ok(self.follower.end().map_err(|(problem, index)| Found {
            problem,
            index: Some(index),
        }))
    }

    fn segment(
        &mut self,
        number: u64,
        bytes: &[u8],
        last: bool,
        later: &[(u64, PathBuf)],
    ) -> Result<(), Found> {
        let mut offset = 0;
        while let Some(rest) = bytes.get(offset..).filter(|rest| !rest.is_empty()) {
            match Group::decode(rest) {
                Ok(group) => {
                    if let Err(problem) = self.place(number, &group) {
                        let after = rest.get(group.len()..).unwrap_or_default();
                        return self.misplaced(problem, after, later);
                    }
                    self.group(&group)?;
                    offset = offset.saturating_add(group.len());
                }
                Err(GroupError::Version(_)) => return self.found(Problem::Unreadable),
                Err(error) => return self.no_group(error, rest, last),
            }
        }
        Ok(())
    }

    /// Whether this group's place is here.
    fn place(&mut self, number: u64, group: &Group<'_>) -> Result<(), Problem> {
        let header = &group.header;
        if !self.follower.is_of(header.log) {
            return Err(Problem::Changed);
        }
        match header.first.cmp(&self.next()) {
            std::cmp::Ordering::Less => Err(Problem::Reordered),
            std::cmp::Ordering::Greater => Err(Problem::Gap),
            std::cmp::Ordering::Equal if header.segment != number || header.group != self.group => {
                Err(Problem::Reordered)
            }
            std::cmp::Ordering::Equal => Ok(()),
        }
    }

    /// A gap is a reordering when what is missing comes later. One file is read
    /// at a time: there may be many.
    fn misplaced(
        &self,
        problem: Problem,
        after: &[u8],
        later: &[(u64, PathBuf)],
    ) -> Result<(), Found> {
        let ours = |group: &Group<'_>| {
            Some(group.header.log) == self.follower.log() && group.header.first == self.next()
        };
        let elsewhere = || {
            find_group(after, 0, ours).is_some()
                || later.iter().any(|(_, path)| {
                    fs::read(path).is_ok_and(|bytes| find_group(&bytes, 0, ours).is_some())
                })
        };
        if problem == Problem::Gap && elsewhere() {
            return self.found(Problem::Reordered);
        }
        self.found(problem)
    }

    /// Bytes that are no group: the end, a write that stopped, or damage.
    fn no_group(&self, error: GroupError, rest: &[u8], last: bool) -> Result<(), Found> {
        let zero = rest.iter().all(|b| *b == 0);
        let ours = |group: &Group<'_>| {
            self.follower
                .log()
                .is_none_or(|log| log == group.header.log)
                && group.header.first > self.next()
        };
        let followed = find_group(rest, 1, ours).is_some();
        if zero || (last && !followed && is_unfinished(rest)) {
            return Ok(());
        }
        let first = rest.chunks(BLOCK).next().unwrap_or_default();
        if followed && first.iter().all(|b| *b == 0) {
            return self.found(Problem::Gap);
        }
        let offset = match error {
            GroupError::Line { at, .. } => u64::from(at),
            _ => changed_line(rest, self.next(), &self.follower.head()),
        };
        Err(Found {
            problem: Problem::Changed,
            index: Some(self.next().saturating_add(offset)),
        })
    }

    fn group(&mut self, group: &Group<'_>) -> Result<(), Found> {
        if group.header.durable > group.header.first {
            return self.found(Problem::Changed);
        }
        for (at, entry) in group.entries.iter().enumerate() {
            let attached = entry.attachments_match();
            if let Err(broken) = self.follower.entry(&entry.line, entry.leaf, attached) {
                return Err(self.blame(broken, group, at));
            }
        }
        self.group = self.group.saturating_add(1);
        Ok(())
    }

    /// Which entry of a group it is that was changed, or stands elsewhere.
    fn blame(&self, broken: Broken, group: &Group<'_>, at: usize) -> Found {
        let next = self.next();
        let here = group.entries.iter().any(|e| e.line.index == next);
        let (problem, index) = match broken {
            Broken::Behind if here => (Problem::Reordered, next),
            Broken::Link => {
                // The line before is changed when this one still agrees with what follows it.
                let after = group.entries.get(at.saturating_add(1));
                let agrees = group
                    .entries
                    .get(at)
                    .zip(after)
                    .is_none_or(|(entry, after)| after.line.prev == entry.leaf);
                let back = u64::from(agrees && at > 0);
                (Problem::Changed, next.saturating_sub(back))
            }
            other => (other.into(), next),
        };
        Found {
            problem,
            index: Some(index),
        }
    }
}

/// Which line of a damaged group was changed, counted from its first: the one
/// that cannot be read, or whose hash its successor does not name.
fn changed_line(group: &[u8], first: u64, prev: &Hash) -> u64 {
    let Ok(header) = Header::decode(group) else {
        return 0;
    };
    let mut prev = *prev;
    let mut broken = None;
    let mut last = 0;
    for (at, bytes) in (0..).zip(lines_leniently(group, &header)) {
        last = at;
        let Ok(line) = Line::decode(bytes) else {
            return broken.unwrap_or(at);
        };
        if line.index != first.saturating_add(at) {
            return at;
        }
        let leaf = leaf_hash(bytes);
        if line.prev != prev {
            // Either the line before was changed, or this one's `prev`: whoever
            // names this line's hash tells which.
            if at == 0 || broken.is_some() {
                return at.saturating_sub(u64::from(broken.is_some()));
            }
            broken = Some(at);
        } else if let Some(at) = broken {
            return at.saturating_sub(1);
        }
        prev = leaf;
    }
    match broken {
        Some(at) if prev == header.head => at.saturating_sub(1),
        Some(at) => at,
        None => last,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_to_read_is_unreadable() {
        let dir = tempfile::tempdir().unwrap();
        let unreadable = |dir: &Path| {
            let report = verify(dir, None);
            assert_eq!(
                (report.whole, report.problem, report.index),
                (false, Some(Problem::Unreadable), None)
            );
        };
        unreadable(dir.path());
        unreadable(&dir.path().join("nowhere"));
        fs::write(dir.path().join(crate::segment::SPARE), [0; 512]).unwrap();
        unreadable(dir.path());
    }
}
