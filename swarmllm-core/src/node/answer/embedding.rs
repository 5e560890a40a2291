//! Embeddings: the model's stages compute the states of each text, which are pooled. No tokens are generated.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::base::{ErrorKind, Fault};
use crate::engine::sample::{SampledToken, Sampler, SamplingParams};
use crate::node::answer::admission::{AdmittedSession, SessionOptions, admit, new_session, refusal};
use crate::node::answer::generation::{check_prompt, context_limit, in_time};
use crate::node::answer::planning::RouteFinder;
use crate::node::answer::prompt_reader::prompt_bytes;
use crate::node::answer::queue::QueueEntry;
use crate::node::api::report::Embeddings;
use crate::node::api::request::{EmbedRequest, Prompt};
use crate::node::models::loaded::LoadedModel;
use crate::node::models::prepare::load;
use crate::node::shared::SharedState;
use crate::pipeline::host::stages::StageTable;
use crate::pipeline::runner;
use crate::pipeline::runner::job::{Job, TokenSink};
use crate::pipeline::session::pooling::Pooling;
use crate::wire::codec::Codec;

/// Shared by all texts of a request.
struct EmbeddingRun {
    shared: Arc<SharedState>,
    model: Arc<LoadedModel>,
    pooling: Pooling,
    deadline: Option<Instant>,
    cancel: CancellationToken,
    /// Held to the end: the request queues again for each text.
    entry: QueueEntry,
}

/// Embeds the texts of a request in sequence. Cancel-safe: dropping it cancels at every stage.
pub(crate) async fn embed(shared: Arc<SharedState>, request: EmbedRequest) -> Result<Embeddings, Fault> {
    request.check()?;
    let deadline = request.deadline.map(|allowed| Instant::now() + allowed);
    let bytes = request.inputs.iter().map(prompt_bytes).sum();
    let mut entry = shared.answers.queue.enter(&request.caller.as_str().into(), bytes)?;
    let (model, texts) = in_time(deadline, prepare(&shared, &request.model, request.inputs)).await?;
    let (several, checked) = (texts.len() > 1, texts.iter().enumerate());
    for (at, text) in checked {
        check(&shared.models.stages, &model, text).map_err(|fault| fault.about(field(at, several)))?;
    }
    entry.resize(texts.iter().map(|text| size_of_val(text.as_slice())).sum());
    let cancel = shared.lifecycle.closed.child_token();
    let _cancel_on_drop = cancel.clone().drop_guard();
    let run = EmbeddingRun { shared: shared.clone(), model, pooling: request.pooling, deadline, cancel, entry };
    let (reply, answer) = oneshot::channel();
    // In its own task: a session's runner must finish even if the caller leaves.
    shared.tasks.spawn("embedding", async move { drop(reply.send(run.run(texts).await)) });
    answer.await.map_err(|_| Fault::new(ErrorKind::Closed, "the node was shut down meanwhile"))?
}

/// The model, and the tokens of the texts.
async fn prepare(
    shared: &Arc<SharedState>,
    model: &str,
    inputs: Vec<Prompt>,
) -> Result<(Arc<LoadedModel>, Vec<Vec<u32>>), Fault> {
    let model = load(shared, model).await?;
    let several = inputs.len() > 1;
    let field = move |at| field(at, several);
    let texts =
        shared.answers.readers.prompts(&model, inputs, context_limit(&shared.models.stages, &model), field).await?;
    Ok((model, texts))
}

/// Name of a text's field in the request.
fn field(at: usize, several: bool) -> String {
    if several { format!("inputs[{at}]") } else { "inputs".to_owned() }
}

fn check(stages: &StageTable, model: &LoadedModel, text: &[u32]) -> Result<(), Fault> {
    check_prompt(model, text)?;
    let limit = context_limit(stages, model);
    if text.len() > limit as usize {
        let message = format!(
            "{} tokens exceed the context of {limit}; cut the text into pieces, or give the node a longer `context` where \
             the model's own is longer",
            text.len()
        );
        return Err(Fault::new(ErrorKind::ContextOverflow, message));
    }
    Ok(())
}

impl EmbeddingRun {
    async fn run(self, texts: Vec<Vec<u32>>) -> Result<Embeddings, Fault> {
        let mut done = Embeddings { model: self.model.id, vectors: Vec::with_capacity(texts.len()), prompt_tokens: 0 };
        for text in texts {
            done.prompt_tokens = done.prompt_tokens.saturating_add(text.len() as u32);
            done.vectors.push(self.embed_one(text).await?);
        }
        Ok(done)
    }

    async fn embed_one(&self, text: Vec<u32>) -> Result<Vec<f32>, Fault> {
        let (shared, model) = (&self.shared, &self.model);
        // Never used: no token is sampled.
        let sampler = Sampler::new(SamplingParams::greedy(), model.manifest.vocab);
        let job = Job {
            session: new_session(shared.id)?,
            model: model.id,
            routes: Arc::new(RouteFinder { shared: shared.clone(), model: model.clone(), standby: false }),
            engine: model.engine.name().to_owned(),
            prompt: text,
            codec: Codec::F32,
            exact: false,
            speculate: false,
            drafter: None,
            guide: None,
            pooling: Some(self.pooling),
            max_tokens: 0,
            vocab: model.manifest.vocab,
            embedder: model.embedder.clone(),
            sampler: sampler.map_err(|error| Fault::new(error.kind(), error))?,
            is_end: Box::new(|_| false),
            deadline: self.deadline,
            cancel: self.cancel.clone(),
        };
        let admitted = admit(shared, model, self.entry.caller(), job, &SessionOptions::default()).await;
        let AdmittedSession { running, job, begun } = admitted.map_err(|end| refusal(&shared.lifecycle, end))?;
        let outcome = runner::run(&shared.coordinator, job, begun, &mut NullSink).await;
        drop(running);
        outcome.end?;
        let cancelled = || Fault::new(ErrorKind::Cancelled, "the embedding was cancelled");
        outcome.embedding.filter(|_| !self.cancel.is_cancelled()).ok_or_else(cancelled)
    }
}

/// Sink of a session without tokens.
struct NullSink;

impl TokenSink for NullSink {
    async fn token(&mut self, _: SampledToken) -> ControlFlow<()> {
        ControlFlow::Break(())
    }

    fn has_room(&self) -> bool {
        true
    }

    async fn room(&self) -> Result<(), Fault> {
        Ok(())
    }
}
