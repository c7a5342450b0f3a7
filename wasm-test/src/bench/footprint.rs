//! What does not show in a rate: how long the disk takes to sync, memory for each
//! worker, VM and held request, the module's size, and how long its start takes.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::rivals::{Kind, Parts, Rival};
use super::{cpu, load};
use crate::Error;
use crate::system::System;

/// Synced writes of one block each.
const SYNCS: usize = 200;
const BLOCK: [u8; 4096] = [b'w'; 4096];
/// Starts of each kind of Envoy.
const STARTS: usize = 3;
/// Workers of the Envoy that has more than one: enough that a VM of one of them shows.
const WORKERS: u32 = 9;
/// Until what was allocated for a volley is given back, and a question is held.
const SETTLE: Duration = Duration::from_secs(1);

/// How long one block takes to be on the disk, in microseconds.
#[derive(Clone, Copy, Debug)]
pub struct Sync {
    p50_us: f64,
    p99_us: f64,
}

impl Sync {
    /// Writes and syncs in a directory, some of the journal's disk.
    pub fn of(directory: &Path) -> Result<Sync, Error> {
        let failed = || Error::file("write in", directory);
        let mut file = tempfile::tempfile_in(directory).map_err(failed())?;
        let mut taken = (0..SYNCS)
            .map(|_| synced(&mut file))
            .collect::<Result<Vec<f64>, _>>()
            .map_err(failed())?;
        taken.sort_by(f64::total_cmp);
        let at = |hundredths: usize| {
            let at = taken.len().saturating_sub(1).saturating_mul(hundredths) / 100;
            taken.get(at).copied().unwrap_or(f64::NAN)
        };
        Ok(Sync {
            p50_us: at(50),
            p99_us: at(99),
        })
    }
}

fn synced(file: &mut File) -> Result<f64, std::io::Error> {
    file.write_all(&BLOCK)?;
    let start = Instant::now();
    file.sync_data()?;
    Ok(start.elapsed().as_secs_f64() * 1_000_000.0)
}

/// Memory is anonymous, resident, in kB.
#[derive(Clone, Copy, Debug)]
pub struct Footprint {
    /// Syncs on the journal's disk.
    pub sync: Sync,
    /// The module; bytes.
    pub module_bytes: u64,
    /// A worker of a bare Envoy.
    pub worker_kb: f64,
    /// What a worker has more with the filter: its VM.
    pub vm_kb: f64,
    /// What the first VM costs: that of the main thread and of one worker, and what they share.
    pub first_vm_kb: f64,
    /// Envoy's for one held request, beyond its connection.
    pub held_kb: f64,
    /// The control plane's for the same.
    pub held_control_plane_kb: f64,
    /// How much later than a bare Envoy's one with the filter answers, one worker each.
    pub start_ms: f64,
    /// How much more CPU it has used by then.
    pub start_cpu_ms: f64,
}

/// An Envoy when it has started, and when it has served.
#[derive(Clone, Copy)]
struct Started {
    ms: f64,
    cpu_ms: f64,
    memory_kb: f64,
}

impl Footprint {
    /// Measures all but what is held, which is on the running system: `held_kb` has
    /// Envoy's and the control plane's.
    pub async fn measure(
        parts: &Parts<'_>,
        requests: &Arc<Vec<Vec<u8>>>,
        sync: Sync,
        (held_kb, held_control_plane_kb): (f64, f64),
    ) -> Result<Footprint, Error> {
        let module = parts.system.module_file();
        let module_bytes = std::fs::metadata(&module)
            .map_err(Error::file("look at", &module))?
            .len();
        let bare = median(Kind::Bare, 1, parts, requests).await?;
        let bare_more = median(Kind::Bare, WORKERS, parts, requests).await?;
        let alone = median(Kind::Alone, 1, parts, requests).await?;
        let alone_more = median(Kind::Alone, WORKERS, parts, requests).await?;
        let more = f64::from(WORKERS.saturating_sub(1));
        let worker_kb = (bare_more.memory_kb - bare.memory_kb) / more;
        Ok(Footprint {
            sync,
            module_bytes,
            worker_kb,
            vm_kb: (alone_more.memory_kb - alone.memory_kb) / more - worker_kb,
            first_vm_kb: alone.memory_kb - bare.memory_kb,
            held_kb,
            held_control_plane_kb,
            start_ms: alone.ms - bare.ms,
            start_cpu_ms: alone.cpu_ms - bare.cpu_ms,
        })
    }

    /// For people.
    pub fn markdown(&self) -> String {
        format!(
            "\nThe disk syncs a block in {:.0} µs (p99 {:.0} µs).\n\n\
             Module: {} bytes. An Envoy with the filter answers {:.0} ms after a bare one \
             ({:.0} ms of CPU). Memory: a bare worker {:.1} MB, the VMs of main thread and first \
             worker {:.1} MB, each further worker's VM {:.1} MB; a held request {:.1} kB in Envoy \
             and {:.1} kB in the control plane.\n",
            self.sync.p50_us,
            self.sync.p99_us,
            self.module_bytes,
            self.start_ms,
            self.start_cpu_ms,
            self.worker_kb / 1_000.0,
            self.first_vm_kb / 1_000.0,
            self.vm_kb / 1_000.0,
            self.held_kb,
            self.held_control_plane_kb,
        )
    }

    /// For machines.
    pub fn json(&self) -> Value {
        json!({
            "sync_p50_us": self.sync.p50_us,
            "sync_p99_us": self.sync.p99_us,
            "module_bytes": self.module_bytes,
            "worker_kb": self.worker_kb,
            "vm_kb": self.vm_kb,
            "first_vm_kb": self.first_vm_kb,
            "held_request_kb": self.held_kb,
            "held_request_control_plane_kb": self.held_control_plane_kb,
            "start_ms": self.start_ms,
            "start_cpu_ms": self.start_cpu_ms,
        })
    }
}

/// The middle of several starts, figure by figure.
async fn median(
    kind: Kind,
    workers: u32,
    parts: &Parts<'_>,
    requests: &Arc<Vec<Vec<u8>>>,
) -> Result<Started, Error> {
    let mut all = Vec::new();
    for _ in 0..STARTS {
        let mut rival = Rival::start(kind, workers, parts).await?;
        let cpu_ms = cpu::time_us(rival.child.pid())? / 1_000.0;
        // Without a control plane each is answered by 503, after every gate.
        load::fire(rival.port, requests, 64).await?;
        tokio::time::sleep(SETTLE).await;
        all.push(Started {
            ms: rival.started_in.as_secs_f64() * 1_000.0,
            cpu_ms,
            memory_kb: cpu::memory_kb(rival.child.pid())?,
        });
        rival.child.stop().await;
    }
    let middle = |pick: fn(&Started) -> f64| {
        let mut values: Vec<f64> = all.iter().map(pick).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
    };
    Ok(Started {
        ms: middle(|it| it.ms),
        cpu_ms: middle(|it| it.cpu_ms),
        memory_kb: middle(|it| it.memory_kb),
    })
}

/// What each held request takes in Envoy and in the control plane, in kB: before, the
/// connections have each carried one of `good` and stay open; `held` wait for a human.
pub async fn held_kb(
    system: &System,
    port: u16,
    (good, held): (&[Vec<u8>], &[Vec<u8>]),
) -> Result<(f64, f64), Error> {
    let now = || -> Result<[f64; 2], Error> {
        Ok([
            cpu::memory_kb(system.envoy_pid())?,
            cpu::memory_kb(system.control_plane_pid())?,
        ])
    };
    let mut streams = load::connect(port, held.len()).await?;
    load::each(port, &mut streams, good, true).await?;
    tokio::time::sleep(SETTLE).await;
    let [envoy, control_plane] = now()?;
    load::each(port, &mut streams, held, false).await?;
    tokio::time::sleep(SETTLE).await;
    let [envoy_then, control_plane_then] = now()?;
    let answered = |stream: &tokio::net::TcpStream| stream.try_read(&mut [0; 1]).is_ok();
    let early = streams.iter().filter(|stream| answered(stream)).count();
    if early > 0 {
        return Err(Error::Unexpected(format!(
            "{early} of {} requests were answered that a person should have been asked about",
            held.len()
        )));
    }
    let count = f64::from(u32::try_from(held.len()).unwrap_or(u32::MAX));
    Ok((
        (envoy_then - envoy) / count,
        (control_plane_then - control_plane) / count,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sync_takes_time() {
        let directory = tempfile::tempdir().unwrap();
        let sync = Sync::of(directory.path()).unwrap();
        assert!(sync.p50_us > 0.0 && sync.p50_us <= sync.p99_us);
    }
}
