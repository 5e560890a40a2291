//! Interrupted transfers: their partial files are kept for a week, or until their space is needed.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use super::{Catalog, Claim, remove_if_exists};
use crate::base::ShardId;
use crate::model::ModelError;

/// Age at which an interrupted transfer is removed.
const STALE_AFTER: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// The files of a transfer: a partial shard, or a download from the web.
struct Transfer {
    key: ShardId,
    paths: Vec<PathBuf>,
    bytes: u64,
    /// Time of the last write.
    touched: SystemTime,
}

impl Catalog {
    /// Removes stale transfers. A timestamp in the future counts as fresh: the clock was set back.
    pub(super) fn remove_stale_transfers(&self, now: SystemTime) -> Result<(), ModelError> {
        let long = |transfer: &Transfer| now.duration_since(transfer.touched).is_ok_and(|age| age > STALE_AFTER);
        self.idle_transfers(&HashSet::new())?
            .iter()
            .filter(|transfer| long(transfer))
            .try_for_each(|transfer| self.remove_transfer(transfer))
    }

    /// Bytes of all idle transfers, except the awaited ones.
    pub(super) fn idle_transfer_bytes(&self, awaited: &HashSet<ShardId>) -> Result<u64, ModelError> {
        Ok(self.idle_transfers(awaited)?.iter().map(|transfer| transfer.bytes).fold(0, u64::saturating_add))
    }

    /// Removes idle transfers, oldest first, until `bytes` are freed.
    pub(super) fn remove_idle_transfers(&self, bytes: u64, awaited: &HashSet<ShardId>) -> Result<(), ModelError> {
        let mut freed = 0u64;
        for transfer in self.idle_transfers(awaited)?.iter().filter(|transfer| transfer.bytes > 0) {
            if freed >= bytes {
                break;
            }
            self.remove_transfer(transfer)?;
            freed = freed.saturating_add(transfer.bytes);
        }
        Ok(())
    }

    /// Transfers without a writer, except the awaited ones, oldest first.
    fn idle_transfers(&self, awaited: &HashSet<ShardId>) -> Result<Vec<Transfer>, ModelError> {
        let mut transfers: BTreeMap<ShardId, Transfer> = BTreeMap::new();
        for (key, path) in self.layout().transfers()? {
            // Moved or removed meanwhile.
            let Ok(metadata) = fs::metadata(&path) else { continue };
            // On a system without modification times nothing is old.
            let touched = metadata.modified().unwrap_or_else(|_| SystemTime::now());
            let empty = Transfer { key, paths: Vec::new(), bytes: 0, touched };
            let transfer = transfers.entry(key).or_insert(empty);
            transfer.paths.push(path);
            transfer.bytes = transfer.bytes.saturating_add(metadata.len());
            transfer.touched = transfer.touched.max(touched);
        }
        let writing = self.writing();
        let is_idle = |transfer: &Transfer| !writing.contains(&transfer.key) && !awaited.contains(&transfer.key);
        let mut idle: Vec<Transfer> = transfers.into_values().filter(is_idle).collect();
        idle.sort_by_key(|transfer| transfer.touched);
        Ok(idle)
    }

    fn remove_transfer(&self, transfer: &Transfer) -> Result<(), ModelError> {
        // A writer may have resumed it since it was listed.
        let Ok(_claim) = Claim::new(self, transfer.key) else { return Ok(()) };
        transfer.paths.iter().try_for_each(|path| remove_if_exists(path))
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use tempfile::TempDir;

    use super::*;
    use crate::base::ModelId;
    use crate::model::manifest::tests::small_model;
    use crate::model::{ShardEntry, ShardKind};

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    /// A catalogue with a bound that knows a model, holds nothing of it and has partial files.
    struct Bench {
        dir: TempDir,
        catalog: Catalog,
        model: ModelId,
    }

    impl Bench {
        fn new(max: u64) -> Bench {
            let (from, dir) = (TempDir::new().unwrap(), TempDir::new().unwrap());
            let path = from.path().join("model.gguf");
            fs::write(&path, small_model("small", 3, false, true, 1)).unwrap();
            let source = Catalog::open(&from.path().join("data")).unwrap();
            let model = source.import(&path, None, &mut |_| {}).unwrap();
            let catalog = Catalog::open_within(dir.path(), Some(max)).unwrap();
            catalog.add_manifest(&source.manifest(model).unwrap().encode(), model).unwrap();
            Bench { dir, catalog, model }
        }

        fn shard(&self, layer: u32) -> ShardEntry {
            self.catalog.manifest(self.model).unwrap().shard(ShardKind::Layer(layer)).unwrap().clone()
        }

        /// Leaves a partial file whose last write was `days` ago, or lies in the future if negative.
        fn leave(&self, name: &str, bytes: usize, days: i64) -> PathBuf {
            let path = self.dir.path().join("partial").join(name);
            fs::write(&path, vec![7; bytes]).unwrap();
            let apart = DAY * days.unsigned_abs() as u32;
            let now = SystemTime::now();
            let when = if days < 0 { now + apart } else { now - apart };
            File::options().append(true).open(&path).unwrap().set_modified(when).unwrap();
            path
        }

        fn of(&self, layer: u32, bytes: usize, days: i64) -> PathBuf {
            self.leave(&self.shard(layer).id.to_string(), bytes, days)
        }

        fn web(&self, key: u8, part: &str, bytes: usize, days: i64) -> PathBuf {
            self.leave(&format!("web-{}-{part}", ShardId([key; 32])), bytes, days)
        }
    }

    #[test]
    fn opening_removes_transfers_older_than_a_week() {
        let bench = Bench::new(1000);
        let gone = [bench.of(0, 10, 8), bench.web(1, "log", 5, 9), bench.web(1, "0", 5, 30)];
        // The newest file of a download counts; a clock may be set back.
        let kept = [
            bench.of(1, 10, 6),
            bench.of(2, 10, -400),
            bench.web(2, "0", 5, 30),
            bench.web(2, "log", 5, 1),
            bench.leave("notes.txt", 5, 100),
        ];
        let _again = Catalog::open(bench.dir.path()).unwrap();
        assert!(gone.iter().all(|path| !path.exists()));
        assert!(kept.iter().all(|path| path.exists()));
    }

    #[test]
    fn the_oldest_transfers_go_first_and_no_more_than_necessary() {
        let bench = Bench::new(100);
        let [old, mid, new] = [bench.web(1, "log", 30, 3), bench.of(0, 30, 2), bench.of(1, 30, 1)];
        assert!(bench.catalog.reserve(10).is_ok() && old.exists());
        assert!(matches!(bench.catalog.reserve(101), Err(ModelError::Budget { .. })));
        assert!(old.exists(), "a refused reservation removes nothing");
        let held = bench.catalog.reserve(40).unwrap();
        assert_eq!([&old, &mid, &new].map(|path| path.exists()), [false, true, true]);
        assert_eq!(bench.catalog.make_room(20, &|_| false).unwrap(), []);
        assert_eq!([&mid, &new].map(|path| path.exists()), [false, true]);
        drop(held);
    }

    #[test]
    fn active_and_awaited_transfers_stay() {
        const MAX: u64 = 1 << 20;
        let bench = Bench::new(MAX);
        let [written, waited, idle] = [bench.of(0, 30, 60), bench.of(1, 30, 60), bench.of(2, 30, 60)];
        let writer = bench.catalog.whole_writer(&bench.shard(0)).unwrap();
        let pull = bench.catalog.reserve_shards(&[bench.shard(1)]).unwrap();
        let free = MAX - bench.catalog.layout().used().unwrap() - (bench.shard(1).size - 30);
        assert!(matches!(bench.catalog.reserve(free + 31), Err(ModelError::Budget { .. })));
        let rest = bench.catalog.reserve(free + 30).unwrap();
        assert_eq!([&written, &waited, &idle].map(|path| path.exists()), [true, true, false]);
        drop((rest, pull, writer));
        bench.catalog.remove_stale_transfers(SystemTime::now()).unwrap();
        assert!(!waited.exists());
    }
}
