//! Embeddings of the swarm match llama.cpp's embeddings of the whole model.

use std::time::Duration;

use swarmllm_core::base::ErrorKind;
use swarmllm_core::node::{EmbedError, EmbedRequest, Embeddings, MAX_INPUTS, Pooling, Prompt};
use swarmllm_tests::cluster::{CONTEXT, Cluster, THREADS, Transport};
use swarmllm_tests::in_time;
use swarmllm_tests::models::TestModel;
use swarmllm_tests::prompts::harbour_log;
use swarmllm_tests::reference::ReferenceModel;

async fn embed(cluster: &Cluster, inputs: Vec<Prompt>, pooling: Pooling) -> Result<Embeddings, EmbedError> {
    let request =
        EmbedRequest { model: cluster.model.to_string(), inputs, pooling, deadline: None, caller: String::new() };
    in_time("embeddings", cluster.node().embed(request)).await
}

fn cosine(one: &[f32], other: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    dot(one, other) / (dot(one, one) * dot(other, other)).sqrt()
}

/// Checks a text that fits a step and a text that takes several.
async fn vectors_match_the_reference(model: TestModel) {
    let cluster = Cluster::start(model, Transport::Tcp, 2).await;
    let whole = ReferenceModel::load(&model.path(), THREADS);
    let long = whole.tokenize(&harbour_log(16));
    assert!(long.len() > 300 && long.len() <= 512, "{}", long.len());
    let texts = [whole.tokenize("The harbour was quiet."), long];
    for pooling in [Pooling::Mean, Pooling::Last] {
        let inputs = texts.iter().cloned().map(Prompt::Tokens).collect();
        let done = embed(&cluster, inputs, pooling).await.expect("the swarm embeds");
        assert_eq!(done.prompt_tokens as usize, texts[0].len() + texts[1].len());
        for (vector, text) in done.vectors.iter().zip(&texts) {
            let length: f64 = vector.iter().map(|value| f64::from(*value) * f64::from(*value)).sum();
            assert!((length - 1.0).abs() < 1e-5, "{length}");
            let cosine = cosine(vector, &whole.embedding(text, pooling == Pooling::Last));
            // The reference uses other chunks: only rounding may differ.
            assert!(cosine > 0.999, "{pooling:?} of {} tokens: {cosine}", text.len());
        }
        assert!(cosine(&done.vectors[0], &done.vectors[1]) < 0.999, "two texts differ");
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn vectors_over_two_stages_are_the_whole_models_for_smollm2() {
    vectors_match_the_reference(TestModel::SmolLm2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn vectors_over_two_stages_are_the_whole_models_for_gemma3() {
    vectors_match_the_reference(TestModel::Gemma3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_texts_for_embedding_are_refused_without_side_effects() {
    let cluster = Cluster::start(TestModel::SmolLm2, Transport::Tcp, 2).await;
    let text = || Prompt::Text("One text.".to_owned());
    let good = embed(&cluster, vec![text()], Pooling::Mean).await.expect("the swarm embeds");
    let long = vec![1; CONTEXT as usize + 1];
    for (inputs, kind) in [
        (Vec::new(), ErrorKind::InvalidArgument),
        (vec![text(); MAX_INPUTS + 1], ErrorKind::InvalidArgument),
        (vec![Prompt::Tokens(Vec::new())], ErrorKind::InvalidArgument),
        (vec![text(), Prompt::Tokens(vec![u32::MAX])], ErrorKind::InvalidArgument),
        (vec![Prompt::Tokens(long)], ErrorKind::ContextOverflow),
    ] {
        let refused = embed(&cluster, inputs, Pooling::Mean).await.expect_err("it cannot be embedded");
        assert_eq!(refused.kind(), kind, "{refused}");
    }
    let request = EmbedRequest {
        model: cluster.model.to_string(),
        inputs: vec![text(); 200],
        pooling: Pooling::Mean,
        deadline: Some(Duration::from_millis(1)),
        caller: String::new(),
    };
    let late = cluster.node().embed(request).await.expect_err("a millisecond is too short");
    assert_eq!(late.kind(), ErrorKind::Timeout);
    assert_eq!(embed(&cluster, vec![text()], Pooling::Mean).await.expect("the swarm embeds"), good);
    cluster.stop().await;
}
