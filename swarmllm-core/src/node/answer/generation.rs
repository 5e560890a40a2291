//! One answer: prepared, planned, run in its own task, read as a stream.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::sync::oneshot;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::base::{ErrorKind, Event, Fault, ModelId, SessionId};
use crate::engine::sample::Sampler;
use crate::node::answer::admission::{AdmittedSession, SessionOptions, admit, new_session, refusal};
use crate::node::answer::conversation::Conversation;
use crate::node::answer::delta_channel::{self, DeltaReader};
use crate::node::answer::planning::RouteFinder;
use crate::node::answer::prompt_reader::prompt_bytes;
use crate::node::answer::queue::QueueEntry;
use crate::node::answer::sink::AnswerSink;
use crate::node::api::error::GenerateError;
use crate::node::api::report::{Completion, Delta, FinishReason, RouteStage, Timings, TokenLogprob};
use crate::node::api::request::{ChatRequest, DEFAULT_MAX_TOKENS, GenerateOptions, GenerateRequest, of_sampling};
use crate::node::models::loaded::LoadedModel;
use crate::node::models::prepare::load;
use crate::node::shared::SharedState;
use crate::pipeline::host::stages::StageTable;
use crate::pipeline::plan::Plan;
use crate::pipeline::route::StageReport;
use crate::pipeline::runner;
use crate::pipeline::runner::job::{Job, Outcome};
use crate::pipeline::session::{SessionEnd, limits};
use crate::wire::codec::Codec;

/// An answer as a stream of [`Delta`]s. Dropping it cancels at every stage.
///
/// Unread deltas are buffered up to 1 MiB, log-probabilities included: an answer of usual length completes and frees its
/// stages even if nobody reads it. A longer answer pauses at the limit and ends with [`ErrorKind::Timeout`] if nothing is
/// read for a minute.
pub struct Generation {
    session: SessionId,
    route: Plan,
    deltas: DeltaReader,
    /// Log-probabilities read so far, if requested and kept.
    logprobs: Option<Vec<TokenLogprob>>,
    cancel: CancellationToken,
    _cancel_on_drop: DropGuard,
}

impl Generation {
    /// Session id, for logs.
    pub fn session(&self) -> SessionId {
        self.session
    }

    /// The answering model.
    pub fn model(&self) -> ModelId {
        self.route.model
    }

    /// The plan of the first route.
    pub fn route(&self) -> &Plan {
        &self.route
    }

    /// Ends the answer; the partial answer follows as `Done` with [`FinishReason::Cancelled`].
    pub fn cancel(&self) {
        self.cancel.cancel();
    }

    /// A handle that cancels this answer from any thread, also while [`next`](Self::next) waits. The answer then ends as
    /// after [`cancel`](Self::cancel).
    pub fn canceller(&self) -> Canceller {
        Canceller(self.cancel.clone())
    }

    /// Stops collecting log-probabilities; the completion then has none. For callers that forward them at once: they take up
    /// to 2 KiB a token.
    pub fn discard_logprobs(&mut self) {
        self.logprobs = None;
    }

    /// The next delta; `None` after `Done` or an error. Cancel-safe.
    pub async fn next(&mut self) -> Option<Result<Delta, GenerateError>> {
        let next = self.deltas.next().await;
        next.map(|delta| self.collect(delta))
    }

    /// Collects log-probabilities and adds them to the completion.
    fn collect(&mut self, mut delta: Result<Delta, GenerateError>) -> Result<Delta, GenerateError> {
        match &mut delta {
            Ok(Delta::Token(token)) => {
                self.logprobs.iter_mut().for_each(|logprobs| logprobs.push(TokenLogprob::clone(token)))
            }
            Ok(Delta::Done(whole)) | Err(GenerateError::Interrupted { partial: whole, .. }) => {
                whole.logprobs = self.logprobs.take();
            }
            Ok(Delta::Text(_)) | Err(_) => {}
        }
        delta
    }

    /// Reads to the end. Cancel-safe: dropping it cancels the answer.
    pub async fn finish(mut self) -> Result<Completion, GenerateError> {
        while let Some(delta) = self.next().await {
            if let Delta::Done(completion) = delta? {
                return Ok(*completion);
            }
        }
        Err(Fault::new(ErrorKind::Closed, "the node ended before the answer did").into())
    }
}

/// Cancels a [`Generation`]. Clones cancel the same one; after its end, cancelling has no effect.
#[derive(Debug, Clone)]
pub struct Canceller(CancellationToken);

impl Canceller {
    /// Ends the answer at every stage.
    pub fn cancel(&self) {
        self.0.cancel();
    }
}

impl futures::Stream for Generation {
    type Item = Result<Delta, GenerateError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let polled = self.deltas.poll_next(context);
        polled.map(|next| next.map(|delta| self.collect(delta)))
    }
}

/// Starts the answer to a conversation.
pub(crate) async fn chat(shared: Arc<SharedState>, request: ChatRequest) -> Result<Generation, GenerateError> {
    request.options.check()?;
    let deadline = request.options.deadline.map(|allowed| Instant::now() + allowed);
    let ChatRequest { model, messages, inputs, chat_template, options } = request;
    let template = chat_template.map(Arc::from).or_else(|| shared.config.chat_template.clone());
    let conversation = Conversation { messages, inputs, template };
    let entry = shared.answers.queue.enter(&options.caller.as_str().into(), conversation.bytes()?)?;
    let begin = async {
        let model = load(&shared, &model).await?;
        let limit = context_limit(&shared.models.stages, &model);
        let tokens = shared.answers.readers.conversation(&model, conversation, limit).await?;
        start(shared.clone(), model, ("messages", tokens), options, entry, deadline).await
    };
    in_time(deadline, begin).await
}

/// Starts the continuation of a text.
pub(crate) async fn generate(shared: Arc<SharedState>, request: GenerateRequest) -> Result<Generation, GenerateError> {
    request.options.check()?;
    let deadline = request.options.deadline.map(|allowed| Instant::now() + allowed);
    let entry = shared.answers.queue.enter(&request.options.caller.as_str().into(), prompt_bytes(&request.prompt))?;
    in_time(deadline, begin_generate(shared, request, entry, deadline)).await
}

async fn begin_generate(
    shared: Arc<SharedState>,
    request: GenerateRequest,
    entry: QueueEntry,
    deadline: Option<Instant>,
) -> Result<Generation, GenerateError> {
    let model = load(&shared, &request.model).await?;
    let limit = context_limit(&shared.models.stages, &model);
    let field = |_| "prompt".to_owned();
    let tokens = shared.answers.readers.prompts(&model, vec![request.prompt], limit, field).await?.concat();
    start(shared, model, ("prompt", tokens), request.options, entry, deadline).await
}

/// Bounds `begin` by the request's deadline, which includes loading of model and draft.
pub(super) async fn in_time<T, E: From<Fault>>(
    deadline: Option<Instant>,
    begin: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    match deadline {
        None => begin.await,
        Some(deadline) => {
            let begun = tokio::time::timeout_at(deadline.into(), begin).await;
            begun.unwrap_or_else(|_| Err(limits::deadline_fault().into()))
        }
    }
}

/// Most positions of a session of this model. Hosts may grant fewer.
pub(super) fn context_limit(stages: &StageTable, model: &LoadedModel) -> u32 {
    stages.most_context(&model.manifest)
}

/// Limit of the answer's tokens, within the remaining context.
fn max_tokens(stages: &StageTable, model: &LoadedModel, prompt: usize, asked: Option<u32>) -> Result<u32, Fault> {
    let limit = context_limit(stages, model);
    let left = u64::from(limit).saturating_sub(prompt as u64);
    if left == 0 {
        let text = format!(
            "{prompt} tokens leave no room for an answer in the context of {limit}; shorten it, or give the node a longer \
             `context` where the model's own is longer"
        );
        return Err(Fault::new(ErrorKind::ContextOverflow, text));
    }
    // Fits: it is at most the requested u32.
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

/// Architectures for which a test measures the effect of rounded states on answers.
const ROUNDED: [&str; 2] = ["llama", "gemma3"];

fn check_wire(architecture: &str, wire: Codec) -> Result<(), Fault> {
    if wire == Codec::F32 || ROUNDED.contains(&architecture) {
        return Ok(());
    }
    let text = format!(
        "states of `{architecture}` travel in f32 only: the effect of {} on its answers has not been measured",
        wire.name()
    );
    Err(Fault::new(ErrorKind::Unsupported, text).about("wire"))
}

/// Starts an answer. `field` is the prompt's name in the request.
async fn start(
    shared: Arc<SharedState>,
    model: Arc<LoadedModel>,
    (field, prompt): (&str, Vec<u32>),
    options: GenerateOptions,
    mut entry: QueueEntry,
    deadline: Option<Instant>,
) -> Result<Generation, GenerateError> {
    entry.resize(size_of_val(prompt.as_slice()));
    let of_prompt = |fault: Fault| fault.about(field);
    check_prompt(&model, &prompt).map_err(of_prompt)?;
    check_wire(&model.manifest.architecture, options.wire)?;
    let max_tokens = max_tokens(&shared.models.stages, &model, prompt.len(), options.max_tokens).map_err(of_prompt)?;
    let sampler = Sampler::new(options.sampling, model.manifest.vocab)
        .map_err(of_sampling)?
        .with_alternatives(options.logprobs.unwrap_or(0));
    let guide = match options.constraint {
        Some(constraint) => Some(shared.answers.constraints.compile(&model, constraint).await?),
        None => None,
    };
    let cancel = shared.lifecycle.closed.child_token();
    let ends = model.clone();
    let job = Job {
        session: new_session(shared.id)?,
        model: model.id,
        routes: Arc::new(RouteFinder { shared: shared.clone(), model: model.clone(), standby: options.standby }),
        engine: model.engine.name().to_owned(),
        prompt,
        exact: options.exact,
        codec: options.wire,
        speculate: options.speculate,
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
    let (session_options, logprobs) =
        (SessionOptions { draft: options.draft, standby: options.standby }, options.logprobs.is_some());
    let pending = PendingGeneration { model, job, session_options, stop: options.stop, logprobs, entry };
    // Dropping this call cancels the session, which ends in its own task.
    let cancel_on_drop = cancel.clone().drop_guard();
    let (reply, started) = oneshot::channel();
    let (tasks, work) = (shared.tasks.clone(), run(shared, pending, reply));
    tasks.spawn("generation", work);
    let closed = |_| Fault::new(ErrorKind::Closed, "the node was shut down meanwhile");
    let StartedGeneration { session, route, deltas } = started.await.map_err(closed)??;
    let logprobs = logprobs.then(Vec::new);
    Ok(Generation { session, route, deltas, logprobs, cancel, _cancel_on_drop: cancel_on_drop })
}

/// A generation before admission.
struct PendingGeneration {
    model: Arc<LoadedModel>,
    job: Job,
    session_options: SessionOptions,
    stop: Vec<String>,
    logprobs: bool,
    entry: QueueEntry,
}

/// A generation after admission.
struct StartedGeneration {
    session: SessionId,
    route: Plan,
    deltas: DeltaReader,
}

async fn run(
    shared: Arc<SharedState>,
    pending: PendingGeneration,
    reply: oneshot::Sender<Result<StartedGeneration, Fault>>,
) {
    let PendingGeneration { model, job, session_options, stop, logprobs, entry } = pending;
    let admitted = admit(&shared, &model, entry.caller(), job, &session_options).await;
    drop(entry);
    let AdmittedSession { running, job, begun } = match admitted {
        Ok(admitted) => admitted,
        // The caller may have left.
        Err(end) => return drop(reply.send(Err(refusal(&shared.lifecycle, end)))),
    };
    let (session, prompt) = (job.session, job.prompt.len() as u32);
    let (deltas, reader) = delta_channel::channel();
    shared.events.send(Event::GenerationStarted { session, model: model.id });
    // If the caller left, the job is cancelled and ends at once.
    let _ = reply.send(Ok(StartedGeneration { session, route: begun.plan(), deltas: reader }));
    let mut sink = AnswerSink::new(model.tokenizer.clone(), stop, logprobs, deltas);
    let mut outcome = runner::run(&shared.coordinator, job, begun, &mut sink).await;
    drop(running);
    if outcome.end == Ok(SessionEnd::Cancelled) && shared.lifecycle.closed.is_cancelled() {
        outcome.end = Err(Fault::new(ErrorKind::Closed, "the node was shut down during the answer"));
    }
    let (text, deltas) = sink.finish();
    let tokens = outcome.tokens.len() as u32;
    let fault = outcome.end.as_ref().err().cloned();
    let last = conclude(outcome, prompt, model.engine.name(), text);
    // Sent before the last delta, so a reader of the answer finds the event.
    shared.events.send(Event::GenerationEnded { session, tokens, fault });
    let _ = deltas.send(last);
}

fn conclude(outcome: Outcome, prompt: u32, engine: &str, text: String) -> Result<Delta, GenerateError> {
    let finish = match &outcome.end {
        Ok(SessionEnd::Stop) => FinishReason::Stop,
        Ok(SessionEnd::Length) => FinishReason::Length,
        Ok(SessionEnd::Cancelled) | Err(_) => FinishReason::Cancelled,
    };
    let completion = Box::new(Completion {
        text,
        // Collected by the reader.
        logprobs: None,
        finish,
        prompt_tokens: prompt,
        cached_tokens: outcome.cached,
        draft_tokens: outcome.draft_counts.0,
        accepted_tokens: outcome.draft_counts.1,
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
        standby: report.standby,
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
    fn states_are_rounded_only_for_measured_architectures() {
        let refused = |architecture, wire| check_wire(architecture, wire).err().map(|fault| fault.kind());
        assert_eq!((refused("llama", Codec::Int8), refused("gemma3", Codec::Bf16)), (None, None));
        assert_eq!(refused("phi3", Codec::Bf16), Some(ErrorKind::Unsupported));
        assert_eq!(refused("phi3", Codec::F32), None);
    }
}
