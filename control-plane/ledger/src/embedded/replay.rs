//! Replaying a journal: whole groups, through the function that applied them the
//! first time.

use std::collections::BTreeMap;

use audit::{
    Line,
    group::{self, BLOCK, Group, GroupError, Header, MAX_GROUP, Scan, Sketch},
    segment,
};
use sha2::{Digest, Sha256};

use crate::{
    embedded::{
        disk::Disk,
        recovery::{OpenError, TornTail, io_error},
        snapshot::{Lengths, Position, Snapshot, Written},
        state::{Stamp, State},
    },
    event::{Entry, Event},
    lines,
    model::{Hash, NOTE_KINDS},
};

/// The last segment as far as it is whole.
#[derive(Default)]
pub(crate) struct Tail {
    pub(crate) number: u64,
    pub(crate) bytes: Vec<u8>,
    /// The file's length.
    pub(crate) len: usize,
}

pub(crate) struct Replay<'a> {
    disk: &'a dyn Disk,
    pub(crate) log: [u8; 16],
    pub(crate) state: State,
    pub(crate) group: u64,
    first_segment: u64,
    next_segment: u64,
    // Where in the next segment reading begins.
    from: usize,
    pub(crate) tail: Tail,
    pub(crate) torn: Option<TornTail>,
    /// Lengths of the segments that were read, and of those before them.
    pub(crate) lengths: Lengths,
    /// Snapshots that entries prove.
    pub(crate) proven: Vec<Written>,
    /// Leaf hashes that are wanted, by how many entries end in them.
    pub(crate) leaves: BTreeMap<u64, Option<Hash>>,
    /// States that are wanted, by how many entries made them; only between groups.
    pub(crate) marks: BTreeMap<u64, Option<Snapshot>>,
}

impl<'a> Replay<'a> {
    pub(crate) fn new(disk: &'a dyn Disk) -> Self {
        Self {
            disk,
            log: [0; 16],
            state: State::default(),
            group: 0,
            first_segment: 0,
            next_segment: 0,
            from: 0,
            tail: Tail::default(),
            torn: None,
            lengths: Lengths::default(),
            proven: Vec::new(),
            leaves: BTreeMap::new(),
            marks: BTreeMap::new(),
        }
    }

    /// Goes on where a snapshot was taken. `None` when it cannot be.
    pub(crate) fn at(disk: &'a dyn Disk, snapshot: Snapshot) -> Option<Self> {
        Some(Self {
            log: snapshot.log()?,
            group: snapshot.group,
            first_segment: snapshot.segment,
            next_segment: snapshot.segment,
            from: usize::try_from(snapshot.offset).ok()?,
            lengths: snapshot.lengths,
            state: State::from_kept(snapshot.state),
            ..Self::new(disk)
        })
    }

    /// The first segment that is read.
    pub(crate) fn first_segment(&self) -> u64 {
        self.first_segment
    }

    /// Asks for the leaf hash that so many entries end in.
    pub(crate) fn want_leaf(&mut self, entries: u64) {
        let here = (entries == self.state.entries).then_some(self.state.head);
        self.leaves.insert(entries, here);
    }

    fn damaged(&self, number: u64, offset: usize, what: impl Into<String>) -> OpenError {
        OpenError::Damaged {
            path: self.disk.path().join(segment::file_name(number)),
            offset: u64::try_from(offset).unwrap_or(u64::MAX),
            index: self.state.entries,
            what: what.into(),
        }
    }

    pub(crate) fn segment(&mut self, number: u64, last: bool) -> Result<(), OpenError> {
        if number != self.next_segment {
            return Err(self.damaged(self.next_segment, 0, "the segment is missing"));
        }
        self.next_segment = number.saturating_add(1);
        let name = segment::file_name(number);
        let mut bytes = self
            .disk
            .read(&name)
            .map_err(|error| io_error("read", &self.disk.path().join(&name), error))?;
        let mut offset = std::mem::take(&mut self.from);
        if offset > bytes.len() {
            return Err(self.damaged(number, bytes.len(), "the segment is too short"));
        }
        if last {
            // It is about to be written anew, what is before the snapshot as well.
            self.prefix(number, bytes.get(..offset).unwrap_or_default())?;
        }
        let wide = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        self.lengths.push(number, wide(bytes.len()));
        while let Some(rest) = bytes.get(offset..).filter(|rest| !rest.is_empty()) {
            // The last segment is always read in full: what may be torn is there.
            if !last
                && let Ok(scan) = Scan::decode(rest)
                && let Some(read) = skimmed(&scan)
            {
                self.skim(number, offset, &scan, &read)?;
                offset = offset.saturating_add(scan.len());
                self.mark(number, offset);
                continue;
            }
            match Group::decode(rest) {
                Ok(group) => {
                    let after = rest.get(group.len()..).unwrap_or_default();
                    if planted!(LastGroupSkipped) && last && after.iter().all(|b| *b == 0) {
                        break;
                    }
                    if last
                        && !group.entries.iter().all(|e| e.attachments_match())
                        && !planted!(AttachmentsUnchecked)
                        && !self.proves(after)
                    {
                        self.tear(number, offset, rest);
                        break;
                    }
                    self.group(number, offset, &group)?;
                    offset = offset.saturating_add(group.len());
                    self.mark(number, offset);
                }
                // A newer layout is not damage, and must never be cut.
                Err(error @ GroupError::Version(_)) => {
                    return Err(self.damaged(number, offset, error.to_string()));
                }
                Err(error) => {
                    if rest.iter().all(|b| *b == 0) {
                        break;
                    }
                    // The first group came with the file, so it cannot be torn.
                    let first = self.state.entries == 0;
                    if first
                        || (!last && !planted!(SealedCut))
                        || self.proves(rest.get(1..).unwrap_or_default())
                        || beyond_one_group(rest)
                    {
                        return Err(self.damaged(number, offset, error.to_string()));
                    }
                    self.tear(number, offset, rest);
                    break;
                }
            }
        }
        let len = bytes.len();
        if planted!(TornKept) {
            let end = bytes.iter().rposition(|b| *b != 0).unwrap_or(0);
            offset = offset.max(end.saturating_add(1).next_multiple_of(BLOCK));
        }
        bytes.truncate(offset);
        self.tail = Tail { number, bytes, len };
        Ok(())
    }

    /// Whether the groups before a snapshot, in its own segment, are whole and lead
    /// up to it. They are not applied: the snapshot has what they made.
    fn prefix(&self, number: u64, bytes: &[u8]) -> Result<(), OpenError> {
        let mut offset = 0;
        let mut before: Option<(u64, u64, Hash)> = None;
        while let Some(rest) = bytes.get(offset..).filter(|rest| !rest.is_empty()) {
            let group =
                Group::decode(rest).map_err(|e| self.damaged(number, offset, e.to_string()))?;
            let header = &group.header;
            let mut whole = header.log == self.log && header.segment == number;
            let (_, mut index, mut head) = before.unwrap_or((0, header.first, [0; 32]));
            whole &= before.is_none_or(|(n, _, _)| header.group == n) && header.first == index;
            for (at, entry) in group.entries.iter().enumerate() {
                let follows = entry.line.prev == head || (before.is_none() && at == 0);
                whole &= follows && entry.line.index == index && entry.attachments_match();
                (index, head) = (index.saturating_add(1), entry.leaf);
            }
            if !whole {
                return Err(self.damaged(number, offset, "a group that is not the one it was"));
            }
            before = Some((header.group.saturating_add(1), index, head));
            offset = offset.saturating_add(group.len());
        }
        let here = (self.group, self.state.entries, self.state.head);
        if before.is_none_or(|before| before == here) {
            Ok(())
        } else {
            Err(self.damaged(number, offset, "it does not lead up to the snapshot"))
        }
    }

    /// Whether a later group shows that the next entry was durable.
    fn proves(&self, later: &[u8]) -> bool {
        // The log's name is known from its first group only.
        let ours = |log| self.state.entries == 0 || log == self.log;
        let proof =
            |group: &Group<'_>| ours(group.header.log) && group.header.durable > self.state.entries;
        !planted!(ProofIgnored) && segment::find_group(later, 0, proof).is_some()
    }

    fn tear(&mut self, number: u64, offset: usize, rest: &[u8]) {
        let end = rest
            .iter()
            .rposition(|b| *b != 0)
            .map_or(0, |last| last.saturating_add(1));
        let cut = rest.get(..end).unwrap_or(rest);
        let wide = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        self.torn = Some(TornTail {
            segment: number,
            offset: wide(offset),
            bytes: wide(cut.len()),
            sha256: Sha256::digest(cut).into(),
        });
    }

    /// Whether a group's place is here.
    fn place(&mut self, number: u64, offset: usize, header: &Header) -> Result<(), OpenError> {
        if self.state.entries == 0 {
            self.log = header.log;
        }
        if header.log != self.log {
            return Err(self.damaged(number, offset, "a group of another journal"));
        }
        let in_place = header.segment == number
            && header.group == self.group
            && header.first == self.state.entries;
        if in_place {
            Ok(())
        } else {
            let what = format!(
                "group {} with entry {} stands here",
                header.group, header.first
            );
            Err(self.damaged(number, offset, what))
        }
    }

    fn group(&mut self, number: u64, offset: usize, group: &Group<'_>) -> Result<(), OpenError> {
        self.place(number, offset, &group.header)?;
        for entry in &group.entries {
            let line = &entry.line;
            let stamp = Stamp {
                index: line.index,
                time_ms: line.time_ms,
                epoch: line.epoch,
                leaf: entry.leaf,
            };
            self.follows(number, offset, &stamp, &line.prev)?;
            self.entry(stamp, entry)?;
        }
        self.group = self.group.saturating_add(1);
        Ok(())
    }

    fn entry(&mut self, stamp: Stamp, entry: &group::Entry<'_>) -> Result<(), OpenError> {
        let read = lines::decode(entry).map_err(|error| OpenError::Entry {
            index: stamp.index,
            error,
        })?;
        if let Entry::Event(event) = &read
            && let Event::Snapshot {
                entries,
                sha256,
                bytes,
            } = &**event
        {
            self.proven.push(Written {
                entries: *entries,
                sha256: *sha256,
                bytes: *bytes,
            });
        }
        self.apply(stamp, &read);
        Ok(())
    }

    /// As `group`, for entries of which a start keeps nothing but their place, and
    /// those among them that were `read`.
    fn skim(
        &mut self,
        number: u64,
        offset: usize,
        scan: &Scan<'_>,
        read: &[Option<Line>],
    ) -> Result<(), OpenError> {
        // What is not looked at changes nothing, as a note does.
        let nothing = Entry::Note {
            kind: String::new(),
            body: serde_json::Value::Null,
        };
        self.place(number, offset, &scan.header)?;
        for (line, read) in scan.lines.iter().zip(read) {
            let stamp = Stamp {
                index: line.index,
                time_ms: line.time_ms,
                epoch: line.epoch,
                leaf: line.leaf,
            };
            self.follows(number, offset, &stamp, &line.prev)?;
            match read {
                None => self.apply(stamp, &nothing),
                Some(whole) => self.entry(
                    stamp,
                    &group::Entry {
                        bytes: line.bytes,
                        line: whole.clone(),
                        leaf: line.leaf,
                        attached: Vec::new(),
                    },
                )?,
            }
        }
        self.group = self.group.saturating_add(1);
        Ok(())
    }

    fn follows(
        &self,
        number: u64,
        offset: usize,
        stamp: &Stamp,
        prev: &Hash,
    ) -> Result<(), OpenError> {
        let state = &self.state;
        let follows = stamp.index == state.entries
            && *prev == state.head
            && stamp.time_ms >= state.time_ms
            && stamp.epoch >= state.epoch;
        if follows {
            Ok(())
        } else {
            Err(self.damaged(
                number,
                offset,
                "an entry that does not continue the one before",
            ))
        }
    }

    fn apply(&mut self, stamp: Stamp, entry: &Entry) {
        self.state.apply(stamp, entry);
        if let Some(wanted) = self.leaves.get_mut(&self.state.entries) {
            *wanted = Some(stamp.leaf);
        }
    }

    fn mark(&mut self, segment: u64, offset: usize) {
        if let Some(wanted) = self.marks.get_mut(&self.state.entries) {
            let at = Position {
                log: self.log,
                group: self.group,
                segment,
                offset: u64::try_from(offset).unwrap_or(u64::MAX),
                lengths: self.lengths.clone(),
            };
            *wanted = Some(Snapshot::new(at, self.state.keep()));
        }
    }
}

/// The lines of a group that have to be read, each in its place; `None` when the
/// group has to be decoded as a whole, for what stands beside a line or since a
/// line is none.
fn skimmed(scan: &Scan<'_>) -> Option<Vec<Option<Line>>> {
    let read = |line: &Sketch<'_>| {
        if is_forgotten(line) {
            return Some(None);
        }
        let line = Line::decode(line.bytes).ok()?;
        let beside = line.attachments.iter().any(|a| a.name == lines::APPROVAL);
        (!beside).then_some(Some(line))
    };
    scan.lines.iter().map(read).collect()
}

/// Whether an entry changes only what every start forgets: tokens, their uses and
/// counts. Then its body need not be read.
fn is_forgotten(line: &Sketch<'_>) -> bool {
    match line.kind {
        "issue" | "present" | "deny" | "lapse" | "lapses_overdue" | "outcome"
        | "exchange_refused" | "torn" => true,
        // One that consumes an approval is read.
        "allow" => !line.body_begins_with("approval"),
        other => NOTE_KINDS.contains(&other),
    }
}

/// Whether there is more than one write that stopped can have left.
fn beyond_one_group(rest: &[u8]) -> bool {
    rest.iter()
        .rposition(|byte| *byte != 0)
        .is_some_and(|last| last >= MAX_GROUP)
}
