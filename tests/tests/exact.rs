//! The promise of the project: a split model says, token for token, what the whole model says.
//!
//! Whole means llama.cpp running the original GGUF as one, never our own chain.

use std::ops::RangeInclusive;
use std::path::Path;

use futures::future::join_all;
use swarmllm_core::base::{LayerRange, ModelId};
use swarmllm_core::node::{Completion, Delta, FinishReason, Node, Parts};
use swarmllm_tests::cluster::{Carrier, Cluster, Member, THREADS, answer, ask, await_plan, lonely_network};
use swarmllm_tests::models::TestModel;
use swarmllm_tests::process::ProcessCluster;
use swarmllm_tests::prompts::{ANSWER, ten};
use swarmllm_tests::whole::{CHUNK, Whole};

/// Ten prompts with what the whole model answers.
struct Reference {
    whole: Whole,
    prompts: Vec<String>,
    answers: Vec<Vec<u32>>,
}

impl Reference {
    fn of(model: TestModel) -> Reference {
        let whole = Whole::load(&model.path(), THREADS);
        let prompts = ten();
        let answers = answers_of(model, &whole, &prompts);
        let long = prompts.iter().filter(|prompt| whole.tokenize(prompt).len() > CHUNK as usize).count();
        assert!(prompts.len() == 10 && long > 0, "one of ten prompts takes several prefill chunks");
        let full = answers.iter().filter(|answer| answer.len() == ANSWER as usize).count();
        assert!(full >= 8, "{full} of ten answers have {ANSWER} tokens: the prompts end too early to show anything");
        Reference { whole, prompts, answers }
    }

    /// A token that ends the answer is no part of it.
    fn said(&self, completion: &Completion) -> Vec<u32> {
        let end = completion.tokens.iter().position(|token| self.whole.ends(*token));
        completion.tokens[..end.unwrap_or(completion.tokens.len())].to_vec()
    }

    fn check(&self, index: usize, completion: &Completion, where_: &str) {
        let prompt = &self.prompts[index];
        assert_eq!(self.said(completion), self.answers[index], "{where_}, prompt {index}: {prompt:.60}");
        assert_eq!(completion.prompt_tokens as usize, self.whole.tokenize(prompt).len(), "{where_}: prompt {index}");
        let full = self.answers[index].len() == ANSWER as usize;
        assert_eq!(completion.finish, if full { FinishReason::Length } else { FinishReason::Stop }, "{where_}");
    }

    /// Asks all ten one after another.
    async fn check_all(&self, node: &Node, model: ModelId, cut: &[LayerRange], where_: &str) {
        for (index, prompt) in self.prompts.iter().enumerate() {
            let completion =
                answer(node, model, prompt, ANSWER).await.unwrap_or_else(|error| panic!("{where_}: {error}"));
            self.check(index, &completion, where_);
            // On a starved machine a host may be lost for a moment; the answer then goes on over the same route.
            let last = completion.route.iter().map(|stage| stage.epoch).max();
            let stages = completion.route.iter().filter(|stage| Some(stage.epoch) == last);
            let route: Vec<LayerRange> = stages.map(|stage| stage.layers).collect();
            assert_eq!(route, cut, "{where_}: the answer came by the only route there is");
            assert!(
                completion.route.iter().all(|stage| stage.engine == "llama.cpp"),
                "{where_}: {:?}",
                completion.route
            );
        }
    }
}

/// The whole model's answers, which this very program computes once and keeps for all of its tests: each may be a process of
/// its own, and this would be a third of what they compute.
fn answers_of(model: TestModel, whole: &Whole, prompts: &[String]) -> Vec<Vec<u32>> {
    let program = std::env::current_exe().and_then(std::fs::metadata).and_then(|program| program.modified());
    let built =
        program.expect("this program is a file").duration_since(std::time::UNIX_EPOCH).expect("built after 1970");
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let path = directory.join(format!("answers-{}-{}.json", model.name(), built.as_nanos()));
    if let Ok(kept) = std::fs::read(&path) {
        return serde_json::from_slice(&kept).expect("it was written whole");
    }
    let answers = whole.answers(prompts, ANSWER);
    // Another test may be here as well: whichever file comes last, it says the same.
    let mut file = tempfile::NamedTempFile::new_in(directory).expect("a file beside the other");
    serde_json::to_writer(&mut file, &answers).expect("answers are written");
    file.persist(path).expect("it gets its name");
    answers
}

async fn exact_on_one_node(model: TestModel) {
    let reference = Reference::of(model);
    let member = Member::start(&lonely_network(), Carrier::Tcp).await;
    let id = member.import(&model.path(), model.name(), Parts::All).await;
    await_plan(&member.node, id).await;
    reference.check_all(&member.node, id, &model.cut(1), "one node").await;
    member.stop().await;
}

async fn exact_in_one_process(model: TestModel, carrier: Carrier, cuts: RangeInclusive<u32>) {
    let reference = Reference::of(model);
    for stages in cuts {
        let cluster = Cluster::start(model, carrier, stages).await;
        let where_ = format!("{stages} stages in one process over {}", carrier.name());
        reference.check_all(cluster.node(), cluster.model, &cluster.cut, &where_).await;
        cluster.stop().await;
    }
}

async fn exact_across_processes(model: TestModel, carrier: Carrier, cuts: RangeInclusive<u32>) {
    let reference = Reference::of(model);
    for stages in cuts {
        let mut cluster = ProcessCluster::start(model, carrier, stages).await;
        let where_ = format!("{stages} stages across processes over {}", carrier.name());
        reference.check_all(&cluster.coordinator.node, cluster.model, &cluster.cut, &where_).await;
        for host in &mut cluster.hosts {
            assert!(host.terminate().success(), "{where_}: a host that is asked to end ends well");
        }
        cluster.coordinator.stop().await;
    }
}

async fn exact_when_interleaved(model: TestModel, carrier: Carrier) {
    const SESSIONS: usize = 4;
    let reference = Reference::of(model);
    let cluster = Cluster::start(model, carrier, 2).await;
    // The long prompt is the last: it is prefilled while the others decode.
    for together in [[0, 1, 2, 3], [4, 5, 6, 7], [8, 1, 0, 9]] {
        let asked = together.map(|index| answer(cluster.node(), cluster.model, &reference.prompts[index], ANSWER));
        let completions = join_all(asked).await;
        assert_eq!(completions.len(), SESSIONS);
        for (index, completion) in together.into_iter().zip(completions) {
            let completion = completion.unwrap_or_else(|error| panic!("4 sessions at once: {error}"));
            reference.check(index, &completion, "4 sessions at once");
        }
    }
    cluster.stop().await;
}

async fn exact_after_a_cancelled_request(model: TestModel, carrier: Carrier) {
    const HEARD: usize = 5;
    let reference = Reference::of(model);
    let cluster = Cluster::start(model, carrier, 3).await;
    let node = cluster.node();
    // Dropped in the middle of an answer, then in the middle of a prefill.
    let mut dropped = ask(node, cluster.model, &reference.prompts[1], ANSWER).await.expect("the swarm answers");
    for _ in 0..HEARD {
        assert!(matches!(dropped.next().await, Some(Ok(Delta::Text(_)))), "the answer has begun");
    }
    drop(dropped);
    drop(ask(node, cluster.model, &reference.prompts[9], ANSWER).await.expect("the swarm answers"));
    // Cancelled by name: what was said stays.
    let mut cancelled = ask(node, cluster.model, &reference.prompts[7], ANSWER).await.expect("the swarm answers");
    assert!(matches!(cancelled.next().await, Some(Ok(Delta::Text(_)))), "the answer has begun");
    cancelled.cancel();
    let partial = cancelled.finish().await.expect("a cancelled answer ends well");
    assert_eq!(partial.finish, FinishReason::Cancelled);
    assert!(reference.answers[7].starts_with(&reference.said(&partial)), "what was said is the answer's beginning");
    reference.check_all(node, cluster.model, &cluster.cut, "after cancelled requests").await;
    cluster.stop().await;
}

/// One test per model, so that a failure names it.
macro_rules! for_both_models {
    ($($name:ident => $check:expr;)*) => {
        mod smollm2 { use super::*; $(for_both_models!(@ $name, TestModel::SmolLm2, $check);)* }
        mod gemma3 { use super::*; $(for_both_models!(@ $name, TestModel::Gemma3, $check);)* }
    };
    (@ $name:ident, $model:expr, $check:expr) => {
        #[tokio::test(flavor = "multi_thread")]
        async fn $name() {
            ($check)($model).await;
        }
    };
}

// Each carrier has all cuts, in one process or across several, and three stages in both.
for_both_models! {
    one_node_says_what_the_whole_model_says => exact_on_one_node;
    stages_in_one_process_over_tcp_say_what_the_whole_model_says => |model| exact_in_one_process(model, Carrier::Tcp, 1..=3);
    stages_in_one_process_over_quic_say_what_the_whole_model_says => |model| exact_in_one_process(model, Carrier::Quic, 3..=3);
    stages_across_processes_over_tcp_say_what_the_whole_model_says => |model| exact_across_processes(model, Carrier::Tcp, 3..=3);
    stages_across_processes_over_quic_say_what_the_whole_model_says => |model| exact_across_processes(model, Carrier::Quic, 1..=3);
    four_sessions_at_once_change_no_token => |model| exact_when_interleaved(model, Carrier::Tcp);
    cancelled_requests_change_no_token_of_later_ones => |model| exact_after_a_cancelled_request(model, Carrier::Tcp);
}
