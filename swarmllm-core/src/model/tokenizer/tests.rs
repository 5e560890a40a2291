use std::sync::LazyLock;

use proptest::prelude::*;

use super::*;

/// A byte-level vocabulary: single bytes, some merges, special tokens.
fn bpe_facts(pre: &str) -> Vec<Fact> {
    let symbols: Vec<String> = (0..=255).map(|byte| bpe::symbol_of(byte).to_string()).collect();
    let mut words: Vec<&str> = symbols.iter().map(String::as_str).collect();
    words.extend(["he", "ll", "hell", "hello", "Ġhe", "<|im_start|>", "<|im_end|>", "<tool>", "<to"]);
    let mut types = vec![1; 261];
    types.extend([3, 3, 4, 4]);
    vec![
        Fact::string(MODEL, "gpt2"),
        Fact::string(PRE, pre),
        Fact::strings("tokenizer.ggml.tokens", &words),
        Fact::i32s("tokenizer.ggml.token_type", &types),
        Fact::strings("tokenizer.ggml.merges", &["h e", "l l", "he ll", "hell o", "Ġ he"]),
        Fact::u32("tokenizer.ggml.bos_token_id", 261),
        Fact::u32("tokenizer.ggml.eos_token_id", 262),
    ]
}

/// A SentencePiece vocabulary: byte tokens, some characters and words with scores.
fn spm_facts() -> Vec<Fact> {
    let bytes: Vec<String> = (0..=255).map(|byte| format!("<0x{byte:02X}>")).collect();
    let mut words = vec!["<unk>", "<s>", "</s>"];
    words.extend(bytes.iter().map(String::as_str));
    words.extend(["▁", "a", "b", "ab", "▁a", "▁ab", "ba", "\n\n"]);
    let mut types = vec![2, 3, 3];
    types.extend([6; 256]);
    types.extend([1; 7]);
    types.push(4);
    let mut scores = vec![0.0; 259];
    scores.extend([-1.0, -2.0, -3.0, -4.0, -5.0, -3.5, -9.0, 0.0]);
    vec![
        Fact::string(MODEL, "llama"),
        Fact::strings("tokenizer.ggml.tokens", &words),
        Fact::i32s("tokenizer.ggml.token_type", &types),
        Fact::f32s("tokenizer.ggml.scores", &scores),
    ]
}

fn with(mut facts: Vec<Fact>, fact: Fact) -> Vec<Fact> {
    facts.retain(|old| old.key != fact.key);
    facts.push(fact);
    facts
}

fn without(mut facts: Vec<Fact>, key: &str) -> Vec<Fact> {
    facts.retain(|old| old.key != key);
    facts
}

fn built(facts: &[Fact]) -> Tokenizer {
    Tokenizer::from_facts(facts).expect("good facts")
}

/// A tokenizer whose tokens 0 to 255 are the bytes, for tests of other modules.
pub(crate) fn byte_tokenizer() -> Tokenizer {
    built(&bpe_facts("gpt-2"))
}

/// A tokenizer of these tokens with GGUF's token types.
pub(crate) fn tokenizer_of_words(words: &[(&str, i32)]) -> Tokenizer {
    let (words, types): (Vec<&str>, Vec<i32>) = words.iter().copied().unzip();
    let facts = with(bpe_facts("gpt-2"), Fact::strings("tokenizer.ggml.tokens", &words));
    let facts = with(facts, Fact::i32s("tokenizer.ggml.token_type", &types));
    let facts = with(facts, Fact::strings("tokenizer.ggml.merges", &[]));
    built(&without(without(facts, "tokenizer.ggml.bos_token_id"), "tokenizer.ggml.eos_token_id"))
}

fn refusal(facts: &[Fact]) -> TokenizerError {
    Tokenizer::from_facts(facts).expect_err("bad facts")
}

#[test]
fn byte_level_bpe_merges_by_rank_within_words() {
    let tokenizer = built(&bpe_facts("gpt-2"));
    assert_eq!(tokenizer.encode("hello he", false, false), Ok(vec![259, 260]));
    assert_eq!(tokenizer.encode("", true, true), Ok(vec![]));
    assert_eq!(tokenizer.decode(&[259, 260], false), "hello he");
    assert_eq!(tokenizer.vocab(), 265);
}

#[test]
fn control_tokens_are_parsed_and_rendered_only_on_request() {
    let tokenizer = built(&bpe_facts("gpt-2"));
    let parsed = tokenizer.encode("<|im_start|>he", false, true).expect("it encodes");
    assert_eq!(parsed, [261, 256]);
    let plain = tokenizer.encode("<|im_start|>he", false, false).expect("it encodes");
    assert!(!plain.contains(&261));
    assert_eq!(tokenizer.decode(&plain, false), "<|im_start|>he");
    assert_eq!(
        (tokenizer.decode(&parsed, false), tokenizer.decode(&parsed, true)),
        ("he".into(), "<|im_start|>he".into())
    );
}

#[test]
fn user_defined_tokens_are_always_read_longest_first() {
    let tokenizer = built(&bpe_facts("gpt-2"));
    assert_eq!(tokenizer.encode("<tool><to", false, false), Ok(vec![263, 264]));
    assert_eq!(tokenizer.decode(&[263], false), "<tool>");
}

#[test]
fn a_byte_without_a_token_is_dropped_and_never_merged() {
    let mut words: Vec<String> = (b'a'..=b'z').map(|byte| char::from(byte).to_string()).collect();
    words.push("he".into());
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let facts = with(bpe_facts("gpt-2"), Fact::strings("tokenizer.ggml.tokens", &words));
    let facts = with(facts, Fact::strings("tokenizer.ggml.merges", &["h e"]));
    let facts = without(without(facts, "tokenizer.ggml.bos_token_id"), "tokenizer.ggml.eos_token_id");
    let tokenizer = built(&facts);
    assert_eq!(tokenizer.encode("hé", false, false), Ok(vec![7]));
    assert_eq!(tokenizer.encode("he", false, false), Ok(vec![26]));
}

#[test]
fn sentencepiece_merges_by_score_and_falls_back_to_bytes() {
    let tokenizer = built(&spm_facts());
    // Score -3 (`ab`) beats -5 (`▁a`), then `▁ab` at -3.5.
    assert_eq!(tokenizer.encode("ab", true, false), Ok(vec![1, 264]));
    assert_eq!(tokenizer.encode("é", false, false), Ok(vec![259, 3 + 0xc3, 3 + 0xa9]));
    assert_eq!(tokenizer.encode("aba", false, false), Ok(vec![264, 260]));
    assert_eq!(tokenizer.decode(&[264, 260], false), "aba");
}

#[test]
fn the_space_in_front_comes_after_special_tokens_only() {
    let tokenizer = built(&spm_facts());
    assert_eq!(tokenizer.encode("a\n\na", false, false), Ok(vec![263, 266, 263]));
    let tokenizer = built(&with(spm_facts(), Fact::bool("tokenizer.ggml.add_space_prefix", false)));
    assert_eq!(tokenizer.encode("a\n\na", false, false), Ok(vec![260, 266, 260]));
}

#[test]
fn ends_of_generation_are_found_by_id_and_by_text() {
    let tokenizer = built(&bpe_facts("gpt-2"));
    assert!(tokenizer.is_end_of_generation(262));
    assert!(!tokenizer.is_end_of_generation(261) && !tokenizer.is_end_of_generation(9999));
    assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.eot()), (Some(261), Some(262), Some(262)));
    assert!(built(&spm_facts()).is_end_of_generation(2));
}

#[test]
fn begin_tokens_follow_the_kind_unless_the_metadata_says_otherwise() {
    assert!(built(&spm_facts()).adds_bos());
    assert!(!built(&bpe_facts("smollm")).adds_bos());
    assert!(built(&bpe_facts("llama-bpe")).adds_bos());
    let facts = with(bpe_facts("llama-bpe"), Fact::bool("tokenizer.ggml.add_bos_token", false));
    assert!(!built(&facts).adds_bos());
    let facts = with(bpe_facts("gpt-2"), Fact::bool("tokenizer.ggml.add_eos_token", true));
    assert_eq!(built(&facts).encode("he", true, false), Ok(vec![256, 262]));
}

#[test]
fn a_stream_never_yields_half_a_character() {
    let tokenizer = std::sync::Arc::new(built(&spm_facts()));
    let mut stream = Detokenizer::new(tokenizer.clone());
    assert_eq!(stream.push(264), Some(" ab".into()));
    assert_eq!((stream.push(3 + 0xc3), stream.push(1)), (None, None));
    assert_eq!(stream.push(3 + 0xa9), Some("é".into()));
    assert_eq!((stream.push(3 + 0xe2), stream.push(12345)), (None, None));
    assert_eq!(stream.finish(), Some("\u{fffd}".into()));
    let mut stream = Detokenizer::from_start(tokenizer.clone()).with_special(true);
    assert_eq!((stream.push(264), stream.push(1)), (Some("ab".into()), Some("<s>".into())));
    assert_eq!(stream.finish(), None);
}

#[test]
fn hostile_metadata_gives_a_typed_error() {
    let tokens = "tokenizer.ggml.tokens";
    assert!(matches!(refusal(&[]), TokenizerError::Missing { .. }));
    assert!(matches!(
        refusal(&with(bpe_facts("gpt-2"), Fact::string(MODEL, "bert"))),
        TokenizerError::Unsupported { .. }
    ));
    assert!(matches!(refusal(&bpe_facts("no-such-rule")), TokenizerError::Unsupported { .. }));
    assert!(matches!(refusal(&with(spm_facts(), Fact::strings(tokens, &[]))), TokenizerError::Malformed { .. }));
    assert!(matches!(refusal(&with(spm_facts(), facts::not_utf8(tokens))), TokenizerError::Malformed { .. }));
    let twice = with(spm_facts(), Fact::strings(tokens, &["a", "b", "a"]));
    assert!(matches!(refusal(&twice), TokenizerError::Token { id: 2, .. }));
    let long = "x".repeat(MAX_TOKEN_BYTES + 1);
    assert!(matches!(
        refusal(&with(spm_facts(), Fact::strings(tokens, &[&long]))),
        TokenizerError::Token { id: 0, .. }
    ));
    for key in ["tokenizer.ggml.token_type", "tokenizer.ggml.scores"] {
        let short = with(spm_facts(), Fact::i32s(key, &[1; 7]));
        assert!(matches!(refusal(&short), TokenizerError::Length { given: 7, .. }));
    }
    let nan = with(spm_facts(), Fact::f32s("tokenizer.ggml.scores", &[f32::NAN; 300]));
    assert!(matches!(refusal(&nan), TokenizerError::Token { id: 0, .. }));
    let byte = with(spm_facts(), Fact::i32s("tokenizer.ggml.token_type", &[6; 300]));
    assert!(matches!(refusal(&byte), TokenizerError::Token { id: 0, .. }));
}

#[test]
fn hostile_merges_and_ids_give_a_typed_error() {
    for rule in ["a", "", "a b c", "zz a", "é ", " "] {
        let facts = with(bpe_facts("gpt-2"), Fact::strings("tokenizer.ggml.merges", &["h e", rule]));
        assert!(matches!(refusal(&facts), TokenizerError::Merge { index: 1, .. }), "{rule:?}");
    }
    let facts = with(bpe_facts("glm4"), Fact::bool("tokenizer.ggml.add_bos_token", true));
    assert!(matches!(refusal(&without(facts, "tokenizer.ggml.bos_token_id")), TokenizerError::MissingSpecial { .. }));
}

#[test]
fn a_special_id_out_of_range_is_ignored() {
    let key = |name: &str| format!("tokenizer.ggml.{name}_token_id");
    for id in [265, u32::MAX] {
        for name in ["eot", "fim_pad"] {
            let tokenizer = built(&with(bpe_facts("gpt-2"), Fact::u32(&key(name), id)));
            assert_eq!(
                (tokenizer.bos(), tokenizer.eos(), tokenizer.eot()),
                (Some(261), Some(262), Some(262)),
                "{name}"
            );
        }
        // llama.cpp's defaults remain, where the vocabulary has them.
        let tokenizer = built(&with(bpe_facts("gpt-2"), Fact::u32(&key("eos"), id)));
        assert_eq!((tokenizer.eos(), tokenizer.is_end_of_generation(11)), (Some(11), true));
        assert_eq!(built(&with(spm_facts(), Fact::u32(&key("bos"), id.max(267)))).bos(), Some(1));
    }
    // A begin token that the metadata demands is still required.
    let facts = with(bpe_facts("glm4"), Fact::bool("tokenizer.ggml.add_bos_token", true));
    assert_eq!(refusal(&with(facts, Fact::u32(&key("bos"), 265))), TokenizerError::MissingSpecial { what: "begin" });
}

#[test]
fn a_model_without_a_pre_tokenizer_uses_the_default_one() {
    let text = "he hello 1234 (hell) hé\n\n  ll";
    let tokens = |facts: &[Fact]| built(facts).encode(text, true, false);
    let default = tokens(&bpe_facts("default"));
    assert!(default.is_ok());
    assert_eq!(tokens(&without(bpe_facts("gpt-2"), PRE)), default);
    assert_eq!(tokens(&bpe_facts("")), default);
    assert_ne!(tokens(&bpe_facts("llama-bpe")), default, "the text tells rules apart");
}

#[test]
fn a_text_that_cannot_be_encoded_gives_a_typed_error() {
    let facts = with(spm_facts(), Fact::strings("tokenizer.ggml.tokens", &["<unk>", "<s>", "</s>", "a"]));
    let tokenizer = built(&with(facts, Fact::i32s("tokenizer.ggml.token_type", &[2, 3, 3, 1])));
    assert_eq!(tokenizer.encode("a\u{1}", false, false), Err(TokenizerError::NoByteToken { byte: 0xe2 }));
    let long = "a".repeat(MAX_TEXT + 1);
    assert!(matches!(tokenizer.encode(&long, false, false), Err(TokenizerError::TextTooLong { .. })));
}

#[test]
fn the_search_for_overlapping_special_tokens_is_bounded() {
    let runs: Vec<String> = (1..=200).map(|length| "x".repeat(length)).collect();
    let words: Vec<&str> = runs.iter().map(String::as_str).collect();
    let facts = with(spm_facts(), Fact::strings("tokenizer.ggml.tokens", &words));
    let facts = with(facts, Fact::i32s("tokenizer.ggml.token_type", &[4; 200]));
    let tokenizer = built(&with(facts, Fact::f32s("tokenizer.ggml.scores", &[0.0; 200])));
    assert_eq!(tokenizer.encode(&"x".repeat(450), false, false), Ok(vec![199, 199, 49]));
    let refused = tokenizer.encode(&"x".repeat(1 << 16), false, false);
    assert!(matches!(refused, Err(TokenizerError::TooManySpecials { .. })));
}

#[test]
fn long_texts_encode_in_bounded_work() {
    let (bpe, spm) = (built(&bpe_facts("llama-bpe")), built(&spm_facts()));
    for unit in ["a", " ", "ab", "\n", "é", "<"] {
        let text = unit.repeat((1 << 14) / unit.len());
        for tokenizer in [&bpe, &spm] {
            let tokens = tokenizer.encode(&text, false, true).expect("it encodes");
            assert_eq!(tokenizer.decode(&tokens, true), text);
        }
    }
}

/// Texts of pieces with and without tokens in the small vocabularies.
fn bounded_text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("hello"),
        Just(" hello"),
        Just("he"),
        Just("ll"),
        Just(" "),
        Just("   "),
        Just("a"),
        Just("b"),
        Just("ab"),
        Just("▁"),
        Just("▁a"),
        Just("é"),
        Just("\n"),
        Just("\n\n"),
        Just("<tool>"),
        Just("<|im_start|>"),
        Just("</s>"),
        Just("7"),
    ];
    proptest::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn a_text_is_refused_exactly_where_it_exceeds_the_bound(text in bounded_text(), special: bool) {
        static TOKENIZERS: LazyLock<[Tokenizer; 4]> = LazyLock::new(|| {
            let phi = with(spm_facts(), Fact::string("general.name", "Phi-3 mini"));
            [bpe_facts("llama-bpe"), bpe_facts("deepseek-coder"), spm_facts(), phi].map(|facts| built(&facts))
        });
        for tokenizer in &*TOKENIZERS {
            let tokens = tokenizer.encode(&text, special, special).expect("it encodes");
            let within = |tokens| tokenizer.encode_within(&text, special, special, EncodeBounds { tokens, cancelled: None });
            prop_assert_eq!(within(tokens.len()), Ok(tokens.clone()));
            if let Some(max) = tokens.len().checked_sub(1) {
                prop_assert_eq!(within(max), Err(TokenizerError::TooManyTokens { max }));
            }
        }
    }
}

#[test]
fn a_text_with_surely_too_many_tokens_is_refused_before_encoding() {
    let bpe = built(&bpe_facts("llama-bpe"));
    // `hello` is the longest token there: 5 bytes.
    assert!(bpe.lower_bound.exceeds(&"hello".repeat(101), 100));
    assert!(!bpe.lower_bound.exceeds(&"hello".repeat(100), 100));
    // Bytes with which no longer token begins count one by one.
    assert!(bpe.lower_bound.exceeds(&"~".repeat(101), 100));
    let spm = built(&spm_facts());
    assert!(spm.lower_bound.exceeds(&" b".repeat(101), 100));
    // Longer than `MAX_TEXT`, and with too many tokens.
    let unread = "hello".repeat(MAX_TEXT / 5 + 1);
    let within = |tokens| bpe.encode_within(&unread, false, false, EncodeBounds { tokens, cancelled: None });
    assert_eq!(within(100), Err(TokenizerError::TooManyTokens { max: 100 }));
    assert!(matches!(within(MAX_TEXT), Err(TokenizerError::TextTooLong { .. })));
    let texts = |count| std::iter::repeat_n("hello", count);
    assert!(bpe.exceeds(texts(101), 100) && !bpe.exceeds(texts(100), 100));
    // The lower bound is checked before cancellation.
    let cancelled = std::sync::atomic::AtomicBool::new(true);
    let bounds = EncodeBounds { tokens: 100, cancelled: Some(&cancelled) };
    for (tokenizer, text) in [(bpe, "hello".repeat(101)), (spm, " b".repeat(101))] {
        let refused = tokenizer.encode_within(&text, false, false, bounds);
        assert_eq!(refused, Err(TokenizerError::TooManyTokens { max: 100 }));
    }
}

#[test]
fn a_cancelled_encoding_ends_early() {
    let cancelled = std::sync::atomic::AtomicBool::new(true);
    let bounds = EncodeBounds { cancelled: Some(&cancelled), ..EncodeBounds::NONE };
    for tokenizer in [built(&bpe_facts("llama-bpe")), built(&spm_facts())] {
        assert_eq!(tokenizer.encode_within("hello he", false, false, bounds), Err(TokenizerError::Cancelled));
    }
}

#[test]
fn tokens_with_strip_swallow_white_space() {
    let facts = with(spm_facts(), Fact::string("general.name", "Phi-3 mini"));
    let tokenizer = built(&facts);
    assert_eq!(tokenizer.encode("\n\n \t a", false, false), Ok(vec![266, 263]));
}

#[test]
fn a_rendered_prompt_gets_one_begin_token_and_no_end_token() {
    let facts = with(bpe_facts("gpt-2"), Fact::bool("tokenizer.ggml.add_eos_token", true));
    let tokenizer = built(&with(facts, Fact::bool("tokenizer.ggml.add_bos_token", true)));
    assert_eq!(tokenizer.encode("hello", true, true), Ok(vec![261, 259, 262]));
    for text in ["hello", "<|im_start|>hello"] {
        assert_eq!(tokenizer.encode_rendered(&MarkedText::trusted(text.into())), Ok(vec![261, 259]));
    }
}

#[test]
fn channel_tokens_are_not_read_in_untrusted_text() {
    let tokenizer = tokenizer_of_words(&[("<|start|>", 3), ("<|message|>", 3), ("a", 1)]);
    let plain = tokenizer.encode("<|start|>a", false, false);
    assert_eq!(plain, Ok(vec![0, 2]), "as llama.cpp reads it");
    let mut rendered = MarkedText::default();
    rendered.push("<|start|>a", false);
    rendered.push("<|message|>", true);
    rendered.push("<|message|>", false);
    let tokens = tokenizer.encode_rendered(&rendered).expect("it encodes");
    assert_eq!((tokens.first(), tokens.last()), (Some(&0), Some(&1)));
    assert_eq!(tokens.iter().filter(|token| **token == 1).count(), 1);
}
