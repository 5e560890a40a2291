//! Tests of names and aliases, and of the migration from manifest format 1.

use super::super::aliases::MIN_ID_DIGITS;
use super::*;
use crate::base::names::MIN_ID_PREFIX;
use crate::model::manifest::encode_format_1;

#[test]
fn one_file_under_three_names_is_one_model() {
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
    // As an earlier version wrote them.
    let names = bench.files("models").into_iter().find(|path| path.extension().unwrap() == "names").unwrap();
    fs::write(&names, "=Late\n=late\n~hint\n").unwrap();
    assert_eq!(bench.reopen().names(model), ["Late", "hint"]);
}

#[test]
fn removing_an_alias_leaves_an_equal_hint() {
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
fn an_exact_name_is_a_whole_name_or_eight_digits() {
    let bench = Bench::new();
    let model = bench.import(&small("Small Model", 1));
    bench.catalog.add_alias(model, "chat").unwrap();
    let fully = |text: &str| bench.catalog.is_exact_name(model, text);
    assert!(["chat", "CHAT", "small model", &model.short(), &model.to_string()].into_iter().all(fully));
    assert!(!["cha", "small", "s", ""].into_iter().any(fully));
}

#[test]
fn names_are_bounded_and_peers_hints_replace_none() {
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
fn a_damaged_names_file_costs_names_but_no_model() {
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
    assert_eq!(bench.reopen().display_name(model), model.short());
}

/// Writes a model in format 1 into a models directory and returns its id in that format.
fn write_format_1(dir: &Path, manifest: &Manifest, name: &str, provenance: &[u8]) -> String {
    let bytes = encode_format_1(manifest, name);
    let id = blake3::hash(&bytes).to_string();
    fs::write(dir.join(format!("{id}.manifest")), &bytes).unwrap();
    fs::write(dir.join(format!("{id}.marks")), provenance).unwrap();
    id
}

/// Removes a model's files except its shards.
fn forget(dir: &Path, model: ModelId) {
    for ending in ["manifest", "marks", "names"] {
        fs::remove_file(dir.join(format!("{model}.{ending}"))).unwrap();
    }
}

#[test]
fn format_1_data_is_migrated_without_loss() {
    let bench = Bench::new();
    let model = bench.import(&small("hint", 1));
    let manifest = bench.catalog.manifest(model).unwrap();
    let dir = bench.data().join("models");
    // Two models of format 1 with equal content: one is pinned, the other has a deleted layer.
    let old = |name: &str, provenance: &[u8]| write_format_1(&dir, &manifest, name, provenance);
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
        assert!(catalog.provenance(model).iter().all(|(_, provenance)| *provenance == Provenance::Requested));
        assert_eq!((catalog.resolve("one").unwrap(), catalog.resolve("two").unwrap()), (model, model));
    }
    assert!(damaged.exists(), "what cannot be read stays");
    assert!([one, two].iter().all(|id| !dir.join(format!("{id}.manifest")).exists()));
}

#[test]
fn an_interrupted_migration_is_completed_by_the_next_opening() {
    /// Bytes that can still be written. Names and provenance take about 20, so the manifest is the first to fail.
    const SPACE: [usize; 6] = [0, 4, 8, 12, 16, 40];
    let taken_over = |space: Option<usize>, removals: Option<usize>| {
        let bench = Bench::new();
        let model = bench.import(&small("small", 1));
        let (manifest, dir) = (bench.catalog.manifest(model).unwrap(), bench.data().join("models"));
        // Every provenance occurs, so that a loss of any of them shows.
        let id = write_format_1(&dir, &manifest, "alias", b"w-pdpd-");
        fs::write(dir.join(format!("{id}.pinned")), b"").unwrap();
        forget(&dir, model);
        files::faults::set_space(space);
        files::faults::set_removals(removals);
        // It may fail, since everything after the interruption fails too.
        drop(Catalog::open(&bench.data()));
        files::faults::set_space(None);
        files::faults::set_removals(None);
        let catalog = bench.reopen();
        let name = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
        // A provenance file may outlive its manifest; it has no effect alone.
        let files = bench.files("models");
        let files = files.iter().map(name).filter(|name| !name.starts_with(&id) || name.ends_with("manifest"));
        (catalog.provenance(model), catalog.is_pinned(model), catalog.names(model), files.collect::<Vec<_>>())
    };
    let expected = taken_over(None, None);
    assert!(
        expected.1
            && expected.2[0] == "alias"
            && expected.0.iter().any(|(_, provenance)| *provenance == Provenance::Deleted)
    );
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
        bench.catalog.display_name(model)
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
fn a_model_resolves_by_id_prefix_or_unique_name() {
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
fn an_import_under_another_models_alias_is_refused_without_trace() {
    let bench = Bench::new();
    let other = bench.file("other.gguf", &small("other", 1));
    // The same header with other weights: only the weights tell the two apart.
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
fn moving_an_alias_resolves_an_old_duplicate() {
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
fn an_alias_like_an_id_or_id_prefix_is_refused() {
    let bench = Bench::new();
    let (one, two) = (bench.import(&small("one", 1)), bench.import(&small("two", 2)));
    let (catalog, path) = (&bench.catalog, bench.file("third.gguf", &small("third", 3)));
    let short = two.to_string()[..MIN_ID_DIGITS].to_uppercase();
    let mut read = 0;
    for alias in ["deadbeef", &two.to_string(), &one.to_string()[..MIN_ID_PREFIX]] {
        let refused = [
            catalog.add_alias(one, alias),
            catalog.move_alias(one, alias),
            catalog.import(&path, Some(alias), &mut |_| read += 1).map(drop),
        ];
        for error in refused.map(Result::unwrap_err) {
            assert!(matches!(&error, ModelError::AliasIsId { alias: its } if its == alias), "{alias}: {error}");
            assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        }
    }
    for error in [catalog.add_alias(one, &short), catalog.move_alias(one, &short)].map(Result::unwrap_err) {
        assert!(matches!(&error, ModelError::AliasIsIdPrefix { model, .. } if *model == two), "{error}");
        assert_eq!(error.kind(), ErrorKind::AliasTaken);
    }
    let error = catalog.import(&path, Some(&short), &mut |_| read += 1).unwrap_err();
    assert!(matches!(error, ModelError::AliasIsIdPrefix { model, .. } if model == two) && read == 0);
    catalog.add_alias(two, &short).unwrap();
    catalog.add_alias(one, "7b").unwrap();
    assert_eq!((catalog.resolve(&short).unwrap(), catalog.resolve("7B").unwrap()), (two, one));
}

#[test]
fn an_alias_takes_another_models_hint_only_when_moved() {
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
    // An ambiguous hint resolves to neither model, so it may become the alias of one.
    let twin = bench.import(&small("two", 3));
    catalog.remove_alias("two").unwrap();
    catalog.add_alias(twin, "two").unwrap();
    assert_eq!(catalog.resolve("two").unwrap(), twin);
}

#[test]
fn invisible_characters_are_refused_in_aliases_and_dropped_from_hints() {
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
            assert!(matches!(error, ModelError::InvisibleInAlias { .. }), "{alias:?}: {error}");
            assert!(!error.to_string().chars().any(char::is_control) && error.kind() == ErrorKind::InvalidArgument);
        }
    }
    bench.catalog.suggest_name(model, "other").unwrap();
    assert_eq!(bench.reopen().names(model), ["admin"]);
    let nameless = bench.catalog.import(&bench.file("stem.gguf", &small("\u{2066}", 3)), None, &mut quiet).unwrap();
    assert_eq!(bench.catalog.names(nameless), ["stem"], "a name of which nothing is seen is none");
}
