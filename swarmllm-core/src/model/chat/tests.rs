use std::time::{Duration, UNIX_EPOCH};

use super::*;

fn template(source: &str) -> Result<ChatTemplate, TemplateError> {
    let raw = [&(source.len() as u64).to_le_bytes()[..], source.as_bytes()].concat();
    ChatTemplate::from_facts(&[Fact { key: "tokenizer.chat_template".into(), ty: 8, raw }])
}

fn talk() -> Vec<ChatMessage> {
    [("system", "Be brief."), ("user", " Hi "), ("assistant", "Hello."), ("user", "Why?")]
        .map(|(role, content)| ChatMessage::new(role, content))
        .to_vec()
}

fn rendered(source: &str) -> Result<String, TemplateError> {
    template(source)?.render_at(&talk(), true, UNIX_EPOCH + Duration::from_secs(1_709_210_096))
}

fn refused(source: &str) -> TemplateError {
    rendered(source).expect_err("the template is hostile")
}

#[test]
fn smollm2_s_template_renders_a_conversation_exactly() {
    let source = concat!(
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}",
        "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}",
        "{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}",
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    );
    let expected = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n Hi <|im_end|>\n\
                    <|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(rendered(source).as_deref(), Ok(expected));
    let alone = template(source).and_then(|template| template.render(&[ChatMessage::new("user", "Hi")], false));
    let expected = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n\
                    <|im_start|>user\nHi<|im_end|>\n";
    assert_eq!(alone.as_deref(), Ok(expected));
}

/// Ours, with the constructs that templates of the Gemma family use.
const TURNS: &str = r#"{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set first_prefix = messages[0]['content'] + '\n\n' -%}
    {%- else -%}
        {%- set first_prefix = messages[0]['content'][0]['text'] + '\n\n' -%}
    {%- endif -%}
    {%- set rest = messages[1:] -%}
{%- else -%}
    {%- set first_prefix = "" -%}
    {%- set rest = messages -%}
{%- endif -%}
{%- for message in rest -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("roles must alternate") }}
    {%- endif -%}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\n' + (first_prefix if loop.first else "") }}
    {%- if message['content'] is iterable and message['content'] is not string -%}
        {%- for part in message['content'] -%}{{ part['text'] | trim }}{%- endfor -%}
    {%- else -%}
        {{ message['content'] | trim }}
    {%- endif -%}
    {{ '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<start_of_turn>model\n' }}
{%- endif -%}
"#;

#[test]
fn a_template_in_gemma_s_manner_renders_exactly() {
    let expected = "<start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\nHello.<end_of_turn>\n\
                    <start_of_turn>user\nWhy?<end_of_turn>\n<start_of_turn>model\n";
    assert_eq!(rendered(TURNS).as_deref(), Ok(expected));
    let wrong = template(TURNS).and_then(|template| template.render(&[ChatMessage::new("assistant", "x")], true));
    assert_eq!(wrong, Err(TemplateError::Raised { message: "roles must alternate".into() }));
}

#[test]
fn what_templates_in_use_say_works() {
    for (source, expected) in [
        ("{{ messages[-1].content.strip().upper() }}", "WHY?"),
        ("{{ messages | map(attribute='role') | join(', ') }}", "system, user, assistant, user"),
        ("{{ messages | selectattr('role', 'equalto', 'user') | list | length }}", "2"),
        ("{{ messages[1:3] | length }}{{ messages[::-1][0].content }}{{ 'abcd'[1:-1] }}", "2Why?bc"),
        (
            "{% set ns = namespace(n=0, s='') %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% set ns.s = ns.s ~ loop.index %}{% endfor %}{{ ns.n }}{{ ns.s }}",
            "41234",
        ),
        (
            "{% macro turn(m, end='!') %}[{{ m.role }}{{ end }}]{% endmacro %}{{ turn(messages[0]) }}{{ turn(messages[1], end='?') }}",
            "[system!][user?]",
        ),
        ("{{ {'a': [1, 'x'], 'b': none} | tojson }}", r#"{"a": [1, "x"], "b": null}"#),
        ("{{ strftime_now('%d %b %Y') }}", "29 Feb 2024"),
        ("{% if tools is defined and tools is not none %}x{% else %}y{% endif %}{% if tools %}z{% endif %}", "y"),
        ("{% if 'think' in messages[0].content or 'rie' in messages[0].content %}y{% endif %}", "y"),
        ("{{ messages[3].content.split('h')[-1] }}{{ '</think>'.replace('<', '') }}", "y?/think>"),
        ("{% for k, v in {'a': 1, 'b': 2}.items() %}{{ k }}{{ v }}{% endfor %}", "a1b2"),
        ("{% set x %}a{{ 1 + 1 }}{% endset %}{{ x }}{{ x | length }}", "a22"),
        ("{{ 'a' if missing is not defined else 'b' }}{{ missing | default('d') }}{{ 7 // 2 }}{{ 7 % 4 }}", "ad33"),
        ("{% for i in range(2) %}{{ i }}{% if loop.last %}.{% else %},{% endif %}{% endfor %}", "0,1."),
        ("  {% if true %}\n  x\n  {% endif %}\ny", "  x\ny"),
        ("{{ [1, 2] + [3] }}{{ 1.5 + 1 }}{{ messages[0].role == 'system' and not false }}", "[1, 2, 3]2.5True"),
        (
            "{% for m in messages %}{% if m.role == 'user' %}{% continue %}{% endif %}{{ m.role }};{% endfor %}",
            "system;assistant;",
        ),
        ("{{ messages[0].get('name', 'none') }}{{ messages[0]['role'].startswith('sys') }}", "noneTrue"),
    ] {
        assert_eq!(rendered(source).as_deref(), Ok(expected), "{source}");
    }
}

#[test]
fn a_model_without_a_template_says_so() {
    assert_eq!(ChatTemplate::from_facts(&[]).map(drop), Err(TemplateError::Missing));
    assert!(TemplateError::Missing.to_string().contains("generate"));
}

#[test]
fn broken_templates_are_refused_when_they_are_read() {
    for source in ["{{", "{% for x %}", "{% if %}", "{{ 1 + }}", "{% endif %}", "{{ '\\"] {
        assert!(matches!(template(source), Err(TemplateError::Syntax { .. })), "{source}");
    }
    let long = "x".repeat(MAX_TEMPLATE + 1);
    assert!(matches!(template(&long), Err(TemplateError::TooLong { .. })));
    for source in [
        "{{ 'a' * 100000000 }}",
        "{{ 10 ** 10 }}",
        "{% include 'x' %}",
        "{% extends 'x' %}",
        "{% block a %}{% endblock %}",
        "{% for x in messages recursive %}{{ loop(x) }}{% endfor %}",
        "{% autoescape true %}x{% endautoescape %}",
    ] {
        assert!(
            matches!(template(source), Err(TemplateError::Unsupported { .. } | TemplateError::Syntax { .. })),
            "{source}"
        );
    }
}

#[test]
fn templates_that_only_grow_deep_are_refused_or_rendered_but_never_overflow() {
    for (head, unit, tail) in [
        ("{{ ", "(", " }}"),
        ("{{ ", "[", " }}"),
        ("{{ 1", "+1", " }}"),
        ("{{ a", "|trim", " }}"),
        ("{{ a", ".a", " }}"),
        ("{{ a", "[0]", " }}"),
        ("{{ ", "not ", "a }}"),
        ("{{ ", "-", "1 }}"),
        ("{{ 1", " if 1 else 1", " }}"),
        ("{% if a %}", "{% elif a %}", "{% endif %}"),
        ("", "{% if a %}", ""),
        ("", "{% for a in b %}", ""),
        ("", "{{ a }}", ""),
    ] {
        let room = MAX_TEMPLATE - head.len() - tail.len();
        for count in [1000, room / unit.len()] {
            let source = [head, &unit.repeat(count), tail].concat();
            // Any answer will do: what counts is that there is one.
            let _ = rendered(&source);
        }
    }
}

#[test]
fn a_bomb_runs_out_of_something_and_never_out_of_memory() {
    for source in [
        "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
        "{% set ns = namespace(s='x') %}{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
        "{% set ns = namespace(s='x') %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
        "{% set ns = namespace(s='x') %}{% for i in range(99) %}{% set ns.s %}{{ ns.s }}{{ ns.s }}{% endset %}{% endfor %}",
        "{% set ns = namespace(s='x') %}{% for i in range(99) %}{% set t %}{{ ns.s }}{{ ns.s }}{% endset %}{% set ns.s = t %}{% endfor %}",
        "{% set ns = namespace(s='x') %}{% for i in range(99) %}{% set ns.s = ns.s.replace('x', 'xx') %}{% endfor %}",
        "{% set ns = namespace(s='x') %}{% for i in range(99) %}{% set ns.s = ns.s | replace('', 'xx') %}{% endfor %}",
        "{% set ns = namespace(s='x') %}{% for i in range(99) %}{% set ns.s = [ns.s, ns.s] | join(ns.s) %}{% endfor %}",
        "{% set ns = namespace(l=[1]) %}{% for i in range(99) %}{% set ns.l = ns.l + ns.l %}{% endfor %}",
        "{% set ns = namespace(l=[1]) %}{% for i in range(99) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l }}",
        "{% set ns = namespace(l=[1]) %}{% for i in range(9999) %}{% set ns.l = [ns.l] %}{% endfor %}{{ ns.l }}",
        "{% set ns = namespace(l={}) %}{% for i in range(9999) %}{% set ns.l = {'a': ns.l} %}{% endfor %}{{ ns.l | tojson }}",
        "{% set ns = namespace() %}{% set ns.x = ns %}{{ ns.x }}",
        "{% set ns = namespace() %}{% set ns.x = [ns] %}{{ ns }}",
        "{% set ns = namespace() %}{% for i in range(9999) %}{% for x in [1, ns.l] %}{% set ns.l = loop %}{% endfor %}{% endfor %}{{ raise_exception('end') }}",
        "{% set ns = namespace(l=[1]) %}{% for i in range(9999) %}{% set ns.l = ns.l | reverse | list | map('string') %}{% endfor %}{{ ns.l }}{{ raise_exception('end') }}",
        "{% macro f(x) %}{{ f(x) }}{{ f(x) }}{% endmacro %}{{ f(1) }}",
        "{% macro f(s) %}{{ s }}{{ s }}{% endmacro %}{% set ns = namespace(s='x') %}{% for i in range(99) %}{% set ns.s = f(ns.s) %}{% endfor %}",
        "{{ range(1000000000) }}",
        "{{ '%1000000000d'.format(1) }}",
        "{{ '{:1000000000}'.format(1) }}",
        "{{ 'x' | indent(1000000000) }}",
        "{{ 'x' | batch(1000000000, 'y') }}",
        "{{ 'x'.ljust(1000000000) }}",
        "{{ 'x'.zfill(1000000000) }}",
        "{{ cycler(1) }}{{ self }}{{ lipsum(1000000) }}",
    ] {
        refused(source);
    }
}

#[test]
fn raw_text_in_a_captured_loop_is_counted() {
    let line = "x".repeat(100_000);
    let source =
        format!("{{% set x %}}{{% for i in range(9999) %}}{line}{{% endfor %}}{{% endset %}}{{{{ x | length }}}}");
    assert_eq!(refused(&source), TemplateError::TooLarge { max: MAX_BUILT });
}

#[test]
fn comparing_long_texts_over_and_over_runs_out_of_work() {
    let source = "{% set ns = namespace(s=messages[0].content) %}{% for i in range(9999) %}{% for j in range(20) %}\
                  {% if messages[0].content == messages[1].content %}{% endif %}{% endfor %}{% endfor %}";
    let long = "x".repeat(MAX_CONVERSATION / 2 - "user".len());
    let messages = [ChatMessage::new("user", &*long), ChatMessage::new("", &*long)];
    let talk = template(source).and_then(|template| template.render(&messages, true));
    assert_eq!(talk, Err(TemplateError::OutOfFuel));
}

#[test]
fn a_conversation_beyond_the_limit_is_refused() {
    let template = template("{{ messages | length }}").expect("it compiles");
    let long = [ChatMessage::new("user", "x".repeat(MAX_CONVERSATION))];
    assert!(matches!(template.render(&long, true), Err(TemplateError::Conversation { .. })));
    let many = vec![ChatMessage::new("", ""); MAX_MESSAGES + 1];
    assert!(matches!(template.render(&many, true), Err(TemplateError::Conversation { .. })));
}

#[test]
fn the_longest_conversation_renders_with_an_ordinary_template() {
    let source = "{% for m in messages %}{{ '<s>' + m['role'] + '\n' + m['content'] + '</s>' + '\n' }}{% endfor %}";
    let long = [ChatMessage::new("user", "x".repeat(MAX_CONVERSATION - 4))];
    let text = template(source).and_then(|template| template.render(&long, true)).expect("it renders");
    assert_eq!(text.len(), MAX_CONVERSATION + "<s>\n</s>\n".len());
}
