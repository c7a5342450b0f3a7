//! Resources that run out: memory, files, room in the pipes that logs go to.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, prlimit};
use tokio::net::TcpStream;

use super::check::{holds, one_of, same};
use super::stages::{Stages, options};
use super::stress::{good, percentile, resident};
use crate::Error;
use crate::raw::field;
use crate::stage::{Stage, eventually, jti, text_at};
use crate::upstream::REPORT;

/// After a while of good and bad requests neither part grows any more.
pub async fn memory(stages: &mut Stages) -> Result<String, Error> {
    const ROUNDS: usize = 4;
    const MIB: u64 = 1024 * 1024;
    let stage = stages.single().await?;
    let mut sizes = Vec::new();
    for _ in 0..ROUNDS {
        good(stage, 250).await?;
        let token = stage.agent.token("GET", REPORT).await?;
        for _ in 0..250 {
            // Refused as another action, and as credentials that are none.
            one_of(&stage.present("/files/notes.txt", &token).await?, &[403])?;
            let none = stage.request("GET", REPORT, &[field("authorization", "x")]);
            one_of(&stage.exchange(&none).await?, &[401])?;
        }
        sizes.push((
            resident(stage.system.control_plane_pid()),
            resident(stage.system.envoy_pid()),
        ));
    }
    let growth = |of: fn(&(u64, u64)) -> u64| {
        let all: Vec<u64> = sizes.iter().skip(1).map(of).collect();
        let (first, last) = (all.first().copied(), all.last().copied());
        last.unwrap_or(0).saturating_sub(first.unwrap_or(0))
    };
    let (plane, envoy) = (growth(|it| it.0), growth(|it| it.1));
    holds(
        plane < 24 * MIB && envoy < 24 * MIB,
        format!("they grew: {sizes:?}"),
    )?;
    Ok(format!(
        "after the first 750 of {} requests the control plane grew by {} KiB, Envoy by {} KiB",
        ROUNDS * 750,
        plane / 1024,
        envoy / 1024
    ))
}

/// How many files a process may be allowed to open at most.
fn most_files(pid: u32) -> Result<u64, Error> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap_or_default();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"));
    let hard = line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
    hard.ok_or_else(|| Error::Unexpected(format!("/proc/{pid}/limits has no hard limit of files")))
}

/// No more files may be opened at the control plane.
pub async fn files(stages: &mut Stages) -> Result<String, Error> {
    let stage = stages.single().await?;
    let tokens = [
        stage.agent.token("GET", REPORT).await?,
        stage.agent.token("GET", REPORT).await?,
    ];
    let number = stage.system.control_plane_pid();
    let pid = process(number)?;
    let open_files = || {
        let open = std::fs::read_dir(format!("/proc/{number}/fd")).map_or(0, Iterator::count);
        u64::try_from(open).unwrap_or(u64::MAX)
    };
    let open = open_files();
    let refused =
        |it: rustix::io::Errno| Error::Setup(format!("the limit of files can't be set: {it}"));
    let maximum = most_files(number)?;
    let limit = |current| Rlimit {
        current: Some(current),
        // What was allowed at most stays allowed, or it could not be given back.
        maximum: Some(maximum),
    };
    let before = prlimit(Some(pid), Resource::Nofile, limit(open + 4)).map_err(refused)?;
    let mut taken = Vec::new();
    let http = stage
        .system
        .http_url()
        .trim_start_matches("http://")
        .to_owned();
    for _ in 0..64 {
        if let Ok(stream) = TcpStream::connect(&http).await {
            taken.push(stream);
        }
    }
    eventually("no file is left", async || open_files() >= open + 4).await?;
    let mut seen = Vec::new();
    for token in &tokens {
        let answer = stage.present(REPORT, token).await?;
        one_of(&answer, &[200, 503])?;
        same(
            "forwarded",
            stage.uses()?.contains_key(&jti(token)),
            answer.status == 200,
        )?;
        seen.push(answer.status);
    }
    drop(taken);
    prlimit(Some(pid), Resource::Nofile, before).map_err(refused)?;
    stage.recovers().await?;
    stage.each_once()?;
    Ok(format!(
        "with no file left at the control plane requests were told {seen:?}; well again afterwards"
    ))
}

/// Nobody reads what the control plane and Envoy print, and the pipes are full.
pub async fn full_logs(_: &mut Stages) -> Result<String, Error> {
    const REQUESTS: usize = 300;
    let mut stage = Stage::start(options()).await?;
    stage.system.stop_envoy().await;
    stage.system.stop_control_plane().await;
    let pipes = [
        Pipe::in_place_of(&stage.system.log("control-plane"))?,
        Pipe::in_place_of(&stage.system.log("envoy"))?,
    ];
    stage.system.start_control_plane().await?;
    stage.system.start_envoy().await?;
    stage.recovers().await?;
    for pipe in &pipes {
        pipe.fill()?;
    }
    // Each request is several hundred bytes of access log.
    let took = good(&stage, REQUESTS).await?;
    let token = stage.agent.token("GET", REPORT).await?;
    one_of(&stage.present("/files/notes.txt", &token).await?, &[403])?;
    let denial = |entry: &serde_json::Value| text_at(entry, "/body/reason") == "action_mismatch";
    stage.entry("the refusal", denial).await?;
    stage.each_once()?;
    for pipe in &pipes {
        pipe.drain();
    }
    stage.recovers().await?;
    drop(stage);
    Ok(format!(
        "with both logs full {REQUESTS} requests passed, p99 {:.1?}, and all of it is in the audit log",
        percentile(&took, 99)
    ))
}

/// A log file that is a pipe; what is printed is thrown away until it is filled.
struct Pipe {
    file: Arc<File>,
    read: Arc<AtomicBool>,
}

impl Pipe {
    fn in_place_of(path: &Path) -> Result<Pipe, Error> {
        let made = std::fs::remove_file(path).and_then(|()| {
            let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
            let kind = rustix::fs::FileType::Fifo;
            Ok(rustix::fs::mknodat(rustix::fs::CWD, path, kind, mode, 0)?)
        });
        made.map_err(Error::file("make a pipe of", path))?;
        let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
        let open = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(flags)
            .open(path);
        let file = Arc::new(open.map_err(Error::file("open", path))?);
        let read = Arc::new(AtomicBool::new(true));
        let (ours, reads) = (Arc::downgrade(&file), Arc::clone(&read));
        std::thread::spawn(move || {
            let mut buffer = vec![0; 64 * 1024];
            while let Some(file) = ours.upgrade() {
                let wants = reads.load(Ordering::SeqCst);
                if !wants || (&*file).read(&mut buffer).is_err() {
                    drop(file);
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
        });
        Ok(Pipe { file, read })
    }

    /// From now on nobody reads, and there is no room.
    fn fill(&self) -> Result<(), Error> {
        self.read.store(false, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(50));
        let mut written = 0;
        for size in [4096, 1] {
            while let Ok(more) = (&*self.file).write(&vec![b'\n'; size]) {
                written += more;
            }
        }
        holds(written > 0, "the pipe was full before")
    }

    fn drain(&self) {
        self.read.store(true, Ordering::SeqCst);
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        self.drain();
    }
}

fn process(pid: u32) -> Result<Pid, Error> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    pid.ok_or_else(|| Error::Unexpected("the process has ended".to_owned()))
}
