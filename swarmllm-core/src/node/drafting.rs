//! Draft models: found, held against the model that answers, and loaded here.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::base::{ErrorKind, Fault, LayerRange, SessionId};
use crate::node::generation::{blocking, load};
use crate::node::loaded::LoadedModel;
use crate::node::shared::Shared;
use crate::pipeline::drafter::Drafter;
use crate::pipeline::stages::{Claim, Owner, StageKey};
use crate::wire::prefix::Prefix;

/// A drafter for an answer of `tokens` tokens after a prompt of `prompt`.
pub(super) async fn drafter(
    shared: &Arc<Shared>,
    model: &Arc<LoadedModel>,
    name: &str,
    prompt: usize,
    tokens: u32,
) -> Result<Drafter, Fault> {
    let draft = load(shared, name).await?;
    check_vocabulary(model, &draft).await?;
    let held = shared.catalog.holding(draft.id);
    let layers = LayerRange::new(0, draft.manifest.layers);
    if !held.head || held.layers != [layers] {
        let text = format!("draft model `{name}` is not held here as a whole; pull or import all of it");
        return Err(Fault::new(ErrorKind::ShardMissing, text));
    }
    let engine = draft.engine.name().to_owned();
    let key = StageKey { model: draft.id, layers, head: true, engine };
    let context = u32::try_from(prompt).unwrap_or(u32::MAX).saturating_add(tokens);
    if context > draft.manifest.context {
        let text = format!("draft model `{name}` has a context of {}, {context} are needed", draft.manifest.context);
        return Err(Fault::new(ErrorKind::ContextOverflow, text));
    }
    // It has no other route, so that nobody asks whose it is.
    let owner = Owner { coordinator: shared.id, session: SessionId([0; 16]), epoch: 0 };
    let claim = Claim { owner, context, prefix: &Prefix::default(), over: &CancellationToken::new() };
    let (lease, _) = shared.serving.stages().acquire(key, claim).await?;
    Ok(Drafter::new(lease, draft.embedder.clone()))
}

/// Tokens must mean the same in both.
async fn check_vocabulary(model: &Arc<LoadedModel>, draft: &Arc<LoadedModel>) -> Result<(), Fault> {
    let (one, other) = (model.clone(), draft.clone());
    let differs = blocking(move || {
        let (one, other) = (&one.tokenizer, &other.tokenizer);
        let count = one.vocab();
        if other.vocab() != count {
            return Ok(Some(format!("{} tokens, not {count}", other.vocab())));
        }
        let other_text = (0..count).find(|token| one.token_text(*token) != other.token_text(*token));
        Ok(other_text.map(|token| format!("another token {token}")))
    });
    match differs.await? {
        None => Ok(()),
        Some(how) => {
            let text = format!("draft model {} has {how}: it needs the vocabulary of the model", draft.manifest.name);
            Err(Fault::new(ErrorKind::InvalidArgument, text))
        }
    }
}
