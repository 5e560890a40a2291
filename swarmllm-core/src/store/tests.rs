use std::path::PathBuf;

use tempfile::TempDir;

use super::*;

const SWARM: Hash = Hash([5; 32]);

fn place() -> (TempDir, PathBuf) {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("below").join("store.redb");
    (dir, path)
}

fn peer(number: u64, seen: u64, addresses: &[&str]) -> PeerRecord {
    let mut node = [0; 32];
    node[..8].copy_from_slice(&number.to_le_bytes());
    let addresses = addresses.iter().map(|address| (*address).to_owned()).collect();
    PeerRecord { node: NodeId(node), addresses, last_seen_ms: seen }
}

#[test]
fn stored_peers_survive_reopening() {
    let (_dir, path) = place();
    let store = Store::open(&path).unwrap();
    store.remember_peers(&SWARM, &[peer(1, 10, &["/x"]), peer(2, 20, &[])]).unwrap();
    drop(store);
    let store = Store::open(&path).unwrap();
    assert_eq!(store.peers(&SWARM).unwrap(), [peer(2, 20, &[]), peer(1, 10, &["/x"])]);
    assert!(store.forget_peer(&SWARM, peer(1, 0, &[]).node).unwrap());
    assert_eq!(store.peers(&SWARM).unwrap(), [peer(2, 20, &[])]);
}

#[test]
fn addresses_are_merged_newest_first_and_bounded() {
    let (_dir, path) = place();
    let store = Store::open(&path).unwrap();
    store.remember_peers(&SWARM, &[peer(1, 20, &["/a", "/b"])]).unwrap();
    store.remember_peers(&SWARM, &[peer(1, 10, &["/c", "/a", "/c"])]).unwrap();
    assert_eq!(store.peers(&SWARM).unwrap(), [peer(1, 20, &["/c", "/a", "/b"])]);
    let many: Vec<String> = (0..40).map(|number| format!("/{number}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let long = "/".repeat(limits::ADDRESS + 1);
    store.remember_peers(&SWARM, &[peer(1, 30, &many), peer(2, 5, &[&long, "/short"])]).unwrap();
    let peers = store.peers(&SWARM).unwrap();
    assert_eq!(peers[0].addresses, many[..limits::ADDRESSES]);
    assert_eq!(peers[1].addresses, ["/short"]);
}

#[test]
fn the_least_recently_seen_peers_are_evicted() {
    let (_dir, path) = place();
    let store = Store::open(&path).unwrap();
    let all: Vec<PeerRecord> = (0..limits::PEERS + 10).map(|number| peer(number, number, &[])).collect();
    store.remember_peers(&SWARM, &all).unwrap();
    let peers = store.peers(&SWARM).unwrap();
    assert_eq!(peers.len() as u64, limits::PEERS);
    assert_eq!(peers.iter().map(|peer| peer.last_seen_ms).min(), Some(10));
}

#[test]
fn an_accounts_last_value_survives_reopening() {
    let (_dir, path) = place();
    let store = Store::open(&path).unwrap();
    store.put_account(&[1; 96], b"first").unwrap();
    store.put_account(&[2; 96], b"other").unwrap();
    store.put_account(&[1; 96], b"second").unwrap();
    drop(store);
    let accounts = Store::open(&path).unwrap().accounts().unwrap();
    assert_eq!(accounts, [([1; 96], b"second".to_vec()), ([2; 96], b"other".to_vec())]);
}

#[test]
fn a_version_1_store_gains_accounts_and_drops_its_peers() {
    let (_dir, path) = place();
    let store = Store::open(&path).unwrap();
    let older = |transaction: &WriteTransaction| {
        transaction.delete_table(ACCOUNTS)?;
        transaction.delete_table(PEERS)?;
        transaction.open_table(tables::PEERS_V1)?.insert(&[1; 32], &[0xff; 3][..])?;
        migrate::set_version(transaction, 1)
    };
    store.write(older).unwrap();
    drop(store);
    let store = Store::open(&path).unwrap();
    assert_eq!((store.peers(&SWARM).unwrap().len(), store.accounts().unwrap().len()), (0, 0));
    store.remember_peers(&SWARM, &[peer(1, 10, &["/x"])]).unwrap();
    assert_eq!(store.peers(&SWARM).unwrap().len(), 1);
}

fn speed(number: u64, seen_ms: u64) -> SpeedRecord {
    SpeedRecord { model: ModelId([3; 32]), node: peer(number, 0, &[]).node, ns_per_unit: 10 + number, seen_ms }
}

#[test]
fn speeds_survive_reopening_except_old_and_excess_ones() {
    let (_dir, path) = place();
    let store = Store::open(&path).unwrap();
    store.put_speeds(&[speed(1, 100), speed(2, 200)], 0).unwrap();
    store.put_speeds(&[speed(3, 300)], 150).unwrap();
    drop(store);
    let store = Store::open(&path).unwrap();
    assert_eq!(store.speeds().unwrap(), [speed(2, 200), speed(3, 300)]);
    let many: Vec<SpeedRecord> = (10..10 + limits::SPEEDS).map(|number| speed(number, 1000)).collect();
    store.put_speeds(&many, 0).unwrap();
    let kept = store.speeds().unwrap();
    assert_eq!((kept.len() as u64, kept.iter().map(|speed| speed.seen_ms).min()), (limits::SPEEDS, Some(1000)));
}

#[test]
fn a_version_2_store_gains_speeds_and_keeps_the_rest() {
    let (_dir, path) = place();
    let store = Store::open(&path).unwrap();
    store.remember_peers(&SWARM, &[peer(1, 10, &["/x"])]).unwrap();
    let older = |transaction: &WriteTransaction| {
        transaction.delete_table(SPEEDS)?;
        migrate::set_version(transaction, 2)
    };
    store.write(older).unwrap();
    drop(store);
    let store = Store::open(&path).unwrap();
    assert_eq!((store.speeds().unwrap().len(), store.peers(&SWARM).unwrap().len()), (0, 1));
}

#[test]
fn peers_of_other_swarms_are_not_listed() {
    let (_dir, path) = place();
    let store = Store::open(&path).unwrap();
    let other = Hash([6; 32]);
    store.remember_peers(&SWARM, &[peer(1, 10, &["/x"]), peer(u64::MAX, 5, &["/y"])]).unwrap();
    store.remember_peers(&other, &[peer(1, 20, &["/z"])]).unwrap();
    assert_eq!(store.peers(&SWARM).unwrap(), [peer(1, 10, &["/x"]), peer(u64::MAX, 5, &["/y"])]);
    assert_eq!(store.peers(&other).unwrap(), [peer(1, 20, &["/z"])]);
}

#[test]
fn a_store_in_use_is_reported_as_such() {
    let (_dir, path) = place();
    let store = Store::open(&path).unwrap();
    let error = Store::open(&path).unwrap_err();
    assert!(matches!(error, StoreError::InUse { .. }), "{error}");
    assert_eq!(error.kind(), ErrorKind::DataDirBusy);
    drop(store);
    assert!(Store::open(&path).is_ok());
}

#[test]
fn a_store_of_a_newer_build_is_refused_and_unchanged() {
    let (_dir, path) = place();
    let store = Store::open(&path).unwrap();
    store.write(|transaction| migrate::set_version(transaction, migrate::VERSION + 1)).unwrap();
    drop(store);
    for _ in 0..2 {
        let error = Store::open(&path).unwrap_err();
        assert!(matches!(error, StoreError::Newer { found: 4, known: 3, .. }), "{error}");
        assert_eq!(error.kind(), ErrorKind::StoreDamaged);
    }
}

#[test]
fn a_file_that_is_not_a_store_is_refused_and_unchanged() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("store.redb");
    for bytes in [&b"short"[..], &[7; 4096], &[0; 100_000]] {
        fs::write(&path, bytes).unwrap();
        let error = Store::open(&path).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::StoreDamaged, "{error}");
        assert_eq!(fs::read(&path).unwrap(), bytes);
    }
    let error = Store::open(dir.path()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io, "{error}");
}

#[test]
fn an_unreadable_peer_row_is_skipped() {
    let (_dir, path) = place();
    let store = Store::open(&path).unwrap();
    store.remember_peers(&SWARM, &[peer(1, 10, &["/x"])]).unwrap();
    let spoil = |transaction: &WriteTransaction| {
        transaction.open_table(PEERS)?.insert(&peer_key(&SWARM, peer(2, 0, &[]).node), &[0xff; 3][..])?;
        Ok(())
    };
    store.write(spoil).unwrap();
    assert_eq!(store.peers(&SWARM).unwrap(), [peer(1, 10, &["/x"])]);
    store.remember_peers(&SWARM, &[peer(2, 20, &["/y"])]).unwrap();
    assert_eq!(store.peers(&SWARM).unwrap().len(), 2);
}

#[test]
fn a_full_disk_is_reported_and_the_store_recovers() {
    let mut failed = 0;
    for writes in 0.. {
        let disk = disk::TestDisk::default();
        let store = disk.open().unwrap();
        store.put_account(&[1; 96], b"before").unwrap();
        disk.allow(Some(writes));
        let changed = store.put_account(&[1; 96], b"after");
        if changed.is_ok() {
            break;
        }
        for error in [changed.unwrap_err(), store.put_account(&[1; 96], b"after").unwrap_err()] {
            assert_eq!(error.kind(), ErrorKind::DiskFull, "at write {writes}: {error}");
            assert!(!error.to_string().contains("damaged"), "{error}");
        }
        disk.allow(None);
        let kept = store.account(&[1; 96]).unwrap().expect("the acknowledged account exists");
        assert!(kept == b"before" || kept == b"after", "at write {writes}");
        store.put_account(&[2; 96], b"later").unwrap();
        drop(store);
        assert_eq!(disk.open().unwrap().accounts().unwrap().len(), 2, "at write {writes}");
        failed += 1;
    }
    assert!(failed > 2, "a change takes several writes");
}

#[test]
fn a_half_created_store_is_created_anew() {
    let (_dir, path) = place();
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path.with_extension("redb.new"), [0; 5000]).unwrap();
    Store::open(&path).unwrap().put_account(&[1; 96], b"kept").unwrap();
    assert!(!path.with_extension("redb.new").exists());
    assert_eq!(Store::open(&path).unwrap().accounts().unwrap().len(), 1);
}

#[test]
fn the_error_of_a_damaged_store_names_its_content() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("store.redb");
    fs::write(&path, [7; 4096]).unwrap();
    let told = Store::open(&path).unwrap_err().to_string();
    assert!(told.contains("accounts") && told.contains("copy") && !told.contains("move it away"), "{told}");
}
