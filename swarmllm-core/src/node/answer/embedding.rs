//! Texts as vectors: each is read by the model's stages, and its states are pooled. Nothing is generated.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::base::{ErrorKind, Fault};
use crate::engine::sample::{Sampled, Sampler, SamplingParams};
use crate::node::answer::admission::{Admitted, Wants, admit, new_session, refusal};
use crate::node::answer::generation::{check_prompt, context_limit, in_time};
use crate::node::answer::planning::Finding;
use crate::node::answer::queue::Ticket;
use crate::node::answer::reading::prompt_bytes;
use crate::node::api::report::Embeddings;
use crate::node::api::request::{EmbedRequest, Prompt};
use crate::node::models::loaded::LoadedModel;
use crate::node::models::prepare::load;
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
    /// Held to the end: between two texts the request waits for a place again.
    ticket: Ticket,
}

/// Embeds the texts of a request, one after another. Dropped, it cancels at every stage.
pub(crate) async fn embed(shared: Arc<Shared>, request: EmbedRequest) -> Result<Embeddings, Fault> {
    request.check()?;
    let deadline = request.deadline.map(|allowed| Instant::now() + allowed);
    let bytes = request.inputs.iter().map(prompt_bytes).sum();
    let mut ticket = shared.queue.enter(&request.caller.as_str().into(), bytes)?;
    let (model, texts) = in_time(deadline, read(&shared, &request.model, request.inputs)).await?;
    let (several, checked) = (texts.len() > 1, texts.iter().enumerate());
    for (at, text) in checked {
        check(&shared, &model, text).map_err(|fault| fault.about(field(at, several)))?;
    }
    ticket.resize(texts.iter().map(|text| size_of_val(text.as_slice())).sum());
    let cancel = shared.closed.child_token();
    let _cancel_on_drop = cancel.clone().drop_guard();
    let work = Work { shared: shared.clone(), model, pooling: request.pooling, deadline, cancel, ticket };
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
    let several = inputs.len() > 1;
    let field = move |at| field(at, several);
    let texts = shared.readers.prompts(&model, inputs, context_limit(shared, &model), field).await?;
    Ok((model, texts))
}

/// What a request calls one of its texts.
fn field(at: usize, several: bool) -> String {
    if several { format!("inputs[{at}]") } else { "inputs".to_owned() }
}

fn check(shared: &Shared, model: &LoadedModel, text: &[u32]) -> Result<(), Fault> {
    check_prompt(model, text)?;
    let limit = context_limit(shared, model);
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
        // Never asked: nothing is chosen.
        let sampler = Sampler::new(SamplingParams::greedy(), model.manifest.vocab);
        let job = Job {
            session: new_session(shared)?,
            model: model.id,
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
        let admitted = admit(shared, model, self.ticket.caller(), job, &Wants::default()).await;
        let Admitted { place, job, begun } = admitted.map_err(|end| refusal(shared, end))?;
        let outcome = runner::run(&shared.coordinator, job, begun, &mut Nothing).await;
        drop(place);
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

    fn has_room(&self) -> bool {
        true
    }

    async fn room(&self) -> Result<(), Fault> {
        Ok(())
    }
}
