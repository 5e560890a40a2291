//! Generations: the caller pulls an answer piece by piece.

use std::ffi::c_char;
use std::mem::MaybeUninit;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use swarmllm_core::base::{ErrorKind, Fault};
use swarmllm_core::node::{Canceller, Delta, GenerateError, GenerateRequest, Generation, Node, Prompt};
use tokio::sync::Mutex;

use crate::handle::Registry;
use crate::node::{fault, json, node, swarmllm_node, wait};
use crate::options;
use crate::status::{guard, place, swarmllm_status};
use crate::text::{MAX_NAME, MAX_TEXT, answer, read, read_optional, swarmllm_string};

/// A `timeout_ms` without limit.
pub const SWARMLLM_FOREVER: u32 = 0xFFFF_FFFF;

static GENERATIONS: Registry<Answer> = Registry::new(3, "generation");

/// A running answer. Freeing it cancels the answer at every stage.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct swarmllm_generation {
    /// Opaque; 0 is never a handle.
    pub id: u64,
}

/// The kind of a `swarmllm_delta`.
#[repr(C)]
pub enum swarmllm_delta_kind {
    /// More text: whole characters, never empty.
    SWARMLLM_DELTA_TEXT = 1,
    /// The end of the answer; `swarmllm_generation_completion_json` returns the details.
    SWARMLLM_DELTA_DONE = 2,
    /// The timeout passed; call again.
    SWARMLLM_DELTA_TIMEOUT = 3,
}

/// A piece of an answer.
#[repr(C)]
pub struct swarmllm_delta {
    /// One of `swarmllm_delta_kind`.
    pub kind: i32,
    /// The text of a `SWARMLLM_DELTA_TEXT`; free it with `swarmllm_string_free`.
    pub text: swarmllm_string,
}

/// The generation behind a handle.
struct Answer {
    route: String,
    canceller: Canceller,
    generation: Mutex<Generation>,
    /// The completion as JSON, or the error, once the answer has ended.
    end: OnceLock<Result<String, GenerateError>>,
    /// Keeps the runtime that the generation needs; dropped after it.
    node: Arc<Node>,
}

impl Answer {
    /// The next text; `None` at the end and after it.
    async fn next(&self) -> Result<Option<String>, Fault> {
        let mut generation = self.generation.lock().await;
        if let Some(end) = self.end.get() {
            return end.as_ref().map(|_| None).map_err(fault);
        }
        let end = loop {
            match generation.next().await {
                Some(Ok(Delta::Text(text))) => return Ok(Some(text)),
                // The completion contains all tokens.
                Some(Ok(Delta::Token(_))) => {}
                Some(Ok(Delta::Done(completion))) => break Ok(json(&*completion)?),
                Some(Err(error)) => break Err(error),
                None => return Err(Fault::new(ErrorKind::Internal, "the generation ended without an end")),
            }
        };
        self.end.get_or_init(|| end).as_ref().map(|_| None).map_err(fault)
    }

    fn open(node: Arc<Node>, generation: Generation) -> Result<u64, Fault> {
        GENERATIONS.insert(Answer {
            route: json(generation.route())?,
            canceller: generation.canceller(),
            generation: Mutex::new(generation),
            end: OnceLock::new(),
            node,
        })
    }
}

/// Runs an export that starts an answer: reads its arguments, and opens a handle of the generation that `start` makes of
/// node, model, input and options.
///
/// # Safety
/// As [`read`] for `model` and the input, as [`read_optional`] for `options`.
unsafe fn start_answer(
    node: swarmllm_node,
    model: *const c_char,
    (input, name): (*const c_char, &str),
    options: *const c_char,
    generation: Option<&mut swarmllm_generation>,
    start: impl AsyncFnOnce(&Node, &str, &str, Option<&str>) -> Result<Generation, Fault>,
) -> swarmllm_status {
    guard(|| {
        let out = place(generation, "generation")?;
        out.id = 0;
        let node = self::node(node)?;
        // SAFETY: the caller's promise is passed on.
        let (model, input, options) = unsafe {
            (
                read(model, "model", MAX_NAME)?,
                read(input, name, MAX_TEXT)?,
                read_optional(options, "options", MAX_TEXT)?,
            )
        };
        let generation = wait(&node.runtime(), start(&node, model, input, options))??;
        out.id = Answer::open(node, generation)?;
        Ok(())
    })
}

/// Starts an answer to a chat. `messages` is a JSON list such as `[{"role": "user", "content": "Hello"}]`. `options` is NULL
/// or a JSON object with any of these keys:
///
/// - `max_tokens`, `temperature` (0 = greedy), `top_k`, `typical_p`, `top_p`, `min_p`, `repeat_penalty`, `repeat_last_n`,
///   `presence_penalty`, `frequency_penalty`, `seed`;
/// - `logit_bias`: an object from token to bias; -100 bans a token;
/// - `stop`: a text or a list of texts that end the answer;
/// - `deadline_ms`: time limit of the whole answer;
/// - `exact`: the answer is that of a plain run of the whole model, token for token;
/// - `speculate`: whether to compute draft tokens ahead;
/// - `draft`: a smaller model with the same vocabulary, held here as a whole, that proposes draft tokens;
/// - `standby`: whether hot standbys replicate the stages, to take over from a lost host;
/// - `wire`: format of hidden states on the wire: `"f32"`, or rounded and shorter `"bf16"` or `"int8"`, not with `exact`;
/// - `logprobs`: number of alternatives, 0 to 20, that the completion lists for each token whose text is in the answer; under
///   a constraint, probabilities among the tokens that it admits;
/// - `constraint`: the form of the answer: `"json_object"`, `{"json_schema": {...}}` (objects have no keys beside those that
///   the schema names, unless it has `additionalProperties`), `{"lark": "..."}` or `{"regex": "..."}`;
/// - `caller`: the name on whose behalf this is asked; waiting callers take turns.
///
/// Keys for the chat template:
///
/// - `tools`, `documents`: lists. A tool call is part of the answer's text;
/// - `chat_template_kwargs`: an object of further variables; `enable_thinking`: one of them;
/// - `chat_template`: a template that replaces the model's own;
/// - `parse_content`: whether control tokens are parsed in messages and inputs. A text can then forge turns.
///
/// Returns when the answer has a slot. While all slots are in use the call waits, until `deadline_ms` or without limit.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn swarmllm_node_chat(
    node: swarmllm_node,
    model: *const c_char,
    messages: *const c_char,
    options: *const c_char,
    generation: Option<&mut swarmllm_generation>,
) -> swarmllm_status {
    // SAFETY: the caller gives NUL-terminated texts; only `options` may be NULL.
    unsafe {
        start_answer(
            node,
            model,
            (messages, "messages"),
            options,
            generation,
            async |node, model, messages, options| {
                let request = options::chat(model, messages, options)?;
                node.chat(request).await.map_err(|error| fault(&error))
            },
        )
    }
}

/// Starts the continuation of a plain text. `options` as in `swarmllm_node_chat`, without the keys for the chat template.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn swarmllm_node_generate(
    node: swarmllm_node,
    model: *const c_char,
    prompt: *const c_char,
    options: *const c_char,
    generation: Option<&mut swarmllm_generation>,
) -> swarmllm_status {
    // SAFETY: the caller gives NUL-terminated texts; only `options` may be NULL.
    unsafe {
        start_answer(node, model, (prompt, "prompt"), options, generation, async |node, model, prompt, options| {
            let (prompt, options) = (Prompt::Text(prompt.to_owned()), options::generate(options)?);
            let request = GenerateRequest { model: model.to_owned(), prompt, options };
            node.generate(request).await.map_err(|error| fault(&error))
        })
    }
}

/// The stages that compute the answer: a JSON object as from `swarmllm_node_plan_json`.
#[unsafe(no_mangle)]
pub extern "C" fn swarmllm_generation_route_json(
    generation: swarmllm_generation,
    out: Option<&mut MaybeUninit<swarmllm_string>>,
) -> swarmllm_status {
    answer(out, || Ok(GENERATIONS.get(generation.id)?.route.clone()))
}

/// Waits for the next piece, at most `timeout_ms` (0 = no wait, `SWARMLLM_FOREVER` = no limit). After the end, every call
/// returns the end again. After an error, `swarmllm_generation_completion_json` returns the text so far.
#[unsafe(no_mangle)]
pub extern "C" fn swarmllm_generation_next(
    generation: swarmllm_generation,
    timeout_ms: u32,
    delta: Option<&mut MaybeUninit<swarmllm_delta>>,
) -> swarmllm_status {
    use swarmllm_delta_kind::{SWARMLLM_DELTA_DONE, SWARMLLM_DELTA_TEXT, SWARMLLM_DELTA_TIMEOUT};
    guard(|| {
        let delta = place(delta, "delta")?;
        delta.write(swarmllm_delta { kind: 0, text: swarmllm_string::NONE });
        let answer = GENERATIONS.get(generation.id)?;
        let next = wait(&answer.node.runtime(), async {
            match timeout_ms {
                SWARMLLM_FOREVER => Some(answer.next().await),
                timeout => tokio::time::timeout(Duration::from_millis(timeout.into()), answer.next()).await.ok(),
            }
        })?;
        delta.write(match next.transpose()? {
            Some(Some(text)) => swarmllm_delta { kind: SWARMLLM_DELTA_TEXT as i32, text: swarmllm_string::new(text) },
            Some(None) => swarmllm_delta { kind: SWARMLLM_DELTA_DONE as i32, text: swarmllm_string::NONE },
            None => swarmllm_delta { kind: SWARMLLM_DELTA_TIMEOUT as i32, text: swarmllm_string::NONE },
        });
        Ok(())
    })
}

/// Waits for the end and returns the whole answer as a JSON object: text, tokens, `logprobs` if requested (`token`, `text`,
/// `bytes`, `logprob` and `alternatives` of each token), the reason of the end, the route with timings. Pieces that were not
/// pulled are skipped. An interrupted answer returns the error and also writes the JSON of the partial answer.
#[unsafe(no_mangle)]
pub extern "C" fn swarmllm_generation_completion_json(
    generation: swarmllm_generation,
    out: Option<&mut MaybeUninit<swarmllm_string>>,
) -> swarmllm_status {
    guard(|| {
        let out = place(out, "out")?;
        out.write(swarmllm_string::NONE);
        let answer = GENERATIONS.get(generation.id)?;
        let ended = wait(&answer.node.runtime(), async {
            while answer.next().await?.is_some() {}
            Ok(())
        })?;
        match answer.end.get() {
            Some(Ok(completion)) => {
                out.write(swarmllm_string::new(completion.as_str()));
            }
            Some(Err(GenerateError::Interrupted { partial, .. })) => {
                out.write(swarmllm_string::new(json(&**partial)?));
            }
            _ => {}
        }
        ended
    })
}

/// Ends the answer early, at every stage; text that is on its way may still come before the end. May be called from any
/// thread, also while another thread waits in `swarmllm_generation_next`.
#[unsafe(no_mangle)]
pub extern "C" fn swarmllm_generation_cancel(generation: swarmllm_generation) -> swarmllm_status {
    guard(|| {
        GENERATIONS.get(generation.id)?.canceller.cancel();
        Ok(())
    })
}

/// Frees a generation and cancels it if it has not ended. A call that waits in another thread ends as cancelled.
#[unsafe(no_mangle)]
pub extern "C" fn swarmllm_generation_free(generation: swarmllm_generation) -> swarmllm_status {
    guard(|| {
        GENERATIONS.remove(generation.id)?.canceller.cancel();
        Ok(())
    })
}
