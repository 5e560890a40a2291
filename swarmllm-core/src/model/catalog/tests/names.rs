//! What models are called, and data directories in which manifests had names in them.

use super::super::aliases::MIN_COPIED;
use super::*;
use crate::base::names::MIN_ID_PREFIX;
use crate::model::manifest::encode_format_1;

#[test]
fn one_file_under_three_names_is_one_model_with_three_names() {
    let bench = Bench::new();
    let path = bench.file("model.gguf", &small("Small Model", 1));
    let import = |name: &str| bench.catalog.import(&path, Some(name), &mut quiet).unwrap();
    let model = import("one");
    assert_eq!((import("two"), import("three")), (model, model));
    assert_eq!(import("two"), model, "a name that is given again comes first");
    assert_eq!(bench.catalog.models().len(), 1);
    for catalog in [bench.catalog.clone(), bench.reopen()] {
        assert_eq!(catalog.names(model), ["two", "three", "one", "Small Model"]);
        for name in ["one", "two", "three", "small model", "Small", "THREE"] {
            assert_eq!(catalog.resolve(name).unwrap(), model, "{name}");
        }
    }
    bench.catalog.remove(model).unwrap();
    assert_eq!(bench.files("models"), Vec::<PathBuf>::new());
}

#[test]
fn an_alias_in_another_case_replaces_the_one_before() {
    let bench = Bench::new();
    let model = bench.import(&small("Small Model", 1));
    let add = |alias: &str| bench.catalog.add_alias(model, alias).unwrap();
    ["chat", "other", "Chat"].into_iter().for_each(add);
    for catalog in [bench.catalog.clone(), bench.reopen()] {
        assert_eq!(catalog.names(model), ["Chat", "other", "Small Model"]);
        assert_eq!((catalog.aliases(model).len(), catalog.resolve("CHAT").unwrap()), (2, model));
    }
    bench.catalog.move_alias(model, "CHAT").unwrap();
    add("small model");
    assert_eq!(
        bench.catalog.names(model),
        ["small model", "CHAT", "other", "Small Model"],
        "the file's own name stays"
    );
    let path = bench.file("again.gguf", &small("Small Model", 1));
    bench.catalog.import(&path, Some("Other"), &mut quiet).unwrap();
    assert_eq!(bench.catalog.aliases(model), ["Other", "small model", "CHAT"]);
    // As an earlier version left them.
    let names = bench.files("models").into_iter().find(|path| path.extension().unwrap() == "names").unwrap();
    fs::write(&names, "=Late\n=late\n~hint\n").unwrap();
    assert_eq!(bench.reopen().names(model), ["Late", "hint"]);
}

#[test]
fn an_alias_that_a_file_suggests_too_leaves_that_name_when_it_is_taken_away() {
    let bench = Bench::new();
    let model = bench.import(&small("Small Model", 1));
    bench.catalog.add_alias(model, "Small Model").unwrap();
    assert_eq!(bench.catalog.names(model), ["Small Model"]);
    let path = bench.file("again.gguf", &small("Small Model", 1));
    bench.catalog.import(&path, Some("Small Model"), &mut quiet).unwrap();
    bench.reopen().remove_alias("Small Model").unwrap();
    let catalog = bench.reopen();
    assert_eq!((catalog.names(model), catalog.aliases(model)), (vec!["Small Model".to_owned()], Vec::new()));
}

#[test]
fn a_model_is_named_fully_by_a_whole_name_or_eight_digits_of_its_id() {
    let bench = Bench::new();
    let model = bench.import(&small("Small Model", 1));
    bench.catalog.add_alias(model, "chat").unwrap();
    let fully = |text: &str| bench.catalog.is_named_fully(model, text);
    assert!(["chat", "CHAT", "small model", &model.short(), &model.to_string()].into_iter().all(fully));
    assert!(!["cha", "small", "s", ""].into_iter().any(fully));
}

#[test]
fn names_are_bounded_and_what_peers_suggest_replaces_none() {
    let bench = Bench::new();
    let path = bench.file("model.gguf", &small("own", 1));
    let model = bench.catalog.import(&path, None, &mut quiet).unwrap();
    bench.catalog.suggest_name(model, "stranger").unwrap();
    assert_eq!(bench.catalog.names(model), ["own"]);
    for number in 0..2 * MAX_NAMES {
        bench.catalog.import(&path, Some(&format!("alias {number}")), &mut quiet).unwrap();
    }
    let names = bench.catalog.names(model);
    assert_eq!((names.len(), names[0].as_str()), (MAX_NAMES, "alias 31"));
    assert_eq!((names[MAX_NAMES - 2].as_str(), names[MAX_NAMES - 1].as_str()), ("alias 17", "own"));
    assert_eq!(bench.reopen().names(model), names);
}

#[test]
fn a_damaged_file_of_names_costs_names_and_no_model() {
    let bench = Bench::new();
    let model = bench.import(&small("small", 1));
    let path = bench.files("models").into_iter().find(|path| path.extension().unwrap() == "names").unwrap();
    for (bytes, names) in
        [(&b"\xff\x00=\n=good\nbad\n~hint"[..], &["good", "hint"][..]), (&[b'='; 100_000], &[]), (b"", &[])]
    {
        fs::write(&path, bytes).unwrap();
        let catalog = bench.reopen();
        assert_eq!(catalog.names(model), names);
        assert!(catalog.manifest(model).is_some());
    }
    assert_eq!(bench.reopen().title(model), model.short());
}

/// Writes a model of the format that had names in manifests into a directory of models; gives the id that it had.
fn write_format_1(dir: &Path, manifest: &Manifest, name: &str, marks: &[u8]) -> String {
    let bytes = encode_format_1(manifest, name);
    let id = blake3::hash(&bytes).to_string();
    fs::write(dir.join(format!("{id}.manifest")), &bytes).unwrap();
    fs::write(dir.join(format!("{id}.marks")), marks).unwrap();
    id
}

/// Removes what today's format has of a model beside its shards.
fn forget(dir: &Path, model: ModelId) {
    for ending in ["manifest", "marks", "names"] {
        fs::remove_file(dir.join(format!("{model}.{ending}"))).unwrap();
    }
}

#[test]
fn data_of_the_format_with_names_in_manifests_is_taken_over_with_nothing_lost() {
    let bench = Bench::new();
    let model = bench.import(&small("hint", 1));
    let manifest = bench.catalog.manifest(model).unwrap();
    let dir = bench.data().join("models");
    // Two models of one content, as an earlier version had them: one pinned, of the other the first layer deleted.
    let old = |name: &str, marks: &[u8]| write_format_1(&dir, &manifest, name, marks);
    let (one, two) = (old("one", b"wwwwwww"), old("Two", b"pppdpp-"));
    fs::write(dir.join(format!("{two}.pinned")), b"").unwrap();
    forget(&dir, model);
    let damaged = dir.join(format!("{}.manifest", "7".repeat(64)));
    fs::write(&damaged, encode_format_1(&manifest, "damaged")).unwrap();
    for _ in 0..2 {
        let catalog = bench.reopen();
        assert_eq!(catalog.models().into_iter().map(|(id, _)| id).collect::<Vec<_>>(), [model]);
        assert_eq!(catalog.verify(model).unwrap(), []);
        assert_eq!(catalog.holding(model).layers, [LayerRange::new(0, 3)]);
        assert!(catalog.is_pinned(model));
        assert!(catalog.marks(model).iter().all(|(_, mark)| *mark == Mark::Wanted));
        assert_eq!((catalog.resolve("one").unwrap(), catalog.resolve("two").unwrap()), (model, model));
    }
    assert!(damaged.exists(), "what cannot be read stays");
    assert!([one, two].iter().all(|id| !dir.join(format!("{id}.manifest")).exists()));
}

#[test]
fn a_takeover_that_is_interrupted_anywhere_is_completed_by_the_next_opening_with_nothing_lost() {
    /// Bytes that can still be written; names and marks take some 20, so that the manifest fails behind them.
    const SPACE: [usize; 6] = [0, 4, 8, 12, 16, 40];
    let taken_over = |space: Option<usize>, removals: Option<usize>| {
        let bench = Bench::new();
        let model = bench.import(&small("small", 1));
        let (manifest, dir) = (bench.catalog.manifest(model).unwrap(), bench.data().join("models"));
        // Each mark once and no word at all: where any is lost, another counts.
        let id = write_format_1(&dir, &manifest, "alias", b"w-pdpd-");
        fs::write(dir.join(format!("{id}.pinned")), b"").unwrap();
        forget(&dir, model);
        files::faults::set_space(space);
        files::faults::set_removals(removals);
        // It may fail: what comes behind the takeover is interrupted, too.
        drop(Catalog::open(&bench.data()));
        files::faults::set_space(None);
        files::faults::set_removals(None);
        let catalog = bench.reopen();
        let name = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
        // Marks beside a manifest that went may stay: without it they say nothing.
        let files = bench.files("models");
        let files = files.iter().map(name).filter(|name| !name.starts_with(&id) || name.ends_with("manifest"));
        (catalog.marks(model), catalog.is_pinned(model), catalog.names(model), files.collect::<Vec<_>>())
    };
    let expected = taken_over(None, None);
    assert!(expected.1 && expected.2[0] == "alias" && expected.0.iter().any(|(_, mark)| *mark == Mark::Deleted));
    for space in SPACE {
        assert_eq!(taken_over(Some(space), None), expected, "with {space} bytes of room");
    }
    for removals in 0..3 {
        assert_eq!(taken_over(None, Some(removals)), expected, "behind {removals} removals");
    }
}

#[test]
fn names_are_cleaned_and_never_become_paths() {
    let bench = Bench::new();
    let path = bench.file("file stem.gguf", &small("", 1));
    let long = "é".repeat(500);
    let name = |given| {
        let model = bench.catalog.import(&path, given, &mut quiet).unwrap();
        bench.catalog.title(model)
    };
    assert_eq!(name(Some("  ")), "file stem");
    assert_eq!(name(None), "file stem");
    assert_eq!(name(Some("../../etc/passwd")), "../../etc/passwd");
    assert_eq!(name(Some("  a   b  ")), "a b");
    assert_eq!(name(Some(&long)), "é".repeat(64));
    for path in bench.files("models").iter().chain(&bench.files("shards")) {
        assert!(path.file_name().unwrap().to_str().unwrap().len() >= 64, "{}", path.display());
    }
}

#[test]
fn a_model_is_found_by_id_by_prefix_and_by_a_name_that_only_it_has() {
    let bench = Bench::new();
    let one = bench.import(&small("one", 1));
    let twin = bench.import(&small("twin", 1));
    let other = bench.import(&small("twin", 2));
    let resolve = |name: &str| bench.catalog.resolve(name);
    assert_eq!(resolve(&one.to_string()).unwrap(), one);
    assert_eq!(resolve(&one.to_string()[..MIN_ID_PREFIX]).unwrap(), one);
    assert_eq!(resolve("one").unwrap(), one);
    for digits in [1, MIN_ID_PREFIX - 1] {
        let error = resolve(&one.to_string()[..digits]).unwrap_err();
        assert!(error.to_string().contains("at least 8 digits"), "{error}");
    }
    let error = resolve("TWIN").unwrap_err();
    assert!(matches!(&error, ModelError::Ambiguous { models, .. } if models.len() == 2));
    assert_eq!(error.kind(), ErrorKind::InvalidArgument, "no peer's arrival makes it clearer");
    for id in [twin, other] {
        assert!(error.to_string().contains(&format!("twin ({})", id.short())), "{error}");
    }
    let error = resolve("twyn").unwrap_err();
    assert!(matches!(&error, ModelError::NotFound { nearest, .. } if *nearest == ["twin"]), "{error:?}");
    assert!(error.to_string().contains("nearest: twin"), "{error}");
    assert!(matches!(resolve(""), Err(ModelError::NotFound { .. })));
    assert!(matches!(resolve(&"f".repeat(64)), Err(ModelError::NotFound { .. })));
    assert!(resolve(&"x".repeat(1 << 20)).unwrap_err().to_string().len() < 1024);
    assert_ne!(twin, other);
}

#[test]
fn an_alias_of_another_model_is_refused_by_an_import_which_leaves_nothing() {
    let bench = Bench::new();
    let other = bench.file("other.gguf", &small("other", 1));
    // The same header, other weights: it takes all of them to tell the two apart.
    let twin = bench.file("twin.gguf", &small("other", 2));
    let third = bench.file("third.gguf", &small("third", 1));
    let import = |path: &PathBuf| bench.catalog.import(path, Some("Chat"), &mut quiet);
    let model = import(&other).unwrap();
    assert_eq!(import(&other).unwrap(), model, "its own alias may be given again");
    let shards = bench.files("shards");
    for path in [&twin, &third] {
        let error = bench.catalog.import(path, Some("CHAT"), &mut quiet).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AliasTaken);
        assert!(error.to_string().contains(&model.short()), "{error}");
    }
    let mut read = 0;
    bench.catalog.import(&third, Some("chat"), &mut |_| read += 1).unwrap_err();
    assert_eq!(read, 0, "another header is another model before a weight is read");
    assert_eq!((bench.files("shards"), bench.catalog.models().len()), (shards, 1));
    assert_eq!(bench.catalog.resolve("chat").unwrap(), model);
}

#[test]
fn an_alias_is_added_moved_and_removed_and_hints_stay() {
    let bench = Bench::new();
    let (one, two) = (bench.import(&small("one", 1)), bench.import(&small("two", 2)));
    let catalog = &bench.catalog;
    catalog.add_alias(one, "chat").unwrap();
    assert!(matches!(catalog.add_alias(two, "Chat"), Err(ModelError::AliasTaken { model, .. }) if model == one));
    catalog.add_alias(one, "chat").unwrap();
    catalog.move_alias(two, "Chat").unwrap();
    for catalog in [catalog.clone(), bench.reopen()] {
        assert_eq!((catalog.names(one), catalog.names(two)), (vec!["one".into()], vec!["Chat".into(), "two".into()]));
        assert_eq!(catalog.aliases(two), ["Chat"]);
    }
    catalog.remove_alias("chat").unwrap();
    for gone in ["chat", "two", "nothing"] {
        let error = catalog.remove_alias(gone).unwrap_err();
        assert!(matches!(&error, ModelError::NoAlias { alias } if alias == gone), "{error}");
    }
    assert_eq!((catalog.names(two), catalog.aliases(two)), (vec!["two".to_owned()], vec![]));
    assert!(matches!(catalog.add_alias(two, "  "), Err(ModelError::EmptyAlias)));
    assert_eq!(catalog.add_alias(ModelId([9; 32]), "x").unwrap_err().kind(), ErrorKind::ModelNotFound);
}

#[test]
fn an_alias_that_two_models_have_from_before_is_settled_by_moving_it() {
    let bench = Bench::new();
    let models = [bench.import(&small("one", 1)), bench.import(&small("two", 2))];
    for path in bench.files("models").into_iter().filter(|path| path.extension().unwrap() == "names") {
        fs::write(&path, "=chat\n=Chat\n").unwrap();
    }
    let catalog = bench.reopen();
    assert!(matches!(catalog.resolve("chat"), Err(ModelError::Ambiguous { models, .. }) if models.len() == 2));
    catalog.move_alias(models[0], "chat").unwrap();
    assert_eq!(catalog.resolve("CHAT").unwrap(), models[0]);
    assert_eq!(catalog.names(models[1]), Vec::<String>::new());
}

#[test]
fn an_ambiguous_name_lists_the_names_that_matched() {
    let bench = Bench::new();
    let (one, two) = (bench.import(&small("qwen3-4b", 1)), bench.import(&small("qwen3-8b", 2)));
    bench.catalog.add_alias(one, "small").unwrap();
    bench.catalog.add_alias(two, "large").unwrap();
    let error = bench.catalog.resolve("qwen").unwrap_err().to_string();
    for (name, id) in [("qwen3-4b", one), ("qwen3-8b", two)] {
        assert!(error.contains(&format!("{name} ({})", id.short())), "{error}");
    }
    assert!(!error.contains("small") && !error.contains("large"), "{error}");
}

#[test]
fn an_alias_that_is_read_as_an_id_or_looks_like_another_models_is_refused() {
    let bench = Bench::new();
    let (one, two) = (bench.import(&small("one", 1)), bench.import(&small("two", 2)));
    let (catalog, path) = (&bench.catalog, bench.file("third.gguf", &small("third", 3)));
    let short = two.to_string()[..MIN_COPIED].to_uppercase();
    let mut read = 0;
    for alias in ["deadbeef", &two.to_string(), &one.to_string()[..MIN_ID_PREFIX]] {
        let refused = [
            catalog.add_alias(one, alias),
            catalog.move_alias(one, alias),
            catalog.import(&path, Some(alias), &mut |_| read += 1).map(drop),
        ];
        for error in refused.map(Result::unwrap_err) {
            assert!(matches!(&error, ModelError::AliasLikeId { alias: its } if its == alias), "{alias}: {error}");
            assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        }
    }
    for error in [catalog.add_alias(one, &short), catalog.move_alias(one, &short)].map(Result::unwrap_err) {
        assert!(matches!(&error, ModelError::AliasOfId { model, .. } if *model == two), "{error}");
        assert_eq!(error.kind(), ErrorKind::AliasTaken);
    }
    let error = catalog.import(&path, Some(&short), &mut |_| read += 1).unwrap_err();
    assert!(matches!(error, ModelError::AliasOfId { model, .. } if model == two) && read == 0);
    catalog.add_alias(two, &short).unwrap();
    catalog.add_alias(one, "7b").unwrap();
    assert_eq!((catalog.resolve(&short).unwrap(), catalog.resolve("7B").unwrap()), (two, one));
}

#[test]
fn an_alias_that_another_models_file_suggests_takes_that_name_only_when_it_is_moved() {
    let bench = Bench::new();
    let (one, two) = (bench.import(&small("one", 1)), bench.import(&small("two", 2)));
    let (catalog, path) = (&bench.catalog, bench.file("third.gguf", &small("third", 3)));
    let error = catalog.add_alias(one, "TWO").unwrap_err();
    assert!(matches!(error, ModelError::AliasSuggested { model, .. } if model == two));
    assert_eq!(error.kind(), ErrorKind::AliasTaken);
    let mut read = 0;
    let error = catalog.import(&path, Some("two"), &mut |_| read += 1).unwrap_err();
    assert!(matches!(error, ModelError::AliasSuggested { model, .. } if model == two) && read == 0);
    assert_eq!(catalog.resolve("two").unwrap(), two);
    catalog.add_alias(two, "Two").unwrap();
    catalog.remove_alias("Two").unwrap();
    catalog.move_alias(one, "two").unwrap();
    assert_eq!(catalog.resolve("two").unwrap(), one);
    // A name that two models have means neither, so that one of them may have it as its alias.
    let twin = bench.import(&small("two", 3));
    catalog.remove_alias("two").unwrap();
    catalog.add_alias(twin, "two").unwrap();
    assert_eq!(catalog.resolve("two").unwrap(), twin);
}

#[test]
fn what_nobody_sees_is_refused_in_an_alias_and_left_out_of_hints() {
    let bench = Bench::new();
    let model = bench.import(&small("ad\u{200b}min\u{202e}", 1));
    assert_eq!(bench.catalog.names(model), ["admin"]);
    let path = bench.file("model.gguf", &small("", 2));
    for alias in ["a\u{202e}b", "a\u{200d}", "\u{feff}", "a\nb", "a\u{1b}[2J"] {
        let refused = [
            bench.catalog.add_alias(model, alias),
            bench.catalog.move_alias(model, alias),
            bench.catalog.import(&path, Some(alias), &mut quiet).map(drop),
        ];
        for error in refused.map(Result::unwrap_err) {
            assert!(matches!(error, ModelError::HiddenInAlias { .. }), "{alias:?}: {error}");
            assert!(!error.to_string().chars().any(char::is_control) && error.kind() == ErrorKind::InvalidArgument);
        }
    }
    bench.catalog.suggest_name(model, "other").unwrap();
    assert_eq!(bench.reopen().names(model), ["admin"]);
    let nameless = bench.catalog.import(&bench.file("stem.gguf", &small("\u{2066}", 3)), None, &mut quiet).unwrap();
    assert_eq!(bench.catalog.names(nameless), ["stem"], "a name of which nothing is seen is none");
}
