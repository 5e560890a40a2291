//! The central contract of the project: a split model generates exactly the tokens of the whole model.
//!
//! The whole model is llama.cpp with the original GGUF, never a swarmllm stage.

use std::ops::RangeInclusive;
use std::path::Path;

use futures::future::join_all;
use swarmllm_core::base::{LayerRange, ModelId};
use swarmllm_core::node::{Completion, Delta, FinishReason, Node, Parts};
use swarmllm_tests::cluster::{Cluster, Member, THREADS, Transport, answer, ask, await_plan, unique_network};
use swarmllm_tests::models::TestModel;
use swarmllm_tests::process::ProcessCluster;
use swarmllm_tests::prompts::{ANSWER, ten};
use swarmllm_tests::reference::{CHUNK, ReferenceModel};

/// Ten prompts with the whole model's answers.
struct Reference {
    whole: ReferenceModel,
    prompts: Vec<String>,
    answers: Vec<Vec<u32>>,
}

impl Reference {
    fn of(model: TestModel) -> Reference {
        let whole = ReferenceModel::load(&model.path(), THREADS);
        let prompts = ten();
        let answers = answers_of(model, &whole, &prompts);
        let long = prompts.iter().filter(|prompt| whole.tokenize(prompt).len() > CHUNK as usize).count();
        assert!(prompts.len() == 10 && long > 0, "one of ten prompts takes several prefill chunks");
        let full = answers.iter().filter(|answer| answer.len() == ANSWER as usize).count();
        assert!(full >= 8, "only {full} of ten answers have {ANSWER} tokens");
        Reference { whole, prompts, answers }
    }

    /// The tokens without the end-of-generation token.
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

    /// Checks all ten prompts one by one.
    async fn check_all(&self, node: &Node, model: ModelId, cut: &[LayerRange], where_: &str) {
        for (index, prompt) in self.prompts.iter().enumerate() {
            let completion =
                answer(node, model, prompt, ANSWER).await.unwrap_or_else(|error| panic!("{where_}: {error}"));
            self.check(index, &completion, where_);
            // On an overloaded machine a host may be lost for a moment; the answer then continues on the same route.
            let last = completion.route.iter().map(|stage| stage.epoch).max();
            let stages = completion.route.iter().filter(|stage| Some(stage.epoch) == last);
            let route: Vec<LayerRange> = stages.map(|stage| stage.layers).collect();
            assert_eq!(route, cut, "{where_}: the answer used the only route");
            assert!(
                completion.route.iter().all(|stage| stage.engine == "llama.cpp"),
                "{where_}: {:?}",
                completion.route
            );
        }
    }
}

/// The whole model's answers, computed once and cached on disk for all tests of this binary: each test may be a separate
/// process, and this would be a third of their compute.
fn answers_of(model: TestModel, whole: &ReferenceModel, prompts: &[String]) -> Vec<Vec<u32>> {
    let program = std::env::current_exe().and_then(std::fs::metadata).and_then(|program| program.modified());
    let built =
        program.expect("this program is a file").duration_since(std::time::UNIX_EPOCH).expect("built after 1970");
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let path = directory.join(format!("answers-{}-{}.json", model.name(), built.as_nanos()));
    if let Ok(kept) = std::fs::read(&path) {
        return serde_json::from_slice(&kept).expect("it was written whole");
    }
    let answers = whole.answers(prompts, ANSWER);
    // Another test may write concurrently: both files have the same content.
    let mut file = tempfile::NamedTempFile::new_in(directory).expect("a file beside the other");
    serde_json::to_writer(&mut file, &answers).expect("answers are written");
    file.persist(path).expect("it gets its name");
    answers
}

async fn exact_on_one_node(model: TestModel) {
    let reference = Reference::of(model);
    let member = Member::start(&unique_network(), Transport::Tcp).await;
    let id = member.import(&model.path(), model.name(), Parts::All).await;
    await_plan(&member.node, id).await;
    reference.check_all(&member.node, id, &model.cut(1), "one node").await;
    member.stop().await;
}

async fn exact_in_one_process(model: TestModel, transport: Transport, cuts: RangeInclusive<u32>) {
    let reference = Reference::of(model);
    for stages in cuts {
        let cluster = Cluster::start(model, transport, stages).await;
        let where_ = format!("{stages} stages in one process over {}", transport.name());
        reference.check_all(cluster.node(), cluster.model, &cluster.cut, &where_).await;
        cluster.stop().await;
    }
}

async fn exact_across_processes(model: TestModel, transport: Transport, cuts: RangeInclusive<u32>) {
    let reference = Reference::of(model);
    for stages in cuts {
        let mut cluster = ProcessCluster::start(model, transport, stages).await;
        let where_ = format!("{stages} stages across processes over {}", transport.name());
        reference.check_all(&cluster.coordinator.node, cluster.model, &cluster.cut, &where_).await;
        for host in &mut cluster.hosts {
            assert!(host.terminate().success(), "{where_}: a terminated host exits successfully");
        }
        cluster.coordinator.stop().await;
    }
}

async fn exact_when_interleaved(model: TestModel, transport: Transport) {
    const SESSIONS: usize = 4;
    let reference = Reference::of(model);
    let cluster = Cluster::start(model, transport, 2).await;
    // The long prompt comes last: it is prefilled while the others decode.
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

async fn exact_after_a_cancelled_request(model: TestModel, transport: Transport) {
    const HEARD: usize = 5;
    let reference = Reference::of(model);
    let cluster = Cluster::start(model, transport, 3).await;
    let node = cluster.node();
    // Dropped during an answer, then during a prefill.
    let mut dropped = ask(node, cluster.model, &reference.prompts[1], ANSWER).await.expect("the swarm answers");
    for _ in 0..HEARD {
        assert!(matches!(dropped.next().await, Some(Ok(Delta::Text(_)))), "the answer has started");
    }
    drop(dropped);
    drop(ask(node, cluster.model, &reference.prompts[9], ANSWER).await.expect("the swarm answers"));
    // Cancelled explicitly: the partial answer remains.
    let mut cancelled = ask(node, cluster.model, &reference.prompts[7], ANSWER).await.expect("the swarm answers");
    assert!(matches!(cancelled.next().await, Some(Ok(Delta::Text(_)))), "the answer has started");
    cancelled.cancel();
    let partial = cancelled.finish().await.expect("a cancelled answer ends well");
    assert_eq!(partial.finish, FinishReason::Cancelled);
    assert!(
        reference.answers[7].starts_with(&reference.said(&partial)),
        "the partial answer is a prefix of the answer"
    );
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

// Each transport has all splits, in one process or across several, and three stages in both.
for_both_models! {
    one_node_says_what_the_whole_model_says => exact_on_one_node;
    stages_in_one_process_over_tcp_say_what_the_whole_model_says => |model| exact_in_one_process(model, Transport::Tcp, 1..=3);
    stages_in_one_process_over_quic_say_what_the_whole_model_says => |model| exact_in_one_process(model, Transport::Quic, 3..=3);
    stages_across_processes_over_tcp_say_what_the_whole_model_says => |model| exact_across_processes(model, Transport::Tcp, 3..=3);
    stages_across_processes_over_quic_say_what_the_whole_model_says => |model| exact_across_processes(model, Transport::Quic, 1..=3);
    four_sessions_at_once_change_no_token => |model| exact_when_interleaved(model, Transport::Tcp);
    cancelled_requests_change_no_token_of_later_ones => |model| exact_after_a_cancelled_request(model, Transport::Tcp);
}
