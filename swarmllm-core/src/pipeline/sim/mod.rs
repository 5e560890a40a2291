//! Simulated swarms: the real session, planner and recovery over simulated nodes, links and time.
//!
//! A seed determines a swarm, its requests and its faults; the same seed gives the same run, event by event. There is
//! no thread, no running runtime, no clock. The simulation owns what carries messages and what computes. All decisions
//! are those of the production code: `driver` and the modules below it, `plan`, `stage_session` and the tables of
//! `link::router`.
//!
//! `SWARMLLM_TEST_SIM_SEEDS` is the number of swarms, or a range of seeds: `20000`, or `17..18`.

mod faults;
mod host;
mod model;
mod oracle;
mod rng;
mod session;
mod swarm;

use std::collections::BTreeMap;
use std::ops::Range;

use crate::rt::TaskSet;
use swarm::{Mutation, Swarm};

/// Swarms of a default run: some ten seconds.
const SEEDS: u64 = 10_000;

/// Swarms within which a mutation must be detected; some need a rare sequence of events.
const FOUND_WITHIN: u64 = 10 * SEEDS;
/// Failed swarms whose last events are printed.
const SHOWN: usize = 3;

fn seeds() -> Range<u64> {
    let Ok(asked) = std::env::var("SWARMLLM_TEST_SIM_SEEDS") else { return 0..SEEDS };
    let number = |text: &str| text.parse().expect("SWARMLLM_TEST_SIM_SEEDS is a number or a range of two");
    match asked.split_once("..") {
        Some((first, end)) => number(first)..number(end),
        None => 0..number(&asked),
    }
}

/// Counts over all swarms.
#[derive(Debug, Default)]
struct RunCounts {
    answers: u64,
    /// Complete answers whose route had failed.
    recovered: u64,
    /// Routes that reused KV of earlier ones.
    reused: u64,
    /// Takeovers by standbys.
    takeovers: u64,
    errors: BTreeMap<&'static str, u64>,
}

fn tasks() -> (tokio::runtime::Runtime, TaskSet) {
    // The runtime that nodes get; it never runs.
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let tasks = TaskSet::new(runtime.handle().clone());
    (runtime, tasks)
}

/// Runs the swarm of a seed to its end.
fn run(seed: u64, tasks: &TaskSet, mutation: Option<Mutation>, traced: bool) -> Swarm {
    let mut swarm = Swarm::from_seed(seed, tasks, traced);
    swarm.mutation = mutation;
    swarm.run();
    if swarm.wrong.is_none() {
        swarm.check_after();
    }
    swarm
}

#[test]
fn answers_are_right_or_fail_with_a_reason_under_any_faults() {
    let (_runtime, tasks) = tasks();
    let (mut counts, mut wrong) = (RunCounts::default(), Vec::new());
    for seed in seeds() {
        let swarm = run(seed, &tasks, None, false);
        if let Some(what) = swarm.wrong {
            wrong.push((seed, what));
        }
        for session in &swarm.sessions {
            let good = session.ended.as_ref().map(|(_, end)| end.is_ok());
            counts.answers += u64::from(good == Some(true));
            let error = session.ended.as_ref().and_then(|(_, end)| end.as_ref().err());
            error.into_iter().for_each(|fault| *counts.errors.entry(fault.kind().name()).or_default() += 1);
            counts.reused += u64::from(session.reused);
            counts.takeovers += u64::from(session.takeovers);
            counts.recovered += u64::from(good == Some(true) && session.epochs > 1);
        }
    }
    println!("{counts:?}");
    for (seed, what) in wrong.iter().take(SHOWN) {
        println!("seed {seed}: {what}\n{}", run(*seed, &tasks, None, true).trace());
    }
    let seeds: Vec<u64> = wrong.iter().map(|(seed, _)| *seed).collect();
    assert!(seeds.is_empty(), "{} swarms went wrong, by seed: {:?}", seeds.len(), &seeds[..seeds.len().min(50)]);
}

#[test]
fn every_mutation_is_detected() {
    let (_runtime, tasks) = tasks();
    for mutation in Mutation::ALL {
        let found = (0..FOUND_WITHIN).find(|seed| run(*seed, &tasks, Some(mutation), false).wrong.is_some());
        println!("{mutation:?}: {found:?}");
        assert!(found.is_some(), "{mutation:?} is not detected");
    }
}

#[test]
fn a_seed_determines_a_run() {
    let (_runtime, tasks) = tasks();
    for seed in 0..20 {
        assert_eq!(run(seed, &tasks, None, true).trace(), run(seed, &tasks, None, true).trace());
    }
}
