//! A journal that is behind a head that was kept elsewhere, or gone, is not used.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::common::*;
use ledger::{KeptHead, Ledger, OpenError, Options, SnapshotEvery, model::*, tools};

struct World {
    dirs: tempfile::TempDir,
    clock: TestClock,
}

impl World {
    fn new() -> Self {
        Self {
            dirs: tempfile::tempdir().unwrap(),
            clock: TestClock::new(),
        }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dirs.path().join(name)
    }

    fn options(&self) -> Options {
        Options {
            head_copies: vec![self.at("beside"), self.at("elsewhere")],
            ..self.clock.options(&self.at("journal"))
        }
    }

    async fn run(&self, options: Options, notes: usize) -> (u64, Hash) {
        let ledger = Ledger::open(options).unwrap().0;
        for n in 0..notes {
            ledger.commit(note("config", n)).await.unwrap();
        }
        ledger.shutdown().await;
        ledger.head()
    }

    /// Refused, and nothing was written by it.
    fn refused(&self) -> OpenError {
        let before = files(self.dirs.path());
        let error = match Ledger::open(self.options()) {
            Ok(_) => panic!("it opened"),
            Err(error) => error,
        };
        assert_eq!(files(self.dirs.path()), before, "{error}");
        error
    }
}

fn files(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.file_name().unwrap() != "lock" {
            found.push((path.clone(), fs::read(&path).unwrap()));
        }
    }
    found.sort();
    found
}

fn kept(path: &Path) -> KeptHead {
    KeptHead::read(path).unwrap().unwrap()
}

#[tokio::test]
async fn the_head_is_kept_at_each_start_and_stop() {
    let world = World::new();
    let ledger = Ledger::open(world.options()).unwrap().0;
    for copy in ["beside", "elsewhere"] {
        assert_eq!(kept(&world.at(copy)).entries, 1, "{copy}");
    }
    ledger.commit(note("config", 0)).await.unwrap();
    ledger.shutdown().await;
    for copy in ["beside", "elsewhere"] {
        let kept = kept(&world.at(copy));
        assert_eq!(
            (kept.entries, kept.head, kept.epoch),
            (2, ledger.head().1, 1)
        );
    }
    world.run(world.options(), 0).await;
    assert_eq!(kept(&world.at("elsewhere")).epoch, 2);
}

#[tokio::test]
async fn a_journal_that_was_set_back_is_refused_until_it_is_restored() {
    let world = World::new();
    world.run(world.options(), 3).await;
    copy(&world.at("journal"), &world.at("backup"));
    let (entries, head) = world.run(world.options(), 3).await;
    fs::remove_dir_all(world.at("journal")).unwrap();
    copy(&world.at("backup"), &world.at("journal"));
    let error = world.refused();
    match &error {
        OpenError::Behind {
            entries: 4, kept, ..
        } => {
            assert_eq!((kept.entries, kept.head), (entries, head));
        }
        other => panic!("{other}"),
    }
    assert!(error.to_string().contains(" 4 entries") && error.to_string().contains("8"));
    let found = tools::inspect(&world.options()).unwrap();
    assert!(found.problem.unwrap().contains("it was set back"));

    let report = tools::restore(&world.at("journal"), world.options())
        .await
        .unwrap();
    assert_eq!(report.suspended.unwrap().entries, 4);
    let (ledger, _) = Ledger::open(world.options()).unwrap();
    let restored = lines(&world.at("journal"))
        .into_iter()
        .find(|entry| entry.line.kind == "restored")
        .unwrap();
    assert_eq!(restored.line.body["instead_of"][0]["entries"], 8);
    assert_eq!(ledger.suspended().unwrap().index, restored.line.index);
}

#[tokio::test]
async fn a_journal_that_is_gone_is_not_begun_anew_by_itself() {
    // H23.
    for emptied in [false, true] {
        let world = World::new();
        world.run(world.options(), 3).await;
        fs::remove_dir_all(world.at("journal")).unwrap();
        if emptied {
            fs::create_dir(world.at("journal")).unwrap();
        }
        let error = world.refused();
        assert!(
            matches!(&error, OpenError::Gone { kept, .. } if kept.entries == 4),
            "{error}"
        );

        let report = tools::init(world.options()).await.unwrap();
        assert!(report.created && report.suspended.is_some(), "{report:?}");
        let again = tools::init(world.options()).await;
        assert!(matches!(again, Err(tools::ToolError::Occupied(_))));
        let ledger = Ledger::open(world.options()).unwrap().0;
        let refused = ledger.commit(issue(token("a"))).await;
        assert_eq!(refused, Err(Refused::Suspended));
    }
}

#[tokio::test]
async fn a_fresh_place_needs_nobody() {
    let world = World::new();
    let (ledger, report) = Ledger::open(world.options()).unwrap();
    assert!(report.created && report.suspended.is_none());
    ledger.commit(issue(token("a"))).await.unwrap();
}

#[tokio::test]
async fn another_journal_is_refused() {
    let world = World::new();
    world.run(world.options(), 3).await;
    copy(&world.at("journal"), &world.at("fork"));
    let other = Options {
        head_copies: vec![],
        ..world.clock.options(&world.at("other"))
    };
    world.run(other, 5).await;
    // Another log's.
    fs::rename(world.at("journal"), world.at("aside")).unwrap();
    copy(&world.at("other"), &world.at("journal"));
    assert!(matches!(world.refused(), OpenError::Differs { .. }));
    // The same log, gone on differently, and further.
    fs::remove_dir_all(world.at("journal")).unwrap();
    fs::rename(world.at("aside"), world.at("journal")).unwrap();
    world.run(world.options(), 2).await;
    fs::remove_dir_all(world.at("journal")).unwrap();
    world.clock.set(START + 1_000);
    let fork = Options {
        head_copies: vec![],
        ..world.clock.options(&world.at("fork"))
    };
    world.run(fork, 9).await;
    copy(&world.at("fork"), &world.at("journal"));
    assert!(matches!(world.refused(), OpenError::Differs { .. }));
}

#[tokio::test]
async fn an_old_head_is_looked_up_before_the_snapshot() {
    let world = World::new();
    world.run(world.options(), 3).await;
    fs::copy(world.at("elsewhere"), world.at("old")).unwrap();
    let often = || Options {
        snapshots: SnapshotEvery {
            entries: 50,
            segments: 50,
            at_shutdown: 1,
        },
        ..world.options()
    };
    world.run(often(), 400).await;
    fs::copy(world.at("old"), world.at("elsewhere")).unwrap();
    let (ledger, report) = Ledger::open(often()).unwrap();
    assert!(report.snapshot.is_some(), "{report:?}");
    ledger.shutdown().await;

    let mut forged = kept(&world.at("old"));
    forged.head[0] ^= 1;
    forged.write(&world.at("elsewhere")).unwrap();
    assert!(matches!(world.refused(), OpenError::Differs { .. }));
}

#[tokio::test]
async fn a_head_that_cannot_be_read_or_kept_is_said() {
    let world = World::new();
    world.run(world.options(), 3).await;
    fs::write(world.at("elsewhere"), b"{}").unwrap();
    assert!(matches!(world.refused(), OpenError::HeadCopy { .. }));
    // Beginning anew overrides it, but no more lightly than one that can be read.
    let begun = Options {
        dir: world.at("anew"),
        head_copies: vec![world.at("elsewhere")],
        ..world.options()
    };
    let report = tools::init(begun).await.unwrap();
    assert!(report.suspended.is_some(), "{report:?}");
    fs::write(world.at("elsewhere"), b"{}").unwrap();
    // A lost one is not: it could have been named just now.
    fs::remove_file(world.at("elsewhere")).unwrap();
    world.run(world.options(), 0).await;
    let nowhere = Options {
        head_copies: vec![world.at("nowhere/head")],
        ..world.options()
    };
    let opened = Ledger::open(nowhere);
    assert!(matches!(opened, Err(OpenError::HeadCopy { .. })));
}
