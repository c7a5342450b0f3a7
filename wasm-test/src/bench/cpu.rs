//! Processes' CPU time and memory, and which CPU they run on. Linux only.

use std::time::Duration;

use crate::Error;

/// How long a process is looked at to see whether it rests.
const GLANCE: Duration = Duration::from_millis(500);
/// How much of a glance it may run and still rest.
const RESTING: f64 = 0.05;
/// Looked at so often before it is said that it does not come to rest.
const GLANCES: usize = 120;

/// Waits until a process does next to nothing: what it still does for work that was given
/// to it before would be measured as what comes next, and slow down whatever runs beside it.
///
/// # Errors
/// When it is still busy after a minute.
pub async fn idle(pid: u32) -> Result<(), Error> {
    let mut before = time_us(pid)?;
    for _ in 0..GLANCES {
        tokio::time::sleep(GLANCE).await;
        let now = time_us(pid)?;
        if now - before < RESTING * GLANCE.as_secs_f64() * 1_000_000.0 {
            return Ok(());
        }
        before = now;
    }
    let seconds = GLANCE.as_secs_f64() * f64::from(u32::try_from(GLANCES).unwrap_or(u32::MAX));
    Err(Error::Setup(format!(
        "process {pid} is still busy {seconds:.0} s after its last request"
    )))
}

/// The time that all of a process's threads have run, in microseconds. A thread
/// that has ended counts no more: the processes measured keep theirs.
#[cfg(target_os = "linux")]
pub fn time_us(pid: u32) -> Result<f64, Error> {
    let path = std::path::PathBuf::from(format!("/proc/{pid}/task"));
    let mut total_us = 0.0;
    for entry in std::fs::read_dir(&path).map_err(Error::file("read", &path))? {
        let file = entry
            .map_err(Error::file("read", &path))?
            .path()
            .join("schedstat");
        let text = match std::fs::read_to_string(&file) {
            Ok(text) => text,
            // It ended since the directory was read.
            Err(gone) if gone.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(Error::file("read", &file)(error)),
        };
        total_us += run_us(&text)
            .ok_or_else(|| Error::Unexpected(format!("{} has another form", file.display())))?;
    }
    Ok(total_us)
}

/// The first field of a schedstat: nanoseconds on a CPU.
#[cfg(any(target_os = "linux", test))]
fn run_us(schedstat: &str) -> Option<f64> {
    let field = schedstat.split_whitespace().next()?;
    field.parse::<f64>().ok().map(|ns| ns / 1_000.0)
}

/// Memory that a process has resident and shares with no file, in kB. The kernel's
/// counters lag, so it reads the mappings themselves.
#[cfg(target_os = "linux")]
pub fn memory_kb(pid: u32) -> Result<f64, Error> {
    let path = std::path::PathBuf::from(format!("/proc/{pid}/smaps_rollup"));
    let text = std::fs::read_to_string(&path).map_err(Error::file("read", &path))?;
    anonymous_kb(&text)
        .ok_or_else(|| Error::Unexpected(format!("{} has another form", path.display())))
}

#[cfg(any(target_os = "linux", test))]
fn anonymous_kb(rollup: &str) -> Option<f64> {
    let line = rollup
        .lines()
        .find_map(|it| it.strip_prefix("Anonymous:"))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

/// The time that all CPUs together have been busy, in microseconds, steps of 10 ms.
#[cfg(target_os = "linux")]
pub fn machine_us() -> Result<f64, Error> {
    let path = std::path::Path::new("/proc/stat");
    let stat = std::fs::read_to_string(path).map_err(Error::file("read", path))?;
    let per_second = rustix::param::clock_ticks_per_second().max(1);
    let ticks = busy_ticks(&stat)
        .ok_or_else(|| Error::Unexpected("/proc/stat has another form".to_owned()))?;
    Ok(ticks * 1_000_000.0 / f64::from(u32::try_from(per_second).unwrap_or(100)))
}

/// user, nice and system, irq, softirq and steal; neither idle nor iowait.
#[cfg(any(target_os = "linux", test))]
fn busy_ticks(stat: &str) -> Option<f64> {
    let mut fields = stat.lines().next()?.split_whitespace().skip(1);
    let mut busy = 0.0;
    for index in 0..8 {
        let ticks: f64 = fields.next()?.parse().ok()?;
        if index != 3 && index != 4 {
            busy += ticks;
        }
    }
    Some(busy)
}

/// Gives the `alone` processes the first CPU for themselves and the `others`
/// the rest. With one CPU there is nothing to give.
#[cfg(target_os = "linux")]
pub fn separate(alone: &[u32], others: &[u32]) -> Result<bool, Error> {
    use rustix::thread::{CpuSet, sched_getaffinity};
    let all = sched_getaffinity(None).map_err(affinity_error)?;
    let cpus: Vec<usize> = (0..CpuSet::MAX_CPU)
        .filter(|cpu| all.is_set(*cpu))
        .collect();
    let Some((first, rest)) = cpus.split_first() else {
        return Ok(false);
    };
    if rest.is_empty() {
        return Ok(false);
    }
    let (mut one, mut many) = (CpuSet::new(), CpuSet::new());
    one.set(*first);
    rest.iter().for_each(|cpu| many.set(*cpu));
    for (pids, set) in [(alone, &one), (others, &many)] {
        for pid in pids {
            pin(*pid, set)?;
        }
    }
    Ok(true)
}

/// Affinity belongs to threads; those started later take it from their parent.
#[cfg(target_os = "linux")]
fn pin(pid: u32, cpus: &rustix::thread::CpuSet) -> Result<(), Error> {
    let path = std::path::PathBuf::from(format!("/proc/{pid}/task"));
    for entry in std::fs::read_dir(&path).map_err(Error::file("read", &path))? {
        let name = entry.map_err(Error::file("read", &path))?.file_name();
        let thread = name.to_str().and_then(|name| name.parse().ok());
        if let Some(thread) = thread.and_then(rustix::thread::Pid::from_raw) {
            rustix::thread::sched_setaffinity(Some(thread), cpus).map_err(affinity_error)?;
        }
    }
    Ok(())
}

#[cfg(target_os = "linux")]
fn affinity_error(problem: rustix::io::Errno) -> Error {
    Error::Setup(format!("cannot choose CPUs: {problem}"))
}

/// Elsewhere there is no /proc to read.
#[cfg(not(target_os = "linux"))]
pub fn time_us(_pid: u32) -> Result<f64, Error> {
    Err(Error::Setup("bench needs Linux: it reads /proc".to_owned()))
}

/// Elsewhere there is no /proc to read.
#[cfg(not(target_os = "linux"))]
pub fn memory_kb(_pid: u32) -> Result<f64, Error> {
    Err(Error::Setup("bench needs Linux: it reads /proc".to_owned()))
}

/// Elsewhere there is no /proc to read.
#[cfg(not(target_os = "linux"))]
pub fn machine_us() -> Result<f64, Error> {
    Err(Error::Setup("bench needs Linux: it reads /proc".to_owned()))
}

/// Elsewhere there is no way to choose.
#[cfg(not(target_os = "linux"))]
pub fn separate(_alone: &[u32], _others: &[u32]) -> Result<bool, Error> {
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn same(found: Option<f64>, wanted: f64) -> bool {
        found.is_some_and(|found| (found - wanted).abs() < 1e-6)
    }

    #[test]
    fn reads_what_the_kernel_writes() {
        assert!(same(run_us("238255 3584330 2\n"), 238.255));
        assert_eq!(run_us(""), None);
        let stat = "cpu  1 2 3 400 500 6 7 8 0 0\ncpu0 9 9 9 9 9 9 9 9 9 9\n";
        assert!(same(busy_ticks(stat), 27.0));
        assert_eq!(busy_ticks("cpu 1 2"), None);
        let rollup = "00400000-7ffe [rollup]\nRss:   884 kB\nAnonymous:       80 kB\n";
        assert!(same(anonymous_kb(rollup), 80.0));
        assert_eq!(anonymous_kb("Rss: 1 kB"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_has_used_some() {
        assert!(time_us(std::process::id()).unwrap() > 0.0);
        assert!(machine_us().unwrap() > 0.0);
        assert!(memory_kb(std::process::id()).unwrap() > 0.0);
    }
}
