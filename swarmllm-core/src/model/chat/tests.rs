mod forgery;
mod stock;

use jiff::civil::date;

use super::*;

fn template(source: &str) -> Result<ChatTemplate, TemplateError> {
    let raw = [&(source.len() as u64).to_le_bytes()[..], source.as_bytes()].concat();
    ChatTemplate::from_facts(&[Fact { key: "tokenizer.chat_template".into(), ty: 8, raw }])
}

fn conversation() -> Vec<ChatMessage> {
    [("system", "Be brief."), ("user", " Hi "), ("assistant", "Hello."), ("user", "Why?")]
        .map(|(role, content)| ChatMessage::new(role, content))
        .to_vec()
}

fn rendered(source: &str) -> Result<String, TemplateError> {
    let now = date(2024, 2, 29).at(12, 34, 56, 0);
    Ok(template(source)?.render_at(&conversation(), &TemplateInputs::default(), true, now)?.text().to_owned())
}

fn text(template: &ChatTemplate, messages: &[ChatMessage], prompt: bool) -> Result<String, TemplateError> {
    Ok(template.render(messages, &TemplateInputs::default(), prompt)?.text().to_owned())
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
    let alone = template(source).and_then(|template| text(&template, &[ChatMessage::new("user", "Hi")], false));
    let expected = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n\
                    <|im_start|>user\nHi<|im_end|>\n";
    assert_eq!(alone.as_deref(), Ok(expected));
}

/// A template of our own with the constructs of the Gemma family.
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
fn a_template_in_gemma_s_style_renders_exactly() {
    let expected = "<start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\nHello.<end_of_turn>\n\
                    <start_of_turn>user\nWhy?<end_of_turn>\n<start_of_turn>model\n";
    assert_eq!(rendered(TURNS).as_deref(), Ok(expected));
    let wrong = template(TURNS).and_then(|template| text(&template, &[ChatMessage::new("assistant", "x")], true));
    assert_eq!(wrong, Err(TemplateError::Raised { message: "roles must alternate".into() }));
}

#[test]
fn constructs_of_templates_in_use_render() {
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

/// Templates and Jinja2's renderings of them.
const JINJA: &[(&str, &str)] = &[
    (
        "{% for m in messages if m.role == 'user' %}{{ loop.index }}{{ loop.last }}{{ m.content }};{% endfor %}",
        "1False Hi ;2TrueWhy?;",
    ),
    ("{% for m in messages if m.role == 'x' %}{{ m }}{% else %}none{% endfor %}", "none"),
    ("{{ none is iterable }}{{ 'a' is sequence }}{{ {} is sequence }}{{ 1 is iterable }}", "FalseTrueTrueFalse"),
    ("{{ nope | length }}{{ nope | list }}{{ nope | trim }}{{ nope is iterable }}", "0[]True"),
    (
        "{% for m in messages[:1] %}{% generation %}{{ m.content }}{% set x = 1 %}{% endgeneration %}{{ x }}{% endfor %}",
        "Be brief.",
    ),
    ("{%- generation -%} a {%- endgeneration -%} b", "ab"),
    ("{% filter upper %}a{{ 'b' }}{% endfilter %}", "AB"),
    ("a\r\n{% if true %}\r\nb\r{% endif %}\r\nc\r\n", "a\nb\nc"),
    (
        "{{ '-' * 3 }}{{ 2 * '=' }}{{ 2 * 3 }}{{ 2 ** 3 }}{{ [0] * 2 }}{{ 'a' * -1 }}{{ -7 // 2 }}{{ -7 % 3 }}",
        "---==68[0, 0]-42",
    ),
    ("{{ '{} {x:>3}'.format(1, x='a') }}{{ '%s %03d' % ('a', 7) }}{{ '%s' | format(1) }}", "1   aa 0071"),
    (
        "{% set l = [] %}{% set _ = l.append(1) %}{% set _ = l.append(2) %}{{ l.pop(0) }}{{ l }}{{ l.pop() }}{{ l }}",
        "1[2]2[]",
    ),
    (
        "{% set ns = namespace(l=[]) %}{% for m in messages %}{% set _ = ns.l.append(m.role) %}{% endfor %}{{ ns.l | join(',') }}",
        "system,user,assistant,user",
    ),
    ("{% set a = [1] %}{% set b = [a] %}{% set _ = a.append(2) %}{{ a }}{{ b }}", "[1, 2][[1]]"),
    ("{% for i in range(2) %}{% set l = [] %}{% set _ = l.append(i) %}{{ l }}{% endfor %}", "[0][1]"),
    ("{{ ('{\"a\": [1, null, 2.5]}' | from_json).a }}", "[1, None, 2.5]"),
    ("{{ 'a\nb' | indent(2, first=true) }}{{ 'a\n\nb' | indent('>', blank=true) }}", "  a\n  ba\n>\n>b"),
    ("{{ none is sameas none }}{{ 1 is sameas true }}{{ false is sameas false }}", "TrueFalseTrue"),
    ("{% set j = joiner() %}{% for x in 'abc' %}{{ j() }}{{ x }}{% endfor %}", "a, b, c"),
    ("{{ dict(a=1, b=2).b }}{{ dict([['x', 1]]) }}{{ dict({'a': 1}, c=3) }}", "2{'x': 1}{'a': 1, 'c': 3}"),
    (
        "{{ 'a.b.c'.rsplit('.', 1) }}{{ 'abc'.removeprefix('a') }}{{ '<a>' | e }}{{ 'a-b'.partition('-') }}",
        "['a.b', 'c']bc&lt;a&gt;('a', '-', 'b')",
    ),
    ("{{ strftime_now('%-d %e %j') }}", "29 29 060"),
    (
        "{{ {'b': 1, 'a': 'é'} | tojson(ensure_ascii=true, sort_keys=true, separators=(',', ':')) }}",
        "{\"a\":\"\\u00e9\",\"b\":1}",
    ),
    ("{{ {'a': [1, {}], 'b': []} | tojson(indent=2) }}", "{\n  \"a\": [\n    1,\n    {}\n  ],\n  \"b\": []\n}"),
    ("{{ {'items': 1}['items'] }}{{ {'items': 1}.items is defined }}{% if {}.items %}y{% endif %}", "1Truey"),
    ("{{ {'a': 1}.items == {'a': 1}.items }}{% set j = joiner() %}{{ j == j }}{{ j == joiner() }}", "FalseTrueFalse"),
    ("{% for x in 'aab' %}{{ loop.changed(x) }}{{ loop.cycle(1, 2) }}{% endfor %}", "True1False2True1"),
    ("{{ range(5, 0, -2) | list }}{{ range(3, 3) | list }}{{ range(2) | list }}", "[5, 3, 1][][0, 1]"),
    (
        "{{ [9007199254740993, 9007199254740992.0, -0.5, -1, 0] | sort }}{{ 9007199254740993 == 9007199254740992.0 }}",
        "[-1, -0.5, 0, 9007199254740992.0, 9007199254740993]False",
    ),
    ("{{ [3, 1, 2] | sort(reverse=true) }}{{ '{b}{a}'.format(**{'a': 1, 'b': 2}) }}", "[3, 2, 1]21"),
    ("{{ 1 < 2 < 3 }}{{ 1 < 3 < 2 }}{{ 'a' in 'ab' not in ['b'] }}", "TrueFalseTrue"),
    ("{% macro f(a, b) %}{{ a }}{{ b }}{% endmacro %}{{ f(*[1, 2]) }}{{ f(**{'a': 3, 'b': 4}) }}", "1234"),
    (
        "{{ [3, 1, 2] | sort }}{{ ['b', 'A'] | sort }}{{ {'b': 1, 'a': 2} | dictsort }}{{ [1, 2] | sum }}",
        "[1, 2, 3]['A', 'b'][('a', 2), ('b', 1)]3",
    ),
    (
        "{{ (1, 'a') }}{{ [true, none, 1.0, 1e20, \"it's\"] }}{{ {'a': {'b': 'c\n'}} }}",
        "(1, 'a')[True, None, 1.0, 1e+20, \"it's\"]{'a': {'b': 'c\\n'}}",
    ),
];

#[test]
fn further_constructs_render_as_in_jinja2() {
    for (source, expected) in JINJA {
        assert_eq!(rendered(source).as_deref(), Ok(*expected), "{source}");
    }
}

#[test]
fn a_model_without_a_template_gives_a_typed_error() {
    assert_eq!(ChatTemplate::from_facts(&[]).map(drop), Err(TemplateError::Missing));
    assert!(TemplateError::Missing.to_string().contains("generate"));
}

#[test]
fn broken_templates_are_refused_when_loaded() {
    for source in ["{{", "{% for x %}", "{% if %}", "{{ 1 + }}", "{% endif %}", "{{ '\\"] {
        assert!(matches!(template(source), Err(TemplateError::Syntax { .. })), "{source}");
    }
    let long = "x".repeat(MAX_TEMPLATE + 1);
    assert!(matches!(template(&long), Err(TemplateError::TooLong { .. })));
}

#[test]
fn refused_parts_fail_by_name_and_only_when_they_run() {
    for (source, what) in [
        ("{% include 'x' %}", "`include` or `import`"),
        ("{% extends 'x' %}", "`extends`"),
        ("{% import 'x' as x %}", "`include` or `import`"),
        ("{% block a %}{% endblock %}", "`block`"),
        ("{% for x in messages recursive %}{{ loop(x) }}{% endfor %}", "a recursive loop"),
        ("{% autoescape true %}x{% endautoescape %}", "`autoescape`"),
        (
            "{% for x in messages %}{% with %}{% break %}{% endwith %}{% endfor %}",
            "`break` or `continue` in a part of a loop that is captured or has variables of its own",
        ),
    ] {
        assert_eq!(rendered(source), Err(TemplateError::Unsupported { what }), "{source}");
        let never = ["{% if messages | length > 9 %}", source, "{% endif %}x"].concat();
        assert_eq!(rendered(&never).as_deref(), Ok("x"), "{never}");
    }
    for (source, named) in [
        ("{{ 1 | nope }}", "nope"),
        ("{{ 1 is nope }}", "nope"),
        ("{{ nope(1) }}", "nope"),
        ("{{ 'a'.nope() }}", "nope"),
        ("{{ [1] | map('nope') }}", "nope"),
        ("{{ [].sort() }}", "sort"),
        ("{{ {}.update({}) }}", "update"),
        ("{{ strftime_now('%Q') }}", "%Q"),
        ("{{ [] | join(nope=1) }}", "nope"),
    ] {
        let error = refused(source).to_string();
        assert!(error.contains(named), "{source}: {error}");
        assert!(!error.contains("include"), "{source}: {error}");
    }
}

#[test]
fn deep_templates_never_overflow_the_stack() {
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
            // Any result will do: the test is that the thread survives.
            let _ = rendered(&source);
        }
    }
}

/// Templates that exhaust time or memory unless they are stopped.
const HOSTILE: &[&str] = &[
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
    "{{ '%1000000000d' % 1 }}",
    "{{ '%.1000000000f' % 1 }}",
    "{{ '%1000000000s' | format(1) }}",
    "{{ '{:>1000000000}{:.1000000000f}'.format(1, 1) }}",
    "{{ 'a' * 1000000000 }}",
    "{{ 1000000000 * 'a' }}",
    "{{ ('a' * 1000) * 1000000 }}",
    "{{ [1] * 1000000000 }}",
    "{{ [[]] * 1000000000 }}",
    "{{ 10 ** 10 ** 10 }}",
    "{{ 10 ** 1000000000 }}",
    "{% set ns = namespace(n=2) %}{% for i in range(99) %}{% set ns.n = ns.n * ns.n %}{% endfor %}",
    "{% set l = [] %}{% for i in range(9999) %}{% for j in range(9999) %}{% set _ = l.append(j) %}{% endfor %}{% endfor %}",
    "{% set ns = namespace(l=[]) %}{% for i in range(99) %}{% set _ = ns.l.append(ns.l) %}{% endfor %}{{ ns.l }}",
    "{% set ns = namespace(l=[]) %}{% for i in range(9999) %}{% set m = [] %}{% set _ = m.append(ns.l) %}{% set ns.l = m %}{% endfor %}{{ ns.l }}",
    "{% set ns = namespace(d={}) %}{% for i in range(9999) %}{% set ns.d = dict(ns.d, x=ns.d) %}{% endfor %}{{ ns.d }}",
    "{% set l = [1] %}{% for x in l %}{% set _ = l.append(x) %}{% endfor %}{{ l.pop(7) }}",
    "{% set s = '[' * 100000 %}{{ s | from_json }}",
    "{% set s = '[' * 64 ~ ']' * 64 %}{{ s | from_json }}",
    "{% set s = '[0' ~ ',0' * 600000 ~ ']' %}{{ s | from_json }}",
    "{% set ns = namespace(s='a b') %}{% for i in range(99) %}{% set ns.s = ns.s.split() | join(ns.s) %}{% endfor %}",
    "{% set ns = namespace(s='a') %}{% for i in range(99) %}{% set ns.s = ns.s | tojson | tojson %}{% endfor %}",
    "{% set ns = namespace(s='<') %}{% for i in range(99) %}{% set ns.s = ns.s | e | e | e %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "{% set ns = namespace(s='x') %}{% for i in range(99) %}{% set ns.s = '%s%s' % (ns.s, ns.s) %}{% endfor %}",
    "{% set ns = namespace(s='x') %}{% for i in range(99) %}{% set ns.s = '{0}{0}'.format(ns.s) %}{% endfor %}",
    "{% set l = range(9999) | list %}{% macro f() %}{% endmacro %}{% for i in l %}{% for j in l %}{{ f(*l) }}{% endfor %}{% endfor %}",
    "{% set l = range(9999) | list %}{% for i in l %}{% set _ = l | sort | unique | list %}{% endfor %}",
    "{% set l = range(9999) | list %}{% for i in l %}{% set _ = l.index(9998) %}{% endfor %}",
    "{% set l = range(9999) | list %}{% for i in l %}{% for x in l if false %}{% endfor %}{% endfor %}",
    "{{ {'a': 1} | tojson(indent=1000000000) }}",
    "{{ 'x'.center(1000000000) }}",
    "{{ 'x\n' * 100000 | indent(200) }}{{ 'x\n' * 200000 | indent(200) }}",
    "{{ [1] | batch(1000000000, 'y') }}",
    "{{ strftime_now('%Y' * 100000) }}",
    "{% for x in messages %}{% else %}{% break %}{% endfor %}{{ nope() }}",
    "{{ '{:1000000000}'.format(1) }}",
    "{{ 'x' | indent(1000000000) }}",
    "{{ 'x' | batch(1000000000, 'y') }}",
    "{{ 'x'.ljust(1000000000) }}",
    "{{ 'x'.zfill(1000000000) }}",
    "{% set ns = namespace(d={}) %}{% for i in range(9999) %}{% for k in range(4) %}{% set ns.d = {'a': ns.d.items} %}{% endfor %}{% endfor %}{{ ns.d.items }}",
    "{% set big = 'abcdefgh' * 150000 %}{% for x in 'a' %}{{ loop.changed(loop, big) }}{% endfor %}",
    "{% for x in 'a' %}{% set ns = namespace() %}{{ loop.changed(ns) }}{% endfor %}",
    "{% for x in 'a' %}{% set ns = namespace() %}{{ loop.changed(x, ns=ns) }}{% endfor %}",
    "{% for x in 'a' %}{% set ns = namespace() %}{% set ns.l = loop %}{% endfor %}",
    "{% macro f() %}{% endmacro %}{{ [f] }}",
    "{% set s = 'x' * 9999999 %}{% for x in range(9999) %}{{ loop.changed(s) }}{% endfor %}",
    "{% for x in 'a' %}{{ loop.cycle() }}{% endfor %}",
    "{{ 'a' | map(*(['map'] * 9999)) }}",
    "{{ 'a' | map('map', 'map', 'upper') }}",
    "{{ 'a'.format(*range(65)) }}",
    "{{ range(9223372036854775807, -9223372036854775807, -3) }}",
    "{{ range(1, 9, 0) }}",
    "{% set l = [] %}{% for i in range(60) %}{% set _ = l.append('nan' | float if i % 3 == 0 else i * 7919 % 61) %}{% endfor %}{{ l | sort }}",
    "{% set l = [] %}{% for i in range(60) %}{% set _ = l.append([i, 'x' ~ i, none, [i]][i % 4]) %}{% endfor %}{{ l | sort }}",
    "{{ {1: 1, 'a': 2, none: 3} | tojson(sort_keys=true) }}",
    "{% set l = [] %}{% for i in range(99) %}{% set _ = l.append([0] * 999) %}{% endfor %}{% for i in range(9999) %}{% set _ = l | sort | length %}{% endfor %}",
    "{% set l = [] %}{% for i in range(9999) %}{% set _ = l.append([i, i]) %}{% endfor %}{% set d = dict(l) %}{% for i in range(9999) %}{% for k in d %}{% break %}{% endfor %}{% endfor %}",
    "{% set s = '\n' * 30000000 %}{{ s.splitlines() }}",
    "{% set s = 'a ' * 15000000 %}{{ s.split() }}",
    "{% set s = 'a ' * 15000000 %}{{ s.rsplit(' ') }}",
    "{{ cycler(1) }}{{ self }}{{ lipsum(1000000) }}",
];

#[test]
fn hostile_templates_are_stopped_within_their_bounds() {
    for source in HOSTILE {
        refused(source);
    }
}

#[test]
fn raw_text_in_a_captured_loop_is_counted() {
    let line = "x".repeat(100_000);
    let source =
        format!("{{% set x %}}{{% for i in range(9999) %}}{line}{{% endfor %}}{{% endset %}}{{{{ x | length }}}}");
    assert_eq!(refused(&source), TemplateError::TooLarge { max: MAX_BUILT_CHARS });
}

#[test]
fn repeated_comparisons_of_long_texts_run_out_of_work() {
    let source = "{% set ns = namespace(s=messages[0].content) %}{% for i in range(9999) %}{% for j in range(20) %}\
                  {% if messages[0].content == messages[1].content %}{% endif %}{% endfor %}{% endfor %}";
    let long = "x".repeat(MAX_CONVERSATION / 2 - "user".len());
    let messages = [ChatMessage::new("user", &*long), ChatMessage::new("", &*long)];
    let conversation = template(source).and_then(|template| text(&template, &messages, true));
    assert_eq!(conversation, Err(TemplateError::OutOfFuel));
}

#[test]
fn a_conversation_beyond_the_limit_is_refused() {
    let template = template("{{ messages | length }}").expect("it compiles");
    let long = [ChatMessage::new("user", "x".repeat(MAX_CONVERSATION))];
    assert!(matches!(text(&template, &long, true), Err(TemplateError::Conversation { .. })));
    let many = vec![ChatMessage::new("", ""); MAX_MESSAGES + 1];
    assert!(matches!(text(&template, &many, true), Err(TemplateError::Conversation { .. })));
}

#[test]
fn the_longest_conversation_renders_with_an_ordinary_template() {
    let source = "{% for m in messages %}{{ '<s>' + m['role'] + '\n' + m['content'] + '</s>' + '\n' }}{% endfor %}";
    let long = [ChatMessage::new("user", "x".repeat(MAX_CONVERSATION - 4))];
    let long = template(source).and_then(|template| text(&template, &long, true)).expect("it renders");
    assert_eq!(long.len(), MAX_CONVERSATION + "<s>\n</s>\n".len());
}

#[test]
fn tools_documents_and_variables_reach_the_template() {
    let template = template(concat!(
        "{{ tools is none }}{{ documents is none }}{% for tool in tools or [] %}{{ tool.function.name }}{% endfor %}",
        "{% for document in documents or [] %}{{ document.title }}{% endfor %}{{ enable_thinking }}",
    ))
    .expect("it compiles");
    let given = TemplateInputs {
        tools: vec![serde_json::json!({"type": "function", "function": {"name": "clock"}})],
        documents: vec![serde_json::json!({"title": "Time"})],
        kwargs: [("enable_thinking".to_owned(), false.into())].into_iter().collect(),
        parse_content: false,
    };
    let rendered = template.render(&conversation(), &given, true).map(|rendered| rendered.text().to_owned());
    assert_eq!(rendered.as_deref(), Ok("FalseFalseclockTimeFalse"));
    assert_eq!(text(&template, &conversation(), true).as_deref(), Ok("TrueTrue"));
}

#[test]
fn inputs_with_a_reserved_name_or_deep_nesting_are_refused() {
    let template = template("{{ messages | length }}").expect("it compiles");
    let render = |name: &str, value| {
        let kwargs = [(name.to_owned(), value)].into_iter().collect();
        template.render(&conversation(), &TemplateInputs { kwargs, ..TemplateInputs::default() }, true)
    };
    assert_eq!(render("messages", 1.into()), Err(TemplateError::Reserved { name: "messages" }));
    let deep = (0..64).fold(serde_json::json!(1), |inner, _| serde_json::json!([inner]));
    assert_eq!(render("deep", deep), Err(TemplateError::Nested { input: "chat_template_kwargs" }));
    assert!(matches!(render("long", "x".repeat(MAX_CONVERSATION).into()), Err(TemplateError::Conversation { .. })));
}
