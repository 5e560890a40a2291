//! Constrained decoding: a JSON schema, a grammar or a regular expression becomes a token mask.
//!
//! llguidance does the work: an Earley parser over lexemes that are matched by derivatives, run over the trie of all
//! tokens. A [`ConstraintCompiler`] holds that trie, is built once for each model, and compiles a [`Constraint`] into a
//! [`Guide`]. A guide belongs to one generation: it gives the mask of the next token and accepts the chosen token.
//!
//! Constraints are untrusted input. Their size and depth are checked before any recursion. They are compiled on a thread
//! with a stack of known size, with all limits of llguidance set, and a panic becomes an error. llguidance's own panic
//! guard is not used, because it installs a panic hook in the host's process.

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

use self::bounds::{JsonState, UnboundedTokens};
use crate::base::ErrorKind;
use crate::model::tokenizer::Tokenizer;

/// The required form of the output. Output that ends at the token limit is a prefix of that form.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Constraint {
    /// Any JSON object, with as many keys as the token limit allows. Numbers and nesting are bounded as for a schema.
    JsonObject,
    /// JSON that is valid by this JSON Schema. Keywords that cannot be enforced are refused by name. If a schema names an
    /// object's keys and has no `additionalProperties`, no other keys are allowed: JSON Schema allows them, and a model
    /// would invent keys until its token limit. The output is valid by the schema all the same. The schema allows other keys
    /// with `"additionalProperties": true`. An object without named keys (`{"type": "object"}`) is any object. Numbers have
    /// at most 20 digits before the point, 20 behind it and three in the exponent, and arrays and objects nest at most 64
    /// deep, unless the schema leaves nothing else.
    JsonSchema(Value),
    /// The language of the rule `start` of this grammar, in llguidance's dialect of Lark. Objects of its schemas (`%json`)
    /// are closed, and their white space is bounded, as for `JsonSchema`; only the schema bounds numbers and nesting.
    Lark(String),
    /// A full match of this regular expression, in the syntax of Rust's `regex`.
    Regex(String),
}

/// Most bytes of a schema's strings together, of a grammar or of a regular expression. Some constructs (character classes)
/// take a thousand times their size during compilation.
const MAX_BYTES: usize = 64 << 10;
/// Deepest nesting of a schema; hand-written schemas have about ten levels.
const MAX_DEPTH: usize = 64;
/// Most values of a schema, and most colons of a grammar, each of which may begin a rule. Schemas and rules that refer to
/// each other are compiled by recursion, at worst once for each.
const MAX_VALUES: usize = 4096;
const MAX_RULES: usize = 1024;
/// Stack of the compiling thread: 16 KiB for each level of the deepest chain of references. Only used pages take memory.
const COMPILE_STACK: usize = 64 << 20;
/// Most symbols of a grammar with its repetitions expanded (llguidance expands them logarithmically).
const MAX_GRAMMAR: usize = 100_000;
/// Work of building the lexer: about 20 ms at 50,000 units a millisecond, half of that for large schemas.
const COMPILE_FUEL: u64 = 1_000_000;
/// Work of one mask, in derivatives and in parser items: some ten milliseconds at worst.
const STEP_FUEL: u64 = 200_000;
const STEP_ITEMS: usize = 50_000;
/// Most parser items of one position; unambiguous grammars need a few.
const ROW_ITEMS: usize = 2000;
/// Most lexer states of a generation, at 1 to 2 KiB each.
const MAX_STATES: usize = 16_384;
/// White space between JSON tokens: one blank, or a line end with indentation. With more, small models repeat white space.
const WHITE_SPACE: &str = r"[ \t]|\r?\n[ \t]{0,32}";
/// Longest token in the trie, in bytes; the trie's own limit is 1,024. Longer tokens are never chosen under a constraint.
const MAX_TRIE_TOKEN: usize = 256;
/// Most bytes of all tokens: the trie counts its nodes, at most one for each byte, in 22 bits.
const MAX_TRIE_BYTES: usize = (1 << 22) - 1;
/// Most bytes of a reason, which may quote the constraint.
const MAX_REASON: usize = 400;

/// Error of compiling or following a constraint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConstraintError {
    /// The constraint is too large or too deep.
    #[error("the constraint has {given} {what}, at most {max} are allowed")]
    TooLarge { what: &'static str, given: usize, max: usize },
    /// The constraint is malformed, contradictory, or not enforceable.
    #[error("the constraint cannot be used: {reason}")]
    Refused { reason: String },
    /// The constraint admits no text.
    #[error("the constraint admits no text")]
    Unsatisfiable,
    /// Following the constraint exceeds a limit.
    #[error("the constraint is too complex: {reason}")]
    TooComplex { reason: String },
    /// No token of the vocabulary continues the output.
    #[error("the constraint admits no token of the vocabulary here")]
    DeadEnd,
    /// The model's vocabulary does not fit into a trie.
    #[error("the vocabulary has {bytes} bytes, constraints support at most {max}")]
    Vocabulary { bytes: usize, max: usize },
    /// The system gave no thread.
    #[error("no thread could be started: {reason}")]
    Thread { reason: String },
}

impl ConstraintError {
    /// The error kind for wire, C and Python.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Vocabulary { .. } => ErrorKind::Unsupported,
            Self::Thread { .. } => ErrorKind::OutOfMemory,
            _ => ErrorKind::InvalidArgument,
        }
    }

    fn refused(reason: impl std::fmt::Display) -> Self {
        Self::Refused { reason: shortened(reason) }
    }
}

fn shortened(reason: impl std::fmt::Display) -> String {
    let mut reason = format!("{reason:#}");
    reason.truncate(reason.floor_char_boundary(MAX_REASON));
    reason
}

fn at_most(what: &'static str, given: usize, max: usize) -> Result<(), ConstraintError> {
    if given <= max { Ok(()) } else { Err(ConstraintError::TooLarge { what, given, max }) }
}

impl Constraint {
    /// Refuses a constraint that is too large, without recursion.
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

    /// State of the JSON bounds at the start of the output; `None` if the output is not JSON as a whole.
    fn json_state(&self) -> Option<JsonState> {
        match self {
            Self::JsonObject | Self::JsonSchema(_) => Some(JsonState::default()),
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

    /// Grammars of subsets of [`grammar`](Self::grammar)'s language, the narrowest first: with closed objects, and with
    /// bounded white space.
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
                    (embedded, with_guidance_options(closed.unwrap_or_else(|| embedded.schema.clone())))
                });
                let closed = embedded::replace(text, closed);
                let open = schemas.iter().map(|embedded| (embedded, with_guidance_options(embedded.schema.clone())));
                Ok([closed, embedded::replace(text, open)].map(TopLevelGrammar::from_lark).into())
            }
        }
    }
}

/// Bounds a schema's values, strings and depth, without recursion.
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
    TopLevelGrammar::from_json_schema(with_guidance_options(schema))
}

/// The schema with our llguidance options, which override its own.
fn with_guidance_options(schema: Value) -> Value {
    // `true` has no place for options and equals an empty schema.
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
        // Would run large expressions over the whole trie ahead of time.
        precompute_large_lexemes: false,
        verbose_errors: false,
    }
}

/// The set of allowed next tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenMask(SimpleVob);

impl TokenMask {
    /// Whether the token is allowed; false outside the vocabulary.
    pub fn contains(&self, token: u32) -> bool {
        let word = self.0.as_slice().get(token as usize / 32);
        (token as usize) < self.0.len() && word.is_some_and(|word| word >> (token % 32) & 1 == 1)
    }
}

/// The vocabulary for llguidance. Grammars force no tokens ahead: the model chooses the tokenisation.
struct Vocabulary(TokTrie);

impl TokenizerEnv for Vocabulary {
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

/// Compiles constraints for one model: the trie of its tokens, with slices that often match as a whole. Tens of MiB for
/// 262,144 tokens.
pub struct ConstraintCompiler {
    tokens: TokEnv,
    slices: SlicedBiasComputer,
    unbounded: UnboundedTokens,
    ends: Vec<u32>,
}

impl ConstraintCompiler {
    /// Builds the compiler of a tokenizer's vocabulary. Blocks; for seconds with a large vocabulary in an unoptimised
    /// build.
    pub fn new(tokenizer: &Tokenizer) -> Result<Self, ConstraintError> {
        let ends = (0..tokenizer.vocab()).filter(|token| tokenizer.is_end_of_generation(*token)).collect();
        Self::from_texts(token_texts(tokenizer), ends)
    }

    /// Builds the compiler of these token texts. A token without text is never allowed, unless it is one of `ends`.
    pub(crate) fn from_texts(token_texts: Vec<Vec<u8>>, ends: Vec<u32>) -> Result<Self, ConstraintError> {
        let bytes = token_texts.iter().map(Vec::len).sum();
        if bytes > MAX_TRIE_BYTES {
            return Err(ConstraintError::Vocabulary { bytes, max: MAX_TRIE_BYTES });
        }
        on_own_stack(|| {
            // End tokens are handled here, because llguidance supports one only.
            let facts = TokRxInfo::new(token_texts.len() as u32, INVALID_TOKEN);
            let trie: TokEnv = Arc::new(Vocabulary(TokTrie::from(&facts, &token_texts)));
            let slices = SlicedBiasComputer::new(&trie, &SlicedBiasComputer::general_slices());
            let unbounded = UnboundedTokens::of(trie.tok_trie());
            Ok(Self { tokens: trie, slices: slices.map_err(ConstraintError::refused)?, unbounded, ends })
        })
    }

    /// Compiles a constraint. Blocks for some milliseconds, up to seconds for large constraints.
    pub fn compile(self: &Arc<Self>, constraint: &Constraint) -> Result<Guide, ConstraintError> {
        constraint.check()?;
        on_own_stack(|| {
            let json = constraint.json_state();
            for narrower in constraint.narrower()? {
                if let Ok(guide) = self.guide(narrower, json) {
                    return Ok(guide);
                }
            }
            // Errors refer to the given grammar, not to a narrowed one.
            self.guide(constraint.grammar(), json)
        })
    }

    /// Compiles a grammar; `json` is the initial state of the JSON bounds. Needs [`COMPILE_STACK`].
    fn guide(self: &Arc<Self>, grammar: TopLevelGrammar, json: Option<JsonState>) -> Result<Guide, ConstraintError> {
        let slices = self.slices.extra_lexemes();
        let grammar = GrammarInit::Serialized(grammar);
        let grammar = grammar.to_cgrammar(Some(self.tokens.clone()), &mut Logger::new(0, 0), limits(), slices);
        let grammar = grammar.map_err(ConstraintError::refused)?;
        let counters = Arc::new(ParserPerfCounters::default());
        let parser = Parser::new(self.tokens.clone(), grammar, limits(), counters);
        let parser = parser.map_err(ConstraintError::refused)?;
        let mut guide = Guide { parser, compiler: self.clone(), json };
        // A constraint that admits no text is refused before a prompt is computed for it.
        match guide.allowed() {
            Err(ConstraintError::DeadEnd) => Err(ConstraintError::Unsatisfiable),
            Err(error) => Err(error),
            Ok(_) => Ok(guide),
        }
    }
}

/// The bytes of each token; those of control tokens, which a grammar refers to by name, have a
/// [`TokTrie::SPECIAL_TOKEN_MARKER`] in front. Of tokens with equal bytes only the first has its bytes, because the trie
/// needs distinct ones.
fn token_texts(tokenizer: &Tokenizer) -> Vec<Vec<u8>> {
    let mut seen = HashSet::new();
    let word = |token| {
        let plain = tokenizer.token_bytes(token, false);
        match plain.first() {
            // This byte never occurs in text.
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

/// Runs `work` on a thread with [`COMPILE_STACK`]; a panic becomes an error.
fn on_own_stack<T: Send>(work: impl FnOnce() -> Result<T, ConstraintError> + Send) -> Result<T, ConstraintError> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("swarmllm-guide".to_owned()).stack_size(COMPILE_STACK);
        match thread.spawn_scoped(scope, work) {
            Ok(running) => running.join().unwrap_or_else(|panic| Err(ConstraintError::refused(panic_text(&*panic)))),
            Err(cause) => Err(ConstraintError::Thread { reason: shortened(cause) }),
        }
    })
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("llguidance panicked")
}

/// The state of a constraint in one generation. After an error all calls return errors.
pub struct Guide {
    parser: Parser,
    compiler: Arc<ConstraintCompiler>,
    /// State of the JSON bounds; `None` if the output is not JSON as a whole.
    json: Option<JsonState>,
}

impl Guide {
    /// The allowed next tokens: those that continue the output, and end tokens if the output may end here.
    pub fn allowed(&mut self) -> Result<TokenMask, ConstraintError> {
        let (compiler, json) = (self.compiler.clone(), self.json);
        self.guarded(|parser| {
            let mut allowed = parser.compute_bias(&compiler.slices, &[]);
            if let Some(error) = parser.get_error() {
                return Err(ConstraintError::TooComplex { reason: shortened(error.message()) });
            }
            let may_end = parser.is_accepting();
            compiler.ends.iter().for_each(|end| allowed.set(*end as usize, may_end));
            if let Some(json) = json {
                compiler.unbounded.bound(json, compiler.tokens.tok_trie(), &mut allowed);
            }
            match allowed.is_zero() && !may_end {
                true => Err(ConstraintError::DeadEnd),
                false => Ok(TokenMask(allowed)),
            }
        })
    }

    /// Accepts the chosen token, one of [`allowed`](Self::allowed) and not an end token.
    pub fn accept(&mut self, token: u32) -> Result<(), ConstraintError> {
        let bytes = self.compiler.tokens.tok_trie().decode_raw(&[token]);
        self.json = self.json.map(|json| json.after(&bytes));
        self.guarded(|parser| match parser.apply_token(&bytes, token) {
            Ok(_) => Ok(()),
            Err(cause) => Err(ConstraintError::TooComplex { reason: shortened(cause) }),
        })
    }

    /// Whether the output is complete and nothing can follow.
    pub fn is_complete(&mut self) -> Result<bool, ConstraintError> {
        self.guarded(|parser| Ok(parser.is_accepting() && !parser.can_advance()))
    }

    fn guarded<T>(
        &mut self,
        work: impl FnOnce(&mut Parser) -> Result<T, ConstraintError>,
    ) -> Result<T, ConstraintError> {
        // A parser that panicked panics again at each call, because its lock is poisoned.
        let done = catch_unwind(AssertUnwindSafe(|| work(&mut self.parser)));
        done.unwrap_or_else(|panic| Err(ConstraintError::TooComplex { reason: shortened(panic_text(&*panic)) }))
    }
}

#[cfg(test)]
mod tests;
