use super::*;

/// The alphabet of single bytes, some merges, and special tokens at the end.
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

/// Byte tokens, some characters and words with scores.
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
fn tokens_defined_by_users_always_count_and_the_longest_wins() {
    let tokenizer = built(&bpe_facts("gpt-2"));
    assert_eq!(tokenizer.encode("<tool><to", false, false), Ok(vec![263, 264]));
    assert_eq!(tokenizer.decode(&[263], false), "<tool>");
}

#[test]
fn a_byte_without_a_token_is_dropped_and_joins_nothing() {
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
fn sentencepiece_joins_by_score_and_falls_back_to_bytes() {
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
fn ends_of_generation_are_known_by_id_and_by_text() {
    let tokenizer = built(&bpe_facts("gpt-2"));
    assert!(tokenizer.is_end_of_generation(262));
    assert!(!tokenizer.is_end_of_generation(261) && !tokenizer.is_end_of_generation(9999));
    assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.eot()), (Some(261), Some(262), Some(262)));
    assert!(built(&spm_facts()).is_end_of_generation(2));
}

#[test]
fn begin_tokens_follow_the_kind_unless_the_facts_say_otherwise() {
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
fn hostile_facts_are_refused_by_type() {
    let tokens = "tokenizer.ggml.tokens";
    assert!(matches!(refusal(&[]), TokenizerError::Missing { .. }));
    assert!(matches!(
        refusal(&with(bpe_facts("gpt-2"), Fact::string(MODEL, "bert"))),
        TokenizerError::Unsupported { .. }
    ));
    assert!(matches!(refusal(&bpe_facts("no-such-rule")), TokenizerError::Unsupported { .. }));
    assert!(matches!(refusal(&without(bpe_facts("gpt-2"), PRE)), TokenizerError::Missing { .. }));
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
fn hostile_merges_and_ids_are_refused_by_type() {
    for rule in ["a", "", "a b c", "zz a", "é ", " "] {
        let facts = with(bpe_facts("gpt-2"), Fact::strings("tokenizer.ggml.merges", &["h e", rule]));
        assert!(matches!(refusal(&facts), TokenizerError::Merge { index: 1, .. }), "{rule:?}");
    }
    for key in ["bos", "eos", "eot", "fim_pad"] {
        let key = format!("tokenizer.ggml.{key}_token_id");
        assert!(matches!(refusal(&with(bpe_facts("gpt-2"), Fact::u32(&key, 265))), TokenizerError::SpecialId { .. }));
    }
    let facts = with(bpe_facts("glm4"), Fact::bool("tokenizer.ggml.add_bos_token", true));
    assert!(matches!(refusal(&without(facts, "tokenizer.ggml.bos_token_id")), TokenizerError::NoSpecial { .. }));
}

#[test]
fn texts_that_cannot_be_encoded_give_a_typed_error() {
    let facts = with(spm_facts(), Fact::strings("tokenizer.ggml.tokens", &["<unk>", "<s>", "</s>", "a"]));
    let tokenizer = built(&with(facts, Fact::i32s("tokenizer.ggml.token_type", &[2, 3, 3, 1])));
    assert_eq!(tokenizer.encode("a\u{1}", false, false), Err(TokenizerError::NoByteToken { byte: 0xe2 }));
    let long = "a".repeat(MAX_TEXT + 1);
    assert!(matches!(tokenizer.encode(&long, false, false), Err(TokenizerError::TextTooLong { .. })));
}

#[test]
fn a_text_made_of_overlapping_special_tokens_is_bounded() {
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

#[test]
fn white_space_goes_with_tokens_that_strip_it() {
    let facts = with(spm_facts(), Fact::string("general.name", "Phi-3 mini"));
    let tokenizer = built(&facts);
    assert_eq!(tokenizer.encode("\n\n \t a", false, false), Ok(vec![266, 263]));
}
