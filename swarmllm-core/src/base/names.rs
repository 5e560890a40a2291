//! Names of models: which of the known models a text means, and which names it resembles.
//!
//! A name is what people call a model and never its identity. A node's own aliases are asked before names that files or
//! peers suggest, so that no stranger can take over what an alias means.

use std::collections::BTreeSet;

use crate::base::ModelId;

/// Fewest digits of an id that stand for a model, and as many as lists and errors show. Fewer are how models are called
/// (`7b`), and what is the only beginning today is not where strangers announce models tomorrow.
pub const MIN_ID_PREFIX: usize = 8;
/// Digits of an id: 32 bytes.
const ID_DIGITS: usize = 64;
/// Bytes of a text that may be a name: names have at most 128, and a name in lower case at most a half more.
const MAX_TEXT: usize = 256;
/// Names that a suggestion lists.
const MAX_SUGGESTED: usize = 3;
/// Names that a text is compared with: comparing 64 characters with 128 took 21 to 29 µs, so all of them some 30 ms at most.
const MAX_COMPARED: usize = 1024;
/// Characters of a text that is compared.
const MAX_CHARS: usize = 64;
/// Most edits between a text and a name that it resembles.
const MAX_EDITS: usize = 4;

/// Characters that nobody sees, or that change how others are shown: soft hyphens, joiners, marks and overrides of direction,
/// separators of lines, fillers, selectors of variants, marks of notes, of notation and of tags. Ends included.
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

/// Whether a character of a name cannot be seen: with it, two names may look like one, or a name like what it is not.
pub fn is_hidden(character: char) -> bool {
    character.is_control() || HIDDEN.iter().any(|(first, last)| (*first..=*last).contains(&character))
}

/// A foreign text as it may be shown: hidden characters left out, single blanks in the place of controls and white space.
pub fn visible(text: &str) -> String {
    let blank = |character: char| character.is_control() || character.is_whitespace();
    let shown = text.chars().map(|character| if blank(character) { ' ' } else { character });
    let shown: String = shown.filter(|character| !is_hidden(*character)).collect();
    shown.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Whether a text is read as the beginning of an id before it is looked for among names.
pub fn is_like_id(text: &str) -> bool {
    (MIN_ID_PREFIX..=ID_DIGITS).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Whether a text is how the id of one of these models begins, with fewer digits than are read as an id.
pub fn is_short_of_id(text: &str, mut models: impl Iterator<Item = ModelId>) -> bool {
    let is_short = !text.is_empty() && text.len() < MIN_ID_PREFIX && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_short && models.any(|model| begins(&model, fold(text)))
}

/// Whether the digits of an id begin so.
fn begins(id: &ModelId, mut letters: impl Iterator<Item = char>) -> bool {
    let digits = id.as_bytes().iter().flat_map(|byte| [byte >> 4, byte & 15]);
    let mut digits = digits.filter_map(|digit| char::from_digit(digit.into(), 16));
    letters.all(|letter| digits.next() == Some(letter))
}

/// A known model and its names.
#[derive(Debug, Clone, Copy)]
pub struct Named<'a> {
    /// The model.
    pub id: ModelId,
    /// Its names: first those that the host has given, then those that files or peers suggest.
    pub names: &'a [String],
    /// How many of them the host has given.
    pub given: usize,
}

/// What a text means among known models.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Meaning {
    /// Nothing that is known.
    Unknown,
    /// This model.
    Model(ModelId),
    /// Any of these models, by rising ids.
    Ambiguous(Vec<ModelId>),
}

/// How a text can mean a model. The first of these that finds anything decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum NameMatch {
    /// By its whole id, whatever other models are called.
    Id,
    /// By the beginning of its id, which is how errors and lists show it.
    IdPrefix,
    /// By an alias of the host as it is written, or but for its case.
    Alias,
    AliasWithoutCase,
    /// By a name that somebody else suggests.
    Hint,
    HintWithoutCase,
    /// By the beginning of an alias, of a name.
    AliasPrefix,
    HintPrefix,
}

/// A text that is looked up.
struct Query<'a> {
    text: &'a str,
    folded: Vec<char>,
    id: Option<ModelId>,
}

impl Query<'_> {
    fn new(text: &str) -> Query<'_> {
        Query { text, folded: fold(text).collect(), id: text.parse().ok() }
    }

    /// The best way in which the text means the model. Takes no memory: strangers can announce a million names.
    fn matches(&self, model: &Named<'_>) -> Option<NameMatch> {
        if self.id == Some(model.id) {
            return Some(NameMatch::Id);
        }
        let by_name = self.best_name(model).map(|(way, _)| way);
        let by_id = self.begins(&model.id).then_some(NameMatch::IdPrefix);
        by_name.into_iter().chain(by_id).min()
    }

    /// The name of the model that fits the text best; of several that fit alike, the first.
    fn best_name<'a>(&self, model: &Named<'a>) -> Option<(NameMatch, &'a str)> {
        let of = |(index, name): (usize, &'a String)| {
            let way = match (self.fits(name)?, index < model.given) {
                (Fit::Exact, true) => NameMatch::Alias,
                (Fit::WithoutCase, true) => NameMatch::AliasWithoutCase,
                (Fit::Prefix, true) => NameMatch::AliasPrefix,
                (Fit::Exact, false) => NameMatch::Hint,
                (Fit::WithoutCase, false) => NameMatch::HintWithoutCase,
                (Fit::Prefix, false) => NameMatch::HintPrefix,
            };
            Some((way, name.as_str()))
        };
        model.names.iter().enumerate().filter_map(of).min_by_key(|(way, _)| *way)
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

/// How a text fits a name.
enum Fit {
    Exact,
    WithoutCase,
    Prefix,
}

fn fold(text: &str) -> impl Iterator<Item = char> {
    text.chars().flat_map(char::to_lowercase)
}

/// Whether two names are the same to those who look a model up: names are matched without case.
pub fn is_same(one: &str, other: &str) -> bool {
    fold(one).eq(fold(other))
}

/// The name by which a text means a model; `None` where it means the model by its id, or not at all.
pub fn matched<'a>(text: &str, model: &Named<'a>) -> Option<&'a str> {
    Query::new(text).best_name(model).map(|(_, name)| name)
}

/// The model that a text means: by its id or at least [`MIN_ID_PREFIX`] digits of it, by a name (without case, where none is
/// written just so), or by the beginning of a name. The first of these ways that finds anything decides.
pub fn meaning<'a>(text: &str, known: impl Iterator<Item = Named<'a>>) -> Meaning {
    if text.is_empty() || text.len() > MAX_TEXT {
        return Meaning::Unknown;
    }
    let query = Query::new(text);
    let (mut best, mut found) = (None, BTreeSet::new());
    for model in known {
        let Some(way) = query.matches(&model) else { continue };
        if best.is_none_or(|best| way < best) {
            (best, found) = (Some(way), BTreeSet::new());
        }
        if best == Some(way) {
            found.insert(model.id);
        }
    }
    match (found.first(), found.len()) {
        (None, _) => Meaning::Unknown,
        (Some(model), 1) => Meaning::Model(*model),
        _ => Meaning::Ambiguous(found.into_iter().collect()),
    }
}

/// Names that resemble a text or begin like it, nearest first: those within one edit for each three characters.
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

    fn ask(text: &str, known: &[(u8, &[&str], usize)]) -> Meaning {
        let names: Vec<Vec<String>> =
            known.iter().map(|(_, names, _)| names.iter().map(|n| n.to_string()).collect()).collect();
        let named =
            known.iter().zip(&names).map(|((byte, _, given), names)| Named { id: id(*byte), names, given: *given });
        meaning(text, named)
    }

    #[test]
    fn a_model_is_found_by_a_name_without_case_by_its_beginning_and_by_its_id() {
        let known: [(u8, &[&str], usize); 3] =
            [(1, &["SmolLM2-135M"], 0), (2, &["chat", "Qwen3-4B"], 1), (3, &["Qwen3-8B"], 0)];
        for (text, model) in [("smollm2-135m", 1), ("SMOL", 1), ("CHAT", 2), ("qwen3-8b", 3), ("03030303", 3)] {
            assert_eq!(ask(text, &known), Meaning::Model(id(model)), "{text}");
        }
        assert_eq!(ask(&id(2).to_string().to_uppercase(), &known), Meaning::Model(id(2)));
        assert_eq!(ask("qwen", &known), Meaning::Ambiguous(vec![id(2), id(3)]));
        for text in ["", "0303", "mistral", "wen3"] {
            assert_eq!(ask(text, &known), Meaning::Unknown, "{text}");
        }
    }

    #[test]
    fn an_alias_of_the_host_goes_before_names_that_others_suggest() {
        let known: [(u8, &[&str], usize); 3] = [(1, &["mine"], 1), (2, &["mine"], 0), (3, &["Mine", "MINE"], 0)];
        assert_eq!(ask("mine", &known), Meaning::Model(id(1)));
        assert_eq!(ask("MINE", &known), Meaning::Model(id(1)));
        assert_eq!(ask("mi", &known), Meaning::Model(id(1)));
        assert_eq!(ask("mine", &known[1..]), Meaning::Model(id(2)), "it is written just so");
        assert_eq!(ask("mInE", &known[1..]), Meaning::Ambiguous(vec![id(2), id(3)]));
    }

    #[test]
    fn the_name_that_fits_best_is_the_one_that_matched() {
        let names = ["newest", "Chat", "chat-old"].map(str::to_owned);
        let model = Named { id: id(1), names: &names, given: 2 };
        for (text, found) in [("chat", Some("Chat")), ("chat-", Some("chat-old")), ("new", Some("newest"))] {
            assert_eq!(matched(text, &model), found, "{text}");
        }
        assert_eq!((matched("01010101", &model), matched("other", &model)), (None, None));
        assert!(is_same("Straße", "STRAßE") && !is_same("chat", "chats"));
    }

    #[test]
    fn what_is_shown_of_a_foreign_name_has_nothing_hidden() {
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
    fn only_hexadecimal_digits_in_the_number_of_an_ids_are_like_an_id() {
        for text in ["deadbeef", "00000000", "D803ABCDEF"] {
            assert!(is_like_id(text), "{text}");
        }
        for text in ["d803", "7b", "deadbee", "deadbeeg", "dead-beef", &"f".repeat(65)] {
            assert!(!is_like_id(text), "{text}");
        }
    }

    #[test]
    fn too_few_digits_of_a_known_id_are_told_from_what_begins_no_id() {
        let known = || [id(0x7b), id(3)].into_iter();
        for text in ["7b", "7B7", "0303030"] {
            assert!(is_short_of_id(text, known()), "{text}");
        }
        for text in ["", "7c", "7b7b7b7b", "7g", "smol"] {
            assert!(!is_short_of_id(text, known()), "{text}");
        }
    }

    #[test]
    fn the_beginning_of_an_id_goes_before_an_alias_that_is_written_like_it() {
        let known: [(u8, &[&str], usize); 3] = [(1, &["03030303"], 1), (2, &["0303"], 1), (3, &["model"], 0)];
        assert_eq!(ask("03030303", &known), Meaning::Model(id(3)));
        assert_eq!(ask("0303", &known), Meaning::Model(id(2)), "too short for an id");
        assert_eq!(ask("03030303", &known[..2]), Meaning::Model(id(1)));
    }

    #[test]
    fn a_name_that_is_the_beginning_of_another_means_its_own_model() {
        let known: [(u8, &[&str], usize); 2] = [(1, &["qwen3"], 0), (2, &["qwen3-coder"], 1)];
        assert_eq!(ask("qwen3", &known), Meaning::Model(id(1)));
        assert_eq!(ask("qwen3-", &known), Meaning::Model(id(2)));
    }

    #[test]
    fn the_nearest_names_are_suggested_and_far_ones_are_not() {
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
