//! The vocabulary: texts, attributes and special ids of tokens, validated when it is built.
//!
//! Special tokens and ends of generation are found as in llama.cpp, partly by the texts of tokens, because GGUF files
//! in use do not mark them all. Where several tokens fit one role, llama.cpp takes the first in the order of its hash
//! table; here it is the first of the list.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::facts::Facts;
use super::{TokenizerError, TokenizerWarning};

/// Most tokens of a vocabulary; the largest in use has about 260,000.
pub const MAX_TOKENS: u64 = 1 << 20;
/// Longest text of one token, in bytes.
pub const MAX_TOKEN_BYTES: usize = 4096;

const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";
const SCORES: &str = "tokenizer.ggml.scores";
const BOS: &str = "tokenizer.ggml.bos_token_id";
const EOS: &str = "tokenizer.ggml.eos_token_id";

/// A set of attributes of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attr(u8);

impl Attr {
    pub const NONE: Attr = Attr(0);
    pub const UNKNOWN: Attr = Attr(1);
    pub const NORMAL: Attr = Attr(1 << 1);
    pub const CONTROL: Attr = Attr(1 << 2);
    pub const USER_DEFINED: Attr = Attr(1 << 3);
    pub const BYTE: Attr = Attr(1 << 4);
    /// Swallows the white space before it.
    pub const LSTRIP: Attr = Attr(1 << 5);
    /// Swallows the white space after it.
    pub const RSTRIP: Attr = Attr(1 << 6);
    /// Delimits the model's channels: read in plain text like a user-defined token, but never in untrusted text of a
    /// template.
    pub const CHANNEL: Attr = Attr(1 << 7);

    /// Whether the sets intersect.
    pub fn intersects(self, other: Attr) -> bool {
        self.0 & other.0 != 0
    }

    pub const fn union(self, other: Attr) -> Attr {
        Attr(self.0 | other.0)
    }

    fn without(self, other: Attr) -> Attr {
        Attr(self.0 & !other.0)
    }

    /// From GGUF's `token_type`. Unused (5) and undefined tokens have no attribute; their text is empty.
    fn from_type(ty: i32) -> Attr {
        match ty {
            1 => Self::NORMAL,
            2 => Self::UNKNOWN,
            3 => Self::CONTROL,
            4 => Self::USER_DEFINED,
            6 => Self::BYTE,
            _ => Self::NONE,
        }
    }
}

/// Defaults of a kind of tokenizer, for missing metadata.
#[derive(Debug, Clone, Copy)]
pub struct Defaults {
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    pub add_bos: bool,
}

/// The tokens of a model.
#[derive(Debug)]
pub struct Vocab {
    texts: Vec<Arc<str>>,
    ids: HashMap<Arc<str>, u32>,
    attrs: Vec<Attr>,
    scores: Vec<f32>,
    eog: BTreeSet<u32>,
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    pub eot: Option<u32>,
    /// Whether a text that is encoded with special tokens begins with `bos`, which then exists.
    pub add_bos: bool,
    /// The same at the end, with `eos`.
    pub add_eos: bool,
    /// Ignored metadata: at most one warning for each key.
    pub warnings: Vec<TokenizerWarning>,
}

impl Vocab {
    pub fn from_facts(facts: Facts<'_>, defaults: Defaults) -> Result<Vocab, TokenizerError> {
        let words = facts.strings(TOKENS, MAX_TOKENS)?.ok_or(TokenizerError::Missing { key: TOKENS })?;
        if words.is_empty() {
            return Err(TokenizerError::Malformed { key: TOKENS, reason: "it is empty" });
        }
        let (texts, ids) = index(&words)?;
        let attrs = match facts.i32s(TYPES, MAX_TOKENS)? {
            Some(types) => first_entries(TYPES, &types, texts.len())?.iter().map(|ty| Attr::from_type(*ty)).collect(),
            None => vec![Attr::NORMAL; texts.len()],
        };
        let scores = match facts.f32s(SCORES, MAX_TOKENS)? {
            Some(scores) => first_entries(SCORES, &scores, texts.len())?.to_vec(),
            None => Vec::new(),
        };
        if let Some(id) = scores.iter().position(|score| score.is_nan()) {
            return Err(TokenizerError::Token { id, reason: "its score is not a number" });
        }
        let mut vocab = Vocab {
            texts,
            ids,
            attrs,
            scores,
            eog: BTreeSet::new(),
            bos: None,
            eos: None,
            eot: None,
            add_bos: facts.bool("tokenizer.ggml.add_bos_token")?.unwrap_or(defaults.add_bos),
            add_eos: facts.bool("tokenizer.ggml.add_eos_token")?.unwrap_or(false),
            warnings: Vec::new(),
        };
        vocab.bos = vocab.special(facts, BOS, defaults.bos)?;
        vocab.eos = vocab.special(facts, EOS, defaults.eos)?;
        if vocab.add_bos && vocab.bos.is_none() {
            return Err(TokenizerError::MissingSpecial { what: "begin" });
        }
        if vocab.add_eos && vocab.eos.is_none() {
            return Err(TokenizerError::MissingSpecial { what: "end" });
        }
        vocab.find_roles(facts)?;
        vocab.find_eog();
        vocab.set_strips(facts)?;
        vocab.check_bytes()?;
        Ok(vocab)
    }

    pub fn len(&self) -> usize {
        self.texts.len()
    }

    pub fn text(&self, id: u32) -> Option<&str> {
        self.texts.get(id as usize).map(|text| &**text)
    }

    /// The attributes of a token; none for ids outside the vocabulary.
    pub fn attr(&self, id: u32) -> Attr {
        self.attrs.get(id as usize).copied().unwrap_or(Attr::NONE)
    }

    /// 0 where the model has no scores.
    pub fn score(&self, id: u32) -> f32 {
        self.scores.get(id as usize).copied().unwrap_or(0.0)
    }

    pub fn id(&self, text: &str) -> Option<u32> {
        self.ids.get(text).copied()
    }

    pub fn is_eog(&self, id: u32) -> bool {
        self.eog.contains(&id)
    }

    /// Ids, texts and attributes of all tokens.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &Arc<str>, Attr)> {
        self.texts.iter().zip(&self.attrs).zip(0..).map(|((text, attr), id)| (id, text, *attr))
    }

    /// The byte that a token such as `<0x0A>` stands for.
    pub fn byte(&self, id: u32) -> Option<u8> {
        parse_byte(self.text(id)?)
    }

    /// The id that `key` names, else the default. Either is ignored where it is out of range, as in llama.cpp.
    fn special(
        &mut self,
        facts: Facts<'_>,
        key: &'static str,
        default: Option<u32>,
    ) -> Result<Option<u32>, TokenizerError> {
        let tokens = self.len();
        let has = |id: &u32| (*id as usize) < tokens;
        let named = facts.u32(key)?;
        if let Some(id) = named.filter(|id| !has(id)) {
            self.warnings.push(TokenizerWarning::SpecialToken { key, id, tokens });
        }
        Ok(named.filter(has).or(default.filter(has)))
    }

    fn update(&mut self, id: u32, change: impl Fn(Attr) -> Attr) {
        if let Some(attr) = self.attrs.get_mut(id as usize) {
            *attr = change(*attr);
        }
    }

    /// Finds the tokens of [`ROLES`]. A token that is found by its text becomes a control token.
    fn find_roles(&mut self, facts: Facts<'_>) -> Result<(), TokenizerError> {
        for role in ROLES {
            let mut named = None;
            for key in role.keys {
                named = self.special(facts, key, named)?;
            }
            let found = role.texts.iter().find_map(|text| self.id(text));
            if let (None, Some(id)) = (named, found) {
                self.update(id, |attr| attr.union(Attr::CONTROL));
            }
            let id = named.or(found);
            if role.ends {
                self.eog.extend(id);
            }
            if role.is_eot {
                self.eot = id;
            }
        }
        Ok(())
    }

    /// Adds the ends of generation that are known by their text, except in vocabularies where one of them is an
    /// ordinary token.
    fn find_eog(&mut self) {
        for id in EOG_TEXTS.iter().filter_map(|text| self.id(text)).collect::<Vec<_>>() {
            self.eog.insert(id);
            self.update(id, |attr| attr.union(Attr::CONTROL));
        }
        for id in CHANNEL_TEXTS.iter().filter_map(|text| self.id(text)).collect::<Vec<_>>() {
            self.update(id, |_| Attr::USER_DEFINED.union(Attr::CHANNEL));
        }
        self.eog.extend(self.eos);
        let ends = |text: &str| self.id(text).filter(|id| self.eog.contains(id));
        let calls = ends("<|call|>").or(ends("<|calls|>")).is_some();
        let channels = calls && (ends("<|return|>").is_some() || ends("<|flush|>").is_some());
        let end = ends("<|end|>").filter(|_| channels);
        let marked = ends("<|tool_response>").or(ends("<|plamo:eos|>")).is_some();
        let sentence = ends("</s>").filter(|_| marked);
        for (id, attr) in [(end, Attr::USER_DEFINED.union(Attr::CHANNEL)), (sentence, Attr::NORMAL)] {
            if let Some(id) = id {
                self.eog.remove(&id);
                self.update(id, |_| attr);
            }
        }
    }

    /// Sets which special tokens swallow white space. GGUF files do not say it; llama.cpp knows it by the model's name.
    fn set_strips(&mut self, facts: Facts<'_>) -> Result<(), TokenizerError> {
        let name = facts.string("general.name")?.unwrap_or_default().to_ascii_lowercase();
        let pre = facts.string("tokenizer.ggml.pre")?.unwrap_or_default();
        if ["jina-v2-de", "jina-v2-es", "jina-v2-code"].iter().any(|known| pre.contains(known)) {
            if let Some(id) = self.id("<mask>") {
                self.update(id, |attr| attr.union(Attr::LSTRIP));
            }
        } else if name.contains("phi-3") || name.contains("phi3") {
            let special = Attr::CONTROL.union(Attr::USER_DEFINED).union(Attr::UNKNOWN);
            let plain = ["<unk>", "<s>", "<|endoftext|>"].map(|text| self.id(text));
            let end = self.id("</s>");
            for (attr, id) in self.attrs.iter_mut().zip(0u32..) {
                if plain.contains(&Some(id)) {
                    *attr = attr.without(Attr::RSTRIP);
                } else if attr.intersects(special) || end == Some(id) {
                    *attr = attr.union(Attr::RSTRIP);
                }
            }
        }
        Ok(())
    }

    /// Refuses a byte token whose text is not a byte.
    fn check_bytes(&self) -> Result<(), TokenizerError> {
        let broken = self.iter().find(|(_, text, attr)| attr.intersects(Attr::BYTE) && parse_byte(text).is_none());
        match broken {
            Some((id, ..)) => {
                Err(TokenizerError::Token { id: id as usize, reason: "it is a byte token without a byte" })
            }
            None => Ok(()),
        }
    }
}

type Index = (Vec<Arc<str>>, HashMap<Arc<str>, u32>);

/// Texts by id and ids by text. An empty text gets a name, as in llama.cpp.
fn index(words: &[&str]) -> Result<Index, TokenizerError> {
    let mut texts = Vec::with_capacity(words.len());
    let mut ids = HashMap::with_capacity(words.len());
    for (id, word) in words.iter().enumerate() {
        if word.len() > MAX_TOKEN_BYTES {
            return Err(TokenizerError::Token { id, reason: "its text is too long" });
        }
        let text: Arc<str> = if word.is_empty() { format!("[EMPTY_{id}]").into() } else { (*word).into() };
        // `MAX_TOKENS` keeps ids far below 2^32.
        if ids.insert(Arc::clone(&text), id as u32).is_some() {
            return Err(TokenizerError::Token { id, reason: "another token has the same text" });
        }
        texts.push(text);
    }
    Ok((texts, ids))
}

/// The first `tokens` entries.
fn first_entries<'a, T>(key: &'static str, values: &'a [T], tokens: usize) -> Result<&'a [T], TokenizerError> {
    values.get(..tokens).ok_or(TokenizerError::Length { key, given: values.len(), tokens })
}

/// `<0xHH>`.
fn parse_byte(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    let plain = digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    plain.then(|| u8::from_str_radix(digits, 16).ok())?
}

/// The role of one token of the vocabulary.
struct Role {
    /// Metadata keys with its id; the last one wins.
    keys: &'static [&'static str],
    /// Its texts in known models, for a model without the keys.
    texts: &'static [&'static str],
    /// Whether it ends a generation.
    ends: bool,
    is_eot: bool,
}

impl Role {
    const fn new(keys: &'static [&'static str], texts: &'static [&'static str]) -> Role {
        Role { keys, texts, ends: false, is_eot: false }
    }

    const fn ending(keys: &'static [&'static str], texts: &'static [&'static str]) -> Role {
        Role { keys, texts, ends: true, is_eot: false }
    }
}

const ROLES: &[Role] = &[
    Role {
        keys: &["tokenizer.ggml.eot_token_id"],
        texts: &[
            "<|eot_id|>",
            "<|im_end|>",
            "<|end|>",
            "<end_of_turn>",
            "<|endoftext|>",
            "<|end_of_text|>",
            "<EOT>",
            "_<EOT>",
            "[EOT]",
            "<｜end▁of▁sentence｜>",
            "<end_of_utterance>",
        ],
        ends: true,
        is_eot: true,
    },
    Role::ending(&["tokenizer.ggml.eom_token_id"], &["<|eom_id|>"]),
    Role::new(
        &["tokenizer.ggml.fim_pre_token_id", "tokenizer.ggml.prefix_token_id"],
        &[
            "<|fim_prefix|>",
            "<fim-prefix>",
            "<fim_prefix>",
            "<｜fim▁begin｜>",
            "<PRE>",
            "▁<PRE>",
            "<|code_prefix|>",
            "<|prefix|>",
        ],
    ),
    Role::new(
        &["tokenizer.ggml.fim_suf_token_id", "tokenizer.ggml.suffix_token_id"],
        &[
            "<|fim_suffix|>",
            "<fim-suffix>",
            "<fim_suffix>",
            "<｜fim▁hole｜>",
            "<SUF>",
            "▁<SUF>",
            "<|code_suffix|>",
            "<|suffix|>",
        ],
    ),
    Role::new(
        &["tokenizer.ggml.fim_mid_token_id", "tokenizer.ggml.middle_token_id"],
        &[
            "<|fim_middle|>",
            "<fim-middle>",
            "<fim_middle>",
            "<｜fim▁end｜>",
            "<MID>",
            "▁<MID>",
            "<|code_middle|>",
            "<|middle|>",
        ],
    ),
    Role::ending(&["tokenizer.ggml.fim_pad_token_id"], &["<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"]),
    Role::ending(
        &["tokenizer.ggml.fim_rep_token_id"],
        &["<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"],
    ),
    Role::ending(&["tokenizer.ggml.fim_sep_token_id"], &["<|file_sep|>"]),
];

/// Tokens that end a generation in any vocabulary.
const EOG_TEXTS: &[&str] = &[
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
];

/// Tokens that delimit a model's channels. They are always written.
const CHANNEL_TEXTS: &[&str] = &["<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"];
