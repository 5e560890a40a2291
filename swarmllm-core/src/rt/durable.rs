//! Directories that survive a power loss: a new name is durable once its parent directory has been synced.

use std::fs::{self, File};
use std::io;
use std::path::Path;

/// Creates a directory and its missing parents; each new one is durable on return. Blocks.
pub fn create_dir_all(dir: &Path) -> io::Result<()> {
    create(dir, &mut sync_dir)
}

/// Makes new, renamed and removed names in a directory durable. Unix only; elsewhere a no-op. Blocks.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    if cfg!(unix) {
        File::open(dir)?.sync_all()?;
    }
    Ok(())
}

fn create(dir: &Path, sync: &mut dyn FnMut(&Path) -> io::Result<()>) -> io::Result<()> {
    if dir.as_os_str().is_empty() || dir.is_dir() {
        return Ok(());
    }
    let parent = dir.parent().unwrap_or(Path::new(""));
    create(parent, sync)?;
    match fs::create_dir(dir) {
        // Created concurrently by another process that may not have synced it yet.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => {}
        made => made?,
    }
    sync(if parent.as_os_str().is_empty() { Path::new(".") } else { parent })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parent_of_each_new_directory_is_synced() {
        let root = tempfile::tempdir().unwrap();
        let (first, second) = (root.path().join("first"), root.path().join("first/second"));
        let made = || [first.is_dir(), second.is_dir()];
        let mut flushed = Vec::new();
        let mut sync = |dir: &Path| {
            flushed.push((dir.to_owned(), made()));
            Ok(())
        };
        create(&second, &mut sync).unwrap();
        create(&second, &mut sync).unwrap();
        assert_eq!(flushed, [(root.path().to_owned(), [true, false]), (first.clone(), [true, true])]);
    }

    #[test]
    fn a_file_in_the_place_of_a_directory_is_an_error() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("file");
        fs::write(&file, b"").unwrap();
        assert!(create_dir_all(&file).is_err());
        assert!(create_dir_all(&file.join("below")).is_err());
        create_dir_all(&root.path().join("new/newer")).unwrap();
        assert!(root.path().join("new/newer").is_dir());
    }
}
