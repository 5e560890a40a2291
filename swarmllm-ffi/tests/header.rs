//! `include/swarmllm.h` matches the crate.

use std::path::{Path, PathBuf};

use cbindgen::{Builder, Config, DocumentationStyle, ItemType, Language, Style};
use swarmllm_core::base::ErrorKind;

const PREAMBLE: &str = "\
/*
 * swarmllm: an LLM swarm that you can link.
 *
 * Generated from swarmllm-ffi; do not edit. `SWARMLLM_BLESS=1 cargo test -p swarmllm-ffi` regenerates it.
 *
 * Calls. Every call that can fail returns a `swarmllm_status`: SWARMLLM_OK, or the number of an error kind. The numbers
 * are stable. `swarmllm_last_error` copies the message of the calling thread's last failed call. A result that a
 * failing call did not write is empty: handle 0, or {NULL, 0}.
 *
 * Handles are numbers, not pointers. A handle that is 0, freed, or of another kind gives an error; it never crashes, and
 * never refers to a newer object. Free each handle once.
 *
 * Text. Arguments are UTF-8 with a closing NUL; the library does not keep them after the call. Results are
 * `swarmllm_string`: read-only, owned by the caller until `swarmllm_string_free`.
 *
 * Threads. Every call may be made from any thread, concurrently, on the same handles too. Calls that wait (start, connect,
 * import, examine, pull, pin, aliases, remove, make room, plan, embed, chat, generate, next, completion, shutdown) block
 * the calling thread; on a thread of an async runtime they fail with SWARMLLM_UNSUPPORTED. A progress function is called on
 * the thread that made the call, before the call returns. The last error is kept per thread. In a process forked after a
 * node had started, calls on that node fail with SWARMLLM_FORKED.
 *
 * The library starts its own threads with the first node. It installs no signal handler, allocator or logger.
 */";

/// The path of a file of the repository.
fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// `ModelNotFound` -> `SWARMLLM_MODEL_NOT_FOUND`.
fn constant(name: &str) -> String {
    let mut text = String::from("SWARMLLM");
    for letter in name.chars() {
        if letter.is_uppercase() {
            text.push('_');
        }
        text.push(letter.to_ascii_uppercase());
    }
    text
}

fn codes() -> String {
    let line = |kind: &ErrorKind| format!("  {} = {},\n", constant(kind.name()), kind.code());
    let kinds: String = ErrorKind::ALL.iter().map(line).collect();
    format!(
        "\n/** Status codes: 1xx usage, 2xx models, 3xx swarm, 4xx ledger, 5xx host system, 9xx defects of the library. */\nenum {{\n  SWARMLLM_OK = 0,\n{kinds}}};"
    )
}

fn header() -> String {
    let mut config = Config {
        language: Language::C,
        style: Style::Type,
        cpp_compat: true,
        usize_is_size_t: true,
        no_includes: true,
        line_length: 110,
        documentation_style: DocumentationStyle::Doxy,
        header: Some(PREAMBLE.to_owned()),
        include_guard: Some("SWARMLLM_H".to_owned()),
        sys_includes: vec!["stddef.h".to_owned(), "stdint.h".to_owned()],
        after_includes: Some(codes()),
        ..Config::default()
    };
    config.export.include = ["swarmllm_preset", "swarmllm_delta_kind", "swarmllm_pooling"].map(str::to_owned).to_vec();
    config.export.item_types =
        vec![ItemType::Enums, ItemType::Structs, ItemType::Typedefs, ItemType::Functions, ItemType::Constants];
    config.export.rename.insert("OwnedText".to_owned(), "const char *".to_owned());
    config.export.exclude = ["MAX_NAME", "MAX_TEXT", "OwnedText"].map(str::to_owned).to_vec();
    let sources = ["status", "text", "config", "node", "generation"];
    let builder = sources.iter().fold(Builder::new().with_config(config), |builder, source| {
        builder.with_src(repository(&format!("swarmllm-ffi/src/{source}.rs")))
    });
    let mut text = Vec::new();
    builder.generate().expect("the crate's own source parses").write(&mut text);
    String::from_utf8(text).expect("source is UTF-8")
}

#[test]
fn the_committed_header_is_the_generated_one() {
    let path = repository("include/swarmllm.h");
    let generated = header();
    if std::env::var_os("SWARMLLM_BLESS").is_some() {
        std::fs::create_dir_all(repository("include")).expect("include/ can be made");
        std::fs::write(&path, &generated).expect("the header can be written");
    }
    let committed = std::fs::read_to_string(&path).expect("include/swarmllm.h is committed");
    assert!(committed == generated, "include/swarmllm.h is stale: run this test with SWARMLLM_BLESS=1");
}

#[test]
fn every_error_kind_and_every_export_is_in_the_header() {
    let header = header();
    for kind in ErrorKind::ALL {
        let line = format!("  {} = {},", constant(kind.name()), kind.code());
        assert!(header.contains(&line), "{line}");
    }
    let mut exports = 0;
    for source in std::fs::read_dir(repository("swarmllm-ffi/src")).expect("the crate has sources") {
        let source = std::fs::read_to_string(source.expect("an entry").path()).expect("a source");
        for export in source.split("extern \"C\" fn swarmllm_").skip(1) {
            let name = export.split('(').next().unwrap_or_default();
            assert!(header.contains(&format!("swarmllm_{name}(")), "{name}");
            exports += 1;
        }
    }
    assert!(exports > 30, "{exports} exports were found");
}
