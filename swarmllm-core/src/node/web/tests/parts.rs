//! Models in several files on the web.

use super::*;
use crate::model::gguf::tests::split;

/// Tensors of the parts of the tiny model: the first has the matrices, the others two layers each.
const RUNS: [usize; 3] = [3, 4, 4];

fn part_path(number: usize) -> String {
    format!("/models/tiny-{number:05}-of-{:05}.gguf", RUNS.len())
}

/// A server of these parts. An empty part is missing.
async fn in_parts(parts: Vec<Vec<u8>>) -> Server {
    Server::start(move |asked| match parts.iter().enumerate().find(|(index, _)| asked.path == part_path(index + 1)) {
        Some((_, part)) if !part.is_empty() => Answer::of(part, asked),
        _ => Answer::new(404, "").sized(),
    })
    .await
}

#[tokio::test]
async fn a_model_in_parts_equals_the_model_of_one_file() {
    let bytes = tiny(1);
    for all in [false, true] {
        let parts = split(&bytes, &RUNS, all);
        let total: usize = parts.iter().map(Vec::len).sum();
        let server = in_parts(parts).await;
        for named in 1..=RUNS.len() {
            let (bench, before) = (Bench::new(), server.asked().len());
            let model = bench.import(format!("{}{}", server.address, part_path(named))).await.unwrap();
            assert_like_local(&bench, model, &bytes);
            assert_eq!(bench.catalog.display_name(model), "tiny");
            // One byte of each part for its version, and the headers of the later parts.
            let bound = total + RUNS.len() + (RUNS.len() - 1) * 64 * 1024;
            assert!(server.bytes_asked(before) <= bound, "{} of {total}", server.bytes_asked(before));
        }
    }
}

#[tokio::test]
async fn an_import_of_parts_resumes_in_the_right_part() {
    let bytes = tiny(1);
    let server = in_parts(split(&bytes, &RUNS, false)).await;
    let url = |number| format!("{}{}", server.address, part_path(number));
    let (bench, done) = interrupted_at(&url(1), ImportOptions::default()).await;
    assert!(done > 2 * MIB && bench.files("shards").is_empty());
    let before = server.asked().len();
    // Naming another part gives the same model.
    let model = bench.import(url(3)).await.unwrap();
    let again = server.bytes_asked(before);
    assert!(again <= bytes.len() - done + MIB + RUNS.len() * 64 * 1024, "{again} of {} after {done}", bytes.len());
    assert_like_local(&bench, model, &bytes);
}

#[tokio::test]
async fn a_part_changed_between_attempts_restarts_the_download() {
    let (old, new) = (split(&tiny(1), &RUNS, false), split(&tiny(2), &RUNS, false));
    let changed = Arc::new(AtomicUsize::new(0));
    let now = changed.clone();
    let server = Server::start(move |asked| {
        let index = (0..RUNS.len()).find(|index| asked.path == part_path(index + 1)).unwrap();
        match now.load(Ordering::Relaxed) {
            0 => Answer::of(&old[index], asked),
            _ => Answer::of(&new[index], asked).with("etag", "\"two\""),
        }
    })
    .await;
    let url = format!("{}{}", server.address, part_path(2));
    let (bench, _) = interrupted_at(&url, ImportOptions::default()).await;
    changed.store(1, Ordering::Relaxed);
    let model = bench.import(url).await.unwrap();
    assert_like_local(&bench, model, &tiny(2));
}

#[tokio::test]
async fn missing_duplicate_or_foreign_parts_are_refused_by_name() {
    type Parts<'a> = [&'a [u8]; 3];
    let own = split(&tiny(1), &RUNS, true);
    let other = {
        let mut whole = tiny(1);
        // Another context: a number in the key-values of another model.
        let at = whole.windows(14).position(|window| window == b"context_length").unwrap() + 14 + 4;
        whole[at] = 65;
        split(&whole, &RUNS, true)
    };
    let cases: [(&str, Parts, &[&str]); 4] = [
        ("missing", [&own[0], &[], &own[2]], &["tiny-00002-of-00003.gguf", "404"]),
        ("doubled", [&own[0], &own[0], &own[2]], &["tiny-00002", "read already"]),
        ("foreign", [&own[0], &own[1], &other[2]], &["tiny-00003", "context_length"]),
        ("misnamed", [&own[1], &own[0], &own[2]], &["tiny-00001", "its name is wrong"]),
    ];
    for (what, parts, says) in cases {
        let server = in_parts(parts.iter().map(|part| part.to_vec()).collect()).await;
        let bench = Bench::new();
        let error = bench.import(format!("{}{}", server.address, part_path(3))).await.unwrap_err().to_string();
        assert!(says.iter().all(|says| error.contains(says)), "{what}: {error}");
        assert!(server.bytes_asked(0) <= MIB + 3 + 2 * 64 * 1024, "{what}: {}", server.bytes_asked(0));
    }
    let server = in_parts(own).await;
    let bench = Bench::new();
    let many = format!("{}/models/tiny-00001-of-99999.gguf", server.address);
    let error = bench.import(many).await.unwrap_err();
    assert!(error.kind() == ErrorKind::BadGguf && server.asked().is_empty(), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_fetches_a_layer_from_its_part() {
    let bytes = tiny(1);
    let server = in_parts(split(&bytes, &RUNS, false)).await;
    let (_dir, node, model) = node(&bytes, None).await;
    let url = format!("{}{}", server.address, part_path(1));
    let pulled = node.pull_url(&model.to_string(), layers(3, 4), url, None).await.unwrap();
    assert_eq!(pulled.held, [LayerRange::new(3, 4)]);
    let large = |asked: &Asked| asked.range().is_some_and(|range| range.len() > MIB);
    let paths: Vec<String> = server.asked().into_iter().filter(large).map(|asked| asked.path).collect();
    assert!(!paths.is_empty() && paths.iter().all(|path| *path == part_path(3)), "{paths:?}");
    node.shutdown(Duration::ZERO).await;
}

#[tokio::test]
async fn parts_in_a_hub_are_beside_the_named_part() {
    let source = WebSource::new("hf:owner/repo/Q4 K/m%20n-00002-of-00003.gguf@refs/pr/1");
    let client = client(source).unwrap();
    let name = client.part_name().unwrap();
    assert_eq!((name.count(), client.sibling(&name.with_number(2)).address()), (3, client.address()));
    let first = client.sibling(&name.with_number(1));
    assert!(first.address().starts_with(&format!("{HUB}/owner/repo/resolve/refs%2Fpr%2F1/Q4%20K/m")));
    assert!(first.address().ends_with("-00001-of-00003.gguf"), "{}", first.address());
}
