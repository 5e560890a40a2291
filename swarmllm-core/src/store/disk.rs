//! A disk that gets full, for tests: a file in memory whose writes can be counted.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

use redb::{Database, StorageBackend};

use super::{Store, StoreError};

/// The file; clones are the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct Disk {
    inner: Arc<Mutex<Content>>,
}

#[derive(Debug, Default)]
struct Content {
    bytes: Vec<u8>,
    /// What was there when the disk last said that all of it is durable.
    durable: Vec<u8>,
    /// Writes until the disk is full; it has room where there is no number.
    writes_left: Option<usize>,
}

impl Disk {
    /// Opens the store that lies here.
    pub fn open(&self) -> Result<Store, StoreError> {
        let disk = self.clone();
        let opener = move || Database::builder().create_with_backend(disk.clone());
        Store::open_with(Path::new("store.redb"), Box::new(opener))
    }

    /// What a disk that loses its power now has afterwards.
    pub fn after_power_loss(&self) -> Disk {
        let durable = self.inner.lock().unwrap().durable.clone();
        let content = Content { bytes: durable.clone(), durable, writes_left: None };
        Disk { inner: Arc::new(Mutex::new(content)) }
    }

    /// From now on so many writes are taken; all where there is no number.
    pub fn allow(&self, writes: Option<usize>) {
        self.inner.lock().unwrap().writes_left = writes;
    }
}

impl Content {
    fn spend(&mut self) -> io::Result<()> {
        match &mut self.writes_left {
            Some(0) => Err(io::ErrorKind::StorageFull.into()),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.inner.lock().unwrap().bytes.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let content = self.inner.lock().unwrap();
        let bytes = content.bytes.get(offset as usize..).and_then(|bytes| bytes.get(..out.len()));
        out.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut content = self.inner.lock().unwrap();
        if len > content.bytes.len() as u64 {
            content.spend()?;
        }
        content.bytes.resize(len as usize, 0);
        Ok(())
    }

    /// Counts as a write: a disk may find out that it has no room for what it took before.
    fn sync_data(&self) -> io::Result<()> {
        let mut content = self.inner.lock().unwrap();
        content.spend()?;
        content.durable = content.bytes.clone();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut content = self.inner.lock().unwrap();
        content.spend()?;
        content.bytes[offset as usize..][..data.len()].copy_from_slice(data);
        Ok(())
    }
}
