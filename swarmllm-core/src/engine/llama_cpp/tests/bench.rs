//! Measurements, not tests: run with `--ignored --nocapture` on a quiet machine. They print ratios and assert nothing.
//!
//! They measure decoding token by token, where starting, waking and spinning of compute threads matters. Each figure is the
//! best of several interleaved short bursts, because other load only slows a burst.

use std::time::{Duration, Instant};

use llama_cpp_sys_2 as ll;

use super::recipe::wide;
use super::whole_model::WholeModel;
use super::{Chain, TestModel, gemma3, run, smollm2, tokens};
use crate::engine::llama_cpp::LlamaCpp;
use crate::engine::llama_cpp::pool::Pools;
use crate::engine::{KvType, StageConfig, StepOptions};

const BURST: usize = 32;
const BURSTS: usize = 12;
const PREFILL: usize = 64;

fn bench_config() -> StageConfig {
    StageConfig { context: 512, max_sessions: 1, max_rows: 128, threads: 2, kv: KvType::Full, ..StageConfig::default() }
}

/// CPU time of this process so far.
fn cpu_time() -> Duration {
    // SAFETY: a test; the structure is plain numbers.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &raw mut usage);
        usage
    };
    let time = |time: libc::timeval| Duration::new(time.tv_sec as u64, time.tv_usec as u32 * 1000);
    time(usage.ru_utime) + time(usage.ru_stime)
}

/// A decoding variant.
struct Variant {
    name: String,
    step: Box<dyn FnMut(u32, u32)>,
    best: f64,
    idle: Duration,
}

fn whole_variant(cut: &TestModel, name: &str, pools: Option<Pools>, pause: bool) -> Variant {
    let mut whole = WholeModel::load(&cut.path, &bench_config(), pools.as_ref());
    whole.step(&run(0, 0, &tokens(1, PREFILL, cut.manifest.vocab)));
    let pool = pools.as_ref().map(|pools| pools.get(2).expect("a pool"));
    let step = move |pos, token| {
        if pos == PREFILL as u32 {
            whole.truncate(0, pos);
        }
        whole.step(&run(0, pos, &[token]));
        if let Some(pool) = pool.as_ref().filter(|_| pause) {
            // SAFETY: a measurement; the pool has just computed and is at rest.
            unsafe { ll::ggml_threadpool_pause(pool.raw()) };
        }
    };
    Variant { name: name.to_owned(), step: Box::new(step), best: 0.0, idle: Duration::ZERO }
}

/// Loads stages into `engines` in turn; stages of two engines have two pools.
fn chain_variant(cut: &TestModel, name: String, engines: &[LlamaCpp], cuts: &[u32]) -> Variant {
    let mut chain = Chain::load_on(engines, cut, cuts, &bench_config());
    chain.step(&run(0, 0, &tokens(1, PREFILL, cut.manifest.vocab)));
    let step = move |pos, token| {
        if pos == PREFILL as u32 {
            chain.truncate(0, pos);
        }
        chain.step(&run(0, pos, &[token]));
    };
    Variant { name, step: Box::new(step), best: 0.0, idle: Duration::ZERO }
}

fn polling(poll: u32) -> LlamaCpp {
    LlamaCpp { pools: Pools::with_poll(poll) }
}

fn measure(variants: &mut [Variant], vocab: u32) {
    let text = tokens(2, BURST, vocab);
    for _ in 0..BURSTS {
        for variant in variants.iter_mut() {
            let start = Instant::now();
            for (pos, token) in (PREFILL as u32..).zip(&text) {
                (variant.step)(pos, *token);
            }
            variant.best = variant.best.max(BURST as f64 / start.elapsed().as_secs_f64());
            let before = cpu_time();
            std::thread::sleep(Duration::from_millis(400));
            variant.idle = cpu_time() - before;
        }
    }
    let bare = variants.first().map_or(1.0, |variant| variant.best);
    for variant in variants {
        let Variant { name, best, idle, .. } = variant;
        println!("{name:44} {best:8.1} tok/s {:6.3} of bare, {idle:?} CPU time in 400 ms of idleness", *best / bare);
    }
}

#[test]
#[ignore = "a measurement"]
fn cost_of_polling() {
    for (cut, middle) in [(smollm2(), 15), (gemma3(), 9)] {
        let Some(cut) = cut else { continue };
        println!("{}", cut.path.display());
        let mut variants = vec![
            whole_variant(&cut, "whole, threads thrown away", None, false),
            whole_variant(&cut, "whole, pool, poll 50", Some(Pools::with_poll(50)), false),
            whole_variant(&cut, "whole, pool, poll 0", Some(Pools::with_poll(0)), false),
            whole_variant(&cut, "whole, pool, poll 1", Some(Pools::with_poll(1)), false),
            whole_variant(&cut, "whole, pool, poll 50, paused after a step", Some(Pools::with_poll(50)), true),
        ];
        for poll in [50, 0, 1, 2, 5] {
            variants.push(chain_variant(&cut, format!("one stage, poll {poll}"), &[polling(poll)], &[]));
        }
        for poll in [50, 0, 1, 2, 5] {
            variants.push(chain_variant(
                &cut,
                format!("two stages, one pool, poll {poll}"),
                &[polling(poll)],
                &[middle],
            ));
            let engines = [polling(poll), polling(poll)];
            variants.push(chain_variant(&cut, format!("two stages, two pools, poll {poll}"), &engines, &[middle]));
        }
        measure(&mut variants, cut.manifest.vocab);
    }
}

#[test]
#[ignore = "a measurement"]
fn cost_of_an_embedding() {
    for cut in [smollm2(), gemma3()] {
        let Some(cut) = cut else { continue };
        let embedder = crate::engine::Engine::load_embedder(&LlamaCpp::new(), cut.embedding()).expect("an embedder");
        for count in [1, 512] {
            let text = tokens(3, count, cut.manifest.vocab);
            let mut out = Vec::new();
            let times = (0..50).map(|_| {
                let start = Instant::now();
                embedder.embed(&text, &mut out).expect("tokens of the vocabulary");
                start.elapsed()
            });
            println!("{}: {count} tokens in {:?}", cut.path.display(), times.min().unwrap_or_default());
        }
    }
}

/// Time of a step of several rows with logits of all: speculation and piggybacked prompts pay off if it is little more than
/// one row's.
#[test]
#[ignore = "a measurement"]
fn cost_of_rows() {
    const TRIES: usize = 15;
    for cut in [smollm2(), gemma3()] {
        let Some(cut) = cut else { continue };
        let mut whole = WholeModel::load(&cut.path, &bench_config(), None);
        let mut chain = Chain::load(&LlamaCpp::new(), &cut, &[], &bench_config());
        let prompt = run(0, 0, &tokens(1, PREFILL, cut.manifest.vocab));
        whole.step(&prompt);
        chain.step(&prompt);
        let pos = PREFILL as u32;
        for rows in [1, 2, 3, 4, 5, 6, 8, 13, 16, 21, 32, 64] {
            let fed = run(0, pos, &tokens(2, rows, cut.manifest.vocab));
            let mut times = [Vec::new(), Vec::new()];
            for _ in 0..TRIES {
                let begun = Instant::now();
                whole.step(&fed);
                times[0].push(begun.elapsed());
                whole.truncate(0, pos);
                let begun = Instant::now();
                chain.step(&fed);
                times[1].push(begun.elapsed());
                chain.truncate(0, pos);
            }
            let [whole, stage] = times.map(|mut times| {
                times.sort_unstable();
                times[TRIES / 2]
            });
            println!("{}: {rows:3} rows: llama.cpp {whole:?}, a stage {stage:?}", cut.path.display());
        }
    }
}

/// Whether a session's results depend on other sessions.
#[test]
#[ignore = "a measurement"]
fn influence_of_other_sessions() {
    for (cut, threads) in [(smollm2(), 1), (smollm2(), 2), (gemma3(), 1), (gemma3(), 2)] {
        let Some(cut) = cut else { continue };
        let config = StageConfig {
            context: 2048,
            max_sessions: 2,
            max_rows: 512,
            threads,
            kv: KvType::Full,
            ..StageConfig::default()
        };
        let (mut alone, mut beside) =
            (Chain::load(&LlamaCpp::new(), &cut, &[], &config), Chain::load(&LlamaCpp::new(), &cut, &[], &config));
        beside.step(&run(1, 0, &tokens(4, 37, cut.manifest.vocab)));
        for length in [40, 300, 700] {
            let text = tokens(5, length + 8, cut.manifest.vocab);
            let mut greatest = [0.0_f32; 2];
            let mut pos = 0;
            for (phase, part) in
                text[..length].chunks(300).map(|part| (0, part)).chain(text[length..].chunks(1).map(|part| (1, part)))
            {
                let mut fed = run(0, pos, part);
                let last = fed.len() - 1;
                fed.iter_mut().take(last).for_each(|row| row.want = false);
                let (here, there) = (alone.step(&fed), beside.step(&fed));
                let difference = here.iter().zip(&there).map(|(here, there)| (here - there).abs());
                greatest[phase] = difference.fold(greatest[phase], f32::max);
                pos += part.len() as u32;
            }
            alone.release(0);
            beside.release(0);
            println!(
                "{} {threads} threads, {length} positions: prefill {}, decode {}",
                cut.path.display(),
                greatest[0],
                greatest[1]
            );
        }
    }
}

/// Times of a prompt and of a token with rounding allowed, compared with llama.cpp on repacked and on unpacked weights.
#[test]
#[ignore = "a measurement"]
fn gain_of_the_second_layout() {
    const TRIES: usize = 9;
    const PROMPT: usize = 512;
    let config = StageConfig { context: 1024, max_rows: 512, ..bench_config() };
    let inexact = StepOptions { allow_rounding: true, ..StepOptions::default() };
    let directory = tempfile::tempdir().expect("a directory");
    for cut in [smollm2(), gemma3(), Some(wide(&directory))] {
        let Some(cut) = cut else { continue };
        let vocab = cut.manifest.vocab;
        let mut chain = Chain::load(&LlamaCpp::new(), &cut, &[], &config);
        let mut wholes = [true, false].map(|repack| WholeModel::load_with_layout(&cut.path, &config, None, repack));
        let mut prompt = run(0, 0, &tokens(1, PROMPT, vocab));
        prompt.iter_mut().take(PROMPT - 1).for_each(|row| row.want = false);
        let token = run(0, PROMPT as u32, &tokens(2, 1, vocab));
        let mut times: [Vec<Duration>; 6] = Default::default();
        let mut timed = |index: usize, work: &mut dyn FnMut()| {
            let begun = Instant::now();
            work();
            times[index].push(begun.elapsed());
        };
        // The stage's first prompts measure the layouts.
        for _ in 0..2 {
            chain.compute(&prompt, inexact);
            chain.release(0);
        }
        for _ in 0..TRIES {
            timed(0, &mut || drop(chain.compute(&prompt, inexact)));
            timed(1, &mut || drop(chain.compute(&token, inexact)));
            chain.release(0);
            for (index, whole) in wholes.iter_mut().enumerate() {
                timed(2 + 2 * index, &mut || drop(whole.step(&prompt)));
                timed(3 + 2 * index, &mut || drop(whole.step(&token)));
                whole.truncate(0, 0);
            }
        }
        let [prefill, decode, whole, whole_token, plain, plain_token] = times.map(|mut times| {
            times.sort_unstable();
            times[TRIES / 2].as_secs_f64()
        });
        println!("{}", cut.path.display());
        let line = |what, own: f64, repacked: f64, plain: f64| {
            let (of_repacked, of_plain) = (own / repacked, own / plain);
            println!("{what}: {:.1} ms, {of_repacked:.3} of repacked, {of_plain:.3} of plain", own * 1e3);
        };
        line("512 rows", prefill, whole, plain);
        line("a token", decode, whole_token, plain_token);
    }
}

/// Time of loading a stage with its shards in the page cache.
#[test]
#[ignore = "a measurement"]
fn time_of_loading() {
    for cut in [smollm2(), gemma3()] {
        let Some(cut) = cut else { continue };
        let mut times: Vec<Duration> = (0..15)
            .map(|_| {
                let begun = Instant::now();
                let chain = Chain::load(&LlamaCpp::new(), &cut, &[], &bench_config());
                let took = begun.elapsed();
                drop(chain);
                took
            })
            .collect();
        times.sort_unstable();
        println!("{}: {:?} median, {:?} least", cut.path.display(), times[7], times[0]);
    }
}
