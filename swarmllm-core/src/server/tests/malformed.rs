//! Errors of invalid bodies: the path of the field, the wanted and the found value.

use super::*;

/// Words of Rust and serde, which mean nothing to an author of JSON.
const RUST_WORDS: [&str; 14] = [
    "struct",
    "variant",
    "enum",
    "untagged",
    "u32",
    "i64",
    "f32",
    "sequence",
    "map",
    "integer",
    "floating",
    ", expected",
    "`.`",
    "..",
];

fn read<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, Reject> {
    json::parse(body).map_err(Reject::from)
}

fn refused(uri: &str, body: &str) -> (Option<String>, String) {
    let refused = match uri {
        CHAT => read::<ChatBody>(body.as_bytes()).and_then(|body| body.check().map(drop)),
        _ => read::<TextBody>(body.as_bytes()).and_then(|body| body.check().map(drop)),
    };
    let reject = refused.expect_err(body);
    assert_eq!((reject.status, reject.code.as_str()), (StatusCode::BAD_REQUEST, "invalid_argument"), "{body}");
    for word in RUST_WORDS {
        assert!(!reject.message.contains(word), "{body}: {}", reject.message);
    }
    (reject.param, reject.message)
}

/// Fields of a chat with an invalid value, the path in the error, and its message.
fn invalid_values() -> Vec<(&'static str, Value, &'static str, &'static str)> {
    let roles = "must be one of `system`, `developer`, `user`, `assistant`, not";
    let role = |role: Value| json!([{"role": role, "content": "x"}]);
    let content = |content: Value| json!([{"role": "user", "content": content}]);
    let schema = |schema: Value| json!({"type": "json_schema", "json_schema": schema});
    let (number, whole, flag) = ("must be a number, not", "must be a whole number", "must be true or false, not");
    vec![
        ("messages", role(json!(3)), "messages[0].role", roles),
        ("messages", role(json!(null)), "messages[0].role", roles),
        ("messages", role(json!({})), "messages[0].role", roles),
        ("messages", role(json!("tool")), "messages[0].role", "not \"tool\""),
        ("messages", json!([{"content": "x"}]), "messages[0].role", "is missing"),
        ("messages", json!([{"role": "user"}]), "messages[0].content", "is missing"),
        ("messages", json!(["hi"]), "messages[0]", "must be an object, not \"hi\""),
        ("messages", json!([["user", "hi"]]), "messages[0]", "must be an object, not a list"),
        ("messages", json!("hi"), "messages", "must be a list, not \"hi\""),
        ("messages", json!(null), "messages", "must be a list, not null"),
        ("messages", json!({"role": "user"}), "messages", "must be a list, not an object"),
        ("messages", content(json!(7)), "messages[0].content", "must be text, or a list of text parts, not 7"),
        ("messages", content(json!([{"type": 1}])), "messages[0].content[0].type", "must be `text`, not 1"),
        ("messages", content(json!([{"type": "text"}])), "messages[0].content[0].text", "is missing"),
        ("messages", content(json!(["a"])), "messages[0].content[0]", "must be an object, not \"a\""),
        ("messages", json!([{"role": "user", "rolle": 1}]), "messages[0].rolle", "is not known; leave it out"),
        ("reasoning_effort", json!(5), "reasoning_effort", "must be one of `none`, `minimal`, `low`"),
        ("reasoning_effort", json!(true), "reasoning_effort", "not true"),
        ("tool_choice", json!(1.5), "tool_choice", "must be one of `auto`, `none`, not 1.5"),
        ("tool_choice", json!({"type": "function"}), "tool_choice", "must be one of `auto`, `none`, not an object"),
        ("service_tier", json!([]), "service_tier", "must be one of `auto`, `default`, not a list"),
        ("model", json!(7), "model", "must be text, not 7"),
        ("temperature", json!("hot"), "temperature", number),
        ("temperature", json!([1]), "temperature", number),
        ("n", json!(-1), "n", "must be a whole number from 1 to 8, not -1"),
        ("n", json!(1.5), "n", "must be a whole number from 1 to 8, not 1.5"),
        ("max_tokens", json!(0), "max_tokens", "must be a whole number from 1 to 4294967295, not 0"),
        ("max_completion_tokens", json!("x"), "max_completion_tokens", "must be a whole number from 1 to"),
        ("top_logprobs", json!(21), "top_logprobs", "must be a whole number from 0 to 20, not 21"),
        ("n", json!(1.5), "n", whole),
        ("n", json!(5_000_000_000_u64), "n", whole),
        ("seed", json!("7"), "seed", whole),
        ("seed", json!(u64::MAX), "seed", whole),
        ("stream", json!("true"), "stream", flag),
        ("store", json!(0), "store", flag),
        ("stream_options", json!(true), "stream_options", "must be an object, not true"),
        ("stream_options", json!([true]), "stream_options", "must be an object, not a list"),
        ("stop", json!(["a", 1]), "stop[1]", "must be text, not 1"),
        ("stop", json!({}), "stop", "must be text, or a list of at most 16 texts, not an object"),
        ("logit_bias", json!({"7": "x"}), "logit_bias.7", number),
        ("logit_bias", json!([]), "logit_bias", "must be an object, not a list"),
        ("tools", json!("f"), "tools", "must be a list, not \"f\""),
        ("metadata", json!(1), "metadata", "must be an object, not 1"),
        ("response_format", json!("text"), "response_format", "must be an object, not \"text\""),
        ("response_format", json!({}), "response_format.type", "is missing"),
        ("response_format", json!({"type": 1}), "response_format.type", "must be one of `text`, `json_object`"),
        ("response_format", schema(json!({})), "response_format.json_schema.schema", "is missing"),
        ("response_format", schema(json!(3)), "response_format.json_schema", "must be an object, not 3"),
        ("response_format", schema(json!(null)), "response_format.json_schema", "is missing"),
        (
            "response_format",
            json!({"type": "text", "grammar": {"syntax": "lark", "definition": "start: A"}}),
            "response_format.grammar",
            "is only accepted where `type` is `grammar`",
        ),
        (
            "response_format",
            json!({"type": "grammar", "grammar": {"syntax": 1, "definition": "start: A"}}),
            "response_format.grammar.syntax",
            "must be one of `lark`, `regex`, not 1",
        ),
        ("audio", json!({}), "audio", "is not supported by this server"),
        ("frobnicate", json!(1), "frobnicate", "is not known; leave it out"),
    ]
}

#[test]
fn an_error_names_path_wanted_and_found_value() {
    for (field, value, path, why) in invalid_values() {
        let (param, message) = refused(CHAT, &with(field, value.clone()));
        assert_eq!(param.as_deref(), Some(path), "{field}: {value}: {message}");
        assert!(message.starts_with(&format!("`{path}`: ")) && message.contains(why), "{field}: {value}: {message}");
    }
    let texts = [
        (r#"{"prompt": "a"}"#, "model", "is missing"),
        (r#"{"model": "m"}"#, "prompt", "is missing"),
        (r#"{"model": "m", "prompt": 3}"#, "prompt", "must be one text, not 3"),
        (r#"{"model": "m", "prompt": [3]}"#, "prompt[0]", "must be text, not 3"),
        (r#"{"model": "m", "prompt": "a", "prompt": "b"}"#, "prompt", "is given twice"),
        (r#"{"model": "m", "prompt": "a", "best_of": 0}"#, "best_of", "must be a whole number from 1 to 8, not 0"),
        (r#"{"model": "m", "prompt": "a", "best_of": 2}"#, "best_of", "is 2 where `n` is 1"),
        (r#"{"model": "m", "prompt": "a", "best_of": 1, "n": 2}"#, "best_of", "is 1 where `n` is 2"),
        (r#"{"model": "m", "prompt": "a", "top_p": 1e999}"#, "top_p", "number out of range"),
        (r#"{"model": "m", "prompt": "\ud800"}"#, "prompt", "cannot be read"),
    ];
    for (body, path, why) in texts {
        let (param, message) = refused(TEXT, body);
        assert!(param.as_deref() == Some(path) && message.contains(why), "{body}: {message}");
    }
}

#[test]
fn a_body_must_be_an_object() {
    for (body, found) in [("[]", "a list"), ("3", "3"), ("null", "null"), (r#""text""#, "\"text\"")] {
        let want = (None, format!("the body must be an object, not {found}"));
        assert_eq!(refused(CHAT, body), want, "{body}");
        assert_eq!(refused(TEXT, body), want, "{body}");
    }
}

#[test]
fn malformed_json_is_reported_with_its_position() {
    let deep = format!("{}{}", "[".repeat(2000), "]".repeat(2000));
    let table: [(&[u8], &str); 8] = [
        (b"", "line 1 column 0"),
        (b"{", "line 1 column 1"),
        (b"{\"role\": 3,\n}", "line 2 column 1"),
        (b"{\"n\": -1, \"model\": m}", "line 1 column 20"),
        (b"{\"model\": \"m\", \"prompt\": \"a\"} x", "line 1 column 31"),
        (b"{'model': 1}", "line 1 column 2"),
        (b"\0", "line 1 column 1"),
        (b"{\"model\": \"\xff\"}", "byte 11"),
    ];
    for (body, place) in table {
        let reject = read::<TextBody>(body).expect_err("it is not JSON");
        assert_eq!((reject.code.as_str(), reject.param.as_deref()), ("malformed_json", None), "{body:?}");
        assert!(reject.message.starts_with("the body is not JSON: "), "{}", reject.message);
        assert!(reject.message.contains(place), "{}", reject.message);
    }
    let nested = format!(r#"{{"model": "m", "messages": [], "tools": {deep}}}"#);
    let (param, message) = refused(CHAT, &nested);
    assert!(param.is_some_and(|path| path.starts_with("tools[0]")) && message.contains("recursion limit"), "{message}");
}
