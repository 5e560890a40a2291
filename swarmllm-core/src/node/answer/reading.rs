//! Prompts read: rendered and made tokens, off the runtime, few at once, for as long as somebody waits for them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Semaphore;

use crate::base::{ErrorKind, Fault};
use crate::model::tokenizer::{EncodeBounds, TokenizerError};
use crate::node::answer::conversation::Conversation;
use crate::node::api::request::Prompt;
use crate::node::blocking::blocking;
use crate::node::models::loaded::LoadedModel;

/// Bytes of a short text: some 16,000 tokens, which take tens of milliseconds. A short text never waits for a long one.
const SHORT: usize = 64 << 10;
/// Short texts that are read at once.
const SHORT_AT_ONCE: usize = 2;
/// Long texts that are read at once. Encoding takes some 60 times its text in memory at worst: 240 MiB for the longest of
/// 4 MiB, and `2 * 60 * 64 KiB`, 7.5 MiB, for the short ones beside it.
const LONG_AT_ONCE: usize = 1;

/// Reads prompts; those that wait for their turn are read in the order in which they came.
pub(crate) struct Readers {
    short: Arc<Semaphore>,
    long: Arc<Semaphore>,
}

impl Default for Readers {
    fn default() -> Self {
        Self { short: Arc::new(Semaphore::new(SHORT_AT_ONCE)), long: Arc::new(Semaphore::new(LONG_AT_ONCE)) }
    }
}

/// Tells a reading that nobody waits for it any more.
struct GiveUpOnDrop(Arc<AtomicBool>);

impl Drop for GiveUpOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Readers {
    /// Reads texts of so many bytes. `work` is told by its argument when nobody waits any more, and ends early then.
    /// Cancel-safe: dropped, the reading is given up, and the next one begins when it has ended.
    async fn read<T: Send + 'static>(
        &self,
        bytes: usize,
        work: impl FnOnce(&AtomicBool) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, Fault> {
        let lane = if bytes <= SHORT { &self.short } else { &self.long };
        let permit = lane.clone().acquire_owned().await.map_err(|closed| Fault::new(ErrorKind::Closed, closed))?;
        let given_up = Arc::new(AtomicBool::new(false));
        let _give_up = GiveUpOnDrop(given_up.clone());
        // The permit goes with the work, which cannot be stopped from outside.
        blocking(move || {
            let _permit = permit;
            work(&given_up)
        })
        .await
    }

    /// The tokens of a conversation, at most `most`.
    pub async fn conversation(
        &self,
        model: &Arc<LoadedModel>,
        conversation: Conversation,
        most: u32,
    ) -> Result<Vec<u32>, Fault> {
        let (bytes, model) = (conversation.bytes()?, model.clone());
        let rendered = self.read(bytes, {
            let model = model.clone();
            move |_| conversation.render(&model, most as usize)
        });
        let rendered = rendered.await?;
        // A template may make a long text of a short conversation.
        let bytes = rendered.text().len();
        let work = move |given_up: &AtomicBool| {
            let tokens = model.tokenizer.encode_rendered_within(&rendered, bounds(most, given_up));
            tokens.map_err(|error| refuse(error, "messages"))
        };
        self.read(bytes, work).await
    }

    /// The tokens of each prompt, at most `most` of each. `field` says what the request calls a prompt of this number.
    pub async fn prompts(
        &self,
        model: &Arc<LoadedModel>,
        prompts: Vec<Prompt>,
        most: u32,
        field: impl Fn(usize) -> String + Send + 'static,
    ) -> Result<Vec<Vec<u32>>, Fault> {
        let (bytes, model) = (prompts.iter().map(prompt_bytes).sum(), model.clone());
        let work = move |given_up: &AtomicBool| {
            let read = |(at, prompt)| match prompt {
                Prompt::Text(text) => {
                    let tokens = model.tokenizer.encode_within(&text, true, false, bounds(most, given_up));
                    tokens.map_err(|error| refuse(error, &field(at)))
                }
                Prompt::Tokens(tokens) => Ok(tokens),
            };
            prompts.into_iter().enumerate().map(read).collect()
        };
        self.read(bytes, work).await
    }
}

/// Why a text is not read. What its length or its characters are to blame for names it.
fn refuse(error: TokenizerError, field: &str) -> Fault {
    let fault = Fault::new(error.kind(), error);
    match fault.kind() {
        ErrorKind::ContextOverflow | ErrorKind::InvalidArgument => fault.about(field),
        _ => fault,
    }
}

fn bounds(most: u32, given_up: &AtomicBool) -> EncodeBounds<'_> {
    EncodeBounds { tokens: most as usize, given_up: Some(given_up) }
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

    /// A reading that says when it has begun and lasts until it is told to end; gives whether it was given up by then.
    fn held() -> (mpsc::Receiver<()>, mpsc::Sender<()>, impl FnOnce(&AtomicBool) -> Result<bool, Fault>) {
        let ((begun, has_begun), (end, ended)) = (mpsc::channel(), mpsc::channel());
        let work = move |given_up: &AtomicBool| {
            begun.send(()).unwrap();
            ended.recv().unwrap();
            Ok(given_up.load(Ordering::Relaxed))
        };
        (has_begun, end, work)
    }

    #[tokio::test]
    async fn a_short_text_does_not_wait_for_long_ones() {
        let readers = Arc::new(Readers::default());
        let (begun, end, work) = held();
        let long = tokio::spawn({
            let readers = readers.clone();
            async move { readers.read(SHORT + 1, work).await }
        });
        tokio::task::spawn_blocking(move || begun.recv()).await.unwrap().unwrap();
        assert_eq!(readers.read(2, |_| Ok("hi")).await, Ok("hi"));
        // Another long one waits.
        let mut next = Box::pin(readers.read(SHORT + 1, |_| Ok(())));
        assert!(futures::poll!(&mut next).is_pending());
        end.send(()).unwrap();
        assert_eq!(long.await.unwrap(), Ok(false));
        assert_eq!(next.await, Ok(()));
    }

    #[tokio::test]
    async fn a_text_that_nobody_waits_for_is_given_up_and_holds_its_place_until_it_ends() {
        let readers = Arc::new(Readers::default());
        let (begun, end, work) = held();
        let (tell, told) = tokio::sync::oneshot::channel();
        let left = tokio::spawn({
            let readers = readers.clone();
            let work = move |given_up: &AtomicBool| {
                let _ = tell.send(work(given_up));
                Ok(())
            };
            async move { readers.read(SHORT + 1, work).await }
        });
        tokio::task::spawn_blocking(move || begun.recv()).await.unwrap().unwrap();
        left.abort();
        assert!(left.await.is_err());
        assert_eq!(readers.long.available_permits(), 0, "it still computes");
        end.send(()).unwrap();
        assert_eq!(told.await.unwrap(), Ok(true), "it was told");
        assert_eq!(readers.read(SHORT + 1, |_| Ok(())).await, Ok(()));
    }
}
