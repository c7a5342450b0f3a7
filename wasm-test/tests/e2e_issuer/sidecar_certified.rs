//! `writ sidecar` where the edge demands certificates: it shows its workload's, and what it
//! gets is bound to that, also what it fetches ahead. And what it leaves on the disk.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;
use wasm_test::system::{Options, System};
use wasm_test::upstream::{KEYS, REPORT};

use crate::plane::entries;
use crate::sidecar::{Side, options};

/// Entries of this kind, oldest first.
fn of_kind(system: &System, kind: &str) -> Vec<Value> {
    let mut all = entries(&system.audit_dir());
    all.retain(|entry| entry["kind"] == kind);
    all
}

#[tokio::test]
async fn a_plain_client_acts_by_the_sidecars_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        client_certificates: true,
        ..options(dir.path())
    };
    let system = System::for_test(options).await.unwrap();
    assert!(system.origin().starts_with("https://"));
    let side = Side::start(&system, &["--prefetch", "2"]).await;
    // Nobody else has a certificate: its requests are the only ones.
    for times in 1..=3 {
        let answer = side.get(REPORT).await;
        assert_eq!(answer.status(), 200);
        assert!(answer.text().await.unwrap().contains("Quarterly report"));
        assert_eq!(system.upstream().unwrap().arrived(), times);
        // What is read again and again has its next token already.
        let wanted = if times == 1 { 1 } else { times + 1 };
        let deadline = Instant::now() + Duration::from_secs(10);
        while of_kind(&system, "issue").len() < usize::try_from(wanted).unwrap() {
            assert!(Instant::now() < deadline, "{times}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    let (issued, allowed) = (of_kind(&system, "issue"), of_kind(&system, "allow"));
    assert_eq!((issued.len(), allowed.len()), (4, 3));
    let x5t = issued[0]["body"]["token"]["x5t"].as_str().unwrap();
    assert_eq!(x5t.len(), 43);
    for entry in &issued {
        assert_eq!(entry["body"]["token"]["x5t"], x5t, "{entry}");
        assert!(entry["body"]["under"].is_null(), "by the certificate alone");
    }
    for entry in &allowed {
        assert_eq!(entry["body"]["request"]["certificate"], x5t, "{entry}");
    }
    let refused = side.get(KEYS).await;
    assert_eq!(refused.status(), 403);
    let problem: Value = refused.json().await.unwrap();
    assert_eq!(problem["reason"], "policy_denied");
    assert_eq!(system.upstream().unwrap().arrived(), 3);
    system.stop().await;
}

/// Every file below, with what is in it.
fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(files(&path)),
            false => {
                let bytes = std::fs::read(&path).unwrap_or_default();
                found.push((path.display().to_string(), bytes));
            }
        }
    }
    found
}

#[tokio::test]
async fn its_keys_are_in_memory_alone() {
    let dir = tempfile::tempdir().unwrap();
    let system = System::for_test(options(dir.path())).await.unwrap();
    let side = Side::start(&system, &["--prefetch", "2"]).await;
    for _ in 0..3 {
        assert_eq!(side.get(REPORT).await.status(), 200);
    }
    assert_eq!(files(&side.home()), [], "its home is as it was");
    let beside: Vec<String> = files(side.dir()).into_iter().map(|it| it.0).collect();
    let names = ["log", "ready", "side.sock"];
    let known = |path: &String| names.iter().any(|name| path.ends_with(name));
    assert!(beside.iter().all(known), "{beside:?}");
    for (path, bytes) in files(side.dir()) {
        let text = String::from_utf8_lossy(&bytes);
        assert!(!text.contains("PRIVATE KEY"), "{path}");
    }
    // `writ call` keeps one, which is how it would be seen.
    let mut command = system.writ();
    command
        .env("HOME", side.home())
        .env_remove("XDG_STATE_HOME");
    command
        .arg("call")
        .arg(format!("{}{REPORT}", system.origin()));
    assert!(crate::plane::run(command).await.status.success());
    let kept = files(&side.home());
    assert!(
        kept.iter()
            .any(|(_, bytes)| { String::from_utf8_lossy(bytes).contains("PRIVATE KEY") })
    );
    system.stop().await;
}
