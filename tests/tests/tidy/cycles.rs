//! Import cycles of files, and of sibling folders, of `swarmllm-core`.
//!
//! A file imports what its paths name, in `use` and elsewhere: by `crate::`, `super::`, `self::` or the name of a child. A
//! public re-export is not an import of its file; a path through it imports the target. `mod x;` alone is not an import, and
//! test code does not count.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use super::{Source, core, is_name, sources, tokens};

/// The folder of the checked files.
const CORE: &str = "swarmllm-core/src/";
/// Maximum files of an import cycle: files of a cycle must be read together.
const MAX_CYCLE_FILES: usize = 3;
/// Modules whose folders have no import cycle.
const STACKED: &[&str] = &["node", "pipeline"];
/// Maximum chain of re-exports.
const MAX_REEXPORTS: usize = 8;

/// Imports by name.
type Graph = BTreeMap<String, BTreeSet<String>>;

/// A path in a file.
struct Named {
    segments: Vec<String>,
    /// The imported name.
    imported_as: String,
    is_reexport: bool,
    /// Inline modules around it.
    inline: usize,
}

/// A file of the core with its paths.
struct File {
    /// Below the core's sources.
    path: String,
    module: Vec<String>,
    named: Vec<Named>,
}

impl File {
    /// `None` for files outside the core and for test files.
    fn of(source: &Source) -> Option<File> {
        let path = source.path.strip_prefix(CORE).filter(|_| source.test.iter().any(|test| !test))?;
        let mut module: Vec<String> = path.trim_end_matches(".rs").split('/').map(str::to_owned).collect();
        if module.last().is_some_and(|last| last == "mod" || last == "lib") {
            module.pop();
        }
        Some(File { path: path.to_owned(), module, named: named(source) })
    }

    /// The path from the crate's root; `None` if it does not start with a module of the core.
    fn absolute(&self, named: &Named, files: &Modules) -> Option<Vec<String>> {
        let ups = named.segments.iter().take_while(|segment| *segment == "super").count();
        let (base, rest) = match named.segments.first()?.as_str() {
            "crate" => (&self.module[..0], &named.segments[1..]),
            "self" => (&self.module[..], &named.segments[1..]),
            "super" => {
                // Inline modules lie in this file.
                let above = self.module.len().checked_sub(ups.checked_sub(named.inline)?)?;
                (&self.module[..above], &named.segments[ups..])
            }
            child => {
                let module = [&self.module[..], &[child.to_owned()]].concat();
                files.contains_key(&module).then_some(())?;
                (&self.module[..], &named.segments[..])
            }
        };
        Some([base, rest].concat())
    }
}

/// Files by the paths of their modules.
type Modules<'a> = BTreeMap<Vec<String>, &'a File>;

/// The paths that a file names outside of tests.
fn named(source: &Source) -> Vec<Named> {
    let all = tokens(&source.code);
    let line_ends: Vec<usize> = source.code.match_indices('\n').map(|(end, _)| end).collect();
    let (mut found, mut depth, mut inline, mut at) = (Vec::new(), 0, Vec::new(), 0);
    while let Some(&(offset, token)) = all.get(at) {
        let before = |back: usize| at.checked_sub(back).and_then(|at| all.get(at)).map_or("", |token| token.1);
        let in_test = source.test[line_ends.partition_point(|end| *end < offset)];
        match token {
            "{" => depth += 1,
            "}" => {
                depth -= 1;
                inline.retain(|opened| *opened <= depth);
            }
            "mod" if all.get(at + 2).is_some_and(|token| token.1 == "{") => inline.push(depth + 1),
            "use" if !in_test => {
                let is_reexport = matches!(before(1), "pub" | ")");
                let mut uses = Vec::new();
                at = use_tree(&all, at + 1, &[], &mut uses);
                let named =
                    |(segments, imported_as)| Named { segments, imported_as, is_reexport, inline: inline.len() };
                found.extend(uses.into_iter().map(named));
                continue;
            }
            word if is_name(word) && before(1) != "::" && before(1) != "in" && !in_test => {
                let segments: Vec<String> = path_at(&all, at);
                at += 2 * (segments.len() - 1);
                if segments.len() > 1 {
                    found.push(Named {
                        segments,
                        imported_as: String::new(),
                        is_reexport: false,
                        inline: inline.len(),
                    });
                }
            }
            _ => {}
        }
        at += 1;
    }
    found
}

/// The path that begins at a word.
fn path_at(tokens: &[(usize, &str)], at: usize) -> Vec<String> {
    let mut segments = vec![tokens[at].1.to_owned()];
    for pair in tokens[at + 1..].chunks_exact(2).take_while(|pair| pair[0].1 == "::" && is_name(pair[1].1)) {
        segments.push(pair[1].1.to_owned());
    }
    segments
}

/// Flattens a `use` tree into paths with their imported names; returns the index after it.
fn use_tree(
    tokens: &[(usize, &str)],
    mut at: usize,
    prefix: &[String],
    found: &mut Vec<(Vec<String>, String)>,
) -> usize {
    let mut path = prefix.to_vec();
    while let Some(&(_, token)) = tokens.get(at) {
        match token {
            "::" => at += 1,
            "{" => {
                at += 1;
                while tokens.get(at).is_some_and(|token| token.1 != "}") {
                    let begun = at;
                    at = use_tree(tokens, at, &path, found);
                    // Skips the comma or an unrelated token.
                    at += usize::from(at == begun || tokens.get(at).is_some_and(|token| token.1 == ","));
                }
                return at + 1;
            }
            "as" => {
                let imported_as = tokens.get(at + 1).map_or("", |token| token.1).to_owned();
                found.push((path, imported_as));
                return at + 2;
            }
            word if is_name(word) || word == "*" => {
                path.push(word.to_owned());
                at += 1;
            }
            _ => break,
        }
    }
    // `x::{self}` is `x`.
    if path.len() > 1 && path.last().is_some_and(|last| last == "self") {
        path.pop();
    }
    let imported_as = path.last().cloned().unwrap_or_default();
    found.push((path, imported_as));
    at
}

/// The import graph of the core's files.
fn between_files(sources: &[Source]) -> Graph {
    let files: Vec<File> = sources.iter().filter_map(File::of).collect();
    let modules: Modules = files.iter().map(|file| (file.module.clone(), file)).collect();
    let imported = |file: &File| {
        let paths = file.named.iter().filter(|named| !named.is_reexport);
        let targets = paths.filter_map(|named| target(&modules, file.absolute(named, &modules)?, MAX_REEXPORTS));
        targets.filter(|target| *target != file.path).collect()
    };
    files.iter().map(|file| (file.path.clone(), imported(file))).collect()
}

/// The file that defines the target of a path.
fn target(modules: &Modules, path: Vec<String>, reexports: usize) -> Option<String> {
    let longest = (0..=path.len()).rev().find(|len| modules.contains_key(&path[..*len]))?;
    let (file, rest) = (modules[&path[..longest]], &path[longest..]);
    let leads = |named: &&Named| named.is_reexport && Some(&named.imported_as) == rest.first();
    if let Some(named) = file.named.iter().find(leads).filter(|_| reexports > 0)
        && let Some(further) = file.absolute(named, modules)
    {
        return target(modules, [&further[..], &rest[1..]].concat(), reexports - 1);
    }
    Some(file.path.clone())
}

/// The import graph of folders below `parent`. A file beside a folder of the same name belongs to the folder.
fn between_folders(files: &Graph, parent: &str) -> Graph {
    let below = |path: &str| path.strip_prefix(parent).and_then(|rest| rest.strip_prefix('/')).map(str::to_owned);
    let folders: BTreeSet<String> =
        files.keys().filter_map(|path| Some(below(path)?.split_once('/')?.0.to_owned())).collect();
    let folder = |path: &str| {
        let rest = below(path)?;
        let first = rest.split('/').next()?.trim_end_matches(".rs").to_owned();
        folders.contains(&first).then_some(first)
    };
    let mut graph = Graph::new();
    for (file, imported) in files {
        let Some(from) = folder(file) else { continue };
        let others = imported.iter().filter_map(|path| folder(path)).filter(|to| *to != from).collect::<Vec<_>>();
        graph.entry(from).or_default().extend(others);
    }
    graph
}

/// The cycles (strongly connected components) of a graph, largest first.
fn cycles(graph: &Graph) -> Vec<Vec<String>> {
    let reached: BTreeMap<&String, BTreeSet<&String>> =
        graph.keys().map(|start| (start, reach(graph, start))).collect();
    let mut found: BTreeSet<Vec<String>> = BTreeSet::new();
    for (start, from_here) in &reached {
        let back = |other: &&&String| reached.get(**other).is_some_and(|from_there| from_there.contains(start));
        let cycle: Vec<String> = from_here.iter().filter(back).map(|name| (*name).clone()).collect();
        found.extend((cycle.len() > 1).then_some(cycle));
    }
    let mut found: Vec<_> = found.into_iter().collect();
    found.sort_by_key(|cycle| std::cmp::Reverse(cycle.len()));
    found
}

/// All nodes reachable from `start`; includes `start` if it is in a cycle.
fn reach<'a>(graph: &'a Graph, start: &'a String) -> BTreeSet<&'a String> {
    let (mut seen, mut open) = (BTreeSet::new(), vec![start]);
    while let Some(next) = open.pop().and_then(|name| graph.get(name)) {
        open.extend(next.iter().filter(|name| seen.insert(*name)));
    }
    seen
}

#[test]
fn import_cycles_of_files_are_small() {
    let cycles = cycles(&between_files(&sources()));
    cycles.iter().for_each(|cycle| println!("a cycle of {}: {}", cycle.len(), cycle.join(" ")));
    let mut report = String::new();
    for cycle in cycles.iter().filter(|cycle| cycle.len() > MAX_CYCLE_FILES) {
        let _ = writeln!(report, "  {} files, at most {MAX_CYCLE_FILES}: {}", cycle.len(), cycle.join(" "));
    }
    assert!(report.is_empty(), "\n{report}");
}

#[test]
fn sibling_folders_have_no_import_cycle() {
    let files = between_files(&sources());
    for module in STACKED {
        let cycles = cycles(&between_folders(&files, module));
        assert!(cycles.is_empty(), "folders of `{module}` that import each other: {cycles:?}");
    }
}

/// The cycles of core files with these texts.
fn cycles_of(files: &[(&str, &str)]) -> Vec<Vec<String>> {
    let sources: Vec<Source> = files.iter().map(|(path, text)| core(path, text)).collect();
    cycles(&between_files(&sources))
}

#[test]
fn a_cycle_of_files_is_found_in_every_import_form() {
    let back = ("net/b.rs", "use super::a::{self, A};");
    for form in [
        "use crate::net::b::B;",
        "use crate::{base::X, net::{c, b::{B, C}}};",
        "fn f() { super::b::g() }",
        "mod inner { use super::super::b::B; }",
        "use super::B;",
        "use super::Renamed;",
    ] {
        let reexport = ("net/mod.rs", "mod a; mod b; pub use b::B; pub(crate) use b::C as Renamed;");
        assert_eq!(cycles_of(&[("net/a.rs", form), back, reexport]), [["net/a.rs", "net/b.rs"]], "{form}");
    }
    let parent = [("net/mod.rs", "mod a; use a::A; pub struct B;"), ("net/a.rs", "use super::B;")];
    assert_eq!(cycles_of(&parent), [["net/a.rs", "net/mod.rs"]]);
}

#[test]
fn declarations_reexports_and_tests_make_no_cycle() {
    let child = ("net/a.rs", "use super::B;");
    for parent in [
        "mod a; pub struct B;",
        "mod a; pub use a::A; pub struct B;",
        "mod a; #[cfg(test)] mod tests { use super::a::A; }",
    ] {
        assert_eq!(cycles_of(&[("net/mod.rs", parent), child]), Vec::<Vec<String>>::new(), "{parent}");
    }
}

#[test]
fn cycles_of_folders_through_different_files_are_found() {
    let files = [
        ("node/web/a.rs", "use crate::node::api::c::C;"),
        ("node/web/b.rs", ""),
        ("node/api.rs", "use crate::node::web::b::B;"),
        ("node/api/c.rs", ""),
    ];
    assert_eq!(cycles_of(&files), Vec::<Vec<String>>::new());
    let sources: Vec<Source> = files.iter().map(|(path, text)| core(path, text)).collect();
    let folders = between_folders(&between_files(&sources), "node");
    assert_eq!(cycles(&folders), [["api", "web"]]);
}
