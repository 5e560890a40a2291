//! The key file of a node: magic, seed, public key; readable by its owner only.
//!
//! The public key detects corruption: a flipped bit in the seed would otherwise silently change the identity.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::{IdentityError, Keypair};

const MAGIC: &[u8; 8] = b"swllmky1";
const PUBLIC_BYTES: usize = 32;
const FILE_BYTES: usize = MAGIC.len() + Keypair::SEED_BYTES + PUBLIC_BYTES;

/// Loads the key at `path`, or creates one that is durable on return.
///
/// An invalid file is an error and is never overwritten. The caller must hold the directory's lock
/// ([`DirLock`](crate::rt::DirLock)): concurrent creation by two processes is not handled here.
pub fn load_or_create(path: &Path) -> Result<Keypair, IdentityError> {
    match File::open(path) {
        Ok(file) => load(file, path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => create(path),
        Err(cause) => Err(fail(path, "opened", cause)),
    }
}

fn fail(path: &Path, act: &'static str, cause: io::Error) -> IdentityError {
    IdentityError::Io { path: path.to_path_buf(), act, cause }
}

fn load(file: File, path: &Path) -> Result<Keypair, IdentityError> {
    let damaged = |reason| IdentityError::Damaged { path: path.to_path_buf(), reason };
    let mut bytes = Zeroizing::new([0u8; FILE_BYTES + 1]);
    let length = read_up_to(&file, bytes.as_mut()).map_err(|cause| fail(path, "read", cause))?;
    if length != FILE_BYTES {
        return Err(damaged("it has the wrong size"));
    }
    let (magic, rest) = bytes[..FILE_BYTES].split_at(MAGIC.len());
    if magic != MAGIC {
        return Err(damaged("it is not a key file"));
    }
    let (seed, public) = rest.split_at(Keypair::SEED_BYTES);
    let mut secret = Zeroizing::new([0u8; Keypair::SEED_BYTES]);
    secret.copy_from_slice(seed);
    let keypair = Keypair::from_seed(&secret);
    if keypair.node_id().as_bytes() != public {
        return Err(damaged("its public key does not match its secret"));
    }
    restrict(&file, path)?;
    Ok(keypair)
}

fn read_up_to(mut file: &File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while let Some(rest) = buffer.get_mut(length..).filter(|rest| !rest.is_empty()) {
        match file.read(rest) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

fn create(path: &Path) -> Result<Keypair, IdentityError> {
    let keypair = Keypair::generate()?;
    let mut bytes = Zeroizing::new(Vec::with_capacity(FILE_BYTES));
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(keypair.seed().as_ref());
    bytes.extend_from_slice(keypair.node_id().as_bytes());
    write(path, &bytes)?;
    Ok(keypair)
}

/// Writes a file readable by its owner only, atomically and durably.
pub fn write(path: &Path, bytes: &[u8]) -> Result<(), IdentityError> {
    let temporary = temporary_beside(path);
    // A leftover of a crash before the rename; unused.
    match fs::remove_file(&temporary) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => return Err(fail(&temporary, "removed", cause)),
        _ => {}
    }
    let written = write_new(&temporary, bytes).and_then(|()| fs::rename(&temporary, path));
    if let Err(cause) = written {
        let _ = fs::remove_file(&temporary);
        return Err(fail(path, "written", cause));
    }
    sync_directory(path).map_err(|cause| fail(path, "made durable", cause))
}

fn temporary_beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".new");
    path.with_file_name(name)
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut options = File::options();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Makes the rename durable. Windows has no equivalent and needs none.
fn sync_directory(path: &Path) -> io::Result<()> {
    #[cfg(unix)]
    if let Some(parent) = path.parent() {
        let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        File::open(parent)?.sync_all()?;
    }
    #[cfg(not(unix))]
    let _ = path;
    Ok(())
}

/// Restricts the permissions, in case a copy or a restore has widened them.
fn restrict(file: &File, path: &Path) -> Result<(), IdentityError> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = file.metadata().map_err(|cause| fail(path, "examined", cause))?.permissions().mode();
        if mode & 0o077 != 0 {
            tracing::warn!(path = %path.display(), "the key file was accessible to other users; restricting it to its owner");
            file.set_permissions(fs::Permissions::from_mode(0o600)).map_err(|cause| fail(path, "restricted", cause))?;
        }
    }
    #[cfg(not(unix))]
    let _ = (file, path);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key_path() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.key");
        (dir, path)
    }

    #[test]
    fn a_key_file_keeps_the_node_id() {
        let (_dir, path) = key_path();
        let created = load_or_create(&path).unwrap();
        assert_eq!(load_or_create(&path).unwrap().node_id(), created.node_id());
        assert!(!temporary_beside(&path).exists());
    }

    #[test]
    fn a_damaged_key_file_is_refused_and_unchanged() {
        let (_dir, path) = key_path();
        load_or_create(&path).unwrap();
        let good = fs::read(&path).unwrap();
        let mut wrong: Vec<Vec<u8>> = (0..good.len()).map(|at| good[..at].to_vec()).collect();
        wrong.push([good.clone(), vec![0]].concat());
        wrong.extend((0..good.len()).map(|at| {
            let mut corrupted = good.clone();
            corrupted[at] ^= 1;
            corrupted
        }));
        for bytes in wrong {
            fs::write(&path, &bytes).unwrap();
            assert!(matches!(load_or_create(&path), Err(IdentityError::Damaged { .. })));
            assert_eq!(fs::read(&path).unwrap(), bytes);
        }
    }

    #[test]
    fn a_leftover_temporary_file_is_replaced() {
        let (_dir, path) = key_path();
        fs::write(temporary_beside(&path), b"half").unwrap();
        load_or_create(&path).unwrap();
        assert_eq!(fs::read(&path).unwrap().len(), FILE_BYTES);
    }

    #[test]
    fn the_error_of_a_missing_directory_has_the_path() {
        let (dir, _) = key_path();
        let path = dir.path().join("absent").join("node.key");
        let error = load_or_create(&path).unwrap_err();
        assert!(matches!(&error, IdentityError::Io { path: named, .. } if *named == path), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn only_the_owner_can_read_the_key() {
        use std::os::unix::fs::PermissionsExt;
        let (_dir, path) = key_path();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        load_or_create(&path).unwrap();
        assert_eq!(mode(&path), 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        load_or_create(&path).unwrap();
        assert_eq!(mode(&path), 0o600);
    }
}
