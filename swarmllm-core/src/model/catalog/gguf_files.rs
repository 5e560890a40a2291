//! A local GGUF in one file or in parts, read as one file.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use crate::model::ModelError;
use crate::model::gguf::{Gguf, PartJoiner, PartName, PartRanges, SplitError};

/// The files of a model. Positions count through all files.
#[derive(Debug)]
pub(super) struct GgufFiles {
    files: Vec<(File, PathBuf)>,
    places: PartRanges,
}

impl GgufFiles {
    /// Opens the file at `path`, or all parts of its model, and returns the header.
    pub fn open(path: &Path) -> Result<(GgufFiles, Gguf), ModelError> {
        match part_name(path) {
            Some(name) => open_parts(path, &name),
            None => {
                let (file, header) = read(path)?;
                let places = PartRanges::of([header.file_len].into_iter()).ok_or_else(|| too_large(path))?;
                Ok((GgufFiles { files: vec![(file, path.to_owned())], places }, header))
            }
        }
    }

    /// Fills `out` from `position` on. The range must lie in one part.
    pub fn read_exact_at(&mut self, position: u64, out: &mut [u8]) -> Result<(), ModelError> {
        let place = self.places.find(position).and_then(|(part, range)| Some((self.files.get_mut(part)?, range.start)));
        let Some(((file, path), begin)) = place else {
            // Unreachable after the header check.
            return Err(ModelError::io("read", Path::new(""))(std::io::ErrorKind::UnexpectedEof.into()));
        };
        let read = file.seek(SeekFrom::Start(position - begin)).and_then(|_| file.read_exact(out));
        read.map_err(ModelError::io("read", path))
    }
}

/// The file name without `.gguf`, and without the part number if the file is a part.
pub(super) fn stem(path: &Path) -> Option<String> {
    match part_name(path) {
        Some(name) => Some(name.stem().to_owned()),
        None => Some(path.file_stem()?.to_str()?.to_owned()),
    }
}

fn part_name(path: &Path) -> Option<PartName> {
    PartName::parse(path.file_name()?.to_str()?)
}

fn open_parts(given: &Path, name: &PartName) -> Result<(GgufFiles, Gguf), ModelError> {
    let path = |number| given.with_file_name(name.with_number(number));
    let refuse = |path: &Path| {
        let path = path.to_owned();
        move |source| ModelError::Split { path, source }
    };
    let open = |number| {
        let path = path(number);
        match std::fs::symlink_metadata(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Err(ModelError::PartFileMissing { path, number, count: name.count() })
            }
            _ => read(&path).map(|(file, header)| (file, path, header)),
        }
    };
    let (file, first, header) = open(1)?;
    let mut lens = vec![header.file_len];
    let mut join = PartJoiner::new(header, &display_name(&first)).map_err(refuse(&first))?;
    if join.count() != name.count() {
        let (part, found, expected) = (display_name(&first), join.count(), name.count());
        return Err(refuse(&first)(SplitError::Count { part, found, expected }));
    }
    let mut files = vec![(file, first)];
    for number in 2..=name.count() {
        let (file, path, header) = open(number)?;
        lens.push(header.file_len);
        join.add(header, &display_name(&path)).map_err(refuse(&path))?;
        files.push((file, path));
    }
    let header = join.finish().map_err(refuse(given))?;
    let places = PartRanges::of(lens.into_iter()).ok_or_else(|| too_large(given))?;
    Ok((GgufFiles { files, places }, header))
}

fn too_large(path: &Path) -> ModelError {
    ModelError::Split { path: path.to_owned(), source: SplitError::TooLarge { what: "bytes" } }
}

/// The file name, for errors.
fn display_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn read(path: &Path) -> Result<(File, Gguf), ModelError> {
    let mut file = open_regular(path)?;
    let header = Gguf::read(&mut file).map_err(|source| ModelError::Gguf { path: path.to_owned(), source })?;
    Ok((file, header))
}

fn open_regular(path: &Path) -> Result<File, ModelError> {
    // Checked before opening: opening a pipe would wait for a writer.
    let is_file = |path: &Path| std::fs::metadata(path).map(|metadata| metadata.is_file());
    if !is_file(path).map_err(ModelError::io("open", path))? {
        return Err(ModelError::NotAFile { path: path.to_owned() });
    }
    File::open(path).map_err(ModelError::io("open", path))
}
