//! Schemas embedded in a grammar.

use super::*;

fn lark(text: &str) -> Constraint {
    Constraint::Lark(text.to_owned())
}

#[test]
fn an_embedded_schema_is_closed_and_its_white_space_bounded() {
    let call = lark(
        r#"# %json { is no schema here
start: "%json {" / %json \{/ call // %json 3
call: %json {"type": "object",
    "properties": {"a": {"type": "integer"}}}
"#,
    );
    let admitted = |json: &str| admits(&call, &["%json { %json {", json].concat());
    assert!(admitted("{}") && admitted(r#"{"a": 1}"#));
    assert!(!admitted(r#"{"x": 1}"#), "a key that is not named");
    assert!(!admitted(r#"{"a":  1}"#) && !admitted("{  }"), "white space");
    let own = lark(r#"start: %json{"type": "object", "x-guidance": {"whitespace_pattern": "z*"}} "!""#);
    assert!(admits(&own, r#"{ "x":1 }!"#));
    assert!(!admits(&own, "{zzz}!") && !admits(&own, "{  }!"), "llguidance options within a schema have no effect");
}

#[test]
fn an_embedded_schema_that_cannot_be_closed_stays_open() {
    // At least two keys, one of them named.
    let open = lark(r#"start: %json {"properties": {"a": true}, "required": ["a"], "minProperties": 2}"#);
    assert!(admits(&open, r#"{"a":1,"x":1}"#));
    assert!(!admits(&open, r#"{"a":1,   "x":1}"#), "white space is bounded all the same");
}

#[test]
fn errors_refer_to_the_given_grammar() {
    let refused = |text: &str| match compile(lark(text)).err() {
        Some(ConstraintError::Refused { reason }) => reason,
        other => panic!("{text}: {other:?}"),
    };
    assert!(refused("start: %json {\"type\":\n\"null\"} missing").contains("missing"));
    assert!(refused("start: %json {\"type\": \"strange\"}").contains("strange"));
    refused("start: %json {\"type\": ");
    let deep = format!("start: %json {}true{}", "{\"items\": ".repeat(100), "}".repeat(100));
    assert!(matches!(compile(lark(&deep)).err(), Some(ConstraintError::TooLarge { .. })));
}

#[test]
fn the_schemas_of_a_grammar_share_one_work_budget() {
    const COPIES: usize = 40;
    // Some six thousand values of work each.
    let named: serde_json::Map<_, _> = (0..3000).map(|key| (format!("k{key}"), json!(true))).collect();
    let object = json!({"type": "object", "properties": named}).to_string();
    let text = format!("start: {}", vec![format!("%json {object}"); COPIES].join(" | "));
    let narrower = lark(&text).narrower().unwrap();
    let closed = serde_json::to_string(&narrower[0]).unwrap().matches("additionalProperties").count();
    assert!((1..COPIES).contains(&closed), "{closed} of {COPIES} are closed");
}
