//! Circles: files, and sibling folders, of `swarmllm-core` that import each other.
//!
//! A file imports what its paths name, in `use` and elsewhere: by `crate::`, `super::`, `self::` or the name of a child. A
//! public re-export is a signpost: it is no import of the file that has it, and who goes by it imports what it leads to. `mod
//! x;` alone is no import, and test code counts for nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use super::{Source, core, is_name, sources, tokens};

/// Where the files lie whose imports are looked at.
const CORE: &str = "swarmllm-core/src/";
/// Files of the largest circle: files that import each other are read together.
const CIRCLE_FILES: usize = 3;
/// Rooms whose folders stack: no two of them import each other, directly or not.
const STACKED: &[&str] = &["node", "pipeline"];
/// Re-exports that lead to re-exports, at most.
const SIGNPOSTS: usize = 8;

/// Who imports whom, by names.
type Graph = BTreeMap<String, BTreeSet<String>>;

/// A path that a file names.
struct Named {
    segments: Vec<String>,
    /// What it is called where it is imported.
    called: String,
    is_reexport: bool,
    /// Inline modules around it.
    inline: usize,
}

/// A file of the core with what it names.
struct File {
    /// Below the core's sources.
    path: String,
    module: Vec<String>,
    named: Vec<Named>,
}

impl File {
    /// None of a file that is not the core's, or is test code as a whole.
    fn of(source: &Source) -> Option<File> {
        let path = source.path.strip_prefix(CORE).filter(|_| source.test.iter().any(|test| !test))?;
        let mut module: Vec<String> = path.trim_end_matches(".rs").split('/').map(str::to_owned).collect();
        if module.last().is_some_and(|last| last == "mod" || last == "lib") {
            module.pop();
        }
        Some(File { path: path.to_owned(), module, named: named(source) })
    }

    /// A path from the crate's root; none where it does not begin with a module of ours.
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
                let named = |(segments, called)| Named { segments, called, is_reexport, inline: inline.len() };
                found.extend(uses.into_iter().map(named));
                continue;
            }
            word if is_name(word) && before(1) != "::" && before(1) != "in" && !in_test => {
                let segments: Vec<String> = path_at(&all, at);
                at += 2 * (segments.len() - 1);
                if segments.len() > 1 {
                    found.push(Named { segments, called: String::new(), is_reexport: false, inline: inline.len() });
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

/// Reads a tree of imports into its paths, each with what it is called; gives the place behind it.
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
                    // Over the comma, or what is no import.
                    at += usize::from(at == begun || tokens.get(at).is_some_and(|token| token.1 == ","));
                }
                return at + 1;
            }
            "as" => {
                let called = tokens.get(at + 1).map_or("", |token| token.1).to_owned();
                found.push((path, called));
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
    let called = path.last().cloned().unwrap_or_default();
    found.push((path, called));
    at
}

/// Which file of the core imports which.
fn between_files(sources: &[Source]) -> Graph {
    let files: Vec<File> = sources.iter().filter_map(File::of).collect();
    let modules: Modules = files.iter().map(|file| (file.module.clone(), file)).collect();
    let imported = |file: &File| {
        let paths = file.named.iter().filter(|named| !named.is_reexport);
        let targets = paths.filter_map(|named| target(&modules, file.absolute(named, &modules)?, SIGNPOSTS));
        targets.filter(|target| *target != file.path).collect()
    };
    files.iter().map(|file| (file.path.clone(), imported(file))).collect()
}

/// The file that has what a path names.
fn target(modules: &Modules, path: Vec<String>, signposts: usize) -> Option<String> {
    let longest = (0..=path.len()).rev().find(|len| modules.contains_key(&path[..*len]))?;
    let (file, rest) = (modules[&path[..longest]], &path[longest..]);
    let leads = |named: &&Named| named.is_reexport && Some(&named.called) == rest.first();
    if let Some(named) = file.named.iter().find(leads).filter(|_| signposts > 0)
        && let Some(further) = file.absolute(named, modules)
    {
        return target(modules, [&further[..], &rest[1..]].concat(), signposts - 1);
    }
    Some(file.path.clone())
}

/// Which folder below `parent` imports which other, as its files do. A file beside a folder of its name belongs to it.
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

/// The circles of a graph, the largest first: those that import each other, directly or not.
fn circles(graph: &Graph) -> Vec<Vec<String>> {
    let reached: BTreeMap<&String, BTreeSet<&String>> =
        graph.keys().map(|start| (start, reach(graph, start))).collect();
    let mut found: BTreeSet<Vec<String>> = BTreeSet::new();
    for (start, from_here) in &reached {
        let back = |other: &&&String| reached.get(**other).is_some_and(|from_there| from_there.contains(start));
        let circle: Vec<String> = from_here.iter().filter(back).map(|name| (*name).clone()).collect();
        found.extend((circle.len() > 1).then_some(circle));
    }
    let mut found: Vec<_> = found.into_iter().collect();
    found.sort_by_key(|circle| std::cmp::Reverse(circle.len()));
    found
}

/// Everything that is imported from `start` on; itself where it is in a circle.
fn reach<'a>(graph: &'a Graph, start: &'a String) -> BTreeSet<&'a String> {
    let (mut seen, mut open) = (BTreeSet::new(), vec![start]);
    while let Some(next) = open.pop().and_then(|name| graph.get(name)) {
        open.extend(next.iter().filter(|name| seen.insert(*name)));
    }
    seen
}

#[test]
fn no_large_circle_of_files_import_each_other() {
    let circles = circles(&between_files(&sources()));
    circles.iter().for_each(|circle| println!("a circle of {}: {}", circle.len(), circle.join(" ")));
    let mut report = String::new();
    for circle in circles.iter().filter(|circle| circle.len() > CIRCLE_FILES) {
        let _ = writeln!(report, "  {} files, at most {CIRCLE_FILES}: {}", circle.len(), circle.join(" "));
    }
    assert!(report.is_empty(), "\n{report}");
}

#[test]
fn sibling_folders_stack() {
    let files = between_files(&sources());
    for room in STACKED {
        let circles = circles(&between_folders(&files, room));
        assert!(circles.is_empty(), "folders of `{room}` that import each other: {circles:?}");
    }
}

/// The circles of files of the core with these texts.
fn circles_of(files: &[(&str, &str)]) -> Vec<Vec<String>> {
    let sources: Vec<Source> = files.iter().map(|(path, text)| core(path, text)).collect();
    circles(&between_files(&sources))
}

#[test]
fn a_circle_of_files_is_found_whatever_the_form_of_its_imports() {
    let back = ("net/b.rs", "use super::a::{self, A};");
    for form in [
        "use crate::net::b::B;",
        "use crate::{base::X, net::{c, b::{B, C}}};",
        "fn f() { super::b::g() }",
        "mod inner { use super::super::b::B; }",
        "use super::B;",
        "use super::Renamed;",
    ] {
        let signpost = ("net/mod.rs", "mod a; mod b; pub use b::B; pub(crate) use b::C as Renamed;");
        assert_eq!(circles_of(&[("net/a.rs", form), back, signpost]), [["net/a.rs", "net/b.rs"]], "{form}");
    }
    let parent = [("net/mod.rs", "mod a; use a::A; pub struct B;"), ("net/a.rs", "use super::B;")];
    assert_eq!(circles_of(&parent), [["net/a.rs", "net/mod.rs"]]);
}

#[test]
fn a_declaration_a_signpost_and_a_test_make_no_circle() {
    let child = ("net/a.rs", "use super::B;");
    for parent in [
        "mod a; pub struct B;",
        "mod a; pub use a::A; pub struct B;",
        "mod a; #[cfg(test)] mod tests { use super::a::A; }",
    ] {
        assert_eq!(circles_of(&[("net/mod.rs", parent), child]), Vec::<Vec<String>>::new(), "{parent}");
    }
}

#[test]
fn folders_that_import_each_other_by_different_files_are_found() {
    let files = [
        ("node/web/a.rs", "use crate::node::api::c::C;"),
        ("node/web/b.rs", ""),
        ("node/api.rs", "use crate::node::web::b::B;"),
        ("node/api/c.rs", ""),
    ];
    assert_eq!(circles_of(&files), Vec::<Vec<String>>::new());
    let sources: Vec<Source> = files.iter().map(|(path, text)| core(path, text)).collect();
    let folders = between_folders(&between_files(&sources), "node");
    assert_eq!(circles(&folders), [["api", "web"]]);
}
