//! Simulated swarms: the real session, plan and recovery over nodes, links and hours that are made up.
//!
//! A seed is a swarm, what is asked of it and all that befalls it; the same seed is the same run, event by event. There is
//! no thread, no runtime that runs, no clock. The simulation owns what carries messages and what computes; what decides is
//! the code that decides in earnest: `driver` with all that it rests on, `plan`, `turns` and the tables of `links`.
//!
//! `SWARMLLM_TEST_SIM_SEEDS` says how many swarms are tried, or which: `20000`, or `17..18`.

mod chance;
mod host;
mod model;
mod session;
mod swarm;
mod truth;
mod weather;

use std::collections::BTreeMap;
use std::ops::Range;

use crate::rt::TaskSet;
use swarm::{Sabotage, Swarm};

/// Swarms that are tried where nothing else is said: some ten seconds of them.
const SEEDS: u64 = 10_000;

/// Swarms within which one goes wrong that is made wrong: some faults need much bad luck to show.
const FOUND_WITHIN: u64 = 10 * SEEDS;
/// Swarms gone wrong whose last events are printed.
const SHOWN: usize = 3;

fn seeds() -> Range<u64> {
    let Ok(asked) = std::env::var("SWARMLLM_TEST_SIM_SEEDS") else { return 0..SEEDS };
    let number = |text: &str| text.parse().expect("SWARMLLM_TEST_SIM_SEEDS is a number or a range of two");
    match asked.split_once("..") {
        Some((first, end)) => number(first)..number(end),
        None => 0..number(&asked),
    }
}

/// How often things happened.
#[derive(Debug, Default)]
struct Tally {
    answers: u64,
    /// Answers that went on after their route had broken.
    recovered: u64,
    /// Routes that went on with KV of those before.
    kept: u64,
    /// Times that stand-bys took over.
    taken: u64,
    errors: BTreeMap<&'static str, u64>,
}

fn tasks() -> (tokio::runtime::Runtime, TaskSet) {
    // What nodes are given; it never runs.
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let tasks = TaskSet::new(runtime.handle().clone());
    (runtime, tasks)
}

/// Runs the swarm of a seed to its end.
fn run(seed: u64, tasks: &TaskSet, sabotage: Option<Sabotage>, traced: bool) -> Swarm {
    let mut swarm = Swarm::of(seed, tasks, traced);
    swarm.sabotage = sabotage;
    swarm.run();
    if swarm.wrong.is_none() {
        swarm.check_after();
    }
    swarm
}

#[test]
fn whatever_befalls_a_swarm_its_answers_are_right_or_end_in_an_error_that_has_a_reason() {
    let (_runtime, tasks) = tasks();
    let (mut tally, mut wrong) = (Tally::default(), Vec::new());
    for seed in seeds() {
        let swarm = run(seed, &tasks, None, false);
        if let Some(what) = swarm.wrong {
            wrong.push((seed, what));
        }
        for session in &swarm.sessions {
            let good = session.ended.as_ref().map(|(_, end)| end.is_ok());
            tally.answers += u64::from(good == Some(true));
            let error = session.ended.as_ref().and_then(|(_, end)| end.as_ref().err());
            error.into_iter().for_each(|fault| *tally.errors.entry(fault.kind().name()).or_default() += 1);
            tally.kept += u64::from(session.kept);
            tally.taken += u64::from(session.taken);
            tally.recovered += u64::from(good == Some(true) && session.epochs > 1);
        }
    }
    println!("{tally:?}");
    for (seed, what) in wrong.iter().take(SHOWN) {
        println!("seed {seed}: {what}\n{}", run(*seed, &tasks, None, true).trace());
    }
    let seeds: Vec<u64> = wrong.iter().map(|(seed, _)| *seed).collect();
    assert!(seeds.is_empty(), "{} swarms went wrong, by seed: {:?}", seeds.len(), &seeds[..seeds.len().min(50)]);
}

#[test]
fn what_is_made_wrong_is_found() {
    let (_runtime, tasks) = tasks();
    for sabotage in Sabotage::ALL {
        let found = (0..FOUND_WITHIN).find(|seed| run(*seed, &tasks, Some(sabotage), false).wrong.is_some());
        println!("{sabotage:?}: {found:?}");
        assert!(found.is_some(), "{sabotage:?} is not found");
    }
}

#[test]
fn a_seed_is_a_run() {
    let (_runtime, tasks) = tasks();
    for seed in 0..20 {
        assert_eq!(run(seed, &tasks, None, true).trace(), run(seed, &tasks, None, true).trace());
    }
}
