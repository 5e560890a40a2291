//! Generations: an answer as it comes, pulled by the caller.

use std::ffi::c_char;
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use swarmllm_core::base::{ErrorKind, Fault};
use swarmllm_core::node::{Delta, GenerateError, GenerateRequest, Generation, Node, Prompt};
use tokio::sync::{Mutex, Notify};

use crate::handle::Registry;
use crate::node::{fault, json, node, swarmllm_node, wait};
use crate::options;
use crate::status::{guard, place, swarmllm_status};
use crate::text::{MAX_NAME, MAX_TEXT, answer, read, read_optional, swarmllm_string};

/// A `timeout_ms` that never passes.
pub const SWARMLLM_FOREVER: u32 = 0xFFFF_FFFF;

static GENERATIONS: Registry<Answer> = Registry::new(3, "generation");

/// An answer that is being generated. Freeing it cancels it at every stage.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct swarmllm_generation {
    /// Opaque; 0 is never a handle.
    pub id: u64,
}

/// What came next of an answer.
#[repr(C)]
pub enum swarmllm_delta_kind {
    /// More text, whole characters, never empty.
    SWARMLLM_DELTA_TEXT = 1,
    /// The end; `swarmllm_generation_completion_json` tells all about it.
    SWARMLLM_DELTA_DONE = 2,
    /// Nothing came in time; ask again.
    SWARMLLM_DELTA_TIMEOUT = 3,
}

/// A piece of an answer.
#[repr(C)]
pub struct swarmllm_delta {
    /// One of `swarmllm_delta_kind`.
    pub kind: i32,
    /// The text, where the kind is `SWARMLLM_DELTA_TEXT`; freed by `swarmllm_string_free`.
    pub text: swarmllm_string,
}

/// A generation, with what is needed to cancel it while another thread waits for its next delta.
struct Answer {
    route: String,
    generation: Mutex<Generation>,
    cancelled: AtomicBool,
    wake: Notify,
    end: OnceLock<Result<String, GenerateError>>,
    /// Keeps the runtime that the generation needs; dropped after it.
    node: Arc<Node>,
}

impl Answer {
    async fn next(&self) -> Result<Option<String>, Fault> {
        let next = self.next_locked().await;
        // Whoever cancelled while the lock was held could not reach the generation.
        if self.cancelled.load(Ordering::SeqCst) {
            self.reach();
        }
        next
    }

    async fn next_locked(&self) -> Result<Option<String>, Fault> {
        let mut generation = self.generation.lock().await;
        if let Some(end) = self.end.get() {
            return end.as_ref().map(|_| None).map_err(fault);
        }
        let end = loop {
            let delta = tokio::select! {
                biased;
                () = self.wake.notified() => {
                    generation.cancel();
                    continue;
                }
                delta = generation.next() => delta,
            };
            match delta {
                Some(Ok(Delta::Text(text))) => return Ok(Some(text)),
                // The completion has them all.
                Some(Ok(Delta::Token(_))) => {}
                Some(Ok(Delta::Done(completion))) => break Ok(json(&*completion)?),
                Some(Err(error)) => break Err(error),
                None => return Err(Fault::new(ErrorKind::Internal, "the generation ended without an end")),
            }
        };
        self.end.get_or_init(|| end).as_ref().map(|_| None).map_err(fault)
    }

    fn cancel(&self) {
        self.cancelled.store(true, Ordering::SeqCst);
        self.wake.notify_one();
        self.reach();
    }

    fn reach(&self) {
        if let Ok(generation) = self.generation.try_lock() {
            generation.cancel();
        }
    }

    fn open(node: Arc<Node>, generation: Generation) -> Result<u64, Fault> {
        GENERATIONS.insert(Answer {
            route: json(generation.route())?,
            generation: Mutex::new(generation),
            cancelled: AtomicBool::new(false),
            wake: Notify::new(),
            end: OnceLock::new(),
            node,
        })
    }
}

/// Asks a model. `messages` is a JSON list such as `[{"role": "user", "content": "Hello"}]`; `options` is NULL or a JSON
/// object of `max_tokens`, `temperature` (0 = greedy), `top_k`, `typical_p`, `top_p`, `min_p`, `repeat_penalty`,
/// `repeat_last_n`, `presence_penalty`, `frequency_penalty`, `logit_bias` (an object of tokens, -100 bans), `seed`, `stop`
/// (a text or a list), `deadline_ms`, `exact`, `guess`, `draft` (a smaller model with the same vocabulary, held here as a
/// whole, which guesses), `stand_by` (whether other hosts follow, to take over where one is lost), `wire` (how hidden states
/// travel: `"f32"`, or rounded and shorter `"bf16"` or `"int8"`, not with `exact`), `logprobs` (how many alternatives the
/// completion tells beside each token whose text is in the answer, 0 to 20; under a constraint they are probabilities among
/// the tokens that it admits) and `constraint` (the answer's form: `"json_object"`, `{"json_schema": {...}}` (objects whose
/// keys it names have no others, unless it says `additionalProperties`), `{"lark": "..."}` or `{"regex": "..."}`). What the
/// chat template is given stands there too: `tools` and `documents` (lists), `chat_template_kwargs` (an object of further
/// variables), `enable_thinking` (one of those), `chat_template` (a template in the place of the model's own) and
/// `parse_content` (whether control tokens are read in messages and inputs too, where a text can then forge turns). What the
/// model writes to call a tool is text of the answer.
/// `caller` names on whose behalf this is asked: callers that wait for a place take turns.
/// Returns when the answer has its place; where all are in use it waits until `deadline_ms` has passed, or for as long as it takes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn swarmllm_node_chat(
    node: swarmllm_node,
    model: *const c_char,
    messages: *const c_char,
    options: *const c_char,
    generation: Option<&mut swarmllm_generation>,
) -> swarmllm_status {
    guard(|| {
        let out = place(generation, "generation")?;
        out.id = 0;
        let node = self::node(node)?;
        // SAFETY: the caller gives NUL-terminated texts; only `options` may be NULL.
        let (model, messages, options) = unsafe {
            (
                read(model, "model", MAX_NAME)?,
                read(messages, "messages", MAX_TEXT)?,
                read_optional(options, "options", MAX_TEXT)?,
            )
        };
        let request = options::chat(model, messages, options)?;
        let generation = wait(&node.runtime(), node.chat(request))?.map_err(|error| fault(&error))?;
        out.id = Answer::open(node, generation)?;
        Ok(())
    })
}

/// Continues a plain text. `options` as in `swarmllm_node_chat`, but for those of the chat template.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn swarmllm_node_generate(
    node: swarmllm_node,
    model: *const c_char,
    prompt: *const c_char,
    options: *const c_char,
    generation: Option<&mut swarmllm_generation>,
) -> swarmllm_status {
    guard(|| {
        let out = place(generation, "generation")?;
        out.id = 0;
        let node = self::node(node)?;
        // SAFETY: the caller gives NUL-terminated texts; only `options` may be NULL.
        let (model, prompt, options) = unsafe {
            (
                read(model, "model", MAX_NAME)?,
                read(prompt, "prompt", MAX_TEXT)?,
                read_optional(options, "options", MAX_TEXT)?,
            )
        };
        let (prompt, options) = (Prompt::Text(prompt.to_owned()), options::generate(options)?);
        let request = GenerateRequest { model: model.to_owned(), prompt, options };
        let generation = wait(&node.runtime(), node.generate(request))?.map_err(|error| fault(&error))?;
        out.id = Answer::open(node, generation)?;
        Ok(())
    })
}

/// Which stages answer: a JSON object as `swarmllm_node_plan_json` gives.
#[unsafe(no_mangle)]
pub extern "C" fn swarmllm_generation_route_json(
    generation: swarmllm_generation,
    out: Option<&mut MaybeUninit<swarmllm_string>>,
) -> swarmllm_status {
    answer(out, || Ok(GENERATIONS.get(generation.id)?.route.clone()))
}

/// Waits for the next piece, at most `timeout_ms` (0 = do not wait, `SWARMLLM_FOREVER` = as long as it takes). After the
/// end it tells the end again. On an error the text so far is in `swarmllm_generation_completion_json`.
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
            Some(Some(text)) => swarmllm_delta { kind: SWARMLLM_DELTA_TEXT as i32, text: swarmllm_string::give(text) },
            Some(None) => swarmllm_delta { kind: SWARMLLM_DELTA_DONE as i32, text: swarmllm_string::NONE },
            None => swarmllm_delta { kind: SWARMLLM_DELTA_TIMEOUT as i32, text: swarmllm_string::NONE },
        });
        Ok(())
    })
}

/// Waits for the end and gives the whole answer as a JSON object: text, tokens, `logprobs` where they were asked for (of
/// each token `token`, `text`, `bytes`, `logprob` and `alternatives`), why it ended, its route with timings.
/// Pieces that nobody has pulled are passed over. Where the answer was interrupted, the error is returned, and the JSON of
/// what was generated is given all the same.
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
                out.write(swarmllm_string::give(completion.as_str()));
            }
            Some(Err(GenerateError::Interrupted { partial, .. })) => {
                out.write(swarmllm_string::give(json(&**partial)?));
            }
            _ => {}
        }
        ended
    })
}

/// Ends the answer early, at every stage. The next piece is then the end. May be called from any thread, also while
/// another one waits in `swarmllm_generation_next`.
#[unsafe(no_mangle)]
pub extern "C" fn swarmllm_generation_cancel(generation: swarmllm_generation) -> swarmllm_status {
    guard(|| {
        GENERATIONS.get(generation.id)?.cancel();
        Ok(())
    })
}

/// Frees a generation; one that has not ended is cancelled. A call that waits in another thread ends as cancelled.
#[unsafe(no_mangle)]
pub extern "C" fn swarmllm_generation_free(generation: swarmllm_generation) -> swarmllm_status {
    guard(|| {
        GENERATIONS.remove(generation.id)?.cancel();
        Ok(())
    })
}
