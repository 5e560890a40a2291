//! The lock of a data directory: one node at a time.

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use crate::base::ErrorKind;

const LOCK_NAME: &str = "lock";

/// An error of [`DirLock::acquire`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DirLockError {
    /// Another node, in this or another process, uses the directory.
    #[error("another node uses the data directory {dir}; give this one a directory of its own")]
    DataDirBusy { dir: PathBuf },
    /// The lock file cannot be created or locked.
    #[error("{path} cannot be locked: {cause}")]
    Io { path: PathBuf, cause: io::Error },
}

impl DirLockError {
    /// The error kind for the API boundaries.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::DataDirBusy { .. } => ErrorKind::DataDirBusy,
            Self::Io { cause, .. } if cause.kind() == io::ErrorKind::StorageFull => ErrorKind::DiskFull,
            Self::Io { .. } => ErrorKind::Io,
        }
    }
}

/// Holds a lock on `<dir>/lock` until dropped. The system releases it at any death of the process.
///
/// The file is not removed: otherwise two nodes could lock two files of the same name.
#[derive(Debug)]
pub struct DirLock {
    dir: PathBuf,
    _file: File,
}

impl DirLock {
    /// Locks `dir`, which must exist. Never waits.
    pub fn acquire(dir: &Path) -> Result<Self, DirLockError> {
        let path = dir.join(LOCK_NAME);
        let open = File::options().read(true).write(true).create(true).truncate(false).open(&path);
        let file = open.map_err(|cause| DirLockError::Io { path: path.clone(), cause })?;
        match file.try_lock() {
            Ok(()) => Ok(Self { dir: dir.to_path_buf(), _file: file }),
            Err(TryLockError::WouldBlock) => Err(DirLockError::DataDirBusy { dir: dir.to_path_buf() }),
            Err(TryLockError::Error(cause)) => Err(DirLockError::Io { path, cause }),
        }
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_locked_by_one_node_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let lock = DirLock::acquire(dir.path()).unwrap();
        let busy = DirLock::acquire(dir.path()).unwrap_err();
        assert!(matches!(&busy, DirLockError::DataDirBusy { dir: named } if named == dir.path()));
        assert_eq!(busy.kind(), ErrorKind::DataDirBusy);
        drop(lock);
        DirLock::acquire(dir.path()).unwrap();
    }

    #[test]
    fn a_missing_directory_is_not_busy() {
        let dir = tempfile::tempdir().unwrap();
        let error = DirLock::acquire(&dir.path().join("absent")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io);
    }
}
