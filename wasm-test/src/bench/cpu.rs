//! A process's CPU time, and which CPU it runs on. Linux only.

use crate::Error;

/// User and system time of all of a process's threads so far, in microseconds.
#[cfg(target_os = "linux")]
pub fn time_us(pid: u32) -> Result<u64, Error> {
    let path = std::path::PathBuf::from(format!("/proc/{pid}/stat"));
    let stat = std::fs::read_to_string(&path).map_err(Error::file("read", &path))?;
    let ticks = ticks(&stat)
        .ok_or_else(|| Error::Unexpected(format!("{} has another form", path.display())))?;
    let per_second = rustix::param::clock_ticks_per_second().max(1);
    Ok(ticks.saturating_mul(1_000_000) / per_second)
}

/// utime + stime, fields 14 and 15. The name in field 2 may hold anything, so
/// counting starts behind its closing bracket.
#[cfg(any(target_os = "linux", test))]
fn ticks(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    user.checked_add(system)
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
pub fn time_us(_pid: u32) -> Result<u64, Error> {
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

    #[test]
    fn reads_ticks_behind_a_nasty_name() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194304 1 2 3 4 150 25 0 0 20 0 1 0 9";
        assert_eq!(ticks(stat), Some(175));
        assert_eq!(ticks("7 (a) S 1"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_has_used_some() {
        assert!(time_us(std::process::id()).is_ok());
    }
}
