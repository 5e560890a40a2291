//! The file that keeps a node's key: magic, seed, public key; readable by its owner alone.
//!
//! The public key is there to recognise damage: a flipped bit would otherwise be a silent change of identity.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::{IdentityError, Keypair};

const MAGIC: &[u8; 8] = b"swllmky1";
const PUBLIC_BYTES: usize = 32;
const FILE_BYTES: usize = MAGIC.len() + Keypair::SEED_BYTES + PUBLIC_BYTES;

/// The key kept at `path`, or a new one that is durable there before this returns.
///
/// A file that is not a key is an error and is never overwritten. The caller holds the directory's lock
/// ([`DirLock`](crate::rt::DirLock)): two processes creating one key at the same time is not handled here.
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
        return Err(damaged("it does not begin as a key file"));
    }
    let (seed, public) = rest.split_at(Keypair::SEED_BYTES);
    let mut secret = Zeroizing::new([0u8; Keypair::SEED_BYTES]);
    secret.copy_from_slice(seed);
    let keypair = Keypair::from_seed(&secret);
    if keypair.node_id().as_bytes() != public {
        return Err(damaged("its halves do not belong together"));
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

/// Writes a file that only its owner can read, whole and durable, or not at all.
pub fn write(path: &Path, bytes: &[u8]) -> Result<(), IdentityError> {
    let temporary = temporary_beside(path);
    // A leftover of a crash before the rename: nobody has used it.
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

/// Makes the rename itself durable. Windows offers no way and needs none.
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

/// Takes the key from others' eyes where a copy or a restore has made it readable.
fn restrict(file: &File, path: &Path) -> Result<(), IdentityError> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = file.metadata().map_err(|cause| fail(path, "examined", cause))?.permissions().mode();
        if mode & 0o077 != 0 {
            tracing::warn!(path = %path.display(), "the key file was open to others; restricting it to its owner");
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

    fn place() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.key");
        (dir, path)
    }

    #[test]
    fn the_same_file_gives_the_same_node() {
        let (_dir, path) = place();
        let created = load_or_create(&path).unwrap();
        assert_eq!(load_or_create(&path).unwrap().node_id(), created.node_id());
        assert!(!temporary_beside(&path).exists());
    }

    #[test]
    fn a_damaged_key_is_refused_and_left_as_it_is() {
        let (_dir, path) = place();
        load_or_create(&path).unwrap();
        let good = fs::read(&path).unwrap();
        let mut wrong: Vec<Vec<u8>> = (0..good.len()).map(|at| good[..at].to_vec()).collect();
        wrong.push([good.clone(), vec![0]].concat());
        wrong.extend((0..good.len()).map(|at| {
            let mut bent = good.clone();
            bent[at] ^= 1;
            bent
        }));
        for bytes in wrong {
            fs::write(&path, &bytes).unwrap();
            assert!(matches!(load_or_create(&path), Err(IdentityError::Damaged { .. })));
            assert_eq!(fs::read(&path).unwrap(), bytes);
        }
    }

    #[test]
    fn a_leftover_of_a_crash_does_not_prevent_a_new_key() {
        let (_dir, path) = place();
        fs::write(temporary_beside(&path), b"half").unwrap();
        load_or_create(&path).unwrap();
        assert_eq!(fs::read(&path).unwrap().len(), FILE_BYTES);
    }

    #[test]
    fn a_missing_directory_is_an_error_that_names_the_path() {
        let (dir, _) = place();
        let path = dir.path().join("absent").join("node.key");
        let error = load_or_create(&path).unwrap_err();
        assert!(matches!(&error, IdentityError::Io { path: named, .. } if *named == path), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn only_the_owner_can_read_the_key() {
        use std::os::unix::fs::PermissionsExt;
        let (_dir, path) = place();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        load_or_create(&path).unwrap();
        assert_eq!(mode(&path), 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        load_or_create(&path).unwrap();
        assert_eq!(mode(&path), 0o600);
    }
}
