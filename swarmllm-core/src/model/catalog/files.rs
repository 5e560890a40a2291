//! Directory layout, and atomic writes: a file is written under a temporary name, flushed, then renamed. Paths contain
//! only digests, never names of models.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::base::{ModelId, ShardId};
use crate::model::manifest::limits;
use crate::model::{ManifestError, ModelError};
use crate::rt::{create_dir_all, sync_dir};

/// Suffix of a manifest file.
const MANIFEST_SUFFIX: &str = ".manifest";
/// Suffix of the empty file that pins a model.
const PIN_SUFFIX: &str = ".pinned";
/// Suffix of the file with the provenance of a model's shards.
const PROVENANCE_SUFFIX: &str = ".marks";
/// Suffix of the file with a model's names.
const NAMES_SUFFIX: &str = ".names";
/// Prefix of incomplete files. Opening a catalogue removes them.
const TEMPORARY_PREFIX: &str = "tmp-";
/// Prefix of the files of a download from the web.
const DOWNLOAD_PREFIX: &str = "web-";

/// The catalogue's directories.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    models: PathBuf,
    shards: PathBuf,
    partial: PathBuf,
}

impl Layout {
    /// Creates the directories and removes leftovers of an interrupted import.
    pub fn create(root: &Path) -> Result<Layout, ModelError> {
        let layout = Layout { models: root.join("models"), shards: root.join("shards"), partial: root.join("partial") };
        for dir in [&layout.models, &layout.shards, &layout.partial] {
            create_dir_all(dir).map_err(ModelError::io("create", dir))?;
        }
        layout.remove_temporary()?;
        Ok(layout)
    }

    fn remove_temporary(&self) -> Result<(), ModelError> {
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

    pub fn provenance(&self, model: &ModelId) -> PathBuf {
        self.models.join(format!("{model}{PROVENANCE_SUFFIX}"))
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

    /// A file of the download with this key.
    pub fn download_file(&self, key: &ShardId, part: &str) -> PathBuf {
        self.partial.join(format!("{DOWNLOAD_PREFIX}{key}-{part}"))
    }

    /// Removes all files of the download with this key.
    pub fn remove_download(&self, key: &ShardId) -> Result<(), ModelError> {
        let prefix = format!("{DOWNLOAD_PREFIX}{key}-");
        for path in list(&self.partial)?.iter().filter(|path| file_name(path).starts_with(&prefix)) {
            fs::remove_file(path).map_err(ModelError::io("remove", path))?;
        }
        Ok(())
    }

    /// Bytes of all shards, including incomplete ones.
    pub fn used(&self) -> Result<u64, ModelError> {
        let mut used = 0u64;
        for path in list(&self.shards)?.into_iter().chain(list(&self.partial)?) {
            // A file that was moved or removed meanwhile may or may not be counted.
            used = used.saturating_add(fs::metadata(&path).map_or(0, |metadata| metadata.len()));
        }
        Ok(used)
    }

    /// The files of resumable transfers, each with the key of its transfer.
    pub fn transfers(&self) -> Result<Vec<(ShardId, PathBuf)>, ModelError> {
        let key = |path: &Path| {
            let name = file_name(path);
            let key = name.strip_prefix(DOWNLOAD_PREFIX).and_then(|rest| rest.split('-').next());
            key.unwrap_or(name).parse().ok()
        };
        Ok(list(&self.partial)?.into_iter().filter_map(|path| Some((key(&path)?, path))).collect())
    }

    /// All manifests, by the id in their file name.
    pub fn manifests(&self) -> Result<Vec<(ModelId, PathBuf)>, ModelError> {
        let id = |path: &Path| file_name(path).strip_suffix(MANIFEST_SUFFIX)?.parse().ok();
        Ok(list(&self.models)?.into_iter().filter_map(|path| Some((id(&path)?, path))).collect())
    }

    /// A new file, removed on drop unless it is persisted.
    pub fn temporary(&self) -> Result<PendingFile, ModelError> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let path = self.partial.join(format!("{TEMPORARY_PREFIX}{}-{number}", std::process::id()));
        let file = OpenOptions::new().write(true).create(true).truncate(true).open(&path);
        let file = file.map_err(ModelError::io("create", &path))?;
        Ok(PendingFile { path, file: Some(file), resumable: false })
    }

    /// A file that stays when it is dropped, for the next attempt to resume.
    pub fn resumable(&self, path: PathBuf) -> Result<PendingFile, ModelError> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let file = file.map_err(ModelError::io("open", &path))?;
        Ok(PendingFile { path, file: Some(file), resumable: true })
    }

    /// Writes these bytes to a temporary file and flushes it.
    pub fn prepare(&self, bytes: &[u8]) -> Result<PendingFile, ModelError> {
        let mut temporary = self.temporary()?;
        temporary.write(bytes)?;
        temporary.sync()?;
        Ok(temporary)
    }

    /// Makes renames of shards durable.
    pub fn sync_shards(&self) -> Result<(), ModelError> {
        sync_dir(&self.shards).map_err(ModelError::io("flush", &self.shards))
    }

    /// Makes renames and removals in the models directory durable.
    pub fn sync_models(&self) -> Result<(), ModelError> {
        sync_dir(&self.models).map_err(ModelError::io("flush", &self.models))
    }
}

/// A file that is being written. Dropping it removes it, unless it was persisted or is resumable.
#[derive(Debug)]
pub(super) struct PendingFile {
    path: PathBuf,
    file: Option<File>,
    resumable: bool,
}

impl PendingFile {
    /// Fills `bytes` from the current position; false if fewer bytes are left.
    pub fn read(&mut self, bytes: &mut [u8]) -> Result<bool, ModelError> {
        let Some(file) = &mut self.file else { return Ok(false) };
        match file.read_exact(bytes) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            read => read.map(|()| true).map_err(ModelError::io("read", &self.path)),
        }
    }

    /// Truncates the file to `len` bytes; the next write appends there.
    pub fn truncate(&mut self, len: u64) -> Result<(), ModelError> {
        let Some(file) = &mut self.file else { return Ok(()) };
        let truncated = file.set_len(len).and_then(|()| file.seek(SeekFrom::Start(len)));
        truncated.map(drop).map_err(ModelError::io("shorten", &self.path))
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

    /// Makes the bytes durable and renames the file to `target`. The caller flushes the directory.
    pub fn persist(mut self, target: &Path) -> Result<(), ModelError> {
        self.sync()?;
        fs::rename(&self.path, target).map_err(ModelError::io("rename to", target))?;
        self.file = None;
        Ok(())
    }
}

impl Drop for PendingFile {
    fn drop(&mut self) {
        if self.file.take().is_some() && !self.resumable {
            // A failure is ignored; the next opening tries again.
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

/// Refuses a manifest with another id.
pub(super) fn check_id(bytes: &[u8], expect: ModelId) -> Result<(), ManifestError> {
    let found = ModelId(*blake3::hash(bytes).as_bytes());
    if found == expect { Ok(()) } else { Err(ManifestError::WrongId { expected: expect, found }) }
}

/// Reads a manifest file, unless it is too long.
pub(super) fn read_bounded(path: &Path) -> Result<Vec<u8>, ModelError> {
    let len = fs::metadata(path).map_err(ModelError::io("read", path))?.len();
    if len > limits::BYTES as u64 {
        let max = limits::BYTES as u64;
        return Err(ManifestError::Limit { what: "the manifest's length", given: len, max }.into());
    }
    fs::read(path).map_err(ModelError::io("read", path))
}

/// Removes a file if it exists.
pub(super) fn remove_if_exists(path: &Path) -> Result<(), ModelError> {
    #[cfg(test)]
    faults::remove().map_err(ModelError::io("remove", path))?;
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(ModelError::io("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Fault injection for tests on one thread: a disk that fills up, a crash between removals, and a count of flushes.
#[cfg(test)]
pub(super) mod faults {
    use std::cell::Cell;
    use std::io;

    thread_local! {
        static LEFT: Cell<Option<usize>> = const { Cell::new(None) };
        static REMOVALS: Cell<Option<usize>> = const { Cell::new(None) };
        static FLUSHES: Cell<usize> = const { Cell::new(0) };
    }

    /// From now on this thread can write at most this many bytes; `None` for no limit.
    pub fn set_space(bytes: Option<usize>) {
        LEFT.set(bytes);
    }

    /// From now on this thread can remove at most this many files; `None` for no limit.
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
