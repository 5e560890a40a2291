//! The tokenizers against llama.cpp's, token for token, on real and synthetic vocabularies.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::model::params::LlamaModelParams;
use llama_cpp_2::token::LlamaToken;
use llama_cpp_2::{LogOptions, send_logs_to_tracing};
use swarmllm_core::model::Fact;
use swarmllm_core::model::tokenizer::Tokenizer;

/// Number of random texts in addition to the fixed ones below.
const RANDOM_TEXTS: u64 = 300;

fn backend() -> &'static LlamaBackend {
    static BACKEND: OnceLock<LlamaBackend> = OnceLock::new();
    BACKEND.get_or_init(|| {
        send_logs_to_tracing(LogOptions::default().with_logs_enabled(false));
        LlamaBackend::init().expect("the backend starts once")
    })
}

fn engine(path: &Path) -> LlamaModel {
    let params = LlamaModelParams::default().with_vocab_only(true);
    LlamaModel::load_from_file(backend(), path, &params).expect("llama.cpp reads the vocabulary")
}

/// The file named by an environment variable.
fn test_model(variable: &str) -> Option<PathBuf> {
    let path = std::env::var_os(variable).map(PathBuf::from);
    if path.is_none() {
        eprintln!("SKIPPED: {variable} names no model");
    }
    path
}

/// Asserts that both tokenizers agree on these texts, with and without special tokens, in both directions.
fn assert_equal(ours: &Tokenizer, engine: &LlamaModel, texts: &[String]) {
    let theirs = engine.vocab();
    for text in texts {
        for (add, parse) in [(false, false), (false, true), (true, false), (true, true)] {
            let expected: Vec<u32> =
                theirs.tokenize(text.as_bytes(), add, parse).iter().map(|token| token.0 as u32).collect();
            let tokens = ours.encode(text, add, parse).expect("it encodes");
            assert_eq!(tokens, expected, "{text:?} add_special={add} parse_special={parse}");
        }
    }
}

/// Asserts agreement for texts without special tokens.
fn assert_equal_plain(ours: &Tokenizer, engine: &LlamaModel, texts: &[String]) {
    for text in texts {
        let expected = engine.vocab().tokenize(text.as_bytes(), false, false);
        let expected: Vec<u32> = expected.iter().map(|token| token.0 as u32).collect();
        assert_eq!(ours.encode(text, false, false).expect("it encodes"), expected, "{text:?}");
    }
}

/// Asserts agreement on the kind and text of every token.
fn assert_equal_vocabularies(ours: &Tokenizer, engine: &LlamaModel) {
    let theirs = engine.vocab();
    let known = |id: LlamaToken| u32::try_from(id.0).ok();
    assert_eq!(i64::from(ours.vocab()), i64::from(theirs.n_tokens()));
    assert_eq!((ours.bos(), ours.eos()), (known(theirs.bos()), known(theirs.eos())));
    assert_eq!((ours.adds_bos(), ours.adds_eos()), (theirs.should_add_bos(), theirs.should_add_eos()));
    for id in 0..ours.vocab() {
        let token = LlamaToken(id as i32);
        assert_eq!(ours.is_end_of_generation(id), theirs.is_eog(token), "token {id}");
        for special in [false, true] {
            let piece = theirs.token_to_piece(token, special, None);
            assert_eq!(ours.token_bytes(id, special), piece, "token {id} special={special}");
        }
    }
}

/// Asserts agreement on the text of token sequences.
fn assert_equal_texts(ours: &Tokenizer, engine: &LlamaModel, texts: &[String]) {
    for text in texts {
        let tokens = ours.encode(text, true, true).expect("it encodes");
        let ids: Vec<LlamaToken> = tokens.iter().map(|id| LlamaToken(*id as i32)).collect();
        for special in [false, true] {
            let expected = engine.vocab().detokenize(&ids, false, special);
            assert_eq!(ours.decode(&tokens, special), String::from_utf8_lossy(&expected), "{text:?}");
        }
    }
}

#[test]
fn smollm2_tokens_are_the_engine_s_own() {
    let Some(path) = test_model("SWARMLLM_TEST_SMOLLM2") else { return };
    let (ours, engine) = (Tokenizer::from_facts(&read_facts(&path)).expect("it builds"), engine(&path));
    assert_equal_vocabularies(&ours, &engine);
    assert_equal(&ours, &engine, &corpus());
    assert_equal_texts(&ours, &engine, &corpus());
    assert_equal_plain(&ours, &engine, &all_characters(1));
}

#[test]
fn gemma3_tokens_are_the_engine_s_own() {
    let Some(path) = test_model("SWARMLLM_TEST_GEMMA3") else { return };
    let (ours, engine) = (Tokenizer::from_facts(&read_facts(&path)).expect("it builds"), engine(&path));
    assert_equal_vocabularies(&ours, &engine);
    assert_equal(&ours, &engine, &corpus());
    assert_equal_texts(&ours, &engine, &corpus());
}

#[test]
fn leading_spaces_and_stripping_tokens_match_llama_cpp() {
    let Some(path) = test_model("SWARMLLM_TEST_GEMMA3") else { return };
    let mut facts = read_facts(&path);
    set(&mut facts, "tokenizer.ggml.add_space_prefix", 7, vec![1]);
    set(&mut facts, "general.name", 8, gguf_string("Phi-3 in disguise"));
    // llama.cpp requires the tokens of that family.
    let mut tokens = read_strings(&facts, "tokenizer.ggml.tokens");
    for (free, wanted) in
        ["<unused1>", "<unused2>", "<unused3>", "<unused4>"].iter().zip(["<|endoftext|>", "<s>", "</s>", "<unk>"])
    {
        if !tokens.iter().any(|token| token == wanted) {
            let place = tokens.iter().position(|token| token == free).expect("it is free");
            tokens[place] = wanted.to_owned();
        }
    }
    set(&mut facts, "tokenizer.ggml.tokens", 9, gguf_strings(&tokens));
    let file = write_facts(&facts);
    let (ours, engine) = (Tokenizer::from_facts(&facts).expect("it builds"), engine(file.path()));
    assert_equal_vocabularies(&ours, &engine);
    assert_equal(&ours, &engine, &corpus());
    assert_equal_texts(&ours, &engine, &corpus());
}

/// A vocabulary with all byte pairs as merges exposes word boundaries.
#[test]
fn every_pre_tokenizer_splits_like_llama_cpp() {
    let Some(path) = test_model("SWARMLLM_TEST_SMOLLM2") else { return };
    let mut facts = read_facts(&path);
    set_pair_vocabulary(&mut facts, |_| true);
    for (pre, step) in [
        ("default", 17),
        ("gpt-2", 37),
        ("smollm", 37),
        ("llama-bpe", 17),
        ("dbrx", 37),
        ("chatglm-bpe", 37),
        ("glm4", 37),
        ("qwen2", 37),
        ("qwen35", 17),
        ("deepseek-v3", 7),
        ("tekken", 17),
        ("gpt-4o", 17),
        ("deepseek-llm", 17),
        ("deepseek-coder", 17),
        ("falcon", 37),
        ("seed-coder", 37),
        ("bailingmoe", 37),
        ("minicpm5", 37),
        ("bloom", 37),
        ("viking", 37),
    ] {
        set(&mut facts, "tokenizer.ggml.pre", 8, gguf_string(pre));
        let file = write_facts(&facts);
        let (ours, engine) = (Tokenizer::from_facts(&facts).expect("it builds"), engine(file.path()));
        eprintln!("{pre}");
        assert_equal_plain(&ours, &engine, &[corpus(), all_characters(step)].concat());
    }
}

/// All aliases of pre-tokenizers, on texts that distinguish the rules.
const OTHER_NAMES: [&str; 46] = [
    "phi-2",
    "gigachat",
    "a.x-4.0",
    "mellum",
    "mpt",
    "olmo",
    "jais",
    "trillion",
    "exaone4",
    "starcoder",
    "refact",
    "command-r",
    "codeshell",
    "exaone",
    "minerva-7b",
    "mellum2",
    "llama3",
    "llama-v3",
    "falcon3",
    "falcon-h1",
    "pixtral",
    "midm-2.0",
    "lfm2",
    "smaug-bpe",
    "glm5",
    "deepseek-r1-qwen",
    "kormo",
    "megrez",
    "stablelm2",
    "hunyuan",
    "solar-open",
    "grok-2",
    "hunyuan-dense",
    "joyai-llm",
    "granite-docling",
    "jina-v5-nano",
    "f2llmv2",
    "hy_v4",
    "llama4",
    "kanana2",
    "talkie",
    "minimax-m2",
    "bailingmoe2",
    "llada-moe",
    "poro-chat",
    "gpt3-finnish",
];

#[test]
fn every_pre_tokenizer_name_maps_like_llama_cpp() {
    let Some(path) = test_model("SWARMLLM_TEST_SMOLLM2") else { return };
    let mut facts = read_facts(&path);
    let shown =
        |byte: u8| matches!(byte, b' ' | b'\n' | b'\'' | b'!' | b'.' | b'/' | b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F');
    set_pair_vocabulary(&mut facts, |byte| {
        shown(byte) || matches!(byte, b's' | b'S' | 0xcc | 0x81 | 0xe4 | 0xb8 | 0x80)
    });
    facts.retain(|fact| fact.key != "tokenizer.ggml.add_bos_token" && fact.key != "tokenizer.ggml.bos_token_id");
    let texts = [
        "abc  dead \n\n  beef\n",
        "a'sb'S 's 'S",
        "1 12 123 1234 12345",
        "aB Ab AB ab aaBB BBaa",
        "a!b .a /a ./\n/ !!!a ...\n\n a.b",
        "a\u{301}b \u{301}\u{301} e\u{301}",
        "一a一 一一1",
        "   a   1   !   ",
        "abcd",
    ]
    .map(str::to_owned);
    for name in OTHER_NAMES {
        set(&mut facts, "tokenizer.ggml.pre", 8, gguf_string(name));
        let file = write_facts(&facts);
        let (ours, engine) = (Tokenizer::from_facts(&facts).expect("it builds"), engine(file.path()));
        let theirs = engine.vocab();
        assert_eq!((ours.adds_bos(), ours.adds_eos()), (theirs.should_add_bos(), theirs.should_add_eos()), "{name}");
        assert_eq!(ours.bos(), u32::try_from(theirs.bos().0).ok(), "{name}");
        for text in &texts {
            let expected: Vec<u32> =
                theirs.tokenize(text.as_bytes(), false, false).iter().map(|token| token.0 as u32).collect();
            assert_eq!(ours.encode(text, false, false).expect("it encodes"), expected, "{name} {text:?}");
        }
    }
}

#[test]
fn long_texts_match_llama_cpp() {
    for variable in ["SWARMLLM_TEST_SMOLLM2", "SWARMLLM_TEST_GEMMA3"] {
        let Some(path) = test_model(variable) else { continue };
        let (ours, engine) = (Tokenizer::from_facts(&read_facts(&path)).expect("it builds"), engine(&path));
        let texts: Vec<String> = ["a", " ", "\n", "ab ", "the quick brown fox ", "東京", "👨‍👩‍👧", "!?"]
            .iter()
            .map(|unit| unit.repeat(6000 / unit.len()))
            .collect();
        assert_equal(&ours, &engine, &texts);
    }
}

// --- texts ---

const WRITTEN: &[&str] = &[
    "",
    " ",
    "  ",
    "   ",
    "\n",
    "\n\n",
    "\n\n\n\n\n\n\n",
    "\t",
    "\t\t\tx",
    "\r\n",
    "\r",
    " \n",
    "\n ",
    " \t \n \r\n  ",
    "a",
    " a",
    "a ",
    "  a  ",
    "a  b   c    d     e",
    "Hello, world!",
    "hello world",
    " Hello",
    "HELLO WORLD",
    "The quick brown fox jumps over the lazy dog.",
    "I'm you're he's she'd we'll they've it't",
    "I'M YOU'RE HE'S SHE'D WE'LL THEY'VE",
    "' 's '' ''s don''t",
    "o'clock 'tis 'twas rock'n'roll",
    "’s ‘quoted’ “text”",
    "0 1 12 123 1234 12345 123456 1234567 12345678901234567890",
    "3.14159 -2.5e10 1,000,000.00 0xFF 1_000",
    "١٢٣ ४५६ ²³ ½ Ⅷ ① 一二三",
    "2026-11-22T12:34:56Z",
    "$100 €50 £20 ¥1000 ₿1",
    "a+b=c; x*y/z % 2 ^ 3 && !d || e",
    "fn main() {\n    println!(\"{}\", 42);\n}\n",
    "def f(x):\n\treturn x ** 2  # square\n\n\nclass A:\n    pass\n",
    "for(int i=0;i<10;i++){a[i]=i;}",
    "<html><body class=\"x\">&nbsp;</body></html>",
    "{\"key\": [1, 2.5, null, true], \"nested\": {\"a\": \"b\"}}",
    "SELECT * FROM t WHERE a = 'b' -- comment",
    "https://example.com/path?q=1&r=%20#frag",
    "user@example.com +1 (555) 010-9999",
    "C:\\Users\\name\\file.txt /usr/local/bin ~/.config",
    "# Title\n\n- item\n- item\n\n```rust\nlet x = 1;\n```\n",
    "| a | b |\n|---|---|\n| 1 | 2 |",
    "....... !!!! ???? ,,,, ---- ____ ==== ****",
    "a.b.c a,b,c a;b;c a:b:c",
    "camelCase PascalCase snake_case kebab-case SCREAMING_CASE",
    "naïve café résumé Zürich Ærøskøbing Łódź",
    "cafe\u{301} e\u{301}\u{327} a\u{30a}",
    "Привет, мир! Как дела?",
    "Γειά σου Κόσμε",
    "שלום עולם",
    "مرحبا بالعالم",
    "نص مع أرقام 123 و٤٥٦",
    "עברית mixed with English ועוד עברית",
    "नमस्ते दुनिया",
    "สวัสดีชาวโลก",
    "안녕하세요 세계",
    "こんにちは世界",
    "カタカナ ひらがな 漢字混じり文",
    "你好，世界！这是一个测试。",
    "中文English混合123文本",
    "日本語とEnglishと123",
    "ｆｕｌｌｗｉｄｔｈ　ｔｅｘｔ",
    "Việt Nam tiếng Việt",
    "Türkçe İstanbul ıi Iİ",
    "ß ẞ ﬁ ﬂ ǆ Ǆ ǅ",
    "👍",
    "👍🏽👍🏿",
    "👨‍👩‍👧‍👦 family",
    "🏳️‍🌈🏴‍☠️🇩🇪🇯🇵",
    "❤️ ☃ ☃️ ⭐",
    "😀😃😄😁😆😅🤣😂",
    "text😀text 😀 text",
    "🫠🪿🫨🩷",
    "\u{0}",
    "a\u{0}b",
    "\u{1}\u{2}\u{3}\u{1b}[31mred\u{1b}[0m\u{7f}",
    "\u{80}\u{85}\u{9f}\u{a0}\u{ad}",
    "a\u{a0}b\u{2003}c\u{3000}d\u{202f}e\u{1680}f",
    "a\u{200b}b\u{200c}c\u{200d}d\u{feff}e\u{2060}f",
    "\u{202e}right to left\u{202c}",
    "\u{fffd}\u{fffe}\u{ffff}\u{10ffff}\u{e000}\u{f8ff}",
    "\u{2028}line\u{2029}paragraph\u{0b}vt\u{0c}ff",
    "Z̸̡̢a̵͎l̷̺g̶̱o̴͚",
    "𝕳𝖊𝖑𝖑𝖔 𝓌𝑜𝓇𝓁𝒹 𝟙𝟚𝟛",
    "𐍈 𓀀 𒀀 𠀀 𠮷",
    "\u{10d50}\u{10d51} \u{1e5d0} \u{2ebf0}\u{2ee5d} \u{323b0}",
    "▁",
    "▁▁a ▁b",
    "a▁b",
    "Ġ Ċ Ġhello Ċ",
    "<0x0A> <0xFF> <0x00>",
    "<|im_start|>system\nYou are helpful.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|><|im_start|><|im_end|>",
    "<|im_start|",
    "|im_start|>",
    "<|<|im_start|>|>",
    "a<|im_end|>b <|im_end|> c",
    "  <|im_end|>  \n  <|endoftext|>  ",
    "<|endoftext|>",
    "<repo_name>x<file_sep>y<reponame>",
    "<|endoftext|><|endoftext|>text<|endoftext|>",
    "<bos>",
    "<eos>",
    "<pad><unk><mask>",
    "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n",
    "<start_of_turn> <end_of_turn>",
    "x<unused0>y<unused1>z<unused99>",
    "[multimodal] <unused6241>",
    "<b>bold</b> <i>x</i> <h1>t</h1> <table><tr><td>1</td></tr></table>",
    "</s> <s> <unk> [PAD] [CLS] [SEP] [MASK]",
    "<blockquote><ul><li>a</li></ul></blockquote>",
    "<start_of_image><end_of_image>",
    "\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n",
    "\t\t\t\t\t\t\t\t\t\t\t\t\t\t\t\t\t\t\t\t\t\t\t\t\t\t\t\t\t\t\t\t\t\t\t",
    "                                                                          x",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "abababababababababababababababababababababababababababababab",
    "Pneumonoultramicroscopicsilicovolcanoconiosis",
    "Donaudampfschifffahrtsgesellschaftskapitän",
    "lorem ipsum dolor sit amet, consectetur adipiscing elit",
    "ALLCAPSANDlowercaseANDMixed123Digits456",
    "a1b2c3d4 1a2b3c4d",
    "…—–‒―‐·•‣⁃",
    "«guillemets» ‹single› „low“ ‚low‘",
    "≤≥≠≈±×÷∞∑∏√∫∂∆",
    "α+β=γ ∀x∈ℝ ∃y",
    "←↑→↓↔⇐⇒⇔",
    "©®™℠§¶†‡",
    "½¼¾⅓⅔",
    "H₂O CO₂ x² y³ e⁻ⁱ",
    "\\n \\t \\\\ \\\" \\u0041",
    "${var} %s {0} {{x}} <%= y %>",
    "#hashtag @mention /slash",
    "1st 2nd 3rd 4th",
    "a/b/c a\\b\\c a|b|c",
    "(a) [b] {c} <d>",
    "((((nested))))",
    "\"quoted\" 'single' `back`",
    "e.g. i.e. etc. Mr. Dr. U.S.A.",
    "Wait... what?! No way!!!",
    "  leading",
    "trailing  ",
    "\n leading newline",
    "multi\nline\n\ntext\n\n\nhere",
    "tab\tseparated\tvalues",
    "mixed \t \n whitespace \r\n here",
];

/// Pieces of random texts.
const PIECES: &[&str] = &[
    " ",
    "  ",
    "\n",
    "\t",
    "\r\n",
    "a",
    "the",
    " the",
    "Z",
    "é",
    "ß",
    "я",
    "中",
    "の",
    "한",
    "ا",
    "👍",
    "\u{200d}",
    "\u{301}",
    "1",
    "42",
    "'s",
    "'",
    "\"",
    ".",
    ",",
    "!",
    "?",
    "-",
    "_",
    "<",
    ">",
    "|",
    "/",
    "<|im_end|>",
    "<end_of_turn>",
    "<eos>",
    "\u{a0}",
    "\u{3000}",
    "\u{1}",
    "٣",
    "²",
    "$",
    "+",
    "▁",
    "\u{feff}",
    "function",
    "Hello",
    "ing",
    "'LL",
    "\u{10ffff}",
];

fn corpus() -> Vec<String> {
    let written = WRITTEN.iter().map(|text| (*text).to_owned());
    let random = (0..RANDOM_TEXTS).map(|seed| {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as usize
        };
        let pieces = 1 + next() % 60;
        (0..pieces).map(|_| PIECES[next() % PIECES.len()]).collect()
    });
    written.chain(random).collect()
}

/// Every `step`th character of the first two planes, and some of each other, between letters, digits and spaces.
fn all_characters(step: usize) -> Vec<String> {
    let planes = (1..0x20000).step_by(step).chain((0x20000..0x11_0000).step_by(251));
    let characters: Vec<char> = planes.filter_map(char::from_u32).collect();
    characters.chunks(64).map(|chunk| chunk.iter().map(|c| format!("a{c}{c} {c}1")).collect()).collect()
}

// --- files ---

/// The metadata of a valid GGUF.
fn read_facts(path: &Path) -> Vec<Fact> {
    // The headers of both test models are far smaller.
    const HEADER: u64 = 64 << 20;
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).expect("the model opens");
    std::io::Read::read_to_end(&mut std::io::Read::take(file, HEADER), &mut bytes).expect("the model reads");
    let count = word(&bytes, 16);
    let mut at = 24;
    (0..count)
        .map(|_| {
            let key_len = word(&bytes, at) as usize;
            let key = String::from_utf8(bytes[at + 8..at + 8 + key_len].to_vec()).expect("a key is UTF-8");
            at += 8 + key_len;
            let ty = half(&bytes, at);
            let start = at + 4;
            at = start + value_len(&bytes, start, ty);
            Fact { key, ty, raw: bytes[start..at].to_vec() }
        })
        .collect()
}

fn half(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn value_len(bytes: &[u8], at: usize, ty: u32) -> usize {
    match ty {
        0 | 1 | 7 => 1,
        2 | 3 => 2,
        4..=6 => 4,
        8 => 8 + word(bytes, at) as usize,
        9 => {
            let (element, count) = (half(bytes, at), word(bytes, at + 4));
            (0..count).fold(12, |len, _| len + value_len(bytes, at + len, element))
        }
        _ => 8,
    }
}

/// A GGUF with these key-values and no tensors.
fn write_facts(facts: &[Fact]) -> tempfile::NamedTempFile {
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(3u32.to_le_bytes());
    bytes.extend(0u64.to_le_bytes());
    bytes.extend((facts.len() as u64).to_le_bytes());
    for fact in facts {
        bytes.extend(gguf_string(&fact.key));
        bytes.extend(fact.ty.to_le_bytes());
        bytes.extend(&fact.raw);
    }
    let mut file = tempfile::Builder::new().suffix(".gguf").tempfile().expect("a temporary file");
    file.write_all(&bytes).expect("it is written");
    file
}

fn set(facts: &mut Vec<Fact>, key: &str, ty: u32, raw: Vec<u8>) {
    facts.retain(|fact| fact.key != key);
    facts.push(Fact { key: key.into(), ty, raw });
}

fn gguf_string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

fn gguf_strings(texts: &[String]) -> Vec<u8> {
    let head = [&8u32.to_le_bytes()[..], &(texts.len() as u64).to_le_bytes()].concat();
    texts.iter().fold(head, |mut bytes, text| {
        bytes.extend(gguf_string(text));
        bytes
    })
}

/// The texts of an array of strings.
fn read_strings(facts: &[Fact], key: &str) -> Vec<String> {
    let raw = &facts.iter().find(|fact| fact.key == key).expect("the key is there").raw;
    let mut at = 12;
    (0..word(raw, 4))
        .map(|_| {
            let start = at + 8;
            at = start + word(raw, at) as usize;
            String::from_utf8(raw[start..at].to_vec()).expect("a token is UTF-8")
        })
        .collect()
}

/// Replaces the vocabulary with all bytes and all pairs of `paired` bytes.
fn set_pair_vocabulary(facts: &mut Vec<Fact>, paired: impl Fn(u8) -> bool) {
    let visible = |byte: u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut hidden = 0x100..;
    let symbols: BTreeMap<u32, char> = (0..256)
        .map(|byte| {
            let code = if visible(byte) { byte } else { hidden.next().expect("it has no end") };
            (byte, char::from_u32(code).expect("a character"))
        })
        .collect();
    let symbols: Vec<char> = symbols.into_values().collect();
    let joined: Vec<char> =
        symbols.iter().zip(0..=u8::MAX).filter(|(_, byte)| paired(*byte)).map(|(c, _)| *c).collect();
    let pairs = || joined.iter().flat_map(|left| joined.iter().map(move |right| (*left, *right)));
    let mut tokens: Vec<String> = symbols.iter().map(char::to_string).collect();
    tokens.extend(pairs().map(|(left, right)| format!("{left}{right}")));
    // Not reachable by merges: only found by rules that look up whole words first.
    tokens.push("abcd".to_owned());
    let merges: Vec<String> = pairs().map(|(left, right)| format!("{left} {right}")).collect();
    facts.retain(|fact| fact.key != "tokenizer.ggml.token_type");
    set(facts, "tokenizer.ggml.tokens", 9, gguf_strings(&tokens));
    set(facts, "tokenizer.ggml.merges", 9, gguf_strings(&merges));
}
