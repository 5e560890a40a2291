//! What the catalogue's models are called: aliases are given, moved and taken away, and texts resolved to models.

use super::Catalog;
use super::names::{Names, clean};
use crate::base::ModelId;
use crate::base::names::{Meaning, is_hidden, is_like_id, is_same, is_short_of_id, matched, meaning, nearest};
use crate::model::ModelError;
use crate::model::gguf::Gguf;
use crate::model::manifest::{Cut, limits};

/// Digits of another model's id that no alias is: fewer are plain names, as `7b`, and are no digits that anybody copies.
pub(super) const MIN_COPIED: usize = 4;

/// An alias as it is kept. Refuses what nobody sees, and what would be read as an id before it is looked for.
fn given(alias: &str) -> Result<String, ModelError> {
    if let Some(character) = alias.chars().find(|character| is_hidden(*character)) {
        return Err(ModelError::HiddenInAlias { character });
    }
    match clean(alias) {
        clean if clean.is_empty() => Err(ModelError::EmptyAlias),
        alias if is_like_id(&alias) => Err(ModelError::AliasLikeId { alias }),
        alias => Ok(alias),
    }
}

impl Catalog {
    /// The names of a known model: the host's aliases, the newest first, then what its file or a peer suggests.
    pub fn names(&self, model: ModelId) -> Vec<String> {
        self.state().names.get(&model).map(Names::all).unwrap_or_default()
    }

    /// Whether a text names a known model as a whole, or by enough digits of its id: what cannot be taken back is not done by the
    /// beginning of a name, which another model may have tomorrow.
    pub fn is_named_fully(&self, model: ModelId, text: &str) -> bool {
        is_like_id(text) || self.names(model).iter().any(|name| is_same(name, text))
    }

    /// The first of them, or the beginning of the id where the model has no name.
    pub fn title(&self, model: ModelId) -> String {
        let state = self.state();
        let first = state.names.get(&model).and_then(|names| names.list.first());
        first.cloned().unwrap_or_else(|| model.short())
    }

    /// Names of all known models.
    pub fn all_names(&self) -> Vec<String> {
        self.state().names.values().flat_map(Names::all).collect()
    }

    /// Aliases of a known model, the newest first.
    pub fn aliases(&self, model: ModelId) -> Vec<String> {
        self.state().names.get(&model).map(|names| names.aliases().to_vec()).unwrap_or_default()
    }

    /// Gives a known model an alias, beside those that it has and in front of them. Refused where it is another model's,
    /// in whatever case: its alias, what its file or a peer calls that one alone, or how its id begins.
    pub fn add_alias(&self, model: ModelId, alias: &str) -> Result<(), ModelError> {
        let alias = given(alias)?;
        let _alone = self.disk();
        self.known(model)?;
        let names = self.state().names.get(&model).cloned().unwrap_or_default();
        self.check_alias(&alias, &names, &|other| other == model)?;
        self.rename(model, |names| names.give(&alias))
    }

    /// The same, and whichever other model has the alias has it no longer. One that another model's file suggests means that
    /// model no longer.
    pub fn move_alias(&self, model: ModelId, alias: &str) -> Result<(), ModelError> {
        let alias = given(alias)?;
        let _alone = self.disk();
        self.known(model)?;
        self.check_no_id(&alias, &|other| other == model)?;
        let others = self.aliased(&alias);
        // A crash in between leaves the alias with both, and with neither at no time.
        self.rename(model, |names| names.give(&alias))?;
        for (other, its) in others.into_iter().filter(|(other, _)| *other != model) {
            self.rename(other, |names| names.take_back(|name| name == its))?;
        }
        Ok(())
    }

    /// Takes an alias away; one that is written just so, or else without case. What files and peers suggest stays.
    pub fn remove_alias(&self, alias: &str) -> Result<(), ModelError> {
        let alias = clean(alias);
        let _alone = self.disk();
        let mut found = self.aliased(&alias);
        if found.iter().any(|(_, its)| *its == alias) {
            found.retain(|(_, its)| *its == alias);
        }
        if found.is_empty() {
            return Err(ModelError::NoAlias { alias });
        }
        found.into_iter().try_for_each(|(model, its)| self.rename(model, |names| names.take_back(|name| name == its)))
    }

    /// Aliases that are the same but for their case, and the models that have them, by rising ids.
    fn aliased(&self, alias: &str) -> Vec<(ModelId, String)> {
        let state = self.state();
        let mut found: Vec<(ModelId, String)> = Vec::new();
        for (model, names) in &state.names {
            let its = names.aliases().iter().filter(|its| is_same(its, alias));
            found.extend(its.map(|its| (*model, its.clone())));
        }
        found.sort();
        found
    }

    /// Refuses an alias that another model has, or by which another is found and the model with these names is not. `is_it`
    /// says whether a model is, or may be, the one that is named.
    fn check_alias(&self, alias: &str, names: &Names, is_it: &dyn Fn(ModelId) -> bool) -> Result<(), ModelError> {
        if let Some((model, alias)) = self.aliased(alias).into_iter().find(|(other, _)| !is_it(*other)) {
            return Err(ModelError::AliasTaken { alias, model });
        }
        let suggested = match names.suggests(alias) {
            true => None,
            false => self.first_named(&|model, names| names.suggests(alias) && !is_it(model)),
        };
        match suggested {
            Some(model) => Err(ModelError::AliasSuggested { alias: alias.to_owned(), model }),
            None => self.check_no_id(alias, is_it),
        }
    }

    /// Refuses an alias that looks like the beginning of another model's id.
    fn check_no_id(&self, alias: &str, is_it: &dyn Fn(ModelId) -> bool) -> Result<(), ModelError> {
        let digits = alias.to_ascii_lowercase();
        let begins = |model: ModelId| digits.len() >= MIN_COPIED && model.to_string().starts_with(&digits);
        match self.first_named(&|model, _| begins(model) && !is_it(model)) {
            Some(model) => Err(ModelError::AliasOfId { alias: alias.to_owned(), model }),
            None => Ok(()),
        }
    }

    /// The known model with the lowest id of those that fit. The names are copied: what is asked of them may ask the catalogue.
    fn first_named(&self, fits: &dyn Fn(ModelId, &Names) -> bool) -> Option<ModelId> {
        let known: Vec<(ModelId, Names)> = {
            let state = self.state();
            let names = |id: &ModelId| state.names.get(id).cloned().unwrap_or_default();
            state.models.keys().map(|id| (*id, names(id))).collect()
        };
        known.into_iter().filter(|(model, names)| fits(*model, names)).map(|(model, _)| model).min()
    }

    /// What an import calls a model: the host's alias, and what the file, or else its name, suggests. Refuses an alias that
    /// [`Catalog::add_alias`] refuses, because of a model that has another header, so that no weight is read in vain.
    pub(super) fn names_for(
        &self,
        alias: Option<&str>,
        header: &Gguf,
        stem: Option<&str>,
        cut: &Cut,
    ) -> Result<Names, ModelError> {
        let own = header.string("general.name").ok().flatten().filter(|name| !clean(name).is_empty());
        let alias = alias.filter(|alias| !alias.trim_matches(' ').is_empty()).map(given).transpose()?;
        let names = Names::new(alias.as_deref(), own.or(stem));
        let may_be_it = |model| self.manifest(model).is_some_and(|manifest| cut.is_header_of(&manifest));
        names.aliases().iter().try_for_each(|alias| self.check_alias(alias, &names, &may_be_it))?;
        Ok(names)
    }

    /// Gives a known model the names that an import has for it.
    pub(super) fn name_imported(&self, model: ModelId, names: &Names) -> Result<(), ModelError> {
        let _alone = self.disk();
        self.known(model)?;
        let names = self.names_with(model, names)?;
        self.rename(model, |known| *known = names)
    }

    /// Changes the names of a known model, with the disk held.
    fn rename(&self, model: ModelId, change: impl FnOnce(&mut Names)) -> Result<(), ModelError> {
        let known = self.state().names.get(&model).cloned().unwrap_or_default();
        let mut names = known.clone();
        change(&mut names);
        if names == known {
            return Ok(());
        }
        self.layout().prepare(&names.encode())?.keep(&self.layout().names(&model))?;
        self.layout().sync_models()?;
        self.state_mut().names.insert(model, names);
        self.changed();
        Ok(())
    }

    /// Takes a name that a peer suggests for a known model, where the model has no hint yet.
    pub fn suggest_name(&self, model: ModelId, hint: &str) -> Result<(), ModelError> {
        let _alone = self.disk();
        self.known(model)?;
        self.rename(model, |names| names.suggest(hint))
    }

    /// The names that a model has with these: a new alias comes first, and what the file suggests goes before what a peer
    /// does. Refuses an alias of another model.
    pub(super) fn names_with(&self, model: ModelId, more: &Names) -> Result<Names, ModelError> {
        let mut names = more.clone();
        if let Some(known) = self.state().names.get(&model) {
            names.merge(known);
        }
        more.aliases().iter().try_for_each(|alias| self.check_alias(alias, &names, &|other| other == model))?;
        Ok(names)
    }

    /// The model that is meant by an id, a name without case, at least eight digits of an id, or the beginning of a name.
    pub fn resolve(&self, text: &str) -> Result<ModelId, ModelError> {
        let state = self.state();
        let nameless = Names::default();
        let of = |id: &ModelId| state.names.get(id).unwrap_or(&nameless).named(*id);
        let found = meaning(text, state.models.keys().map(of));
        let name = || text.chars().take(limits::NAME).collect();
        match found {
            Meaning::Model(model) => Ok(model),
            Meaning::Unknown => {
                let names = state.names.values().flat_map(|names| names.list.iter().map(String::as_str));
                let short = is_short_of_id(text, state.models.keys().copied());
                Err(ModelError::NotFound { name: name(), nearest: nearest(text, names), short })
            }
            Meaning::Ambiguous(found) => {
                let names = |id: ModelId| matched(text, &of(&id)).map(str::to_owned);
                Err(ModelError::ambiguous(name(), &found, names))
            }
        }
    }
}
