//! Many callers, one order; readers while it is written; a full queue.

use std::{
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use crate::{
    common::*,
    rig::{Rig, on_both_stores},
};
use ledger::{Ledger, OpenError, Options, model::*};

on_both_stores! {
    of_many_spends_of_one_token_exactly_one_commits,
    of_many_uses_of_one_approval_exactly_one_commits,
    publishing_is_announced,
}

async fn of_many_spends_of_one_token_exactly_one_commits(rig: Rig) {
    // H01 to H04, with real tasks on one ledger.
    let ledger = rig.open().await;
    for round in 0..40 {
        let name = format!("token {round}");
        ledger.commit(issue(token(&name))).await.unwrap();
        let tasks: Vec<_> = (0..24)
            .map(|n| {
                let (ledger, name) = (ledger.clone(), name.clone());
                tokio::spawn(async move {
                    let attempt = format!("{round}-{n}");
                    let command = if n % 3 == 0 {
                        deny(&name, &attempt)
                    } else {
                        allow(&name, &attempt, None)
                    };
                    ledger.commit(command).await
                })
            })
            .collect();
        let mut spent = 0;
        for task in tasks {
            match task.await.unwrap() {
                Ok(_) => spent += 1,
                Err(Refused::NotOutstanding(Some(_))) => {}
                Err(other) => panic!("{other:?}"),
            }
        }
        assert_eq!(spent, 1, "{name}");
    }
    let decided = rig
        .lines(&ledger)
        .await
        .into_iter()
        .filter(|e| ["allow", "deny"].contains(&e.kind.as_str()));
    assert_eq!(decided.count(), 40);
}

async fn of_many_uses_of_one_approval_exactly_one_commits(rig: Rig) {
    let ledger = rig.open().await;
    let digest = [9; 32];
    for n in 0..16 {
        let name = n.to_string();
        ledger.commit(issue(token(&name))).await.unwrap();
        ledger
            .commit(hold(&name, &name, approval(&format!("apr_{n}"), digest)))
            .await
            .unwrap();
    }
    assert_eq!(ledger.approvals().len(), 1);
    ledger.commit(answer("apr_0", digest, true)).await.unwrap();
    let tasks: Vec<_> = (0..16)
        .map(|n| {
            let ledger = ledger.clone();
            tokio::spawn(async move {
                let name = n.to_string();
                ledger
                    .commit(allow(&name, &name, Some(("apr_0", digest))))
                    .await
                    .is_ok()
            })
        })
        .collect();
    let mut used = 0;
    for task in tasks {
        used += usize::from(task.await.unwrap());
    }
    assert_eq!(used, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_journal_verifies_at_every_moment_of_being_written() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), TestClock::new());
    let ledger = clock.open(dir.path());
    let stop = Arc::new(AtomicBool::new(false));
    let verifier = {
        let (dir, stop, ledger) = (dir.path().to_owned(), Arc::clone(&stop), ledger.clone());
        std::thread::spawn(move || {
            let mut looks = 0;
            let mut reader = audit::reader::Reader::new(&dir);
            while !stop.load(Ordering::SeqCst) || looks == 0 {
                // Whatever was durable before looking must be there, and whole.
                let report = audit::verify(&dir, Some(ledger.head()));
                assert!(report.whole, "{report:?}");
                while reader.next_group().unwrap().is_some() {}
                looks += 1;
            }
            (looks, reader.position().next)
        })
    };
    let writers: Vec<_> = (0..8)
        .map(|task| {
            let ledger = ledger.clone();
            tokio::spawn(async move {
                for n in 0..60 {
                    let name = format!("{task}.{n}");
                    ledger.commit(issue(token(&name))).await.unwrap();
                    ledger.commit(allow(&name, &name, None)).await.unwrap();
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    stop.store(true, Ordering::SeqCst);
    let (looks, read) = verifier.join().unwrap();
    assert!(looks > 1 && read > 0, "{looks} looks, {read} read");
    let segments = audit::reader::segments(dir.path()).unwrap().len();
    assert!(segments > 3, "it went through {segments} segments");
    assert_eq!(ledger.head().0, 1 + 8 * 60 * 2);
}

/// A clock that stands still until it is let go: it stops the ledger's thread.
#[derive(Default)]
struct Gate {
    closed: Mutex<bool>,
    changed: Condvar,
}

impl Gate {
    fn pass(&self) -> Millis {
        let closed = self.closed.lock().unwrap();
        drop(self.changed.wait_while(closed, |closed| *closed).unwrap());
        START
    }

    fn set(&self, closed: bool) {
        *self.closed.lock().unwrap() = closed;
        self.changed.notify_all();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_refuses_and_recovers() {
    let (dir, clock, gate) = (
        tempfile::tempdir().unwrap(),
        TestClock::new(),
        Arc::new(Gate::default()),
    );
    let passing = Arc::clone(&gate);
    let options = Options {
        clock: Arc::new(move || passing.pass()),
        queue_entries: 5,
        queue_bytes: 60_000,
        ..clock.options(dir.path())
    };
    let (ledger, _) = Ledger::open(options).unwrap();
    let fill = |bytes: usize| {
        let ledger = ledger.clone();
        let mut command = issue(token(&format!("{bytes}")));
        if let Command::Issue { attachments, .. } = &mut command {
            attachments.push(Evidence::new("token", &vec![b'x'; bytes]));
        }
        tokio::spawn(async move { ledger.commit(command).await })
    };
    for (count, bytes) in [(5, 10), (1, 50_000)] {
        gate.set(true);
        // The first is taken off the queue and stands in the gate.
        let stuck = tokio::spawn({
            let ledger = ledger.clone();
            async move { ledger.commit(note("config", 0)).await }
        });
        tokio::time::sleep(Duration::from_millis(100)).await;
        let queued: Vec<_> = (0..count).map(|n| fill(bytes + n)).collect();
        tokio::time::sleep(Duration::from_millis(100)).await;
        let (entries, _) = ledger.head();
        assert_eq!(
            fill(bytes + 100).await.unwrap(),
            Err(Refused::Unavailable),
            "{count} of {bytes}"
        );
        assert_eq!(ledger.head().0, entries, "nothing was written meanwhile");
        gate.set(false);
        stuck.await.unwrap().unwrap();
        for job in queued {
            job.await.unwrap().unwrap();
        }
        ledger.commit(note("config", 1)).await.unwrap();
    }
}

#[tokio::test]
async fn one_writer_only_and_none_after_shutdown() {
    // H24.
    let (dir, clock) = (tempfile::tempdir().unwrap(), TestClock::new());
    let ledger = clock.open(dir.path());
    let second = Ledger::open(clock.options(dir.path()))
        .map(|_| ())
        .unwrap_err();
    assert!(matches!(second, OpenError::Locked(_)), "{second}");
    ledger.commit(note("shutdown", 0)).await.unwrap();
    ledger.shutdown().await;
    assert_eq!(
        ledger.commit(note("shutdown", 1)).await,
        Err(Refused::Unavailable)
    );
    assert_eq!(clock.open(dir.path()).epoch(), 2);
}

async fn publishing_is_announced(rig: Rig) {
    let ledger = rig.open().await;
    rig.head(&ledger).await;
    let mut follower = ledger.subscribe();
    assert_eq!(*follower.borrow_and_update(), 1);
    ledger.commit(note("config", 0)).await.unwrap();
    follower.changed().await.unwrap();
    assert_eq!(*follower.borrow(), 2);
}

#[tokio::test]
async fn listings_follow_and_are_built_anew_when_damaged() {
    let (home, clock) = (tempfile::tempdir().unwrap(), TestClock::new());
    let (dir, listings) = (home.path().join("journal"), home.path().join("listings"));
    let options = || Options {
        listings: Some(listings.clone()),
        ..clock.options(&dir)
    };
    let wait = async |ledger: &Ledger, entries: u64| {
        for _ in 0..400 {
            let newest = ledger.listing(None, 1);
            if newest.first().is_some_and(|e| e.index + 1 == entries) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("listings did not follow: {:?}", ledger.listings_state());
    };
    let (ledger, _) = Ledger::open(options()).unwrap();
    ledger.commit(issue(token("a"))).await.unwrap();
    ledger.commit(allow("a", "1", None)).await.unwrap();
    wait(&ledger, 3).await;
    let listed = ledger.listing(None, 10);
    let kinds: Vec<_> = listed
        .iter()
        .map(|e| (e.index, e.kind.as_str(), e.agent.as_deref()))
        .collect();
    assert_eq!(
        kinds,
        [
            (2, "allow", Some(AGENT)),
            (1, "issue", Some(AGENT)),
            (0, "epoch", None)
        ]
    );
    assert_eq!(ledger.listing(Some(2), 1).first().unwrap().index, 1);
    ledger.shutdown().await;
    drop(ledger);

    // It goes on where it was.
    let (ledger, _) = Ledger::open(options()).unwrap();
    wait(&ledger, 4).await;
    assert_eq!(ledger.listing(None, 10).len(), 4);
    ledger.shutdown().await;
    drop(ledger);
    tokio::time::sleep(Duration::from_millis(300)).await;

    // Damaged, then one whose last opening did not get to its end: decisions go
    // on, listings come back, and what was there is kept aside.
    for (name, entries) in [("b", 6), ("c", 8)] {
        if name == "b" {
            let db = sled::open(&listings).unwrap();
            db.insert(
                [0xff; 8]
                    .iter()
                    .chain(b"position")
                    .copied()
                    .collect::<Vec<u8>>(),
                b"{",
            )
            .unwrap();
            drop(db);
            tokio::time::sleep(Duration::from_millis(300)).await;
        } else {
            std::fs::write(home.path().join("listings.opening"), b"").unwrap();
        }
        let aside = home.path().join(format!("listings.damaged-{START}"));
        assert!(!aside.exists());
        let (ledger, _) = Ledger::open(options()).unwrap();
        ledger.commit(issue(token(name))).await.unwrap();
        wait(&ledger, entries).await;
        assert_eq!(ledger.listing(None, 10).len() as u64, entries);
        std::fs::remove_dir_all(&aside).unwrap();
        ledger.shutdown().await;
        drop(ledger);
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}
