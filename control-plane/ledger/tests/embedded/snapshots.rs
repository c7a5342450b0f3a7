//! A start goes on from a snapshot that the journal proves, and from no other.

use std::{fs, path::Path, sync::Arc, time::Duration};

use crate::common::*;
use audit::{leaf_hash, segment::file_name};
use ledger::{Ledger, OpenError, Options, SnapshotEvery, model::*, tools};

fn often(clock: &TestClock, dir: &Path) -> Options {
    Options {
        snapshots: SnapshotEvery {
            entries: 20,
            segments: 1_000,
            at_shutdown: 1,
        },
        segment_len: 32 * 1024,
        ..clock.options(dir)
    }
}

/// Approvals in every state, discovered agents, tokens in between.
async fn work(ledger: &Ledger, rounds: usize) {
    for n in 0..rounds {
        let name = |what: &str| format!("{what}-{n}");
        for what in ["spent", "pending", "approved", "denied", "used"] {
            let mut token = token(&name(what));
            token.agent = format!("spiffe://writ.example/agent/{n}");
            ledger.commit(issue(token)).await.unwrap();
        }
        for what in ["pending", "approved", "denied", "used"] {
            let id = name(what);
            let mut asked = approval(&id, leaf_hash(id.as_bytes()));
            asked.agent = format!("spiffe://writ.example/agent/{n}");
            ledger.commit(hold(&id, &id, asked)).await.unwrap();
        }
        for (what, yes) in [("approved", true), ("denied", false), ("used", true)] {
            let id = name(what);
            let digest = leaf_hash(id.as_bytes());
            ledger.commit(answer(&id, digest, yes)).await.unwrap();
        }
        let used = name("used");
        let digest = leaf_hash(used.as_bytes());
        let consumed = allow(&used, &used, Some((&used, digest)));
        ledger.commit(consumed).await.unwrap();
        ledger
            .commit(allow(&name("spent"), &name("spent"), None))
            .await
            .unwrap();
        let agent = name("stranger");
        ledger.commit(Command::Discover { agent }).await.unwrap();
    }
}

fn snapshots(dir: &Path) -> Vec<String> {
    let mut found: Vec<String> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("snapshot-"))
        .collect();
    found.sort();
    found
}

/// Waits until a snapshot is proven that covers all but the last few entries.
async fn settled(dir: &Path, ledger: &Ledger) {
    for _ in 0..400 {
        let proofs = lines(dir)
            .iter()
            .filter(|e| e.line.kind == "snapshot")
            .count();
        if proofs > 1 && snapshots(dir).len() <= 2 {
            return;
        }
        ledger.commit(note("config", 0)).await.unwrap();
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("no snapshots: {:?}", snapshots(dir));
}

/// A journal as SIGKILL leaves it, with snapshots in it.
async fn killed(clock: &TestClock, to: &Path) {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(often(clock, dir.path())).unwrap().0;
    work(&ledger, 9).await;
    settled(dir.path(), &ledger).await;
    copy(dir.path(), to);
}

type Shown = (Vec<Approval>, Vec<(String, Millis)>, u64, Hash);

async fn shown(options: Options) -> (Shown, ledger::OpenReport) {
    let (ledger, report) = Ledger::open(options).unwrap();
    let all = (
        ledger.approvals(),
        ledger.discovered(),
        report.entries,
        report.head,
    );
    ledger.shutdown().await;
    (all, report)
}

#[tokio::test]
async fn a_start_from_a_snapshot_is_as_one_from_the_first_entry() {
    let (dirs, clock) = (tempfile::tempdir().unwrap(), TestClock::new());
    let [image, replayed, gone_on] = ["image", "replayed", "gone-on"].map(|n| dirs.path().join(n));
    killed(&clock, &image).await;
    for to in [&replayed, &gone_on] {
        copy(&image, to);
    }
    let (from_all, report) = shown(Options {
        rebuild: true,
        ..clock.options(&replayed)
    })
    .await;
    assert_eq!((report.snapshot, report.replayed), (None, report.entries));
    let (from_snapshot, report) = shown(clock.options(&gone_on)).await;
    assert!(report.snapshot.is_some() && report.passed_over.is_empty());
    assert!(report.replayed < 60, "{report:?}");
    assert_eq!(from_snapshot, from_all);
    assert_eq!(from_all.0.len(), 36);
    for dir in [&replayed, &gone_on] {
        let verified = tools::verify(&clock.options(dir), Some((from_all.2, from_all.3)));
        assert!(verified.is_sound(), "{verified:?}");
        assert!(verified.snapshots.iter().any(|s| s.proven), "{verified:?}");
    }
}

#[tokio::test]
async fn order_survives_where_it_counts() {
    // Which approval is joined, and which ended one is forgotten first.
    let (dir, clock) = (tempfile::tempdir().unwrap(), TestClock::new());
    let ledger = Ledger::open(often(&clock, dir.path())).unwrap().0;
    for (name, rules) in [("z", "one"), ("a", "two")] {
        ledger.commit(issue(token(name))).await.unwrap();
        let mut asked = approval(name, [7; 32]);
        asked.rules = vec![rules.into()];
        ledger.commit(hold(name, name, asked)).await.unwrap();
        ledger.commit(answer(name, [7; 32], true)).await.unwrap();
    }
    let newest = ledger.approved_unused(&[7; 32]).unwrap();
    assert_eq!(newest.id, "a");
    ledger.shutdown().await;
    let (ledger, report) = Ledger::open(often(&clock, dir.path())).unwrap();
    assert_eq!(report.replayed, 1, "the snapshot's own entry");
    assert_eq!(ledger.approved_unused(&[7; 32]), Some(newest));
}

#[tokio::test]
async fn a_snapshot_that_the_journal_does_not_prove_is_not_believed() {
    let (dirs, clock) = (tempfile::tempdir().unwrap(), TestClock::new());
    let image = dirs.path().join("image");
    killed(&clock, &image).await;
    let names = snapshots(&image);
    assert_eq!(names.len(), 2, "{names:?}");
    let (expected, first) = {
        let dir = dirs.path().join("as-it-is");
        copy(&image, &dir);
        shown(clock.options(&dir)).await
    };
    let newest = first.snapshot.unwrap();
    type Damage = fn(&Path, &[String]);
    let cases: [(&str, Damage, bool); 5] = [
        (
            "a changed approval",
            |dir, names| {
                let path = dir.join(&names[1]);
                let text = fs::read_to_string(&path).unwrap();
                let forged = text.replace("\"state\":\"denied\"", "\"state\":\"approved\"");
                assert_ne!(forged, text);
                fs::write(path, forged).unwrap();
            },
            true,
        ),
        (
            "a missing file",
            |dir, names| fs::remove_file(dir.join(&names[1])).unwrap(),
            false,
        ),
        (
            "an empty file",
            |dir, names| fs::write(dir.join(&names[1]), b"").unwrap(),
            true,
        ),
        (
            "one under another's name",
            |dir, names| {
                let older = fs::read(dir.join(&names[0])).unwrap();
                fs::write(dir.join(&names[1]), older).unwrap();
            },
            true,
        ),
        (
            "one without an entry",
            |dir, names| {
                let later = dir.join("snapshot-0000000000999999");
                fs::copy(dir.join(&names[1]), later).unwrap();
                fs::write(dir.join(&names[1]), b"{}").unwrap();
            },
            true,
        ),
    ];
    for (what, damage, passed_over) in cases {
        let dir = dirs.path().join(what);
        copy(&image, &dir);
        damage(&dir, &names);
        let (found, report) = shown(clock.options(&dir)).await;
        assert_eq!(found, expected, "{what}");
        assert!(
            report.snapshot.is_some_and(|n| n < newest),
            "{what}: {report:?}"
        );
        assert_eq!(!report.passed_over.is_empty(), passed_over, "{what}");

        fs::write(dir.join(&names[0]), b"").unwrap();
        for name in snapshots(&dir) {
            fs::write(dir.join(name), b"[]").unwrap();
        }
        let (found, report) = shown(clock.options(&dir)).await;
        assert_eq!((&found.0, &found.1), (&expected.0, &expected.1), "{what}");
        assert_eq!(report.snapshot, None, "{what}");
    }
}

#[tokio::test]
async fn what_is_before_a_snapshot_is_not_read_but_must_be_there() {
    let (dirs, clock) = (tempfile::tempdir().unwrap(), TestClock::new());
    let image = dirs.path().join("image");
    killed(&clock, &image).await;
    assert!(image.join(file_name(2)).exists(), "several segments");
    let first = |dir: &Path| dir.join(file_name(0));

    let changed = dirs.path().join("changed");
    copy(&image, &changed);
    let mut bytes = fs::read(first(&changed)).unwrap();
    bytes[700] ^= 1;
    fs::write(first(&changed), bytes).unwrap();
    let (_, report) = shown(clock.options(&changed)).await;
    assert!(report.snapshot.is_some());
    assert!(!tools::verify(&clock.options(&changed), None).is_sound());
    let rebuilt = tools::rebuild(clock.options(&changed)).await;
    assert!(matches!(
        rebuilt,
        Err(tools::ToolError::Open(OpenError::Damaged { .. }))
    ));

    for (what, cut) in [("missing", false), ("shorter", true)] {
        let dir = dirs.path().join(what);
        copy(&image, &dir);
        if cut {
            let bytes = fs::read(first(&dir)).unwrap();
            fs::write(first(&dir), &bytes[..bytes.len() - 512]).unwrap();
        } else {
            fs::remove_file(first(&dir)).unwrap();
        }
        match Ledger::open(clock.options(&dir)) {
            Err(OpenError::Damaged { path, .. }) => assert_eq!(path, first(&dir)),
            Ok(_) => panic!("{what} was not noticed"),
            Err(error) => panic!("{what}: {error}"),
        }
    }
}

#[tokio::test]
async fn what_is_written_anew_is_read_first() {
    let (dirs, clock) = (tempfile::tempdir().unwrap(), TestClock::new());
    let image = dirs.path().join("image");
    let wide = |dir: &Path| Options {
        segment_len: 1024 * 1024,
        ..often(&clock, dir)
    };
    let ledger = Ledger::open(wide(&image)).unwrap().0;
    work(&ledger, 6).await;
    settled(&image, &ledger).await;
    let kept = dirs.path().join("kept");
    copy(&image, &kept);
    drop(ledger);
    assert!(!kept.join(file_name(1)).exists(), "one segment");
    let (_, report) = {
        let dir = dirs.path().join("good");
        copy(&kept, &dir);
        shown(wide(&dir)).await
    };
    assert!(report.snapshot.is_some(), "{report:?}");
    // A bit of a line, and of what stands beside one; both before the snapshot.
    for at in [700, 300] {
        let dir = dirs.path().join(at.to_string());
        copy(&kept, &dir);
        let path = dir.join(file_name(0));
        let mut bytes = fs::read(&path).unwrap();
        bytes[at] ^= 1;
        fs::write(&path, &bytes).unwrap();
        match Ledger::open(wide(&dir)) {
            Err(OpenError::Damaged { .. }) => {}
            Ok(_) => panic!("damage at {at} was written anew"),
            Err(error) => panic!("{at}: {error}"),
        }
        assert_eq!(fs::read(&path).unwrap(), bytes, "{at}: it was touched");
    }
}

#[tokio::test]
async fn a_journal_that_lost_its_end_is_behind_its_snapshot() {
    let (dirs, clock) = (tempfile::tempdir().unwrap(), TestClock::new());
    let image = dirs.path().join("image");
    killed(&clock, &image).await;
    // Whole as far as it goes: only the segments that are there tell.
    let last = (0..)
        .take_while(|n| image.join(file_name(*n)).exists())
        .last()
        .unwrap();
    for number in 1..=last {
        fs::remove_file(image.join(file_name(number))).unwrap();
    }
    match Ledger::open(clock.options(&image)) {
        Err(OpenError::Behind { path, .. }) => {
            assert_eq!(
                path.file_name().unwrap().to_str(),
                snapshots(&image).last().map(String::as_str)
            );
        }
        Ok(_) => panic!("a cut journal was begun over"),
        Err(error) => panic!("{error}"),
    }
    let found = tools::inspect(&clock.options(&image)).unwrap();
    assert!(found.problem.unwrap().contains("set back"));
    // Taken as a backup it is a new state, and what was ahead of it is gone.
    let report = tools::restore(&image, clock.options(&image)).await.unwrap();
    assert!(report.suspended.is_some());
    let (ledger, _) = Ledger::open(clock.options(&image)).unwrap();
    assert!(ledger.suspended().is_some());
}

#[tokio::test]
async fn rebuilding_takes_a_new_one_and_removes_the_rest() {
    let (dirs, clock) = (tempfile::tempdir().unwrap(), TestClock::new());
    let (dir, listings) = (dirs.path().join("journal"), dirs.path().join("listings"));
    killed(&clock, &dir).await;
    fs::create_dir(&listings).unwrap();
    for name in snapshots(&dir) {
        fs::write(dir.join(name), b"damaged").unwrap();
    }
    let told = Arc::new(std::sync::Mutex::new(Vec::new()));
    let tell = Arc::clone(&told);
    let report = tools::rebuild(Options {
        listings: Some(listings.clone()),
        progress: Some(Arc::new(move |at, of| tell.lock().unwrap().push((at, of)))),
        ..clock.options(&dir)
    })
    .await
    .unwrap();
    assert_eq!(report.replayed, report.entries);
    assert!(!listings.exists());
    let told = told.lock().unwrap().clone();
    assert!(
        told.len() > 1 && told.last().is_some_and(|(at, of)| at == of),
        "{told:?}"
    );
    let found = tools::inspect(&clock.options(&dir)).unwrap();
    assert_eq!(found.problem, None);
    assert!(found.snapshots[0].used, "{found:?}");
    assert!(tools::verify(&clock.options(&dir), None).is_sound());
}

#[tokio::test]
async fn a_start_that_found_little_new_takes_none() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), TestClock::new());
    for _ in 0..4 {
        let ledger = clock.open(dir.path());
        ledger.commit(note("config", 0)).await.unwrap();
        ledger.shutdown().await;
    }
    assert_eq!(snapshots(dir.path()), [""; 0]);
    let found = tools::inspect(&clock.options(dir.path())).unwrap();
    assert_eq!((found.epochs, found.segments, found.problem), (4, 1, None));
}
