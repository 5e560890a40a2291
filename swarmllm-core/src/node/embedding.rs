//! Texts as vectors: each is read by the model's stages, and its states are pooled. Nothing is generated.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::base::{ErrorKind, Fault};
use crate::engine::sample::{Sampled, Sampler, SamplingParams};
use crate::node::generation::{blocking, check_prompt, context_limit, encode, in_time, load, new_session};
use crate::node::loaded::LoadedModel;
use crate::node::planning::{Finding, first_route};
use crate::node::report::Embeddings;
use crate::node::request::{EmbedRequest, Prompt};
use crate::node::shared::Shared;
use crate::pipeline::job::{Job, TokenSink};
use crate::pipeline::pool::Pooling;
use crate::pipeline::runner;
use crate::wire::codec::Codec;

/// What every text of a request shares.
struct Work {
    shared: Arc<Shared>,
    model: Arc<LoadedModel>,
    pooling: Pooling,
    deadline: Option<Instant>,
    cancel: CancellationToken,
}

/// Embeds the texts of a request, one after another. Dropped, it cancels at every stage.
pub(crate) async fn embed(shared: Arc<Shared>, request: EmbedRequest) -> Result<Embeddings, Fault> {
    request.check()?;
    let deadline = request.deadline.map(|allowed| Instant::now() + allowed);
    let (model, texts) = in_time(deadline, read(&shared, &request.model, request.inputs)).await?;
    texts.iter().try_for_each(|text| check(&shared, &model, text))?;
    let cancel = shared.closed.child_token();
    let _cancel_on_drop = cancel.clone().drop_guard();
    let work = Work { shared: shared.clone(), model, pooling: request.pooling, deadline, cancel };
    let (reply, answer) = oneshot::channel();
    // In a task of its own: the runner of a session must come to its end, even where the caller leaves.
    shared.tasks.spawn("embedding", async move { drop(reply.send(work.all(texts).await)) });
    answer.await.map_err(|_| Fault::new(ErrorKind::Closed, "the node was shut down meanwhile"))?
}

/// The model, and the texts in its tokens.
async fn read(
    shared: &Arc<Shared>,
    model: &str,
    inputs: Vec<Prompt>,
) -> Result<(Arc<LoadedModel>, Vec<Vec<u32>>), Fault> {
    let model = load(shared, model).await?;
    let reader = model.clone();
    let texts = blocking(move || inputs.into_iter().map(|input| tokens(&reader, input)).collect());
    Ok((model, texts.await?))
}

fn tokens(model: &LoadedModel, input: Prompt) -> Result<Vec<u32>, Fault> {
    match input {
        Prompt::Text(text) => encode(model, &text, false),
        Prompt::Tokens(tokens) => Ok(tokens),
    }
}

fn check(shared: &Shared, model: &LoadedModel, text: &[u32]) -> Result<(), Fault> {
    check_prompt(model, text)?;
    let limit = context_limit(shared, model);
    if text.len() > limit as usize {
        let message = format!("a text of {} tokens exceeds the context of {limit}; cut it into pieces", text.len());
        return Err(Fault::new(ErrorKind::ContextOverflow, message));
    }
    Ok(())
}

impl Work {
    async fn all(self, texts: Vec<Vec<u32>>) -> Result<Embeddings, Fault> {
        let mut done = Embeddings { model: self.model.id, vectors: Vec::with_capacity(texts.len()), prompt_tokens: 0 };
        for text in texts {
            done.prompt_tokens = done.prompt_tokens.saturating_add(text.len() as u32);
            done.vectors.push(self.one(text).await?);
        }
        Ok(done)
    }

    async fn one(&self, text: Vec<u32>) -> Result<Vec<f32>, Fault> {
        let (shared, model) = (&self.shared, &self.model);
        let route = first_route(shared, model, false).await?;
        // Never asked: nothing is chosen.
        let sampler = Sampler::new(SamplingParams::greedy(), model.manifest.vocab);
        let job = Job {
            session: new_session()?,
            model: model.id,
            route,
            routes: Arc::new(Finding { shared: shared.clone(), model: model.clone(), stand_by: false }),
            engine: model.engine.name().to_owned(),
            prompt: text,
            codec: Codec::F32,
            exact: false,
            guess: false,
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
        let outcome = runner::run(&shared.coordinator, job, &mut Nothing).await;
        outcome.end?;
        let cancelled = || Fault::new(ErrorKind::Cancelled, "the embedding was cancelled");
        outcome.embedding.filter(|_| !self.cancel.is_cancelled()).ok_or_else(cancelled)
    }
}

/// Takes the tokens of a session that gives none.
struct Nothing;

impl TokenSink for Nothing {
    async fn token(&mut self, _: Sampled) -> ControlFlow<()> {
        ControlFlow::Break(())
    }
}
