//! A whole GGUF that lies here until it is cut, from a source that gives no parts of it.

use std::path::PathBuf;

use super::Catalog;
use super::budget::Reservation;
use super::files::Temporary;
use crate::base::{ModelId, Progress};
use crate::model::gguf::Gguf;
use crate::model::{ModelError, ShardKind};

/// The file as it comes. Gone when dropped.
#[derive(Debug)]
pub struct Spool {
    catalog: Catalog,
    shown: String,
    file: Temporary,
    /// Bytes that are here, and that the file is said to have.
    here: u64,
    len: u64,
    state: State,
}

#[derive(Debug)]
enum State {
    /// The header is not whole; all that is here.
    Head(Vec<u8>),
    /// Where the last tensor ends. What may come behind it nobody needs.
    Body { end: u64, reserved: Reservation },
}

impl Catalog {
    /// Begins to take a file of `len` bytes; errors call it what `shown` says.
    pub fn spool(&self, shown: String, len: u64) -> Result<Spool, ModelError> {
        let file = self.layout().temporary()?;
        Ok(Spool { catalog: self.clone(), shown, file, here: 0, len, state: State::Head(Vec::new()) })
    }
}

impl Spool {
    /// How many bytes more are needed; as long as the header is not whole, at most all.
    pub fn wants(&self) -> u64 {
        let end = match &self.state {
            State::Head(_) => self.len,
            State::Body { end, .. } => *end,
        };
        end.saturating_sub(self.here)
    }

    /// How much is here.
    pub fn progress(&self) -> Progress {
        Progress { done: self.here, total: self.here.saturating_add(self.wants()) }
    }

    /// Takes what comes next. Refuses what is no model as soon as that is plain, and one that would go beyond the
    /// catalogue's bound.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), ModelError> {
        self.here = self.here.saturating_add(bytes.len() as u64);
        match &mut self.state {
            State::Body { reserved, .. } => {
                self.file.write(bytes)?;
                reserved.spend(bytes.len() as u64);
            }
            State::Head(head) => {
                head.extend_from_slice(bytes);
                let path = PathBuf::from(&self.shown);
                let header = Gguf::read_prefix(head, self.len);
                let Some(header) = header.map_err(|source| ModelError::Gguf { path, source })? else { return Ok(()) };
                let ends = header.tensors.iter().map(|tensor| tensor.offset.saturating_add(tensor.size));
                let end = header.data_offset.saturating_add(ends.max().unwrap_or(0));
                let mut reserved = self.catalog.reserve(end)?;
                self.file.write(head)?;
                reserved.spend(self.here);
                self.state = State::Body { end, reserved };
            }
        }
        Ok(())
    }

    /// Imports the file as one that lies here.
    pub fn finish(
        self,
        name: Option<&str>,
        stem: Option<&str>,
        keep: &dyn Fn(ShardKind) -> bool,
    ) -> Result<ModelId, ModelError> {
        self.catalog.import_file(self.file.path(), (name, stem), keep, &mut |_| {})
    }
}
