//! Names of a model on this node: the host's aliases, and the hint from its file or a peer.
//!
//! Names lie beside the manifest in a file of lines, `=` before an alias and `~` before a hint. They are not part of the
//! model. The file is replaced atomically; losing it only loses the names.

use std::fs;
use std::path::Path;

use crate::base::ModelId;
use crate::base::names::{NamedModel, is_same_name, visible};
use crate::model::ModelError;
use crate::model::manifest::limits;

/// Most names of a model. Beyond that the oldest alias is dropped.
pub const MAX_NAMES: usize = 16;
/// Bytes of a names file: a sign, the name and a line feed for each.
const MAX_BYTES: u64 = (MAX_NAMES * (limits::NAME + 2)) as u64;
/// Start of a line with an alias.
const ALIAS: char = '=';
/// Start of a line with a hint.
const HINT: char = '~';

/// The names of a model: aliases, newest first, then hints.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Names {
    pub(super) list: Vec<String>,
    alias_count: usize,
}

impl Names {
    /// The names from an import: the host's alias and the file's hint. Both are cleaned.
    pub fn new(alias: Option<&str>, hint: Option<&str>) -> Names {
        let mut names = Names::default();
        hint.into_iter().for_each(|hint| names.suggest(hint));
        alias.into_iter().for_each(|alias| names.add_alias(alias));
        names
    }

    /// Aliases, newest first, then hints that are not also aliases. After the alias is removed, its hint remains.
    pub fn all(&self) -> Vec<String> {
        let hints = self.hints().iter().filter(|hint| !self.aliases().contains(hint));
        self.aliases().iter().chain(hints).cloned().collect()
    }

    /// Aliases, newest first.
    pub fn aliases(&self) -> &[String] {
        self.list.get(..self.alias_count).unwrap_or(&self.list)
    }

    /// Hints from the file or a peer.
    fn hints(&self) -> &[String] {
        self.list.get(self.alias_count..).unwrap_or_default()
    }

    /// Whether a hint matches, regardless of case.
    pub(super) fn suggests(&self, name: &str) -> bool {
        self.hints().iter().any(|hint| is_same_name(hint, name))
    }

    /// Removes the aliases for which `goes` returns true.
    pub(super) fn remove_aliases(&mut self, goes: impl Fn(&str) -> bool) {
        let before = self.alias_count;
        let mut index = 0;
        self.list.retain(|name| {
            let goes = index < before && goes(name);
            (index, self.alias_count) = (index + 1, self.alias_count - usize::from(goes));
            !goes
        });
    }

    pub(super) fn named(&self, id: ModelId) -> NamedModel<'_> {
        NamedModel { id, names: &self.list, alias_count: self.alias_count }
    }

    /// Adds an alias in front of the others. It replaces an alias that differs only in case, since names match regardless of
    /// case; a hint keeps its spelling. A name that is empty after cleaning is ignored.
    pub(super) fn add_alias(&mut self, name: &str) {
        let name = clean(name);
        if name.is_empty() {
            return;
        }
        self.remove_aliases(|known| is_same_name(known, &name));
        self.list.insert(0, name);
        self.alias_count += 1;
        self.enforce_limit();
    }

    /// Adds a hint if the model has none.
    pub(super) fn suggest(&mut self, name: &str) {
        let name = clean(name);
        if !name.is_empty() && self.list.len() == self.alias_count {
            self.list.push(name);
            self.enforce_limit();
        }
    }

    fn enforce_limit(&mut self) {
        while self.list.len() > MAX_NAMES {
            // At least one of them is an alias, since there is at most one hint.
            self.alias_count = self.alias_count.saturating_sub(1);
            self.list.remove(self.alias_count);
        }
    }

    /// Appends the names of `other`.
    pub(super) fn merge(&mut self, other: &Names) {
        for (index, name) in other.list.iter().enumerate() {
            match index < other.alias_count {
                true if !self.aliases().iter().any(|known| is_same_name(known, name)) => {
                    self.list.insert(self.alias_count, name.clone());
                    self.alias_count += 1;
                    self.enforce_limit();
                }
                true => {}
                false => self.suggest(name),
            }
        }
    }

    /// Reads the file; empty if there is none.
    pub(super) fn read(path: &Path) -> Result<Names, ModelError> {
        let len = match fs::metadata(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Names::default()),
            found => found.map_err(ModelError::io("read", path))?.len(),
        };
        // A longer file is not valid. Damage costs names, never a model.
        let bytes = match len <= MAX_BYTES {
            true => fs::read(path).map_err(ModelError::io("read", path))?,
            false => Vec::new(),
        };
        let mut names = Names::default();
        for line in String::from_utf8_lossy(&bytes).lines().rev() {
            match (line.strip_prefix(ALIAS), line.strip_prefix(HINT)) {
                (Some(alias), _) => names.add_alias(alias),
                (None, Some(hint)) => names.suggest(hint),
                (None, None) => {}
            }
        }
        Ok(names)
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let sign = |index| if index < self.alias_count { ALIAS } else { HINT };
        let lines = self.list.iter().enumerate().map(|(index, name)| format!("{}{name}\n", sign(index)));
        lines.collect::<String>().into_bytes()
    }
}

/// Visible text of at most [`limits::NAME`] bytes with single spaces.
pub(super) fn clean(name: &str) -> String {
    let mut clean = visible(name);
    clean.truncate(clean.floor_char_boundary(limits::NAME));
    clean.trim_end().to_owned()
}
