mod bounded;
mod closed_objects;
mod embedded_schemas;

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use super::*;

/// Every byte is a token, and so are a few words; the last two are end tokens.
fn compiler() -> Arc<ConstraintCompiler> {
    static COMPILER: OnceLock<Arc<ConstraintCompiler>> = OnceLock::new();
    COMPILER.get_or_init(new_compiler).clone()
}

fn new_compiler() -> Arc<ConstraintCompiler> {
    let mut words: Vec<Vec<u8>> = (0..=254).map(|byte| vec![byte]).collect();
    words.extend([b"tru".to_vec(), b"\": ".to_vec(), b"\xff<|tool|>".to_vec(), b"\xff<|end|>".to_vec(), Vec::new()]);
    let ends = vec![END, END + 1];
    Arc::new(ConstraintCompiler::from_texts(words, ends).unwrap())
}

const END: u32 = 258;

fn compile(constraint: Constraint) -> Result<Guide, ConstraintError> {
    compiler().compile(&constraint)
}

/// Whether the constraint admits the text byte by byte, followed by an end token.
fn admits(constraint: &Constraint, text: &str) -> bool {
    let mut guide = compiler().compile(constraint).unwrap();
    for byte in text.bytes() {
        if !guide.allowed().unwrap().contains(byte.into()) {
            return false;
        }
        guide.accept(byte.into()).unwrap();
        if guide.is_complete().unwrap() {
            return text.as_bytes().last() == Some(&byte);
        }
    }
    guide.allowed().unwrap().contains(END)
}

fn schema(json: &str) -> Constraint {
    Constraint::JsonSchema(serde_json::from_str(json).unwrap())
}

#[test]
fn a_schema_admits_exactly_its_instances() {
    let person = schema(
        r#"{"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
            "required": ["name", "age"], "additionalProperties": false}"#,
    );
    assert!(admits(&person, r#"{"name": "Ada", "age": 36}"#));
    assert!(admits(&person, "{\n  \"name\": \"\u{e9}\",\n  \"age\": 0\n}"));
    for wrong in [r#"{"name": "Ada"}"#, r#"{"name": 3, "age": 36}"#, r#"{"age": 36}"#, r#"{"name": "Ada", "age": -1}"#]
    {
        assert!(!admits(&person, wrong), "{wrong}");
    }
    assert!(admits(&schema(r#"{"enum": ["red", 3, null]}"#), "3"));
    assert!(admits(&schema("true"), "[1, {}]"));
}

#[test]
fn json_object_admits_any_object_and_no_other_value() {
    assert!(admits(&Constraint::JsonObject, r#"{"a": [1, {"b": null}], "c": "d"}"#));
    for wrong in ["[]", "3", "null", " {}"] {
        assert!(!admits(&Constraint::JsonObject, wrong), "{wrong}");
    }
}

#[test]
fn a_grammar_and_an_expression_admit_full_matches_only() {
    let sum = Constraint::Lark("start: NUMBER (\"+\" NUMBER)*\nNUMBER: /[0-9]+/".to_owned());
    assert!(admits(&sum, "1+22+3") && !admits(&sum, "1+") && !admits(&sum, "+1"));
    let date = Constraint::Regex(r"\d{4}-\d\d/\w".to_owned());
    assert!(admits(&date, "2024-05/x") && !admits(&date, "a 2024-05/x") && !admits(&date, "2024-05"));
}

#[test]
fn white_space_between_json_values_is_bounded() {
    assert!(admits(&Constraint::JsonObject, "{\n\t\"a\": [\r\n        1\n  ]\n}"));
    // llguidance options within a schema have no effect.
    let own = schema(r#"{"type": "object", "x-guidance": {"whitespace_pattern": "[ \\n]*", "lenient": true}}"#);
    for endless in ["{  }", "{\n\n}", "{\n                                 }"] {
        assert!(!admits(&Constraint::JsonObject, endless) && !admits(&own, endless), "{endless:?}");
        assert!(!admits(&schema("true"), endless) && !admits(&schema("{}"), endless), "{endless:?}");
    }
}

#[test]
fn complete_output_allows_no_token_and_accepting_output_allows_the_end() {
    let mut guide = compile(Constraint::Regex("ab?".to_owned())).unwrap();
    assert!(!guide.is_complete().unwrap());
    assert!(!guide.allowed().unwrap().contains(END), "empty output is not accepted");
    guide.accept(b'a'.into()).unwrap();
    let allowed = guide.allowed().unwrap();
    assert!(allowed.contains(END) && allowed.contains(END + 1) && allowed.contains(b'b'.into()));
    assert!(!allowed.contains(b'a'.into()) && !allowed.contains(10_000));
    assert!(!guide.is_complete().unwrap());
    guide.accept(b'b'.into()).unwrap();
    assert!(guide.is_complete().unwrap());
}

#[test]
fn a_token_is_allowed_if_all_its_bytes_fit() {
    let mut guide = compile(Constraint::Regex("true|trunk".to_owned())).unwrap();
    assert!(guide.allowed().unwrap().contains(255), "`tru`");
    guide.accept(255).unwrap();
    assert!(guide.allowed().unwrap().contains(b'n'.into()));
    let mut never = compile(Constraint::Regex("trick".to_owned())).unwrap();
    assert!(!never.allowed().unwrap().contains(255));
    let mut control = compile(Constraint::Lark("start: <|tool|> /a/".to_owned())).unwrap();
    assert!(control.allowed().unwrap().contains(257));
}

#[test]
fn unenforceable_keywords_are_refused_by_name() {
    let table = [
        (r#"{"type": "array", "uniqueItems": true}"#, "uniqueItems"),
        (r#"{"not": {"type": "string"}}"#, "not"),
        (r#"{"$ref": "https://example.org/schema"}"#, "https://example.org/schema"),
        (r#"{"type": "string", "format": "colour"}"#, "colour"),
        (r#"{"type": "strange"}"#, "strange"),
        (r##"{"$ref": "#/$defs/gone"}"##, "gone"),
        ("3", "schema must be"),
    ];
    for (text, name) in table {
        match compile(schema(text)).err() {
            Some(ConstraintError::Refused { reason }) => assert!(reason.contains(name), "{text}: {reason}"),
            other => panic!("{text}: {other:?}"),
        }
    }
    for text in ["", "start: missing", "begin: \"a\"", "start: \"a", "start: (", "start: <|nobody|>", "start: @other"] {
        let refused = compile(Constraint::Lark(text.to_owned())).err();
        assert!(matches!(refused, Some(ConstraintError::Refused { .. })), "{text}: {refused:?}");
    }
    for text in ["(", "a{2,1}", "[b-a]", r"(?=a)", "(?P<n"] {
        let refused = compile(Constraint::Regex(text.to_owned())).err();
        assert!(matches!(refused, Some(ConstraintError::Refused { .. })), "{text}: {refused:?}");
    }
}

#[test]
fn a_constraint_that_admits_nothing_is_refused_at_compilation() {
    let constraints = [
        schema("false"),
        schema(r#"{"enum": []}"#),
        schema(r#"{"type": "integer", "minimum": 3, "maximum": 2}"#),
        schema(r#"{"type": "string", "minLength": 3, "maxLength": 2}"#),
        schema(r#"{"allOf": [{"type": "string"}, {"type": "number"}]}"#),
        Constraint::Lark("start: A\nA: /a/ & /b/".to_owned()),
        Constraint::Lark("start: start \"a\"".to_owned()),
        Constraint::Regex(r"[^\s\S]".to_owned()),
    ];
    for constraint in constraints {
        let refused = compile(constraint.clone()).err();
        let kinds = refused.as_ref().map(ConstraintError::kind);
        assert_eq!(kinds, Some(ErrorKind::InvalidArgument), "{constraint:?}: {refused:?}");
    }
}

/// A schema of `depth` levels, built without `json!`, which would recurse.
fn nested(depth: usize) -> Value {
    let level = |inner, _| Value::Object([("items".to_owned(), inner)].into_iter().collect());
    (1..depth).fold(json!(true), level)
}

#[test]
fn a_too_large_or_deep_constraint_is_refused_without_recursion() {
    let deep = Constraint::JsonSchema(nested(100_000));
    let too_large = |constraint: &Constraint| matches!(constraint.check(), Err(ConstraintError::TooLarge { .. }));
    assert!(too_large(&deep));
    // Its drop would recurse.
    std::mem::forget(deep);
    assert!(too_large(&Constraint::JsonSchema(json!(vec![0; MAX_VALUES]))));
    assert!(too_large(&Constraint::JsonSchema(json!({"title": "x".repeat(MAX_BYTES)}))));
    assert!(too_large(&Constraint::JsonSchema(json!({"x".repeat(MAX_BYTES + 1): 1}))));
    assert!(too_large(&Constraint::Lark("x".repeat(MAX_BYTES + 1))));
    assert!(too_large(&Constraint::Lark("a:b\n".repeat(MAX_RULES + 1))));
    assert!(too_large(&Constraint::Regex("x".repeat(MAX_BYTES + 1))));
    assert_eq!(Constraint::JsonSchema(nested(MAX_DEPTH / 2)).check(), Ok(()));
}

/// Constraints within the size limits that aim at excessive time or memory, or at a stack overflow.
fn hostile() -> Vec<(&'static str, Constraint)> {
    let references = |count: usize| {
        let name = |at: usize| format!("#/$defs/d{at}");
        let def = |at: usize| (format!("d{at}"), json!({"$ref": name((at + 1) % count)}));
        json!({"$ref": name(0), "$defs": (0..count).map(def).collect::<serde_json::Map<_, _>>()})
    };
    let chain = |count: usize, upper: bool| {
        let name = |at: usize| if upper { format!("T{at}") } else { format!("r{at}") };
        let rules: String = (0..count).map(|at| format!("{}: {} \"a\"\n", name(at), name(at + 1))).collect();
        format!("start: {}\n{rules}{}: \"b\"\n", name(0), name(count))
    };
    let properties: serde_json::Map<_, _> = (0..2000).map(|at| (format!("p{at}"), json!(true))).collect();
    let lark = |text: String| Constraint::Lark(text);
    let regex = |text: String| Constraint::Regex(text);
    vec![
        ("references in a ring", Constraint::JsonSchema(references(1000))),
        ("many properties", Constraint::JsonSchema(json!({"type": "object", "properties": properties}))),
        ("huge counts", schema(r#"{"type": "array", "minItems": 4000000000, "items": {"minItems": 4000000000}}"#)),
        ("huge length", schema(r#"{"type": "string", "minLength": 4000000000}"#)),
        ("huge bounds", schema(r#"{"type": "number", "minimum": -1e308, "maximum": 1e308, "multipleOf": 1e-9}"#)),
        (
            "branches",
            Constraint::JsonSchema(json!({"allOf": vec![json!({"anyOf": vec![json!({"const": 1}); 20]}); 6]})),
        ),
        ("patterns", schema(r#"{"type": "string", "pattern": "(a|b|ab)*c(a|b|ab)*d", "format": "email"}"#)),
        ("a chain of rules", lark(chain(MAX_RULES - 3, false))),
        ("a chain of terminals", lark(chain(MAX_RULES - 3, true))),
        ("nested groups", lark(format!("start: {}\"a\"{}", "(".repeat(30_000), ")".repeat(30_000)))),
        ("nested grammars", lark(format!("start: {}\"a\"{}", "%lark { start: ".repeat(300), "}".repeat(300)))),
        ("counts of counts", lark("start: a{1,9999}\na: b{1,9999}\nb: c{1,9999}\nc: \"x\"{1,9999} | \"y\"".to_owned())),
        ("ambiguity", lark("start: a\na: a a a a | \"x\" | \"\"".to_owned())),
        ("nested json", lark(format!("start: %json {}{}", "{\"items\": ".repeat(5000), "}".repeat(5000)))),
        ("nested expression", regex(format!("{}a{}", "(".repeat(30_000), ")".repeat(30_000)))),
        ("repeated expression", regex("(((a{1,1000}){1,1000}){1,1000}b?){1,1000}".to_owned())),
        ("wide expression", regex("(.*a){20}.{30}|(.*b){20}.{40}".to_owned())),
        ("classes", regex(r"\pL".repeat(MAX_BYTES / 3))),
        ("negated classes", regex(r"[^\pL]?\W".repeat(MAX_BYTES / 10))),
        ("alternatives", regex(vec!["[a-z]{3,9}x"; 5000].join("|"))),
    ]
}

#[test]
fn hostile_constraints_end_soon() {
    let compiler = compiler();
    for (what, constraint) in hostile() {
        let begun = Instant::now();
        let followed = compiler.compile(&constraint).and_then(|mut guide| {
            for _ in 0..200 {
                let allowed = guide.allowed()?;
                let Some(token) = (0..END).rev().find(|token| allowed.contains(*token)) else { break };
                guide.accept(token)?;
            }
            Ok(())
        });
        if let Err(error) = &followed {
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{what}: {error}");
            assert!(error.to_string().len() < 600, "{what}: {error}");
        }
        println!("{what}: {:?}, {followed:?}", begun.elapsed());
        assert!(begun.elapsed() < Duration::from_secs(20), "{what} took {:?}", begun.elapsed());
    }
}

#[test]
fn a_too_large_vocabulary_is_refused() {
    let words = vec![vec![b'a'; MAX_TRIE_TOKEN]; MAX_TRIE_BYTES / MAX_TRIE_TOKEN + 1];
    assert!(matches!(ConstraintCompiler::from_texts(words, Vec::new()), Err(ConstraintError::Vocabulary { .. })));
}

#[test]
fn after_a_parser_panic_all_calls_return_errors() {
    let mut guide = compile(Constraint::JsonObject).unwrap();
    let panicked = guide.guarded(|parser| -> Result<(), ConstraintError> {
        parser.with_recognizer(|_| panic!("a defect"));
        Ok(())
    });
    assert_eq!(panicked, Err(ConstraintError::TooComplex { reason: "a defect".to_owned() }));
    assert!(guide.allowed().is_err() && guide.accept(1).is_err() && guide.is_complete().is_err());
}

#[test]
fn constraints_have_a_stable_json_form() {
    let table = [
        (r#""json_object""#, Constraint::JsonObject),
        (r#"{"json_schema":{"type":"null"}}"#, schema(r#"{"type": "null"}"#)),
        (r#"{"lark":"start: A"}"#, Constraint::Lark("start: A".to_owned())),
        (r#"{"regex":"a"}"#, Constraint::Regex("a".to_owned())),
    ];
    for (json, constraint) in table {
        assert_eq!(serde_json::from_str::<Constraint>(json).unwrap(), constraint);
        assert_eq!(serde_json::to_string(&constraint).unwrap(), json);
    }
}
