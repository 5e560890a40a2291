//! Real models of common size, a target and its draft model, on typical prompts: code edits, new code, prose, chat.

use std::path::Path;
use std::time::Duration;

use swarmllm_core::base::ModelId;
use swarmllm_core::engine::sample::SamplingParams;
use swarmllm_core::node::{KvType, Parts};
use swarmllm_tests::cluster::{Member, await_plan, unique_network};
use swarmllm_tests::models::TestModel;
use swarmllm_tests::reference::ReferenceModel;
use swarmllm_tests::slow_link::delayed;

use crate::subject::{Subject, Text, start, text_of};
use crate::wan::chain;
use crate::{DECODE, Figures, ROUNDS, SHORT, is_selected, number, record, threads};

/// Tokens of an answer.
const ANSWER: u32 = 160;
/// Tokens of an answer with a draft model, and rounds: over the longest delay a token takes 0.1 s.
const DRAFTED: u32 = 96;
const DRAFT_ROUNDS: usize = 3;
/// One-way delays between the halves, in milliseconds.
const DELAYS: [u64; 2] = [10, 50];
/// Measured temperatures: greedy, and one common for chats.
const TEMPERATURES: [(f32, &str); 2] = [(0.0, "greedy"), (0.7, "warm")];
/// Tokens with which the pair ends an answer. Kept out, as they are of the server's answers.
const ENDS: [u32; 2] = [151_643, 151_645];

/// The prompts by name. A line with `# ` starts a turn with its role.
const PROMPTS: [(&str, &str); 4] = [
    ("edit", include_str!("../../../prompts/edit.md")),
    ("code", include_str!("../../../prompts/code.md")),
    ("prose", include_str!("../../../prompts/prose.md")),
    ("chat", include_str!("../../../prompts/chat.md")),
];

/// Renders a conversation in the models' chat format, up to the start of the answer.
fn rendered(conversation: &str) -> String {
    let mut text = String::from("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n");
    for turn in conversation.split("# ").filter(|turn| !turn.is_empty()) {
        let (role, content) = turn.split_once('\n').expect("a turn has a role");
        text += &format!("<|im_start|>{role}\n{}<|im_end|>\n", content.trim_end());
    }
    text + "<|im_start|>assistant\n"
}

/// Whether a prompt is selected.
fn asked_for(prompt: &str) -> bool {
    std::env::var("BENCH_PROMPTS").map_or(true, |prompts| prompts.split([' ', ',']).any(|named| named == prompt))
}

/// The tokens of the selected prompts, by name.
fn prompts(path: &Path) -> Vec<(&'static str, Vec<u32>)> {
    let whole = ReferenceModel::load(path, threads());
    PROMPTS
        .iter()
        .filter(|(name, _)| asked_for(name))
        .map(|(name, text)| (*name, whole.tokenize_rendered(&rendered(text))))
        .collect()
}

/// The parts measured with the pair.
const PARTS: [&str; 5] = ["pair", "pair-guess", "pair-draft", "pair-split", "pair-kv"];

/// Measures the selected parts if the models exist.
pub async fn pair(server: Option<&Path>, figures: &mut Figures) {
    if !PARTS.into_iter().any(is_selected) {
        return;
    }
    if !TestModel::Coder15.is_there() {
        return println!("the 1.5B model is missing: its parts are skipped");
    }
    let path = TestModel::Coder15.path();
    let (ours, member) = Subject::ours(&path, TestModel::Coder15.name()).await;
    let ours = without_ends(&ours);
    let prompts = prompts(&path);
    let mut text = text_of(&path);
    if let Some(server) = server.filter(|_| is_selected("pair")) {
        beside(&Subject::server(server, &path, 1), &ours, &prompts, &mut text, figures).await;
    }
    if is_selected("pair-guess") {
        guesses(&ours, &prompts, figures).await;
    }
    if is_selected("pair-split") {
        halves(&ours, &mut text, figures).await;
    }
    if is_selected("pair-kv") {
        eight_bits(&ours, &prompts, figures).await;
    }
    if is_selected("pair-draft") && TestModel::Coder05.is_there() {
        member.import(&TestModel::Coder05.path(), TestModel::Coder05.name(), Parts::All).await;
        drafts("pair_draft_0ms", &ours, &prompts, figures).await;
        for delay in DELAYS {
            let (members, id) = far_apart(delay).await;
            let distant = without_ends(&Subject::of(&members[0].node, id));
            drafts(&format!("pair_draft_{delay}ms"), &distant, &prompts, figures).await;
        }
    }
}

/// The subject with end-of-generation tokens banned, for answers of full length.
fn without_ends(subject: &Subject) -> Subject {
    subject.with(|options| options.sampling.logit_bias = ENDS.map(|end| (end, SamplingParams::BAN)).into())
}

/// Two halves of the target with this one-way delay in milliseconds, the draft model beside the first.
async fn far_apart(delay: u64) -> (Vec<Member>, ModelId) {
    let line = |address: &str| delayed(address, Duration::from_millis(delay));
    let (members, id) = chain(TestModel::Coder15, 2, false, line).await;
    members[0].import(&TestModel::Coder05.path(), TestModel::Coder05.name(), Parts::All).await;
    (members, id)
}

/// Speedup by a draft model over no speculation.
async fn drafts(name: &str, subject: &Subject, prompts: &[(&str, Vec<u32>)], figures: &mut Figures) {
    let draft = Some(TestModel::Coder05.name().to_owned());
    let with = subject.with(|options| (options.speculate, options.draft) = (true, draft.clone()));
    for (prompt, tokens) in prompts {
        let (mut ratios, mut laps) = (Vec::new(), Vec::new());
        for round in 0..=number("BENCH_ROUNDS", DRAFT_ROUNDS) {
            let (without, with) = (subject.ask(tokens, DRAFTED).await, with.ask(tokens, DRAFTED).await);
            if round > 0 {
                ratios.push(without.token() / with.token());
                laps.push(with.tokens_per_step());
            }
        }
        record(figures, &format!("{name}_{prompt}"), ">= 0.98; code >= 1.3 at 10 ms, >= 2 at 50", ratios);
        record(figures, &format!("{name}_{prompt}_tokens_a_lap"), "", laps);
    }
}

/// Two halves on this machine against one node, on the same cores.
async fn halves(ours: &Subject, text: &mut Text, figures: &mut Figures) {
    let (members, id) = chain(TestModel::Coder15, 2, false, str::to_owned).await;
    let split = without_ends(&Subject::of(&members[0].node, id));
    for (name, ours, split) in [
        ("pair_split2_vs_single", ours.clone(), split.clone()),
        ("pair_split2_exact_vs_single", ours.exact(), split.exact()),
    ] {
        let mut ratios = Vec::new();
        for round in 0..=number("BENCH_ROUNDS", ROUNDS) {
            let prompt = text.cut(SHORT);
            let (one, two) = (ours.ask(&prompt, DECODE).await, split.ask(&prompt, DECODE).await);
            if round > 0 {
                let [token, compute] = [two.token(), two.compute].map(|seconds| seconds * 1e3);
                println!(
                    "    ms a token: halves {token:.2}, of it computing {compute:.2}; one node {:.2}",
                    one.token() * 1e3
                );
                ratios.push(one.token() / two.token());
            }
        }
        record(figures, name, ">= 0.95", ratios);
    }
}

/// 8-bit KV against 16-bit KV on the prompts.
async fn eight_bits(ours: &Subject, prompts: &[(&str, Vec<u32>)], figures: &mut Figures) {
    let member = start(&unique_network(), |builder| builder.kv(KvType::Q8)).await;
    let id = member.import(&TestModel::Coder15.path(), TestModel::Coder15.name(), Parts::All).await;
    await_plan(&member.node, id).await;
    let small = without_ends(&Subject::of(&member.node, id));
    let mut ratios = Vec::new();
    for round in 0..=number("BENCH_ROUNDS", ROUNDS) {
        for (_, prompt) in prompts {
            let (full, eight) = (ours.ask(prompt, DECODE).await.token(), small.ask(prompt, DECODE).await.token());
            if round > 0 {
                ratios.push(full / eight);
            }
        }
    }
    record(figures, "pair_kv_q8_decode_ratio", "", ratios);
}

/// Default and exact decoding, prefill and time to first token against the server.
async fn beside(
    server: &Subject,
    ours: &Subject,
    prompts: &[(&str, Vec<u32>)],
    text: &mut Text,
    figures: &mut Figures,
) {
    let (mut default, mut exact, mut prefill, mut first) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 0..=number("BENCH_ROUNDS", ROUNDS) {
        for (name, prompt) in prompts {
            for (temperature, heat) in TEMPERATURES {
                let (server, ours) = (server.at(temperature), ours.at(temperature));
                let theirs = server.ask(prompt, ANSWER).await.token();
                let guessed = ours.with(|options| options.speculate = true).ask(prompt, ANSWER).await.token();
                let whole = ours.exact().ask(prompt, ANSWER).await.token();
                println!(
                    "    {name} {heat}: tok/s {:.1}, the server {:.1}; exact {:.1}",
                    guessed.recip(),
                    theirs.recip(),
                    whole.recip()
                );
                if round > 0 {
                    default.push(theirs / guessed);
                    exact.push(theirs / whole);
                }
            }
        }
        let long = text.cut(512);
        let (theirs, own) = (server.ask(&long, 2).await.first, ours.ask(&long, 2).await.first);
        let short = text.cut(16);
        let (soon, sooner) = (server.ask(&short, 2).await.first, ours.ask(&short, 2).await.first);
        if round > 0 {
            prefill.push(theirs / own);
            first.push(sooner / soon);
        }
    }
    record(figures, "pair_decode_vs_server", ">= 1", default);
    record(figures, "pair_exact_decode_vs_server", ">= 0.98", exact);
    record(figures, "pair_prefill512_vs_server", ">= 1", prefill);
    record(figures, "pair_ttft_vs_server", "<= 1", first);
}

/// Speedup by n-gram speculation, and its cost without matches.
async fn guesses(ours: &Subject, prompts: &[(&str, Vec<u32>)], figures: &mut Figures) {
    let mut worst = f64::INFINITY;
    for (name, prompt) in prompts {
        for (temperature, heat) in TEMPERATURES {
            let (plain, guessing) =
                (ours.at(temperature), ours.at(temperature).with(|options| options.speculate = true));
            let mut ratios = Vec::new();
            for round in 0..=number("BENCH_ROUNDS", ROUNDS) {
                let (without, with) = (plain.ask(prompt, ANSWER).await, guessing.ask(prompt, ANSWER).await);
                if round > 0 {
                    ratios.push(without.token() / with.token());
                }
            }
            let figure = format!("pair_guess_{name}_{heat}");
            record(figures, &figure, if *name == "edit" { ">= 1.5" } else { ">= 0.98" }, ratios);
            worst = worst.min(figures[&figure]);
        }
    }
    record(figures, "pair_guess_worst", ">= 0.98", vec![worst]);
}
