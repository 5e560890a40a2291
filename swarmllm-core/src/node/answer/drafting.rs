//! Draft models: resolved, compared with the answering model, and loaded here.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::base::{ErrorKind, Fault, LayerRange, SessionId};
use crate::model::Manifest;
use crate::model::tokenizer::Tokenizer;
use crate::node::blocking::blocking;
use crate::node::models::loaded::LoadedModel;
use crate::node::models::prepare::load;
use crate::node::shared::SharedState;
use crate::pipeline::host::slots::SlotOwner;
use crate::pipeline::host::stages::{SlotRequest, StageKey};
use crate::pipeline::session::drafter::Drafter;
use crate::pipeline::session::speculation::DraftModel;
use crate::wire::prefix::Prefix;

/// A drafter for an answer of `tokens` tokens to a prompt of `prompt` tokens.
pub(super) async fn drafter(
    shared: &Arc<SharedState>,
    model: &Arc<LoadedModel>,
    name: &str,
    prompt: usize,
    tokens: u32,
) -> Result<Drafter, Fault> {
    let draft = load(shared, name).await?;
    check_vocabulary(model, &draft).await?;
    let held = shared.models.catalog.holding(draft.id);
    let layers = LayerRange::new(0, draft.manifest.layers);
    if !held.head || held.layers != [layers] {
        let text = format!("draft model `{name}` is not held here as a whole; pull or import all of it");
        return Err(Fault::new(ErrorKind::ShardMissing, text));
    }
    let engine = draft.engine.name().to_owned();
    let key = StageKey { model: draft.id, layers, head: true, engine };
    let context = u32::try_from(prompt).unwrap_or(u32::MAX).saturating_add(tokens);
    if context > draft.manifest.context {
        let text = format!(
            "draft model `{name}` has a context of {}, but {context} positions are needed",
            draft.manifest.context
        );
        return Err(Fault::new(ErrorKind::ContextOverflow, text));
    }
    // A local stage of no route: no host asks for its owner.
    let owner = SlotOwner { coordinator: shared.id, session: SessionId([0; 16]), epoch: 0 };
    let claim = SlotRequest { owner, least: context, prefix: &Prefix::default(), over: &CancellationToken::new() };
    let (lease, _) = shared.models.stages.acquire(key, claim).await?;
    let common = draft.manifest.vocab.min(model.manifest.vocab);
    Ok(Drafter::new(lease, draft.embedder.clone(), common, weigh(&model.manifest, &draft)))
}

/// The draft model's weight relative to the answering model's, in thousandths of the weights read per token.
fn weigh(model: &Manifest, draft: &LoadedModel) -> DraftModel {
    let weight = |manifest: &Manifest| manifest.stage_weight(LayerRange::new(0, manifest.layers), true);
    let thousandths = weight(&draft.manifest).saturating_mul(1000) / weight(model).max(1);
    DraftModel { model: draft.id, weight: u32::try_from(thousandths).unwrap_or(u32::MAX) }
}

/// Common tokens must be the same in both models. Models of one family pad their vocabularies to different lengths.
async fn check_vocabulary(model: &Arc<LoadedModel>, draft: &Arc<LoadedModel>) -> Result<(), Fault> {
    let (one, other) = (model.clone(), draft.clone());
    let differs = blocking(move || Ok(first_difference(&one.tokenizer, &other.tokenizer)));
    match differs.await? {
        None => Ok(()),
        Some(token) => {
            let name = &draft.name;
            let text =
                format!("draft model {name} has a different token {token}: it needs the vocabulary of the model");
            Err(Fault::new(ErrorKind::InvalidArgument, text))
        }
    }
}

/// The first common token that differs. Padding tokens, which no text contains, count as equal whatever their names.
fn first_difference(one: &Tokenizer, other: &Tokenizer) -> Option<u32> {
    let same = |token: u32| {
        let unused = |tokenizer: &Tokenizer| tokenizer.token_bytes(token, true).is_empty();
        one.token_text(token) == other.token_text(token) || (unused(one) && unused(other))
    };
    (0..one.vocab().min(other.vocab())).find(|token| !same(*token))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::tokenizer::tokenizer_of_words;

    #[test]
    fn vocabularies_are_compared_over_their_common_tokens() {
        let short = tokenizer_of_words(&[("a", 1), ("b", 1), ("[PAD2]", 5)]);
        let long = tokenizer_of_words(&[("a", 1), ("b", 1), ("<unused>", 5), ("[PAD3]", 5)]);
        assert_eq!(first_difference(&short, &long), None);
        assert_eq!(first_difference(&long, &short), None);
        let other = tokenizer_of_words(&[("a", 1), ("c", 1), ("[PAD2]", 5)]);
        assert_eq!(first_difference(&other, &long), Some(1));
        // A token that only one of them uses differs.
        let used = tokenizer_of_words(&[("a", 1), ("b", 1), ("c", 1)]);
        assert_eq!(first_difference(&used, &long), Some(2));
    }
}
