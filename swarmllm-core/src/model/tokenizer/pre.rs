//! Pre-tokenization of byte-level BPE: splits a text into words by the rules that `tokenizer.ggml.pre` names.
//!
//! The rules are llama.cpp's, written without look-around, so that matching is linear in the text: `\s+(?!\S)` becomes
//! a [`SpaceRule`]. Classes are limited to the Unicode version of llama.cpp's tables, so that newer letters split
//! alike. An unknown name is refused, since other rules give other tokens without any error. A missing name means
//! `default`, as in llama.cpp.

use regex::Regex;

use super::TokenizerError;

/// The metadata key with the name of the rules.
pub const PRE: &str = "tokenizer.ggml.pre";
/// The Unicode version of llama.cpp's tables.
const UNICODE: &str = "15.1";
/// The rules of a model without the key.
const UNNAMED: &str = "default";
/// Longest part of an unknown name in an error, in characters.
const NAME_SHOWN: usize = 64;

/// One split: each match is a word, and so is each gap between matches.
#[derive(Debug, Clone, Copy)]
struct Step {
    pattern: &'static str,
    spaces: SpaceRule,
}

/// The treatment of a run of white space before other text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SpaceRule {
    /// The match stands.
    AsMatched,
    /// The last character is left for the next word.
    LeaveLast,
    /// The same, unless the run ends in a line break.
    LeaveLastAfterLine,
}

/// The rules of one family.
#[derive(Debug)]
struct Family {
    names: &'static [&'static str],
    steps: &'static [Step],
    /// Whether a word that is a token is taken whole, without merging.
    whole_words: bool,
    add_bos: bool,
    /// Whether there is no begin token unless the metadata names one.
    no_bos: bool,
}

impl Family {
    const fn new(names: &'static [&'static str], steps: &'static [Step]) -> Family {
        Family { names, steps, whole_words: false, add_bos: false, no_bos: false }
    }
}

const fn step(pattern: &'static str, spaces: SpaceRule) -> Step {
    Step { pattern, spaces }
}

const GPT2: Step = step(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+", SpaceRule::LeaveLast);
const LLAMA3: Step = step(
    r"'(?:[sStTmMdD]|[rR][eE]|[vV][eE]|[lL][lL])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+",
    SpaceRule::LeaveLastAfterLine,
);
const QWEN2: Step = step(
    r"'(?:[sStTmMdD]|[rR][eE]|[vV][eE]|[lL][lL])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+",
    SpaceRule::LeaveLastAfterLine,
);
const QWEN35: Step = step(
    r"'(?:[sStTmMdD]|[rR][eE]|[vV][eE]|[lL][lL])|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+",
    SpaceRule::LeaveLastAfterLine,
);
const DEEPSEEK3: Step = step(
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+"##,
    SpaceRule::LeaveLastAfterLine,
);
const TEKKEN: Step = step(
    r"[^\r\n\p{L}\p{N}]?[\p{L}&&[^a-z]]*[\p{L}&&[^A-Z]]+|[^\r\n\p{L}\p{N}]?[\p{L}&&[^a-z]]+[\p{L}&&[^A-Z]]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+",
    SpaceRule::LeaveLastAfterLine,
);
const GPT4O: Step = step(
    concat!(
        r"[^\r\n\p{L}\p{N}]?[\p{L}&&[^a-z]]*[\p{L}&&[^A-Z]]+(?:'(?:[sStTmMdD]|[rR][eE]|[vV][eE]|[lL][lL]))?|",
        r"[^\r\n\p{L}\p{N}]?[\p{L}&&[^a-z]]+[\p{L}&&[^A-Z]]*(?:'(?:[sStTmMdD]|[rR][eE]|[vV][eE]|[lL][lL]))?|",
        r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+",
    ),
    SpaceRule::LeaveLastAfterLine,
);
const SEED: Step = step(
    r"'(?:[sStTmMdD]|[rR][eE]|[vV][eE]|[lL][lL])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+",
    SpaceRule::LeaveLastAfterLine,
);
const BAILING: Step = step(
    r"'(?:[sStTmMdD]|[rR][eE]|[vV][eE]|[lL][lL])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+",
    SpaceRule::LeaveLastAfterLine,
);
const MINICPM5: Step = step(
    r"'(?:[sStTmMdD]|[rR][eE]|[vV][eE]|[lL][lL])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+",
    SpaceRule::LeaveLastAfterLine,
);
const NO_STOPS: Step =
    step(" ?[^(\\s|.,!?\u{2026}\u{3002}\u{ff0c}\u{3001}\u{964}\u{6d4}\u{60c})]+", SpaceRule::AsMatched);
const LINE_BREAK: Step = step(r"[\r\n]", SpaceRule::AsMatched);
/// Ideographs and syllables of DeepSeek's first tokenizers. The range contains a white space, which is excluded, as in
/// llama.cpp.
const IDEOGRAPHS: Step = step("[[\u{4e00}-\u{9fa5}\u{800}-\u{4e00}\u{ac00}-\u{d7ff}]&&\\S]+", SpaceRule::AsMatched);
/// Letters of cased scripts, of DeepSeek's first tokenizer.
const CASED: &str = concat!(
    r"\s?[",
    "A-Za-z\u{b5}\u{c0}-\u{d6}\u{d8}-\u{f6}\u{f8}-\u{1ba}\u{1bc}-\u{1bf}\u{1c4}-\u{293}\u{295}-\u{2af}",
    "\u{370}-\u{373}\u{376}\u{377}\u{37b}-\u{37d}\u{37f}\u{386}\u{388}-\u{38a}\u{38c}\u{38e}-\u{3a1}",
    "\u{3a3}-\u{3f5}\u{3f7}-\u{481}\u{48a}-\u{52f}\u{531}-\u{556}\u{10a0}-\u{10c5}\u{13a0}-\u{13f5}",
    "\u{13f8}-\u{13fd}\u{1c90}-\u{1cba}\u{1cbd}-\u{1cbf}\u{1d00}-\u{1d2b}\u{1d6b}-\u{1d77}\u{1d79}-\u{1d9a}",
    "\u{1e00}-\u{1f15}\u{1f18}-\u{1f1d}\u{1f20}-\u{1f45}\u{1f48}-\u{1f4d}\u{1f50}-\u{1f57}\u{1f59}\u{1f5b}",
    "\u{1f5d}\u{1f5f}-\u{1f7d}\u{1f80}-\u{1fb4}\u{1fb6}-\u{1fbc}\u{1fbe}\u{1fc2}-\u{1fc4}\u{1fc6}-\u{1fcc}",
    "\u{1fd0}-\u{1fd3}\u{1fd6}-\u{1fdb}\u{1fe0}-\u{1fec}\u{1ff2}-\u{1ff4}\u{1ff6}-\u{1ffc}\u{2102}\u{2107}",
    "\u{210a}-\u{2113}\u{2115}\u{2119}-\u{211d}\u{2124}\u{2126}\u{2128}\u{212a}-\u{212d}\u{212f}-\u{2134}",
    "\u{2139}\u{213c}-\u{213f}\u{2145}-\u{2149}\u{214e}\u{2183}\u{2184}\u{2c00}-\u{2c7b}\u{2c7e}-\u{2ce4}",
    "\u{2ceb}-\u{2cee}\u{2cf2}\u{2cf3}\u{a640}-\u{a66d}\u{a680}-\u{a69b}\u{a722}-\u{a76f}\u{a771}-\u{a787}",
    "\u{a78b}-\u{a78e}\u{ab70}-\u{abbf}\u{fb00}-\u{fb06}\u{fb13}-\u{fb17}\u{ff21}-\u{ff3a}\u{ff41}-\u{ff5a}",
    "\u{10400}-\u{1044f}\u{104b0}-\u{104d3}\u{104d8}-\u{104fb}\u{10c80}-\u{10cb2}\u{10cc0}-\u{10cf2}",
    "\u{118a0}-\u{118df}\u{1e900}-\u{1e943}",
    "]+",
);
const DIGIT: Step = step(r"\p{N}", SpaceRule::AsMatched);
const DIGITS3: Step = step(r"\p{N}{1,3}", SpaceRule::AsMatched);

const FAMILIES: &[Family] = &[
    Family::new(
        &["default"],
        &[
            step(r"[\p{P}$+<=>^~|]+", SpaceRule::AsMatched),
            GPT2,
            step(r"\p{N}+", SpaceRule::AsMatched),
            step(r"[0-9][0-9][0-9]", SpaceRule::AsMatched),
        ],
    ),
    Family::new(
        &[
            "gpt-2",
            "phi-2",
            "gigachat",
            "a.x-4.0",
            "mellum",
            "mpt",
            "olmo",
            "jais",
            "trillion",
            "exaone4",
            "granite-docling",
        ],
        &[GPT2],
    ),
    Family::new(
        &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"],
        &[DIGIT, GPT2],
    ),
    Family {
        whole_words: true,
        add_bos: true,
        ..Family::new(
            &["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"],
            &[LLAMA3],
        )
    },
    Family::new(&["dbrx", "smaug-bpe"], &[LLAMA3]),
    Family { no_bos: true, ..Family::new(&["chatglm-bpe"], &[LLAMA3]) },
    Family { no_bos: true, whole_words: true, ..Family::new(&["glm4", "glm5"], &[LLAMA3]) },
    Family::new(
        &["qwen2", "deepseek-r1-qwen", "kormo", "megrez", "stablelm2", "hunyuan", "solar-open", "grok-2", "f2llmv2"],
        &[QWEN2],
    ),
    Family::new(&["qwen35"], &[QWEN35]),
    Family::new(
        &["deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"],
        &[DIGITS3, step("[一-龥\u{3040}-ゟ゠-ヿ]+", SpaceRule::AsMatched), DEEPSEEK3],
    ),
    Family { whole_words: true, add_bos: true, ..Family::new(&["tekken"], &[TEKKEN]) },
    Family::new(&["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"], &[GPT4O]),
    Family::new(
        &["deepseek-llm"],
        &[
            LINE_BREAK,
            step(CASED, SpaceRule::AsMatched),
            // llama.cpp matches the wide space as another white space here, so it is not in the last range.
            step(
                "\\s?[!-/:-~\u{ff01}-\u{ff0f}\u{ff1a}-\u{ff5e}\u{2018}-\u{201f}\u{3001}-\u{3002}]+",
                SpaceRule::AsMatched,
            ),
            step(r"\s+$", SpaceRule::AsMatched),
            IDEOGRAPHS,
            step(r"\p{N}+", SpaceRule::AsMatched),
        ],
    ),
    Family::new(
        &["deepseek-coder"],
        &[
            LINE_BREAK,
            step(r"\s?\p{L}+", SpaceRule::AsMatched),
            step(r"\s?\p{P}+", SpaceRule::AsMatched),
            IDEOGRAPHS,
            DIGIT,
        ],
    ),
    Family::new(
        &["falcon"],
        &[step(r"[\p{P}$+<=>^~|`]+", SpaceRule::AsMatched), GPT2, step(r"[0-9][0-9][0-9]", SpaceRule::AsMatched)],
    ),
    Family::new(&["seed-coder"], &[SEED]),
    Family::new(&["bailingmoe", "bailingmoe2", "llada-moe"], &[BAILING]),
    Family { whole_words: true, ..Family::new(&["minicpm5"], &[DIGITS3, MINICPM5]) },
    Family::new(&["poro-chat", "bloom", "gpt3-finnish"], &[NO_STOPS]),
    Family::new(&["viking"], &[NO_STOPS, DIGIT]),
];

/// The rules of one model, compiled.
#[derive(Debug)]
pub struct PreTokenizer {
    steps: Vec<(Regex, SpaceRule)>,
    /// Whether a word that is a token is taken whole, without merging.
    pub whole_words: bool,
    /// Whether texts begin with the begin token, unless the metadata says otherwise.
    pub add_bos: bool,
    /// Whether there is no begin token unless the metadata names one.
    pub no_bos: bool,
}

impl PreTokenizer {
    /// The rules of a model. Old files have no name; llama.cpp uses `default` for them.
    pub fn of_model(name: Option<&str>) -> Result<PreTokenizer, TokenizerError> {
        Self::named(name.filter(|name| !name.is_empty()).unwrap_or(UNNAMED))
    }

    /// The rules with this name.
    pub fn named(name: &str) -> Result<PreTokenizer, TokenizerError> {
        let family = FAMILIES.iter().find(|family| family.names.contains(&name)).ok_or_else(|| unknown(name))?;
        let steps = family.steps.iter().map(|step| Ok((compile(step.pattern)?, step.spaces)));
        Ok(PreTokenizer {
            steps: steps.collect::<Result<_, _>>()?,
            whole_words: family.whole_words,
            add_bos: family.add_bos,
            no_bos: family.no_bos,
        })
    }

    /// All known names.
    #[cfg(test)]
    fn names() -> impl Iterator<Item = &'static str> {
        FAMILIES.iter().flat_map(|family| family.names).copied()
    }

    /// Splits `text` into words, which together are the text, and passes each to `emit`. An error of `emit` ends it.
    pub fn each_word<'t, E>(&self, text: &'t str, emit: &mut dyn FnMut(&'t str) -> Result<(), E>) -> Result<(), E> {
        split_by_steps(&self.steps, text, emit)
    }
}

/// Splits a word by the first step and each part by the following ones, without collecting the parts.
fn split_by_steps<'t, E>(
    steps: &[(Regex, SpaceRule)],
    word: &'t str,
    emit: &mut dyn FnMut(&'t str) -> Result<(), E>,
) -> Result<(), E> {
    match steps.split_first() {
        None => emit(word),
        Some(((pattern, spaces), finer)) => {
            split_by(pattern, *spaces, word, &mut |part| split_by_steps(finer, part, emit))
        }
    }
}

fn unknown(name: &str) -> TokenizerError {
    TokenizerError::Unsupported { what: "pre-tokenizer", name: name.chars().take(NAME_SHOWN).collect() }
}

fn compile(pattern: &str) -> Result<Regex, TokenizerError> {
    let mut pattern = pattern.to_owned();
    for class in [r"\p{L}", r"\p{N}", r"\p{M}", r"\p{P}", r"\p{S}"] {
        pattern = pattern.replace(class, &format!(r"[{class}&&\p{{age={UNICODE}}}]"));
    }
    let broken = |_| TokenizerError::Malformed { key: PRE, reason: "its rule does not compile" };
    Regex::new(&pattern).map_err(broken)
}

fn split_by<'t, E>(
    pattern: &Regex,
    spaces: SpaceRule,
    word: &'t str,
    emit: &mut dyn FnMut(&'t str) -> Result<(), E>,
) -> Result<(), E> {
    let mut rest = word;
    while let Some((start, end)) = pattern.find(rest).map(|found| (found.start(), found.end())) {
        let end = end - left_for_next(spaces, rest.get(start..end).unwrap_or_default(), end < rest.len());
        let Some((found, after)) = rest.split_at_checked(end).filter(|(found, _)| found.len() > start) else { break };
        let (before, found) = found.split_at_checked(start).unwrap_or(("", found));
        if !before.is_empty() {
            emit(before)?;
        }
        emit(found)?;
        rest = after;
    }
    if rest.is_empty() { Ok(()) } else { emit(rest) }
}

/// Bytes at the end of a match that are left for the next word.
fn left_for_next(spaces: SpaceRule, found: &str, more: bool) -> usize {
    let kept = match spaces {
        SpaceRule::AsMatched => true,
        SpaceRule::LeaveLast => false,
        SpaceRule::LeaveLastAfterLine => found.ends_with(['\r', '\n']),
    };
    if kept || !more || !found.chars().all(char::is_whitespace) {
        return 0;
    }
    let last = found.chars().next_back().map_or(0, char::len_utf8);
    if last < found.len() { last } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl PreTokenizer {
        fn split<'t>(&self, text: &'t str) -> Vec<&'t str> {
            let mut words = Vec::new();
            let taken: Result<(), ()> = self.each_word(text, &mut |word| {
                words.push(word);
                Ok(())
            });
            assert_eq!(taken, Ok(()));
            words
        }
    }

    #[test]
    fn every_rule_compiles_and_its_words_make_up_the_text() {
        let text = "Hello  World's\n\n  1234 x²—ok\t\r\n東京 \u{301}a  ";
        for name in PreTokenizer::names() {
            let words = PreTokenizer::named(name).expect("a known name").split(text);
            assert_eq!(words.concat(), text, "{name}");
            assert!(words.iter().all(|word| !word.is_empty()), "{name}");
        }
    }

    #[test]
    fn the_last_space_of_a_run_goes_to_the_next_word() {
        let words = |name, text| PreTokenizer::named(name).expect("a known name").split(text);
        assert_eq!(words("gpt-2", "a   b  "), ["a", "  ", " b", "  "]);
        assert_eq!(words("llama-bpe", "a \n  b12345"), ["a", " \n", " ", " b", "123", "45"]);
        assert_eq!(words("smollm", "a 12"), ["a", " ", "1", "2"]);
    }

    #[test]
    fn a_letter_newer_than_the_engine_s_tables_is_not_a_letter() {
        // U+10D50 GARAY CAPITAL LETTER A came with Unicode 16.
        let pre = PreTokenizer::named("gpt-2").expect("a known name");
        assert_eq!(pre.split("a\u{10d50}"), ["a", "\u{10d50}"]);
    }

    #[test]
    fn an_unknown_name_is_refused_in_one_short_sentence() {
        let error = PreTokenizer::named("gpt-3").expect_err("an unknown name");
        assert!(matches!(error, TokenizerError::Unsupported { .. }));
        let told = error.to_string();
        assert!(told.contains("pre-tokenizer `gpt-3`") && told.len() < 200, "{told}");
    }

    #[test]
    fn long_runs_split_in_linear_time() {
        let pre = PreTokenizer::named("llama-bpe").expect("a known name");
        for unit in [" ", "a", "\n", "1", "'", "\u{301}", " \n"] {
            let text = unit.repeat(1 << 14);
            assert_eq!(pre.split(&text).concat().len(), text.len());
        }
    }
}
