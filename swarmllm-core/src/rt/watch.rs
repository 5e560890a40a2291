//! A value with one writer and many readers. Readers see complete versions; neither side blocks.

use std::sync::Arc;

use tokio::sync::watch;

/// The reading side; clones share the value.
#[derive(Debug)]
pub struct WatchReader<T> {
    receiver: watch::Receiver<Arc<T>>,
}

/// The single writer; not `Clone`.
#[derive(Debug)]
pub struct WatchWriter<T> {
    sender: watch::Sender<Arc<T>>,
}

impl<T> WatchReader<T> {
    /// A value and its writer.
    pub fn new(value: T) -> (WatchWriter<T>, WatchReader<T>) {
        let (sender, receiver) = watch::channel(Arc::new(value));
        (WatchWriter { sender }, WatchReader { receiver })
    }

    /// The newest version.
    pub fn get(&self) -> Arc<T> {
        self.receiver.borrow().clone()
    }

    /// Marks the current version as seen: [`changed`](Self::changed) waits for the next one.
    pub fn pass(&mut self) {
        self.receiver.mark_unchanged();
    }

    /// Waits for a version that this reader has not seen through `changed`; `None` after the writer is dropped. Cancel-safe.
    pub async fn changed(&mut self) -> Option<Arc<T>> {
        self.receiver.changed().await.ok()?;
        Some(self.receiver.borrow_and_update().clone())
    }
}

impl<T> Clone for WatchReader<T> {
    fn clone(&self) -> Self {
        Self { receiver: self.receiver.clone() }
    }
}

impl<T> WatchWriter<T> {
    /// Replaces the value.
    pub fn set(&mut self, value: T) {
        self.sender.send_replace(Arc::new(value));
    }

    /// Replaces the value with the result of `change`.
    pub fn update(&mut self, change: impl FnOnce(&T) -> T) {
        let next = change(&self.sender.borrow());
        self.set(next);
    }

    /// Another reader.
    pub fn watch(&self) -> WatchReader<T> {
        WatchReader { receiver: self.sender.subscribe() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn readers_see_whole_versions_and_the_end() {
        let (mut writer, mut reader) = WatchReader::new(vec![1]);
        let old = reader.get();
        writer.update(|list| [list.as_slice(), &[2]].concat());
        assert_eq!(*old, [1], "a version does not change");
        assert_eq!(*reader.changed().await.unwrap(), [1, 2]);
        drop(writer);
        assert_eq!(reader.changed().await, None);
        assert_eq!(*reader.get(), [1, 2]);
    }
}
