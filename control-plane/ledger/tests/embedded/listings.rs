//! Damaged listings are tried in another process, set aside, and built anew.

use std::{
    env, fs,
    path::Path,
    process::{Command as Process, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use crate::common::*;
use ledger::{Ledger, ListingsState, Options, Probe, Probed};

const DIR: &str = "LEDGER_TEST_LISTINGS";

/// Not a test of its own: what the other process does.
#[test]
fn trying_listings() {
    if let Some(dir) = env::var_os(DIR) {
        ledger::probe_listings(Path::new(&dir)).unwrap();
    }
}

/// This very program, which runs `trying_listings`.
fn probe(tried: &Arc<Mutex<Vec<Probed>>>) -> Probe {
    let tried = Arc::clone(tried);
    Arc::new(move |dir: &Path| {
        let probed = probe_in_process(dir);
        tried.lock().unwrap().push(probed.clone());
        probed
    })
}

fn probe_in_process(dir: &Path) -> Probed {
    let mut child = Process::new(env::current_exe().unwrap())
        .args(["--exact", "listings::trying_listings"])
        .env(DIR, dir)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let until = Instant::now() + Duration::from_secs(20);
    while Instant::now() < until {
        if let Some(status) = child.try_wait().unwrap() {
            return match status.success() {
                true => Probed::Sound,
                false => Probed::Damaged(status.to_string()),
            };
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    Probed::Damaged("it hangs".into())
}

async fn ready(ledger: &Ledger) -> ListingsState {
    for _ in 0..3_000 {
        match ledger.listings_state() {
            ListingsState::Opening => tokio::time::sleep(Duration::from_millis(10)).await,
            other => return other,
        }
    }
    panic!("the listings stay in opening");
}

fn aside(home: &Path) -> Vec<String> {
    let names = fs::read_dir(home).unwrap();
    names
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("listings.damaged-"))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_damage_is_set_aside_and_what_was_listed_is_there_again() {
    let (home, clock) = (tempfile::tempdir().unwrap(), TestClock::new());
    let (listings, tried) = (home.path().join("listings"), Arc::default());
    let options = || Options {
        listings: Some(listings.clone()),
        probe: Some(probe(&tried)),
        ..clock.options(&home.path().join("journal"))
    };
    let ledger = Ledger::open(options()).unwrap().0;
    for n in 0..300 {
        ledger.commit(note("config", n)).await.unwrap();
    }
    assert_eq!(ready(&ledger).await, ListingsState::Ready);
    assert_eq!(tried.lock().unwrap().len(), 0, "there was nothing to try");
    ledger.shutdown().await;
    drop(ledger);
    tokio::time::sleep(Duration::from_millis(700)).await;

    type Damage = fn(&Path);
    let damages: [(&str, Damage); 6] = [
        ("none", |_| ()),
        ("flipped bits", |dir| {
            let path = dir.join("db");
            let mut bytes = fs::read(&path).unwrap();
            for byte in bytes.iter_mut().filter(|byte| **byte != 0).step_by(5) {
                *byte ^= 0x55;
            }
            fs::write(path, bytes).unwrap();
        }),
        ("no directory behind db", |dir| {
            fs::remove_file(dir.join("db")).unwrap();
            fs::create_dir(dir.join("db")).unwrap();
        }),
        ("values that are none", |dir| {
            let path = dir.join("db");
            let mut bytes = fs::read(&path).unwrap();
            for byte in &mut bytes {
                if *byte == b'{' {
                    *byte = b'<';
                }
            }
            fs::write(path, bytes).unwrap();
        }),
        ("a file in its place", |dir| {
            fs::remove_dir_all(dir).unwrap();
            fs::write(dir, b"no directory").unwrap();
        }),
        ("a snapshot that is none", |dir| {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_file() {
                    fs::write(path, [0xff; 4096]).unwrap();
                }
            }
        }),
    ];
    let mut found = Vec::new();
    for (what, damage) in damages {
        tried.lock().unwrap().clear();
        let before = aside(home.path());
        damage(&listings);
        let (ledger, _) = Ledger::open(options()).unwrap();
        // Decisions do not wait for it.
        ledger.commit(note("config", 1)).await.unwrap();
        assert_eq!(ready(&ledger).await, ListingsState::Ready, "{what}");
        let listed = ledger.listing(None, 1_000);
        assert!(listed.len() > 300, "{what}: {}", listed.len());
        let probed = tried.lock().unwrap().first().cloned().unwrap();
        // Some damage sled mends by forgetting: then it is filled again.
        let is_damaged = matches!(probed, Probed::Damaged(_));
        assert_eq!(aside(home.path()) != before, is_damaged, "{what}");
        if is_damaged {
            found.push(what);
        }
        assert!(aside(home.path()).len() <= 2, "{what}");
        ledger.shutdown().await;
        drop(ledger);
        tokio::time::sleep(Duration::from_millis(700)).await;
    }
    assert!(!found.contains(&"none") && found.len() >= 3, "{found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_tried_is_not_opened() {
    let (home, clock) = (tempfile::tempdir().unwrap(), TestClock::new());
    let listings = home.path().join("listings");
    fs::create_dir(&listings).unwrap();
    let options = Options {
        listings: Some(listings.clone()),
        probe: Some(Arc::new(|_: &Path| Probed::Unknown("no process".into()))),
        ..clock.options(&home.path().join("journal"))
    };
    let ledger = Ledger::open(options).unwrap().0;
    ledger.commit(note("config", 1)).await.unwrap();
    assert_eq!(ready(&ledger).await, ListingsState::Failed);
    assert_eq!(fs::read_dir(&listings).unwrap().count(), 0);
    assert_eq!(aside(home.path()), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn when_agents_were_seen_is_known_after_a_start() {
    let (home, clock) = (tempfile::tempdir().unwrap(), TestClock::new());
    let options = Options {
        listings: Some(home.path().join("listings")),
        ..clock.options(&home.path().join("journal"))
    };
    let ledger = Ledger::open(options.clone()).unwrap().0;
    assert_eq!(ready(&ledger).await, ListingsState::Ready);
    let seen = |name: &str, at| vec![(name.to_owned(), at)];
    assert_eq!(
        ledger.trade_seen(Vec::new(), u64::MAX).await,
        Ok(Vec::new())
    );
    ledger.trade_seen(seen("a", 7), 1).await.unwrap();
    ledger.trade_seen(seen("b", 8), 1).await.unwrap();
    ledger.trade_seen(seen("a", 9), 1).await.unwrap();
    ledger.shutdown().await;
    drop(ledger);
    tokio::time::sleep(Duration::from_millis(700)).await;
    let ledger = Ledger::open(options).unwrap().0;
    assert_eq!(ready(&ledger).await, ListingsState::Ready);
    let mut known = ledger.trade_seen(Vec::new(), u64::MAX).await.unwrap();
    known.sort();
    assert_eq!(known, [("a".to_owned(), 9), ("b".to_owned(), 8)]);
    // They are no entries, and none is listed.
    let listed = ledger.listing(None, 100);
    assert!(
        listed.iter().all(|entry| entry.kind == "epoch"),
        "{listed:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_to_when_agents_were_seen_is_set_aside_too() {
    let (home, clock) = (tempfile::tempdir().unwrap(), TestClock::new());
    let (listings, tried) = (home.path().join("listings"), Arc::default());
    let options = || Options {
        listings: Some(listings.clone()),
        probe: Some(probe(&tried)),
        ..clock.options(&home.path().join("journal"))
    };
    let seen = || {
        let names = (0..3_000_u64).map(|n| (format!("{n:05}-was-seen"), n));
        names.collect::<Vec<_>>()
    };
    // What was kept is there after a start.
    for traded in [seen(), Vec::new()] {
        let ledger = Ledger::open(options()).unwrap().0;
        assert_eq!(ready(&ledger).await, ListingsState::Ready);
        let known = ledger.trade_seen(traded, u64::MAX).await.unwrap();
        assert_eq!(known.len(), 3_000);
        ledger.shutdown().await;
        drop(ledger);
        tokio::time::sleep(Duration::from_millis(700)).await;
    }
    let path = listings.join("db");
    let mut bytes = fs::read(&path).unwrap();
    let name = b"-was-seen";
    let mut damaged = 0;
    for at in 0..bytes.len() - name.len() {
        if bytes[at..].starts_with(name) {
            bytes[at] = b'+';
            damaged += 1;
        }
    }
    assert!(damaged >= 3_000, "{damaged}");
    fs::write(&path, bytes).unwrap();

    tried.lock().unwrap().clear();
    let ledger = Ledger::open(options()).unwrap().0;
    ledger.commit(note("config", 1)).await.unwrap();
    assert_eq!(ready(&ledger).await, ListingsState::Ready);
    let probed = tried.lock().unwrap().clone();
    assert!(matches!(probed[..], [Probed::Damaged(_)]), "{probed:?}");
    assert_eq!(aside(home.path()).len(), 1);
    let all = u64::MAX;
    assert_eq!(ledger.trade_seen(Vec::new(), all).await, Ok(Vec::new()));
    assert_eq!(ledger.trade_seen(seen(), all).await, Ok(seen()));
}
