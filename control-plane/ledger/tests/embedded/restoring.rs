//! H22: what a restored backup gives back is nothing, until an admin says so.

use std::{fs, path::Path};

use crate::common::*;
use audit::segment::file_name;
use ledger::{Ledger, Options, model::*, tools};

const D: Hash = [9; 32];

/// A backup of a journal with an approved approval, and what was used since.
async fn backup(clock: &TestClock, to: &Path) -> Hash {
    let dir = tempfile::tempdir().unwrap();
    let ledger = clock.open(dir.path());
    for name in ["asked", "spent", "outstanding"] {
        ledger.commit(issue(token(name))).await.unwrap();
    }
    ledger
        .commit(hold("asked", "1", approval("apr", D)))
        .await
        .unwrap();
    ledger.commit(answer("apr", D, true)).await.unwrap();
    copy(dir.path(), to);
    let (_, head) = ledger.head();
    ledger
        .commit(allow("asked", "1", Some(("apr", D))))
        .await
        .unwrap();
    ledger.commit(allow("spent", "2", None)).await.unwrap();
    head
}

#[tokio::test]
async fn nothing_that_was_used_since_the_backup_comes_back() {
    let (dirs, clock) = (tempfile::tempdir().unwrap(), TestClock::new());
    let [from, dir] = ["backup", "journal"].map(|n| dirs.path().join(n));
    let head = backup(&clock, &from).await;
    // A half-done restore of before is no hindrance, nor is an empty place.
    fs::create_dir(dirs.path().join("journal.restoring")).unwrap();
    fs::write(
        dirs.path().join("journal.restoring/0000000000000000.seg"),
        b"x",
    )
    .unwrap();
    fs::create_dir(&dir).unwrap();
    let report = tools::restore(&from, clock.options(&dir)).await.unwrap();
    assert_eq!(report.head, head);
    assert!(!dirs.path().join("journal.restoring").exists());

    let (ledger, report) = Ledger::open(clock.options(&dir)).unwrap();
    let waiting = ledger.suspended().unwrap();
    assert_eq!(report.suspended.as_ref(), Some(&waiting));
    assert_eq!((waiting.entries, waiting.head), (6, head));
    assert_eq!(ledger.approved_unused(&D), None);
    assert_eq!(
        ledger.approval("apr").unwrap().state,
        ApprovalState::Expired
    );
    for grants in [
        issue(token("new")),
        allow("outstanding", "3", None),
        allow("asked", "3", Some(("apr", D))),
        hold("outstanding", "3", approval("other", D)),
        answer("apr", D, true),
    ] {
        assert_eq!(ledger.commit(grants).await, Err(Refused::Suspended));
    }
    // What takes away, and what is said, goes on.
    ledger.commit(note("login", 1)).await.unwrap();
    let denied = ledger.commit(deny("outstanding", "3")).await;
    assert_eq!(denied, Err(Refused::NotOutstanding(None)));

    let confirm = |restored| Command::ConfirmRestore {
        restored,
        by: "operator".into(),
    };
    let wrong = ledger.commit(confirm(waiting.index + 1)).await;
    assert_eq!(wrong, Err(Refused::AttemptKnown));
    ledger.commit(confirm(waiting.index)).await.unwrap();
    assert_eq!(ledger.suspended(), None);
    let again = ledger.commit(confirm(waiting.index)).await;
    assert_eq!(again, Err(Refused::AttemptKnown));
    ledger.commit(issue(token("new"))).await.unwrap();
    for (name, approval) in [
        ("spent", None),
        ("outstanding", None),
        ("asked", Some(("apr", D))),
    ] {
        let again = ledger.commit(allow(name, "4", approval)).await;
        assert_eq!(again, Err(Refused::NotOutstanding(None)), "{name}");
    }
    let used = ledger.commit(allow("new", "5", Some(("apr", D)))).await;
    let expired = Some(ApprovalState::Expired);
    assert_eq!(used, Err(Refused::ApprovalState(expired)));
    ledger.shutdown().await;
    // Confirmed once is confirmed.
    let (_, report) = Ledger::open(clock.options(&dir)).unwrap();
    assert_eq!(report.suspended, None);
    assert!(audit::verify(&dir, Some((6, head))).whole);
}

#[tokio::test]
async fn a_suspension_outlives_starts_and_snapshots() {
    let (dirs, clock) = (tempfile::tempdir().unwrap(), TestClock::new());
    let [from, dir] = ["backup", "journal"].map(|n| dirs.path().join(n));
    backup(&clock, &from).await;
    tools::restore(&from, clock.options(&dir)).await.unwrap();
    tools::rebuild(clock.options(&dir)).await.unwrap();
    let (ledger, report) = Ledger::open(clock.options(&dir)).unwrap();
    assert!(report.snapshot.is_some() && report.suspended.is_some());
    let refused = ledger.commit(issue(token("new"))).await;
    assert_eq!(refused, Err(Refused::Suspended));
}

#[tokio::test]
async fn a_damaged_backup_is_refused_and_nothing_is_overwritten() {
    let (dirs, clock) = (tempfile::tempdir().unwrap(), TestClock::new());
    let [from, dir] = ["backup", "journal"].map(|n| dirs.path().join(n));
    backup(&clock, &from).await;
    let options = || Options {
        head_copies: vec![dirs.path().join("head")],
        ..clock.options(&dir)
    };
    let ledger = Ledger::open(options()).unwrap().0;
    ledger.shutdown().await;
    let occupied = tools::restore(&from, options()).await;
    assert!(matches!(occupied, Err(tools::ToolError::Occupied(_))));
    fs::remove_dir_all(&dir).unwrap();
    let segment = from.join(file_name(0));
    let whole = fs::read(&segment).unwrap();
    let mut bytes = whole.clone();
    bytes[200] ^= 1;
    fs::write(&segment, bytes).unwrap();
    let damaged = tools::restore(&from, options()).await;
    assert!(matches!(damaged, Err(tools::ToolError::Backup { .. })));
    assert!(!dir.exists());
    fs::write(&segment, whole).unwrap();
    tools::restore(&from, options()).await.unwrap();
    assert!(Ledger::open(options()).is_ok(), "its head is kept again");
}
