//! What models are called here: the host's aliases, and what their files or peers suggest.
//!
//! Names lie beside a manifest in a file of lines, `=` before an alias and `~` before a hint. They are never part of the
//! model: the file is replaced as a whole, and without it the model only loses what it is called.

use std::fs;
use std::path::Path;

use crate::base::ModelId;
use crate::base::names::{Named, is_same, visible};
use crate::model::ModelError;
use crate::model::manifest::limits;

/// Names of one model. Beyond that the alias that was given first goes.
pub const MAX_NAMES: usize = 16;
/// Bytes of a file of names: a sign, the name and an end of line for each.
const MAX_BYTES: u64 = (MAX_NAMES * (limits::NAME + 2)) as u64;
/// What a line with an alias begins with.
const ALIAS: char = '=';
/// What a line with a hint begins with.
const HINT: char = '~';

/// The names of a model: aliases, the newest first, then hints.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Names {
    pub(super) list: Vec<String>,
    given: usize,
}

impl Names {
    /// Names that an import has for a model: an alias that the host gave, and what the file suggests. Both are cleaned.
    pub fn new(alias: Option<&str>, hint: Option<&str>) -> Names {
        let mut names = Names::default();
        hint.into_iter().for_each(|hint| names.suggest(hint));
        alias.into_iter().for_each(|alias| names.give(alias));
        names
    }

    /// Aliases, the newest first, then hints that are no alias too: one that is taken away again leaves what the file suggests.
    pub fn all(&self) -> Vec<String> {
        let hints = self.hints().iter().filter(|hint| !self.aliases().contains(hint));
        self.aliases().iter().chain(hints).cloned().collect()
    }

    /// Those that the host gave, the newest first.
    pub fn aliases(&self) -> &[String] {
        self.list.get(..self.given).unwrap_or(&self.list)
    }

    /// Those that its file or a peer suggests.
    fn hints(&self) -> &[String] {
        self.list.get(self.given..).unwrap_or_default()
    }

    /// Whether its file or a peer calls the model so.
    pub(super) fn suggests(&self, name: &str) -> bool {
        self.hints().iter().any(|hint| is_same(hint, name))
    }

    /// Takes away the aliases of which this is true.
    pub(super) fn take_back(&mut self, goes: impl Fn(&str) -> bool) {
        let before = self.given;
        let mut index = 0;
        self.list.retain(|name| {
            let goes = index < before && goes(name);
            (index, self.given) = (index + 1, self.given - usize::from(goes));
            !goes
        });
    }

    pub(super) fn named(&self, id: ModelId) -> Named<'_> {
        Named { id, names: &self.list, given: self.given }
    }

    /// Adds an alias in front of the others. One that is the same but for its case goes, since names are matched without
    /// case; what a file suggests stays as it is written there. A name that is empty once it is cleaned is passed over.
    pub(super) fn give(&mut self, name: &str) {
        let name = clean(name);
        if name.is_empty() {
            return;
        }
        self.take_back(|known| is_same(known, &name));
        self.list.insert(0, name);
        self.given += 1;
        self.bound();
    }

    /// Adds a hint where the model has none yet.
    pub(super) fn suggest(&mut self, name: &str) {
        let name = clean(name);
        if !name.is_empty() && self.list.len() == self.given {
            self.list.push(name);
            self.bound();
        }
    }

    fn bound(&mut self) {
        while self.list.len() > MAX_NAMES {
            // More than one is there, so one of them is an alias.
            self.given = self.given.saturating_sub(1);
            self.list.remove(self.given);
        }
    }

    /// Adds the names of `other` behind these.
    pub(super) fn merge(&mut self, other: &Names) {
        for (index, name) in other.list.iter().enumerate() {
            match index < other.given {
                true if !self.aliases().iter().any(|known| is_same(known, name)) => {
                    self.list.insert(self.given, name.clone());
                    self.given += 1;
                    self.bound();
                }
                true => {}
                false => self.suggest(name),
            }
        }
    }

    /// What lies on the disk; nothing where there is none.
    pub(super) fn read(path: &Path) -> Result<Names, ModelError> {
        let len = match fs::metadata(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Names::default()),
            found => found.map_err(ModelError::io("read", path))?.len(),
        };
        // A longer file is not ours. What is damaged costs names and no model.
        let bytes = match len <= MAX_BYTES {
            true => fs::read(path).map_err(ModelError::io("read", path))?,
            false => Vec::new(),
        };
        let mut names = Names::default();
        for line in String::from_utf8_lossy(&bytes).lines().rev() {
            match (line.strip_prefix(ALIAS), line.strip_prefix(HINT)) {
                (Some(alias), _) => names.give(alias),
                (None, Some(hint)) => names.suggest(hint),
                (None, None) => {}
            }
        }
        Ok(names)
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let sign = |index| if index < self.given { ALIAS } else { HINT };
        let lines = self.list.iter().enumerate().map(|(index, name)| format!("{}{name}\n", sign(index)));
        lines.collect::<String>().into_bytes()
    }
}

/// Text that can be seen, of at most [`limits::NAME`] bytes, with single blanks.
pub(super) fn clean(name: &str) -> String {
    let mut clean = visible(name);
    while clean.len() > limits::NAME {
        clean.pop();
    }
    clean.trim_end().to_owned()
}
