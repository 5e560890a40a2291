//! Downloads from good, faulty and lost servers: tiny files over loopback.

mod known;
mod parts;
mod server;

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::error::WebError;
use super::*;
use crate::base::{ErrorKind, LayerRange, Progress};
use crate::model::catalog::Catalog;
use crate::model::gguf::tests::{file, tensor};
use crate::model::shard::GROUP;
use crate::model::{Fact, ShardKind};
use crate::node::api::request::Parts;
use crate::node::{Node, Preset};
use server::{Answer, Asked, Server, Then};

const MIB: usize = GROUP as usize;
/// Layers of the tiny model; each takes one and a quarter groups.
const LAYERS: u32 = 4;

/// A model of some MiB, with its head first, as some writers place it.
fn tiny(seed: u64) -> Vec<u8> {
    let facts = [
        Fact::string("general.architecture", "llama"),
        Fact::u32("llama.block_count", LAYERS),
        Fact::u32("llama.context_length", 64),
        Fact::u32("llama.embedding_length", 8),
    ];
    let mut tensors = vec![
        tensor("output_norm.weight", &[7], 0, seed),
        tensor("token_embd.weight", &[8, 36 * 1024], 0, seed + 1),
        tensor("output.weight", &[8, 36 * 1024], 0, seed + 2),
    ];
    for layer in 0..LAYERS {
        let part = |name: &str, dims: &[u64], number: u64| {
            tensor(&format!("blk.{layer}.{name}.weight"), dims, 0, seed + 10 + u64::from(layer) * 2 + number)
        };
        tensors.extend([part("attn_norm", &[7], 0), part("ffn_up", &[8, 40 * 1024], 1)]);
    }
    file(&facts, &tensors, 32)
}

struct Bench {
    dir: TempDir,
    catalog: Catalog,
}

impl Bench {
    fn new() -> Bench {
        Bench::within(None)
    }

    fn within(max_bytes: Option<u64>) -> Bench {
        let dir = TempDir::new().unwrap();
        let catalog = Catalog::open_within(&dir.path().join("data"), max_bytes).unwrap();
        Bench { dir, catalog }
    }

    /// The same data directory in a new process.
    fn reopen(self) -> Bench {
        let catalog = Catalog::open(&self.dir.path().join("data")).unwrap();
        Bench { catalog, ..self }
    }

    fn local(&self, bytes: &[u8]) -> ModelId {
        let path = self.dir.path().join("tiny.gguf");
        fs::write(&path, bytes).unwrap();
        self.catalog.import(&path, None, &mut |_| {}).unwrap()
    }

    async fn import(&self, source: impl Into<WebSource>) -> Result<ModelId, WebError> {
        self.import_with(source, &ImportOptions::default()).await
    }

    async fn import_with(&self, source: impl Into<WebSource>, options: &ImportOptions) -> Result<ModelId, WebError> {
        import::import(&self.catalog, client(source)?, options, &Examination::none()).await
    }

    /// Names of files and their bytes.
    fn files(&self, part: &str) -> Vec<(String, Vec<u8>)> {
        let entries = fs::read_dir(self.dir.path().join("data").join(part)).unwrap().map(|entry| entry.unwrap().path());
        let mut files: Vec<(String, Vec<u8>)> = entries
            .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(path).unwrap()))
            .collect();
        files.sort();
        files
    }
}

fn short_timeouts() -> Timeouts {
    let (stall, group) = (Duration::from_millis(400), Duration::from_millis(1500));
    Timeouts { stall, group, retries: 3, pause: Duration::from_millis(1) }
}

fn client(source: impl Into<WebSource>) -> Result<Client, WebError> {
    Client::new(&source.into(), Arc::default(), short_timeouts())
}

/// Asserts that the result equals a local import shard by shard, without other files.
fn assert_like_local(bench: &Bench, model: ModelId, bytes: &[u8]) {
    let local = Bench::new();
    assert_eq!(local.local(bytes), model);
    assert!(local.files("shards") == bench.files("shards"), "the shards differ");
    assert_eq!(bench.files("partial"), []);
    assert_eq!(bench.catalog.verify(model).unwrap(), []);
}

#[tokio::test]
async fn a_download_gives_the_same_model_as_the_local_file() {
    let bytes = tiny(1);
    let server = Server::good(bytes.clone()).await;
    let bench = Bench::new();
    let reports = Arc::new(Mutex::new(Vec::new()));
    let seen = reports.clone();
    let progress: crate::node::ProgressFn = Arc::new(move |progress: Progress| seen.lock().unwrap().push(progress));
    let options = ImportOptions { progress: Some(progress), ..ImportOptions::default() };
    let model = bench.import_with(server.url().as_str(), &options).await.unwrap();
    assert_like_local(&bench, model, &bytes);
    let reports = reports.lock().unwrap();
    assert!(reports.windows(2).all(|pair| pair[0].done < pair[1].done));
    assert!(reports.last().is_some_and(|last| last.done == last.total));
    // The first byte, the header, then as few requests as the order of shards allows; no byte is sent twice.
    assert!(server.asked().len() <= 6, "{:?}", server.asked());
    assert!(server.bytes_asked(1) <= bytes.len(), "{} of {}", server.bytes_asked(1), bytes.len());
}

#[tokio::test]
async fn a_partial_import_has_the_same_model_id() {
    let bytes = tiny(1);
    let server = Server::good(bytes.clone()).await;
    let bench = Bench::new();
    let parts = Some(vec![Parts::Stage { layers: LayerRange::new(1, 3), head: false }]);
    let options = ImportOptions { parts, ..ImportOptions::default() };
    let model = bench.import_with(server.url().as_str(), &options).await.unwrap();
    assert_eq!(model, Bench::new().local(&bytes));
    assert_eq!((bench.files("shards").len(), bench.files("partial")), (2, vec![]));
    assert_eq!(bench.catalog.holding(model).layers, [LayerRange::new(1, 3)]);
}

#[tokio::test]
async fn a_lost_connection_resumes_after_the_last_byte() {
    let bytes = tiny(1);
    let file = bytes.clone();
    // Each response ends after 300,000 bytes.
    let server = Server::start(move |asked| Answer::of(&file, asked).cut(300_000, Then::Close)).await;
    let bench = Bench::new();
    let model = bench.import(server.url()).await.unwrap();
    assert_like_local(&bench, model, &bytes);
    let asked = server.asked();
    assert!(asked.len() > bytes.len() / 300_000);
    for pair in asked[1..].windows(2) {
        let (before, next) = (pair[0].range().unwrap(), pair[1].range().unwrap());
        assert!(next.start == (before.start + 300_000).min(before.end) || next.start != before.start, "{pair:?}");
        assert_eq!(pair[0].header("if-range"), Some("\"one\""));
        assert_eq!(pair[0].header("accept-encoding"), Some("identity"));
    }
}

#[tokio::test]
async fn retries_of_a_lost_server_are_bounded() {
    let bytes = tiny(1);
    let file = bytes.clone();
    let server = Server::start(move |asked| match asked.number {
        0..3 => Answer::of(&file, asked),
        _ => Answer::of(&file, asked).cut(0, Then::Close),
    })
    .await;
    let error = Bench::new().import(server.url()).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::SourceUnreachable | ErrorKind::BadSource), "{error}");
    assert!(server.asked().len() <= 3 + 4, "{}", server.asked().len());
    let unwell = Server::start(|_| Answer::new(503, "busy").sized()).await;
    let error = Bench::new().import(unwell.url()).await.unwrap_err();
    assert!(error.kind() == ErrorKind::SourceUnreachable && error.to_string().contains("503"), "{error}");
    assert_eq!(unwell.asked().len(), 4);
}

/// A bench with an import aborted after two thirds, as after a killed process, and the bytes received.
async fn interrupted(server: &Server, options: ImportOptions) -> (Bench, usize) {
    interrupted_at(&server.url(), options).await
}

async fn interrupted_at(url: &str, options: ImportOptions) -> (Bench, usize) {
    let bench = Bench::new();
    let done = Arc::new(AtomicUsize::new(0));
    let (seen, reached) = (done.clone(), Arc::new(tokio::sync::Notify::new()));
    let tell = reached.clone();
    let progress: crate::node::ProgressFn = Arc::new(move |progress: Progress| {
        seen.store(progress.done as usize, Ordering::Relaxed);
        if progress.done * 3 > progress.total * 2 {
            tell.notify_one();
        }
    });
    let options = ImportOptions { progress: Some(progress), ..options };
    tokio::select! {
        biased;
        () = reached.notified() => {}
        ended = bench.import_with(url, &options) => panic!("{ended:?}"),
    }
    let done = done.load(Ordering::Relaxed);
    // A running write ends by itself.
    tokio::time::sleep(Duration::from_millis(100)).await;
    (bench.reopen(), done)
}

#[tokio::test]
async fn after_a_kill_at_most_one_group_is_fetched_again() {
    let bytes = tiny(1);
    let only = vec![Parts::Stage { layers: LayerRange::new(0, 2), head: true }];
    for parts in [None, Some(only)] {
        let server = Server::good(bytes.clone()).await;
        let options = ImportOptions { parts, ..ImportOptions::default() };
        let (bench, done) = interrupted(&server, options.clone()).await;
        assert!(done > 2 * MIB && bench.files("shards").is_empty());
        let before = server.asked().len();
        let model = bench.import_with(server.url().as_str(), &options).await.unwrap();
        let again = server.bytes_asked(before);
        assert!(again <= bytes.len() - done + MIB, "{again} of {} were fetched after {done}", bytes.len());
        assert_eq!(model, Bench::new().local(&bytes));
        assert_eq!((bench.catalog.verify(model).unwrap(), bench.files("partial")), (vec![], vec![]));
    }
}

#[tokio::test]
async fn bytes_damaged_on_disk_are_fetched_again() {
    let bytes = tiny(1);
    let server = Server::good(bytes.clone()).await;
    let (bench, _) = interrupted(&server, ImportOptions::default()).await;
    let names: Vec<String> = bench.files("partial").into_iter().map(|(name, _)| name).collect();
    for name in &names {
        let (bench, _) = interrupted(&server, ImportOptions::default()).await;
        let path = bench.dir.path().join("data").join("partial").join(name);
        let mut damaged = fs::read(&path).unwrap();
        let middle = damaged.len() / 2;
        damaged.iter_mut().skip(middle).take(1).for_each(|byte| *byte ^= 1);
        fs::write(&path, &damaged[..damaged.len().saturating_sub(1)]).unwrap();
        let model = bench.import(server.url()).await.unwrap();
        assert_like_local(&bench, model, &bytes);
    }
    assert!(names.len() > 4, "{names:?}");
}

#[tokio::test]
async fn a_file_that_changes_during_the_download_is_an_error() {
    let (old, new) = (tiny(1), tiny(2));
    type Change = fn(&[u8], &[u8], &Asked) -> Answer;
    let changes: [(&str, Change); 4] = [
        ("the tag of a part", |_, new, asked| Answer::of(new, asked).with("etag", "\"two\"")),
        ("the whole of another file", |_, new, _| Answer::whole(new).with("etag", "\"two\"")),
        ("a file that is shorter", |_, _, _| Answer::new(416, "").sized()),
        ("another length", |old, _, asked| {
            let part = Answer::of(old, asked);
            let range = format!("bytes {}-{}/99", asked.range().unwrap().start, asked.range().unwrap().end - 1);
            part.with("content-range", range)
        }),
    ];
    for (what, change) in changes {
        let (first, second) = (old.clone(), new.clone());
        let server = Server::start(move |asked| match asked.number {
            // The second response ends early.
            0..2 => Answer::of(&first, asked),
            2 => Answer::of(&first, asked).cut(1000, Then::Close),
            _ => change(&first, &second, asked),
        })
        .await;
        let bench = Bench::new();
        let error = bench.import(server.url()).await.unwrap_err();
        let expected = if what == "another length" { ErrorKind::BadSource } else { ErrorKind::SourceChanged };
        assert_eq!(error.kind(), expected, "{what}: {error}");
        assert_eq!(bench.catalog.models().len(), 0);
    }
}

#[tokio::test]
async fn a_file_changed_between_attempts_is_downloaded_anew() {
    let (old, new) = (tiny(1), tiny(2));
    let changed = Arc::new(AtomicUsize::new(0));
    let (now, second) = (changed.clone(), new.clone());
    let server = Server::start(move |asked| match now.load(Ordering::Relaxed) {
        0 => Answer::of(&old, asked),
        _ => Answer::of(&second, asked).with("etag", "\"two\""),
    })
    .await;
    let (bench, _) = interrupted(&server, ImportOptions::default()).await;
    changed.store(1, Ordering::Relaxed);
    let model = bench.import(server.url()).await.unwrap();
    assert_like_local(&bench, model, &new);
}

#[tokio::test]
async fn a_server_without_ranges_or_versions_sends_the_whole_file() {
    let bytes = tiny(1);
    for ranges in [false, true] {
        let file = bytes.clone();
        let server = Server::start(move |asked| match ranges {
            true => Answer::of(&file, asked).without("etag"),
            false => Answer::whole(&file),
        })
        .await;
        let bench = Bench::new();
        let model = bench.import(server.url()).await.unwrap();
        assert_like_local(&bench, model, &bytes);
        assert!(server.asked().len() <= 2);
        // Each byte is written once: a model that fits the disk budget fits during the download.
        let shards: u64 = bench.catalog.manifest(model).unwrap().shards.iter().map(|shard| shard.size).sum();
        assert_eq!(Bench::within(Some(shards)).import(server.url()).await.unwrap(), model);
        let error = Bench::within(Some(shards - 1)).import(server.url()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DiskBudget, "{error}");
    }
    // A date identifies a version; a weak tag does not.
    let file = bytes.clone();
    let dated = Server::start(move |asked| {
        Answer::of(&file, asked).with("etag", "W/\"weak\"").with("last-modified", "Thu, 26 Nov 2026 10:00:00 GMT")
    })
    .await;
    let bench = Bench::new();
    let model = bench.import(dated.url()).await.unwrap();
    assert_like_local(&bench, model, &bytes);
    assert_eq!(dated.asked()[1].header("if-range"), Some("Thu, 26 Nov 2026 10:00:00 GMT"));
}

/// A server fault, from this request on.
type Mischief = fn(&[u8], &Asked) -> Answer;

#[tokio::test]
async fn every_server_fault_ends_in_time_with_its_error_kind() {
    use ErrorKind::*;
    let misdeeds: [(&str, usize, ErrorKind, Mischief); 20] = [
        ("an error page", 0, BadGguf, |_, _| Answer::whole(b"<html>Sorry, try again later</html>")),
        ("an error page for the header", 1, SourceChanged, |_, _| Answer::whole(b"<html>Sorry</html>")),
        ("a refusal", 0, SourceUnreachable, |_, _| Answer::new(404, "no").sized()),
        ("a status of its own", 0, SourceUnreachable, |_, _| Answer::new(299, "").sized()),
        ("an empty file", 0, BadSource, |_, _| Answer::new(416, "").with("content-range", "bytes */0").sized()),
        ("no range", 1, BadSource, |file, asked| Answer::of(file, asked).without("content-range")),
        ("another range", 1, BadSource, |file, asked| {
            Answer::of(file, asked).with("content-range", format!("bytes 5-9/{}", file.len()))
        }),
        ("a range beyond numbers", 1, BadSource, |file, asked| {
            Answer::of(file, asked).with("content-range", "bytes 0-18446744073709551615/18446744073709551616")
        }),
        ("a length that is not the range's", 1, BadSource, |file, asked| {
            Answer::of(file, asked).with("content-length", 7)
        }),
        ("fewer bytes", 1, SourceUnreachable, |file, asked| Answer::of(file, asked).cut(0, Then::Close)),
        ("more bytes", 1, BadSource, |file, asked| {
            let body = [format!("{:x}\r\n", MIB + 9).as_bytes(), &file[..MIB + 9], b"\r\n0\r\n\r\n"].concat();
            Answer { body, ..Answer::of(file, asked) }.without("content-length").with("transfer-encoding", "chunked")
        }),
        ("garbage", 1, BadGguf, |file, asked| Answer { body: vec![0x5a; MIB], ..Answer::of(file, asked) }),
        ("an encoding", 1, BadSource, |file, asked| Answer::of(file, asked).with("content-encoding", "gzip")),
        ("silence", 0, Timeout, |_, _| Answer::new(0, "").cut(0, Then::Hang)),
        ("a body that stalls", 2, Timeout, |file, asked| Answer::of(file, asked).cut(10, Then::Hang)),
        ("a body that drips", 2, Timeout, |file, asked| Answer::of(file, asked).cut(10, Then::Drip)),
        ("a body without an end", 0, BadSource, |_, _| Answer::new(200, "").cut(0, Then::Pour)),
        ("a file of all bytes there are", 0, BadGguf, |_, _| {
            Answer::new(200, "").with("content-length", u64::MAX / 2).cut(0, Then::Pour)
        }),
        ("a redirect to itself", 0, BadSource, |_, asked| Answer::new(302, "").with("location", &asked.path).sized()),
        ("a redirect to nowhere", 0, BadSource, |_, _| Answer::new(302, "").with("location", "ftp://x/y").sized()),
    ];
    let (bytes, mut wrong) = (tiny(1), Vec::new());
    for (what, from, kind, mischief) in misdeeds {
        let file = bytes.clone();
        let server = Server::start(move |asked| match asked.number < from {
            true => Answer::of(&file, asked),
            false => mischief(&file, asked),
        })
        .await;
        let (bench, begun) = (Bench::new(), Instant::now());
        let error = bench.import(server.url()).await.unwrap_err();
        if error.kind() != kind {
            wrong.push(format!("{what}: {:?}, {error}", error.kind()));
        }
        assert!(begun.elapsed() < Duration::from_secs(8), "{what} took {:?}", begun.elapsed());
        assert!(server.asked().len() <= from + 6, "{what}: {} requests", server.asked().len());
        assert_eq!((bench.catalog.models().len(), bench.files("shards").len()), (0, 0), "{what}");
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[tokio::test]
async fn a_token_is_sent_to_the_first_server_only() {
    let bytes = tiny(1);
    let store = Server::good(bytes.clone()).await;
    let target = store.url();
    let hub = Server::start(move |_| Answer::new(302, "").with("location", &target).sized()).await;
    let source = WebSource { token: Some("hf_secret".to_owned()), ..WebSource::new(hub.url()) };
    assert!(!format!("{source:?}").contains("secret"));
    let bench = Bench::new();
    let model = bench.import(source).await.unwrap();
    assert_like_local(&bench, model, &bytes);
    assert!(hub.asked().iter().all(|asked| asked.header("authorization") == Some("Bearer hf_secret")));
    assert!(store.asked().iter().all(|asked| asked.header("authorization").is_none()));
    assert!(!store.asked().is_empty());
}

#[tokio::test]
async fn redirects_to_unencrypted_addresses_are_refused() {
    let client = client("https://example.org/a.gguf").unwrap();
    let from = address::parse("https://example.org/a.gguf").unwrap();
    let follow = |to: &str| {
        let mut headers = reqwest::header::HeaderMap::new();
        headers.insert("location", to.parse().unwrap());
        client.follow(&from, &headers)
    };
    assert_eq!(follow("/b").unwrap().as_str(), "https://example.org/b");
    assert_eq!(follow("https://cdn.example.org/c?sig=1").unwrap().host_str(), Some("cdn.example.org"));
    for bad in ["http://example.org/a.gguf", "//user:word@example.org/", "file:///etc/passwd"] {
        assert_eq!(follow(bad).unwrap_err().kind(), ErrorKind::BadSource, "{bad}");
    }
}

#[test]
fn hub_addresses_resolve_and_bad_addresses_are_refused() {
    let url = |address: &str| WebSource::new(address).url().map(String::from);
    let file = "https://huggingface.co/owner/repo/resolve";
    assert_eq!(url("hf:owner/repo/a.gguf").unwrap(), format!("{file}/main/a.gguf"));
    assert_eq!(url("hf:owner/repo/sub/a b.gguf@v1").unwrap(), format!("{file}/v1/sub/a%20b.gguf"));
    assert_eq!(url("hf:owner/repo/a.gguf@refs/pr/1").unwrap(), format!("{file}/refs%2Fpr%2F1/a.gguf"));
    let mirror = WebSource { hub: "http://localhost:8080/hub/".to_owned(), ..WebSource::new("hf:o/r/a.gguf") };
    assert_eq!(mirror.url().unwrap().as_str(), "http://localhost:8080/hub/o/r/resolve/main/a.gguf");
    assert_eq!(url("https://example.org/a.gguf?x=1").unwrap(), "https://example.org/a.gguf?x=1");
    let long = format!("https://example.org/{}", "a".repeat(5000));
    for bad in [
        "hf:owner/repo",
        "hf:owner//a.gguf",
        "hf:owner/repo/../a.gguf",
        "hf:owner/repo/a.gguf@",
        "ftp://example.org/a.gguf",
        "https://user:word@example.org/a.gguf",
        "https://:word@example.org/a.gguf",
        "model.gguf",
        "",
        &long,
    ] {
        let error = url(bad).unwrap_err();
        assert!(error.kind() == ErrorKind::InvalidArgument && !error.to_string().contains("word@"), "{bad}: {error}");
    }
    let token = |address: &str| WebSource { token: Some("t".to_owned()), ..WebSource::new(address) }.url();
    assert!(token("https://example.org/a").is_ok() && token("http://127.0.0.1/a").is_ok());
    assert_eq!(token("http://example.org/a").unwrap_err().kind(), ErrorKind::InvalidArgument);
}

#[tokio::test]
async fn a_download_stays_within_its_rate() {
    let bytes = tiny(1);
    let server = Server::good(bytes.clone()).await;
    let rate = 4 * bytes.len() as u64;
    let throttle = Arc::new(Throttle::new(std::num::NonZeroU64::new(rate)));
    let client = Client::new(&server.url().into(), throttle, short_timeouts()).unwrap();
    let (bench, begun) = (Bench::new(), Instant::now());
    import::import(&bench.catalog, client, &ImportOptions::default(), &Examination::none()).await.unwrap();
    let took = begun.elapsed();
    // A quarter of a second at the rate, less the burst.
    assert!(took >= Duration::from_millis(145), "{took:?}");
}

#[tokio::test]
async fn a_download_beyond_the_disk_budget_is_refused_early() {
    let bytes = tiny(1);
    let server = Server::good(bytes.clone()).await;
    let bench = Bench::within(Some(bytes.len() as u64 / 2));
    let error = bench.import(server.url()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DiskBudget, "{error}");
    assert!(server.bytes_asked(0) <= MIB + 1, "{}", server.bytes_asked(0));
    // A part of the model fits.
    let parts = Some(vec![Parts::Stage { layers: LayerRange::new(0, 1), head: false }]);
    let options = ImportOptions { parts, ..ImportOptions::default() };
    bench.import_with(server.url().as_str(), &options).await.unwrap();
}

#[tokio::test]
async fn a_dropped_call_closes_its_connection() {
    let bytes = tiny(1);
    let server = Server::start(move |asked| match asked.number {
        0..2 => Answer::of(&bytes, asked),
        _ => Answer::of(&bytes, asked).cut(10, Then::Hang),
    })
    .await;
    let bench = Bench::new();
    let mut importing = Box::pin(bench.import(server.url()));
    while server.asked().len() < 3 {
        let step = tokio::time::timeout(Duration::from_millis(20), &mut importing).await;
        assert!(step.is_err());
    }
    assert_eq!(*server.left.lock().unwrap(), 0);
    drop(importing);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(*server.left.lock().unwrap(), 1);
    // It also releases its claim: the next attempt begins at once.
    let error = bench.import(server.url()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_cannot_run_is_refused_after_its_header() {
    let bytes = tiny(1);
    let dir = TempDir::new().unwrap();
    let builder = Node::builder().data_dir(dir.path()).preset(Preset::Offline).engines(Vec::new());
    let node = builder.start().await.unwrap();
    let server = Server::good(bytes.clone()).await;
    let error = node.import_url(server.url(), ImportOptions::default()).await.unwrap_err();
    assert!(error.report().is_some_and(|report| report.architecture == "llama"), "{error}");
    assert!(server.bytes_asked(0) <= MIB + 1, "{} of {}", server.bytes_asked(0), bytes.len());
    // A server without ranges is left once the header has arrived.
    let file = bytes.clone();
    let server = Server::start(move |_| Answer::whole(&file).cut(2 * MIB, Then::Hang)).await;
    let error = node.import_url(server.url(), ImportOptions::default()).await.unwrap_err();
    assert!(error.report().is_some(), "{error}");
    assert!(node.models().is_empty());
    node.shutdown(Duration::ZERO).await;
}

/// A node without a network that knows the model and holds no shard of it.
async fn node(bytes: &[u8], max_disk_bytes: Option<u64>) -> (TempDir, Node, ModelId) {
    let (dir, from) = (TempDir::new().unwrap(), Bench::new());
    let model = from.local(bytes);
    let manifest = from.catalog.manifest(model).unwrap().encode();
    Catalog::open(dir.path()).unwrap().add_manifest(&manifest, model).unwrap();
    let mut builder = Node::builder().data_dir(dir.path()).preset(Preset::Offline).engines(Vec::new());
    if let Some(bytes) = max_disk_bytes {
        builder = builder.max_disk_bytes(bytes);
    }
    (dir, builder.start().await.unwrap(), model)
}

fn layers(start: u32, end: u32) -> Parts {
    Parts::Stage { layers: LayerRange::new(start, end), head: false }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_from_the_web_fetches_only_ranges_of_wanted_shards() {
    let bytes = tiny(1);
    let server = Server::good(bytes.clone()).await;
    let (_dir, node, model) = node(&bytes, None).await;
    let reports = Arc::new(Mutex::new(Vec::new()));
    let seen = reports.clone();
    let progress: crate::node::ProgressFn = Arc::new(move |progress: Progress| seen.lock().unwrap().push(progress));
    let pulled = node.pull_url(&model.to_string(), layers(2, 3), server.url(), Some(progress)).await.unwrap();
    assert_eq!((pulled.held, pulled.has_head, pulled.has_metadata), (vec![LayerRange::new(2, 3)], false, false));
    let layer = 5 * MIB / 4 + 64;
    assert!(server.bytes_asked(0) <= 1 + MIB + layer, "{}", server.bytes_asked(0));
    assert!(reports.lock().unwrap().last().is_some_and(|last| last.done == last.total));
    let whole = node.pull_url(&model.to_string(), Parts::All, server.url(), None).await.unwrap();
    assert!(whole.has_head && whole.has_metadata && whole.held == [LayerRange::new(0, LAYERS)]);
    node.shutdown(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_from_the_web_with_a_wrong_hash_is_discarded() {
    let bytes = tiny(1);
    let mut wrong = bytes.clone();
    let last = wrong.len() - 5;
    wrong[last] ^= 1;
    let server = Server::good(wrong).await;
    let (dir, node, model) = node(&bytes, None).await;
    let error = node.pull_url(&model.to_string(), layers(3, 4), server.url(), None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ShardCorrupt, "{error}");
    assert_eq!(fs::read_dir(dir.path().join("partial")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(dir.path().join("shards")).unwrap().count(), 0);
    // The previous layer is valid.
    assert!(node.pull_url(&model.to_string(), layers(2, 3), server.url(), None).await.is_ok());
    node.shutdown(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_from_a_wrong_file_or_beyond_the_disk_is_refused() {
    let bytes = tiny(1);
    let (_dir, asking, model) = node(&bytes, None).await;
    let name = model.to_string();
    let facts = [Fact::string("general.architecture", "llama"), Fact::u32("llama.block_count", 1)];
    let other = Server::good(file(&facts, &[tensor("token_embd.weight", &[8, 16], 0, 1)], 32)).await;
    let error = asking.pull_url(&name, Parts::All, other.url(), None).await.unwrap_err();
    assert!(error.kind() == ErrorKind::BadSource && error.to_string().contains(&model.short()), "{error}");
    let whole = Server::start({
        let bytes = bytes.clone();
        move |_| Answer::whole(&bytes)
    })
    .await;
    let error = asking.pull_url(&name, Parts::All, whole.url(), None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    let gone = "http://127.0.0.1:9/tiny.gguf?secret=1";
    let error = asking.pull_url("no such model", Parts::All, gone, None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ModelNotFound, "{error}");
    asking.shutdown(Duration::ZERO).await;

    let server = Server::good(bytes.clone()).await;
    let (_dir, small, _) = node(&bytes, Some(2 * MIB as u64)).await;
    let error = small.pull_url(&name, Parts::All, server.url(), None).await.unwrap_err();
    assert_eq!((error.kind(), server.asked().len()), (ErrorKind::DiskBudget, 0), "{error}");
    assert!(small.pull_url(&name, layers(0, 1), server.url(), None).await.is_ok());
    let error =
        small.import_url(server.url(), ImportOptions { anyway: true, ..ImportOptions::default() }).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DiskBudget, "{error}");
    small.shutdown(Duration::ZERO).await;
}

#[tokio::test]
async fn a_shard_resumes_unless_the_earlier_bytes_were_corrupt() {
    let bytes = tiny(1);
    let server = Server::good(bytes.clone()).await;
    for good in [true, false] {
        let (bench, from) = (Bench::new(), Bench::new());
        let model = from.local(&bytes);
        let manifest = from.catalog.manifest(model).unwrap();
        bench.catalog.add_manifest(&manifest.encode(), model).unwrap();
        let entry = manifest.shard(ShardKind::Layer(1)).unwrap();
        let mut first = from.files("shards").into_iter().find(|(name, _)| *name == entry.id.to_string()).unwrap().1;
        first.truncate(MIB + 9);
        first[7] ^= u8::from(!good);
        fs::write(bench.dir.path().join("data").join("partial").join(entry.id.to_string()), first).unwrap();
        let before = server.asked().len();
        let on_bytes: crate::node::models::transfer::OnBytes = Arc::new(|_| {});
        let source = shards::WebFile::new(client(server.url()).unwrap());
        source.fetch_shard(&bench.catalog, &manifest, entry, &on_bytes).await.unwrap();
        assert!(bench.catalog.open_shard(&entry.id).is_ok());
        let asked = server.bytes_asked(before) - 1 - MIB;
        let rest = entry.size as usize - MIB;
        assert_eq!(asked, if good { rest } else { rest + entry.size as usize });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_from_the_web_sends_an_event() {
    let bytes = tiny(1);
    let server = Server::good(bytes.clone()).await;
    let dir = TempDir::new().unwrap();
    let builder = Node::builder().data_dir(dir.path()).preset(Preset::Offline).engines(Vec::new());
    let node = builder.download_rate(std::num::NonZeroU64::new(1 << 30)).start().await.unwrap();
    let mut events = node.events();
    let info = node.import_url(server.url(), ImportOptions { anyway: true, ..ImportOptions::default() }).await.unwrap();
    assert_eq!((info.name.as_str(), info.has_head, info.ready), ("tiny", true, false));
    assert_eq!(info.id, Bench::new().local(&bytes));
    let event = tokio::time::timeout(Duration::from_secs(5), events.next()).await.unwrap();
    assert!(matches!(event, Some(crate::base::Event::ModelKnown { model, .. }) if model == info.id), "{event:?}");
    let refused = node.import_url("ftp://example.org/a.gguf", ImportOptions::default()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InvalidArgument);
    node.shutdown(Duration::ZERO).await;
}
