//! Our node beside llama.cpp's server.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use crate::asked::{Asked, Text};
use crate::own::gap_under_prefill;
use crate::{DECODE, Figures, ROUNDS, SESSIONS, SHORT, number, tell, threads, wanted};

/// Both sides of a comparison.
pub struct Sides {
    pub server: Asked,
    crowd_server: Asked,
    pub ours: Asked,
}

impl Sides {
    /// The server twice, for one session and for several, beside our node.
    pub fn start(binary: &Path, path: &Path, ours: Asked) -> Sides {
        let server = |sessions| Asked::server(binary, path, sessions);
        Sides { server: server(1), crowd_server: server(SESSIONS), ours }
    }
}

/// An answer and prompts by themselves.
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
    tell(figures, &format!("decode{suffix}_vs_server"), ">= 1", decode);
    tell(figures, &format!("ttft{suffix}_vs_server"), "<= 1", first);
    for length in [512, 2048] {
        let mut prefill = Vec::new();
        for _ in 0..number("BENCH_ROUNDS", ROUNDS).min(if length > 512 { 3 } else { ROUNDS }) {
            let prompt = text.cut(length);
            let server = sides.server.ask(&prompt, 2).await;
            prefill.push(server.first / sides.ours.ask(&prompt, 2).await.first);
        }
        tell(figures, &format!("prefill{length}{suffix}_vs_server"), ">= 1", prefill);
    }
    // The server is compiled for this very processor, our library for all of its kind.
    let native = ["decode", "prefill512"].map(|what| figures[&format!("{what}{suffix}_vs_server")]);
    tell(figures, &format!("portable_vs_native{suffix}"), ">= 0.95", vec![native[0].min(native[1])]);
}

/// Several answers at once.
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
    tell(figures, "batch8_vs_server", ">= 1", ratio);
}

/// Decoding while another thread uses one core all the time.
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

/// Bytes per second that all threads together read from memory: the best of several passes over more than caches hold.
fn read_bandwidth() -> f64 {
    const BYTES: usize = 1 << 30;
    let buffer = vec![1_u64; BYTES / size_of::<u64>()];
    let pass = |_| {
        let begun = Instant::now();
        std::thread::scope(|scope| {
            for part in buffer.chunks(buffer.len().div_ceil(threads() as usize)) {
                // Several sums at once, so that adding them up is not what takes the time.
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

/// A model of a usual size, where memory bandwidth rules.
pub async fn one_billion(sides: &Sides, path: &Path, text: &mut Text, figures: &mut Figures) {
    // Of its matrices all are read for each token: the embedding is the output matrix too.
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
    tell(figures, "decode_1b_q4k_of_bandwidth", "told", share);
    tell(figures, "decode_1b_q4k_vs_server", ">= 1", decode);
    tell(figures, "prefill512_1b_q4k_vs_server", ">= 1.3", prefill);
}

/// The parts that take three rounds.
pub async fn side_by_side(sides: &Sides, text: &mut Text, figures: &mut Figures) {
    if wanted("gap") {
        gap_under_prefill(&sides.crowd_server, text, figures, "gap_under_prefill_of_server").await;
    }
    if wanted("hog") {
        let mut hog = Vec::new();
        for _ in 0..3 {
            hog.push(beside_a_busy_core(sides, text).await);
        }
        tell(figures, "hog_decode_vs_server", ">= 1.5", hog);
    }
}
