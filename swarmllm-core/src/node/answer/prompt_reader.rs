//! Rendering and tokenization of prompts: off the runtime, with bounded concurrency, stopped when the caller leaves.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Semaphore;

use crate::base::{ErrorKind, Fault};
use crate::model::tokenizer::{EncodeBounds, TokenizerError};
use crate::node::answer::conversation::Conversation;
use crate::node::api::request::Prompt;
use crate::node::blocking::blocking;
use crate::node::models::loaded::LoadedModel;

/// Most bytes of a short text: about 16,000 tokens, tens of milliseconds. Short texts never wait for long ones.
const SHORT_BYTES: usize = 64 << 10;
/// Short texts tokenized in parallel.
const PARALLEL_SHORT: usize = 2;
/// Long texts tokenized in parallel. Encoding takes at worst about 60 times its text in memory: 240 MiB for the longest of 4
/// MiB, and `2 * 60 * 64 KiB`, 7.5 MiB, for concurrent short texts.
const PARALLEL_LONG: usize = 1;

/// Permits to render and tokenize, granted in order of request.
pub(crate) struct PromptReaders {
    short: Arc<Semaphore>,
    long: Arc<Semaphore>,
}

impl Default for PromptReaders {
    fn default() -> Self {
        Self { short: Arc::new(Semaphore::new(PARALLEL_SHORT)), long: Arc::new(Semaphore::new(PARALLEL_LONG)) }
    }
}

/// Cancels the work when its caller is dropped.
struct CancelOnDrop(Arc<AtomicBool>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl PromptReaders {
    /// Runs work on texts of `bytes` bytes. Its argument becomes true when the caller leaves; the work then ends early.
    /// Cancel-safe: dropping it cancels the work, which holds its permit to its end.
    async fn read<T: Send + 'static>(
        &self,
        bytes: usize,
        work: impl FnOnce(&AtomicBool) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, Fault> {
        let lane = if bytes <= SHORT_BYTES { &self.short } else { &self.long };
        let permit = lane.clone().acquire_owned().await.map_err(|closed| Fault::new(ErrorKind::Closed, closed))?;
        let cancelled = Arc::new(AtomicBool::new(false));
        let _cancel = CancelOnDrop(cancelled.clone());
        // The work keeps the permit: it ends only by itself.
        blocking(move || {
            let _permit = permit;
            work(&cancelled)
        })
        .await
    }

    /// The tokens of a conversation, at most `max_tokens`.
    pub async fn conversation(
        &self,
        model: &Arc<LoadedModel>,
        conversation: Conversation,
        max_tokens: u32,
    ) -> Result<Vec<u32>, Fault> {
        let (bytes, model) = (conversation.bytes()?, model.clone());
        let rendered = self.read(bytes, {
            let model = model.clone();
            move |_| conversation.render(&model, max_tokens as usize)
        });
        let rendered = rendered.await?;
        // A template may expand a short conversation to a long text.
        let bytes = rendered.text().len();
        let work = move |cancelled: &AtomicBool| {
            let tokens = model.tokenizer.encode_rendered_within(&rendered, bounds(max_tokens, cancelled));
            tokens.map_err(|error| refuse(error, "messages"))
        };
        self.read(bytes, work).await
    }

    /// The tokens of each prompt, at most `max_tokens` each. `field` names the request's field of a prompt by its index.
    pub async fn prompts(
        &self,
        model: &Arc<LoadedModel>,
        prompts: Vec<Prompt>,
        max_tokens: u32,
        field: impl Fn(usize) -> String + Send + 'static,
    ) -> Result<Vec<Vec<u32>>, Fault> {
        let (bytes, model) = (prompts.iter().map(prompt_bytes).sum(), model.clone());
        let work = move |cancelled: &AtomicBool| {
            let read = |(at, prompt)| match prompt {
                Prompt::Text(text) => {
                    let tokens = model.tokenizer.encode_within(&text, true, false, bounds(max_tokens, cancelled));
                    tokens.map_err(|error| refuse(error, &field(at)))
                }
                Prompt::Tokens(tokens) => Ok(tokens),
            };
            prompts.into_iter().enumerate().map(read).collect()
        };
        self.read(bytes, work).await
    }
}

/// The fault of a text; it names the field if the text's length or characters cause it.
fn refuse(error: TokenizerError, field: &str) -> Fault {
    let fault = Fault::new(error.kind(), error);
    match fault.kind() {
        ErrorKind::ContextOverflow | ErrorKind::InvalidArgument => fault.about(field),
        _ => fault,
    }
}

fn bounds(max_tokens: u32, cancelled: &AtomicBool) -> EncodeBounds<'_> {
    EncodeBounds { tokens: max_tokens as usize, cancelled: Some(cancelled) }
}

/// Bytes of a prompt.
pub(crate) fn prompt_bytes(prompt: &Prompt) -> usize {
    match prompt {
        Prompt::Text(text) => text.len(),
        Prompt::Tokens(tokens) => size_of_val(tokens.as_slice()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Work that reports its begin and runs until told to end; returns whether it was cancelled by then.
    fn held() -> (mpsc::Receiver<()>, mpsc::Sender<()>, impl FnOnce(&AtomicBool) -> Result<bool, Fault>) {
        let ((begun, has_begun), (end, ended)) = (mpsc::channel(), mpsc::channel());
        let work = move |cancelled: &AtomicBool| {
            begun.send(()).unwrap();
            ended.recv().unwrap();
            Ok(cancelled.load(Ordering::Relaxed))
        };
        (has_begun, end, work)
    }

    #[tokio::test]
    async fn short_texts_do_not_wait_for_long_ones() {
        let readers = Arc::new(PromptReaders::default());
        let (begun, end, work) = held();
        let long = tokio::spawn({
            let readers = readers.clone();
            async move { readers.read(SHORT_BYTES + 1, work).await }
        });
        tokio::task::spawn_blocking(move || begun.recv()).await.unwrap().unwrap();
        assert_eq!(readers.read(2, |_| Ok("hi")).await, Ok("hi"));
        // Another long text waits.
        let mut next = Box::pin(readers.read(SHORT_BYTES + 1, |_| Ok(())));
        assert!(futures::poll!(&mut next).is_pending());
        end.send(()).unwrap();
        assert_eq!(long.await.unwrap(), Ok(false));
        assert_eq!(next.await, Ok(()));
    }

    #[tokio::test]
    async fn cancelled_work_holds_its_permit_until_it_ends() {
        let readers = Arc::new(PromptReaders::default());
        let (begun, end, work) = held();
        let (tell, told) = tokio::sync::oneshot::channel();
        let left = tokio::spawn({
            let readers = readers.clone();
            let work = move |cancelled: &AtomicBool| {
                let _ = tell.send(work(cancelled));
                Ok(())
            };
            async move { readers.read(SHORT_BYTES + 1, work).await }
        });
        tokio::task::spawn_blocking(move || begun.recv()).await.unwrap().unwrap();
        left.abort();
        assert!(left.await.is_err());
        assert_eq!(readers.long.available_permits(), 0, "the work still runs");
        end.send(()).unwrap();
        assert_eq!(told.await.unwrap(), Ok(true), "the work was cancelled");
        assert_eq!(readers.read(SHORT_BYTES + 1, |_| Ok(())).await, Ok(()));
    }
}
