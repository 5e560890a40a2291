//! One answer: prepared, planned, run in a task of its own, read as a stream.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::sync::oneshot;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::base::{ErrorKind, Event, Fault, ModelId, SessionId};
use crate::engine::sample::Sampler;
use crate::node::answer::admission::{Admitted, Wants, admit, new_session, refusal};
use crate::node::answer::conversation::Conversation;
use crate::node::answer::planning::Finding;
use crate::node::answer::queue::Ticket;
use crate::node::answer::reading::prompt_bytes;
use crate::node::answer::sink::Sink;
use crate::node::answer::unread::{self, DeltaReader};
use crate::node::api::error::GenerateError;
use crate::node::api::report::{Completion, Delta, FinishReason, RouteStage, Timings, TokenLogprob};
use crate::node::api::request::{ChatRequest, DEFAULT_MAX_TOKENS, GenerateOptions, GenerateRequest, of_sampling};
use crate::node::models::loaded::LoadedModel;
use crate::node::models::prepare::load;
use crate::node::shared::Shared;
use crate::pipeline::job::{self, Job, Outcome, StageReport};
use crate::pipeline::plan::Plan;
use crate::pipeline::runner;
use crate::pipeline::session::End;
use crate::wire::codec::Codec;

/// An answer as it comes: a stream of [`Delta`]s. Dropping it cancels at every stage.
///
/// What is not read is kept, up to a MiB, log-probabilities included: an answer of usual length comes to its end and frees its stages whether it is
/// read or not. A longer one pauses there, and ends with [`ErrorKind::Timeout`] where nothing is read for a minute.
pub struct Generation {
    session: SessionId,
    route: Plan,
    deltas: DeltaReader,
    /// How likely the tokens were that were read, where that was asked for and is kept.
    told: Option<Vec<TokenLogprob>>,
    cancel: CancellationToken,
    _cancel_on_drop: DropGuard,
}

impl Generation {
    /// The session's id, for logs.
    pub fn session(&self) -> SessionId {
        self.session
    }

    /// The model that answers.
    pub fn model(&self) -> ModelId {
        self.route.model
    }

    /// Who computes what.
    pub fn route(&self) -> &Plan {
        &self.route
    }

    /// Ends the answer; what was generated comes as `Done` with [`FinishReason::Cancelled`].
    pub fn cancel(&self) {
        self.cancel.cancel();
    }

    /// Keeps no log-probabilities that were read: the completion has none then. For who passes them on as they come, since
    /// those of a long answer take up to some 2 KiB a token.
    pub fn forget_told(&mut self) {
        self.told = None;
    }

    /// The next piece; `None` after `Done` or an error. Cancel-safe.
    pub async fn next(&mut self) -> Option<Result<Delta, GenerateError>> {
        let next = self.deltas.next().await;
        next.map(|delta| self.keep(delta))
    }

    /// Keeps the log-probabilities that are read, and gives them with the end.
    fn keep(&mut self, mut delta: Result<Delta, GenerateError>) -> Result<Delta, GenerateError> {
        match &mut delta {
            Ok(Delta::Token(token)) => self.told.iter_mut().for_each(|told| told.push(TokenLogprob::clone(token))),
            Ok(Delta::Done(whole)) | Err(GenerateError::Interrupted { partial: whole, .. }) => {
                whole.logprobs = self.told.take();
            }
            Ok(Delta::Text(_)) | Err(_) => {}
        }
        delta
    }

    /// Waits for the end.
    pub async fn finish(mut self) -> Result<Completion, GenerateError> {
        while let Some(delta) = self.next().await {
            if let Delta::Done(completion) = delta? {
                return Ok(*completion);
            }
        }
        Err(Fault::new(ErrorKind::Closed, "the node ended before the answer did").into())
    }
}

impl futures::Stream for Generation {
    type Item = Result<Delta, GenerateError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let polled = self.deltas.poll_next(context);
        polled.map(|next| next.map(|delta| self.keep(delta)))
    }
}

/// Starts an answer to a conversation.
pub(crate) async fn chat(shared: Arc<Shared>, request: ChatRequest) -> Result<Generation, GenerateError> {
    request.options.check()?;
    let deadline = request.options.deadline.map(|allowed| Instant::now() + allowed);
    let ChatRequest { model, messages, inputs, chat_template, options } = request;
    let own = chat_template.map(Arc::from).or_else(|| shared.config.chat_template.clone());
    let conversation = Conversation { messages, inputs, own };
    let ticket = shared.queue.enter(&options.caller.as_str().into(), conversation.bytes()?)?;
    let begin = async {
        let model = load(&shared, &model).await?;
        let limit = context_limit(&shared, &model);
        let tokens = shared.readers.conversation(&model, conversation, limit).await?;
        start(shared.clone(), model, ("messages", tokens), options, ticket, deadline).await
    };
    in_time(deadline, begin).await
}

/// Starts the continuation of a text.
pub(crate) async fn generate(shared: Arc<Shared>, request: GenerateRequest) -> Result<Generation, GenerateError> {
    request.options.check()?;
    let deadline = request.options.deadline.map(|allowed| Instant::now() + allowed);
    let ticket = shared.queue.enter(&request.options.caller.as_str().into(), prompt_bytes(&request.prompt))?;
    in_time(deadline, begin_generate(shared, request, ticket, deadline)).await
}

async fn begin_generate(
    shared: Arc<Shared>,
    request: GenerateRequest,
    ticket: Ticket,
    deadline: Option<Instant>,
) -> Result<Generation, GenerateError> {
    let model = load(&shared, &request.model).await?;
    let limit = context_limit(&shared, &model);
    let field = |_| "prompt".to_owned();
    let tokens = shared.readers.prompts(&model, vec![request.prompt], limit, field).await?.concat();
    start(shared, model, ("prompt", tokens), request.options, ticket, deadline).await
}

/// The deadline counts from when the request was made: models and drafts are loaded within it, too.
pub(super) async fn in_time<T, E: From<Fault>>(
    deadline: Option<Instant>,
    begin: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    match deadline {
        None => begin.await,
        Some(deadline) => {
            let begun = tokio::time::timeout_at(deadline.into(), begin).await;
            begun.unwrap_or_else(|_| Err(job::late().into()))
        }
    }
}

/// Positions that a session of this model may use at most. Hosts may grant less.
pub(super) fn context_limit(shared: &Shared, model: &LoadedModel) -> u32 {
    shared.serving.stages().most_context(&model.manifest)
}

/// Tokens of the answer, as far as the context admits them.
fn max_tokens(shared: &Shared, model: &LoadedModel, prompt: usize, asked: Option<u32>) -> Result<u32, Fault> {
    let limit = context_limit(shared, model);
    let left = u64::from(limit).saturating_sub(prompt as u64);
    if left == 0 {
        let text = format!(
            "{prompt} tokens leave no room for an answer in the context of {limit}; shorten it, or give the node a longer \
             `context` where the model's own is longer"
        );
        return Err(Fault::new(ErrorKind::ContextOverflow, text));
    }
    // At most what was asked for, which is a u32.
    Ok(left.min(u64::from(asked.unwrap_or(DEFAULT_MAX_TOKENS))) as u32)
}

pub(super) fn check_prompt(model: &LoadedModel, prompt: &[u32]) -> Result<(), Fault> {
    if prompt.is_empty() {
        return Err(Fault::new(ErrorKind::InvalidArgument, "is empty: it has no tokens"));
    }
    match prompt.iter().find(|token| **token >= model.manifest.vocab) {
        Some(token) => {
            let text = format!("token {token} is outside the vocabulary of {}", model.manifest.vocab);
            Err(Fault::new(ErrorKind::InvalidArgument, text))
        }
        None => Ok(()),
    }
}

/// Architectures of which a test shows what rounded states do to answers.
const ROUNDED: [&str; 2] = ["llama", "gemma3"];

fn check_wire(architecture: &str, wire: Codec) -> Result<(), Fault> {
    if wire == Codec::F32 || ROUNDED.contains(&architecture) {
        return Ok(());
    }
    let text = format!(
        "states of `{architecture}` travel in f32 only: what {} does to its answers has not been measured",
        wire.name()
    );
    Err(Fault::new(ErrorKind::Unsupported, text).about("wire"))
}

/// `field` is what the request calls the prompt.
async fn start(
    shared: Arc<Shared>,
    model: Arc<LoadedModel>,
    (field, prompt): (&str, Vec<u32>),
    options: GenerateOptions,
    mut ticket: Ticket,
    deadline: Option<Instant>,
) -> Result<Generation, GenerateError> {
    ticket.resize(size_of_val(prompt.as_slice()));
    let of_prompt = |fault: Fault| fault.about(field);
    check_prompt(&model, &prompt).map_err(of_prompt)?;
    check_wire(&model.manifest.architecture, options.wire)?;
    let max_tokens = max_tokens(&shared, &model, prompt.len(), options.max_tokens).map_err(of_prompt)?;
    let sampler = Sampler::new(options.sampling, model.manifest.vocab)
        .map_err(of_sampling)?
        .with_alternatives(options.logprobs.unwrap_or(0));
    let guide = match options.constraint {
        Some(constraint) => Some(shared.guides.guide(&model, constraint).await?),
        None => None,
    };
    let cancel = shared.closed.child_token();
    let ends = model.clone();
    let job = Job {
        session: new_session(&shared)?,
        model: model.id,
        routes: Arc::new(Finding { shared: shared.clone(), model: model.clone(), stand_by: options.stand_by }),
        engine: model.engine.name().to_owned(),
        prompt,
        exact: options.exact,
        codec: options.wire,
        guess: options.guess,
        drafter: None,
        guide,
        pooling: None,
        max_tokens,
        vocab: model.manifest.vocab,
        embedder: model.embedder.clone(),
        sampler,
        is_end: Box::new(move |token| ends.tokenizer.is_end_of_generation(token)),
        deadline,
        cancel: cancel.clone(),
    };
    let (wants, logprobs) = (Wants { draft: options.draft, stand_by: options.stand_by }, options.logprobs.is_some());
    let order = Order { model, job, wants, stop: options.stop, logprobs, ticket };
    // Cancelled where this call is dropped: the session must come to its end in a task of its own.
    let cancel_on_drop = cancel.clone().drop_guard();
    let (tell, started) = oneshot::channel();
    let (tasks, work) = (shared.tasks.clone(), run(shared, order, tell));
    tasks.spawn("generation", work);
    let closed = |_| Fault::new(ErrorKind::Closed, "the node was shut down meanwhile");
    let Started { session, route, deltas } = started.await.map_err(closed)??;
    let told = logprobs.then(Vec::new);
    Ok(Generation { session, route, deltas, told, cancel, _cancel_on_drop: cancel_on_drop })
}

/// A generation before it has its place.
struct Order {
    model: Arc<LoadedModel>,
    job: Job,
    wants: Wants,
    stop: Vec<String>,
    logprobs: bool,
    ticket: Ticket,
}

/// A generation that has it.
struct Started {
    session: SessionId,
    route: Plan,
    deltas: DeltaReader,
}

async fn run(shared: Arc<Shared>, order: Order, tell: oneshot::Sender<Result<Started, Fault>>) {
    let Order { model, job, wants, stop, logprobs, ticket } = order;
    let admitted = admit(&shared, &model, ticket.caller(), job, &wants).await;
    drop(ticket);
    let Admitted { place, job, begun } = match admitted {
        Ok(admitted) => admitted,
        // Who has left is told nothing.
        Err(end) => return drop(tell.send(Err(refusal(&shared, end)))),
    };
    let (session, prompt) = (job.session, job.prompt.len() as u32);
    let (deltas, reader) = unread::channel();
    shared.events.send(Event::GenerationStarted { session, model: model.id });
    // Where nobody waits any more the job is cancelled, and ends at once.
    let _ = tell.send(Ok(Started { session, route: begun.plan(), deltas: reader }));
    let mut sink = Sink::new(model.tokenizer.clone(), stop, logprobs, deltas);
    let mut outcome = runner::run(&shared.coordinator, job, begun, &mut sink).await;
    drop(place);
    if outcome.end == Ok(End::Cancelled) && shared.closed.is_cancelled() {
        outcome.end = Err(Fault::new(ErrorKind::Closed, "the node was shut down during the answer"));
    }
    let (said, deltas) = sink.end();
    let tokens = outcome.tokens.len() as u32;
    let fault = outcome.end.as_ref().err().cloned();
    let last = conclude(outcome, prompt, model.engine.name(), said);
    // Counted before the reader is told, so that a reader who looks at the events finds it there.
    shared.events.send(Event::GenerationEnded { session, tokens, fault });
    let _ = deltas.send(last);
}

fn conclude(outcome: Outcome, prompt: u32, engine: &str, text: String) -> Result<Delta, GenerateError> {
    let finish = match &outcome.end {
        Ok(End::Stop) => FinishReason::Stop,
        Ok(End::Length) => FinishReason::Length,
        Ok(End::Cancelled) | Err(_) => FinishReason::Cancelled,
    };
    let completion = Box::new(Completion {
        text,
        // Whoever reads the answer has them.
        logprobs: None,
        finish,
        prompt_tokens: prompt,
        cached_tokens: outcome.cached,
        guessed_tokens: outcome.guesses.0,
        right_guesses: outcome.guesses.1,
        completion_tokens: outcome.tokens.len() as u32,
        timings: timings(&outcome),
        route: outcome.stages.iter().map(|report| route_stage(report, engine)).collect(),
        tokens: outcome.tokens,
    });
    match outcome.end {
        Ok(_) => Ok(Delta::Done(completion)),
        Err(fault) if completion.completion_tokens == 0 => Err(GenerateError::Refused(fault)),
        Err(cause) => Err(GenerateError::Interrupted { partial: completion, cause }),
    }
}

fn timings(outcome: &Outcome) -> Timings {
    let millis = |duration: std::time::Duration| duration.as_secs_f64() * 1e3;
    let first = outcome.first_token.unwrap_or_default();
    let decode = outcome.total.saturating_sub(first).as_secs_f64();
    let later = outcome.tokens.len().saturating_sub(1) as f64;
    Timings {
        open_ms: millis(outcome.open),
        first_token_ms: millis(first),
        decode_tokens_per_second: if decode > 0.0 && later > 0.0 { later / decode } else { 0.0 },
        predicted_token_ms: outcome.predicted_us as f64 / 1e3,
        total_ms: millis(outcome.total),
    }
}

fn route_stage(report: &StageReport, engine: &str) -> RouteStage {
    let mut decode = report.decode_us.clone();
    decode.sort_unstable();
    RouteStage {
        node: report.stage.node,
        stand_by: report.stand_by,
        epoch: report.epoch,
        layers: report.stage.layers,
        head: report.stage.head,
        engine: engine.to_owned(),
        load_ms: report.load_ms,
        prefill_us: report.prefill_us,
        decode_us: decode.get(decode.len() / 2).copied().unwrap_or(0).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_rounded_only_for_architectures_whose_answers_were_compared() {
        let refused = |architecture, wire| check_wire(architecture, wire).err().map(|fault| fault.kind());
        assert_eq!((refused("llama", Codec::Int8), refused("gemma3", Codec::Bf16)), (None, None));
        assert_eq!(refused("phi3", Codec::Bf16), Some(ErrorKind::Unsupported));
        assert_eq!(refused("phi3", Codec::F32), None);
    }
}
