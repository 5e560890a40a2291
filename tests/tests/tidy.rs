//! Source checks: imports between modules, lengths of functions and files, places of `unsafe` and `unwrap`.
//!
//! Reads sources as text with a minimal lexer for comments, literals and braces. Uses `std` only, so that it can run first.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

#[path = "tidy/cycles.rs"]
mod cycles;

/// Each module of `swarmllm-core` with the modules that it may import. A module comes after all modules that it may import,
/// so the table excludes cycles.
const ALLOWED_IMPORTS: &[(&str, &[&str])] = &[
    ("base", &[]),
    ("identity", &["base"]),
    ("wire", &["base", "identity"]),
    ("rt", &["base"]),
    ("store", &["base", "identity", "wire", "rt"]),
    ("ledger", &["base", "identity", "wire", "rt", "store"]),
    ("model", &["base", "identity", "wire", "rt", "store"]),
    ("engine", &["base", "rt", "model"]),
    ("net", &["base", "identity", "wire", "rt"]),
    ("pipeline", &["base", "identity", "wire", "rt", "store", "ledger", "model", "engine", "net"]),
    ("node", &["base", "identity", "wire", "rt", "store", "ledger", "model", "engine", "net", "pipeline"]),
    ("server", &["base", "node"]),
];
/// Packages whose sources are checked.
const PACKAGES: &[&str] = &["swarmllm-core", "swarmllm-ffi", "swarmllm-py", "swarmllm-cli", "tests", "examples"];
/// Paths where `unsafe` is allowed.
const UNSAFE_ALLOWED: &[&str] = &["swarmllm-ffi/src/", "swarmllm-core/src/engine/llama_cpp/"];
/// Paths where `unwrap` and similar calls are allowed.
const PANIC_ALLOWED: &[&str] = &["tests/", "examples/"];
/// Maximum code lines of a function.
const FUNCTION_LINES: usize = 70;
/// Maximum code lines of a file.
const FILE_LINES: usize = 600;
/// Maximum lines of the core's `lib.rs`, comments included.
const LIB_LINES: usize = 150;
/// Minimum words of an `expect` message that counts as a reason.
const REASON_WORDS: usize = 3;
/// Maximum lines between a `SAFETY` comment and its `unsafe`, for a statement over several lines.
const SAFETY_REACH: usize = 3;

/// A source file: its text, and its code with comments and literal contents blanked out.
struct Source {
    /// Path from the repository's root, with forward slashes.
    path: String,
    text: String,
    code: String,
    /// Per line, whether it is test code.
    test: Vec<bool>,
}

impl Source {
    fn new(path: &str, text: &str) -> Source {
        let code = blank(text);
        let mut test = vec![is_test_file(path); code.lines().count() + 1];
        for (start, end) in test_regions(&code) {
            test[line_of(&code, start)..=line_of(&code, end)].fill(true);
        }
        Source { path: path.to_owned(), text: text.to_owned(), code, test }
    }

    fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.code.lines().enumerate()
    }

    fn original(&self, line: usize) -> &str {
        self.text.lines().nth(line).unwrap_or_default()
    }

    fn at(&self, line: usize) -> String {
        format!("{}:{}", self.path, line + 1)
    }
}

fn is_test_file(path: &str) -> bool {
    path.starts_with("tests/") || path.ends_with("/tests.rs") || path.contains("/tests/")
}

fn line_of(code: &str, offset: usize) -> usize {
    code[..offset].matches('\n').count()
}

/// Replaces comments and the contents of string and character literals with spaces; offsets and lines are preserved.
fn blank(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        let end = match rest {
            [b'/', b'/', ..] => at + rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len()),
            [b'/', b'*', ..] => at + block_comment(rest),
            [b'"', ..] => at + quoted(rest),
            [b'r', b'"' | b'#', ..] if !is_word(bytes, at) => at + raw_string(rest),
            [b'\'', ..] => at + character(&text[at..]),
            _ => at + 1,
        };
        if end > at + 1 {
            let keep_quotes = usize::from(rest[0] != b'/');
            for byte in &mut out[at + keep_quotes..end - keep_quotes] {
                if *byte != b'\n' {
                    *byte = b' ';
                }
            }
        }
        at = end.max(at + 1);
    }
    String::from_utf8(out).expect("blanks replace whole characters")
}

/// Whether the byte before `at` belongs to the same word (`for"`, `attr#`); `b` and `c` prefixes do not count.
fn is_word(bytes: &[u8], at: usize) -> bool {
    let before = |back: usize| at.checked_sub(back).map_or(b' ', |index| bytes[index]);
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    match before(1) {
        b'b' | b'c' => word(before(2)),
        other => word(other),
    }
}

fn block_comment(rest: &[u8]) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        match &rest[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

fn quoted(rest: &[u8]) -> usize {
    let mut at = 1;
    while at < rest.len() {
        match rest[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

fn raw_string(rest: &[u8]) -> usize {
    let hashes = rest[1..].iter().take_while(|byte| **byte == b'#').count();
    if rest.get(1 + hashes) != Some(&b'"') {
        return 1;
    }
    let close = [b"\"".as_slice(), &b"#".repeat(hashes)].concat();
    let body = 2 + hashes;
    let found = rest[body..].windows(close.len()).position(|window| window == close);
    found.map_or(rest.len(), |at| body + at + close.len())
}

/// The length of a character literal; 1 for a lifetime.
fn character(rest: &str) -> usize {
    let mut chars = rest.char_indices().skip(1);
    match chars.next() {
        Some((_, '\\')) => rest[3..].find('\'').map_or(1, |at| 3 + at + 1),
        Some(_) => match chars.next() {
            Some((at, '\'')) => at + 1,
            _ => 1,
        },
        None => 1,
    }
}

/// The offset of the brace that closes the brace at `open`.
fn closing(code: &str, open: usize) -> usize {
    let mut depth = 0;
    for (at, byte) in code.bytes().enumerate().skip(open) {
        match byte {
            b'{' => depth += 1,
            b'}' if depth == 1 => return at,
            b'}' => depth -= 1,
            _ => {}
        }
    }
    code.len()
}

/// The tokens of code with their offsets; `::` is one token.
fn tokens(code: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(next) = code[at..].chars().next() {
        let word = |c: char| c.is_alphanumeric() || c == '_';
        let len = match next {
            c if word(c) => code[at..].find(|c| !word(c)).unwrap_or(code.len() - at),
            ':' if code[at..].starts_with("::") => 2,
            c => c.len_utf8(),
        };
        if !next.is_whitespace() {
            found.push((at, &code[at..at + len]));
        }
        at += len;
    }
    found
}

/// Regions of inline modules and functions under `#[cfg(test)]` (or `cfg(all(test, ..))`).
fn test_regions(code: &str) -> Vec<(usize, usize)> {
    let mut regions = Vec::new();
    let mut from = 0;
    while let Some(found) = code[from..].find("#[cfg(").map(|at| from + at) {
        let end = code[found..].find(']').map_or(code.len(), |at| found + at);
        let names_test = tokens(&code[found..end]).iter().any(|(_, token)| *token == "test");
        let negated = code[found..end].contains("not(");
        let body = code[end..].find(['{', ';']).map(|at| end + at);
        from = end;
        if let (true, false, Some(open)) = (names_test, negated, body) {
            let close = if code[open..].starts_with('{') { closing(code, open) } else { open };
            regions.push((found, close.min(code.len() - 1)));
            from = close;
        }
    }
    regions
}

/// The modules that a file of the core imports by `crate::`, `super::` or a group, with the line of each.
fn imports(source: &Source) -> Vec<(String, usize)> {
    let Some(inside) = source.path.strip_prefix("swarmllm-core/src/") else { return Vec::new() };
    let mut module: Vec<&str> = inside.trim_end_matches(".rs").split('/').collect();
    if module.last() == Some(&"mod") {
        module.pop();
    }
    let tokens = tokens(&source.code);
    let (mut found, mut depth, mut inline) = (Vec::new(), 0, Vec::new());
    let mut at = 0;
    while at < tokens.len() {
        match tokens[at].1 {
            "{" => depth += 1,
            "}" => {
                depth -= 1;
                inline.retain(|opened| *opened <= depth);
            }
            "mod" if tokens.get(at + 2).is_some_and(|token| token.1 == "{") => inline.push(depth + 1),
            "crate" => collect_roots(&tokens, at + 1, &mut found),
            "super" if at == 0 || tokens[at - 1].1 != "::" => {
                let up = tokens[at..].chunks(2).take_while(|pair| pair[0].1 == "super").count();
                if up >= module.len() + inline.len() {
                    collect_roots(&tokens, at + 2 * up - 1, &mut found);
                }
            }
            _ => {}
        }
        at += 1;
    }
    found.into_iter().map(|(module, offset)| (module, line_of(&source.code, offset))).collect()
}

/// The first path segments after a `::` at `at`: one name, or those of a group.
fn collect_roots(tokens: &[(usize, &str)], at: usize, found: &mut Vec<(String, usize)>) {
    if tokens.get(at).is_none_or(|token| token.1 != "::") {
        return;
    }
    let Some(&(offset, first)) = tokens.get(at + 1) else { return };
    if first != "{" {
        return found.push((first.to_owned(), offset));
    }
    let (mut depth, mut fresh) = (0, false);
    for &(offset, token) in &tokens[at + 1..] {
        match token {
            "{" => (depth, fresh) = (depth + 1, depth == 0),
            "}" if depth == 1 => return,
            "}" => depth -= 1,
            "," => fresh = depth == 1,
            name if fresh && depth == 1 => {
                found.push((name.to_owned(), offset));
                fresh = false;
            }
            _ => {}
        }
    }
}

fn forbidden_imports(source: &Source) -> Vec<String> {
    let module = source.path.trim_start_matches("swarmllm-core/src/").split('/').next().unwrap_or_default();
    let Some((_, allowed)) = ALLOWED_IMPORTS.iter().find(|(name, _)| module == *name || module == format!("{name}.rs"))
    else {
        return Vec::new();
    };
    let known = |name: &str| ALLOWED_IMPORTS.iter().any(|(module, _)| *module == name);
    imports(source)
        .into_iter()
        .filter(|(name, _)| name != module && known(name) && !allowed.contains(&name.as_str()))
        .map(|(name, line)| format!("{}: `{module}` may not import `{name}`", source.at(line)))
        .collect()
}

/// Code lines between two offsets.
fn code_lines(code: &str) -> usize {
    code.lines().filter(|line| !line.trim().is_empty()).count()
}

/// Line, name and code lines of each function.
fn functions(source: &Source) -> Vec<(usize, String, usize)> {
    let (tokens, mut found) = (tokens(&source.code), Vec::new());
    for (index, (offset, token)) in tokens.iter().enumerate() {
        let Some((_, name)) = tokens.get(index + 1).filter(|(_, name)| *token == "fn" && is_name(name)) else {
            continue;
        };
        let Some(open) = function_body(&tokens[index..]) else { continue };
        let lines = code_lines(&source.code[open..closing(&source.code, open)]).saturating_sub(1);
        found.push((line_of(&source.code, *offset), (*name).to_owned(), lines));
    }
    found
}

fn length_violations(source: &Source) -> Vec<String> {
    let mut found = Vec::new();
    let all = code_lines(&source.code);
    if all > FILE_LINES {
        found.push(format!("{}: {all} code lines, at most {FILE_LINES}", source.path));
    }
    let long = functions(source).into_iter().filter(|(_, _, lines)| *lines > FUNCTION_LINES);
    found.extend(long.map(|(line, name, lines)| {
        format!("{}: fn {name} has {lines} code lines, at most {FUNCTION_LINES}", source.at(line))
    }));
    found
}

fn is_name(token: &str) -> bool {
    token.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// The offset of the opening brace of a function's body; `None` for a declaration.
fn function_body(tokens: &[(usize, &str)]) -> Option<usize> {
    let mut depth = 0;
    for &(offset, token) in tokens {
        match token {
            "(" | "[" => depth += 1,
            ")" | "]" => depth -= 1,
            ";" if depth == 0 => return None,
            "{" if depth == 0 => return Some(offset),
            _ => {}
        }
    }
    None
}

fn unsafe_violations(source: &Source) -> Vec<String> {
    let mut found = Vec::new();
    let tokens = tokens(&source.code);
    for (index, (offset, _)) in tokens.iter().enumerate().filter(|(_, (_, token))| *token == "unsafe") {
        let line = line_of(&source.code, *offset);
        if !UNSAFE_ALLOWED.iter().any(|place| source.path.starts_with(place)) {
            found.push(format!("{}: `unsafe` is allowed only in {}", source.at(line), UNSAFE_ALLOWED.join(" and ")));
            continue;
        }
        let is_block = tokens.get(index + 1).is_some_and(|(_, next)| matches!(*next, "{" | "impl"));
        if is_block && !has_safety(source, line) {
            found.push(format!("{}: `unsafe` without a `// SAFETY:` line above it", source.at(line)));
        }
    }
    found
}

fn has_safety(source: &Source, line: usize) -> bool {
    if source.original(line).contains("// SAFETY:") {
        return true;
    }
    let mut code_between = 0;
    for above in (0..line).rev() {
        let text = source.original(above).trim();
        if text.starts_with("// SAFETY:") {
            return true;
        }
        if !text.starts_with("//") {
            code_between += 1;
        }
        if code_between > SAFETY_REACH {
            return false;
        }
    }
    false
}

/// Outside tests: no `unwrap()`, no `panic!`, no `todo!`. `expect` needs a reason, as a message of some words or a
/// `// reason:` comment on its line or the line above.
fn panics(source: &Source) -> Vec<String> {
    if PANIC_ALLOWED.iter().any(|place| source.path.starts_with(place)) {
        return Vec::new();
    }
    let mut found = Vec::new();
    for (line, code) in source.lines().filter(|(line, _)| !source.test[*line]) {
        for word in [".unwrap()", ".unwrap_err()", "panic!(", "todo!(", "unimplemented!("] {
            if code.contains(word) && !code.contains("debug_assert") {
                found.push(format!("{}: `{word}` outside tests", source.at(line)));
            }
        }
        if code.contains(".expect(") && !has_reason(source, line) {
            found.push(format!("{}: `expect` without a reason", source.at(line)));
        }
    }
    found
}

fn has_reason(source: &Source, line: usize) -> bool {
    let text = source.original(line);
    let above = line.checked_sub(1).map_or("", |line| source.original(line));
    let argument = text.split(".expect(").nth(1).unwrap_or_default().trim();
    let argument = if argument.is_empty() { source.original(line + 1).trim() } else { argument };
    let message = argument.strip_prefix('"').and_then(|rest| rest.split('"').next()).unwrap_or_default();
    let reasoned = |text: &str| text.contains("// reason:");
    message.split_whitespace().count() >= REASON_WORDS || reasoned(text) || reasoned(above)
}

fn missing_docs(source: &Source) -> Vec<String> {
    let first = source.text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
    let inner_test = !source.path.starts_with("tests/") && source.test.iter().all(|test| *test);
    if first.starts_with("//!") || inner_test {
        Vec::new()
    } else {
        vec![format!("{}: begins without `//!`", source.path)]
    }
}

fn root() -> PathBuf {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    here.parent().expect("the package lies in the workspace").to_owned()
}

/// Files below `dir` that `want` accepts, without hidden directories and build outputs.
fn walk(dir: &Path, want: &dyn Fn(&Path) -> bool, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        let Ok(kind) = entry.file_type() else { continue };
        let skipped = ["target", ".git", ".venv", "__pycache__"].contains(&name.as_str());
        match kind.is_dir() {
            true if !skipped => walk(&path, want, found),
            false if !skipped && want(&path) => found.push(path),
            _ => {}
        }
    }
}

fn relative(path: &Path) -> String {
    let path = path.strip_prefix(root()).unwrap_or(path);
    path.to_string_lossy().replace('\\', "/")
}

fn sources() -> Vec<Source> {
    let mut paths = Vec::new();
    let rust = |path: &Path| path.extension().is_some_and(|extension| extension == "rs");
    PACKAGES.iter().for_each(|package| walk(&root().join(package), &rust, &mut paths));
    paths.sort();
    let read = |path: &PathBuf| fs::read_to_string(path).expect("a source file is UTF-8");
    let mut sources: Vec<Source> = paths.iter().map(|path| Source::new(&relative(path), &read(path))).collect();
    assert!(sources.len() > PACKAGES.len(), "the sources were found");
    mark_test_modules(&mut sources);
    sources
}

/// Marks files as test code that their parent declares as `#[cfg(test)] mod name;`.
fn mark_test_modules(sources: &mut [Source]) {
    let mut test_files = BTreeSet::new();
    for source in &*sources {
        let dir = source.path.rsplit_once('/').map_or("", |(dir, _)| dir);
        let own = source.path.trim_end_matches(".rs").trim_end_matches("/mod").to_owned();
        for (start, end) in test_regions(&source.code) {
            let words = tokens(&source.code[start..=end]);
            let names =
                words.windows(3).filter(|three| three[0].1 == "mod" && three[2].1 == ";").map(|three| three[1].1);
            for name in names {
                test_files.extend([format!("{dir}/{name}"), format!("{own}/{name}")]);
            }
        }
    }
    for source in sources {
        if test_files
            .iter()
            .any(|name| source.path == format!("{name}.rs") || source.path.starts_with(&format!("{name}/")))
        {
            source.test.fill(true);
        }
    }
}

fn check(rule: impl Fn(&Source) -> Vec<String>) {
    let mut report = String::new();
    for line in sources().iter().flat_map(rule) {
        let _ = writeln!(report, "  {line}");
    }
    assert!(report.is_empty(), "\n{report}");
}

#[test]
fn modules_import_only_what_the_table_allows() {
    check(forbidden_imports);
}

#[test]
fn the_table_lists_every_module_in_dependency_order() {
    for (index, (module, allowed)) in ALLOWED_IMPORTS.iter().enumerate() {
        for name in *allowed {
            let position = ALLOWED_IMPORTS.iter().position(|(below, _)| below == name);
            assert!(
                position.is_some_and(|position| position < index),
                "`{module}` may import `{name}`, which does not come before it"
            );
        }
    }
    let mut modules: Vec<String> = Vec::new();
    for entry in fs::read_dir(root().join("swarmllm-core/src")).expect("the core has sources").flatten() {
        modules.push(entry.file_name().to_string_lossy().trim_end_matches(".rs").to_owned());
    }
    let unknown: Vec<_> = modules
        .iter()
        .filter(|module| *module != "lib" && ALLOWED_IMPORTS.iter().all(|(name, _)| name != module))
        .collect();
    assert!(unknown.is_empty(), "modules missing in the table: {unknown:?}");
}

#[test]
fn modules_have_no_import_cycle() {
    let mut graph: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for source in sources().iter().filter(|source| source.path.starts_with("swarmllm-core/src/")) {
        let Some((module, _)) = source.path["swarmllm-core/src/".len()..].split_once('/') else { continue };
        let known = imports(source).into_iter().map(|(name, _)| name).filter(|name| name != module);
        graph.entry(module.to_owned()).or_default().extend(known);
    }
    for start in graph.keys() {
        let (mut seen, mut open) = (BTreeSet::new(), vec![start]);
        while let Some(next) = open.pop().and_then(|module| graph.get(module)) {
            assert!(!next.contains(start), "import cycle: `{start}` is imported by a module that it imports");
            open.extend(next.iter().filter(|module| seen.insert((*module).clone())));
        }
    }
}

#[test]
fn every_file_has_module_docs() {
    check(missing_docs);
}

/// Prints statistics, visible with `--nocapture`.
fn print_numbers() {
    let (sources, mut lengths) = (sources(), Vec::new());
    for source in &sources {
        let outside = functions(source).into_iter().filter(|(line, _, _)| !source.test[*line]);
        lengths.extend(outside.map(|(line, name, lines)| (lines, format!("{name} at {}", source.at(line)))));
    }
    lengths.sort();
    let longest = lengths.last().expect("there are functions");
    println!("{} files, tests included", sources.len());
    println!("{} functions outside tests, the longest of {} code lines: {}", lengths.len(), longest.0, longest.1);
    println!("nine of ten functions have at most {} code lines", lengths[lengths.len() * 9 / 10].0);
}

#[test]
fn functions_and_files_stay_short() {
    check(length_violations);
    print_numbers();
    let lib = fs::read_to_string(root().join("swarmllm-core/src/lib.rs")).expect("the core has a lib.rs");
    assert!(lib.lines().count() <= LIB_LINES, "lib.rs has at most {LIB_LINES} lines");
}

#[test]
fn paths_in_the_architecture_document_exist() {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).expect("there is an architecture");
    let paths: Vec<String> = sources().into_iter().map(|source| format!("/{}", source.path)).collect();
    let names_one = |name: &&str| {
        let module = name.split_once('/').map_or("", |(module, _)| module);
        !name.contains(' ') && (name.ends_with(".rs") || ALLOWED_IMPORTS.iter().any(|(known, _)| *known == module))
    };
    let is_there = |name: &str| {
        paths.iter().any(|path| path.ends_with(&format!("/{name}")) || path.contains(&format!("/{name}/")))
    };
    // Every second piece between backticks is code.
    let gone: Vec<&str> = text.split('`').skip(1).step_by(2).filter(names_one).filter(|name| !is_there(name)).collect();
    assert!(gone.is_empty(), "the architecture document names missing paths: {gone:?}");
}

#[test]
fn unsafe_is_confined_and_has_safety_comments() {
    check(unsafe_violations);
}

#[test]
fn panics_have_a_stated_reason() {
    check(panics);
}

#[test]
fn no_file_has_registry_names_machine_paths_or_merge_markers() {
    // In halves, so that this file does not contain them.
    let names = [("crates", ".io"), ("pypi", ".org"), ("pythonhosted", ".org"), ("npmjs", ".com"), ("/wo", "rk/")];
    let marks = [("<<<<", "<<< "), (">>>>", ">>> ")];
    let names: Vec<String> = names.iter().chain(&marks).map(|(left, right)| format!("{left}{right}")).collect();
    let readable = |path: &Path| path.file_name().is_some_and(|name| name != "Cargo.lock");
    let mut paths = Vec::new();
    walk(&root(), &readable, &mut paths);
    let mut report = String::new();
    for path in paths {
        let Ok(text) = fs::read_to_string(&path) else { continue };
        for (line, text) in text.lines().enumerate() {
            for name in names.iter().filter(|name| text.contains(name.as_str())) {
                let _ = writeln!(report, "  {}:{}: `{name}`", relative(&path), line + 1);
            }
        }
    }
    assert!(report.is_empty(), "\n{report}");
}

// Tests of the checker: each rule finds violations and accepts allowed code.

fn core(module: &str, text: &str) -> Source {
    Source::new(&format!("swarmllm-core/src/{module}"), text)
}

#[test]
fn every_form_of_a_forbidden_import_is_found() {
    let forms = [
        "use crate::net::NetHandle;",
        "use crate::{base::NodeId, net::NetHandle};",
        "use crate::{\n    base::{self, NodeId},\n    net,\n};",
        "fn f() { let _ = crate::net::start; }",
        "use super::net::NetHandle;",
        "#[cfg(test)]\nmod tests { use super::super::net::NetHandle; }",
        "pub(crate) use crate::net;",
    ];
    for form in forms {
        assert_eq!(forbidden_imports(&core("engine/mod.rs", form)).len(), 1, "{form}");
    }
    assert_eq!(forbidden_imports(&core("engine/llama_cpp/load.rs", "use super::super::super::wire::job;")).len(), 1);
}

#[test]
fn an_allowed_import_passes() {
    let forms = [
        "use crate::{base::NodeId, model::Manifest, rt};",
        "use super::net::x;",
        "// use crate::net;",
        "\"crate::net\";",
    ];
    let allowed: Vec<_> =
        forms.iter().flat_map(|form| forbidden_imports(&core("engine/llama_cpp/load.rs", form))).collect();
    assert!(allowed.is_empty(), "{allowed:?}");
}

#[test]
fn literals_and_comments_are_not_code() {
    let text =
        "let a = \"unsafe { \\\" }\"; let b = '{'; /* unsafe /* { */ */ let c = r#\"unsafe \" {\"#; fn f<'a>() {}";
    let code = blank(text);
    assert_eq!(code.len(), text.len());
    assert!(!code.contains("unsafe") && code.contains("fn f<'a>() {}") && code.matches('{').count() == 1, "{code}");
}

#[test]
fn a_long_function_is_found() {
    let long = format!("fn f() {{\n{}}}\n", "    g();\n".repeat(FUNCTION_LINES + 1));
    let short = format!("fn f() {{\n{}\n// not code\n}}\n", "    g();\n".repeat(FUNCTION_LINES));
    assert_eq!(length_violations(&core("base/id.rs", &long)).len(), 1);
    assert_eq!(length_violations(&core("base/id.rs", &short)).len(), 0);
}

#[test]
fn an_unexplained_unsafe_or_unwrap_is_found() {
    assert_eq!(unsafe_violations(&core("base/id.rs", "// SAFETY: no.\nunsafe { g() }")).len(), 1);
    assert_eq!(unsafe_violations(&core("engine/llama_cpp/sys.rs", "unsafe { g() }")).len(), 1);
    assert_eq!(unsafe_violations(&core("engine/llama_cpp/sys.rs", "// SAFETY: g is fine.\nunsafe { g() }")).len(), 0);
    for bad in ["x.unwrap();", "x.expect(\"\");", "x.expect(reason);", "todo!()", "panic!(\"no\")"] {
        assert_eq!(panics(&core("base/id.rs", bad)).len(), 1, "{bad}");
    }
    let fine = "x.expect(\"the lock is never poisoned\");\n#[cfg(test)]\nmod tests {\n fn f() { x.unwrap() }\n}\n";
    assert_eq!(panics(&core("base/id.rs", fine)), Vec::<String>::new());
}
