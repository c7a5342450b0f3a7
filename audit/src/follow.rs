//! The rules that entries are held to one after the other, wherever they are
//! stored: places without a gap, the chain, time and epoch that never fall, the
//! log's own name, attachments, and a head that was remembered.

use crate::{
    chain::{EMPTY, Hash},
    line::Line,
    verify::{Problem, Report},
};

/// How far entries were followed without a break.
#[derive(Clone, Debug)]
pub struct Follower {
    remembered: Option<(u64, Hash)>,
    log: Option<[u8; 16]>,
    entries: u64,
    head: Hash,
    time_ms: u64,
    epoch: u64,
}

/// Why an entry is not the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// Its place is before the next one.
    Before,
    /// Its place is behind the next one.
    Behind,
    /// It does not name the entry before it: one of the two was changed.
    Link,
    /// Its time, its epoch, its log, its attachments or its hash are not what they
    /// have to be.
    Content,
}

impl From<Broken> for Problem {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::Before => Self::Reordered,
            Broken::Behind => Self::Gap,
            Broken::Link | Broken::Content => Self::Changed,
        }
    }
}

impl Follower {
    /// From the first entry on. With `remembered`, the first `remembered.0` entries
    /// must end in the leaf hash `remembered.1`.
    #[must_use]
    pub fn new(remembered: Option<(u64, Hash)>) -> Self {
        Self {
            remembered,
            log: None,
            entries: 0,
            head: EMPTY,
            time_ms: 0,
            epoch: 0,
        }
    }

    /// The same, of entries that stand in this log.
    #[must_use]
    pub fn within(self, log: Option<[u8; 16]>) -> Self {
        Self { log, ..self }
    }

    /// Which log what follows says that it is of. False: it is another than before.
    #[must_use]
    pub fn is_of(&mut self, log: [u8; 16]) -> bool {
        *self.log.get_or_insert(log) == log
    }

    /// The log that was named, once one was.
    #[must_use]
    pub fn log(&self) -> Option<[u8; 16]> {
        self.log
    }

    /// How many entries were followed.
    #[must_use]
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// The leaf hash of the last of them.
    #[must_use]
    pub fn head(&self) -> Hash {
        self.head
    }

    /// The next entry: its line, the line's leaf hash, and whether what stands beside
    /// it is what the line says.
    ///
    /// # Errors
    /// [`Broken`]; it is not followed then.
    pub fn entry(&mut self, line: &Line, leaf: Hash, attached: bool) -> Result<(), Broken> {
        match line.index.cmp(&self.entries) {
            std::cmp::Ordering::Less => return Err(Broken::Before),
            std::cmp::Ordering::Greater => return Err(Broken::Behind),
            std::cmp::Ordering::Equal => {}
        }
        if line.prev != self.head {
            return Err(Broken::Link);
        }
        let size = self.entries.saturating_add(1);
        let other = |(n, hash)| n == size && hash != leaf;
        let falls = line.time_ms < self.time_ms || line.epoch < self.epoch;
        if falls || !attached || !self.names_log(line) || self.remembered.is_some_and(other) {
            return Err(Broken::Content);
        }
        self.entries = size;
        self.head = leaf;
        self.time_ms = line.time_ms;
        self.epoch = line.epoch;
        Ok(())
    }

    /// An epoch's line names the log that it is in.
    fn names_log(&self, line: &Line) -> bool {
        if line.kind != "epoch" {
            return true;
        }
        let named = line.body.get("log").and_then(serde_json::Value::as_str);
        match (self.log, named) {
            (Some(log), named) => named == Some(hex::encode(log).as_str()),
            (None, named) => named.is_some(),
        }
    }

    /// All there is was followed: is it as much as was remembered? Else what is
    /// wrong, and at which entry.
    ///
    /// # Errors
    /// [`Problem::Cut`] or [`Problem::Changed`], with the entry.
    pub fn end(&self) -> Result<(), (Problem, u64)> {
        match self.remembered {
            Some((size, _)) if size > self.entries => Err((Problem::Cut, self.entries)),
            Some((0, hash)) if hash != EMPTY => Err((Problem::Changed, 0)),
            _ => Ok(()),
        }
    }

    /// What was followed, and what was found then.
    #[must_use]
    pub fn report(&self, found: Option<(Problem, Option<u64>)>) -> Report {
        Report {
            whole: found.is_none(),
            entries: self.entries,
            head: format!("{}:{}", self.entries, hex::encode(self.head)),
            problem: found.map(|(problem, _)| problem),
            index: found.and_then(|(_, index)| index),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::leaf_hash;
    use serde_json::json;

    fn line(index: u64, prev: Hash) -> Line {
        Line {
            index,
            time_ms: 100 + index,
            prev,
            epoch: 1 + index,
            kind: "epoch".into(),
            body: json!({"log": "07".repeat(16)}),
            attachments: Vec::new(),
        }
    }

    /// A follower of two entries, and the hash of the second.
    fn followed(remembered: Option<(u64, Hash)>) -> (Follower, Hash) {
        let mut follower = Follower::new(remembered);
        assert!(follower.is_of([7; 16]));
        let mut head = EMPTY;
        for index in 0..2 {
            let line = line(index, head);
            head = leaf_hash(&line.encode().unwrap());
            follower.entry(&line, head, true).unwrap();
        }
        (follower, head)
    }

    #[test]
    fn only_the_next_entry_follows() {
        let (follower, head) = followed(None);
        let next = line(2, head);
        let cases: [(&str, Line, bool, Result<(), Broken>); 9] = [
            ("next", next.clone(), true, Ok(())),
            ("before", line(1, head), true, Err(Broken::Before)),
            ("behind", line(3, head), true, Err(Broken::Behind)),
            ("link", line(2, EMPTY), true, Err(Broken::Link)),
            ("beside", next.clone(), false, Err(Broken::Content)),
            (
                "time",
                Line {
                    time_ms: 100,
                    ..next.clone()
                },
                true,
                Err(Broken::Content),
            ),
            (
                "epoch",
                Line {
                    epoch: 1,
                    ..next.clone()
                },
                true,
                Err(Broken::Content),
            ),
            (
                "log",
                Line {
                    body: json!({"log": "08".repeat(16)}),
                    ..next.clone()
                },
                true,
                Err(Broken::Content),
            ),
            (
                "no log",
                Line {
                    body: json!({}),
                    ..next
                },
                true,
                Err(Broken::Content),
            ),
        ];
        for (what, line, attached, wanted) in cases {
            let mut follower = follower.clone();
            let leaf = leaf_hash(&line.encode().unwrap());
            assert_eq!(follower.entry(&line, leaf, attached), wanted, "{what}");
            let entries = if wanted.is_ok() { 3 } else { 2 };
            assert_eq!(follower.entries(), entries, "{what}");
        }
        assert!(!follower.clone().is_of([8; 16]));
    }

    #[test]
    fn what_was_remembered_is_compared_at_its_own_place() {
        let (_, head) = followed(None);
        for (remembered, wanted) in [
            (None, Ok(())),
            (Some((0, EMPTY)), Ok(())),
            (Some((2, head)), Ok(())),
            (Some((3, head)), Err((Problem::Cut, 2))),
            (Some((0, head)), Err((Problem::Changed, 0))),
        ] {
            let (follower, _) = followed(remembered);
            assert_eq!(follower.end(), wanted, "{remembered:?}");
        }
        let mut follower = Follower::new(Some((1, [9; 32])));
        let first = line(0, EMPTY);
        let leaf = leaf_hash(&first.encode().unwrap());
        assert_eq!(follower.entry(&first, leaf, true), Err(Broken::Content));
    }
}
