//! A process that has no file descriptor left. Its own binary, since the limit
//! is the whole process's.

use std::{sync::Arc, time::Duration};

use ledger::{Ledger, Options, model::*};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

const NOW: Millis = 1_790_000_000_000;

#[tokio::test]
async fn the_journal_goes_on_without_a_new_descriptor() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        segment_len: 16 * 1024,
        on_fatal: Arc::new(|what| eprintln!("fatal: {what}")),
        ..Options::new(dir.path(), Arc::new(|| NOW))
    };
    let (ledger, _) = Ledger::open(options).unwrap();
    let note = |n: usize| Command::Note {
        kind: "proxy",
        body: serde_json::json!({ "n": n }),
    };
    let usual = getrlimit(Resource::Nofile);
    let none = Rlimit {
        current: Some(0),
        ..usual
    };
    setrlimit(Resource::Nofile, none).unwrap();
    let opened = std::fs::File::open(dir.path());
    // It goes on to the spare segment, but no further one can be made.
    let mut written = 0;
    let refused = loop {
        match ledger.commit(note(written)).await {
            Ok(_) => written += 1,
            Err(refused) => break refused,
        }
    };
    let still = ledger
        .commit(Command::Note {
            kind: "gap",
            body: serde_json::json!({}),
        })
        .await;
    setrlimit(Resource::Nofile, usual).unwrap();

    assert!(opened.is_err(), "the limit holds");
    let segments = || audit::reader::segments(dir.path()).unwrap().len();
    assert_eq!((refused, segments()), (Refused::Full, 2));
    still.unwrap();
    // Descriptors come back.
    std::thread::sleep(Duration::from_millis(1_100));
    for n in 0..100 {
        ledger.commit(note(n)).await.unwrap();
    }
    assert!(segments() > 3, "{} segments", segments());
    let report = audit::verify(dir.path(), Some(ledger.head()));
    assert!(report.whole, "{report:?}");
}
