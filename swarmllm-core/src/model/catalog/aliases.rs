//! Aliases and names of the catalogue's models: adding, moving and removing them, and resolving text to a model.

use super::Catalog;
use super::names::{Names, clean};
use crate::base::ModelId;
use crate::base::names::{
    NameResolution, is_hidden, is_like_id, is_same_name, is_short_of_id, matched_name, nearest, resolve_name,
};
use crate::model::ModelError;
use crate::model::gguf::Gguf;
use crate::model::manifest::{Sharding, limits};

/// Length from which a prefix of another model's id is refused as an alias. Shorter ones are plain names, as `7b`.
pub(super) const MIN_ID_DIGITS: usize = 4;

/// Validates an alias. Refuses invisible characters, and text that would be read as an id.
fn parse_alias(alias: &str) -> Result<String, ModelError> {
    if let Some(character) = alias.chars().find(|character| is_hidden(*character)) {
        return Err(ModelError::InvisibleInAlias { character });
    }
    match clean(alias) {
        clean if clean.is_empty() => Err(ModelError::EmptyAlias),
        alias if is_like_id(&alias) => Err(ModelError::AliasIsId { alias }),
        alias => Ok(alias),
    }
}

impl Catalog {
    /// The names of a known model: the host's aliases, newest first, then the hint from its file or a peer.
    pub fn names(&self, model: ModelId) -> Vec<String> {
        self.state().names.get(&model).map(Names::all).unwrap_or_default()
    }

    /// Whether text is a complete name of the model, or enough digits of its id. Irreversible actions require this, since a
    /// name prefix may match another model later.
    pub fn is_exact_name(&self, model: ModelId, text: &str) -> bool {
        is_like_id(text) || self.names(model).iter().any(|name| is_same_name(name, text))
    }

    /// The model's first name, or its short id if it has no name.
    pub fn display_name(&self, model: ModelId) -> String {
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

    /// Adds an alias in front of the model's others. Refused, regardless of case, if it is an alias of another model, the
    /// hint of another model alone, or a prefix of another model's id.
    pub fn add_alias(&self, model: ModelId, alias: &str) -> Result<(), ModelError> {
        let alias = parse_alias(alias)?;
        let _guard = self.lock_disk();
        self.require_manifest(model)?;
        let names = self.state().names.get(&model).cloned().unwrap_or_default();
        self.check_alias(&alias, &names, &|other| other == model)?;
        self.rename(model, |names| names.add_alias(&alias))
    }

    /// As [`Catalog::add_alias`], but takes the alias from any other model that has it. A hint of another model no longer
    /// resolves to that model.
    pub fn move_alias(&self, model: ModelId, alias: &str) -> Result<(), ModelError> {
        let alias = parse_alias(alias)?;
        let _guard = self.lock_disk();
        self.require_manifest(model)?;
        self.check_not_id_prefix(&alias, &|other| other == model)?;
        let others = self.aliased(&alias);
        // A crash in between leaves the alias with both models, never with neither.
        self.rename(model, |names| names.add_alias(&alias))?;
        for (other, its) in others.into_iter().filter(|(other, _)| *other != model) {
            self.rename(other, |names| names.remove_aliases(|name| name == its))?;
        }
        Ok(())
    }

    /// Removes an alias: the exact match if there is one, else all that match regardless of case. Hints stay.
    pub fn remove_alias(&self, alias: &str) -> Result<(), ModelError> {
        let alias = clean(alias);
        let _guard = self.lock_disk();
        let mut found = self.aliased(&alias);
        if found.iter().any(|(_, its)| *its == alias) {
            found.retain(|(_, its)| *its == alias);
        }
        if found.is_empty() {
            return Err(ModelError::NoAlias { alias });
        }
        found
            .into_iter()
            .try_for_each(|(model, its)| self.rename(model, |names| names.remove_aliases(|name| name == its)))
    }

    /// Aliases that match regardless of case, with their models, sorted by id.
    fn aliased(&self, alias: &str) -> Vec<(ModelId, String)> {
        let state = self.state();
        let mut found: Vec<(ModelId, String)> = Vec::new();
        for (model, names) in &state.names {
            let its = names.aliases().iter().filter(|its| is_same_name(its, alias));
            found.extend(its.map(|its| (*model, its.clone())));
        }
        found.sort();
        found
    }

    /// Refuses an alias that another model has, or that is the hint of another model and not of the model with these names.
    /// `is_it` says whether a model is, or may be, the one to be named.
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
            None => self.check_not_id_prefix(alias, is_it),
        }
    }

    /// Refuses a prefix of another model's id.
    fn check_not_id_prefix(&self, alias: &str, is_it: &dyn Fn(ModelId) -> bool) -> Result<(), ModelError> {
        let digits = alias.to_ascii_lowercase();
        let begins = |model: ModelId| digits.len() >= MIN_ID_DIGITS && model.to_string().starts_with(&digits);
        match self.first_named(&|model, _| begins(model) && !is_it(model)) {
            Some(model) => Err(ModelError::AliasIsIdPrefix { alias: alias.to_owned(), model }),
            None => Ok(()),
        }
    }

    /// The matching model with the lowest id. The names are copied, since `fits` may access the catalogue.
    fn first_named(&self, fits: &dyn Fn(ModelId, &Names) -> bool) -> Option<ModelId> {
        let known: Vec<(ModelId, Names)> = {
            let state = self.state();
            let names = |id: &ModelId| state.names.get(id).cloned().unwrap_or_default();
            state.models.keys().map(|id| (*id, names(id))).collect()
        };
        known.into_iter().filter(|(model, names)| fits(*model, names)).map(|(model, _)| model).min()
    }

    /// The names that an import gives a model: the host's alias, and the file's name or else `stem` as a hint. Refuses an
    /// alias as [`Catalog::add_alias`] does, for any model with another header, before the weights are read.
    pub(super) fn import_names(
        &self,
        alias: Option<&str>,
        header: &Gguf,
        stem: Option<&str>,
        sharding: &Sharding,
    ) -> Result<Names, ModelError> {
        let own = header.string("general.name").ok().flatten().filter(|name| !clean(name).is_empty());
        let alias = alias.filter(|alias| !alias.trim_matches(' ').is_empty()).map(parse_alias).transpose()?;
        let names = Names::new(alias.as_deref(), own.or(stem));
        let may_be_it = |model| self.manifest(model).is_some_and(|manifest| sharding.is_header_of(&manifest));
        names.aliases().iter().try_for_each(|alias| self.check_alias(alias, &names, &may_be_it))?;
        Ok(names)
    }

    /// Adds an import's names to a known model.
    pub(super) fn add_import_names(&self, model: ModelId, names: &Names) -> Result<(), ModelError> {
        let _guard = self.lock_disk();
        self.require_manifest(model)?;
        let names = self.merged_names(model, names)?;
        self.rename(model, |known| *known = names)
    }

    /// Changes the names of a known model. The caller holds the disk lock.
    fn rename(&self, model: ModelId, change: impl FnOnce(&mut Names)) -> Result<(), ModelError> {
        let known = self.state().names.get(&model).cloned().unwrap_or_default();
        let mut names = known.clone();
        change(&mut names);
        if names == known {
            return Ok(());
        }
        self.layout().prepare(&names.encode())?.persist(&self.layout().names(&model))?;
        self.layout().sync_models()?;
        self.state_mut().names.insert(model, names);
        self.changed();
        Ok(())
    }

    /// Adds a peer's name for a known model as a hint, if the model has none.
    pub fn suggest_name(&self, model: ModelId, hint: &str) -> Result<(), ModelError> {
        let _guard = self.lock_disk();
        self.require_manifest(model)?;
        self.rename(model, |names| names.suggest(hint))
    }

    /// The model's names with `more` added: new aliases come first, and a file's hint replaces a peer's. Refuses an alias of
    /// another model.
    pub(super) fn merged_names(&self, model: ModelId, more: &Names) -> Result<Names, ModelError> {
        let mut names = more.clone();
        if let Some(known) = self.state().names.get(&model) {
            names.merge(known);
        }
        more.aliases().iter().try_for_each(|alias| self.check_alias(alias, &names, &|other| other == model))?;
        Ok(names)
    }

    /// Resolves an id, a name regardless of case, at least eight digits of an id, or a unique prefix of a name.
    pub fn resolve(&self, text: &str) -> Result<ModelId, ModelError> {
        let state = self.state();
        let nameless = Names::default();
        let of = |id: &ModelId| state.names.get(id).unwrap_or(&nameless).named(*id);
        let found = resolve_name(text, state.models.keys().map(of));
        let name = || text.chars().take(limits::NAME).collect();
        match found {
            NameResolution::Model(model) => Ok(model),
            NameResolution::Unknown => {
                let names = state.names.values().flat_map(|names| names.list.iter().map(String::as_str));
                let short = is_short_of_id(text, state.models.keys().copied());
                Err(ModelError::NotFound { name: name(), nearest: nearest(text, names), short })
            }
            NameResolution::Ambiguous(found) => {
                let names = |id: ModelId| matched_name(text, &of(&id)).map(str::to_owned);
                Err(ModelError::ambiguous(name(), &found, names))
            }
        }
    }
}
