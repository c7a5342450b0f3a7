//! What the disk and one thread can do: the same bytes, and no logic.

use std::{
    fs::{File, OpenOptions},
    io::Write,
    os::unix::fs::FileExt,
    path::Path,
    sync::{Arc, Condvar, Mutex, PoisonError},
    time::Instant,
};

use serde_json::Value;
use tokio::sync::oneshot;

use crate::{Failure, Plan, cpu, load};

const SEGMENT: usize = audit::segment::SEGMENT_LEN;

/// Zero-filled segments, as the journal has them, made beforehand.
struct Segments {
    files: Vec<File>,
    offset: usize,
}

impl Segments {
    fn make(dir: &Path, bytes: usize) -> Result<Self, Failure> {
        let zeros = vec![0; SEGMENT];
        let mut files = Vec::new();
        for n in 0..bytes / SEGMENT + 2 {
            let path = dir.join(format!("floor-{n}"));
            let mut file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .open(path)?;
            file.write_all(&zeros)?;
            file.sync_all()?;
            files.push(file);
        }
        files.reverse();
        Ok(Self { files, offset: 0 })
    }

    fn append(&mut self, group: &[u8]) -> Result<(), Failure> {
        if self.offset + group.len() > SEGMENT {
            self.files.pop();
            self.offset = 0;
        }
        let file = self.files.last().ok_or("the segments are used up")?;
        file.write_all_at(group, u64::try_from(self.offset)?)?;
        file.sync_data()?;
        self.offset += group.len();
        Ok(())
    }
}

fn group_len(plan: &Plan, entries: usize) -> usize {
    (entries * plan.entry).next_multiple_of(audit::group::BLOCK)
}

/// As fast as it goes.
pub fn closed(plan: &Plan) -> Result<Value, Failure> {
    let groups = plan.count.div_ceil(plan.group);
    let group = vec![b'x'; group_len(plan, plan.group)];
    let mut segments = Segments::make(&plan.dir, groups * group.len())?;
    let (begun, used) = (Instant::now(), cpu());
    let mut waits = Vec::with_capacity(groups);
    for _ in 0..groups {
        let asked = Instant::now();
        segments.append(&group)?;
        waits.push(asked.elapsed());
    }
    let (elapsed, used) = (begun.elapsed(), cpu().saturating_sub(used));
    Ok(load::row(
        "floor",
        plan,
        groups * plan.group,
        elapsed,
        used,
        waits,
    ))
}

#[derive(Default)]
struct Waiting {
    jobs: Mutex<(Vec<oneshot::Sender<()>>, bool)>,
    filled: Condvar,
}

/// Arrivals at a fixed rate, each answered once its group is synced.
pub async fn open(plan: &Plan) -> Result<Value, Failure> {
    let count = usize::try_from(plan.rate * plan.seconds)?;
    let mut segments = Segments::make(&plan.dir, count * (plan.entry + audit::group::BLOCK))?;
    let waiting = Arc::new(Waiting::default());
    let (queue, entry) = (Arc::clone(&waiting), plan.entry);
    let writer = std::thread::spawn(move || -> Result<(), Failure> {
        loop {
            let mut jobs = queue.jobs.lock().unwrap_or_else(PoisonError::into_inner);
            while jobs.0.is_empty() && !jobs.1 {
                jobs = queue
                    .filled
                    .wait(jobs)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            let taken = std::mem::take(&mut jobs.0);
            drop(jobs);
            if taken.is_empty() {
                return Ok(());
            }
            let len = (taken.len() * entry).next_multiple_of(audit::group::BLOCK);
            segments.append(&vec![b'x'; len])?;
            for answer in taken {
                // Whoever left needs no answer.
                let _ = answer.send(());
            }
        }
    });
    let used = cpu();
    let begun = Instant::now();
    let waits = load::arrivals(plan.rate, count, begun, |_| {
        let (answer, answered) = oneshot::channel();
        waiting
            .jobs
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .0
            .push(answer);
        waiting.filled.notify_one();
        answered
    })
    .await?;
    let (elapsed, used) = (begun.elapsed(), cpu().saturating_sub(used));
    waiting
        .jobs
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .1 = true;
    waiting.filled.notify_one();
    writer.join().map_err(|_| "the writer panicked")??;
    Ok(load::row("open-floor", plan, count, elapsed, used, waits))
}
