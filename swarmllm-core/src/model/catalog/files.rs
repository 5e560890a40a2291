//! Where things lie on disk, and how they get there: written apart, made durable, then renamed. Names of models never
//! become paths, only digests do.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::base::{ModelId, ShardId};
use crate::model::manifest::limits;
use crate::model::{ManifestError, ModelError};
use crate::rt::{create_dir_all, sync_dir};

/// What a manifest's file name ends with.
const MANIFEST_SUFFIX: &str = ".manifest";
/// What the name of a file ends with that says that a model is pinned.
const PIN_SUFFIX: &str = ".pinned";
/// What the name of a file ends with that says by whose word a model's shards are here.
const MARKS_SUFFIX: &str = ".marks";
/// What the name of a file ends with that says what a model is called.
const NAMES_SUFFIX: &str = ".names";
/// What the name of a file that is not complete begins with; whatever has it is removed when a catalogue opens.
const TEMPORARY_PREFIX: &str = "tmp-";
/// What the name of a file of a model that comes from the web begins with.
const COMING_PREFIX: &str = "web-";

/// The catalogue's directories.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    models: PathBuf,
    shards: PathBuf,
    partial: PathBuf,
}

impl Layout {
    /// Makes the directories, and removes what an interrupted import left.
    pub fn create(root: &Path) -> Result<Layout, ModelError> {
        let layout = Layout { models: root.join("models"), shards: root.join("shards"), partial: root.join("partial") };
        for dir in [&layout.models, &layout.shards, &layout.partial] {
            create_dir_all(dir).map_err(ModelError::io("create", dir))?;
        }
        layout.clean()?;
        Ok(layout)
    }

    fn clean(&self) -> Result<(), ModelError> {
        for path in list(&self.partial)? {
            if file_name(&path).starts_with(TEMPORARY_PREFIX) {
                fs::remove_file(&path).map_err(ModelError::io("remove", &path))?;
            }
        }
        Ok(())
    }

    pub fn manifest(&self, model: &ModelId) -> PathBuf {
        self.models.join(format!("{model}{MANIFEST_SUFFIX}"))
    }

    pub fn pin(&self, model: &ModelId) -> PathBuf {
        self.models.join(format!("{model}{PIN_SUFFIX}"))
    }

    pub fn marks(&self, model: &ModelId) -> PathBuf {
        self.models.join(format!("{model}{MARKS_SUFFIX}"))
    }

    pub fn names(&self, model: &ModelId) -> PathBuf {
        self.models.join(format!("{model}{NAMES_SUFFIX}"))
    }

    pub fn shard(&self, shard: &ShardId) -> PathBuf {
        self.shards.join(shard.to_string())
    }

    pub fn partial(&self, shard: &ShardId) -> PathBuf {
        self.partial.join(shard.to_string())
    }

    /// A file of a model that comes from the source with this key.
    pub fn coming(&self, key: &ShardId, part: &str) -> PathBuf {
        self.partial.join(format!("{COMING_PREFIX}{key}-{part}"))
    }

    /// Removes all that came from the source with this key.
    pub fn remove_coming(&self, key: &ShardId) -> Result<(), ModelError> {
        let prefix = format!("{COMING_PREFIX}{key}-");
        for path in list(&self.partial)?.iter().filter(|path| file_name(path).starts_with(&prefix)) {
            fs::remove_file(path).map_err(ModelError::io("remove", path))?;
        }
        Ok(())
    }

    /// Bytes of all shards, those included that are not complete.
    pub fn used(&self) -> Result<u64, ModelError> {
        let mut used = 0u64;
        for path in list(&self.shards)?.into_iter().chain(list(&self.partial)?) {
            // One that was moved or removed meanwhile is counted, or not, by the next look.
            used = used.saturating_add(fs::metadata(&path).map_or(0, |metadata| metadata.len()));
        }
        Ok(used)
    }

    /// The files of transfers that can be gone on with, each with what names its transfer.
    pub fn transfers(&self) -> Result<Vec<(ShardId, PathBuf)>, ModelError> {
        let key = |path: &Path| {
            let name = file_name(path);
            let coming = name.strip_prefix(COMING_PREFIX).and_then(|rest| rest.split('-').next());
            coming.unwrap_or(name).parse().ok()
        };
        Ok(list(&self.partial)?.into_iter().filter_map(|path| Some((key(&path)?, path))).collect())
    }

    /// The manifests that are there, by their names.
    pub fn manifests(&self) -> Result<Vec<(ModelId, PathBuf)>, ModelError> {
        let id = |path: &Path| file_name(path).strip_suffix(MANIFEST_SUFFIX)?.parse().ok();
        Ok(list(&self.models)?.into_iter().filter_map(|path| Some((id(&path)?, path))).collect())
    }

    /// A new file that vanishes unless it is kept.
    pub fn temporary(&self) -> Result<Temporary, ModelError> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let path = self.partial.join(format!("{TEMPORARY_PREFIX}{}-{number}", std::process::id()));
        let file = OpenOptions::new().write(true).create(true).truncate(true).open(&path);
        let file = file.map_err(ModelError::io("create", &path))?;
        Ok(Temporary { path, file: Some(file), lasting: false })
    }

    /// A file that stays where it is not kept, for the next attempt to go on with.
    pub fn lasting(&self, path: PathBuf) -> Result<Temporary, ModelError> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let file = file.map_err(ModelError::io("open", &path))?;
        Ok(Temporary { path, file: Some(file), lasting: true })
    }

    /// A manifest's bytes, durable but not in their place yet.
    pub fn prepare(&self, bytes: &[u8]) -> Result<Temporary, ModelError> {
        let mut temporary = self.temporary()?;
        temporary.write(bytes)?;
        temporary.sync()?;
        Ok(temporary)
    }

    /// Makes renames of shards durable.
    pub fn sync_shards(&self) -> Result<(), ModelError> {
        sync_dir(&self.shards).map_err(ModelError::io("flush", &self.shards))
    }

    /// Makes renames and removals of manifests durable.
    pub fn sync_models(&self) -> Result<(), ModelError> {
        sync_dir(&self.models).map_err(ModelError::io("flush", &self.models))
    }
}

/// A file being written; removed when dropped unless it was kept, or is lasting.
#[derive(Debug)]
pub(super) struct Temporary {
    path: PathBuf,
    file: Option<File>,
    lasting: bool,
}

impl Temporary {
    /// Fills `bytes` with what an earlier attempt left next; false where it left less.
    pub fn read(&mut self, bytes: &mut [u8]) -> Result<bool, ModelError> {
        let Some(file) = &mut self.file else { return Ok(false) };
        match file.read_exact(bytes) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            read => read.map(|()| true).map_err(ModelError::io("read", &self.path)),
        }
    }

    /// Leaves the first `len` bytes; the next are written behind them.
    pub fn cut(&mut self, len: u64) -> Result<(), ModelError> {
        let Some(file) = &mut self.file else { return Ok(()) };
        let cut = file.set_len(len).and_then(|()| file.seek(SeekFrom::Start(len)));
        cut.map(drop).map_err(ModelError::io("shorten", &self.path))
    }

    /// Appends bytes.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), ModelError> {
        #[cfg(test)]
        faults::spend(bytes.len()).map_err(ModelError::io("write", &self.path))?;
        let Some(file) = &mut self.file else { return Ok(()) };
        file.write_all(bytes).map_err(ModelError::io("write", &self.path))
    }

    /// Makes the bytes durable.
    pub fn sync(&mut self) -> Result<(), ModelError> {
        let Some(file) = &self.file else { return Ok(()) };
        #[cfg(test)]
        faults::flush();
        file.sync_all().map_err(ModelError::io("flush", &self.path))
    }

    /// Makes the bytes durable and gives the file its place. The directory is the caller's to flush.
    pub fn keep(mut self, target: &Path) -> Result<(), ModelError> {
        self.sync()?;
        fs::rename(&self.path, target).map_err(ModelError::io("rename to", target))?;
        self.file = None;
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if self.file.take().is_some() && !self.lasting {
            // Nothing more can be done about it here; the next opening tries again.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn list(dir: &Path) -> Result<Vec<PathBuf>, ModelError> {
    let entries = fs::read_dir(dir).map_err(ModelError::io("list", dir))?;
    let mut paths = Vec::new();
    for entry in entries {
        paths.push(entry.map_err(ModelError::io("list", dir))?.path());
    }
    paths.sort();
    Ok(paths)
}

fn file_name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

/// Refuses a manifest that has another id.
pub(super) fn check_id(bytes: &[u8], expect: ModelId) -> Result<(), ManifestError> {
    let found = ModelId(*blake3::hash(bytes).as_bytes());
    if found == expect { Ok(()) } else { Err(ManifestError::WrongId { expected: expect, found }) }
}

/// The bytes of a manifest's file, where it is not too long to be one.
pub(super) fn read_bounded(path: &Path) -> Result<Vec<u8>, ModelError> {
    let len = fs::metadata(path).map_err(ModelError::io("read", path))?.len();
    if len > limits::BYTES as u64 {
        let max = limits::BYTES as u64;
        return Err(ManifestError::Limit { what: "the manifest's length", given: len, max }.into());
    }
    fs::read(path).map_err(ModelError::io("read", path))
}

/// Removes a file if it is there.
pub(super) fn remove_if_there(path: &Path) -> Result<(), ModelError> {
    #[cfg(test)]
    faults::remove().map_err(ModelError::io("remove", path))?;
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(ModelError::io("remove", path)(error)),
        _ => Ok(()),
    }
}

/// A disk that gets full, a process that is killed between removals, and how often a file is flushed, for tests on one thread.
#[cfg(test)]
pub(super) mod faults {
    use std::cell::Cell;
    use std::io;

    thread_local! {
        static LEFT: Cell<Option<usize>> = const { Cell::new(None) };
        static REMOVALS: Cell<Option<usize>> = const { Cell::new(None) };
        static FLUSHES: Cell<usize> = const { Cell::new(0) };
    }

    /// From now on this thread can write so many bytes; `None` for no bound.
    pub fn set_space(bytes: Option<usize>) {
        LEFT.set(bytes);
    }

    /// From now on this thread can remove so many files; `None` for no bound.
    pub fn set_removals(files: Option<usize>) {
        REMOVALS.set(files);
    }

    pub fn remove() -> io::Result<()> {
        match REMOVALS.get().map(|left| left.checked_sub(1)) {
            Some(None) => Err(io::ErrorKind::Interrupted.into()),
            left => {
                REMOVALS.set(left.flatten());
                Ok(())
            }
        }
    }

    pub fn flush() {
        FLUSHES.set(FLUSHES.get() + 1);
    }

    /// How often this thread has flushed a file.
    pub fn flushes() -> usize {
        FLUSHES.get()
    }

    pub fn spend(bytes: usize) -> io::Result<()> {
        match LEFT.get().map(|left| left.checked_sub(bytes)) {
            Some(None) => Err(io::ErrorKind::StorageFull.into()),
            Some(left) => {
                LEFT.set(left);
                Ok(())
            }
            None => Ok(()),
        }
    }
}
