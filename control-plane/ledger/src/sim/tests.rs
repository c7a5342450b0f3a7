//! The runs: seeds without a bug, and each bug until it is found.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use serde_json::{Map, Value, json};

use crate::sim::{
    Broken, Invariant,
    bugs::{self, BUGS, Bug},
    world::{Counts, World},
};

/// Things that happen in one run.
const EVENTS: usize = 36;

/// One seed. What broke, if anything did, with what happened until then when it
/// is wanted.
fn run(seed: u64, trace: bool) -> (Result<Counts, Broken>, Vec<String>) {
    let mut world = World::new(seed, trace);
    let result = (0..EVENTS)
        .try_for_each(|_| world.event())
        .and_then(|()| world.end())
        .map(|()| world.counts);
    (result, world.trace.unwrap_or_default())
}

/// A seed from outside.
pub(crate) fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Adds what a test found to the file that `WRIT_SIM_REPORT` names, if it does.
pub(crate) fn report(name: &str, found: Value) {
    static FOUND: Mutex<BTreeMap<String, Value>> = Mutex::new(BTreeMap::new());
    let mut all = FOUND.lock().unwrap();
    all.insert(name.to_owned(), found);
    if let Some(path) = std::env::var_os("WRIT_SIM_REPORT") {
        std::fs::write(path, json!(*all).to_string()).unwrap();
    }
}

/// What one seed gives: what it did, or what it broke, and what happened.
pub(crate) type Ran<C> = (Result<C, Broken>, Vec<String>);

/// A simulation, by its seed.
pub(crate) struct Simulation<C> {
    pub(crate) run: fn(u64, bool) -> Ran<C>,
    pub(crate) add: fn(&mut C, &C),
}

const EMBEDDED: Simulation<Counts> = Simulation {
    run,
    add: Counts::add,
};

/// Runs seeds on all processors. Returns the first that broke something.
pub(crate) fn search<C: Default + Send>(
    simulation: &Simulation<C>,
    to: u64,
    bug: Option<Bug>,
) -> (Option<(u64, Broken)>, C) {
    let next = AtomicU64::new(0);
    let found: Mutex<Option<(u64, Broken)>> = Mutex::new(None);
    let total = Mutex::new(C::default());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                bugs::with(bug, || {
                    let mut own = C::default();
                    loop {
                        let seed = next.fetch_add(1, Ordering::SeqCst);
                        if seed >= to {
                            break;
                        }
                        match (simulation.run)(seed, false).0 {
                            Ok(counts) => (simulation.add)(&mut own, &counts),
                            Err(broken) => {
                                next.store(to, Ordering::SeqCst);
                                let mut found = found.lock().unwrap();
                                if found.as_ref().is_none_or(|(first, _)| seed < *first) {
                                    *found = Some((seed, broken));
                                }
                            }
                        }
                    }
                    (simulation.add)(&mut total.lock().unwrap(), &own);
                });
            });
        }
    });
    (found.into_inner().unwrap(), total.into_inner().unwrap())
}

/// Fails with what is needed to see it again.
pub(crate) fn explain<C>(simulation: &Simulation<C>, seed: u64, broken: &Broken) -> ! {
    let (_, trace) = bugs::with(None, || (simulation.run)(seed, true));
    panic!(
        "seed {seed} broke {:?}: {}\n{}\nrun it again with WRIT_SIM_SEED={seed}",
        broken.0,
        broken.1,
        trace.join("\n")
    );
}

#[test]
fn seeds_hold_every_invariant() {
    if let Some(seed) = setting("WRIT_SIM_SEED") {
        let (result, trace) = run(seed, true);
        println!("{}", trace.join("\n"));
        result.unwrap();
        return;
    }
    let seeds = setting("WRIT_SIM_SEEDS").unwrap_or(2_000);
    let began = Instant::now();
    let (found, counts) = search(&EMBEDDED, seeds, None);
    if let Some((seed, broken)) = found {
        explain(&EMBEDDED, seed, &broken);
    }
    let seconds = began.elapsed().as_secs_f64();
    println!(
        "{seeds} seeds in {seconds:.1} s, {:.0} a second: {counts:?}",
        seeds as f64 / seconds
    );
    counts.are_worth_it(seeds);
    report(
        "seeds",
        json!({
            "run": seeds, "broken": 0, "per_s": (seeds as f64 / seconds).round(),
            "committed": counts.committed, "starts": counts.starts,
            "power_losses": counts.power_losses, "failed_calls": counts.faults,
            "torn": counts.torn, "damages": counts.damages,
        }),
    );
}

#[test]
fn every_planted_bug_is_found() {
    every_one_is_found(&EMBEDDED, BUGS, "bugs_by_first_seed");
    assert!(BUGS.len() >= 20);
}

/// Plants one after the other, and looks for it.
pub(crate) fn every_one_is_found<C: Default + Send>(
    simulation: &Simulation<C>,
    bugs: &[(Bug, &[Invariant])],
    name: &str,
) {
    let most = 10_000;
    let only = std::env::var("WRIT_SIM_BUG").ok();
    let mut found = Map::new();
    let mut missed = Vec::new();
    for (bug, expected) in bugs {
        if only
            .as_ref()
            .is_some_and(|only| *only != format!("{bug:?}"))
        {
            continue;
        }
        match search(simulation, most, Some(*bug)).0 {
            Some((seed, broken)) => {
                // An entry in it may be as long as entries may be.
                let what: String = broken.1.chars().take(160).collect();
                println!("{bug:?}: seed {seed}, {:?}: {what}", broken.0);
                if !expected.contains(&broken.0) {
                    missed.push(format!("{bug:?} was found as {broken:?}"));
                }
                found.insert(format!("{bug:?}"), seed.into());
            }
            None => missed.push(format!("{bug:?} was not found in {most} seeds")),
        }
    }
    assert!(missed.is_empty(), "{missed:#?}");
    report(name, found.into());
}
