//! A command that waited for too long is refused before it changes anything.

use std::{
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use crate::common::*;
use ledger::{Ledger, Options, model::*};

#[tokio::test(flavor = "multi_thread")]
async fn what_waited_too_long_is_refused_unless_it_takes_rights_away() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), TestClock::new());
    let gate = Arc::new((Mutex::new(()), Condvar::new(), AtomicBool::new(false)));
    let (passing, time) = (Arc::clone(&gate), clock.options(dir.path()).clock);
    let options = Options {
        // The ledger's thread reads the clock for each command: here it can be held up.
        clock: Arc::new(move || {
            let guard = passing.0.lock().unwrap();
            drop(
                passing
                    .1
                    .wait_while(guard, |()| passing.2.load(Ordering::SeqCst)),
            );
            time()
        }),
        queue_wait: Duration::from_millis(200),
        ..clock.options(dir.path())
    };
    let ledger = Ledger::open(options).unwrap().0;
    for name in ["held", "late"] {
        ledger.commit(issue(token(name))).await.unwrap();
    }
    let asked = approval("apr", [1; 32]);
    ledger.commit(hold("held", "1", asked)).await.unwrap();
    let (entries, _) = ledger.head();

    gate.2.store(true, Ordering::SeqCst);
    let commit = |command| {
        let ledger = ledger.clone();
        tokio::spawn(async move { ledger.commit(command).await })
    };
    let in_time = commit(note("config", 0));
    tokio::time::sleep(Duration::from_millis(50)).await;
    let late = commit(allow("late", "2", None));
    let lapsing = commit(lapse("held", "1"));
    tokio::time::sleep(Duration::from_millis(400)).await;
    gate.2.store(false, Ordering::SeqCst);
    gate.1.notify_all();
    in_time.await.unwrap().unwrap();
    assert_eq!(late.await.unwrap(), Err(Refused::Unavailable));
    lapsing.await.unwrap().unwrap();
    assert_eq!(ledger.head().0, entries + 2);
    // It was not touched.
    ledger.commit(allow("late", "3", None)).await.unwrap();
}
