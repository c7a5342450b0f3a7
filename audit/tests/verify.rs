//! Every way to damage a journal that is tried here is found, and named.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests fail loudly"
)]

use std::{fs, io::Write, path::Path};

use audit::{
    AttachmentRef, Hash, Line, Problem, Report,
    chain::EMPTY,
    group::{BLOCK, Builder, Group, Header},
    leaf_hash,
    reader::Reader,
    segment::file_name,
    verify,
};
use proptest::prelude::*;
use serde_json::json;

const SEGMENT: usize = 6 * 1024;

/// A journal as its writer lays it out: segments of groups of lines.
struct Journal {
    segments: Vec<Vec<u8>>,
    /// Per segment, where each group starts, and the index of its first line.
    groups: Vec<Vec<(usize, u64)>>,
    leaves: Vec<Hash>,
}

impl Journal {
    /// One inner list per segment, one number of lines per group.
    fn new(shape: &[&[u64]]) -> Self {
        let mut journal = Self {
            segments: vec![],
            groups: vec![],
            leaves: vec![],
        };
        let mut number = 0;
        for (segment, groups) in (0..).zip(shape) {
            let mut bytes = Vec::new();
            let mut starts = Vec::new();
            for lines in *groups {
                starts.push((bytes.len(), journal.leaves.len() as u64));
                bytes.extend(journal.group(segment, number, *lines));
                number += 1;
            }
            bytes.resize(SEGMENT, 0);
            journal.segments.push(bytes);
            journal.groups.push(starts);
        }
        journal
    }

    fn group(&mut self, segment: u64, group: u64, lines: u64) -> Vec<u8> {
        let first = self.leaves.len() as u64;
        let mut builder = Builder::default();
        for index in first..first + lines {
            let salted = [leaf_hash(&index.to_be_bytes()).as_slice(), b"ey.ey.sig"].concat();
            let line = Line {
                index,
                time_ms: 1_790_000_000_000 + index / 2,
                prev: *self.leaves.last().unwrap_or(&EMPTY),
                epoch: 1,
                kind: "allow".into(),
                body: json!({"agent": format!("spiffe://writ.example/agent/{index}")}),
                attachments: vec![AttachmentRef::new(
                    "proof",
                    salted[..32].try_into().unwrap(),
                    b"ey.ey.sig",
                )],
            };
            let bytes = line.encode().unwrap();
            self.leaves.push(leaf_hash(&bytes));
            builder.push(&bytes, [salted.as_slice()]);
        }
        let header = Header {
            log: [7; 16],
            segment,
            group,
            first,
            durable: first,
            count: 0,
            lines_len: 0,
            total_len: 0,
            head: EMPTY,
        };
        builder.finish(header).unwrap().1
    }

    fn usual() -> Self {
        Self::new(&[&[1, 3, 2], &[4, 1], &[2, 3]])
    }

    fn write(&self, dir: &Path) {
        for (number, bytes) in (0..).zip(&self.segments) {
            fs::write(dir.join(file_name(number)), bytes).unwrap();
        }
    }

    fn verify(&self, head: Option<(u64, Hash)>) -> Report {
        let dir = tempfile::tempdir().unwrap();
        self.write(dir.path());
        verify(dir.path(), head)
    }

    fn group_len(&self, segment: usize, at: usize) -> usize {
        Group::decode(&self.segments[segment][at..]).unwrap().len()
    }

    /// Where the last group of a segment ends.
    fn end(&self, segment: usize) -> usize {
        let at = self.groups[segment].last().unwrap().0;
        at + self.group_len(segment, at)
    }

    fn head(&self, size: u64) -> Option<(u64, Hash)> {
        let last = usize::try_from(size).unwrap().checked_sub(1);
        Some((size, last.map_or(EMPTY, |last| self.leaves[last])))
    }

    /// The entries that a byte of a segment may be blamed on: one for a line or
    /// an attachment, all of the group for what covers the whole group.
    fn owners(&self, segment: usize, byte: usize) -> std::ops::RangeInclusive<u64> {
        let (at, first) = *self.groups[segment]
            .iter()
            .rfind(|(at, _)| *at <= byte)
            .unwrap();
        let group = Group::decode(&self.segments[segment][at..]).unwrap();
        let base = self.segments[segment].as_ptr() as usize;
        for (index, entry) in (first..).zip(&group.entries) {
            let inside = |part: &[u8], extra| {
                let start = part.as_ptr() as usize - base;
                (start..start + part.len() + extra).contains(&byte)
            };
            if inside(entry.bytes, 1) || entry.attached.iter().any(|a| inside(a, 0)) {
                return index..=index;
            }
        }
        first..=first + group.entries.len() as u64 - 1
    }
}

/// Writes over a file in place: truncating first makes file systems flush it.
fn overwrite(path: &Path, bytes: &[u8]) {
    let mut file = fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_all(bytes).unwrap();
    file.set_len(bytes.len() as u64).unwrap();
}

#[test]
fn a_whole_journal_is_whole_against_each_of_its_heads() {
    let journal = Journal::usual();
    let report = journal.verify(None);
    assert!(report.whole && report.problem.is_none() && report.index.is_none());
    assert_eq!(report.entries, 16);
    assert_eq!(
        report.head,
        format!("16:{}", hex::encode(journal.leaves[15]))
    );
    for size in 0..=16 {
        assert!(journal.verify(journal.head(size)).whole, "head {size}");
    }
}

#[test]
fn another_head_is_a_change() {
    let journal = Journal::usual();
    for size in [0, 1, 7, 16] {
        let report = journal.verify(Some((size, [1; 32])));
        let index = size.saturating_sub(1);
        assert_eq!(
            (report.whole, report.problem, report.index),
            (false, Some(Problem::Changed), Some(index))
        );
    }
}

#[test]
fn a_cut_end_shows_against_a_remembered_head_only() {
    // J03: whole groups from the end, then whole segments, then bytes of the last group.
    let mut journal = Journal::usual();
    let (at, first) = journal.groups[2][1];
    journal.segments[2][at..].fill(0);
    assert!(journal.verify(None).whole);
    let report = journal.verify(journal.head(16));
    assert_eq!(
        (report.problem, report.index, report.entries),
        (Some(Problem::Cut), Some(first), first)
    );
    journal.segments.pop();
    let report = journal.verify(journal.head(16));
    assert_eq!(
        (report.problem, report.index),
        (Some(Problem::Cut), Some(11))
    );
    let (mut journal, dir) = (Journal::usual(), tempfile::tempdir().unwrap());
    journal.write(dir.path());
    let path = dir.path().join(file_name(2));
    for stop in (at + 1..journal.end(2)).rev() {
        journal.segments[2][stop..].fill(0);
        overwrite(&path, &journal.segments[2]);
        let report = verify(dir.path(), None);
        assert!(
            report.whole && report.entries == first,
            "an unfinished group is not there yet: {stop} {report:?}"
        );
        overwrite(&path, &journal.segments[2][..stop]);
        assert!(verify(dir.path(), None).whole, "{stop}");
        let report = verify(dir.path(), journal.head(16));
        assert_eq!(report.problem, Some(Problem::Cut));
    }
}

#[test]
fn missing_groups_and_segments_are_gaps() {
    let mut journal = Journal::usual();
    let (at, first) = journal.groups[0][1];
    let len = journal.group_len(0, at);
    journal.segments[0][at..at + len].fill(0);
    let report = journal.verify(None);
    assert_eq!(
        (report.problem, report.index, report.entries),
        (Some(Problem::Gap), Some(first), first)
    );
    // Closed up, as somebody who hides it would.
    journal.segments[0].drain(at..at + len);
    let report = journal.verify(None);
    assert_eq!(
        (report.problem, report.index),
        (Some(Problem::Gap), Some(first))
    );

    let dir = tempfile::tempdir().unwrap();
    for missing in [0, 1] {
        Journal::usual().write(dir.path());
        fs::remove_file(dir.path().join(file_name(missing))).unwrap();
        let report = verify(dir.path(), None);
        let first = Journal::usual().groups[usize::try_from(missing).unwrap()][0].1;
        assert_eq!(
            (report.problem, report.index),
            (Some(Problem::Gap), Some(first))
        );
    }
}

#[test]
fn swapped_and_repeated_groups_are_reorderings() {
    let journal = Journal::usual();
    let cut = |segment: usize, at: usize| {
        journal.segments[segment][at..at + journal.group_len(segment, at)].to_vec()
    };
    let (one, two) = (
        cut(0, journal.groups[0][1].0),
        cut(0, journal.groups[0][2].0),
    );
    let mut swapped = Journal::usual();
    let at = journal.groups[0][1].0;
    let end = at + one.len() + two.len();
    swapped.segments[0].splice(at..end, [two.clone(), one.clone()].concat());
    let report = swapped.verify(None);
    assert_eq!(
        (report.problem, report.index),
        (Some(Problem::Reordered), Some(1))
    );

    let mut twice = Journal::usual();
    twice.segments[0].splice(end..end + two.len(), two);
    let report = twice.verify(None);
    assert_eq!(
        (report.problem, report.index),
        (Some(Problem::Reordered), Some(6))
    );

    // What is missing is in the next file, or in the one after it.
    for (with, first) in [(1, 6), (0, 0)] {
        let mut files = Journal::usual();
        files.segments.swap(with, 2);
        let report = files.verify(None);
        assert_eq!(
            (report.problem, report.index),
            (Some(Problem::Reordered), Some(first))
        );
    }
}

#[test]
fn lines_swapped_in_a_resealed_group_are_found() {
    // Somebody who sets lengths, head and digest right again.
    let journal = Journal::usual();
    let (at, first) = journal.groups[0][1];
    let group = Group::decode(&journal.segments[0][at..]).unwrap();
    let reseal = |order: &[usize]| {
        let mut builder = Builder::default();
        for line in order {
            let entry = &group.entries[*line];
            builder.push(entry.bytes, entry.attached.iter().copied());
        }
        let mut changed = Journal::usual();
        let bytes = builder.finish(group.header).unwrap().1;
        changed.segments[0][at..at + group.len()].fill(0);
        changed.segments[0][at..at + bytes.len()].copy_from_slice(&bytes);
        let report = changed.verify(None);
        (report.problem, report.index)
    };
    assert_eq!(
        reseal(&[0, 2, 1]),
        (Some(Problem::Reordered), Some(first + 1))
    );
    assert_eq!(reseal(&[1, 0, 2]), (Some(Problem::Reordered), Some(first)));
    assert_eq!(
        reseal(&[0, 1, 1, 2]),
        (Some(Problem::Reordered), Some(first + 2))
    );
    assert_eq!(reseal(&[0, 2]), (Some(Problem::Gap), Some(first + 1)));
    assert_eq!(reseal(&[0, 1]).1, Some(first + 2));
    assert_eq!(reseal(&[0, 1, 2]), (None, None));
}

#[test]
fn every_flipped_bit_of_every_entry_names_it() {
    // J05, without chance: one bit of each byte of each group.
    let journal = Journal::new(&[&[1, 2], &[2], &[3]]);
    let dir = tempfile::tempdir().unwrap();
    journal.write(dir.path());
    for (number, segment) in (0..).zip(0..journal.segments.len()) {
        let path = dir.path().join(file_name(number));
        let mut bytes = journal.segments[segment].clone();
        for at in 0..journal.end(segment) {
            bytes[at] ^= 1 << (at % 8);
            overwrite(&path, &bytes);
            bytes[at] = journal.segments[segment][at];
            let report = verify(dir.path(), None);
            assert!(!report.whole, "segment {segment}, byte {at}");
            let owners = journal.owners(segment, at);
            let index = report.index.unwrap();
            assert!(
                owners.contains(&index),
                "segment {segment}, byte {at}: {report:?}, not {owners:?}"
            );
        }
        overwrite(&path, &bytes);
    }
    assert!(verify(dir.path(), None).whole);
}

#[test]
fn the_reader_reads_what_the_verifier_verifies() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = Journal::usual();
    let (at, _) = journal.groups[2][1];
    let whole = journal.segments[2].clone();
    journal.segments[2][at + BLOCK..].fill(0);
    journal.write(dir.path());
    let mut sketched = Reader::new(dir.path());
    let mut sketches = Vec::new();
    while let Some(lines) = sketched.next_sketches(|line| line.leaf).unwrap() {
        sketches.extend(lines);
    }
    assert_eq!(sketches, journal.leaves[..13]);
    let mut reader = Reader::new(dir.path());
    let mut leaves = Vec::new();
    while let Some(entries) = reader.next_group().unwrap() {
        assert!(
            entries
                .iter()
                .all(|e| e.evidence == [b"ey.ey.sig".to_vec()])
        );
        leaves.extend(entries.iter().map(|e| e.leaf));
    }
    assert_eq!(leaves, journal.leaves[..13]);
    // Now the writer gets on; the reader does as well, also one that comes back.
    fs::write(dir.path().join(file_name(2)), &whole).unwrap();
    let mut other = Reader::at(dir.path(), reader.position());
    assert_eq!(reader.next_group().unwrap().unwrap().len(), 3);
    assert_eq!(reader.next_group().unwrap(), None);
    assert_eq!(other.next_group().unwrap().unwrap().len(), 3);
    assert_eq!(other.position(), reader.position());
    assert_eq!(sketched.next_sketches(|_| ()).unwrap().unwrap().len(), 3);
    assert_eq!(sketched.position(), reader.position());
    assert_eq!(
        (reader.position().next, reader.position().head),
        (16, journal.leaves[15])
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn random_mutations_are_found(
        segment in 0usize..3,
        from in any::<prop::sample::Index>(),
        to in any::<prop::sample::Index>(),
        len in 1usize..700,
        kind in 0u8..4,
    ) {
        // J06: insert, delete, duplicate, overwrite.
        let mut journal = Journal::usual();
        let end = journal.end(segment);
        let (from, to) = (from.index(end), to.index(end));
        let part = journal.segments[segment][from..(from + len).min(end)].to_vec();
        let bytes = &mut journal.segments[segment];
        match kind {
            0 => drop(bytes.splice(to..to, part)),
            1 => drop(bytes.drain(from..(from + len).min(end))),
            2 => drop(bytes.splice(to..(to + part.len()).min(end), part)),
            _ => bytes[from..(from + len).min(end)].fill(0),
        }
        let damaged = bytes[..] != Journal::usual().segments[segment];
        let report = journal.verify(Journal::usual().head(16));
        prop_assert_eq!(report.whole, !damaged, "{:?}", report);
    }
}

#[test]
fn a_byte_put_in_or_taken_out_of_the_last_segment_is_found() {
    // It moves every group behind it to where no group should start.
    for (put_in, at_group) in [(true, 0), (false, 0)] {
        let mut journal = Journal::usual();
        let (at, first) = journal.groups[2][at_group];
        let len = journal.segments[2].len();
        if put_in {
            journal.segments[2].insert(at + 200, b'x');
        } else {
            journal.segments[2].remove(at + 200);
        }
        journal.segments[2].resize(len, 0);
        let report = journal.verify(None);
        assert!(!report.whole, "put in: {put_in}");
        assert_eq!(report.problem, Some(Problem::Changed), "put in: {put_in}");
        assert!(report.entries <= first, "{report:?}");
    }
}

#[test]
fn more_rubbish_than_one_write_can_leave_is_found() {
    let mut journal = Journal::usual();
    let (at, _) = journal.groups[2][0];
    journal.segments[2].truncate(at);
    journal.segments[2].extend((0..audit::group::MAX_GROUP + 1).map(|n| (n % 251) as u8 | 1));
    assert!(!journal.verify(None).whole);
}
