//! `writ ledger` as an operator uses it, on real directories.
#![expect(clippy::unwrap_used, reason = "tests fail loudly")]

use ledger::{Ledger, Options, model::Command};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command as Process, Output};

struct World {
    home: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        Self {
            home: tempfile::tempdir().unwrap(),
        }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// A journal with some entries, as `writ serve` keeps it; its head.
    async fn serve(&self, notes: usize) -> String {
        let clock = control_plane::state::system_clock();
        let mut options = Options::new(self.at("journal"), clock);
        options.head_copies = vec![self.at("journal.head"), self.at("elsewhere")];
        options.snapshots.at_shutdown = 1;
        let ledger = Ledger::open(options).unwrap().0;
        for n in 0..notes {
            let body = serde_json::json!({ "n": n });
            let kind = "config";
            ledger.commit(Command::Note { kind, body }).await.unwrap();
        }
        ledger.shutdown().await;
        let (entries, head) = ledger.head();
        format!("{entries}:{}", hex::encode(head))
    }

    fn writ(&self, args: &[&str]) -> (Option<i32>, String) {
        let Output {
            status,
            stdout,
            stderr,
        } = Process::new(env!("CARGO_BIN_EXE_writ"))
            .args(args)
            .current_dir(self.home.path())
            .output()
            .unwrap();
        let said = [stdout, stderr].map(|bytes| String::from_utf8(bytes).unwrap());
        (status.code(), said.concat())
    }

    fn json(&self, args: &[&str]) -> Value {
        let (_, said) = self.writ(args);
        serde_json::from_str(said.lines().next().unwrap()).unwrap()
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}

#[tokio::test]
async fn inspect_and_verify_say_what_is_there() {
    let world = World::new();
    let head = world.serve(5).await;
    let (code, said) = world.writ(&["ledger", "inspect", "journal"]);
    assert_eq!(code, Some(0), "{said}");
    for part in [
        "starts     1",
        "segments   1",
        "6 entries, a start goes on",
        "the journal has it",
        &head,
    ] {
        assert!(said.contains(part), "no `{part}` in {said}");
    }
    let found = world.json(&["ledger", "inspect", "journal", "--json"]);
    assert_eq!(found["head"], Value::from(head.clone()));
    assert_eq!(found["in_use_by"], Value::Null);
    let verify = ["ledger", "verify", "journal", "--json", "--head", &head];
    let found = world.json(&verify);
    assert_eq!(
        (&found["whole"], &found["entries"]),
        (&true.into(), &7.into())
    );
    assert_eq!(found["snapshots"][0]["proven"], true);
    assert_eq!(world.writ(&verify).0, Some(0));

    let (code, said) = world.writ(&["ledger", "verify", "nowhere"]);
    assert_eq!(code, Some(2), "{said}");
    let snapshot = fs::read_dir(world.at("journal"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| {
            path.file_name()
                .unwrap()
                .to_str()
                .unwrap()
                .starts_with("snapshot-")
        })
        .unwrap();
    fs::write(snapshot, b"{}").unwrap();
    let (code, said) = world.writ(&["ledger", "verify", "journal"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("another digest"), "{said}");
    let (code, said) = world.writ(&["ledger", "rebuild", "journal"]);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(world.writ(&["ledger", "verify", "journal"]).0, Some(0));
}

#[tokio::test]
async fn an_open_journal_names_its_process() {
    let world = World::new();
    let clock = control_plane::state::system_clock();
    let (ledger, _) = Ledger::open(Options::new(world.at("journal"), clock)).unwrap();
    let found = world.json(&["ledger", "inspect", "journal", "--json"]);
    assert_eq!(found["in_use_by"], std::process::id());
    let (code, said) = world.writ(&["ledger", "rebuild", "journal"]);
    assert_eq!(code, Some(2));
    assert!(
        said.contains("in use") && said.contains("writ ledger inspect"),
        "{said}"
    );
    ledger.shutdown().await;
}

#[tokio::test]
async fn a_backup_is_restored_and_a_lost_journal_begun() {
    let world = World::new();
    world.serve(3).await;
    copy(&world.at("journal"), &world.at("backup"));
    world.serve(3).await;
    let restore = [
        "ledger",
        "restore",
        "backup",
        "--dir",
        "journal",
        "--head-copy",
        "elsewhere",
    ];
    let (code, said) = world.writ(&restore);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("move it away first"), "{said}");

    fs::remove_dir_all(world.at("journal")).unwrap();
    copy(&world.at("backup"), &world.at("journal"));
    let inspect = ["ledger", "inspect", "journal", "--head-copy", "elsewhere"];
    let (code, said) = world.writ(&inspect);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("it was set back"), "{said}");
    fs::remove_dir_all(world.at("journal")).unwrap();
    let (code, said) = world.writ(&restore);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("writ ledger confirm"), "{said}");
    let (code, said) = world.writ(&inspect);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("suspended  since entry"), "{said}");

    let init = ["ledger", "init", "journal", "--head-copy", "elsewhere"];
    let (code, said) = world.writ(&init);
    assert_eq!(code, Some(1), "{said}");
    fs::remove_dir_all(world.at("journal")).unwrap();
    let (code, said) = world.writ(&["ledger", "rebuild", "journal"]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("`writ ledger init journal`"), "{said}");
    let (code, said) = world.writ(&init);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("begun: 0 entries"), "{said}");
}

#[test]
fn the_hidden_probe_tells_sound_listings_from_damaged_ones() {
    let world = World::new();
    let listings = world.at("listings");
    assert_eq!(world.writ(&["probe-listings", "listings"]).0, Some(0));
    assert!(listings.join("db").exists());
    fs::remove_dir_all(&listings).unwrap();
    fs::write(&listings, b"no directory").unwrap();
    let (code, said) = world.writ(&["probe-listings", "listings"]);
    assert_ne!(code, Some(0), "{said}");
}
