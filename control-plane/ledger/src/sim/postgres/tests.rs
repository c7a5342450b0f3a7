//! The runs: seeds without a bug, and each bug until it is found.

use std::time::Instant;

use serde_json::json;

use crate::sim::{
    Invariant,
    bugs::{Bug, POSTGRES_BUGS},
    postgres::world::{Counts, World},
    tests::{Ran, Simulation, every_one_is_found, explain, report, search, setting},
};

/// Things that happen in one run.
const EVENTS: usize = 40;

const REPLICAS: Simulation<Counts> = Simulation {
    run,
    add: Counts::add,
};

fn run(seed: u64, trace: bool) -> Ran<Counts> {
    let mut world = World::new(seed, trace);
    let result = world
        .begin()
        .and_then(|()| (0..EVENTS).try_for_each(|_| world.event()))
        .and_then(|()| world.end());
    (result, world.trace())
}

#[test]
fn replicas_hold_every_invariant() {
    if let Some(seed) = setting("WRIT_SIM_SEED") {
        let (result, trace) = run(seed, true);
        println!("{}", trace.join("\n"));
        println!("{:?}", result.unwrap());
        return;
    }
    let seeds = setting("WRIT_SIM_REPLICAS").unwrap_or(500);
    let began = Instant::now();
    let (found, counts) = search(&REPLICAS, seeds, None);
    if let Some((seed, broken)) = found {
        explain(&REPLICAS, seed, &broken);
    }
    let seconds = began.elapsed().as_secs_f64();
    println!(
        "{seeds} seeds in {seconds:.1} s, {:.0} a second: {counts:?}",
        seeds as f64 / seconds
    );
    are_worth_it(&counts, seeds);
    report(
        "replicas",
        json!({
            "run": seeds, "broken": 0, "per_s": (seeds as f64 / seconds).round(),
            "committed": counts.committed, "unknown": counts.unknown,
            "starts": counts.starts, "kills": counts.kills, "sleeps": counts.sleeps,
            "crashes": counts.crashes, "failovers": counts.failovers,
            "losses": counts.losses, "faults": counts.faults, "waits": counts.waits,
        }),
    );
}

/// A simulation in which nothing happens proves nothing.
fn are_worth_it(counts: &Counts, seeds: u64) {
    assert!(counts.committed > seeds * 10, "{counts:?}");
    assert!(counts.waits > seeds && counts.faults > seeds, "{counts:?}");
    assert!(
        counts.starts > seeds * 2 && counts.epochs > seeds,
        "{counts:?}"
    );
    assert!(
        counts.unknown * 10 > seeds && counts.losses * 5 > seeds && counts.looks * 4 > seeds,
        "{counts:?}"
    );
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in 0..5 {
        let (one, first) = run(seed, true);
        let (other, second) = run(seed, true);
        assert_eq!(format!("{one:?}"), format!("{other:?}"));
        let differs = first.iter().zip(&second).find(|(one, other)| one != other);
        assert_eq!(differs, None, "seed {seed}");
    }
}

#[test]
fn every_planted_bug_of_replicas_is_found() {
    every_one_is_found(&REPLICAS, POSTGRES_BUGS, "replicas_bugs_by_first_seed");
    assert!(POSTGRES_BUGS.len() >= 12);
}

/// Bugs of what both stores decide by that are about rights.
const OF_BOTH: &[(Bug, &[Invariant])] = &[
    (Bug::UserUnchecked, &[Invariant::Stopped]),
    (Bug::DelegationUnchecked, &[Invariant::Stopped]),
    (Bug::AncestorsUnchecked, &[Invariant::Stopped]),
    (Bug::EndUnchecked, &[Invariant::Stopped]),
    (Bug::EndForgotten, &[Invariant::Stopped]),
    (Bug::GrantUserUnchecked, &[Invariant::Grant]),
    (Bug::DeniedAskedAgain, &[Invariant::Approval]),
];

#[test]
fn what_is_taken_away_is_judged_in_replicas_too() {
    every_one_is_found(&REPLICAS, OF_BOTH, "replicas_bugs_of_both_by_first_seed");
}
