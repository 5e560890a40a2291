//! Resolution of model names: the known models that a text refers to, and similar names.
//!
//! A name is never the identity of a model. A node's own aliases take precedence over names from files or peers, so that
//! a peer cannot take over an alias.

use std::collections::BTreeSet;

use crate::base::ModelId;

/// Minimum digits of an id prefix; lists and errors show as many. Shorter ones occur as names (`7b`), and a prefix that is
/// unique today may become ambiguous when peers announce more models.
pub const MIN_ID_PREFIX: usize = 8;
/// Digits of an id: 32 bytes.
const ID_DIGITS: usize = 64;
/// Maximum bytes of a query: names have at most 128, and lower case adds at most half.
const MAX_TEXT: usize = 256;
/// Maximum names in a suggestion.
const MAX_SUGGESTED: usize = 3;
/// Maximum names compared with a query: 64 against 128 characters took 21 to 29 µs, so at most about 30 ms in total.
const MAX_COMPARED: usize = 1024;
/// Maximum characters of a query for similar names.
const MAX_CHARS: usize = 64;
/// Maximum edit distance of a similar name.
const MAX_EDITS: usize = 4;

/// Invisible characters, and characters that alter the display of others: soft hyphens, joiners, direction marks and
/// overrides, line separators, fillers, variation selectors, annotation, notation and tag characters. Inclusive ranges.
const HIDDEN: [(char, char); 22] = [
    ('\u{ad}', '\u{ad}'),
    ('\u{34f}', '\u{34f}'),
    ('\u{61c}', '\u{61c}'),
    ('\u{115f}', '\u{1160}'),
    ('\u{17b4}', '\u{17b5}'),
    ('\u{180b}', '\u{180f}'),
    ('\u{200b}', '\u{200f}'),
    ('\u{2028}', '\u{202e}'),
    ('\u{2060}', '\u{206f}'),
    ('\u{2800}', '\u{2800}'),
    ('\u{3164}', '\u{3164}'),
    ('\u{e000}', '\u{f8ff}'),
    ('\u{fe00}', '\u{fe0f}'),
    ('\u{feff}', '\u{feff}'),
    ('\u{ffa0}', '\u{ffa0}'),
    ('\u{fff0}', '\u{fffb}'),
    ('\u{fffe}', '\u{ffff}'),
    ('\u{13430}', '\u{1345f}'),
    ('\u{1bca0}', '\u{1bca3}'),
    ('\u{1d173}', '\u{1d17a}'),
    ('\u{e0000}', '\u{e0fff}'),
    ('\u{f0000}', '\u{10ffff}'),
];

/// Whether a character is invisible. With it, different names could look alike.
pub fn is_hidden(character: char) -> bool {
    character.is_control() || HIDDEN.iter().any(|(first, last)| (*first..=*last).contains(&character))
}

/// A text for display: hidden characters removed, each run of controls and white space replaced by a space.
pub fn visible(text: &str) -> String {
    let is_space = |character: char| character.is_control() || character.is_whitespace();
    let shown = text.chars().map(|character| if is_space(character) { ' ' } else { character });
    let shown: String = shown.filter(|character| !is_hidden(*character)).collect();
    shown.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Whether a text is read as an id prefix, which takes precedence over names.
pub fn is_like_id(text: &str) -> bool {
    (MIN_ID_PREFIX..=ID_DIGITS).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Whether a text is a prefix of one of these ids that is too short to be read as an id.
pub fn is_short_of_id(text: &str, mut models: impl Iterator<Item = ModelId>) -> bool {
    let is_short = !text.is_empty() && text.len() < MIN_ID_PREFIX && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_short && models.any(|model| begins(&model, fold(text)))
}

/// Whether the digits of an id begin with these characters.
fn begins(id: &ModelId, mut letters: impl Iterator<Item = char>) -> bool {
    let digits = id.as_bytes().iter().flat_map(|byte| [byte >> 4, byte & 15]);
    let mut digits = digits.filter_map(|digit| char::from_digit(digit.into(), 16));
    letters.all(|letter| digits.next() == Some(letter))
}

/// A known model and its names.
#[derive(Debug, Clone, Copy)]
pub struct NamedModel<'a> {
    /// The model.
    pub id: ModelId,
    /// Its names: first the aliases of this node, then names from files or peers.
    pub names: &'a [String],
    /// Number of aliases at the start of `names`.
    pub alias_count: usize,
}

/// Result of the resolution of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NameResolution {
    /// No known model.
    Unknown,
    /// This model.
    Model(ModelId),
    /// Any of these models, in ascending order of ids.
    Ambiguous(Vec<ModelId>),
}

/// How a text matches a model, by descending precedence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum NameMatch {
    /// The whole id.
    Id,
    /// A prefix of the id, as errors and lists show it.
    IdPrefix,
    /// An alias of this node, in exact case or any case.
    Alias,
    AliasWithoutCase,
    /// A name from a file or a peer, in exact case or any case.
    Hint,
    HintWithoutCase,
    /// A prefix of an alias or of such a name.
    AliasPrefix,
    HintPrefix,
}

/// A text to resolve.
struct Query<'a> {
    text: &'a str,
    folded: Vec<char>,
    id: Option<ModelId>,
}

impl Query<'_> {
    fn new(text: &str) -> Query<'_> {
        Query { text, folded: fold(text).collect(), id: text.parse().ok() }
    }

    /// The best match with the model. Does not allocate: peers can announce a million names.
    fn matches(&self, model: &NamedModel<'_>) -> Option<NameMatch> {
        if self.id == Some(model.id) {
            return Some(NameMatch::Id);
        }
        let by_name = self.best_name(model).map(|(kind, _)| kind);
        let by_id = self.begins(&model.id).then_some(NameMatch::IdPrefix);
        by_name.into_iter().chain(by_id).min()
    }

    /// The name of the model that matches best; the first of equal matches.
    fn best_name<'a>(&self, model: &NamedModel<'a>) -> Option<(NameMatch, &'a str)> {
        let of = |(index, name): (usize, &'a String)| {
            let kind = match (self.fits(name)?, index < model.alias_count) {
                (Fit::Exact, true) => NameMatch::Alias,
                (Fit::WithoutCase, true) => NameMatch::AliasWithoutCase,
                (Fit::Prefix, true) => NameMatch::AliasPrefix,
                (Fit::Exact, false) => NameMatch::Hint,
                (Fit::WithoutCase, false) => NameMatch::HintWithoutCase,
                (Fit::Prefix, false) => NameMatch::HintPrefix,
            };
            Some((kind, name.as_str()))
        };
        model.names.iter().enumerate().filter_map(of).min_by_key(|(kind, _)| *kind)
    }

    fn fits(&self, name: &str) -> Option<Fit> {
        if name == self.text {
            return Some(Fit::Exact);
        }
        let mut letters = fold(name);
        let begins = self.folded.iter().all(|letter| letters.next() == Some(*letter));
        begins.then(|| if letters.next().is_none() { Fit::WithoutCase } else { Fit::Prefix })
    }

    fn begins(&self, id: &ModelId) -> bool {
        self.folded.len() >= MIN_ID_PREFIX && begins(id, self.folded.iter().copied())
    }
}

/// How a text matches a name.
enum Fit {
    Exact,
    WithoutCase,
    Prefix,
}

fn fold(text: &str) -> impl Iterator<Item = char> {
    text.chars().flat_map(char::to_lowercase)
}

/// Whether two names are equal but for case, as in resolution.
pub fn is_same_name(one: &str, other: &str) -> bool {
    fold(one).eq(fold(other))
}

/// The name of the model that the text matches; `None` if it matches the id, or nothing.
pub fn matched_name<'a>(text: &str, model: &NamedModel<'a>) -> Option<&'a str> {
    Query::new(text).best_name(model).map(|(_, name)| name)
}

/// Resolves a text to a model: by the id or at least [`MIN_ID_PREFIX`] digits of it, by a name (an exact match before one
/// without case), or by a prefix of a name. The first of these that matches any model decides.
pub fn resolve_name<'a>(text: &str, known: impl Iterator<Item = NamedModel<'a>>) -> NameResolution {
    if text.is_empty() || text.len() > MAX_TEXT {
        return NameResolution::Unknown;
    }
    let query = Query::new(text);
    let (mut best, mut found) = (None, BTreeSet::new());
    for model in known {
        let Some(kind) = query.matches(&model) else { continue };
        if best.is_none_or(|best| kind < best) {
            (best, found) = (Some(kind), BTreeSet::new());
        }
        if best == Some(kind) {
            found.insert(model.id);
        }
    }
    match (found.first(), found.len()) {
        (None, _) => NameResolution::Unknown,
        (Some(model), 1) => NameResolution::Model(*model),
        _ => NameResolution::Ambiguous(found.into_iter().collect()),
    }
}

/// Names similar to a text, or with a similar beginning, nearest first: within one edit per three characters.
pub fn nearest<'a>(text: &str, names: impl Iterator<Item = &'a str>) -> Vec<String> {
    let folded = text.to_lowercase();
    let chars = folded.chars().count();
    let allowed = (chars / 3).min(MAX_EDITS);
    if allowed == 0 || chars > MAX_CHARS {
        return Vec::new();
    }
    let distance = |name: &str| {
        let name = name.to_lowercase();
        let begin: String = name.chars().take(chars).collect();
        strsim::osa_distance(&folded, &name).min(strsim::osa_distance(&folded, &begin))
    };
    let compared = names.take(MAX_COMPARED).map(|name| (distance(name), name.to_owned()));
    let mut near: Vec<(usize, String)> = compared.filter(|(edits, _)| *edits <= allowed).collect();
    near.sort_unstable();
    near.dedup();
    near.into_iter().take(MAX_SUGGESTED).map(|(_, name)| name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(byte: u8) -> ModelId {
        ModelId([byte; 32])
    }

    fn resolve(text: &str, known: &[(u8, &[&str], usize)]) -> NameResolution {
        let names: Vec<Vec<String>> =
            known.iter().map(|(_, names, _)| names.iter().map(|n| n.to_string()).collect()).collect();
        let named = known.iter().zip(&names).map(|((byte, _, given), names)| NamedModel {
            id: id(*byte),
            names,
            alias_count: *given,
        });
        resolve_name(text, named)
    }

    #[test]
    fn a_model_resolves_by_name_prefix_or_id_without_case() {
        let known: [(u8, &[&str], usize); 3] =
            [(1, &["SmolLM2-135M"], 0), (2, &["chat", "Qwen3-4B"], 1), (3, &["Qwen3-8B"], 0)];
        for (text, model) in [("smollm2-135m", 1), ("SMOL", 1), ("CHAT", 2), ("qwen3-8b", 3), ("03030303", 3)] {
            assert_eq!(resolve(text, &known), NameResolution::Model(id(model)), "{text}");
        }
        assert_eq!(resolve(&id(2).to_string().to_uppercase(), &known), NameResolution::Model(id(2)));
        assert_eq!(resolve("qwen", &known), NameResolution::Ambiguous(vec![id(2), id(3)]));
        for text in ["", "0303", "mistral", "wen3"] {
            assert_eq!(resolve(text, &known), NameResolution::Unknown, "{text}");
        }
    }

    #[test]
    fn an_alias_takes_precedence_over_suggested_names() {
        let known: [(u8, &[&str], usize); 3] = [(1, &["mine"], 1), (2, &["mine"], 0), (3, &["Mine", "MINE"], 0)];
        assert_eq!(resolve("mine", &known), NameResolution::Model(id(1)));
        assert_eq!(resolve("MINE", &known), NameResolution::Model(id(1)));
        assert_eq!(resolve("mi", &known), NameResolution::Model(id(1)));
        assert_eq!(resolve("mine", &known[1..]), NameResolution::Model(id(2)), "the exact case matches");
        assert_eq!(resolve("mInE", &known[1..]), NameResolution::Ambiguous(vec![id(2), id(3)]));
    }

    #[test]
    fn the_best_matching_name_is_returned() {
        let names = ["newest", "Chat", "chat-old"].map(str::to_owned);
        let model = NamedModel { id: id(1), names: &names, alias_count: 2 };
        for (text, found) in [("chat", Some("Chat")), ("chat-", Some("chat-old")), ("new", Some("newest"))] {
            assert_eq!(matched_name(text, &model), found, "{text}");
        }
        assert_eq!((matched_name("01010101", &model), matched_name("other", &model)), (None, None));
        assert!(is_same_name("Straße", "STRAßE") && !is_same_name("chat", "chats"));
    }

    #[test]
    fn displayed_names_have_no_hidden_characters() {
        let table = [
            ("pay\u{202e}llatna\u{202c}", "payllatna"),
            ("ad\u{200b}min\u{feff}", "admin"),
            ("a\u{1b}[2J\tb\u{2028}c ", "a [2J b c"),
            ("\u{2066}\u{2069}\u{e0041}\u{fe0f}", ""),
            ("\u{3164}Qwen\u{ad}3\u{a0}4B", "Qwen3 4B"),
            ("กำ ñ é 模型", "กำ ñ é 模型"),
        ];
        for (name, shown) in table {
            assert_eq!(visible(name), shown, "{name:?}");
            assert!(!visible(name).chars().any(is_hidden));
        }
        assert!(
            HIDDEN.windows(2).all(|pair| pair[0].1 < pair[1].0) && HIDDEN.iter().all(|(first, last)| first <= last)
        );
    }

    #[test]
    fn only_8_to_64_hexadecimal_digits_are_like_an_id() {
        for text in ["deadbeef", "00000000", "D803ABCDEF"] {
            assert!(is_like_id(text), "{text}");
        }
        for text in ["d803", "7b", "deadbee", "deadbeeg", "dead-beef", &"f".repeat(65)] {
            assert!(!is_like_id(text), "{text}");
        }
    }

    #[test]
    fn a_short_prefix_of_a_known_id_is_recognised() {
        let known = || [id(0x7b), id(3)].into_iter();
        for text in ["7b", "7B7", "0303030"] {
            assert!(is_short_of_id(text, known()), "{text}");
        }
        for text in ["", "7c", "7b7b7b7b", "7g", "smol"] {
            assert!(!is_short_of_id(text, known()), "{text}");
        }
    }

    #[test]
    fn an_id_prefix_takes_precedence_over_an_equal_alias() {
        let known: [(u8, &[&str], usize); 3] = [(1, &["03030303"], 1), (2, &["0303"], 1), (3, &["model"], 0)];
        assert_eq!(resolve("03030303", &known), NameResolution::Model(id(3)));
        assert_eq!(resolve("0303", &known), NameResolution::Model(id(2)), "too short for an id");
        assert_eq!(resolve("03030303", &known[..2]), NameResolution::Model(id(1)));
    }

    #[test]
    fn a_name_that_prefixes_another_resolves_to_its_own_model() {
        let known: [(u8, &[&str], usize); 2] = [(1, &["qwen3"], 0), (2, &["qwen3-coder"], 1)];
        assert_eq!(resolve("qwen3", &known), NameResolution::Model(id(1)));
        assert_eq!(resolve("qwen3-", &known), NameResolution::Model(id(2)));
    }

    #[test]
    fn only_near_names_are_suggested() {
        let names = ["SmolLM2-135M-Instruct", "gemma-3-270m-it", "Qwen3-4B"];
        let near = |text: &str| nearest(text, names.iter().copied());
        assert_eq!(near("smolm2"), ["SmolLM2-135M-Instruct"]);
        assert_eq!(near("gemma-3-270m-ti"), ["gemma-3-270m-it"]);
        assert_eq!(near("qwen2-4b"), ["Qwen3-4B"]);
        assert_eq!(near("mistral-7b"), Vec::<String>::new());
        assert_eq!(near("q"), Vec::<String>::new());
        assert_eq!(near(&"q".repeat(1 << 20)), Vec::<String>::new());
    }
}
