//! `swarmllm chat`: asks a model through a node of its own.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use serde::de::DeserializeOwned;
use swarmllm_core::base::ErrorKind;
use swarmllm_core::base::json::{self, JsonError};
use swarmllm_core::engine::sample::SamplingParams;
use swarmllm_core::node::{
    ChatMessage, ChatRequest, Completion, Constraint, Delta, FinishReason, GenerateError, GenerateOptions,
    GenerateRequest, Generation, Node, Prompt, TemplateInputs,
};

use crate::INTERRUPTED;
use crate::args::ChatArgs;
use crate::context::{Context, close, retry, suggest};
use crate::failure::Failure;
use crate::signals::StopSignal;
use crate::{input, print};

/// Maximum size of a schema file, in bytes, the limit of the core.
const MAX_SCHEMA: u64 = 1 << 20;
/// Maximum size of a file with tools or documents, in bytes, the core's limit of a conversation.
const MAX_INPUTS: u64 = 4 << 20;

pub async fn chat(context: &Context, args: ChatArgs) -> Result<ExitCode, Failure> {
    let (options, inputs) = (options(&args)?, inputs(&args)?);
    let mut stop = StopSignal::listen()?;
    let node = tokio::select! {
        node = context.client(&args.meet.peer) => node?,
        () = stop.received() => return Ok(ExitCode::from(INTERRUPTED)),
    };
    let messages = args.system.map(|text| message("system", text)).into_iter().collect();
    let (json, raw, model) = (context.json, args.raw, args.model);
    let mut conversation = Conversation { json, raw, node: node.clone(), stop, model, options, inputs, messages };
    let ended = conversation.run(context.patience(&args.meet), args.message).await;
    drop(conversation);
    close(node).await;
    ended
}

fn options(args: &ChatArgs) -> Result<GenerateOptions, Failure> {
    let default = SamplingParams::default();
    let sampling = SamplingParams {
        temperature: args.temperature.unwrap_or(default.temperature),
        top_k: args.top_k.unwrap_or(default.top_k),
        top_p: args.top_p.unwrap_or(default.top_p),
        seed: args.seed.or(default.seed),
        ..default
    };
    let (max_tokens, stop, exact) = (args.max_tokens, args.stop.clone(), args.exact);
    let constraint = args.json_schema.as_deref().map(schema).transpose()?;
    let (draft, standby, wire) = (args.draft.clone(), args.standby, args.wire.unwrap_or_default());
    let default = GenerateOptions::default();
    Ok(GenerateOptions { max_tokens, sampling, stop, exact, draft, standby, wire, constraint, ..default })
}

/// Inputs of the chat template.
fn inputs(args: &ChatArgs) -> Result<TemplateInputs, Failure> {
    let list = |path: &Option<PathBuf>| path.as_deref().map(|path| json(path, MAX_INPUTS)).transpose();
    let (tools, documents) = (list(&args.tools)?.unwrap_or_default(), list(&args.documents)?.unwrap_or_default());
    let thinking = (args.think || args.no_think).then(|| ("enable_thinking".to_owned(), args.think.into()));
    let given = args.template_arg.iter().map(|arg| (arg.name.clone(), arg.value.clone()));
    let kwargs = given.chain(thinking).collect();
    Ok(TemplateInputs { tools, documents, kwargs, parse_content: args.parse_content })
}

/// Reads a JSON schema.
fn schema(path: &Path) -> Result<Constraint, Failure> {
    json(path, MAX_SCHEMA).map(Constraint::JsonSchema)
}

/// Reads a JSON file of at most `max` bytes.
fn json<T: DeserializeOwned>(path: &Path, max: u64) -> Result<T, Failure> {
    let invalid =
        |error: JsonError| Failure::new(ErrorKind::InvalidArgument, error.sentence(&path.display().to_string()));
    json::parse(input::file(path, max)?.as_bytes()).map_err(invalid)
}

fn message(role: &str, content: String) -> ChatMessage {
    ChatMessage { role: role.to_owned(), content }
}

/// A conversation.
struct Conversation {
    json: bool,
    /// Each question is a text to continue, independent of the others.
    raw: bool,
    node: Node,
    stop: StopSignal,
    model: String,
    options: GenerateOptions,
    inputs: TemplateInputs,
    messages: Vec<ChatMessage>,
}

impl Conversation {
    /// Waits until the model can answer, then asks once or for each line of stdin.
    async fn run(&mut self, patience: Duration, text: Option<String>) -> Result<ExitCode, Failure> {
        let (node, model) = (&self.node, &self.model);
        suggest(node, model);
        let planned = retry(patience, async || node.plan(model).await.map_err(Failure::from));
        tokio::select! {
            planned = planned => drop(planned?),
            () = self.stop.received() => return Ok(ExitCode::from(INTERRUPTED)),
        }
        match text {
            Some(text) => self.once(text).await,
            None => self.in_turns().await,
        }
    }

    async fn once(&mut self, text: String) -> Result<ExitCode, Failure> {
        let done = self.ask(text).await?;
        match done.finish {
            FinishReason::Cancelled => Ok(ExitCode::from(INTERRUPTED)),
            FinishReason::Stop | FinishReason::Length => Ok(ExitCode::SUCCESS),
        }
    }

    /// Asks each line of stdin. At a terminal, a failed question does not end the conversation.
    async fn in_turns(&mut self) -> Result<ExitCode, Failure> {
        let at_terminal = std::io::stdin().is_terminal();
        let mut lines = input::lines();
        loop {
            if at_terminal && !self.json {
                print::text("> ")?;
            }
            let line = tokio::select! {
                line = lines.recv() => line,
                () = self.stop.received() => return Ok(ExitCode::from(INTERRUPTED)),
            };
            let Some(line) = line else { return Ok(ExitCode::SUCCESS) };
            let line = line.map_err(|cause| Failure::io("standard input", &cause))?;
            if line.trim().is_empty() {
                continue;
            }
            match self.ask(line).await {
                Ok(_) => {}
                Err(failure) if at_terminal => {
                    let _ = failure.report(self.json);
                }
                Err(failure) => return Err(failure),
            }
        }
    }

    /// Asks, prints the answer as it comes, and keeps question and answer. A failed question is not kept.
    async fn ask(&mut self, text: String) -> Result<Completion, Failure> {
        if self.raw {
            return self.answer(Some(text)).await;
        }
        let kept = self.messages.len();
        self.messages.push(message("user", text));
        let answered = self.answer(None).await;
        match &answered {
            Ok(done) => self.messages.push(message("assistant", done.text.clone())),
            Err(_) => self.messages.truncate(kept),
        }
        answered
    }

    /// Starts the answer to the conversation, or the continuation of a text.
    async fn begin(node: &Node, request: ChatRequest, text: Option<String>) -> Result<Generation, GenerateError> {
        match text {
            None => node.chat(request).await,
            Some(text) => {
                let (model, prompt, options) = (request.model, Prompt::Text(text), request.options);
                node.generate(GenerateRequest { model, prompt, options }).await
            }
        }
    }

    async fn answer(&mut self, text: Option<String>) -> Result<Completion, Failure> {
        let request = ChatRequest {
            model: self.model.clone(),
            messages: self.messages.clone(),
            options: self.options.clone(),
            inputs: self.inputs.clone(),
            chat_template: None,
        };
        let mut generation = tokio::select! {
            generation = Self::begin(&self.node, request, text) => generation?,
            () = self.stop.received() => return Err(cancelled()),
        };
        match self.show(&mut generation).await? {
            Ok(done) => {
                self.print_report(&done)?;
                Ok(done)
            }
            Err(error) => {
                if let GenerateError::Interrupted { partial, .. } = &error {
                    self.print_report(partial)?;
                }
                Err(error.into())
            }
        }
    }

    /// Prints the text as it comes. A first signal cancels the answer and prints its rest; a second ends at once.
    async fn show(&mut self, generation: &mut Generation) -> Result<Result<Completion, GenerateError>, Failure> {
        let mut cancelled_before = false;
        loop {
            let next = tokio::select! {
                next = generation.next() => next,
                () = self.stop.received() => {
                    if std::mem::replace(&mut cancelled_before, true) {
                        return Err(cancelled());
                    }
                    generation.cancel();
                    continue;
                }
            };
            match next {
                Some(Ok(Delta::Text(text))) if !self.json => print::answer(&text)?,
                Some(Ok(Delta::Text(_) | Delta::Token(_))) => {}
                Some(Ok(Delta::Done(done))) => return Ok(Ok(*done)),
                Some(Err(error)) => return Ok(Err(error)),
                None => return Err(Failure::new(ErrorKind::Internal, "the answer ended without a completion")),
            }
        }
    }

    /// Ends the answer's line and prints its stages and timings.
    fn print_report(&self, done: &Completion) -> Result<(), Failure> {
        if self.json {
            return print::json(done);
        }
        print::line("")?;
        print::note(&report(done));
        Ok(())
    }
}

fn cancelled() -> Failure {
    Failure::new(ErrorKind::Cancelled, "cancelled")
}

fn report(done: &Completion) -> String {
    let head = ["stage", "node | standby", "layers", "engine", "load ms", "prefill ms", "decode ms/token"];
    let rows: Vec<[String; 7]> = (1..)
        .zip(&done.route)
        .map(|(number, stage)| {
            [
                format!("{number}"),
                format!(
                    "{}{}",
                    stage.node.short(),
                    stage.standby.map_or_else(String::new, |by| format!(" | {}", by.short()))
                ),
                format!("{}{}", stage.layers, if stage.head { "+head" } else { "" }),
                stage.engine.clone(),
                stage.load_ms.to_string(),
                format!("{:.1}", stage.prefill_us as f64 / 1e3),
                format!("{:.2}", stage.decode_us as f64 / 1e3),
            ]
        })
        .collect();
    let timings = &done.timings;
    let sums = format!(
        "{} ({} cached) + {} tokens ({} of {} draft tokens accepted), first after {:.0} ms, {:.1} tok/s ({:.1} planned), {:.0} ms in total, ended by {}",
        done.prompt_tokens,
        done.cached_tokens,
        done.completion_tokens,
        done.accepted_tokens,
        done.draft_tokens,
        timings.first_token_ms,
        timings.decode_tokens_per_second,
        if timings.predicted_token_ms > 0.0 { 1e3 / timings.predicted_token_ms } else { 0.0 },
        timings.total_ms,
        match done.finish {
            FinishReason::Stop => "the model",
            FinishReason::Length => "the token limit",
            FinishReason::Cancelled => "cancellation",
        }
    );
    format!("\n{}\n{sums}", print::table(head, &rows))
}

#[cfg(test)]
mod tests {
    use swarmllm_core::base::{LayerRange, NodeId};
    use swarmllm_core::node::{RouteStage, Timings};

    use super::*;

    #[test]
    fn the_report_lists_every_stage_with_its_timings() {
        let stage = |byte, start, end, head| RouteStage {
            node: NodeId([byte; 32]),
            standby: (byte == 0xbb).then_some(NodeId([0xcc; 32])),
            epoch: 0,
            layers: LayerRange::new(start, end),
            head,
            engine: "llama.cpp".to_owned(),
            load_ms: 12,
            prefill_us: 34_500,
            decode_us: 1_230,
        };
        let done = Completion {
            text: String::new(),
            tokens: Vec::new(),
            logprobs: None,
            finish: FinishReason::Length,
            prompt_tokens: 3,
            cached_tokens: 2,
            draft_tokens: 5,
            accepted_tokens: 4,
            completion_tokens: 9,
            route: vec![stage(0xaa, 0, 15, false), stage(0xbb, 15, 30, true)],
            timings: Timings {
                open_ms: 1.0,
                first_token_ms: 20.0,
                decode_tokens_per_second: 55.5,
                predicted_token_ms: 20.0,
                total_ms: 99.0,
            },
        };
        let report = report(&done);
        for part in [
            "aaaaaaaa",
            "bbbbbbbb | cccccccc",
            "0..15",
            "15..30+head",
            "llama.cpp",
            "34.5",
            "1.23",
            "55.5 tok/s (50.0 planned)",
            "token limit",
        ] {
            assert!(report.contains(part), "{part} is missing:\n{report}");
        }
    }
}
