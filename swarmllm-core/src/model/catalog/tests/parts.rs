//! Tests of multi-file models on disk.

use super::*;
use crate::model::gguf::tests::split;

/// Tensors per part of the small model, which has ten.
const RUNS: [usize; 3] = [4, 0, 6];

fn part_name(number: usize) -> String {
    format!("model-{number:05}-of-{:05}.gguf", RUNS.len())
}

#[test]
fn any_part_imports_the_same_model_as_the_whole_file() {
    let whole = small("", 1);
    let from = Bench::new();
    let model = from.import(&whole);
    assert_eq!(Gguf::read(&mut std::io::Cursor::new(&whole)).unwrap().tensors.len(), RUNS.iter().sum::<usize>());
    for all in [false, true] {
        for named in 1..=RUNS.len() {
            let bench = Bench::new();
            let parts = split(&whole, &RUNS, all);
            let paths: Vec<PathBuf> =
                parts.iter().enumerate().map(|(index, part)| bench.file(&part_name(index + 1), part)).collect();
            let mut seen = Vec::new();
            let imported = bench.catalog.import(&paths[named - 1], None, &mut |progress| seen.push(progress)).unwrap();
            assert_eq!((imported, bench.catalog.display_name(imported)), (model, "model".to_owned()));
            let bytes =
                |bench: &Bench| bench.files("shards").iter().map(|path| fs::read(path).unwrap()).collect::<Vec<_>>();
            assert!(bytes(&bench) == bytes(&from), "the shards differ");
            assert!(seen.last().is_some_and(|last| last.done == last.total));
        }
    }
}

#[test]
fn a_partial_import_of_parts_writes_only_those_shards() {
    let bench = Bench::new();
    for (index, part) in split(&small("", 1), &RUNS, false).iter().enumerate() {
        bench.file(&part_name(index + 1), part);
    }
    let keep = |kind| matches!(kind, ShardKind::Common | ShardKind::Layer(1));
    let path = bench.dir.path().join(part_name(2));
    let model = bench.catalog.import_parts(&path, None, &keep, &mut quiet).unwrap();
    assert_eq!(bench.catalog.holding(model).layers, [LayerRange::new(1, 2)]);
    assert_eq!(bench.files("shards").len(), 2);
}

#[test]
fn parts_of_different_models_are_refused_by_name() {
    type Parts<'a> = [Option<&'a [u8]>; 3];
    let bench = Bench::new();
    let (own, other) = (split(&small("", 1), &RUNS, true), split(&small("other", 1), &RUNS, true));
    let whole = small("", 1);
    // Each case: the bytes of the three parts, and texts of the error.
    let cases: [(&str, Parts, &[&str]); 8] = [
        ("missing", [Some(&own[0]), Some(&own[1]), None], &["part 3 of 3 is missing", "model-00003-of-00003.gguf"]),
        ("the first missing", [None, Some(&own[1]), Some(&own[2])], &["part 1 of 3 is missing"]),
        ("doubled", [Some(&own[0]), Some(&own[1]), Some(&own[1])], &["model-00003", "part 2, which was read already"]),
        ("in another order", [Some(&own[1]), Some(&own[0]), Some(&own[2])], &["model-00001", "its name is wrong"]),
        ("foreign", [Some(&own[0]), Some(&own[1]), Some(&other[2])], &["model-00003", "general.name", "another model"]),
        ("whole files", [Some(&whole), Some(&whole), Some(&whole)], &["model-00001", "split.no"]),
        ("not a GGUF", [Some(&own[0]), Some(b"GGML"), Some(&own[2])], &["model-00002"]),
        ("cut short", [Some(&own[0]), Some(&own[1]), Some(&own[2][..own[2].len() - 9])], &["model-00003", "again"]),
    ];
    for (what, parts, says) in cases {
        for (index, bytes) in parts.into_iter().enumerate() {
            let path = bench.dir.path().join(part_name(index + 1));
            match bytes {
                Some(bytes) => fs::write(path, bytes).unwrap(),
                None => drop(fs::remove_file(path)),
            }
        }
        for named in 1..=3 {
            let error = bench.catalog.import(&bench.dir.path().join(part_name(named)), None, &mut quiet).unwrap_err();
            let text = error.to_string();
            assert!(says.iter().all(|says| text.contains(says)), "{what}: {text}");
        }
        assert!(bench.catalog.models().is_empty() && bench.files("shards").is_empty(), "{what}");
    }
    let alone = bench.file("renamed.gguf", &own[0]);
    let error = bench.catalog.import(&alone, None, &mut quiet).unwrap_err();
    assert!(error.kind() == ErrorKind::Unsupported && error.to_string().contains("00001-of-00003"), "{error}");
}
