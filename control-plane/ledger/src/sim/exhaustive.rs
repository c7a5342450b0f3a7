//! One run, and everything that a disk can do to it: the power lost before each
//! call, with each part of what was not synced kept alone, and each call failing.

use std::{
    sync::{Arc, Mutex},
    time::Instant,
};

use crate::{
    embedded::disk::Disk,
    sim::{
        Broken,
        durable::Durable,
        machine::{Fault, Machine, Unsynced},
        process::Process,
        rng::Rng,
        world::World,
    },
};

/// What happens at one turn of the run: starts, commands, a kill, a shutdown.
fn turn(world: &mut World, at: usize) -> Result<(), Broken> {
    if world.process.is_none() {
        return world.start();
    }
    match at % 40 {
        17 => world.ends(),
        39 => world.shutdown(),
        _ => {
            world.clocks.pass(5);
            world.ask()?;
            world.step(8)?;
            if at.is_multiple_of(4)
                && let Some(process) = &world.process
            {
                process.disk.settle();
            }
            Ok(())
        }
    }
}

/// A quiet machine with a run of its own.
fn quiet() -> World {
    World::new(7, false)
}

/// Whether a machine in this state recovers with everything that was durable.
fn survives(
    mut machine: Machine,
    durable: &Durable,
    world: &World,
    rng: &mut Rng,
) -> Result<(), Broken> {
    machine.before_calls = None;
    let machine = Arc::new(Mutex::new(machine));
    let mut durable = durable.clone();
    let expected = durable.expect(&machine.lock().unwrap());
    let at = world.clocks.base + world.clocks.passed;
    let started = Process::start(&machine, 1_000_000, &world.options, rng, at);
    let (process, report) =
        started.map_err(|error| Broken(crate::sim::Invariant::Start, error.to_string()))?;
    durable.recovered(&machine.lock().unwrap(), &expected, &report)?;
    durable.judge_published(&process.shared.read())?;
    let short = process.writer.journal.is_short();
    durable.judge_files(&machine.lock().unwrap(), short)
}

/// Every way that a power loss is tried in: which of the unsynced is kept.
fn ways(unsynced: &[Unsynced]) -> Vec<Vec<bool>> {
    let many = unsynced.len();
    if many <= 4 {
        let bits = |set: usize| (0..many).map(|at| set >> at & 1 == 1).collect();
        return (0..1 << many).map(bits).collect();
    }
    let alone = |kept: usize, value: bool| (0..many).map(|at| (at == kept) == value).collect();
    let mut all = vec![vec![false; many], vec![true; many]];
    // Zeros by the dozen differ in nothing: the ends, and some between.
    let each = (many / 12).max(1);
    for at in (0..many).filter(|at| at % each == 0 || *at < 4 || *at + 4 > many) {
        all.extend([alone(at, true), alone(at, false)]);
        // Torn: what was written first is there, and nothing behind it.
        all.push((0..many).map(|other| other < at).collect());
    }
    all
}

#[test]
fn a_power_loss_before_each_call_loses_nothing() {
    let turns = super::tests::setting("WRIT_SIM_TURNS").unwrap_or(150) as usize;
    let (began, mut rng) = (Instant::now(), Rng::new(1));
    let (mut world, mut states, mut calls) = (quiet(), 0, 0);
    for at in 0..turns {
        if world.process.is_none() {
            // A start may cut what is torn, and has to say so also when it ends early.
            let machine = world.machine().clone();
            world.durable.expect(&machine);
        }
        let durable = world.durable.clone();
        world.machine().before_calls = Some(Vec::new());
        turn(&mut world, at).unwrap();
        let before = world.machine().before_calls.take().unwrap_or_default();
        for machine in before {
            calls += 1;
            let unsynced = machine.unsynced();
            for way in ways(&unsynced) {
                let mut machine = machine.clone();
                let mut kept = way.iter();
                machine.power_loss(|_| kept.next().is_some_and(|kept| *kept));
                states += 1;
                if let Err(broken) = survives(machine, &durable, &world, &mut rng) {
                    panic!("turn {at}, call {calls}, {unsynced:?} kept {way:?}: {broken:?}");
                }
            }
        }
    }
    world.end().unwrap();
    println!(
        "{states} states after power losses before {calls} calls, {} groups in {} segments: {:.1} s",
        world.durable.history.groups,
        world.durable.segments(),
        began.elapsed().as_secs_f64()
    );
    super::tests::report("power_loss_states", states.into());
    assert!(states >= 1_000 && world.durable.segments() >= 3);
}

#[test]
fn each_call_may_fail_and_nothing_is_lost() {
    let turns = 36;
    let mut whole = quiet();
    for at in 0..turns {
        turn(&mut whole, at).unwrap();
    }
    let calls = whole.machine().calls;
    let (began, mut runs, mut failed) = (Instant::now(), 0, 0);
    for call in 1..=calls {
        for fault in [Fault::Io, Fault::NoSpace, Fault::NoFile] {
            let mut world = quiet();
            world.machine().sweep = Some((call, fault));
            let ran = (0..turns)
                .try_for_each(|at| turn(&mut world, at))
                .and_then(|()| world.end());
            runs += 1;
            failed += u64::from(world.machine().faults > 0);
            if let Err(broken) = ran {
                panic!("{fault:?} at call {call}: {broken:?}");
            }
        }
    }
    println!(
        "{runs} runs, {failed} with a failed call, of {calls} calls each: {:.1} s",
        began.elapsed().as_secs_f64()
    );
    super::tests::report("runs_with_a_failing_call", failed.into());
    assert!(calls > 100 && failed > calls);
}
