//! Constraints on an answer's form: a JSON schema, a grammar or a regular expression, as a mask over the vocabulary.
//!
//! The work is llguidance's: an Earley parser over lexemes that are matched by derivatives, run over the trie of all
//! tokens. A [`Lexicon`] is that trie, built once for a model and shared; it compiles a [`Constraint`] into a [`Guide`],
//! which belongs to one generation, says what may come next and takes what was chosen.
//!
//! Constraints come from strangers. Their size and depth are checked before anything recurses over them; they are
//! compiled on a thread with a stack of known size; every limit of llguidance's is set; a panic becomes an error.
//! llguidance's own guard against panics is not used: it puts a panic hook into the host's process.

mod bounds;
mod closing;
mod embedded;

use std::any::Any;
use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use llguidance::api::{GrammarInit, ParserLimits, TopLevelGrammar};
use llguidance::earley::perf::ParserPerfCounters;
use llguidance::earley::{Parser, SlicedBiasComputer};
use llguidance::toktrie::{INVALID_TOKEN, SimpleVob, TokEnv, TokRxInfo, TokTrie, TokenizerEnv};
use llguidance::{Logger, regex_to_lark};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use self::bounds::{Growing, Place};
use crate::base::ErrorKind;
use crate::model::tokenizer::Tokenizer;

/// The form that an answer must have. An answer that the token limit ends has the beginning of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Constraint {
    /// Any JSON object. It has as many keys as the token limit allows; its numbers and its nesting are bounded like those
    /// of a schema.
    JsonObject,
    /// JSON that is valid by this JSON Schema. Keywords that cannot be enforced are refused by name. Where an object's keys
    /// are named and the schema does not say whether others are admitted (`additionalProperties`), none are: JSON Schema
    /// admits them, and a model would invent keys until its token limit. Such an answer is valid by the schema all the
    /// same. `"additionalProperties": true` admits them. An object of which no key is named (`{"type": "object"}`) is any
    /// object. Numbers have at most 20 digits before their point, 20 behind it and three in their exponent, and arrays and
    /// objects lie at most 64 in one another, but where the schema leaves nothing else.
    JsonSchema(Value),
    /// What the rule `start` of this grammar derives, in llguidance's dialect of Lark. The objects of its schemas (`%json`)
    /// are closed, and their white space ends, as those of `JsonSchema`; numbers and nesting are bounded by the schema alone.
    Lark(String),
    /// What this regular expression matches as a whole, in the syntax of Rust's `regex`.
    Regex(String),
}

/// Texts of a schema together, of a grammar or of a regular expression, in bytes. Some kinds of text (classes of
/// characters) take a thousand times their size while they are compiled.
const MAX_BYTES: usize = 64 << 10;
/// Levels of a schema; hand-written ones have about ten.
const MAX_DEPTH: usize = 64;
/// Values of a schema, and colons of a grammar, each of which may begin a rule. Schemas and rules that refer to one
/// another are compiled by recursion, once for each at worst.
const MAX_VALUES: usize = 4096;
const MAX_RULES: usize = 1024;
/// Stack of the thread that compiles: 16 KiB for each level of the deepest chain of references. Only what is used of it
/// becomes memory.
const COMPILE_STACK: usize = 64 << 20;
/// Symbols of a grammar once its repetitions are written out (llguidance keeps that logarithmic).
const MAX_GRAMMAR: usize = 100_000;
/// Work that building the lexer may take; at 50,000 units a millisecond about 20 ms, for large schemas half of that.
const COMPILE_FUEL: u64 = 1_000_000;
/// Work of one mask, in derivatives and in parser items: some ten milliseconds at worst.
const STEP_FUEL: u64 = 200_000;
const STEP_ITEMS: usize = 50_000;
/// Parser items that one position may have; unambiguous grammars need a few.
const ROW_ITEMS: usize = 2000;
/// States of a generation's lexer, at 1 to 2 KiB each.
const MAX_STATES: usize = 16_384;
/// White space at one place of a JSON text: a blank, or a line end with indentation. Small models fall into ruts where more
/// is admitted.
const WHITE_SPACE: &str = r"[ \t]|\r?\n[ \t]{0,32}";
/// Longest token in the trie, in bytes. Longer ones are never chosen under a constraint; the trie takes at most 1,024.
const MAX_TRIE_TOKEN: usize = 256;
/// Bytes of all tokens: the trie counts its nodes, at most one for each byte, in 22 bits.
const MAX_TRIE_BYTES: usize = (1 << 22) - 1;
/// Bytes of a reason that are shown: it may quote the constraint.
const MAX_REASON: usize = 400;

/// Why a constraint cannot be used, or be used further.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConstraintError {
    /// It is larger or deeper than is admitted.
    #[error("the constraint has {given} {what}, at most {max} are admitted")]
    TooLarge { what: &'static str, given: usize, max: usize },
    /// It is malformed, contradicts itself, or asks for what cannot be enforced.
    #[error("the constraint cannot be used: {reason}")]
    Refused { reason: String },
    /// It admits no text at all.
    #[error("the constraint admits no text")]
    Unsatisfiable,
    /// It takes more work to follow than is admitted.
    #[error("the constraint is too complex to be followed: {reason}")]
    TooComplex { reason: String },
    /// No token of the vocabulary continues the answer.
    #[error("no token of the vocabulary continues the answer as the constraint wants")]
    DeadEnd,
    /// The model's vocabulary does not fit into a trie.
    #[error("the tokens have {bytes} bytes together, constraints are supported up to {max}")]
    Vocabulary { bytes: usize, max: usize },
    /// The system gave no thread.
    #[error("no thread could be started: {reason}")]
    Thread { reason: String },
}

impl ConstraintError {
    /// The kind that crosses borders.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Vocabulary { .. } => ErrorKind::Unsupported,
            Self::Thread { .. } => ErrorKind::OutOfMemory,
            _ => ErrorKind::InvalidArgument,
        }
    }

    fn refused(reason: impl std::fmt::Display) -> Self {
        Self::Refused { reason: cut(reason) }
    }
}

fn cut(reason: impl std::fmt::Display) -> String {
    let mut reason = format!("{reason:#}");
    reason.truncate(reason.floor_char_boundary(MAX_REASON));
    reason
}

fn at_most(what: &'static str, given: usize, max: usize) -> Result<(), ConstraintError> {
    if given <= max { Ok(()) } else { Err(ConstraintError::TooLarge { what, given, max }) }
}

impl Constraint {
    /// Refuses what is too large to be looked at, without looking at it.
    pub fn check(&self) -> Result<(), ConstraintError> {
        match self {
            Self::JsonObject => Ok(()),
            Self::JsonSchema(schema) => check_schema(schema),
            Self::Lark(text) => {
                at_most("bytes", text.len(), MAX_BYTES)?;
                at_most("rules", text.matches(':').count(), MAX_RULES)
            }
            Self::Regex(text) => at_most("bytes", text.len(), MAX_BYTES),
        }
    }

    /// Where the answer begins, if all of it is JSON.
    fn place(&self) -> Option<Place> {
        match self {
            Self::JsonObject | Self::JsonSchema(_) => Some(Place::default()),
            Self::Lark(_) | Self::Regex(_) => None,
        }
    }

    fn grammar(&self) -> TopLevelGrammar {
        match self {
            Self::JsonObject => json_grammar(json!({"type": "object"})),
            Self::JsonSchema(schema) => json_grammar(schema.clone()),
            Self::Lark(text) => TopLevelGrammar::from_lark(text.clone()),
            Self::Regex(text) => TopLevelGrammar::from_lark(format!("start: /{}/", regex_to_lark(text, ""))),
        }
    }

    /// The grammars that admit less than [`grammar`](Self::grammar) and nothing else, the narrowest first: with closed
    /// objects, and with white space that ends.
    fn narrower(&self) -> Result<Vec<TopLevelGrammar>, ConstraintError> {
        let mut work = closing::MAX_WORK;
        match self {
            Self::JsonObject | Self::Regex(_) => Ok(Vec::new()),
            Self::JsonSchema(schema) => Ok(closing::closed(schema, &mut work).map(json_grammar).into_iter().collect()),
            Self::Lark(text) => {
                let schemas = embedded::find(text);
                schemas.iter().try_for_each(|embedded| check_schema(&embedded.schema))?;
                if schemas.is_empty() {
                    return Ok(Vec::new());
                }
                let closed = schemas.iter().map(|embedded| {
                    let closed = closing::closed(&embedded.schema, &mut work);
                    (embedded, with_options(closed.unwrap_or_else(|| embedded.schema.clone())))
                });
                let closed = embedded::replace(text, closed);
                let open = schemas.iter().map(|embedded| (embedded, with_options(embedded.schema.clone())));
                Ok([closed, embedded::replace(text, open)].map(TopLevelGrammar::from_lark).into())
            }
        }
    }
}

/// Bounds a schema by its values, its texts and its depth; does not recurse itself.
fn check_schema(schema: &Value) -> Result<(), ConstraintError> {
    let (mut values, mut bytes, mut left) = (0, 0, vec![(schema, 1)]);
    while let Some((value, depth)) = left.pop() {
        values += 1;
        at_most("levels", depth, MAX_DEPTH)?;
        at_most("values", values, MAX_VALUES)?;
        match value {
            Value::String(text) => bytes += text.len(),
            Value::Array(items) => left.extend(items.iter().map(|item| (item, depth + 1))),
            Value::Object(fields) => {
                bytes += fields.keys().map(String::len).sum::<usize>();
                left.extend(fields.values().map(|field| (field, depth + 1)));
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
        at_most("bytes", bytes, MAX_BYTES)?;
    }
    Ok(())
}

fn json_grammar(schema: Value) -> TopLevelGrammar {
    TopLevelGrammar::from_json_schema(with_options(schema))
}

/// The schema with llguidance's options set over what it may say of them itself.
fn with_options(schema: Value) -> Value {
    // `true` has no place for options; it means what an empty schema means.
    let mut schema = if schema == Value::Bool(true) { json!({}) } else { schema };
    if let Value::Object(fields) = &mut schema {
        fields.insert("x-guidance".to_owned(), json!({"whitespace_pattern": WHITE_SPACE}));
    }
    schema
}

fn limits() -> ParserLimits {
    ParserLimits {
        max_items_in_row: ROW_ITEMS,
        initial_lexer_fuel: COMPILE_FUEL,
        step_lexer_fuel: STEP_FUEL,
        step_max_items: STEP_ITEMS,
        max_lexer_states: MAX_STATES,
        max_grammar_size: MAX_GRAMMAR,
        // Runs large expressions over the whole trie ahead of time, which answers need not wait for.
        precompute_large_lexemes: false,
        verbose_errors: false,
    }
}

/// The tokens that may come next.
#[derive(Debug, Clone, PartialEq)]
pub struct Allowed(SimpleVob);

impl Allowed {
    /// Whether the token may come next; one outside the vocabulary may not.
    pub fn contains(&self, token: u32) -> bool {
        let word = self.0.as_slice().get(token as usize / 32);
        (token as usize) < self.0.len() && word.is_some_and(|word| word >> (token % 32) & 1 == 1)
    }
}

/// A vocabulary as llguidance wants it. Grammars force no tokens ahead: tokenising is the model's own choice.
struct Words(TokTrie);

impl TokenizerEnv for Words {
    fn tok_trie(&self) -> &TokTrie {
        &self.0
    }

    fn tokenize_bytes(&self, text: &[u8]) -> Vec<u32> {
        self.0.greedy_tokenize(text)
    }

    fn tokenize_is_canonical(&self) -> bool {
        false
    }
}

/// The trie of a model's tokens, with parts of it that often match as a whole. Tens of MiB for 262,144 tokens.
pub struct Lexicon {
    words: TokEnv,
    slices: SlicedBiasComputer,
    growing: Growing,
    ends: Vec<u32>,
}

impl Lexicon {
    /// The lexicon of a tokenizer. Blocks, for seconds where the vocabulary is large and the build is not optimised.
    pub fn new(tokenizer: &Tokenizer) -> Result<Self, ConstraintError> {
        let ends = (0..tokenizer.vocab()).filter(|token| tokenizer.is_end_of_generation(*token)).collect();
        Self::from_words(words(tokenizer), ends)
    }

    /// The lexicon of these words; a token whose word is empty is never allowed, unless it is one of `ends`.
    pub(crate) fn from_words(words: Vec<Vec<u8>>, ends: Vec<u32>) -> Result<Self, ConstraintError> {
        let bytes = words.iter().map(Vec::len).sum();
        if bytes > MAX_TRIE_BYTES {
            return Err(ConstraintError::Vocabulary { bytes, max: MAX_TRIE_BYTES });
        }
        on_own_stack(|| {
            // Ends are our own matter: llguidance knows of one only.
            let facts = TokRxInfo::new(words.len() as u32, INVALID_TOKEN);
            let trie: TokEnv = Arc::new(Words(TokTrie::from(&facts, &words)));
            let slices = SlicedBiasComputer::new(&trie, &SlicedBiasComputer::general_slices());
            let growing = Growing::of(trie.tok_trie());
            Ok(Self { words: trie, slices: slices.map_err(ConstraintError::refused)?, growing, ends })
        })
    }

    /// Makes the constraint followable. Blocks for some milliseconds, for large ones up to seconds.
    pub fn compile(self: &Arc<Self>, constraint: &Constraint) -> Result<Guide, ConstraintError> {
        constraint.check()?;
        on_own_stack(|| {
            let place = constraint.place();
            for narrower in constraint.narrower()? {
                if let Ok(guide) = self.guide(narrower, place) {
                    return Ok(guide);
                }
            }
            // What is refused is refused as it was given.
            self.guide(constraint.grammar(), place)
        })
    }

    /// A guide through a grammar, with the place where the answer begins if all of it is JSON. Needs [`COMPILE_STACK`].
    fn guide(self: &Arc<Self>, grammar: TopLevelGrammar, place: Option<Place>) -> Result<Guide, ConstraintError> {
        let slices = self.slices.extra_lexemes();
        let grammar = GrammarInit::Serialized(grammar);
        let grammar = grammar.to_cgrammar(Some(self.words.clone()), &mut Logger::new(0, 0), limits(), slices);
        let grammar = grammar.map_err(ConstraintError::refused)?;
        let counters = Arc::new(ParserPerfCounters::default());
        let parser = Parser::new(self.words.clone(), grammar, limits(), counters);
        let parser = parser.map_err(ConstraintError::refused)?;
        let mut guide = Guide { parser, lexicon: self.clone(), place };
        // What admits nothing is refused before anything is computed for it.
        match guide.allowed() {
            Err(ConstraintError::DeadEnd) => Err(ConstraintError::Unsatisfiable),
            Err(error) => Err(error),
            Ok(_) => Ok(guide),
        }
    }
}

/// The bytes of each token, [`TokTrie::SPECIAL_TOKEN_MARKER`] before those of control tokens, by which a grammar names
/// them. Of tokens with equal bytes only the first has them: the trie walks along its likes.
fn words(tokenizer: &Tokenizer) -> Vec<Vec<u8>> {
    let mut seen = HashSet::new();
    let word = |token| {
        let plain = tokenizer.token_bytes(token, false);
        match plain.first() {
            // No text has this byte.
            Some(&TokTrie::SPECIAL_TOKEN_MARKER) => Vec::new(),
            Some(_) => plain.into_owned(),
            None => {
                let name = tokenizer.token_bytes(token, true);
                let marker = (!name.is_empty()).then_some(TokTrie::SPECIAL_TOKEN_MARKER);
                marker.into_iter().chain(name.iter().copied()).collect()
            }
        }
    };
    let usable = |word: Vec<u8>| match word.len() <= MAX_TRIE_TOKEN && seen.insert(word.clone()) {
        true => word,
        false => Vec::new(),
    };
    (0..tokenizer.vocab()).map(word).map(usable).collect()
}

/// Runs `work` on a thread with [`COMPILE_STACK`]; its panic is a refusal.
fn on_own_stack<T: Send>(work: impl FnOnce() -> Result<T, ConstraintError> + Send) -> Result<T, ConstraintError> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("swarmllm-guide".to_owned()).stack_size(COMPILE_STACK);
        match thread.spawn_scoped(scope, work) {
            Ok(running) => running.join().unwrap_or_else(|panic| Err(ConstraintError::refused(panic_text(&*panic)))),
            Err(cause) => Err(ConstraintError::Thread { reason: cut(cause) }),
        }
    })
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("llguidance failed at it")
}

/// A constraint as one generation follows it. After an error it gives only errors.
pub struct Guide {
    parser: Parser,
    lexicon: Arc<Lexicon>,
    /// Where the answer is, if all of it is JSON.
    place: Option<Place>,
}

impl Guide {
    /// The tokens that may come next: those that continue the answer, and those that end it where it may end.
    pub fn allowed(&mut self) -> Result<Allowed, ConstraintError> {
        let (lexicon, place) = (self.lexicon.clone(), self.place);
        self.guarded(|parser| {
            let mut allowed = parser.compute_bias(&lexicon.slices, &[]);
            if let Some(error) = parser.get_error() {
                return Err(ConstraintError::TooComplex { reason: cut(error.message()) });
            }
            let may_end = parser.is_accepting();
            lexicon.ends.iter().for_each(|end| allowed.set(*end as usize, may_end));
            if let Some(place) = place {
                lexicon.growing.bound(place, lexicon.words.tok_trie(), &mut allowed);
            }
            match allowed.is_zero() && !may_end {
                true => Err(ConstraintError::DeadEnd),
                false => Ok(Allowed(allowed)),
            }
        })
    }

    /// Takes a chosen token, one of [`allowed`](Self::allowed) that does not end the answer.
    pub fn accept(&mut self, token: u32) -> Result<(), ConstraintError> {
        let bytes = self.lexicon.words.tok_trie().decode_raw(&[token]);
        self.place = self.place.map(|place| place.after(&bytes));
        self.guarded(|parser| match parser.apply_token(&bytes, token) {
            Ok(_) => Ok(()),
            Err(cause) => Err(ConstraintError::TooComplex { reason: cut(cause) }),
        })
    }

    /// Whether the answer is whole and nothing can follow.
    pub fn is_complete(&mut self) -> Result<bool, ConstraintError> {
        self.guarded(|parser| Ok(parser.is_accepting() && !parser.can_advance()))
    }

    fn guarded<T>(
        &mut self,
        work: impl FnOnce(&mut Parser) -> Result<T, ConstraintError>,
    ) -> Result<T, ConstraintError> {
        // A parser that panicked is broken, and says so by panicking again: its lock is poisoned.
        let done = catch_unwind(AssertUnwindSafe(|| work(&mut self.parser)));
        done.unwrap_or_else(|panic| Err(ConstraintError::TooComplex { reason: cut(panic_text(&*panic)) }))
    }
}

#[cfg(test)]
mod tests;
