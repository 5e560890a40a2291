//! Directory listings, and deliberate damage to files.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// All files below `dir` with their sizes in bytes.
pub fn sizes(dir: &Path) -> BTreeMap<PathBuf, u64> {
    let mut found = BTreeMap::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).expect("the directory can be listed") {
            let entry = entry.expect("the directory can be listed");
            let kind = entry.file_type().expect("the entry has a type");
            match kind.is_dir() {
                true => dirs.push(entry.path()),
                false => drop(found.insert(entry.path(), entry.metadata().map_or(0, |meta| meta.len()))),
            }
        }
    }
    found
}

/// The shards in a data directory with their sizes, largest first.
pub fn shards(data_dir: &Path) -> Vec<(PathBuf, u64)> {
    let mut shards: Vec<_> = sizes(&data_dir.join("shards")).into_iter().collect();
    shards.sort_by_key(|(_, size)| std::cmp::Reverse(*size));
    shards
}

/// Whether a file has the magic of a GGUF.
pub fn is_gguf(path: &Path) -> bool {
    let mut magic = [0; 4];
    fs::File::open(path).and_then(|mut file| file.read_exact(&mut magic)).is_ok() && &magic == b"GGUF"
}

/// Flips one bit of the byte at `offset`.
pub fn flip(path: &Path, offset: u64) {
    let mut file = fs::OpenOptions::new().read(true).write(true).open(path).expect("the file can be opened");
    let mut byte = [0];
    file.seek(SeekFrom::Start(offset)).expect("the file can be read");
    file.read_exact(&mut byte).expect("the file is longer than the offset");
    file.seek(SeekFrom::Start(offset)).expect("the file can be written");
    file.write_all(&[byte[0] ^ 1]).expect("the file can be written");
}
