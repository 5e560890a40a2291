//! A node against llama.cpp's server.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use crate::subject::{Subject, Text};
use crate::versus_self::gap_under_prefill;
use crate::{DECODE, Figures, ROUNDS, SESSIONS, SHORT, is_selected, number, record, threads};

/// Both sides of a comparison.
pub struct Sides {
    pub server: Subject,
    crowd_server: Subject,
    pub ours: Subject,
}

impl Sides {
    /// The server twice, for one session and for several, beside our node.
    pub fn start(binary: &Path, path: &Path, ours: Subject) -> Sides {
        let server = |sessions| Subject::server(binary, path, sessions);
        Sides { server: server(1), crowd_server: server(SESSIONS), ours }
    }
}

/// Decode, time to first token and prefill of single sessions.
pub async fn one_session(sides: &Sides, text: &mut Text, figures: &mut Figures, suffix: &str) {
    let (mut decode, mut first) = (Vec::new(), Vec::new());
    for round in 0..=number("BENCH_ROUNDS", ROUNDS) {
        let prompt = text.cut(SHORT);
        let server = sides.server.ask(&prompt, DECODE).await;
        let ours = sides.ours.ask(&prompt, DECODE).await;
        // The first round loads stages and fills caches.
        if round > 0 {
            decode.push(server.token() / ours.token());
            first.push(ours.first / server.first);
        }
    }
    record(figures, &format!("decode{suffix}_vs_server"), ">= 1", decode);
    record(figures, &format!("ttft{suffix}_vs_server"), "<= 1", first);
    for length in [512, 2048] {
        let mut prefill = Vec::new();
        for _ in 0..number("BENCH_ROUNDS", ROUNDS).min(if length > 512 { 3 } else { ROUNDS }) {
            let prompt = text.cut(length);
            let server = sides.server.ask(&prompt, 2).await;
            prefill.push(server.first / sides.ours.ask(&prompt, 2).await.first);
        }
        record(figures, &format!("prefill{length}{suffix}_vs_server"), ">= 1", prefill);
    }
    // The server is compiled for this processor, the library portably.
    let native = ["decode", "prefill512"].map(|what| figures[&format!("{what}{suffix}_vs_server")]);
    record(figures, &format!("portable_vs_native{suffix}"), ">= 0.95", vec![native[0].min(native[1])]);
}

/// Throughput of concurrent sessions.
pub async fn many_sessions(sides: &Sides, text: &mut Text, figures: &mut Figures) {
    let mut ratio = Vec::new();
    for round in 0..=number("BENCH_ROUNDS", ROUNDS) {
        let prompts: Vec<Vec<u32>> = (0..SESSIONS).map(|_| text.cut(SHORT)).collect();
        let server = sides.crowd_server.crowd(&prompts, DECODE).await;
        let ours = sides.ours.crowd(&prompts, DECODE).await;
        if round > 0 {
            println!("    8 sessions: {ours:.1} tok/s, the server {server:.1}");
            ratio.push(ours / server);
        }
    }
    record(figures, "batch8_vs_server", ">= 1", ratio);
}

/// Decode speed while another thread occupies a core.
async fn beside_a_busy_core(sides: &Sides, text: &mut Text) -> f64 {
    let over = Arc::new(AtomicBool::new(false));
    let seen = over.clone();
    let hog = std::thread::spawn(move || {
        while !seen.load(Ordering::Relaxed) {
            std::hint::black_box((0..10_000u64).fold(0, |sum, value| sum ^ value.wrapping_mul(31)));
        }
    });
    let prompt = text.cut(SHORT);
    let server = sides.server.ask(&prompt, DECODE).await.token();
    let ours = sides.ours.ask(&prompt, DECODE).await.token();
    over.store(true, Ordering::Relaxed);
    hog.join().expect("no panic");
    println!("    beside a busy core: {:.2} ms a token, the server {:.2}", ours * 1e3, server * 1e3);
    server / ours
}

/// Memory read bandwidth of all threads in bytes per second: best of several passes over a buffer larger than the caches.
fn read_bandwidth() -> f64 {
    const BYTES: usize = 1 << 30;
    let buffer = vec![1_u64; BYTES / size_of::<u64>()];
    let pass = |_| {
        let begun = Instant::now();
        std::thread::scope(|scope| {
            for part in buffer.chunks(buffer.len().div_ceil(threads() as usize)) {
                // Several independent sums, so that additions are not the bottleneck.
                scope.spawn(move || {
                    let mut sums = [0_u64; 16];
                    for words in part.chunks_exact(sums.len()) {
                        sums.iter_mut().zip(words).for_each(|(sum, word)| *sum = sum.wrapping_add(*word));
                    }
                    std::hint::black_box(sums)
                });
            }
        });
        BYTES as f64 / begun.elapsed().as_secs_f64()
    };
    (0..5).map(pass).fold(0.0, f64::max)
}

/// A model of common size, limited by memory bandwidth.
pub async fn one_billion(sides: &Sides, path: &Path, text: &mut Text, figures: &mut Figures) {
    // Every matrix is read for each token, since the embedding is tied.
    let bytes = std::fs::metadata(path).expect("the model is there").len() as f64;
    let (mut decode, mut prefill, mut share) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=number("BENCH_ROUNDS", ROUNDS) {
        let prompt = text.cut(SHORT);
        let server = sides.server.ask(&prompt, 32).await.token();
        let ours = sides.ours.ask(&prompt, 32).await.token();
        let prompt = text.cut(512);
        let server_prefill = sides.server.ask(&prompt, 2).await.first;
        let our_prefill = sides.ours.ask(&prompt, 2).await.first;
        if round > 0 {
            println!(
                "    decode: {:.1} ms a token, the server {:.1}; prefill of 512: {our_prefill:.2} s, {server_prefill:.2}",
                ours * 1e3,
                server * 1e3
            );
            decode.push(server / ours);
            prefill.push(server_prefill / our_prefill);
            share.push(bytes / ours / read_bandwidth());
        }
    }
    record(figures, "decode_1b_q4k_of_bandwidth", "reported", share);
    record(figures, "decode_1b_q4k_vs_server", ">= 1", decode);
    record(figures, "prefill512_1b_q4k_vs_server", ">= 1.3", prefill);
}

/// The parts with three rounds.
pub async fn side_by_side(sides: &Sides, text: &mut Text, figures: &mut Figures) {
    if is_selected("gap") {
        gap_under_prefill(&sides.crowd_server, text, figures, "gap_under_prefill_of_server").await;
    }
    if is_selected("hog") {
        let mut hog = Vec::new();
        for _ in 0..3 {
            hog.push(beside_a_busy_core(sides, text).await);
        }
        record(figures, "hog_decode_vs_server", ">= 1.5", hog);
    }
}
