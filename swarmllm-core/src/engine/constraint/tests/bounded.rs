//! Bounds on numbers and nesting.

use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use super::*;

/// The output whose next byte is always the first allowed one of `wishes`, up to `most` bytes.
fn written(constraint: &Constraint, wishes: &[u8], most: usize) -> String {
    let mut guide = compile(constraint.clone()).unwrap();
    let mut text = String::new();
    while text.len() < most && !guide.is_complete().unwrap() {
        let allowed = guide.allowed().unwrap();
        let Some(byte) = wishes.iter().find(|byte| allowed.contains(u32::from(**byte))) else { break };
        text.push(char::from(*byte));
        guide.accept((*byte).into()).unwrap();
    }
    text
}

#[test]
fn the_digits_of_a_number_are_bounded() {
    let nines = |count: usize| "9".repeat(count);
    assert_eq!(written(&schema(r#"{"type": "integer"}"#), b"9", 200), nines(20));
    assert_eq!(written(&schema(r#"{"type": "integer", "minimum": 5}"#), b"9", 200), nines(20));
    let number = written(&schema(r#"{"type": "number"}"#), b"9.e-", 200);
    assert_eq!(number, format!("{0}.{0}e{1}", nines(20), nines(3)));
    assert_eq!(written(&schema(r#"{"type": "number"}"#), b"-1eE+", 200), format!("-{}e-111", "1".repeat(20)));
    let object = written(&Constraint::JsonObject, b"}9:{\"", 200);
    assert_eq!(object, "{}");
    let numbers = written(&schema(r#"{"type": "array", "items": {"type": "integer"}, "maxItems": 2}"#), b"[9,]", 200);
    assert_eq!(numbers, format!("[{0},{0}]", nines(20)));
}

#[test]
fn digits_in_a_string_are_not_counted() {
    let digits = "7".repeat(60);
    assert!(admits(&schema(r#"{"type": "string"}"#), &format!("\"\\\"{digits}\"")));
    assert!(admits(&Constraint::JsonObject, &format!("{{\"{digits}\": \"{digits}[[[\"}}")));
    assert!(!admits(&Constraint::JsonObject, &format!("{{\"a\": {digits}}}")));
}

#[test]
fn a_number_that_needs_more_digits_has_them() {
    let long = 1.11e29;
    assert!(admits(&schema(&format!(r#"{{"const": {long}}}"#)), &format!("{long}")), "{long} has 30 digits");
    // A number above zero may begin with any count of zeros.
    let small = written(&schema(r#"{"type": "number", "exclusiveMinimum": 0, "maximum": 1}"#), b"0.123456789", 200);
    assert!(small.len() < 50 && small.parse::<f64>().unwrap() > 0.0, "{small}");
}

#[test]
fn nesting_is_bounded() {
    let levels = |text: &str| text.bytes().filter(|byte| matches!(byte, b'[' | b'{')).count();
    let array = written(&schema("true"), b"[0]", 400);
    assert_eq!((levels(&array), array.len()), (64, 129), "{array}");
    let object = |levels: usize| format!("{}0{}", "{\"[{\":".repeat(levels), "}".repeat(levels));
    assert!(admits(&Constraint::JsonObject, &object(64)) && !admits(&Constraint::JsonObject, &object(65)));
    assert!(admits(&schema("true"), &format!("{}{}", "[".repeat(64), "]".repeat(64))));
    assert!(!admits(&schema("true"), &format!("{}{}", "[".repeat(65), "]".repeat(65))));
}

/// A schema of numbers, its minimum and its maximum.
fn numbers() -> impl Strategy<Value = (Value, Option<f64>, Option<f64>)> {
    let bound = || prop::option::of((-1_000_000_i64..1_000_000, prop::sample::select(vec![1.0, 0.5, 0.25, 1000.0])));
    (any::<bool>(), bound(), bound(), any::<bool>()).prop_map(|(integer, first, second, exclusive)| {
        let value = |bound: Option<(i64, f64)>| bound.map(|(number, scale)| number as f64 * scale);
        let (mut low, mut high) = (value(first), value(second));
        if let (Some(one), Some(other)) = (low, high)
            && one > other
        {
            (low, high) = (high, low);
        }
        let mut schema = json!({"type": if integer { "integer" } else { "number" }});
        low.into_iter().for_each(|low| schema[if exclusive { "exclusiveMinimum" } else { "minimum" }] = json!(low));
        high.into_iter().for_each(|high| schema["maximum"] = json!(high));
        (schema, low, high)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, rng_seed: RngSeed::Fixed(23), ..ProptestConfig::default() })]

    #[test]
    fn an_endless_number_ends_within_the_schemas_bounds(
        (given, low, high) in numbers(),
        choices in prop::collection::vec(any::<prop::sample::Index>(), 80),
    ) {
        // A schema without instances is refused.
        let Ok(mut guide) = compile(Constraint::JsonSchema(given.clone())) else { return Ok(()) };
        let mut text = String::new();
        for choice in choices {
            if guide.is_complete().unwrap() {
                break;
            }
            let allowed = guide.allowed().unwrap();
            let bytes: Vec<u32> = (0..128).filter(|byte| allowed.contains(*byte)).collect();
            if bytes.is_empty() {
                break;
            }
            let byte = bytes[choice.index(bytes.len())];
            text.push(char::from(byte as u8));
            guide.accept(byte).unwrap();
        }
        // A sign, two parts of 20 digits, a point, and an exponent with its sign. After 20 zeros another digit may be
        // needed.
        prop_assert!(text.len() <= 1 + 20 + 1 + 20 + 1 + 2 + 3, "{} has no end: {}", given, text);
        let number: f64 = text.parse().unwrap();
        prop_assert!(low.is_none_or(|low| number >= low) && high.is_none_or(|high| number <= high), "{}: {}", given, text);
    }
}
