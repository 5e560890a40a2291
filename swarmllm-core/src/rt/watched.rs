//! A value with one writer and any number of readers, who see whole versions and never wait for one another.

use std::sync::Arc;

use tokio::sync::watch;

/// The reading side; clones see the same value.
#[derive(Debug)]
pub struct Watched<T> {
    receiver: watch::Receiver<Arc<T>>,
}

/// The one writer. Not `Clone`: who may write is decided once.
#[derive(Debug)]
pub struct WatchedWriter<T> {
    sender: watch::Sender<Arc<T>>,
}

impl<T> Watched<T> {
    /// A value and its writer.
    pub fn new(value: T) -> (WatchedWriter<T>, Watched<T>) {
        let (sender, receiver) = watch::channel(Arc::new(value));
        (WatchedWriter { sender }, Watched { receiver })
    }

    /// The newest version.
    pub fn get(&self) -> Arc<T> {
        self.receiver.borrow().clone()
    }

    /// Passes over the version that stands: [`changed`](Self::changed) waits for the next one.
    pub fn pass(&mut self) {
        self.receiver.mark_unchanged();
    }

    /// Waits for a version that this reader has not been given by `changed` yet; `None` when the writer is gone.
    /// Cancel-safe.
    pub async fn changed(&mut self) -> Option<Arc<T>> {
        self.receiver.changed().await.ok()?;
        Some(self.receiver.borrow_and_update().clone())
    }
}

impl<T> Clone for Watched<T> {
    fn clone(&self) -> Self {
        Self { receiver: self.receiver.clone() }
    }
}

impl<T> WatchedWriter<T> {
    /// Replaces the value.
    pub fn set(&mut self, value: T) {
        self.sender.send_replace(Arc::new(value));
    }

    /// Replaces the value by one made from it.
    pub fn update(&mut self, change: impl FnOnce(&T) -> T) {
        let next = change(&self.sender.borrow());
        self.set(next);
    }

    /// Another reader.
    pub fn watch(&self) -> Watched<T> {
        Watched { receiver: self.sender.subscribe() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn readers_see_whole_versions_and_the_end() {
        let (mut writer, mut reader) = Watched::new(vec![1]);
        let old = reader.get();
        writer.update(|list| [list.as_slice(), &[2]].concat());
        assert_eq!(*old, [1], "a version that was taken does not change");
        assert_eq!(*reader.changed().await.unwrap(), [1, 2]);
        drop(writer);
        assert_eq!(reader.changed().await, None);
        assert_eq!(*reader.get(), [1, 2]);
    }
}
