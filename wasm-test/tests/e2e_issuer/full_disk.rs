//! `writ serve` on a disk that is really full, from its start on: a small file
//! system of its own, which only root may mount.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use wasm_test::client::Approver;

use crate::plane::{Plane, Prepared, run, text};

/// Room for a segment, the spare, another segment, and listings.
const SIZE: &str = "size=40m,mode=700";
const SEGMENT: u64 = 8 * 1024 * 1024;

/// A file system in memory; it is gone when this is.
struct Small(PathBuf);

impl Small {
    /// `None`, and loudly, where it can't be mounted.
    fn mount(at: PathBuf) -> Option<Small> {
        std::fs::create_dir(&at).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", SIZE, "tmpfs"]).arg(&at);
        let mounted = mount.output();
        if mounted.as_ref().is_ok_and(|it| it.status.success()) {
            return Some(Small(at));
        }
        eprintln!("\nSKIPPED: a really full disk needs root, to mount a small one: {mounted:?}\n");
        let required = std::env::var_os("WRIT_REQUIRE_MOUNT").is_some();
        assert!(!required, "WRIT_REQUIRE_MOUNT is set");
        None
    }

    fn ballast(&self) -> PathBuf {
        self.0.join("ballast")
    }

    /// Takes all that is left.
    fn fill(&self) {
        let mut file = std::fs::File::create(self.ballast()).unwrap();
        while file.write_all(&[b'b'; 4096]).is_ok() {}
    }

    fn free(&self) {
        std::fs::remove_file(self.ballast()).unwrap();
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // Lazily: who is still in it keeps it until then.
        let mut umount = Command::new("umount");
        let _ = umount.arg("-l").arg(&self.0).status();
    }
}

fn prepared() -> Option<(Prepared, Small)> {
    let prepared = Prepared::new();
    let small = Small::mount(prepared.path("small"))?;
    let data = small.0.join("data");
    let over = format!("[server]\ndata_dir = {:?}\n", data.display().to_string());
    Some((prepared.with(&over), small))
}

fn journal(small: &Small) -> PathBuf {
    small.0.join("data/journal")
}

async fn status(plane: &Plane) -> String {
    let mut command = plane.writ();
    command.arg("status");
    text(&run(command).await.stdout)
}

async fn verified(plane: &Prepared, journal: &Path) {
    let mut command = plane.writ();
    command.args(["audit", "verify"]).arg(journal);
    let output = run(command).await;
    assert!(text(&output.stdout).starts_with("whole: "), "{output:?}");
}

/// It runs, says that it is full, and refuses what gives rights.
async fn is_full(plane: &Plane) {
    let agent = plane.agent().await;
    let refused = agent.exchange("GET", "/files/report.txt").await.unwrap();
    assert_eq!(refused.status, 503, "{}", refused.text());
    assert_eq!(refused.oauth_error(), "temporarily_unavailable");
    assert_eq!(refused.reason(), "control_plane_unavailable");
    let said = refused.json()["error_description"].to_string();
    assert!(said.contains("no space left to record it"), "{said}");
    assert!(status(plane).await.contains("FULL      no space is left"));
    let ready = reqwest::get(format!("{}/readyz", plane.issuer())).await;
    let ready = ready.unwrap().text().await.unwrap();
    assert!(
        ready.contains("no space is left for the journal"),
        "{ready}"
    );
    let log = std::fs::read_to_string(plane.path("serve.log")).unwrap();
    assert!(
        log.contains("only what takes rights away is taken"),
        "{log}"
    );
}

#[tokio::test]
async fn it_starts_takes_rights_away_and_goes_on_once_there_is_room() {
    let Some((prepared, small)) = prepared() else {
        return;
    };
    let plane = prepared.start().await;
    let agent = plane.agent().await;
    agent.token("GET", "/files/report.txt").await.unwrap();
    let prepared = plane.stopped().await;
    small.fill();

    // Again and again: a start needs no space.
    let mut plane = prepared.start().await;
    for start in 0..3 {
        is_full(&plane).await;
        // What people do goes on, and each start has its entries.
        Approver::login(plane.login_link()).await.unwrap();
        let kinds: Vec<String> = crate::plane::entries(&journal(&small))
            .iter()
            .rev()
            .take(3)
            .map(|line| line["kind"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(kinds, ["login", "config", "epoch"], "start {start}");
        verified(&plane, &journal(&small)).await;
        plane = plane.restart().await;
    }

    small.free();
    let agent = plane.agent().await;
    let deadline = Instant::now() + Duration::from_secs(10);
    while let Err(error) = agent.token("GET", "/files/report.txt").await {
        assert!(Instant::now() < deadline, "it did not go on: {error}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(!status(&plane).await.contains("FULL"));
    let prepared = plane.stopped().await;
    verified(&prepared, &journal(&small)).await;
    let spare = std::fs::metadata(journal(&small).join("spare.seg")).unwrap();
    assert_eq!(spare.len(), SEGMENT);
    assert!(!journal(&small).join("reserve.seg.tmp").exists());
}

#[tokio::test]
async fn with_nothing_reserved_it_says_what_to_do_and_loses_nothing() {
    let Some((prepared, small)) = prepared() else {
        return;
    };
    let plane = prepared.start().await;
    let agent = plane.agent().await;
    agent.token("GET", "/files/report.txt").await.unwrap();
    let prepared = plane.stopped().await;
    std::fs::remove_file(journal(&small).join("spare.seg")).unwrap();
    small.fill();
    let segment = journal(&small).join("0000000000000000.seg");
    let before = std::fs::read(&segment).unwrap();

    let mut serve = prepared.serve(&prepared.write());
    serve.stdin(Stdio::null());
    let refused = run(serve).await;
    let said = text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(2), "{said}");
    for words in [
        "no space is left",
        "8388608 bytes",
        "nothing is lost",
        "writ ledger inspect",
    ] {
        assert!(said.contains(words), "no {words:?} in: {said}");
    }
    assert!(std::fs::read(&segment).unwrap() == before);
    verified(&prepared, &journal(&small)).await;

    small.free();
    let plane = prepared.start().await;
    let agent = plane.agent().await;
    agent.token("GET", "/files/report.txt").await.unwrap();
}
