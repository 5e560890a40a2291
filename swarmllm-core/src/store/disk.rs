//! A simulated disk for tests: a file in memory with a limited number of writes.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

use redb::{Database, StorageBackend};

use super::{Store, StoreError};

/// The file; clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct TestDisk {
    inner: Arc<Mutex<Content>>,
}

#[derive(Debug, Default)]
struct Content {
    bytes: Vec<u8>,
    /// The bytes at the last successful sync.
    durable: Vec<u8>,
    /// Writes until the disk is full; `None` for no limit.
    writes_left: Option<usize>,
}

impl TestDisk {
    /// Opens the store on this disk.
    pub fn open(&self) -> Result<Store, StoreError> {
        let disk = self.clone();
        let opener = move || Database::builder().create_with_backend(disk.clone());
        Store::open_with(Path::new("store.redb"), Box::new(opener))
    }

    /// The disk after a power loss now.
    pub fn after_power_loss(&self) -> TestDisk {
        let durable = self.inner.lock().unwrap().durable.clone();
        let content = Content { bytes: durable.clone(), durable, writes_left: None };
        TestDisk { inner: Arc::new(Mutex::new(content)) }
    }

    /// From now on the disk accepts this many writes; `None` for no limit.
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

impl StorageBackend for TestDisk {
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

    /// Counts as a write: a disk may only notice at a sync that it has no space for earlier writes.
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
