//! Real models of a usual size, a target and its draft, on what people ask for: code to be changed, new code, prose, a chat.

use std::path::Path;
use std::time::Duration;

use swarmllm_core::base::ModelId;
use swarmllm_core::engine::sample::SamplingParams;
use swarmllm_core::node::{KvCache, Parts};
use swarmllm_tests::cluster::{Member, await_plan, lonely_network};
use swarmllm_tests::models::TestModel;
use swarmllm_tests::relay::delayed;
use swarmllm_tests::whole::Whole;

use crate::asked::{Asked, Text, start, text_of};
use crate::far::chain;
use crate::{DECODE, Figures, ROUNDS, SHORT, number, tell, threads, wanted};

/// Tokens of an answer.
const ANSWER: u32 = 160;
/// Tokens of an answer with a draft, and rounds of each: over a long line a token takes a tenth of a second.
const DRAFTED: u32 = 96;
const DRAFT_ROUNDS: usize = 3;
/// One-way delays between the halves, in milliseconds.
const DELAYS: [u64; 2] = [10, 50];
/// Temperatures that are tried: the best token each time, and what chats usually have.
const TEMPERATURES: [(f32, &str); 2] = [(0.0, "greedy"), (0.7, "warm")];
/// Tokens with which the pair ends an answer. Kept out, as they are of the server's answers.
const ENDS: [u32; 2] = [151_643, 151_645];

/// What is asked, by name. A line that begins with `# ` begins a turn and says whose it is.
const PROMPTS: [(&str, &str); 4] = [
    ("edit", include_str!("../../../prompts/edit.md")),
    ("code", include_str!("../../../prompts/code.md")),
    ("prose", include_str!("../../../prompts/prose.md")),
    ("chat", include_str!("../../../prompts/chat.md")),
];

/// A conversation in the pair's own form, up to where the answer begins.
fn rendered(conversation: &str) -> String {
    let mut text = String::from("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n");
    for turn in conversation.split("# ").filter(|turn| !turn.is_empty()) {
        let (role, content) = turn.split_once('\n').expect("a turn has a role");
        text += &format!("<|im_start|>{role}\n{}<|im_end|>\n", content.trim_end());
    }
    text + "<|im_start|>assistant\n"
}

/// Whether a prompt is to be measured.
fn asked_for(prompt: &str) -> bool {
    std::env::var("BENCH_PROMPTS").map_or(true, |prompts| prompts.split([' ', ',']).any(|named| named == prompt))
}

/// The prompts' tokens, by name.
fn prompts(path: &Path) -> Vec<(&'static str, Vec<u32>)> {
    let whole = Whole::load(path, threads());
    PROMPTS
        .iter()
        .filter(|(name, _)| asked_for(name))
        .map(|(name, text)| (*name, whole.tokenize_rendered(&rendered(text))))
        .collect()
}

/// Parts of what is measured of the pair.
const PARTS: [&str; 5] = ["pair", "pair-guess", "pair-draft", "pair-split", "pair-kv"];

/// All that is measured of the pair, where it is there.
pub async fn pair(server: Option<&Path>, figures: &mut Figures) {
    if !PARTS.into_iter().any(wanted) {
        return;
    }
    if !TestModel::Coder15.is_there() {
        return println!("the real 1.5B is not there: what needs it is left out");
    }
    let path = TestModel::Coder15.path();
    let (ours, member) = Asked::ours(&path, TestModel::Coder15.name()).await;
    let ours = without_ends(&ours);
    let prompts = prompts(&path);
    let mut text = text_of(&path);
    if let Some(server) = server.filter(|_| wanted("pair")) {
        beside(&Asked::server(server, &path, 1), &ours, &prompts, &mut text, figures).await;
    }
    if wanted("pair-guess") {
        guesses(&ours, &prompts, figures).await;
    }
    if wanted("pair-split") {
        halves(&ours, &mut text, figures).await;
    }
    if wanted("pair-kv") {
        eight_bits(&ours, &prompts, figures).await;
    }
    if wanted("pair-draft") && TestModel::Coder05.is_there() {
        member.import(&TestModel::Coder05.path(), TestModel::Coder05.name(), Parts::All).await;
        drafts("pair_draft_0ms", &ours, &prompts, figures).await;
        for delay in DELAYS {
            let (members, id) = far_apart(delay).await;
            let distant = without_ends(&Asked::of(&members[0].node, id));
            drafts(&format!("pair_draft_{delay}ms"), &distant, &prompts, figures).await;
        }
    }
}

/// The same, whose answers are of full length.
fn without_ends(asked: &Asked) -> Asked {
    asked.with(|options| options.sampling.logit_bias = ENDS.map(|end| (end, SamplingParams::BAN)).into())
}

/// Two halves of the target that are so many milliseconds apart, the draft beside the first.
async fn far_apart(delay: u64) -> (Vec<Member>, ModelId) {
    let line = |address: &str| delayed(address, Duration::from_millis(delay));
    let (members, id) = chain(TestModel::Coder15, 2, false, line).await;
    members[0].import(&TestModel::Coder05.path(), TestModel::Coder05.name(), Parts::All).await;
    (members, id)
}

/// What a draft model brings over no guesses at all.
async fn drafts(name: &str, asked: &Asked, prompts: &[(&str, Vec<u32>)], figures: &mut Figures) {
    let draft = Some(TestModel::Coder05.name().to_owned());
    let with = asked.with(|options| (options.guess, options.draft) = (true, draft.clone()));
    for (prompt, tokens) in prompts {
        let (mut ratios, mut laps) = (Vec::new(), Vec::new());
        for round in 0..=number("BENCH_ROUNDS", DRAFT_ROUNDS) {
            let (without, with) = (asked.ask(tokens, DRAFTED).await, with.ask(tokens, DRAFTED).await);
            if round > 0 {
                ratios.push(without.token() / with.token());
                laps.push(with.of_a_lap());
            }
        }
        tell(figures, &format!("{name}_{prompt}"), ">= 0.98; code >= 1.3 at 10 ms, >= 2 at 50", ratios);
        tell(figures, &format!("{name}_{prompt}_tokens_a_lap"), "", laps);
    }
}

/// Two halves on this machine against one node with everything; the same cores.
async fn halves(ours: &Asked, text: &mut Text, figures: &mut Figures) {
    let (members, id) = chain(TestModel::Coder15, 2, false, str::to_owned).await;
    let split = without_ends(&Asked::of(&members[0].node, id));
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
        tell(figures, name, ">= 0.95", ratios);
    }
}

/// KV in 8 bits against KV in 16, on the prompts.
async fn eight_bits(ours: &Asked, prompts: &[(&str, Vec<u32>)], figures: &mut Figures) {
    let member = start(&lonely_network(), |builder| builder.kv(KvCache::Q8)).await;
    let id = member.import(&TestModel::Coder15.path(), TestModel::Coder15.name(), Parts::All).await;
    await_plan(&member.node, id).await;
    let small = without_ends(&Asked::of(&member.node, id));
    let mut ratios = Vec::new();
    for round in 0..=number("BENCH_ROUNDS", ROUNDS) {
        for (_, prompt) in prompts {
            let (full, eight) = (ours.ask(prompt, DECODE).await.token(), small.ask(prompt, DECODE).await.token());
            if round > 0 {
                ratios.push(full / eight);
            }
        }
    }
    tell(figures, "pair_kv_q8_decode_ratio", "", ratios);
}

/// Decoding by default and exactly, prompts, and the first token, beside the server.
async fn beside(server: &Asked, ours: &Asked, prompts: &[(&str, Vec<u32>)], text: &mut Text, figures: &mut Figures) {
    let (mut default, mut exact, mut prefill, mut first) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 0..=number("BENCH_ROUNDS", ROUNDS) {
        for (name, prompt) in prompts {
            for (temperature, heat) in TEMPERATURES {
                let (server, ours) = (server.at(temperature), ours.at(temperature));
                let theirs = server.ask(prompt, ANSWER).await.token();
                let guessed = ours.with(|options| options.guess = true).ask(prompt, ANSWER).await.token();
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
    tell(figures, "pair_decode_vs_server", ">= 1", default);
    tell(figures, "pair_exact_decode_vs_server", ">= 0.98", exact);
    tell(figures, "pair_prefill512_vs_server", ">= 1", prefill);
    tell(figures, "pair_ttft_vs_server", "<= 1", first);
}

/// What guesses bring, and cost where they bring nothing.
async fn guesses(ours: &Asked, prompts: &[(&str, Vec<u32>)], figures: &mut Figures) {
    let mut worst = f64::INFINITY;
    for (name, prompt) in prompts {
        for (temperature, heat) in TEMPERATURES {
            let (plain, guessing) = (ours.at(temperature), ours.at(temperature).with(|options| options.guess = true));
            let mut ratios = Vec::new();
            for round in 0..=number("BENCH_ROUNDS", ROUNDS) {
                let (without, with) = (plain.ask(prompt, ANSWER).await, guessing.ask(prompt, ANSWER).await);
                if round > 0 {
                    ratios.push(without.token() / with.token());
                }
            }
            let figure = format!("pair_guess_{name}_{heat}");
            tell(figures, &figure, if *name == "edit" { ">= 1.5" } else { ">= 0.98" }, ratios);
            worst = worst.min(figures[&figure]);
        }
    }
    tell(figures, "pair_guess_worst", ">= 0.98", vec![worst]);
}
