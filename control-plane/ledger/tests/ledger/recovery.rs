//! What a crash, a damaged file or a replaced one leaves behind.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use crate::common::*;
use audit::{
    Problem,
    group::{BLOCK, Group},
    segment::file_name,
    verify,
};
use ledger::{Ledger, OpenError, Options, model::*};

#[tokio::test]
async fn nothing_that_was_spent_or_outstanding_returns() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), TestClock::new());
    let d = |n| [n; 32];
    let ledger = clock.open(dir.path());
    for name in ["spent", "outstanding", "held", "approved", "denied"] {
        ledger.commit(issue(token(name))).await.unwrap();
    }
    ledger
        .commit(Command::Discover {
            agent: "stranger".into(),
        })
        .await
        .unwrap();
    ledger
        .commit(hold("held", "1", approval("pending", d(1))))
        .await
        .unwrap();
    ledger
        .commit(hold("approved", "2", approval("approved", d(2))))
        .await
        .unwrap();
    ledger
        .commit(hold("denied", "3", approval("denied", d(3))))
        .await
        .unwrap();
    ledger.commit(answer("approved", d(2), true)).await.unwrap();
    ledger.commit(answer("denied", d(3), false)).await.unwrap();
    ledger.commit(allow("spent", "4", None)).await.unwrap();
    let approvals = ledger.approvals();
    let (entries, head) = ledger.head();
    ledger.shutdown().await;

    let (ledger, report) = Ledger::open(clock.options(dir.path())).unwrap();
    assert_eq!(
        (report.created, report.replayed, report.head, report.epoch),
        (false, entries, head, 2)
    );
    assert_eq!(report.torn, None);
    for name in ["spent", "outstanding", "held", "approved", "denied"] {
        assert_eq!(
            (
                ledger.token(&hash(name)).await.unwrap(),
                ledger.spent(&hash(name)).await.unwrap()
            ),
            (None, None)
        );
        for again in [
            allow(name, "9", None),
            deny(name, "9"),
            hold(name, "9", approval("x", d(1))),
            lapse(name, "1"),
        ] {
            assert_eq!(
                ledger.commit(again).await,
                Err(Refused::NotOutstanding(None)),
                "{name}"
            );
        }
    }
    assert_eq!(
        ledger.approvals(),
        approvals,
        "approvals survive as they were"
    );
    assert_eq!(ledger.discovered(), [("stranger".to_owned(), START)]);
    // The same exchange and request again go through on the approval, once.
    for name in ["again", "and again"] {
        ledger.commit(issue(token(name))).await.unwrap();
    }
    let found = ledger.approved_unused(&d(2)).unwrap();
    ledger
        .commit(allow("again", "1", Some((&found.id, d(2)))))
        .await
        .unwrap();
    ledger.shutdown().await;
    let ledger = clock.open(dir.path());
    assert_eq!(ledger.approved_unused(&d(2)), None);
    assert_eq!(
        ledger.approval("approved").unwrap().state,
        ApprovalState::Consumed
    );
    assert!(verify(dir.path(), Some((entries, head))).whole);
}

#[tokio::test]
async fn time_goes_on_from_the_journal() {
    // J10: the clock was set back while the ledger was down.
    let (dir, clock) = (tempfile::tempdir().unwrap(), TestClock::new());
    let ledger = clock.open(dir.path());
    clock.set(START + 5_000);
    ledger.commit(note("config", 0)).await.unwrap();
    ledger.shutdown().await;
    clock.set(START - 1_000_000);
    let ledger = clock.open(dir.path());
    // In the next second of its time, so that seconds tell the two apart.
    assert_eq!(ledger.now(), START + 6_000);
    assert!(verify(dir.path(), None).whole);
}

/// A journal with a few groups, and where each of them starts in its one segment.
async fn journal(dir: &Path) -> (Vec<u8>, Vec<usize>) {
    let clock = TestClock::new();
    let options = Options {
        segment_len: 16 * 1024,
        ..clock.options(dir)
    };
    let (ledger, _) = Ledger::open(options).unwrap();
    for name in ["a", "b"] {
        ledger.commit(issue(token(name))).await.unwrap();
    }
    ledger.commit(allow("a", "1", None)).await.unwrap();
    ledger
        .commit(hold("b", "2", approval("apr", [1; 32])))
        .await
        .unwrap();
    ledger.shutdown().await;
    let bytes = fs::read(dir.join(file_name(0))).unwrap();
    let mut starts = vec![0];
    while let Ok(group) = Group::decode(&bytes[*starts.last().unwrap()..]) {
        starts.push(starts.last().unwrap() + group.len());
    }
    (bytes, starts)
}

/// A directory in which one journal after another is put.
struct Place {
    dir: PathBuf,
    clock: TestClock,
}

impl Place {
    fn open(&self, segment: &[u8]) -> Result<(Ledger, ledger::OpenReport), OpenError> {
        fs::write(self.dir.join(file_name(0)), segment).unwrap();
        Ledger::open(Options {
            segment_len: 16 * 1024,
            ..self.clock.options(&self.dir)
        })
    }
}

fn place(home: &Path) -> Place {
    let dir = home.join("copy");
    fs::create_dir(&dir).unwrap();
    Place {
        dir,
        clock: TestClock::new(),
    }
}

#[tokio::test]
async fn a_write_that_stopped_at_any_byte_is_cut_and_said_so() {
    // H19, H21: every prefix of the last two groups, then every subset of lost blocks.
    let home = tempfile::tempdir().unwrap();
    let (whole, starts) = journal(&home.path().join("journal")).await;
    let place = place(home.path());
    let groups = starts.len() - 1;
    for last in [groups - 2, groups - 1] {
        let (from, to) = (starts[last], starts[last + 1]);
        let mut torn: Vec<Vec<u8>> = Vec::new();
        // Every byte of the last group, and every third of the one before.
        for end in (from..to).step_by(if last == groups - 1 { 1 } else { 3 }) {
            let mut bytes = whole.clone();
            bytes[end..].fill(0);
            torn.push(bytes);
        }
        for lost in 1u32..1 << ((to - from) / BLOCK) {
            let mut bytes = whole.clone();
            bytes[to..].fill(0);
            for block in (0..(to - from) / BLOCK).filter(|block| lost >> block & 1 == 1) {
                bytes[from + block * BLOCK..from + (block + 1) * BLOCK].fill(0);
            }
            torn.push(bytes);
        }
        for bytes in torn {
            let cut = bytes[from..]
                .iter()
                .rposition(|b| *b != 0)
                .map_or(0, |at| at + 1);
            let (ledger, report) = place.open(&bytes).unwrap();
            // One line per group here, so groups are entries.
            assert_eq!(report.replayed, last as u64, "{cut} bytes");
            assert_eq!(
                report.torn.as_ref().map(|t| (t.offset, t.bytes)),
                (cut > 0).then_some((from as u64, cut as u64))
            );
            let entries = ledger.head();
            assert_eq!(entries.0, last as u64 + if cut > 0 { 2 } else { 1 });
            ledger.shutdown().await;
            let verified = verify(&place.dir, Some(entries));
            assert!(verified.whole, "{verified:?}");
            let kinds: Vec<String> = lines(&place.dir).into_iter().map(|e| e.line.kind).collect();
            let said = kinds.get(last..).unwrap();
            assert_eq!(
                said,
                if cut > 0 {
                    &["torn", "epoch"][..]
                } else {
                    &["epoch"]
                }
            );
        }
    }
}

#[tokio::test]
async fn damage_to_what_was_durable_refuses_to_start() {
    let home = tempfile::tempdir().unwrap();
    let (whole, starts) = journal(&home.path().join("journal")).await;
    let place = place(home.path());
    let last = *starts.iter().rev().nth(1).unwrap();
    for at in (0..last).step_by(11) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        let group = starts.iter().rposition(|start| *start <= at).unwrap();
        let attachment_only = Group::decode(&bytes[starts[group]..]).is_ok();
        match place.open(&bytes) {
            // Evidence may be erased one day: it is the verifier's business.
            Ok((ledger, _)) if attachment_only => ledger.shutdown().await,
            Err(OpenError::Damaged { index, offset, .. }) if !attachment_only => {
                assert_eq!(
                    (index, offset),
                    (group as u64, starts[group] as u64),
                    "byte {at}"
                );
                assert_eq!(
                    fs::read(place.dir.join(file_name(0))).unwrap(),
                    bytes,
                    "left as it was"
                );
            }
            other => panic!("byte {at}: {:?}", other.map(|(_, report)| report)),
        }
        fs::write(place.dir.join(file_name(0)), &bytes).unwrap();
        let report = verify(&place.dir, None);
        assert!(
            !report.whole && report.index == Some(group as u64),
            "byte {at}: {report:?}"
        );
    }
    for (from, to) in starts
        .iter()
        .zip(&starts[1..])
        .filter(|(from, _)| **from < last)
    {
        let mut bytes = whole.clone();
        bytes[*from..*to].fill(0);
        assert!(
            matches!(place.open(&bytes), Err(OpenError::Damaged { .. })),
            "a hole at {from}"
        );
        assert_eq!(verify(&place.dir, None).problem, Some(Problem::Gap));
    }
}

#[tokio::test]
async fn a_journal_that_is_gone_is_not_begun_anew_by_itself() {
    // H23.
    let (dir, clock) = (tempfile::tempdir().unwrap(), TestClock::new());
    let ledger = clock.open(dir.path());
    ledger.commit(note("config", 0)).await.unwrap();
    ledger.shutdown().await;
    let segment = dir.path().join(file_name(0));
    let refused = |options| match Ledger::open(options) {
        Err(OpenError::NoJournal(_)) => {}
        other => panic!("{:?}", other.map(|(_, report)| report)),
    };
    let whole = fs::read(&segment).unwrap();
    fs::write(&segment, vec![0; SEGMENT]).unwrap();
    refused(clock.options(dir.path()));
    fs::write(&segment, b"").unwrap();
    refused(clock.options(dir.path()));
    fs::remove_file(&segment).unwrap();
    refused(clock.options(dir.path()));

    let mut first_bad = whole.clone();
    first_bad[100] ^= 1;
    fs::write(&segment, &first_bad).unwrap();
    for init in [false, true] {
        let error = Ledger::open(Options {
            init,
            ..clock.options(dir.path())
        })
        .map(|_| ())
        .unwrap_err();
        assert!(
            matches!(error, OpenError::Damaged { index: 0, .. }),
            "{error}"
        );
    }
    fs::remove_file(&segment).unwrap();
    let (_, report) = Ledger::open(Options {
        init: true,
        ..clock.options(dir.path())
    })
    .unwrap();
    assert!(report.created && report.epoch == 1);
}

#[tokio::test]
async fn missing_and_foreign_segments_refuse() {
    let (home, clock) = (tempfile::tempdir().unwrap(), TestClock::new());
    let fill = async |name: &str| {
        let dir = home.path().join(name);
        let (ledger, _) = Ledger::open(Options {
            segment_len: 16 * 1024,
            ..clock.options(&dir)
        })
        .unwrap();
        for n in 0..80 {
            ledger.commit(note("config", n)).await.unwrap();
        }
        ledger.shutdown().await;
        dir
    };
    let (one, two) = (fill("one").await, fill("two").await);
    assert!(audit::reader::segments(&one).unwrap().len() >= 3);
    let check = |dir: &Path| Ledger::open(clock.options(dir)).map(|_| ()).unwrap_err();
    let copy_of = |name: &str| {
        let dir = home.path().join(name);
        copy(&one, &dir);
        dir
    };
    let missing = copy_of("missing");
    fs::remove_file(missing.join(file_name(1))).unwrap();
    assert!(matches!(
        check(&missing),
        OpenError::Damaged { offset: 0, .. }
    ));
    let foreign = copy_of("foreign");
    fs::copy(two.join(file_name(1)), foreign.join(file_name(1))).unwrap();
    assert!(matches!(
        check(&foreign),
        OpenError::Damaged { offset: 0, .. }
    ));
    assert_eq!(verify(&foreign, None).problem, Some(Problem::Changed));
    let ledger = clock.open(&copy_of("fine"));
    assert_eq!(ledger.head().0, 82);
}

#[tokio::test]
async fn a_journal_that_cannot_go_on_ends_the_process() {
    // H20: here the spare segment is taken away, so that going on fails.
    let (dir, clock) = (tempfile::tempdir().unwrap(), TestClock::new());
    let said = Arc::new(Mutex::new(Vec::new()));
    let hear = Arc::clone(&said);
    let options = Options {
        segment_len: 16 * 1024,
        on_fatal: Arc::new(move |what| hear.lock().unwrap().push(what.to_owned())),
        ..clock.options(dir.path())
    };
    let (ledger, _) = Ledger::open(options).unwrap();
    fs::remove_file(dir.path().join("spare.seg")).unwrap();
    let mut acknowledged = 0;
    while ledger.commit(note("config", acknowledged)).await.is_ok() {
        acknowledged += 1;
    }
    let said = said.lock().unwrap().clone();
    assert!(
        said.len() == 1 && said[0].contains("next journal segment"),
        "{said:?}"
    );
    assert_eq!(
        ledger.commit(note("config", 0)).await,
        Err(Refused::Unavailable)
    );
    assert_eq!(
        ledger.head().0,
        1 + acknowledged as u64,
        "what was not durable is not shown"
    );
    assert_eq!(
        verify(dir.path(), Some(ledger.head())).entries,
        1 + acknowledged as u64
    );
}

#[tokio::test]
async fn on_a_full_disk_only_what_takes_rights_away_goes_on() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), TestClock::new());
    let options = || Options {
        segment_len: 16 * 1024,
        ..clock.options(dir.path())
    };
    let (ledger, _) = Ledger::open(options()).unwrap();
    for name in ["a", "b", "c"] {
        ledger.commit(issue(token(name))).await.unwrap();
    }
    for (name, attempt) in [("a", "1"), ("c", "3")] {
        ledger
            .commit(hold(name, attempt, approval("apr", [1; 32])))
            .await
            .unwrap();
    }
    // No further spare segment can be made: its name is taken by a directory.
    fs::create_dir(dir.path().join("spare.seg.tmp")).unwrap();
    let segments = || audit::reader::segments(dir.path()).unwrap().len();
    let mut n = 0;
    while segments() < 2 {
        ledger.commit(note("config", n)).await.unwrap();
        n += 1;
    }
    // The spare is being made, and fails, in the background.
    let refused = loop {
        match ledger.commit(issue(token(&format!("t{n}")))).await {
            Ok(_) => n += 1,
            Err(refused) => break refused,
        }
    };
    assert_eq!((refused, segments()), (Refused::Full, 2));
    assert_eq!(
        ledger.commit(allow("b", "2", None)).await,
        Err(Refused::Full)
    );
    assert!(ledger.token(&hash("b")).await.unwrap().is_some());
    for kind in NOTE_KINDS {
        let taken = ledger.commit(note(kind, n)).await.is_ok();
        assert_eq!(taken, RESERVED_NOTE_KINDS.contains(kind), "{kind}");
    }
    ledger.commit(answer("apr", [1; 32], false)).await.unwrap();
    ledger.commit(lapse("a", "1")).await.unwrap();
    let overdue = Command::LapseOverdue {
        held_before_ms: START + 1,
    };
    ledger.commit(overdue).await.unwrap();
    while ledger.commit(note("config", n)).await.is_ok() {
        n += 1;
    }
    assert_eq!(
        ledger.commit(note("config", n)).await,
        Err(Refused::Full),
        "full to the end, and still alive"
    );
    assert!(verify(dir.path(), Some(ledger.head())).whole);
    // Space comes back.
    fs::remove_dir(dir.path().join("spare.seg.tmp")).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(1_100));
    ledger.commit(note("config", n)).await.unwrap();
    ledger.commit(allow("b", "2", None)).await.unwrap();
    assert!(segments() >= 3);
}
