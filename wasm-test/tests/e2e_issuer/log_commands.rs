//! `writ audit` and `writ status` on a log that is being written, and on copies
//! that somebody has been at.

use std::io::BufRead as _;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::plane::{Plane, run, text};

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().flatten() {
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

async fn audit(plane: &Plane, args: &[&str], dir: &Path) -> Output {
    let mut command = plane.writ();
    command.arg("audit").args(args).arg(dir);
    run(command).await
}

async fn verdict(plane: &Plane, args: &[&str], dir: &Path) -> (Option<i32>, Value) {
    let args: Vec<&str> = ["verify", "--json"].iter().chain(args).copied().collect();
    let output = audit(plane, &args, dir).await;
    let body = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    (output.status.code(), body)
}

/// The segment that holds entries, and where its entries' bytes are.
fn segment_with(dir: &Path, needle: &str) -> (PathBuf, usize) {
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        let bytes = std::fs::read(entry.path()).unwrap_or_default();
        let found = bytes
            .windows(needle.len())
            .position(|window| window == needle.as_bytes());
        if let Some(at) = found {
            return (entry.path(), at);
        }
    }
    panic!("no file in {} holds {needle:?}", dir.display());
}

#[tokio::test]
async fn verify_tells_whole_from_damaged_from_unreadable() {
    let plane = Plane::start().await;
    let agent = plane.agent().await;
    for _ in 0..5 {
        agent.token("GET", "/files/report.txt").await.unwrap();
    }
    let journal = plane.data().join("journal");
    let (code, whole) = verdict(&plane, &[], &journal).await;
    assert_eq!((code, &whole["whole"]), (Some(0), &json!(true)), "{whole}");
    // In whichever order: what depends on serde_json may keep it or sort it.
    let mut members: Vec<&String> = whole.as_object().unwrap().keys().collect();
    members.sort();
    assert_eq!(members, ["entries", "head", "index", "problem", "whole"]);
    assert_eq!(
        (&whole["problem"], &whole["index"]),
        (&Value::Null, &Value::Null)
    );
    assert!(whole["entries"].as_u64().unwrap() >= 6, "{whole}");
    let in_words = audit(&plane, &["verify"], &journal).await;
    assert!(
        text(&in_words.stdout).starts_with("whole: "),
        "{in_words:?}"
    );

    // The head that it prints is the one that it takes, now and later.
    let head = whole["head"].as_str().unwrap().to_owned();
    let old = plane.path("old");
    copy(&journal, &old);
    for _ in 0..3 {
        agent.token("GET", "/files/report.txt").await.unwrap();
    }
    assert_eq!(
        verdict(&plane, &["--head", &head], &journal).await.0,
        Some(0)
    );
    let (_, newer) = verdict(&plane, &[], &journal).await;
    let newer = newer["head"].as_str().unwrap().to_owned();
    assert_ne!(head, newer);

    // A tail that was cut shows against a remembered head only.
    assert_eq!(verdict(&plane, &[], &old).await.0, Some(0));
    let (code, cut) = verdict(&plane, &["--head", &newer], &old).await;
    assert_eq!(
        (code, &cut["whole"], &cut["problem"]),
        (Some(1), &json!(false), &json!("cut")),
        "{cut}"
    );
    // So does another history of the same length.
    let (size, hash) = head.split_once(':').unwrap();
    let other: String = hash.chars().rev().collect();
    assert_eq!(
        verdict(&plane, &["--head", &format!("{size}:{other}")], &journal)
            .await
            .0,
        Some(1)
    );
    assert_eq!(
        verdict(&plane, &["--head", "many"], &journal).await.0,
        Some(2)
    );

    let changed = plane.path("changed");
    copy(&journal, &changed);
    let (file, at) = segment_with(&changed, "report.txt");
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[at] = b'R';
    std::fs::write(&file, bytes).unwrap();
    let (code, damaged) = verdict(&plane, &[], &changed).await;
    assert_eq!(
        (code, &damaged["whole"]),
        (Some(1), &json!(false)),
        "{damaged}"
    );
    assert!(
        damaged["problem"].is_string() && damaged["index"].is_u64(),
        "{damaged}"
    );
    let in_words = audit(&plane, &["verify"], &changed).await;
    assert!(
        text(&in_words.stdout).starts_with("damaged: "),
        "{in_words:?}"
    );

    let empty = plane.path("empty");
    std::fs::create_dir(&empty).unwrap();
    for (what, dir) in [("nowhere", plane.path("nowhere")), ("empty", empty)] {
        let (code, body) = verdict(&plane, &[], &dir).await;
        assert_eq!(
            (code, &body["whole"]),
            (Some(2), &json!(false)),
            "{what}: {body}"
        );
        assert_eq!(body["problem"], "unreadable", "{what}: {body}");
        let in_words = audit(&plane, &["verify"], &dir).await;
        let said = text(&in_words.stderr);
        assert_eq!(in_words.status.code(), Some(2), "{what}");
        assert!(!said.contains("damaged") && in_words.stdout.is_empty());
        let why = ["No such file", "no journal"];
        assert!(why.iter().any(|why| said.contains(why)), "{what}: {said}");
    }
}

#[tokio::test]
async fn verify_holds_while_the_log_is_written() {
    let plane = Plane::start().await;
    let journal = plane.data().join("journal");
    let agents = [plane.agent().await, plane.agent().await];
    let writers: Vec<_> = agents
        .into_iter()
        .map(|agent| {
            tokio::spawn(async move {
                for _ in 0..60 {
                    agent.token("GET", "/files/report.txt").await.unwrap();
                }
            })
        })
        .collect();
    let mut last = 0;
    let mut runs = 0;
    while writers.iter().any(|writer| !writer.is_finished()) || runs == 0 {
        let (code, body) = verdict(&plane, &[], &journal).await;
        assert_eq!((code, &body["whole"]), (Some(0), &json!(true)), "{body}");
        let entries = body["entries"].as_u64().unwrap();
        assert!(entries >= last, "it shrank from {last} to {entries}");
        (last, runs) = (entries, runs + 1);
    }
    for writer in writers {
        writer.await.unwrap();
    }
    let (_, body) = verdict(&plane, &[], &journal).await;
    assert!(
        body["entries"].as_u64().unwrap() >= 121,
        "every token is an entry: {body}"
    );
}

#[tokio::test]
async fn tail_prints_what_is_there_and_follows_what_comes() {
    let plane = Plane::start().await;
    let agent = plane.agent().await;
    let journal = plane.data().join("journal");
    for _ in 0..4 {
        agent.token("GET", "/files/report.txt").await.unwrap();
    }
    let printed = audit(&plane, &["tail", "-n", "3", "--no-follow"], &journal).await;
    assert_eq!(printed.status.code(), Some(0));
    let printed = text(&printed.stdout);
    let lines: Vec<&str> = printed.lines().collect();
    assert_eq!(lines.len(), 3, "{printed}");
    let all = plane.entries();
    let shown: Vec<Value> = lines
        .iter()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(shown, all[all.len() - 3..]);

    let mut command = plane.writ();
    command
        .args(["audit", "tail", "-n", "0"])
        .arg(&journal)
        .stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let stdout = child.stdout.take().unwrap();
    let (send, receive) = std::sync::mpsc::channel();
    let reading = std::thread::spawn(move || {
        for line in std::io::BufReader::new(stdout)
            .lines()
            .map_while(Result::ok)
        {
            if send.send(line).is_err() {
                break;
            }
        }
    });
    tokio::time::sleep(Duration::from_millis(500)).await;
    agent.exchange("GET", "/admin/followed.txt").await.unwrap();
    let followed = receive.recv_timeout(Duration::from_secs(10));
    child.kill().unwrap();
    child.wait().unwrap();
    reading.join().unwrap();
    assert!(followed.unwrap().contains("/admin/followed.txt"));

    let nowhere = audit(&plane, &["tail", "--no-follow"], &plane.path("nowhere")).await;
    assert_eq!(nowhere.status.code(), Some(2));
}

#[tokio::test]
async fn status_says_what_runs() {
    let plane = Plane::start().await;
    let ask = |args: &[&str]| {
        let mut command = plane.writ();
        command.arg("status").args(args);
        run(command)
    };
    let output = ask(&["--json"]).await;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let status: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(status["module_sha256"], plane.ready()["module_sha256"]);
    assert_eq!(status["dev_single_uid"], true);
    assert_eq!(status["approvals"], json!({ "pending": 0, "approved": 0 }));
    assert_eq!(status["proxies"], json!([]));
    let output = ask(&[]).await;
    assert!(
        text(&output.stdout).contains("none has connected"),
        "{output:?}"
    );
    let output = ask(&["--admin-socket", "/nowhere.sock"]).await;
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("writ serve"), "{output:?}");
}

#[tokio::test]
async fn nobody_reading_ends_it_quietly() {
    let plane = Plane::start().await;
    let agent = plane.agent().await;
    for _ in 0..3 {
        agent.token("GET", "/files/report.txt").await.unwrap();
    }
    let journal = plane.data().join("journal").display().to_string();
    let commands: [&[&str]; 5] = [
        &["policy", "schema"],
        &["audit", "verify", &journal],
        &["audit", "tail", &journal],
        &["audit", "tail", "-n", "0", &journal],
        &["status", "--json"],
    ];
    for args in commands {
        let mut command = plane.writ();
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        command.args(args).stdout(writer).stderr(Stdio::piped());
        let ended = tokio::time::timeout(Duration::from_secs(20), run_quiet(command)).await;
        let output = ended.unwrap_or_else(|_| panic!("{args:?} goes on"));
        assert_eq!(text(&output.stderr), "", "{args:?}");
        assert!(
            matches!(output.status.code(), Some(0 | 141)),
            "{args:?}: {output:?}"
        );
    }
}

/// As `run`, with the standard output that was set.
async fn run_quiet(mut command: std::process::Command) -> Output {
    let child = command.spawn().unwrap();
    tokio::task::spawn_blocking(move || child.wait_with_output().unwrap())
        .await
        .unwrap()
}
