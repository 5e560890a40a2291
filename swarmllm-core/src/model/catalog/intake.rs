//! Import from a source that gives ranges of a GGUF, asked for one group after another. It does no IO but on the disk:
//! whoever fetches asks what is wanted next, and gives it.
//!
//! What came is kept when an attempt ends early. Of each group the log has the leaf, and the next attempt counts what
//! is in the log and, for shards that are kept, in their files too; so a killed process fetches at most one group again.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;

use super::budget::Reservation;
use super::files::Temporary;
use super::growing::Growing;
use super::log::Log;
use super::names::Names;
use super::{Catalog, Claim};
use crate::base::{ModelId, Progress, ShardId};
use crate::model::gguf::Gguf;
use crate::model::manifest::{Cut, Piece};
use crate::model::shard::groups;
use crate::model::{Manifest, ModelError, ShardKind};

/// A source of which ranges can be had.
#[derive(Debug, Clone)]
pub struct Origin {
    /// What errors call it.
    pub shown: String,
    /// Names it; attempts of one key are attempts at the same source, and only one runs at a time.
    pub key: [u8; 32],
    /// Names its bytes as they are now: another version has another.
    pub version: [u8; 32],
    /// Bytes of the file.
    pub len: u64,
}

impl Origin {
    fn path(&self) -> PathBuf {
        PathBuf::from(&self.shown)
    }
}

/// The beginning of a file, up to where its header is whole.
#[derive(Debug)]
pub struct HeadIntake {
    claim: Claim,
    origin: Origin,
    log: Log,
    growing: Growing,
    bytes: Vec<u8>,
}

impl Catalog {
    /// Begins or resumes the import of a file from elsewhere. Blocks on what an earlier attempt left.
    pub fn intake(&self, origin: Origin) -> Result<HeadIntake, ModelError> {
        let key = ShardId(origin.key);
        let claim = Claim::new(self, key)?;
        let path = |part| self.layout().coming(&key, part);
        let log = Log::open(self.layout().lasting(path("log"))?, origin.version)?;
        if log.after(0).is_empty() {
            // Whatever else lies there is of another version.
            drop(log);
            self.layout().remove_coming(&key)?;
        }
        let log = Log::open(self.layout().lasting(path("log"))?, origin.version)?;
        let head = path("head");
        let growing = Growing::resume(Some(self.layout().lasting(head.clone())?), origin.len, Some(log.after(0)))?;
        let bytes = std::fs::read(&head).map_err(ModelError::io("read", &head))?;
        Ok(HeadIntake { claim, origin, log, growing, bytes })
    }
}

impl HeadIntake {
    /// The header, where it is whole; `None` where [`HeadIntake::write`] has to be given more.
    pub fn header(&mut self) -> Result<Option<Gguf>, ModelError> {
        let header = Gguf::read_prefix(&self.bytes, self.origin.len);
        let header = header.map_err(|source| ModelError::Gguf { path: self.origin.path(), source })?;
        if header.is_none() {
            // Damage on the disk can leave less of the header than the log has beyond it.
            self.log.cut(self.growing.next_group() as usize)?;
        }
        Ok(header)
    }

    /// What is wanted next of the file.
    pub fn next(&self) -> Piece {
        Piece { at: 0, position: self.growing.here(), len: self.growing.next_len() as usize }
    }

    /// Takes that.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), ModelError> {
        let leaf = self.growing.write(bytes)?;
        self.bytes.extend_from_slice(bytes);
        self.log.push(leaf)
    }

    /// Bytes that came with the header and are not of it, and where in the file they begin.
    pub fn tail(&self, header: &Gguf) -> (u64, Bytes) {
        header.behind(&self.bytes)
    }

    /// The known model that a file may be of by its header. `None` where there are several, which only their weights tell
    /// apart.
    pub fn known(&self, cut: &Cut) -> Option<Arc<Manifest>> {
        let models = self.claim.catalog.models();
        let mut found = models.into_iter().map(|(_, manifest)| manifest).filter(|manifest| cut.is_header_of(manifest));
        found.next().filter(|_| found.next().is_none())
    }

    /// Ends the import of a model that is known, of which all that is wanted is held. `name` and `stem` as in
    /// [`HeadIntake::cut`].
    pub fn finish_known(
        self,
        model: ModelId,
        (header, cut): (&Gguf, &Cut),
        name: Option<&str>,
        stem: Option<&str>,
    ) -> Result<(), ModelError> {
        let HeadIntake { claim, log, growing, .. } = self;
        let names = claim.catalog.names_for(name, header, stem, cut)?;
        claim.catalog.name_imported(model, &names)?;
        drop((log, growing));
        claim.catalog.layout().remove_coming(&claim.key)
    }

    /// Refuses an alias that is another model's, before anything but the header has come.
    pub fn check_alias(
        &self,
        (header, cut): (&Gguf, &Cut),
        name: Option<&str>,
        stem: Option<&str>,
    ) -> Result<(), ModelError> {
        self.claim.catalog.names_for(name, header, stem, cut).map(drop)
    }

    /// Cuts the model that the header describes, and goes on with what of it an earlier attempt left. Refuses what
    /// would go beyond the catalogue's bound. `name` is an alias, what the file calls
    /// itself, or else `stem`, a hint.
    pub fn cut(
        self,
        header: &Gguf,
        name: Option<&str>,
        stem: Option<&str>,
        keep: impl Fn(ShardKind) -> bool,
    ) -> Result<Intake, ModelError> {
        let HeadIntake { claim, origin, log, growing, .. } = self;
        let cut = Cut::new(header).map_err(|source| ModelError::Cut { path: origin.path(), source })?;
        let keeps: Vec<bool> = cut.manifest.shards.iter().map(|shard| keep(shard.kind)).collect();
        let mut intake = Intake {
            names: claim.catalog.names_for(name, header, stem, &cut)?,
            claim,
            base: growing.next_group() as usize,
            log,
            cut,
            keeps,
            done: Vec::new(),
            current: None,
            reserved: None,
        };
        intake.reserve()?;
        intake.advance()?;
        Ok(intake)
    }
}

/// The shards of a model, taken one after another.
#[derive(Debug)]
pub struct Intake {
    claim: Claim,
    names: Names,
    log: Log,
    cut: Cut,
    /// Which shards are kept.
    keeps: Vec<bool>,
    /// Complete shards, with the files of those that are kept.
    done: Vec<(ShardId, Option<Temporary>)>,
    current: Option<Growing>,
    /// Entries of the log before those of the current shard.
    base: usize,
    reserved: Option<Reservation>,
}

impl Intake {
    /// How the file is cut; ids of shards are not known yet.
    pub fn plan(&self) -> &Cut {
        &self.cut
    }

    /// The pieces of the next group and its length; `None` where all is here.
    pub fn next(&self) -> Option<(Vec<Piece>, usize)> {
        let current = self.current.as_ref()?;
        // A group is at most 1 MiB.
        Some((self.cut.pieces(self.done.len(), current.next_group()), current.next_len() as usize))
    }

    /// Takes that group.
    pub fn write(&mut self, group: &[u8]) -> Result<(), ModelError> {
        let Some(current) = &mut self.current else { return Ok(()) };
        let leaf = current.write(group)?;
        let kept = self.keeps.get(self.done.len()).is_some_and(|kept| *kept);
        if let Some(reserved) = self.reserved.as_mut().filter(|_| kept) {
            reserved.spend(group.len() as u64);
        }
        self.log.push(leaf)?;
        self.advance()
    }

    /// How much is here, of what has to come.
    pub fn progress(&self) -> Progress {
        let sizes = || self.cut.manifest.shards.iter().map(|shard| shard.size);
        let here = self.current.as_ref().map_or(0, Growing::here);
        Progress { done: sizes().take(self.done.len()).sum::<u64>() + here, total: sizes().sum() }
    }

    /// Puts the model into the catalogue.
    pub fn finish(self) -> Result<ModelId, ModelError> {
        let Intake { claim, names, mut cut, done, log, reserved, .. } = self;
        for (shard, (id, _)) in cut.manifest.shards.iter_mut().zip(&done) {
            shard.id = *id;
        }
        let written = done.into_iter().filter_map(|(id, file)| Some((id, file?))).collect();
        let model = claim.catalog.place(written, cut.manifest, &names)?;
        drop((log, reserved));
        claim.catalog.layout().remove_coming(&claim.key)?;
        Ok(model)
    }

    /// Moves on to the first shard that is not complete.
    fn advance(&mut self) -> Result<(), ModelError> {
        loop {
            if let Some(current) = self.current.take() {
                if current.next_len() > 0 {
                    self.current = Some(current);
                    return Ok(());
                }
                self.base += current.next_group() as usize;
                self.done.push(current.finish());
            }
            let index = self.done.len();
            let (Some(shard), Some(keep)) = (self.cut.manifest.shards.get(index), self.keeps.get(index)) else {
                return Ok(());
            };
            let layout = self.claim.catalog.layout();
            let file = keep.then(|| layout.lasting(layout.coming(&self.claim.key, &index.to_string()))).transpose()?;
            if shard.kind == ShardKind::Metadata {
                self.done.push(metadata(file, &self.cut.metadata)?);
                continue;
            }
            let known = self.log.after(self.base);
            let known = known.get(..groups(shard.size) as usize).unwrap_or(known);
            let growing = Growing::resume(file, shard.size, Some(known))?;
            if growing.next_len() > 0 {
                // What comes after it in the log cannot be gone on with.
                self.log.cut(self.base + growing.next_group() as usize)?;
            }
            self.current = Some(growing);
        }
    }

    /// Asks for the room that the shards to be kept will take, beyond what is here of them.
    fn reserve(&mut self) -> Result<(), ModelError> {
        let layout = self.claim.catalog.layout();
        let mut needed = 0u64;
        for (index, (shard, _)) in
            self.cut.manifest.shards.iter().zip(&self.keeps).enumerate().filter(|(_, (_, keep))| **keep)
        {
            let path = layout.coming(&self.claim.key, &index.to_string());
            let here = std::fs::metadata(path).map_or(0, |metadata| metadata.len());
            needed = needed.saturating_add(shard.size.saturating_sub(here));
        }
        self.reserved = Some(self.claim.catalog.reserve(needed)?);
        Ok(())
    }
}

/// The metadata shard, which is made of the header and comes first.
fn metadata(file: Option<Temporary>, bytes: &[u8]) -> Result<(ShardId, Option<Temporary>), ModelError> {
    let mut growing = Growing::resume(file, bytes.len() as u64, Some(&[]))?;
    let (group, mut left) = (crate::model::shard::GROUP as usize, bytes);
    while !left.is_empty() {
        let (now, later) = left.split_at(left.len().min(group));
        growing.write(now)?;
        left = later;
    }
    Ok(growing.finish())
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::super::files::faults;
    use super::*;
    use crate::base::ErrorKind;
    use crate::model::Fact;
    use crate::model::gguf::tests::{file, tensor};
    use crate::model::shard::GROUP;

    /// A model whose header has two groups and a bit.
    fn wordy() -> Vec<u8> {
        let words: Vec<String> = (0..150_000).map(|number| format!("word{number}")).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let facts = [
            Fact::string("general.architecture", "llama"),
            Fact::u32("llama.block_count", 1),
            Fact::u32("llama.context_length", 64),
            Fact::u32("llama.embedding_length", 8),
            Fact::strings("tokenizer.ggml.tokens", &words),
        ];
        let tensors = [
            tensor("token_embd.weight", &[8, 16], 0, 1),
            tensor("blk.0.ffn_up.weight", &[8, 40 * 1024], 0, 2),
            tensor("output_norm.weight", &[8], 0, 3),
        ];
        file(&facts, &tensors, 32)
    }

    /// One attempt at the whole; `fetched` counts what it asks for.
    fn attempt(catalog: &Catalog, bytes: &[u8], fetched: &mut usize) -> Result<ModelId, ModelError> {
        let len = bytes.len() as u64;
        let mut intake = catalog.intake(Origin { shown: "web".to_owned(), key: [1; 32], version: [2; 32], len })?;
        let mut take = |piece: &Piece| {
            *fetched += piece.len;
            bytes[piece.position as usize..][..piece.len].to_vec()
        };
        let header = loop {
            if let Some(header) = intake.header()? {
                break header;
            }
            let piece = intake.next();
            intake.write(&take(&piece))?;
        };
        let mut intake = intake.cut(&header, None, Some("wordy"), |_| true)?;
        while let Some((pieces, len)) = intake.next() {
            let mut group = vec![0; len];
            for piece in pieces {
                group[piece.at..][..piece.len].copy_from_slice(&take(&piece));
            }
            intake.write(&group)?;
        }
        intake.finish()
    }

    #[test]
    fn a_disk_that_is_full_again_and_again_loses_at_most_a_group_each_time() {
        let bytes = wordy();
        let (here, there) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        let local = Catalog::open(there.path()).unwrap();
        let path = there.path().join("wordy.gguf");
        std::fs::write(&path, &bytes).unwrap();
        let model = local.import(&path, None, &mut |_| {}).unwrap();
        let catalog = Catalog::open(here.path()).unwrap();
        let (mut fetched, mut attempts) = (0, 0);
        let found = loop {
            // Room for a group and its entry in the log, and for what is made anew each time: metadata and manifest.
            faults::set_space(Some(4 * GROUP as usize + 5000));
            let done = attempt(&catalog, &bytes, &mut fetched);
            faults::set_space(None);
            attempts += 1;
            match done {
                Ok(model) => break model,
                Err(error) => assert_eq!(error.kind(), ErrorKind::DiskFull, "{error}"),
            }
            assert!(catalog.models().is_empty() && attempts < 20);
        };
        assert!(found == model && attempts > 1);
        assert!(fetched <= bytes.len() + attempts * GROUP as usize, "{fetched} in {attempts}");
        assert_eq!(catalog.verify(model).unwrap(), []);
        assert_eq!(std::fs::read_dir(here.path().join("partial")).unwrap().count(), 0);
    }

    #[test]
    fn one_attempt_at_a_source_runs_at_a_time() {
        let dir = TempDir::new().unwrap();
        let catalog = Catalog::open(dir.path()).unwrap();
        let origin = Origin { shown: "web".to_owned(), key: [1; 32], version: [2; 32], len: 9 };
        let first = catalog.intake(origin.clone()).unwrap();
        assert!(matches!(catalog.intake(origin.clone()), Err(ModelError::Busy { .. })));
        drop(first);
        assert!(catalog.intake(origin).is_ok());
    }
}
